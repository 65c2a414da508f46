//! A node: `node::pull` over `node::spread` over `stream::Client`s, into a file on a disk that fails;
//! stopped and started again, and begun anew as long as it does not succeed.

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use blockio::fake::{FaultPlan, MemFs};
use blockio::{EngineChoice, EngineKind};
use image::{Kind, Result};
use node::pull::{PullOptions, Watch as Progress, pull_here};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::World;
use super::papers::node_ip;
use super::ways::Way;
use crate::bugs::Bug;
use crate::chance::Chance;
use crate::corpus::Truth;
use crate::invariants::Invariant;
use crate::scenario::{NodePlan, Stop};

const PATH: &str = "/disk.raw";
/// Bytes for plain chunks of one pull.
const MEMORY: usize = 2 << 20;
/// Before a pull that failed is begun again.
const PAUSE: Duration = Duration::from_secs(1);

/// A node and its disk.
pub struct NodeHost {
    world: World,
    number: usize,
    plan: NodePlan,
    truths: Vec<Arc<Truth>>,
    disk: RefCell<MemFs>,
    /// What its disk refuses.
    pub faults: FaultPlan,
    starts: Cell<u32>,
    running: RefCell<Option<JoinHandle<()>>>,
    /// Pulls that are done.
    done: Cell<usize>,
    /// Whether the next one has begun.
    begun: Cell<bool>,
    /// Pulls that were begun, and chunks that came wrong.
    counts: Cell<(u64, u64)>,
    /// Requests that were asked of two caches.
    hedges: Cell<u64>,
}

impl NodeHost {
    /// Node number `number`, not yet started.
    pub fn new(world: &World, number: usize) -> Rc<Self> {
        let plan = world.scenario.nodes[number].clone();
        let truths = plan.pulls.iter().map(|image| Arc::clone(&world.corpus.images[*image]));
        let truths = truths.collect();
        Rc::new(Self {
            world: world.clone(),
            number,
            plan,
            truths,
            disk: RefCell::new(MemFs::new()),
            faults: FaultPlan::new(),
            starts: Cell::new(0),
            running: RefCell::new(None),
            done: Cell::new(0),
            begun: Cell::new(false),
            counts: Cell::default(),
            hedges: Cell::new(0),
        })
    }

    /// Whether all its pulls are done.
    pub fn is_done(&self) -> bool {
        self.done.get() == self.plan.pulls.len()
    }

    /// How many pulls were begun, and how many chunks came wrong.
    pub fn counts(&self) -> (u64, u64) {
        self.counts.get()
    }

    /// How many requests were asked of two caches.
    pub fn hedges(&self) -> u64 {
        self.hedges.get()
    }

    /// Starts it, if it does not run.
    pub fn start(self: &Rc<Self>) {
        if self.running.borrow().is_some() {
            return;
        }
        self.starts.set(self.starts.get() + 1);
        *self.running.borrow_mut() = Some(tokio::task::spawn_local(Rc::clone(self).run()));
    }

    /// Stops it, if it runs, as `how` says, and looks at what is left.
    pub async fn stop(&self, how: Stop) {
        let Some(running) = self.running.borrow_mut().take() else { return };
        self.world.trace.note(format_args!("node-{} stops: {how:?}", self.number));
        self.world.net.unplug(node_ip(self.number));
        running.abort();
        let _ = running.await;
        self.look_at_writes();
        if how == Stop::PowerCut {
            let what = format!("power cut node-{} {}", self.number, self.starts.get());
            let left =
                self.disk.borrow().cut_power(Chance::new(self.world.scenario.seed, &what).number());
            *self.disk.borrow_mut() = left;
        }
        self.look_at_names();
    }

    /// Looks at it after the last pull.
    pub fn rest(&self) {
        self.look_at_writes();
        self.look_at_names();
    }

    fn look_at_writes(&self) {
        let disk = self.disk.borrow();
        let first = self.done.get().min(self.truths.len() - 1);
        self.world.watch.written(self.number, &disk.log(), &self.truths, first);
    }

    fn look_at_names(&self) {
        let done = self.done.get();
        // A pull that has begun over the earlier image may have taken its name away.
        let last = (done > 0 && !self.begun.get()).then(|| done - 1);
        let may = &self.truths[..(done + 1).min(self.truths.len())];
        self.world.watch.named(self.number, &self.disk.borrow(), Path::new(PATH), may, last);
    }

    async fn run(self: Rc<Self>) {
        self.world.trace.until(self.plan.at).await;
        while !self.is_done() {
            let pull = self.done.get();
            self.begun.set(true);
            let (result, wrong) = self.pull(pull).await;
            let (begun, all_wrong) = self.counts.get();
            self.counts.set((begun + 1, all_wrong + wrong));
            let end = result.as_ref().map_err(|e| e.kind().name());
            self.world.trace.note(format_args!("node-{} pull {pull}: {end:?}", self.number));
            match result {
                Ok(()) => {
                    self.done.set(pull + 1);
                    self.begun.set(false);
                    self.look_at_names();
                }
                Err(e) => {
                    // Nothing here is forbidden, missing or wrong: such an answer is a bug.
                    if matches!(
                        e.kind(),
                        Kind::Denied | Kind::Gone | Kind::Invalid | Kind::Unsupported
                    ) {
                        let what = format!("node-{} pull {pull} ended: {e:?}", self.number);
                        self.world.watch.violated(Invariant::Finished, what);
                    }
                    sleep(PAUSE).await;
                }
            }
        }
    }

    async fn pull(&self, pull: usize) -> (Result<()>, u64) {
        let (disk, image) = (self.disk.borrow().clone(), self.truths[pull].image);
        disk.mark(pull.to_string());
        let options = PullOptions {
            cores: self.plan.cores,
            memory: MEMORY,
            engine: EngineChoice::Just(EngineKind::Portable),
            sync: self.plan.sync && !self.world.has(Bug::UnsyncedFinish),
            fs: Some(self.faults.wrap_fs(&disk.fs())),
            ..PullOptions::default()
        };
        let progress = Arc::new(Progress::default());
        let (start, begun) = (self.starts.get(), self.counts.get().0);
        let whose = format!("node-{} start {start} pull {begun}", self.number);
        let way = Way::new(&self.world, self.number, image, whose);
        let health = way.health();
        let result = pull_here(way, image, PathBuf::from(PATH), options, progress.clone()).await;
        let (requests, hedges) = (health.counts().requests, health.counts().hedges);
        self.hedges.set(self.hedges.get() + hedges);
        self.world
            .trace
            .note(format_args!("node-{} asked {requests}, {hedges} twice", self.number));
        (result, progress.progress().repaired)
    }
}
