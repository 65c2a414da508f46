//! What a node was told to do, and how far it is: what of a goal is new, and what may be forgotten.
//!
//! Of an item something is known from when it first appears in a goal until it is no longer in the newest one. So
//! it is done once, however often and in whatever order goals arrive, and also if the daemon ends in between: what
//! was begun is begun again, and whatever does it finds what was done already by the item's id.

use std::collections::{BTreeMap, BTreeSet};

use api::ErrorBody;
use api::goal::{Goal, GoalItem, GoalState, ItemState, ItemStatus};
use image::{Digest, Error, Kind, Result};
use serde::{Deserialize, Serialize};

/// What is known of the newest goal. Kept in a file, as JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Items {
    generation: u64,
    version: u64,
    known: BTreeMap<String, Known>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    item: GoalItem,
    status: ItemStatus,
}

/// What has come of an item.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The volume's id, in hexadecimal.
    pub volume: Option<String>,
    /// It had to be built.
    pub built: bool,
    /// Milliseconds that it took then.
    pub took_millis: Option<u64>,
}

impl Items {
    /// The generation and the version of the newest goal.
    pub fn version(&self) -> (u64, u64) {
        (self.generation, self.version)
    }

    /// Takes a goal; returns what of it is to be begun. An older one than the newest is ignored.
    pub fn take(&mut self, goal: GoalState) -> Vec<GoalItem> {
        if (goal.generation, goal.version) <= self.version() {
            return Vec::new();
        }
        (self.generation, self.version) = (goal.generation, goal.version);
        self.known.retain(|id, _| goal.items.iter().any(|item| item.id == *id));
        for item in &goal.items {
            if let Some(known) = self.known.get_mut(&item.id) {
                known.item.goal = item.goal.clone();
            }
        }
        let new = goal.items.into_iter().filter(|item| !self.known.contains_key(&item.id));
        let new: Vec<GoalItem> = new.collect();
        for item in &new {
            let status = ItemStatus {
                id: item.id.clone(),
                state: ItemState::Pending,
                volume: None,
                built: false,
                took_millis: None,
                error: None,
            };
            self.known.insert(item.id.clone(), Known { item: item.clone(), status });
        }
        // What nobody waits for is not begun. One that was there before may have been done already.
        let (withdrawn, new): (Vec<_>, Vec<_>) =
            new.into_iter().partition(|item| self.is_cancelled(&item.id));
        withdrawn.iter().for_each(|item| self.end(&item.id, &Err(cancelled())));
        new
    }

    /// What is to be begun again after a restart.
    pub fn unfinished(&self) -> Vec<GoalItem> {
        let open = self.known.values().filter(|known| !known.status.state.is_final());
        open.map(|known| known.item.clone()).collect()
    }

    /// The images that are to be held, and may be.
    pub(super) fn held(&self) -> BTreeSet<Digest> {
        let able = self.known.values().filter(|known| known.status.state != ItemState::Failed);
        let image = |known: &Known| match known.item.goal {
            Goal::Hold { image, .. } => Some(image),
            _ => None,
        };
        able.filter_map(image).collect()
    }

    /// Whether something is still wanted.
    pub fn wants(&self, id: &str) -> bool {
        self.known.contains_key(id)
    }

    /// Whether nobody waits any more for what a claim asks for.
    pub fn is_cancelled(&self, id: &str) -> bool {
        let goal = self.known.get(id).map(|known| &known.item.goal);
        matches!(goal, Some(Goal::Claim { cancelled: true, .. }))
    }

    /// Notes that an item is being done.
    pub fn begin(&mut self, id: &str) {
        if let Some(known) = self.known.get_mut(id) {
            known.status.state = ItemState::Working;
        }
    }

    /// Notes what has come of it. Of what is not wanted any more nothing is noted.
    pub fn end(&mut self, id: &str, result: &Result<Outcome, Error>) {
        let Some(Known { status, .. }) = self.known.get_mut(id) else { return };
        match result {
            Ok(outcome) => {
                status.state = ItemState::Done;
                status.volume.clone_from(&outcome.volume);
                status.built = outcome.built;
                status.took_millis = outcome.took_millis;
            }
            Err(error) => {
                status.state = ItemState::Failed;
                status.error = Some(ErrorBody::from(error));
            }
        }
    }

    /// How far all are.
    pub fn statuses(&self) -> Vec<ItemStatus> {
        self.known.values().map(|known| known.status.clone()).collect()
    }
}

/// That a claim was withdrawn before a volume was handed out for it.
pub(super) fn cancelled() -> Error {
    Error::new(Kind::Cancelled, "nobody waits for it any more")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn goal(version: u64, ids: &[&str]) -> GoalState {
        let item = |id: &&str| GoalItem {
            id: (*id).to_owned(),
            goal: Goal::Discard { volume: "v".into() },
        };
        GoalState { generation: 0, version, items: ids.iter().map(item).collect() }
    }

    fn ids(items: &[GoalItem]) -> Vec<&str> {
        items.iter().map(|item| item.id.as_str()).collect()
    }

    #[test]
    fn each_item_is_begun_once_and_forgotten_when_it_is_gone() {
        let mut items = Items::default();
        assert_eq!(ids(&items.take(goal(2, &["a", "b"]))), ["a", "b"]);
        assert!(items.take(goal(2, &["a", "b"])).is_empty());
        assert!(items.take(goal(1, &["c"])).is_empty(), "older");
        items.begin("a");
        items
            .end("a", &Ok(Outcome { volume: Some("x".into()), built: true, took_millis: Some(7) }));
        items.end("b", &Err(Error::new(Kind::Full, "no room")));
        let states: Vec<_> = items.statuses().into_iter().map(|s| s.state).collect();
        assert_eq!(states, [ItemState::Done, ItemState::Failed]);
        assert!(items.unfinished().is_empty());
        assert_eq!(ids(&items.take(goal(3, &["b", "c"]))), ["c"]);
        assert_eq!(ids(&items.unfinished()), ["c"]);
        items.end("a", &Ok(Outcome::default()));
        assert!(!items.wants("a") && items.statuses().len() == 2);
        let restored = GoalState { generation: 1, ..goal(1, &["d"]) };
        assert_eq!(ids(&items.take(restored)), ["d"], "a later generation is later");
    }

    #[test]
    fn a_claim_that_nobody_waits_for_is_not_begun_and_one_that_was_ends_by_itself() {
        let claim = |id: &str, cancelled| {
            let [request, pool, volume] = ["r", "p", "v"].map(str::to_owned);
            let goal = Goal::Claim { request, pool, volume, build: None, cancelled };
            GoalItem { id: id.to_owned(), goal }
        };
        let goal = |version, items: Vec<GoalItem>| GoalState { generation: 0, version, items };
        let mut items = Items::default();
        assert_eq!(ids(&items.take(goal(1, vec![claim("a", false)]))), ["a"]);
        let withdrawn = goal(2, vec![claim("a", true), claim("b", true)]);
        assert!(items.take(withdrawn).is_empty());
        assert!(items.is_cancelled("a") && items.is_cancelled("b"));
        let states: Vec<_> = items.statuses().into_iter().map(|s| s.state).collect();
        assert_eq!(states, [ItemState::Pending, ItemState::Failed]);
        let error = items.statuses()[1].error.clone().unwrap();
        assert_eq!(error.kind, Kind::Cancelled.name());
        assert_eq!(
            ids(&items.unfinished()),
            ["a"],
            "it may have been done before the daemon ended"
        );
        items.end("a", &Ok(Outcome::default()));
        assert_eq!(items.statuses()[0].state, ItemState::Done);
    }

    proptest! {
        /// Whatever is lost, repeated or late.
        #[test]
        fn no_item_is_begun_twice(order in prop::collection::vec(0usize..8, 1..40)) {
            // Of each version, what is in it: items come, and go.
            let goals: Vec<GoalState> = (0..8)
                .map(|v: u64| {
                    let names: Vec<String> = (v / 2..=v).map(|n| n.to_string()).collect();
                    goal(v + 1, &names.iter().map(String::as_str).collect::<Vec<_>>())
                })
                .collect();
            let (mut items, mut begun) = (Items::default(), BTreeSet::new());
            for at in order {
                for item in items.take(goals[at].clone()) {
                    prop_assert!(begun.insert(item.id.clone()), "{} twice", item.id);
                }
            }
            let text = serde_json::to_string(&items).unwrap();
            prop_assert_eq!(serde_json::from_str::<Items>(&text).unwrap(), items);
        }
    }
}
