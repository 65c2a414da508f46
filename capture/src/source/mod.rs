//! Where a disk's bytes come from.
//!
//! A [`DiskSource`] is either a [`Disk`], which can be read anywhere and knows where it has nothing
//! but zeros, or a [`Stream`], which can only be read from front to back. Files that name other
//! files (backing files, data files, extents) are refused by that name; nothing but the file that
//! the user gave is ever opened.

mod fingerprint;
mod qcow2;
mod raw;
mod stream;
mod vmdk;

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use blockio::{BlockFile, FileKind, OpenMode};
use image::error::At;
use image::{Error, Kind, Result};

use crate::format::{Compression, Format, decide, decide_stream, doubt};
pub(crate) use fingerprint::changed;
pub use raw::RawDisk;
pub use stream::Stream;

/// A disk that can be read anywhere, by several threads at once. Calls block.
pub trait Disk: Send + Sync {
    /// Its size in bytes.
    fn size(&self) -> u64;

    /// The first stretch at or after `from` that may hold something other than zeros; `None` if
    /// only zeros follow. It is not empty, and ends within the disk.
    ///
    /// # Errors
    ///
    /// What the medium or the format says.
    fn next_data(&self, from: u64) -> Result<Option<Range<u64>>>;

    /// Fills `buf` from `offset`; the range ends within the disk.
    ///
    /// # Errors
    ///
    /// What the medium or the format says, with the offset.
    fn read(&self, buf: &mut [u8], offset: u64) -> Result<()>;

    /// As [`read`](Disk::read), of a part that could not be read: what lies around it, and may be what cannot be read, is
    /// not read with it.
    ///
    /// # Errors
    ///
    /// As [`read`](Disk::read).
    fn read_narrow(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.read(buf, offset)
    }

    /// As [`read`](Disk::read), for somebody who gives way to others: they keep the page cache.
    ///
    /// # Errors
    ///
    /// As [`read`](Disk::read).
    fn read_once(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.read(buf, offset)
    }

    /// What is read as a whole, however little of it is asked for (a compressed cluster), in bytes:
    /// a power of two, at most 4 MiB. Reads of multiples of it, aligned to it, are cheapest.
    fn granule(&self) -> usize {
        1
    }

    /// Asked when everything has been read: whether it was one disk all the while.
    ///
    /// # Errors
    ///
    /// [`Kind::Conflict`] if it changed.
    fn check_unchanged(&self) -> Result<()>;

    /// Told when what was read of a range is durable elsewhere: it is not asked for again.
    fn stored(&self, _range: Range<u64>) {}

    /// The file whose bytes are the disk's, one to one, if there is one: it can be read in bulk.
    fn raw_file(&self) -> Option<&BlockFile> {
        None
    }
}

/// What is known of a source besides its bytes. The default knows nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct SourceOptions {
    /// How the disk lies in the file; else the name tells.
    pub format: Option<Format>,
    /// What the file is compressed with; else the name tells.
    pub compression: Option<Compression>,
    /// Logical sector size of the disk, 512 or 4096; else the device's own, and 512 for files.
    pub sector: Option<u32>,
    /// Size of the disk in bytes. Only streams need to be told; others are checked against it.
    pub size: Option<u64>,
}

/// A disk to import.
pub struct DiskSource {
    name: String,
    sector: u32,
    content: Content,
}

/// How a source can be read.
pub(crate) enum Content {
    /// Anywhere.
    Disk(Arc<dyn Disk>),
    /// From front to back.
    Stream(Stream),
}

impl DiskSource {
    /// Opens a file or block device.
    ///
    /// # Errors
    ///
    /// [`Kind::Invalid`] if the format is not known or the size is not whole sectors;
    /// [`Kind::Unsupported`] for what this program does not read (references to other files among
    /// it), by name; [`Kind::Corrupt`] for a damaged file; otherwise what the system says.
    pub fn open(path: &Path, options: &SourceOptions) -> Result<Self> {
        let (format, compression) = decide(path, options.format, options.compression)?;
        let file = open_unchanging(path)?;
        let name = path.display().to_string();
        let sector = options.sector.unwrap_or_else(|| own_sector(&file));
        let content = if compression == Compression::None {
            let disk: Arc<dyn Disk> = match format {
                Format::Raw => {
                    warn_of_doubt(&name, &file);
                    Arc::new(RawDisk::new(file).at(|| &name)?)
                }
                Format::Qcow2 => Arc::new(qcow2::Qcow2Disk::open(file).at(|| &name)?),
                Format::Vmdk => Arc::new(vmdk::VmdkDisk::open(file).at(|| &name)?),
            };
            Content::Disk(disk)
        } else {
            Content::Stream(Stream::of_file(file, compression, options.size).at(|| &name)?)
        };
        Self { name, sector, content }.checked(options.size)
    }

    /// Standard input: a raw disk, perhaps compressed (which must then be said).
    ///
    /// # Errors
    ///
    /// [`Kind::Unsupported`] for a format other than raw.
    pub fn stdin(options: &SourceOptions) -> Result<Self> {
        Self::stream("standard input", Box::new(std::io::stdin()), options)
    }

    /// Any stream of a raw disk's bytes, perhaps compressed; `name` is for errors.
    ///
    /// # Errors
    ///
    /// As for [`DiskSource::stdin`].
    pub fn stream(
        name: &str,
        reader: Box<dyn std::io::Read + Send>,
        options: &SourceOptions,
    ) -> Result<Self> {
        let compression = decide_stream(options.format, options.compression).at(|| name)?;
        let stream = Stream::new(reader, compression, options.size).at(|| name)?;
        let sector = options.sector.unwrap_or(512);
        Self { name: name.into(), sector, content: Content::Stream(stream) }.checked(options.size)
    }

    /// A disk of another kind, such as a volume at a point in time; `name` is for errors.
    ///
    /// # Errors
    ///
    /// [`Kind::Invalid`] if its size is not a multiple of `sector`, or `sector` is none.
    pub fn disk(name: &str, sector: u32, disk: Arc<dyn Disk>) -> Result<Self> {
        Self { name: name.into(), sector, content: Content::Disk(disk) }.checked(None)
    }

    /// What errors call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Logical sector size in bytes.
    pub fn sector(&self) -> u32 {
        self.sector
    }

    /// The disk's size in bytes; `None` for a stream of which nobody said how long it is.
    pub fn size(&self) -> Option<u64> {
        match &self.content {
            Content::Disk(disk) => Some(disk.size()),
            Content::Stream(stream) => stream.size(),
        }
    }

    /// See [`Disk::granule`].
    pub(crate) fn granule(&self) -> usize {
        match &self.content {
            Content::Disk(disk) => disk.granule(),
            Content::Stream(_) => 1,
        }
    }

    pub(crate) fn into_content(self) -> Content {
        self.content
    }

    fn checked(self, expected: Option<u64>) -> Result<Self> {
        if let Some(size) = self.size() {
            check_size(size, self.sector).at(|| &self.name)?;
            if expected.is_some_and(|expected| expected != size) {
                let what = format!("{}: the disk is {size} bytes, not as said", self.name);
                return Err(Error::new(Kind::Invalid, what));
            }
        }
        Ok(self)
    }
}

/// Opens a file, or a block device that nobody is seen to write to: mounted for reading only (it could
/// be mounted anew, for writing, while it is read), or not at all, which stays so while it is open; and
/// no virtual machine writes to it, which stays so too. A program that opened a device without claiming
/// or locking it is not seen. Of files it is found out at the end whether they changed.
fn open_unchanging(path: &Path) -> Result<BlockFile> {
    let file = open_unclaimed(path)?;
    if file.kind() == FileKind::Block && !file.deny_writers().map_err(read_error)? {
        let what = format!(
            "{}: in use: a program, perhaps a virtual machine, has locked it to write to it: end that, \
             or import a snapshot",
            path.display()
        );
        return Err(Error::new(Kind::Conflict, what));
    }
    Ok(file)
}

/// Opens a file, or a block device that nothing has mounted to write to, or made a part of itself.
fn open_unclaimed(path: &Path) -> Result<BlockFile> {
    let busy = |e: &std::io::Error| e.kind() == std::io::ErrorKind::ResourceBusy;
    match BlockFile::open(path, OpenMode::read().claimed()) {
        Err(e) if busy(&e) && BlockFile::is_mounted_to_read(path).unwrap_or(false) => {
            BlockFile::open(path, OpenMode::read()).map_err(read_error)
        }
        Err(e) if busy(&e) => {
            let what = format!(
                "{}: in use: mounted, or claimed by something: what is read while it changes is no \
                 disk; unmount it, mount it read-only, or import a snapshot",
                path.display()
            );
            Err(Error::caused(Kind::Conflict, what, e))
        }
        opened => opened.map_err(read_error),
    }
}

/// Warns of a raw file that looks like another format. One that cannot be read says so later.
fn warn_of_doubt(name: &str, file: &BlockFile) {
    let mut first = [0; 8];
    let read = file.read_at(&mut first, 0).unwrap_or(0);
    if let Some(doubt) = doubt(&first[..read]) {
        tracing::warn!("{name}: {doubt}");
    }
}

impl fmt::Debug for DiskSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("DiskSource");
        out.field("name", &self.name).field("sector", &self.sector).field("size", &self.size());
        out.finish_non_exhaustive()
    }
}

/// A disk is whole sectors.
pub(crate) fn check_size(size: u64, sector: u32) -> Result<()> {
    if sector != 512 && sector != 4096 {
        let what = format!("sectors of {sector} bytes: give 512 or 4096");
        return Err(Error::new(Kind::Invalid, what));
    }
    if size > image::geometry::MAX_DISK {
        let max = image::geometry::MAX_DISK;
        let what = format!("{size} bytes are more than the largest disk ({max} bytes)");
        return Err(Error::new(Kind::Invalid, what));
    }
    if size.is_multiple_of(u64::from(sector)) {
        return Ok(());
    }
    let what = format!(
        "{size} bytes are not a multiple of the sector size, {sector}: is the file \
         complete? If so, pad it with zeros (`truncate -s %{sector} FILE`) and import it again"
    );
    Err(Error::new(Kind::Invalid, what))
}

fn own_sector(file: &BlockFile) -> u32 {
    match file.kind() {
        FileKind::Block => file.sectors().logical,
        FileKind::Regular => 512,
    }
}

/// An error from the disk below; it already says what was being done where.
pub(crate) fn read_error(error: std::io::Error) -> Error {
    Error::io("cannot read the disk", error)
}
