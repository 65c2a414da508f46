//! What is in flight, kept where a crash of ours does not reach: in memory that the front-end holds.
//!
//! The layout is that of the vhost-user specification for split rings ("inflight I/O tracking"). Each
//! ring has a head of 16 bytes and an entry of 16 bytes for each descriptor that can begin a chain:
//!
//! ```text
//! head    0 features u64   8 version u16   10 entries u16   12 last used u16   14 used index u16
//! entry   0 in flight u8   6 used before u16   8 counter u64
//! ```
//!
//! A process can end between any two stores. The order of stores here is such that whatever is found
//! afterwards tells which requests have not been answered: see [`Track::open`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

use image::{Error, Kind, Result};
use vm_memory::{MmapRegion, VolatileMemory};

const HEAD: usize = 16;
const ENTRY: usize = 16;
/// Rings begin on a cache line of their own.
const ALIGN: usize = 64;
const VERSION: u16 = 1;

const VERSION_AT: usize = 8;
const ENTRIES_AT: usize = 10;
const LAST_AT: usize = 12;
const USED_AT: usize = 14;

/// How many bytes a ring of `size` takes.
pub fn ring_bytes(size: u16) -> usize {
    (HEAD + ENTRY * usize::from(size)).next_multiple_of(ALIGN)
}

/// Memory in which numbers are stored one after the other, in the order that the program says.
pub trait Cells {
    /// The byte at `at`.
    fn load8(&self, at: usize) -> u8;
    /// The number at `at`, a multiple of its size, as for all below.
    fn load16(&self, at: usize) -> u16;
    /// As above.
    fn load64(&self, at: usize) -> u64;
    /// Stores a byte.
    fn store8(&self, at: usize, value: u8);
    /// Stores a number.
    fn store16(&self, at: usize, value: u16);
    /// As above.
    fn store64(&self, at: usize, value: u64);
}

/// The part of shared memory that belongs to one ring.
pub struct Shared {
    mapping: Arc<MmapRegion>,
    start: usize,
}

impl Shared {
    /// The part of ring `ring` in memory for rings of `size`; nothing if it does not reach so far.
    pub fn new(mapping: Arc<MmapRegion>, ring: usize, size: u16) -> Option<Self> {
        let bytes = ring_bytes(size);
        let start = ring.checked_mul(bytes)?;
        (start.checked_add(bytes)? <= mapping.size()).then_some(Self { mapping, start })
    }
}

const INSIDE: &str = "inside of the mapping, and aligned";

impl Cells for Shared {
    fn load8(&self, at: usize) -> u8 {
        let cell: &AtomicU8 = self.mapping.get_atomic_ref(self.start + at).expect(INSIDE);
        cell.load(Ordering::Acquire)
    }

    fn load16(&self, at: usize) -> u16 {
        let cell: &AtomicU16 = self.mapping.get_atomic_ref(self.start + at).expect(INSIDE);
        cell.load(Ordering::Acquire)
    }

    fn load64(&self, at: usize) -> u64 {
        let cell: &AtomicU64 = self.mapping.get_atomic_ref(self.start + at).expect(INSIDE);
        cell.load(Ordering::Acquire)
    }

    fn store8(&self, at: usize, value: u8) {
        let cell: &AtomicU8 = self.mapping.get_atomic_ref(self.start + at).expect(INSIDE);
        cell.store(value, Ordering::Release);
    }

    fn store16(&self, at: usize, value: u16) {
        let cell: &AtomicU16 = self.mapping.get_atomic_ref(self.start + at).expect(INSIDE);
        cell.store(value, Ordering::Release);
    }

    fn store64(&self, at: usize, value: u64) {
        let cell: &AtomicU64 = self.mapping.get_atomic_ref(self.start + at).expect(INSIDE);
        cell.store(value, Ordering::Release);
    }
}

/// Keeps what one ring has in flight.
pub struct Track<C> {
    cells: C,
    entries: u16,
    counter: u64,
}

impl<C: Cells> Track<C> {
    /// Opens the part of a ring with `entries` descriptors whose used index stands at `used`. Also gives the
    /// heads of the chains that were taken and not answered, in the order they were taken.
    ///
    /// # Errors
    ///
    /// `Unsupported` for another version, `Invalid` for a ring of another length.
    pub fn open(cells: C, entries: u16, used: u16) -> Result<(Self, Vec<u16>)> {
        let mut track = Self { cells, entries, counter: 0 };
        match track.cells.load16(VERSION_AT) {
            0 => {
                track.cells.store16(ENTRIES_AT, entries);
                track.cells.store16(VERSION_AT, VERSION);
            }
            VERSION => {}
            other => {
                let message = format!("requests in flight are kept in version {other}");
                return Err(Error::new(Kind::Unsupported, message));
            }
        }
        let kept = track.cells.load16(ENTRIES_AT);
        if kept != entries {
            let message = format!("requests in flight were kept for {kept} entries, not {entries}");
            return Err(Error::new(Kind::Invalid, message));
        }
        track.forget_the_last_batch(used);
        let heads = track.unanswered();
        Ok((track, heads))
    }

    /// Whoever ran before may have ended after it had moved the used index, and before it had noted that
    /// here: what the last move answered is not in flight.
    fn forget_the_last_batch(&mut self, used: u16) {
        let batch = used.wrapping_sub(self.cells.load16(USED_AT));
        let mut head = self.cells.load16(LAST_AT);
        for _ in 0..batch.min(self.entries) {
            if head >= self.entries {
                break;
            }
            self.cells.store8(entry(head), 0);
            head = self.cells.load16(entry(head) + 6);
        }
        self.cells.store16(USED_AT, used);
    }

    fn unanswered(&mut self) -> Vec<u16> {
        let in_flight = (0..self.entries).filter(|head| self.cells.load8(entry(*head)) != 0);
        let mut all: Vec<(u64, u16)> =
            in_flight.map(|head| (self.cells.load64(entry(head) + 8), head)).collect();
        all.sort_unstable();
        self.counter = all.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        all.into_iter().map(|(_, head)| head).collect()
    }

    /// A chain was taken off the available ring.
    pub fn taken(&mut self, head: u16) {
        self.cells.store64(entry(head) + 8, self.counter);
        self.counter = self.counter.wrapping_add(1);
        self.cells.store8(entry(head), 1);
    }

    /// A chain is about to be answered: to be called before the used index moves past it.
    pub fn answering(&mut self, head: u16) {
        self.cells.store16(entry(head) + 6, self.cells.load16(LAST_AT));
        self.cells.store16(LAST_AT, head);
    }

    /// The used index has moved to `used`, past the chain that was last [`answering`](Self::answering).
    pub fn answered(&mut self, head: u16, used: u16) {
        self.cells.store8(entry(head), 0);
        self.cells.store16(USED_AT, used);
    }
}

fn entry(head: u16) -> usize {
    HEAD + ENTRY * usize::from(head)
}
