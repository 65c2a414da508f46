//! How it is known what has changed of what is captured: the cheapest truth at hand.

use std::sync::Arc;

use api::capture::{SaveVolume, Truth};
use capture::Ancestor;
use image::{ChunkSource, Digest, Kind, ReadContext, Result};
use volume_pool::{Captured, Since};

use super::Saves;
use super::job::Work;
use super::origin::Origin;
use crate::patience::Patience;
use crate::volumes::LazySource;

/// What is known of what has changed.
pub(super) struct Known<G: Saves> {
    pub(super) truth: Truth,
    /// What the rest is as; zeros if there is none.
    pub(super) ancestor: Option<Ancestor<LazySource<G>>>,
    /// Why no cheaper truth counts, or more is read than has changed.
    pub(super) why: Option<String>,
    /// The image that the new one leans on.
    pub(super) parent: Option<Digest>,
}

impl<G: Saves> Known<G> {
    /// What a capture reads of a volume of `size` bytes whose point in time we fix.
    pub(super) fn captured(&self, size: Option<u64>) -> Captured {
        let edge = self.ancestor.as_ref().zip(size);
        let edge = edge.and_then(|(ancestor, size)| ancestor.edge(size));
        match self.truth {
            Truth::FullRead => Captured::All,
            _ => Captured::Changed { edge },
        }
    }
}

impl<G: Saves> Work<G> {
    /// Makes all ready for a point in time of which is known what has changed, as far as it is.
    pub(super) async fn prepare(
        &self,
        mut known: Known<G>,
        taken: &Origin<G>,
        parent: Option<Digest>,
    ) -> Result<Known<G>> {
        taken.prepare(known.captured(taken.size())).await?;
        if known.truth == Truth::SharedExtents && !taken.count_unshared().await? {
            if let Some(ancestor) = known.ancestor.take() {
                ancestor.source.close().await;
            }
            known = Known { truth: Truth::FullRead, parent, ..known };
        }
        if known.truth != Truth::FullRead {
            let whys = known.why.into_iter().chain(after_a_crash(taken.left_open()));
            known.why = Some(whys.collect::<Vec<_>>().join("; ")).filter(|why| !why.is_empty());
        }
        Ok(known)
    }

    /// Finds out what is known of what has changed.
    pub(super) async fn known(
        &self,
        asked: &SaveVolume,
        taken: &Origin<G>,
        parent: Option<Digest>,
    ) -> Result<Known<G>> {
        let why = match (asked.all, taken.doubt(), taken.since()) {
            (true, ..) => "it was asked for".to_owned(),
            (_, Some(doubt), _) => doubt.to_owned(),
            (.., Since::Unknown) => "what its changes count from is not known".to_owned(),
            (.., Since::Image(image)) if parent != Some(image) => {
                format!("its changes count from image {image}, which is not the parent, or gone")
            }
            (.., Since::Zeros) => {
                return Ok(Known { truth: taken.truth(), ancestor: None, why: None, parent });
            }
            (.., Since::Image(image)) => {
                let ancestor = Some(self.ancestor(image).await?);
                return Ok(Known { truth: taken.truth(), ancestor, why: None, parent });
            }
        };
        let why = Some(why);
        Ok(match self.shared(asked, taken, parent).await? {
            Some(image) => {
                let ancestor = Some(self.ancestor(image).await?);
                Known { truth: Truth::SharedExtents, ancestor, why, parent: Some(image) }
            }
            None => Known { truth: Truth::FullRead, ancestor: None, why, parent },
        })
    }

    /// The image with which a volume may share what is as there, if the grid has it, and no other parent was asked for.
    async fn shared(
        &self,
        asked: &SaveVolume,
        taken: &Origin<G>,
        parent: Option<Digest>,
    ) -> Result<Option<Digest>> {
        let fits = |image: &Digest| asked.parent.is_none() || parent == Some(*image);
        let Some(image) = taken.shares_with().filter(|image| !asked.all && fits(image)) else {
            return Ok(None);
        };
        match self.grid.find(&image.to_string()).await {
            Err(error) if error.kind() == Kind::Gone => Ok(None),
            found => found.map(|_| Some(image)),
        }
    }

    async fn ancestor(&self, image: Digest) -> Result<Ancestor<LazySource<G>>> {
        let source = LazySource::new(Arc::clone(&self.grid), image, 0);
        let ctx = ReadContext::default();
        let manifest = Patience::new().ask(async || source.manifest(&ctx, &image).await);
        let manifest = manifest.await?;
        Ok(Ancestor { manifest, source })
    }
}

fn after_a_crash(sections: u64) -> Option<String> {
    let why = || {
        let sections =
            if sections == 1 { "1 section".to_owned() } else { format!("{sections} sections") };
        format!(
            "the daemon did not end as it should: all is read of {sections} of 64 MiB that were being written to"
        )
    };
    (sections > 0).then(why)
}
