//! Pools: ready volumes of one kind, on the nodes of a grid.
//!
//! | method and path | body → answer | who |
//! |---|---|---|
//! | `GET /v1/pools` | → [`PoolList`] | any member |
//! | `GET /v1/pools/{name}` | → [`PoolInfo`] | any member |
//! | `PUT /v1/pools/{name}` | [`SetPool`] → [`PoolInfo`] | admin |
//! | `DELETE /v1/pools/{name}` | → [`PoolInfo`] as it was | admin |
//! | `POST /v1/pools/{name}/claims` | [`NewClaim`] → [`Operation`](crate::operation::Operation) | admin, node |
//!
//! And at a node's own daemon, of what is ready on this node:
//!
//! | method and path | body → answer |
//! |---|---|
//! | `GET /v1/ready` | → list of [`ReadyVolume`](crate::goal::ReadyVolume) |
//! | `POST /v1/ready/{pool}/claims` | [`LocalClaim`] → [`VolumeInfo`](crate::volume::VolumeInfo) |

use image::Digest;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::layout::Layout;

/// What a ready volume is: two volumes of a kind can stand for each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct VolumeKind {
    /// Bytes.
    pub size: u64,
    /// Logical sector in bytes; the image's, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sector: Option<u32>,
    /// The image that it holds; it is blank without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub image: Option<Digest>,
    /// How a blank one is partitioned and formatted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub layout: Option<Layout>,
}

/// How a pool follows demand: as many are kept ready as are claimed, by the forecast, while one is built and for some time
/// beyond that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Follow {
    /// Never fewer are wanted than this.
    #[serde(default)]
    pub floor: u32,
    /// Never more.
    pub ceiling: u32,
    /// Seconds of claims that are kept ready beyond those of one build.
    #[serde(default = "Follow::ahead")]
    pub ahead_secs: u32,
    /// Seconds for which fewer must have been wanted before the pool gets smaller.
    #[serde(default = "Follow::hold")]
    pub hold_secs: u32,
}

impl Follow {
    /// Between these, with a minute ahead, and held for half an hour.
    pub fn between(floor: u32, ceiling: u32) -> Self {
        Self { floor, ceiling, ahead_secs: Self::ahead(), hold_secs: Self::hold() }
    }

    fn ahead() -> u32 {
        60
    }

    fn hold() -> u32 {
        1800
    }
}

/// What a pool shall be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SetPool {
    /// A ref or a digest of the image that its volumes hold; blank volumes without one. Of a ref the pool follows
    /// the moves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Bytes of each volume; the image's by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Logical sector in bytes; the image's by default, 512 of a blank one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sector: Option<u32>,
    /// How they are partitioned and formatted: blank ones only, an image has its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub layout: Option<Layout>,
    /// With fewer ready volumes than this in the grid more are built. Of no account while it follows demand.
    pub low: u32,
    /// Until there are this many. Of no account while it follows demand.
    pub target: u32,
    /// Low threshold and target are what demand asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follow: Option<Follow>,
    /// More than this are removed; twice the target by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
    /// At most this many on one node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_node: Option<u32>,
    /// Volumes that are being built at the same time, at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub builds: Option<u32>,
    /// Bytes that its volumes may have over the grid, each counted with its whole size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_budget: Option<u64>,
    /// Bytes a second that builds of it over the grid may fetch together. What is blank fetches nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build_rate: Option<u64>,
    /// Nothing is built any more, and what is ready is removed; claims are served while there is something.
    #[serde(default)]
    pub draining: bool,
}

impl SetPool {
    /// More ready volumes than this are removed.
    pub fn most(&self) -> u32 {
        self.max.unwrap_or(self.target.saturating_mul(2))
    }
}

/// What of a pool is on one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct PoolOnNode {
    /// The node.
    pub node: String,
    /// Ready volumes.
    pub ready: u32,
    /// Volumes that it was told to build, and has not.
    pub building: u32,
    /// It is not heard of, and does not count.
    #[serde(default)]
    pub away: bool,
}

/// What keeps a pool from what demand, or its target, asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PoolBound {
    /// It has more than demand asks for: its floor.
    Floor,
    /// Its ceiling, or its maximum.
    Ceiling,
    /// Its budget of disk, or what all pools may have together.
    Disk,
    /// Its budget of build bandwidth.
    Bandwidth,
    /// What one node may have of it.
    PerNode,
}

impl PoolBound {
    /// As text.
    pub fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Ceiling => "ceiling",
            Self::Disk => "disk",
            Self::Bandwidth => "bandwidth",
            Self::PerNode => "per node",
        }
    }
}

/// What is known of the demand for a pool, and what it asks for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct PoolDemand {
    /// Claims through placement in an hour, by the exponentially weighted rate of now.
    pub claims_per_hour: f64,
    /// Seconds that a build takes, smoothed; unset before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build_secs: Option<f64>,
    /// Claims that are expected while one is built, and for the time ahead: the highest such forecast of the last while.
    pub forecast: f64,
    /// Seconds that those who make these claims do not wait, since there is something ready.
    pub saved_secs: f64,
    /// Ready volumes that the forecast asks for.
    pub wanted: u32,
    /// Those that the pool is filled to.
    pub target: u32,
    /// Why that is not the same, or not reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound: Option<PoolBound>,
    /// Until when, in seconds since 1970, as many are wanted though the forecast of now asks for fewer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holds_until: Option<u64>,
}

/// A pool as it stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct PoolInfo {
    /// Its name.
    pub name: String,
    /// What it shall be.
    #[serde(flatten)]
    pub set: SetPool,
    /// What its volumes are now; unset while its image cannot be found.
    pub kind: Option<VolumeKind>,
    /// Ready volumes of this kind, on nodes that are heard of.
    pub ready: u32,
    /// Volumes that nodes were told to build, and have not.
    pub building: u32,
    /// Why it wants what it wants, or cannot have it.
    pub why: String,
    /// What demand there is, as it was looked at last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub demand: Option<PoolDemand>,
    /// By node.
    pub nodes: Vec<PoolOnNode>,
}

/// The pools of the grid.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PoolList {
    /// In the order of their names.
    pub pools: Vec<PoolInfo>,
}

/// Asks for a volume of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct NewClaim {
    /// Of whoever asks, 32 hexadecimal digits: the same request again has the same answer, and no second volume.
    pub request: String,
    /// What the volume is to be called on its node.
    pub volume: String,
    /// The node that it should be on; another will do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// No other node will do.
    #[serde(default)]
    pub only: bool,
}

/// The same at the node itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct LocalClaim {
    /// Of whoever asks, 32 hexadecimal digits: the same request again has the same answer, and no second volume.
    pub request: String,
    /// What the volume is to be called.
    pub volume: String,
}

/// How a claim was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Served {
    /// From what was ready on the node that was asked for, or on any if none was.
    Ready,
    /// From what was ready on another node.
    Elsewhere,
    /// Nothing was ready: it was built for this.
    Built,
}

/// What a claim has come to: the result of its operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Claimed {
    /// The node that has the volume.
    pub node: String,
    /// What it is called there.
    pub volume: String,
    /// Its id, in hexadecimal.
    pub id: String,
    /// How it was served.
    pub served: Served,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_with_no_more_than_there_is() {
        let blank = VolumeKind { size: 1 << 30, sector: None, image: None, layout: None };
        assert_eq!(serde_json::to_string(&blank).unwrap(), r#"{"size":1073741824}"#);
        let text = r#"{"size":1073741824,"layout":{"partitions":[{"fs":"ext4"}]}}"#;
        let formatted: VolumeKind = serde_json::from_str(text).unwrap();
        assert!(formatted != blank && formatted.layout.unwrap().on(1 << 30, 512).is_ok());
    }

    #[test]
    fn what_a_pool_shall_be_is_refused_if_a_word_of_it_is_not_known() {
        let set: SetPool = serde_json::from_str(r#"{"size":1,"low":1,"target":3}"#).unwrap();
        assert_eq!(set.most(), 6);
        let follows = r#"{"size":1,"low":0,"target":0,"follow":{"ceiling":9}}"#;
        let set: SetPool = serde_json::from_str(follows).unwrap();
        assert_eq!(set.follow, Some(Follow::between(0, 9)));
        let wrong = serde_json::from_str::<SetPool>(r#"{"size":1,"low":1,"traget":3}"#);
        assert!(wrong.unwrap_err().to_string().contains("traget"));
    }
}
