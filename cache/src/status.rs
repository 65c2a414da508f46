//! What a cache says of itself.

use std::sync::atomic::{AtomicU64, Ordering};

use image::Priority;

use crate::disk::{DiskHealth, DiskState, ScrubStatus};

/// How a cache is, and what it has done since it was started. Counts of frames and bytes; bytes are
/// of frames, header included, unless said otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Memory that frames take, overhead included.
    pub memory_bytes: u64,
    /// Frames in memory.
    pub memory_frames: u64,
    /// Memory that manifests and section tables take.
    pub paper_bytes: u64,
    /// Memory of reads under way and of frames that wait for readers.
    pub in_flight_bytes: u64,
    /// Chunks being fetched now, from disk or from the source.
    pub flights: u64,
    /// How the disk tier is.
    pub disk: DiskState,
    /// Length of all segments.
    pub disk_bytes: u64,
    /// Frames on disk.
    pub disk_frames: u64,
    /// Memory that the index of these takes.
    pub index_bytes: u64,
    /// Bytes that wait to be written to disk.
    pub disk_queued_bytes: u64,
    /// How well the disk does.
    pub disk_health: DiskHealth,
    /// Images that are pinned.
    pub pins: u64,
    /// Bytes of frames that are pinned.
    pub pinned_bytes: u64,
    /// Bytes of frames that may be.
    pub pin_limit: u64,
    /// How far scrubbing has come.
    pub scrub: ScrubStatus,
    /// Bad frames that scrubbing found, in all passes.
    pub scrub_bad_frames: u64,
    /// Asks of guests.
    pub guest: Asks,
    /// Asks for what guests will soon need.
    pub trace: Asks,
    /// Asks that nobody waits for.
    pub background: Asks,
    /// Asks answered from memory.
    pub memory_hits: u64,
    /// Frames read from disk, each for whoever asked.
    pub disk_hits: u64,
    /// Asks that waited for a fetch which another had begun.
    pub joined: u64,
    /// Asks that began a fetch, from disk or from the source.
    pub misses: u64,
    /// Requests to the source for chunks.
    pub source_requests: u64,
    /// Frames that came from the source, damaged ones included.
    pub source_frames: u64,
    /// Bytes that came from the source.
    pub source_bytes: u64,
    /// Copies that a repair found wrong and dropped.
    pub healed_copies: u64,
    /// Frames on disk that were not what they should be when they were read.
    pub disk_bad_frames: u64,
    /// Bytes written to the log, frames written again included.
    pub disk_written_bytes: u64,
    /// Frames that were not written because the disk could not keep up.
    pub disk_skipped_frames: u64,
}

impl Status {
    /// Whether the disk tier is still being read in.
    pub fn is_recovering(&self) -> bool {
        self.disk == DiskState::Recovering
    }
}

/// Asks for chunks of one class of priority. An ask for a chunk that had to be looked for again is
/// counted once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asks {
    /// Answered from memory.
    pub memory: u64,
    /// Answered from disk.
    pub disk: u64,
    /// Answered by a fetch that another had begun.
    pub joined: u64,
    /// Had to be fetched from the source.
    pub source: u64,
}

impl Asks {
    /// All of them.
    pub fn all(&self) -> u64 {
        self.memory + self.disk + self.joined + self.source
    }
}

/// The counters of one class of priority.
#[derive(Default)]
pub(crate) struct AskCounts {
    pub(crate) memory: AtomicU64,
    pub(crate) disk: AtomicU64,
    pub(crate) joined: AtomicU64,
    pub(crate) source: AtomicU64,
}

impl AskCounts {
    fn asks(&self) -> Asks {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Asks {
            memory: count(&self.memory),
            disk: count(&self.disk),
            joined: count(&self.joined),
            source: count(&self.source),
        }
    }
}

/// The counters that belong to no tier.
#[derive(Default)]
pub(crate) struct Counts {
    /// By priority.
    asks: [AskCounts; 3],
    pub(crate) source_requests: AtomicU64,
    pub(crate) source_frames: AtomicU64,
    pub(crate) source_bytes: AtomicU64,
    pub(crate) healed: AtomicU64,
}

impl Counts {
    /// The counters of a class.
    pub(crate) fn of(&self, priority: Priority) -> &AskCounts {
        &self.asks[priority as usize]
    }

    /// A status with these counts and nothing else.
    pub(crate) fn status(&self) -> Status {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let [guest, trace, background] = [0, 1, 2].map(|class| self.asks[class].asks());
        let sum = |part: fn(&Asks) -> u64| part(&guest) + part(&trace) + part(&background);
        Status {
            memory_hits: sum(|asks| asks.memory),
            joined: sum(|asks| asks.joined),
            misses: sum(|asks| asks.disk + asks.source),
            guest,
            trace,
            background,
            source_requests: count(&self.source_requests),
            source_frames: count(&self.source_frames),
            source_bytes: count(&self.source_bytes),
            healed_copies: count(&self.healed),
            ..Status::default()
        }
    }
}
