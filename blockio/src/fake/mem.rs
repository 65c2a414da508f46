//! A file system in memory that remembers everything done to it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Component, Path};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rustix::io::Errno;

use super::crash::{CrashImages, CrashPlan, Fate, cut_now};
use super::model::{Model, NodeId, NodeKind, Op, ROOT};
use super::pages::Pages;
use crate::backing::{Backing, FileKind, OpenMode, SyncWhat, Zeroing};
use crate::file::BlockFile;
use crate::fs::{Fs, Namespace};

/// A file system in memory. Clones are the same file system.
///
/// It starts with an empty root directory; relative paths start there too. Everything done through
/// [`fs`](MemFs::fs) takes effect at once and is logged.
#[derive(Clone)]
pub struct MemFs {
    state: Arc<Mutex<State>>,
}

struct State {
    /// What was there before the log begins, and lasts.
    base: Model,
    live: Model,
    log: Vec<Op>,
    next_node: u64,
    next_handle: u64,
    /// Which handle has the lock on which file.
    locks: BTreeMap<NodeId, u64>,
}

impl Default for MemFs {
    fn default() -> MemFs {
        MemFs::new()
    }
}

impl MemFs {
    /// An empty one.
    pub fn new() -> MemFs {
        MemFs::from_model(Model::new())
    }

    pub(super) fn from_model(model: Model) -> MemFs {
        let state = State {
            base: model.clone(),
            next_node: model.unused(),
            live: model,
            log: Vec::new(),
            next_handle: 0,
            locks: BTreeMap::new(),
        };
        MemFs { state: Arc::new(Mutex::new(state)) }
    }

    /// The handle to give to code under test.
    pub fn fs(&self) -> Fs {
        Fs::new(Arc::new(self.clone()))
    }

    /// Adds a block device of `size` bytes, all zeros. It lasts at once.
    ///
    /// # Errors
    ///
    /// `NotFound` if the directory is not there; `AlreadyExists` if the name is taken.
    pub fn add_device(&self, path: impl AsRef<Path>, size: u64) -> io::Result<()> {
        let mut state = self.state();
        let node = state.create(path.as_ref(), NodeKind::Device)?;
        state.record(Op::SetLen { node, len: size });
        state.settle();
        Ok(())
    }

    /// Notes in the log that the code under test has come this far.
    pub fn mark(&self, label: impl Into<String>) {
        self.state().record(Op::Mark(label.into()));
    }

    /// Everything done so far, in order.
    pub fn log(&self) -> Vec<Op> {
        self.state().log.clone()
    }

    /// Takes everything done so far as lasting, and begins a new log.
    pub fn settle(&self) {
        self.state().settle();
    }

    /// The disks that a power cut at any point of the log may leave, in the order of the points:
    /// first the one from before the log, last those from after it.
    pub fn crash_images(&self, plan: CrashPlan) -> CrashImages {
        let state = self.state();
        CrashImages::new(state.base.clone(), state.log.clone(), plan)
    }

    /// One disk, drawn by lot, that a power cut now may leave: of what was not synced each operation
    /// is kept, lost or torn. The same seed and log give the same disk.
    pub fn cut_power(&self, seed: u64) -> MemFs {
        let state = self.state();
        MemFs::from_model(cut_now(state.base.clone(), &state.log, seed))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for MemFs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemFs").field("logged", &self.state().log.len()).finish_non_exhaustive()
    }
}

impl State {
    /// Does `op` and logs it.
    fn record(&mut self, op: Op) {
        self.live.apply(&op, Fate::Kept);
        self.log.push(op);
    }

    fn settle(&mut self) {
        self.base = self.live.clone();
        self.log.clear();
    }

    /// The directory that `path` is or would be in, and its last part.
    fn place(&self, path: &Path) -> io::Result<(NodeId, OsString)> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let dir = self.find(path.parent().unwrap_or(Path::new("")))?;
        self.names(dir)?;
        Ok((dir, name.to_owned()))
    }

    fn find(&self, path: &Path) -> io::Result<NodeId> {
        path.components().try_fold(ROOT, |dir, component| match component {
            Component::Normal(name) => self.entry(dir, name)?.ok_or(io::ErrorKind::NotFound.into()),
            Component::RootDir | Component::CurDir => Ok(dir),
            Component::ParentDir | Component::Prefix(_) => Err(io::ErrorKind::Unsupported.into()),
        })
    }

    fn names(&self, dir: NodeId) -> io::Result<&BTreeMap<OsString, NodeId>> {
        self.live.dir(dir).ok_or_else(|| io::ErrorKind::NotADirectory.into())
    }

    fn entry(&self, dir: NodeId, name: &OsStr) -> io::Result<Option<NodeId>> {
        Ok(self.names(dir)?.get(name).copied())
    }

    fn create(&mut self, path: &Path, kind: NodeKind) -> io::Result<NodeId> {
        let (dir, name) = self.place(path)?;
        if self.entry(dir, &name)?.is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let node = NodeId(self.next_node);
        self.next_node += 1;
        self.record(Op::Create { path: path.to_owned(), dir, name, node, kind });
        Ok(node)
    }

    fn remove(&mut self, path: &Path, want_dir: bool) -> io::Result<()> {
        let (dir, name) = self.place(path)?;
        let node = self.entry(dir, &name)?.ok_or(io::ErrorKind::NotFound)?;
        match (self.live.dir(node), want_dir) {
            (Some(_), false) => return Err(io::ErrorKind::IsADirectory.into()),
            (None, true) => return Err(io::ErrorKind::NotADirectory.into()),
            (Some(names), true) if !names.is_empty() => {
                return Err(io::ErrorKind::DirectoryNotEmpty.into());
            }
            _ => {}
        }
        self.record(Op::Remove { path: path.to_owned(), dir, name });
        Ok(())
    }
}

impl Namespace for MemFs {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<BlockFile> {
        let mut state = self.state();
        let create = mode.create || mode.create_new;
        let node = match state.find(path) {
            Ok(_) if mode.create_new => return Err(io::ErrorKind::AlreadyExists.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound && create => {
                state.create(path, NodeKind::File)?
            }
            found => found?,
        };
        let kind = match state.live.kind(node) {
            NodeKind::File => FileKind::Regular,
            NodeKind::Device => FileKind::Block,
            NodeKind::Dir => return Err(io::ErrorKind::InvalidInput.into()),
        };
        let handle = state.next_handle;
        state.next_handle += 1;
        let file = MemFile { fs: self.clone(), node, kind, mode, handle };
        Ok(BlockFile::from_backing(path, Box::new(file)))
    }

    fn rename(&self, from: &Path, to: &Path, replace: bool) -> io::Result<()> {
        let mut state = self.state();
        let (from, to_place) = (state.place(from)?, state.place(to)?);
        let node = state.entry(from.0, &from.1)?.ok_or(io::ErrorKind::NotFound)?;
        match state.entry(to_place.0, &to_place.1)? {
            Some(_) if !replace => return Err(io::ErrorKind::AlreadyExists.into()),
            Some(there) if there == node => return Ok(()),
            Some(there) => match (state.live.dir(node), state.live.dir(there)) {
                (None, Some(_)) => return Err(io::ErrorKind::IsADirectory.into()),
                (Some(_), None) => return Err(io::ErrorKind::NotADirectory.into()),
                (Some(_), Some(names)) if !names.is_empty() => {
                    return Err(io::ErrorKind::DirectoryNotEmpty.into());
                }
                _ => {}
            },
            None => {}
        }
        let kind = state.live.kind(node);
        state.record(Op::Rename { path: to.to_owned(), from, to: to_place, node, kind });
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.state().remove(path, false)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.state().remove(path, true)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.state().create(path, NodeKind::Dir).map(drop)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        let state = self.state();
        Ok(state.names(state.find(dir)?)?.keys().cloned().collect())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        match self.state().find(path) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state();
        let node = state.find(dir)?;
        state.names(node)?;
        state.record(Op::SyncDir { node });
        Ok(())
    }

    fn may_block(&self) -> bool {
        false
    }
}

/// An open file of a [`MemFs`].
#[derive(Debug)]
struct MemFile {
    fs: MemFs,
    node: NodeId,
    kind: FileKind,
    mode: OpenMode,
    handle: u64,
}

impl MemFile {
    fn with_pages<T>(&self, f: impl FnOnce(&Pages) -> T) -> T {
        f(self.fs.state().live.pages(self.node).expect("an open file is a file"))
    }

    fn record(&self, op: Op) -> io::Result<()> {
        if !self.mode.write {
            return Err(Errno::BADF.into());
        }
        self.fs.state().record(op);
        Ok(())
    }

    /// What the kernel checks for direct I/O.
    fn check_aligned(&self, offset: u64, len: usize) -> io::Result<()> {
        let sector = u64::from(self.sectors().logical);
        if self.mode.direct && !(offset | len as u64).is_multiple_of(sector) {
            return Err(Errno::INVAL.into());
        }
        Ok(())
    }
}

impl Backing for MemFile {
    fn kind(&self) -> FileKind {
        self.kind
    }

    fn is_direct(&self) -> bool {
        self.mode.direct
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.with_pages(Pages::len))
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        if !self.mode.read {
            return Err(Errno::BADF.into());
        }
        self.check_aligned(offset, buf.len())?;
        Ok(self.with_pages(|pages| pages.read(buf, offset)))
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        self.check_aligned(offset, buf.len())?;
        let end = offset + buf.len() as u64;
        if self.kind == FileKind::Block && end > self.size()? {
            return Err(Errno::NOSPC.into());
        }
        self.record(Op::Write { node: self.node, offset, data: Bytes::copy_from_slice(buf) })?;
        Ok(buf.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        match self.kind {
            FileKind::Regular => self.record(Op::SetLen { node: self.node, len }),
            FileKind::Block => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn next_data(&self, from: u64) -> io::Result<Option<u64>> {
        match self.kind {
            FileKind::Regular => Ok(self.with_pages(|pages| pages.next_data(from))),
            FileKind::Block => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn next_hole(&self, from: u64) -> io::Result<u64> {
        Ok(self.with_pages(|pages| pages.next_hole(from)))
    }

    fn zero(&self, range: Range<u64>, how: Zeroing) -> io::Result<()> {
        self.record(Op::Zero { node: self.node, range, how })
    }

    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        match (self.kind, range.end > self.size()?) {
            (FileKind::Regular, true) => {
                self.record(Op::SetLen { node: self.node, len: range.end })
            }
            (FileKind::Block, true) => Err(Errno::NOSPC.into()),
            (_, false) => Ok(()),
        }
    }

    fn sync(&self, _what: SyncWhat) -> io::Result<()> {
        self.fs.state().record(Op::Sync { node: self.node });
        Ok(())
    }

    fn try_lock_exclusive(&self) -> io::Result<bool> {
        let mut state = self.fs.state();
        Ok(*state.locks.entry(self.node).or_insert(self.handle) == self.handle)
    }

    fn same_file(&self, path: &Path) -> io::Result<bool> {
        Ok(self.fs.state().find(path)? == self.node)
    }
}

impl Drop for MemFile {
    fn drop(&mut self) {
        let mut state = self.fs.state();
        if state.locks.get(&self.node) == Some(&self.handle) {
            state.locks.remove(&self.node);
        }
    }
}
