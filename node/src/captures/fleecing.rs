//! A disk that QEMU keeps as it was at one instant, and exports to us: what captures of volumes and of other disks share.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use blockio::{Fs, OpenMode};
use image::{Error, Kind, Result};

use super::nbd::NbdDisk;
use crate::hypervisor::qmp::Monitor;
use crate::hypervisor::qmp::fleece::{self, Device, Fleece};

/// How long QEMU may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A disk that is fleeced. To be [ended](Fleecing::end).
pub(crate) struct Fleecing {
    qmp: PathBuf,
    fleece: Fleece,
    /// What the names of all that captures of this kind make in this QEMU begin with.
    names: String,
    device: OnceLock<Device>,
}

impl Fleecing {
    /// Of the QEMU with this monitor. `names` begins [`Fleece::name`].
    pub(crate) fn new(qmp: PathBuf, fleece: Fleece, names: String) -> Self {
        Self { qmp, fleece, names, device: OnceLock::new() }
    }

    pub(crate) async fn monitor(qmp: &Path) -> Result<Monitor> {
        Monitor::connect(qmp, PATIENCE).await
    }

    async fn ask(&self) -> Result<Monitor> {
        Self::monitor(&self.qmp).await
    }

    /// Takes away what a process has left that died, and tells the bitmaps that note what has changed.
    pub(crate) async fn bitmaps(&self) -> Result<Vec<String>> {
        let mut monitor = self.ask().await?;
        fleece::tidy(&mut monitor, &self.names).await?;
        fleece::bitmaps(&mut monitor, &self.fleece.source).await
    }

    /// Makes all ready for the point in time of a disk of `size` bytes; the scratch file belongs to whom the file `like`
    /// belongs to: QEMU may open that one.
    pub(crate) async fn prepare(&self, size: u64, like: &Path) -> Result<()> {
        let mut monitor = self.ask().await?;
        fleece::tidy(&mut monitor, &self.names).await?;
        self.remove_files()?;
        make_scratch(&self.fleece.scratch, size, like)?;
        let made = fleece::prepare(&mut monitor, &self.fleece).await;
        // QEMU has it open, and nobody else needs it: its room is free when QEMU closes it, whatever happens to us.
        let removed = Fs::os().remove_file(&self.fleece.scratch);
        let device = made?;
        removed.map_err(|e| Error::io("the capture's scratch file", e))?;
        let _ = self.device.set(device);
        Ok(())
    }

    /// The bitmap of what changes since all was made ready.
    pub(crate) fn since(&self) -> String {
        self.fleece.since()
    }

    /// Has QEMU fix it; what has changed by then is in a bitmap, if that is known.
    pub(crate) async fn fix(&self, changed: Option<&str>) -> Result<()> {
        let unready = || Error::new(Kind::Conflict, "nothing is ready for a point in time");
        let device = self.device.get().ok_or_else(unready)?;
        fleece::fix(&mut self.ask().await?, &self.fleece, device, changed).await
    }

    /// What was there then, and if it is `known` what had changed.
    pub(crate) async fn disk(&self, known: bool) -> Result<Arc<NbdDisk>> {
        fleece::export(&mut self.ask().await?, &self.fleece, known).await?;
        let (socket, export) = (self.fleece.socket.clone(), self.fleece.name.clone());
        let connected = NbdDisk::connect(socket, export, known.then(|| self.fleece.known()));
        Ok(Arc::new(connected?))
    }

    /// All before the point in time was captured: what changes since is in the bitmap `next`.
    pub(crate) async fn captured(&self, next: &str, old: &[String]) -> Result<()> {
        fleece::captured(&mut self.ask().await?, &self.fleece, next, old).await
    }

    /// Takes all away that was made.
    pub(crate) async fn end(&self) -> Result<()> {
        let tidied = match self.ask().await {
            Ok(mut monitor) => fleece::tidy(&mut monitor, &self.names).await,
            Err(error) => Err(error),
        };
        let removed = self.remove_files();
        tidied.and(removed)
    }

    fn remove_files(&self) -> Result<()> {
        remove(&self.fleece.scratch)?;
        remove(&self.fleece.socket)
    }
}

/// Removes a file, if it is there.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match Fs::os().remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io("what a capture has left", e))
        }
        _ => Ok(()),
    }
}

/// Gives a path to whom a file belongs to.
pub(crate) fn give(path: &Path, like: &Path) -> Result<()> {
    let of = std::fs::metadata(like).map_err(|e| Error::io(like.display(), e))?;
    let given = std::os::unix::fs::chown(path, Some(of.uid()), Some(of.gid()));
    given.map_err(|e| Error::io(path.display(), e))
}

fn make_scratch(scratch: &Path, size: u64, like: &Path) -> Result<()> {
    let place = |e| Error::io(scratch.display(), e);
    let file = Fs::os().open(scratch, OpenMode::create_new()).map_err(place)?;
    file.set_len(size).map_err(place)?;
    give(scratch, like)?;
    let owner = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(scratch, owner).map_err(place)
}
