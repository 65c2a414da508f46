//! Goal states and status reports: what placement wants of a node, and what the node says it has.
//!
//! | method and path | body → answer | who |
//! |---|---|---|
//! | `POST /v1/nodes/{name}/report?wait=S` | [`StatusReport`] → [`Told`] | the node of that name; admin |
//! | `GET /v1/nodes` | → [`NodeList`] | any member |
//! | `GET /v1/nodes/{name}/goal` | → [`GoalState`] | any member |
//!
//! A goal is the whole list of what a node still has to do, with a version that only grows. A node does what it
//! finds there that it has not done, and says of each item how far it is; placement takes an item out once it has
//! read that it is done, or has failed. Both may be lost, repeated or late: an item has an id that is used once, a
//! node forgets what it did of an item only when the item is no longer in the newest goal, and never takes an
//! older goal for a newer one.

use std::collections::{BTreeMap, BTreeSet};

use image::Digest;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::ErrorBody;
use crate::keep::HeldImage;
use crate::lease::HeldLease;
use crate::life::{NodeVolume, Standing};
use crate::pool::VolumeKind;
use crate::released::Released;
use crate::stats::NodeStats;

/// What placement wants of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct GoalState {
    /// Of the grid: grows when placement's state is restored from a backup. Later than all of a smaller one.
    #[serde(default)]
    pub generation: u64,
    /// Grows with each change; 0 before the first.
    pub version: u64,
    /// What is to be done, each with an id of its own.
    pub items: Vec<GoalItem>,
}

/// One thing to be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct GoalItem {
    /// 32 hexadecimal digits; never used again.
    pub id: String,
    /// What.
    pub goal: Goal,
}

/// What may be wanted of a node. A node refuses by name what it does not know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", tag = "do")]
pub enum Goal {
    /// Build a ready volume; its id is the item's.
    #[serde(rename_all = "kebab-case")]
    Build {
        /// Of which pool.
        pool: String,
        /// Of which kind.
        kind: VolumeKind,
        /// Bytes a second that it may fetch at most; unset: no limit. An earlier version's node knows none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rate: Option<u64>,
    },
    /// Hand out a ready volume of a pool.
    #[serde(rename_all = "kebab-case")]
    Claim {
        /// Whose request it is: served once, however often it is told, and by however many items.
        request: String,
        /// Of which pool.
        pool: String,
        /// What it is to be called.
        volume: String,
        /// It is built if none is ready, of this kind.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        build: Option<VolumeKind>,
        /// Nobody waits for it any more: a node that has not handed one out says `failed`, `cancelled`; one that has,
        /// that it is done. An earlier version's node, which does not know this, hands one out.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        cancelled: bool,
    },
    /// Remove a ready volume that is not wanted any more.
    #[serde(rename_all = "kebab-case")]
    Discard {
        /// Its id.
        volume: String,
    },
    /// Have all of an image at hand, for volumes of it, as long as the goal says so. Done, it stays in the goal.
    #[serde(rename_all = "kebab-case")]
    Hold {
        /// Which.
        #[schema(value_type = String)]
        image: Digest,
        /// Bytes of its disk.
        size: u64,
    },
    /// What a later version of placement knows.
    #[serde(other)]
    Unknown,
}

/// How far an item is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ItemState {
    /// It waits for its turn.
    Pending,
    /// It is being done.
    Working,
    /// It is done.
    Done,
    /// It cannot be done, and will not be tried again.
    Failed,
    /// It waits for something that does not come.
    Blocked,
}

impl ItemState {
    /// Whether nothing more will happen to it.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Failed)
    }
}

/// What a node says of an item.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct ItemStatus {
    /// Which.
    pub id: String,
    /// How far it is.
    pub state: ItemState,
    /// The volume that came of it, by its id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// It had to be built.
    #[serde(default)]
    pub built: bool,
    /// Milliseconds that building took, from its turn to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_millis: Option<u64>,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub error: Option<ErrorBody>,
}

/// A volume that was made ahead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct ReadyVolume {
    /// 32 hexadecimal digits.
    pub id: String,
    /// For which pool.
    pub pool: String,
    /// Of which kind.
    pub kind: VolumeKind,
    /// `building`, `ready` or `erasing`.
    pub state: String,
}

/// Where a node's volumes lie, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct DiskRoom {
    /// All of the file system.
    pub size: u64,
    /// What can still be written.
    pub free: u64,
}

/// What a node says it has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct StatusReport {
    /// Drawn when the daemon started, hexadecimal: two daemons of one name are told apart by it.
    pub run: String,
    /// Grows with each report of a run.
    pub number: u64,
    /// The generation and
    #[serde(default)]
    pub generation: u64,
    /// the version of the goal that the items belong to.
    pub goal: u64,
    /// How far they are.
    #[serde(default)]
    pub items: Vec<ItemStatus>,
    /// What is there of what was made ahead, and is nobody's.
    #[serde(default)]
    pub ready: Vec<ReadyVolume>,
    /// By pool, how many of them were taken there since the daemon started without placement having been asked.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub taken: BTreeMap<String, u64>,
    /// What is there that is somebody's.
    #[serde(default)]
    pub volumes: Vec<NodeVolume>,
    /// The images that it was told to hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held: Vec<HeldImage>,
    /// Room for volumes.
    #[serde(default)]
    pub disk: DiskRoom,
    /// The leases that it has, to go on having them.
    #[serde(default)]
    pub leases: Vec<HeldLease>,
    /// Those that it does not need any more: it has stopped.
    #[serde(default)]
    pub released: Vec<HeldLease>,
    /// What it has erased of what was given back, as long as it has not read that placement remembers it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub erased: Vec<Released>,
    /// What it has measured of itself since it was last heard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stats: Option<Box<NodeStats>>,
}

impl StatusReport {
    /// The ids of the items to which nothing more will happen.
    pub fn over(&self) -> BTreeSet<&str> {
        let over = self.items.iter().filter(|status| status.state.is_final());
        over.map(|status| status.id.as_str()).collect()
    }
}

/// The answer to a report.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Told {
    /// What the node is to do.
    pub goal: GoalState,
    /// Seconds for which its leases are good, from when it sent the report.
    pub lease_secs: u64,
    /// Volumes, by their ids, of which it has no lease, whatever it believes: it must not write them any more.
    #[serde(default)]
    pub lost: Vec<String>,
    /// Volumes, by their ids, of which placement remembers that they were erased: nobody needs to say so any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recorded: Vec<String>,
    /// Seconds after which somebody wants to see what it measures, if that is sooner than usual.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stats_secs: Option<u32>,
}

/// A node, as placement knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct NodeInfo {
    /// Its name.
    pub name: String,
    /// Seconds since it was heard of; never, since placement started, if unset.
    pub heard: Option<u64>,
    /// It is not heard of any more, and nothing of it counts.
    pub away: bool,
    /// What may be put there.
    #[serde(default)]
    pub standing: Standing,
    /// The goal that it was last told, and the one that it answers.
    pub goal: u64,
    /// See there.
    pub answers: u64,
    /// Items that are not done; images that are held are.
    pub open: u32,
    /// Ready volumes.
    pub ready: u32,
    /// Room for volumes.
    pub disk: DiskRoom,
}

/// The nodes of the grid that have reported.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeList {
    /// In the order of their names.
    pub nodes: Vec<NodeInfo>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_told_apart_from_what_is() {
        let text = r#"{"id":"a","goal":{"do":"sing","song":"x"}}"#;
        let item: GoalItem = serde_json::from_str(text).unwrap();
        assert_eq!(item.goal, Goal::Unknown);
        let item = GoalItem { id: "b".into(), goal: Goal::Discard { volume: "c".into() } };
        let text = serde_json::to_string(&item).unwrap();
        assert_eq!(text, r#"{"id":"b","goal":{"do":"discard","volume":"c"}}"#);
        assert_eq!(serde_json::from_str::<GoalItem>(&text).unwrap(), item);
    }
}
