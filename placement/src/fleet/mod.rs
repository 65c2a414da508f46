//! The fleet: what nodes have, what they are to do, and who sees to it.
//!
//! ```text
//!  node ── report ──▶ heard ─┐                       ┌─▶ goals ── answer to its report ──▶ node
//!  admin ── pools ──▶ state ─┼─▶ control: one pass ──┤
//!  anybody ── claim ─▶ state ┘   (plan, claims)      └─▶ operations ──▶ whoever waits
//! ```
//! A pass takes what the state has from its mirror in memory, decides, and writes what has changed, each node's goal and the operations
//! that go with it in one transaction. A transaction that somebody else was faster than is dropped: the next pass
//! decides anew. Nothing on the path of the data waits for any of this.

mod board;
mod cancel;
pub(crate) mod claims;
mod control;
mod demand;
mod demands;
mod facts;
mod goals;
mod heard;
mod hearing;
mod hold;
mod keeps;
pub(crate) mod leases;
pub(crate) mod life;
mod memory;
mod mirror;
mod operations;
pub(crate) mod pinned;
mod plan;
pub(crate) mod pools;
mod reads;
mod released;
mod reserve;
mod said;
mod settle;
mod stats;
#[cfg(test)]
mod tests;
mod waiting;
mod writes;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::goal::{Goal, GoalItem, GoalState, NodeInfo, NodeList, StatusReport, Told};
use api::grid::PlacementInfo;
use api::life::Standing;
use api::operation::{Operation, OperationList};
use api::place::Policy;
use api::stats::{NodeHistory, Since, StatsList};
use image::{Digest, Error, Kind, Result};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};

use crate::catalog::Catalog;
use crate::clock::Clock;
use crate::member::check_name;
use crate::state::State;
use crate::state::keys::{Transaction, encode};
use board::Board;
use hearing::Hearing;
use hold::Stands;
use plan::Plan;
use waiting::Waiting;

pub(crate) use demand::Demand;
pub(crate) use hearing::Answers;
pub(crate) use keeps::Keep;
pub(crate) use leases::Lease;
pub(crate) use life::Stood;
pub(crate) use operations::Kept;
pub(crate) use released::GivenBack;
pub(crate) use reserve::Book;
pub(crate) use stats::Stats;

/// How long an answer waits at most for what is asked for.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How long one waits before it looks again by itself: another replica may have made the change.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Tries of a change that others are faster with.
const TRIES: u32 = 16;

/// A node that has reported, as it is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeEntry {
    /// When it first did, in seconds since 1970.
    since: u64,
}

/// How the fleet is kept.
pub(crate) struct Terms {
    /// Seconds for which a node has its leases after it was heard of.
    pub lease_secs: u64,
    /// What holds wherever something is placed.
    pub policy: Policy,
    /// This placement, as others find it.
    pub me: PlacementInfo,
    /// What nodes measure, of which there is nothing yet.
    pub stats: Stats,
}

#[cfg(test)]
impl Default for Terms {
    fn default() -> Self {
        let stats = Stats::new(Vec::new()).expect("no levels are good levels");
        let me = PlacementInfo { name: "t".into(), address: "t:1".into() };
        Self { lease_secs: 900, policy: Policy::default(), me, stats }
    }
}

/// See the [module](self).
pub(crate) struct Fleet {
    state: State,
    clock: Clock,
    catalog: Arc<Catalog>,
    /// What holds wherever something is placed.
    policy: Policy,
    /// This placement, as others find it.
    me: PlacementInfo,
    /// Seconds for which a node has its leases after it was heard of.
    lease_secs: u64,
    hearing: Hearing,
    /// What the state has, for who decides: one at a time.
    board: tokio::sync::Mutex<Board>,
    stats: Stats,
    /// One choice that is reserved at a time.
    choosing: tokio::sync::Mutex<()>,
    /// What was planned last, by pool: for people.
    planned: Mutex<BTreeMap<String, Plan>>,
    /// How images that must be at hand stood last, by name: for people.
    kept: Mutex<BTreeMap<String, (Digest, Stands)>>,
    /// Volumes that were given back since this placement was started, and the bytes that they have freed.
    released: (AtomicU64, AtomicU64),
    /// It is at its end.
    over: watch::Sender<bool>,
    /// There is something to look at.
    wake: Notify,
    /// Those who wait for a goal or an operation.
    waiting: Waiting,
}

const UNPOISONED: &str = "no panics while locked";

/// How many items of a goal are not done. What is held stays there when it is.
fn open(goal: &GoalState, report: Option<&StatusReport>) -> u32 {
    let over = report.map(StatusReport::over).unwrap_or_default();
    let is_held =
        |item: &GoalItem| matches!(item.goal, Goal::Hold { .. }) && over.contains(item.id.as_str());
    goal.items.iter().filter(|item| !is_held(item)).count() as u32
}

impl Fleet {
    pub(crate) fn new(
        state: State,
        clock: Clock,
        catalog: Arc<Catalog>,
        Terms { lease_secs, policy, me, stats }: Terms,
    ) -> Arc<Self> {
        Arc::new(Self {
            lease_secs,
            policy,
            me,
            state,
            clock,
            catalog,
            hearing: Hearing::default(),
            board: tokio::sync::Mutex::default(),
            stats,
            choosing: tokio::sync::Mutex::default(),
            planned: Mutex::default(),
            kept: Mutex::default(),
            released: Default::default(),
            over: watch::Sender::new(false),
            wake: Notify::new(),
            waiting: Waiting::default(),
        })
    }

    /// Takes a node's report; the answer is its goal, at once if that is not the one that the report answers, or
    /// else when it changes or after `wait`.
    pub(crate) async fn report(
        &self,
        node: &str,
        mut report: StatusReport,
        wait: Duration,
    ) -> Result<Told> {
        if self.admit(node, &report).await? {
            self.note_reads(node, &report).await?;
            self.note_released(node, &report).await?;
        } else {
            // It is remembered, or the newer one says it too.
            report.erased.clear();
        }
        said::once(&mut report);
        let recorded: Vec<String> = report.erased.iter().map(|one| one.volume.clone()).collect();
        let (measured, run) = (report.stats.take(), report.run.clone());
        let (now, answers) = (self.clock.now(), (report.generation, report.goal));
        let (leases, released) = (report.leases.clone(), report.released.clone());
        let ticks = self.clock.ticks();
        let news = self.hearing.with(|reign| -> Result<_> {
            let known = reign.reports.get(node).is_some();
            let news = reign.reports.take(node, report, ticks)?;
            if news {
                reign.news.insert(node.to_owned());
            }
            Ok(news.then_some(known))
        })??;
        match measured {
            Some(measured) => self.stats.take(node, &run, *measured, ticks),
            None => self.stats.heard(node, ticks),
        }
        if news == Some(false) {
            self.know(node, now).await?;
        }
        self.release(node, &released).await?;
        // What is as it was is no reason to decide anything anew.
        if news.is_some() {
            self.wake.notify_one();
        }
        let look = || async {
            let goal = match self.goal(node).await {
                // It does what it was told before, and has its leases.
                Err(error) if error.kind() == Kind::Corrupt => GoalState::default(),
                goal => goal?,
            };
            let lost = self.lost(node, &leases).await?;
            let stats_secs = self.stats.wanted(node, self.clock.ticks());
            let (lease_secs, recorded) = (self.lease_secs, recorded.clone());
            Ok(Told { goal, lease_secs, lost, recorded, stats_secs })
        };
        let news = |told: &Told| {
            (told.goal.generation, told.goal.version) > answers
                || !told.lost.is_empty()
                || !told.recorded.is_empty()
        };
        self.until(&goals::key(node), wait, look, news).await
    }

    /// Remembers that there is such a node, whatever becomes of this process.
    async fn know(&self, node: &str, now: u64) -> Result<()> {
        let key = format!("nodes/{node}");
        if self.state.get::<NodeEntry>(&key).await?.is_some() {
            return Ok(());
        }
        let entry = NodeEntry { since: now };
        let made = Transaction::default().unchanged(&key, None).put(&key, encode(&entry));
        match self.hearing.lead()?.commit(made).await {
            // Another report of it was faster.
            Err(error) if error.kind() == Kind::Conflict => Ok(()),
            done => done,
        }
    }

    /// Looks until something is as it should be, or for so long; what it was last.
    async fn until<T, L: Future<Output = Result<T>>>(
        &self,
        key: &str,
        wait: Duration,
        look: impl Fn() -> L,
        enough: impl Fn(&T) -> bool,
    ) -> Result<T> {
        let waiter = self.waiting.on(key);
        let waiting = async {
            loop {
                let told = waiter.told.notified();
                tokio::pin!(told);
                told.as_mut().enable();
                let found = look().await?;
                if enough(&found) || self.waiting.is_closed() {
                    return Ok(found);
                }
                let _ = tokio::time::timeout(LOOK_AGAIN, told).await;
            }
        };
        match tokio::time::timeout(wait.min(LONGEST_WAIT), waiting).await {
            Ok(found) => found,
            Err(_) => look().await,
        }
    }

    /// Ends all waiting: whoever waits is answered with what there is.
    pub(crate) fn close(&self) {
        self.waiting.close();
    }

    /// Gives up the lead, when nobody is answered any more.
    pub(crate) fn end(&self) {
        self.over.send_replace(true);
    }

    fn is_over(&self) -> bool {
        *self.over.borrow()
    }

    /// Waits for the end.
    async fn ended(&self) {
        // The sender is ours, so it is there.
        let _ = self.over.subscribe().wait_for(|over| *over).await;
    }

    /// Says that the goals of nodes, or operations, have changed, by their keys.
    fn tell(&self, keys: impl IntoIterator<Item = String>) {
        keys.into_iter().for_each(|key| self.waiting.tell(&key));
        self.wake.notify_one();
    }

    /// What a node is to do.
    pub(crate) async fn goal(&self, node: &str) -> Result<GoalState> {
        check_name(node)?;
        let found = self.state.get::<GoalState>(&goals::key(node)).await?;
        Ok(found.map(|(goal, _)| goal).unwrap_or_default())
    }

    /// All nodes that have ever reported.
    pub(crate) async fn nodes(&self) -> Result<NodeList> {
        let (known, _) = self.state.list_readable::<NodeEntry>("nodes/").await?;
        let (goals, _) = self.state.list_readable::<GoalState>("goals/").await?;
        let standings = self.standings().await?;
        let (heard, now) = (self.hearing.with(|r| r.reports.clone())?, self.clock.ticks());
        let told: BTreeMap<&str, &GoalState> =
            goals.iter().map(|(node, goal, _)| (node.as_str(), goal)).collect();
        let info = |(name, _, _): (String, NodeEntry, _)| {
            let last = heard.get(&name);
            let report = last.map(|h| &*h.report);
            let goal = told.get(name.as_str());
            let ready = report.iter().flat_map(|r| &r.ready).filter(|v| v.state == "ready");
            NodeInfo {
                heard: last.map(|h| now.saturating_sub(h.ticks)),
                away: last.is_none_or(|h| h.is_away(now)),
                standing: standings.of(&name),
                goal: goal.map_or(0, |g| g.version),
                answers: report.map_or(0, |r| r.goal),
                open: goal.map_or(0, |g| open(g, report)),
                ready: ready.count() as u32,
                disk: report.map(|r| r.disk).unwrap_or_default(),
                name,
            }
        };
        let nodes = known.into_iter().map(info);
        Ok(NodeList { nodes: nodes.filter(|n| n.standing != Standing::Forgotten).collect() })
    }

    /// What nodes have measured last; with `every`, nodes measure so many seconds apart for a while.
    pub(crate) fn stats(&self, every: u32) -> StatsList {
        let released = |of: &AtomicU64| of.load(Ordering::Relaxed);
        StatsList {
            released_volumes: released(&self.released.0),
            released_bytes: released(&self.released.1),
            ..self.stats.list(every, self.clock.ticks())
        }
    }

    /// What a node has measured, and a part of its past.
    pub(crate) fn node_stats(&self, node: &str, since: Since) -> Result<NodeHistory> {
        check_name(node)?;
        self.stats.history(node, since, self.clock.ticks())
    }

    /// What was asked for lately, the newest first.
    pub(crate) async fn operations(&self) -> Result<OperationList> {
        let all = operations::all(&self.state).await?;
        let mut operations: Vec<Operation> = all.into_iter().map(|(k, _)| k.operation).collect();
        operations.sort_by(|a, b| (b.created, &b.id).cmp(&(a.created, &a.id)));
        Ok(OperationList { operations })
    }

    /// One of them, when it has ended or after `wait`.
    pub(crate) async fn operation(&self, id: &str, wait: Duration) -> Result<Operation> {
        let over = |now: &Operation| now.state.is_final();
        self.until(&operations::key(id), wait, || self.operation_now(id), over).await
    }

    async fn operation_now(&self, id: &str) -> Result<Operation> {
        let found = operations::get(&self.state, id).await?;
        let gone = || Error::new(Kind::Gone, format!("operation {id}: there is none"));
        Ok(found.ok_or_else(gone)?.0.operation)
    }
}
