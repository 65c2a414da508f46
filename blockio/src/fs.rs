//! Names: opening, renaming and removing files so that it lasts.
//!
//! Code that must survive a power cut takes an [`Fs`], not the functions of the standard library:
//! tests then hand it a file system that forgets (see [`fake`](crate::fake)).

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{self as sys, OFlags};

use crate::backing::OpenMode;
use crate::error::locate;
use crate::file::BlockFile;

/// What stands behind an [`Fs`]. Calls may block; errors are the plain system ones.
///
/// # Errors
///
/// Every method returns what the system says.
pub trait Namespace: Send + Sync + fmt::Debug {
    /// Opens a file.
    ///
    /// # Errors
    ///
    /// See [`BlockFile::open`].
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<BlockFile>;

    /// Moves a file or directory; with `replace` unset an existing `to` is refused.
    ///
    /// # Errors
    ///
    /// `NotFound`; `AlreadyExists`.
    fn rename(&self, from: &Path, to: &Path, replace: bool) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Removes an empty directory.
    ///
    /// # Errors
    ///
    /// `NotFound`; `DirectoryNotEmpty`.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;

    /// Makes a directory in one that exists.
    ///
    /// # Errors
    ///
    /// `NotFound`; `AlreadyExists`.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// The names in a directory, in no particular order.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>>;

    /// Whether something bears this name.
    ///
    /// # Errors
    ///
    /// What the system says, other than that nothing does.
    fn exists(&self, path: &Path) -> io::Result<bool>;

    /// Makes the names in a directory last.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Whether calls may block: not those of a fake that lies in memory.
    fn may_block(&self) -> bool {
        true
    }
}

/// A file system: this machine's, or a fake. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Fs {
    names: Arc<dyn Namespace>,
}

impl Fs {
    /// This machine's.
    pub fn os() -> Fs {
        Fs::new(Arc::new(OsNamespace))
    }

    /// Another one.
    pub fn new(names: Arc<dyn Namespace>) -> Fs {
        Fs { names }
    }

    pub(crate) fn namespace(&self) -> &dyn Namespace {
        &*self.names
    }

    /// Does work that may block on this file system on a thread of the runtime's pool; on a fake, at
    /// once on the calling thread, so that a simulation is deterministic.
    ///
    /// # Errors
    ///
    /// `Other` if the work panicked there, or the runtime is shutting down.
    pub async fn unblock<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        if self.names.may_block() {
            return tokio::task::spawn_blocking(work).await.map_err(io::Error::other);
        }
        // Others get their turn, as they would with a disk.
        tokio::task::yield_now().await;
        Ok(work())
    }

    /// Opens a file. A created file's name lasts only after [`sync_dir`](Fs::sync_dir).
    ///
    /// # Errors
    ///
    /// See [`BlockFile::open`].
    pub fn open(&self, path: impl AsRef<Path>, mode: OpenMode) -> io::Result<BlockFile> {
        let path = path.as_ref();
        self.names.open(path, mode).map_err(|error| locate("open", path, None, error))
    }

    /// Moves `from` to `to`, replacing what is there, and returns once a power cut cannot undo it.
    /// At every instant `to` is the old file or the new one, whole.
    ///
    /// The content of the file is not synced here: do that first.
    ///
    /// # Errors
    ///
    /// What the system says. If the error comes from syncing the directory, the rename is done but
    /// may not last.
    pub fn rename_durable(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<()> {
        self.rename(from.as_ref(), to.as_ref(), true)
    }

    /// As [`rename_durable`](Fs::rename_durable), but refuses to replace anything: of any number of
    /// callers one wins.
    ///
    /// # Errors
    ///
    /// `AlreadyExists` if `to` is there; `NotFound` if `from` is not (someone else moved it);
    /// otherwise as for `rename_durable`.
    pub fn rename_new_durable(
        &self,
        from: impl AsRef<Path>,
        to: impl AsRef<Path>,
    ) -> io::Result<()> {
        self.rename(from.as_ref(), to.as_ref(), false)
    }

    /// Moves `from` to `to`, replacing what is there, for who does not ask for durability: a power
    /// cut may undo it.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn rename_soon(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<()> {
        let (from, to) = (from.as_ref(), to.as_ref());
        let result = self.names.rename(from, to, true);
        result.map_err(|error| locate("rename", from, None, error))
    }

    fn rename(&self, from: &Path, to: &Path, replace: bool) -> io::Result<()> {
        let result = self.names.rename(from, to, replace);
        result.map_err(|error| locate("rename", from, None, error))?;
        self.sync_dir(parent(to))?;
        if parent(from) != parent(to) {
            self.sync_dir(parent(from))?;
        }
        Ok(())
    }

    /// Puts `bytes` at `path`, whole or not at all, and returns once they last: written to
    /// `<path>.new`, synced, renamed, the directory synced. Two writers of one path at once are not
    /// allowed for.
    ///
    /// # Errors
    ///
    /// What the system says; what was at `path` is then still there, or the new bytes are.
    pub fn replace(&self, path: impl AsRef<Path>, bytes: &[u8]) -> io::Result<()> {
        let path = path.as_ref();
        let mut name = path.as_os_str().to_os_string();
        name.push(".new");
        let fresh = PathBuf::from(name);
        let file = self.open(&fresh, OpenMode::create())?;
        file.set_len(0)?;
        file.write_all_at(bytes, 0)?;
        file.sync_data()?;
        self.rename_durable(&fresh, path)
    }

    /// All of the file at `path`.
    ///
    /// # Errors
    ///
    /// `NotFound`; `FileTooLarge` if it is longer than `limit` bytes; otherwise what the system
    /// says.
    pub fn read(&self, path: impl AsRef<Path>, limit: usize) -> io::Result<Vec<u8>> {
        let file = self.open(path, OpenMode::read())?;
        let size = file.size()?;
        if size > limit as u64 {
            return Err(file.at("read", None, io::ErrorKind::FileTooLarge.into()));
        }
        let mut bytes = vec![0; size as usize];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// Removes a file. It may come back after a power cut until [`sync_dir`](Fs::sync_dir).
    ///
    /// # Errors
    ///
    /// `NotFound`; otherwise what the system says.
    pub fn remove_file(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let path = path.as_ref();
        self.names.remove_file(path).map_err(|error| locate("remove", path, None, error))
    }

    /// Removes an empty directory. It may come back after a power cut until
    /// [`sync_dir`](Fs::sync_dir).
    ///
    /// # Errors
    ///
    /// `NotFound`; `DirectoryNotEmpty`; otherwise what the system says.
    pub fn remove_dir(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let path = path.as_ref();
        self.names.remove_dir(path).map_err(|error| locate("remove", path, None, error))
    }

    /// Makes a directory, which need not last.
    ///
    /// # Errors
    ///
    /// `AlreadyExists`; otherwise what the system says.
    pub fn create_dir(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let path = path.as_ref();
        self.names.create_dir(path).map_err(|error| locate("mkdir", path, None, error))
    }

    /// Makes `path` and the directories above it that are missing, each of them lasting.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn create_dir_all(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let path = path.as_ref();
        if path.as_os_str().is_empty() || self.exists(path)? {
            return Ok(());
        }
        self.create_dir_all(parent(path))?;
        match self.create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => self.sync_dir(parent(path)),
        }
    }

    /// The names in a directory, sorted.
    ///
    /// # Errors
    ///
    /// `NotFound`; otherwise what the system says.
    pub fn list(&self, dir: impl AsRef<Path>) -> io::Result<Vec<OsString>> {
        let dir = dir.as_ref();
        let mut names = self.names.list(dir).map_err(|error| locate("list", dir, None, error))?;
        names.sort_unstable();
        Ok(names)
    }

    /// Whether something bears this name.
    ///
    /// # Errors
    ///
    /// What the system says, other than that nothing does.
    pub fn exists(&self, path: impl AsRef<Path>) -> io::Result<bool> {
        let path = path.as_ref();
        self.names.exists(path).map_err(|error| locate("stat", path, None, error))
    }

    /// Makes the names in a directory last.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn sync_dir(&self, dir: impl AsRef<Path>) -> io::Result<()> {
        let dir = dir.as_ref();
        self.names.sync_dir(dir).map_err(|error| locate("sync", dir, None, error))
    }
}

/// [`Fs::rename_durable`] on this machine's file system.
///
/// # Errors
///
/// As there.
pub fn rename_durable(from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<()> {
    Fs::os().rename_durable(from, to)
}

/// [`Fs::sync_dir`] on this machine's file system.
///
/// # Errors
///
/// As there.
pub fn sync_dir(dir: impl AsRef<Path>) -> io::Result<()> {
    Fs::os().sync_dir(dir)
}

/// The directory that holds the name `path`; `.` for a bare name.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => path,
    }
}

#[derive(Debug)]
struct OsNamespace;

impl Namespace for OsNamespace {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<BlockFile> {
        BlockFile::open(path, mode)
    }

    fn rename(&self, from: &Path, to: &Path, replace: bool) -> io::Result<()> {
        let flags = if replace { sys::RenameFlags::empty() } else { sys::RenameFlags::NOREPLACE };
        Ok(sys::renameat_with(sys::CWD, from, sys::CWD, to, flags)?)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_dir(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        std::fs::create_dir(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        std::fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name())).collect()
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        path.try_exists()
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = sys::open(dir, flags, sys::Mode::empty())?;
        Ok(sys::fsync(dir)?)
    }
}
