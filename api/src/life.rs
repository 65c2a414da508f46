//! The life of a node: what may be put there, what is left of it, and its end.
//!
//! | method and path | body → answer | who |
//! |---|---|---|
//! | `GET /v1/nodes/{name}` | → [`NodeLife`] | any member |
//! | `PUT /v1/nodes/{name}/standing` | [`SetStanding`] → [`NodeLife`] | admin |
//! | `DELETE /v1/nodes/{name}?force=B` | → [`Forgotten`] | admin |

use image::Digest;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::goal::ReadyVolume;
use crate::lease::LeaseInfo;

/// What may be put on a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// Whatever fits.
    #[default]
    Open,
    /// Nothing new.
    Cordoned,
    /// Nothing new, and what is ready there is built elsewhere and then removed.
    Draining,
    /// It is no node of the grid any more.
    Forgotten,
}

impl Standing {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Cordoned => "cordoned",
            Self::Draining => "draining",
            Self::Forgotten => "forgotten",
        }
    }

    /// Whether something is.
    pub fn is_open(&self) -> bool {
        *self == Self::Open
    }
}

/// Says what may be put on a node from now on. [`Standing::Forgotten`] is not for this: a node is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SetStanding {
    /// What.
    pub standing: Standing,
}

/// How a node is forgotten.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Forget {
    /// Though it is heard of, and something is left there.
    pub force: bool,
}

/// A volume of a node that is somebody's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct NodeVolume {
    /// 32 hexadecimal digits.
    pub id: String,
    /// What it is called there.
    pub called: String,
    /// Bytes.
    pub size: u64,
    /// The image that it still reads from; none if all of it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub image: Option<Digest>,
    /// It is shown to a guest.
    #[serde(default)]
    pub attached: bool,
}

/// A node, and what is left of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct NodeLife {
    /// Its name.
    pub name: String,
    /// What may be put there.
    pub standing: Standing,
    /// Seconds since it was heard of; never, since placement started, if unset.
    pub heard: Option<u64>,
    /// It is not heard of any more: what stands here is what it said last.
    pub away: bool,
    /// Volumes there that are nobody's.
    pub ready: Vec<ReadyVolume>,
    /// Volumes there that are somebody's.
    pub volumes: Vec<NodeVolume>,
    /// Leases that it has.
    pub leases: Vec<LeaseInfo>,
    /// What it was told to do and has not done.
    pub open: u32,
    /// Nothing of it is left, and nothing will come.
    pub drained: bool,
}

/// A node that was forgotten, and what went with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Forgotten {
    /// The node as it was.
    pub was: NodeLife,
    /// Seconds until its leases are anybody's: so long it may write, if it runs and is not told.
    pub lapses: u64,
    /// It was a member of the grid, and its certificate is refused from now on.
    pub revoked: bool,
}
