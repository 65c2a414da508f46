//! What happens in a run, drawn from its seed before it begins: the grid, the pulls, the troubles.

use std::time::Duration;

use blockio::fake::Fault;

use crate::chance::Chance;
use crate::corpus::CORPORA;
use crate::world::net::Quality;
use crate::world::origin::Distance;

/// Troubles begin before this, and those that end have ended soon after.
const LATEST: u64 = 9_000;

/// A run.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Everything else that is drawn follows from it too.
    pub seed: u64,
    /// Which images there are.
    pub corpus: usize,
    /// The network between caches and nodes.
    pub quality: Quality,
    /// The way from each cache to the store.
    pub distance: Distance,
    /// Frames that the store alters now and then, of a thousand.
    pub lies: u64,
    /// The caches.
    pub caches: Vec<CachePlan>,
    /// The nodes.
    pub nodes: Vec<NodePlan>,
    /// Guests, who read here and there.
    pub guests: Vec<GuestPlan>,
    /// What goes wrong, in order of time.
    pub troubles: Vec<(Duration, Trouble)>,
}

/// A cache.
#[derive(Clone, Debug)]
pub struct CachePlan {
    /// Memory budget in bytes.
    pub memory: u64,
    /// Whether that holds every frame of the corpus.
    pub roomy: bool,
    /// Budget for what is on its way, in bytes.
    pub in_flight: u64,
    /// Disk budget in bytes, if it has a disk.
    pub disk: Option<u64>,
    /// Bytes of it that are scrubbed in a second.
    pub scrub: u64,
    /// Cores, each with an endpoint of its own.
    pub cores: usize,
}

/// A node: pulls to one path, one after the other.
#[derive(Clone, Debug)]
pub struct NodePlan {
    /// When the first pull begins.
    pub at: Duration,
    /// The images, by their numbers in the corpus.
    pub pulls: Vec<usize>,
    /// Whether they are made durable.
    pub sync: bool,
    /// Cores of each pull.
    pub cores: usize,
}

/// A guest.
#[derive(Clone, Debug)]
pub struct GuestPlan {
    /// When it begins.
    pub at: Duration,
    /// What it reads, by its number in the corpus.
    pub image: usize,
    /// How often it reads.
    pub reads: u64,
}

/// How a host stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Its process is killed: what it wrote stays.
    Killed,
    /// Its power goes: what it had not synced is lost, or torn.
    PowerCut,
}

/// What somebody wants of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// To have an image.
    Warm,
    /// To keep it.
    Pin,
    /// Not to keep it any more.
    Unpin,
    /// To be rid of it.
    Evict,
}

/// An order to a cache.
#[derive(Clone, Copy, Debug)]
pub struct Care {
    /// What to do.
    pub what: What,
    /// With which image, by its number in the corpus.
    pub image: usize,
}

/// Something that goes wrong, or is asked for at a bad moment.
#[derive(Clone, Copy, Debug)]
#[expect(
    missing_docs,
    reason = "`lasts` and `back`: for how long; `disk`: its budget from then on, if that changes; the \
              others are named for what they are"
)]
pub enum Trouble {
    /// A cache stops, and starts again after a while, or never.
    CacheStops { cache: usize, how: Stop, back: Option<Duration>, disk: Option<u64> },
    /// A node stops, and starts again.
    NodeStops { node: usize, how: Stop, back: Duration },
    /// Datagrams from a cache to a node, or back, or both ways, are lost.
    Partition { cache: usize, node: usize, there: bool, back: bool, lasts: Duration },
    /// A cache can be reached by nobody.
    Isolated { cache: usize, lasts: Duration },
    /// A cache sends slowly, in bytes per ms.
    Limps { cache: usize, speed: u64, lasts: Duration },
    /// A bit flips in what lies on a cache's disk.
    Rots { cache: usize, bits: u64 },
    /// Some operations of a cache's disk fail.
    DiskFails { cache: usize, operations: u64, fault: Fault },
    /// A cache's disk has room for so many more bytes.
    CacheDiskFull { cache: usize, room: u64, lasts: Duration },
    /// A node's disk has room for so many more bytes.
    NodeDiskFull { node: usize, room: u64, lasts: Duration },
    /// The store answers nobody.
    StoreSilent { lasts: Duration },
    /// The store fails so many requests of a thousand.
    StoreFails { fails: u64, lasts: Duration },
    /// Somebody takes care of a cache.
    Cared { cache: usize, care: Care },
    /// Nonsense and old datagrams pour down on a cache.
    Storm { cache: usize, datagrams: u64 },
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

impl Scenario {
    /// The scenario of a seed.
    pub fn of(seed: u64) -> Self {
        let mut chance = Chance::new(seed, "scenario");
        let caches = chance.within(1..4) as usize;
        let nodes = chance.within(2..7) as usize;
        let guests = chance.within(0..3);
        let mut scenario = Self {
            seed,
            corpus: chance.within(0..CORPORA as u64) as usize,
            quality: quality(&mut chance),
            distance: Distance {
                delay: chance.pick(&[2, 20, 60]),
                speed: chance.pick(&[2_000, 10_000, 100_000]),
            },
            lies: chance.pick(&[0, 0, 0, 10, 60]),
            caches: (0..caches).map(|_| CachePlan::draw(&mut chance)).collect(),
            nodes: (0..nodes).map(|_| NodePlan::draw(&mut chance)).collect(),
            guests: (0..guests).map(|_| GuestPlan::draw(&mut chance)).collect(),
            troubles: Vec::new(),
        };
        let mut one_lives_on = false;
        for _ in 0..chance.within(0..11) {
            let at = scenario.draw_time(&mut chance);
            let trouble = scenario.draw_trouble(&mut chance, &mut one_lives_on);
            scenario.troubles.push((at, trouble));
        }
        scenario.draw_disks(&mut Chance::new(seed, "disks"));
        scenario.troubles.sort_by_key(|(at, _)| *at);
        scenario
    }

    /// Other budgets after some restarts; and in half of all runs somebody pins an image, and a while
    /// later the cache starts anew.
    fn draw_disks(&mut self, chance: &mut Chance) {
        for (_, trouble) in &mut self.troubles {
            if let Trouble::CacheStops { disk, .. } = trouble {
                *disk = draw_disk(chance);
            }
        }
        if chance.one_in(2) {
            return;
        }
        let cache = chance.within(0..self.caches.len() as u64) as usize;
        let care = Care { what: What::Pin, image: chance.within(0..3) as usize };
        let at = ms(chance.within(10..4_000));
        self.troubles.push((at, Trouble::Cared { cache, care }));
        let restart = Trouble::CacheStops {
            cache,
            how: chance.pick(&[Stop::Killed, Stop::PowerCut]),
            back: Some(ms(chance.pick(&[1, 100, 2_000]))),
            disk: draw_disk(chance),
        };
        self.troubles.push((at + ms(chance.within(500..LATEST - 4_000)), restart));
    }

    /// Some time; mostly one at which a node is at work.
    fn draw_time(&self, chance: &mut Chance) -> Duration {
        let node = chance.within(0..self.nodes.len() as u64) as usize;
        let after = ms(chance.within(10..1_500));
        match chance.one_in(3) {
            true => ms(chance.within(10..LATEST)),
            false => self.nodes[node].at + after,
        }
    }

    fn draw_trouble(&self, chance: &mut Chance, dead: &mut bool) -> Trouble {
        let cache = chance.within(0..self.caches.len() as u64) as usize;
        let node = chance.within(0..self.nodes.len() as u64) as usize;
        let lasts = ms(chance.pick(&[50, 500, 3_000, 15_000]));
        match chance.within(0..17) {
            0..3 => {
                // One of several may stay away.
                let back = match self.caches.len() > 1 && !*dead && chance.one_in(4) {
                    true => {
                        *dead = true;
                        None
                    }
                    false => Some(ms(chance.pick(&[1, 100, 2_000, 8_000]))),
                };
                Trouble::CacheStops {
                    cache,
                    how: chance.pick(&[Stop::Killed, Stop::PowerCut]),
                    back,
                    disk: None,
                }
            }
            3..5 => {
                let how = match self.nodes[node].sync {
                    true => chance.pick(&[Stop::Killed, Stop::PowerCut]),
                    false => Stop::Killed,
                };
                Trouble::NodeStops { node, how, back: ms(chance.pick(&[1, 500, 4_000])) }
            }
            5 => {
                let (there, back) = chance.pick(&[(true, true), (true, false), (false, true)]);
                Trouble::Partition { cache, node, there, back, lasts }
            }
            6 => Trouble::Isolated { cache, lasts },
            7 => Trouble::Limps { cache, speed: chance.pick(&[20, 200]), lasts },
            8 => Trouble::Rots { cache, bits: chance.pick(&[1, 20, 300]) },
            9 => Trouble::DiskFails {
                cache,
                operations: chance.within(1..12),
                fault: chance.pick(&[Fault::Io, Fault::Short(100)]),
            },
            10 => Trouble::CacheDiskFull { cache, room: chance.within(0..200_000), lasts },
            11 => Trouble::NodeDiskFull { node, room: chance.within(0..400_000), lasts },
            12 => match chance.one_in(2) {
                true => Trouble::StoreSilent { lasts },
                false => Trouble::StoreFails { fails: chance.pick(&[100, 500, 1000]), lasts },
            },
            13..16 => {
                let whats = [What::Warm, What::Pin, What::Pin, What::Unpin, What::Evict];
                let image = chance.within(0..3) as usize;
                Trouble::Cared { cache, care: Care { what: chance.pick(&whats), image } }
            }
            _ => Trouble::Storm { cache, datagrams: chance.within(50..400) },
        }
    }
}

/// Another disk budget, in bytes.
fn draw_disk(chance: &mut Chance) -> Option<u64> {
    chance.pick(&[None, Some(512 << 10), Some(768 << 10), Some(2 << 20), Some(32 << 20)])
}

fn quality(chance: &mut Chance) -> Quality {
    Quality {
        loss: chance.pick(&[0, 0, 5, 30, 80]),
        doubled: chance.pick(&[0, 5, 50]),
        late: chance.pick(&[0, 10, 100]),
        delay: chance.pick(&[0, 1, 5, 25]),
        speed: chance.pick(&[1_000, 10_000, 100_000]),
        mtu: chance.pick(&[1_472, 8_972]),
    }
}

impl CachePlan {
    fn draw(chance: &mut Chance) -> Self {
        let roomy = chance.one_in(2);
        let memory = if roomy { 64 << 20 } else { chance.pick(&[512 << 10, 2 << 20]) };
        let disk = match chance.one_in(4) {
            true => None,
            // Some must evict.
            false => Some(chance.pick(&[512 << 10, 2 << 20, 32 << 20])),
        };
        // The least has room for some ten reads of the largest chunks.
        let in_flight = chance.pick(&[1 << 20, 16 << 20]);
        let (scrub, cores) = (chance.pick(&[0, 8 << 20]), chance.pick(&[1, 1, 2]));
        Self { memory, roomy, in_flight, disk, scrub, cores }
    }
}

impl GuestPlan {
    fn draw(chance: &mut Chance) -> Self {
        let at = ms(chance.within(0..4_000));
        let image = chance.within(0..3) as usize;
        Self { at, image, reads: chance.within(1..40) }
    }
}

impl NodePlan {
    fn draw(chance: &mut Chance) -> Self {
        let first = chance.within(0..3) as usize;
        let pulls = match chance.one_in(3) {
            true => vec![first, chance.within(0..3) as usize],
            false => vec![first],
        };
        // Most begin at about the same time: that is when sharing matters.
        let at = ms(if chance.one_in(2) { chance.within(0..40) } else { chance.within(0..6_000) });
        Self { at, pulls, sync: chance.one_in(2), cores: chance.pick(&[1, 1, 2]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_trouble_is_drawn_and_one_cache_is_always_left() {
        let mut kinds = std::collections::BTreeSet::new();
        for seed in 0..400 {
            let scenario = Scenario::of(seed);
            let mut gone = 0;
            for (_, trouble) in &scenario.troubles {
                let text = format!("{trouble:?}");
                kinds.insert(text.split(' ').next().unwrap_or_default().to_owned());
                gone += usize::from(matches!(trouble, Trouble::CacheStops { back: None, .. }));
            }
            assert!(gone < scenario.caches.len(), "seed {seed}");
        }
        assert_eq!(kinds.len(), 13, "{kinds:?}");
    }
}
