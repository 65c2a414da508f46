//! Images that placement has this cache keep: they are pinned, and let go of when placement does not name them any more.
//!
//! Which of the pins are placement's is written down, so that what people have pinned stays, whatever placement says, and
//! what placement has is let go of also after a restart. A pin keeps what is fetched from eviction; what a scrub or a lost disk
//! has taken is missing from what is said to be held, and fetched again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use api::ErrorBody;
use api::care::{WarmState, Warming};
use api::keep::{CachedImage, MOST_CACHED};
use blockio::Fs;
use image::{Digest, Error, Kind, Result};
use placement::Care;
use tokio::time::Instant;

use super::keeper::Keeper;

const FILE: &str = "kept.json";
/// Longest file that is read, in bytes.
const MOST: usize = 1 << 20;
/// For how long a cache that could not keep an image says so, and is not chosen for it if there are others.
const SORE: Duration = Duration::from_secs(600);

/// See the [module](self).
pub struct Kept {
    keeper: Arc<Keeper>,
    path: PathBuf,
    /// Pinned because placement has said so.
    ours: BTreeSet<Digest>,
    failed: BTreeMap<Digest, (ErrorBody, Instant)>,
    said: Vec<CachedImage>,
}

impl Kept {
    /// Of a cache whose data lie in a directory.
    pub fn load(keeper: Arc<Keeper>, data: &std::path::Path) -> Result<Self> {
        let path = data.join(FILE);
        let ours = match Fs::os().read(&path, MOST) {
            Ok(text) => serde_json::from_slice(&text).map_err(|e| {
                let what = format!(
                    "{}: {e}; move it away: what was pinned for placement stays pinned then",
                    path.display()
                );
                Error::caused(Kind::Corrupt, what, e)
            })?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => BTreeSet::new(),
            Err(e) => return Err(Error::io(path.display(), e)),
        };
        Ok(Self { keeper, path, ours, failed: BTreeMap::new(), said: Vec::new() })
    }

    /// How much is here of what is to be kept, and what could not be lately.
    pub fn said(&self) -> &[CachedImage] {
        &self.said
    }

    /// Keeps these images, and no others that it was told to.
    pub async fn follow(&mut self, wanted: &[Digest], now: Instant) {
        self.failed.retain(|_, (_, until)| now < *until);
        if let Err(error) = self.take_up(wanted).await {
            tracing::error!(%error, "what this cache is to keep is not changed");
        }
        let mut said = Vec::new();
        for image in wanted {
            said.push(self.one(image, now).await);
        }
        let others = self.failed.iter().filter(|(image, _)| !wanted.contains(image));
        said.extend(others.map(|(image, (error, _))| none_of(image, Some(error.clone()))));
        said.truncate(MOST_CACHED);
        self.said = said;
    }

    async fn take_up(&mut self, wanted: &[Digest]) -> Result<()> {
        let pinned = self.keeper.status().await?.pinned;
        let by_people = |image: &Digest| {
            !self.ours.contains(image) && pinned.iter().any(|pin| pin.image == *image)
        };
        let mut ours: BTreeSet<Digest> = self.ours.clone();
        ours.extend(wanted.iter().filter(|image| !by_people(image)));
        // Before they are pinned: one that is not in the file is taken for people's.
        self.write(ours)?;
        let over = self.ours.iter().filter(|image| !wanted.contains(image));
        let over: Vec<Digest> = over.copied().collect();
        for image in over {
            self.keeper.unpin(image).await?;
            let left = self.ours.iter().filter(|other| **other != image).copied();
            self.write(left.collect())?;
        }
        Ok(())
    }

    fn write(&mut self, ours: BTreeSet<Digest>) -> Result<()> {
        if ours != self.ours {
            let text = serde_json::to_vec(&ours).expect("our own types serialise");
            let written = Fs::os().replace(&self.path, &text);
            written.map_err(|e| Error::io(self.path.display(), e))?;
            self.ours = ours;
        }
        Ok(())
    }

    /// Has one fetched if it is not all here; what is here of it.
    async fn one(&mut self, image: &Digest, now: Instant) -> CachedImage {
        let begun = self.keeper.warming(*image).await.ok();
        let is_running =
            begun.as_ref().is_some_and(|tried| tried.state == WarmState::Running && tried.pins);
        let looked = self.keeper.held(*image).await;
        let whole = looked.as_ref().is_ok_and(|held| held.pinned && held.held == held.chunks);
        if whole {
            self.failed.remove(image);
        } else if !is_running {
            self.note_failure(image, begun.as_ref(), now);
            if !self.failed.contains_key(image)
                && let Err(error) = self.keeper.pin(*image).await
            {
                tracing::warn!(%error, %image, "an image cannot be kept");
            }
        }
        match looked {
            Ok(held) => CachedImage {
                image: *image,
                chunks: held.chunks,
                held: held.held,
                pinned: held.pinned,
                error: self.error(image),
            },
            Err(_) => none_of(image, self.error(image)),
        }
    }

    /// Of a try that came to nothing: it is not tried again for a while. One that was done, and is not any more, was
    /// lost, and is tried again at once; not one that had no room from the start.
    fn note_failure(&mut self, image: &Digest, tried: Option<&Warming>, now: Instant) {
        let Some(tried) = tried.filter(|tried| tried.pins) else { return };
        let why = match (&tried.state, &tried.warning) {
            (WarmState::Failed, _) => tried.failure(),
            (WarmState::Done, Some(warning)) => Error::new(Kind::Full, warning.clone()),
            _ => return,
        };
        self.failed.entry(*image).or_insert_with(|| (ErrorBody::from(&why), now + SORE));
    }

    fn error(&self, image: &Digest) -> Option<ErrorBody> {
        self.failed.get(image).map(|(error, _)| error.clone())
    }
}

/// One of which nothing is known to be here.
fn none_of(image: &Digest, error: Option<ErrorBody>) -> CachedImage {
    CachedImage { image: *image, chunks: 0, held: 0, pinned: false, error }
}
