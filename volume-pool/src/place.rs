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
//! An earlier image keeps its name until its first byte is to change: a pull that comes to nothing
//! before has changed nothing. That rename is durable before the first write, or a power cut could
//! leave a mixture under PATH.
//!
//! Whoever holds the exclusive lock of the inode under the partial name (or, before the rename, under
//! PATH) may work; the lock follows the inode through the renames, and dies with its process.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use blockio::{BlockFile, FileKind, Fs, OpenMode};
use image::{Error, Kind, Result};

/// How often opening is tried while others rename or finish under our hands.
const TRIES: u32 = 100;

/// Symbolic links that are followed before it is called a loop.
const MAX_LINKS: u32 = 40;

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
        /// Whether it had the final name when it was found, and has it until it is changed.
        was_complete: bool,
    },
}

/// What was found or made: names, the open and locked file, whether it is new and empty.
pub(crate) struct Opened {
    pub(crate) place: Place,
    pub(crate) file: BlockFile,
    pub(crate) fresh: bool,
    /// What is at the path and will be replaced, locked: nobody may begin to use it meanwhile.
    pub(crate) replaced: Option<BlockFile>,
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

/// The name of a hidden file beside `path`, for what becomes that.
pub(crate) fn beside(path: &Path, suffix: &str) -> Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| {
        let what = format!("{}: not the name of a file or block device", path.display());
        Error::new(Kind::Invalid, what)
    })?;
    let mut partial = std::ffi::OsString::from(".");
    partial.push(name);
    partial.push(suffix);
    Ok(path.with_file_name(partial))
}

/// Follows symbolic links at the end of `path`, also to where nothing is yet: else the link would be
/// replaced by a file, and what it points at left behind.
pub(crate) fn resolve(path: &Path) -> Result<PathBuf> {
    let failed = |e| Error::io(path.display(), e);
    let mut at = path.to_owned();
    for _ in 0..MAX_LINKS {
        match std::fs::symlink_metadata(&at) {
            Ok(meta) if meta.is_symlink() => {
                let link = std::fs::read_link(&at).map_err(failed)?;
                at = at.parent().unwrap_or(Path::new("")).join(link);
            }
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(failed(e)),
            Ok(meta) if meta.is_dir() => return Err(not_a_file(path)),
            Err(_) => return in_a_directory(path, &at).map(|()| at),
            Ok(_) => return Ok(at),
        }
    }
    Err(Error::new(Kind::Invalid, format!("{}: too many symbolic links", path.display())))
}

fn not_a_file(path: &Path) -> Error {
    let what = format!("{}: a directory: name the file in it", path.display());
    Error::new(Kind::Invalid, what)
}

/// Whether a file can be made at `at`, to which `path` leads: it must not end like the name of a
/// directory, and lie in one that exists.
fn in_a_directory(path: &Path, at: &Path) -> Result<()> {
    if at.as_os_str().as_bytes().ends_with(b"/") {
        return Err(not_a_file(path));
    }
    let dir = match at.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    if dir.is_dir() {
        return Ok(());
    }
    let (path, dir) = (path.display(), dir.display());
    let what = format!("{path}: there is no directory {dir}: make it first (`mkdir -p`)");
    Err(Error::new(Kind::Gone, what))
}

/// Refuses what no target can be opened at, before anything is asked of the network.
pub fn check_path(path: &Path) -> Result<()> {
    resolve(path).map(drop)
}

/// The error names the path already.
fn io(e: io::Error) -> Error {
    Error::io("target", e)
}

fn busy(path: &Path) -> Error {
    let what = format!(
        "{}: in use: another pull writes to it, or the device is mounted or claimed",
        path.display()
    );
    Error::new(Kind::Conflict, what)
}

/// Refuses what a virtual machine or a loop device uses, and keeps the first of these from starting.
fn refuse_used(file: &BlockFile, path: &Path) -> Result<()> {
    match file.other_user().map_err(io)? {
        None => Ok(()),
        Some(who) => {
            let what = format!("{}: in use: {who}, or pull to another path", path.display());
            Err(Error::new(Kind::Conflict, what))
        }
    }
}

/// Opens or makes, and locks, what an image at `path` will be worked on in. Nothing that was there is
/// changed.
pub(crate) fn open(fs: &Fs, path: &Path) -> Result<Opened> {
    let partial = beside(path, ".forebay-partial")?;
    for _ in 0..TRIES {
        if let Some(opened) = try_open(fs, path, &partial)? {
            return Ok(opened);
        }
    }
    Err(busy(path))
}

/// One try; nothing if a name moved under our hands.
fn try_open(fs: &Fs, path: &Path, partial: &Path) -> Result<Option<Opened>> {
    let there = match fs.open(path, OpenMode::write()) {
        Ok(file) if file.kind() == FileKind::Block => {
            let place = Place::Device { path: path.to_owned() };
            lock(&file, path)?;
            refuse_used(&file, path)?;
            return Ok(Some(Opened { place, file, fresh: false, replaced: None }));
        }
        Ok(file) => Some(file),
        Err(e) if e.kind() == ErrorKind::NotFound => None,
        // The kernel refuses a device that is mounted or claimed.
        Err(e) if e.kind() == ErrorKind::ResourceBusy => return Err(busy(path)),
        Err(e) => return Err(io(e)),
    };
    // Whatever becomes of the name, whoever uses the old file would lose it: it stays locked to the end.
    if let Some(old) = &there {
        lock(old, path)?;
        refuse_used(old, path)?;
    }
    // An interrupted pull is gone on with, whatever is at the path. Else an earlier image is changed
    // in place, so that only what differs has to travel; but not if it has other names: whoever made
    // those wants the old bytes there.
    let (file, fresh, replaced) = match fs.open(partial, OpenMode::write()) {
        Ok(file) => (file, false, there),
        Err(e) if e.kind() == ErrorKind::NotFound => match there {
            Some(old) if has_no_other_name(&old) => return Ok(complete(path, partial, old)),
            there => match fs.open(partial, OpenMode::create_new()) {
                Ok(file) => (file, true, there),
                Err(e) if e.kind() == ErrorKind::AlreadyExists => return Ok(None),
                Err(e) => return Err(io(e)),
            },
        },
        Err(e) => return Err(io(e)),
    };
    lock(&file, path)?;
    // Between the open and the lock whoever had it may have finished and moved it.
    if !file.same_file(partial).unwrap_or(false) {
        return Ok(None);
    }
    let place = Place::file(path, partial, false);
    Ok(Some(Opened { place, file, fresh, replaced }))
}

/// An earlier image, locked, that is to be changed in place; nothing if it was moved before it was
/// locked.
fn complete(path: &Path, partial: &Path, file: BlockFile) -> Option<Opened> {
    let place = Place::file(path, partial, true);
    let is_still = file.same_file(path).unwrap_or(false);
    is_still.then_some(Opened { place, file, fresh: false, replaced: None })
}

fn has_no_other_name(file: &BlockFile) -> bool {
    let Some(fd) = file.descriptor() else { return true };
    let meta = fd.try_clone_to_owned().and_then(|fd| File::from(fd).metadata());
    // If in doubt, leave it alone.
    meta.is_ok_and(|meta| meta.nlink() == 1)
}

fn lock(file: &BlockFile, path: &Path) -> Result<()> {
    match file.try_lock_exclusive() {
        Ok(true) => Ok(()),
        Ok(false) => Err(busy(path)),
        Err(e) => Err(io(e)),
    }
}
