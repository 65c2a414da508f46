//! Operations, as they are kept: what was asked for, and what is being done about it.

use api::operation::{Operation, OperationState};
use api::pool::NewClaim;
use image::{Error, Kind, Result};
use serde::{Deserialize, Serialize};

use crate::state::State;
use crate::state::keys::{Transaction, Versioned, encode};

/// Operations that have ended are remembered for this long, in seconds: as long as whoever asked may ask again.
const REMEMBERED: u64 = 24 * 3600;

/// An operation, and how to do it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    pub operation: Operation,
    pub work: Work,
}

/// How to do it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Work {
    /// Hand out a volume of a pool.
    Claim {
        pool: String,
        asked: NewClaim,
        /// The node that was told, and by which item.
        #[serde(default)]
        told: Option<(String, String)>,
        /// Nodes that were told and had none.
        #[serde(default)]
        tried: Vec<String>,
    },
}

pub(crate) fn key(id: &str) -> String {
    format!("operations/{id}")
}

/// Refuses what is no id of an operation: it is a part of a key.
pub(crate) fn check_id(id: &str) -> Result<()> {
    let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    match id.len() == 32 && id.bytes().all(digit) {
        true => Ok(()),
        false => {
            let shown: String = id.chars().take(40).collect();
            let what = format!("`{}`: an id has 32 hexadecimal digits", shown.escape_debug());
            Err(Error::new(Kind::Invalid, what))
        }
    }
}

impl Kept {
    /// Ends it.
    pub(crate) fn end(&mut self, state: OperationState, now: u64) {
        self.operation.state = state;
        self.operation.step = String::new();
        self.operation.ended = Some(now);
    }

    /// Ends it with an error.
    pub(crate) fn fail(&mut self, error: &Error, now: u64) {
        self.operation.error = Some(error.into());
        self.end(OperationState::Failed, now);
    }

    /// What writes it down, as long as nobody else has changed it.
    pub(crate) fn write(&self, seen: Option<&Versioned>, into: Transaction) -> Transaction {
        let key = key(&self.operation.id);
        into.unchanged(&key, seen).put(&key, encode(self))
    }
}

/// One operation.
pub(crate) async fn get(state: &State, id: &str) -> Result<Option<(Kept, Versioned)>> {
    check_id(id)?;
    state.get(&key(id)).await
}

/// All that are remembered, but those that cannot be read.
pub(crate) async fn all(state: &State) -> Result<Vec<(Kept, Versioned)>> {
    let (all, _) = state.list_readable("operations/").await?;
    Ok(all.into_iter().map(|(_, kept, seen)| (kept, seen)).collect())
}

/// Whether it may be forgotten.
pub(crate) fn is_over(operation: &Operation, now: u64) -> bool {
    operation.ended.is_some_and(|ended| ended + REMEMBERED < now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_no_paths() {
        check_id(&"0a".repeat(16)).unwrap();
        for bad in ["", "0", &"0A".repeat(16), &"0/".repeat(16), &"0a".repeat(17)] {
            assert_eq!(check_id(bad).unwrap_err().kind(), Kind::Invalid, "{bad}");
        }
    }
}
