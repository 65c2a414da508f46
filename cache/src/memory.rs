//! The memory tier: frames by key, within a byte budget.

use std::sync::Arc;

use image::Frame;

use crate::key::Key;
use crate::pins::Pins;
use crate::s3fifo::S3Fifo;
use crate::sharded::Sharded;

/// What a frame costs besides its bytes: its places in the map, the slots, the queues and among the
/// ghosts, and its allocation.
pub(crate) const OVERHEAD: u64 = 384;

/// A shard must be able to hold many of the largest frames, or it could hold no working set.
const SHARD_MIN: u64 = 64 << 20;
const SHARDS_MAX: u64 = 16;

/// Frames in memory, shared by all cores.
pub(crate) struct Memory {
    shards: Sharded<S3Fifo<Key, Frame>>,
    pins: Arc<Pins>,
}

impl Memory {
    /// Holds at most `budget` bytes, [`OVERHEAD`] included; up to a fourth of it may be taken by
    /// what is pinned and not asked for.
    pub(crate) fn new(budget: u64, pins: Arc<Pins>) -> Self {
        let count = 1 << (budget / SHARD_MIN).clamp(1, SHARDS_MAX).ilog2();
        Self { shards: Sharded::new(count, || S3Fifo::new(budget / count as u64)), pins }
    }

    /// A frame, without a copy of its bytes.
    pub(crate) fn get(&self, key: &Key) -> Option<Frame> {
        self.shards.of(&key.digest).get(key)
    }

    /// Whether a frame is there; asking does not count as a use.
    pub(crate) fn contains(&self, key: &Key) -> bool {
        self.shards.of(&key.digest).contains(key)
    }

    /// A frame, which does not count as a use.
    pub(crate) fn peek(&self, key: &Key) -> Option<Frame> {
        self.shards.of(&key.digest).peek(key)
    }

    /// Whether a frame is there and in use: then the disk should not lose it either, although it
    /// is never asked.
    pub(crate) fn in_use(&self, key: &Key) -> bool {
        self.shards.of(&key.digest).in_use(key)
    }

    /// Keeps a frame, whose bytes must be an allocation of their own: a slice of a larger one would
    /// hold all of it.
    pub(crate) fn insert(&self, key: Key, frame: Frame) {
        let bytes = frame.bytes().len() as u64 + OVERHEAD;
        let pinned = |key: &Key| self.pins.contains(key);
        self.shards.of(&key.digest).insert_beside(key, frame, bytes, pinned);
    }

    /// Keeps a copy of a frame that the disk has as well, if it is asked for again: what is asked
    /// for once need not be kept twice, nor push out anything.
    pub(crate) fn insert_if_recalled(&self, key: Key, frame: &Frame) {
        let bytes = frame.bytes().len() as u64 + OVERHEAD;
        if self.shards.of(&key.digest).recall(&key, bytes) {
            self.insert(key, frame.detached());
        }
    }

    /// Drops a frame; whether it was there.
    pub(crate) fn remove(&self, key: &Key) -> bool {
        self.shards.of(&key.digest).remove(key).is_some()
    }

    /// Drops all frames.
    pub(crate) fn clear(&self) {
        self.shards.each(|mut shard| shard.clear());
    }

    /// Bytes and frames held.
    pub(crate) fn size(&self) -> (u64, u64) {
        let (mut bytes, mut frames) = (0, 0);
        self.shards.each(|shard| {
            bytes += shard.bytes();
            frames += shard.len() as u64;
        });
        (bytes, frames)
    }
}
