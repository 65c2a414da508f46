use super::*;
use proptest::prelude::*;

/// What S3-FIFO is measured against.
struct Lru {
    budget: u64,
    bytes: u64,
    order: VecDeque<(u64, u64)>,
}

impl Lru {
    fn ask(&mut self, key: u64, bytes: u64) -> bool {
        let at = self.order.iter().position(|(k, _)| *k == key);
        match at {
            Some(at) => drop(self.order.remove(at)),
            None => self.bytes += bytes,
        }
        self.order.push_back((key, bytes));
        while self.bytes > self.budget {
            self.bytes -= self.order.pop_front().expect("bytes are held").1;
        }
        at.is_some()
    }
}

fn ask(cache: &mut S3Fifo<u64, ()>, key: u64, bytes: u64) -> bool {
    let hit = cache.get(&key).is_some();
    if !hit {
        cache.insert(key, (), bytes);
    }
    hit
}

/// Numbers that look random and are the same every time.
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }

    /// Small numbers often, large ones seldom, up to 2^10.
    fn skewed(&mut self) -> u64 {
        let magnitude = self.below(10);
        (1 << magnitude) + self.below(1 << magnitude)
    }
}

/// The hits of LRU and of S3-FIFO on the same trace, with room for 100 of its values.
fn hits(trace: impl IntoIterator<Item = u64>) -> (u64, u64) {
    let mut lru = Lru { budget: 1000, bytes: 0, order: VecDeque::new() };
    let mut s3 = S3Fifo::new(1000);
    trace.into_iter().fold((0, 0), |(a, b), key| {
        (a + u64::from(lru.ask(key, 10)), b + u64::from(ask(&mut s3, key, 10)))
    })
}

#[test]
fn a_scan_does_not_push_out_what_is_in_use() {
    let mut cache = S3Fifo::new(1000);
    // Three boots of the same image.
    for _ in 0..3 {
        (0..60).for_each(|key| _ = ask(&mut cache, key, 10));
    }
    (1000..100_000).for_each(|key| _ = ask(&mut cache, key, 10));
    let left = (0..60).filter(|key| cache.contains(key)).count();
    assert!(left >= 55, "{left} of 60 are left after a scan of a thousand times the budget");
}

#[test]
fn hits_at_least_as_often_as_lru_where_scans_come_between() {
    let mut chance = Chance(1);
    let mut scan = 1 << 20;
    let trace = (0..200_000).map(|i| {
        if i % 1000 < 300 {
            scan += 1;
            return scan;
        }
        chance.skewed()
    });
    let (lru, s3) = hits(trace);
    assert!(s3 * 100 >= lru * 115, "LRU {lru}, S3-FIFO {s3}");
}

#[test]
fn hits_at_least_as_often_as_lru_without_scans() {
    let mut chance = Chance(2);
    let (lru, s3) = hits((0..200_000).map(|_| chance.skewed()));
    assert!(s3 >= lru, "LRU {lru}, S3-FIFO {s3}");
}

#[test]
fn what_comes_back_soon_is_kept_longer() {
    let mut cache = S3Fifo::new(1000);
    (0..110).for_each(|key| cache.insert(key, (), 10));
    assert!(!cache.contains(&0));
    cache.insert(0, (), 10);
    // Gone from the small queue lately, so straight to the main one: a scan passes it by.
    (1000..1500).for_each(|key| cache.insert(key, (), 10));
    assert!(cache.contains(&0));
    assert!(!cache.contains(&1000));
}

#[test]
fn what_is_had_elsewhere_as_well_is_kept_when_it_is_recalled() {
    let mut cache = S3Fifo::new(100);
    assert!(!cache.recall(&1, 10));
    assert!(cache.recall(&1, 10));
    cache.insert(1, (), 10);
    // It was asked for twice: the small queue is not for it.
    (100..120).for_each(|key| _ = ask(&mut cache, key, 10));
    assert!(cache.contains(&1));
    // What was asked for long ago is like new.
    (200..220).for_each(|key| assert!(!cache.recall(&key, 10)));
    assert!(!cache.recall(&200, 10));
}

#[test]
fn in_use_means_asked_for_again() {
    let mut cache = S3Fifo::new(1000);
    cache.insert(1, 'a', 10);
    assert!(!cache.in_use(&1));
    assert!(cache.contains(&1) && !cache.in_use(&1));
    assert_eq!(cache.get(&1), Some('a'));
    assert!(cache.in_use(&1));
    cache.get(&1);
    // On its way through the queues uses are counted off; that it was promoted still says enough.
    (1000..1200).for_each(|key| cache.insert(key, 'x', 10));
    assert!(cache.in_use(&1));
    assert!(!cache.in_use(&1199) && !cache.in_use(&1000));
}

#[test]
fn replacing_for_ever_does_not_grow() {
    let mut cache = S3Fifo::new(1000);
    for i in 0..100_000 {
        cache.insert(i % 5, i, 10);
    }
    assert!(cache.slots.len() < 200, "{} slots for 5 values", cache.slots.len());
    assert_eq!((cache.len(), cache.bytes()), (5, 50));
}

#[derive(Clone, Debug)]
enum Op {
    Insert(u8, u64),
    Get(u8),
    Remove(u8),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (any::<u8>(), 0u64..400).prop_map(|(key, bytes)| Op::Insert(key, bytes)),
        3 => any::<u8>().prop_map(Op::Get),
        1 => any::<u8>().prop_map(Op::Remove),
    ]
}

proptest! {
    #[test]
    fn holds_what_was_put_last_within_its_budget(
        budget in 0u64..2000,
        ops in proptest::collection::vec(op(), 0..150),
    ) {
        let mut cache = S3Fifo::new(budget);
        let mut last = HashMap::new();
        for (i, op) in ops.into_iter().enumerate() {
            match op {
                Op::Insert(key, bytes) => {
                    cache.insert(key, i, bytes);
                    last.insert(key, (i, bytes));
                    prop_assert!(bytes <= budget || !cache.contains(&key));
                }
                Op::Get(key) => {
                    let got = cache.get(&key);
                    prop_assert!(got.is_none() || got == last.get(&key).map(|(i, _)| *i));
                    prop_assert_eq!(got.is_some(), cache.in_use(&key));
                }
                Op::Remove(key) => {
                    let was = cache.contains(&key);
                    prop_assert_eq!(cache.remove(&key).is_some(), was);
                    prop_assert!(!cache.contains(&key));
                    last.remove(&key);
                }
            }
            let held: Vec<_> = last.iter().filter(|(key, _)| cache.contains(key)).collect();
            prop_assert_eq!(held.len(), cache.len());
            prop_assert_eq!(held.iter().map(|(_, (_, bytes))| bytes).sum::<u64>(), cache.bytes());
            prop_assert!(cache.bytes() <= budget);
        }
    }
}
