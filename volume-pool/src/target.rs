//! The target of a pull: a raw file or block device that becomes a complete image.
//!
//! ```text
//! Target::open → for each section: scan (unless fresh) → write the missing chunks → finish
//! ```
//! There is no state beside the bytes themselves: an interrupted pull is gone on with by hashing
//! what is there. At 6.5 GB/s a core that costs less than keeping a map would, and cannot be wrong.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use blockio::{BlockFile, Engine, FileKind, Fs};
use image::{ChunkSet, Error, Geometry, Kind, Result, SectionTable};

use crate::Verified;
use crate::place::{self, Opened, Place};
use crate::scan::{Found, scan};

/// A file or device that is becoming an image. Shared by the cores that fill it.
#[derive(Debug)]
pub struct Target {
    fs: Fs,
    place: Place,
    file: BlockFile,
    geometry: Geometry,
    fresh: bool,
    /// Something was changed: the bytes are neither the old image nor yet the new one.
    dirty: AtomicBool,
    finished: AtomicBool,
}

impl Target {
    /// Opens or makes what an image of this geometry at `path` will be worked on in, and locks it:
    /// a second pull to the same path is a [`Kind::Conflict`]. Symbolic links are followed.
    ///
    /// What is at `path` is not changed, but an earlier image there loses its name until the new
    /// one is complete; if nothing is written it gets it back.
    pub fn open(path: &Path, geometry: Geometry) -> Result<Self> {
        // A link would otherwise be replaced by a file, and what it points at left behind.
        let real = match std::fs::canonicalize(path) {
            Ok(real) => real,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => path.to_owned(),
            Err(e) => return Err(Error::io(path.display(), e)),
        };
        Self::open_in(&Fs::os(), &real, geometry)
    }

    /// The same on any file system.
    pub fn open_in(fs: &Fs, path: &Path, geometry: Geometry) -> Result<Self> {
        let Opened { place, file, fresh } = place::open(fs, path)?;
        let target = Self {
            fs: fs.clone(),
            place,
            file,
            geometry,
            fresh,
            dirty: AtomicBool::new(fresh),
            finished: AtomicBool::new(false),
        };
        target.fit()?;
        Ok(target)
    }

    /// Gives a file its size; checks that a device has it.
    fn fit(&self) -> Result<()> {
        let size = self.file.size().map_err(|e| self.io(e))?;
        let wanted = self.geometry.size();
        if self.file.kind() == FileKind::Block {
            let sector = self.file.sectors().logical;
            if sector > self.geometry.sector() {
                let image = self.geometry.sector();
                let path = self.place.path().display();
                tracing::warn!(
                    "{path}: sectors of {sector} bytes, but the image has {image}: its partition table may not be understood there"
                );
            }
            if size < wanted {
                let what = format!("a device of {size} bytes is too small for {wanted}");
                return Err(self.error(Kind::Invalid, &what));
            }
        } else if size != wanted {
            self.dirty.store(true, Ordering::Relaxed);
            self.file.set_len(wanted).map_err(|e| self.io(e))?;
        }
        Ok(())
    }

    /// Whether it was made by this pull: every byte is zero, and nothing needs a scan.
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// Compares a section of a reused target with its table; makes zeros what must be zeros, and
    /// returns the chunks that must be written.
    pub async fn scan(&self, section: u32, table: &SectionTable) -> Result<ChunkSet> {
        let (file, geometry, table) = (self.file.clone(), self.geometry, table.clone());
        // Hashing and reading old bytes would hold the network up on this core.
        let scanned = tokio::task::spawn_blocking(move || scan(&file, &geometry, section, &table));
        let Found { missing, to_zero } = scanned
            .await
            .map_err(|e| Error::caused(Kind::Io, format!("scanning the target: {e}"), e))??;
        for chunk in to_zero {
            let start = self.geometry.chunk_start(section, chunk);
            let end = start + self.geometry.chunk_len_at(section, chunk) as u64;
            self.dirty.store(true, Ordering::Relaxed);
            let zeroed = match self.file.kind() {
                FileKind::Block => self.file.zero_range(start..end),
                FileKind::Regular => self.file.punch_hole(start..end),
            };
            zeroed.map_err(|e| self.io(e))?;
        }
        Ok(missing)
    }

    /// Writes a chunk where it belongs.
    pub async fn write(
        &self,
        engine: &Engine,
        section: u32,
        chunk: u32,
        plain: Verified,
    ) -> Result<()> {
        debug_assert_eq!(plain.len(), self.geometry.chunk_len_at(section, chunk));
        self.dirty.store(true, Ordering::Relaxed);
        let at = self.geometry.chunk_start(section, chunk);
        let (written, _buf) = engine.write_at(&self.file, plain.into_buf(), at).await;
        written.map_err(|e| self.io(e))
    }

    /// Gives the complete image its name. With `sync` everything is durable when this returns; a
    /// lost write is always reported then.
    pub fn finish(&self, sync: bool) -> Result<()> {
        if sync {
            self.file.sync_data().map_err(|e| self.io(e))?;
        }
        if let Place::File { path, partial, .. } = &self.place {
            let named = match sync {
                true => self.fs.rename_durable(partial, path),
                false => self.fs.rename_soon(partial, path),
            };
            named.map_err(|e| self.io(e))?;
        }
        self.finished.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn error(&self, kind: Kind, what: &str) -> Error {
        Error::new(kind, format!("{}: {what}", self.place.path().display()))
    }

    fn io(&self, e: std::io::Error) -> Error {
        let error = Error::io("target", e);
        match error.kind() {
            Kind::Full => {
                let path = self.place.path().display();
                let why = format!(
                    "{path}: no space for an image of {} bytes ({error}); make room and run it \
                     again: it goes on from here",
                    self.geometry.size()
                );
                Error::new(Kind::Full, why)
            }
            _ => error,
        }
    }
}

impl Drop for Target {
    /// An earlier image that was not touched gets its name back.
    fn drop(&mut self) {
        let untouched =
            !self.dirty.load(Ordering::Relaxed) && !self.finished.load(Ordering::Relaxed);
        if let Place::File { path, partial, was_complete: true } = &self.place
            && untouched
            && let Err(error) = self.fs.rename_new_durable(partial, path)
        {
            let partial = partial.display();
            tracing::warn!(%error, "the earlier image is still called {partial}");
        }
    }
}
