//! Which packs to rewrite, and which of them together: pure.

use image::{Domain, PackId};

/// Room that an entry of the footer takes up, in bytes, and the rest of a pack besides its frames; a
/// little more than it is.
const ENTRY: u64 = 128;
const FRAME_OF_PACK: u64 = 4096;
/// Small packs are merged when they make one that is not small, or when there are so many of them:
/// otherwise one more small pack each day would have all of them rewritten each day.
const MERGE_FROM: usize = 8;

/// What is to be rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compaction {
    /// Packs of which less than so many hundredths of the bytes are live are rewritten.
    pub min_live_percent: u8,
    /// Packs shorter than this, in bytes, are merged.
    pub small: u64,
    /// Bytes that one run writes at most; it may be one pack more.
    pub max_bytes: u64,
    /// Bytes per second that are read and written at most, together; as fast as it goes if unset.
    pub rate: Option<u64>,
}

impl Default for Compaction {
    fn default() -> Self {
        Self { min_live_percent: 50, small: 8 << 20, max_bytes: 64 << 30, rate: None }
    }
}

/// A pack, and what is live in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PackUse {
    pub(crate) id: PackId,
    pub(crate) domain: Domain,
    /// Its length in bytes.
    pub(crate) len: u64,
    /// Bytes of its live frames.
    pub(crate) live: u64,
    /// Number of its live frames.
    pub(crate) frames: u64,
}

impl PackUse {
    fn is_sparse(&self, options: &Compaction) -> bool {
        self.live * 100 < self.len * u64::from(options.min_live_percent)
    }

    /// Upper bound of the room for its live frames in another pack.
    fn room(&self) -> u64 {
        self.live + ENTRY * self.frames
    }
}

/// Packs whose live frames go into one new pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) domain: Domain,
    pub(crate) from: Vec<PackUse>,
}

impl Group {
    /// Upper bound of the new pack's length.
    pub(crate) fn room(&self) -> u64 {
        FRAME_OF_PACK + self.from.iter().map(PackUse::room).sum::<u64>()
    }

    /// Bytes of the packs that are rewritten.
    pub(crate) fn len(&self) -> u64 {
        self.from.iter().map(|p| p.len).sum()
    }

    fn is_worth_it(&self, options: &Compaction) -> bool {
        let merges =
            self.from.len() > 1 && (self.from.len() >= MERGE_FROM || self.room() >= options.small);
        merges || self.from.iter().any(|p| p.is_sparse(options))
    }
}

/// Chooses. Packs in which nothing is live are none of its business: they are garbage as they are.
/// No new pack is longer than `limit` bytes; what gives most room back for its bytes comes first.
pub(crate) fn plan(packs: Vec<PackUse>, options: &Compaction, limit: u64) -> Vec<Group> {
    let chosen = packs
        .into_iter()
        .filter(|p| p.frames > 0 && (p.is_sparse(options) || p.len < options.small));
    let mut chosen: Vec<PackUse> = chosen.filter(|p| FRAME_OF_PACK + p.room() <= limit).collect();
    chosen.sort_unstable_by_key(|p| (p.domain.0, p.live * 1000 / p.len.max(1), p.id));
    let mut groups: Vec<Group> = Vec::new();
    for pack in chosen {
        match groups.last_mut() {
            Some(g) if g.domain == pack.domain && g.room() + pack.room() <= limit => {
                g.from.push(pack);
            }
            _ => groups.push(Group { domain: pack.domain, from: vec![pack] }),
        }
    }
    groups.retain(|g| g.is_worth_it(options));
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn pack(n: u8, len: u64, live: u64) -> PackUse {
        let (id, domain) = (PackId([n; 16]), Domain::PUBLIC);
        PackUse { id, domain, len, live, frames: live.div_ceil(256 << 10) }
    }

    fn names(groups: &[Group]) -> Vec<Vec<u8>> {
        groups.iter().map(|g| g.from.iter().map(|p| p.id.0[0]).collect()).collect()
    }

    #[test]
    fn mostly_dead_packs_and_many_small_ones() {
        let options = Compaction::default();
        let chosen = |packs: Vec<PackUse>| names(&plan(packs, &options, 64 * MIB));
        let full = pack(1, 64 * MIB, 60 * MIB);
        let half = pack(2, 64 * MIB, 32 * MIB + 1);
        let sparse = pack(3, 64 * MIB, 31 * MIB);
        let dead = pack(4, 64 * MIB, 0);
        assert_eq!(chosen(vec![full, half, sparse, dead]), [[3]]);
        // One small pack, or two that stay small, are left for later.
        let small = |n| pack(n, 3 * MIB, 3 * MIB - 5000);
        assert_eq!(chosen(vec![small(5)]), [[0u8; 0]; 0]);
        assert_eq!(chosen(vec![small(5), small(6)]), [[0u8; 0]; 0]);
        assert_eq!(chosen(vec![small(5), small(6), small(7)]), [[5, 6, 7]]);
        let tiny: Vec<_> = (10..18).map(|n| pack(n, 10_000, 9_000)).collect();
        assert_eq!(chosen(tiny[..7].to_vec()), [[0u8; 0]; 0]);
        assert_eq!(chosen(tiny.clone()).len(), 1);
        // They fill up what a sparse one leaves.
        assert_eq!(chosen(vec![sparse, small(5)]), [[3, 5]]);
    }

    proptest! {
        #[test]
        fn no_group_is_too_long_and_no_pack_is_in_two(
            raw in proptest::collection::vec((1u64..64 << 20, 0u64..=100), 0..40),
        ) {
            let packs: Vec<PackUse> = (1..)
                .zip(&raw)
                .map(|(n, (len, percent))| pack(n, *len, len * percent / 100))
                .collect();
            let groups = plan(packs, &Compaction::default(), 64 * MIB);
            let mut seen: Vec<u8> = names(&groups).concat();
            let n = seen.len();
            seen.sort_unstable();
            seen.dedup();
            prop_assert_eq!(seen.len(), n);
            for group in &groups {
                prop_assert!(group.room() <= 64 * MIB);
                prop_assert!(group.from.iter().all(|p| p.frames > 0));
            }
        }
    }
}
