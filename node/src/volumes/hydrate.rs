//! Brings what a volume lacks: asks for what the [`plan`](super::plan) says, and fills it in.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::FusedFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use image::{ChunkSet, ChunkSource, Error, Kind, Priority, Result, SectionTable};
use volume_pool::{Verified, Volume};

use super::pace::Pace;
use super::plan::{Missing, Plan, Policy, Want};
use crate::pull::Watch;
use crate::pull::batch::{Batch, Deliver, Fetch};
use crate::rate::Time;

/// Section tables that are kept at hand: 8 KiB each with the usual chunks.
const TABLES: usize = 16;
/// Chunks that are made to last together while nobody flushes: as much as a crash may cost to fetch again.
const CHECKPOINT: u64 = 1024;

/// How a hydration is, for whoever watches.
#[derive(Debug, Default)]
pub(super) struct Status {
    /// Chunks that guests had to wait for.
    pub(super) demanded: Cell<u64>,
    /// Why what is missing did not come the last time.
    pub(super) trouble: RefCell<Option<Error>>,
    /// How fast it is filled.
    pub(super) pace: RefCell<Pace>,
    /// Whether what nobody waits for is fetched too.
    pub(super) fills: Cell<bool>,
}

/// One volume being filled.
pub(super) struct Hydration<'a, S> {
    pub(super) volume: &'a Volume,
    pub(super) fetch: Fetch<'a, S>,
    pub(super) time: &'a dyn Time,
    pub(super) status: &'a Status,
    tables: RefCell<VecDeque<(u32, Arc<SectionTable>)>>,
}

impl Missing for Volume {
    fn next_absent(&self, from: u64, end: u64) -> Option<u64> {
        Volume::next_absent(self, from, end)
    }

    fn section_of(&self, chunk: u64) -> u32 {
        self.place_of(chunk).map_or(u32::MAX, |(section, _)| section)
    }
}

impl<'a, S: ChunkSource> Hydration<'a, S> {
    pub(super) fn new(
        volume: &'a Volume,
        fetch: Fetch<'a, S>,
        time: &'a dyn Time,
        status: &'a Status,
    ) -> Self {
        Self { volume, fetch, time, status, tables: RefCell::default() }
    }

    /// Brings chunks until all are here; those of `trace`, when it is known, in its order.
    pub(super) async fn run(
        &self,
        policy: Policy,
        trace: impl Future<Output = Vec<u64>>,
    ) -> Result<()> {
        let chunks = self.fetch.geometry.size().div_ceil(self.fetch.geometry.chunk_len() as u64);
        let mut plan = Plan::new(policy, chunks);
        let mut under_way = FuturesUnordered::new();
        // Beside the others, never instead of them: whoever has a turn at memory or at the disk must be polled.
        let mut saving = FuturesUnordered::new();
        let (mut unsaved, mut received) = (0, 0);
        let mut trace = pin!(trace.fuse());
        while !self.volume.is_complete() || !under_way.is_empty() {
            plan.fill(self.status.fills.get());
            while let Some(want) = plan.next(self.time.now(), self.volume) {
                under_way.push(self.bring(want));
            }
            let wake = plan.wake(self.time.now());
            tokio::select! {
                biased;
                asked = self.volume.next_wanted() => {
                    self.status.demanded.set(self.status.demanded.get() + asked.len() as u64);
                    plan.wanted(&asked, self.time.now());
                }
                Some((want, result)) = under_way.next() => {
                    unsaved += want.chunks.len() as u64;
                    self.ended(&mut plan, &want, result);
                    let (until, limited) = self.came(&mut received);
                    plan.hold(until, limited);
                    if unsaved >= CHECKPOINT && saving.is_empty() {
                        unsaved = 0;
                        saving.push(self.checkpoint());
                    }
                }
                Some(()) = saving.next() => {}
                chunks = &mut trace, if !trace.is_terminated() => plan.trace(chunks),
                () = self.time.sleep(wake) => {}
            }
        }
        self.status.trouble.replace(None);
        Ok(())
    }

    /// Tells the pace what has come; until when it has the filling wait, and the trace.
    fn came(&self, received: &mut u64) -> (Duration, Duration) {
        let all = self.fetch.watch.progress().received;
        let bytes = all - std::mem::replace(received, all);
        let left = bytes_left(self.volume, self.fetch.watch);
        let mut pace = self.status.pace.borrow_mut();
        (pace.came(bytes, left, self.time.now()), pace.limited_until())
    }

    /// What has come so far would have to be fetched again after a crash.
    async fn checkpoint(&self) {
        if let Err(error) = self.volume.flush().await {
            tracing::warn!(%error, "what has arrived could not be made to last");
        }
    }

    fn ended(&self, plan: &mut Plan, want: &Want, result: Result<()>) {
        let now = self.time.now();
        let error = match result {
            Ok(()) => {
                plan.arrived(want, now);
                // That others come does not make good a chunk that is wrong everywhere.
                let mut trouble = self.status.trouble.borrow_mut();
                trouble.take_if(|trouble| trouble.kind() != Kind::Corrupt);
                return;
            }
            Err(error) => error,
        };
        // Said once, and not for each of many.
        let again = self.status.trouble.borrow().as_ref().is_some_and(|t| t.kind() == error.kind());
        let (name, chunks) = (self.volume.identity().name, want.chunks.len());
        match again {
            false => tracing::warn!(%error, volume = name, chunks, "chunks did not come"),
            true => tracing::debug!(%error, volume = name, chunks, "chunks did not come either"),
        }
        for chunk in plan.failed(want, &error, now) {
            self.volume.fail(chunk, error.clone());
        }
        self.status.trouble.replace(Some(error));
    }

    async fn bring(&self, want: Want) -> (Want, Result<()>) {
        let result = self.try_bring(&want).await;
        (want, result)
    }

    async fn try_bring(&self, want: &Want) -> Result<()> {
        let Some(first) = want.chunks.first() else { return Ok(()) };
        let (section, _) = self.volume.place_of(*first)?;
        let table = self.table(section, want.priority).await?;
        let mut chunks = ChunkSet::empty(table.chunks());
        for chunk in &want.chunks {
            let (_, within) = self.volume.place_of(*chunk)?;
            if within < table.chunks()
                && !table.digests()[within as usize].is_zero()
                && !self.volume.is_present(*chunk)
            {
                chunks.insert(within);
            }
        }
        if chunks.is_empty() {
            return Ok(());
        }
        let batch = Batch { section, table, chunks, priority: want.priority };
        self.fetch.batch(batch, &Fill(self.volume)).await
    }

    /// The digests of a section. When they come, its chunks of zeros are here.
    pub(super) async fn table(
        &self,
        section: u32,
        priority: Priority,
    ) -> Result<Arc<SectionTable>> {
        let known = self.tables.borrow().iter().find(|(s, _)| *s == section).cloned();
        if let Some((_, table)) = known {
            return Ok(table);
        }
        let table = self.fetch.table(section, priority).await?;
        self.volume.fill_zeros(section, &table).await?;
        let mut tables = self.tables.borrow_mut();
        tables.push_front((section, Arc::clone(&table)));
        tables.truncate(TABLES);
        Ok(table)
    }
}

/// Bytes of frames that are still to come, about: as those were that have come.
pub(super) fn bytes_left(volume: &Volume, watch: &Watch) -> u64 {
    let (arrived, p) = (volume.arrived(), watch.progress());
    // Nothing has come: chunks of disks shrink to a third, or a half.
    let usual = (1 << volume.identity().chunk_log2) / 2;
    let each = p.received.checked_div(p.chunks).unwrap_or(usual);
    (arrived.chunks - arrived.present) * each
}

/// Fills verified chunks into a volume.
struct Fill<'a>(&'a Volume);

impl Deliver for Fill<'_> {
    async fn deliver(&self, section: u32, chunk: u32, plain: Verified) -> Result<()> {
        self.0.fill(section, chunk, plain).await.map(drop)
    }
}
