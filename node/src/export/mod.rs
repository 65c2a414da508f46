//! What guests see: a volume as a block device, by one protocol or another.
//!
//! An export serves a [`Disk`] and knows nothing of images, maps or networks. All of it runs on one
//! core: the tasks of an export, and the disk behind it, share a single-threaded runtime.

pub mod fuse;
pub mod nbd;
pub mod raw;
pub mod vhost;

use std::future::Future;
use std::ops::Range;

use blockio::{BlockFile, Buf, Engine};
use image::Result;

/// What a stretch of a disk holds, as far as that is known without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stretch {
    /// Bytes that lie here.
    Data,
    /// Zeros that take no space here.
    Hole,
    /// Bytes that have not arrived yet: a read waits for them.
    Absent,
}

/// A disk, as an export sees it.
///
/// Offsets and lengths are in bytes, multiples of [`sector`](Disk::sector), and within
/// [`size`](Disk::size): an export refuses others before it asks. Operations may run side by side and end
/// in any order; of two that overlap either may win. Dropping a future does not undo what it began.
pub trait Disk: 'static {
    /// Size in bytes, now; it may grow.
    fn size(&self) -> u64;

    /// Logical sector size in bytes: 512 or 4096.
    fn sector(&self) -> u32;

    /// Whether writes are refused.
    fn read_only(&self) -> bool;

    /// Fills `buf`, all of its length, from `at`. The buffer comes back also with an error.
    fn read(&self, at: u64, buf: Buf) -> impl Future<Output = (Result<()>, Buf)>;

    /// Where a read of `range` may take its bytes from without [`read`](Disk::read), as it is now: a file that has
    /// them at the same place, and an engine to read it with. Who asks then reads, and whatever does not succeed
    /// there is to be read as usual.
    fn read_from(&self, range: &Range<u64>) -> Option<(BlockFile, Engine)> {
        let _ = range;
        None
    }

    /// Writes all of `buf` at `at`. Lasts after the next [`flush`](Disk::flush) that begins after this
    /// has returned.
    fn write(&self, at: u64, buf: Buf) -> impl Future<Output = (Result<()>, Buf)>;

    /// Makes a range read as zeros. With `give_back` its space may be given back; without, a later write
    /// into it does not find the disk full.
    fn zero(&self, range: Range<u64>, give_back: bool) -> impl Future<Output = Result<()>>;

    /// Whether [`zero`](Disk::zero) with this `give_back` takes less time than writing the zeros would,
    /// whatever the range: some clients ask for zeros only if they are cheap.
    fn zero_is_fast(&self, give_back: bool) -> bool {
        let _ = give_back;
        false
    }

    /// Says that nobody needs what is in a range; it reads as zeros afterwards, or as before.
    fn discard(&self, range: Range<u64>) -> impl Future<Output = Result<()>>;

    /// Makes every write that has returned last.
    fn flush(&self) -> impl Future<Output = Result<()>>;

    /// What `range` holds from its start on, piece by piece, at most `most` of them: the length of each, in
    /// bytes, and what it is. Neighbours differ.
    fn stretches(&self, range: Range<u64>, most: usize) -> Result<Vec<(u64, Stretch)>>;
}
