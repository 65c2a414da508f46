//! What a pass remembers for the next: what has failed where, and whose turn it is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use image::Digest;

use super::demands::Demands;

/// Seconds for which a node is not told to build for a pool after it has failed to, doubled each time.
const SHUNNED: u64 = 10;
const SHUNNED_MOST: u64 = 600;

/// What has failed on a node, one time after the other.
#[derive(Default)]
pub(super) struct Failures {
    times: u32,
    /// It is not told again before, in seconds since 1970.
    until: u64,
    /// Of the last one.
    pub(super) why: String,
}

impl Failures {
    /// It has failed once more: the pause is doubled.
    pub(super) fn again(&mut self, now: u64, why: String) {
        self.until = now + (SHUNNED << self.times.min(10)).min(SHUNNED_MOST);
        self.times += 1;
        self.why = why;
    }

    /// Whether it is not told again yet.
    pub(super) fn shuns(&self, now: u64) -> bool {
        now < self.until
    }

    /// Whether the next pause depends on it still.
    pub(super) fn is_of_use(&self, now: u64) -> bool {
        now < self.until + SHUNNED_MOST
    }
}

/// What a pass remembers for the next.
pub(super) struct Memory {
    /// When operations that are long over are forgotten next, in seconds since 1970.
    pub(super) forget: u64,
    pub(super) filling: BTreeSet<String>,
    /// The pool that is planned for first.
    pub(super) turn: usize,
    /// How long the last pass took, from when it was its turn.
    pub(super) took: Duration,
    pub(super) demands: Demands,
    /// By pool and node.
    pub(super) failed: BTreeMap<(String, String), Failures>,
    /// By image and node.
    pub(super) unheld: BTreeMap<(Digest, String), Failures>,
    /// There are nodes that hold images, or may be.
    pub(super) holds: bool,
}

impl Default for Memory {
    fn default() -> Self {
        let (filling, demands, failed, unheld) = Default::default();
        // Of what was told before one begins nothing is known.
        Self {
            forget: 0,
            filling,
            turn: 0,
            took: Duration::ZERO,
            demands,
            failed,
            unheld,
            holds: true,
        }
    }
}

impl Memory {
    /// By node the pools that it is not to build for now.
    pub(super) fn shunned(&self, now: u64) -> BTreeMap<&str, Vec<&str>> {
        let mut shunned: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for ((pool, node), _) in self.failed.iter().filter(|(_, failed)| failed.shuns(now)) {
            shunned.entry(node).or_default().push(pool);
        }
        shunned
    }
}
