//! The disk tier: an append-only log of segments, read by every core and written by one thread.
//!
//! ```text
//!  cores ── offer ─► queue ─► LogWriter (one thread): append, seal, recover, evict
//!    │                            │ says where frames lie
//!    └── read ─► index ◄──────────┘
//!          └──► segment files, through the core's own engine
//! ```
//! Nothing is synced: a frame is believed only after its CRC32C, digest, domain and length have
//! been checked, at every read. What a power cut or a bad medium does to the log costs hits.

pub(crate) mod format;
pub(crate) mod index;
pub(crate) mod pin_file;
pub(crate) mod queue;

mod evict;
mod health;
mod keep;
mod reads;
mod recover;
mod scrub;
mod writer;

pub(crate) use health::Health;
pub use health::{DiskHealth, DiskState};
pub(crate) use reads::{Wanted, Way};
pub use scrub::ScrubStatus;
pub use writer::LogWriter;
pub(crate) use writer::{LogLimits, Outside};

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use blockio::{Arena, BlockFile};
use image::Frame;

use crate::disk::index::{Index, Spot};
use crate::disk::queue::Queue;
use crate::disk::reads::Buffers;
use crate::disk::scrub::Orders;
use crate::key::Key;
use crate::pins::Pins;
use crate::shared::Clock;

/// A segment that can be read.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub(crate) file: BlockFile,
    /// Its length in bytes: what it takes of the budget.
    pub(crate) bytes: u64,
    /// How many bytes of its frames are pinned, and at which generation of the pins that was.
    pub(crate) pinned: Option<(u64, u64)>,
}

impl Segment {
    pub(crate) fn new(file: BlockFile, bytes: u64) -> Self {
        Self { file, bytes, pinned: None }
    }
}

/// What the disk tier may take besides the disk.
pub(crate) struct Means {
    /// Bytes that may wait to be written.
    pub(crate) queue: u64,
    /// Bytes that may be read at once.
    pub(crate) buffers: u64,
    /// A read, and the wait for its buffer, may take so long.
    pub(crate) timeout: Duration,
    /// Bytes that scrubbing reads per second.
    pub(crate) scrub: u64,
    /// Tells the time.
    pub(crate) clock: Clock,
}

/// The disk tier as every core sees it.
pub(crate) struct Disk {
    index: Index,
    queue: Queue,
    segments: RwLock<BTreeMap<u32, Segment>>,
    health: Health,
    pins: Arc<Pins>,
    scrub: Orders,
    buffers: Buffers,
    timeout: Duration,
    counts: Counts,
}

/// What the disk tier counts.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) hits: AtomicU64,
    pub(crate) skipped: AtomicU64,
    pub(crate) written: AtomicU64,
    pub(crate) bytes: AtomicU64,
}

impl Disk {
    /// A tier with nothing in it, recovering.
    pub(crate) fn new(means: Means, pins: Arc<Pins>) -> io::Result<Self> {
        Ok(Self {
            index: Index::new(),
            queue: Queue::new(means.queue),
            segments: RwLock::default(),
            health: Health::new(means.clock),
            pins,
            scrub: Orders::new(means.scrub),
            buffers: Buffers::new(means.buffers)?,
            timeout: means.timeout,
            counts: Counts::default(),
        })
    }

    pub(crate) fn index(&self) -> &Index {
        &self.index
    }

    pub(crate) fn queue(&self) -> &Queue {
        &self.queue
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }

    pub(crate) fn health(&self) -> &Health {
        &self.health
    }

    pub(crate) fn pins(&self) -> &Pins {
        &self.pins
    }

    pub(crate) fn scrub(&self) -> &Orders {
        &self.scrub
    }

    /// What most reads are read into.
    pub(crate) fn buffers(&self) -> &Arena {
        &self.buffers.usual
    }

    /// How it is.
    pub(crate) fn state(&self) -> DiskState {
        self.health.state()
    }

    /// Changes how it is.
    pub(crate) fn set_state(&self, new: DiskState) {
        self.health.set_state(new);
    }

    /// Hands a frame to the log, if that takes any and can keep up. One that is pinned is missed if
    /// not.
    pub(crate) fn offer(&self, key: Key, frame: &Frame) {
        if self.health.is_written() && !self.queue.offer(key, frame.clone()) {
            self.counts.skipped.fetch_add(1, Ordering::Relaxed);
            self.miss(&key);
        }
    }

    /// Whether a frame is said to lie here.
    pub(crate) fn contains(&self, key: &Key) -> bool {
        self.frame_len(key).is_some()
    }

    /// The length of a frame that is said to lie here, in bytes.
    pub(crate) fn frame_len(&self, key: &Key) -> Option<u32> {
        let spot = self.health.is_read().then(|| self.index.peek(key))?;
        spot.map(|spot| spot.len())
    }

    /// Returns when half of what may wait to be written is free, or the disk is too slow to wait
    /// for.
    pub(crate) async fn has_room(&self) {
        if self.health.is_written() {
            let _ = tokio::time::timeout(self.timeout, self.queue.half_empty()).await;
        }
    }

    /// Forgets where a frame lies; says in which segment that was.
    pub(crate) fn forget(&self, key: &Key) -> Option<u32> {
        let spot = self.index.peek(key)?;
        self.drop_frame(key, &spot);
        Some(spot.segment)
    }

    /// Forgets where a frame lies, unless it is pinned; says in which segment that was.
    pub(crate) fn evict(&self, key: &Key) -> Option<u32> {
        if self.pins.contains(key) { None } else { self.forget(key) }
    }

    /// Forgets a frame that is not what it should be.
    pub(crate) fn drop_bad(
        &self,
        key: &Key,
        spot: &Spot,
        path: &Path,
        error: &dyn std::fmt::Display,
    ) {
        let (path, offset) = (path.display(), spot.offset);
        self.health.note_bad_frame(format!("{path}: offset {offset}: {key}: {error}"));
        self.drop_frame(key, spot);
    }

    /// Forgets where a frame lies; one that is pinned is missed.
    pub(crate) fn drop_frame(&self, key: &Key, spot: &Spot) {
        self.index.remove(key, spot);
        self.miss(key);
    }

    /// What is not here is missed if it is pinned.
    fn miss(&self, key: &Key) {
        if self.pins.contains(key) {
            self.pins.lost.notify_one();
        }
    }

    pub(crate) fn segments(&self) -> RwLockReadGuard<'_, BTreeMap<u32, Segment>> {
        self.segments.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn segments_mut(&self) -> RwLockWriteGuard<'_, BTreeMap<u32, Segment>> {
        self.segments.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockio::fake::MemFs;
    use blockio::{Engine, EngineKind, EngineOptions, OpenMode};
    use image::{Codec, Digest, Domain, Priority};

    /// A tier with one frame in it, room for one read at a time, and the runtime's time.
    fn disk_with_a_frame() -> (Disk, Key) {
        disk_with_a_frame_and_buffers(1)
    }

    /// The same with room for so many reads.
    #[expect(clippy::disallowed_methods, reason = "the runtime's time is the test's")]
    fn disk_with_a_frame_and_buffers(buffers: u64) -> (Disk, Key) {
        let digest = Digest::of_chunk(b"x");
        let frame = Frame::new(Codec::Raw, Domain::PUBLIC, digest, 100, &[7; 100]);
        let key = Key { domain: Domain::PUBLIC, digest };
        let file = MemFs::new().fs().open("/seg", OpenMode::create()).unwrap();
        file.write_all_at(frame.bytes(), 64).unwrap();
        let start = tokio::time::Instant::now();
        let clock: Clock = Arc::new(move || start.elapsed());
        let timeout = Duration::from_secs(2);
        let means =
            Means { queue: 0, buffers: 2 * buffers * reads::SLOT as u64, timeout, scrub: 0, clock };
        let disk = Disk::new(means, Arc::new(Pins::new(0, 0))).unwrap();
        disk.segments_mut().insert(3, Segment::new(file, 228));
        disk.index.insert(&key, Spot::new(3, 64, 164));
        (disk, key)
    }

    fn bulk(engine: &Engine) -> Way<'_> {
        Way { engine, priority: Priority::Background }
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_does_not_wait_in_line_behind_bulk_reads() {
        let (disk, key) = disk_with_a_frame();
        let engine = Engine::start(EngineOptions::kind(EngineKind::Portable)).unwrap();
        let _slot = disk.buffers.usual.try_acquire().unwrap();
        let guest = Way { priority: Priority::Guest, ..bulk(&engine) };
        let reads = async {
            tokio::join!(disk.read(bulk(&engine), &key, 100), disk.read(guest, &key, 100))
        };
        let (bulk, guest) = reads.await;
        assert!(bulk.is_none() && guest.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_does_not_answer_is_a_miss_and_then_given_up() {
        let (disk, key) = disk_with_a_frame();
        let engine = Engine::start(EngineOptions::kind(EngineKind::Portable)).unwrap();
        assert!(disk.read(bulk(&engine), &key, 100).await.is_some());
        let slot = disk.buffers.usual.try_acquire().unwrap();
        for _ in 0..health::NO_ANSWER.as_secs() / 2 {
            assert!(disk.read(bulk(&engine), &key, 100).await.is_none());
        }
        assert!(disk.contains(&key), "the frame is not to blame");
        assert_eq!(disk.state(), DiskState::Recovering);
        assert!(disk.read(bulk(&engine), &key, 100).await.is_none());
        assert!(matches!(disk.state(), DiskState::Off(why) if why.contains("no answer in 2s")));
        drop(slot);
        assert!(!disk.contains(&key));
        assert!(disk.read(bulk(&engine), &key, 100).await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_line_for_a_slow_disk_is_no_reason_to_give_it_up() {
        let (disk, key) = disk_with_a_frame();
        let engine = Engine::start(EngineOptions::kind(EngineKind::Portable)).unwrap();
        let read = || disk.read(bulk(&engine), &key, 100);
        for _ in 0..20 {
            // Others have the buffer for so long that all who wait give up at once.
            let slot = disk.buffers.usual.try_acquire().unwrap();
            let line = futures::future::join_all((0..50).map(|_| read())).await;
            assert!(line.iter().all(Option::is_none));
            drop(slot);
            assert!(read().await.is_some());
        }
        assert_eq!(disk.state(), DiskState::Recovering);
        assert_eq!(disk.health.report().failed_reads, 0);
        // Neither are two lines with a long pause between them.
        for _ in 0..4 {
            let _slot = disk.buffers.usual.try_acquire().unwrap();
            futures::future::join_all((0..50).map(|_| read())).await;
            tokio::time::sleep(health::NO_ANSWER).await;
        }
        assert_eq!(disk.state(), DiskState::Recovering);
    }

    #[tokio::test]
    async fn who_keeps_frames_leaves_half_of_the_buffers() {
        let (disk, key) = disk_with_a_frame_and_buffers(6);
        let engine = Engine::start(EngineOptions::kind(EngineKind::Portable)).unwrap();
        let mut kept = Vec::new();
        for read in 0..20 {
            kept.push(disk.read(bulk(&engine), &key, 100).await.unwrap());
            assert_eq!(disk.buffers.usual.available(), 6 - (read + 1).min(3), "after read {read}");
        }
        assert!(kept.iter().all(|frame| *frame == kept[0]));
        drop(kept);
        assert_eq!(disk.buffers.usual.available(), 6);
    }

    #[tokio::test]
    async fn a_frame_of_a_segment_that_has_gone_is_a_miss() {
        let (disk, key) = disk_with_a_frame();
        let engine = Engine::start(EngineOptions::kind(EngineKind::Portable)).unwrap();
        disk.segments_mut().clear();
        assert!(disk.read(bulk(&engine), &key, 100).await.is_none());
        assert_eq!(disk.index.frames(), 0);
    }
}
