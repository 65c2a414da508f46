//! One pass: of the nodes that have said something new what is over is taken out, and claims that nobody serves are told
//! on. Every so often all nodes are looked at, and pools are filled.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::goal::{Goal, ReadyVolume};
use api::life::Standing;
use api::place::Policy;
use api::pool::{PoolBound, PoolDemand};
use image::{Kind, Result};
use tokio::time::Instant;

use super::board::Board;
use super::demands::{self, Planned, Room};
use super::goals::{self, Goals};
use super::heard::{AWAY, Reports};
use super::hearing::LED;
use super::life::Standings;
use super::memory::{Failures, Memory};
use super::operations::{self, Kept, Work};
use super::plan::{NodeView, Nodes, Plan, PoolView, plan};
use super::writes::{Write, Writes};
use super::{Fleet, UNPOISONED};
use crate::state::Lead;
use crate::state::keys::{Transaction, Versioned};

/// A pass at least so often: nodes go away without a word.
const TICK: Duration = Duration::from_secs(1);
/// How long the one who decides may be silent before another does: as short as etcd takes it, since who asks waits for
/// as long.
const LEAD: Duration = Duration::from_secs(2);
/// Claims that one pass ends, or tells nodes of: a transaction has its limits, and there is a next pass.
pub(super) const CLAIMS: usize = 48;
/// Builds that one look at all pools decides on, each among all nodes: no look takes much longer than another (58 ms
/// without any, of 10,000 nodes: `compare nodes`).
const BUILDS: u32 = 64;
/// Pause between two passes: what comes together is decided together.
const BREATH: Duration = Duration::from_millis(5);
/// All nodes are looked at for this part of the time at most, one in so many.
const ALL: u32 = 8;
/// Seconds between two looks for operations that may be forgotten.
const FORGETS: u64 = 600;
/// What a pass looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// Nodes that have said something new.
    News,
    /// All nodes, and pools.
    All,
}

/// Everything as of one moment, and what is to become of it.
pub(super) struct Pass<'a> {
    pub(super) now: u64,
    pub(super) ticks: u64,
    /// Of the nodes that are looked at.
    pub(super) heard: &'a Reports,
    pub(super) standings: Standings,
    pub(super) goals: Goals<'a>,
    /// Operations that are not over.
    pub(super) open: Vec<(Kept, Versioned)>,
    /// Of those, the ones that have changed.
    pub(super) touched: BTreeSet<usize>,
}

impl Fleet {
    /// Sees to everything to the end; of several placements one does.
    pub(crate) async fn control(self: Arc<Self>) {
        while !self.is_over() {
            let led = tokio::select! {
                // In this order always: a seed of the simulation is the whole of its run.
                biased;
                led = self.state.lead(LED, &self.me, LEAD) => led,
                () = self.ended() => return,
            };
            match led {
                Ok(lead) => self.reign(Arc::new(lead)).await,
                Err(error) => {
                    tracing::error!(%error, "nobody decides what nodes are to do; it is tried again");
                    tokio::time::sleep(TICK).await;
                }
            }
        }
    }

    /// Sees to everything as long as nobody else may.
    async fn reign(&self, lead: Arc<Lead>) {
        let mut memory = Memory::default();
        // What another has written meanwhile is listed anew.
        *self.board.lock().await = Board::default();
        self.begin(Arc::clone(&lead));
        let mut all_at = now();
        while lead.holds() && !self.is_over() {
            let look = if now() >= all_at { Look::All } else { Look::News };
            if let Err(error) = self.pass(&lead, &mut memory, look).await {
                tracing::error!(%error, "what nodes are to do was not decided; it is tried again");
            }
            let ended = now();
            if look == Look::All {
                let took = memory.took;
                all_at = ended + took * (ALL - 1);
                let micros = took.as_micros() as u64;
                // It may lead no longer.
                let _ = self.hearing.with(|reign| reign.look_micros = Some(micros));
            }
            // What was not looked at is looked at when it may be.
            let nap =
                if look == Look::All { TICK } else { all_at.saturating_duration_since(ended) };
            tokio::select! {
                biased;
                _ = tokio::time::timeout(nap.min(TICK), self.wake.notified()) => {}
                () = lead.lost() => {}
                () = self.ended() => {}
            }
            tokio::time::sleep(BREATH).await;
        }
        self.hearing.end();
        if let Err(error) = lead.resign().await {
            tracing::warn!(%error, "others wait until the lead of this placement has lapsed");
        }
    }

    /// From now on nodes are heard here.
    pub(crate) fn begin(&self, lead: Arc<Lead>) {
        // The lead was there before this moment, so nobody else has heard anybody since.
        self.hearing.begin(lead, self.clock.ticks());
    }

    /// One pass.
    pub(super) async fn pass(&self, lead: &Lead, memory: &mut Memory, look: Look) -> Result<()> {
        let mut board = self.board.lock().await;
        // Not before: claims have their turns, and looking is not what takes so long then.
        let begun = now();
        board.catch_up(&self.state).await?;
        let mended = board.mended();
        let taken = self.hearing.with(|reign| reign.reports.taken())?;
        memory.demands.count(&mut board, taken, self.clock.now());
        let claims = board.open.entries().values().any(|(kept, _)| kept.node().is_none());
        let (heard, news, since) = self.hearing.with(|reign| {
            reign.news.extend(mended);
            let heard = match look == Look::All || claims {
                true => reign.reports.clone(),
                false => reign.reports.of(&reign.news),
            };
            (heard, std::mem::take(&mut reign.news), reign.since)
        })?;
        let decided = self.decide(&board, (&heard, &news, since), memory, look).await;
        let written = match decided {
            Ok(writes) => self.write(lead, &mut board, writes).await,
            Err(error) => Err(error),
        };
        let (again, done) = match written {
            Ok(again) => (again, Ok(())),
            // Some of it may be written: it is looked at as if it were new.
            Err(error) => (news, Err(error)),
        };
        if !again.is_empty() {
            self.hearing.with(|reign| reign.news.extend(again))?;
            self.wake.notify_one();
        }
        self.keep_demands(lead, &mut board, memory).await;
        drop(board);
        memory.took = now() - begun;
        done?;
        self.forget_operations(lead, memory).await
    }

    /// What is to be written: for each node that is told something else the goal and the operations that go with it.
    async fn decide(
        &self,
        board: &Board,
        (heard, news, since): (&Reports, &BTreeSet<String>, u64),
        memory: &mut Memory,
        look: Look,
    ) -> Result<Writes> {
        let (now, ticks) = (self.clock.now(), self.clock.ticks());
        let mut pass = Pass {
            now,
            ticks,
            heard,
            standings: board.standings(),
            goals: board.goals(),
            open: board.open.entries().values().cloned().collect(),
            touched: BTreeSet::new(),
        };
        let left = pass.settle(news, memory);
        let more = self.tell_claims(&mut pass).await?;
        let mut kept = Vec::new();
        if look == Look::All {
            pass.settle_away();
            // Just started, a node that has not been heard of yet is not away.
            let all = board.nodes.entries().keys().all(|node| heard.get(node).is_some());
            if all || ticks >= since + AWAY {
                self.plan_pools(board, &mut pass, memory).await?;
                kept = self.plan_keeps(board, &mut pass, memory).await?;
            }
        }
        if more {
            self.wake.notify_one();
        }
        let mut writes = Writes { left, ..pass.writes() };
        writes.all.extend(kept);
        Ok(writes)
    }

    /// Writes the demand for pools down. What is not written is only forgotten with this process.
    async fn keep_demands(&self, lead: &Lead, board: &mut Board, memory: &mut Memory) {
        let Some((write, keys)) = memory.demands.keep(board, self.clock.now()) else { return };
        match lead.commit(write).await {
            Ok(()) => board.wrote(&keys),
            Err(error) if error.kind() == Kind::Conflict => {}
            Err(error) => tracing::warn!(%error, "the demand for pools is not written down"),
        }
    }

    /// Forgets operations that are long over.
    async fn forget_operations(&self, lead: &Lead, memory: &mut Memory) -> Result<()> {
        let now = self.clock.now();
        if now < memory.forget {
            return Ok(());
        }
        memory.forget = now + FORGETS;
        for (kept, seen) in operations::all(&self.state).await? {
            if operations::is_over(&kept.operation, now) {
                let id = operations::key(&kept.operation.id);
                lead.commit(Transaction::default().unchanged(&id, Some(&seen)).delete(&id)).await?;
            }
        }
        Ok(())
    }

    async fn plan_pools(
        &self,
        board: &Board,
        pass: &mut Pass<'_>,
        memory: &mut Memory,
    ) -> Result<()> {
        let mut pools: Vec<Planned> = Vec::new();
        for (name, (set, _)) in board.pools.entries() {
            match self.kind_of(set).await {
                Ok(kind) => pools.push((name.clone(), set.clone(), kind)),
                Err(error) => tracing::warn!(%error, pool = name, "a pool that is not filled"),
            }
        }
        memory.failed.retain(|_, failed| failed.is_of_use(pass.now));
        // The first has been first often enough, if not all had their turn.
        let turn = memory.turn % pools.len().max(1);
        pools.rotate_left(turn);
        let room = pass.room(&self.policy);
        let wished = memory.demands.apply(board, pools, room, pass.now);
        let (pools, mut demands): (Vec<Planned>, Vec<PoolDemand>) = wished.into_iter().unzip();
        let (mut plans, more) = pass.plan(&pools, memory, &self.policy);
        if more {
            memory.turn = turn + 1;
            self.wake.notify_one();
        }
        for (((name, set, _), plan), demand) in pools.iter().zip(&mut plans).zip(&mut demands) {
            if plan.throttled && matches!(demand.bound, None | Some(PoolBound::Floor)) {
                demand.bound = Some(PoolBound::Bandwidth);
            }
            plan.why += &demands::why(demand, set.follow.is_some());
            plan.demand = Some(std::mem::take(demand));
            let failed = memory.failed.iter().filter(|((pool, _), _)| pool == name);
            for ((_, node), Failures { why, .. }) in failed {
                plan.why += &format!("; {node} could not build one: {why}");
            }
        }
        for ((name, _, kind), plan) in pools.iter().zip(&plans) {
            for node in &plan.build {
                let (pool, kind) = (name.clone(), kind.clone());
                pass.goals.add(node, Goal::Build { pool, kind, rate: plan.rate });
            }
            for (node, volume) in &plan.discard {
                pass.goals.add(node, Goal::Discard { volume: volume.clone() });
            }
            match plan.filling {
                true => memory.filling.insert(name.clone()),
                false => memory.filling.remove(name),
            };
        }
        let planned = pools.into_iter().map(|(name, _, _)| name).zip(plans).collect();
        *self.planned.lock().expect(UNPOISONED) = planned;
        Ok(())
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "how long a look takes, for when the next one is due"
)]
fn now() -> Instant {
    Instant::now()
}

impl Kept {
    /// The node that it is with.
    pub(super) fn node(&self) -> Option<&String> {
        let Work::Claim { told, .. } = &self.work;
        told.as_ref().map(|(node, _)| node)
    }
}

impl Pass<'_> {
    /// Each node's goal, and the operations that go with it.
    fn writes(self) -> Writes {
        let Pass { goals, open, mut touched, .. } = self;
        let mut all = Vec::new();
        for node in goals.changed() {
            let mut write = goals.write(&node, Transaction::default());
            let mut keys = vec![goals::key(&node)];
            for at in touched.clone() {
                if open[at].0.node() == Some(&node) {
                    write = open[at].0.write(Some(&open[at].1), write);
                    keys.push(operations::key(&open[at].0.operation.id));
                    touched.remove(&at);
                }
            }
            all.push(Write { node: Some(node), keys, write });
        }
        all.extend(touched.into_iter().map(|at| {
            let (kept, seen) = &open[at];
            let keys = vec![operations::key(&kept.operation.id)];
            let write = kept.write(Some(seen), Transaction::default());
            Write { node: kept.node().cloned(), keys, write }
        }));
        Writes { all, left: BTreeSet::new() }
    }

    pub(super) fn is_away(&self, node: &str) -> bool {
        self.heard.get(node).is_none_or(|last| last.is_away(self.ticks))
    }

    /// For each pool what is to be done; and whether there is more to be built than is decided on at a time.
    fn plan(&self, pools: &[Planned], memory: &Memory, policy: &Policy) -> (Vec<Plan>, bool) {
        let shunned = memory.shunned(self.now);
        let counts = |name: &&String| {
            self.standings.of(name) != Standing::Forgotten && self.goals.can_tell(name)
        };
        let heard = self.heard.iter().map(|(name, _)| name).filter(counts);
        let mut nodes = Nodes::new(heard.map(|name| self.node(name, &shunned)).collect(), BUILDS);
        let plans = pools.iter().map(|(name, set, kind)| {
            let filling = memory.filling.contains(name);
            plan(&PoolView { name, set, kind, filling }, &mut nodes, policy)
        });
        (plans.collect(), nodes.more())
    }

    /// What pools may have on the nodes that are to stay.
    fn room(&self, policy: &Policy) -> Room {
        let mut room = Room::default();
        for (name, last) in self.heard.iter() {
            let standing = self.standings.of(name);
            if !matches!(standing, Standing::Draining | Standing::Forgotten) {
                room.add(last.report.disk.size, standing.is_open(), policy);
            }
        }
        room
    }

    /// A node, for planning, and the pools that are not to be built for there now.
    pub(super) fn node<'a>(
        &'a self,
        name: &'a str,
        shunned: &BTreeMap<&str, Vec<&'a str>>,
    ) -> NodeView<'a> {
        let mut view = NodeView { name, away: self.is_away(name), ..NodeView::default() };
        let Some(last) = self.heard.get(name) else { return view };
        let standing = self.standings.of(name);
        view.cordoned = !standing.is_open();
        view.leaves = standing == Standing::Draining;
        (view.size, view.free) = (last.report.disk.size, last.report.disk.free);
        let (mut going, mut taken) = (BTreeSet::new(), BTreeMap::<&str, u32>::new());
        let over = last.report.over();
        for item in self.goals.items(name) {
            match &item.goal {
                Goal::Build { pool, kind, rate } => {
                    *view.building.entry(pool).or_default() += 1;
                    view.free = view.free.saturating_sub(kind.size);
                    view.pooled = view.pooled.saturating_add(kind.size);
                    // One that was told no limit may take all.
                    let fetching = view.fetching.entry(pool).or_default();
                    *fetching = fetching.saturating_add(rate.unwrap_or(u64::MAX));
                }
                Goal::Claim { build: Some(kind), .. } => {
                    view.free = view.free.saturating_sub(kind.size);
                }
                // What was handed out is not ready any more, by the same report.
                Goal::Claim { build: None, .. } if over.contains(item.id.as_str()) => {}
                // Which one it will be is the node's to choose.
                Goal::Claim { pool, build: None, .. } => *taken.entry(pool).or_default() += 1,
                Goal::Discard { volume } => drop(going.insert(volume.as_str())),
                // What is there is not free any more, by the same report.
                Goal::Hold { .. } if over.contains(item.id.as_str()) => {}
                Goal::Hold { size, .. } => view.free = view.free.saturating_sub(*size),
                Goal::Unknown => {}
            }
        }
        let stays = |v: &&ReadyVolume| {
            if going.contains(v.id.as_str()) {
                return false;
            }
            match taken.get_mut(v.pool.as_str()) {
                Some(promised) if *promised > 0 && v.state == "ready" => {
                    *promised -= 1;
                    false
                }
                _ => true,
            }
        };
        view.ready = last.report.ready.iter().filter(stays).collect();
        let pooled = view.ready.iter().map(|v| v.kind.size).fold(0, u64::saturating_add);
        view.pooled = view.pooled.saturating_add(pooled);
        view.shunned = shunned.get(name).cloned().unwrap_or_default();
        view
    }
}
