//! A volume whose guest uses its plain file, past this daemon: QEMU fixes the point in time, and exports it.

use std::ops::Range;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use image::error::At;
use image::{Digest, Error, Kind, Result};
use volume_pool::{Identity, Since, Volume};

use super::live;
use super::service::Volumes;
use super::shared;
use crate::captures::fleecing::Fleecing;
use crate::captures::nbd::NbdDisk;
use crate::daemon::Grid;
use crate::hypervisor::qmp::fleece::Fleece;

/// A volume that QEMU keeps as it was at one instant. To be [ended](Fleeced::end).
pub struct Fleeced<G> {
    volumes: Volumes<G>,
    fleecing: Fleecing,
    /// QEMU's bitmap of what the guest changes past us, and whether it notes it now.
    bitmap: String,
    known: bool,
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
        let fleece = Fleece {
            source: live::node_name(&identity.id),
            name: live::fleece_name(&identity.id),
            scratch: self.0.shelf.disk(name)?.with_file_name("aside.raw"),
            socket: self.0.sockets.join(format!("{name}.capture")),
        };
        self.reserve(name)?;
        let (volumes, names) = (self.clone(), fleece.name.clone());
        let fleecing = Fleecing::new(qmp, fleece, names);
        let bitmap = live::bitmap(&identity.id);
        match fleecing.bitmaps().await.at(|| name.to_owned()) {
            Ok(bitmaps) => {
                let known = bitmaps.contains(&bitmap);
                Ok(Fleeced { volumes, fleecing, bitmap, known, identity, since })
            }
            Err(error) => {
                self.release(name);
                Err(error)
            }
        }
    }
}

impl<G: Grid> Fleeced<G> {
    /// Whether it is known what has changed: by our map until the guest was moved, and by QEMU's bitmap since.
    pub fn is_known(&self) -> bool {
        self.known
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
        let disk = self.volumes.0.shelf.disk(&self.identity.name)?;
        if !disk.metadata().map_err(|e| Error::io(disk.display(), e))?.is_file() {
            let what = "a volume on a device, whose guest uses it past this daemon, is not captured yet: detach it first";
            return Err(Error::new(Kind::Unsupported, what));
        }
        self.fleecing.prepare(self.identity.size, &disk).await.at(|| self.identity.name.clone())
    }

    /// The image with whose base it shares what is as there, if it may.
    pub fn shares_with(&self) -> Option<Digest> {
        shared::image_of(&self.identity)
    }

    /// Counts as changed what the volume's file does not share with its image's base; whether that can be told. What the
    /// guest has changed since all was made ready is noted by QEMU.
    pub async fn count_unshared(&self) -> Result<bool> {
        let data = |volume: Rc<Volume>| async move { Ok(volume.data().clone()) };
        let data = self.with_volume(move |volume| data(volume).boxed_local()).await?;
        let Some(unshared) = self.volumes.unshared(&self.identity, data).await else {
            return Ok(false);
        };
        let count = move |volume: Rc<Volume>| {
            volume.also_changed(&unshared);
            async { Ok(()) }.boxed_local()
        };
        self.with_volume(count).await?;
        Ok(true)
    }

    /// Has QEMU fix it, and if it is `known` what has changed keep what it has noted of that.
    pub async fn fix(&self, known: bool) -> Result<()> {
        let noted = if self.known { self.bitmap.clone() } else { self.fleecing.since() };
        self.fleecing.fix(known.then_some(&noted)).await
    }

    /// What was there then, and if it is `known` what QEMU has noted.
    pub(crate) async fn disk(&self, known: bool) -> Result<Arc<NbdDisk>> {
        self.fleecing.disk(known).await
    }

    /// Ends the capture, with the image that was made: changes count from there.
    pub async fn end(&self, image: Option<Digest>) -> Result<()> {
        let noted = match image {
            Some(image) => self.note(image).await,
            None => Ok(()),
        };
        let ended = self.fleecing.end().await;
        self.volumes.release(&self.identity.name);
        noted.and(ended)
    }

    /// First where changes count from, and then that less has changed: in between more counts as changed than has.
    async fn note(&self, image: Digest) -> Result<()> {
        self.volumes.0.shelf.note_since(&self.identity, &image)?;
        let note = move |volume: Rc<Volume>| {
            async move { volume.captured_past_us(&image).await }.boxed_local()
        };
        self.with_volume(note).await?;
        let old: Vec<_> = self.known.then(|| self.bitmap.clone()).into_iter().collect();
        self.fleecing.captured(&self.bitmap, &old).await
    }
}
