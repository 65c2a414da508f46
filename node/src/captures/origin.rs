//! What a capture is made of: a volume that this daemon serves, or has for itself; or one whose guest uses the plain file,
//! which QEMU keeps as it was; or a disk of a QEMU that is no volume.

use std::ffi::OsString;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use api::capture::{RunningDisk, SaveVolume, Truth};
use capture::Disk;
use image::geometry::DEFAULT_CHUNK_LOG2;
use image::{Digest, Error, Kind, Result};
use volume_pool::{Captured, Since};

use super::Saves;
use super::nbd::NbdDisk;
use super::running::Running;
use crate::hypervisor::agent::Frozen;
use crate::volumes::{Fleeced, Taken, Volumes};

/// How long it may take to fix a point in time: file systems hold still meanwhile.
const FIXING: Duration = Duration::from_secs(10);

/// A volume that is being captured. To be [ended](Origin::end).
pub(super) enum Origin<G> {
    /// All that is written to it goes through us.
    Ours(Arc<Taken<G>>),
    /// Its guest writes past us.
    Qemu(Box<Fleeced<G>>),
    /// It is no volume.
    Running(Box<Running>),
}

/// It, at a point in time.
pub(super) struct Fixed {
    pub(super) disk: Arc<dyn Disk>,
    /// What is to be read, in bytes.
    pub(super) ranges: Vec<Range<u64>>,
    pub(super) sector: u32,
    pub(super) chunk_log2: u8,
}

impl<G: Saves> Origin<G> {
    pub(super) async fn take(volumes: &Volumes<G>, asked: &SaveVolume) -> Result<Self> {
        let name = &asked.volume;
        if let Some(disk) = RunningDisk::of(name) {
            let running = Running::take(&disk, asked.scratch.as_deref()).await?;
            return Ok(Self::Running(Box::new(running)));
        }
        match volumes.moved(name) {
            Some(qmp) => Ok(Self::Qemu(Box::new(volumes.take_moved(name, qmp).await?))),
            None => Ok(Self::Ours(Arc::new(volumes.take(name).await?))),
        }
    }

    /// Whether no guest was ever shown it that could write to it.
    pub(super) fn is_fresh(&self) -> bool {
        match self {
            Self::Ours(taken) => taken.identity.fresh,
            Self::Qemu(fleeced) => fleeced.identity.fresh,
            Self::Running(_) => false,
        }
    }

    /// What its changes count from.
    pub(super) fn since(&self) -> Since {
        match self {
            Self::Ours(taken) => taken.since,
            Self::Qemu(fleeced) => fleeced.since,
            Self::Running(running) => running.since.map_or(Since::Unknown, Since::Image),
        }
    }

    /// Why what has changed is not known, if it is not.
    pub(super) fn doubt(&self) -> Option<&'static str> {
        match self {
            Self::Ours(taken) => taken.doubt,
            Self::Qemu(fleeced) if fleeced.is_known() => None,
            Self::Qemu(_) => Some(
                "its guest writes to the plain file, past this daemon, and nothing of QEMU's tells what",
            ),
            Self::Running(running) if running.since.is_some() => None,
            Self::Running(_) => {
                Some("no bitmap of its QEMU's tells what has changed since an image was made of it")
            }
        }
    }

    /// The size of a volume, in bytes, whose point in time we fix.
    pub(super) fn size(&self) -> Option<u64> {
        match self {
            Self::Ours(taken) => Some(taken.identity.size),
            Self::Qemu(_) | Self::Running(_) => None,
        }
    }

    /// Sections of which all is read after a crash.
    pub(super) fn left_open(&self) -> u64 {
        match self {
            Self::Ours(taken) => taken.left_open,
            Self::Qemu(_) | Self::Running(_) => 0,
        }
    }

    /// The image with whose base it shares what is as there, if it may.
    pub(super) fn shares_with(&self) -> Option<Digest> {
        match self {
            Self::Ours(taken) => taken.shares_with(),
            Self::Qemu(fleeced) => fleeced.shares_with(),
            Self::Running(_) => None,
        }
    }

    /// Counts as changed what it does not share with that; whether that can be told. When all is made ready, and before the
    /// point in time is fixed: see [`volume_pool::unshared`].
    pub(super) async fn count_unshared(&self) -> Result<bool> {
        match self {
            Self::Ours(taken) => taken.count_unshared().await,
            Self::Qemu(fleeced) => fleeced.count_unshared().await,
            Self::Running(_) => Ok(false),
        }
    }

    /// How it is known, if it is.
    pub(super) fn truth(&self) -> Truth {
        match self {
            Self::Ours(_) => Truth::ChangedMap,
            Self::Qemu(_) | Self::Running(_) => Truth::QemuBitmap,
        }
    }

    /// Does what can be done before the point in time is fixed.
    pub(super) async fn prepare(&self, what: Captured) -> Result<()> {
        match self {
            Self::Ours(taken) => taken.prepare(what).await,
            Self::Qemu(fleeced) => fleeced.prepare().await,
            Self::Running(running) => running.prepare().await,
        }
    }

    /// Fixes it, while the guest's file systems hold still if there is somebody to see to that. Returns also how long they
    /// did, or why not.
    pub(super) async fn fix(
        &self,
        what: Captured,
        agent: Option<(&Path, &[OsString])>,
    ) -> Result<(Fixed, Option<std::result::Result<Duration, String>>)> {
        let frozen = match agent {
            Some((socket, thaw)) => Some(Frozen::freeze(socket, thaw).await),
            None => None,
        };
        let fix = async {
            match self {
                Self::Ours(taken) => taken.fix(what).await.map(Some),
                Self::Qemu(fleeced) => fleeced.fix(what != Captured::All).await.map(|()| None),
                Self::Running(running) => running.fix(what != Captured::All).await.map(|()| None),
            }
        };
        let late =
            |_| Error::new(Kind::Retry, "writes that are under way do not end: is the disk slow?");
        let fixed = tokio::time::timeout(FIXING, fix).await.map_err(late).and_then(|fixed| fixed);
        let still = match frozen {
            None => None,
            Some(Ok(frozen)) => {
                let thawed = frozen.thaw().await;
                Some(thawed.map_err(|e| format!("it is told again to let them go on: {e}")))
            }
            Some(Err(error)) => Some(Err(error.to_string())),
        };
        Ok((self.fixed(what, fixed?).await?, still))
    }

    async fn fixed(
        &self,
        what: Captured,
        fixed: Option<crate::volumes::Fixed<G>>,
    ) -> Result<Fixed> {
        match self {
            Self::Ours(taken) => {
                let gone = || Error::new(Kind::Cancelled, "the capture was ended");
                let fixed = fixed.ok_or_else(gone)?;
                let (ranges, identity) = (fixed.ranges.clone(), &taken.identity);
                let (sector, chunk_log2) = (identity.sector, identity.chunk_log2);
                Ok(Fixed { disk: Arc::new(fixed), ranges, sector, chunk_log2 })
            }
            Self::Qemu(fleeced) => {
                let disk = fleeced.disk(what != Captured::All).await?;
                let identity = &fleeced.identity;
                let mut ranges = match what {
                    Captured::All => Vec::new(),
                    Captured::Changed { .. } => fleeced.changed_before().await?,
                };
                if what != Captured::All {
                    ranges.extend(disk.dirty()?);
                }
                Ok(of_qemu(disk, what, ranges, identity.sector, identity.chunk_log2))
            }
            Self::Running(running) => {
                let disk = running.disk(what != Captured::All).await?;
                let ranges = match what {
                    Captured::All => Vec::new(),
                    Captured::Changed { .. } => disk.dirty()?,
                };
                Ok(of_qemu(disk, what, ranges, running.sector, DEFAULT_CHUNK_LOG2))
            }
        }
    }

    /// Ends the capture, with the image that was made.
    pub(super) async fn end(&self, image: Option<Digest>) -> Result<()> {
        match self {
            Self::Ours(taken) => taken.end(image).await,
            Self::Qemu(fleeced) => fleeced.end(image).await,
            Self::Running(running) => running.end(image).await,
        }
    }
}

fn of_qemu(
    disk: Arc<NbdDisk>,
    what: Captured,
    changed: Vec<Range<u64>>,
    sector: u32,
    chunk_log2: u8,
) -> Fixed {
    let ranges = match what {
        Captured::All => std::iter::once(0..disk.size()).collect(),
        Captured::Changed { .. } => capture::whole(changed, 1 << chunk_log2, disk.size()),
    };
    Fixed { disk, ranges, sector, chunk_log2 }
}
