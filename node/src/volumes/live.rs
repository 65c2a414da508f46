//! A volume that is attached, on its core: served to its guest, and filled meanwhile.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use api::volume::{Attachment, ExportKind, Hydration as Progress};
use image::{Digest, Error, Geometry, Result};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use volume_pool::{Files, Volume};

use super::cores::Core;
use super::disk::VolumeDisk;
use super::hydrate::{Hydration, Status};
use super::plan::Policy;
use super::source::LazySource;
use crate::daemon::Grid;
use crate::export::nbd;
use crate::pull::Watch;
use crate::pull::batch::Fetch;

/// See the [module](self).
pub(super) struct Live {
    volume: Rc<Volume>,
    status: Rc<Status>,
    watch: Arc<Watch>,
    end: watch::Sender<bool>,
    serving: RefCell<Option<JoinHandle<()>>>,
    filling: RefCell<Option<JoinHandle<()>>>,
}

impl Live {
    /// Opens a volume and serves it.
    pub(super) fn start<G: Grid>(
        core: &Rc<Core>,
        grid: Arc<G>,
        files: Files,
        how: &Attachment,
    ) -> Result<Rc<Self>> {
        let volume = Rc::new(Volume::open(files, core.engine.clone())?);
        let (end, ended) = watch::channel(false);
        let serving = serve(core, &volume, how, ended)?;
        let live = Rc::new(Self {
            volume,
            status: Rc::default(),
            watch: Arc::default(),
            end,
            serving: RefCell::new(Some(serving)),
            filling: RefCell::default(),
        });
        if let Some(base) = live.volume.identity().base {
            let policy = Policy { fill: how.fill, patience: None };
            let fill = Rc::clone(&live).fill(Rc::clone(core), grid, base.image, policy);
            live.filling.replace(Some(tokio::task::spawn_local(fill)));
        }
        Ok(live)
    }

    /// Brings what is missing, to the end.
    async fn fill<G: Grid>(
        self: Rc<Self>,
        core: Rc<Core>,
        grid: Arc<G>,
        image: Digest,
        policy: Policy,
    ) {
        let source = LazySource::new(grid, image, core.number);
        let filled = self.fill_from(&core, &source, image, policy).await;
        source.close().await;
        if let Err(error) = filled {
            tracing::error!(%error, volume = self.volume.identity().name, "filling ended");
            self.status.trouble.replace(Some(error));
        }
    }

    async fn fill_from<G: Grid>(
        &self,
        core: &Core,
        source: &LazySource<G>,
        image: Digest,
        policy: Policy,
    ) -> Result<()> {
        let identity = self.volume.identity();
        if identity.plain {
            return Ok(());
        }
        let size = identity.base.map_or(0, |base| base.size);
        let fetch = Fetch {
            source,
            image,
            geometry: Geometry::new(size, 512, identity.chunk_log2)?,
            arena: &core.arena(identity.chunk_log2)?,
            decoder: Rc::clone(&core.decoder),
            rate: None,
            watch: &self.watch,
            trace: 0,
        };
        Hydration::new(&self.volume, fetch, &core.time, &self.status).run(policy).await?;
        self.volume.become_plain().await?;
        tracing::info!(volume = identity.name, "all of the image is here");
        Ok(())
    }

    /// How far it is.
    pub(super) fn progress(&self) -> (Progress, Option<Error>, bool) {
        let (arrived, p) = (self.volume.arrived(), self.watch.progress());
        let progress = Progress {
            chunks: arrived.chunks,
            present: arrived.present,
            wanted: arrived.wanted,
            received: p.received,
            fetched: p.chunks,
            demanded: self.status.demanded.get(),
            repaired: p.repaired,
        };
        (progress, self.status.trouble.borrow().clone(), self.volume.identity().plain)
    }

    /// Makes it larger, under its guest.
    pub(super) async fn grow(&self, size: u64) -> Result<()> {
        self.volume.grow(size).await
    }

    /// Ends what serves it when its requests are answered, and writes everything down.
    pub(super) async fn stop(&self) -> Result<()> {
        let _ = self.end.send(true);
        // Whoever serves may wait for chunks, so filling ends after it; and who waits for what does not come
        // would wait for ever.
        let serving = self.serving.take();
        if let Some(serving) = serving {
            let _ = serving.await;
        }
        let filling = self.filling.take();
        if let Some(filling) = filling {
            filling.abort();
            let _ = filling.await;
        }
        self.volume.close().await
    }
}

/// Serves a volume until the end is told.
fn serve(
    core: &Core,
    volume: &Rc<Volume>,
    how: &Attachment,
    mut end: watch::Receiver<bool>,
) -> Result<JoinHandle<()>> {
    let disk = Rc::new(VolumeDisk { volume: Rc::clone(volume), read_only: how.read_only });
    let ending = async move {
        let _ = end.wait_for(|end| *end).await;
    };
    match how.kind {
        ExportKind::Nbd => {
            let name = volume.identity().name;
            let description = format!("Forebay volume {name}");
            let export = nbd::Export { name, description, disk };
            let server = nbd::Server::new(vec![export], core.nbd.clone(), nbd::Limits::default())?;
            let socket = nbd::Socket::bind(&how.socket)?;
            Ok(tokio::task::spawn_local(async move { server.serve(socket, ending).await }))
        }
    }
}
