//! The ways to an image: a cache, asked as a member of the grid; or the store itself.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use api::catalog::{TicketAnswer, TicketRequest};
use image::{Digest, Result};
use node::pull::{Connect, PullOptions, Watch};
use placement::Papers;
use serde_json::{Value, json};
use store::{Remote, Store, StoreOptions};
use stream::transport::{self, Tuning};
use stream::{Client, ClientLimits, ClientOptions};

#[expect(clippy::disallowed_methods, reason = "a measurement reads the real clock")]
pub fn now() -> Instant {
    Instant::now()
}

/// A member of the grid with a ticket for an image.
pub struct Member {
    papers: Papers,
    ticket: TicketAnswer,
}

impl Member {
    /// The member whose data directory this is: of `forebay up` the admin, else who joined there.
    pub async fn of(data: &str, image: Digest) -> Self {
        let data = Path::new(data);
        let note = |name| std::fs::read(data.join(name)).ok();
        let (note, papers) = match note("up.json") {
            Some(note) => (note, "admin"),
            None => (note("grid.json").expect("the data directory of a member"), "member"),
        };
        let note: Value = serde_json::from_slice(&note).unwrap();
        let papers = Papers::load(&data.join(papers)).unwrap();
        let placement = note["placement"].as_str().unwrap();
        let placement = placement::Client::new(placement, &papers).unwrap();
        let asked = TicketRequest::Pull { image: image.to_string() };
        let ticket = placement.ticket(&asked).await.unwrap();
        assert_eq!(ticket.servers.len(), 1, "this program asks one cache");
        Self { papers, ticket }
    }

    /// A client of the cache, with a connection of its own; `core` chooses the endpoint.
    pub async fn connect(&self, core: usize) -> Client {
        let cache = &self.ticket.servers[0];
        let mut servers = cache.endpoints.clone();
        let first = core % servers.len();
        servers.rotate_left(first);
        let tls = transport::client_config(transport::Papers {
            ca: self.papers.ca_pem.as_bytes(),
            certificate: self.papers.cert_pem.as_bytes(),
            key: self.papers.key_pem.as_bytes(),
        });
        let tuning = Tuning::default();
        let from = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
        let connected = Client::connect(ClientOptions {
            endpoint: tuning.client_endpoint(from).unwrap(),
            config: tuning.client(tls.unwrap()).unwrap(),
            servers,
            server_name: cache.server_name.clone(),
            tickets: vec![self.ticket.ticket.clone()],
            limits: ClientLimits::default(),
        });
        connected.await.unwrap()
    }
}

/// Opens the store at a URL, as a cache does.
pub async fn store(url: &str) -> Store {
    let remote = Remote::new(std::env::vars());
    let runtime = tokio::runtime::Handle::current();
    Store::open_url(url, &remote, runtime, StoreOptions::reading()).await.unwrap()
}

/// Gives every core of a pull the store.
struct Direct(Store);

impl Connect for Direct {
    type Source = Store;

    async fn connect(&self, _core: usize) -> Result<Store> {
        Ok(self.0.clone())
    }
}

/// Pulls an image from a store.
pub async fn pull(url: &str, image: Digest, to: PathBuf) -> Value {
    let options = PullOptions { sync: false, ..PullOptions::default() };
    let connect = Direct(store(url).await);
    let watch = Arc::new(Watch::default());
    let start = now();
    node::pull::pull(connect, image, to, options, Arc::clone(&watch)).await.unwrap();
    json!({ "seconds": (now() - start).as_secs_f64(), "received": watch.progress().received })
}
