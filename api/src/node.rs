//! The node daemon's API, over HTTP on a Unix socket that only its owner can open.
//!
//! | method and path | body → answer |
//! |---|---|
//! | `POST /v1/transfers` | [`PullRequest`] → [`Transfer`]; joins a transfer to the same path if one runs |
//! | `GET /v1/transfers` | → list of [`Transfer`] |
//! | `GET /v1/transfers/{id}` | → [`Transfer`] |
//! | `DELETE /v1/transfers/{id}` | cancels → [`Transfer`] |

use std::path::PathBuf;

use image::Digest;
use serde::{Deserialize, Serialize};

use crate::error::ErrorBody;

/// Asks the node for an image at a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullRequest {
    /// A ref or a digest.
    pub image: String,
    /// An absolute path: a regular file, or a block device.
    pub to: PathBuf,
    /// Make it durable before it is reported done.
    pub sync: bool,
}

/// Where a transfer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TransferState {
    /// Waiting for its turn.
    Queued,
    /// Looking at what is there, or moving chunks.
    Running,
    /// Complete.
    Done,
    /// Ended with an error; the same request starts it again.
    Failed,
    /// Ended on request.
    Cancelled,
}

impl TransferState {
    /// Whether nothing more will happen to it.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

/// How far a transfer is, in bytes of the disk unless said otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Progress {
    /// Disk size.
    pub size: u64,
    /// Bytes that must hold data (not zeros), of the part that has been looked at.
    pub data: u64,
    /// The same of the whole disk, as placement says: less than a chunk too many. 0 means that it was
    /// not asked.
    pub total: u64,
    /// Bytes that were there already and verified.
    pub reused: u64,
    /// Bytes written and verified.
    pub written: u64,
    /// Bytes of frames that came over the network.
    pub received: u64,
    /// Chunks that came over the network.
    pub chunks: u64,
    /// Chunks that came wrong, and were fetched again.
    pub repaired: u64,
}

/// A transfer of the node daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    /// Its number.
    pub id: u64,
    /// What was asked.
    pub request: PullRequest,
    /// The image that the ref pointed at.
    pub image: Option<Digest>,
    /// Where it stands.
    pub state: TransferState,
    /// How far it is.
    pub progress: Progress,
    /// Why it failed.
    pub error: Option<ErrorBody>,
}
