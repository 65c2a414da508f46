//! One call: a connection, a request, an answer. Errors name the address.
//!
//! Calls that follow each other at once share a connection: a handshake with certificates on both sides takes longer than
//! most answers.
//!
//! A service may be at several addresses. The one that answered last is asked first, the others if it does not connect.
//! What was sent is never sent again elsewhere, unless that is the same as once ([`Repeat`]): but an answer may say that
//! another is to be asked, and that nothing was done.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;

use api::ErrorBody;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, LOCATION};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use image::error::At;
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
/// What an answer may take that was to take no time.
const LATE: Duration = Duration::from_secs(3);
/// After this silence the system asks whether the other machine is there; after some times, it gives up.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// Longest answer, in bytes: some hundred thousand refs.
const MAX_ANSWER: usize = 64 << 20;

/// After this long a connection is not used for another call: the server, which closes idle ones later, might be about
/// to, and then nobody knew whether it was asked.
const REUSED: Duration = Duration::from_secs(1);

/// Pause before what was not answered is asked again; it doubles, up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(2);

/// An address that has not connected by then is not waited for alone.
const HEAD_START: Duration = Duration::from_millis(300);
/// Times that one is sent on.
const HOPS: usize = 3;

/// How long to wait for an answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    Usual,
    /// So much longer than the answer is to take: a server may stand still, and another answer.
    Asked(Duration),
    /// As long as the other machine is there.
    Endless,
}

impl Patience {
    fn most(self) -> Option<Duration> {
        match self {
            Self::Usual => Some(ANSWER),
            Self::Asked(wait) => Some(wait + LATE),
            Self::Endless => None,
        }
    }
}

/// Whether a request may be sent again, of which nobody knows whether it was done.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// Twice is the same as once.
    Safe,
    Never,
}

/// Where a server is, and how to be sure of it.
#[derive(Clone)]
pub(super) struct Wire {
    /// What it is, and the program that should be running there: for people.
    who: Arc<str>,
    program: &'static str,
    /// The name in its certificate.
    server_name: Arc<str>,
    /// None of it is given up: who leads today may not tomorrow.
    addresses: Arc<[Arc<str>]>,
    /// The one that answered last.
    current: Arc<Mutex<Arc<str>>>,
    tls: TlsConnector,
    /// What is shown with each request.
    bearer: Option<HeaderValue>,
    /// For how long what may be sent again is.
    again: Duration,
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
        write!(f, "Wire({})", self.address())
    }
}

impl Wire {
    /// `who` is what people call it, `program` what runs it, `server_name` the name in its certificate.
    pub(super) fn new(
        who: &str,
        program: &'static str,
        server_name: &str,
        addresses: &str,
        config: ClientConfig,
    ) -> Result<Self> {
        let bare = |address| bare(address).at(|| format!("address of {who}"));
        let addresses: Arc<[_]> = addresses.split(',').map(bare).collect::<Result<_>>()?;
        let current = Arc::new(Mutex::new(Arc::clone(&addresses[0])));
        let tls = TlsConnector::from(Arc::new(config));
        let (who, server_name) = (who.into(), server_name.into());
        let (bearer, again, idle) = (None, Duration::ZERO, Arc::default());
        Ok(Self { who, program, server_name, addresses, current, tls, bearer, again, idle })
    }

    /// The same, sending again for so long what may be: see [`Wire::call`].
    pub(super) fn again(self, again: Duration) -> Self {
        Self { again, ..self }
    }

    /// The same, showing a person's token.
    pub(super) fn bearing(mut self, token: &str) -> Result<Self> {
        let bad = |_| Error::new(Kind::Invalid, "token: it holds what no header can");
        let mut bearer = HeaderValue::from_str(&format!("Bearer {token}")).map_err(bad)?;
        bearer.set_sensitive(true);
        self.bearer = Some(bearer);
        Ok(self)
    }

    /// The address that answered last.
    pub(super) fn address(&self) -> Arc<str> {
        Arc::clone(&self.current.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn go_to(&self, address: Arc<str>) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = address;
    }

    /// Sends a request and decodes its answer. One that may be repeated is, if its connection breaks or the answer is to ask
    /// again; who was not reached in the first place is not waited for.
    pub(super) async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        (patience, repeat): (Patience, Repeat),
    ) -> Result<T> {
        let (mut reached, mut pause, mut failed) = (false, FIRST_PAUSE, None);
        let bytes = loop {
            let sent = self.bytes(&method, path, body.clone(), patience, &mut reached).await;
            let again = repeat == Repeat::Safe && reached;
            let error = match sent {
                Err(error) if again && error.kind() == Kind::Retry => error,
                ended => break ended?,
            };
            let since = *failed.get_or_insert_with(now);
            if now().duration_since(since) + pause > self.again {
                return Err(error);
            }
            tracing::debug!(%error, "asking again in {:.1} s", pause.as_secs_f32());
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LAST_PAUSE);
        };
        serde_json::from_slice(&bytes).map_err(|e| {
            let what = format!("{}: an answer not known here: {e}", self.place(&method, path));
            Error::new(Kind::Unsupported, what)
        })
    }

    /// Gets what is text and no JSON.
    pub(super) async fn text(&self, path: &str) -> Result<String> {
        let bytes = self.bytes(&Method::GET, path, None, Patience::Usual, &mut false).await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn place(&self, method: &Method, path: &str) -> String {
        format!("{} at {}: {method} {path}", self.who, self.address())
    }

    /// Sends a request; the body of an answer that is a success. Notes that somebody was `reached`.
    async fn bytes(
        &self,
        method: &Method,
        path: &str,
        body: Option<Vec<u8>>,
        patience: Patience,
        reached: &mut bool,
    ) -> Result<Bytes> {
        let place = || self.place(method, path);
        let body = Bytes::from(body.unwrap_or_default());
        let mut hops = 0;
        loop {
            let request = self.request(method, path, body.clone())?;
            let open = match self.kept() {
                Some(open) => open,
                None => self.connect().await?,
            };
            *reached = true;
            let exchange = self.exchange(open, request);
            let exchanged = match patience.most() {
                None => exchange.await,
                Some(most) => timeout(most, exchange).await.unwrap_or_else(|_| {
                    Err(Error::new(Kind::Retry, format!("no answer within {most:?}")))
                }),
            };
            let Answer { status, elsewhere, bytes } = exchanged.map_err(|e| e.at(place()))?;
            if status.is_success() {
                return Ok(bytes);
            }
            if let Some(address) = elsewhere.filter(|_| hops < HOPS) {
                hops += 1;
                self.go_to(address);
                self.idle.lock().unwrap_or_else(PoisonError::into_inner).take();
                continue;
            }
            return Err(said(status, &bytes, &place()));
        }
    }

    /// Gets what is told line by line, until `line` says that it is enough, or nothing more comes.
    pub(super) async fn lines(
        &self,
        path: &str,
        mut line: impl FnMut(&[u8]) -> Result<bool>,
    ) -> Result<()> {
        let method = Method::GET;
        let place = || self.place(&method, path);
        let mut open = self.connect().await?;
        let asked = open.requests.send_request(self.request(&method, path, Bytes::new())?);
        let answer = match timeout(ANSWER, asked).await {
            Ok(answer) => answer.map_err(|e| broken(&e).at(place()))?,
            Err(_) => return Err(Error::new(Kind::Retry, format!("{}: no answer", place()))),
        };
        if !answer.status().is_success() {
            let Answer { status, bytes, .. } = read(answer).await.map_err(|e| e.at(place()))?;
            return Err(said(status, &bytes, &place()));
        }
        let mut body = answer.into_body();
        let mut held = Vec::new();
        // Who tells nothing else tells at least that there is nothing.
        while let Ok(Some(frame)) = timeout(ANSWER, body.frame()).await {
            let frame = frame.map_err(|e| broken(&e).at(place()))?;
            held.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
            while let Some(end) = held.iter().position(|b| *b == b'\n') {
                let rest = held.split_off(end + 1);
                if !line(&held[..end])? {
                    return Ok(());
                }
                held = rest;
            }
            if held.len() > MAX_ANSWER {
                return Err(Error::new(Kind::Unsupported, format!("{}: a line too long", place())));
            }
        }
        Err(Error::new(Kind::Retry, format!("{}: nothing more is heard", place())))
    }

    fn request(&self, method: &Method, path: &str, body: Bytes) -> Result<Request<Full<Bytes>>> {
        let mut request =
            Request::builder().method(method).uri(path).header(HOST, &*self.server_name);
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        if let Some(bearer) = &self.bearer {
            request = request.header(AUTHORIZATION, bearer);
        }
        let request = request.body(Full::new(body));
        request.map_err(|e| Error::new(Kind::Invalid, format!("{method} {path}: {e}")))
    }

    /// The connection of the call before, if that was just now.
    fn kept(&self) -> Option<Open> {
        let open = self.idle.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        let just_now = now().duration_since(open.answered) < REUSED;
        let ours = open.thread == thread::current().id();
        (just_now && ours && open.requests.is_ready()).then_some(open)
    }

    async fn exchange(&self, mut open: Open, request: Request<Full<Bytes>>) -> Result<Answer> {
        let answer = open.requests.send_request(request).await.map_err(|e| broken(&e))?;
        let read = read(answer).await?;
        (open.answered, open.thread) = (now(), thread::current().id());
        *self.idle.lock().unwrap_or_else(PoisonError::into_inner) = Some(open);
        Ok(read)
    }

    /// A connection to the address that answered last, or to whichever else is there.
    async fn connect(&self) -> Result<Open> {
        let first = self.address();
        let others = self.addresses.iter().filter(|address| **address != first).cloned();
        let mut left: VecDeque<Arc<str>> = others.collect();
        let mut tries = FuturesUnordered::from_iter([self.try_one(first)]);
        let mut failed = None;
        loop {
            let more = !left.is_empty();
            tokio::select! {
                Some((address, tried)) = tries.next() => match tried {
                    Ok(open) => {
                        self.go_to(address);
                        return Ok(open);
                    }
                    Err(error) => failed = Some(failed.unwrap_or(error)),
                },
                () = tokio::time::sleep(HEAD_START), if more => {}
            }
            match left.pop_front() {
                Some(next) => tries.push(self.try_one(next)),
                None if tries.is_empty() => {
                    return Err(failed.expect("the last that was tried has failed"));
                }
                None => {}
            }
        }
    }

    async fn try_one(&self, address: Arc<str>) -> (Arc<str>, Result<Open>) {
        let open = timeout(CONNECT, self.open(&address)).await.unwrap_or_else(|_| {
            Err(self.away(&address, &format!("no connection within {CONNECT:?}")))
        });
        (address, open)
    }

    async fn open(&self, address: &str) -> Result<Open> {
        let stream = self.stream(address).await?;
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (requests, connection) = handshake.map_err(|e| broken(&e))?;
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        Ok(Open { requests, answered: now(), thread: thread::current().id(), _driver: driver })
    }

    async fn stream(&self, address: &str) -> Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(address).await;
        let stream = stream.map_err(|e| self.away(address, &e.to_string()))?;
        // Neither is needed for a right answer.
        let _ = stream.set_nodelay(true);
        let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
        let _ = SockRef::from(&stream).set_tcp_keepalive(&keepalive);
        let name = ServerName::try_from(self.server_name.to_string());
        let name = name.map_err(|e| Error::caused(Kind::Invalid, "the server's name", e))?;
        self.tls.connect(name, stream).await.map_err(|e| self.not_trusted(address, e))
    }

    fn away(&self, address: &str, why: &str) -> Error {
        let Self { who, program, .. } = self;
        let what = format!("{who} at {address}: {why}; is `{program}` running there?");
        Error::new(Kind::Retry, what)
    }

    fn not_trusted(&self, address: &str, e: std::io::Error) -> Error {
        match e.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) {
            Some(why) => {
                let who = &self.who;
                let what = format!(
                    "{who} at {address}: what listens there is not the {who} of this grid: {why}"
                );
                Error::new(Kind::Denied, what)
            }
            None => self.away(address, &e.to_string()),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "servers wait in real time")]
fn now() -> Instant {
    Instant::now()
}

/// `host:port`, bare.
fn bare(address: &str) -> Result<Arc<str>> {
    let bare = address.trim();
    let bare = bare.strip_prefix("https://").unwrap_or(bare);
    let bare = bare.strip_suffix('/').unwrap_or(bare);
    let port = bare.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    let good = port.is_some_and(|(_, port)| port.parse::<u16>().is_ok_and(|p| p != 0));
    if !good || bare.contains(|c: char| c == '/' || c == '@' || c.is_whitespace()) {
        let shown = address.escape_debug();
        return Err(Error::new(Kind::Invalid, format!("`{shown}`: must be host:port")));
    }
    Ok(bare.into())
}

/// What came back.
struct Answer {
    status: StatusCode,
    /// Nothing was done, and this address is to be asked.
    elsewhere: Option<Arc<str>>,
    bytes: Bytes,
}

/// Where an answer sends who asked.
fn elsewhere(answer: &Response<Incoming>) -> Option<Arc<str>> {
    if answer.status() != StatusCode::TEMPORARY_REDIRECT {
        return None;
    }
    let location = answer.headers().get(LOCATION)?.to_str().ok()?;
    let (authority, _) = location.strip_prefix("https://")?.split_once('/')?;
    bare(authority).ok()
}

async fn read(answer: Response<Incoming>) -> Result<Answer> {
    let (status, elsewhere) = (answer.status(), elsewhere(&answer));
    let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
    let body = body.map_err(|e| Error::new(Kind::Retry, format!("reading the answer: {e}")))?;
    Ok(Answer { status, elsewhere, bytes: body.to_bytes() })
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

/// What an answer that is no success says.
fn said(status: StatusCode, bytes: &[u8], place: &str) -> Error {
    match serde_json::from_slice::<ErrorBody>(bytes) {
        Ok(body) => body.into(),
        Err(_) => Error::new(bare_status(status), format!("{place}: {status}")),
    }
}

/// What can be said of an answer that is not one of ours.
fn bare_status(status: StatusCode) -> Kind {
    match status.as_u16() {
        400..500 => Kind::Invalid,
        _ => Kind::Retry,
    }
}
