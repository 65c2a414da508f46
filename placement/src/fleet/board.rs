//! What the state has for the fleet, in the memory of who leads: passes over ten thousand nodes do not read it anew.

use std::collections::{BTreeMap, BTreeSet};

use api::goal::GoalState;
use api::pool::SetPool;
use image::Result;
use serde::de::DeserializeOwned;

use super::NodeEntry;
use super::demand::Demand;
use super::goals::Goals;
use super::keeps::Keep;
use super::life::{Standings, Stood};
use super::mirror::Mirror;
use super::operations::Kept;
use crate::state::State;
use crate::state::keys::{Versioned, decode};

/// See the [module](self).
pub(super) struct Board {
    /// Of the grid: as long as a state is open it does not change.
    generation: Option<u64>,
    pub(super) nodes: Mirror<NodeEntry>,
    goals: Mirror<GoalState>,
    /// Nodes whose goals could not be read, and can again: nobody has looked at them since.
    mended: BTreeSet<String>,
    standings: Mirror<Stood>,
    pub(super) pools: Mirror<SetPool>,
    pub(super) demands: Mirror<Demand>,
    pub(super) keeps: Mirror<Keep>,
    /// Those that are not over.
    pub(super) open: Mirror<Kept>,
    /// Claims of each pool that were written down since a pass has counted them.
    pub(super) claimed: BTreeMap<String, u32>,
}

fn all<T: DeserializeOwned>(key: &str, value: &Versioned) -> Result<Option<T>> {
    decode(key, value).map(Some)
}

fn open(key: &str, value: &Versioned) -> Result<Option<Kept>> {
    let kept: Kept = decode(key, value)?;
    Ok(Some(kept).filter(|kept| !kept.operation.state.is_final()))
}

impl Default for Board {
    fn default() -> Self {
        Self {
            generation: None,
            nodes: Mirror::new("nodes/", all),
            goals: Mirror::new("goals/", all),
            mended: BTreeSet::new(),
            standings: Mirror::new(super::life::PREFIX, all),
            pools: Mirror::new("pools/", all),
            demands: Mirror::new(super::demands::PREFIX, all),
            keeps: Mirror::new(super::keeps::PREFIX, all),
            open: Mirror::new("operations/", open),
            claimed: BTreeMap::new(),
        }
    }
}

impl Board {
    /// All that is known by now.
    pub(super) async fn catch_up(&mut self, state: &State) -> Result<()> {
        if self.generation.is_none() {
            self.generation = Some(state.generation().await?);
        }
        self.nodes.catch_up(state).await?;
        let before = self.goals.unreadable().clone();
        self.goals.catch_up(state).await?;
        self.mended.extend(before.difference(self.goals.unreadable()).cloned());
        self.standings.catch_up(state).await?;
        self.pools.catch_up(state).await?;
        self.demands.catch_up(state).await?;
        self.keeps.catch_up(state).await?;
        self.open.catch_up(state).await
    }

    /// Keys were written: who looks next is to see them.
    pub(super) fn wrote<'k>(&mut self, keys: impl IntoIterator<Item = &'k String>) {
        for key in keys {
            self.goals.wrote(key);
            self.demands.wrote(key);
            self.open.wrote(key);
            self.keeps.wrote(key);
        }
    }

    /// The goals, to be changed.
    pub(super) fn goals(&self) -> Goals<'_> {
        let unreadable = self.goals.unreadable().clone();
        Goals::of(self.generation.unwrap_or_default(), self.goals.entries(), unreadable)
    }

    /// Nodes whose goals can be read again: they are to be looked at as if they had said something new.
    pub(super) fn mended(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.mended)
    }

    pub(super) fn standings(&self) -> Standings {
        let all = self.standings.entries().iter();
        let all = all.map(|(node, (stood, _))| (node.clone(), stood.standing()));
        Standings::of_all(all, self.standings.unreadable().iter().cloned())
    }
}
