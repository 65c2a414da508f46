//! A node: `node::pull` over `node::spread` over `stream::Client`s, into a file on a disk that fails;
//! stopped and started again, and begun anew as long as it does not succeed.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use blockio::fake::{FaultPlan, MemFs};
use blockio::{EngineChoice, EngineKind};
use image::{
    ChunkSink, ChunkSource, Digest, Kind, Manifest, Place, ReadContext, Result, SectionTable,
};
use node::pull::{Connect, PullOptions, Watch as Progress, pull_here};
use node::spread::{Dial, Spread};
use stream::{Client, ClientLimits, ClientOptions};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::papers::{authority, node_ip};
use super::socket::endpoint;
use super::{World, caches};
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
            let left = self.disk.borrow().cut_power(Chance::new(self.world.scenario.seed, &what).next());
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
                    if matches!(e.kind(), Kind::Denied | Kind::Gone | Kind::Invalid | Kind::Unsupported)
                    {
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
        let way = Way::new(self, image);
        let result = pull_here(way, image, PathBuf::from(PATH), options, progress.clone()).await;
        (result, progress.progress().repaired)
    }
}

/// How the cores of a pull reach the caches.
#[derive(Clone)]
struct Way {
    world: World,
    node: usize,
    tickets: Vec<String>,
    root: Digest,
    /// The image whose tables a node without sense believes.
    other: Digest,
    /// Names the endpoints.
    life: String,
    dials: Arc<AtomicU64>,
}

impl Way {
    fn new(host: &NodeHost, image: Digest) -> Self {
        let images = &host.world.corpus.images;
        let member = authority().node(host.number);
        // The second image is a version of the first; the third is on its own.
        let root = if image == images[2].image { image } else { images[0].image };
        let other = if image == images[0].image { images[1].image } else { images[0].image };
        let (start, begun) = (host.starts.get(), host.counts.get().0);
        Self {
            world: host.world.clone(),
            node: host.number,
            tickets: [image, other].map(|i| authority().ticket(member, i)).to_vec(),
            root,
            other,
            life: format!("node-{} start {start} pull {begun}", host.number),
            dials: Arc::default(),
        }
    }
}

impl Dial for Way {
    type Source = Client;

    async fn dial(&self, member: usize) -> Result<Client> {
        let (world, tuning) = (&self.world, self.world.tuning());
        let dial = self.dials.fetch_add(1, Ordering::Relaxed);
        let chance = Chance::new(world.scenario.seed, &format!("{} dial {dial}", self.life));
        let from = SocketAddr::new(node_ip(self.node), 0);
        let tls = Arc::clone(&authority().node(self.node).client);
        Client::connect(ClientOptions {
            endpoint: endpoint(&world.net, from, &tuning, None, chance)?,
            config: tuning.client(tls)?,
            servers: vec![caches::address(member)],
            server_name: authority().cache(member).name.clone(),
            tickets: self.tickets.clone(),
            limits: ClientLimits::default(),
        })
        .await
    }

    fn now(&self) -> Duration {
        self.world.trace.now()
    }
}

impl Connect for Way {
    type Source = Road;

    async fn connect(&self, _: usize) -> Result<Road> {
        let caches = 0..self.world.scenario.caches.len();
        let names = caches.map(|n| authority().cache(n).name.clone());
        let (world, other) = (self.world.clone(), self.other);
        Ok(Road { spread: Spread::new(self.clone(), self.root, names), world, other })
    }
}

/// The caches, and what a bug makes of them.
struct Road {
    spread: Spread<Way>,
    world: World,
    other: Digest,
}

impl ChunkSource for Road {
    async fn manifest(&self, ctx: &ReadContext, image: &Digest) -> Result<Arc<Manifest>> {
        self.spread.manifest(ctx, image).await
    }

    async fn section_table(
        &self,
        ctx: &ReadContext,
        image: &Digest,
        section: u32,
    ) -> Result<Arc<SectionTable>> {
        let image = if self.world.has(Bug::UncheckedTables) { &self.other } else { image };
        self.spread.section_table(ctx, image, section).await
    }

    async fn chunks<S: ChunkSink>(
        &self,
        ctx: &ReadContext,
        place: &Place,
        sink: &mut S,
    ) -> Result<()> {
        let mut place = place.clone();
        if self.world.has(Bug::UncheckedTables) {
            place.image = self.other;
        }
        match self.spread.chunks(ctx, &place, sink).await {
            Err(_) if self.world.has(Bug::WaitsForEver) => std::future::pending().await,
            answer => answer,
        }
    }
}
