//! What is in flight, after a crash between any two stores.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::inflight::{Cells, Track, ring_bytes};

const ENTRIES: u16 = 8;

/// Memory that outlives a process, which ends after so many stores.
struct Memory {
    bytes: RefCell<Vec<u8>>,
    /// The used index, which lies in the guest.
    used: Cell<u16>,
    stores: Cell<usize>,
}

impl Memory {
    fn new(used: u16) -> Self {
        let bytes = RefCell::new(vec![0; ring_bytes(ENTRIES)]);
        Self { bytes, used: Cell::new(used), stores: Cell::new(usize::MAX) }
    }

    /// Whether the process lives to make one more store.
    fn lives(&self) -> bool {
        let left = self.stores.get();
        self.stores.set(left.saturating_sub(1));
        left > 0
    }

    fn store(&self, at: usize, bytes: &[u8]) {
        assert!(at.is_multiple_of(bytes.len()));
        if self.lives() {
            self.bytes.borrow_mut()[at..at + bytes.len()].copy_from_slice(bytes);
        }
    }

    fn load<const N: usize>(&self, at: usize) -> [u8; N] {
        assert!(at.is_multiple_of(N));
        *self.bytes.borrow()[at..].first_chunk().unwrap()
    }
}

impl Cells for &Memory {
    fn load8(&self, at: usize) -> u8 {
        self.load::<1>(at)[0]
    }

    fn load16(&self, at: usize) -> u16 {
        u16::from_ne_bytes(self.load(at))
    }

    fn load64(&self, at: usize) -> u64 {
        u64::from_ne_bytes(self.load(at))
    }

    fn store8(&self, at: usize, value: u8) {
        self.store(at, &[value]);
    }

    fn store16(&self, at: usize, value: u16) {
        self.store(at, &value.to_ne_bytes());
    }

    fn store64(&self, at: usize, value: u64) {
        self.store(at, &value.to_ne_bytes());
    }
}

/// What a guest sees: which heads it has made available in which order, and which were answered.
#[derive(Default)]
struct Guest {
    available: Vec<u16>,
    answered: Vec<u16>,
}

/// Runs a process until it has made so many stores, or has no more steps. `next` of what is available
/// was taken before it; it takes and answers as `steps` say. Gives the guest's view of what was answered.
fn run(memory: &Memory, guest: &mut Guest, steps: &[(bool, u8)], stores: usize) {
    memory.stores.set(usize::MAX);
    let Ok((mut track, replay)) = Track::open(memory, ENTRIES, memory.used.get()) else {
        panic!("it was kept by ourselves")
    };
    // The invariant: what is in flight is what was taken and not answered, oldest first.
    let taken = guest.answered.len() + replay.len();
    let answered: BTreeSet<_> = guest.answered.iter().collect();
    let expected: Vec<u16> =
        guest.available[..taken].iter().filter(|head| !answered.contains(head)).copied().collect();
    assert_eq!(replay, expected);
    memory.stores.set(stores);
    let (mut under_way, mut next) = (replay, taken);
    for (take, which) in steps {
        if *take && next < guest.available.len() {
            let head = guest.available[next];
            next += 1;
            track.taken(head);
            under_way.push(head);
        } else if !under_way.is_empty() {
            let head = under_way.remove(usize::from(*which) % under_way.len());
            track.answering(head);
            if !memory.lives() {
                return;
            }
            memory.used.set(memory.used.get().wrapping_add(1));
            guest.answered.push(head);
            track.answered(head, memory.used.get());
        }
        if memory.stores.get() == 0 {
            return;
        }
    }
}

proptest! {
    /// However often it crashes, nothing that was taken is forgotten or answered twice. (Each head is used
    /// once here; `a_head_that_was_answered_may_be_used_again` has the rest.)
    #[test]
    fn what_is_in_flight_survives_a_crash_at_any_store(
        start in any::<u16>(),
        heads in Just((0..ENTRIES).collect::<Vec<_>>()).prop_shuffle(),
        lives in prop::collection::vec(
            (prop::collection::vec((any::<bool>(), any::<u8>()), 0..16), 0usize..40),
            1..6,
        ),
    ) {
        let memory = Memory::new(start);
        let mut guest = Guest { available: heads, ..Guest::default() };
        for (steps, stores) in &lives {
            run(&memory, &mut guest, steps, *stores);
        }
        // A last life, which takes everything and answers it.
        let all: Vec<_> = [(true, 0); 8].into_iter().chain([(false, 0); 8]).collect();
        run(&memory, &mut guest, &all, usize::MAX);
        let mut answered = guest.answered;
        answered.sort_unstable();
        prop_assert_eq!(answered, (0..ENTRIES).collect::<Vec<_>>());
    }
}

#[test]
fn every_store_of_a_short_life_may_be_the_last() {
    let steps = [(true, 0), (true, 0), (false, 1), (true, 0), (false, 0), (false, 0)];
    for stores in 0..40 {
        let memory = Memory::new(u16::MAX);
        let mut guest = Guest { available: vec![5, 0, 3], ..Guest::default() };
        run(&memory, &mut guest, &steps, stores);
        run(&memory, &mut guest, &steps, usize::MAX);
        guest.answered.sort_unstable();
        assert_eq!(guest.answered, [0, 3, 5], "{stores} stores");
    }
}

#[test]
fn a_head_that_was_answered_may_be_used_again() {
    let memory = Memory::new(0);
    let (mut track, _) = Track::open(&memory, ENTRIES, 0).unwrap();
    for used in 1..100u16 {
        track.taken(2);
        track.answering(2);
        track.answered(2, used);
    }
    track.taken(2);
    track.taken(1);
    assert_eq!(Track::open(&memory, ENTRIES, 99).unwrap().1, [2, 1]);
}

#[test]
fn what_another_version_or_length_kept_is_refused() {
    let memory = Memory::new(0);
    drop(Track::open(&memory, ENTRIES, 0).unwrap());
    assert_eq!(Track::open(&memory, 4, 0).err().unwrap().kind(), image::Kind::Invalid);
    memory.store(8, &2u16.to_ne_bytes());
    assert_eq!(Track::open(&memory, ENTRIES, 0).err().unwrap().kind(), image::Kind::Unsupported);
}

#[test]
fn the_layout_is_that_of_the_specification() {
    let memory = Memory::new(0);
    let (mut track, _) = Track::open(&memory, ENTRIES, 7).unwrap();
    track.taken(1);
    track.taken(2);
    track.answering(2);
    track.answered(2, 8);
    let bytes = memory.bytes.borrow();
    assert_eq!(bytes[..16], [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 8, 0, 2, 0, 8, 0]);
    assert_eq!(bytes[32..48], [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bytes[48..64], [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(ring_bytes(ENTRIES), 192);
}
