//! The life of a node: cordoned, drained, forgotten.
//!
//! What may be put on a node is kept apart from that it is known, and only of nodes where that is not everything. Of a
//! node that is forgotten its goal stays, empty: ids of items follow from its version, and are never used again.
//! Nothing is taken from a forgotten node: its leases are broken, which is to say that they are over when it has
//! stopped or their time is, as those of any other node that is not heard of.

use std::collections::BTreeMap;

use api::goal::GoalState;
use api::lease::{BreakLease, LeaseInfo};
use api::life::{Forgotten, NodeLife, Standing};
use image::{Error, Kind, Result};
use serde::{Deserialize, Serialize};

use super::goals;
use super::{Fleet, NodeEntry, TRIES};
use crate::member::check_name;
use crate::state::State;
use crate::state::keys::{Transaction, encode};

pub(super) const PREFIX: &str = "standing/";

/// What may be put on a node, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stood {
    standing: Standing,
    /// Since when, in seconds since 1970.
    since: u64,
    /// Who said so.
    by: String,
}

impl Stood {
    pub(super) fn standing(&self) -> Standing {
        self.standing
    }
}

pub(crate) fn key(node: &str) -> String {
    format!("{PREFIX}{node}")
}

/// What may be put on nodes, as of one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Standings(BTreeMap<String, Standing>);

impl Standings {
    /// On those of which it cannot be read nothing new is put, and nothing is taken from them.
    pub(super) fn of_all(
        all: impl Iterator<Item = (String, Standing)>,
        unreadable: impl Iterator<Item = String>,
    ) -> Self {
        Self(all.chain(unreadable.map(|node| (node, Standing::Cordoned))).collect())
    }

    /// Of one node.
    pub(crate) fn of(&self, node: &str) -> Standing {
        self.0.get(node).copied().unwrap_or_default()
    }

    /// Of those where that is not everything.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, Standing)> {
        self.0.iter().map(|(node, standing)| (node.as_str(), *standing))
    }
}

/// Forgets that a name was a node's that is no more: it is a member's again.
pub(crate) async fn welcome(state: &State, node: &str) -> Result<()> {
    match state.get::<Stood>(&key(node)).await? {
        Some((Stood { standing: Standing::Forgotten, .. }, seen)) => {
            let tx = Transaction::default().unchanged(&key(node), Some(&seen));
            state.commit(tx.delete(&key(node))).await
        }
        _ => Ok(()),
    }
}

impl Fleet {
    pub(super) async fn standings(&self) -> Result<Standings> {
        let (all, unreadable) = self.state.list_readable::<Stood>(PREFIX).await?;
        let all = all.into_iter().map(|(node, stood, _)| (node, stood.standing));
        Ok(Standings::of_all(all, unreadable.into_iter()))
    }

    /// Refuses what a node says that was forgotten.
    ///
    /// # Errors
    ///
    /// [`Kind::Denied`], saying what to do.
    pub(super) async fn refuse_forgotten(&self, node: &str) -> Result<()> {
        match self.state.get::<Stood>(&key(node)).await? {
            Some((Stood { standing: Standing::Forgotten, by, .. }, _)) => {
                let what = format!(
                    "node {node} was forgotten by {by}: nothing of it counts. If it is to come back: `forebay node \
                     uncordon {node}`, and let it join anew"
                );
                Err(Error::new(Kind::Denied, what))
            }
            _ => Ok(()),
        }
    }

    /// A node, and what is left of it.
    ///
    /// # Errors
    ///
    /// [`Kind::Gone`] if there is no such node.
    pub(crate) async fn life(&self, node: &str) -> Result<NodeLife> {
        check_name(node)?;
        if self.state.get::<NodeEntry>(&format!("nodes/{node}")).await?.is_none() {
            let what =
                format!("node {node}: none of that name has reported: see `forebay node status`");
            return Err(Error::new(Kind::Gone, what));
        }
        let stood = self.state.get::<Stood>(&key(node)).await?;
        let standing = stood.map(|(stood, _)| stood.standing).unwrap_or_default();
        let leases = self.leases_of(node).await?;
        let open = self.goal(node).await?.items.len() as u32;
        let now = self.clock.ticks();
        let last = self.hearing.with(|reign| reign.reports.get(node).cloned())?;
        let last = last.as_ref();
        let ready = last.map(|h| h.report.ready.clone()).unwrap_or_default();
        let volumes = last.map(|h| h.report.volumes.clone()).unwrap_or_default();
        let empty = ready.is_empty() && volumes.is_empty() && leases.is_empty() && open == 0;
        Ok(NodeLife {
            name: node.to_owned(),
            standing,
            heard: last.map(|h| now.saturating_sub(h.ticks)),
            away: last.is_none_or(|h| h.is_away(now)),
            // What was never heard may hold anything.
            drained: empty && last.is_some() && standing == Standing::Draining,
            ready,
            volumes,
            leases,
            open,
        })
    }

    async fn leases_of(&self, node: &str) -> Result<Vec<LeaseInfo>> {
        let all = self.leases().await?.leases.into_iter();
        Ok(all.filter(|lease| lease.holder.as_deref() == Some(node)).collect())
    }

    /// Says what may be put on a node. One that was forgotten may report again from now on.
    pub(crate) async fn set_standing(
        &self,
        node: &str,
        standing: Standing,
        by: &str,
    ) -> Result<NodeLife> {
        if standing == Standing::Forgotten {
            let what = "a node is forgotten by deleting it: `forebay node forget`";
            return Err(Error::new(Kind::Invalid, what));
        }
        let now = self.life(node).await?.standing;
        if now == Standing::Forgotten && standing != Standing::Open {
            let what = format!("node {node} was forgotten: `forebay node uncordon {node}` first");
            return Err(Error::new(Kind::Gone, what));
        }
        self.stand(node, standing, by).await?;
        self.wake.notify_one();
        self.life(node).await
    }

    /// Writes down what may be put on a node; of one that is forgotten what it was to do is taken back in the same
    /// step.
    async fn stand(&self, node: &str, standing: Standing, by: &str) -> Result<()> {
        let (place, goal) = (key(node), goals::key(node));
        for _ in 0..TRIES {
            let found = self.state.get::<Stood>(&place).await?;
            let (before, seen) = found.unzip();
            let before = before.map_or(Standing::Open, |stood| stood.standing);
            if before == standing {
                return Ok(());
            }
            let mut tx = Transaction::default().unchanged(&place, seen.as_ref());
            tx = match standing {
                Standing::Open => tx.delete(&place),
                _ => {
                    let since = self.clock.now();
                    tx.put(&place, encode(&Stood { standing, since, by: by.to_owned() }))
                }
            };
            let told = self.state.get::<GoalState>(&goal).await?;
            if standing == Standing::Forgotten
                && let Some((told, seen)) = told
            {
                let version = told.version + 1;
                let empty = GoalState { version, items: Vec::new(), ..told };
                tx = tx.unchanged(&goal, Some(&seen)).put(&goal, encode(&empty));
            }
            match self.hearing.lead()?.commit(tx).await {
                Err(error) if error.kind() == Kind::Conflict => {}
                done => {
                    tracing::info!(node, standing = standing.name(), by, "a node");
                    return done;
                }
            }
        }
        Err(Error::new(Kind::Retry, format!("node {node}: others change it")))
    }

    /// Forgets a node. Whether it is a member of the grid is for the caller to change.
    ///
    /// # Errors
    ///
    /// [`Kind::Conflict`] if it is heard of and not drained, saying what is left; not if that is forced.
    pub(crate) async fn forget(&self, node: &str, by: &str, force: bool) -> Result<Forgotten> {
        let was = self.life(node).await?;
        if !force && !was.drained && was.standing != Standing::Forgotten {
            self.is_away_long_enough(&was)?;
        }
        self.stand(node, Standing::Forgotten, by).await?;
        for lease in &was.leases {
            let asked = BreakLease { why: format!("node {node} was forgotten"), at_once: false };
            match self.break_lease(&lease.volume, by, &asked).await {
                // It was given back meanwhile.
                Err(error) if error.kind() == Kind::Gone => {}
                done => drop(done?),
            }
        }
        let lapses = was.leases.iter().filter_map(|lease| lease.lapses).max().unwrap_or(0);
        self.wake.notify_one();
        Ok(Forgotten { was, lapses, revoked: false })
    }

    /// Whether a node is not heard of: that of a placement that has just started says nothing.
    fn is_away_long_enough(&self, was: &NodeLife) -> Result<()> {
        let listening = self.clock.ticks().saturating_sub(self.hearing.with(|reign| reign.since)?);
        if was.away && listening >= super::heard::AWAY {
            return Ok(());
        }
        let node = &was.name;
        let what = match was.heard {
            None => format!(
                "node {node}: placement has just started, and does not know yet whether it is there: try again in \
                 {} s, or --force",
                super::heard::AWAY.saturating_sub(listening)
            ),
            Some(_) => format!(
                "node {node} is there: {} ready volumes, {} of somebody and {} leases are left: `forebay node drain \
                 {node} --wait` first, or --force",
                was.ready.len(),
                was.volumes.len(),
                was.leases.len()
            ),
        };
        Err(Error::new(Kind::Conflict, what))
    }
}
