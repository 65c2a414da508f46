//! What stays in memory: S3-FIFO (Yang et al., SOSP 2023), counted in bytes.
//!
//! ```text
//!            not seen lately           used twice while there
//!  insert ──────────────────► small (10 %) ──────────────► main ──┐ used since: goes round again
//!     │                          │                         ▲  ▲   │
//!     │                          └─► ghosts (names only)   │  └───┘
//!     └── name is among the ghosts ────────────────────────┘     not used since: out
//! ```
//! A frame that is asked for once — one pull of a huge image — passes through the small queue and
//! is gone; it cannot push out what is asked for again and again. A hit only counts up: queues are
//! touched when something is inserted.

use std::collections::hash_map::RandomState;
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, Hash};

/// Uses are counted up to here.
const MAX_USES: u8 = 3;
/// Uses in the small queue that lead to the main one. One is not enough: nodes that boot together
/// ask for the same chunk at about the same time, and never again.
const PROMOTE_USES: u8 = 2;
/// The small queue's part of the budget is one over this.
const SMALL_PART: u64 = 10;
/// Values that are pinned are kept up to a part of the budget that is one over this.
const KEPT_PART: u64 = 4;
/// Fewer removed slots than this are not worth a sweep.
const SWEEP_MIN: usize = 64;

/// A bounded map that forgets what is used least: the policy of the memory tier, public so that it
/// can be measured beside others.
pub struct S3Fifo<K, V> {
    budget: u64,
    map: HashMap<K, u32>,
    slots: Vec<Slot<K, V>>,
    free: Vec<u32>,
    /// Slots that were removed and still stand in a queue.
    removed: usize,
    /// Bytes of slots that stay because they are pinned.
    kept_bytes: u64,
    small: Queue,
    main: Queue,
    ghosts: Ghosts,
}

/// Removal leaves the slot in its queue, empty; it is freed when its turn comes.
struct Slot<K, V> {
    entry: Option<(K, V)>,
    bytes: u64,
    uses: u8,
    in_main: bool,
    kept: bool,
}

#[derive(Default)]
struct Queue {
    order: VecDeque<u32>,
    bytes: u64,
}

impl<K: Copy + Eq + Hash, V: Clone> S3Fifo<K, V> {
    /// Holds at most `budget` bytes, by the sizes said at [`insert`](Self::insert).
    pub fn new(budget: u64) -> Self {
        Self {
            budget,
            map: HashMap::new(),
            slots: Vec::new(),
            free: Vec::new(),
            removed: 0,
            kept_bytes: 0,
            small: Queue::default(),
            main: Queue::default(),
            ghosts: Ghosts::new(budget - budget / SMALL_PART),
        }
    }

    /// A value, which counts as a use.
    pub fn get(&mut self, key: &K) -> Option<V> {
        let slot = &mut self.slots[*self.map.get(key)? as usize];
        slot.uses = (slot.uses + 1).min(MAX_USES);
        slot.entry.as_ref().map(|(_, value)| value.clone())
    }

    /// Whether a value is there, which does not count as a use.
    pub fn contains(&self, key: &K) -> bool {
        self.map.contains_key(key)
    }

    /// A value, which does not count as a use.
    pub(crate) fn peek(&self, key: &K) -> Option<V> {
        let slot = &self.slots[*self.map.get(key)? as usize];
        slot.entry.as_ref().map(|(_, value)| value.clone())
    }

    /// Whether a value is there and was asked for again since it came.
    pub(crate) fn in_use(&self, key: &K) -> bool {
        let Some(slot) = self.map.get(key).map(|slot| &self.slots[*slot as usize]) else {
            return false;
        };
        slot.in_main || slot.uses > 0
    }

    /// Puts a value of `bytes`, in place of an older one under this key. What is larger than the
    /// whole budget is not kept.
    pub fn insert(&mut self, key: K, value: V, bytes: u64) {
        self.insert_beside(key, value, bytes, |_| false);
    }

    /// As [`insert`](Self::insert), but what is pinned does not go for it, as long as that takes no
    /// more than a fourth of the budget.
    pub(crate) fn insert_beside(
        &mut self,
        key: K,
        value: V,
        bytes: u64,
        pinned: impl Fn(&K) -> bool,
    ) {
        let was = self.remove(&key);
        if bytes > self.budget {
            return;
        }
        let in_main = was.unwrap_or(false) || self.ghosts.take(&key);
        let slot = Slot { entry: Some((key, value)), bytes, uses: 0, in_main, kept: false };
        let index = self.place(slot);
        self.map.insert(key, index);
        self.push(index);
        while self.bytes() > self.budget {
            self.evict_one(&pinned);
        }
    }

    /// Notes that a value was asked for which is had elsewhere as well; whether it was asked for
    /// lately already, and so is worth its place.
    pub(crate) fn recall(&mut self, key: &K, bytes: u64) -> bool {
        let again = self.ghosts.contains(key);
        if !again {
            self.ghosts.put(key, bytes);
        }
        again
    }

    /// Takes a value out; whether it was there, and then in the main queue.
    pub(crate) fn remove(&mut self, key: &K) -> Option<bool> {
        let slot = &mut self.slots[self.map.remove(key)? as usize];
        slot.entry = None;
        let (bytes, in_main) = (std::mem::take(&mut slot.bytes), slot.in_main);
        if std::mem::take(&mut slot.kept) {
            self.kept_bytes -= bytes;
        }
        self.queue(in_main).bytes -= bytes;
        self.removed += 1;
        if self.removed > self.map.len() + SWEEP_MIN {
            self.sweep();
        }
        Some(in_main)
    }

    /// Takes everything out.
    pub(crate) fn clear(&mut self) {
        *self = Self::new(self.budget);
    }

    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        self.small.bytes + self.main.bytes
    }

    /// Values held.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Frees the slots that were removed: otherwise who only ever replaces would fill the queues.
    fn sweep(&mut self) {
        let Self { slots, free, small, main, .. } = self;
        for queue in [small, main] {
            queue.order.retain(|index| {
                let stays = slots[*index as usize].entry.is_some();
                if !stays {
                    free.push(*index);
                }
                stays
            });
        }
        self.removed = 0;
    }

    fn queue(&mut self, main: bool) -> &mut Queue {
        if main { &mut self.main } else { &mut self.small }
    }

    fn place(&mut self, slot: Slot<K, V>) -> u32 {
        if let Some(index) = self.free.pop() {
            self.slots[index as usize] = slot;
            return index;
        }
        self.slots.push(slot);
        u32::try_from(self.slots.len() - 1).expect("fewer than 2^32 values fit in memory")
    }

    /// Puts a slot at the young end of its queue.
    fn push(&mut self, index: u32) {
        let Slot { bytes, in_main, .. } = self.slots[index as usize];
        let queue = self.queue(in_main);
        queue.order.push_back(index);
        queue.bytes += bytes;
    }

    /// Whether a slot stays because it is pinned and there is room for such.
    fn keep(&mut self, index: u32, pinned: bool) -> bool {
        let slot = &mut self.slots[index as usize];
        if slot.kept && !pinned {
            slot.kept = false;
            self.kept_bytes -= slot.bytes;
        } else if !slot.kept && pinned && self.kept_bytes + slot.bytes <= self.budget / KEPT_PART {
            slot.kept = true;
            self.kept_bytes += slot.bytes;
        }
        slot.kept
    }

    /// Handles the oldest slot of the queue that is due: out, on, or round again. As uses are
    /// bounded and each round costs one, and most of the budget is not kept, repeating this ends
    /// with a value gone.
    fn evict_one(&mut self, pinned: impl Fn(&K) -> bool) {
        let small_due = self.small.bytes > self.budget / SMALL_PART;
        let from_main = !self.main.order.is_empty() && !small_due;
        let Some(index) = self.queue(from_main).order.pop_front() else { return };
        let slot = &mut self.slots[index as usize];
        let Some((key, _)) = slot.entry else {
            self.free.push(index);
            self.removed -= 1;
            return;
        };
        let (uses, bytes) = (slot.uses, slot.bytes);
        let used = if from_main { uses > 0 } else { uses >= PROMOTE_USES };
        if used || self.keep(index, pinned(&key)) {
            let slot = &mut self.slots[index as usize];
            slot.uses = if from_main { uses.saturating_sub(1) } else { 0 };
            slot.in_main = true;
            self.queue(from_main).bytes -= bytes;
            self.push(index);
            return;
        }
        self.slots[index as usize].entry = None;
        self.queue(from_main).bytes -= bytes;
        self.map.remove(&key);
        self.free.push(index);
        if !from_main {
            self.ghosts.put(&key, bytes);
        }
    }
}

/// Names of values that left the small queue: as many as would fill the main one.
struct Ghosts {
    budget: u64,
    bytes: u64,
    hasher: RandomState,
    order: VecDeque<(u64, u64)>,
    names: HashSet<u64>,
}

impl Ghosts {
    #[expect(clippy::disallowed_methods, reason = "who knew the seed could make names collide")]
    fn new(budget: u64) -> Self {
        let (order, names) = (VecDeque::new(), HashSet::new());
        Self { budget, bytes: 0, hasher: RandomState::new(), order, names }
    }

    fn put<K: Hash>(&mut self, key: &K, bytes: u64) {
        let name = self.hasher.hash_one(key);
        self.names.insert(name);
        self.order.push_back((name, bytes));
        self.bytes += bytes;
        while self.bytes > self.budget {
            let Some((name, bytes)) = self.order.pop_front() else { break };
            self.names.remove(&name);
            self.bytes -= bytes;
        }
    }

    fn contains<K: Hash>(&self, key: &K) -> bool {
        self.names.contains(&self.hasher.hash_one(key))
    }

    fn take<K: Hash>(&mut self, key: &K) -> bool {
        self.names.remove(&self.hasher.hash_one(key))
    }
}

#[cfg(test)]
#[path = "s3fifo_tests.rs"]
mod tests;
