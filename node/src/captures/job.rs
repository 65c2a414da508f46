//! One capture, from the volume to the name.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use api::ErrorBody;
use api::capture::{Capture, CaptureProgress, CaptureState, SaveVolume, Truth};
use api::catalog::{Expect, MoveRef, NewRecord};
use capture::{Ancestor, Changes, DiskSource, ImportOptions, Imported, Progress};
use image::error::At;
use image::record::ImageKind;
use image::{ChunkSource, Digest, Error, Kind, ReadContext, Result};
use tokio::sync::Notify;
use volume_pool::{Captured, Since};

use super::Saves;
use crate::patience::Patience;
use crate::volumes::{Fixed, LazySource, Taken, Volumes};

const UNPOISONED: &str = "no panics while locked";

/// What is known of a capture, for who watches, and the way to end it.
pub(super) struct Told {
    now: Mutex<Capture>,
    progress: Arc<Progress>,
    cancelled: Notify,
    /// It has changed its state.
    pub(super) changed: Notify,
}

/// What a capture needs.
pub(super) struct Work<G> {
    pub(super) grid: Arc<G>,
    pub(super) volumes: Volumes<G>,
    pub(super) workers: NonZeroUsize,
    pub(super) memory: usize,
}

impl Told {
    pub(super) fn new(id: u64, request: SaveVolume) -> Self {
        let now = Capture {
            id,
            request,
            state: CaptureState::Queued,
            truth: None,
            why: None,
            parent: None,
            progress: CaptureProgress::default(),
            taken: None,
            image: None,
            error: None,
        };
        Self {
            now: Mutex::new(now),
            progress: Arc::default(),
            cancelled: Notify::new(),
            changed: Notify::new(),
        }
    }

    /// How it stands.
    pub(super) fn now(&self) -> Capture {
        let mut now = self.now.lock().expect(UNPOISONED).clone();
        let stats = self.progress.stats();
        now.progress = CaptureProgress {
            size: stats.size,
            read: stats.data,
            position: stats.position,
            new_chunks: stats.sent_chunks,
            new: stats.sent_plain,
            sent: stats.sent_stored,
            stored: stats.sealed,
            ..now.progress
        };
        let all_read = stats.size > 0 && stats.position == stats.size;
        if now.state == CaptureState::Running && all_read {
            now.state = CaptureState::Verifying;
        }
        now
    }

    fn tell(&self, change: impl FnOnce(&mut Capture)) {
        change(&mut self.now.lock().expect(UNPOISONED));
        self.changed.notify_waiters();
    }

    /// Has it end soon.
    pub(super) fn cancel(&self) {
        self.cancelled.notify_one();
    }

    fn end(&self, ended: Result<Digest>) {
        self.tell(|now| match ended {
            Ok(image) => {
                now.state = CaptureState::Done;
                now.image = Some(image);
            }
            Err(error) => {
                now.state = match error.kind() {
                    Kind::Cancelled => CaptureState::Cancelled,
                    _ => CaptureState::Failed,
                };
                now.error = Some(ErrorBody::from(&error));
            }
        });
    }
}

impl<G: Saves> Work<G> {
    /// Does it, and tells how it ended.
    pub(super) async fn run(&self, told: &Told, turn: impl Future<Output = ()>) {
        let cancelled = || Error::new(Kind::Cancelled, "it was cancelled");
        let request = told.now().request;
        let taken = tokio::select! {
            () = told.cancelled.notified() => Err(cancelled()),
            taken = async { turn.await; self.volumes.take(&request.volume).await } => taken,
        };
        let taken = match taken {
            Ok(taken) => Arc::new(taken),
            Err(error) => return told.end(Err(error)),
        };
        told.tell(|now| now.state = CaptureState::Running);
        let saved = tokio::select! {
            () = told.cancelled.notified() => Err(cancelled()),
            saved = self.save(told, &request, &taken) => saved,
        };
        // What the volume is told is of the image, not of its name.
        let (image, saved) = match saved {
            Ok(image) => (Some(image), Ok(image)),
            Err(error) => (told.now().image, Err(error)),
        };
        let ended = taken.end(image).await;
        let name = &request.volume;
        if let Err(error) = &saved {
            tracing::warn!(%error, volume = name, "a capture came to nothing");
        }
        told.end(saved.and_then(|image| ended.map(|()| image)).at(|| name.clone()));
    }

    async fn save(&self, told: &Told, asked: &SaveVolume, taken: &Arc<Taken<G>>) -> Result<Digest> {
        let named = self.grid.current(&asked.name).await?;
        let expect = match named {
            None => Expect::Absent,
            Some(image) if asked.new => {
                let what = format!("{}: taken already by image {image}", asked.name);
                return Err(Error::new(Kind::Conflict, what));
            }
            Some(image) => Expect::At(image),
        };
        let (parent, sink) = self.push(asked, taken.since, named).await?;
        let imported = self.stored(told, asked, taken, parent, &sink).await;
        self.grid.close(sink).await;
        let image = imported?.image;
        told.tell(|now| now.image = Some(image));
        let parent = asked.parent.as_ref().and(parent).or(match taken.since {
            Since::Image(image) => Some(image),
            _ => None,
        });
        let said = NewRecord {
            kind: asked.record.kind.or(Some(ImageKind::Snapshot)),
            parent: parent.filter(|parent| *parent != image),
            ..asked.record.clone()
        };
        self.grid.describe(&image, &said).await?;
        let named = self.grid.name(&asked.name, &MoveRef { image, expect }).await;
        named.map_err(|error| match error.kind() {
            Kind::Conflict => {
                let what = format!(
                    "{error}: it was moved while this was saved, and is left as it is; the image is stored: \
                     name it with `forebay tag {image} NAME`"
                );
                Error::caused(Kind::Conflict, what, error)
            }
            _ => error,
        })?;
        Ok(image)
    }

    /// The right to push, leaning on an image: the one that was asked for, else what changes count from, else what the
    /// name means now.
    async fn push(
        &self,
        asked: &SaveVolume,
        since: Since,
        named: Option<Digest>,
    ) -> Result<(Option<Digest>, G::Sink)> {
        if asked.parent.is_some() {
            return self.grid.push(asked.parent.as_deref()).await;
        }
        if let Since::Image(image) = since {
            match self.grid.push(Some(&image.to_string())).await {
                Err(error) if error.kind() == Kind::Gone => {}
                pushes => return pushes,
            }
        }
        self.grid.push(named.map(|image| image.to_string()).as_deref()).await
    }

    /// Fixes the point in time, and stores what the volume is then.
    async fn stored(
        &self,
        told: &Told,
        asked: &SaveVolume,
        taken: &Arc<Taken<G>>,
        parent: Option<Digest>,
        sink: &G::Sink,
    ) -> Result<Imported> {
        let (ancestor, why) = match (asked.all, taken.doubt, taken.since) {
            (true, ..) => (None, Some("it was asked for".to_owned())),
            (_, Some(doubt), _) => (None, Some(doubt.to_owned())),
            (_, _, Since::Image(image)) if parent != Some(image) => {
                let why = format!(
                    "its changes count from image {image}, which is not the parent, or gone"
                );
                (None, Some(why))
            }
            (_, _, Since::Image(image)) => {
                let source = LazySource::new(Arc::clone(&self.grid), image, 0);
                let ctx = ReadContext::default();
                let manifest = Patience::new().ask(async || source.manifest(&ctx, &image).await);
                let manifest = manifest.await?;
                (Some(Ancestor { manifest, source }), None)
            }
            (_, _, Since::Zeros) => (None, None),
            (_, _, Since::Unknown) => {
                (None, Some("what its changes count from is not known".into()))
            }
        };
        let truth = if why.is_none() { Truth::ChangedMap } else { Truth::FullRead };
        let what = if why.is_none() { Captured::Changed } else { Captured::All };
        let fixed = Arc::new(taken.fix(what).await?);
        let to_read = fixed.ranges.iter().map(|range| range.end - range.start).sum();
        told.tell(|now| {
            now.truth = Some(truth);
            now.why = why;
            now.parent = parent;
            now.taken = Some(unix_now());
            now.progress.to_read = to_read;
        });
        let changes = Changes { ranges: fixed.ranges.clone(), ancestor };
        let options = ImportOptions {
            domain: image::Domain::PUBLIC,
            parent,
            chunk_log2: taken.identity.chunk_log2,
            workers: self.workers,
            memory: self.memory,
            progress: Arc::clone(&told.progress),
            ..ImportOptions::default()
        };
        let disk: Arc<Fixed<G>> = fixed;
        let source = DiskSource::disk(&asked.volume, taken.identity.sector, disk)?;
        let imported = capture::save(source, &changes, sink, options).await;
        if let Some(ancestor) = changes.ancestor {
            ancestor.source.close().await;
        }
        let imported = imported?;
        told.tell(|now| now.progress.sections = imported.manifest.present().count() as u64);
        Ok(imported)
    }
}

fn unix_now() -> u64 {
    #[expect(
        clippy::disallowed_methods,
        reason = "when a point in time was is told in the world's time"
    )]
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}
