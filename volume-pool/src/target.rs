//! The target of a pull: a raw file or block device that becomes a complete image.
//!
//! ```text
//! Target::open → for each section: scan (unless fresh) → write the missing chunks → finish
//! ```
//! There is no state beside the bytes themselves: an interrupted pull is gone on with by hashing
//! what is there. At 6.5 GB/s a core that costs less than keeping a map would, and cannot be wrong.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use blockio::arena::ALIGN;
use blockio::{BlockFile, Engine, FileKind, Fs, OpenMode};
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
    /// See [`Opened::replaced`].
    _replaced: Option<BlockFile>,
    /// Set once the file may be changed: it has its partial name, durably, and its size.
    begun: Mutex<Option<Begun>>,
}

/// A target that is being changed.
#[derive(Clone, Debug, Default)]
struct Begun {
    /// The same file past the page cache, where the file system can: a chunk costs half the
    /// processor time that way (9 against 19 µs, benches/cpu.rs of blockio), a sync finds nothing
    /// left to do, and a pull does not push the node's guests out of its memory.
    direct: Option<BlockFile>,
}

impl Target {
    /// Opens or makes what an image of this geometry at `path` will be worked on in, and locks it:
    /// a second pull to the same path is a [`Kind::Conflict`]. Symbolic links are followed.
    ///
    /// A directory, and what would lie in one that does not exist, are refused.
    ///
    /// What is at `path` is not changed yet. Once its first byte is to change, an earlier image
    /// there loses its name until the new one is complete. An image that a virtual machine of QEMU's
    /// or a loop device uses is a [`Kind::Conflict`]; a program that has it open without having
    /// locked it is not noticed.
    pub fn open(path: &Path, geometry: Geometry) -> Result<Self> {
        Self::open_in(&Fs::os(), &place::resolve(path)?, geometry)
    }

    /// The same on any file system.
    pub fn open_in(fs: &Fs, path: &Path, geometry: Geometry) -> Result<Self> {
        let Opened { place, file, fresh, replaced } = place::open(fs, path)?;
        let (fs, begun) = (fs.clone(), Mutex::new(None));
        let target = Self { fs, place, file, geometry, fresh, _replaced: replaced, begun };
        if target.file.kind() == FileKind::Block {
            target.check_device()?;
        }
        Ok(target)
    }

    /// Whether the image fits the device. With other sectors than the image's the device holds the
    /// same bytes, which is all that matters to a VM; but partition tables count in sectors.
    fn check_device(&self) -> Result<()> {
        let (size, wanted) = (self.file.size().map_err(|e| self.io(e))?, self.geometry.size());
        if size < wanted {
            let what = format!("a device of {size} bytes is too small for {wanted}");
            return Err(self.error(Kind::Invalid, &what));
        }
        let (sector, image) = (self.file.sectors().logical, self.geometry.sector());
        if sector != image {
            let path = self.place.path().display();
            tracing::warn!(
                "{path}: sectors of {sector} bytes, but the image has {image}: its partition table \
                 may not be understood there"
            );
        }
        Ok(())
    }

    /// Refuses a target whose file system has certainly no room for an image that holds `data` bytes
    /// which are not zeros. Nothing has been changed then.
    pub fn check_room(&self, data: u64) -> Result<()> {
        let Some(space) = self.file.space().map_err(|e| self.io(e))? else { return Ok(()) };
        let needed = data.saturating_sub(space.allocated);
        if needed <= space.free {
            return Ok(());
        }
        let free = space.free;
        let what = format!("the image needs {needed} bytes more, and {free} are free: make room");
        Err(self.error(Kind::Full, &what))
    }

    /// Makes the file ready to be changed. The first call blocks for a rename and a sync of the
    /// directory.
    fn begin(&self) -> Result<Begun> {
        // It is set when all has been done.
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(begun) = &*begun {
            return Ok(begun.clone());
        }
        let mut now = Begun::default();
        if let Place::File { path, partial, was_complete } = &self.place {
            if *was_complete {
                self.check_still(path)?;
                // Nothing is replaced: whoever makes a partial file heeds our lock.
                self.fs.rename_durable(path, partial).map_err(|e| self.io(e))?;
            }
            self.file.set_len(self.geometry.size()).map_err(|e| self.io(e))?;
            let direct = self.fs.open(partial, OpenMode::write().direct());
            self.check_still(partial)?;
            now.direct = direct.ok();
        }
        *begun = Some(now.clone());
        Ok(now)
    }

    /// Whether our file still has the name that it should have.
    fn check_still(&self, name: &Path) -> Result<()> {
        if self.file.same_file(name).unwrap_or(false) {
            return Ok(());
        }
        let name = name.display();
        Err(self.error(Kind::Conflict, &format!("somebody moved or replaced {name} meanwhile")))
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
        let scanned = self.fs.unblock(move || scan(&file, &geometry, section, &table));
        let Found { missing, to_zero } = scanned
            .await
            .map_err(|e| Error::caused(Kind::Io, format!("scanning the target: {e}"), e))??;
        if !to_zero.is_empty() {
            self.begin()?;
            let (file, geometry) = (self.file.clone(), self.geometry);
            let work =
                move || to_zero.into_iter().try_for_each(|c| zero(&file, &geometry, section, c));
            let zeroed = self.fs.unblock(work).await;
            let died = |e| Error::caused(Kind::Io, format!("zeroing the target: {e}"), e);
            zeroed.map_err(died)?.map_err(|e| self.io(e))?;
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
        let begun = self.begin()?;
        let at = self.geometry.chunk_start(section, chunk);
        // The end of the disk may be no multiple of what direct I/O needs.
        let direct = begun.direct.filter(|_| plain.len().is_multiple_of(ALIGN));
        let file = direct.as_ref().unwrap_or(&self.file);
        let (written, _buf) = engine.write_at(file, plain.into_buf(), at).await;
        written.map_err(|e| self.io(e))
    }

    /// Gives the complete image its name. With `sync` everything is durable when this returns; a
    /// lost write is always reported then.
    pub fn finish(&self, sync: bool) -> Result<()> {
        let size = self.file.size().map_err(|e| self.io(e))?;
        // An earlier image that is the new one already was not touched, and need not be.
        if self.file.kind() == FileKind::Regular && (self.fresh || size != self.geometry.size()) {
            self.begin()?;
        }
        if sync {
            // Each reports the writes that were lost through it.
            let direct = self.begun().unwrap_or_default().direct;
            for file in direct.iter().chain([&self.file]) {
                file.sync_data().map_err(|e| self.io(e))?;
            }
        }
        if let Place::File { path, partial, was_complete } = &self.place
            && (!*was_complete || self.begun().is_some())
        {
            self.check_still(partial)?;
            let named = match sync {
                true => self.fs.rename_durable(partial, path),
                false => self.fs.rename_soon(partial, path),
            };
            named.map_err(|e| self.io(e))?;
        }
        Ok(())
    }

    fn begun(&self) -> Option<Begun> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn error(&self, kind: Kind, what: &str) -> Error {
        Error::new(kind, format!("{}: {what}", self.place.path().display()))
    }

    fn io(&self, e: io::Error) -> Error {
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
    /// A file that we made and put nothing into is of no use to anybody.
    fn drop(&mut self) {
        if let Place::File { partial, .. } = &self.place
            && self.fresh
            && self.begun().is_none()
            && let Err(error) = self.fs.remove_file(partial)
        {
            tracing::debug!(%error, "an empty partial file stays");
        }
    }
}

/// Makes a chunk's place read as zeros: a hole in a file, where there can be holes; written zeros on
/// a device.
fn zero(file: &BlockFile, geometry: &Geometry, section: u32, chunk: u32) -> io::Result<()> {
    let start = geometry.chunk_start(section, chunk);
    let place: Range<u64> = start..start + geometry.chunk_len_at(section, chunk) as u64;
    if file.kind() == FileKind::Regular {
        match file.punch_hole(place.clone()) {
            Err(e) if e.kind() == io::ErrorKind::Unsupported => {}
            done => return done,
        }
    }
    file.zero_range(place)
}
