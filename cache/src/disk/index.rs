//! Where on disk a frame lies: the one part of the disk tier that grows with it in memory.
//!
//! An entry is 24 bytes: 12 bytes of the digest and a 12-byte [`Spot`]. A hash map has between
//! 1 and 16/7 places per entry, each with one more byte, so a frame costs at most 58 bytes. Chunks
//! whose digests agree in those 96 bits push each other out; a frame is checked against the whole
//! digest when it is read, so the worst that comes of it is a miss.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::key::Key;
use crate::sharded::Sharded;

const SHARDS: usize = 64;
const USES_SHIFT: u32 = 30;
const MAX_USES: u32 = 3;

/// The part of a key that the index keeps.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Tag([u32; 3]);

impl Tag {
    pub(crate) fn of(key: &Key) -> Self {
        let word = |i: usize| {
            let d = &key.digest.0[4 * i..];
            u32::from_le_bytes([d[0], d[1], d[2], d[3]])
        };
        Self([word(0) ^ key.domain.0, word(1), word(2)])
    }
}

/// A place in a segment, and how often it was read since it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spot {
    pub(crate) segment: u32,
    pub(crate) offset: u32,
    /// Length in the low bits (a frame has at most 2^22 + 64 bytes), uses in the top two.
    len_and_uses: u32,
}

impl Spot {
    pub(crate) fn new(segment: u32, offset: u32, len: u32) -> Self {
        assert!(len < 1 << USES_SHIFT, "no frame is {len} bytes long");
        Self { segment, offset, len_and_uses: len }
    }

    /// Length of the frame in bytes.
    pub(crate) fn len(&self) -> u32 {
        self.len_and_uses & ((1 << USES_SHIFT) - 1)
    }

    /// Where the frame begins and ends in its segment.
    pub(crate) fn range(&self) -> Range<u64> {
        self.offset.into()..u64::from(self.offset) + u64::from(self.len())
    }

    /// How often the frame was read since it was written here, up to 3.
    pub(crate) fn uses(&self) -> u32 {
        self.len_and_uses >> USES_SHIFT
    }

    /// Whether both are the same place.
    pub(crate) fn same_place(&self, other: &Spot) -> bool {
        (self.segment, self.offset) == (other.segment, other.offset)
    }

    fn used(&mut self) {
        let uses = (self.uses() + 1).min(MAX_USES);
        self.len_and_uses = self.len() | uses << USES_SHIFT;
    }
}

/// Keys to spots, shared by all cores.
pub(crate) struct Index {
    shards: Sharded<HashMap<Tag, Spot>>,
    frames: AtomicU64,
}

impl Index {
    pub(crate) fn new() -> Self {
        Self { shards: Sharded::new(SHARDS, HashMap::new), frames: AtomicU64::new(0) }
    }

    /// Where a frame lies, which counts as a use of it.
    pub(crate) fn find(&self, key: &Key) -> Option<Spot> {
        let mut shard = self.shards.of(&key.digest);
        let spot = shard.get_mut(&Tag::of(key))?;
        spot.used();
        Some(*spot)
    }

    /// Where a frame lies.
    pub(crate) fn peek(&self, key: &Key) -> Option<Spot> {
        self.shards.of(&key.digest).get(&Tag::of(key)).copied()
    }

    /// Whether a frame is said to lie there.
    pub(crate) fn is_at(&self, key: &Key, spot: &Spot) -> bool {
        self.peek(key).is_some_and(|found| found.same_place(spot))
    }

    /// Says where a frame lies now.
    pub(crate) fn insert(&self, key: &Key, spot: Spot) {
        let was = self.shards.of(&key.digest).insert(Tag::of(key), spot);
        self.frames.fetch_add(u64::from(was.is_none()), Ordering::Relaxed);
    }

    /// Says where a frame lies, unless that is known: recovery goes from the newest to the oldest.
    pub(crate) fn insert_older(&self, key: &Key, spot: Spot) {
        let mut shard = self.shards.of(&key.digest);
        if let Entry::Vacant(place) = shard.entry(Tag::of(key)) {
            place.insert(spot);
            self.frames.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Forgets a frame if it is still said to lie there.
    pub(crate) fn remove(&self, key: &Key, spot: &Spot) {
        let mut shard = self.shards.of(&key.digest);
        let tag = Tag::of(key);
        if shard.get(&tag).is_some_and(|found| found.same_place(spot)) {
            shard.remove(&tag);
            self.frames.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Forgets every frame of a segment whose footer cannot be read.
    pub(crate) fn forget_segment(&self, segment: u32) {
        self.shards.each(|mut shard| {
            let before = shard.len();
            shard.retain(|_, spot| spot.segment != segment);
            let gone = before - shard.len();
            self.frames.fetch_sub(gone as u64, Ordering::Relaxed);
        });
    }

    /// Forgets everything.
    pub(crate) fn clear(&self) {
        self.shards.each(|mut shard| {
            self.frames.fetch_sub(shard.len() as u64, Ordering::Relaxed);
            *shard = HashMap::new();
        });
    }

    /// Memory that it takes, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        let mut bytes = 0;
        self.shards.each(|shard| {
            // A map is at most 7/8 full, and has a power of two of places, each with one more byte.
            let places = (shard.capacity() * 8 / 7).next_power_of_two();
            bytes += (places * (size_of::<(Tag, Spot)>() + 1)) as u64;
        });
        bytes
    }

    /// Frames known.
    pub(crate) fn frames(&self) -> u64 {
        self.frames.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{Digest, Domain};

    fn key(n: u8) -> Key {
        Key { domain: Domain::PUBLIC, digest: Digest::of_chunk(&[n]) }
    }

    #[test]
    fn a_frame_costs_less_than_64_bytes() {
        let place = size_of::<(Tag, Spot)>() + 1;
        assert!(place * 16 / 7 <= 64, "{place} bytes per place");
    }

    #[test]
    fn uses_count_up_and_leave_the_length_alone() {
        let index = Index::new();
        let len = image::frame::MAX_FRAME as u32;
        index.insert(&key(1), Spot::new(7, u32::MAX, len));
        for expected in [1, 2, 3, 3] {
            let spot = index.find(&key(1)).unwrap();
            assert_eq!((spot.uses(), spot.len(), spot.offset), (expected, len, u32::MAX));
        }
        assert_eq!(index.peek(&key(1)).unwrap().uses(), 3);
    }

    #[test]
    fn only_the_place_that_is_meant_is_forgotten() {
        let index = Index::new();
        let (old, new) = (Spot::new(1, 64, 100), Spot::new(2, 64, 100));
        index.insert(&key(1), old);
        index.insert(&key(1), new);
        index.remove(&key(1), &old);
        assert_eq!(index.peek(&key(1)), Some(new));
        index.insert_older(&key(1), old);
        assert_eq!(index.peek(&key(1)), Some(new));
        index.insert_older(&key(2), old);
        assert_eq!(index.frames(), 2);
        index.forget_segment(1);
        assert_eq!((index.peek(&key(2)), index.frames()), (None, 1));
        index.clear();
        assert_eq!(index.frames(), 0);
    }

    #[test]
    fn domains_are_kept_apart() {
        let index = Index::new();
        let other = Key { domain: Domain(1), ..key(1) };
        index.insert(&key(1), Spot::new(1, 64, 100));
        assert_eq!(index.peek(&other), None);
    }
}
