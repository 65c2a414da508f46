//! How a client's cores reach the servers of the grid: pulls spread over the caches, a push goes to a
//! receiver.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::catalog::{TicketAnswer, TicketRequest};
use api::grid::CacheInfo;
use image::{Digest, Error, Kind, Result};
use node::spread::{Dial, Spread};
use stream::transport::Tuning;
use stream::{Client, ClientLimits, ClientOptions};

use crate::grid::{Grid, TlsClient};

/// Servers, and the ticket that they take.
#[derive(Clone)]
struct Servers {
    servers: Arc<[CacheInfo]>,
    ticket: String,
    tls: Arc<TlsClient>,
}

impl Servers {
    fn new(answer: TicketAnswer, tls: Arc<TlsClient>) -> Result<Self> {
        if answer.servers.is_empty() {
            let why = "placement knows no server of chunks; is `forebay up` running?";
            return Err(Error::new(Kind::Retry, why));
        }
        Ok(Self { servers: answer.servers.into(), ticket: answer.ticket, tls })
    }

    /// Connects core number `core` to a server, on the runtime of that core. Cores start at different
    /// endpoints, and go on to the others if theirs does not answer.
    async fn connect(&self, server: &CacheInfo, core: usize) -> Result<Client> {
        let mut servers = server.endpoints.clone();
        if !servers.is_empty() {
            let first = core % servers.len();
            servers.rotate_left(first);
        }
        let from = match servers.first() {
            Some(SocketAddr::V6(_)) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            _ => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        };
        let tuning = Tuning::default();
        Client::connect(ClientOptions {
            endpoint: tuning.client_endpoint(SocketAddr::new(from, 0))?,
            config: tuning.client(Arc::clone(&self.tls))?,
            servers,
            server_name: server.server_name.clone(),
            tickets: vec![self.ticket.clone()],
            limits: ClientLimits::default(),
        })
        .await
    }
}

/// The right to push an image, and a receiver to push it to.
pub async fn to_push(grid: &Grid, parent: Option<&str>) -> Result<(Option<Digest>, Client)> {
    let asked = TicketRequest::Push { domain: 0, parent: parent.map(str::to_owned) };
    let answer = grid.placement.ticket(&asked).await?;
    let parent = answer.image;
    let receivers = Servers::new(answer, grid.tls()?)?;
    let mut last = Error::new(Kind::Retry, "no receiver answers");
    for server in receivers.servers.iter() {
        match receivers.connect(server, 0).await {
            Ok(client) => return Ok((parent, client)),
            Err(e) if matches!(e.kind(), Kind::Retry | Kind::Busy(_)) => {
                last = e.at(format!("server {}", server.name));
            }
            Err(e) => return Err(e.at(format!("server {}", server.name))),
        }
    }
    Err(last)
}

/// Gives each core of a pull its way to the caches.
pub struct Connector {
    caches: Servers,
    root: Digest,
}

impl Connector {
    /// The right to pull an image, and the way to its caches.
    pub async fn to_pull(grid: &Grid, name: &str) -> Result<(Digest, Self)> {
        let asked = TicketRequest::Pull { image: name.to_owned() };
        let answer = grid.placement.ticket(&asked).await?;
        let image = answer.image.ok_or_else(|| {
            Error::new(Kind::Invalid, format!("{name}: placement names no image for the ticket"))
        })?;
        let root = answer.root.unwrap_or(image);
        Ok((image, Self { caches: Servers::new(answer, grid.tls()?)?, root }))
    }
}

/// One core's way to the caches.
pub struct CoreDial {
    caches: Servers,
    core: usize,
    since: Instant,
}

impl Dial for CoreDial {
    type Source = Client;

    async fn dial(&self, member: usize) -> Result<Client> {
        self.caches.connect(&self.caches.servers[member], self.core).await
    }

    #[expect(clippy::disallowed_methods, reason = "the clock of the spreading over caches")]
    fn now(&self) -> Duration {
        self.since.elapsed()
    }
}

impl node::pull::Connect for Connector {
    type Source = Spread<CoreDial>;

    async fn connect(&self, core: usize) -> Result<Spread<CoreDial>> {
        #[expect(clippy::disallowed_methods, reason = "caches rest in real time")]
        let since = Instant::now();
        let dial = CoreDial { caches: self.caches.clone(), core, since };
        let names = self.caches.servers.iter().map(|s| s.name.clone());
        Ok(Spread::new(dial, self.root, names))
    }
}
