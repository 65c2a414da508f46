//! A volume whose guest uses its plain file, past this daemon: QEMU fixes the point in time, and exports it.

use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use blockio::{Fs, OpenMode};
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use image::error::At;
use image::geometry::DEFAULT_CHUNK_LOG2;
use image::{Digest, Error, Geometry, Kind, Result};
use volume_pool::foreign::{Format, Writer};
use volume_pool::{Identity, Since, Volume};

use super::live;
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
    /// QEMU's bitmap of what the guest has changed past us.
    known: Option<String>,
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
        let fleece = fleece::Fleece {
            scratch: self.0.shelf.disk(name)?.with_file_name("aside.qcow2"),
            socket: self.0.sockets.join(format!("{name}.capture")),
            ..live::fleece(&identity.id)
        };
        let volumes = self.clone();
        let mut fleeced = Fleeced { volumes, qmp, fleece, known: None, identity, since };
        match fleeced.look().await {
            Ok(()) => Ok(fleeced),
            Err(error) => {
                self.release(name);
                Err(error)
            }
        }
    }
}

impl<G: Grid> Fleeced<G> {
    async fn monitor(&self) -> Result<Monitor> {
        Monitor::connect(&self.qmp, PATIENCE).await.at(|| self.identity.name.clone())
    }

    async fn look(&mut self) -> Result<()> {
        self.known = fleece::known(&mut self.monitor().await?, &self.fleece).await?;
        Ok(())
    }

    /// Whether it is known what has changed: by our map until the guest was moved, and by QEMU's bitmap since.
    pub fn is_known(&self) -> bool {
        self.known.is_some()
    }

    /// What our map says, in bytes: it says nothing more since the guest was moved.
    pub async fn changed_before(&self) -> Result<Vec<Range<u64>>> {
        self.with_volume(|volume| async move { Ok(volume.changed_ranges()) }.boxed_local()).await
    }

    async fn with_volume<T: Send + 'static>(
        &self,
        work: impl FnOnce(Rc<Volume>) -> LocalBoxFuture<'static, Result<T>> + Send + 'static,
    ) -> Result<T> {
        let (name, key) = (&self.identity.name, self.identity.name.clone());
        let found = self.volumes.on_its_core(name, move |core| {
            async move {
                let live = core.live.borrow().get(&key).cloned();
                let gone = || Error::new(Kind::Conflict, "it was detached just now");
                work(Rc::clone(&live.ok_or_else(gone)?.volume)).await
            }
            .boxed_local()
        });
        found.await
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
        fleece::fix(&mut self.monitor().await?, &self.fleece, self.known.as_deref()).await
    }

    /// What was there then.
    pub(crate) async fn disk(&self) -> Result<Arc<NbdDisk>> {
        let known = self.known.as_deref();
        fleece::export(&mut self.monitor().await?, &self.fleece, known).await?;
        let (socket, export) = (self.fleece.socket.clone(), self.fleece.name.clone());
        let connected = NbdDisk::connect(socket, export, self.known.clone());
        Ok(Arc::new(connected?))
    }

    /// Whether QEMU still keeps what was there.
    pub async fn is_kept(&self) -> Result<()> {
        fleece::is_kept(&mut self.monitor().await?, &self.fleece).await
    }

    /// Ends the capture, with the image that was made: changes count from there.
    pub async fn end(&self, image: Option<Digest>) -> Result<()> {
        let noted = match image {
            Some(image) => self.note(image).await.map(|()| true),
            None => Ok(false),
        };
        let captured = matches!(noted, Ok(true));
        let ended = match self.monitor().await {
            Ok(mut monitor) => fleece::end(&mut monitor, &self.fleece, captured).await,
            Err(error) => Err(error),
        };
        let ended = noted.and(ended);
        let removed = self.remove_files();
        self.volumes.release(&self.identity.name);
        ended.and(removed)
    }

    async fn note(&self, image: Digest) -> Result<()> {
        self.volumes.0.shelf.note_since(&self.identity, &image)?;
        let note = move |volume: Rc<Volume>| {
            async move { volume.captured_past_us(&image).await }.boxed_local()
        };
        self.with_volume(note).await
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
