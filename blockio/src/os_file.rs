//! The real thing: a regular file or a block device of this machine.

use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{self as sys, AtFlags, FallocateFlags, FileType, OFlags, StatxFlags};
use rustix::io::{Errno, IoSliceMut, ReadWriteFlags, preadv2};

use crate::backing::{Backing, FileKind, OpenMode, Sectors, Space, SyncWhat, Zeroing};
use crate::{descriptor, in_use, places};

/// The page cache reads at most so much as one, in bytes: its largest folio, and a multiple.
const FOLIO: u64 = 4 << 20;
/// `RWF_DONTCACHE` of `preadv2(2)`, which rustix does not know yet.
const DONT_CACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);

/// An open descriptor and what was learned about it when it was opened.
#[derive(Debug)]
pub(crate) struct OsFile {
    fd: OwnedFd,
    kind: FileKind,
    sectors: Sectors,
    direct: bool,
}

impl OsFile {
    /// Opens `path`, following symbolic links (device names usually are some), and refuses anything
    /// but regular files and block devices.
    pub(crate) fn open(path: &Path, mode: OpenMode) -> io::Result<OsFile> {
        let flags = flags(mode)? | claim(path, mode);
        let permissions = sys::Mode::RUSR | sys::Mode::WUSR;
        let fd = sys::open(path, flags, permissions).map_err(|errno| match errno {
            // How a file system says that it has no direct I/O.
            Errno::INVAL if mode.direct => unsupported(),
            errno => errno.into(),
        })?;
        let stat = sys::fstat(&fd)?;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => FileKind::Regular,
            FileType::BlockDevice => FileKind::Block,
            _ => {
                let what = "neither a regular file nor a block device";
                return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
            }
        };
        // O_NONBLOCK kept `open` from waiting on something that is no disk; from here on it would
        // make a ring answer EAGAIN instead of waiting for the disk.
        sys::fcntl_setfl(&fd, sys::fcntl_getfl(&fd)? - OFlags::NONBLOCK)?;
        let sectors = sectors(&fd, kind, u32::try_from(stat.st_blksize).unwrap_or(4096));
        Ok(OsFile { fd, kind, sectors, direct: mode.direct })
    }

    /// Opened once more, by the descriptor: the path may lead elsewhere by now.
    fn reopened(&self, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let path = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        sys::open(path, flags | OFlags::CLOEXEC, sys::Mode::empty())
    }

    /// Gives all locks to another descriptor of the same file, which is open for writing; whether that could have them.
    fn pass_locks(&self, to: BorrowedFd<'_>) -> io::Result<bool> {
        sys::flock(&self.fd, sys::FlockOperation::Unlock)?;
        in_use::unlock_bytes(self.fd.as_fd())?;
        match sys::flock(to, sys::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => in_use::lock_bytes(to),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Has of locks what a reader may have beside other readers, which keeps writers away. One that is there already is not
/// told here: whoever is to write finds out.
fn share_locks(fd: BorrowedFd<'_>) -> io::Result<()> {
    in_use::unlock_bytes(fd)?;
    in_use::deny_writers(fd)?;
    match sys::flock(fd, sys::FlockOperation::NonBlockingLockShared) {
        Ok(()) | Err(Errno::WOULDBLOCK) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn flags(mode: OpenMode) -> io::Result<OFlags> {
    let mut flags = match (mode.read, mode.write) {
        (true, true) => OFlags::RDWR,
        (true, false) => OFlags::RDONLY,
        (false, true) => OFlags::WRONLY,
        (false, false) => {
            let what = "a file is opened for reading, writing or both";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
    };
    if (mode.create || mode.create_new) && !mode.write {
        let what = "creating a file needs write access";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    flags |= OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    if mode.create {
        flags |= OFlags::CREATE;
    }
    if mode.create_new {
        flags |= OFlags::CREATE | OFlags::EXCL;
    }
    if mode.direct {
        flags |= OFlags::DIRECT;
    }
    Ok(flags)
}

/// `O_EXCL` for a block device that is to be written or kept as it is: the kernel then refuses one that is mounted
/// or part of something else.
fn claim(path: &Path, mode: OpenMode) -> OFlags {
    let is_device = || {
        let stat = sys::stat(path);
        stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice)
    };
    // With O_CREAT the flag means something else, and a device would not be created anyway.
    if (mode.write || mode.claim) && !mode.create && !mode.create_new && is_device() {
        OFlags::EXCL
    } else {
        OFlags::empty()
    }
}

/// See [`BlockFile::is_mounted_to_read`](crate::BlockFile::is_mounted_to_read).
pub(crate) fn is_mounted_to_read(path: &Path) -> io::Result<bool> {
    let number = |device| format!("{}:{}", sys::major(device), sys::minor(device));
    let device = number(sys::stat(path)?.st_rdev);
    let devices = in_use::with_partitions(Path::new("/sys/dev/block").join(&device));
    let mut numbers = vec![device];
    for part in &devices[1..] {
        numbers.push(std::fs::read_to_string(part.join("dev"))?.trim_end().to_owned());
    }
    let leads_here = |path: &Path| {
        sys::stat(path).is_ok_and(|s| {
            FileType::from_raw_mode(s.st_mode) == FileType::BlockDevice
                && numbers.contains(&number(s.st_rdev))
        })
    };
    // A mount is not the only reason why a device cannot be claimed.
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    if devices.iter().any(|d| in_use::has_holders(d)) || in_use::swapped_to(&swaps, leads_here) {
        return Ok(false);
    }
    let is_this = |found: &str, source: &str| {
        numbers.iter().any(|n| n == found)
            // Some file systems have a number of their own.
            || (source.starts_with('/') && leads_here(Path::new(source)))
    };
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    Ok(in_use::mounted_to_read(&mounts, is_this))
}

fn sectors(fd: &OwnedFd, kind: FileKind, block: u32) -> Sectors {
    match kind {
        FileKind::Block => Sectors {
            logical: sys::ioctl_blksszget(fd).unwrap_or(512),
            physical: sys::ioctl_blkpbszget(fd).unwrap_or(4096),
        },
        FileKind::Regular => {
            let flags = AtFlags::EMPTY_PATH;
            let logical = sys::statx(fd, c"", flags, StatxFlags::DIOALIGN)
                .map(|statx| statx.stx_dio_offset_align)
                .ok()
                .filter(|align| align.is_power_of_two())
                .unwrap_or(512);
            Sectors { logical, physical: block.max(logical) }
        }
    }
}

fn unsupported() -> io::Error {
    Errno::OPNOTSUPP.into()
}

impl Backing for OsFile {
    fn kind(&self) -> FileKind {
        self.kind
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd.as_fd())
    }

    fn is_direct(&self) -> bool {
        self.direct
    }

    fn sectors(&self) -> Sectors {
        self.sectors
    }

    fn size(&self) -> io::Result<u64> {
        match self.kind {
            FileKind::Regular => Ok(u64::try_from(sys::fstat(&self.fd)?.st_size).unwrap_or(0)),
            FileKind::Block => Ok(sys::seek(&self.fd, sys::SeekFrom::End(0))?),
        }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        Ok(rustix::io::pread(&self.fd, buf, offset)?)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        Ok(rustix::io::pwrite(&self.fd, buf, offset)?)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        match self.kind {
            FileKind::Regular => Ok(sys::ftruncate(&self.fd, len)?),
            FileKind::Block => Err(unsupported()),
        }
    }

    fn next_data(&self, from: u64) -> io::Result<Option<u64>> {
        match self.kind {
            FileKind::Block => Err(unsupported()),
            FileKind::Regular => match sys::seek(&self.fd, sys::SeekFrom::Data(from)) {
                Ok(offset) => Ok(Some(offset)),
                Err(Errno::NXIO) => Ok(None),
                Err(Errno::INVAL) => Err(unsupported()),
                Err(errno) => Err(errno.into()),
            },
        }
    }

    fn next_hole(&self, from: u64) -> io::Result<u64> {
        match sys::seek(&self.fd, sys::SeekFrom::Hole(from)) {
            Ok(offset) => Ok(offset),
            Err(Errno::INVAL) => Err(unsupported()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn zero(&self, range: Range<u64>, how: Zeroing) -> io::Result<()> {
        let how = match how {
            Zeroing::Punch => FallocateFlags::PUNCH_HOLE,
            Zeroing::Keep => FallocateFlags::ZERO_RANGE,
        };
        let how = how | FallocateFlags::KEEP_SIZE;
        fallocate(&self.fd, how, range)
    }

    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        match self.kind {
            FileKind::Regular => fallocate(&self.fd, FallocateFlags::empty(), range),
            FileKind::Block if range.end <= self.size()? => Ok(()),
            FileKind::Block => Err(Errno::NOSPC.into()),
        }
    }

    fn sync(&self, what: SyncWhat) -> io::Result<()> {
        match what {
            SyncWhat::Data => Ok(sys::fdatasync(&self.fd)?),
            SyncWhat::All => Ok(sys::fsync(&self.fd)?),
        }
    }

    fn try_lock_exclusive(&self) -> io::Result<bool> {
        match sys::flock(&self.fd, sys::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    fn other_user(&self) -> io::Result<Option<String>> {
        if !in_use::lock_bytes(self.fd.as_fd())? {
            let who = "a program, perhaps a virtual machine, has locked it: end that first";
            return Ok(Some(who.to_owned()));
        }
        let is_this = |path: &Path| self.same_file(path).unwrap_or(false);
        let device = in_use::loop_device(Path::new("/sys/block"), is_this);
        Ok(device.map(|d| format!("/dev/{d} is attached to it: `losetup -d /dev/{d}` first")))
    }

    fn deny_writers(&self) -> io::Result<bool> {
        in_use::deny_writers(self.fd.as_fd())
    }

    fn admit_others(&self) -> io::Result<()> {
        in_use::unlock_bytes(self.fd.as_fd())
    }

    fn space(&self) -> io::Result<Option<Space>> {
        let system = sys::fstatfs(&self.fd)?;
        // These may compress what is written.
        const BTRFS: u32 = 0x9123_683e;
        const BCACHEFS: u32 = 0xca45_1a4e;
        const ZFS: u32 = 0x2fc1_2fc1;
        let compresses = [BTRFS, BCACHEFS, ZFS].contains(&(system.f_type as u32));
        if self.kind == FileKind::Block || compresses {
            return Ok(None);
        }
        let allocated = sys::fstat(&self.fd)?.st_blocks as u64 * 512;
        let free = free(&system, rustix::process::geteuid().is_root());
        Ok(Some(Space { allocated, free }))
    }

    fn reflink_from(&self, source: &dyn Backing) -> io::Result<()> {
        let source = source.descriptor().ok_or_else(unsupported)?;
        sys::ioctl_ficlone(&self.fd, source).map_err(|errno| match errno {
            // The many ways in which file systems say that they cannot.
            Errno::NOTTY | Errno::INVAL | Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS => {
                unsupported()
            }
            errno => errno.into(),
        })
    }

    fn copy_from(&self, source: &dyn Backing, offset: u64, len: u64) -> io::Result<u64> {
        let source = source.descriptor().ok_or_else(unsupported)?;
        let (mut from, mut to) = (offset, offset);
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let copied = sys::copy_file_range(source, Some(&mut from), &self.fd, Some(&mut to), len);
        copied.map(|n| n as u64).map_err(|errno| match errno {
            // Devices, two file systems, and kernels that have no such call.
            Errno::INVAL | Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS => unsupported(),
            errno => errno.into(),
        })
    }

    fn same_file(&self, path: &Path) -> io::Result<bool> {
        // Which file it is the kernel knows by itself. To ask whoever serves it might wait for ever: for a dead
        // server, or for us.
        let (flags, wanted) = (AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE | StatxFlags::INO);
        let (this, that) = (sys::fstat(&self.fd)?, sys::statx(sys::CWD, path, flags, wanted)?);
        let (dev, rdev) = (
            sys::makedev(that.stx_dev_major, that.stx_dev_minor),
            sys::makedev(that.stx_rdev_major, that.stx_rdev_minor),
        );
        Ok(match self.kind {
            FileKind::Regular => (this.st_dev, this.st_ino) == (dev, that.stx_ino),
            // Two nodes in /dev may name one device.
            FileKind::Block => {
                FileType::from_raw_mode(that.stx_mode.into()) == FileType::BlockDevice
                    && this.st_rdev == rdev
            }
        })
    }

    fn overwrites(&self) -> io::Result<bool> {
        match self.kind {
            FileKind::Block => Ok(true),
            FileKind::Regular => places::overwrites(self.fd.as_fd()),
        }
    }

    fn let_write(&self, write: bool) -> io::Result<()> {
        // A device is claimed by whoever writes.
        let flags = match (write, self.kind) {
            (false, _) => OFlags::RDONLY,
            (true, FileKind::Regular) => OFlags::RDWR,
            (true, FileKind::Block) => OFlags::RDWR | OFlags::EXCL,
        };
        let other = self.reopened(flags | (sys::fcntl_getfl(&self.fd)? & OFlags::DIRECT))?;
        // The two descriptors compete for locks as strangers do: this one lets go first.
        match write {
            true if !self.pass_locks(other.as_fd())? => {
                share_locks(self.fd.as_fd())?;
                return Err(Errno::WOULDBLOCK.into());
            }
            true => {}
            false => {
                share_locks(self.fd.as_fd())?;
                share_locks(other.as_fd())?;
            }
        }
        descriptor::replace(self.fd.as_fd(), other.as_fd())
    }

    fn past_cache(&self) -> io::Result<Box<dyn Backing>> {
        // Without a claim, which is had once.
        let flags = sys::fcntl_getfl(&self.fd)? & OFlags::RWMODE;
        let fd = self.reopened(flags | OFlags::DIRECT).map_err(|errno| match errno {
            Errno::INVAL => unsupported(),
            errno => errno.into(),
        })?;
        Ok(Box::new(OsFile { fd, kind: self.kind, sectors: self.sectors, direct: true }))
    }

    fn read_once(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        match preadv2(&self.fd, &mut [IoSliceMut::new(buf)], offset, DONT_CACHE) {
            // Before Linux 6.14, and of file systems that have not learnt it.
            Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => self.read_at(buf, offset),
            read => Ok(read?),
        }
    }

    fn read_narrow(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let hint = |at, len, hint| {
            if let Err(errno) = sys::fadvise(&self.fd, at, NonZeroU64::new(len), hint) {
                tracing::trace!(%errno, "the page cache takes no advice");
            }
        };
        // No read-ahead from now on, which makes large folios; and none of those that have failed as a whole.
        hint(0, 0, sys::Advice::Random);
        let start = offset - offset % FOLIO;
        hint(
            start,
            (offset + buf.len() as u64 - start).next_multiple_of(FOLIO),
            sys::Advice::DontNeed,
        );
        self.read_at(buf, offset)
    }

    fn will_read(&self, range: Range<u64>) {
        if let Some(len) = NonZeroU64::new(range.end.saturating_sub(range.start)) {
            let hint = sys::Advice::WillNeed;
            if let Err(errno) = sys::fadvise(&self.fd, range.start, Some(len), hint) {
                tracing::trace!(%errno, "no read-ahead");
            }
        }
    }
}

/// Bytes that a file system has left, with what it keeps back for root or without.
fn free(system: &sys::StatFs, for_root: bool) -> u64 {
    let blocks = if for_root { system.f_bfree } else { system.f_bavail };
    blocks.saturating_mul(system.f_frsize as u64)
}

fn fallocate(fd: &OwnedFd, how: FallocateFlags, range: Range<u64>) -> io::Result<()> {
    loop {
        return match sys::fallocate(fd, how, range.start, range.end - range.start) {
            Ok(()) => Ok(()),
            Err(Errno::INTR) => continue,
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV) => Err(unsupported()),
            Err(errno) => Err(errno.into()),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::error::errno;
    use crate::{BlockFile, OpenMode};

    #[test]
    fn root_may_use_what_is_kept_back_for_it() {
        let mut system = sys::statfs("/").unwrap();
        (system.f_bfree, system.f_bavail, system.f_frsize) = (1000, 950, 4096);
        assert_eq!((free(&system, true), free(&system, false)), (1000 * 4096, 950 * 4096));
    }

    #[test]
    fn who_has_stopped_writing_cannot_until_it_is_let_again_and_others_stay_out_meanwhile() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, [1; 4096]).unwrap();
        let open = |mode| BlockFile::open(&path, mode).unwrap();
        let ours = open(OpenMode::write());
        assert!(ours.try_lock_exclusive().unwrap() && ours.other_user().unwrap().is_none());
        let clone = ours.clone();
        ours.stop_writing().unwrap();
        let refused = clone.write_all_at(&[2; 4096], 0).unwrap_err();
        assert_eq!(errno(&refused), Some(Errno::BADF.raw_os_error()));
        let mut buf = [0; 4096];
        clone.read_exact_at(&mut buf, 0).unwrap();
        assert_eq!(buf, [1; 4096]);
        ours.sync_data().unwrap();
        let other = open(OpenMode::write());
        assert!(!other.try_lock_exclusive().unwrap() && other.other_user().unwrap().is_some());
        drop(other);
        // Somebody who reads is welcome, and keeps us from writing.
        let reader = File::open(&path).unwrap();
        share_locks(reader.as_fd()).unwrap();
        assert_eq!(ours.write_again().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        clone.write_all_at(&[2; 4096], 0).unwrap_err();
        drop(reader);
        ours.write_again().unwrap();
        clone.write_all_at(&[2; 4096], 0).unwrap();
        let other = open(OpenMode::write());
        assert!(!other.try_lock_exclusive().unwrap() && other.other_user().unwrap().is_some());
    }
}
