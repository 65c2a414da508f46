//! One fetch: the chunks of one section that one reader was first to ask for.
//!
//! ```text
//!  jobs ──► copies on disk ─────────────────────────┐
//!      └──► the rest: one request to the source ────┼──► land: memory, disk log, everybody waiting
//!           what came damaged: asked again, repair ─┘
//! ```
//! It is a task of its own on the core of the reader that began it: readers come and go. It ends when
//! everything has landed or failed, when the source gives nothing for too long, or when nobody waits
//! for any of it any more: what has landed by then is kept, the request to the source is dropped.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::StreamExt;
use image::{ChunkSet, ChunkSink, ChunkSource, Error, Frame, Kind, Place, ReadContext, Result};

use crate::cache::Core;
use crate::disk::{Wanted, Way};
use crate::flights::{Fetch, FlightKey};
use crate::gone::Absent;
use crate::key::{Key, check_frame, check_plain};
use crate::papers::{ended, stalled};

/// Disk reads that one fetch has under way at once.
const READS_AT_ONCE: usize = 16;

/// A chunk to get.
#[derive(Clone, Copy)]
pub(crate) struct Job {
    pub(crate) key: Key,
    pub(crate) plain_len: u32,
}

/// Where a frame was had from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    Memory,
    Disk,
    Source,
}

/// A fetch and what is still to come of it.
pub(crate) struct Flight<S> {
    core: Rc<Core<S>>,
    ctx: ReadContext,
    /// Image and section; the set is only of use for its universe.
    place: Place,
    fetch: Arc<Fetch>,
    /// Has not landed.
    open: RefCell<BTreeMap<u32, Job>>,
    /// Came from the source, but damaged.
    bad: RefCell<BTreeMap<u32, Error>>,
    progress: Cell<u64>,
}

impl<S: ChunkSource + 'static> Flight<S> {
    /// The fetch of `jobs`, which have all been boarded with `fetch`.
    pub(crate) fn new(
        core: &Rc<Core<S>>,
        ctx: &ReadContext,
        place: &Place,
        fetch: Arc<Fetch>,
        jobs: BTreeMap<u32, Job>,
    ) -> Self {
        // Others may join who are in less of a hurry than the first: deadlines are the readers'.
        let ctx = ReadContext { deadline: None, ..*ctx };
        let (open, bad) = (RefCell::new(jobs), RefCell::default());
        let (core, place) = (Rc::clone(core), place.clone());
        Self { core, ctx, place, fetch, open, bad, progress: Cell::new(0) }
    }

    /// Flies.
    pub(crate) async fn run(self) {
        let result = self.watched().await;
        let missing =
            || Error::new(Kind::Retry, "the source ended without an error, but did not give this");
        self.fail_open(&result.err().unwrap_or_else(missing), true);
    }

    /// Works, until that is done, of no use, or stuck.
    async fn watched(&self) -> Result<()> {
        let stall = self.core.shared.stall;
        let mut work = pin!(self.work());
        let mut timer = pin!(tokio::time::sleep(stall));
        let mut seen = 0;
        loop {
            tokio::select! {
                biased;
                result = &mut work => return result,
                () = self.fetch.deserted.notified() => {
                    if self.give_up() {
                        return Ok(());
                    }
                }
                () = &mut timer => {
                    if self.progress.get() == seen {
                        return Err(stalled(stall));
                    }
                    seen = self.progress.get();
                    timer.set(tokio::time::sleep(stall));
                }
            }
        }
    }

    async fn work(&self) -> Result<()> {
        let (copies, missing) = self.split();
        let repair = self.ctx.repair;
        let (lost, fetched) =
            tokio::join!(self.use_copies(copies), self.ask_source(missing, repair));
        let refetched = self.ask_source(lost, repair).await;
        let bad = self.bad.borrow().keys().copied().collect::<Vec<_>>();
        let repaired = match repair {
            true => Ok(()),
            false => self.ask_source(bad, true).await,
        };
        fetched.and(refetched).and(repaired)
    }

    /// The chunks that may be had here, and the others. For a repair, those are all: whatever copies
    /// there are must be checked.
    fn split(&self) -> (Vec<u32>, Vec<u32>) {
        let open = self.open.borrow();
        let disk = self.core.shared.disk.as_ref();
        open.iter().map(|(chunk, job)| (*chunk, job)).fold(
            (Vec::new(), Vec::new()),
            |(mut copies, mut missing), (chunk, job)| {
                let here = self.ctx.repair || disk.is_some_and(|disk| disk.contains(&job.key));
                if here {
                    copies.push(chunk)
                } else {
                    missing.push(chunk)
                }
                (copies, missing)
            },
        )
    }

    /// Lands what good copies there are here; returns the chunks without one.
    async fn use_copies(&self, chunks: Vec<u32>) -> Vec<u32> {
        let mut lost = match self.ctx.repair {
            true => self.check_copies(chunks).await,
            false => self.read_copies(chunks).await,
        };
        lost.sort_unstable();
        lost
    }

    async fn read_copies(&self, chunks: Vec<u32>) -> Vec<u32> {
        let Some(disk) = &self.core.shared.disk else { return chunks };
        let wanted = |chunk| {
            let Job { key, plain_len } = *self.open.borrow().get(&chunk)?;
            Some(Wanted { chunk, key, plain_len })
        };
        let (runs, mut lost) = disk.runs(chunks.into_iter().filter_map(wanted));
        let reads = futures::stream::iter(runs)
            .map(|run| disk.read_run(self.way(), run))
            .buffer_unordered(READS_AT_ONCE);
        let mut reads = pin!(reads);
        while let Some(frames) = reads.next().await {
            for (chunk, frame) in frames {
                match frame {
                    Some(frame) => self.land(chunk, frame, Origin::Disk),
                    None => lost.push(chunk),
                }
            }
        }
        lost
    }

    /// Checks every copy of each; those that have a good one land.
    async fn check_copies(&self, chunks: Vec<u32>) -> Vec<u32> {
        let mut lost = Vec::new();
        for chunk in chunks {
            let job = self.open.borrow().get(&chunk).copied();
            let Some(job) = job else { continue };
            match self.good_copy_of(&job).await {
                Some((frame, origin)) => self.land(chunk, frame, origin),
                None => lost.push(chunk),
            }
        }
        lost
    }

    async fn read_disk(&self, job: &Job) -> Option<Frame> {
        let disk = self.core.shared.disk.as_ref()?;
        disk.read(self.way(), &job.key, job.plain_len).await
    }

    fn way(&self) -> Way<'_> {
        Way { engine: &self.core.engine, priority: self.ctx.priority }
    }

    /// Checks every copy down to the plain bytes, drops those that are bad, returns one that is not.
    async fn good_copy_of(&self, job: &Job) -> Option<(Frame, Origin)> {
        let shared = &self.core.shared;
        let is_good = |frame: &Frame, tier: &str| {
            let Err(error) = check_plain(frame, &job.key, job.plain_len) else { return true };
            shared.counts.healed.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(key = %job.key, tier, %error, "cache: dropped a wrong copy");
            false
        };
        let mut good = None;
        if let Some(frame) = shared.memory.get(&job.key) {
            match is_good(&frame, "memory") {
                true => good = Some((frame, Origin::Memory)),
                false => _ = shared.memory.remove(&job.key),
            }
        }
        if let Some(frame) = self.read_disk(job).await {
            match is_good(&frame, "disk") {
                true => good = good.or(Some((frame, Origin::Disk))),
                false => _ = shared.forget_on_disk(&job.key),
            }
        }
        good
    }

    /// Asks the source for chunks, in one request.
    async fn ask_source(&self, chunks: Vec<u32>, repair: bool) -> Result<()> {
        if chunks.is_empty() {
            return Ok(());
        }
        let mut place = self.place.clone();
        place.chunks = ChunkSet::empty(place.chunks.universe());
        chunks.into_iter().for_each(|chunk| place.chunks.insert(chunk));
        let ctx = ReadContext { repair, ..self.ctx };
        self.core.shared.counts.source_requests.fetch_add(1, Ordering::Relaxed);
        let mut sink = FlightSink { flight: self, repair };
        self.core.source.chunks(&ctx, &place, &mut sink).await
    }

    /// Takes a frame from the source, after all the checks there are short of decoding it; one that
    /// heals something is decoded as well.
    fn take(&self, chunk: u32, frame: &Frame, repair: bool) {
        let Some(job) = self.open.borrow().get(&chunk).copied() else { return };
        let counts = &self.core.shared.counts;
        counts.source_frames.fetch_add(1, Ordering::Relaxed);
        counts.source_bytes.fetch_add(frame.bytes().len() as u64, Ordering::Relaxed);
        self.progress.set(self.progress.get() + 1);
        let checked = match repair {
            true => check_plain(frame, &job.key, job.plain_len),
            false => check_frame(frame, &job.key, job.plain_len).map_err(Error::from),
        };
        match checked {
            Ok(()) => self.land(chunk, frame.detached(), Origin::Source),
            Err(error) => {
                let error = error.at("from the source");
                tracing::warn!(key = %job.key, %error, "cache: a frame came damaged");
                self.bad.borrow_mut().insert(chunk, error);
            }
        }
    }

    /// Files a good frame and gives it to everybody who waits for it.
    fn land(&self, chunk: u32, frame: Frame, origin: Origin) {
        let Some(job) = self.open.borrow_mut().remove(&chunk) else { return };
        self.bad.borrow_mut().remove(&chunk);
        self.progress.set(self.progress.get() + 1);
        let shared = &self.core.shared;
        // Before the entry goes: see `Flights`.
        match origin {
            Origin::Memory => {}
            Origin::Disk => shared.memory.insert_if_recalled(job.key, &frame),
            Origin::Source => {
                shared.memory.insert(job.key, frame.clone());
                shared.disk.iter().for_each(|disk| disk.offer(job.key, &frame));
            }
        }
        let waiters = shared.flights.land(&self.flight_key(&job));
        if waiters.is_empty() {
            return;
        }
        let charge = shared.admission.try_charge(frame.bytes().len()).map(Arc::new);
        for waiter in waiters {
            waiter.mailbox.give(waiter.chunk, &frame, charge.as_ref());
        }
    }

    /// Whether all of it can be left, as nobody waits for any of it.
    fn give_up(&self) -> bool {
        let flights = &self.core.shared.flights;
        let open = self.open.borrow();
        let keys = open.values().map(|job| self.flight_key(job));
        let keys = keys.collect::<Vec<_>>();
        if keys.iter().any(|key| flights.is_awaited(key)) {
            return false;
        }
        // Somebody may board in this very moment: then all goes on.
        let left = keys.iter().filter(|key| !flights.give_up(key, &self.fetch)).count();
        left == 0
    }
}

impl<S> Flight<S> {
    fn flight_key(&self, job: &Job) -> FlightKey {
        FlightKey { key: job.key, repair: self.ctx.repair }
    }

    /// Tells everybody who waits for what has not come.
    fn fail_open(&self, error: &Error, remember: bool) {
        let shared = &self.core.shared;
        let Place { image, section, .. } = self.place;
        for (chunk, job) in std::mem::take(&mut *self.open.borrow_mut()) {
            let own = self.bad.borrow_mut().remove(&chunk);
            let error = own.unwrap_or_else(|| error.clone());
            if remember && error.kind() == Kind::Gone {
                shared.gone.note(Absent::Chunk(image, section, chunk), &error);
            }
            shared.flights.fail(&self.flight_key(&job), &self.fetch, &error);
        }
    }
}

impl<S> Drop for Flight<S> {
    /// A task that is dropped with its runtime leaves nobody waiting on another core.
    fn drop(&mut self) {
        self.fail_open(&ended(), false);
    }
}

struct FlightSink<'a, S> {
    flight: &'a Flight<S>,
    repair: bool,
}

impl<S: ChunkSource + 'static> ChunkSink for FlightSink<'_, S> {
    async fn chunk(&mut self, chunk: u32, frame: Frame) -> Result<()> {
        self.flight.take(chunk, &frame, self.repair);
        drop(frame);
        // A source that has everything at hand would otherwise keep the core to itself.
        tokio::task::consume_budget().await;
        Ok(())
    }
}
