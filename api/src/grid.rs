//! Membership: caches, joining, health.
//!
//! | method and path | body → answer | who |
//! |---|---|---|
//! | `GET /v1/health` | → [`Health`] | anybody |
//! | `GET /v1/caches` | → [`CacheList`] | any member |
//! | `PUT /v1/caches/{name}` | [`Serving`] → [`Lease`] | the server of that name |
//! | `DELETE /v1/caches/{name}` | → [`CacheInfo`] | the server of that name; admin |
//! | `POST /v1/tokens` | [`NewToken`] → [`JoinToken`] | admin |
//! | `GET /v1/members` | → [`MemberList`] | admin |
//! | `DELETE /v1/members/{name}` | → [`MemberInfo`] as it was | admin |
//! | `GET /v1/revoked?known=V` | → [`Revocations`] | any member |
//! | `POST /v1/renew` | [`RenewRequest`] → [`JoinAnswer`] | any member, for itself |
//! | `POST /v1/join` | [`JoinRequest`] → [`JoinAnswer`] | who has a token (no certificate) |

use std::collections::BTreeMap;
use std::net::SocketAddr;

use image::Digest;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::keep::CachedImage;

/// What a member of the grid may do. Stands in its certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Everything.
    Admin,
    /// Pull, push, make and move refs.
    Node,
    /// Serve chunks.
    Server,
}

impl Role {
    /// The name in certificates and messages.
    pub fn name(self) -> &'static str {
        match self {
            Role::Admin => "admin",
            Role::Node => "node",
            Role::Server => "server",
        }
    }

    /// The role of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Role::Admin, Role::Node, Role::Server].into_iter().find(|r| r.name() == name)
    }
}

/// A server of chunks and where it listens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CacheInfo {
    /// Its name in the grid.
    pub name: String,
    /// The name in its certificate.
    pub server_name: String,
    /// One UDP address per core.
    #[schema(value_type = Vec<String>)]
    pub endpoints: Vec<SocketAddr>,
    /// Whether it takes pushes too; else it only caches.
    #[serde(default)]
    pub receives: bool,
    /// TCP address of its own API ([`crate::care`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub api: Option<SocketAddr>,
    /// Its share of the sections, relative to the others' ([`crate::rendezvous`]).
    #[serde(default = "whole")]
    pub weight: f64,
    /// It is about to leave: asked only if nobody else can answer.
    #[serde(default)]
    pub draining: bool,
}

impl CacheInfo {
    /// The share of the sections that it is to have now; none while it drains.
    pub fn share(&self) -> f64 {
        if self.draining { 0.0 } else { self.weight }
    }
}

fn whole() -> f64 {
    1.0
}

/// What a cache says of itself, again and again: it is a member while its lease lasts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Serving {
    /// One UDP address per core.
    #[schema(value_type = Vec<String>)]
    pub endpoints: Vec<SocketAddr>,
    /// TCP address of its own API ([`crate::care`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub api: Option<SocketAddr>,
    /// Its share of the sections, relative to the others'; above 0.
    #[serde(default = "whole")]
    pub weight: f64,
    /// It is about to leave.
    #[serde(default)]
    pub draining: bool,
    /// How much it has of the images that it was told to keep, or lately could not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept: Vec<CachedImage>,
}

/// How long a cache counts as serving without being heard of, and what it is to keep.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Lease {
    /// Seconds. To be renewed after a third of that.
    pub lease_secs: u64,
    /// Images that it is to pin. What it was told before and is not now it lets go.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub keep: Vec<Digest>,
}

/// The caches of the grid.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CacheList {
    /// In the order of their names.
    pub caches: Vec<CacheInfo>,
}

/// That placement serves, and for which grid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// The grid's id.
    pub grid: String,
    /// Version of the program.
    pub version: String,
    /// The key that verifies tickets and image records: 32 bytes, hex.
    #[serde(default)]
    pub verifying_key: String,
    /// The id of the grid's store: that of its marker. Earlier versions do not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
}

/// A placement, of one or several over one state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlacementInfo {
    /// Its name in the grid.
    pub name: String,
    /// Where others find it: host and port.
    pub address: String,
}

/// Which placement was asked, and which leads: hears nodes, and decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlacementStatus {
    /// The one that was asked.
    pub asked: PlacementInfo,
    /// The one that leads; nothing: none does just now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<PlacementInfo>,
    /// How often the state was restored.
    pub generation: u64,
    /// How long the last look at all nodes and pools took, if it is the leader that was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub look_micros: Option<u64>,
}

/// Asks for a one-time token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NewToken {
    /// What the member may do.
    pub role: Role,
    /// Seconds until it can no longer be used.
    pub lifetime_secs: u64,
    /// The only name that the member may take; then also one that another holds, e.g. when a machine
    /// was installed anew. Else any name that is free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A one-time token: whole, it is all that a new machine needs to join.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JoinToken {
    /// Text to give to `forebay node join`: address, digest of the CA's certificate, secret.
    pub token: String,
    /// Until when, in seconds since 1970.
    pub expires: u64,
}

/// A member of the grid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemberInfo {
    /// Its name.
    pub name: String,
    /// What it may do; unset if placement knows nobody of that name.
    pub role: Option<Role>,
    /// Until when its certificate is good, in seconds since 1970.
    pub expires: Option<u64>,
}

/// The members of the grid.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemberList {
    /// In the order of their names.
    pub members: Vec<MemberInfo>,
}

/// Joins the grid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JoinRequest {
    /// The token's secret.
    pub secret: String,
    /// The new member's name, e.g. its host name.
    pub name: String,
    /// Certificate signing request, PEM. The key never leaves its machine.
    pub request: String,
}

/// The new member's papers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JoinAnswer {
    /// The grid's id.
    pub grid: String,
    /// The member's certificate, PEM.
    pub certificate: String,
    /// The CA's certificate, PEM.
    pub ca: String,
}

/// Asks for a new certificate, of the same name and role. What is asked with stays good until it expires.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RenewRequest {
    /// Certificate signing request, PEM, by a new key.
    pub request: String,
}

/// Which revocations one knows already.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct KnownRevocations {
    /// Their version: if there are no others the answer has none.
    pub known: Option<String>,
}

/// Certificates that are refused though they have not expired: those of names that were taken from members.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Revocations {
    /// Of this list: another list has another.
    pub version: String,
    /// The names, and which of their certificates are good all the same: that with which a name was taken anew, and
    /// what it was renewed from. Unset if the list is the one that is known.
    #[schema(value_type = Option<BTreeMap<String, Vec<String>>>)]
    pub names: Option<BTreeMap<String, Vec<Digest>>>,
}

impl Revocations {
    /// Whether a certificate, known by its [holder](crate::ticket::holder_of), is refused.
    pub fn refuses(&self, name: &str, certificate: &Digest) -> bool {
        let good = self.names.as_ref().and_then(|names| names.get(name));
        good.is_some_and(|good| !good.contains(certificate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_older_members_say_is_read_as_before() {
        let old = r#"{"name":"a","server_name":"a.grid","endpoints":["10.0.0.1:7001"]}"#;
        let cache: CacheInfo = serde_json::from_str(old).unwrap();
        assert_eq!((cache.share(), cache.draining), (1.0, false));
        let serving: Serving = serde_json::from_str(r#"{"endpoints":["10.0.0.1:7001"]}"#).unwrap();
        assert_eq!((serving.weight, serving.draining), (1.0, false));
        assert_eq!(CacheInfo { draining: true, ..cache }.share(), 0.0);
    }
}
