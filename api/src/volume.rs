//! Volumes of a node, over the node daemon's socket.
//!
//! | method and path | body → answer |
//! |---|---|
//! | `POST /v1/volumes` | [`CreateVolume`] → [`VolumeInfo`] |
//! | `GET /v1/volumes` | → list of [`VolumeInfo`] |
//! | `GET /v1/volumes/{name}` | → [`VolumeInfo`] |
//! | `DELETE /v1/volumes/{name}` | → [`VolumeInfo`] as it was |
//! | `POST /v1/volumes/{name}/attach` | [`AttachVolume`] → [`VolumeInfo`]; the same again changes nothing, another way is refused |
//! | `POST /v1/volumes/{name}/detach` | → [`VolumeInfo`] |
//! | `POST /v1/volumes/{name}/scrub` | → [`Scrubbed`], when all has been looked at |
//! | `POST /v1/volumes/{name}/release` | [`ReleaseVolume`] → [`Erasure`]; it is nobody's any more |
//! | `GET /v1/erasures` | → list of [`Erasure`]: those that run, or have failed |
//! | `POST /v1/volumes/{name}/resize` | [`ResizeVolume`] → [`VolumeInfo`] |

use std::path::PathBuf;

use image::Digest;
use serde::{Deserialize, Serialize};

use crate::error::ErrorBody;

/// Asks for a new volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateVolume {
    /// What people will call it.
    pub name: String,
    /// A ref or a digest; a blank volume has none.
    #[serde(default)]
    pub image: Option<String>,
    /// Bytes; the image's by default.
    #[serde(default)]
    pub size: Option<u64>,
    /// Logical sector in bytes; the image's by default, 512 of a blank one.
    #[serde(default)]
    pub sector: Option<u32>,
    /// The block device that it is to lie on, by its whole path; a file of the daemon's by default. What is on
    /// the device is overwritten.
    #[serde(default)]
    pub device: Option<PathBuf>,
    /// The last partition and the file system in it (ext, XFS, btrfs, NTFS) are extended to the end of the volume.
    #[serde(default)]
    pub extend: bool,
}

/// How what is in a volume is destroyed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EraseMethod {
    /// Overwritten with zeros.
    #[default]
    Zeros,
    /// Overwritten with what was drawn at random.
    Random,
    /// Given back to the device or the file system.
    Discard,
}

/// How much is read back afterwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EraseProof {
    /// Nothing.
    None,
    /// Some places, drawn at random.
    #[default]
    Sample,
    /// All of it.
    All,
}

/// Gives a volume back: what is in it is destroyed, and then it is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ReleaseVolume {
    /// How.
    #[serde(default)]
    pub method: EraseMethod,
    /// How often it is overwritten.
    #[serde(default = "once")]
    pub passes: u32,
    /// How much is read back.
    #[serde(default)]
    pub proof: EraseProof,
}

impl Default for ReleaseVolume {
    fn default() -> Self {
        Self { method: EraseMethod::default(), passes: once(), proof: EraseProof::default() }
    }
}

fn once() -> u32 {
    1
}

/// A volume that is being erased, or could not be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Erasure {
    /// Its id, in hexadecimal.
    pub id: String,
    /// What people called it.
    pub name: String,
    /// Bytes that its guest saw.
    pub size: u64,
    /// Bytes that are behind us, of all passes and the reading back.
    pub done: u64,
    /// Why it is not erased; it stays out of use, and is tried again by the next daemon.
    pub failed: Option<ErrorBody>,
}

/// Asks for a volume to be made larger, or smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResizeVolume {
    /// Bytes. Less than it has: if what is on the volume says that nothing lies behind.
    pub size: u64,
    /// The last partition and the file system in it (ext, XFS, btrfs, NTFS) are extended to the end of the volume, which
    /// must not be attached. The same size again goes on with what was ended midway.
    #[serde(default)]
    pub extend: bool,
}

/// How a volume is shown to its guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExportKind {
    /// Network block device, over a Unix socket.
    Nbd,
    /// A virtio block device in memory shared with the hypervisor, over a Unix socket.
    VhostUser,
    /// A file, for hypervisors that take nothing but a path.
    Fuse,
}

impl ExportKind {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nbd => "nbd",
            Self::VhostUser => "vhost-user",
            Self::Fuse => "fuse",
        }
    }
}

/// Asks for a volume to be shown to a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachVolume {
    /// How.
    pub kind: ExportKind,
    /// Where the socket, or the file, is to be; in the daemon's directory by default.
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// The monitor of the QEMU that will use it (NBD): when all is here, the guest is moved to the plain file.
    #[serde(default)]
    pub qmp: Option<PathBuf>,
    /// Refuse writes.
    #[serde(default)]
    pub read_only: bool,
    /// What is missing is fetched also if no guest asks for it.
    #[serde(default = "yes")]
    pub fill: bool,
    /// How that is done.
    #[serde(default)]
    pub terms: Terms,
    /// What guests of its image touch when they start is fetched ahead of this one; how it starts is recorded if
    /// the volume was never in use.
    #[serde(default = "yes")]
    pub trace: bool,
    /// How the guest starts is recorded though the volume was in use.
    #[serde(default)]
    pub record: bool,
}

/// How a volume is filled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Terms {
    /// Seconds that a guest waits for what cannot be had before it gets an I/O error; for ever by default.
    pub patience: Option<u64>,
    /// Bytes a second at most for what no guest waits for.
    pub rate: Option<u64>,
    /// When all is to be here, in seconds since 1970: it is filled evenly until then.
    pub by: Option<u64>,
    /// Of a volume that shares: it becomes plain also where that means to copy all of the image to it.
    pub copy: bool,
}

/// What a scrub found, in chunks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scrubbed {
    /// As the image has them.
    pub right: u64,
    /// Written by the guest: there is nothing to compare them with.
    pub written: u64,
    /// Not as the image has them, though nobody wrote to them.
    pub wrong: u64,
    /// Of these, the ones that were made good.
    pub repaired: u64,
}

fn yes() -> bool {
    true
}

/// How a volume is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// How.
    pub kind: ExportKind,
    /// Where: a socket, or a file.
    pub path: PathBuf,
    /// The monitor of the QEMU that uses it.
    pub qmp: Option<PathBuf>,
    /// Writes are refused.
    pub read_only: bool,
    /// What is missing is fetched also if no guest asks for it.
    pub fill: bool,
    /// How that is done.
    #[serde(default)]
    pub terms: Terms,
    /// What guests of its image touch when they start is fetched ahead of this one.
    #[serde(default = "yes")]
    pub trace: bool,
    /// The guest was moved to the plain file: nothing is served any more.
    #[serde(default)]
    pub moved: bool,
}

/// How far a volume is, in chunks unless said otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hydration {
    /// All of it.
    pub chunks: u64,
    /// Those that are here.
    pub present: u64,
    /// Those that guests wait for.
    pub wanted: u64,
    /// Bytes of frames that came over the network since it was attached.
    pub received: u64,
    /// Chunks that came over the network since then.
    pub fetched: u64,
    /// Of these, the ones that guests waited for.
    pub demanded: u64,
    /// Chunks that came wrong, and were fetched again.
    pub repaired: u64,
    /// Bytes of frames that are still to come, about.
    pub left: u64,
    /// How many seconds that takes, as far as it can be told.
    pub seconds: Option<u64>,
    /// It cannot all be here when it should.
    pub late: bool,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeInfo {
    /// What people call it.
    pub name: String,
    /// Drawn when it was made, in hexadecimal.
    pub id: String,
    /// `building`, `ready`, `allocated` or `erasing`.
    pub state: String,
    /// Bytes.
    pub size: u64,
    /// Logical sector in bytes.
    pub sector: u32,
    /// What it was made of.
    pub image: Option<Digest>,
    /// When, in seconds since 1970.
    pub created: u64,
    /// All of it is here: `disk` is a plain raw disk.
    pub plain: bool,
    /// It shares the chunks of its image with other volumes of the node.
    #[serde(default)]
    pub shares: bool,
    /// The file that holds its bytes.
    pub disk: PathBuf,
    /// How it is shown, if it is.
    pub attached: Option<Attachment>,
    /// How far it is, while it is attached.
    pub hydration: Option<Hydration>,
    /// Why what is missing does not come, if it does not.
    pub trouble: Option<ErrorBody>,
}
