//! One capture, from the volume to the name.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use api::ErrorBody;
use api::capture::{RunningDisk, SaveVolume};
use api::catalog::{Expect, MoveRef};
use api::lease::HeldLease;
use capture::{Changes, DiskSource, ImportOptions, Imported, Pace, Skipped, Stored};
use image::{Digest, Error, Kind, Result};
use volume_pool::Since;

use super::Saves;
use super::dialled::Dialled;
use super::origin::{Fixed, Origin};
use super::said::{self, Made};
use super::told::Told;
use super::totals::Totals;
use super::truth::Known;
use crate::rate::{Rate, RealTime};
use crate::volumes::{LazySource, Volumes};

/// How long a grid that is away is waited for in between.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(30);
/// How long all in all, while nothing more is stored.
const PATIENCE: Duration = Duration::from_secs(3600);

/// What a capture needs.
pub(super) struct Work<G> {
    pub(super) grid: Arc<G>,
    pub(super) volumes: Volumes<G>,
    pub(super) workers: NonZeroUsize,
    pub(super) memory: usize,
    /// Bytes a second of captures for which nobody waits.
    pub(super) background_rate: Option<u64>,
    /// What thaws guests if this process dies.
    pub(super) thaw: Arc<[OsString]>,
    /// Where what came of it counts.
    pub(super) totals: Arc<Mutex<Totals>>,
}

/// How long something has been waited for.
struct Waits {
    pause: Duration,
    all: Duration,
}

impl Default for Waits {
    fn default() -> Self {
        Self { pause: FIRST_PAUSE, all: Duration::ZERO }
    }
}

impl Waits {
    /// Waits before it is tried again, and tells why.
    ///
    /// # Errors
    ///
    /// This error, if there is no sense in that, or it was waited for long enough.
    async fn again(&mut self, told: &Told, error: Error) -> Result<()> {
        if self.all >= PATIENCE || !may_be_asked_again(&error) {
            return Err(error);
        }
        tracing::warn!(%error, "a capture waits for the grid");
        told.tell(|now| {
            now.trouble = Some(ErrorBody::from(&error));
            now.waits += 1;
        });
        tokio::time::sleep(self.pause).await;
        self.all += self.pause;
        self.pause = (self.pause * 2).min(LAST_PAUSE);
        Ok(())
    }
}

/// What all tries to store one point in time have in common.
struct Tries<'a> {
    told: &'a Told,
    asked: &'a SaveVolume,
    fixed: &'a Fixed,
    parent: Option<Digest>,
    /// Where what cannot be read is noted, if it is to be skipped.
    skipped: Option<Arc<Skipped>>,
}

impl<G: Saves> Work<G> {
    /// Does it, and tells how it ended.
    pub(super) async fn run(&self, told: &Told, turn: impl Future<Output = ()>) {
        let request = told.now().request;
        let turn = tokio::select! {
            () = told.is_cancelled() => Err(cancelled()),
            () = turn => Ok(()),
        };
        let taken = match turn {
            Ok(()) => self.take(told, &request).await,
            Err(error) => Err(error),
        };
        let taken = match taken {
            Ok(taken) => taken,
            Err(error) => return told.end(Err(error), &self.totals),
        };
        told.begin();
        let name = &request.volume;
        // Before the point in time is fixed: what is captured then is captured under this lease, or a later one.
        let fence = self.volumes.lease_of(name);
        let saved = tokio::select! {
            () = told.is_cancelled() => Err(cancelled()),
            saved = self.save(told, &request, &taken, fence.clone()) => saved,
        };
        // What the volume is told is of the image, not of its name; and of one that is the volume all over, to which
        // nobody else could write meanwhile.
        let whole = told.now().unread.is_none() && self.volumes.lease_of(name) == fence;
        let image = told.now().image.filter(|_| whole);
        if let Err(error) = taken.end(image).await {
            // The next capture reads more than it need: that is no fault of this one's image.
            tracing::error!(%error, "a capture did not end as it should");
        }
        if let Err(error) = &saved {
            tracing::warn!(%error, "a capture came to nothing");
        }
        told.end(saved.map_err(|error| of_volume(error, name)), &self.totals);
    }

    /// Takes what is to be captured, as soon as it is to be had: while its lease is over it is not.
    async fn take(&self, told: &Told, asked: &SaveVolume) -> Result<Origin<G>> {
        let mut waits = Waits::default();
        loop {
            // Not left in the middle: what is half taken nobody could give back.
            let taken = Origin::take(&self.volumes, asked).await;
            // A QEMU that does not answer is not waited for.
            let by_qemu = RunningDisk::of(&asked.volume).is_some()
                || self.volumes.moved(&asked.volume).is_some();
            let error = match taken {
                Err(error) if !by_qemu => error,
                taken => return taken,
            };
            tokio::select! {
                () = told.is_cancelled() => return Err(cancelled()),
                waited = waits.again(told, error) => waited?,
            }
        }
    }

    async fn save(
        &self,
        told: &Told,
        asked: &SaveVolume,
        taken: &Origin<G>,
        fence: Option<HeldLease>,
    ) -> Result<Digest> {
        said::check(&asked.record, taken.is_fresh())?;
        let current = async || self.grid.current(&asked.name).await;
        let named = self.insist(told, current, || Ok(false)).await?;
        let expect = match named {
            None => Expect::Absent,
            Some(image) if asked.new => {
                let what = format!("{}: taken already by image {image}", asked.name);
                return Err(Error::new(Kind::Conflict, what));
            }
            Some(image) => Expect::At(image),
        };
        let leans = async || self.parent(asked, taken.since(), named).await;
        let parent = self.insist(told, leans, || Ok(false)).await?;
        let image = self.stored(told, asked, taken, parent).await?.image;
        told.tell(|now| now.image = Some(image));
        let parent = asked.parent.as_ref().and(parent).or(match taken.since() {
            Since::Image(image) => Some(image),
            _ => None,
        });
        let parent = parent.filter(|parent| *parent != image);
        let parent = Made { of: parent, is_said: asked.parent.is_some() };
        let unread = || told.now().unread;
        let described = async || {
            let said = said::of(&*self.grid, &asked.record, &image, parent, unread()).await?;
            self.grid.describe(&image, &said).await
        };
        self.insist(told, described, || Ok(false)).await?;
        self.insist(
            told,
            async || self.named(asked, image, expect, fence.clone()).await,
            || Ok(false),
        )
        .await?;
        Ok(image)
    }

    /// Gives an image its name, if that still means what it did. To have been moved to the image already, perhaps by an
    /// answer that was lost, is as good.
    async fn named(
        &self,
        asked: &SaveVolume,
        image: Digest,
        expect: Expect,
        fence: Option<HeldLease>,
    ) -> Result<()> {
        let to = MoveRef { image, expect, fence };
        let Err(error) = self.grid.name(&asked.name, &to).await else { return Ok(()) };
        match error.kind() {
            Kind::Conflict if self.grid.current(&asked.name).await? == Some(image) => Ok(()),
            Kind::Conflict => {
                let what = format!(
                    "{error}: it was moved while this was saved, and is left as it is; the image is stored: \
                     name it with `forebay tag {image} NAME`"
                );
                Err(Error::caused(Kind::Conflict, what, error))
            }
            _ => Err(error),
        }
    }

    /// The image to lean on: the one that was asked for, else what changes count from, else what the name means now.
    async fn parent(
        &self,
        asked: &SaveVolume,
        since: Since,
        named: Option<Digest>,
    ) -> Result<Option<Digest>> {
        let since = match since {
            Since::Image(image) => Some(image.to_string()),
            Since::Zeros | Since::Unknown => None,
        };
        for name in asked.parent.iter().chain(since.iter().filter(|_| asked.parent.is_none())) {
            match self.grid.find(name).await {
                Err(error) if error.kind() == Kind::Gone && asked.parent.is_none() => {}
                found => return found.map(|(image, _)| Some(image)),
            }
        }
        Ok(named)
    }

    /// Fixes the point in time, and stores what the volume is then.
    async fn stored(
        &self,
        told: &Told,
        asked: &SaveVolume,
        taken: &Origin<G>,
        parent: Option<Digest>,
    ) -> Result<Imported> {
        let known = async || self.known(asked, taken, parent).await;
        let known = self.insist(told, known, || Ok(false)).await?;
        let known = self.prepare(known, taken, parent).await?;
        let what = known.captured(taken.size());
        let Known { truth, ancestor, why, parent } = known;
        let agent = asked.agent.as_deref().map(|agent| (agent, &self.thaw[..]));
        let (fixed, still) = taken.fix(what, agent).await?;
        if let Some(Err(why)) = &still {
            tracing::warn!(why, "the guest's file systems were not held still");
        }
        let to_read = fixed.ranges.iter().map(|range| range.end - range.start).sum();
        told.tell(|now| {
            now.truth = Some(truth);
            now.why = why;
            now.parent = parent;
            now.taken = Some(unix_now());
            now.frozen_ms =
                still.as_ref().and_then(|s| s.as_ref().ok()).map(|t| t.as_millis() as u64);
            now.not_frozen = still.and_then(std::result::Result::err);
            now.progress.to_read = to_read;
        });
        told.reads(fixed.ranges.clone());
        let changes = Changes { ranges: fixed.ranges.clone(), ancestor };
        let skipped = asked.skip_bad.then(Arc::<Skipped>::default);
        let tries = Tries { told, asked, fixed: &fixed, parent, skipped: skipped.clone() };
        let imported = self.patiently(&tries, &changes).await;
        if let Some(ancestor) = changes.ancestor {
            ancestor.source.close().await;
        }
        let imported = imported?;
        told.tell(|now| {
            now.progress.sections = imported.manifest.present().count() as u64;
            now.unread = skipped.and_then(|skipped| skipped.unread());
        });
        Ok(imported)
    }

    /// Tries again while nobody is there to take it: the point in time stays, and what was stored of it.
    async fn patiently(
        &self,
        of: &Tries<'_>,
        changes: &Changes<LazySource<G>>,
    ) -> Result<Imported> {
        let Tries { told, fixed, .. } = *of;
        let stored = Stored::default();
        let mut had = 0;
        let further = || {
            // One that is lost is not worth waiting for.
            fixed.disk.check_unchanged()?;
            Ok(std::mem::replace(&mut had, stored.count()) < stored.count())
        };
        let once = async || self.once(of, changes, &stored).await;
        self.insist(told, once, further).await
    }

    /// Asks the grid again while nobody is there to answer. Before that `further` says whether more is done than the
    /// last time, or that it is of no use any more.
    async fn insist<T>(
        &self,
        told: &Told,
        mut ask: impl AsyncFnMut() -> Result<T>,
        mut further: impl FnMut() -> Result<bool>,
    ) -> Result<T> {
        let mut waits = Waits::default();
        loop {
            let error = match ask().await {
                Err(error) if may_be_asked_again(&error) => error,
                ended => {
                    told.tell(|now| now.trouble = None);
                    return ended;
                }
            };
            if further()? {
                waits = Waits::default();
            }
            waits.again(told, error).await?;
        }
    }

    async fn once(
        &self,
        of: &Tries<'_>,
        changes: &Changes<LazySource<G>>,
        stored: &Stored,
    ) -> Result<Imported> {
        let Tries { told, asked, fixed, parent, .. } = *of;
        let options = ImportOptions {
            parent,
            chunk_log2: fixed.chunk_log2,
            workers: self.workers,
            memory: self.memory,
            background: asked.background,
            pace: self.pace(asked),
            skipped: of.skipped.clone(),
            progress: Arc::clone(&told.progress),
            ..ImportOptions::default()
        };
        let disk = Arc::clone(&fixed.disk);
        let source = DiskSource::disk(&asked.volume, fixed.sector, disk)?;
        let sink = Dialled::new(&*self.grid);
        let imported = capture::save(source, changes, &sink, stored, options).await;
        sink.close().await;
        imported
    }

    /// How fast it may read.
    fn pace(&self, asked: &SaveVolume) -> Option<Pace> {
        let background = self.background_rate.filter(|_| asked.background);
        asked.rate.or(background).map(pace)
    }
}

fn cancelled() -> Error {
    Error::new(Kind::Cancelled, "it was cancelled")
}

fn may_be_asked_again(error: &Error) -> bool {
    matches!(error.kind(), Kind::Retry | Kind::Busy(_))
}

/// An error names the volume, once: that of reading it does already.
fn of_volume(error: Error, name: &str) -> Error {
    match error.message().strip_prefix(name).is_some_and(|rest| rest.starts_with(": ")) {
        true => error,
        false => error.at(name),
    }
}

/// So many bytes a second, from now on.
pub fn pace(rate: u64) -> Pace {
    let rate = Rate::new(rate, RealTime::start());
    let wait = move |bytes: usize| {
        let pause = rate.take_now(bytes as u64);
        if !pause.is_zero() {
            std::thread::park_timeout(pause);
        }
    };
    Pace(Arc::new(wait))
}

fn unix_now() -> u64 {
    #[expect(
        clippy::disallowed_methods,
        reason = "when a point in time was is told in the world's time"
    )]
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}
