//! A node: its daemon does what it is told, as `node::pools::agent` does, step by step; its disk keeps what it has when
//! the power goes.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use api::goal::{DiskRoom, Goal, GoalItem, ReadyVolume, StatusReport};
use api::pool::VolumeKind;
use api::stats::{CpuStats, NodeStats, SCHEMA};
use image::{Error, Kind, Result};
use node::pools::{Items, Outcome};
use placement::testing::Coordinator;
use tokio::sync::{Notify, Semaphore};
use tokio::task::spawn_local;
use tokio::time::sleep;

use super::{Bug, CPUS, POOL, SIZE, World};
use crate::chance::Chance;
use crate::grid::{Mode, Process};
use crate::history::claims::Given;

/// Requests of those who claim at the node itself begin so.
pub(super) const HERE: &str = "here";
/// Volumes that are built at a time.
const BUILDS: usize = 2;
/// Bytes that volumes can have.
const ROOM: u64 = 1000 * SIZE;

/// The number of a node, by its name.
pub(super) fn number(name: &str) -> Option<u8> {
    name.strip_prefix('n')?.parse().ok()
}

/// See the [module](self).
pub(super) struct Node {
    world: Rc<World>,
    number: usize,
    name: String,
    /// What is there when the power comes back.
    disk: RefCell<Disk>,
    process: RefCell<Process>,
    changed: RefCell<Rc<Notify>>,
    runs: Cell<u64>,
    chance: RefCell<Chance>,
}

/// Each change of it is one that a power cut does not take apart: a file that is replaced, a name.
#[derive(Default)]
struct Disk {
    items: Items,
    ready: BTreeMap<String, ReadyVolume>,
    /// Volumes that were handed out, by request.
    given: BTreeMap<String, String>,
    /// Those that nobody was to have any more, and are still there.
    leaked: Vec<String>,
    /// What was handed out last.
    last: Option<(String, ReadyVolume)>,
}

impl Node {
    pub(super) fn new(world: &Rc<World>, number: usize) -> Rc<Self> {
        let name = format!("n{number}");
        Rc::new(Self {
            chance: RefCell::new(Chance::new(world.seed, &name)),
            world: Rc::clone(world),
            number,
            name,
            disk: RefCell::default(),
            process: RefCell::new(Process::started()),
            changed: RefCell::default(),
            runs: Cell::new(0),
        })
    }

    /// The daemon starts.
    pub(super) fn begin(self: &Rc<Self>) {
        *self.process.borrow_mut() = Process::started();
        *self.changed.borrow_mut() = Rc::default();
        self.runs.set(self.runs.get() + 1);
        let builds = Rc::new(Semaphore::new(BUILDS));
        let unfinished = self.disk.borrow().items.unfinished();
        unfinished.into_iter().for_each(|item| self.work(item, &builds));
        self.spawn(Rc::clone(self).reports(builds));
        self.spawn(Rc::clone(self).here());
    }

    /// As a part of the daemon.
    fn spawn(&self, work: impl Future<Output = ()> + 'static) {
        let process = self.process.borrow().clone();
        spawn_local(async move { process.run(work).await });
    }

    /// What it was at is gone, and what it has not written down.
    pub(super) async fn power_cut(self: &Rc<Self>, lasts: Duration) {
        self.process.borrow().set(Mode::Killed);
        if self.world.bug == Some(Bug::Unsynced) {
            let mut disk = self.disk.borrow_mut();
            if let Some((request, volume)) = disk.last.take() {
                disk.given.remove(&request);
                disk.ready.insert(volume.id.clone(), volume);
            }
        }
        sleep(lasts).await;
        self.begin();
    }

    /// The daemon stands still for a while.
    pub(super) async fn stops(&self, lasts: Duration) {
        let process = self.process.borrow().clone();
        process.set(Mode::Stopped);
        sleep(lasts).await;
        process.set(Mode::Runs);
    }

    /// How many are ready.
    pub(super) fn ready(&self) -> usize {
        let disk = self.disk.borrow();
        let claims = disk.items.unfinished();
        // What was built for a claim is about to be handed out.
        let for_claim = |id: &String| {
            claims.iter().any(|item| item.id == *id && matches!(item.goal, Goal::Claim { .. }))
        };
        disk.ready.keys().filter(|id| !for_claim(id)).count()
    }

    /// What it has handed out.
    pub(super) fn given(&self) -> Vec<Given> {
        let disk = self.disk.borrow();
        let one = |(request, volume): (&String, &String)| {
            let (request, volume, node) = (request.clone(), volume.clone(), self.name.clone());
            Given { request, node, volume }
        };
        disk.given.iter().map(one).collect()
    }

    /// What should not be there when all is quiet.
    pub(super) fn left(&self) -> Option<String> {
        let disk = self.disk.borrow();
        let open = disk.items.unfinished();
        if let Some(item) = open.first() {
            return Some(format!("{}: {item:?} is still to be done", self.name));
        }
        let leaked = disk.leaked.first()?;
        Some(format!("{}: volume {leaked} is nobody's", self.name))
    }

    fn drawn(&self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.chance.borrow_mut().within(range))
    }

    /// `agent::run`
    async fn reports(self: Rc<Self>, builds: Rc<Semaphore>) {
        let changed = Rc::clone(&self.changed.borrow());
        let (mut number, mut pause) = (0, Duration::from_millis(500));
        loop {
            number += 1;
            let (report, name) = (self.report(number), self.name.clone());
            let work = async move |placement: Arc<Coordinator>| {
                placement.report(&name, report, Duration::from_secs(5)).await
            };
            let told = tokio::select! {
                biased;
                told = self.world.grid.ask(Some(self.number), Duration::from_secs(8), work) => told,
                () = changed.notified() => continue,
            };
            if let Err(error) = &told {
                self.world.trace.note(format_args!("{}: {error}", self.name));
            }
            match told {
                Ok(told) => {
                    pause = Duration::from_millis(500);
                    let new = self.disk.borrow_mut().items.take(told.goal);
                    new.into_iter().for_each(|item| self.work(item, &builds));
                }
                Err(_) => {
                    sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(4));
                }
            }
        }
    }

    fn report(&self, number: u64) -> StatusReport {
        let disk = self.disk.borrow();
        let (generation, goal) = disk.items.version();
        let silent = self.world.bug == Some(Bug::Silent);
        let used = (disk.ready.len() + disk.given.len()) as u64 * SIZE;
        let cpu = Some(CpuStats { cores: CPUS as u32, ..CpuStats::default() });
        let stats = NodeStats { schema: SCHEMA, number, cpu, ..NodeStats::default() };
        StatusReport {
            run: format!("{:032x}", self.runs.get()),
            number,
            generation,
            goal,
            items: disk.items.statuses(),
            ready: disk.ready.values().filter(|_| !silent).cloned().collect(),
            disk: DiskRoom { size: ROOM, free: ROOM - used },
            stats: Some(Box::new(stats)),
            ..StatusReport::default()
        }
    }

    /// `agent::spawn`
    fn work(self: &Rc<Self>, item: GoalItem, builds: &Rc<Semaphore>) {
        let (node, builds) = (Rc::clone(self), Rc::clone(builds));
        self.spawn(async move {
            let done = node.one(&item, &builds).await;
            node.world.trace.note(format_args!("{}: {:?}: {done:?}", node.name, item.goal));
            node.disk.borrow_mut().items.end(&item.id, &done);
            node.changed.borrow().notify_one();
        });
    }

    /// `agent::one`
    async fn one(&self, item: &GoalItem, builds: &Semaphore) -> Result<Outcome> {
        match &item.goal {
            Goal::Build { pool, kind, .. } => {
                let _turn = builds.acquire().await.expect("never closed");
                if !self.disk.borrow().items.wants(&item.id) {
                    return Err(Error::new(Kind::Cancelled, "not wanted any more"));
                }
                self.disk.borrow_mut().items.begin(&item.id);
                self.build(&item.id, pool, kind).await;
                Ok(Outcome { volume: Some(item.id.clone()), built: true, took_millis: None })
            }
            Goal::Claim { request, pool, build, .. } => {
                sleep(self.drawn(1..40)).await;
                let claimed = match (self.claim(request), build) {
                    (None, Some(kind)) => {
                        self.disk.borrow_mut().items.begin(&item.id);
                        self.build(&item.id, pool, kind).await;
                        (self.claim(request), true)
                    }
                    (claimed, _) => (claimed, false),
                };
                // Between the two the power may go.
                sleep(self.drawn(1..40)).await;
                let (volume, built) = claimed;
                let volume = volume.ok_or_else(|| Error::new(Kind::Gone, "none is ready"))?;
                Ok(Outcome { volume: Some(volume), built, took_millis: None })
            }
            Goal::Discard { volume } => {
                sleep(self.drawn(10..500)).await;
                let mut disk = self.disk.borrow_mut();
                if disk.ready.remove(volume).is_some() && self.world.bug == Some(Bug::Leaks) {
                    disk.leaked.push(volume.clone());
                }
                Ok(Outcome::default())
            }
            Goal::Hold { .. } | Goal::Unknown => Err(Error::new(Kind::Unsupported, "not known")),
        }
    }

    /// `Ready::build`: what was built already is found by its id.
    async fn build(&self, id: &str, pool: &str, kind: &VolumeKind) {
        let again = self.world.bug == Some(Bug::BuildsAgain);
        let is_there = {
            let disk = self.disk.borrow();
            disk.ready.contains_key(id) || disk.given.values().any(|volume| volume == id)
        };
        if is_there && !again {
            return;
        }
        sleep(self.drawn(100..4000)).await;
        if !self.world.seen.borrow_mut().built.insert(id.to_owned()) {
            self.world.violated(format!("{}: volume {id} was built twice", self.name));
        }
        let (pool, kind) = (pool.to_owned(), kind.clone());
        let volume = ReadyVolume { id: id.to_owned(), pool, kind, state: "ready".into() };
        self.disk.borrow_mut().ready.insert(id.to_owned(), volume);
        self.world.trace.note(format_args!("{}: {id} is ready", self.name));
        // Before anybody writes down that it is done the power may go.
        sleep(self.drawn(1..600)).await;
    }

    /// `Ready::claim`: the same request again finds what it was given.
    fn claim(&self, request: &str) -> Option<String> {
        let mut disk = self.disk.borrow_mut();
        if let Some(given) = disk.given.get(request) {
            return Some(given.clone());
        }
        let (id, volume) = disk.ready.pop_first()?;
        disk.given.insert(request.to_owned(), id.clone());
        disk.last = Some((request.to_owned(), volume));
        self.world.trace.note(format_args!("{}: {id} is given to {request}", self.name));
        Some(id)
    }

    /// Somebody on the node takes what is ready there.
    async fn here(self: Rc<Self>) {
        let mut n = 0;
        loop {
            sleep(self.drawn(4000..30_000)).await;
            if self.world.trace.now().as_millis() >= u128::from(super::TROUBLED) {
                return;
            }
            n += 1;
            let request = format!("{HERE} {} {} {n} of {POOL}", self.name, self.runs.get());
            if self.claim(&request).is_some() {
                self.changed.borrow().notify_one();
            }
        }
    }
}
