//! A node: its daemon, whose leases are the shipped ones, its watchdog, and the guests that write.
//!
//! The daemon does what `node::pools::agent` and `node::volumes::gate` do: each step of theirs that is about leases, in
//! their order. A guest writes through the daemon, and stands still with it, or the plain file past it, until it is
//! killed.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use api::goal::{StatusReport, Told};
use api::lease::{HeldLease, TakeLease};
use image::{Error, Kind, Result};
use node::leases::Leases;
use placement::testing::Coordinator;
use tempfile::TempDir;
use tokio::task::spawn_local;
use tokio::time::sleep;

use super::{Bug, VOLUMES, World, id};
use crate::chance::Chance;
use crate::grid::{Mode, Process, pace};
use crate::history::is_not_done;
use crate::history::lease::{Answered, Asked};
use crate::history::writes::Write;

/// How often a guest writes.
const WRITES: Duration = Duration::from_millis(20);
/// How often a watchdog looks; so much earlier a lease is over for it (`node::leases::watchdog`).
const TICK: Duration = Duration::from_millis(250);
/// How often the daemon looks whether its leases are over.
const LOOK: Duration = Duration::from_millis(200);
/// How often a lease is asked for again.
const AGAIN: Duration = Duration::from_secs(2);

thread_local! {
    /// What the clock of the node shows whose leases are asked next.
    static SHOWS: Cell<u64> = const { Cell::new(0) };
}

fn boottime() -> u64 {
    SHOWS.get()
}

/// The number of a node, by its name.
pub(super) fn number(name: &str) -> Option<u8> {
    name.strip_prefix('n')?.parse().ok()
}

/// See the [module](self).
pub(super) struct Node {
    world: Rc<World>,
    number: usize,
    name: String,
    dir: TempDir,
    /// How many milliseconds its clock counts in a million, and what it shows at first.
    pace: (u64, u64),
    daemon: RefCell<Daemon>,
    /// Volumes that are attached, and whether their guests use the plain file.
    kept: RefCell<BTreeMap<usize, bool>>,
    /// Those that are written, and what ends their writers.
    writers: RefCell<BTreeMap<usize, Process>>,
    runs: Cell<u64>,
    /// Who asks for the lease of a volume.
    entering: [tokio::sync::Mutex<()>; VOLUMES],
    chance: RefCell<Chance>,
}

#[derive(Clone)]
struct Daemon {
    process: Process,
    leases: Rc<Leases>,
}

/// What is read of what the daemon writes down.
#[derive(serde::Deserialize)]
struct WrittenDown {
    until: u64,
    leases: BTreeMap<String, serde::de::IgnoredAny>,
}

impl Node {
    pub(super) fn new(world: &Rc<World>, number: usize) -> Rc<Self> {
        let name = format!("n{number}");
        let mut chance = Chance::new(world.seed, &name);
        let slow = world.bug == Some(Bug::Slow) && number == 0;
        let pace = (if slow { 100_000 } else { pace(&mut chance) }, chance.within(0..1_000_000));
        // In memory where there is such a thing: it is synced often.
        let memory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        let dir = memory.expect("a directory");
        let daemon = Daemon { process: Process::started(), leases: load(&dir) };
        Rc::new(Self {
            world: Rc::clone(world),
            number,
            name,
            dir,
            pace,
            daemon: RefCell::new(daemon),
            kept: RefCell::default(),
            writers: RefCell::default(),
            runs: Cell::new(0),
            chance: RefCell::new(chance),
            entering: Default::default(),
        })
    }

    /// Starts its daemon and its watchdog.
    pub(super) fn start(self: &Rc<Self>) {
        let node = Rc::clone(self);
        spawn_local(async move {
            loop {
                sleep(TICK).await;
                node.watch();
            }
        });
        self.begin();
    }

    fn begin(self: &Rc<Self>) {
        let daemon = Daemon { process: Process::started(), leases: load(&self.dir) };
        *self.daemon.borrow_mut() = daemon;
        self.runs.set(self.runs.get() + 1);
        for volume in self.kept.borrow().keys() {
            let goes_on =
                self.writers.borrow().contains_key(volume) && self.leases().has(&id(*volume));
            if !goes_on {
                self.end(*volume);
                self.serve_when_let(*volume);
            }
        }
        self.spawn(Rc::clone(self).reports());
        self.spawn(Rc::clone(self).uses());
    }

    /// As a part of the daemon.
    fn spawn(&self, work: impl Future<Output = ()> + 'static) {
        let process = self.daemon.borrow().process.clone();
        spawn_local(async move { process.run(work).await });
    }

    fn shows(&self) -> u64 {
        let (pace, first) = self.pace;
        first + self.world.trace.now().as_millis() as u64 * pace / 1_000_000
    }

    /// To be asked at once: the clock that they read is this node's for now.
    fn leases(&self) -> Rc<Leases> {
        SHOWS.set(self.shows());
        Rc::clone(&self.daemon.borrow().leases)
    }

    fn drawn(&self, range: std::ops::Range<u64>) -> u64 {
        self.chance.borrow_mut().within(range)
    }

    /// The daemon is killed, and started again; so are guests that it serves.
    pub(super) async fn dies(self: &Rc<Self>, lasts: Duration) {
        let process = self.daemon.borrow().process.clone();
        if process.mode() == Mode::Killed {
            return;
        }
        process.set(Mode::Killed);
        let kept = self.kept.borrow().clone();
        kept.iter().filter(|(_, moved)| !**moved).for_each(|(volume, _)| self.end(*volume));
        sleep(lasts).await;
        self.begin();
    }

    /// The daemon stands still for a while.
    pub(super) async fn stops(&self, lasts: Duration) {
        let process = self.daemon.borrow().process.clone();
        process.set(Mode::Stopped);
        sleep(lasts).await;
        process.set(Mode::Runs);
    }

    /// What the watchdog does: whoever writes without a lease is killed.
    fn watch(self: &Rc<Self>) {
        let Ok(text) = std::fs::read(self.dir.path().join("leases.json")) else { return };
        let down: WrittenDown = serde_json::from_slice(&text).expect("the daemon wrote it");
        if self.shows() + (TICK.as_millis() as u64) < down.until {
            return;
        }
        for volume in (0..VOLUMES).filter(|volume| down.leases.contains_key(&id(*volume))) {
            if !self.writers.borrow().contains_key(&volume) {
                continue;
            }
            self.world.written.borrow_mut().killed += 1;
            self.world.trace.note(format_args!("{}: the writer of {volume} is killed", self.name));
            if self.kept.borrow().get(&volume) == Some(&true) {
                self.end(volume);
            } else {
                let (node, lasts) = (Rc::clone(self), self.drawn(500..5000));
                spawn_local(async move { node.dies(Duration::from_millis(lasts)).await });
                self.daemon.borrow().process.set(Mode::Stopped);
                self.end(volume);
            }
        }
    }

    /// A guest writes, from now on.
    fn write(self: &Rc<Self>, volume: usize) {
        let Some(epoch) = self.leases().epoch(&id(volume)) else { return };
        if self.writers.borrow().contains_key(&volume) {
            return;
        }
        let moved = self.kept.borrow().get(&volume) == Some(&true);
        let guest = Process::started();
        self.writers.borrow_mut().insert(volume, guest.clone());
        let (world, node, daemon) =
            (Rc::clone(&self.world), self.name.clone(), self.daemon.borrow().process.clone());
        world.trace.note(format_args!("{node} writes {volume} with epoch {epoch}, moved: {moved}"));
        let writes = async move {
            loop {
                let at = world.trace.now().as_millis() as u64;
                let write = Write { at, volume: id(volume), node: node.clone(), epoch };
                world.written.borrow_mut().writes.push(write);
                sleep(WRITES).await;
            }
        };
        spawn_local(async move {
            match moved {
                true => drop(guest.run(writes).await),
                false => drop(daemon.run(guest.run(writes)).await),
            }
        });
    }

    fn end(&self, volume: usize) {
        if let Some(guest) = self.writers.borrow_mut().remove(&volume) {
            guest.set(Mode::Killed);
        }
    }

    /// Users attach and detach.
    async fn uses(self: Rc<Self>) {
        loop {
            sleep(Duration::from_millis(self.drawn(300..4000))).await;
            let volume = self.drawn(0..VOLUMES as u64) as usize;
            let attached = self.kept.borrow().contains_key(&volume);
            if !attached {
                if self.enter(volume).await.is_ok() {
                    let moved = self.drawn(0..3) == 0;
                    self.kept.borrow_mut().insert(volume, moved);
                    self.write(volume);
                }
            } else if self.drawn(0..2) == 0 {
                self.end(volume);
                self.kept.borrow_mut().remove(&volume);
                self.leases().release(&id(volume)).expect("a directory");
            }
        }
    }

    /// `gate::enter`, by one at a time.
    async fn enter(&self, volume: usize) -> Result<()> {
        let of = id(volume);
        let _one = self.entering[volume].lock().await;
        if self.leases().has(&of) {
            return Ok(());
        }
        let (asked, before) = (self.shows(), self.leases().epoch(&of));
        let grant = self.take(volume, before).await?;
        let epoch = grant.epoch;
        self.leases().given(&of, of.clone().into(), grant, asked)?;
        if before.is_some_and(|before| before != epoch) {
            self.leases().release(&of)?;
            return Err(Error::new(Kind::Conflict, "another node has had it in between"));
        }
        for _ in 0..100 {
            if self.leases().has(&of) {
                return Ok(());
            }
            sleep(Duration::from_millis(50)).await;
        }
        Err(Error::new(Kind::Retry, "its lease waits until placement has answered a report"))
    }

    async fn take(&self, volume: usize, epoch: Option<u64>) -> Result<api::lease::LeaseGrant> {
        let node = self.number as u8;
        let asked = self.world.histories[volume].called(Asked::Take { node, epoch });
        let take = TakeLease { holder: self.name.clone(), called: "v".into(), epoch, run: None };
        let work =
            async move |placement: Arc<Coordinator>| placement.take_lease(&id(volume), &take).await;
        let given = self.world.grid.ask(Some(self.number), Duration::from_secs(8), work).await;
        match &given {
            Ok(grant) => asked.answered(Answered::Granted(grant.epoch)),
            Err(error) if error.kind() == Kind::Conflict => {
                let words = error.message().split([' ', ';']);
                asked.answered(Answered::Refused(words.into_iter().find_map(number)));
            }
            Err(error) if is_not_done(error) => asked.not_done(),
            // It may be done all the same.
            Err(_) => drop(asked),
        }
        self.world.trace.note(format_args!("{} takes {volume} of {epoch:?}: {given:?}", self.name));
        given
    }

    /// `gate::serve_when_let`
    fn serve_when_let(self: &Rc<Self>, volume: usize) {
        let node = Rc::clone(self);
        self.spawn(async move {
            while node.kept.borrow().contains_key(&volume) {
                if node.writers.borrow().contains_key(&volume) {
                    return;
                }
                if node.enter(volume).await.is_ok() {
                    let served = node.writers.borrow().contains_key(&volume);
                    if !served && node.kept.borrow().contains_key(&volume) {
                        node.write(volume);
                    }
                    return;
                }
                sleep(AGAIN).await;
            }
        });
    }

    /// `gate::fence_all`
    fn fence_all(self: &Rc<Self>) {
        let written: Vec<usize> = self.writers.borrow().keys().copied().collect();
        for volume in written {
            self.end(volume);
            self.serve_when_let(volume);
        }
    }

    async fn leases_are_over(&self) {
        while self.leases().left().is_none_or(|left| !left.is_zero())
            || self.writers.borrow().is_empty()
        {
            sleep(LOOK).await;
        }
    }

    /// `agent::run`
    async fn reports(self: Rc<Self>) {
        let (mut number, mut pause) = (0, Duration::from_millis(500));
        loop {
            number += 1;
            let (asked, sent) = (self.report(number), self.shows());
            let wait = Duration::from_secs(10).min(self.leases().patience());
            let changed = Rc::clone(&self.daemon.borrow().leases);
            let told = tokio::select! {
                biased;
                told = self.tell(asked.clone(), wait) => told,
                () = changed.changed() => continue,
                () = self.leases_are_over() => {
                    self.fence_all();
                    continue;
                }
            };
            match told {
                Ok(told) => {
                    self.is_told(&told, sent, &asked);
                    pause = Duration::from_millis(500);
                }
                Err(_) => {
                    tokio::select! {
                        biased;
                        () = sleep(pause) => {}
                        () = changed.changed() => {}
                        () = self.leases_are_over() => self.fence_all(),
                    }
                    pause = (pause * 2).min(Duration::from_secs(15));
                }
            }
        }
    }

    fn report(&self, number: u64) -> StatusReport {
        let (leases, released) = self.leases().told();
        StatusReport {
            run: format!("{:032x}", self.runs.get()),
            number,
            leases,
            released,
            ..StatusReport::default()
        }
    }

    async fn tell(&self, report: StatusReport, wait: Duration) -> Result<Told> {
        let node = self.number as u8;
        let of = |lease: &HeldLease| (0..VOLUMES).find(|volume| id(*volume) == lease.volume);
        let released = report.released.iter().filter_map(|lease| {
            let asked = Asked::Release { node, epoch: lease.epoch };
            Some(self.world.histories[of(lease)?].called(asked))
        });
        let released: Vec<_> = released.collect();
        let name = self.name.clone();
        let work =
            async move |placement: Arc<Coordinator>| placement.report(&name, report, wait).await;
        let patience = wait + Duration::from_secs(3);
        let told = self.world.grid.ask(Some(self.number), patience, work).await?;
        released.into_iter().for_each(|asked| asked.answered(Answered::Heard));
        Ok(told)
    }

    /// `agent::take`
    fn is_told(&self, told: &Told, sent: u64, asked: &StatusReport) {
        for lease in asked.leases.iter().filter(|lease| told.lost.contains(&lease.volume)) {
            let volume = (0..VOLUMES).find(|volume| id(*volume) == lease.volume);
            if let Some(volume) = volume
                && self.leases().epoch(&lease.volume) == Some(lease.epoch)
            {
                self.world.trace.note(format_args!("{} has lost {volume}", self.name));
                self.end(volume);
                self.kept.borrow_mut().remove(&volume);
                self.leases().release(&lease.volume).expect("a directory");
            }
        }
        let answered = self.leases().answered(sent, told.lease_secs, &asked.released);
        answered.expect("a directory");
    }
}

fn load(dir: &TempDir) -> Rc<Leases> {
    Rc::new(Leases::load(dir.path().into(), boottime).expect("a directory"))
}
