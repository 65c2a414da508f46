//! Which cache a section belongs to: weighted rendezvous hashing.
//!
//! Every member has a score for every key; the highest owns it. When a member leaves only its keys move,
//! and they spread over all others; when one joins it takes its share from everybody. Nobody keeps a
//! table, so nodes and caches that know the same members agree.
//!
//! The key is (lineage root, section number) and not the image: a new version of an image lands where
//! the old one is, and finds the chunks that they share.
//!
//! Method: Thaler, Ravishankar, "Using name-based mappings to increase hit rates" (1998); weights by
//! -w / ln(u), as in Schindelhauer, Schomaker, "Weighted distributed hash tables" (2005).

use image::Digest;

/// A member that can own sections.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate<'a> {
    /// Its name in the grid.
    pub name: &'a str,
    /// Its share, relative to the others'; nothing at or below 0.
    pub weight: f64,
}

/// The candidates' numbers, from the owner of a section down to the last to ask for it.
pub fn order(candidates: &[Candidate<'_>], root: &Digest, section: u32) -> Vec<usize> {
    let scores: Vec<f64> = candidates.iter().map(|c| score(c, root, section)).collect();
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    // Equal scores are those of one name, or of no weight: then the name decides.
    order.sort_by(|a, b| {
        scores[*b].total_cmp(&scores[*a]).then(candidates[*a].name.cmp(candidates[*b].name))
    });
    order
}

fn score(candidate: &Candidate<'_>, root: &Digest, section: u32) -> f64 {
    if candidate.weight <= 0.0 || candidate.weight.is_nan() {
        return f64::NEG_INFINITY;
    }
    let mut key = root.0.to_vec();
    key.extend(section.to_le_bytes());
    key.extend(candidate.name.as_bytes());
    let hash = Digest::of_stored(&key).0;
    let [a, b, c, d, e, f, g, h, ..] = hash;
    // 53 bits, and half a step: never 0, never 1.
    let bits = u64::from_le_bytes([a, b, c, d, e, f, g, h]) >> 11;
    let uniform = (bits as f64 + 0.5) / (1u64 << 53) as f64;
    -candidate.weight / uniform.ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEYS: u32 = 4000;

    fn owners(members: &[(&str, f64)]) -> Vec<String> {
        let candidates: Vec<_> =
            members.iter().map(|(name, weight)| Candidate { name, weight: *weight }).collect();
        let root = Digest::of_chunk(b"root");
        let owner = |key| candidates[order(&candidates, &root, key)[0]].name.to_owned();
        (0..KEYS).map(owner).collect()
    }

    fn share(owners: &[String], name: &str) -> f64 {
        owners.iter().filter(|o| *o == name).count() as f64 / owners.len() as f64
    }

    #[test]
    fn golden_order() {
        let names = ["a", "b", "c", "d"];
        let all = names.map(|name| Candidate { name, weight: 1.0 });
        let root = Digest::of_chunk(b"root");
        let found: Vec<_> = (0..4).map(|section| order(&all, &root, section)).collect();
        // Another order would send every node of a grid that is being upgraded to other caches.
        assert_eq!(found, GOLDEN);
    }

    const GOLDEN: [[usize; 4]; 4] = [[0, 2, 1, 3], [3, 1, 0, 2], [3, 2, 0, 1], [1, 0, 3, 2]];

    #[test]
    fn shares_follow_the_weights() {
        let owners = owners(&[("a", 1.0), ("b", 1.0), ("c", 2.0), ("none", 0.0)]);
        assert!((share(&owners, "a") - 0.25).abs() < 0.03);
        assert!((share(&owners, "c") - 0.50).abs() < 0.03);
        assert_eq!(share(&owners, "none"), 0.0);
    }

    #[test]
    fn who_leaves_moves_only_its_own_and_to_everybody() {
        let before = owners(&[("a", 1.0), ("b", 1.0), ("c", 1.0), ("d", 1.0)]);
        let after = owners(&[("a", 1.0), ("b", 1.0), ("d", 1.0)]);
        let moved: Vec<_> = before.iter().zip(&after).filter(|(x, y)| x != y).collect();
        assert!(moved.iter().all(|(was, _)| *was == "c"));
        for name in ["a", "b", "d"] {
            let got = moved.iter().filter(|(_, to)| *to == name).count() as f64;
            assert!((got / moved.len() as f64 - 1.0 / 3.0).abs() < 0.06, "{name}");
        }
    }

    proptest! {
        #[test]
        fn the_order_is_of_names_and_not_of_places(section: u32, seed: u64) {
            let names = ["x", "cache-1", "cache-2", "up", "z.rack7"];
            let mut shuffled = names;
            shuffled.rotate_left((seed % 5) as usize);
            let ranked = |names: [&str; 5]| {
                let all = names.map(|name| Candidate { name, weight: 1.0 });
                let order = order(&all, &Digest::of_chunk(b"r"), section);
                order.into_iter().map(|i| names[i].to_owned()).collect::<Vec<_>>()
            };
            prop_assert_eq!(ranked(names), ranked(shuffled));
        }
    }
}
