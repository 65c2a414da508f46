//! Who is refused, and that the log says whom and why.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;

use api::catalog::{TicketAnswer, TicketRequest};
use image::{ChunkSource, Kind, ReadContext};
use placement::Papers;
use rustls::ClientConfig;
use stream::transport::{ALPN, Tuning, client_config};
use stream::{Client, ClientLimits, ClientOptions};

use crate::harness::{Disk, Grid};

/// A grid with two images, seen by somebody who does not use our commands.
struct Outside {
    grid: Grid,
    admin: Papers,
}

impl Outside {
    fn new() -> Self {
        let grid = Grid::start();
        grid.import(&grid.disk("d.raw", &Disk::new("ab")), "d:1");
        grid.import(&grid.disk("e.raw", &Disk::new("cd")), "e:1");
        let admin = Papers::load(&grid.data.join("admin")).unwrap();
        Self { grid, admin }
    }

    fn placement(&self) -> SocketAddr {
        let up = std::fs::read_to_string(self.grid.data.join("up.json")).unwrap();
        let up: serde_json::Value = serde_json::from_str(&up).unwrap();
        up["placement"].as_str().unwrap().parse().unwrap()
    }

    /// The admin's ticket for an image, and who takes it.
    async fn ticket(&self, name: &str) -> TicketAnswer {
        let client = placement::Client::new(&self.placement().to_string(), &self.admin).unwrap();
        client.ticket(&TicketRequest::Pull { image: name.into() }).await.unwrap()
    }

    /// Trusts the grid's server, and shows no certificate.
    fn nobody(&self, alpn: &[u8]) -> ClientConfig {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.admin.ca().unwrap()).unwrap();
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let builder = ClientConfig::builder_with_provider(provider.into());
        let tls13 = builder.with_protocol_versions(&[&rustls::version::TLS13]).unwrap();
        let mut config = tls13.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        config
    }

    /// Connects to the grid's server of chunks; with it, the address from which.
    async fn connect(
        &self,
        tls: Arc<ClientConfig>,
        answer: &TicketAnswer,
        ticket: &str,
    ) -> (String, image::Result<Client>) {
        let tuning = Tuning::default();
        let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
        let endpoint = tuning.client_endpoint(any).unwrap();
        let from = endpoint.local_addr().unwrap().to_string();
        let server = &answer.servers[0];
        let options = ClientOptions {
            endpoint,
            config: tuning.client(tls).unwrap(),
            servers: server.endpoints.clone(),
            server_name: server.server_name.clone(),
            tickets: vec![ticket.to_owned()],
            limits: ClientLimits::default(),
        };
        (from, Client::connect(options).await)
    }
}

fn quic(papers: &Papers) -> Arc<ClientConfig> {
    client_config(stream::transport::Papers {
        ca: papers.ca_pem.as_bytes(),
        certificate: papers.cert_pem.as_bytes(),
        key: papers.key_pem.as_bytes(),
    })
    .unwrap()
}

fn run(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, work);
}

#[track_caller]
fn denied<T>(result: image::Result<T>) {
    let error = result.err().expect("a refusal");
    assert_eq!(error.kind(), Kind::Denied, "{error}");
}

/// One request over HTTPS; its first line, or why there is none.
fn get(at: SocketAddr, name: &str, tls: ClientConfig, path: &str) -> (String, String) {
    let mut tcp = TcpStream::connect(at).unwrap();
    let from = tcp.local_addr().unwrap().to_string();
    let name = rustls::pki_types::ServerName::try_from(name.to_owned()).unwrap();
    let mut tls = rustls::ClientConnection::new(tls.into(), name).unwrap();
    let mut both = rustls::Stream::new(&mut tls, &mut tcp);
    let request = format!("GET {path} HTTP/1.1\r\nhost: up\r\nconnection: close\r\n\r\n");
    let mut answer = String::new();
    let asked = both.write_all(request.as_bytes());
    match asked.and_then(|()| both.read_to_string(&mut answer)) {
        Err(e) if answer.is_empty() => (from, e.to_string()),
        _ => (from, answer.lines().next().unwrap_or_default().to_owned()),
    }
}

#[test]
fn who_shows_no_certificate_is_refused_and_logged() {
    let outside = Outside::new();
    run(async {
        let answer = outside.ticket("d:1").await;
        let name = &answer.servers[0].server_name;
        let tls = || outside.nobody(b"http/1.1");
        let (from, said) = get(outside.placement(), name, tls(), "/v1/images");
        assert!(said.contains("403"), "{said}");
        outside.grid.has_logged(&["denied", &format!("nobody at {from}"), "certificate is needed"]);
        assert!(get(outside.placement(), name, tls(), "/v1/health").1.contains("200"));

        let tls = Arc::new(outside.nobody(ALPN));
        let (from, client) = outside.connect(tls, &answer, &answer.ticket).await;
        denied(client);
        outside.grid.has_logged(&["connection refused", &from, "no certificates"]);
    });
}

#[test]
fn papers_of_another_grid_are_refused_and_logged() {
    let outside = Outside::new();
    let stranger = Grid::start();
    let theirs = Papers::load(&stranger.data.join("admin")).unwrap();
    // They trust our server, which does not help.
    let forged = Papers { ca_pem: outside.admin.ca_pem.clone(), ..theirs };
    run(async {
        let answer = outside.ticket("d:1").await;
        let mut tls = (*quic(&forged)).clone();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let name = &answer.servers[0].server_name;
        let (from, said) = get(outside.placement(), name, tls, "/v1/images");
        assert!(!said.contains("HTTP"), "{said}");
        outside.grid.has_logged(&["denied: TLS", &from, "certificate"]);

        let (from, client) = outside.connect(quic(&forged), &answer, &answer.ticket).await;
        denied(client);
        outside.grid.has_logged(&["connection refused", &from, "certificate"]);
    });
}

#[test]
fn tickets_that_are_not_good_are_refused_and_logged() {
    let outside = Outside::new();
    run(async {
        let (d, e) = (outside.ticket("d:1").await, outside.ticket("e:1").await);
        let tls = quic(&outside.admin);
        // One letter in the middle of what is signed.
        let mut altered = d.ticket.clone();
        let letter = if &altered[40..41] == "A" { "B" } else { "A" };
        altered.replace_range(40..41, letter);
        let (from, client) = outside.connect(tls.clone(), &d, &altered).await;
        denied(client);
        outside.grid.has_logged(&["denied", &from, "ticket refused", "signature"]);

        // A good one, for the other image.
        let (from, client) = outside.connect(tls, &d, &e.ticket).await;
        let (client, ctx) = (client.unwrap(), ReadContext::default());
        denied(client.manifest(&ctx, &d.image.unwrap()).await);
        let image = d.image.unwrap().to_string();
        outside.grid.has_logged(&["denied", &from, &image[..12]]);
        client.manifest(&ctx, &e.image.unwrap()).await.unwrap();
    });
}
