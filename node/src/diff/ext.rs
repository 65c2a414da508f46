//! An ext2, ext3 or ext4 file system on a disk that nobody vouches for, read by `ext4-view`.
//!
//! That reader believes sizes that it finds. So what it allocates by is checked before it sees the disk, and a path is
//! looked up only after each directory on it was found to be one: it would follow a symbolic link whatever the length
//! of its target. Panics of it are caught. Where it goes round in circles is for who runs it ([`super::files`]).

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;

use ext4_view::{Ext4, Ext4Error, Ext4Read, File, FileType, Metadata, PathBuf};
use image::{Error, Kind, Result};

use super::view::{Pace, ReadAt};

/// Block groups at most: 64 TiB have half as many.
const MAX_GROUPS: u64 = 1 << 20;
/// The largest journal, in bytes: what `mke2fs` makes at most.
const MAX_JOURNAL: u64 = 1 << 30;
/// The longest path, and target of a symbolic link.
const MAX_PATH: usize = 4096;

/// A part of a disk.
#[derive(Clone)]
pub(super) struct Extent {
    pub(super) disk: Rc<dyn ReadAt>,
    pub(super) bytes: Range<u64>,
}

impl Extent {
    pub(super) fn read(&self, at: u64, into: &mut [u8]) -> Result<()> {
        let end = at.checked_add(into.len() as u64);
        if end.is_none_or(|end| end > self.bytes.end - self.bytes.start) {
            let what = format!("byte {at}: it refers to what lies behind its end");
            return Err(Error::new(Kind::Corrupt, what));
        }
        self.disk.read_at(self.bytes.start + at, into)
    }

    fn bytes<const N: usize>(&self, at: u64) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.read(at, &mut bytes)?;
        Ok(bytes)
    }

    fn u16(&self, at: u64) -> Result<u64> {
        self.bytes(at).map(|b| u16::from_le_bytes(b).into())
    }

    fn u32(&self, at: u64) -> Result<u64> {
        self.bytes(at).map(|b| u32::from_le_bytes(b).into())
    }
}

impl Ext4Read for Extent {
    fn read(
        &mut self,
        at: u64,
        into: &mut [u8],
    ) -> std::result::Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Extent::read(self, at, into).map_err(Into::into)
    }
}

fn corrupt(what: impl Into<String>) -> Error {
    Error::new(Kind::Corrupt, what)
}

/// That the reader may see it: what it allocates by is within bounds. Fields are those of the superblock at 1024, of the
/// first group's descriptor and of an inode, as the kernel's documentation of ext4 numbers them.
fn check(extent: &Extent) -> Result<()> {
    const SB: u64 = 1024;
    const HAS_64: u64 = 0x80;
    const NEEDS_RECOVERY: u64 = 0x4;
    let log = extent.u32(SB + 0x18)?;
    let each = extent.u32(SB + 0x20)?;
    if log > 6 || each == 0 {
        return Err(corrupt("its superblock is damaged"));
    }
    let block = 1024u64 << log;
    let incompatible = extent.u32(SB + 0x60)?;
    let high = if incompatible & HAS_64 != 0 { extent.u32(SB + 0x150)? } else { 0 };
    let blocks = high << 32 | extent.u32(SB + 0x4)?;
    let len = extent.bytes.end - extent.bytes.start;
    if blocks.checked_mul(block).is_none_or(|bytes| bytes > len) {
        return Err(corrupt(format!(
            "it has {blocks} blocks of {block} bytes, its place only {len}"
        )));
    }
    if blocks.div_ceil(each) > MAX_GROUPS {
        return Err(corrupt(format!("{blocks} blocks in groups of {each}")));
    }
    if incompatible & NEEDS_RECOVERY == 0 {
        return Ok(());
    }
    let (journal, inodes) = (extent.u32(SB + 0xe0)?, extent.u32(SB + 0x28)?);
    if journal == 0 || journal > inodes {
        return Err(corrupt("its journal is not where journals are"));
    }
    let descriptor = if log == 0 { 2 * block } else { block };
    let high = if incompatible & HAS_64 != 0 { extent.u32(descriptor + 0x28)? } else { 0 };
    let table = high << 32 | extent.u32(descriptor + 0x8)?;
    let inode = table
        .checked_mul(block)
        .and_then(|at| at.checked_add((journal - 1) * extent.u16(SB + 0x58).ok()?))
        .ok_or_else(|| corrupt("its inodes lie behind its end"))?;
    let size = extent.u32(inode + 0x6c)? << 32 | extent.u32(inode + 0x4)?;
    match size > MAX_JOURNAL {
        true => Err(corrupt(format!("a journal of {size} bytes"))),
        false => Ok(()),
    }
}

/// A file or directory, by its name.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) name: Box<[u8]>,
    /// None if it cannot be read.
    pub(super) metadata: Option<Metadata>,
}

/// The file system.
pub(super) struct ExtFs {
    fs: Ext4,
    pace: Arc<Pace>,
}

/// What our own reads said, else what the reader says of what it read.
fn told(error: Ext4Error) -> Error {
    match error {
        Ext4Error::Io(cause) => match cause.downcast::<Error>() {
            Ok(ours) => *ours,
            Err(other) => Error::new(Kind::Io, other.to_string()),
        },
        Ext4Error::Incompatible(_) | Ext4Error::Encrypted => {
            Error::new(Kind::Unsupported, error.to_string())
        }
        other => corrupt(other.to_string()),
    }
}

/// Does something with the reader, which panics at some damage. It keeps no state that this could harm: only blocks as they
/// are on the disk.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let done = catch_unwind(AssertUnwindSafe(work));
    done.unwrap_or_else(|_| Err(corrupt("the reader gave it up: it is damaged")))
}

fn path(of: &[u8]) -> Result<PathBuf> {
    let long = || Error::new(Kind::Unsupported, "a path that is too long to be read");
    let path = PathBuf::try_from(of.to_vec()).ok();
    path.filter(|_| of.len() < MAX_PATH).ok_or_else(long)
}

impl ExtFs {
    pub(super) fn open(extent: Extent, pace: Arc<Pace>) -> Result<Self> {
        check(&extent)?;
        let fs = guarded(|| Ext4::load(Box::new(extent)).map_err(told))?;
        Ok(Self { fs, pace })
    }

    /// What the path leads to, which must be what its directory said: paths are only followed through directories.
    fn expect(&self, at: &[u8], metadata: &Metadata) -> Result<PathBuf> {
        self.pace.step()?;
        let path = path(at)?;
        let found = guarded(|| self.fs.symlink_metadata(&path).map_err(told))?;
        match found == *metadata {
            true => Ok(path),
            false => Err(corrupt("a directory finds by name another file than it lists")),
        }
    }

    /// The root directory.
    pub(super) fn root(&self) -> Result<Metadata> {
        let root = guarded(|| self.fs.symlink_metadata("/").map_err(told))?;
        match root.is_dir() {
            true => Ok(root),
            false => Err(corrupt("its root is no directory")),
        }
    }

    /// What is in a directory that was listed before, by names; at most `most`.
    pub(super) fn list(&self, at: &[u8], of: &Metadata, most: usize) -> Result<Vec<Entry>> {
        let path = self.expect(at, of)?;
        let mut entries = guarded(|| self.read_dir(&path, most))?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        match entries.windows(2).any(|pair| pair[0].name == pair[1].name) {
            true => Err(corrupt("a directory has two files of one name")),
            false => Ok(entries),
        }
    }

    fn read_dir(&self, path: &PathBuf, most: usize) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in self.fs.read_dir(path).map_err(told)? {
            self.pace.step()?;
            let entry = entry.map_err(told)?;
            let name = entry.file_name();
            if name == "." || name == ".." {
                continue;
            }
            if entries.len() == most {
                let what = format!("more than {most} files, with those in the directories above");
                return Err(Error::new(Kind::Unsupported, what));
            }
            let metadata = match entry.metadata().map_err(told) {
                Err(e) if e.kind() == Kind::Corrupt => None,
                metadata => Some(metadata?),
            };
            entries.push(Entry { name: name.as_ref().into(), metadata });
        }
        Ok(entries)
    }

    /// Where a symbolic link leads.
    pub(super) fn target(&self, at: &[u8], of: &Metadata) -> Result<Vec<u8>> {
        let path = self.expect(at, of)?;
        if of.len() >= MAX_PATH as u64 {
            return Err(corrupt("a symbolic link with a target that is too long"));
        }
        let target = guarded(|| self.fs.read_link(&path).map_err(told))?;
        Ok(target.as_path().as_ref().to_vec())
    }

    /// The bytes of a regular file.
    pub(super) fn open_file(&self, at: &[u8], of: &Metadata) -> Result<Content> {
        let path = self.expect(at, of)?;
        let file = guarded(|| self.fs.open(&path).map_err(told))?;
        Ok(Content { file, pace: Arc::clone(&self.pace) })
    }
}

/// The bytes of a file, from its beginning.
pub(super) struct Content {
    file: File,
    pace: Arc<Pace>,
}

impl Content {
    /// Fills `into`, but at the end of the file; how many bytes came.
    pub(super) fn read(&mut self, into: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        while done < into.len() {
            self.pace.step()?;
            match guarded(|| self.file.read_bytes(&mut into[done..]).map_err(told))? {
                0 => break,
                n => done += n,
            }
        }
        Ok(done)
    }
}

/// What it is, for people.
pub(super) fn kind(of: &Metadata) -> &'static str {
    match of.file_type() {
        FileType::Regular => "file",
        FileType::Directory => "directory",
        FileType::Symlink => "symlink",
        FileType::BlockDevice => "block device",
        FileType::CharacterDevice => "character device",
        FileType::Fifo => "fifo",
        FileType::Socket => "socket",
    }
}
