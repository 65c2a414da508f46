//! Choosing nodes of the fleet as it is, and reserving what was chosen.
//!
//! | method and path | body → answer | who |
//! |---|---|---|
//! | `POST /v1/place` | [`PlaceAsk`] → [`PlaceAnswer`] | any member; to reserve, admins and nodes |
//! | `GET /v1/reservations` | → [`ReservationList`] | any member |
//! | `DELETE /v1/reservations/{id}` | → [`Reservation`] as it was | its owner; admins |

use std::collections::BTreeSet;

use image::Result;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Decision, Miss, PlaceRequest, Scored};
use crate::fleet::{Resources, invalid};

/// Most requests of one ask.
const MAX_REQUESTS: usize = 64;
/// Longest term of a reservation, in seconds.
const LONGEST_TERM: u32 = 3600;

/// Asks for nodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PlaceAsk {
    /// What is to be placed, each with what those before have left.
    pub requests: Vec<PlaceRequest>,
    /// Say of each node why it was chosen, or not.
    #[serde(default)]
    pub explain: bool,
    /// What is chosen is reserved with the choice. The same request of the same owner again has the same node, and its
    /// term begins anew.
    #[serde(default)]
    pub reserve: bool,
    /// For how many seconds.
    #[serde(default = "minute")]
    pub term_secs: u32,
}

fn minute() -> u32 {
    60
}

impl PlaceAsk {
    /// Checks what a parser cannot.
    ///
    /// # Errors
    ///
    /// Invalid: none or too many requests, one that cannot be meant or is there twice, or the term.
    pub fn check(&self) -> Result<()> {
        let many = self.requests.len();
        if !(1..=MAX_REQUESTS).contains(&many) {
            return Err(invalid(format!("{many} requests: 1 to {MAX_REQUESTS} at a time")));
        }
        if !(1..=LONGEST_TERM).contains(&self.term_secs) {
            let term = self.term_secs;
            return Err(invalid(format!("a term of {term} s: 1 to {LONGEST_TERM}")));
        }
        let mut ids = BTreeSet::new();
        for request in &self.requests {
            request.check()?;
            if !ids.insert(&request.id) {
                return Err(invalid(format!("request {}: it is there twice", request.id)));
            }
        }
        Ok(())
    }
}

/// What a node was chosen for, kept free there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Reservation {
    /// The request's id.
    pub id: String,
    /// The node.
    pub node: String,
    /// Who asked.
    pub owner: String,
    /// Until when, in seconds since 1970.
    pub until: u64,
    /// What is reserved.
    pub takes: Resources,
}

/// All reservations.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct ReservationList {
    /// In the order of their nodes.
    pub reservations: Vec<Reservation>,
}

/// What was decided on a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Placed {
    /// The decision.
    #[serde(flatten)]
    pub decision: Decision,
    /// Nodes that could be chosen, the best first; if it was to be explained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scored: Option<Vec<Scored>>,
    /// Nodes that could not, the one that lacks least first; if it was to be explained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub misses: Option<Vec<Miss>>,
    /// What was reserved, if that was asked for and there is a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reservation: Option<Reservation>,
}

/// A node that was not looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct LeftOut {
    /// The node.
    pub node: String,
    /// Why: it is not heard of, or what it says of itself makes no sense.
    pub why: String,
}

/// What was decided on all requests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct PlaceAnswer {
    /// In the order in which they were asked.
    pub placed: Vec<Placed>,
    /// Nodes that could not even be looked at.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<LeftOut>,
}
