//! Calls of etcd's members: one after the other, until one answers.
//!
//! A call that reads is asked of the next member when one does not answer. One that changes something is not,
//! unless it is sure that it was not begun: what was sent may have been done, even if no answer came.

use std::error::Error as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::Stream;
use hyper::http::uri::PathAndQuery;
use image::{Error, Kind, Result};
use prost::Message;
use tonic::client::Grpc;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, ConnectError, Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

/// How long a member may take for an answer. Longer than etcd needs for a new leader (about 2 s).
const CALL: Duration = Duration::from_secs(3);
/// How long a member may take to be connected to.
const CONNECT: Duration = Duration::from_secs(1);
/// How often a connection is tried out while nothing comes, so that a member that stands still is noticed.
/// etcd takes more than one in 5 s for an attack.
const PING: Duration = Duration::from_secs(10);
/// How long the answer to that may take.
const PONG: Duration = Duration::from_secs(3);
/// Longest message that is taken, in bytes.
pub(super) const MAX_MESSAGE: usize = 8 << 20;

/// Whether a call may be made twice.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Twice {
    /// It changes nothing, or nothing that counts.
    Yes,
    /// It changes something.
    No,
}

/// Why a member did not answer a call.
struct Failed {
    /// Whether it may have been begun.
    begun: bool,
    status: Status,
}

/// A member of etcd.
pub(super) struct Member {
    name: String,
    endpoint: Endpoint,
    channel: Mutex<Option<Channel>>,
}

impl Member {
    /// The one at an endpoint; `name` is what errors call it.
    pub(super) fn new(name: String, endpoint: Endpoint) -> Self {
        let endpoint = endpoint
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .keep_alive_while_idle(true)
            .http2_keep_alive_interval(PING)
            .keep_alive_timeout(PONG);
        Self { name, endpoint, channel: Mutex::default() }
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Option<Channel>> {
        self.channel.lock().expect("nothing panics that holds it")
    }

    async fn client(&self) -> Result<Grpc<Channel>, Failed> {
        let held = self.held().clone();
        let channel = match held {
            Some(channel) => channel,
            None => {
                let connected = tokio::time::timeout(CONNECT, self.endpoint.connect()).await;
                let channel = match connected {
                    Ok(Ok(channel)) => channel,
                    Ok(Err(e)) => return Err(unbegun(deepest(&e))),
                    Err(_) => return Err(unbegun(format!("no connection within {CONNECT:?}"))),
                };
                *self.held() = Some(channel.clone());
                channel
            }
        };
        let mut client = Grpc::new(channel).max_decoding_message_size(MAX_MESSAGE);
        client.ready().await.map_err(|e| unbegun(deepest(&e)))?;
        Ok(client)
    }

    async fn call<Q, A>(&self, path: &'static str, asked: Q) -> Result<A, Failed>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut client = self.client().await?;
        let (path, codec) = (PathAndQuery::from_static(path), ProstCodec::<Q, A>::default());
        in_time(client.unary(with_leader(asked), path, codec)).await
    }

    async fn stream<Q, A>(
        &self,
        path: &'static str,
        asked: impl Stream<Item = Q> + Send + 'static,
    ) -> Result<Streaming<A>, Failed>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut client = self.client().await?;
        let (path, codec) = (PathAndQuery::from_static(path), ProstCodec::<Q, A>::default());
        in_time(client.streaming(with_leader(asked), path, codec)).await
    }
}

fn unbegun(why: String) -> Failed {
    Failed { begun: false, status: Status::unavailable(why) }
}

/// What is at the bottom of an error.
fn deepest(error: &(dyn std::error::Error + 'static)) -> String {
    let mut bottom = error;
    while let Some(cause) = bottom.source() {
        bottom = cause;
    }
    bottom.to_string()
}

impl From<Status> for Failed {
    fn from(status: Status) -> Self {
        let (mut connecting, mut cause) = (false, status.source());
        while let Some(error) = cause {
            connecting |= error.is::<ConnectError>();
            cause = error.source();
        }
        // Said before anything is looked at: we ask for that with each call.
        let leaderless = status.message() == "etcdserver: no leader";
        Self { begun: !connecting && !leaderless, status }
    }
}

impl Failed {
    /// Whether another member may do better.
    fn passing(&self) -> bool {
        use Code::{Aborted, Cancelled, DeadlineExceeded, Internal, Unavailable, Unknown};
        let code = self.status.code();
        matches!(code, Aborted | Cancelled | DeadlineExceeded | Internal | Unavailable | Unknown)
    }
}

/// The members of an etcd cluster.
pub(super) struct Members {
    members: Vec<Member>,
    /// Who is asked first: who answered last.
    first: AtomicUsize,
}

impl Members {
    /// These; there must be one.
    pub(super) fn new(members: Vec<Member>) -> Self {
        Self { members, first: AtomicUsize::new(0) }
    }

    /// Makes a call, and waits for its answer.
    pub(super) async fn call<Q, A>(&self, path: &'static str, asked: Q, twice: Twice) -> Result<A>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        let mut round = Round::new(self, twice);
        loop {
            let member = round.member()?;
            match member.call(path, asked.clone()).await {
                Ok(answer) => return Ok(round.answered(answer)),
                Err(failed) => round.failed(failed)?,
            }
        }
    }

    /// Makes a call whose answer is a stream. It changes nothing that counts.
    pub(super) async fn stream<Q, S, A>(
        &self,
        path: &'static str,
        asked: impl Fn() -> S,
    ) -> Result<Streaming<A>>
    where
        Q: Message + 'static,
        S: Stream<Item = Q> + Send + 'static,
        A: Message + Default + 'static,
    {
        let mut round = Round::new(self, Twice::Yes);
        loop {
            let member = round.member()?;
            match member.stream(path, asked()).await {
                Ok(answer) => return Ok(round.answered(answer)),
                Err(failed) => round.failed(failed)?,
            }
        }
    }

    /// Asks another member from now on.
    pub(super) fn turn_away(&self) {
        self.turn_away_from(self.first.load(Ordering::Relaxed));
    }

    fn turn_away_from(&self, member: usize) {
        *self.members[member].held() = None;
        let next = (member + 1) % self.members.len();
        let relaxed = Ordering::Relaxed;
        let _ = self.first.compare_exchange(member, next, relaxed, relaxed);
    }
}

/// One call, of one member after the other.
struct Round<'m> {
    members: &'m Members,
    twice: Twice,
    first: usize,
    /// What those said who were asked in vain.
    said: Vec<String>,
}

impl<'m> Round<'m> {
    fn new(members: &'m Members, twice: Twice) -> Self {
        let first = members.first.load(Ordering::Relaxed);
        Self { members, twice, first, said: Vec::new() }
    }

    fn at(&self) -> usize {
        (self.first + self.said.len()) % self.members.members.len()
    }

    /// Whom to ask next; an error if all were asked.
    fn member(&self) -> Result<&'m Member> {
        if self.said.len() < self.members.members.len() {
            return Ok(&self.members.members[self.at()]);
        }
        let what = format!(
            "none of etcd's members answers: {}; see `etcdctl endpoint status`",
            self.said.join(", ")
        );
        Err(Error::new(Kind::Retry, what))
    }

    fn answered<A>(&self, answer: A) -> A {
        self.members.first.store(self.at(), Ordering::Relaxed);
        answer
    }

    /// Goes on to the next member, unless that is of no use, or not allowed.
    fn failed(&mut self, failed: Failed) -> Result<()> {
        let name = &self.members.members[self.at()].name;
        if !failed.passing() {
            return Err(refused(name, &failed.status));
        }
        self.members.turn_away_from(self.at());
        let why = failed.status.message();
        if failed.begun && self.twice == Twice::No {
            let what = format!("etcd at {name}: {why}; whether it was done is not known");
            return Err(Error::new(Kind::Retry, what));
        }
        self.said.push(format!("{name} ({why})"));
        Ok(())
    }
}

/// A member that has lost the others then says so, and does not keep us waiting for them.
fn with_leader<T>(asked: T) -> Request<T> {
    let mut request = Request::new(asked);
    request.metadata_mut().insert("hasleader", AsciiMetadataValue::from_static("true"));
    request
}

async fn in_time<A>(
    answer: impl Future<Output = Result<Response<A>, Status>>,
) -> Result<A, Failed> {
    let late = |_| Err(Status::deadline_exceeded(format!("no answer within {CALL:?}")));
    let answer = tokio::time::timeout(CALL, answer).await.unwrap_or_else(late)?;
    Ok(answer.into_inner())
}

/// An error that etcd means, with what can be done.
fn refused(member: &str, status: &Status) -> Error {
    let said = status.message();
    let (kind, next) = match status.code() {
        Code::ResourceExhausted if said.contains("space exceeded") => (
            Kind::Full,
            // The transaction that is the first not to fit is done, and refused.
            "; raise its --quota-backend-bytes, or make room (`etcdctl compact`, `etcdctl defrag`), then \
             `etcdctl alarm disarm`. The change that used the space up may have been done",
        ),
        Code::ResourceExhausted => (Kind::Busy(Duration::from_secs(1)), ""),
        Code::InvalidArgument => (
            Kind::Invalid,
            "; its --max-txn-ops and --max-request-bytes must not be less than usual",
        ),
        Code::OutOfRange => (Kind::Gone, ""),
        Code::PermissionDenied | Code::Unauthenticated => {
            (Kind::Denied, "; see placement.etcd_cert and etcd's users")
        }
        Code::Unimplemented => (Kind::Unsupported, "; etcd from 3.4 on is needed"),
        _ => (Kind::Io, ""),
    };
    Error::caused(kind, format!("etcd at {member}: {said}{next}"), status.clone())
}
