//! How nodes reach the caches: what `forebay` hands to a pull, over the network of the run.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use api::grid::CacheInfo;
use image::{ChunkSink, ChunkSource, Digest, Manifest, Place, ReadContext, Result, SectionTable};
use node::pull::Connect;
use node::spread::{Dial, Health, Members, Spread};
use stream::{Client, ClientLimits, ClientOptions};

use super::papers::{authority, node_ip};
use super::socket::endpoint;
use super::{World, caches};
use crate::bugs::Bug;
use crate::chance::Chance;

/// The right to an image, and the way to its caches.
#[derive(Clone)]
pub struct Way {
    world: World,
    node: usize,
    core: usize,
    tickets: Vec<String>,
    root: Digest,
    /// The image whose tables a node without sense believes.
    other: Digest,
    /// Names the endpoints.
    whose: String,
    dials: Arc<AtomicU64>,
    members: Members,
    health: Arc<Health>,
}

impl Way {
    /// The way of a node to an image. `whose` says what is done there, and is said once in a run.
    pub fn new(world: &World, node: usize, image: Digest, whose: String) -> Self {
        let images = &world.corpus.images;
        let member = authority().node(node);
        // The second image is a version of the first; the third is on its own.
        let root = if image == images[2].image { image } else { images[0].image };
        let other = if image == images[0].image { images[1].image } else { images[0].image };
        let tickets = [image, other].map(|i| authority().ticket(member, i)).to_vec();
        let caches = (0..world.scenario.caches.len()).map(|n| caches::info(&world.scenario, n));
        let members = Members::fixed(caches.collect::<Vec<_>>());
        let (world, dials, health) = (world.clone(), Arc::default(), Arc::default());
        Self { world, node, core: 0, tickets, root, other, whose, dials, members, health }
    }

    /// What the pull knows of the caches; its cores know it together.
    pub fn health(&self) -> Arc<Health> {
        Arc::clone(&self.health)
    }
}

impl Dial for Way {
    type Source = Client;

    async fn dial(&self, cache: &CacheInfo) -> Result<Client> {
        let (world, tuning) = (&self.world, self.world.tuning());
        let dial = self.dials.fetch_add(1, Ordering::Relaxed);
        let what = format!("{} core {} dial {dial}", self.whose, self.core);
        let chance = Chance::new(world.scenario.seed, &what);
        let from = SocketAddr::new(node_ip(self.node), 0);
        let mut servers = cache.endpoints.clone();
        let first = self.core % servers.len();
        servers.rotate_left(first);
        Client::connect(ClientOptions {
            endpoint: endpoint(&world.net, from, &tuning, None, chance)?,
            config: tuning.client(Arc::clone(&authority().node(self.node).client))?,
            servers,
            server_name: cache.server_name.clone(),
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

    async fn connect(&self, core: usize) -> Result<Road> {
        let (world, other) = (self.world.clone(), self.other);
        let way = Self { core, dials: Arc::default(), ..self.clone() };
        let (members, health) = (self.members.clone(), Arc::clone(&self.health));
        Ok(Road { spread: Spread::new(way, self.root, members, health), world, other })
    }

    fn way(&self, road: &Road, section: u32) -> usize {
        road.spread.owner(section)
    }
}

/// The caches, and what a bug makes of them.
pub struct Road {
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
