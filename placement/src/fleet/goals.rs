//! The goals of all nodes, while they are being changed.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use api::goal::{Goal, GoalItem, GoalState};
use image::{Digest, Result};

use crate::state::State;
use crate::state::keys::{Transaction, Versioned, encode};

/// Goals by node, and the versions of their keys.
pub(crate) type Told = BTreeMap<String, (GoalState, Versioned)>;

/// The goals as they were read, and what is to become of them.
#[derive(Default)]
pub(crate) struct Goals<'a> {
    /// Of the grid.
    generation: u64,
    told: Cow<'a, Told>,
    /// Nodes of which it cannot be read what they were told.
    unreadable: BTreeSet<String>,
    /// Of those that change.
    drafts: BTreeMap<String, Draft>,
}

#[derive(Default)]
struct Draft {
    goal: GoalState,
    seen: Option<Versioned>,
    added: usize,
}

pub(crate) fn key(node: &str) -> String {
    format!("goals/{node}")
}

impl<'a> Goals<'a> {
    /// Those that were read already.
    pub(crate) fn of(generation: u64, told: &'a Told, unreadable: BTreeSet<String>) -> Self {
        Self { generation, told: Cow::Borrowed(told), unreadable, ..Self::default() }
    }

    /// All goals, as of one moment.
    pub(crate) async fn load(state: &State) -> Result<Goals<'static>> {
        let all = state.list_versioned::<GoalState>("goals/").await?.into_iter();
        let told = Cow::Owned(all.map(|(node, goal, seen)| (node, (goal, seen))).collect());
        Ok(Goals { generation: state.generation().await?, told, ..Goals::default() })
    }

    /// That of one node.
    pub(crate) async fn load_one(state: &State, node: &str) -> Result<Goals<'static>> {
        let found = state.get::<GoalState>(&key(node)).await?;
        let told = Cow::Owned(found.map(|found| (node.to_owned(), found)).into_iter().collect());
        Ok(Goals { generation: state.generation().await?, told, ..Goals::default() })
    }

    /// Whether a node can be told anything: of what cannot be read nobody can say what would become of it.
    pub(crate) fn can_tell(&self, node: &str) -> bool {
        !self.unreadable.contains(node)
    }

    /// What a node is to do.
    pub(crate) fn items(&self, node: &str) -> &[GoalItem] {
        match (self.drafts.get(node), self.told.get(node)) {
            (Some(draft), _) => &draft.goal.items,
            (None, Some((told, _))) => &told.items,
            (None, None) => &[],
        }
    }

    /// Nodes and what they were told to do.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &GoalState)> {
        self.told.iter().map(|(node, (goal, _))| (node.as_str(), goal))
    }

    fn draft(&mut self, node: &str) -> &mut Draft {
        let told = &self.told;
        self.drafts.entry(node.to_owned()).or_insert_with(|| match told.get(node) {
            Some((goal, seen)) => Draft { goal: goal.clone(), seen: Some(seen.clone()), added: 0 },
            None => Draft::default(),
        })
    }

    /// Tells a node to do one more thing; returns the item's id, which no other item has or will have.
    pub(crate) fn add(&mut self, node: &str, goal: Goal) -> String {
        let generation = self.generation;
        let draft = self.draft(node);
        draft.added += 1;
        // A goal of this version is written once, so whatever comes into it at this place has the id for itself.
        let place = (node, generation, draft.goal.version + 1, draft.added);
        let id = Digest::of_chunk(&encode(&place)).to_string()[..32].to_owned();
        draft.goal.items.push(GoalItem { id: id.clone(), goal });
        id
    }

    /// Takes items out.
    pub(crate) fn retain(&mut self, node: &str, keep: impl Fn(&GoalItem) -> bool) {
        if !self.items(node).iter().all(&keep) {
            self.draft(node).goal.items.retain(keep);
        }
    }

    /// Marks a claim as one that nobody waits for any more; not if it is not there, or was before.
    pub(crate) fn withdraw(&mut self, node: &str, id: &str) -> bool {
        let is_it = |item: &GoalItem| {
            item.id == id && matches!(item.goal, Goal::Claim { cancelled: false, .. })
        };
        let Some(at) = self.items(node).iter().position(is_it) else { return false };
        match &mut self.draft(node).goal.items[at].goal {
            Goal::Claim { cancelled, .. } => *cancelled = true,
            _ => return false,
        }
        true
    }

    /// The nodes whose goals have changed.
    pub(crate) fn changed(&self) -> Vec<String> {
        self.drafts.keys().cloned().collect()
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
        let mut ids = BTreeSet::new();
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
