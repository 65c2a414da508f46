//! Where a target's bytes lie while it is worked on, and how they get their name.
//!
//! A regular file at PATH is always a complete image, an old one or the new one: work happens under
//! a partial name beside it.
//!
//! ```text
//!                    nothing there     an earlier image     an interrupted pull
//! PATH               -                 old ──┐              (old or nothing)
//! .PATH.forebay-partial    create            └─ rename      reuse
//!                    ────────────────── work, sync ──────────────────
//! PATH               ◀──────────────────── rename ───────────────────
//! ```
//! Whoever holds the exclusive lock of the inode under the partial name (or, before the rename, under
//! PATH) may work; the lock follows the inode through the renames, and dies with its process.

use std::path::{Path, PathBuf};

use blockio::{BlockFile, FileKind, Fs, OpenMode};
use image::{Error, Kind, Result};

/// How often opening is tried while others rename or finish under our hands.
const TRIES: u32 = 100;

/// A target's names.
#[derive(Debug)]
pub(crate) enum Place {
    /// A block device, worked on in place.
    Device { path: PathBuf },
    /// A regular file.
    File {
        /// The name that it gets when it is complete.
        path: PathBuf,
        /// The name that it has until then.
        partial: PathBuf,
        /// Whether it had the final name when it was found.
        was_complete: bool,
    },
}

/// What was found or made: names, the open and locked file, whether it is new and empty.
pub(crate) struct Opened {
    pub(crate) place: Place,
    pub(crate) file: BlockFile,
    pub(crate) fresh: bool,
}

impl Place {
    fn file(path: &Path, partial: &Path, was_complete: bool) -> Self {
        Self::File { path: path.to_owned(), partial: partial.to_owned(), was_complete }
    }

    /// The path that the user named.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Place::Device { path } | Place::File { path, .. } => path,
        }
    }
}

fn partial_name(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| {
        let what = format!("{}: not the name of a file or block device", path.display());
        Error::new(Kind::Invalid, what)
    })?;
    let mut partial = std::ffi::OsString::from(".");
    partial.push(name);
    partial.push(".forebay-partial");
    Ok(path.with_file_name(partial))
}

/// The error names the path already.
fn io(e: std::io::Error) -> Error {
    Error::io("target", e)
}

fn busy(path: &Path) -> Error {
    let what = format!("{}: another pull or program is writing it", path.display());
    Error::new(Kind::Conflict, what)
}

/// Opens or makes, and locks, what an image at `path` will be worked on in. Nothing that was there is
/// changed but its name.
pub(crate) fn open(fs: &Fs, path: &Path) -> Result<Opened> {
    let partial = partial_name(path)?;
    for _ in 0..TRIES {
        if let Some(opened) = try_open(fs, path, &partial)? {
            return Ok(opened);
        }
    }
    Err(busy(path))
}

/// One try; nothing if a name moved under our hands.
fn try_open(fs: &Fs, path: &Path, partial: &Path) -> Result<Option<Opened>> {
    match fs.open(path, OpenMode::write()) {
        Ok(file) if file.kind() == FileKind::Block => {
            let place = Place::Device { path: path.to_owned() };
            return lock(&file, path).map(|()| Some(Opened { place, file, fresh: false }));
        }
        Ok(file) => return reuse(fs, file, path, partial),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(io(e)),
    }
    let (file, fresh) = match fs.open(partial, OpenMode::write()) {
        Ok(file) => (file, false),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            match fs.open(partial, OpenMode::create_new()) {
                Ok(file) => (file, true),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => return Ok(None),
                Err(e) => return Err(io(e)),
            }
        }
        Err(e) => return Err(io(e)),
    };
    lock(&file, path)?;
    if !file.same_file(partial).unwrap_or(false) {
        return Ok(None);
    }
    Ok(Some(Opened { place: Place::file(path, partial, false), file, fresh }))
}

/// An earlier image is at `path`: an interrupted pull beside it is gone on with, else the image
/// itself is moved aside and changed in place, so that only what differs has to travel.
fn reuse(fs: &Fs, old: BlockFile, path: &Path, partial: &Path) -> Result<Option<Opened>> {
    match fs.open(partial, OpenMode::write()) {
        Ok(file) => {
            lock(&file, path)?;
            let still = file.same_file(partial).unwrap_or(false);
            return Ok(still.then(|| Opened {
                place: Place::file(path, partial, false),
                file,
                fresh: false,
            }));
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(io(e)),
    }
    lock(&old, path)?;
    if !old.same_file(path).unwrap_or(false) {
        return Ok(None);
    }
    match fs.rename_new_durable(path, partial) {
        Ok(()) => {
            Ok(Some(Opened { place: Place::file(path, partial, true), file: old, fresh: false }))
        }
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(None),
        Err(e) => Err(io(e)),
    }
}

fn lock(file: &BlockFile, path: &Path) -> Result<()> {
    match file.try_lock_exclusive() {
        Ok(true) => Ok(()),
        Ok(false) => Err(busy(path)),
        Err(e) => Err(io(e)),
    }
}
