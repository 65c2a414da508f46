//! What commands print as JSON: stable, for programs.

use std::path::PathBuf;

use api::node::Progress;
use image::{Digest, Ref};
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
