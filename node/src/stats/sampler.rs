//! Takes samples, one after the other, and keeps the last.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::stats::{Cause, Declared, HypervisorStats, NodeStats};
use tokio::sync::Notify;

use super::host::{Roots, look};
use super::programs::installed;
use super::sample::{Known, Seen, When, also, sample};

/// Between two samples there is so much at least, whatever happens.
const LEAST: Duration = Duration::from_secs(1);
/// How often hypervisors are asked for their versions, in milliseconds.
const ASK_AGAIN: u64 = 3600 * 1000;

const UNPOISONED: &str = "no panics while locked";

/// How samples are taken.
#[derive(Clone, Debug)]
pub struct SamplerOptions {
    /// Where the kernel says what it says.
    pub roots: Roots,
    /// From one sample to the next, a second at least.
    pub every: Duration,
    /// What the configuration says of this node.
    pub declared: Declared,
    /// Tells the time, in seconds since 1970.
    pub now: fn() -> u64,
    /// Milliseconds since some moment, by a clock that nobody sets.
    pub millis: fn() -> u64,
}

/// What went wrong since the daemon started.
#[derive(Debug, Default)]
pub struct Tallies {
    failed: AtomicU64,
    retried: AtomicU64,
}

impl Tallies {
    /// Something ended with an error.
    pub fn failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Something is asked again.
    pub fn retried(&self) {
        self.retried.fetch_add(1, Ordering::Relaxed);
    }

    /// Both, as they are.
    pub fn read(&self) -> (u64, u64) {
        (self.failed.load(Ordering::Relaxed), self.retried.load(Ordering::Relaxed))
    }
}

/// Takes samples. Clones share it.
#[derive(Clone, Debug)]
pub struct Sampler(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    options: SamplerOptions,
    tallies: Tallies,
    slot: Mutex<Slot>,
    /// Something has happened, or somebody looks: the next sample comes earlier.
    sooner: Notify,
    /// A sample was taken because something has happened.
    news: Notify,
}

#[derive(Debug, Default)]
struct Slot {
    last: Option<Arc<NodeStats>>,
    /// The number of the last that placement has.
    told: u64,
    /// What somebody who looks wants.
    asked: Option<Duration>,
    touched: bool,
}

impl Sampler {
    /// One that has taken none.
    pub fn new(options: SamplerOptions) -> Self {
        Self(Arc::new(Inner {
            options,
            tallies: Tallies::default(),
            slot: Mutex::default(),
            sooner: Notify::new(),
            news: Notify::new(),
        }))
    }

    /// What goes wrong is counted there.
    pub fn tallies(&self) -> &Tallies {
        &self.0.tallies
    }

    /// Something has happened: a sample is taken soon, one for all that happens within a second.
    pub fn touch(&self) {
        self.0.slot.lock().expect(UNPOISONED).touched = true;
        self.0.sooner.notify_one();
    }

    /// From one sample to the next, as it is now.
    pub fn every(&self) -> Duration {
        let asked = self.0.slot.lock().expect(UNPOISONED).asked;
        asked.unwrap_or(self.0.options.every).min(self.0.options.every).max(LEAST)
    }

    /// The last sample.
    pub fn last(&self) -> Option<Arc<NodeStats>> {
        self.0.slot.lock().expect(UNPOISONED).last.clone()
    }

    /// The last sample, if placement does not have it.
    pub fn untold(&self) -> Option<Arc<NodeStats>> {
        let slot = self.0.slot.lock().expect(UNPOISONED);
        slot.last.clone().filter(|last| last.number > slot.told)
    }

    /// Placement has this sample, if one was told, and wants the next so many seconds later.
    pub fn told(&self, number: Option<u64>, every_secs: Option<u32>) {
        let mut slot = self.0.slot.lock().expect(UNPOISONED);
        slot.told = slot.told.max(number.unwrap_or(0));
        let asked = every_secs.map(|secs| Duration::from_secs(secs.into()));
        if asked < slot.asked || slot.asked.is_none() && asked.is_some() {
            self.0.sooner.notify_one();
        }
        slot.asked = asked;
    }

    /// Ends when a sample was taken because something has happened.
    pub async fn news(&self) {
        self.0.news.notified().await;
    }

    /// Takes samples until it is dropped. `known` tells what the daemon knows.
    pub async fn run<F: Future<Output = Known>>(self, known: impl Fn() -> F) {
        let mut before: Option<Seen> = None;
        let (mut number, mut asked_at, mut cause) = (0, None::<u64>, Cause::Interval);
        loop {
            let due = (self.0.options.millis)();
            let hypervisors = match &before {
                Some(before) if asked_at.is_some_and(|at| due < at + ASK_AGAIN) => {
                    before.hypervisors.clone()
                }
                _ => {
                    asked_at = Some(due);
                    installed(&self.0.options.roots).await
                }
            };
            let Some(seen) = self.look(hypervisors).await else { return };
            number += 1;
            let when = When { number, at: (self.0.options.now)(), cause };
            let declared = self.0.options.declared.clone();
            let taken = sample(before.as_ref(), &seen, known().await, declared, when);
            before = Some(seen);
            self.keep(taken);
            if cause == Cause::Trigger {
                self.0.news.notify_one();
            }
            cause = self.pause().await;
        }
    }

    /// What happened before goes along until placement has it: the sample that saw it is gone, and none will see it again.
    fn keep(&self, mut taken: NodeStats) {
        let mut slot = self.0.slot.lock().expect(UNPOISONED);
        if let Some(untold) = slot.last.take().filter(|last| last.number > slot.told) {
            also(&mut taken, &untold.events);
        }
        slot.last = Some(Arc::new(taken));
    }

    async fn look(&self, hypervisors: Vec<HypervisorStats>) -> Option<Seen> {
        let (roots, millis) = (self.0.options.roots.clone(), self.0.options.millis);
        let looked = tokio::task::spawn_blocking(move || look(&roots, millis())).await;
        Some(Seen { counts: looked.ok()?, hypervisors })
    }

    /// Waits until the next sample is due; why it is.
    async fn pause(&self) -> Cause {
        let since = (self.0.options.millis)();
        tokio::time::sleep(LEAST).await;
        loop {
            if std::mem::take(&mut self.0.slot.lock().expect(UNPOISONED).touched) {
                return Cause::Trigger;
            }
            let every = self.every();
            let waited = (self.0.options.millis)().saturating_sub(since);
            let left = every.saturating_sub(Duration::from_millis(waited));
            // Whoever has something to say meanwhile is looked at; else it is time.
            if left.is_zero() || tokio::time::timeout(left, self.0.sooner.notified()).await.is_err()
            {
                return match every < self.0.options.every {
                    true => Cause::Asked,
                    false => Cause::Interval,
                };
            }
        }
    }
}
