//! Volumes of another size: larger, with or without what is on them, and smaller.

use std::path::PathBuf;

use api::volume::{Attachment, ExportKind, ResizeVolume, Terms, VolumeInfo};
use futures::FutureExt;
use image::error::At;
use image::{Error, Kind, Result};
use volume_pool::{Identity, Volume};

use super::extend::{Failed, Site, extend};
use super::recorder::Start;
use super::service::Volumes;
use super::tools;
use crate::daemon::Grid;

/// Seconds that a tool waits for what cannot be had: then it fails, and whoever asked is told.
const PATIENCE: u64 = 300;

impl<G: Grid> Volumes<G> {
    /// Gives a volume another size: a larger one also while it is attached. With `extend` the last partition and
    /// the file system in it become larger with it.
    ///
    /// # Errors
    ///
    /// Smaller: those of [`Shelf::shrink`](volume_pool::Shelf::shrink), and [`Kind::Conflict`] while it is attached.
    /// With `extend`: [`Kind::Conflict`] while it is attached, [`Kind::Unsupported`] for what cannot be extended, and
    /// if a tool is missing; then nothing was changed. After any other the same again goes on.
    pub async fn resize(&self, name: &str, asked: ResizeVolume) -> Result<VolumeInfo> {
        let _only = self.only(name).await;
        let ResizeVolume { size, extend } = asked;
        let Identity { size: now, sector, chunk_log2, .. } = self.0.shelf.identity(name)?;
        volume_pool::size::geometry(size, sector, chunk_log2).at(|| name.to_owned())?;
        let is_attached = self.0.kept.get(name).is_some();
        let refuse = |kind, what: &str| Err(Error::new(kind, format!("{name}: {what}")));
        match (extend, is_attached) {
            (true, _) if size < now => {
                return refuse(Kind::Invalid, "what is to be extended is not made smaller");
            }
            (true, true) => {
                let why = "attached: its file system may be in use, and is not touched. Without --extend the disk \
                           is made larger under its guest, which extends the rest (growpart, resize2fs); or \
                           detach it first";
                return refuse(Kind::Conflict, why);
            }
            (true, false) => self.extend(name, size).await.map_err(|failed| match failed {
                Failed::Before(error) => error.at(name),
                Failed::Midway(error) => self.midway(name, size, error),
            })?,
            (false, true) if size < now => {
                return refuse(Kind::Conflict, "attached: detach it before it is made smaller");
            }
            (false, false) if size < now => {
                let (shelf, name) = (self.0.shelf.clone(), name.to_owned());
                self.blocking(move || shelf.shrink(&name, size)).await?;
            }
            (false, _) => self.grow(name, size).await?,
        }
        self.show(name).await
    }

    async fn grow(&self, name: &str, size: u64) -> Result<()> {
        let (shelf, key) = (self.0.shelf.clone(), name.to_owned());
        self.on_its_core(name, move |core| {
            async move {
                let live = core.live.borrow().get(&key).cloned();
                match live {
                    Some(live) => live.grow(size).await,
                    // Briefly in use, by us.
                    None => Volume::open(shelf.take(&key)?, core.engine.clone())?.grow(size).await,
                }
            }
            .boxed_local()
        })
        .await
    }

    /// An error after which the same again goes on.
    pub(super) fn midway(&self, name: &str, size: u64, error: Error) -> Error {
        let again = format!("forebay volume resize {name} {size} --extend");
        error.at(format!("{name}: its file system is not extended yet (`{again}` goes on)"))
    }

    /// Extends what is on a volume that is not attached; nobody else may change it meanwhile.
    pub(super) async fn extend(&self, name: &str, size: u64) -> Result<(), Failed> {
        let place = self.0.for_tools.join(name);
        tools::give_back(&place).await.map_err(Failed::Before)?;
        let (disk, mount) = (place.join(tools::DISK), place.join(tools::MOUNT));
        let before = |e: std::io::Error| Failed::Before(Error::io(place.display(), e));
        std::fs::create_dir_all(&mount).map_err(before)?;
        let extended = self.extend_at(name, size, disk, mount).await;
        if let Err(error) = tools::give_back(&place).await {
            tracing::warn!(%error, name, "what was made for the tools is left");
        }
        extended
    }

    async fn extend_at(
        &self,
        name: &str,
        size: u64,
        disk: PathBuf,
        mount: PathBuf,
    ) -> Result<(), Failed> {
        let how = Attachment {
            kind: ExportKind::Fuse,
            path: disk.clone(),
            qmp: None,
            read_only: false,
            fill: false,
            terms: Terms { patience: Some(PATIENCE), ..Terms::default() },
            trace: false,
            moved: false,
        };
        // No holder keeps it: when this process dies, the tools are told.
        self.go_live(name, how, Start::Unseen, None).await.map_err(Failed::Before)?;
        let site = Site { shelf: self.0.shelf.clone(), name: name.to_owned(), disk, mount };
        let extended = self.on_its_core(name, move |core| {
            async move {
                let live = core.live.borrow().get(&site.name).cloned();
                let gone = || Error::new(Kind::Cancelled, "it is not served any more");
                let Some(live) = live else { return Ok(Err(Failed::Before(gone()))) };
                Ok(extend(&core, &live, size, &site).await)
            }
            .boxed_local()
        });
        let extended = extended.await;
        let ended = self.end_live(name, false).await;
        extended.map_err(Failed::Midway)??;
        ended.map_err(Failed::Midway)
    }
}
