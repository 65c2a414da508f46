//! Leases in a world of their own: the shipped placement and the shipped leases of nodes, on keys, ways, processes and
//! clocks that follow from a seed.
//!
//! ```text
//!  Node: user, agent ── node::leases ── leases.json ── watchdog
//!    │        │ reports, takes: late, lost          │ kills
//!    │      Grid                                    │
//!  Writer ◀─────────────────────────────────────────┘
//! ```
//! Processes are killed and started anew, stopped and let go on (as by SIGSTOP and SIGCONT); nodes are cut off; clocks
//! differ in their pace as much as they may, and the one on the wall is set. What placement answers is recorded and
//! checked as a [`history`](crate::history); what is written is compared with who had the lease.

mod node;

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use placement::testing::Coordinator;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::sleep;

use crate::chance::Chance;
use crate::grid::{Flaw, Grid, TERM};
use crate::history::lease::{Answered, Asked, Lease};
use crate::history::writes::{self, Write};
use crate::history::{History, Pending, Verdict, check};
use crate::trace::Trace;
use node::Node;

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
    /// A placement that leads goes on without looking whether it still does.
    Unled,
}

/// All of them.
pub const BUGS: [Bug; 3] = [Bug::Unbelieving, Bug::Slow, Bug::Unled];

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
    /// Histories for which the search was given up: nothing is shown by them.
    pub undecided: u64,
}

impl Counts {
    /// Adds those of another run.
    pub fn add(&mut self, other: &Self) {
        self.granted += other.granted;
        self.refused += other.refused;
        self.unanswered += other.unanswered;
        self.writes += other.writes;
        self.killed += other.killed;
        self.undecided += other.undecided;
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
        world.grid.start();
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
    grid: Rc<Grid>,
    /// What was asked of the lease of each volume.
    histories: Vec<History<Asked, Answered>>,
    written: RefCell<Written>,
}

#[derive(Default)]
struct Written {
    writes: Vec<Write>,
    killed: u64,
}

/// The id of a volume.
fn id(volume: usize) -> String {
    format!("{:032x}", volume + 1)
}

impl World {
    fn new(seed: u64, bug: Option<Bug>, print: bool) -> Rc<Self> {
        let trace = Trace::start(print);
        let flaw = match bug {
            Some(Bug::Unbelieving) => Some(Flaw::Forgets("leases/")),
            Some(Bug::Unled) => Some(Flaw::Unled),
            Some(Bug::Slow) | None => None,
        };
        Rc::new(Self {
            seed,
            bug,
            grid: Grid::new(seed, &trace, NODES, flaw),
            trace,
            histories: (0..VOLUMES).map(|_| History::default()).collect(),
            written: RefCell::default(),
        })
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
            counts.undecided += u64::from(matches!(verdict, Verdict::Undecided(_)));
            if let Verdict::Not(_) = verdict {
                violations.push(format!("the lease of volume {}: {verdict}", id(volume)));
            }
        }
        Report { digest: self.trace.digest().0, violations, counts }
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
            let _ = world.grid.ask(None, Duration::from_secs(5), broken).await;
            continue;
        }
        let asked: Vec<_> = world.histories.iter().map(|h| h.called(Asked::Look)).collect();
        let all = async |placement: Arc<Coordinator>| placement.leases().await;
        let Ok(all) = world.grid.ask(None, Duration::from_secs(5), all).await else {
            // Who has looked has changed nothing.
            asked.into_iter().for_each(Pending::not_done);
            continue;
        };
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
        let placement = chance.pick(&[0, 1]) % world.grid.placements.len();
        let what = chance.within(0..8);
        world.trace.note(format_args!("trouble {what} of {node} or {placement} for {lasts:?}"));
        let (world, host) = (Rc::clone(&world), Rc::clone(&nodes[node]));
        spawn_local(async move {
            let placement = &world.grid.placements[placement];
            match what {
                0 | 1 => host.stops(lasts).await,
                2 => host.dies(lasts).await,
                3 | 4 => {
                    world.grid.cut(node, true);
                    sleep(lasts).await;
                    world.grid.cut(node, false);
                }
                5 => placement.dies(lasts).await,
                6 => placement.stops(lasts, 1000).await,
                _ => placement.is_cut_off(lasts).await,
            }
        });
    }
}
