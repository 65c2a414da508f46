//! Images that this node was told to hold: the base of each is filled before any volume leans on it, and stays.
//!
//! A volume of an image that is held shares it, also where files cannot share blocks, unless volumes share nothing here: so
//! an attachment, or a build for a pool, needs no bytes from a cache.

use std::collections::BTreeSet;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use api::keep::HeldImage;
use futures::FutureExt;
use image::error::At;
use image::{Digest, Error, Kind, Manifest, Result};
use volume_pool::Held;

use super::bases::Base;
use super::cores::Core;
use super::live::{Surroundings, unshown};
use super::service::{Share, UNPOISONED, Volumes};
use crate::daemon::Grid;

/// How often it is looked at why an image does not come.
const GLANCE: Duration = Duration::from_secs(1);

impl<G: Grid> Volumes<G> {
    /// Has all of an image in its base, and the base stay; ends when it is there. What is there already is not fetched.
    /// Ends early, and gives it back, once `unwanted` does.
    ///
    /// # Errors
    ///
    /// [`Kind::Full`] without room, [`Kind::Unsupported`] if volumes here share nothing, [`Kind::Cancelled`] if it is not
    /// wanted any more; those of the grid and of the disk. Then nothing of it is kept that nobody else needs.
    pub(crate) async fn hold(
        &self,
        image: Digest,
        size: u64,
        unwanted: impl Future<Output = ()> + Send + 'static,
    ) -> Result<()> {
        let held = self.hold_to_the_end(image, size, unwanted).await;
        match &held {
            Ok(()) => {}
            // Whoever takes it back lets go of it; perhaps it is wanted anew already.
            Err(error) if error.kind() == Kind::Cancelled => self.let_go(vec![]).await?,
            Err(_) => self.let_go(vec![image]).await?,
        }
        held.at(|| format!("image {image}"))
    }

    async fn hold_to_the_end(
        &self,
        image: Digest,
        size: u64,
        unwanted: impl Future<Output = ()> + Send + 'static,
    ) -> Result<()> {
        if self.0.share == Share::Never {
            let what = "it would be of use to nobody here: volumes share nothing (volumes.share is `never`)";
            return Err(Error::new(Kind::Unsupported, what));
        }
        let shelf = self.0.shelf.clone();
        // Before the base is made: whoever removes those that are idle finds it wanted.
        let whole = self.blocking(move || shelf.hold(&image).map(|()| shelf.holds(&image)));
        if whole.await? {
            return Ok(());
        }
        let (_, free) = self.room()?;
        if free < size {
            let what = format!("{size} bytes are needed for it, and {free} are free");
            return Err(Error::new(Kind::Full, what));
        }
        let manifest = self.manifest(image.to_string()).await?;
        let around = self.around(None);
        let home = self.home_of(&image);
        self.on(home, move |core| {
            async move {
                let held = fill(&core, &around, (*manifest).clone(), unwanted).await;
                core.bases.release().await;
                held
            }
            .boxed_local()
        })
        .await
    }

    /// Lets go of all images that were held, but for some.
    ///
    /// # Errors
    ///
    /// Of the disk.
    pub(crate) async fn hold_only(&self, wanted: &BTreeSet<Digest>) -> Result<()> {
        let shelf = self.0.shelf.clone();
        let held = self.blocking(move || shelf.held()).await?;
        let others = held.into_iter().map(|held| held.image);
        let others: Vec<Digest> = others.filter(|image| !wanted.contains(image)).collect();
        match others.is_empty() {
            true => Ok(()),
            false => self.let_go(others).await,
        }
    }

    async fn let_go(&self, images: Vec<Digest>) -> Result<()> {
        let shelf = self.0.shelf.clone();
        self.blocking(move || {
            images.iter().try_for_each(|image| shelf.let_go(image))?;
            shelf.remove_idle_bases()
        })
        .await
    }

    /// The images that are held, for placement. While they cannot be listed, as they were listed last.
    pub(crate) async fn held(&self) -> Vec<HeldImage> {
        let shelf = self.0.shelf.clone();
        match self.blocking(move || shelf.held()).await {
            Ok(held) => {
                let said = |Held { image, size, whole }| HeldImage { image, size, whole };
                let all: Vec<HeldImage> = held.into_iter().map(said).collect();
                self.0.held.lock().expect(UNPOISONED).clone_from(&all);
                all
            }
            Err(error) => {
                tracing::error!(%error, "the images that are held cannot be listed: placement is told of them as they were");
                self.0.held.lock().expect(UNPOISONED).clone()
            }
        }
    }

    /// Whether a new volume of an image leaves its chunks with a base.
    pub(super) async fn shares(&self, image: Option<&Manifest>) -> Result<bool> {
        match (self.0.share, image) {
            (Share::Always, _) => Ok(true),
            (Share::Never, _) => Ok(false),
            (Share::Auto, _) if self.0.reflinks => Ok(true),
            (Share::Auto, None) => Ok(false),
            (Share::Auto, Some(image)) => {
                let (shelf, image) = (self.0.shelf.clone(), image.identity());
                self.blocking(move || Ok(shelf.holds(&image))).await
            }
        }
    }
}

/// Fills the base of an image.
async fn fill<G: Grid>(
    core: &Rc<Core>,
    around: &Surroundings<G>,
    image: Manifest,
    unwanted: impl Future<Output = ()>,
) -> Result<()> {
    let base = core.bases.get(core, around, image, &unshown(true)).await?;
    tokio::select! {
        filled = base.0.matured() => filled,
        error = cannot_come(&base) => Err(error),
        () = unwanted => Err(Error::new(Kind::Cancelled, "it is not wanted any more")),
    }
}

/// Ends when there is something in the way that does not go away by itself. Who is only away comes back.
async fn cannot_come(base: &Base) -> Error {
    loop {
        tokio::time::sleep(GLANCE).await;
        if let Some(error) = base.0.trouble().filter(|error| {
            matches!(error.kind(), Kind::Full | Kind::Io | Kind::Corrupt | Kind::Gone)
        }) {
            return error;
        }
    }
}
