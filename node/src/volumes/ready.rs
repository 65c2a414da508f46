//! Volumes that are made ahead, and handed out.

use std::sync::Arc;

use futures::FutureExt;
use image::error::At;
use image::geometry::DEFAULT_CHUNK_LOG2;
use image::{Error, Kind, Result};
use volume_pool::{Identity, NewVolume, VolumeState, ready::name_of};

use api::layout::Layout;
use api::pool::VolumeKind;
use api::volume::VolumeInfo;

use super::live::Live;
use super::service::{Birth, Volumes};
use super::serving::ENDS;
use crate::daemon::Grid;
use crate::format::format;
use crate::rate::{Rate, RealTime};

/// Whether somebody waits for a volume that is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hurry {
    /// Somebody does: it comes as fast as it can.
    Waited,
    /// Nobody does: it is fetched within the limit of all builds on this node, and within its own, in bytes a second.
    Background {
        /// Its own; unset: none.
        rate: Option<u64>,
    },
}

/// A volume that is nobody's.
#[derive(Clone, Debug)]
pub(crate) struct Unclaimed {
    pub(crate) identity: Identity,
    /// What it was made for, as it was given to [`Volumes::make_ready`].
    pub(crate) origin: Vec<u8>,
}

impl<G: Grid> Volumes<G> {
    /// Those that are nobody's, in the order of their ids. What cannot be read is said and left.
    pub(crate) async fn unclaimed(&self) -> Result<Vec<Unclaimed>> {
        let shelf = self.0.shelf.clone();
        self.blocking(move || {
            let (ready, mut all) = (shelf.ready()?, Vec::new());
            for name in ready.names()? {
                match ready.identity(&name) {
                    Ok(identity) => {
                        let origin = ready.origin(&name)?.unwrap_or_default();
                        all.push(Unclaimed { identity, origin });
                    }
                    Err(error) => tracing::error!(%error, name, "a volume that cannot be read"),
                }
            }
            Ok(all)
        })
        .await
    }

    /// Those that were handed out, by the requests that they were handed out for.
    pub(crate) async fn claimed(&self) -> Result<Vec<([u8; 16], Identity)>> {
        let shelf = self.0.shelf.clone();
        self.blocking(move || {
            let identities =
                shelf.names()?.into_iter().filter_map(|name| shelf.identity(&name).ok());
            Ok(identities.filter_map(|identity| Some((identity.claim?, identity))).collect())
        })
        .await
    }

    /// Makes a volume that is nobody's: all of its image is in it when this returns, and lasts. What is left of an
    /// earlier attempt is removed before, and what is left when it fails, after.
    ///
    /// # Errors
    ///
    /// [`Kind::Full`] without room; those of the grid.
    pub async fn make_ready(
        &self,
        kind: &VolumeKind,
        origin: Vec<u8>,
        birth: Birth,
        hurry: Hurry,
    ) -> Result<Identity> {
        let name = name_of(&birth.id);
        self.remove_ready(&birth.id).await?;
        let made = self.make(kind, origin, birth, hurry).await;
        if made.is_err()
            && let Err(error) = self.remove_ready(&birth.id).await
        {
            tracing::error!(%error, name, "what could not be made is left");
        }
        made.at(|| format!("volume {name}"))
    }

    async fn make(
        &self,
        kind: &VolumeKind,
        origin: Vec<u8>,
        birth: Birth,
        hurry: Hurry,
    ) -> Result<Identity> {
        let image = match kind.image {
            Some(image) => Some(self.manifest(image.to_string()).await?),
            None => None,
        };
        let of_image = image.as_ref().map(|image| *image.geometry());
        let sector = kind.sector.or(of_image.map(|g| g.sector())).unwrap_or(512);
        let chunk_log2 = of_image.map_or(DEFAULT_CHUNK_LOG2, |g| g.chunk_log2());
        let (blank, shares) = (image.is_none(), self.shares(image.as_deref()).await?);
        let new = NewVolume {
            name: name_of(&birth.id),
            id: birth.id,
            geometry: volume_pool::size::geometry(kind.size, sector, chunk_log2)?,
            image,
            shares,
            device: None,
            created: birth.now,
        };
        let shelf = self.0.shelf.clone();
        self.blocking(move || shelf.ready()?.make(&new, &origin)).await?;
        if !blank {
            self.fill_ready(&birth.id, hurry).await?;
        } else if let Some(layout) = &kind.layout {
            self.format_ready(&birth.id, layout).await?;
        }
        let (shelf, id) = (self.0.shelf.clone(), birth.id);
        self.blocking(move || {
            let ready = shelf.ready()?;
            ready.made(&id)?;
            ready.identity(&name_of(&id))
        })
        .await
    }

    /// Partitions and formats a volume that is nobody's.
    async fn format_ready(&self, id: &[u8; 16], layout: &Layout) -> Result<()> {
        let (shelf, name) = (self.0.shelf.clone(), name_of(id));
        let disk = self.blocking(move || {
            let ready = shelf.ready()?;
            // The tools write past the maps: captures of it read all.
            ready.note_untracked(&name)?;
            Ok((ready.disk(&name)?, ready.identity(&name)?))
        });
        let (disk, identity) = disk.await?;
        format(layout, &disk, identity.size, identity.sector).await.map(drop)
    }

    /// Brings all of its image into a volume that is nobody's.
    async fn fill_ready(&self, id: &[u8; 16], hurry: Hurry) -> Result<()> {
        let (shelf, name) = (self.0.shelf.clone(), name_of(id));
        let files = self.blocking(move || shelf.ready()?.take(&name)).await?;
        let home = self.home(files.identity.get());
        let mut around = self.around(None);
        if let Hurry::Background { rate } = hurry {
            let own = rate.map(|rate| Arc::new(Rate::new(rate, RealTime::start())));
            around.limits.extend(self.0.build_rate.iter().cloned().chain(own));
        }
        self.on(home, move |core| {
            async move {
                let filled = match Live::start_unshown(&core, around, files, true).await {
                    Ok(live) => {
                        let filled = live.matured().await;
                        live.stop(false, ENDS).await.and(filled)
                    }
                    Err(error) => Err(error),
                };
                core.bases.release().await;
                filled
            }
            .boxed_local()
        })
        .await
    }

    /// Hands out a volume that is nobody's.
    ///
    /// # Errors
    ///
    /// As [`Shelf::hand_out`](volume_pool::Shelf::hand_out).
    pub(crate) async fn hand_out(
        &self,
        id: [u8; 16],
        name: &str,
        claim: [u8; 16],
    ) -> Result<VolumeInfo> {
        let _only = self.only(name).await;
        let (shelf, to) = (self.0.shelf.clone(), name.to_owned());
        self.blocking(move || shelf.hand_out(&id, &to, claim)).await?;
        self.show(name).await
    }

    /// A volume that was handed out by a request.
    ///
    /// # Errors
    ///
    /// [`Kind::Gone`] if it was given back since.
    pub(crate) async fn show_claimed(&self, name: &str, claim: [u8; 16]) -> Result<VolumeInfo> {
        let identity = self.0.shelf.identity(name);
        if identity.as_ref().is_ok_and(|identity| identity.claim != Some(claim)) {
            let what = format!("{name}: what was handed out by this request was given back");
            return Err(Error::new(Kind::Gone, what));
        }
        self.show(name).await
    }

    /// Whether a volume that is nobody's can be handed out.
    pub(crate) async fn is_ready(&self, id: &[u8; 16]) -> Result<bool> {
        let (shelf, name) = (self.0.shelf.clone(), name_of(id));
        let state = self.blocking(move || Ok(shelf.ready()?.identity(&name)?.state));
        Ok(state.await? == VolumeState::Ready)
    }

    /// Removes a volume that is nobody's, if it is there.
    ///
    /// # Errors
    ///
    /// [`Kind::Conflict`] if it was handed out; those of the disk.
    pub async fn remove_ready(&self, id: &[u8; 16]) -> Result<()> {
        let (shelf, name) = (self.0.shelf.clone(), name_of(id));
        self.blocking(move || {
            let ready = shelf.ready()?;
            match ready.identity(&name).map(|identity| identity.state) {
                Err(error) if error.kind() == Kind::Gone => return Ok(()),
                // Somebody's already.
                Ok(VolumeState::Allocated) => {
                    let what = format!("{name}: it was handed out");
                    return Err(Error::new(Kind::Conflict, what));
                }
                _ => ready.remove(&name)?,
            }
            shelf.remove_idle_bases()
        })
        .await
    }

    /// Where the volumes lie: bytes of all of the file system, and of what is free there.
    pub(crate) fn room(&self) -> Result<(u64, u64)> {
        let dir = self.0.shelf.dir();
        let stat = rustix::fs::statvfs(dir).map_err(|e| Error::io(dir.display(), e.into()))?;
        Ok((stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize))
    }
}
