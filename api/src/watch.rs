//! Watching: what becomes of operations, pools, nodes and leases, as it happens.
//!
//! | method and path | body → answer | who |
//! |---|---|---|
//! | `GET /v1/watch?of=operations,pools&after=REVISION` | → lines of [`WatchEvent`] | any member, any person |
//!
//! The answer is JSON, an event a line (`application/x-ndjson`), without an end. Without `after` all that there is comes
//! first, then [`WatchEvent::Now`]. To go on after the connection broke, ask `after` one less than the last revision:
//! of one revision there may be several events. What is told twice is as it was, so nothing is counted.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::error::ErrorBody;

/// What can be watched.
pub const KINDS: [&str; 4] = ["operations", "pools", "nodes", "leases"];

/// What is to be watched.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct WatchAsked {
    /// Of `operations`, `pools`, `nodes` and `leases` those that are named, with commas between; all if none is.
    #[serde(default)]
    pub of: String,
    /// The revision after which changes are told; what there is now is not told then.
    #[serde(default)]
    pub after: Option<u64>,
}

/// A line of the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum WatchEvent {
    /// Something is so from now on.
    Set {
        /// The revision of the state in which it became so.
        revision: u64,
        /// Which kind of thing.
        kind: String,
        /// Its name or id.
        name: String,
        /// What it is.
        #[schema(value_type = Object)]
        value: serde_json::Value,
    },
    /// Something is no longer.
    Gone {
        /// The revision of the state in which it went.
        revision: u64,
        /// Which kind of thing.
        kind: String,
        /// Its name or id.
        name: String,
    },
    /// All that there is has been told; what follows are changes.
    Now {
        /// After which revision.
        revision: u64,
    },
    /// The connection is as it was: told every 15 s.
    Alive,
    /// Nothing more comes.
    End {
        /// Why. `gone`: the changes after that revision are no longer known, so begin anew. `busy`: they were not
        /// taken fast enough. `retry`: placement ends, or cannot reach its state.
        #[schema(value_type = Object)]
        error: ErrorBody,
    },
    /// What a later version tells.
    #[serde(other)]
    Unknown,
}
