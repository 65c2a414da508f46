//! Pools, claims and reservations in a world of their own: the shipped placement, and what nodes are told
//! (`node::pools::Items`), while the power of nodes and of the state goes, placements die and the lead moves.
//!
//! ```text
//!  users ── claims, reservations ─▶ Grid ◀─ reports ── Node: Items, a disk that keeps what it has
//! ```
//! In the end all is well again, and then nothing may be left: each claim was served once, by a volume that was built once;
//! no volume is nobody's; and there were never more ready than the pool may have. What is reserved is checked as a
//! [`history`](crate::history).

mod node;
mod users;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::rc::Rc;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use api::operation::OperationState;
use api::pool::{Claimed, SetPool};
use placement::testing::Coordinator;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::sleep;

use crate::chance::Chance;
use crate::grid::{Flaw, Grid};
use crate::history::claims::{self, Given};
use crate::history::reservations::{Answered, Asked, Nodes};
use crate::history::{History, Verdict, check};
use crate::trace::Trace;
use node::Node;

const NODES: usize = 3;
/// CPUs of each.
const CPUS: usize = 4;
/// Of a volume, in bytes.
const SIZE: u64 = 1 << 20;
const POOL: &str = "p";
/// Threshold, target and maximum.
const AT_FIRST: [u32; 3] = [3, 6, 8];
/// The same, when nobody claims any more.
const IN_THE_END: [u32; 3] = [1, 2, 3];
/// Troubles begin before this, in milliseconds, and users want something until then.
const TROUBLED: u64 = 60_000;
/// Nothing lasts longer: a node does not count as away by it.
const SHORT: u64 = 12_000;
/// The end of a run: whoever is silent counts as away by then, and pools are full.
const END: Duration = Duration::from_secs(150);
/// How often what there is is counted.
const COUNTS: Duration = Duration::from_millis(50);
/// How long one waits for an answer.
const PATIENCE: Duration = Duration::from_secs(8);
/// Steps of the search for an order.
const STEPS: u64 = 1 << 20;

/// A bug to plant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Goals forget now and then what a transaction believes.
    ForgetfulGoals,
    /// What is reserved forgets it.
    ForgetfulReservations,
    /// A node builds what it was told though it has built it before.
    BuildsAgain,
    /// A node's disk forgets, when the power goes, what was handed out last.
    Unsynced,
    /// A node does not say what it has ready.
    Silent,
    /// A node calls removed what is still there.
    Leaks,
}

/// All of them, with what is said of each when it is found.
pub const BUGS: [(Bug, &str); 6] = [
    (Bug::ForgetfulGoals, "claim"),
    (Bug::ForgetfulReservations, "reservations"),
    (Bug::BuildsAgain, "built twice"),
    (Bug::Unsynced, "no node has given that"),
    (Bug::Silent, "at most"),
    (Bug::Leaks, "is nobody's"),
];

impl fmt::Display for Bug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl FromStr for Bug {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = BUGS.into_iter().find(|(bug, _)| bug.to_string() == name);
        let names = || BUGS.map(|(bug, _)| bug.to_string()).join(", ");
        found.map(|(bug, _)| bug).ok_or_else(|| format!("there is no bug {name}, but {}", names()))
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
    /// Volumes that were built.
    pub built: u64,
    /// Claims that were served.
    pub claimed: u64,
    /// Requests for which a node was reserved.
    pub reserved: u64,
    /// Power cuts of nodes, and of the state.
    pub power_cuts: u64,
    /// Runs in which the lead moved.
    pub moved: u64,
    /// Histories for which the search was given up: nothing is shown by them.
    pub undecided: u64,
}

impl Counts {
    /// Adds those of another run.
    pub fn add(&mut self, other: &Self) {
        self.built += other.built;
        self.claimed += other.claimed;
        self.reserved += other.reserved;
        self.power_cuts += other.power_cuts;
        self.moved += other.moved;
        self.undecided += other.undecided;
    }
}

/// What all share.
struct World {
    seed: u64,
    bug: Option<Bug>,
    trace: Trace,
    grid: Rc<Grid>,
    /// Troubles are short: nobody is ever away, so that what is counted must be right at every moment.
    short: bool,
    reservations: History<Asked, Answered>,
    seen: RefCell<Seen>,
}

/// What happened.
#[derive(Default)]
struct Seen {
    /// Volumes, by the items that had them built.
    built: BTreeSet<String>,
    /// Requests that were taken.
    claims: BTreeSet<String>,
    answered: Vec<Given>,
    leaders: BTreeSet<String>,
    power_cuts: u64,
    violations: Vec<String>,
}

impl World {
    fn new(seed: u64, bug: Option<Bug>, print: bool) -> Rc<Self> {
        let flaw = match bug {
            Some(Bug::ForgetfulGoals) => Some(Flaw::Forgets("goals/")),
            Some(Bug::ForgetfulReservations) => Some(Flaw::Forgets("reserved/")),
            _ => None,
        };
        let trace = Trace::start(print);
        Rc::new(Self {
            seed,
            bug,
            grid: Grid::new(seed, &trace, NODES, flaw),
            trace,
            short: seed.is_multiple_of(2),
            reservations: History::default(),
            seen: RefCell::default(),
        })
    }

    /// The first of each kind is enough.
    fn violated(&self, what: String) {
        self.trace.note(format_args!("violated: {what}"));
        let mut seen = self.seen.borrow_mut();
        if seen.violations.len() < 20 {
            seen.violations.push(what);
        }
    }

    fn report(&self, nodes: &[Rc<Node>]) -> Report {
        let there: Vec<Given> = nodes.iter().flat_map(|node| node.given()).collect();
        let mut seen = self.seen.take();
        seen.violations.extend(claims::check(&seen.answered, &there));
        let of_users = there.iter().filter(|given| seen.claims.contains(&given.request)).count();
        let operations = self.reservations.operations();
        let verdict = check(&Nodes { count: NODES as u8, room: CPUS }, &operations, STEPS);
        if let Verdict::Not(_) = verdict {
            seen.violations.push(format!("reservations: {verdict}"));
        }
        let reserved = |op: &&crate::history::Operation<Asked, Answered>| {
            matches!((&op.input, &op.output), (Asked::Reserve(_), Some(Answered::On(_))))
        };
        let counts = Counts {
            built: seen.built.len() as u64,
            claimed: of_users as u64,
            reserved: operations.iter().filter(reserved).count() as u64,
            power_cuts: seen.power_cuts,
            moved: u64::from(seen.leaders.len() > 1),
            undecided: u64::from(matches!(verdict, Verdict::Undecided(_))),
        };
        Report { digest: self.trace.digest().0, violations: seen.violations, counts }
    }
}

/// Runs a seed, with a bug if one is to be planted; `print` shows every event.
///
/// # Panics
///
/// If there is no runtime.
pub fn run(seed: u64, bug: Option<Bug>, print: bool) -> Report {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().expect("a runtime");
    let local = LocalSet::new();
    let report = local.block_on(&runtime, async {
        let world = World::new(seed, bug, print);
        world.grid.start();
        let nodes: Vec<_> = (0..NODES).map(|n| Node::new(&world, n)).collect();
        nodes.iter().for_each(|node| node.begin());
        spawn_local(users::all(Rc::clone(&world)));
        spawn_local(suffer(Rc::clone(&world), nodes.clone()));
        spawn_local(count(Rc::clone(&world), nodes.clone()));
        spawn_local(leads(Rc::clone(&world)));
        world.trace.until(END).await;
        ends(&world, &nodes).await;
        world.report(&nodes)
    });
    drop(local);
    report
}

/// Things go wrong, and come right again.
async fn suffer(world: Rc<World>, nodes: Vec<Rc<Node>>) {
    let mut chance = Chance::new(world.seed, "troubles");
    // One thing at a time happens to a node, so that it is not silent for longer.
    let turns: Rc<[tokio::sync::Mutex<()>; NODES]> = Rc::default();
    let mut at = 0;
    loop {
        at += chance.within(500..8_000);
        if at > TROUBLED {
            return;
        }
        world.trace.until(Duration::from_millis(at)).await;
        let most = if world.short { SHORT } else { 40_000 };
        let lasts = Duration::from_millis(match chance.one_in(2) {
            true => chance.within(10..2000),
            false => chance.within(2000..most),
        });
        let node = chance.within(0..NODES as u64) as usize;
        let placement = chance.pick(&[0, 1]) % world.grid.placements.len();
        let what = chance.within(0..9);
        world.trace.note(format_args!("trouble {what} of {node} or {placement} for {lasts:?}"));
        let (world, host, turns) = (Rc::clone(&world), Rc::clone(&nodes[node]), Rc::clone(&turns));
        spawn_local(async move {
            let placement = &world.grid.placements[placement];
            match what {
                0..=4 if turns[node].try_lock().is_err() => {}
                0..=2 => {
                    let _turn = turns[node].lock().await;
                    world.seen.borrow_mut().power_cuts += 1;
                    host.power_cut(lasts).await;
                }
                3 => {
                    let _turn = turns[node].lock().await;
                    host.stops(lasts).await;
                }
                4 => {
                    let _turn = turns[node].lock().await;
                    world.grid.cut(node, true);
                    sleep(lasts).await;
                    world.grid.cut(node, false);
                }
                5 => placement.dies(lasts).await,
                // Reservations have their time by that clock.
                6 => placement.stops(lasts, 10).await,
                7 => placement.is_cut_off(lasts).await,
                _ => {
                    world.seen.borrow_mut().power_cuts += 1;
                    world.grid.etcd.power_cut(lasts.min(Duration::from_secs(10))).await;
                }
            }
        });
    }
}

/// What there is, at every moment.
async fn count(world: Rc<World>, nodes: Vec<Rc<Node>>) {
    let mut most = 0;
    loop {
        sleep(COUNTS).await;
        let ready: usize = nodes.iter().map(|node| node.ready()).sum();
        let [_, _, allowed] = AT_FIRST;
        if world.short && ready > most.max(allowed as usize) {
            most = ready;
            world.violated(format!("{ready} are ready, of {allowed} at most"));
        }
    }
}

/// Who leads, now and then.
async fn leads(world: Rc<World>) {
    loop {
        let look = async |placement: Arc<Coordinator>| placement.status().await;
        if let Ok(status) = world.grid.ask(None, PATIENCE, look).await {
            let leader = status.leader.map(|leader| leader.name);
            world.seen.borrow_mut().leaders.extend(leader);
        }
        sleep(Duration::from_secs(2)).await;
    }
}

/// When all is quiet: everything that was asked for has ended, and nothing is left.
async fn ends(world: &Rc<World>, nodes: &[Rc<Node>]) {
    let claims = world.seen.borrow().claims.clone();
    let mut told = BTreeMap::new();
    for request in claims {
        let asked = request.clone();
        let look = async move |placement: Arc<Coordinator>| {
            placement.operation(&asked, Duration::ZERO).await
        };
        let Some(ended) = world.insist(look).await else { continue };
        match (ended.state, ended.result) {
            (OperationState::Done, Some(result)) => {
                let claimed: Claimed = serde_json::from_value(result).expect("our own type");
                told.insert(request, claimed.id);
            }
            (state, _) => {
                world.violated(format!("claim {request}: {state:?}, {:?}", ended.error));
            }
        }
    }
    for given in nodes.iter().flat_map(|node| node.given()) {
        let users = !given.request.starts_with(node::HERE);
        if users && told.get(&given.request) != Some(&given.volume) {
            world.violated(format!("{given:?} is nobody's: its claim was told otherwise"));
        }
    }
    if let Some(wrong) = is_as_set(world, nodes).await {
        world.violated(wrong);
    }
    for node in nodes {
        if let Some(left) = node.left() {
            world.violated(left);
        }
    }
}

/// What is wrong with the pool, if it does not become right.
async fn is_as_set(world: &Rc<World>, nodes: &[Rc<Node>]) -> Option<String> {
    let [low, _, most] = IN_THE_END;
    let mut wrong = None;
    // Who has just begun to lead has to hear all nodes first.
    for _ in 0..20 {
        let look = async |placement: Arc<Coordinator>| placement.pool(POOL).await;
        let pool = world.insist(look).await?;
        let ready: usize = nodes.iter().map(|node| node.ready()).sum();
        let counts = pool.ready as usize == ready && pool.building == 0;
        if counts && (low..=most).contains(&pool.ready) {
            return None;
        }
        wrong = Some(format!(
            "{ready} are ready, {} by placement's account, and {} being built, of {low} to {most}; {}",
            pool.ready, pool.building, pool.why
        ));
        sleep(Duration::from_secs(2)).await;
    }
    wrong
}

impl World {
    /// Asks until there is an answer.
    async fn insist<T: 'static, F: Future<Output = image::Result<T>> + 'static>(
        &self,
        work: impl FnOnce(Arc<Coordinator>) -> F + Clone + 'static,
    ) -> Option<T> {
        for _ in 0..20 {
            if let Ok(found) = self.grid.ask(None, PATIENCE, work.clone()).await {
                return Some(found);
            }
            sleep(Duration::from_millis(100)).await;
        }
        self.violated("nobody answers, though all is well".to_owned());
        None
    }
}

fn set([low, target, max]: [u32; 3]) -> SetPool {
    let set = format!(r#"{{"size": {SIZE}, "low": {low}, "target": {target}, "max": {max}}}"#);
    serde_json::from_str(&set).expect("a pool")
}
