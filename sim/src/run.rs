//! One run: the world of a seed, from its first start to the rest after the last pull.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use image::Result;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::sleep;

use crate::bugs::Bug;
use crate::chance::Chance;
use crate::corpus::{Corpus, corpus};
use crate::invariants::{Invariant, Violation, Watch};
use crate::scenario::{Scenario, Trouble};
use crate::trace::Trace;
use crate::world::World;
use crate::world::caches::{self, CacheHost};
use crate::world::guests::{self, GuestHost};
use crate::world::net::{Net, NetCounts};
use crate::world::nodes::NodeHost;
use crate::world::origin::Mood;
use crate::world::papers::{cache_ip, node_ip, stranger_ip};

/// By then every pull must be done: the last trouble ends before 25 s, the longest pauses are 30 s.
const DEADLINE: Duration = Duration::from_secs(300);
/// After the last pull; what nobody waits for any more has ended by then.
const REST: Duration = Duration::from_secs(60);

/// How a run went.
#[derive(Clone, Debug)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// The digest of all that happened; the same for every run of the seed.
    pub digest: String,
    /// How many events that were.
    pub events: u64,
    /// How long it took, in the run's own time.
    pub time: Duration,
    /// What did not hold.
    pub violations: Vec<Violation>,
    /// What was done.
    pub counts: Counts,
}

/// What was done in a run, or in many.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Pulls that were begun, those that were begun again included.
    pub pulls: u64,
    /// Chunks that came wrong to a node.
    pub repaired: u64,
    /// Requests that were asked of two caches.
    pub hedges: u64,
    /// Troubles.
    pub troubles: u64,
    /// Starts of caches.
    pub starts: u64,
    /// Chunks that waited for another's fetch.
    pub joined: u64,
    /// Chunks out of a cache's memory.
    pub memory_hits: u64,
    /// Chunks from a cache's disk.
    pub disk_hits: u64,
    /// Chunks that were bad on a cache's disk.
    pub disk_bad: u64,
    /// Chunks from the store.
    pub store_frames: u64,
    /// Datagrams.
    pub net: NetCounts,
}

impl Counts {
    /// Adds those of another run.
    pub fn add(&mut self, other: &Counts) {
        let Counts { net, .. } = other;
        self.pulls += other.pulls;
        self.repaired += other.repaired;
        self.hedges += other.hedges;
        self.troubles += other.troubles;
        self.starts += other.starts;
        self.joined += other.joined;
        self.memory_hits += other.memory_hits;
        self.disk_hits += other.disk_hits;
        self.disk_bad += other.disk_bad;
        self.store_frames += other.store_frames;
        self.net.sent += net.sent;
        self.net.lost += net.lost;
        self.net.doubled += net.doubled;
        self.net.late += net.late;
    }
}

/// Runs a seed, with a bug if one is to be planted; `print` shows every event.
///
/// # Panics
///
/// If the world itself does not work: no memory, no threads for the store.
pub fn run(seed: u64, bug: Option<Bug>, print: bool) -> Report {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().expect("a runtime");
    let (local, scenario) = (LocalSet::new(), Scenario::of(seed));
    // Before the run: its store works on another runtime.
    let corpus = corpus(scenario.corpus);
    let report = local.block_on(&runtime, async {
        let grid = Grid::new(scenario, corpus, bug, print);
        grid.run().await.expect("the crates take what they are given")
    });
    drop(local);
    report
}

/// The numbers of those who are not done.
fn late(done: impl Iterator<Item = bool>) -> Vec<usize> {
    (0..).zip(done).filter(|(_, done)| !done).map(|(number, _)| number).collect()
}

struct Grid {
    world: World,
    caches: Vec<Rc<CacheHost>>,
    nodes: Vec<Rc<NodeHost>>,
    guests: Vec<Rc<GuestHost>>,
}

impl Grid {
    fn new(scenario: Scenario, corpus: &'static Corpus, bug: Option<Bug>, print: bool) -> Rc<Self> {
        let trace = Trace::start(print);
        let net = Net::new(scenario.seed, scenario.quality, &trace);
        let watch = Watch::new(&trace);
        let mood = Mood::default();
        mood.set(|moods| moods.lies = scenario.lies);
        let scenario = Arc::new(scenario);
        let world = World { scenario, corpus, trace, net, mood, watch, bug };
        let plan = &world.scenario;
        let caches = (0..plan.caches.len()).map(|n| CacheHost::new(&world, n)).collect();
        let nodes = (0..plan.nodes.len()).map(|n| NodeHost::new(&world, n)).collect();
        let guests = (0..plan.guests.len()).map(|n| GuestHost::new(&world, n)).collect();
        Rc::new(Self { world, caches, nodes, guests })
    }

    async fn run(self: Rc<Self>) -> Result<Report> {
        spawn_local(self.world.net.clone().run());
        for cache in &self.caches {
            cache.start()?;
        }
        self.nodes.iter().for_each(|node| node.start());
        for guest in self.guests.iter().cloned() {
            spawn_local(async move { guest.run().await.expect("memory for a decoder") });
        }
        for (at, trouble) in self.world.scenario.troubles.clone() {
            let grid = Rc::clone(&self);
            spawn_local(async move {
                grid.world.trace.until(at).await;
                grid.world.trace.note(format_args!("{trouble:?}"));
                grid.suffer(trouble).await;
            });
        }
        self.wait_for_pulls().await;
        let time = self.world.trace.now();
        self.nodes.iter().for_each(|node| node.rest());
        sleep(REST).await;
        for cache in &self.caches {
            cache.rest().await;
        }
        let (digest, events) = self.world.trace.digest();
        let (seed, violations) = (self.world.scenario.seed, self.world.watch.violations());
        Ok(Report { seed, digest, events, time, violations, counts: self.counts() })
    }

    async fn wait_for_pulls(&self) {
        loop {
            let nodes: Vec<_> = late(self.nodes.iter().map(|node| node.is_done()));
            let guests: Vec<_> = late(self.guests.iter().map(|guest| guest.is_done()));
            if nodes.is_empty() && guests.is_empty() {
                return;
            }
            if self.world.trace.now() > DEADLINE {
                let what = format!("nodes {nodes:?} and guests {guests:?} have not got everything");
                return self.world.watch.violated(Invariant::Finished, what);
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    fn counts(&self) -> Counts {
        let mut counts = Counts { net: self.world.net.counts(), ..Counts::default() };
        counts.troubles = self.world.scenario.troubles.len() as u64;
        counts.hedges = self.nodes.iter().map(|node| node.hedges()).sum();
        for (begun, wrong) in self.nodes.iter().map(|node| node.counts()) {
            counts.pulls += begun;
            counts.repaired += wrong;
        }
        for status in self.caches.iter().flat_map(|cache| cache.statuses()) {
            counts.starts += 1;
            counts.joined += status.joined;
            counts.memory_hits += status.memory_hits;
            counts.disk_hits += status.disk_hits;
            counts.disk_bad += status.disk_bad_frames;
            counts.store_frames += status.source_frames;
        }
        counts
    }

    /// Something goes wrong, and comes right again where it does.
    async fn suffer(&self, trouble: Trouble) {
        let World { net, mood, .. } = &self.world;
        match trouble {
            Trouble::CacheStops { cache, how, back, disk } => {
                self.caches[cache].stop(how).await;
                if let Some(back) = back {
                    sleep(back).await;
                    self.caches[cache].change_disk(disk);
                    self.caches[cache].start().expect("it has started before");
                }
            }
            Trouble::NodeStops { node, how, back } => {
                self.nodes[node].stop(how).await;
                sleep(back).await;
                self.nodes[node].start();
            }
            Trouble::Partition { cache, node, there, back, lasts } => {
                let (cache, node) = (cache_ip(cache), node_ip(node));
                net.cut(cache, node, there);
                net.cut(node, cache, back);
                sleep(lasts).await;
                net.cut(cache, node, false);
                net.cut(node, cache, false);
            }
            Trouble::Isolated { cache, lasts } => {
                self.isolate(cache, true);
                sleep(lasts).await;
                self.isolate(cache, false);
            }
            Trouble::Limps { cache, speed, lasts } => {
                net.limp(cache_ip(cache), Some(speed));
                sleep(lasts).await;
                net.limp(cache_ip(cache), None);
            }
            Trouble::Rots { cache, bits } => {
                self.caches[cache].rot(bits).expect("a disk in memory");
            }
            Trouble::DiskFails { cache, operations, fault } => {
                self.caches[cache].fail_disk(operations, fault);
            }
            Trouble::CacheDiskFull { cache, room, lasts } => {
                self.caches[cache].fill_disk(Some(room));
                sleep(lasts).await;
                self.caches[cache].fill_disk(None);
            }
            Trouble::NodeDiskFull { node, room, lasts } => {
                self.nodes[node].faults.limit_bytes(Some(room));
                sleep(lasts).await;
                self.nodes[node].faults.limit_bytes(None);
            }
            Trouble::StoreSilent { lasts } => {
                mood.set(|moods| moods.silent = true);
                sleep(lasts).await;
                mood.set(|moods| moods.silent = false);
            }
            Trouble::StoreFails { fails, lasts } => {
                mood.set(|moods| moods.fails = fails);
                sleep(lasts).await;
                mood.set(|moods| moods.fails = 0);
            }
            Trouble::Cared { cache, care } => self.caches[cache].ask(care),
            Trouble::Storm { cache, datagrams } => self.storm(cache, datagrams).await,
        }
    }

    fn isolate(&self, cache: usize, cut: bool) {
        let guests = guests::FIRST..guests::FIRST + self.guests.len();
        for node in (0..self.nodes.len()).chain(guests) {
            self.world.net.cut(cache_ip(cache), node_ip(node), cut);
            self.world.net.cut(node_ip(node), cache_ip(cache), cut);
        }
    }

    /// Nonsense from a stranger, and what others have sent before once more.
    async fn storm(&self, cache: usize, datagrams: u64) {
        let to = caches::addresses(&self.world.scenario, cache)[0];
        let net = &self.world.net;
        let mut chance = Chance::new(self.world.scenario.seed, &format!("storm on {to}"));
        for n in 0..datagrams {
            let stranger = std::net::SocketAddr::new(stranger_ip(), 1000 + (n % 7) as u16);
            let seen = net.seen(&to);
            match chance.within(0..3) {
                0 if !seen.is_empty() => {
                    let (from, bytes) = &seen[chance.within(0..seen.len() as u64) as usize];
                    let from = if chance.one_in(4) { stranger } else { *from };
                    net.send(from, to, bytes);
                }
                _ => {
                    let len = chance.within(1..1300) as usize;
                    net.send(stranger, to, &chance.bytes(len));
                }
            }
            if n % 16 == 15 {
                sleep(Duration::from_millis(1)).await;
            }
        }
    }
}
