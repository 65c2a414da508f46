//! What was chosen, and why.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A rule by which nodes are ruled out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// It takes nothing new.
    Cordoned,
    /// It is being emptied.
    Draining,
    /// The request does not want it.
    NotOn,
    /// CPUs.
    Cpu,
    /// Memory.
    Memory,
    /// Disk.
    Disk,
    /// Network.
    Network,
    /// It is too busy.
    Load,
    /// CPU architecture.
    Architecture,
    /// No hypervisor fits the guest.
    Hypervisor,
    /// A licence.
    Licence,
    /// It is for other tenants.
    Tenant,
    /// Somebody must be alone there.
    Alone,
    /// The guest is too risky for the node.
    Risk,
    /// A guest there is too risky to be beside, or the new one is.
    BesideRisk,
    /// It is there for something else.
    Function,
    /// It lacks a label.
    Label,
    /// Those with whom it must be are elsewhere.
    Together,
    /// Those from whom it must be apart are there.
    Apart,
}

/// Why a node cannot be chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Reason {
    /// The rule.
    pub rule: Rule,
    /// What is wrong, for people.
    pub why: String,
    /// What is needed, where that is a number: in the unit of [`Resources`](crate::fleet::Resources).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needs: Option<u64>,
    /// What there is of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub has: Option<u64>,
    /// How much is lacking, above 0 and up to 1: a share of what is needed; 1 where it is all or nothing.
    pub lack: f64,
    /// It would be so even if nothing were placed.
    pub lasting: bool,
}

/// A term of a score.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Term {
    /// [`Weights::fit`](super::Weights::fit).
    Fit,
    /// [`Weights::image`](super::Weights::image).
    Image,
    /// [`Weights::pool`](super::Weights::pool).
    Pool,
    /// [`Weights::near`](super::Weights::near).
    Near,
    /// [`Weights::behaviour`](super::Weights::behaviour).
    Behaviour,
    /// [`Weights::licence`](super::Weights::licence).
    Licence,
    /// [`Weights::idle`](super::Weights::idle).
    Idle,
    /// [`Weights::spread`](super::Weights::spread).
    Spread,
}

impl Term {
    /// Its name, as in JSON and in the policy.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fit => "fit",
            Self::Image => "image",
            Self::Pool => "pool",
            Self::Near => "near",
            Self::Behaviour => "behaviour",
            Self::Licence => "licence",
            Self::Idle => "idle",
            Self::Spread => "spread",
        }
    }
}

/// What a term gave a node.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Points {
    /// The term.
    pub term: Term,
    /// 0 to 1.
    pub value: f64,
    /// How much it counts.
    pub weight: f64,
    /// Value times weight.
    pub points: f64,
}

/// The node that was chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Chosen {
    /// The node.
    pub node: String,
    /// The best of its hypervisors that fit, if one is needed: kind and version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hypervisor: Option<String>,
    /// The sum of its points.
    pub score: f64,
}

/// A node that cannot be chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Miss {
    /// The node.
    pub node: String,
    /// The sum of what its reasons lack.
    pub lack: f64,
    /// Why not: one reason at least.
    pub reasons: Vec<Reason>,
}

/// What was decided on a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Decision {
    /// The request's id.
    pub request: String,
    /// The node; none if there is none for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen: Option<Chosen>,
    /// How many nodes could have been chosen.
    pub fit: u64,
    /// How many there are.
    pub nodes: u64,
    /// If none was chosen: the one that lacks least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nearest: Option<Miss>,
    /// If none was chosen: no node could be even if nothing were placed on any.
    #[serde(default)]
    pub impossible: bool,
}

/// A node that could be chosen, and what it got.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Scored {
    /// The node.
    pub node: String,
    /// The best of its hypervisors that fit, if one is needed: kind and version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hypervisor: Option<String>,
    /// The sum of its points.
    pub score: f64,
    /// What each term gave it; terms that do not concern the request are left out.
    pub points: Vec<Points>,
}

/// What was decided on a request, and why: every node is in one of the two lists.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Explanation {
    /// What was decided.
    pub decision: Decision,
    /// Nodes that could be chosen, the best first.
    pub scored: Vec<Scored>,
    /// Nodes that could not, the one that lacks least first.
    pub misses: Vec<Miss>,
}
