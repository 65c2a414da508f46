//! Care of a cache: what an operator, or placement, asks of one server of chunks.
//!
//! Each server offers these routes itself, at the address that placement lists for it
//! ([`CacheInfo::api`](crate::grid::CacheInfo::api)).
//!
//! | method and path | body → answer | who |
//! |---|---|---|
//! | `GET /v1/cache` | → [`CacheStatus`] | any member |
//! | `GET /v1/cache/images/{image}` | → [`Held`] | any member |
//! | `PUT /v1/cache/images/{image}/warm` | → [`Warming`] | admin |
//! | `GET /v1/cache/images/{image}/warm` | → [`Warming`] | any member |
//! | `DELETE /v1/cache/images/{image}/warm` | → [`Warming`] | admin |
//! | `PUT /v1/cache/images/{image}/pin` | → [`Warming`] | admin |
//! | `DELETE /v1/cache/images/{image}/pin` | → [`Pinned`] | admin |
//! | `DELETE /v1/cache/images/{image}` | → [`Evicted`] | admin |
//! | `PUT /v1/cache/scrub` | [`ScrubOrder`] → [`ScrubStatus`] | admin |
//! | `PUT /v1/cache/drain` | [`DrainOrder`] → [`CacheStatus`] | admin |
//! | `GET /metrics` | → Prometheus text | any member |
//!
//! `{image}` is a digest: names are placement's. All `PUT`s and `DELETE`s say what shall be, so that
//! saying it twice does no harm.

use image::{Digest, Error, Kind};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::{from_wire, to_wire};

/// Counts of asks for chunks, by how they were answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Asks {
    /// From memory.
    pub memory: u64,
    /// From disk.
    pub disk: u64,
    /// Together with another who had asked for the same chunk.
    pub joined: u64,
    /// From the store, or the cache that owns the chunk.
    pub fetched: u64,
}

/// Asks by priority class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AsksByClass {
    /// A guest waited.
    pub guest: Asks,
    /// A guest would soon ask.
    pub trace: Asks,
    /// Nobody waited.
    pub background: Asks,
}

/// How a cache is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CacheStatus {
    /// Its name in the grid.
    pub name: String,
    /// Whether it is about to leave: nodes ask others first.
    pub draining: bool,
    /// Seconds since it was started.
    pub up_secs: u64,
    /// Bytes of frames in memory, and how many there are.
    pub memory: Tier,
    /// Bytes of frames on disk, and how many there are.
    pub disk: Tier,
    /// How the disk tier is: `on`, `recovering`, `none`, `full: …` or `off: …`.
    pub disk_state: String,
    /// Seconds since it has been so.
    pub disk_state_secs: u64,
    /// Reads and writes of the disk that failed, and frames there that were not what they should be.
    pub disk_errors: u64,
    /// The latest of these, with path and offset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_last_error: Option<String>,
    /// What should be changed before it goes wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_warning: Option<String>,
    /// Asks since it was started.
    pub asks: AsksByClass,
    /// Bytes of frames that it fetched from the store since it was started.
    pub store_egress: u64,
    /// Copies, in memory and on disk, that a repair found wrong and dropped: a node had got bytes that no
    /// CRC32C could show to be wrong. What reads of the disk and its check drop is in `disk_errors`.
    pub healed: u64,
    /// Images that stay.
    pub pinned: Vec<Pinned>,
    /// Images that are being fetched, or were, since it was started.
    pub warming: Vec<Warming>,
    /// The running check of the disk.
    pub scrub: ScrubStatus,
}

/// What a tier holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Tier {
    /// Bytes that it may take.
    pub budget: u64,
    /// Bytes that it takes.
    pub bytes: u64,
    /// Frames in it.
    pub frames: u64,
}

/// How much of an image a cache holds. Chunks of zeros are not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Held {
    /// Its chunks.
    pub chunks: u64,
    /// Of these, the ones in memory, on disk, or both.
    pub held: u64,
    /// Chunks in memory, and their frames in bytes.
    pub in_memory: Part,
    /// Chunks on disk, and their frames in bytes.
    pub on_disk: Part,
    /// Whether it is pinned.
    pub pinned: bool,
}

/// A part of an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Part {
    /// Chunks.
    pub chunks: u64,
    /// Their frames, in bytes.
    pub bytes: u64,
}

/// What became of warming an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WarmState {
    /// Under way.
    #[default]
    Running,
    /// All is here.
    Done,
    /// It could not go on.
    Failed,
    /// It was told to stop.
    Cancelled,
}

/// An image on its way into a cache. Chunks of zeros are not counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Warming {
    /// The image.
    #[schema(value_type = String)]
    pub image: Digest,
    /// What became of it.
    pub state: WarmState,
    /// Whether it is pinned once it is here.
    pub pins: bool,
    /// Sections with data.
    pub of_sections: u32,
    /// Of these, the ones that are here whole.
    pub sections: u32,
    /// Chunks that were looked at so far.
    pub chunks: u64,
    /// Of these, the ones that had to be fetched.
    pub fetched: u64,
    /// Bytes of the fetched frames.
    pub fetched_bytes: u64,
    /// Bytes of the disk that the image is; 0 while nobody knows.
    #[serde(default)]
    pub size: u64,
    /// Once it is done: chunks of the image that were held then. Fewer than `chunks` if the cache has no
    /// room for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<u64>,
    /// Why fewer are held than were brought.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Wire code of the kind of that error; a cache of an earlier version does not tell it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_code: Option<u16>,
}

impl Warming {
    /// It could not go on, and why.
    pub fn fail(&mut self, why: &Error) {
        self.state = WarmState::Failed;
        self.error = Some(why.message().into());
        self.error_code = Some(to_wire(why.kind()).0);
    }

    /// Why it failed, once it has.
    pub fn failure(&self) -> Error {
        let why = self.error.as_deref().unwrap_or("it does not say why");
        Error::new(self.error_code.map_or(Kind::Retry, |code| from_wire(code, 0)), why)
    }
}

/// An image that stays in a cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pinned {
    /// The image.
    #[schema(value_type = String)]
    pub image: Digest,
    /// Its chunks.
    pub chunks: u64,
    /// Their frames, in bytes.
    pub bytes: u64,
}

/// What left a cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Evicted {
    /// Chunks that left.
    pub chunks: u64,
    /// Chunks that stay, as a pinned image has them too.
    pub kept: u64,
}

/// How the disk shall be checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ScrubOrder {
    /// Bytes a second until the cache is restarted; 0 stops. Unless given, as the cache is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u64>,
}

/// How the check of the disk goes: it begins anew when it is through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ScrubStatus {
    /// Bytes a second; 0: it is switched off.
    pub rate: u64,
    /// The pass under way, or the last one; the first is 1.
    pub pass: u64,
    /// Whether a pass is under way.
    pub running: bool,
    /// Frames that this pass has checked.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames that were bad, and dropped.
    pub bad: u64,
    /// The same of all passes since the cache was started.
    #[serde(default)]
    pub bad_in_all: u64,
    /// An order began this pass. What was counted is not told yet.
    #[serde(default)]
    pub begins: bool,
}

/// Whether a cache shall leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DrainOrder {
    /// `true`: nodes are sent elsewhere, and the process ends when nobody asks any more. `false`: it stays.
    pub drain: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_a_warming_failed_is_told_by_kind_also_to_and_by_earlier_versions() {
        let image = Digest::of_stored(b"image");
        let running = serde_json::json!({
            "image": image, "state": "running", "pins": false, "of_sections": 0, "sections": 0,
            "chunks": 0, "fetched": 0, "fetched_bytes": 0,
        });
        let mut at: Warming = serde_json::from_value(running).unwrap();
        at.fail(&Error::new(Kind::Full, "no room"));
        let mut told = serde_json::to_value(&at).unwrap();
        assert_eq!(told["error"], "no room");
        let heard: Warming = serde_json::from_value(told.clone()).unwrap();
        assert_eq!(heard.failure().kind(), Kind::Full);
        told.as_object_mut().unwrap().remove("error_code");
        let heard: Warming = serde_json::from_value(told).unwrap();
        assert_eq!(heard.failure().kind(), Kind::Retry);
    }
}
