//! Hit rates of the memory tier's policy beside LRU and foyer's, on traces of what caches of disk
//! images see.
//!
//! ```text
//! cargo bench -p forebay-benches --bench cache-hits
//! ```
//! Every policy has the same number of bytes, frames have the lengths that real ones have, and a miss
//! is inserted at once. The traces are made from a fixed seed: the table is the same every time.

use std::collections::{BTreeMap, HashMap};

use cache::S3Fifo;
use foyer_memory::{Cache as Foyer, CacheBuilder, EvictionConfig, LfuConfig, S3FifoConfig};

/// Bytes of each cache: about 16,000 frames.
const CAPACITY: u64 = 2 << 30;
/// About so many frames fit.
const FRAMES: u64 = CAPACITY / MEAN;
const MEAN: u64 = 136 << 10;

/// A cache that is asked, and filled on a miss.
trait Policy {
    fn ask(&mut self, key: u64, bytes: u64) -> bool;
}

impl Policy for S3Fifo<u64, ()> {
    fn ask(&mut self, key: u64, bytes: u64) -> bool {
        let hit = self.get(&key).is_some();
        if !hit {
            self.insert(key, (), bytes);
        }
        hit
    }
}

/// Least recently used, as every textbook has it.
#[derive(Default)]
struct Lru {
    known: HashMap<u64, (u64, u64)>,
    order: BTreeMap<u64, u64>,
    bytes: u64,
    tick: u64,
}

impl Policy for Lru {
    fn ask(&mut self, key: u64, bytes: u64) -> bool {
        self.tick += 1;
        self.order.insert(self.tick, key);
        if let Some((was, _)) = self.known.insert(key, (self.tick, bytes)) {
            self.order.remove(&was);
            return true;
        }
        self.bytes += bytes;
        while self.bytes > CAPACITY {
            let (_, oldest) = self.order.pop_first().expect("what takes room is in the order");
            self.bytes -= self.known.remove(&oldest).expect("known").1;
        }
        false
    }
}

impl Policy for Foyer<u64, u64> {
    fn ask(&mut self, key: u64, bytes: u64) -> bool {
        let hit = self.get(&key).is_some();
        if !hit {
            self.insert(key, bytes);
        }
        hit
    }
}

fn foyer(eviction: impl Into<EvictionConfig>) -> Box<dyn Policy> {
    let builder = CacheBuilder::new(CAPACITY as usize).with_shards(1);
    let builder = builder.with_weighter(|_: &u64, bytes: &u64| *bytes as usize);
    let cache: Foyer<u64, u64> = builder.with_eviction_config(eviction).build();
    Box::new(cache)
}

/// splitmix64 (Steele, Lea, Flood, 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The frame's length: 16 to 256 KiB, by its key.
fn bytes_of(key: u64) -> u64 {
    (16 << 10) + mix(key) % (240 << 10)
}

/// Ranks by a power law, by inverting its sums.
struct Zipf(Vec<f64>);

impl Zipf {
    fn new(n: u64, exponent: f64) -> Self {
        let mut sum = 0.0;
        let sums = (1..=n).map(|rank| {
            sum += (rank as f64).powf(-exponent);
            sum
        });
        Self(sums.collect())
    }

    fn draw(&self, random: &mut Random) -> u64 {
        let at = random.unit() * self.0.last().expect("at least one rank");
        self.0.partition_point(|sum| *sum < at) as u64
    }
}

/// The nth chunk of something, apart from those of everything else.
fn key(of: u64, n: u64) -> u64 {
    of << 32 | n
}

fn zipf() -> Vec<u64> {
    let (mut random, ranks) = (Random(1), Zipf::new(10 * FRAMES, 0.9));
    (0..1_000_000).map(|_| key(1, ranks.draw(&mut random))).collect()
}

/// In the middle somebody pulls an image five times as large as the cache.
fn zipf_and_scan() -> Vec<u64> {
    let mut trace = zipf();
    let after = trace.split_off(trace.len() / 2);
    let mut hot = after.into_iter();
    for n in 0..5 * FRAMES {
        trace.push(key(2, n));
        trace.extend(hot.next());
    }
    trace.extend(hot);
    trace
}

/// Storms: fifty nodes boot one of sixty images, each a little after the other. All boot sets
/// together are four times as large as the cache; few images are booted often.
fn boot_storms() -> Vec<u64> {
    let (mut random, images) = (Random(3), Zipf::new(60, 0.8));
    let set = 4 * FRAMES / 60;
    let mut trace = Vec::new();
    for _ in 0..60 {
        let image = 100 + images.draw(&mut random);
        let starts: Vec<u64> = (0..50).map(|_| random.below(set / 4)).collect();
        for now in 0..set + set / 4 {
            let asks = starts.iter().filter_map(|start| now.checked_sub(*start));
            trace.extend(asks.filter(|n| *n < set).map(|n| key(image, n)));
        }
    }
    trace
}

/// Single boots, one after the other, of images of which few are booted often.
fn boots() -> Vec<u64> {
    let (mut random, images) = (Random(4), Zipf::new(60, 0.8));
    let set = 4 * FRAMES / 60;
    let boots = (0..600).map(|_| 100 + images.draw(&mut random));
    boots.flat_map(|image| (0..set).map(move |n| key(image, n))).collect()
}

/// One image a little larger than the cache, pulled again and again.
fn looping() -> Vec<u64> {
    (0..10).flat_map(|_| (0..FRAMES * 6 / 5).map(|n| key(5, n))).collect()
}

/// Twenty nodes pull a version of an image of three quarters of the cache, then the next, of which
/// every seventh chunk is new; and so on, while others ask for this and that.
fn upgrades() -> Vec<u64> {
    let (mut random, ranks) = (Random(6), Zipf::new(10 * FRAMES, 0.9));
    let size = FRAMES * 3 / 4;
    let mut version = vec![0; size as usize];
    let mut trace = Vec::new();
    for now in 1..=8 {
        version.iter_mut().skip(now as usize % 7).step_by(7).for_each(|made| *made = now);
        for _ in 0..20 {
            for (n, made) in version.iter().enumerate() {
                trace.push(key(1000 + made, n as u64));
                if random.below(5) == 0 {
                    trace.push(key(1, ranks.draw(&mut random)));
                }
            }
        }
    }
    trace
}

fn hit_rate(mut policy: Box<dyn Policy>, trace: &[u64]) -> f64 {
    let hits = trace.iter().filter(|key| policy.ask(**key, bytes_of(**key))).count();
    hits as f64 / trace.len() as f64
}

/// Makes an empty cache.
type Make = fn() -> Box<dyn Policy>;
/// Makes a trace.
type Trace = fn() -> Vec<u64>;

fn main() {
    let policies: [(&str, Make); 4] = [
        ("ours", || Box::new(S3Fifo::<u64, ()>::new(CAPACITY))),
        ("LRU", || Box::new(Lru::default())),
        ("foyer S3-FIFO", || foyer(S3FifoConfig::default())),
        ("foyer w-TinyLFU", || foyer(LfuConfig::default())),
    ];
    let traces: [(&str, Trace); 6] = [
        ("zipf 0.9", zipf),
        ("zipf 0.9 and a scan", zipf_and_scan),
        ("boot storms", boot_storms),
        ("single boots", boots),
        ("looping over 1.2 x the cache", looping),
        ("version upgrades", upgrades),
    ];
    print!("| {:28} |", "hits of asks, percent");
    policies.iter().for_each(|(name, _)| print!(" {name:>15} |"));
    println!("\n|:-----------------------------|{}", "----------------:|".repeat(policies.len()));
    for (name, make) in traces {
        let trace = make();
        print!("| {name:28} |");
        for (_, policy) in policies {
            print!(" {:15.1} |", 100.0 * hit_rate(policy(), &trace));
        }
        println!();
    }
}
