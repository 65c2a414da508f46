//! Images that must be at hand: on so many nodes, in so many caches.
//!
//! | method and path | body → answer | who |
//! |---|---|---|
//! | `GET /v1/keeps` | → [`KeepList`] | any member |
//! | `GET /v1/keeps/{ref}` | → [`KeepInfo`] | any member |
//! | `PUT /v1/keeps/{ref}` | [`SetKeep`] → [`KeepInfo`] | admin, operator |
//! | `DELETE /v1/keeps/{ref}` | → [`KeepInfo`] as it was | admin, operator |
//!
//! `{ref}` is a ref, whose moves are followed, or a digest. *On a node* means that all of the image lies in its base there, so
//! that a volume of it needs no bytes from a cache. *In a cache* means that it is pinned there, and all of its chunks are in the
//! cache's log: what is pinned is not evicted.

use image::Digest;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::ErrorBody;

/// Images that one cache keeps, at most: it says of all of them how much it has whenever it says that it serves.
pub const MOST_CACHED: usize = 256;

/// Where an image must be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct SetKeep {
    /// On so many nodes.
    #[serde(default)]
    pub nodes: u32,
    /// In so many caches.
    #[serde(default)]
    pub caches: u32,
    /// Only on nodes that are there for this function.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function: Option<String>,
}

/// An image that a node holds because it was told to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct HeldImage {
    /// Which.
    #[schema(value_type = String)]
    pub image: Digest,
    /// Bytes of its disk.
    pub size: u64,
    /// All of it is there.
    pub whole: bool,
}

/// An image that a cache was told to keep. Chunks of zeros are not counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct CachedImage {
    /// Which.
    #[schema(value_type = String)]
    pub image: Digest,
    /// Its chunks; 0 while they are not known.
    pub chunks: u64,
    /// Of these, the ones that the cache has.
    pub held: u64,
    /// All of them are there, and stay.
    pub pinned: bool,
    /// Why it could not be kept the last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub error: Option<ErrorBody>,
}

impl CachedImage {
    /// Whether it counts.
    pub fn is_whole(&self) -> bool {
        self.pinned && self.held == self.chunks
    }
}

/// A node that holds an image, or is to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct KeptOn {
    /// Which.
    pub node: String,
    /// All of it is there.
    pub whole: bool,
    /// It is not heard of, and does not count.
    pub away: bool,
    /// It drains, and does not count.
    pub leaves: bool,
}

/// A cache that keeps an image, or is to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct KeptIn {
    /// Which.
    pub cache: String,
    /// How much of it is there, once the cache has said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub said: Option<CachedImage>,
}

/// An image that must be at hand, and where it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct KeepInfo {
    /// The ref, or the digest.
    pub name: String,
    /// Where it must be.
    pub set: SetKeep,
    /// The image that the name means.
    #[schema(value_type = String)]
    pub image: Digest,
    /// Bytes of its disk.
    pub size: u64,
    /// The image that the name meant before: it stays where it is until the new one is where it must be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub before: Option<Digest>,
    /// Nodes that have all of it, and count.
    pub nodes: u32,
    /// Caches that do.
    pub caches: u32,
    /// Nodes that hold it, or are to.
    pub on: Vec<KeptOn>,
    /// Caches that keep it, or are to.
    #[serde(rename = "in")]
    pub inside: Vec<KeptIn>,
    /// What is being done about it, in words.
    pub why: String,
}

/// The images that must be at hand.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeepList {
    /// In the order of their names.
    pub keeps: Vec<KeepInfo>,
}
