//! Captures on a node, over the node daemon's socket: images made of its volumes.
//!
//! | method and path | body → answer |
//! |---|---|
//! | `POST /v1/captures` | [`SaveVolume`] → [`Capture`], which has begun or waits for its turn |
//! | `GET /v1/captures` | → list of [`Capture`], the last ones; gone with the daemon |
//! | `GET /v1/captures/{id}` | → [`Capture`], with a [`Watch`] in the query when it has ended or after that time |
//! | `DELETE /v1/captures/{id}` | cancels → [`Capture`] |

use std::path::PathBuf;

use image::{Digest, Ref};
use serde::{Deserialize, Serialize};

use crate::catalog::NewRecord;
use crate::error::ErrorBody;

/// Asks for an image of a volume as it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SaveVolume {
    /// The volume.
    pub volume: String,
    /// The name that the image gets. What it named before stays an image, and is kept if something moves the name
    /// meanwhile.
    #[serde(rename = "ref")]
    pub name: Ref,
    /// The image that it was made from, a ref or a digest: the one that the volume's changes count from by default.
    #[serde(default)]
    pub parent: Option<String>,
    /// All of it is read, whatever is known of what has changed.
    #[serde(default)]
    pub all: bool,
    /// Nobody waits: at most [`rate`](SaveVolume::rate), and after whatever else the disk is asked for.
    #[serde(default)]
    pub background: bool,
    /// Bytes a second that are read at most.
    #[serde(default)]
    pub rate: Option<u64>,
    /// The socket of the guest's agent: its file systems write down what they have, and hold still while the point in
    /// time is fixed. If that cannot be done it is fixed all the same, and said.
    #[serde(default)]
    pub agent: Option<PathBuf>,
    /// Fail if the name is taken already.
    #[serde(default)]
    pub new: bool,
    /// What is said of the image: a snapshot, unless it says otherwise.
    #[serde(default)]
    pub record: NewRecord,
}

/// How long an answer may wait for a capture's end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    /// In milliseconds, at most a minute; not at all by default.
    #[serde(default)]
    pub wait_ms: u64,
}

/// Where a capture stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CaptureState {
    /// Waiting for its turn: one of each volume, and few on a node, run at a time.
    Queued,
    /// Reading, and sending what is new.
    Running,
    /// All was sent; the store compares, and reads back.
    Verifying,
    /// The image is stored and named.
    Done,
    /// Ended with an error; the name is as it was.
    Failed,
    /// Ended on request.
    Cancelled,
}

impl CaptureState {
    /// Whether nothing more will happen to it.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

/// How it is known what has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Truth {
    /// The volume counts what guests write.
    ChangedMap,
    /// The volume did until its guest was moved to the plain file, and a dirty bitmap of QEMU's does since.
    QemuBitmap,
    /// It is not: all is read, and compared by digest.
    FullRead,
}

/// How far a capture is, in bytes unless said otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CaptureProgress {
    /// Disk size.
    pub size: u64,
    /// What has to be read, holes among it.
    pub to_read: u64,
    /// What of that lies behind the place where it is read, holes among it.
    pub passed: u64,
    /// What was read.
    pub read: u64,
    /// Where on the disk that was.
    pub position: u64,
    /// Chunks that were new to the store's side, and sent.
    pub new_chunks: u64,
    /// Their plain bytes.
    pub new: u64,
    /// What went over the network of them.
    pub sent: u64,
    /// Sections of the disk that hold something.
    pub sections: u64,
    /// Those of them that are stored and were verified there.
    pub stored: u64,
}

/// A capture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capture {
    /// Its number.
    pub id: u64,
    /// What was asked.
    pub request: SaveVolume,
    /// Where it stands.
    pub state: CaptureState,
    /// How it is known what has changed, once it has begun.
    #[serde(default)]
    pub truth: Option<Truth>,
    /// Why all is read, or more than has changed, if it is.
    #[serde(default)]
    pub why: Option<String>,
    /// The image that changes count from.
    #[serde(default)]
    pub parent: Option<Digest>,
    /// How far it is.
    pub progress: CaptureProgress,
    /// Its point in time, in seconds since 1970.
    #[serde(default)]
    pub taken: Option<u64>,
    /// For how many milliseconds the guest's file systems held still.
    #[serde(default)]
    pub frozen_ms: Option<u64>,
    /// Why they did not, if they were to: the image is what a guest finds after its power was pulled.
    #[serde(default)]
    pub not_frozen: Option<String>,
    /// The image.
    #[serde(default)]
    pub image: Option<Digest>,
    /// What it waits for: the grid is away.
    #[serde(default)]
    pub trouble: Option<ErrorBody>,
    /// Why it failed.
    #[serde(default)]
    pub error: Option<ErrorBody>,
}
