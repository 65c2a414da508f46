//! A cache: `stream::serve` over `cache::Cache` over the line to the store, with its log on a disk that
//! fails; started, stopped, and started again.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::Duration;

use api::grid::CacheInfo;
use blockio::fake::{FaultOp, FaultPlan, MemFs};
use blockio::{Engine, EngineKind, EngineOptions, OpenMode};
use cache::{Budget, Cache, DiskBudget, DiskState, LogWriter, Options, Shared, Status};
use image::{Digest, Error, ReadContext, Result};
use stream::{Auth, NoSink, ServerLimits};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, LocalSet};
use tokio::time::sleep;

use super::World;
use super::door::Door;
use super::origin::Origin;
use super::papers::{START, authority, cache_ip};
use super::socket::endpoint;
use crate::bugs::Bug;
use crate::chance::Chance;
use crate::invariants::Life;
use crate::scenario::{CachePlan, Care, Scenario, Stop, What};

/// The port of the first core of every cache.
const PORT: u16 = 4433;
const DIR: &str = "/cache";
/// So often the log is written, and the account looked at.
const TICK: Duration = Duration::from_millis(10);
/// What a segment takes for a single frame besides that: header, entry and trailer.
const AROUND_FRAME: u64 = 64 + 48 + 64;
/// By then everything that is pinned must be there: a fetch may fail for two minutes before pins are
/// looked after again, a minute later, and a full disk is tried again after 30 s.
const TENDED: Duration = Duration::from_secs(300);

/// A cache and its disk.
pub struct CacheHost {
    world: World,
    number: usize,
    plan: CachePlan,
    /// The budget of its log now.
    log: Cell<Option<u64>>,
    disk: RefCell<MemFs>,
    /// What its disk refuses.
    faults: FaultPlan,
    starts: Cell<u32>,
    running: RefCell<Option<JoinHandle<()>>>,
    shared: RefCell<Weak<Shared>>,
    /// What people ask of it, while it runs.
    orders: RefCell<Option<mpsc::UnboundedSender<Care>>>,
    /// Images that were pinned, and the cache has said so.
    pinned: RefCell<BTreeSet<Digest>>,
    /// Whether its disk has failed, or bits have flipped there. What cannot be read at start, or looks
    /// foreign then, is left alone, and counts for nothing.
    damaged: Cell<bool>,
    /// Whether it was told to forget what it may be asked for again.
    evicted: Cell<bool>,
    /// What caches that have ended said at last.
    ended: RefCell<Vec<Status>>,
}

/// The addresses of a cache, one for each core.
pub fn addresses(scenario: &Scenario, number: usize) -> Vec<SocketAddr> {
    let ports = PORT..PORT + scenario.caches[number].cores as u16;
    ports.map(|port| SocketAddr::new(cache_ip(number), port)).collect()
}

/// A cache as placement tells nodes of it.
pub fn info(scenario: &Scenario, number: usize) -> CacheInfo {
    let name = authority().cache(number).name.clone();
    CacheInfo {
        server_name: name.clone(),
        name,
        endpoints: addresses(scenario, number),
        receives: false,
        api: None,
        weight: 1.0,
        draining: false,
    }
}

impl CacheHost {
    /// Cache number `number`, not yet started.
    pub fn new(world: &World, number: usize) -> Rc<Self> {
        Rc::new(Self {
            world: world.clone(),
            number,
            plan: world.scenario.caches[number].clone(),
            log: Cell::new(world.scenario.caches[number].disk),
            disk: RefCell::new(MemFs::new()),
            faults: FaultPlan::new(),
            starts: Cell::new(0),
            running: RefCell::new(None),
            shared: RefCell::new(Weak::new()),
            orders: RefCell::new(None),
            pinned: RefCell::default(),
            damaged: Cell::new(false),
            evicted: Cell::new(false),
            ended: RefCell::default(),
        })
    }

    /// Its life now, or the last one.
    pub fn life(&self) -> Life {
        Life { cache: self.number, start: self.starts.get() }
    }

    fn budget(&self) -> Budget {
        let dir = PathBuf::from(DIR);
        let disk = self.log.get().map(|bytes| DiskBudget { dir, bytes, reserve: 0 });
        Budget { memory: self.plan.memory, in_flight: self.plan.in_flight, disk }
    }

    fn options(&self) -> Options {
        let (trace, fs) = (self.world.trace.clone(), self.disk.borrow().fs());
        Options {
            clock: Arc::new(move || trace.now()),
            fs: self.faults.wrap_fs(&fs),
            free_space: Arc::new(|_| Ok(u64::MAX)),
            segment: self.segment(),
            scrub: self.plan.scrub,
            ..Options::default()
        }
    }

    fn segment(&self) -> Option<u64> {
        self.log.get().map(|bytes| (bytes / 8).min(512 << 10))
    }

    /// From the next start on its log may take `bytes`, if it has one.
    pub fn change_disk(&self, bytes: Option<u64>) {
        if self.running.borrow().is_none() {
            self.log.set(self.log.get().map(|was| bytes.unwrap_or(was)));
        }
    }

    /// The line of one core to the store.
    fn origin(&self, core: &str) -> Origin {
        let world = &self.world;
        let life = self.life();
        Origin {
            corpus: world.corpus,
            distance: world.scenario.distance,
            mood: world.mood.clone(),
            life,
            watch: world.watch.clone(),
            trace: world.trace.clone(),
            chance: RefCell::new(Chance::new(
                world.scenario.seed,
                &format!("store of {life} {core}"),
            )),
        }
    }

    /// Starts it, if it does not run.
    ///
    /// # Errors
    ///
    /// If the crates refuse what they are given: a mistake in the scenario.
    pub fn start(self: &Rc<Self>) -> Result<()> {
        if self.running.borrow().is_some() {
            return Ok(());
        }
        self.starts.set(self.starts.get() + 1);
        let (world, life) = (&self.world, self.life());
        let mut budget = self.budget();
        if world.has(Bug::Greedy) {
            budget.memory *= 64;
        }
        let (shared, writer) = Shared::open(budget, self.options())?;
        *self.shared.borrow_mut() = Arc::downgrade(&shared);
        world.trace.note(format_args!("{life} starts"));
        let cores = addresses(&world.scenario, self.number).into_iter();
        let cores = cores.map(|address| self.core(address, Arc::clone(&shared)));
        let serving = futures::future::join_all(cores.collect::<Result<Vec<_>>>()?);
        let writing = write(Rc::clone(self), writer);
        let (orders, ordered) = mpsc::unbounded_channel();
        *self.orders.borrow_mut() = Some(orders);
        let caring = care(Rc::clone(self), self.cache("care", shared)?, ordered);
        let running = async move {
            tokio::select! {
                biased;
                _ = serving => {}
                () = writing => {}
                () = caring => {}
            }
        };
        *self.running.borrow_mut() = Some(tokio::task::spawn_local(running));
        Ok(())
    }

    /// A core's handle.
    fn cache(&self, core: &str, shared: Arc<Shared>) -> Result<Cache<Origin>> {
        let engine = Engine::start(EngineOptions::kind(EngineKind::Portable));
        let engine = engine.map_err(|e| Error::io("starting file I/O", e))?;
        Ok(Cache::new(self.origin(core), shared, engine))
    }

    /// What serves on one address, as a core of `forebay cache` does.
    fn core(
        &self,
        address: SocketAddr,
        shared: Arc<Shared>,
    ) -> Result<impl Future<Output = ()> + use<>> {
        let (world, life) = (self.world.clone(), self.life());
        let (seed, tuning) = (world.scenario.seed, world.tuning());
        let config = tuning.server(Arc::clone(&authority().cache(self.number).server))?;
        let chance = Chance::new(seed, &format!("{life} {address}"));
        let endpoint = endpoint(&world.net, address, &tuning, Some(config), chance)?;
        let core = format!("core {}", address.port() - PORT);
        let trace = world.trace.clone();
        let clock = Arc::new(move || START + trace.now().as_secs());
        let auth = Auth { key: authority().verifying_key(), clock, revoked: None };
        let chance = Chance::new(seed, &format!("door of {life} {core}"));
        let cache = self.cache(&core, shared)?;
        let bare = self.origin(&format!("bare {core}"));
        let door = Door::new(cache, bare, world, life, chance);
        let limits = ServerLimits { per_peer: 512, ..ServerLimits::default() };
        let sinks = None::<fn(Digest) -> NoSink>;
        Ok(stream::serve(endpoint, door, sinks, auth, limits, std::future::pending()))
    }

    /// Stops it, if it runs, as `how` says.
    pub async fn stop(&self, how: Stop) {
        let Some(running) = self.running.borrow_mut().take() else { return };
        let life = self.life();
        self.look();
        self.look_at_files();
        self.world.trace.note(format_args!("{life} stops: {how:?}"));
        self.world.net.unplug(cache_ip(self.number));
        if let Some(shared) = self.shared.borrow().upgrade() {
            self.ended.borrow_mut().push(shared.status());
        }
        self.look_at_egress();
        self.evicted.set(false);
        running.abort();
        let _ = running.await;
        if how == Stop::PowerCut {
            let mut chance = Chance::new(self.world.scenario.seed, &format!("power cut {life}"));
            let left = self.disk.borrow().cut_power(chance.number());
            *self.disk.borrow_mut() = left;
        }
    }

    /// Compares its account with its budget.
    fn look(&self) {
        if let Some(status) = self.status() {
            self.world.watch.account(self.life(), &status, &self.budget());
        }
    }

    /// Compares its account of its files with the files.
    fn look_at_files(&self) {
        let Some(status) = self.status() else { return };
        if self.damaged.get() || !matches!(status.disk, DiskState::On | DiskState::Full(_)) {
            return;
        }
        let fs = self.disk.borrow().fs();
        let names = fs.list(DIR).unwrap_or_default().into_iter();
        let logs = names.filter(|name| name.to_string_lossy().starts_with("seg-"));
        let size = |name| fs.open(PathBuf::from(DIR).join(name), OpenMode::read())?.size();
        let found = logs.map(|name| size(name).unwrap_or(0)).sum();
        self.world.watch.files(self.life(), &status, found);
    }

    fn status(&self) -> Option<Status> {
        self.shared.borrow().upgrade().map(|shared| shared.status())
    }

    /// What it says of itself now, if it runs, and what it said at each end.
    pub fn statuses(&self) -> Vec<Status> {
        self.ended.borrow().iter().cloned().chain(self.status()).collect()
    }

    fn look_at_egress(&self) {
        if self.plan.roomy && !self.evicted.get() {
            self.world.watch.account_of_egress(self.life());
        }
    }

    /// Looks at it after the last pull, when what is tended to in the background has had time to end.
    pub async fn rest(&self) {
        for _ in 0..40 {
            if self.status().is_none_or(|s| s.flights == 0 && s.in_flight_bytes == 0) {
                break;
            }
            sleep(Duration::from_millis(250)).await;
        }
        let Some(shared) = self.shared.borrow().upgrade() else { return };
        self.look();
        self.look_at_files();
        self.look_at_egress();
        self.world.watch.at_rest(self.life(), &shared.status());
        self.look_at_pins(&shared).await;
    }

    /// Looks whether what was pinned is, and is all there.
    async fn look_at_pins(&self, shared: &Arc<Shared>) {
        let cache = self.cache("rest", Arc::clone(shared)).expect("a portable engine starts");
        let pinned = self.pinned.borrow().clone();
        for image in &pinned {
            match shared.is_pinned(image) {
                true if self.can_keep(&shared.status()) => self.wait_for_pin(&cache, image).await,
                true => {}
                false if self.damaged.get() => {}
                false => self.world.watch.unpinned(self.life(), image),
            }
        }
    }

    /// Whether its disk can hold what is pinned: it was not given up, the pins are within their limit,
    /// and no frame is longer than a segment.
    fn can_keep(&self, status: &Status) -> bool {
        let off = self.damaged.get() && matches!(status.disk, DiskState::Off(_));
        let longest = self.world.corpus.images.iter().map(|truth| truth.longest_frame());
        let longest = longest.max().unwrap_or(0);
        let fits = self.segment().is_some_and(|segment| longest + AROUND_FRAME <= segment);
        !off && fits && status.pinned_bytes <= status.pin_limit
    }

    async fn wait_for_pin(&self, cache: &Cache<Origin>, image: &Digest) {
        let until = self.world.trace.now() + TENDED;
        loop {
            let held = cache.held(&ReadContext::default(), image).await;
            let here = held.map(|held| (held.all.disk_chunks, held.all.chunks));
            let state = cache.shared().status().disk;
            if state == DiskState::On && here.as_ref().is_ok_and(|(here, all)| here == all) {
                return;
            }
            if self.world.trace.now() > until {
                let how = format!("{here:?} chunks on disk, which is {state}");
                return self.world.watch.not_kept(self.life(), image, &how);
            }
            sleep(Duration::from_secs(1)).await;
        }
    }

    /// Somebody asks something of it, if it runs.
    pub fn ask(&self, order: Care) {
        if let Some(orders) = &*self.orders.borrow() {
            // It may have stopped since.
            let _ = orders.send(order);
        }
    }

    /// Its disk has room for so many more bytes, or for all again.
    pub fn fill_disk(&self, room: Option<u64>) {
        self.damaged.set(true);
        self.faults.limit_bytes(room);
    }

    /// Turns some bits of its log over.
    ///
    /// # Errors
    ///
    /// None: there is nothing below a disk in memory that could fail.
    pub fn rot(&self, bits: u64) -> std::io::Result<()> {
        self.damaged.set(true);
        let fs = self.disk.borrow().fs();
        let now = self.world.trace.now();
        let what = format!("rot of cache-{} at {now:?}", self.number);
        let mut chance = Chance::new(self.world.scenario.seed, &what);
        let names = fs.list(DIR).unwrap_or_default();
        let logs: Vec<_> = names.iter().filter(|name| *name != "lock").collect();
        for _ in 0..if logs.is_empty() { 0 } else { bits } {
            let file = fs.open(PathBuf::from(DIR).join(chance.pick(&logs)), OpenMode::write())?;
            let at = chance.within(0..file.size()?.max(1));
            let mut byte = [0];
            file.read_at(&mut byte, at)?;
            byte[0] ^= 1 << chance.within(0..8);
            file.write_all_at(&byte, at)?;
        }
        Ok(())
    }

    /// Makes some of its disk's next operations fail.
    pub fn fail_disk(&self, operations: u64, fault: blockio::fake::Fault) {
        self.damaged.set(true);
        for n in 1..=operations {
            self.faults.fail(FaultOp::Read, 2 * n, fault);
            self.faults.fail(FaultOp::Write, 3 * n, fault);
        }
    }
}

/// Writes the log, as its thread would, and looks at the account.
async fn write(host: Rc<CacheHost>, mut writer: Option<LogWriter>) {
    loop {
        sleep(TICK).await;
        if let Some(writer) = &mut writer {
            writer.run_pending();
        }
        host.look();
    }
}

/// Does what people ask, one after the other, and what pins need, as one core of a server does.
async fn care(
    host: Rc<CacheHost>,
    cache: Cache<Origin>,
    mut orders: mpsc::UnboundedReceiver<Care>,
) {
    let ctx = ReadContext::default();
    let obey = async {
        while let Some(order) = orders.recv().await {
            let image = host.world.corpus.images[order.image].image;
            let done = match order.what {
                What::Warm => cache.warm(&ctx, &image, |_| {}).await.map(drop),
                What::Evict => {
                    host.evicted.set(true);
                    cache.evict(&ctx, &image).await.map(drop)
                }
                What::Pin => {
                    let pinned = cache.pin(&ctx, &image, |_| {}).await;
                    pinned.map(|_| _ = host.pinned.borrow_mut().insert(image))
                }
                What::Unpin => {
                    // From now on it may be gone; it need not be.
                    host.pinned.borrow_mut().remove(&image);
                    cache.shared().unpin(&image).await.map(drop)
                }
            };
            let (life, said) = (host.life(), done.map_err(|e| e.kind().name()));
            host.world.trace.note(format_args!("{life}: {order:?}: {said:?}"));
        }
    };
    let tend = async {
        if !host.world.has(Bug::Untended) {
            cache.tend(&ctx).await;
        }
    };
    let both = async { tokio::join!(biased; tend, obey) };
    // What is fetched for them ends with them.
    LocalSet::new().run_until(both).await;
    std::future::pending().await
}
