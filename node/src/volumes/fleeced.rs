//! A volume whose guest uses its plain file, past this daemon: QEMU fixes the point in time, and exports it.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use blockio::{Fs, OpenMode};
use image::error::At;
use image::geometry::DEFAULT_CHUNK_LOG2;
use image::{Digest, Error, Geometry, Kind, Result};
use volume_pool::foreign::{Format, Writer};
use volume_pool::{Identity, Since};

use super::live::node_name;
use super::service::Volumes;
use crate::captures::nbd::NbdDisk;
use crate::daemon::Grid;
use crate::hypervisor::qmp::{Monitor, fleece};

/// How long QEMU may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A volume that QEMU keeps as it was at one instant. To be [ended](Fleeced::end).
pub struct Fleeced<G> {
    volumes: Volumes<G>,
    qmp: PathBuf,
    fleece: fleece::Fleece,
    /// What the volume says of itself.
    pub identity: Identity,
    /// The image that it was captured as last, or is made of.
    pub since: Since,
}

impl<G: Grid> Volumes<G> {
    /// The monitor of the guest that uses a volume's plain file, if one does.
    pub fn moved(&self, name: &str) -> Option<PathBuf> {
        self.0.kept.get(name).filter(|how| how.moved).and_then(|how| how.qmp)
    }

    /// Makes ready to capture such a volume, which stays attached until the end.
    ///
    /// # Errors
    ///
    /// [`Kind::Conflict`] while it is captured.
    pub async fn take_moved(&self, name: &str, qmp: PathBuf) -> Result<Fleeced<G>> {
        let _only = self.only(name).await;
        let identity = self.0.shelf.identity(name)?;
        let since = self.0.shelf.since(&identity)?;
        self.reserve(name)?;
        let source = node_name(&identity.id);
        let fleece = fleece::Fleece {
            name: format!("{source}-c"),
            source,
            scratch: self.0.shelf.disk(name)?.with_file_name("aside.qcow2"),
            socket: self.0.sockets.join(format!("{name}.capture")),
        };
        Ok(Fleeced { volumes: self.clone(), qmp, fleece, identity, since })
    }
}

impl<G: Grid> Fleeced<G> {
    async fn monitor(&self) -> Result<Monitor> {
        Monitor::connect(&self.qmp, PATIENCE).await.at(|| self.identity.name.clone())
    }

    /// Makes all ready for the point in time.
    pub async fn prepare(&self) -> Result<()> {
        let mut monitor = self.monitor().await?;
        let disk = self.volumes.0.shelf.disk(&self.identity.name)?;
        self.remove_files()?;
        make_scratch(&self.fleece.scratch, &disk, self.identity.size)?;
        let made = fleece::prepare(&mut monitor, &self.fleece).await;
        // QEMU has it open, and nobody else needs it.
        let removed = Fs::os().remove_file(&self.fleece.scratch);
        made.and(removed.map_err(|e| Error::io("the capture's scratch file", e)))
            .at(|| self.identity.name.clone())
    }

    /// Has QEMU fix it.
    pub async fn fix(&self) -> Result<()> {
        fleece::fix(&mut self.monitor().await?, &self.fleece).await
    }

    /// What was there then.
    pub(crate) async fn disk(&self) -> Result<Arc<NbdDisk>> {
        fleece::export(&mut self.monitor().await?, &self.fleece).await?;
        let connected = NbdDisk::connect(self.fleece.socket.clone(), self.fleece.name.clone());
        Ok(Arc::new(connected?))
    }

    /// Whether QEMU still keeps what was there.
    pub async fn is_kept(&self) -> Result<()> {
        fleece::is_kept(&mut self.monitor().await?, &self.fleece).await
    }

    /// Ends the capture.
    pub async fn end(&self) -> Result<()> {
        let ended = match self.monitor().await {
            Ok(mut monitor) => fleece::end(&mut monitor, &self.fleece).await,
            Err(error) => Err(error),
        };
        let removed = self.remove_files();
        self.volumes.release(&self.identity.name);
        ended.and(removed)
    }

    fn remove_files(&self) -> Result<()> {
        for path in [&self.fleece.scratch, &self.fleece.socket] {
            match Fs::os().remove_file(path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io("what a capture has left", e));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// An empty qcow2 file of a disk of so many bytes, which belongs to whom the volume's disk belongs to: QEMU may open that one.
fn make_scratch(scratch: &Path, disk: &Path, size: u64) -> Result<()> {
    let place = |e| Error::io(scratch.display(), e);
    let geometry = Geometry::new(size, 512, DEFAULT_CHUNK_LOG2)?;
    let end = Writer::new(Format::Qcow2(None), &geometry, &Digest::ZERO, "").finish()?;
    let file = Fs::os().open(scratch, OpenMode::create_new()).map_err(place)?;
    file.set_len(end.len).map_err(place)?;
    end.pieces
        .iter()
        .try_for_each(|piece| file.write_all_at(&piece.bytes, piece.at))
        .map_err(place)?;
    let of = std::fs::metadata(disk).map_err(|e| Error::io(disk.display(), e))?;
    if !of.is_file() {
        let what = "a volume on a device, whose guest uses it past this daemon, is not captured yet: detach it first";
        return Err(Error::new(Kind::Unsupported, what));
    }
    std::os::unix::fs::chown(scratch, Some(of.uid()), Some(of.gid())).map_err(place)?;
    std::fs::set_permissions(scratch, of.permissions()).map_err(place)
}
