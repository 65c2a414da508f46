//! Volumes that were given back and erased: what nodes say of them, and what placement remembers.
//!
//! | method and path | body → answer | who |
//! |---|---|---|
//! | `GET /v1/released` | → [`ReleasedList`] | any member |
//!
//! A node says so with each report ([`StatusReport::erased`](crate::goal::StatusReport::erased)), once its signed record is on
//! its disk, until it has read that placement remembers it ([`Told::recorded`](crate::goal::Told::recorded)). So each is told
//! at least once, and counts once: it goes by the volume's id.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Of how many volumes one report says so at most.
pub const MOST: usize = 16;

/// A volume that was given back, and is erased.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Released {
    /// Its id, in hexadecimal.
    pub volume: String,
    /// What people called it.
    pub called: String,
    /// The pool that it was built for, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// Bytes that its guest saw.
    pub size: u64,
    /// Bytes that it took, and that are free now.
    pub freed: u64,
    /// How it was erased: `zeros`, `random` or `discard`.
    pub method: String,
    /// So many times.
    pub passes: u32,
    /// Bytes that were read back, as they should be.
    pub read_back: u64,
    /// When it was erased, in seconds since 1970.
    pub ended: u64,
}

/// The same, and where it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct ReleasedOn {
    /// The node.
    pub node: String,
    /// The volume.
    #[serde(flatten)]
    pub released: Released,
}

/// Volumes that were given back lately: of each node the last 32.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct ReleasedList {
    /// How many there ever were, on all nodes.
    pub volumes: u64,
    /// The bytes that they have freed.
    pub bytes: u64,
    /// The newest first.
    pub released: Vec<ReleasedOn>,
}
