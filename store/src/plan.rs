//! Which ranges to read for which chunks: pure.

use std::ops::Range;

use image::{PackId, Spot};

/// Bytes between two frames that are read along rather than asked for apart: about what a request costs.
/// Fifty nodes at once have a section fetched in interleaved parts; with 64 KiB the store then sent 1.4 % more
/// than one copy of the image, with 16 KiB 0.4 to 1.1 % (`compare fleet`).
const MAX_GAP: u32 = 4 << 10;
/// Longest read, unless one frame alone is longer.
const MAX_READ: u32 = 4 << 20;

/// A chunk that is wanted, and where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Want {
    pub(crate) chunk: u32,
    pub(crate) spot: Spot,
}

/// One range read of a pack, and the chunks that it gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Read {
    pub(crate) pack: PackId,
    pub(crate) range: Range<u32>,
    pub(crate) wants: Vec<Want>,
}

impl Read {
    /// Length of the read in bytes.
    pub(crate) fn len(&self) -> u32 {
        self.range.end - self.range.start
    }
}

/// Covers every wanted chunk with one read; the reads come in the order of their first chunks.
/// Offsets and lengths were checked when the spots were parsed, so their sums fit.
pub(crate) fn coalesce(mut wants: Vec<Want>) -> Vec<Read> {
    wants.sort_unstable_by_key(|w| (w.spot.pack, w.spot.offset, w.chunk));
    let mut reads: Vec<Read> = Vec::new();
    for want in wants {
        let Spot { pack, offset, frame_len, .. } = want.spot;
        let end = offset + frame_len;
        match reads.last_mut() {
            Some(read) if read.pack == pack && joins(&read.range, offset, end) => {
                read.range.end = read.range.end.max(end);
                read.wants.push(want);
            }
            _ => reads.push(Read { pack, range: offset..end, wants: vec![want] }),
        }
    }
    reads.sort_by_key(|r| r.wants.iter().map(|w| w.chunk).min());
    reads
}

/// Whether a frame at `offset..end`, which starts no earlier than `range`, is read along.
fn joins(range: &Range<u32>, offset: u32, end: u32) -> bool {
    let within = end <= range.end;
    within || (offset <= range.end.saturating_add(MAX_GAP) && end - range.start <= MAX_READ)
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Digest;
    use proptest::prelude::*;

    fn want(chunk: u32, pack: u8, offset: u32, frame_len: u32) -> Want {
        let stored = Digest::of_stored(&chunk.to_le_bytes());
        Want { chunk, spot: Spot { pack: PackId([pack; 16]), offset, frame_len, stored } }
    }

    #[test]
    fn neighbours_are_read_together_and_strangers_apart() {
        let ranges = |a, b| -> Vec<(u32, u32)> {
            let reads = coalesce(vec![a, b]);
            reads.into_iter().map(|r| (r.range.start, r.range.end)).collect()
        };
        let first = want(0, 1, 16, 100);
        assert_eq!(ranges(first, want(1, 1, 116, 100)), [(16, 216)]);
        assert_eq!(ranges(first, want(1, 2, 116, 100)), [(16, 116), (116, 216)]);
        let far = 116 + MAX_GAP + 1;
        assert_eq!(ranges(first, want(1, 1, far - 1, 9)), [(16, far + 8)]);
        assert_eq!(ranges(first, want(1, 1, far, 9)), [(16, 116), (far, far + 9)]);
    }

    proptest! {
        #[test]
        fn every_want_is_covered_once_and_reads_keep_their_limits(
            raw in proptest::collection::vec((0u8..3, 0u32..60 << 20, 65u32..4 << 20), 0..60),
        ) {
            let wants: Vec<Want> = (0..).zip(&raw).map(|(i, (p, o, l))| want(i, *p, *o, *l)).collect();
            let reads = coalesce(wants.clone());
            let mut seen: Vec<Want> = reads.iter().flat_map(|r| r.wants.clone()).collect();
            seen.sort_by_key(|w| w.chunk);
            prop_assert_eq!(seen, wants);
            for read in &reads {
                prop_assert!(read.wants.len() == 1 || read.len() <= MAX_READ);
                let mut covered = read.range.start;
                let mut spots: Vec<Spot> = read.wants.iter().map(|w| w.spot).collect();
                spots.sort_by_key(|s| s.offset);
                for spot in spots {
                    prop_assert_eq!(spot.pack, read.pack);
                    prop_assert!(spot.offset >= read.range.start);
                    prop_assert!(spot.offset <= covered.saturating_add(MAX_GAP), "a gap too wide");
                    prop_assert!(spot.offset + spot.frame_len <= read.range.end);
                    covered = covered.max(spot.offset + spot.frame_len);
                }
                prop_assert_eq!(covered, read.range.end, "reads no more than it must");
            }
            let first = |r: &Read| r.wants.iter().map(|w| w.chunk).min();
            prop_assert!(reads.is_sorted_by_key(first));
        }
    }
}
