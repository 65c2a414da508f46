//! Failures to order.

use std::ffi::OsString;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use crate::backing::{Backing, FileKind, OpenMode, Sectors, Space, SyncWhat, Zeroing};
use crate::file::BlockFile;
use crate::fs::{Fs, Namespace};

/// What can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultOp {
    /// A read.
    Read,
    /// A write, a zeroing, a hole, a reservation, a change of size.
    Write,
    /// A sync of a file. What it should have covered has then not been synced.
    Sync,
    /// A file being created, renamed or removed.
    Name,
    /// A directory being listed.
    List,
    /// A sync of a directory.
    SyncDir,
}

/// How it fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// No space is left (`ENOSPC`).
    Full,
    /// The disk cannot (`EIO`).
    Io,
    /// No failure: a read or write transfers only this many bytes.
    Short(usize),
}

impl Fault {
    fn error(self) -> io::Error {
        match self {
            Fault::Full => Errno::NOSPC.into(),
            Fault::Io | Fault::Short(_) => Errno::IO.into(),
        }
    }
}

/// Makes chosen operations of the files it wraps fail, counted over all of them together.
///
/// Clones are the same plan. It can be changed at any time.
#[derive(Clone, Debug, Default)]
pub struct FaultPlan {
    plan: Arc<Mutex<Plan>>,
}

#[derive(Debug, Default)]
struct Plan {
    done: Vec<(FaultOp, u64)>,
    faults: Vec<(FaultOp, u64, Fault)>,
    /// Bytes that may still be written.
    left: Option<u64>,
    /// Bytes that cannot be read, and why not.
    unreadable: Vec<(Range<u64>, i32)>,
}

impl FaultPlan {
    /// One by which nothing fails.
    pub fn new() -> FaultPlan {
        FaultPlan::default()
    }

    /// Makes the `nth` operation of this kind from now on fail, once; 1 is the next one.
    pub fn fail(&self, op: FaultOp, nth: u64, fault: Fault) -> &FaultPlan {
        let mut plan = self.plan();
        let at = plan.count(op) + nth;
        plan.faults.push((op, at, fault));
        drop(plan);
        self
    }

    /// Makes every read of these bytes fail with this number of the system's, from now on. What comes before them is
    /// read.
    pub fn unreadable(&self, bytes: Range<u64>, errno: i32) -> &FaultPlan {
        self.plan().unreadable.push((bytes, errno));
        self
    }

    /// Lets `bytes` more bytes be written, and then no more (`ENOSPC`); `None` lifts that.
    pub fn limit_bytes(&self, bytes: Option<u64>) -> &FaultPlan {
        self.plan().left = bytes;
        self
    }

    /// How many operations of this kind there have been, failed ones included.
    pub fn count(&self, op: FaultOp) -> u64 {
        self.plan().count(op)
    }

    /// `file`, failing by this plan. It has no descriptor, so every engine does its operations with
    /// blocking calls.
    pub fn wrap(&self, file: &BlockFile) -> BlockFile {
        let failing = FailingFile { plan: self.clone(), file: file.clone() };
        BlockFile::from_backing(file.path(), Box::new(failing))
    }

    /// `fs`, failing by this plan, and so every file opened through it.
    pub fn wrap_fs(&self, fs: &Fs) -> Fs {
        Fs::new(Arc::new(FailingFs { plan: self.clone(), fs: fs.clone() }))
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one operation; what it may still do of `len` bytes, or its failure.
    fn check(&self, op: FaultOp, len: usize) -> io::Result<usize> {
        let mut plan = self.plan();
        let now = plan.count(op) + 1;
        plan.done.retain(|(done, _)| *done != op);
        plan.done.push((op, now));
        let len = match plan.faults.iter().position(|fault| (fault.0, fault.1) == (op, now)) {
            None => len,
            Some(index) => match plan.faults.swap_remove(index).2 {
                Fault::Short(short) if len > 0 => len.min(short),
                fault => return Err(fault.error()),
            },
        };
        let FaultOp::Write = op else { return Ok(len) };
        match plan.left.as_mut() {
            Some(0) => Err(Fault::Full.error()),
            Some(left) => {
                let len = len.min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= len as u64;
                Ok(len)
            }
            None => Ok(len),
        }
    }
}

impl Plan {
    /// How much of `len` bytes can be read.
    fn readable(&self, offset: u64, len: usize) -> io::Result<usize> {
        let end = offset + len as u64;
        let hit = self.unreadable.iter().filter(|(bad, _)| bad.start < end && offset < bad.end);
        match hit.min_by_key(|(bad, _)| bad.start) {
            None => Ok(len),
            Some((bad, _)) if offset < bad.start => Ok((bad.start - offset) as usize),
            Some((_, errno)) => Err(io::Error::from_raw_os_error(*errno)),
        }
    }

    fn count(&self, op: FaultOp) -> u64 {
        self.done.iter().find(|(done, _)| *done == op).map_or(0, |(_, count)| *count)
    }
}

#[derive(Debug)]
struct FailingFile {
    plan: FaultPlan,
    file: BlockFile,
}

impl FailingFile {
    fn backing(&self) -> &dyn Backing {
        self.file.backing()
    }
}

impl Backing for FailingFile {
    fn kind(&self) -> FileKind {
        self.backing().kind()
    }

    fn is_direct(&self) -> bool {
        self.backing().is_direct()
    }

    fn sectors(&self) -> Sectors {
        self.backing().sectors()
    }

    fn size(&self) -> io::Result<u64> {
        self.backing().size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let len = self.plan.check(FaultOp::Read, buf.len())?;
        let len = self.plan.plan().readable(offset, len)?;
        self.backing().read_at(&mut buf[..len], offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        let len = self.plan.check(FaultOp::Write, buf.len())?;
        self.backing().write_at(&buf[..len], offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.plan.check(FaultOp::Write, 0)?;
        self.backing().set_len(len)
    }

    fn next_data(&self, from: u64) -> io::Result<Option<u64>> {
        self.backing().next_data(from)
    }

    fn next_hole(&self, from: u64) -> io::Result<u64> {
        self.backing().next_hole(from)
    }

    fn zero(&self, range: Range<u64>, how: Zeroing) -> io::Result<()> {
        self.plan.check(FaultOp::Write, 0)?;
        self.backing().zero(range, how)
    }

    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        self.plan.check(FaultOp::Write, 0)?;
        self.backing().allocate(range)
    }

    fn sync(&self, what: SyncWhat) -> io::Result<()> {
        self.plan.check(FaultOp::Sync, 0)?;
        self.backing().sync(what)
    }

    fn try_lock_exclusive(&self) -> io::Result<bool> {
        self.backing().try_lock_exclusive()
    }

    fn other_user(&self) -> io::Result<Option<String>> {
        self.backing().other_user()
    }

    fn deny_writers(&self) -> io::Result<bool> {
        self.backing().deny_writers()
    }

    fn admit_others(&self) -> io::Result<()> {
        self.backing().admit_others()
    }

    fn space(&self) -> io::Result<Option<Space>> {
        self.backing().space()
    }

    fn overwrites(&self) -> io::Result<bool> {
        self.backing().overwrites()
    }

    fn same_file(&self, path: &Path) -> io::Result<bool> {
        self.backing().same_file(path)
    }
}

#[derive(Debug)]
struct FailingFs {
    plan: FaultPlan,
    fs: Fs,
}

impl Namespace for FailingFs {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<BlockFile> {
        if (mode.create || mode.create_new) && !self.fs.exists(path)? {
            self.plan.check(FaultOp::Name, 0)?;
        }
        Ok(self.plan.wrap(&self.fs.open(path, mode)?))
    }

    fn rename(&self, from: &Path, to: &Path, replace: bool) -> io::Result<()> {
        self.plan.check(FaultOp::Name, 0)?;
        self.fs.namespace().rename(from, to, replace)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.plan.check(FaultOp::Name, 0)?;
        self.fs.namespace().remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.plan.check(FaultOp::Name, 0)?;
        self.fs.namespace().remove_dir(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.plan.check(FaultOp::Name, 0)?;
        self.fs.namespace().create_dir(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        self.plan.check(FaultOp::List, 0)?;
        self.fs.namespace().list(dir)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.fs.namespace().exists(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.plan.check(FaultOp::SyncDir, 0)?;
        self.fs.namespace().sync_dir(dir)
    }

    fn may_block(&self) -> bool {
        self.fs.namespace().may_block()
    }
}
