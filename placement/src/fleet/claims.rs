//! Claims: who is told to hand out a volume of a pool.
//!
//! The node that was asked for, if it has one that nobody else was promised; else the node that has the most to spare;
//! else a node is told to build one. One that is cordoned, or drains, is told only if no other has one ready. A node may have
//! given away what it had by the time that it is told: then another is, and it has cost nobody anything.

use std::time::Duration;

use api::ErrorBody;
use api::goal::{Goal, GoalItem, ItemState, ItemStatus, ReadyVolume, StatusReport};
use api::life::Standing;
use api::operation::{Operation, OperationState};
use api::pool::{Claimed, NewClaim, Served, VolumeKind};
use image::{Error, Kind, Result};

use super::control::{CLAIMS, Pass};
use super::goals::{self, Goals};
use super::heard::Reports;
use super::life::Standings;
use super::operations::{self, Kept, Work};
use super::{Fleet, TRIES};
use crate::member::check_name;
use crate::state::keys::Transaction;

/// How often nodes are told before a claim is given up.
const MOST_TRIES: usize = 8;

impl Fleet {
    /// Takes a claim; the answer is its operation when it has ended, or after `wait`. The same request again is the
    /// same operation.
    pub(crate) async fn claim(
        &self,
        owner: &str,
        pool: &str,
        asked: NewClaim,
        wait: Duration,
    ) -> Result<Operation> {
        operations::check_id(&asked.request)?;
        asked.node.as_deref().map_or(Ok(()), check_name)?;
        if asked.only && asked.node.is_none() {
            let what = "a claim that takes no other node must name one";
            return Err(Error::new(Kind::Invalid, what));
        }
        let id = asked.request.clone();
        for _ in 0..TRIES {
            if let Some((kept, _)) = operations::get(&self.state, &id).await? {
                same(&kept, pool, &asked)?;
                return self.operation(&id, wait).await;
            }
            let (set, _) = self.set_of(pool).await?;
            let kind = self.kind_of(&set).await?;
            let kept = new(owner, pool, &asked, self.clock.now());
            match self.begin_claim(kept, &kind).await {
                // Somebody else has changed this node's goal, or this is the same request twice.
                Err(error) if error.kind() == Kind::Conflict => {}
                done => {
                    done?;
                    return self.operation(&id, wait).await;
                }
            }
        }
        Err(Error::new(Kind::Retry, format!("pool {pool}: too many claim at the same time")))
    }

    /// Has a node told, if there is one, and writes both down.
    async fn begin_claim(&self, mut kept: Kept, kind: &VolumeKind) -> Result<()> {
        // One at a time, to the end of its commit: the next one sees what this one was promised.
        let mut board = self.board.lock().await;
        board.catch_up(&self.state).await?;
        let (mut goals, standings) = (board.goals(), board.standings());
        let when = (self.clock.now(), self.clock.ticks());
        let told = self
            .hearing
            .with(|reign| tell(&mut kept, kind, (&reign.reports, &standings), &mut goals, when))?;
        let write = kept.write(None, Transaction::default());
        let write = told.iter().fold(write, |write, node| goals.write(node, write));
        let keys = told.iter().map(|node| goals::key(node));
        let keys: Vec<String> = keys.chain([operations::key(&kept.operation.id)]).collect();
        self.hearing.lead()?.commit(write).await?;
        board.wrote(&keys);
        let Work::Claim { pool, .. } = kept.work;
        *board.claimed.entry(pool).or_default() += 1;
        self.tell(keys);
        Ok(())
    }

    /// Has nodes told of claims that nobody serves; says whether there are more.
    pub(super) async fn tell_claims(&self, pass: &mut Pass<'_>) -> Result<bool> {
        let mut told = 0;
        for at in 0..pass.open.len() {
            if told == CLAIMS {
                return Ok(true);
            }
            let (kept, _) = &mut pass.open[at];
            let Work::Claim { pool, told: None, .. } = &kept.work else { continue };
            let pool = pool.clone();
            let kind = match self.set_of(&pool).await {
                Ok((set, _)) => self.kind_of(&set).await,
                Err(error) => Err(error),
            };
            let before = kept.clone();
            match kind {
                Ok(kind) => {
                    let when = (pass.now, pass.ticks);
                    let seen = (pass.heard, &pass.standings);
                    tell(kept, &kind, seen, &mut pass.goals, when);
                }
                Err(error) if error.kind() == Kind::Retry => {}
                Err(error) => kept.fail(&error, pass.now),
            }
            if *kept != before {
                pass.touched.insert(at);
                told += 1;
            }
        }
        Ok(false)
    }
}

impl Pass<'_> {
    /// Ends a claim as its node says it ended, or has another node told of it.
    pub(super) fn claim_ended(
        &mut self,
        node: &str,
        request: &str,
        item: &GoalItem,
        status: &ItemStatus,
    ) {
        let found = self.open.iter().position(|(kept, _)| kept.operation.id == *request);
        let Some(at) = found else { return };
        let now = self.now;
        let kept = &mut self.open[at].0;
        let Work::Claim { asked, told, tried, .. } = &mut kept.work;
        if told.as_ref().is_none_or(|(_, told)| *told != item.id) {
            return;
        }
        self.touched.insert(at);
        if status.state == ItemState::Done {
            let served = match () {
                () if status.built => Served::Built,
                () if asked.node.as_deref().is_some_and(|wanted| wanted != node) => {
                    Served::Elsewhere
                }
                () => Served::Ready,
            };
            let (volume, id) = (asked.volume.clone(), status.volume.clone().unwrap_or_default());
            let claimed = Claimed { node: node.to_owned(), volume, id, served };
            kept.operation.result = serde_json::to_value(claimed).ok();
            kept.end(OperationState::Done, now);
            return;
        }
        let error = status
            .error
            .clone()
            .map_or_else(|| Error::new(Kind::Io, "the node does not say why"), Error::from);
        if matches!(item.goal, Goal::Claim { cancelled: true, .. }) {
            kept.operation.error =
                Some(ErrorBody::from(&error)).filter(|_| error.kind() != Kind::Cancelled);
            kept.end(OperationState::Cancelled, now);
            return;
        }
        // It has none any more, or no room for one: another may.
        if matches!(error.kind(), Kind::Gone | Kind::Full | Kind::Io) && !asked.only {
            tried.push(node.to_owned());
            *told = None;
            kept.operation.state = OperationState::Queued;
            kept.operation.step = format!("node {node}: {error}");
            return;
        }
        kept.fail(&error, now);
    }
}

fn new(owner: &str, pool: &str, asked: &NewClaim, now: u64) -> Kept {
    let operation = Operation {
        id: asked.request.clone(),
        kind: "claim".into(),
        object: format!("pools/{pool}"),
        owner: owner.into(),
        state: OperationState::Queued,
        step: String::new(),
        result: None,
        error: None,
        created: now,
        ended: None,
    };
    let (pool, asked) = (pool.to_owned(), asked.clone());
    Kept { operation, work: Work::Claim { pool, asked, told: None, tried: Vec::new() } }
}

/// Refuses an id that was used for something else.
fn same(kept: &Kept, pool: &str, asked: &NewClaim) -> Result<()> {
    let Work::Claim { pool: before, asked: then, .. } = &kept.work;
    match before == pool && then == asked {
        true => Ok(()),
        false => {
            let what = format!("request {}: it was used for something else", asked.request);
            Err(Error::new(Kind::Conflict, what))
        }
    }
}

/// Has a node told; says which. Nobody, if there is none: then it waits, or has failed.
pub(super) fn tell(
    kept: &mut Kept,
    kind: &VolumeKind,
    (heard, standings): (&Reports, &Standings),
    goals: &mut Goals<'_>,
    (now, ticks): (u64, u64),
) -> Option<String> {
    let Work::Claim { pool, asked, told, tried } = &mut kept.work;
    if tried.len() >= MOST_TRIES {
        let (times, last) = (tried.len(), &kept.operation.step);
        let what = format!("pool {pool}: {times} times a node was told and could not; {last}");
        kept.fail(&Error::new(Kind::Retry, what), now);
        return None;
    }
    let seen = (heard, standings, &*goals);
    let choice = match choose(pool, asked, kind, tried, seen, ticks) {
        // All that are there were told once: one that had none may have another by now, or room to build it.
        Err(error) if error.kind() == Kind::Retry && !tried.is_empty() => {
            choose(pool, asked, kind, &[], seen, ticks)
        }
        choice => choice,
    };
    let (node, builds) = match choice {
        Ok(chosen) => chosen,
        Err(error) if error.kind() != Kind::Retry => {
            kept.fail(&error, now);
            return None;
        }
        Err(error) => {
            kept.operation.step = error.message().to_owned();
            return None;
        }
    };
    let item = goals.add(
        &node,
        Goal::Claim {
            request: asked.request.clone(),
            pool: pool.clone(),
            volume: asked.volume.clone(),
            build: builds.then(|| kind.clone()),
            cancelled: false,
        },
    );
    *told = Some((node.clone(), item));
    kept.operation.state = OperationState::Running;
    let what = if builds { "builds a volume" } else { "hands out a volume" };
    kept.operation.step = format!("node {node} {what}");
    Some(node)
}

/// The node, and whether it has to build.
fn choose(
    pool: &str,
    asked: &NewClaim,
    kind: &VolumeKind,
    tried: &[String],
    (heard, standings, goals): (&Reports, &Standings, &Goals<'_>),
    ticks: u64,
) -> Result<(String, bool)> {
    let mut best: Option<((bool, bool), u32, &str)> = None;
    let mut builder: Option<(bool, u64, &str)> = None;
    let mut least_missing: Option<(u64, &str)> = None;
    let mut waits = false;
    for (name, last) in heard.iter().filter(|(_, last)| !last.is_away(ticks)) {
        let wanted = asked.node.as_deref() == Some(name);
        let standing = standings.of(name);
        let passed_over = (asked.only && !wanted) || tried.contains(name);
        if passed_over || standing == Standing::Forgotten || !goals.can_tell(name) {
            continue;
        }
        let (ready, promised) = promised(pool, kind, &last.report, goals.items(name));
        waits |= promised > 0;
        let spare = ready.saturating_sub(promised);
        if spare > 0 {
            best = best.max(Some(((standing.is_open(), wanted), spare, name)));
        }
        if !standing.is_open() {
            continue;
        }
        let free = last.report.disk.free;
        match kind.size.checked_sub(free) {
            None | Some(0) => builder = builder.max(Some((wanted, free, name))),
            Some(missing) => {
                least_missing =
                    [least_missing, Some((missing, name.as_str()))].into_iter().flatten().min();
            }
        }
    }
    if let Some((_, _, node)) = best {
        return Ok((node.to_owned(), false));
    }
    if let Some((_, _, node)) = builder {
        return Ok((node.to_owned(), true));
    }
    if waits {
        // What is being handed out may come to nothing, and a report may say less than there is by then.
        let what = format!("pool {pool}: waits for what becomes of those that are promised");
        return Err(Error::new(Kind::Retry, what));
    }
    if let Some((missing, node)) = least_missing {
        let what = format!(
            "pool {pool}: none is ready, and no node has room for one more; {node} lacks the least, {missing} bytes"
        );
        return Err(Error::new(Kind::Full, what));
    }
    let which = asked.node.as_deref().filter(|_| asked.only);
    let which = which.map_or("any node".to_owned(), |node| format!("node {node}"));
    Err(Error::new(Kind::Retry, format!("pool {pool}: waits for {which} to be heard of")))
}

/// Ready volumes of a kind that a node has and is not to remove, and how many of them it has promised. What it says it has handed out is not
/// ready any more, by the same report: that promise is kept, whether or not its item is still there.
fn promised(pool: &str, kind: &VolumeKind, said: &StatusReport, items: &[GoalItem]) -> (u32, u32) {
    let goes = |v: &ReadyVolume| {
        items.iter().any(|item| matches!(&item.goal, Goal::Discard { volume } if *volume == v.id))
    };
    let ready = said.ready.iter().filter(|v| v.pool == pool && v.kind == *kind);
    let ready = ready.filter(|v| v.state == "ready" && !goes(v)).count();
    let over = said.over();
    let promised = items.iter().filter(|item| match &item.goal {
        Goal::Claim { pool: of, build, .. } => {
            of == pool && build.is_none() && !over.contains(item.id.as_str())
        }
        _ => false,
    });
    (ready as u32, promised.count() as u32)
}
