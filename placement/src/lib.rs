//! Placement in its smallest form: the coordinator of a grid in one process.
//!
//! - [`ca`]: the grid's authority, made on first start: who is a member, and whose signatures count
//! - [`state`]: refs, join tokens, members, in redb or in etcd, behind one seam (`state::keys::Keys`)
//! - `refs`: moves of refs, in step with the log in the store, from which names can be rebuilt
//! - [`decide`]: choosing a node, by what is known of the fleet
//! - [`retention`]: which names may go, by rules over when their images were made
//! - `fleet`: what nodes have, what they are to do, pools of ready volumes
//! - [`people`]: tokens with roles, which need no certificate
//! - `audit`: who changed what, and who was refused
//! - `watches`: who is told what changes, as it happens
//! - `traces`: what guests of an image touch first, recorded by nodes and told to others
//! - [`archive`]: what placement needs of the store; implemented by who joins the two
//! - `http`: the routes of `api::catalog`, `api::grid`, `api::goal`, `api::pool`, `api::operation` and `api::care` over mutual TLS, with an OpenAPI document
//! - [`care`]: what a cache's own API needs of the cache; implemented by who joins the two
//! - [`client`]: the other end of those routes
//!
//! Placement is off the path of the chunks: it hands out tickets, and servers of chunks check them
//! without asking it.
//!
//! ```text
//! Authority::open → server_papers, admin_papers → Placement::serve(listener, Config { … }, archive, …)
//! ```

// So that the fakes of the integration tests serve inside too.
#[cfg(test)]
extern crate self as placement;

pub mod archive;
mod audit;
pub mod ca;
pub mod care;
mod catalog;
pub mod client;
pub mod clock;
pub mod decide;
mod files;
mod fleet;
mod http;
mod known;
pub mod member;
mod members;
mod names;
pub mod papers;
pub mod people;
mod refs;
pub mod retention;
pub mod shown;
pub mod state;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(test)]
mod tests;
pub mod tls;
mod tokens;
mod traces;
mod watches;

use std::future::Future;
use std::sync::Arc;

use api::grid::{CacheInfo, PlacementInfo, Role};
use image::error::At;
use image::{Error, Result};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use state::{State, StatePlace};

pub use archive::{Answer, Archive, ImageFacts, RefMove, Swept};
pub use ca::Authority;
pub use care::Care;
pub use client::{CareClient, Client};
pub use clock::{Clock, Uptime};
pub use http::Limits;
pub use member::Member;
pub use papers::Papers;
pub use people::{MAX_PERSON_SECS, PersonCode};
pub use shown::Shown;
pub use tokens::{JoinCode, MAX_LIFETIME_SECS};

/// What placement is to be.
#[derive(Clone)]
pub struct Config {
    /// The grid's authority.
    pub authority: Arc<Authority>,
    /// What placement shows of itself: [`Authority::server_papers`].
    pub shown: Arc<Shown>,
    /// Where the state is.
    pub state: StatePlace,
    /// The id of the store behind the archive. The grid keeps to the first one.
    pub store: String,
    /// Address (host and port) at which others find this placement; else the one that is listened on.
    pub address: Option<String>,
    /// Addresses of all placements over this state, this one too; none: there is no other.
    pub placements: Vec<String>,
    /// The servers of chunks.
    pub servers: Vec<CacheInfo>,
    /// The cache in this process, if there is one: its API is served beside placement's.
    pub care: Option<Arc<dyn Care>>,
    /// Seconds for which a node has its leases after it was heard of.
    pub lease_secs: u64,
    /// What holds wherever something is placed.
    pub policy: api::place::Policy,
    /// Levels of failure domains, the widest first.
    pub levels: Vec<String>,
    /// What peers may take.
    pub limits: Limits,
    /// Tells the time.
    pub clock: Clock,
}

/// The id of the store that a grid has, by its state; nothing if there is no state yet, or it
/// is an earlier version's. To be asked before the store is opened, so that none is made in its stead.
pub async fn known_store(state: &StatePlace, grid: &str) -> Result<Option<String>> {
    if !state.exists()? {
        return Ok(None);
    }
    State::open(state, grid).await?.store().await.at(|| state)
}

/// The coordinator.
pub struct Placement {
    app: http::App,
    tls: TlsAcceptor,
    care: Option<Arc<dyn Care>>,
}

impl Placement {
    /// Serves the HTTP API on `listener` until `shutdown` is done. Returns early only if it cannot
    /// begin.
    pub async fn serve(
        listener: TcpListener,
        config: Config,
        archive: Arc<dyn Archive>,
        shutdown: impl Future<Output = ()>,
    ) -> Result<()> {
        let local = listener.local_addr().map_err(|e| Error::io("the listener's address", e))?;
        let address = config.address.clone().unwrap_or_else(|| local.to_string());
        let placement = Self::open(config, address, archive).await?;
        tracing::info!(address = %local, "placement serves");
        let fleet = Arc::clone(&placement.app.fleet);
        let control = tokio::spawn(Arc::clone(&fleet).control());
        let catalog = Arc::clone(&placement.app.catalog);
        let announcing = {
            let catalog = Arc::clone(&catalog);
            tokio::spawn(async move { catalog.keep_announcing().await })
        };
        let (watches, audit) = (placement.app.watches.clone(), placement.app.audit.clone());
        let ends = tokio::sync::watch::Sender::new(false);
        let audit = tokio::spawn(audit.run(ends.subscribe()));
        let shutdown = async {
            shutdown.await;
            watches.close();
            fleet.close();
        };
        http::serve(listener, placement.server(), shutdown).await;
        fleet.end();
        // What was done last is in the log before this returns.
        ends.send_replace(true);
        let _ = audit.await;
        // What it holds of the state is given back before this returns.
        let _ = control.await;
        announcing.abort();
        let _ = announcing.await;
        if let Err(error) = catalog.leave_all().await {
            tracing::warn!(%error, "others try this server of chunks until it has lapsed");
        }
        Ok(())
    }

    fn server(self) -> http::Server {
        let limits = self.app.limits.clone();
        let grid = self.app.tokens.authority.grid().into();
        let keeper = self.app.keeper();
        let mut router = http::router(self.app);
        if let Some(care) = self.care {
            let knows = http::Knows::All(keeper);
            router = router.merge(http::care::router(care, limits.clone(), knows));
        }
        http::Server { grid, router, tls: self.tls, limits }
    }

    async fn open(config: Config, address: String, archive: Arc<dyn Archive>) -> Result<Self> {
        let Config {
            authority,
            shown,
            state,
            store,
            servers,
            placements,
            care,
            lease_secs,
            policy,
            levels,
            limits,
            clock,
            ..
        } = config;
        let own = shown.papers().member()?;
        let tls = tls::server(shown, tls::Clients::Optional, &[b"http/1.1"], &clock)?;
        let state = State::open(&state, authority.grid()).await?;
        state.adopt_store(&store).await?;
        // Nobody who joins may take the names that placement itself goes by.
        let ca_ends = clock.now() + ca::CA_SECS;
        state.reserve(&own.name, own.role, ca_ends).await?;
        state.reserve(ca::FIRST_ADMIN, Role::Admin, ca_ends).await?;
        let key = authority.signing_key().clone();
        let catalog =
            catalog::Catalog::open(state.clone(), archive, key, clock.clone(), servers).await?;
        catalog.announce().await?;
        let members = members::Members { state: state.clone(), clock: clock.clone() };
        // What a token names is tried in this order.
        let named = if placements.is_empty() { address.clone() } else { placements.join(",") };
        let people = people::People {
            state: state.clone(),
            clock: clock.clone(),
            authority: authority.clone(),
            address: named.as_str().into(),
        };
        let (audit, watches) =
            (audit::Audit::new(state.clone(), clock.clone()), watches::Watches::new(state.clone()));
        let tokens = tokens::Tokens {
            state: state.clone(),
            authority,
            clock: clock.clone(),
            address: named,
        };
        let (catalog, tokens) = (Arc::new(catalog), Arc::new(tokens));
        let me = PlacementInfo { name: own.name, address };
        let stats = fleet::Stats::new(levels)?;
        let terms = fleet::Terms { lease_secs, policy, me, stats };
        let fleet = fleet::Fleet::new(state.clone(), clock.clone(), Arc::clone(&catalog), terms);
        let store = store.into();
        let app =
            http::App { catalog, tokens, members, people, audit, watches, fleet, limits, store };
        Ok(Self { app, tls: TlsAcceptor::from(Arc::new(tls)), care })
    }
}
