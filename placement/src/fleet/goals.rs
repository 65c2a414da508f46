//! The goals of all nodes, while they are being changed.

use std::collections::BTreeMap;

use api::goal::{Goal, GoalItem, GoalState};
use image::{Digest, Result};

use crate::state::State;
use crate::state::keys::{Transaction, Versioned, encode};

/// The goals as they were read, and what is to become of them.
#[derive(Default)]
pub(crate) struct Goals {
    /// Of the grid.
    generation: u64,
    drafts: BTreeMap<String, Draft>,
}

#[derive(Default)]
struct Draft {
    goal: GoalState,
    seen: Option<Versioned>,
    changed: bool,
    added: usize,
}

pub(crate) fn key(node: &str) -> String {
    format!("goals/{node}")
}

impl Goals {
    /// All goals, as of one moment.
    pub(crate) async fn load(state: &State) -> Result<Self> {
        let all = state.list_versioned::<GoalState>("goals/").await?;
        let draft =
            |(node, goal, seen)| (node, Draft { goal, seen: Some(seen), ..Draft::default() });
        let generation = state.generation().await?;
        Ok(Self { generation, drafts: all.into_iter().map(draft).collect() })
    }

    /// What a node is to do.
    pub(crate) fn items(&self, node: &str) -> &[GoalItem] {
        self.drafts.get(node).map_or(&[], |draft| &draft.goal.items)
    }

    /// Nodes and what they are to do.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &GoalState)> {
        self.drafts.iter().map(|(node, draft)| (node.as_str(), &draft.goal))
    }

    /// Tells a node to do one more thing; returns the item's id, which no other item has or will have.
    pub(crate) fn add(&mut self, node: &str, goal: Goal) -> String {
        let draft = self.drafts.entry(node.to_owned()).or_default();
        draft.changed = true;
        draft.added += 1;
        // A goal of this version is written once, so whatever comes into it at this place has the id for itself.
        let place = (node, self.generation, draft.goal.version + 1, draft.added);
        let id = Digest::of_chunk(&encode(&place)).to_string()[..32].to_owned();
        draft.goal.items.push(GoalItem { id: id.clone(), goal });
        id
    }

    /// Takes items out.
    pub(crate) fn retain(&mut self, node: &str, keep: impl FnMut(&GoalItem) -> bool) {
        let Some(draft) = self.drafts.get_mut(node) else { return };
        let before = draft.goal.items.len();
        draft.goal.items.retain(keep);
        draft.changed |= draft.goal.items.len() != before;
    }

    /// Marks a claim as one that nobody waits for any more; not if it is not there, or was before.
    pub(crate) fn withdraw(&mut self, node: &str, id: &str) -> bool {
        let Some(draft) = self.drafts.get_mut(node) else { return false };
        let item = draft.goal.items.iter_mut().find(|item| item.id == id);
        let Some(Goal::Claim { cancelled, .. }) = item.map(|item| &mut item.goal) else {
            return false;
        };
        let new = !std::mem::replace(cancelled, true);
        draft.changed |= new;
        new
    }

    /// The nodes whose goals have changed.
    pub(crate) fn changed(&self) -> Vec<String> {
        let changed = self.drafts.iter().filter(|(_, draft)| draft.changed);
        changed.map(|(node, _)| node.clone()).collect()
    }

    /// What writes a node's goal down, as long as nobody else has changed it.
    pub(crate) fn write(&self, node: &str, into: Transaction) -> Transaction {
        let Some(Draft { goal, seen, .. }) = self.drafts.get(node) else { return into };
        let (generation, version) = (self.generation, goal.version + 1);
        let goal = GoalState { generation, version, ..goal.clone() };
        into.unchanged(&key(node), seen.as_ref()).put(&key(node), encode(&goal))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ids_are_used_once_also_after_items_are_gone() {
        let state = State::in_memory("g").await;
        let mut ids = std::collections::BTreeSet::new();
        for round in 0..4 {
            let mut goals = Goals::load(&state).await.unwrap();
            for _ in 0..3 {
                assert!(ids.insert(goals.add("n", Goal::Discard { volume: "v".into() })));
            }
            let tx = goals.write("n", Transaction::default());
            state.commit(tx.clone()).await.unwrap();
            assert!(state.commit(tx).await.is_err(), "somebody else has");
            let mut goals = Goals::load(&state).await.unwrap();
            assert_eq!(goals.iter().next().unwrap().1.version, 2 * round + 1);
            goals.retain("n", |_| false);
            assert_eq!(goals.changed(), ["n"]);
            state.commit(goals.write("n", Transaction::default())).await.unwrap();
        }
    }
}
