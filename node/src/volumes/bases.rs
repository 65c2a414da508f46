//! The bases that the volumes of a core lean on: each is open while one of them needs it, and filled once for all.

use std::collections::BTreeMap;
use std::rc::Rc;

use api::volume::Attachment;
use image::{Digest, Manifest, Result};
use tokio::sync::Mutex;

use super::cores::Core;
use super::live::{Live, Surroundings};
use super::service::take_patiently;
use super::serving::ENDS;
use crate::daemon::Grid;

/// A base in use: filled like a volume, and shown to nobody.
pub(super) struct Base(pub(super) Rc<Live>);

/// See the [module](self).
#[derive(Default)]
pub(super) struct Bases(Mutex<BTreeMap<Digest, Rc<Base>>>);

impl Bases {
    /// The base of an image, for a volume that is attached like this: whoever is the first sets the terms.
    pub(super) async fn get<G: Grid>(
        &self,
        core: &Rc<Core>,
        around: &Surroundings<G>,
        image: Manifest,
        how: &Attachment,
    ) -> Result<Rc<Base>> {
        let digest = image.identity();
        let mut all = self.0.lock().await;
        if let Some(base) = all.get(&digest) {
            base.0.fill_too(how.fill);
            return Ok(Rc::clone(base));
        }
        let (shelf, now) = (around.shelf.clone(), around.now);
        let files = take_patiently(move || shelf.take_base(&image, now)).await?;
        let how = Attachment { qmp: None, moved: false, ..how.clone() };
        let base = Rc::new(Base(Live::start_base(core, around.clone(), files, how)?));
        all.insert(digest, Rc::clone(&base));
        Ok(base)
    }

    /// Closes the bases that no volume leans on any more.
    pub(super) async fn release(&self) {
        let mut all = self.0.lock().await;
        let idle = all.iter().filter(|(_, base)| Rc::strong_count(base) == 1);
        let idle: Vec<Digest> = idle.map(|(image, _)| *image).collect();
        for image in idle {
            let Some(base) = all.remove(&image) else { continue };
            if let Err(error) = base.0.stop(false, ENDS).await {
                tracing::error!(%error, %image, "the base of an image did not end as it should");
            }
        }
    }
}
