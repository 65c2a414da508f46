//! A grid of one placement on a port of its own, over a store in memory.
#![allow(dead_code, missing_docs)]

pub mod fake;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use api::grid::{CacheInfo, NewToken, Role};
use api::people::{NewPerson, PersonRole};
use fake::Fake;
use image::Result;
use placement::{Authority, Client, Clock, Config, Limits, Papers, Placement};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub struct Grid {
    pub dir: tempfile::TempDir,
    pub archive: Arc<Fake>,
    pub address: SocketAddr,
    /// The id of the store behind the archive.
    pub store: String,
    pub authority: Arc<Authority>,
    /// Seconds that the grid's clock is ahead of the system's.
    pub ahead: Arc<AtomicU64>,
    limits: Limits,
    /// Whether a cache serves beside placement.
    pub care: bool,
    running: Option<(oneshot::Sender<()>, JoinHandle<Result<()>>)>,
}

impl Grid {
    pub async fn start() -> Self {
        Self::start_with(Limits::default()).await
    }

    pub async fn start_with(limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(&dir.path().join("ca"), Clock::system().now()).unwrap();
        let mut grid = Self {
            dir,
            archive: Fake::new(),
            address: ([127, 0, 0, 1], 0).into(),
            store: "the first".into(),
            authority: Arc::new(authority),
            ahead: Arc::default(),
            limits,
            care: false,
            running: None,
        };
        grid.run().await.unwrap();
        grid
    }

    pub fn clock(&self) -> Clock {
        let (system, ahead) = (Clock::system(), self.ahead.clone());
        Clock::new(move || system.now() + ahead.load(Ordering::Relaxed))
    }

    pub fn state_file(&self) -> PathBuf {
        self.dir.path().join("state.redb")
    }

    /// Starts placement in the directory, as `forebay up` does.
    pub async fn run(&mut self) -> Result<()> {
        let clock = self.clock();
        let (data, now) = (self.dir.path(), clock.now());
        let authority = Arc::new(Authority::open(&data.join("ca"), now)?);
        let ip = [127, 0, 0, 1].into();
        let papers = authority.server_papers(&data.join("server"), "one", &[ip], now)?;
        authority.admin_papers(&data.join("admin"), now)?;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.address = listener.local_addr().unwrap();
        self.authority = authority.clone();
        let config = Config {
            care: self.care.then(|| Arc::new(fake::NoCare) as Arc<dyn placement::Care>),
            authority,
            shown: placement::Shown::new(papers)?,
            state: self.state_file().into(),
            store: self.store.clone(),
            address: None,
            placements: vec![],
            servers: vec![a_server()],
            lease_secs: 900,
            policy: api::place::Policy::default(),
            levels: Vec::new(),
            limits: self.limits.clone(),
            clock,
        };
        let (stop, stopped) = oneshot::channel();
        let shutdown = async move { drop(stopped.await) };
        let archive = self.archive.clone();
        let task = tokio::spawn(Placement::serve(listener, config, archive, shutdown));
        self.running = Some((stop, task));
        Ok(())
    }

    /// Stops placement, and waits for it.
    pub async fn stop(&mut self) -> Result<()> {
        let Some((stop, task)) = self.running.take() else { return Ok(()) };
        let _ = stop.send(());
        task.await.unwrap()
    }

    pub async fn restart(&mut self) {
        self.stop().await.unwrap();
        self.run().await.unwrap();
    }

    pub fn client(&self, papers: &Papers) -> Client {
        Client::new(&self.address.to_string(), papers).unwrap()
    }

    pub fn admin_papers(&self) -> Papers {
        Papers::load(&self.dir.path().join("admin")).unwrap()
    }

    pub fn admin(&self) -> Client {
        self.client(&self.admin_papers())
    }

    /// A member, straight from the authority.
    pub fn member(&self, role: Role, name: &str) -> Papers {
        self.authority.issue(role, name, Clock::system().now()).unwrap()
    }

    pub async fn token(&self, role: Role, name: Option<&str>) -> String {
        let asked = NewToken { role, lifetime_secs: 60, name: name.map(Into::into) };
        self.admin().new_token(&asked).await.unwrap().token
    }

    /// A person's token, by a name that nobody has.
    pub async fn person(&self, name: &str, role: PersonRole) -> String {
        let asked = NewPerson { name: name.into(), role, lifetime_secs: 3600 };
        self.admin().new_person(&asked).await.unwrap().token
    }

    pub async fn connect(&self, papers: Option<&Papers>) -> std::io::Result<TlsStream<TcpStream>> {
        connect(self.address, self.authority.ca_pem(), papers).await
    }

    /// Sends one request as it is, and returns status and body.
    pub async fn raw(&self, papers: Option<&Papers>, request: &[u8]) -> (u16, String) {
        let mut stream = self.connect(papers).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        // Placement may hang up on what it will not read.
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
        (status, body.unwrap_or_default())
    }

    /// The same, shown a person's token.
    pub async fn ask_with(
        &self,
        token: &str,
        method: &str,
        path: &str,
        body: &str,
    ) -> (u16, String) {
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {token}\r\n\
             content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        self.raw(None, request.as_bytes()).await
    }

    /// A request with a JSON body, which ends its connection.
    pub async fn ask(
        &self,
        papers: Option<&Papers>,
        method: &str,
        path: &str,
        body: &str,
    ) -> (u16, String) {
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        self.raw(papers, request.as_bytes()).await
    }
}

pub fn a_server() -> CacheInfo {
    CacheInfo {
        name: "one".into(),
        server_name: "one.forebay.internal".into(),
        endpoints: vec![([127, 0, 0, 1], 7001).into(), ([127, 0, 0, 1], 7002).into()],
        receives: true,
        api: None,
        weight: 1.0,
        draining: false,
    }
}

/// A TLS connection that trusts `ca` and shows `papers`, or nothing.
pub async fn connect(
    address: SocketAddr,
    ca_pem: &str,
    papers: Option<&Papers>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    tls(stream, ca_pem, papers).await
}

pub async fn tls(
    stream: TcpStream,
    ca_pem: &str,
    papers: Option<&Papers>,
) -> std::io::Result<TlsStream<TcpStream>> {
    use rustls::pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    let ca = rustls::pki_types::CertificateDer::from_pem_slice(ca_pem.as_bytes()).unwrap();
    roots.add(ca).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let config = match papers {
        Some(papers) => {
            config.with_client_auth_cert(papers.chain().unwrap(), papers.key().unwrap()).unwrap()
        }
        None => config.with_no_client_auth(),
    };
    let name = ServerName::try_from("placement.forebay.internal").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

pub fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().unwrap().permissions().mode() & 0o7777
}

pub fn chmod(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}
