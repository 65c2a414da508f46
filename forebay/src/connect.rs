//! How a client's cores reach the servers of the grid.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use api::catalog::{TicketAnswer, TicketRequest};
use api::grid::CacheInfo;
use image::{Digest, Error, Kind, Result};
use stream::transport::Tuning;
use stream::{Client, ClientLimits, ClientOptions};

use crate::grid::{Grid, TlsClient};

/// Connects each core of a pull to a server, with the ticket for its image.
pub struct Connector {
    servers: Vec<CacheInfo>,
    ticket: String,
    tls: Arc<TlsClient>,
}

impl Connector {
    /// What a ticket's answer says.
    pub fn new(answer: TicketAnswer, tls: Arc<TlsClient>) -> Result<Self> {
        if answer.servers.is_empty() {
            let why = "placement knows no server of chunks; is `forebay up` running?";
            return Err(Error::new(Kind::Retry, why));
        }
        Ok(Self { servers: answer.servers, ticket: answer.ticket, tls })
    }

    /// The right to pull an image, and the way to its servers.
    pub async fn to_pull(grid: &Grid, name: &str) -> Result<(Digest, Self)> {
        let asked = TicketRequest::Pull { image: name.to_owned() };
        let answer = grid.placement.ticket(&asked).await?;
        let image = answer.image.ok_or_else(|| {
            Error::new(Kind::Invalid, format!("{name}: placement names no image for the ticket"))
        })?;
        Ok((image, Self::new(answer, grid.tls()?)?))
    }

    /// The right to push an image, and the way to a receiver.
    pub async fn to_push(grid: &Grid, parent: Option<&str>) -> Result<(Option<Digest>, Self)> {
        let asked = TicketRequest::Push { domain: 0, parent: parent.map(str::to_owned) };
        let answer = grid.placement.ticket(&asked).await?;
        Ok((answer.image, Self::new(answer, grid.tls()?)?))
    }

    /// A client for core number `core`, on the runtime of that core. Cores start at different
    /// servers and endpoints, and go on to the others if theirs does not answer.
    pub async fn client(&self, core: usize) -> Result<Client> {
        let mut last = Error::new(Kind::Retry, "no server of chunks answers");
        for i in 0..self.servers.len() {
            let server = &self.servers[(core + i) % self.servers.len()];
            match self.client_of(server, core).await {
                Ok(client) => return Ok(client),
                Err(e) if matches!(e.kind(), Kind::Retry | Kind::Busy(_)) => {
                    last = e.at(format!("server {}", server.name));
                }
                Err(e) => return Err(e.at(format!("server {}", server.name))),
            }
        }
        Err(last)
    }

    async fn client_of(&self, server: &CacheInfo, core: usize) -> Result<Client> {
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

impl node::pull::Connect for Connector {
    type Source = Client;

    async fn connect(&self, core: usize) -> Result<Client> {
        self.client(core).await
    }
}
