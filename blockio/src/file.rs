//! [`BlockFile`]: what the rest of Forebay holds when it holds a disk.

use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::io::Errno;

use crate::backing::{Backing, FileKind, OpenMode, Sectors, Space, SyncWhat, Zeroing};
use crate::error::{errno, locate};
use crate::os_file::{self, OsFile};

/// An open regular file, block device or fake.
///
/// Clones share one descriptor, which stays open from the first write to the sync and beyond: the
/// kernel reports a write-back error only to descriptors that were open when it happened.
///
/// **A lost write is never forgotten.** If a sync fails, or a write fails after nobody was left to
/// be told (its future was dropped), every later sync of this `BlockFile` and its clones fails with
/// that error. The kernel itself would report it once and then call the next sync a success,
/// although the data is gone. The only way on is to open the file again and to hash what it holds.
///
/// The methods here block; an [`Engine`](crate::Engine) does the same without blocking.
#[derive(Clone)]
pub struct BlockFile {
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    backing: Box<dyn Backing>,
    /// The errno of the first write that was lost without its writer being told, or 0.
    lost: AtomicI32,
}

/// What [`BlockFile::write_zeros`] writes, aligned for direct I/O.
#[repr(align(4096))]
struct Zeros([u8; 128 << 10]);
static ZEROS: Zeros = Zeros([0; 128 << 10]);

impl BlockFile {
    /// Opens a file or device of this machine.
    ///
    /// Symbolic links are followed. New files can be read and written by their owner only.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for what is neither a regular file nor a block device; `ResourceBusy` for a
    /// device that is to be written but is mounted or claimed; `Unsupported` if direct I/O was
    /// asked for where there is none; otherwise what `open` says.
    pub fn open(path: impl AsRef<Path>, mode: OpenMode) -> io::Result<BlockFile> {
        let path = path.as_ref();
        let file = OsFile::open(path, mode).map_err(|error| locate("open", path, None, error))?;
        Ok(BlockFile::from_backing(path, Box::new(file)))
    }

    /// Whether a device that is busy when it is [claimed](OpenMode::claimed) is mounted, it or a part
    /// of it, and for reading only, and nothing else is made of it (LVM, RAID, swap, …): then nothing
    /// changes it, until somebody mounts it anew.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn is_mounted_to_read(path: impl AsRef<Path>) -> io::Result<bool> {
        let path = path.as_ref();
        os_file::is_mounted_to_read(path).map_err(|error| locate("stat", path, None, error))
    }

    /// A file with something else behind it. `path` is what errors will name.
    pub fn from_backing(path: impl Into<PathBuf>, backing: Box<dyn Backing>) -> BlockFile {
        let shared = Shared { path: path.into(), backing, lost: AtomicI32::new(0) };
        BlockFile { shared: Arc::new(shared) }
    }

    /// The path it was opened by. A rename since then is not known here.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Regular file or device.
    pub fn kind(&self) -> FileKind {
        self.backing().kind()
    }

    /// The sizes that direct I/O and efficient writes keep to.
    pub fn sectors(&self) -> Sectors {
        self.backing().sectors()
    }

    /// Whether the page cache is bypassed.
    pub fn is_direct(&self) -> bool {
        self.backing().is_direct()
    }

    /// The size now, in bytes.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn size(&self) -> io::Result<u64> {
        self.backing().size().map_err(|error| self.at("size", None, error))
    }

    /// Sets the size, in bytes; what is added reads as zeros.
    ///
    /// # Errors
    ///
    /// `Unsupported` on a device; `StorageFull`; otherwise what the system says.
    pub fn set_len(&self, len: u64) -> io::Result<()> {
        self.backing().set_len(len).map_err(|error| self.at("truncate", Some(len), error))
    }

    /// Reads until `buf` is full or the file ends; returns how much. Fewer bytes than asked for
    /// means the end of the file, nothing else.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.read_by(buf, offset, |buf, at| self.backing().read_at(buf, at))
    }

    /// As [`read_at`](Self::read_at), where that has failed, to find out exactly what cannot be read: the page cache reads
    /// more than it is asked for, and all of that fails together.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn read_narrow_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.read_by(buf, offset, |buf, at| self.backing().read_narrow(buf, at))
    }

    /// As [`read_at`](Self::read_at), of what will not be read again soon: what is in the page cache stays there, and
    /// nothing is added, where the system can do that (Linux 6.14). Of a disk that is not in the cache a capture in the
    /// background then takes 0.3 s of the processor for 384 MiB instead of 0.9: no page is made room for.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn read_once_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.read_by(buf, offset, |buf, at| self.backing().read_once(buf, at))
    }

    fn read_by(
        &self,
        buf: &mut [u8],
        offset: u64,
        read: impl Fn(&mut [u8], u64) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            match read(&mut buf[done..], at) {
                Ok(n) => {
                    done += n;
                    if n == 0 || self.ended(done) {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.at("read", Some(at), error)),
            }
        }
        Ok(done)
    }

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` if the file ends before; otherwise what the system says.
    pub fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let read = self.read_at(buf, offset)?;
        if read < buf.len() {
            let error = io::ErrorKind::UnexpectedEof.into();
            return Err(self.at("read", Some(offset + read as u64), error));
        }
        Ok(())
    }

    /// Writes all of `buf` at `offset`.
    ///
    /// # Errors
    ///
    /// What the system says; the range then holds old bytes, new ones, or some of both.
    pub fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            match self.backing().write_at(&buf[done..], at) {
                Ok(0) => return Err(self.at("write", Some(at), io::ErrorKind::WriteZero.into())),
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.at("write", Some(at), error)),
            }
        }
        Ok(())
    }

    /// Waits until every write that has completed is on the medium, with the size.
    ///
    /// # Errors
    ///
    /// What the system says, now and at every later call: see the type.
    pub fn sync_data(&self) -> io::Result<()> {
        self.sync(SyncWhat::Data)
    }

    /// As [`sync_data`](BlockFile::sync_data), with times and permissions.
    ///
    /// # Errors
    ///
    /// As for `sync_data`.
    pub fn sync_all(&self) -> io::Result<()> {
        self.sync(SyncWhat::All)
    }

    fn sync(&self, what: SyncWhat) -> io::Result<()> {
        self.check_lost()?;
        let result = loop {
            match self.backing().sync(what) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result,
            }
        };
        self.note_sync(result)
    }

    /// The stretches of `range` that may hold something other than zeros, in order.
    ///
    /// Where holes cannot be told (devices, some file systems) all is data. The file must not
    /// change meanwhile, or the answer may be of before or after.
    pub fn data_extents(&self, range: Range<u64>) -> Extents<'_> {
        Extents { file: self, at: range.start, end: range.end }
    }

    /// Makes `range` read as zeros and gives its space back. What lies beyond the end is left out;
    /// the size stays.
    ///
    /// # Errors
    ///
    /// `Unsupported` where no holes can be made: [`zero_range`](BlockFile::zero_range) is the
    /// fallback. Otherwise what the system says.
    pub fn punch_hole(&self, range: Range<u64>) -> io::Result<()> {
        self.zero("punch", range, |range| self.backing().zero(range, Zeroing::Punch))
    }

    /// Makes `range` read as zeros, by the cheapest means there are: unwritten extents, a hole, or
    /// in the end by writing zeros. What lies beyond the end is left out; the size stays.
    ///
    /// # Errors
    ///
    /// What the system says; the range is then partly zero.
    pub fn zero_range(&self, range: Range<u64>) -> io::Result<()> {
        self.zero("zero", range, |range| {
            for how in [Zeroing::Keep, Zeroing::Punch] {
                match self.backing().zero(range.clone(), how) {
                    Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
                    result => return result,
                }
            }
            self.write_zeros(range)
        })
    }

    /// Clips `range` to the file, zeroes the sectors that it covers whole with `whole`, and writes
    /// zeros over what is left of a device's first and last one.
    fn zero(
        &self,
        op: &'static str,
        range: Range<u64>,
        whole: impl FnOnce(Range<u64>) -> io::Result<()>,
    ) -> io::Result<()> {
        let end = range.end.min(self.size()?);
        if range.start >= end {
            return Ok(());
        }
        let at = |error| self.at(op, Some(range.start), error);
        let sector = match self.kind() {
            FileKind::Regular => 1,
            FileKind::Block => u64::from(self.sectors().logical),
        };
        let first = range.start.next_multiple_of(sector);
        let last = end - end % sector;
        if first >= last {
            return self.write_zeros(range.start..end).map_err(at);
        }
        self.write_zeros(range.start..first).map_err(at)?;
        whole(first..last).map_err(at)?;
        self.write_zeros(last..end).map_err(at)
    }

    fn write_zeros(&self, range: Range<u64>) -> io::Result<()> {
        let mut at = range.start;
        while at < range.end {
            let len = (range.end - at).min(ZEROS.0.len() as u64);
            self.write_all_at(&ZEROS.0[..len as usize], at)?;
            at += len;
        }
        Ok(())
    }

    /// Reserves space for `range`, so that writing it cannot find the disk full, and grows the file
    /// if it ends before.
    ///
    /// # Errors
    ///
    /// `StorageFull`; `Unsupported` where nothing can be reserved.
    pub fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let start = range.start;
        self.backing().allocate(range).map_err(|error| self.at("allocate", Some(start), error))
    }

    /// Takes the exclusive advisory lock on the whole file, without waiting. Returns whether it was
    /// had. It is held until the last clone of this `BlockFile` is dropped; a second `open` in the
    /// same process competes like any other.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn try_lock_exclusive(&self) -> io::Result<bool> {
        self.backing().try_lock_exclusive().map_err(|error| self.at("lock", None, error))
    }

    /// Who else uses this file, which must be open for writing, without having taken the lock of
    /// [`try_lock_exclusive`](BlockFile::try_lock_exclusive): a program with byte-range locks, as
    /// QEMU's, or a loop device. In words, with what to do about it.
    ///
    /// If nobody does, no such program can begin to until the last clone is dropped.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn other_user(&self) -> io::Result<Option<String>> {
        self.backing().other_user().map_err(|error| self.at("lock", None, error))
    }

    /// Keeps programs that lock byte ranges, as QEMU does, from writing to this file until the last clone
    /// is dropped; those that only read it are welcome. `false` if one writes to it already.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn deny_writers(&self) -> io::Result<bool> {
        self.backing().deny_writers().map_err(|error| self.at("lock", None, error))
    }

    /// Lets virtual machines at the file again: the opposite of [`other_user`](BlockFile::other_user) and
    /// [`deny_writers`](BlockFile::deny_writers). The lock of
    /// [`try_lock_exclusive`](BlockFile::try_lock_exclusive) stays, which they do not see.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn admit_others(&self) -> io::Result<()> {
        self.backing().admit_others().map_err(|error| self.at("unlock", None, error))
    }

    /// What a regular file takes of its file system, and what that has left; `None` for devices and
    /// fakes, and where writing so many bytes may take fewer, because they are compressed.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn space(&self) -> io::Result<Option<Space>> {
        self.backing().space().map_err(|error| self.at("stat", None, error))
    }

    /// Makes this file a copy of `source` that shares its blocks until either is written.
    ///
    /// # Errors
    ///
    /// `Unsupported` where the file system cannot, or the two lie on different ones: copy instead.
    pub fn reflink_from(&self, source: &BlockFile) -> io::Result<()> {
        let result = self.backing().reflink_from(source.backing());
        result.map_err(|error| self.at("reflink", None, error))
    }

    /// Makes `range` what it is in `source`, which must not end before. Where the file system can, the two
    /// then share the blocks that lie in the range whole, until either is written.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` if `source` ends before; otherwise what the system says. The range then holds old
    /// bytes, new ones, or some of both.
    pub fn copy_range(&self, source: &BlockFile, range: Range<u64>) -> io::Result<()> {
        let mut at = range.start;
        while at < range.end {
            match self.backing().copy_from(source.backing(), at, range.end - at) {
                Ok(0) => return self.copy_through(source, at..range.end),
                Ok(copied) => at += copied,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                    return self.copy_through(source, at..range.end);
                }
                Err(error) => return Err(self.at("copy", Some(at), error)),
            }
        }
        Ok(())
    }

    /// The same by reading and writing.
    fn copy_through(&self, source: &BlockFile, range: Range<u64>) -> io::Result<()> {
        let mut bytes = vec![0; (range.end - range.start).min(128 << 10) as usize];
        let mut at = range.start;
        while at < range.end {
            let len = (range.end - at).min(bytes.len() as u64) as usize;
            source.read_exact_at(&mut bytes[..len], at)?;
            self.write_all_at(&bytes[..len], at)?;
            at += len as u64;
        }
        Ok(())
    }

    /// Whether `path` now leads to this very file (or device): false after it was replaced.
    ///
    /// # Errors
    ///
    /// `NotFound` if it leads nowhere.
    pub fn same_file(&self, path: impl AsRef<Path>) -> io::Result<bool> {
        let path = path.as_ref();
        self.backing().same_file(path).map_err(|error| locate("stat", path, None, error))
    }

    /// Says that `range` will be read soon, so that the system may begin.
    pub fn will_read(&self, range: Range<u64>) {
        self.backing().will_read(range);
    }

    /// Whether what is written takes the place on the medium of what was there, as far as this machine can tell: of
    /// devices, and of files that share nothing there on ext, XFS (not its realtime device) and tmpfs. Elsewhere old
    /// bytes stay where they were.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn overwrites(&self) -> io::Result<bool> {
        self.backing().overwrites().map_err(|error| self.at("stat", None, error))
    }

    /// The same file or device once more, past the page cache. It has no lock, and of writes that were lost it knows
    /// its own. A device must stay open here for as long as nobody else may claim it.
    ///
    /// # Errors
    ///
    /// `Unsupported` where there is no direct I/O.
    pub fn past_cache(&self) -> io::Result<BlockFile> {
        let backing = self.backing().past_cache().map_err(|error| self.at("open", None, error))?;
        Ok(BlockFile::from_backing(self.path(), backing))
    }

    /// Gives up to write, for all clones: from here on writes fail, and the system itself, which knows this descriptor as
    /// one for reading only, sees to it. Reads go on. What was written is to be synced before.
    ///
    /// # Errors
    ///
    /// What the system says; it can then be written as before.
    pub fn stop_writing(&self) -> io::Result<()> {
        self.backing().let_write(false).map_err(|error| self.at("reopen", None, error))
    }

    /// The opposite of [`stop_writing`](BlockFile::stop_writing), with the lock of
    /// [`try_lock_exclusive`](BlockFile::try_lock_exclusive), and that of [`other_user`](BlockFile::other_user).
    ///
    /// # Errors
    ///
    /// `WouldBlock` if somebody else has taken to the file meanwhile; `ResourceBusy` of a device; otherwise what the
    /// system says. It then cannot be written still.
    pub fn write_again(&self) -> io::Result<()> {
        self.backing().let_write(true).map_err(|error| self.at("reopen", None, error))
    }

    /// The descriptor that a ring may use, if there is one.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.backing().descriptor()
    }

    pub(crate) fn backing(&self) -> &dyn Backing {
        &*self.shared.backing
    }

    /// Whether a read that has got `done` bytes so far is known to have met the end: past the page
    /// cache only the end of the file stops within a sector, and one cannot ask from there again.
    pub(crate) fn ended(&self, done: usize) -> bool {
        self.is_direct() && !done.is_multiple_of(self.sectors().logical as usize)
    }

    /// Adds where it happened to `error`.
    pub(crate) fn at(&self, op: &'static str, offset: Option<u64>, error: io::Error) -> io::Error {
        locate(op, self.path(), offset, error)
    }

    /// Remembers that a write failed with `error` and that nobody was told.
    pub(crate) fn note_lost(&self, error: &io::Error) {
        let errno = errno(error).unwrap_or(Errno::IO.raw_os_error());
        let _ = self.shared.lost.compare_exchange(0, errno, Ordering::AcqRel, Ordering::Acquire);
        tracing::error!(path = %self.path().display(), %error, "a write was lost");
    }

    /// Fails if a write was lost.
    pub(crate) fn check_lost(&self) -> io::Result<()> {
        match self.shared.lost.load(Ordering::Acquire) {
            0 => Ok(()),
            errno => Err(self.at("sync", None, io::Error::from_raw_os_error(errno))),
        }
    }

    /// What a sync that the system answered with `result` means: it is remembered if it failed, and
    /// worth nothing if a write was lost while it ran.
    pub(crate) fn note_sync(&self, result: io::Result<()>) -> io::Result<()> {
        if let Err(error) = result {
            self.note_lost(&error);
            return Err(self.at("sync", None, error));
        }
        self.check_lost()
    }
}

impl fmt::Debug for BlockFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockFile")
            .field("path", &self.shared.path)
            .field("backing", &self.shared.backing)
            .finish_non_exhaustive()
    }
}

/// The data of a file, stretch by stretch. See [`BlockFile::data_extents`].
#[derive(Debug)]
pub struct Extents<'a> {
    file: &'a BlockFile,
    at: u64,
    end: u64,
}

impl Extents<'_> {
    fn following(&self) -> io::Result<Option<Range<u64>>> {
        let end = self.end.min(self.file.size()?);
        if self.at >= end {
            return Ok(None);
        }
        let backing = self.file.backing();
        let start = match backing.next_data(self.at) {
            Ok(Some(start)) => start.max(self.at),
            Ok(None) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                return Ok(Some(self.at..end));
            }
            Err(error) => return Err(error),
        };
        if start >= end {
            return Ok(None);
        }
        let hole = backing.next_hole(start)?;
        // A file that changes under us could answer with a hole that is not ahead.
        Ok(Some(start..hole.clamp(start + 1, end)))
    }
}

impl Iterator for Extents<'_> {
    type Item = io::Result<Range<u64>>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.following() {
            Ok(Some(range)) => {
                self.at = range.end;
                Some(Ok(range))
            }
            Ok(None) => {
                self.at = self.end;
                None
            }
            Err(error) => {
                let at = self.at;
                self.at = self.end;
                Some(Err(self.file.at("extents", Some(at), error)))
            }
        }
    }
}
