//! Leases: the right to write a volume, which one node has at a time.
//!
//! | method and path | body → answer | who |
//! |---|---|---|
//! | `GET /v1/leases` | → [`LeaseList`] | any member |
//! | `PUT /v1/leases/{volume}` | [`TakeLease`] → [`LeaseGrant`] | a node, for itself; admin |
//! | `POST /v1/leases/{volume}/transfer` | [`TransferLease`] → [`LeaseGrant`] | who has it; admin |
//! | `POST /v1/leases/{volume}/break` | [`BreakLease`] → [`LeaseInfo`] | admin |
//!
//! `{volume}` is a volume's id. A node has its leases as long as placement hears of it, and for
//! [`lease_secs`](LeaseGrant::lease_secs) after that: it counts from when it *sent* the last report that was answered,
//! placement from when it came, so that the node stops before anybody else may start. The epoch grows each time
//! that a lease changes hands.

use image::Digest;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Asks for a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct TakeLease {
    /// The node that is to have it.
    pub holder: String,
    /// What the volume is called there: for people.
    #[serde(default)]
    pub called: String,
    /// The epoch of the lease that it has, to go on with that. Without it the lease is given anew, of the next epoch: what
    /// was said of the one before, and comes late, does not concern it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// The run of the daemon that asks, as in its reports: of two daemons of one name only the one that reports is given
    /// anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
}

/// A lease that was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct LeaseGrant {
    /// Grows with each change of hands.
    pub epoch: u64,
    /// Seconds for which it is good after a report.
    pub lease_secs: u64,
}

/// A lease that a node has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct HeldLease {
    /// The volume's id.
    pub volume: String,
    /// Of which epoch.
    pub epoch: u64,
}

/// Hands a lease to another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct TransferLease {
    /// The epoch that is believed to be the present one.
    pub epoch: u64,
    /// To whom.
    pub to: String,
}

/// Takes a lease from its holder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct BreakLease {
    /// Why: kept with the lease.
    pub why: String,
    /// At once, without waiting until its holder has stopped or its time is over: only if it is certain that it
    /// does not write any more.
    #[serde(default)]
    pub at_once: bool,
}

/// That a lease was broken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Broken {
    /// When, in seconds since 1970.
    pub at: u64,
    /// By whom.
    pub by: String,
    /// Who had it.
    pub holder: String,
    /// Why.
    pub why: String,
    /// Whether its holder was not waited for.
    pub at_once: bool,
}

/// A lease as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct LeaseInfo {
    /// The volume's id.
    pub volume: String,
    /// What the volume is called on its node.
    pub called: String,
    /// Who has it.
    pub holder: Option<String>,
    /// Of which epoch.
    pub epoch: u64,
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// Seconds until another may have it, if its holder is not heard of again.
    pub lapses: Option<u64>,
    /// It is being taken from its holder.
    pub revoked: bool,
    /// When it was last broken.
    pub broken: Option<Broken>,
}

/// That a node reads from an image, which is not collected meanwhile whatever refs lead to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct ReadLease {
    /// The image.
    #[schema(value_type = String)]
    pub image: Digest,
    /// The node.
    pub holder: String,
    /// Seconds until it is over, if the node is not heard of again.
    pub lapses: u64,
}

/// The leases of the grid.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LeaseList {
    /// In the order of the volumes' ids.
    pub leases: Vec<LeaseInfo>,
    /// Who reads from which images, in the order of the nodes.
    #[serde(default)]
    pub reads: Vec<ReadLease>,
}
