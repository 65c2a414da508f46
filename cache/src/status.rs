//! What a cache says of itself.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::disk::DiskState;

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
    /// Bytes that wait to be written to disk.
    pub disk_queued_bytes: u64,
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

/// The counters that belong to no tier.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) memory_hits: AtomicU64,
    pub(crate) joined: AtomicU64,
    pub(crate) misses: AtomicU64,
    pub(crate) source_requests: AtomicU64,
    pub(crate) source_frames: AtomicU64,
    pub(crate) source_bytes: AtomicU64,
    pub(crate) healed: AtomicU64,
}

impl Counts {
    /// A status with these counts and nothing else.
    pub(crate) fn status(&self) -> Status {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Status {
            memory_hits: count(&self.memory_hits),
            joined: count(&self.joined),
            misses: count(&self.misses),
            source_requests: count(&self.source_requests),
            source_frames: count(&self.source_frames),
            source_bytes: count(&self.source_bytes),
            healed_copies: count(&self.healed),
            ..Status::default()
        }
    }
}
