//! The agent: tells placement what the node has, and does what it is told.

use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::goal::{DiskRoom, Goal, GoalItem, StatusReport, Told};
use api::pool::{LocalClaim, VolumeKind};
use blockio::Fs;
use image::{Digest, Error, Kind, Result};
use tokio::sync::{Notify, Semaphore, watch};

use super::items::{Items, Outcome};
use super::ready::{Ready, request_of};
use crate::daemon::Grid;
use crate::leases::{Leases, boottime};
use crate::stats::Sampler;
use crate::volumes::{Birth, Hurry, Volumes};

const STATE: &str = "items.json";
/// Longest state file that is read, in bytes.
const MAX_STATE: usize = 16 << 20;
/// How long placement may keep an answer back while it has nothing new: a node is heard of at least so often.
const WAIT: Duration = Duration::from_secs(10);
/// Pauses between tries to reach placement, doubled from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LAST_PAUSE: Duration = Duration::from_secs(15);
/// How often the time of leases is looked at.
const LEASE_TICK: Duration = Duration::from_millis(200);
const UNPOISONED: &str = "no panics while locked";

/// Where reports go.
pub trait Reports: Send + Sync + 'static {
    /// Says what this node has; the answer is what it is to do, at once if that is news, or after `wait`.
    fn report(
        &self,
        report: &StatusReport,
        wait: Duration,
    ) -> impl Future<Output = Result<Told>> + Send;
}

/// How the agent works.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// Where it keeps what it was told.
    pub dir: PathBuf,
    /// Volumes that are built at a time.
    pub builds: usize,
    /// Drawn at random when the daemon starts.
    pub run: [u8; 16],
    /// Tells the time, in seconds since 1970.
    pub now: fn() -> u64,
    /// What measures this node.
    pub sampler: Sampler,
}

/// Tells placement what the node has, and does what it is told. Clones share it.
pub struct Agent<G>(Arc<Inner<G>>);

impl<G> Clone for Agent<G> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

struct Inner<G> {
    ready: Ready<G>,
    volumes: Volumes<G>,
    leases: Arc<Leases>,
    items: Mutex<Items>,
    options: AgentOptions,
    builds: Arc<Semaphore>,
    changed: Notify,
    /// A goal has come.
    told: watch::Sender<()>,
}

impl<G: Grid> Agent<G> {
    /// Takes up what an earlier one has left.
    pub fn new(
        ready: Ready<G>,
        volumes: Volumes<G>,
        leases: Arc<Leases>,
        options: AgentOptions,
    ) -> Result<Self> {
        let path = options.dir.join(STATE);
        let items = match Fs::os().read(&path, MAX_STATE) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| {
                let what = format!(
                    "{}: {e}; move it away: what was to be done is told again",
                    path.display()
                );
                Error::new(Kind::Corrupt, what)
            })?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Items::default(),
            Err(e) => return Err(Error::io("what this node was told", e)),
        };
        let builds = Arc::new(Semaphore::new(options.builds.max(1)));
        let items = Mutex::new(items);
        let (changed, told) = (Notify::new(), watch::Sender::new(()));
        let inner = Inner { ready, volumes, leases, items, options, builds, changed, told };
        Ok(Self(Arc::new(inner)))
    }

    /// Reports, and does what it is told, until it is dropped.
    pub async fn run(self, reports: impl Reports) {
        let unfinished = self.0.items.lock().expect(UNPOISONED).unfinished();
        unfinished.into_iter().for_each(|item| self.spawn(item));
        let (mut number, mut pause) = (0, FIRST_PAUSE);
        loop {
            number += 1;
            let (asked, sent) = (self.report(number).await, boottime());
            let sampler = &self.0.options.sampler;
            let wait = WAIT.min(self.0.leases.patience()).min(sampler.every());
            let changed = async {
                tokio::select! {
                    () = self.0.changed.notified() => {}
                    () = self.0.ready.changed() => {}
                    () = self.0.leases.changed() => {}
                    () = self.0.volumes.changed() => {}
                }
            };
            let told = tokio::select! {
                told = reports.report(&asked, wait) => told,
                // What has changed is news: the answer to it is the newer one.
                () = changed => {
                    sampler.touch();
                    continue;
                }
                () = sampler.news() => continue,
                () = self.leases_are_over() => {
                    self.0.volumes.fence_all().await;
                    continue;
                }
            };
            let taken = match told {
                Ok(told) => self.take(told, sent, &asked).await,
                Err(error) => Err(error),
            };
            match taken {
                Ok(()) if pause > FIRST_PAUSE => {
                    tracing::info!("placement is told again what this node has");
                    pause = FIRST_PAUSE;
                }
                Ok(()) => {}
                Err(error) => {
                    sampler.tallies().retried();
                    // Once: it may take long.
                    if pause == FIRST_PAUSE {
                        tracing::warn!(%error, "placement is not told what this node has");
                    }
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = self.0.leases.changed() => {}
                        () = self.leases_are_over() => self.0.volumes.fence_all().await,
                    }
                    pause = (pause * 2).min(LAST_PAUSE);
                }
            }
        }
    }

    async fn report(&self, number: u64) -> StatusReport {
        let volumes = self.0.volumes.told().await;
        let ((generation, goal), statuses) = {
            let items = self.0.items.lock().expect(UNPOISONED);
            (items.version(), items.statuses())
        };
        // What is said to be done before it is said what is there is there.
        let held = self.0.volumes.held().await;
        let erased = self.0.volumes.erased().await;
        let room = self.0.ready.room();
        let (size, free) = room.unwrap_or_else(|error| {
            tracing::warn!(%error, "how much room there is for volumes is not known");
            (0, 0)
        });
        let (leases, released) = self.0.leases.told();
        StatusReport {
            run: volume_pool::ready::name_of(&self.0.options.run),
            number,
            generation,
            goal,
            items: statuses,
            ready: self.0.ready.list(),
            taken: self.0.ready.taken(),
            volumes,
            held,
            disk: DiskRoom { size, free },
            leases,
            released,
            erased,
            stats: self.0.options.sampler.untold().map(|stats| Box::new((*stats).clone())),
        }
    }

    /// Bytes of what is to be built still.
    pub fn promised(&self) -> u64 {
        let items = self.0.items.lock().expect(UNPOISONED).unfinished();
        let sizes = items.iter().map(|item| match &item.goal {
            Goal::Build { kind, .. } | Goal::Claim { build: Some(kind), .. } => kind.size,
            Goal::Hold { size, .. } => *size,
            Goal::Claim { build: None, .. } | Goal::Discard { .. } | Goal::Unknown => 0,
        });
        sizes.fold(0, u64::saturating_add)
    }

    /// Ends when leases are over, and there is something to be stopped.
    async fn leases_are_over(&self) {
        while self.0.leases.left().is_none_or(|left| !left.is_zero())
            || !self.0.volumes.writes_with_a_lease()
        {
            tokio::time::sleep(LEASE_TICK).await;
        }
    }

    /// Stops what it has lost, writes down what is new, and begins it.
    async fn take(&self, told: Told, sent: u64, asked: &StatusReport) -> Result<()> {
        // Of a lease that was given anew since, the report has said nothing.
        let lost = asked.leases.iter().filter(|lease| told.lost.contains(&lease.volume));
        for lease in lost {
            if self.0.leases.epoch(&lease.volume) == Some(lease.epoch) {
                self.0.volumes.fence_lost(&lease.volume).await?;
            }
        }
        self.0.volumes.recorded(told.recorded).await?;
        self.0.leases.answered(sent, told.lease_secs, &asked.released)?;
        let number = asked.stats.as_ref().map(|stats| stats.number);
        self.0.options.sampler.told(number, told.stats_secs);
        let new = self.change(|items| items.take(told.goal))?;
        self.0.told.send_replace(());
        let wanted = self.0.items.lock().expect(UNPOISONED).held();
        self.0.volumes.hold_only(&wanted).await?;
        new.into_iter().for_each(|item| self.spawn(item));
        Ok(())
    }

    /// Changes what is known. It lasts when this returns: what was not written down was not told.
    fn change<T>(&self, change: impl FnOnce(&mut Items) -> T) -> Result<T> {
        let mut items = self.0.items.lock().expect(UNPOISONED);
        let mut now = items.clone();
        let done = change(&mut now);
        if now != *items {
            let bytes = serde_json::to_vec(&now).expect("our own types serialise");
            let written = Fs::os().replace(self.0.options.dir.join(STATE), &bytes);
            written.map_err(|e| Error::io("what this node was told", e))?;
            *items = now;
        }
        Ok(done)
    }

    fn spawn(&self, item: GoalItem) {
        let agent = self.clone();
        tokio::spawn(async move {
            let result = agent.one(&item).await;
            match &result {
                Ok(_) => tracing::info!(item = item.id, goal = ?item.goal, "done"),
                Err(error) => {
                    agent.0.options.sampler.tallies().failed();
                    tracing::warn!(item = item.id, goal = ?item.goal, %error, "not done");
                }
            }
            if let Err(error) = agent.change(|items| items.end(&item.id, &result)) {
                // It is done again after a restart, which then changes nothing.
                tracing::error!(%error, "what was done cannot be written down");
            }
            agent.0.changed.notify_one();
        });
    }

    async fn one(&self, item: &GoalItem) -> Result<Outcome> {
        let id = request_of(&item.id)?;
        match &item.goal {
            Goal::Build { pool, kind, rate } => {
                let _turn = self.0.builds.acquire().await.expect("never closed");
                self.is_wanted(&item.id)?;
                self.change(|items| items.begin(&item.id))?;
                let hurry = Hurry::Background { rate: *rate };
                let took_millis = self.build((pool, kind), id, hurry).await?;
                Ok(Outcome { volume: Some(item.id.clone()), built: true, took_millis })
            }
            Goal::Claim { request, pool, volume, build, .. } => {
                let asked = LocalClaim { request: request.clone(), volume: volume.clone() };
                let claimed = self.0.ready.claim(pool, &asked).await;
                let (info, took_millis) = match (claimed, build) {
                    (Err(error), Some(kind)) if error.kind() == Kind::Gone => {
                        self.change(|items| items.begin(&item.id))?;
                        let took = self.build((pool, kind), id, Hurry::Waited).await?;
                        // What was built is ready then, for whoever comes next.
                        if self.0.items.lock().expect(UNPOISONED).is_cancelled(&item.id) {
                            return Err(super::items::cancelled());
                        }
                        (self.0.ready.claim(pool, &asked).await?, took)
                    }
                    (claimed, _) => (claimed?, None),
                };
                Ok(Outcome { volume: Some(info.id), built: took_millis.is_some(), took_millis })
            }
            Goal::Hold { image, size } => {
                let _turn = self.0.builds.acquire().await.expect("never closed");
                self.is_wanted(&item.id)?;
                self.change(|items| items.begin(&item.id))?;
                self.0.changed.notify_one();
                self.0.volumes.hold(*image, *size, self.unwanted(&item.id)).await?;
                Ok(Outcome::default())
            }
            Goal::Discard { volume } => {
                self.0.ready.discard(request_of(volume)?, self.seed(&id)).await?;
                Ok(Outcome::default())
            }
            Goal::Unknown => {
                let what = "this node's program does not know what that is: install a newer one";
                Err(Error::new(Kind::Unsupported, what))
            }
        }
    }

    /// Builds one; how long it took.
    async fn build(
        &self,
        (pool, kind): (&str, &VolumeKind),
        id: [u8; 16],
        hurry: Hurry,
    ) -> Result<Option<u64>> {
        let begun = boottime();
        self.0.ready.build(pool, kind, self.birth(id), hurry).await?;
        Ok(Some(boottime().saturating_sub(begun)))
    }

    fn is_wanted(&self, item: &str) -> Result<()> {
        match self.0.items.lock().expect(UNPOISONED).wants(item) {
            true => Ok(()),
            false => Err(Error::new(Kind::Cancelled, "not wanted any more")),
        }
    }

    /// Ends when an item is not in the newest goal any more.
    fn unwanted(&self, item: &str) -> impl Future<Output = ()> + Send + 'static {
        let (agent, item, mut told) = (self.clone(), item.to_owned(), self.0.told.subscribe());
        async move {
            while agent.0.items.lock().expect(UNPOISONED).wants(&item) {
                // The sender is in what is held here.
                let _ = told.changed().await;
            }
        }
    }

    /// For the erasure that an item asks for: another one for each.
    fn seed(&self, item: &[u8; 16]) -> [u8; 32] {
        Digest::of_stored(&[&self.0.options.run[..], &item[..]].concat()).0
    }

    fn birth(&self, id: [u8; 16]) -> Birth {
        Birth { now: (self.0.options.now)(), id }
    }
}
