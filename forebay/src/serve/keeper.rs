//! Who takes care of a cache: answers its API out of the tiers that the cores share.

use std::sync::Arc;
use std::time::{Duration, Instant};

use api::care::{
    CacheStatus, DrainOrder, Evicted, Held, Part, Pinned, ScrubOrder, ScrubStatus, Tier, Warming,
};
use blockio::EngineOptions;
use cache::{DiskState, Shared};
use image::{Digest, Error, Kind, ReadContext, Result};
use metrics_exporter_prometheus::PrometheusHandle;
use placement::{Answer, Care};
use store::Store;
use stream::Memory;
use tokio::sync::watch;

use super::errands::Errands;
use super::publish;
use super::warmings::Warmings;
use crate::config::Config;

/// A cache that drains ends when nobody has asked it for so long. It is longer than pulls take to hear of it:
/// they ask placement every 15 s (`REFRESH` in `connect.rs`).
const QUIET: Duration = Duration::from_secs(20);

/// Takes care of the cache of this process.
pub struct Keeper {
    name: String,
    cache: Arc<Shared>,
    connections: Memory,
    /// Bytes that the tiers may take.
    memory_budget: u64,
    disk_budget: u64,
    /// Bytes a second that scrubbing reads unless it is told otherwise.
    scrub_rate: u64,
    since: Instant,
    metrics: PrometheusHandle,
    errands: Errands,
    warmings: Warmings,
    /// `None` where it may not leave.
    draining: Option<Drain>,
}

/// Whether a cache is to drain, and whether placement has been told.
pub struct Drain {
    ordered: watch::Sender<bool>,
    told: watch::Receiver<bool>,
}

/// The other end: for who tells placement.
pub struct DrainOrders {
    pub ordered: watch::Receiver<bool>,
    pub told: watch::Sender<bool>,
}

impl Drain {
    /// Of a cache that stays.
    pub fn new() -> (Self, DrainOrders) {
        let (ordered, orders) = watch::channel(false);
        let (tells, told) = watch::channel(false);
        (Self { ordered, told }, DrainOrders { ordered: orders, told: tells })
    }

    /// Returns when placement knows, or after a while: it is told again and again.
    async fn order(&self, drain: bool) {
        const IN_TIME: Duration = Duration::from_secs(10);
        self.ordered.send_replace(drain);
        let mut told = self.told.clone();
        let _ = tokio::time::timeout(IN_TIME, told.wait_for(|told| *told == drain)).await;
    }
}

#[expect(clippy::disallowed_methods, reason = "how long it has been up is real time")]
fn now() -> Instant {
    Instant::now()
}

impl Keeper {
    /// Takes over the care of `cache`, which may leave when it is told to if there is a `draining`.
    pub fn start(
        name: &str,
        config: &Config,
        store: &Store,
        cache: &Arc<Shared>,
        connections: Memory,
        metrics: PrometheusHandle,
        draining: Option<Drain>,
    ) -> Result<Arc<Self>> {
        let engine = EngineOptions { choice: super::engine(config)?, ..EngineOptions::default() };
        let errands = Errands::start(store.clone(), Arc::clone(cache), engine)?;
        errands.send(|cache| async move { cache.tend(&ReadContext::default()).await })?;
        Ok(Arc::new(Self {
            name: name.into(),
            cache: Arc::clone(cache),
            connections,
            memory_budget: config.size("cache.memory"),
            disk_budget: config.size("cache.disk"),
            scrub_rate: config.size("cache.scrub"),
            since: now(),
            metrics,
            errands,
            warmings: Warmings::default(),
            draining,
        }))
    }

    fn is_draining(&self) -> bool {
        self.draining.as_ref().is_some_and(|drain| *drain.ordered.borrow())
    }

    /// Returns when it was told to drain and nobody has asked for anything for a while.
    pub async fn drained(&self) {
        let Some(draining) = &self.draining else { return std::future::pending().await };
        let mut orders = draining.ordered.subscribe();
        loop {
            // This end holds the sender itself.
            let _ = orders.wait_for(|draining| *draining).await;
            let before = publish::asks(&self.cache.status());
            if tokio::time::timeout(QUIET, orders.changed()).await.is_err()
                && publish::asks(&self.cache.status()) == before
            {
                return;
            }
        }
    }

    fn now(&self) -> CacheStatus {
        let s = self.cache.status();
        let health = s.disk_health;
        let mut pinned: Vec<_> = self.cache.pins().into_iter().map(pinned).collect();
        pinned.sort_unstable_by_key(|pin| pin.image);
        CacheStatus {
            name: self.name.clone(),
            draining: self.is_draining(),
            up_secs: (now() - self.since).as_secs(),
            memory: Tier {
                budget: self.memory_budget,
                bytes: s.memory_bytes,
                frames: s.memory_frames,
            },
            disk: Tier { budget: self.disk_budget, bytes: s.disk_bytes, frames: s.disk_frames },
            disk_state: s.disk.to_string(),
            disk_state_secs: health.in_state_for.as_secs(),
            disk_errors: health.failed_reads + health.failed_writes + health.bad_frames,
            disk_last_error: health.last_error,
            disk_warning: health.warning,
            asks: publish::by_class(&self.cache.status()),
            store_egress: s.source_bytes,
            healed: s.healed_copies,
            pinned,
            warming: self.warmings.list(),
            scrub: scrub(&s.scrub, s.scrub_bad_frames),
        }
    }
}

fn pinned(pin: cache::Pin) -> Pinned {
    Pinned { image: pin.image, chunks: pin.chunks, bytes: pin.bytes }
}

fn scrub(s: &cache::ScrubStatus, bad_in_all: u64) -> ScrubStatus {
    let cache::ScrubStatus { rate, pass, running, frames, bytes, bad, .. } = *s;
    ScrubStatus { rate, pass, running, frames, bytes, bad, bad_in_all, begins: false }
}

/// Has the disk checked, at its usual rate unless another is ordered.
fn scrub_now(cache: &Shared, order: ScrubOrder, usual: u64) -> Result<ScrubStatus> {
    let before = cache.status();
    match &before.disk {
        DiskState::None => {
            let what = "it has no disk tier (cache.disk is 0): there is nothing to scrub";
            return Err(Error::new(Kind::Unsupported, what));
        }
        DiskState::Off(why) => {
            let what = format!("its disk tier, which would be scrubbed, is off: {why}");
            return Err(Error::new(Kind::Io, what));
        }
        _ => {}
    }
    let rate = order.rate.unwrap_or(usual);
    cache.set_scrub_rate(rate);
    if rate > 0 && cache.start_scrub() {
        // It begins on another thread: until then the numbers are the last pass's.
        let (pass, bad_in_all) = (before.scrub.pass + 1, before.scrub_bad_frames);
        let begun = ScrubStatus { rate, pass, running: true, begins: true, ..Default::default() };
        return Ok(ScrubStatus { bad_in_all, ..begun });
    }
    let now = cache.status();
    Ok(scrub(&now.scrub, now.scrub_bad_frames))
}

fn held(held: &cache::Held) -> Held {
    let all = &held.all;
    Held {
        chunks: all.chunks,
        held: all.here,
        in_memory: Part { chunks: all.memory_chunks, bytes: all.memory_bytes },
        on_disk: Part { chunks: all.disk_chunks, bytes: all.disk_bytes },
        pinned: held.pinned,
    }
}

impl Care for Keeper {
    fn status(&self) -> Answer<'_, CacheStatus> {
        Box::pin(async { Ok(self.now()) })
    }

    fn held(&self, image: Digest) -> Answer<'_, Held> {
        let look = move |cache: super::errands::CoreCache| async move {
            let ctx = ReadContext::default();
            Ok(held(&cache.held(&ctx, &image).await?))
        };
        Box::pin(self.errands.look(look))
    }

    fn warm(&self, image: Digest) -> Answer<'_, Warming> {
        Box::pin(async move { self.warmings.begin(&self.errands, image, false) })
    }

    fn warming(&self, image: Digest) -> Answer<'_, Warming> {
        Box::pin(async move { self.warmings.get(&image) })
    }

    fn stop_warming(&self, image: Digest) -> Answer<'_, Warming> {
        Box::pin(async move { self.warmings.stop(&image) })
    }

    fn pin(&self, image: Digest) -> Answer<'_, Warming> {
        Box::pin(async move { self.warmings.begin(&self.errands, image, true) })
    }

    fn unpin(&self, image: Digest) -> Answer<'_, Pinned> {
        Box::pin(async move {
            // Else what is under way would pin it again.
            self.warmings.stop_pin(&image).await;
            let was = self.cache.unpin(&image).await?.map(pinned);
            Ok(was.unwrap_or(Pinned { image, chunks: 0, bytes: 0 }))
        })
    }

    fn evict(&self, image: Digest) -> Answer<'_, Evicted> {
        let evict = move |cache: super::errands::CoreCache| async move {
            let cache::Evicted { chunks, stayed } =
                cache.evict(&ReadContext::default(), &image).await?;
            Ok(Evicted { chunks, kept: stayed })
        };
        Box::pin(self.errands.run(evict))
    }

    fn scrub(&self, order: ScrubOrder) -> Answer<'_, ScrubStatus> {
        Box::pin(async move { scrub_now(&self.cache, order, self.scrub_rate) })
    }

    fn drain(&self, order: DrainOrder) -> Answer<'_, CacheStatus> {
        Box::pin(async move {
            let Some(draining) = &self.draining else {
                let what = "this cache is part of `forebay up`, which also takes pushes and is \
                            placement: it cannot drain; stop the process instead";
                return Err(Error::new(Kind::Unsupported, what));
            };
            draining.order(order.drain).await;
            Ok(self.now())
        })
    }

    fn metrics(&self) -> String {
        publish::publish(&self.now(), &self.cache.status());
        publish::connections(&self.connections.lent());
        self.metrics.render()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(disk: Option<cache::DiskBudget>) -> (Arc<Shared>, Option<cache::LogWriter>) {
        let budget = cache::Budget { memory: 16 << 20, in_flight: 64 << 20, disk };
        Shared::open(budget, cache::Options::default()).unwrap()
    }

    #[test]
    fn a_scrub_is_told_to_begin_at_its_rate_or_the_usual_one() {
        let dir = tempfile::tempdir().unwrap();
        let disk = cache::DiskBudget { dir: dir.path().into(), bytes: 1 << 30, reserve: 0 };
        let (shared, writer) = cache(Some(disk));
        writer.unwrap().run_pending();
        let scrub = |rate| scrub_now(&shared, ScrubOrder { rate }, 8).unwrap();
        let fast = scrub(Some(200));
        assert_eq!((fast.rate, fast.pass, fast.begins, fast.running), (200, 1, true, true));
        assert_eq!((scrub(None).rate, shared.status().scrub.rate), (8, 8));
        let stopped = scrub(Some(0));
        assert_eq!((stopped.rate, stopped.begins), (0, false));
    }

    #[test]
    fn a_cache_without_a_disk_says_that_there_is_nothing_to_scrub() {
        let (shared, _) = cache(None);
        let error = scrub_now(&shared, ScrubOrder::default(), 8).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.message().contains("no disk tier"), "{error}");
    }
}
