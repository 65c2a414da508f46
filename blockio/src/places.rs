//! Where on their file system the bytes of a file lie: what two files have at one place they share.
//!
//! Asked of the kernel by `FIEMAP` ([documentation]), which tells of each extent also how far its place is to be believed.
//!
//! [documentation]: https://docs.kernel.org/filesystems/fiemap.html

#![expect(unsafe_code, reason = "two system calls that no library of ours has")]

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;

use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

use crate::{BlockFile, FileKind};

const XFS: u64 = 0x5846_5342;
const BTRFS: u64 = 0x9123_683e;
/// ext2, ext3 and ext4.
const EXT: u64 = 0xef53;
const TMPFS: u64 = 0x0102_1994;

/// Extents that the kernel is asked for at a time.
const BATCH: usize = 512;

/// `FIEMAP_FLAG_SYNC`: what was written is first given its place.
const SYNC: u32 = 1;
/// What the kernel says of an extent: it is the file's last one; other files have it, too.
const LAST: u32 = 0x1;
const SHARED: u32 = 0x2000;

/// A stretch of a file that is no hole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Its bytes in the file.
    pub bytes: Range<u64>,
    /// Where the first of them lies on the file system, in bytes; the others follow. Nothing if the kernel says
    /// anything of the extent that keeps its place from telling what it holds: compressed, encrypted, beside other data
    /// in a block, allocated and not written, not allocated yet, or what we do not know.
    pub place: Option<u64>,
    /// Whether the file system says that something else has these blocks, too.
    pub shared: bool,
}

/// The header of a request, as `struct fiemap` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Head {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    room: u32,
    reserved: u32,
}

/// As `struct fiemap_extent`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved: [u64; 2],
    flags: u32,
    reserved_too: [u32; 3],
}

#[repr(C)]
#[derive(Debug)]
struct Request {
    head: Head,
    extents: [Extent; BATCH],
}

/// As `struct fsxattr`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Attributes {
    flags: u32,
    others: [u32; 6],
}

const FIEMAP: Opcode = opcode::read_write::<Head>(b'f', 11);
const GET_ATTRIBUTES: Opcode = opcode::read::<Attributes>(b'X', 31);
/// `FS_XFLAG_REALTIME`.
const REALTIME: u32 = 1;

impl BlockFile {
    /// Whether what this file and another one have at the same [place](Placed::place) is the same: both lie on one
    /// file system, of which that is known (XFS, btrfs). `false` for devices and fakes.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn is_placed_with(&self, other: &BlockFile) -> io::Result<bool> {
        let [this, that] = [file_system(self)?, file_system(other)?];
        Ok(this.is_some() && this == that)
    }

    /// Where the bytes of a range lie, in rising order; what is left out are holes. With `sync` what was written
    /// before has its place by then. Of a file that changes meanwhile each stretch is as it was at some time.
    pub fn places(&self, range: Range<u64>, sync: bool) -> Places<'_> {
        let Range { start, end } = range;
        Places { file: self, at: start, end, sync, found: VecDeque::new() }
    }
}

/// The file system of a regular file, by the device that it is to who asks; nothing if places tell nothing there.
fn file_system(file: &BlockFile) -> io::Result<Option<u64>> {
    let regular = file.descriptor().filter(|_| file.kind() == FileKind::Regular);
    let Some(descriptor) = regular else { return Ok(None) };
    let at = |error| file.at("stat", None, error);
    match magic(descriptor).map_err(at)? {
        BTRFS => {}
        // Files of the realtime device have places of their own, with the same numbers.
        XFS if !is_realtime(descriptor).map_err(at)? => {}
        _ => return Ok(None),
    }
    let file = File::from(descriptor.try_clone_to_owned().map_err(at)?);
    Ok(Some(file.metadata().map_err(at)?.dev()))
}

/// Which kind of file system it is.
fn magic(file: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(rustix::fs::fstatfs(file)?.f_type as u64 & 0xffff_ffff)
}

/// Whether what is written to a regular file takes the place of what was there: known of ext, of XFS but for its
/// realtime device, which may be zoned, and of tmpfs.
pub(crate) fn overwrites(file: BorrowedFd<'_>) -> io::Result<bool> {
    match magic(file)? {
        EXT | TMPFS => Ok(true),
        XFS => Ok(!is_realtime(file)?),
        _ => Ok(false),
    }
}

fn is_realtime(file: BorrowedFd<'_>) -> io::Result<bool> {
    let mut attributes = Attributes::default();
    // SAFETY: this opcode has the kernel write a `struct fsxattr`, which `Attributes` is: 28 bytes that may be anything.
    let update = unsafe { Updater::<GET_ATTRIBUTES, _>::new(&mut attributes) };
    // SAFETY: of the call nothing remains when it returns, and `attributes` outlives it.
    unsafe { ioctl(file, update)? };
    Ok(attributes.flags & REALTIME != 0)
}

/// See [`BlockFile::places`].
#[derive(Debug)]
pub struct Places<'a> {
    file: &'a BlockFile,
    at: u64,
    end: u64,
    sync: bool,
    found: VecDeque<Placed>,
}

impl Places<'_> {
    fn look(&mut self) -> io::Result<()> {
        let descriptor = self.file.descriptor().ok_or(Errno::OPNOTSUPP)?;
        let head = Head {
            start: self.at,
            length: self.end - self.at,
            flags: if std::mem::take(&mut self.sync) { SYNC } else { 0 },
            room: BATCH as u32,
            ..Head::default()
        };
        let mut request = Box::new(Request { head, extents: [Extent::default(); BATCH] });
        // SAFETY: this opcode has the kernel read and write a `struct fiemap`, which `Head` is, and behind it as many
        // `struct fiemap_extent` as `room` says: the array that follows it has so many, and any bytes are valid in it.
        let update = unsafe { Updater::<FIEMAP, Request>::new(&mut request) };
        // SAFETY: of the call nothing remains when it returns, and `request` outlives it.
        unsafe { ioctl(descriptor, update)? };
        let mapped = (request.head.mapped as usize).min(BATCH);
        for extent in &request.extents[..mapped] {
            self.add(extent);
        }
        let is_last = request.extents[..mapped].last().is_none_or(|e| e.flags & LAST != 0);
        if mapped < BATCH || is_last {
            self.at = self.end;
        } else if self.found.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "extents that lead nowhere"));
        }
        Ok(())
    }

    /// What of an extent was not told yet.
    fn add(&mut self, extent: &Extent) {
        let start = extent.logical.max(self.at);
        let end = extent.logical.saturating_add(extent.length).min(self.end);
        if start >= end {
            return;
        }
        let is_told = extent.flags & !(LAST | SHARED) == 0;
        let place = extent.physical.checked_add(start - extent.logical).filter(|_| is_told);
        let shared = extent.flags & SHARED != 0;
        self.found.push_back(Placed { bytes: start..end, place, shared });
        self.at = end;
    }
}

impl Iterator for Places<'_> {
    type Item = io::Result<Placed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.found.is_empty()
            && self.at < self.end
            && let Err(error) = self.look()
        {
            let at = std::mem::replace(&mut self.at, self.end);
            return Some(Err(self.file.at("extents", Some(at), error)));
        }
        self.found.pop_front().map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OpenMode;
    use crate::fake::MemFs;

    fn told_of(extents: &[Extent], range: Range<u64>) -> Vec<Placed> {
        let file = MemFs::new().fs().open("/f", OpenMode::create()).unwrap();
        let mut places = file.places(range, false);
        extents.iter().for_each(|extent| places.add(extent));
        places.found.into()
    }

    #[test]
    fn the_kernel_is_asked_as_it_wants_to_be() {
        assert_eq!((size_of::<Head>(), size_of::<Extent>()), (32, 56));
        assert_eq!(size_of::<Request>(), 32 + 56 * BATCH);
        assert_eq!(size_of::<Attributes>(), 28);
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        assert_eq!((FIEMAP, GET_ATTRIBUTES), (0xc020_660b, 0x801c_581f));
    }

    #[test]
    fn a_place_counts_if_nothing_is_said_that_makes_it_doubtful() {
        let of = |flags| Extent {
            logical: 4096,
            physical: 1 << 20,
            length: 8192,
            flags,
            ..Extent::default()
        };
        let told = |flags| told_of(&[of(flags)], 0..1 << 20).remove(0);
        for (flags, shared) in [(0, false), (LAST, false), (SHARED, true), (LAST | SHARED, true)] {
            assert_eq!(told(flags), Placed { bytes: 4096..12288, place: Some(1 << 20), shared });
        }
        // Unknown, delayed, encoded, encrypted, not aligned, inline, in a tail, unwritten, merged, and what may come.
        for doubtful in [2, 4, 8, 0x80, 0x100, 0x200, 0x400, 0x800, 0x1000, 0x4000, 1 << 31] {
            assert_eq!(told(doubtful | SHARED | LAST).place, None, "{doubtful:#x}");
        }
    }

    #[test]
    fn what_lies_around_a_range_is_left_out() {
        let of = |logical, length| Extent {
            logical,
            physical: 1 << 30 | logical,
            length,
            ..Extent::default()
        };
        // The second overlaps what was told already, as if the file had changed in between.
        let told = told_of(&[of(0, 8192), of(4096, 8192), of(16384, u64::MAX)], 4096..20480);
        let told: Vec<_> = told.into_iter().map(|p| (p.bytes, p.place.unwrap())).collect();
        let at = |range: Range<u64>| (range.clone(), 1 << 30 | range.start);
        assert_eq!(told, [at(4096..8192), at(8192..12288), at(16384..20480)]);
    }

    #[test]
    fn who_has_no_places_says_so() {
        let fs = MemFs::new().fs();
        let [a, b] = ["/a", "/b"].map(|path| fs.open(path, OpenMode::create()).unwrap());
        assert!(!a.is_placed_with(&b).unwrap());
        let error = a.places(0..1, true).next().unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
    }

    #[test]
    fn files_of_many_extents_are_walked_to_their_end() {
        let dir = tempfile::tempdir().unwrap();
        let file = BlockFile::open(dir.path().join("f"), OpenMode::create_new()).unwrap();
        let data = |n: u64| n * (128 << 10)..n * (128 << 10) + 4096;
        let all: Vec<_> = (0..2 * BATCH as u64 + 100).map(data).collect();
        // Grown first: some allocate more than is written at a file's end.
        file.set_len(all[all.len() - 1].end).unwrap();
        for data in &all {
            file.write_all_at(&[1; 4096], data.start).unwrap();
        }
        let told = match places_of(&file, 0..u64::MAX) {
            // On a tmpfs.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => return,
            told => told.unwrap(),
        };
        assert!(told.iter().map(|placed| placed.bytes.clone()).eq(all));
        // A part of an extent lies within it.
        let part = places_of(&file, 4096 - 512..8192).unwrap();
        let [part] = &part[..] else { panic!("one extent: {part:?}") };
        assert_eq!(part.bytes, 4096 - 512..4096);
        assert_eq!(part.place, told[0].place.map(|place| place + 4096 - 512));
    }

    fn places_of(file: &BlockFile, range: Range<u64>) -> io::Result<Vec<Placed>> {
        file.places(range, true).collect()
    }
}
