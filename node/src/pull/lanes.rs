//! The order in which sections are pulled: those that come by different ways side by side.
//!
//! Nodes that pull the same image at the same time would otherwise all be at the cache of one section,
//! and then all at that of the next, while the others have nothing to do. And a cache that is slow would
//! in the end hold every request that a pull may have in flight.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Lanes at most: more caches share them. Each has requests of its own in flight.
const LANES: usize = 4;

/// The sections of one pull, each handed out once, whichever core asks.
pub(super) struct Lanes(Vec<Lane>);

impl Lanes {
    /// Of `sections`, in the order in which they come, apart by their ways.
    pub(super) fn new(sections: impl Iterator<Item = u32>, way: impl Fn(u32) -> usize) -> Self {
        let mut ways: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
        for section in sections {
            ways.entry(way(section)).or_default().push(section);
        }
        let mut lanes: Vec<Vec<u32>> = Vec::new();
        for (number, sections) in ways.into_values().enumerate() {
            match lanes.get_mut(number % LANES) {
                Some(lane) => lane.extend(sections),
                None => lanes.push(sections),
            }
        }
        lanes.iter_mut().for_each(|lane| lane.sort_unstable());
        Self(
            lanes
                .into_iter()
                .map(|sections| Lane { sections, next: AtomicUsize::new(0) })
                .collect(),
        )
    }

    /// Each lane; one at least, unless there is nothing to do.
    pub(super) fn all(&self) -> &[Lane] {
        &self.0
    }
}

/// Sections that come one after the other.
pub(super) struct Lane {
    sections: Vec<u32>,
    next: AtomicUsize,
}

impl Lane {
    /// The next section that nobody has taken.
    pub(super) fn next(&self) -> Option<u32> {
        self.sections.get(self.next.fetch_add(1, Ordering::Relaxed)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_section_comes_once_in_the_order_of_its_way() {
        for ways in 1..10 {
            let lanes = Lanes::new(0..50, |section| section as usize % ways);
            assert_eq!(lanes.all().len(), ways.min(LANES));
            let mut all = Vec::new();
            for lane in lanes.all() {
                let sections: Vec<u32> = std::iter::from_fn(|| lane.next()).collect();
                assert!(sections.is_sorted());
                all.extend(sections);
            }
            all.sort_unstable();
            assert_eq!(all, (0..50).collect::<Vec<_>>());
        }
        assert!(Lanes::new(0..0, |_| 0).all().is_empty());
    }
}
