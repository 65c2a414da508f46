//! The seam under [`BlockFile`](crate::BlockFile): what a file, a device and a fake have in common.

use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::path::Path;

/// What kind of thing holds the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// A regular file: it can grow, shrink and have holes.
    Regular,
    /// A block device: its size is given, and all of it is data.
    Block,
}

/// The units a file is best, or must be, addressed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sectors {
    /// Direct I/O must start and end on multiples of this, in bytes.
    pub logical: u32,
    /// Writing less than this makes the device read first, in bytes.
    pub physical: u32,
}

/// How a file is opened. The default opens nothing: set what is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenMode {
    /// Allow reading.
    pub read: bool,
    /// Allow writing. A block device is then claimed exclusively: one that is mounted, or claimed
    /// by somebody else, is refused as busy.
    pub write: bool,
    /// Claim a block device as for writing, though it is only read: nobody mounts it meanwhile.
    pub claim: bool,
    /// Create a regular file if there is none; needs `write`.
    pub create: bool,
    /// Create a regular file and refuse one that is there; needs `write`.
    pub create_new: bool,
    /// Bypass the page cache. Addresses, offsets and lengths must then be multiples of the logical
    /// sector; buffers out of an [`Arena`](crate::Arena) always lie right.
    pub direct: bool,
}

impl OpenMode {
    /// Read only.
    pub const fn read() -> OpenMode {
        OpenMode {
            read: true,
            write: false,
            claim: false,
            create: false,
            create_new: false,
            direct: false,
        }
    }

    /// Read and write what is there.
    pub const fn write() -> OpenMode {
        OpenMode { write: true, ..OpenMode::read() }
    }

    /// Read and write; create it if need be.
    pub const fn create() -> OpenMode {
        OpenMode { create: true, ..OpenMode::write() }
    }

    /// Read and write a file that did not exist.
    pub const fn create_new() -> OpenMode {
        OpenMode { create_new: true, ..OpenMode::write() }
    }

    /// The same, and a block device claimed.
    pub const fn claimed(self) -> OpenMode {
        OpenMode { claim: true, ..self }
    }

    /// The same, past the page cache.
    pub const fn direct(self) -> OpenMode {
        OpenMode { direct: true, ..self }
    }
}

/// How a range becomes zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Zeroing {
    /// Give the space back: the range becomes a hole.
    Punch,
    /// Keep the space reserved, so that a later write into it cannot find the disk full.
    Keep,
}

/// What a sync must cover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SyncWhat {
    /// The bytes, and whatever is needed to read them back (the size among it).
    Data,
    /// Also times and permissions.
    All,
}

/// What a file takes of its file system, and what that has left. Both in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Allocated to the file: holes take none.
    pub allocated: u64,
    /// Free for this process: what is kept back for root counts if it runs as root.
    pub free: u64,
}

/// What stands behind a [`BlockFile`](crate::BlockFile).
///
/// Calls may block. Errors are the plain system ones; `BlockFile` adds path and offset, loops on
/// short transfers, and remembers lost writes, so that no backing needs to. `same_file`, extents,
/// punching and locking have defaults that fit something simple.
pub trait Backing: Send + Sync + fmt::Debug {
    /// Regular file or device.
    fn kind(&self) -> FileKind;

    /// The descriptor a ring may hand to the kernel. `None` sends every operation through the
    /// methods below instead, on the calling thread.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Whether the page cache is bypassed.
    fn is_direct(&self) -> bool {
        false
    }

    /// Sector sizes.
    fn sectors(&self) -> Sectors {
        Sectors { logical: 512, physical: 4096 }
    }

    /// The size now, in bytes.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn size(&self) -> io::Result<u64>;

    /// Reads up to `buf.len()` bytes at `offset`; 0 is the end.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes up to `buf.len()` bytes at `offset`; may write fewer.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize>;

    /// Sets the size; what is added reads as zeros.
    ///
    /// # Errors
    ///
    /// What the system says; `Unsupported` on a device.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// The first byte at or after `from` that is data; `None` if only a hole follows.
    ///
    /// # Errors
    ///
    /// `Unsupported` if holes cannot be told; the caller then takes all as data.
    fn next_data(&self, _from: u64) -> io::Result<Option<u64>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// The first byte at or after `from` that is in a hole; the end of the file counts as one.
    ///
    /// # Errors
    ///
    /// As for [`next_data`](Backing::next_data).
    fn next_hole(&self, _from: u64) -> io::Result<u64> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Makes `range`, which is not empty and ends within the file, read as zeros.
    ///
    /// # Errors
    ///
    /// `Unsupported` if this cannot be done this way; the caller then takes another.
    fn zero(&self, _range: Range<u64>, _how: Zeroing) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Reserves space for `range`, and grows the file if it ends beyond.
    ///
    /// # Errors
    ///
    /// `StorageFull`; `Unsupported`.
    fn allocate(&self, _range: Range<u64>) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Waits until what was written before is on the medium.
    ///
    /// # Errors
    ///
    /// What the system says: the writes are then lost.
    fn sync(&self, what: SyncWhat) -> io::Result<()>;

    /// Takes the whole-file lock without waiting; `false` if somebody else has it.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn try_lock_exclusive(&self) -> io::Result<bool>;

    /// Who else uses the file without that lock, in words; nobody can be told on most backings.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn other_user(&self) -> io::Result<Option<String>> {
        Ok(None)
    }

    /// Keeps programs that lock byte ranges, as QEMU does, from writing to the file; `false` if one does
    /// already. Nobody can on most backings.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn deny_writers(&self) -> io::Result<bool> {
        Ok(true)
    }

    /// Lets go of what [`other_user`](Backing::other_user) and [`deny_writers`](Backing::deny_writers) hold.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn admit_others(&self) -> io::Result<()> {
        Ok(())
    }

    /// What the file takes and could take; `None` where writing so many bytes may take fewer.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn space(&self) -> io::Result<Option<Space>> {
        Ok(None)
    }

    /// Makes this file share all of `source`'s blocks.
    ///
    /// # Errors
    ///
    /// `Unsupported` where the file system cannot.
    fn reflink_from(&self, _source: &dyn Backing) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Copies up to `len` bytes at `offset` of `source` to the same place of this file, without their
    /// passing through this process; may copy fewer.
    ///
    /// # Errors
    ///
    /// `Unsupported` if this cannot be done; the caller then reads and writes.
    fn copy_from(&self, _source: &dyn Backing, _offset: u64, _len: u64) -> io::Result<u64> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Whether `path` now leads to this very file.
    ///
    /// # Errors
    ///
    /// `NotFound` if it leads nowhere.
    fn same_file(&self, path: &Path) -> io::Result<bool>;

    /// As [`read_at`](Backing::read_at), of a file that fails: nothing around is read along, and nothing that could not
    /// be read with it before is taken for an answer.
    fn read_narrow(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.read_at(buf, offset)
    }

    /// As [`read_at`](Backing::read_at), of what will not be read again soon: it does not take the place of anything in
    /// the page cache, where the system can do that.
    fn read_once(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.read_at(buf, offset)
    }

    /// Whether bytes that are written take the place on the medium of those that they replace: not where a file system
    /// copies on write, compresses, or is not known.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn overwrites(&self) -> io::Result<bool> {
        Ok(true)
    }

    /// The same file or device once more, past the page cache; a device stays claimed by this one.
    ///
    /// # Errors
    ///
    /// `Unsupported` where there is no direct I/O.
    fn past_cache(&self) -> io::Result<Box<dyn Backing>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Lets what is open for reading and writing write no more, or again. Locks stay as far as they can; a device is
    /// claimed while it may be written.
    ///
    /// # Errors
    ///
    /// What the system says; `WouldBlock` if somebody else has taken to the file meanwhile. All is then as it was.
    fn let_write(&self, _write: bool) -> io::Result<()> {
        Ok(())
    }

    /// Says that `range` will be read soon. A hint: nothing comes of it if it cannot be done.
    fn will_read(&self, _range: Range<u64>) {}
}
