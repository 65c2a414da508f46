//! A file that gets its name when it is complete.
//!
//! ```text
//! Draft::open → write, write, … → finish: sync, rename, sync of the directory
//!      └──────── dropped: nothing is left behind
//! ```
//! Unlike a [`Target`](crate::Target), what was interrupted is not gone on with: these files are laid out
//! front to back. What a killed process leaves is the partial file, which the next one to the same path takes and
//! empties.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use blockio::{BlockFile, Engine, FileKind, Fs, OpenMode};
use image::{Error, Kind, Result};

use super::Piece;
use crate::place;

/// How often opening is tried while others finish or give up under our hands.
const TRIES: u32 = 100;

/// A file on its way. One at a time for each path: it is locked.
#[derive(Debug)]
pub struct Draft {
    fs: Fs,
    path: PathBuf,
    partial: PathBuf,
    file: BlockFile,
    /// What is at the path and will be replaced, locked: nobody may begin to use it meanwhile.
    replaced: Option<BlockFile>,
    named: bool,
}

impl Draft {
    /// Begins a file at `path`. Symbolic links are followed. One that is there already is left alone until the
    /// new one is complete.
    ///
    /// # Errors
    ///
    /// [`Kind::Conflict`] if something is there and `replace` is not set, or a virtual machine or a loop
    /// device uses it, or somebody else writes to this path; [`Kind::Invalid`] for a block device or a directory;
    /// otherwise what the system says.
    pub fn open(path: &Path, replace: bool) -> Result<Self> {
        Self::open_in(&Fs::os(), &place::resolve(path)?, replace)
    }

    /// The same on any file system.
    ///
    /// # Errors
    ///
    /// As for [`open`](Draft::open).
    pub fn open_in(fs: &Fs, path: &Path, replace: bool) -> Result<Self> {
        let replaced = there(fs, path, replace)?;
        let partial = place::beside(path, ".forebay-export")?;
        for _ in 0..TRIES {
            let file = fs.open(&partial, OpenMode::create()).map_err(|e| io_at(path, e))?;
            if !file.try_lock_exclusive().map_err(|e| io_at(path, e))? {
                return Err(busy(path));
            }
            // Between the open and the lock whoever had it may have renamed or removed it.
            if file.same_file(&partial).unwrap_or(false) {
                let (fs, path) = (fs.clone(), path.to_owned());
                let draft = Self { fs, path, partial, file, replaced, named: false };
                draft.file.set_len(0).map_err(|e| draft.io(e))?;
                return Ok(draft);
            }
        }
        Err(busy(path))
    }

    /// The path that it will have.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Refuses a file system that has certainly no room for so many bytes.
    ///
    /// # Errors
    ///
    /// [`Kind::Full`]; what the system says.
    pub fn check_room(&self, bytes: u64) -> Result<()> {
        match self.file.space().map_err(|e| self.io(e))? {
            Some(space) if space.free < bytes => {
                let (path, free) = (self.path.display(), space.free);
                let what =
                    format!("{path}: it needs {bytes} bytes, and {free} are free: make room");
                Err(Error::new(Kind::Full, what))
            }
            _ => Ok(()),
        }
    }

    /// Writes a piece.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub async fn write(&self, engine: &Engine, piece: Piece) -> Result<()> {
        let written = engine.write_bytes_at(&self.file, piece.bytes, piece.at).await;
        written.map_err(|e| self.io(e))
    }

    /// Gives the complete file, `len` bytes long, its name. It lasts when this returns.
    ///
    /// # Errors
    ///
    /// [`Kind::Conflict`] if something has come to the path meanwhile that is not to be replaced; a write
    /// that was lost; otherwise what the system says.
    pub async fn finish(self, engine: &Engine, len: u64) -> Result<()> {
        self.file.set_len(len).map_err(|e| self.io(e))?;
        engine.sync_data(&self.file).await.map_err(|e| self.io(e))?;
        let fs = self.fs.clone();
        let named = fs.unblock(move || self.name()).await;
        named.map_err(|e| Error::caused(Kind::Io, format!("naming the file: {e}"), e))?
    }

    fn name(mut self) -> Result<()> {
        if !self.file.same_file(&self.partial).unwrap_or(false) {
            let what = format!("somebody moved or replaced {} meanwhile", self.partial.display());
            return Err(Error::new(Kind::Conflict, what).at(self.path.display()));
        }
        let named = match self.replaced.is_some() {
            true => self.fs.rename_durable(&self.partial, &self.path),
            false => self.fs.rename_new_durable(&self.partial, &self.path),
        };
        named.map_err(|e| match e.kind() {
            ErrorKind::AlreadyExists => taken(&self.path),
            _ => self.io(e),
        })?;
        self.named = true;
        Ok(())
    }

    fn io(&self, e: io::Error) -> Error {
        io_at(&self.path, e)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.named
            && self.file.same_file(&self.partial).unwrap_or(false)
            && let Err(error) = self.fs.remove_file(&self.partial)
        {
            tracing::warn!(%error, "a partial file stays");
        }
    }
}

/// What is at `path`, locked, if it may be replaced.
fn there(fs: &Fs, path: &Path, replace: bool) -> Result<Option<BlockFile>> {
    let file = match fs.open(path, OpenMode::write()) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) if e.kind() == ErrorKind::PermissionDenied && !replace => {
            let there = fs.exists(path).unwrap_or(false);
            return Err(if there { taken(path) } else { Error::io("export", e) });
        }
        Err(e) => return Err(Error::io("export", e)),
    };
    if file.kind() == FileKind::Block {
        let what = format!("{}: a block device: `forebay pull` writes to these", path.display());
        return Err(Error::new(Kind::Invalid, what));
    }
    if !replace {
        return Err(taken(path));
    }
    if !file.try_lock_exclusive().map_err(|e| io_at(path, e))? {
        return Err(busy(path));
    }
    match file.other_user().map_err(|e| io_at(path, e))? {
        None => Ok(Some(file)),
        Some(who) => {
            let what = format!("{}: in use: {who}, or export to another path", path.display());
            Err(Error::new(Kind::Conflict, what))
        }
    }
}

fn taken(path: &Path) -> Error {
    let what = format!(
        "{}: it is there already: export to another path, or replace it with --force",
        path.display()
    );
    Error::new(Kind::Conflict, what)
}

fn busy(path: &Path) -> Error {
    let what =
        format!("{}: in use: another export or pull writes to it; let it end", path.display());
    Error::new(Kind::Conflict, what)
}

fn io_at(path: &Path, e: io::Error) -> Error {
    let error = Error::io("export", e);
    if error.kind() != Kind::Full {
        return error;
    }
    let what = format!("{}: no space ({error}); make room and run it again", path.display());
    Error::new(Kind::Full, what)
}
