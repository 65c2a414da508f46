//! What commands print as JSON: stable, for programs.

use std::path::PathBuf;

use api::node::Progress;
use api::place::Placed;
use image::record::{ImageKind, Unread};
use image::{Digest, Ref};
use node::diff::{FileSystemDiff, SideReport, Span};
use node::restore::Rehearsal;
use serde::{Deserialize, Serialize};

/// What an import did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImportReport {
    /// The name that the image got.
    #[serde(rename = "ref")]
    pub name: Ref,
    /// The image.
    pub image: Digest,
    /// Disk size in bytes.
    pub size: u64,
    /// Bytes that were read from the disk; holes are not.
    pub read: u64,
    /// Bytes of chunks that are not zeros.
    pub data: u64,
    /// Bytes of frames that were sent, because the store could not be assumed to have them.
    pub sent: u64,
    /// Chunks that were sent.
    pub chunks_sent: u64,
    /// What could not be read of the disk, and was to be skipped: zeros stand for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unread: Option<Unread>,
    /// How long it took, in seconds.
    pub seconds: f64,
}

/// What a pull did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PullReport {
    /// The image.
    pub image: Digest,
    /// Where it is.
    pub path: PathBuf,
    /// What moved.
    pub progress: Progress,
    /// How long it took, in seconds.
    pub seconds: f64,
}

/// What an export did. All sizes in bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExportReport {
    /// The image.
    pub image: Digest,
    /// Where the file is.
    pub path: PathBuf,
    /// Its format: `raw`, `qcow2` or `vmdk`.
    pub format: String,
    /// The disk's size.
    pub size: u64,
    /// Of chunks that are not zeros.
    pub data: u64,
    /// What came over the network.
    pub received: u64,
    /// What was written into the file.
    pub written: u64,
    /// How long the file is, holes among it.
    pub len: u64,
    /// How long it took, in seconds.
    pub seconds: f64,
}

/// What a prune did, or would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PruneReport {
    /// Nothing was changed.
    pub dry_run: bool,
    /// The names that were looked at: groups in the order of their names, in each the newest image first.
    pub names: Vec<PruneLine>,
}

/// What would be placed where.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlaceReport {
    /// A line for each request, in their order.
    pub placed: Vec<Placed>,
}

/// A name, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PruneLine {
    /// The name.
    #[serde(rename = "ref")]
    pub name: Ref,
    /// The image that it points at, or did.
    pub image: Digest,
    /// When that was made, in seconds since 1970.
    pub created: Option<u64>,
    /// What became of the name.
    pub action: PruneAction,
    /// The rules that keep it, each with the hour, day and so on for which it counts: `daily 2026-11-21`.
    pub kept_by: Vec<String>,
}

/// What becomes of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PruneAction {
    /// It is kept, by rules.
    Kept,
    /// It is kept: nobody knows when its image was made.
    Undated,
    /// It is to be removed: by a run that is not dry, or had not failed before.
    ToRemove,
    /// It has been removed.
    Removed,
    /// It is kept: it points at another image since it was looked at.
    Moved,
    /// Somebody else has removed it since it was looked at.
    Gone,
}

/// What differs between two images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiffReport {
    /// The image that is compared with.
    pub old: Digest,
    /// The image that is compared.
    pub new: Digest,
    /// Which bytes differ; nothing if that cannot be known by digests.
    pub bytes: Option<BytesDiff>,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_bytes: Option<String>,
    /// Which files differ, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<FilesDiff>,
}

/// Which bytes differ, in whole chunks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BytesDiff {
    /// What is known of the one image.
    pub old: SideReport,
    /// What is known of the other.
    pub new: SideReport,
    /// Sections (64 MiB of disk) in which something differs.
    pub sections: u64,
    /// Chunks that differ.
    pub chunks: u64,
    /// Their bytes.
    pub differ: u64,
    /// Where they are, in order, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ranges: Option<Vec<Span>>,
    /// Bytes that differ and are in no range, for there are more ranges than are told.
    pub untold: u64,
}

/// Which files differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesDiff {
    /// The file systems of both disks.
    pub file_systems: Vec<FileSystemDiff>,
    /// Bytes of frames that came for it.
    pub received: u64,
}

/// What `forebay images --tree` shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lineage {
    /// Each image behind the one that it was made from.
    pub images: Vec<LineageLine>,
}

/// An image in the tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineageLine {
    /// The image.
    pub image: Digest,
    /// Images above it in the tree.
    pub depth: usize,
    /// What it was made from, as its record says.
    pub parent: Option<Digest>,
    /// Its names.
    pub refs: Vec<Ref>,
    /// It does not exist any more: nothing else is known of it.
    pub gone: bool,
    /// When it was made, in seconds since 1970.
    pub created: Option<u64>,
    /// Operating system.
    pub os: Option<String>,
    /// What kind of image it is.
    pub kind: Option<ImageKind>,
    /// Disk size in bytes.
    pub size: u64,
    /// Bytes of the frames that it leans on, shared with others or not.
    pub stored: u64,
    /// Why the store could not describe it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What `forebay up` serves: the line that it prints with `--json`, and what `DATA/up.json` says
/// to the other commands on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serving {
    /// The grid's id.
    pub grid: String,
    /// Where placement's API listens.
    pub placement: std::net::SocketAddr,
    /// Where chunks are served, one UDP address per core.
    pub chunks: Vec<std::net::SocketAddr>,
    /// The process.
    pub pid: u32,
}

/// What `forebay cache` serves: the line that it prints with `--json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheServing {
    /// Its name in the grid.
    pub name: String,
    /// Where chunks are served, one UDP address per core.
    pub chunks: Vec<std::net::SocketAddr>,
    /// Where its own API is served.
    pub api: Option<std::net::SocketAddr>,
}

/// What `forebay node` serves: the line that it prints with `--json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeServing {
    /// The socket at which it can be asked.
    pub socket: PathBuf,
}

/// What `forebay up --json` and `forebay cache --json` say when they end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    /// Frames in the cache that did not match their checksum or digest, and were fetched anew.
    pub bad_frames: u64,
    /// Bytes that the cache fetched from the store.
    pub store_egress: u64,
}

/// What a run of rehearsals did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RehearseReport {
    /// What the images were drawn with.
    pub seed: u64,
    /// Images among which was drawn.
    pub images: usize,
    /// Those of them that are larger than the whole budget, and so are never drawn.
    pub too_large: usize,
    /// What is still to be restored: names and images.
    #[serde(skip)]
    pub drawn: Vec<(String, Digest)>,
    /// What came of those that were drawn.
    pub rehearsals: Vec<Rehearsal>,
}

/// That `forebay rehearse --every --json` is at work; a [`Rehearsal`] a line follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rehearsing {
    /// A run in so many seconds.
    pub every: u64,
}
