//! A volume that is attached, on its core: served to its guest, filled meanwhile, and plain in the end.

use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use api::volume::{Attachment, ExportKind, Hydration as Progress, Scrubbed, Terms};
use blockio::Arena;
use image::error::At;
use image::{BootTrace, ChunkSource, Digest, Error, Geometry, Kind, ReadContext, Result};
use tokio::sync::{Mutex, Notify, OwnedMutexGuard};
use tokio::task::JoinHandle;
use volume_pool::{Files, Shelf, Since, Volume};

use super::bases::Base;
use super::cores::Core;
use super::hydrate::{Hydration, Status, bytes_left};
use super::kept::Kept;
use super::left;
use super::pace::Pace;
use super::plan::Policy;
use super::recorder::{Recorder, Start};
use super::serving::{ENDS, Holder, Serving};
use super::source::LazySource;
use crate::daemon::Grid;
use crate::hypervisor::qmp;
use crate::patience::Patience;
use crate::pull::Watch;
use crate::pull::batch::Fetch;
use crate::rate::{Rate, RealTime, Time};

/// Chunks that are taken over from a base together: 1 GiB of the usual.
const RUN: u64 = 4096;
/// The same where a guest writes, which waits for as many: 4 MiB.
const RUN_BESIDE_WRITES: u64 = 16;
/// Chunks that are looked at once more before a volume is plain.
const SAMPLES: u64 = 64;
/// How long QEMU may take to answer, and to move its guest.
const QMP_PATIENCE: Duration = Duration::from_secs(10);
/// After how long a guest that could not be moved is tried again.
const QMP_PAUSE: Duration = Duration::from_secs(10);

/// See the [module](self).
pub(super) struct Live {
    name: String,
    shelf: Shelf,
    pub(super) volume: Rc<Volume>,
    how: Attachment,
    status: Status,
    watch: Arc<Watch>,
    serving: RefCell<Option<Serving>>,
    filling: RefCell<Option<JoinHandle<()>>>,
    /// Of how its guest starts.
    recorder: Option<Rc<Recorder>>,
    /// What has the chunks that are not here, until they are.
    base: RefCell<Option<Rc<Base>>>,
    /// It has become plain, or will not.
    ripe: Notify,
    /// Nothing more is done to make it plain.
    over: Cell<bool>,
    /// What its changes are is known up to here: nobody wrote past us before it was opened.
    tracked: bool,
    /// Held while its guest is moved past us, and by captures, for which it must stay.
    passage: Arc<Mutex<()>>,
    /// Whether it is kept for a capture alone: its lease is over, and nothing may write to it.
    still: Mutex<bool>,
}

/// What a volume needs of the node.
pub(super) struct Surroundings<G> {
    pub(super) shelf: Shelf,
    /// Whether files on the shelf can share their blocks.
    pub(super) reflinks: bool,
    pub(super) grid: Arc<G>,
    pub(super) kept: Arc<Kept>,
    /// What keeps its mount while this process is away, if it is to be kept.
    pub(super) holder: Option<Holder>,
    /// Limits on what is fetched for nobody who waits: that of all volumes, and those of builds for one of these.
    pub(super) limits: Vec<Arc<Rate>>,
    /// In seconds since 1970.
    pub(super) now: u64,
}

impl<G> Clone for Surroundings<G> {
    fn clone(&self) -> Self {
        Self {
            shelf: self.shelf.clone(),
            grid: Arc::clone(&self.grid),
            kept: Arc::clone(&self.kept),
            holder: self.holder.clone(),
            limits: self.limits.clone(),
            ..*self
        }
    }
}

impl Live {
    /// Opens a volume and serves it. With `start` how its guest starts is recorded.
    pub(super) async fn start<G: Grid>(
        core: &Rc<Core>,
        around: Surroundings<G>,
        files: Files,
        how: Attachment,
        start: Start,
    ) -> Result<Rc<Self>> {
        let identity = files.identity.get();
        let leans = identity.shares && !identity.plain && !how.moved;
        let image = files.image.clone().filter(|_| leans);
        let volume = Rc::new(Volume::open(files, core.engine.clone())?);
        if !how.moved {
            let known = around.kept.get(&volume.identity().name).is_some();
            match keep_others_away(&volume) {
                // A daemon that was killed while it moved its guest finds QEMU at the file already: the guest may
                // still be with us, and is moved again.
                Err(error) if known && how.qmp.is_some() && volume.identity().plain => {
                    tracing::warn!(%error, "served all the same: its guest was being moved");
                }
                kept_away => kept_away?,
            }
            left::take_back(&around.shelf, &volume)?;
        }
        let recorder = Recorder::of(&volume, start).map(Rc::new);
        let base = match image {
            Some(image) => lean(&volume, core.bases.get(core, &around, image, &how).await),
            None => None,
        };
        let serving = match how.moved {
            true => None,
            false => {
                let recorder = recorder.as_ref();
                Some(Serving::start(core, &volume, &how, around.holder.as_ref(), recorder).await?)
            }
        };
        if let Some(recorder) = &recorder {
            // It outlives us: what was recorded is told after a detachment, too.
            let (grid, volume) = (Arc::clone(&around.grid), Rc::downgrade(&volume));
            tokio::task::spawn_local(Rc::clone(recorder).run(volume, grid));
        }
        let live = Self::new(core, &around, volume, how, recorder);
        live.base.replace(base);
        live.serving.replace(serving);
        if !live.how.moved {
            live.begin_to_mature(core, around);
        }
        Ok(live)
    }

    /// The same of a base: it is filled, and shown to nobody.
    pub(super) fn start_base<G: Grid>(
        core: &Rc<Core>,
        around: Surroundings<G>,
        files: Files,
        how: Attachment,
    ) -> Result<Rc<Self>> {
        let volume = Rc::new(Volume::open(files, core.engine.clone())?);
        let live = Self::new(core, &around, volume, how, None);
        live.begin_to_mature(core, around);
        Ok(live)
    }

    /// Opens a volume that is shown to nobody: for a capture, for which what that needs of it is fetched, or with
    /// `fill` to be made plain.
    pub(super) async fn start_unshown<G: Grid>(
        core: &Rc<Core>,
        around: Surroundings<G>,
        files: Files,
        fill: bool,
    ) -> Result<Rc<Self>> {
        let how = unshown(fill);
        let leans = files.identity.get().shares && !files.identity.get().plain;
        let image = files.image.clone().filter(|_| leans);
        let volume = Rc::new(Volume::open(files, core.engine.clone())?);
        keep_others_away(&volume)?;
        let base = match image {
            Some(image) => lean(&volume, core.bases.get(core, &around, image, &how).await),
            None => None,
        };
        let live = Self::new(core, &around, volume, how, None);
        live.base.replace(base);
        live.begin_to_mature(core, around);
        Ok(live)
    }

    /// Keeps its guest with us: until dropped it is not moved to the plain file.
    pub(super) async fn stays(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.passage).lock_owned().await
    }

    fn new<G>(
        core: &Core,
        around: &Surroundings<G>,
        volume: Rc<Volume>,
        how: Attachment,
        recorder: Option<Rc<Recorder>>,
    ) -> Rc<Self> {
        let pace = RefCell::new(pace(core, &around.limits, &how.terms, around.now));
        let status = Status { pace, ..Status::default() };
        status.fills.set(how.fill);
        Rc::new(Self {
            name: volume.identity().name,
            shelf: around.shelf.clone(),
            tracked: !volume.identity().untracked,
            volume,
            how,
            status,
            watch: Arc::default(),
            serving: RefCell::default(),
            filling: RefCell::default(),
            recorder,
            base: RefCell::default(),
            ripe: Notify::new(),
            over: Cell::new(false),
            passage: Arc::default(),
            still: Mutex::default(),
        })
    }

    fn begin_to_mature<G: Grid>(self: &Rc<Self>, core: &Rc<Core>, around: Surroundings<G>) {
        let mature = Rc::clone(self).mature(Rc::clone(core), around);
        self.filling.replace(Some(tokio::task::spawn_local(mature)));
    }

    /// Fetches from now on also what nobody waits for.
    pub(super) fn fill_too(&self, fill: bool) {
        self.status.fills.set(self.status.fills.get() || fill);
    }

    /// Brings what is missing; then the volume is plain, and the guest is moved to the file where that can be
    /// done.
    async fn mature<G: Grid>(self: Rc<Self>, core: Rc<Core>, around: Surroundings<G>) {
        let Surroundings { grid, kept, reflinks, .. } = around;
        let base = self.base.borrow().clone();
        let matured = async {
            match (base, self.volume.identity().base) {
                (Some(base), _) => {
                    base.0.ripened().await;
                    // Elsewhere that copies everything, and is done only for who wants a plain file.
                    if !reflinks && !self.how.terms.copy && self.how.qmp.is_none() {
                        return Ok(());
                    }
                    self.take_over(base).await?;
                    core.bases.release().await;
                }
                (None, Some(base)) => self.fill(&core, grid, base.image).await?,
                (None, None) => {}
            }
            self.ripe.notify_waiters();
            self.graduate(&kept).await
        };
        if let Err(error) = matured.await {
            tracing::error!(%error, volume = self.name, "this volume does not become plain");
            self.status.trouble.replace(Some(error));
        }
        self.over.set(true);
        self.ripe.notify_waiters();
    }

    /// Waits until it is plain.
    async fn ripened(&self) {
        loop {
            let ripe = self.ripe.notified();
            tokio::pin!(ripe);
            ripe.as_mut().enable();
            if self.volume.identity().plain {
                return;
            }
            ripe.await;
        }
    }

    /// Waits until it is plain, or will not be: then why.
    pub(super) async fn matured(&self) -> Result<()> {
        loop {
            let ripe = self.ripe.notified();
            tokio::pin!(ripe);
            ripe.as_mut().enable();
            if self.volume.identity().plain {
                return Ok(());
            }
            if self.over.get() {
                let why = self.status.trouble.borrow().clone();
                let unknown = || Error::new(Kind::Io, format!("{}: not all came", self.name));
                return Err(why.unwrap_or_else(unknown));
            }
            ripe.await;
        }
    }

    /// Why what is missing did not come the last time.
    pub(super) fn trouble(&self) -> Option<Error> {
        self.status.trouble.borrow().clone()
    }

    /// Takes over what the base has; then it is not needed any more.
    async fn take_over(&self, base: Rc<Base>) -> Result<()> {
        let at_once = if self.how.read_only { RUN } else { RUN_BESIDE_WRITES };
        self.volume.take_over(at_once).await?;
        self.volume.become_plain().await?;
        self.base.take();
        drop(base);
        tracing::info!(volume = self.name, "all of the image is here, shared with its base");
        Ok(())
    }

    async fn fill<G: Grid>(&self, core: &Core, grid: Arc<G>, image: Digest) -> Result<()> {
        if self.volume.identity().plain {
            return Ok(());
        }
        let source = LazySource::new(Arc::clone(&grid), image, core.number);
        let filled = async {
            self.fill_from(core, &source, &*grid, image).await?;
            // Some are looked at once more; if the disk has lost one, all are.
            let step = (self.volume.arrived().chunks / SAMPLES).max(1) as usize;
            if self.compare_at_last(core, &grid, (&source, image), step).await?.wrong > 0 {
                self.compare_at_last(core, &grid, (&source, image), 1).await?;
            }
            Ok(())
        };
        let filled: Result<()> = filled.await;
        source.close().await;
        filled?;
        self.volume.become_plain().await?;
        tracing::info!(volume = self.name, "all of the image is here");
        Ok(())
    }

    async fn fill_from<G: Grid>(
        &self,
        core: &Core,
        source: &LazySource<G>,
        grid: &G,
        image: Digest,
    ) -> Result<()> {
        let arena = core.arena(self.volume.identity().chunk_log2)?;
        let size = self.volume.identity().base.map_or(0, |base| base.size);
        // The plan asks again, and knows who waits.
        let hydration = self.hydration(core, source, (image, size), &arena, Patience::brief)?;
        let Terms { patience, by, .. } = self.how.terms;
        let patience = patience.map(Duration::from_secs);
        let (deadline, paced) = (by.is_some(), self.status.pace.borrow().holds());
        let policy = Policy { fill: self.how.fill, patience, deadline, paced };
        let mut filled = pin!(hydration.run(policy, self.trace(grid, &image)));
        // The guest may ask for nothing until placement is away.
        tokio::select! {
            biased;
            filled = &mut filled => filled,
            () = source.look() => filled.await,
        }
    }

    /// As [`Self::compare`], and again for as long as nobody answers: nobody else asks for it. The way to the volume's
    /// image is known already: placement may be away.
    async fn compare_at_last<G: Grid>(
        &self,
        core: &Core,
        grid: &Arc<G>,
        (source, image): (&LazySource<G>, Digest),
        step: usize,
    ) -> Result<Scrubbed> {
        let mut patience = Patience::endless();
        loop {
            let compared = match self.volume.since() {
                Since::Image(since) if since == image => {
                    self.compare_with(core, source, image, step).await
                }
                _ => self.compare(core, Arc::clone(grid), step).await,
            };
            let error = match compared {
                Ok(scrubbed) => {
                    self.status.trouble.replace(None);
                    return Ok(scrubbed);
                }
                Err(error) => error,
            };
            let Some(pause) = patience.again(&error) else { return Err(error) };
            self.status.trouble.replace(Some(error));
            tokio::time::sleep(pause).await;
        }
    }

    fn hydration<'a, G: Grid>(
        &'a self,
        core: &'a Core,
        source: &'a LazySource<G>,
        (image, size): (Digest, u64),
        arena: &'a Arena,
        patience: fn() -> Patience,
    ) -> Result<Hydration<'a, LazySource<G>>> {
        let identity = self.volume.identity();
        let fetch = Fetch {
            source,
            image,
            geometry: Geometry::new(size, 512, identity.chunk_log2)?,
            arena,
            decoder: Rc::clone(&core.decoder),
            rate: None,
            watch: &self.watch,
            trace: 0,
            patience,
        };
        Ok(Hydration::new(&self.volume, fetch, &core.time, &self.status))
    }

    /// Compares what the volume has of its image with the image, and repairs it.
    pub(super) async fn scrub<G: Grid>(&self, core: &Core, grid: Arc<G>) -> Result<Scrubbed> {
        if self.how.moved || self.volume.identity().untracked {
            let why = "its plain file is, or was, written past this daemon: what of it should be as in the image is \
                       not known";
            return Err(Error::new(Kind::Unsupported, format!("{}: {why}", self.name)));
        }
        let base = self.base.borrow().clone();
        let of_its_image = self.volume.identity().base.map(|base| Since::Image(base.image));
        if let Some(base) = base.filter(|_| of_its_image == Some(self.volume.since())) {
            // What the volume has of the image is there.
            return Box::pin(base.0.scrub(core, grid)).await;
        }
        self.compare(core, grid, 1).await
    }

    /// Compares one chunk in `step` with the image that changes count from.
    async fn compare<G: Grid>(&self, core: &Core, grid: Arc<G>, step: usize) -> Result<Scrubbed> {
        let image = match self.volume.since() {
            Since::Image(image) => image,
            Since::Zeros => return Ok(Scrubbed::default()),
            Since::Unknown => {
                let why = "what was captured of it is not known, and so what it should be";
                return Err(Error::new(Kind::Unsupported, format!("{}: {why}", self.name)));
            }
        };
        let source = LazySource::new(grid, image, core.number);
        let scrubbed = self.compare_with(core, &source, image, step).await;
        source.close().await;
        scrubbed
    }

    async fn compare_with<G: Grid>(
        &self,
        core: &Core,
        source: &LazySource<G>,
        image: Digest,
        step: usize,
    ) -> Result<Scrubbed> {
        let ctx = ReadContext::default();
        let asking = async || source.manifest(&ctx, &image).await;
        let size = Patience::new().ask(asking).await?.geometry().size();
        let arena = core.arena(self.volume.identity().chunk_log2)?;
        let hydration = self.hydration(core, source, (image, size), &arena, Patience::new)?;
        hydration.scrub((0..self.volume.arrived().chunks).step_by(step)).await
    }

    /// What guests of this image touch when they start, if that is wanted and known.
    async fn trace<G: Grid>(&self, grid: &G, image: &Digest) -> Vec<u64> {
        if !self.how.trace {
            return Vec::new();
        }
        match Patience::new().ask(async || grid.trace(image).await).await {
            Ok(trace) => trace.iter().flat_map(BootTrace::touches).map(|t| t.chunk).collect(),
            Err(error) => {
                tracing::warn!(%error, volume = self.name, "no boot trace is to be had");
                Vec::new()
            }
        }
    }

    /// Gets us out of the way of a guest whose volume is plain.
    async fn graduate(&self, kept: &Kept) -> Result<()> {
        {
            let _passage = self.passage.lock().await;
            if self.how.kind == ExportKind::Fuse {
                self.volume.lose_track()?;
            }
            if let Some(serving) = &*self.serving.borrow() {
                serving.graduated(self.volume.data().path())?;
            }
        }
        let Some(qmp) = &self.how.qmp else { return Ok(()) };
        let export =
            qmp::NbdExport { socket: self.how.path.display().to_string(), name: self.name.clone() };
        let pivot = qmp::Pivot {
            export,
            raw: self.volume.data().path().display().to_string(),
            device: self.volume.data().kind() == blockio::FileKind::Block,
            name: node_name(&self.volume.identity().id),
            direct: None,
            locking: qmp::Locking::Auto,
            bitmap: self.tracked.then(|| bitmap(&self.volume.identity().id)),
        };
        loop {
            // What the guest does with the plain file is not seen. One that has done nothing yet is not waited for.
            if let Some(recorder) = self.recorder.as_ref().filter(|recorder| recorder.has_begun()) {
                recorder.over(|| false).await;
            }
            let passage = self.passage.lock().await;
            let moved = async {
                let mut monitor = qmp::Monitor::connect(qmp, QMP_PATIENCE).await?;
                self.volume.lose_track()?;
                // QEMU takes locks of its own on the file; ours would keep it away.
                self.volume.data().admit_others().map_err(|e| Error::io("volume", e))?;
                let moved = qmp::pivot(&mut monitor, &pivot, QMP_PATIENCE).await;
                if moved.is_err() {
                    keep_others_away(&self.volume)?;
                }
                moved
            };
            match moved.await.at(|| format!("volume {}", self.name)) {
                Ok(outcome) => {
                    tracing::info!(volume = self.name, ?outcome, "the guest uses the plain file");
                    // From here on nobody but the guest may write: a daemon that starts anew must know.
                    kept.insert(&self.name, Attachment { moved: true, ..self.how.clone() })?;
                    break;
                }
                // No guest yet, or a busy one.
                Err(error) => {
                    tracing::info!(%error, "the guest is not moved to the plain file yet");
                    drop(passage);
                    tokio::time::sleep(QMP_PAUSE).await;
                }
            }
        }
        self.status.trouble.replace(None);
        let serving = self.serving.take();
        match serving {
            Some(serving) => serving.stop(false, ENDS).await,
            None => Ok(()),
        }
    }

    /// How far it is, why it gets no further, and whether it is plain.
    pub(super) fn progress(&self, core: &Core) -> (Progress, Option<Error>, bool) {
        let base = self.base.borrow();
        // Whoever fetches for it.
        let by = base.as_deref().map_or(self, |base| &base.0);
        let (arrived, p) = (self.volume.arrived(), by.watch.progress());
        let (left, pace) = (bytes_left(&by.volume, &by.watch), by.status.pace.borrow());
        let progress = Progress {
            chunks: arrived.chunks,
            present: arrived.present,
            wanted: by.volume.arrived().wanted,
            received: p.received,
            fetched: p.chunks,
            demanded: by.status.demanded.get(),
            repaired: p.repaired,
            left,
            seconds: pace.expected(left).map(|t| t.as_secs()).filter(|_| by.status.fills.get()),
            late: pace.is_late(left, core.time.now()),
        };
        let trouble = self.status.trouble.borrow().clone();
        let trouble = trouble.or_else(|| by.status.trouble.borrow().clone());
        (progress, trouble, self.volume.identity().plain)
    }

    /// Makes it larger, under its guest.
    pub(super) async fn grow(&self, size: u64) -> Result<()> {
        self.volume.grow(size).await?;
        if let Some(serving) = &*self.serving.borrow() {
            serving.resized();
        }
        Ok(())
    }

    /// Tells whoever waits for chunks that they do not come any more, for ever.
    async fn refuse(&self) {
        let gone = Error::new(Kind::Cancelled, "the volume is taken from its guest");
        loop {
            self.volume.fail_all(&gone);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Ends what serves it when its requests are answered, or after `within`, and writes everything down. With `leave` the
    /// guest waits for the next process.
    pub(super) async fn stop(&self, leave: bool, within: Duration) -> Result<()> {
        let shown = self.serving.borrow().is_some();
        self.end_serving(leave, within).await?;
        self.end_filling().await;
        self.volume.close().await?;
        match shown && !leave {
            true => left::let_go(&self.shelf, &self.volume).await,
            false => Ok(()),
        }
    }

    async fn end_serving(&self, leave: bool, within: Duration) -> Result<()> {
        let serving = self.serving.take();
        if let Some(serving) = serving {
            // What serves may wait for chunks, so the filling ends after it. A guest that is told that its
            // disk is gone need not wait for any.
            tokio::select! {
                stopped = serving.stop(leave, within) => stopped?,
                () = self.refuse(), if !leave => {}
            }
        }
        if let Some(recorder) = &self.recorder {
            recorder.stop();
        }
        Ok(())
    }

    async fn end_filling(&self) {
        let filling = self.filling.take();
        if let Some(filling) = filling {
            filling.abort();
            let _ = filling.await;
        }
    }

    /// Has its guest wait, and writes nothing to it from here on; a capture goes on to read it.
    pub(super) async fn stand_still(&self, within: Duration) -> Result<()> {
        let mut still = self.still.lock().await;
        *still = true;
        let ended = self.end_serving(true, within).await;
        self.end_filling().await;
        self.volume.stop_writing().await.and(ended)
    }

    /// Serves it again that stood still, and fills it.
    pub(super) async fn go_on<G: Grid>(
        self: &Rc<Self>,
        core: &Rc<Core>,
        around: Surroundings<G>,
    ) -> Result<()> {
        let mut still = self.still.lock().await;
        self.volume.write_again()?;
        let holder = around.holder.as_ref();
        let serving = Serving::start(core, &self.volume, &self.how, holder, None).await;
        match serving {
            Ok(serving) => self.serving.replace(Some(serving)),
            Err(error) => return self.volume.stop_writing().await.and(Err(error)),
        };
        self.over.set(false);
        self.begin_to_mature(core, around);
        *still = false;
        Ok(())
    }

    /// Closes it if it stands still: nobody captures it any more, and it is opened anew when it may be written.
    pub(super) async fn close_if_still(&self) -> Result<()> {
        match *self.still.lock().await {
            true => {
                self.volume.fail_all(&Error::new(Kind::Cancelled, "the capture was ended"));
                self.volume.close().await?;
                // Threads of the capture may read its file for a moment longer.
                let admitted = self.volume.data().admit_others();
                admitted.map_err(|e| Error::io("volume", e))
            }
            false => Ok(()),
        }
    }
}

/// How a volume is opened that is shown to nobody.
pub(super) fn unshown(fill: bool) -> Attachment {
    Attachment {
        kind: ExportKind::Nbd,
        path: Default::default(),
        qmp: None,
        read_only: true,
        fill,
        terms: Terms { copy: fill, ..Terms::default() },
        trace: false,
        moved: false,
    }
}

/// Sees that nobody uses a volume's file past us, as QEMU or a loop device might, nor begins to.
fn keep_others_away(volume: &Volume) -> Result<()> {
    match volume.data().other_user().map_err(|e| Error::io("volume", e))? {
        None => Ok(()),
        Some(who) => {
            let name = volume.identity().name;
            Err(Error::new(Kind::Conflict, format!("{name}: its file is in use: {who}")))
        }
    }
}

/// Has a volume lean on its base. One that cannot be had is no reason not to serve: the volume is then filled as
/// one that shares nothing.
fn lean(volume: &Volume, base: Result<Rc<Base>>) -> Option<Rc<Base>> {
    let leant = base.and_then(|base| {
        volume.lean_on(Rc::clone(&base.0.volume))?;
        Ok(base)
    });
    let why = |error: &Error| tracing::warn!(%error, "a volume shares nothing with others");
    leant.inspect_err(why).ok()
}

/// How fast a volume is filled: on the core's clock, from the terms in the world's.
fn pace(core: &Core, all: &[Arc<Rate>], terms: &Terms, now: u64) -> Pace {
    let own = terms.rate.map(|rate| Arc::new(Rate::new(rate, RealTime::start())));
    let by = terms.by.map(|by| core.time.now() + Duration::from_secs(by.saturating_sub(now)));
    Pace::new(all.iter().cloned().chain(own).collect(), by)
}

/// What the names of all begin with that a capture by QEMU of this volume makes there.
pub(super) fn fleece_name(id: &[u8; 16]) -> String {
    format!("{}-c", node_name(id))
}

/// The bitmap in which QEMU notes what its guest changes past us.
pub(super) fn bitmap(id: &[u8; 16]) -> String {
    format!("{}-changed", node_name(id))
}

/// A name in QEMU's graph: of the volume, and the same each time.
pub(super) fn node_name(id: &[u8; 16]) -> String {
    let id: String = id[..8].iter().map(|b| format!("{b:02x}")).collect();
    format!("fb-{id}")
}
