//! A set of chunks of one section.

use bytes::BufMut;

use crate::error::FormatError;
use crate::geometry::{CHUNK_LOG2, SECTION_LEN};
use crate::reader::Reader;

/// Most chunks that a section can have: 64 MiB of 16 KiB chunks.
pub const MAX_CHUNKS: u32 = (SECTION_LEN >> *CHUNK_LOG2.start()) as u32;

/// Which chunks of a section are meant: a bitmap over the section's chunk numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkSet {
    len: u32,
    words: Vec<u64>,
}

impl ChunkSet {
    /// The empty set over chunks `0..len`; `len` is at most [`MAX_CHUNKS`].
    pub fn empty(len: u32) -> Self {
        assert!(len <= MAX_CHUNKS, "a section has at most {MAX_CHUNKS} chunks, not {len}");
        Self { len, words: vec![0; len.div_ceil(64) as usize] }
    }

    /// The set of the chunks `0..len` for which `f` holds.
    pub fn of(len: u32, f: impl Fn(u32) -> bool) -> Self {
        let mut set = Self::empty(len);
        (0..len).filter(|c| f(*c)).for_each(|c| set.insert(c));
        set
    }

    /// The number of chunks that could be in the set.
    pub fn universe(&self) -> u32 {
        self.len
    }

    /// Adds a chunk, which must be inside the universe.
    pub fn insert(&mut self, chunk: u32) {
        assert!(chunk < self.len, "chunk {chunk} of {}", self.len);
        self.words[chunk as usize / 64] |= 1 << (chunk % 64);
    }

    /// Takes a chunk out; whether it was in.
    pub fn remove(&mut self, chunk: u32) -> bool {
        let was = self.contains(chunk);
        if was {
            self.words[chunk as usize / 64] &= !(1 << (chunk % 64));
        }
        was
    }

    /// Whether a chunk is in the set.
    pub fn contains(&self, chunk: u32) -> bool {
        chunk < self.len && self.words[chunk as usize / 64] >> (chunk % 64) & 1 == 1
    }

    /// How many chunks are in the set.
    pub fn count(&self) -> u32 {
        self.words.iter().map(|w| w.count_ones()).sum()
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|w| *w == 0)
    }

    /// The chunks in rising order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.len).filter(|c| self.contains(*c))
    }

    /// Appends the wire form: `len` u32, then `ceil(len / 8)` bytes, chunk 0 in the lowest bit.
    pub fn write(&self, out: &mut impl BufMut) {
        out.put_u32_le(self.len);
        let bytes = self.words.iter().flat_map(|w| w.to_le_bytes());
        bytes.take(self.len.div_ceil(8) as usize).for_each(|b| out.put_u8(b));
    }

    /// Reads the wire form. Bits past the end must be zero.
    pub fn read(r: &mut Reader<'_>) -> Result<Self, FormatError> {
        let len = r.u32()?;
        if len > MAX_CHUNKS {
            return Err(r.field("number of chunks", u64::from(len)));
        }
        let mut set = Self::empty(len);
        for (i, byte) in r.take(len.div_ceil(8) as usize)?.iter().enumerate() {
            set.words[i / 8] |= u64::from(*byte) << (8 * (i % 8));
        }
        let past_end = set.words.last().filter(|_| len % 64 != 0).map_or(0, |w| w >> (len % 64));
        if past_end != 0 {
            return Err(r.field("bits past the last chunk", past_end));
        }
        Ok(set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn behaves_like_a_set(len in 1u32..400, picks in proptest::collection::vec(any::<u32>(), 0..100)) {
            let picks: BTreeSet<u32> = picks.into_iter().map(|p| p % len).collect();
            let mut set = ChunkSet::of(len, |c| picks.contains(&c));
            prop_assert_eq!(set.iter().collect::<BTreeSet<_>>(), picks.clone());
            prop_assert_eq!(set.count() as usize, picks.len());
            let mut bytes = Vec::new();
            set.write(&mut bytes);
            let mut r = Reader::new("set", &bytes);
            prop_assert_eq!(&ChunkSet::read(&mut r).unwrap(), &set);
            r.end().unwrap();
            for p in &picks { prop_assert!(set.remove(*p)); prop_assert!(!set.remove(*p)); }
            prop_assert!(set.is_empty());
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let mut r = Reader::new("set", &bytes);
            if let Ok(set) = ChunkSet::read(&mut r) {
                let mut again = Vec::new();
                set.write(&mut again);
                prop_assert_eq!(&again[..], &bytes[..again.len()]);
            }
        }
    }
}
