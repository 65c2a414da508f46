//! Keys with versions, read and changed by compare-and-set transactions.
//!
//! Values are numbers that are written once, so that a value tells the version: a transaction that believes that a key
//! has the version with which it was read believes that it has that value.

use std::collections::BTreeMap;

use super::Model;

/// What is asked of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// The value of one.
    Get(u8),
    /// To change some, if others are as believed; nothing: not there.
    Commit {
        /// What is believed.
        believed: Vec<(u8, Option<u64>)>,
        /// What is changed.
        changes: Vec<(u8, Option<u64>)>,
    },
}

/// What keys answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answered {
    /// The value, if there is one.
    Value(Option<u64>),
    /// All of it was done.
    Done,
    /// Something was not as believed; nothing was done.
    Conflict,
}

/// Keys, none of them there at first.
#[derive(Clone, Copy, Debug)]
pub struct Keys;

impl Model for Keys {
    type State = BTreeMap<u8, u64>;
    type Input = Asked;
    type Output = Answered;

    fn start(&self) -> Self::State {
        BTreeMap::new()
    }

    fn next(
        &self,
        state: &Self::State,
        input: &Asked,
        output: Option<&Answered>,
    ) -> Vec<Self::State> {
        match (input, output) {
            (Asked::Get(key), Some(Answered::Value(value))) => {
                let right = state.get(key) == value.as_ref();
                right.then(|| state.clone()).into_iter().collect()
            }
            (Asked::Commit { believed, changes }, answer) => {
                let is_so = believed.iter().all(|(key, value)| state.get(key) == value.as_ref());
                match answer {
                    Some(Answered::Conflict) if !is_so => vec![state.clone()],
                    None | Some(Answered::Done) if is_so => vec![changed(state, changes)],
                    _ => vec![],
                }
            }
            // A read that was not answered has done nothing.
            (Asked::Get(_), _) => vec![],
        }
    }
}

fn changed(state: &BTreeMap<u8, u64>, changes: &[(u8, Option<u64>)]) -> BTreeMap<u8, u64> {
    let mut state = state.clone();
    for (key, value) in changes {
        match value {
            Some(value) => state.insert(*key, *value),
            None => state.remove(key),
        };
    }
    state
}
