//! Leases in a world of their own: the shipped placement and the shipped leases of nodes, on keys, ways, processes and
//! clocks that follow from a seed.
//!
//! ```text
//!  Node: user, agent ── node::leases ── leases.json ── watchdog
//!    │        │ reports, takes: late, lost          │ kills
//!    │   Placement: placement::testing::Coordinator │
//!    │        │ Line: late, lost, cut off           │
//!    │      Etcd                                    │
//!  Writer ◀─────────────────────────────────────────┘
//! ```
//! Processes are killed and started anew, stopped and let go on (as by SIGSTOP and SIGCONT); nodes are cut off; clocks
//! differ in their pace as much as they may, and the one on the wall is set. What placement answers is recorded and
//! checked as a [`history`](crate::history); what is written is compared with who had the lease.

mod host;
mod keys;
mod line;
mod node;
mod placements;

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use image::{Error, Kind, Result};
use placement::testing::Coordinator;
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, LocalSet, spawn_local};
use tokio::time::{sleep, timeout};

use crate::chance::Chance;
use crate::history::lease::{Answered, Asked, Lease};
use crate::history::writes::{self, Write};
use crate::history::{History, check};
use crate::trace::Trace;
use keys::Etcd;
use node::Node;
use placements::Placement;

/// Seconds for which a node has its leases after a report.
pub const TERM: u64 = 12;
/// How far clocks run fast or slow, in millionths: what leases are made for.
const PACE: u64 = 1000;
const NODES: usize = 3;
const VOLUMES: usize = 2;
/// Troubles begin before this.
const TROUBLED: u64 = 100_000;
/// The end of a run.
const END: Duration = Duration::from_secs(130);
/// Steps of the search for an order.
const STEPS: u64 = 1 << 20;

/// A bug to plant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Keys forget now and then what a transaction believes.
    Unbelieving,
    /// A node's clock is a tenth as fast as it should be, so that it goes on for too long.
    Slow,
}

/// All of them.
pub const BUGS: [Bug; 2] = [Bug::Unbelieving, Bug::Slow];

impl fmt::Display for Bug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl FromStr for Bug {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = BUGS.into_iter().find(|bug| bug.to_string() == name);
        found.ok_or_else(|| format!("there is no bug {name}, but {BUGS:?}"))
    }
}

/// How a run went.
#[derive(Clone, Debug)]
pub struct Report {
    /// The digest of all that happened.
    pub digest: String,
    /// What did not hold.
    pub violations: Vec<String>,
    /// What was done.
    pub counts: Counts,
}

/// What was done in a run, or in many.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Leases that were given.
    pub granted: u64,
    /// That were asked for while another had them.
    pub refused: u64,
    /// Questions that were never answered.
    pub unanswered: u64,
    /// Writes.
    pub writes: u64,
    /// Processes that a watchdog killed.
    pub killed: u64,
}

impl Counts {
    /// Adds those of another run.
    pub fn add(&mut self, other: &Self) {
        self.granted += other.granted;
        self.refused += other.refused;
        self.unanswered += other.unanswered;
        self.writes += other.writes;
        self.killed += other.killed;
    }
}

/// Runs a seed, with a bug if one is to be planted; `print` shows every event.
///
/// # Panics
///
/// If there is no runtime, or no directory for what nodes write down.
pub fn run(seed: u64, bug: Option<Bug>, print: bool) -> Report {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().expect("a runtime");
    let local = LocalSet::new();
    let report = local.block_on(&runtime, async {
        let world = World::new(seed, bug, print);
        world.placements.iter().for_each(|placement| placement.start());
        let nodes: Vec<_> = (0..NODES).map(|n| Node::new(&world, n)).collect();
        nodes.iter().for_each(Node::start);
        spawn_local(suffer(Rc::clone(&world), nodes));
        spawn_local(look(Rc::clone(&world)));
        world.trace.until(END).await;
        world.report()
    });
    drop(local);
    report
}

/// What all share.
struct World {
    seed: u64,
    bug: Option<Bug>,
    trace: Trace,
    placements: Vec<Rc<Placement>>,
    /// What was asked of the lease of each volume.
    histories: Vec<History<Asked, Answered>>,
    written: RefCell<Written>,
    chance: RefCell<Chance>,
    /// Nodes that reach nobody.
    cut: RefCell<[bool; NODES]>,
}

#[derive(Default)]
struct Written {
    writes: Vec<Write>,
    killed: u64,
}

/// What becomes of a question.
struct Way {
    there: Duration,
    back: Duration,
    /// It never arrives.
    lost: bool,
    /// Its answer never does.
    mute: bool,
    /// Who gives up waiting ends the work, too.
    ends: bool,
}

/// The id of a volume.
fn id(volume: usize) -> String {
    format!("{:032x}", volume + 1)
}

/// A clock's pace: how many milliseconds it counts in a million.
fn pace(chance: &mut Chance) -> u64 {
    1_000_000 - PACE + chance.within(0..2 * PACE + 1)
}

impl World {
    fn new(seed: u64, bug: Option<Bug>, print: bool) -> Rc<Self> {
        let trace = Trace::start(print);
        let etcd = Etcd::new(&trace);
        let count = Chance::new(seed, "placements").within(1..placements::MOST + 1);
        let placements = (0..count).map(|n| Placement::new(n, seed, bug, &trace, &etcd));
        Rc::new(Self {
            seed,
            bug,
            placements: placements.collect(),
            trace,
            histories: (0..VOLUMES).map(|_| History::default()).collect(),
            written: RefCell::default(),
            chance: RefCell::new(Chance::new(seed, "ways")),
            cut: RefCell::default(),
        })
    }

    fn way(&self) -> Way {
        let mut chance = self.chance.borrow_mut();
        let mut late = || {
            let most = if chance.one_in(30) { 3000 } else { 20 };
            Duration::from_millis(chance.within(0..most))
        };
        let (there, back) = (late(), late());
        let (lost, mute, ends) = (chance.one_in(60), chance.one_in(60), chance.one_in(2));
        Way { there, back, lost, mute, ends }
    }

    fn is_cut(&self, node: Option<usize>) -> bool {
        node.is_some_and(|node| self.cut.borrow()[node])
    }

    /// Asks a placement something; whoever leads answers.
    ///
    /// # Errors
    ///
    /// [`Kind::Retry`] if no answer comes for so long: it may be done all the same.
    async fn ask<T: 'static, F: Future<Output = Result<T>> + 'static>(
        self: &Rc<Self>,
        node: Option<usize>,
        patience: Duration,
        work: impl FnOnce(Arc<Coordinator>) -> F + 'static,
    ) -> Result<T> {
        let (way, world) = (self.way(), Rc::clone(self));
        let (answer, answered) = oneshot::channel();
        let ends = way.ends;
        let handler = spawn_local(async move {
            sleep(way.there).await;
            if way.lost || world.is_cut(node) {
                return std::future::pending().await;
            }
            let at = world.chance.borrow_mut().within(0..world.placements.len() as u64) as usize;
            let Some((process, coordinator)) = world.placements[at].serves() else {
                return drop(answer);
            };
            let Some(done) = process.run(work(coordinator)).await else { return };
            sleep(way.back).await;
            if way.mute || world.is_cut(node) {
                return std::future::pending().await;
            }
            let _ = answer.send(done);
        });
        let _ends = ends.then(|| Ends(handler.abort_handle()));
        match timeout(patience, answered).await {
            Ok(Ok(done)) => done,
            _ => Err(Error::new(Kind::Retry, "placement does not answer")),
        }
    }

    fn report(&self) -> Report {
        let written = self.written.borrow();
        let mut violations = writes::check(&written.writes);
        let mut counts = Counts { killed: written.killed, ..Counts::default() };
        counts.writes = written.writes.len() as u64;
        for (volume, history) in self.histories.iter().enumerate() {
            let operations = history.operations();
            for operation in &operations {
                match operation.output {
                    Some(Answered::Granted(_)) => counts.granted += 1,
                    Some(Answered::Refused(_)) => counts.refused += 1,
                    None => counts.unanswered += 1,
                    _ => {}
                }
            }
            let verdict = check(&Lease, &operations, STEPS);
            if !verdict.holds() {
                violations.push(format!("the lease of volume {}: {verdict}", id(volume)));
            }
        }
        Report { digest: self.trace.digest().0, violations, counts }
    }
}

/// Ends a task when it is dropped.
struct Ends(AbortHandle);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// An admin looks who has which lease, and breaks one now and then.
async fn look(world: Rc<World>) {
    let mut chance = Chance::new(world.seed, "admin");
    loop {
        sleep(Duration::from_millis(chance.within(500..4000))).await;
        let volume = chance.within(0..VOLUMES as u64) as usize;
        if chance.one_in(6) {
            world.trace.note(format_args!("the lease of {} is broken", id(volume)));
            let broken = async move |placement: Arc<Coordinator>| {
                let asked = api::lease::BreakLease { why: "sim".into(), at_once: false };
                placement.break_lease(&id(volume), &asked).await
            };
            // There may be none.
            let _ = world.ask(None, Duration::from_secs(5), broken).await;
            continue;
        }
        let asked: Vec<_> = world.histories.iter().map(|h| h.called(Asked::Look)).collect();
        let all = async |placement: Arc<Coordinator>| placement.leases().await;
        let Ok(all) = world.ask(None, Duration::from_secs(5), all).await else { continue };
        for (volume, asked) in asked.into_iter().enumerate() {
            let found = all.leases.iter().find(|lease| lease.volume == id(volume));
            let has = found.and_then(|l| Some((node::number(l.holder.as_deref()?)?, l.epoch)));
            asked.answered(Answered::Has(has));
        }
    }
}

/// Things go wrong, and come right again.
async fn suffer(world: Rc<World>, nodes: Vec<Rc<Node>>) {
    let mut chance = Chance::new(world.seed, "troubles");
    let mut at = 0;
    loop {
        at += chance.within(500..12_000);
        if at > TROUBLED {
            return;
        }
        world.trace.until(Duration::from_millis(at)).await;
        let lasts = Duration::from_millis(match chance.one_in(3) {
            true => chance.within(10..2000),
            false => chance.within(2000..4 * TERM * 1000),
        });
        let node = chance.within(0..NODES as u64) as usize;
        let placement = chance.pick(&[0, 1]) % world.placements.len();
        let what = chance.within(0..8);
        world.trace.note(format_args!("trouble {what} of {node} or {placement} for {lasts:?}"));
        let (world, host) = (Rc::clone(&world), Rc::clone(&nodes[node]));
        spawn_local(async move {
            let placement = &world.placements[placement];
            match what {
                0 | 1 => host.stops(lasts).await,
                2 => host.dies(lasts).await,
                3 | 4 => {
                    world.cut.borrow_mut()[node] = true;
                    sleep(lasts).await;
                    world.cut.borrow_mut()[node] = false;
                }
                5 => placement.dies(lasts).await,
                6 => placement.stops(lasts).await,
                _ => placement.is_cut_off(lasts).await,
            }
        });
    }
}
