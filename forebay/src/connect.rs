//! How a client's cores reach the servers of the grid: pulls spread over the caches, a push goes to a
//! receiver.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::catalog::{TicketAnswer, TicketRequest};
use api::grid::CacheInfo;
use api::ticket::LIFETIME_SECS;
use image::error::At;
use image::{Digest, Error, Kind, Result};
use node::patience::Patience;
use node::spread::{Dial, Health, Members, Spread, Updates};
use stream::transport::Tuning;
use stream::{Client, ClientLimits, ClientOptions, WeakClient};
use tokio::sync::watch;

use crate::grid::{Grid, TlsClient};

/// How often a pull asks placement who serves.
const REFRESH: Duration = Duration::from_secs(15);
/// A ticket is shown anew when there is one that is good for so many seconds longer.
const RENEW_SECS: u64 = LIFETIME_SECS / 2;

/// How servers are reached, and the ticket that they take.
#[derive(Clone)]
struct Way {
    tls: Arc<TlsClient>,
    ticket: watch::Receiver<String>,
}

impl Way {
    fn new(answer: &TicketAnswer, tls: Arc<TlsClient>) -> Result<(watch::Sender<String>, Self)> {
        if answer.servers.is_empty() {
            let why = "placement knows no server of chunks; is `forebay up` running?";
            return Err(Error::new(Kind::Retry, why));
        }
        let (renew, ticket) = watch::channel(answer.ticket.clone());
        Ok((renew, Self { tls, ticket }))
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
        let mut tuning = Tuning::default();
        if let Some(first) = servers.first() {
            tuning = tuning.towards(first.ip());
        }
        let mut ticket = self.ticket.clone();
        let token = ticket.borrow_and_update().clone();
        let client = Client::connect(ClientOptions {
            endpoint: tuning.client_endpoint(SocketAddr::new(from, 0))?,
            config: tuning.client(Arc::clone(&self.tls))?,
            servers,
            server_name: server.server_name.clone(),
            tickets: vec![token],
            limits: ClientLimits::default(),
        })
        .await?;
        tokio::task::spawn_local(show_renewed(client.downgrade(), ticket));
        Ok(client)
    }
}

/// Shows a session each new ticket, so that it outlives the one that it was opened with; until nobody
/// renews any more, or has the client.
async fn show_renewed(client: WeakClient, mut ticket: watch::Receiver<String>) {
    while ticket.changed().await.is_ok() {
        let token = ticket.borrow_and_update().clone();
        let Some(client) = client.upgrade() else { return };
        if let Err(error) = client.add_ticket(&token).await {
            tracing::warn!(%error, "a renewed ticket was not taken");
        }
    }
}

/// The right to push an image, and a receiver to push it to.
pub async fn to_push(grid: &Grid, parent: Option<&str>) -> Result<(Option<Digest>, Client)> {
    let asked = TicketRequest::Push { domain: 0, parent: parent.map(str::to_owned) };
    let answer = grid.placement.ticket(&asked).await?;
    let parent = answer.image;
    let (renew, way) = Way::new(&answer, grid.tls()?)?;
    let client = Patience::with_busy().ask(async || first_of(&answer.servers, &way).await).await?;
    let renewed = renew_push(grid.placement.clone(), asked, answer.expires, renew);
    tokio::task::spawn_local(renewed);
    Ok((parent, client))
}

/// The first of the servers that can be reached. If none can, and one is busy, the answer is to ask again.
async fn first_of(servers: &[CacheInfo], way: &Way) -> Result<Client> {
    let mut why = Error::new(Kind::Retry, "no receiver answers");
    for server in servers {
        let name = || format!("server {}", server.name);
        match way.connect(server, 0).await.at(name) {
            Err(e) if matches!(e.kind(), Kind::Busy(_)) => why = e,
            Err(e) if e.kind() == Kind::Retry => {
                if why.kind() == Kind::Retry {
                    why = e;
                }
            }
            other => return other,
        }
    }
    Err(why)
}

/// Keeps the ticket of a push good, until its runtime ends. While placement is away the push goes on
/// with what it has.
async fn renew_push(
    placement: placement::Client,
    asked: TicketRequest,
    expires: u64,
    ticket: watch::Sender<String>,
) {
    let mut ticket = Renewal { ticket, expires };
    loop {
        tokio::time::sleep(Duration::from_secs(RENEW_SECS)).await;
        match placement.ticket(&asked).await {
            Ok(answer) => ticket.take(&answer),
            Err(error) => tracing::warn!(%error, "the ticket of the push was not renewed"),
        }
    }
}

/// What this process knows of how its caches do: every pull of it, on every core.
#[derive(Clone)]
pub struct Known {
    health: Arc<Health>,
    since: Instant,
}

impl Known {
    /// Nothing yet.
    pub fn new() -> Self {
        #[expect(clippy::disallowed_methods, reason = "caches are slow in real time")]
        let since = Instant::now();
        Self { health: Arc::default(), since }
    }
}

/// Gives each core of a pull its way to the caches.
pub struct Connector {
    way: Way,
    root: Digest,
    members: Members,
    known: Known,
    trace: u128,
}

/// An id that nobody else has.
fn trace() -> Result<u128> {
    let mut bytes = [0; 16];
    let failed = |e| Error::io("drawing a trace id", std::io::Error::from(e));
    #[expect(clippy::disallowed_methods, reason = "trace ids are told apart by chance alone")]
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).map_err(failed)?;
    let trace = u128::from_le_bytes(bytes);
    tracing::info!(trace = %format_args!("{trace:032x}"), "a pull begins");
    Ok(trace)
}

/// The ticket that a job shows, and until when sessions may be opened with it.
struct Renewal {
    ticket: watch::Sender<String>,
    expires: u64,
}

impl Renewal {
    /// Takes a newer ticket, if it is good for much longer.
    fn take(&mut self, answer: &TicketAnswer) {
        if answer.expires >= self.expires + RENEW_SECS {
            self.expires = answer.expires;
            self.ticket.send_replace(answer.ticket.clone());
        }
    }
}

impl Connector {
    /// The right to pull an image, and the way to its caches.
    pub async fn to_pull(grid: &Grid, name: &str, known: &Known) -> Result<(Digest, Self)> {
        let asked = TicketRequest::Pull { image: name.to_owned() };
        let answer = grid.placement.ticket(&asked).await?;
        let image = answer.image.ok_or_else(|| {
            Error::new(Kind::Invalid, format!("{name}: placement names no image for the ticket"))
        })?;
        let root = answer.root.unwrap_or(image);
        let (renew, way) = Way::new(&answer, grid.tls()?)?;
        let (updates, members) = Members::new(answer.servers);
        let ticket = Renewal { ticket: renew, expires: answer.expires };
        tokio::spawn(refresh(grid.placement.clone(), image, updates, ticket));
        Ok((image, Self { way, root, members, known: known.clone(), trace: trace()? }))
    }
}

/// Asks placement again and again, until nobody pulls any more. While it is away the pull goes on with
/// what it knows.
async fn refresh(
    placement: placement::Client,
    image: Digest,
    updates: Updates,
    mut ticket: Renewal,
) {
    // By digest: the ref may have moved meanwhile, and this pull has not.
    let asked = TicketRequest::Pull { image: image.to_string() };
    let again = async {
        loop {
            tokio::time::sleep(REFRESH).await;
            match placement.ticket(&asked).await {
                Ok(answer) => {
                    ticket.take(&answer);
                    updates.set(answer.servers);
                }
                Err(error) => tracing::debug!(%error, "placement did not say who serves"),
            }
        }
    };
    tokio::select! {
        () = updates.closed() => {}
        () = again => {}
    }
}

/// One core's way to the caches.
pub struct CoreDial {
    way: Way,
    core: usize,
    since: Instant,
}

impl Dial for CoreDial {
    type Source = Client;

    async fn dial(&self, cache: &CacheInfo) -> Result<Client> {
        self.way.connect(cache, self.core).await
    }

    async fn close(&self, source: Rc<Client>) {
        source.close().await;
    }

    #[expect(clippy::disallowed_methods, reason = "the clock of the spreading over caches")]
    fn now(&self) -> Duration {
        self.since.elapsed()
    }
}

impl node::pull::Connect for Connector {
    type Source = Spread<CoreDial>;

    async fn connect(&self, core: usize) -> Result<Spread<CoreDial>> {
        let Known { health, since } = self.known.clone();
        let dial = CoreDial { way: self.way.clone(), core, since };
        Ok(Spread::new(dial, self.root, self.members.clone(), health))
    }

    async fn close(&self, spread: Spread<CoreDial>) {
        spread.close().await;
    }

    fn way(&self, spread: &Spread<CoreDial>, section: u32) -> usize {
        spread.owner(section)
    }

    fn trace(&self) -> u128 {
        self.trace
    }
}

#[cfg(test)]
#[path = "connect_tests.rs"]
mod tests;
