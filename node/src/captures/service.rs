//! What can be asked of a node's captures.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::capture::{Capture, RunningDisk, SaveVolume, Watch};
use image::{Error, Kind, Result};
use tokio::sync::Semaphore;
use tracing::Instrument;

use super::Saves;
use super::job::Work;
use super::told::Told;
use super::totals::Totals;
use crate::volumes::Volumes;

const UNPOISONED: &str = "no panics while locked";
/// Captures that have ended and are still told of.
const REMEMBERED: usize = 256;
/// How long an answer waits at most.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// How a node captures.
#[derive(Clone, Debug)]
pub struct CaptureOptions {
    /// Captures at a time; others wait for their turn.
    pub at_once: usize,
    /// Threads of each that hash, and again as many that compress.
    pub workers: NonZeroUsize,
    /// Bytes of memory of each, for what was read.
    pub memory: usize,
    /// Bytes a second that those read at most for which nobody waits; without limit if it is not said.
    pub background_rate: Option<u64>,
    /// A command that, with the socket of a guest's agent as one more word, calls [`guard`](crate::hypervisor::agent::guard).
    pub thaw: Arc<[OsString]>,
}

/// The captures of a node. Clones share them.
pub struct Captures<G>(Arc<Inner<G>>);

impl<G> Clone for Captures<G> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

struct Inner<G> {
    grid: Arc<G>,
    volumes: Volumes<G>,
    options: CaptureOptions,
    turns: Arc<Semaphore>,
    /// Captures of one volume, or of disks of one QEMU, follow each other.
    alone: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
    jobs: Mutex<Jobs>,
    /// Of those that have ended.
    totals: Arc<Mutex<Totals>>,
}

#[derive(Default)]
struct Jobs {
    last: u64,
    all: BTreeMap<u64, Arc<Told>>,
}

impl<G: Saves> Captures<G> {
    /// Of these volumes.
    pub fn new(grid: G, volumes: Volumes<G>, options: CaptureOptions) -> Self {
        Self(Arc::new(Inner {
            grid: Arc::new(grid),
            volumes,
            turns: Arc::new(Semaphore::new(options.at_once.max(1))),
            options,
            alone: Mutex::default(),
            jobs: Mutex::default(),
            totals: Arc::default(),
        }))
    }

    /// Begins a capture.
    ///
    /// # Errors
    ///
    /// [`Kind::Gone`] if there is no such volume.
    pub async fn save(&self, request: SaveVolume) -> Result<Capture> {
        match RunningDisk::of(&request.volume) {
            Some(disk) if disk.qmp.is_absolute() => {}
            Some(disk) => {
                let what = format!("{disk}: the path of the monitor's socket must be absolute");
                return Err(Error::new(Kind::Invalid, what));
            }
            None => drop(self.0.volumes.show(&request.volume).await?),
        }
        if request.rate == Some(0) {
            return Err(Error::new(Kind::Invalid, "rate 0: nothing would ever be read"));
        }
        let told = {
            let mut jobs = self.0.jobs.lock().expect(UNPOISONED);
            jobs.last += 1;
            let told = Arc::new(Told::new(jobs.last, request));
            let id = jobs.last;
            jobs.all.insert(id, Arc::clone(&told));
            jobs.forget();
            told
        };
        self.start(Arc::clone(&told))?;
        Ok(told.now())
    }

    /// A thread of its own: what reads and sends blocks nobody else.
    fn start(&self, told: Arc<Told>) -> Result<()> {
        let Inner { grid, volumes, options, turns, totals, .. } = &*self.0;
        let work = Work {
            grid: Arc::clone(grid),
            volumes: volumes.clone(),
            workers: options.workers,
            memory: options.memory,
            background_rate: options.background_rate,
            thaw: Arc::clone(&options.thaw),
            totals: Arc::clone(totals),
        };
        let Capture { id, request: SaveVolume { volume, name, .. }, .. } = told.now();
        let (turns, alone) = (Arc::clone(turns), self.alone(&volume));
        // Of the level that is always logged: whatever is said of a capture tells which one it is.
        let span = tracing::error_span!("capture", id, volume, "ref" = %name);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Error::io("starting a runtime", e))?;
        let body = move || {
            let local = tokio::task::LocalSet::new();
            let run = async {
                let mut held = None;
                let turn = async {
                    let alone = alone.lock_owned().await;
                    held = Some((alone, turns.acquire_owned().await.ok()));
                };
                work.run(&told, turn).await;
                drop(held);
            };
            local.block_on(&runtime, run.instrument(span));
        };
        let thread = std::thread::Builder::new().name("capture".into());
        thread.spawn(body).map(drop).map_err(|e| Error::io("starting a thread", e))
    }

    fn alone(&self, volume: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut all = self.0.alone.lock().expect(UNPOISONED);
        all.retain(|_, lock| Arc::strong_count(lock) > 1);
        let one = RunningDisk::of(volume)
            .map_or(volume.to_owned(), |disk| RunningDisk { disk: None, ..disk }.to_string());
        Arc::clone(all.entry(one).or_default())
    }

    /// The last captures.
    pub fn list(&self) -> Vec<Capture> {
        let jobs = self.0.jobs.lock().expect(UNPOISONED);
        jobs.all.values().map(|told| told.now()).collect()
    }

    /// What they have come to, all together.
    pub fn totals(&self) -> Totals {
        let mut totals = *self.0.totals.lock().expect(UNPOISONED);
        self.list().iter().for_each(|capture| totals.see(capture));
        totals
    }

    /// One of them, when it has ended or been waited for.
    ///
    /// # Errors
    ///
    /// [`Kind::Gone`] if there is none of this number.
    pub async fn show(&self, id: u64, watch: Watch) -> Result<Capture> {
        let told = self.get(id)?;
        let wait = Duration::from_millis(watch.wait_ms).min(LONGEST_WAIT);
        // Late, it stands as it stands.
        let _ = tokio::time::timeout(wait, told.ended()).await;
        Ok(told.now())
    }

    fn get(&self, id: u64) -> Result<Arc<Told>> {
        let jobs = self.0.jobs.lock().expect(UNPOISONED);
        let gone = || Error::new(Kind::Gone, format!("there is no capture {id}"));
        jobs.all.get(&id).cloned().ok_or_else(gone)
    }

    /// Ends a capture; returns when it has ended.
    pub async fn cancel(&self, id: u64) -> Result<Capture> {
        let told = self.get(id)?;
        told.cancel();
        Ok(told.ended().await)
    }

    /// Ends all that are under way.
    pub async fn stop(&self) {
        let all = self.list();
        for capture in all.into_iter().filter(|capture| !capture.state.is_final()) {
            if let Err(error) = self.cancel(capture.id).await {
                tracing::warn!(%error, "a capture did not end as it should");
            }
        }
    }
}

impl Jobs {
    /// Forgets the oldest that have ended.
    fn forget(&mut self) {
        while self.all.len() > REMEMBERED {
            let ended = self.all.iter().find(|(_, told)| told.now().state.is_final());
            let Some(id) = ended.map(|(id, _)| *id) else { return };
            self.all.remove(&id);
        }
    }
}
