//! Captures on a node, over the node daemon's socket: images made of its volumes.
//!
//! | method and path | body → answer |
//! |---|---|
//! | `POST /v1/captures` | [`SaveVolume`] → [`Capture`], which has begun or waits for its turn |
//! | `GET /v1/captures` | → list of [`Capture`], the last ones; gone with the daemon |
//! | `GET /v1/captures/{id}` | → [`Capture`], with a [`Watch`] in the query when it has ended or after that time |
//! | `DELETE /v1/captures/{id}` | cancels → [`Capture`] |

use std::fmt;
use std::path::PathBuf;

use image::record::Unread;
use image::{Digest, Ref};
use serde::{Deserialize, Serialize};

use crate::catalog::NewRecord;
use crate::error::ErrorBody;

/// Asks for an image of a volume as it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SaveVolume {
    /// The volume; or a [`RunningDisk`], as it is written.
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
    /// Of a running disk: the directory for what its guest overwrites meanwhile, an absolute path. It lies beside the
    /// disk's file if none is named.
    #[serde(default)]
    pub scratch: Option<PathBuf>,
    /// Zeros stand for what cannot be read of the volume, and the image's record says so; else that is an error.
    #[serde(default)]
    pub skip_bad: bool,
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

/// A disk of a running QEMU that is no volume, written `qmp:SOCKET` or `qmp:SOCKET#DISK`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningDisk {
    /// The socket of QEMU's monitor.
    pub qmp: PathBuf,
    /// The disk, by its node or its device; nothing if it is the only one.
    pub disk: Option<String>,
}

impl RunningDisk {
    /// What a source names, if it is such a disk.
    pub fn of(source: &str) -> Option<Self> {
        let named = source.strip_prefix("qmp:")?;
        let (qmp, disk) = match named.split_once('#') {
            Some((qmp, disk)) => (qmp, Some(disk.to_owned())),
            None => (named, None),
        };
        Some(Self { qmp: qmp.into(), disk })
    }
}

impl fmt::Display for RunningDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "qmp:{}", self.qmp.display())?;
        self.disk.iter().try_for_each(|disk| write!(f, "#{disk}"))
    }
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
    /// A dirty bitmap of QEMU's does; of a volume since its guest was moved to the plain file, and the volume until then.
    QemuBitmap,
    /// The volume's file says so: what it shares with the file of its image is as in the image, the rest may have changed.
    SharedExtents,
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
    /// Why all is read, or more than has changed, or why the cheapest truth does not count, if it is so.
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
    /// What could not be read, and was skipped. What changes count from is then as it was: the next capture reads it
    /// again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unread: Option<Unread>,
    /// How often it has waited for the grid.
    #[serde(default)]
    pub waits: u64,
    /// Milliseconds from when its turn came to its end, when it has ended.
    #[serde(default)]
    pub took_ms: Option<u64>,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_disk_is_named_by_its_monitor_and_its_node() {
        for (text, qmp, disk) in [
            ("qmp:/run/a.sock", "/run/a.sock", None),
            ("qmp:/run/a.sock#d0", "/run/a.sock", Some("d0")),
            // QEMU's own names begin with a `#`.
            ("qmp:/run/a.sock##block110", "/run/a.sock", Some("#block110")),
        ] {
            let read = RunningDisk::of(text).unwrap();
            assert_eq!((&read.qmp, read.disk.as_deref()), (&PathBuf::from(qmp), disk));
            assert_eq!(read.to_string(), text);
        }
        assert_eq!(RunningDisk::of("web1"), None);
    }
}
