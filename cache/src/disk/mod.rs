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
pub(crate) mod queue;

mod evict;
mod recover;
mod writer;

pub use writer::LogWriter;
pub(crate) use writer::{LogLimits, Outside};

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use blockio::{Arena, BlockFile, Engine};
use bytes::Bytes;
use image::Frame;
use image::frame::MAX_FRAME;

use crate::disk::index::{Index, Spot};
use crate::disk::queue::Queue;
use crate::key::{Key, check_frame};
use crate::sharded::lock;

/// A frame of a 256 KiB chunk that did not shrink, in whole pages.
const SMALL_SLOT: usize = 65 * 4096;
/// The longest frame, in whole pages.
const LARGE_SLOT: usize = MAX_FRAME.next_multiple_of(4096);
/// After so many failed reads with no good one between them the disk is given up.
const MAX_FAILED_READS: u32 = 8;

/// How the disk tier is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DiskState {
    /// None was asked for.
    #[default]
    None,
    /// It is being read in: what was found so far is served, nothing is written yet.
    Recovering,
    /// It is read and written.
    On,
    /// It is read. Nothing is written until there is room again; the text says why.
    Full(String),
    /// It is not used; the text says why.
    Off(String),
}

impl fmt::Display for DiskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DiskState::None => f.write_str("none"),
            DiskState::Recovering => f.write_str("recovering"),
            DiskState::On => f.write_str("on"),
            DiskState::Full(why) => write!(f, "full: {why}"),
            DiskState::Off(why) => write!(f, "off: {why}"),
        }
    }
}

/// A segment that can be read.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub(crate) file: BlockFile,
    /// Its length in bytes: what it takes of the budget.
    pub(crate) bytes: u64,
}

/// The disk tier as every core sees it.
pub(crate) struct Disk {
    index: Index,
    queue: Queue,
    segments: RwLock<BTreeMap<u32, Segment>>,
    state: Mutex<DiskState>,
    /// Bits of `state` for the chunk path.
    open_for: AtomicU8,
    small: Arena,
    large: Arena,
    timeout: Duration,
    failed_reads: AtomicU32,
    counts: Counts,
}

/// What the disk tier counts.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) hits: AtomicU64,
    pub(crate) bad: AtomicU64,
    pub(crate) skipped: AtomicU64,
    pub(crate) written: AtomicU64,
    pub(crate) bytes: AtomicU64,
}

const READS: u8 = 1;
const WRITES: u8 = 2;

impl Disk {
    /// A tier with nothing in it, recovering. `queue` bytes may wait to be written; `arena` bytes of
    /// each of two sizes may be read at once; a read that takes longer than `timeout` has failed.
    pub(crate) fn new(queue: u64, arena: u64, timeout: Duration) -> io::Result<Self> {
        let bytes = |slot: usize| usize::try_from(arena).unwrap_or(usize::MAX).max(slot);
        Ok(Self {
            index: Index::new(),
            queue: Queue::new(queue),
            segments: RwLock::default(),
            state: Mutex::new(DiskState::Recovering),
            open_for: AtomicU8::new(READS | WRITES),
            small: Arena::new("cache: disk reads", SMALL_SLOT, bytes(SMALL_SLOT))?,
            large: Arena::new("cache: disk reads", LARGE_SLOT, bytes(LARGE_SLOT))?,
            timeout,
            failed_reads: AtomicU32::new(0),
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

    /// How it is.
    pub(crate) fn state(&self) -> DiskState {
        lock(&self.state).clone()
    }

    /// Changes how it is. A tier that was given up stays so.
    pub(crate) fn set_state(&self, new: DiskState) {
        let mut state = lock(&self.state);
        if *state == new || matches!(*state, DiskState::Off(_)) {
            return;
        }
        let bits = match &new {
            DiskState::Recovering | DiskState::On => READS | WRITES,
            DiskState::Full(_) => READS,
            DiskState::None | DiskState::Off(_) => 0,
        };
        self.open_for.store(bits, Ordering::Release);
        // Said once, not at every try.
        if std::mem::discriminant(&*state) != std::mem::discriminant(&new) {
            match &new {
                DiskState::Off(_) | DiskState::Full(_) => {
                    tracing::error!(state = %new, "cache: serving goes on without the disk tier");
                }
                _ => tracing::info!(state = %new, "cache: disk tier"),
            }
        }
        *state = new;
    }

    /// A tier that could not be taken because another process has it may be tried again.
    pub(crate) fn revive(&self) {
        *lock(&self.state) = DiskState::Recovering;
        self.open_for.store(READS | WRITES, Ordering::Release);
    }

    fn is_open_for(&self, what: u8) -> bool {
        self.open_for.load(Ordering::Acquire) & what != 0
    }

    /// Hands a frame to the log, if that takes any and can keep up.
    pub(crate) fn offer(&self, key: Key, frame: &Frame) {
        if self.is_open_for(WRITES) && !self.queue.offer(key, frame.clone()) {
            self.counts.skipped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether a frame is said to lie here.
    pub(crate) fn contains(&self, key: &Key) -> bool {
        self.is_open_for(READS) && self.index.peek(key).is_some()
    }

    /// Forgets where a frame lies.
    pub(crate) fn forget(&self, key: &Key) {
        if let Some(spot) = self.index.peek(key) {
            self.index.remove(key, &spot);
        }
    }

    /// Reads a frame and checks it as [`check_frame`] does. One that is not what it should be is
    /// forgotten; whatever goes wrong is a miss.
    pub(crate) async fn read(&self, engine: &Engine, key: &Key, plain_len: u32) -> Option<Frame> {
        if !self.is_open_for(READS) {
            return None;
        }
        let spot = self.index.find(key)?;
        let Some(file) = self.segments().get(&spot.segment).map(|segment| segment.file.clone())
        else {
            self.index.remove(key, &spot);
            return None;
        };
        let read = tokio::time::timeout(self.timeout, self.read_spot(engine, &file, &spot));
        match read.await {
            Ok(Ok(bytes)) => self.judge(key, plain_len, &spot, bytes, &file),
            Ok(Err(error)) => {
                self.index.remove(key, &spot);
                self.note_failed_read(&error.to_string());
                None
            }
            Err(_) => {
                let (path, timeout) = (file.path().display(), self.timeout);
                self.note_failed_read(&format!("read {path}: no answer in {timeout:?}"));
                None
            }
        }
    }

    async fn read_spot(&self, engine: &Engine, file: &BlockFile, spot: &Spot) -> io::Result<Bytes> {
        let len = spot.len() as usize;
        let arena = if len <= SMALL_SLOT { &self.small } else { &self.large };
        let mut buf = arena.acquire().await;
        buf.set_len(len);
        let (result, buf) = engine.read_at(file, buf, u64::from(spot.offset)).await;
        result?;
        // Copied out, so that a reader who keeps a frame does not keep others from the disk.
        Ok(Bytes::copy_from_slice(&buf))
    }

    /// Takes what was read for a frame, or finds out why it is none.
    fn judge(
        &self,
        key: &Key,
        plain_len: u32,
        spot: &Spot,
        bytes: Bytes,
        file: &BlockFile,
    ) -> Option<Frame> {
        self.failed_reads.store(0, Ordering::Relaxed);
        let frame = Frame::parse(bytes);
        match frame.and_then(|frame| check_frame(&frame, key, plain_len).map(|()| frame)) {
            Ok(frame) => {
                self.counts.hits.fetch_add(1, Ordering::Relaxed);
                Some(frame)
            }
            Err(error) => {
                self.index.remove(key, spot);
                self.counts.bad.fetch_add(1, Ordering::Relaxed);
                let path = file.path().display();
                tracing::warn!(%path, offset = spot.offset, %key, %error, "cache: dropped a frame");
                None
            }
        }
    }

    fn note_failed_read(&self, why: &str) {
        tracing::warn!(why, "cache: a disk read failed");
        if self.failed_reads.fetch_add(1, Ordering::Relaxed) + 1 >= MAX_FAILED_READS {
            self.set_state(DiskState::Off(why.to_owned()));
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
    use blockio::{EngineKind, EngineOptions, OpenMode};
    use image::{Codec, Digest, Domain};

    /// A tier with one frame in it, and room for one read at a time.
    fn disk_with_a_frame() -> (Disk, Key) {
        let digest = Digest::of_chunk(b"x");
        let frame = Frame::new(Codec::Raw, Domain::PUBLIC, digest, 100, &[7; 100]);
        let key = Key { domain: Domain::PUBLIC, digest };
        let file = MemFs::new().fs().open("/seg", OpenMode::create()).unwrap();
        file.write_all_at(frame.bytes(), 64).unwrap();
        let disk = Disk::new(0, 1, Duration::from_secs(2)).unwrap();
        disk.segments_mut().insert(3, Segment { file, bytes: 228 });
        disk.index.insert(&key, Spot::new(3, 64, 164));
        (disk, key)
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_does_not_answer_is_a_miss_and_then_given_up() {
        let (disk, key) = disk_with_a_frame();
        let engine = Engine::start(EngineOptions::kind(EngineKind::Portable)).unwrap();
        assert!(disk.read(&engine, &key, 100).await.is_some());
        let slot = disk.small.try_acquire().unwrap();
        for _ in 1..MAX_FAILED_READS {
            assert!(disk.read(&engine, &key, 100).await.is_none());
        }
        assert!(disk.contains(&key), "the frame is not to blame");
        assert_eq!(disk.state(), DiskState::Recovering);
        assert!(disk.read(&engine, &key, 100).await.is_none());
        assert!(matches!(disk.state(), DiskState::Off(why) if why.contains("no answer in 2s")));
        drop(slot);
        assert!(!disk.contains(&key));
        assert!(disk.read(&engine, &key, 100).await.is_none());
    }

    #[tokio::test]
    async fn a_frame_of_a_segment_that_has_gone_is_a_miss() {
        let (disk, key) = disk_with_a_frame();
        let engine = Engine::start(EngineOptions::kind(EngineKind::Portable)).unwrap();
        disk.segments_mut().clear();
        assert!(disk.read(&engine, &key, 100).await.is_none());
        assert_eq!(disk.index.frames(), 0);
    }
}
