//! Fleets and streams of requests that follow from a seed, to see how well nodes are chosen.
//!
//! Nodes are alike, and have four GiB of memory for each CPU. A stream asks for more than there is room for; what of it
//! is placed, and in which order, is the placer's.

use api::fleet::{NodeFacts, Resources};
use api::place::PlaceRequest;
use image::Digest;

use crate::chance::Chance;

const GIB: u64 = 1 << 30;
/// What a node has.
pub const NODE: Resources =
    Resources { cpu_milli: 64_000, memory: 256 * GIB, disk: 4096 * GIB, network: 0 };

/// What kinds of shapes come in which order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shapes {
    /// All sizes up to a quarter of a node, as often as each other; of CPU, memory and disk each by itself.
    Uniform,
    /// Many small, few huge: each twice the size half as often, up to a whole node.
    HeavyTailed,
    /// Bursts of identical ones, as builds of one project come: each takes a few nodes at most.
    Bursts,
}

impl Shapes {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Uniform, Self::HeavyTailed, Self::Bursts];
}

/// Nodes without anything on them.
pub fn nodes(count: usize) -> Vec<NodeFacts> {
    let node =
        |n| NodeFacts { name: format!("node-{n:04}"), capacity: NODE, ..NodeFacts::default() };
    (0..count).map(node).collect()
}

/// Requests in the order in which they come, for `times` as much as so many nodes have of what is asked for most.
pub fn stream(shapes: Shapes, nodes: usize, times: f64, seed: u64) -> Vec<PlaceRequest> {
    let chance = &mut Chance::new(seed, "shapes");
    let (mut requests, mut asked) = (Vec::new(), Resources::default());
    while most_share(&asked) < times * nodes as f64 {
        let (shape, count) = shapes.draw(chance);
        for _ in 0..count {
            asked = asked.checked_add(&shape).expect("a few thousand nodes at most");
            requests.push(PlaceRequest::new(format!("vm-{}", requests.len()), shape));
        }
    }
    requests
}

/// Of the resource of which it is most, how many nodes it takes.
pub fn most_share(amount: &Resources) -> f64 {
    let shares = amount.all().into_iter().zip(NODE.all()).filter(|(_, node)| *node > 0);
    shares.map(|(amount, node)| amount as f64 / node as f64).fold(0.0, f64::max)
}

impl Shapes {
    /// The next shape, and how many times it comes.
    fn draw(self, chance: &mut Chance) -> (Resources, u64) {
        match self {
            Self::Uniform => (uniform(chance), 1),
            Self::HeavyTailed => (heavy_tailed(chance), 1),
            Self::Bursts => (burst(chance), chance.within(4..49)),
        }
    }
}

fn uniform(chance: &mut Chance) -> Resources {
    Resources {
        cpu_milli: 250 * chance.within(1..65),
        memory: GIB * chance.within(1..65),
        disk: GIB * chance.within(1..1025),
        network: 0,
    }
}

fn heavy_tailed(chance: &mut Chance) -> Resources {
    let mut size = 0;
    while size < 6 && chance.one_in(2) {
        size += 1;
    }
    // One, two or four times as much memory for a CPU: made for computing, for everything, for memory.
    let cpus = 1 << size;
    let memory = 2 * cpus * chance.pick(&[1, 2, 4]);
    let disk = 20 + cpus * chance.pick(&[5, 20, 50]);
    Resources {
        cpu_milli: 1000 * cpus,
        memory: GIB * memory.min(256),
        disk: GIB * disk,
        network: 0,
    }
}

fn burst(chance: &mut Chance) -> Resources {
    let cpus = chance.pick(&[1, 2, 4, 8]);
    let memory = cpus * chance.pick(&[1, 2, 4, 8]);
    Resources {
        cpu_milli: 1000 * cpus,
        memory: GIB * memory,
        disk: GIB * chance.within(10..100),
        network: 0,
    }
}

/// Images whose popularity falls as 1, ½, ⅓ … (Zipf's law with the exponent 1), drawn by their ranks.
pub struct Zipf {
    /// The share of draws up to each rank.
    sums: Vec<f64>,
}

impl Zipf {
    /// Of so many images.
    pub fn new(images: usize) -> Self {
        let weights = (1..=images).map(|rank| 1.0 / rank as f64);
        let mut sums: Vec<f64> = weights
            .scan(0.0, |sum, weight| {
                *sum += weight;
                Some(*sum)
            })
            .collect();
        let all = sums.last().copied().unwrap_or(1.0);
        sums.iter_mut().for_each(|sum| *sum /= all);
        Self { sums }
    }

    /// The rank of the next one, from 0.
    pub fn draw(&self, chance: &mut Chance) -> usize {
        let at = (chance.number() >> 11) as f64 / (1u64 << 53) as f64;
        self.sums.partition_point(|sum| *sum <= at).min(self.sums.len() - 1)
    }
}

/// The image of a rank, and how many bytes it is: 1 to 8 GiB, whatever its rank.
pub fn image(rank: usize) -> (Digest, u64) {
    let digest = Digest::of_chunk(format!("image {rank}").as_bytes());
    (digest, GIB * (1 + u64::from(digest.0[0] % 8)))
}
