//! One call: a connection, a request, an answer. Errors name the address.
//!
//! Calls that follow each other at once share a connection: a handshake with certificates on both sides takes longer than
//! most answers.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;

use api::ErrorBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use image::{Error, Kind, Result};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde::de::DeserializeOwned;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Time to connect, TLS included.
const CONNECT: Duration = Duration::from_secs(5);
/// Time for an answer that does not depend on the size of an image; longer than a move of a ref waits
/// for a collection of garbage.
const ANSWER: Duration = Duration::from_secs(60);
/// After this silence the system asks whether the other machine is there; after some times, it gives up.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// Longest answer, in bytes: some hundred thousand refs.
const MAX_ANSWER: usize = 64 << 20;

/// After this long a connection is not used for another call: the server, which closes idle ones later, might be about
/// to, and then nobody knew whether it was asked.
const REUSED: Duration = Duration::from_secs(1);

/// How long to wait for an answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    Usual,
    /// As long as the other machine is there.
    Endless,
}

/// Where a server is, and how to be sure of it.
#[derive(Clone)]
pub(super) struct Wire {
    /// What it is, and the program that should be running there: for people.
    who: Arc<str>,
    program: &'static str,
    /// The name in its certificate.
    server_name: Arc<str>,
    address: Arc<str>,
    tls: TlsConnector,
    idle: Arc<Mutex<Option<Open>>>,
}

/// A connection that takes requests, one after the other.
struct Open {
    requests: SendRequest<Full<Bytes>>,
    answered: Instant,
    /// Who else took it might wait for a runtime that does something else just now.
    thread: ThreadId,
    /// Dropped with it, whatever ends it.
    _driver: JoinSet<hyper::Result<()>>,
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Wire({})", self.address)
    }
}

impl Wire {
    /// `who` is what people call it, `program` what runs it, `server_name` the name in its certificate.
    pub(super) fn new(
        who: &str,
        program: &'static str,
        server_name: &str,
        address: &str,
        config: ClientConfig,
    ) -> Result<Self> {
        let bare = address.strip_prefix("https://").unwrap_or(address);
        let bare = bare.strip_suffix('/').unwrap_or(bare);
        let port = bare.rsplit_once(':').filter(|(host, _)| !host.is_empty());
        let good = port.is_some_and(|(_, port)| port.parse::<u16>().is_ok_and(|p| p != 0));
        if !good || bare.contains(|c: char| c == '/' || c == '@' || c.is_whitespace()) {
            let shown = address.escape_debug();
            let what = format!("address of {who}, `{shown}`: must be host:port");
            return Err(Error::new(Kind::Invalid, what));
        }
        let tls = TlsConnector::from(Arc::new(config));
        let (who, server_name) = (who.into(), server_name.into());
        Ok(Self { who, program, server_name, address: bare.into(), tls, idle: Arc::default() })
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Sends a request and decodes its answer.
    pub(super) async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        patience: Patience,
    ) -> Result<T> {
        let bytes = self.bytes(&method, path, body, patience).await?;
        serde_json::from_slice(&bytes).map_err(|e| {
            let what = format!("{}: an answer not known here: {e}", self.place(&method, path));
            Error::new(Kind::Unsupported, what)
        })
    }

    /// Gets what is text and no JSON.
    pub(super) async fn text(&self, path: &str) -> Result<String> {
        let bytes = self.bytes(&Method::GET, path, None, Patience::Usual).await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn place(&self, method: &Method, path: &str) -> String {
        format!("{} at {}: {method} {path}", self.who, self.address)
    }

    /// Sends a request; the body of an answer that is a success.
    async fn bytes(
        &self,
        method: &Method,
        path: &str,
        body: Option<Vec<u8>>,
        patience: Patience,
    ) -> Result<Bytes> {
        let place = || self.place(method, path);
        let request = self.request(method, path, body)?;
        let open = match self.kept() {
            Some(open) => open,
            None => match timeout(CONNECT, self.connect()).await {
                Ok(open) => open?,
                Err(_) => return Err(self.away(&format!("no connection within {CONNECT:?}"))),
            },
        };
        let exchange = self.exchange(open, request);
        let exchanged = match patience {
            Patience::Endless => exchange.await,
            Patience::Usual => timeout(ANSWER, exchange).await.unwrap_or_else(|_| {
                Err(Error::new(Kind::Retry, format!("no answer within {ANSWER:?}")))
            }),
        };
        let (status, bytes) = exchanged.map_err(|e| e.at(place()))?;
        if status.is_success() {
            return Ok(bytes);
        }
        match serde_json::from_slice::<ErrorBody>(&bytes) {
            Ok(body) => Err(body.into()),
            Err(_) => Err(Error::new(bare_status(status), format!("{}: {status}", place()))),
        }
    }

    fn request(
        &self,
        method: &Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Request<Full<Bytes>>> {
        let mut request =
            Request::builder().method(method).uri(path).header(HOST, &*self.server_name);
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(Bytes::from(body.unwrap_or_default())));
        request.map_err(|e| Error::new(Kind::Invalid, format!("{method} {path}: {e}")))
    }

    /// The connection of the call before, if that was just now.
    fn kept(&self) -> Option<Open> {
        let open = self.idle.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        let just_now = now().duration_since(open.answered) < REUSED;
        let ours = open.thread == thread::current().id();
        (just_now && ours && open.requests.is_ready()).then_some(open)
    }

    async fn exchange(
        &self,
        mut open: Open,
        request: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, Bytes)> {
        let answer = open.requests.send_request(request).await.map_err(|e| broken(&e))?;
        let read = read(answer).await?;
        (open.answered, open.thread) = (now(), thread::current().id());
        *self.idle.lock().unwrap_or_else(PoisonError::into_inner) = Some(open);
        Ok(read)
    }

    async fn connect(&self) -> Result<Open> {
        let stream = self.stream().await?;
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (requests, connection) = handshake.map_err(|e| broken(&e))?;
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        Ok(Open { requests, answered: now(), thread: thread::current().id(), _driver: driver })
    }

    async fn stream(&self) -> Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(&*self.address).await;
        let stream = stream.map_err(|e| self.away(&e.to_string()))?;
        // Neither is needed for a right answer.
        let _ = stream.set_nodelay(true);
        let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
        let _ = SockRef::from(&stream).set_tcp_keepalive(&keepalive);
        let name = ServerName::try_from(self.server_name.to_string());
        let name = name.map_err(|e| Error::caused(Kind::Invalid, "the server's name", e))?;
        self.tls.connect(name, stream).await.map_err(|e| self.not_trusted(e))
    }

    fn away(&self, why: &str) -> Error {
        let Self { who, program, address, .. } = self;
        let what = format!("{who} at {address}: {why}; is `{program}` running there?");
        Error::new(Kind::Retry, what)
    }

    fn not_trusted(&self, e: std::io::Error) -> Error {
        match e.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) {
            Some(why) => {
                let Self { who, address, .. } = self;
                let what = format!(
                    "{who} at {address}: what listens there is not the {who} of this grid: {why}"
                );
                Error::new(Kind::Denied, what)
            }
            None => self.away(&e.to_string()),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "servers wait in real time")]
fn now() -> Instant {
    Instant::now()
}

async fn read(answer: Response<Incoming>) -> Result<(StatusCode, Bytes)> {
    let status = answer.status();
    let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
    let body = body.map_err(|e| Error::new(Kind::Retry, format!("reading the answer: {e}")))?;
    Ok((status, body.to_bytes()))
}

/// In TLS 1.3 a client learns only after its handshake that the server refuses its certificate.
fn broken(e: &hyper::Error) -> Error {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(e);
    while let Some(error) = cause {
        let io = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        let tls = io.and_then(|e| e.downcast_ref::<rustls::Error>());
        if let Some(rustls::Error::AlertReceived(alert)) = tls {
            let what = format!("it refuses these papers ({alert:?}): of another grid, or expired?");
            return Error::new(Kind::Denied, what);
        }
        cause = error.source();
    }
    Error::new(Kind::Retry, format!("the connection broke: {e}"))
}

/// What can be said of an answer that is not one of ours.
fn bare_status(status: StatusCode) -> Kind {
    match status.as_u16() {
        400..500 => Kind::Invalid,
        _ => Kind::Retry,
    }
}
