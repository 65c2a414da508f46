//! The control stream: versions, features, limits and tickets.
//!
//! ```text
//! client                               server
//!   HELLO    versions, features  ──→
//!   TICKET   (need not wait)     ──→
//!                                ←──   WELCOME  version, common features, limits
//!                                ←──   GRANTED | ERROR      one per TICKET, in their order
//!   TICKET   renewal, other image──→
//!                                ←──   GRANTED | ERROR
//!                                ←──   GOAWAY   on shutdown; once, at any time after WELCOME
//! ```
//! Version N talks with N−1 both ways: each side names the range it speaks, and the greatest common
//! version is used. Feature bits 0..32 are optional: unknown ones are ignored. Bits 32..64 are
//! required: who does not implement one refuses the connection and names it.

use std::collections::VecDeque;

use api::ticket::GRACE_SECS;
use api::{Grant, Ticket};
use bytes::{Bytes, BytesMut};
use image::seam::ImagePlan;
use image::signing::VerifyingKey;
use image::{Digest, Error, Kind, Result};

use super::inbox::{Inbox, Only, unexpected};
use super::rights::Rights;
use crate::messages::{Granted, Limits, Message};
use crate::wire::{MAX_TICKET, Type};

/// The oldest version of the protocol that this program speaks.
pub const MIN_VERSION: u16 = 1;
/// The newest version of the protocol that this program speaks.
pub const MAX_VERSION: u16 = 1;
/// The feature bits that this program implements: none, in version 1.
pub const FEATURES: u64 = 0;
/// The half of the feature bits that the other side must implement.
pub const REQUIRED: u64 = 0xffff_ffff_0000_0000;

/// Names of required features that are foreseen, to refuse them by name.
const FORESEEN: [(u64, &str); 2] =
    [(1 << 32, "trust domains other than 0"), (1 << 33, "encrypted codecs")];
/// Tickets that may fail on one connection before it is closed.
const MAX_REFUSED: u32 = 16;

/// The greatest version that both ranges hold.
pub fn negotiate(ours: (u16, u16), theirs: (u16, u16)) -> Result<u16> {
    let version = ours.1.min(theirs.1);
    if version >= ours.0.max(theirs.0) {
        return Ok(version);
    }
    let ((a, b), (c, d)) = (ours, theirs);
    let why = format!("no common protocol version: {a} to {b} here, {c} to {d} there");
    Err(Error::new(Kind::Unsupported, why))
}

/// Refuses required features that are not implemented here, by name.
fn check_features(features: u64) -> Result<()> {
    let unknown = features & REQUIRED & !FEATURES;
    if unknown == 0 {
        return Ok(());
    }
    let name = |bit: u64| match FORESEEN.iter().find(|f| f.0 == bit) {
        Some((_, name)) => (*name).to_owned(),
        None => format!("feature bit {}", bit.trailing_zeros()),
    };
    let bits = (0..64).map(|i| 1u64 << i).filter(|bit| unknown & bit != 0);
    let names: Vec<_> = bits.map(name).collect();
    let why = format!("required features not implemented here: {}", names.join(", "));
    Err(Error::new(Kind::Unsupported, why))
}

/// What the client learns on the control stream.
#[derive(Clone, Debug)]
pub enum ClientEvent {
    /// The server speaks with us.
    Welcome {
        /// In this version of the protocol.
        version: u16,
        /// With these limits.
        limits: Limits,
    },
    /// The oldest ticket without an answer was accepted.
    Granted(Granted),
    /// The oldest ticket without an answer was refused.
    Refused(Error),
    /// No further requests are taken; what runs is finished.
    GoAway,
}

/// The client's end of the control stream.
///
/// ```text
/// new → poll_transmit → [ ticket → poll_transmit | receive → poll_event … ] …
/// ```
/// After an `Err` from `receive` the connection is of no use.
#[derive(Debug)]
pub struct ClientControl {
    inbox: Inbox,
    out: BytesMut,
    events: VecDeque<ClientEvent>,
    welcome: bool,
    gone: bool,
    unanswered: usize,
}

impl ClientControl {
    /// Says HELLO, with what this side takes from the server.
    pub fn new(limits: Limits) -> Self {
        Self::hello(MIN_VERSION, MAX_VERSION, FEATURES, limits)
    }

    fn hello(min: u16, max: u16, features: u64, limits: Limits) -> Self {
        let hello = Message::Hello { min, max, features, limits };
        Self {
            inbox: Inbox::new(),
            out: BytesMut::from(&hello.encode()[..]),
            events: VecDeque::new(),
            welcome: false,
            gone: false,
            unanswered: 0,
        }
    }

    /// Shows a ticket. It need not wait for the WELCOME.
    pub fn ticket(&mut self, token: &str) -> Result<()> {
        if token.len() > MAX_TICKET {
            let why = format!("ticket: {} bytes, the limit is {MAX_TICKET}", token.len());
            return Err(Error::new(Kind::Invalid, why));
        }
        self.unanswered += 1;
        self.out.extend_from_slice(&Message::Ticket(token.to_owned()).encode());
        Ok(())
    }

    /// Bytes to send, if there are any.
    pub fn poll_transmit(&mut self) -> Option<Bytes> {
        (!self.out.is_empty()).then(|| self.out.split().freeze())
    }

    /// The next thing learned.
    pub fn poll_event(&mut self) -> Option<ClientEvent> {
        self.events.pop_front()
    }

    /// Takes the next bytes from the server.
    pub fn receive(&mut self, bytes: Bytes) -> Result<()> {
        self.inbox.feed(bytes);
        loop {
            let expected: &[Type] = match (self.welcome, self.unanswered) {
                (false, _) => &[Type::Welcome, Type::Error],
                (true, 0) => &[Type::GoAway, Type::Error],
                (true, _) => &[Type::Granted, Type::Error, Type::GoAway],
            };
            let Some(message) = self.inbox.poll(&mut Only(expected))? else { return Ok(()) };
            let event = self.take(message, expected)?;
            self.events.push_back(event);
        }
    }

    fn take(&mut self, message: Message, expected: &[Type]) -> Result<ClientEvent> {
        match message {
            Message::Welcome { version, features, limits } => {
                negotiate((MIN_VERSION, MAX_VERSION), (version, version))?;
                check_features(features)?;
                self.welcome = true;
                Ok(ClientEvent::Welcome { version, limits })
            }
            Message::Granted(granted) => {
                self.unanswered -= 1;
                Ok(ClientEvent::Granted(granted))
            }
            Message::Error(e) if self.welcome && self.unanswered > 0 => {
                self.unanswered -= 1;
                Ok(ClientEvent::Refused(e))
            }
            Message::Error(e) => Err(e),
            Message::GoAway if !self.gone => {
                self.gone = true;
                Ok(ClientEvent::GoAway)
            }
            other => Err(unexpected(other.ty(), expected)),
        }
    }
}

/// What the server learns on the control stream.
#[derive(Clone, Debug)]
pub enum ServerEvent {
    /// The client speaks with us, and takes this much.
    Hello {
        /// In this version of the protocol.
        version: u16,
        /// With these limits.
        limits: Limits,
    },
    /// A ticket was accepted.
    Granted(Granted),
    /// A ticket was refused.
    Refused(Error),
}

/// Who may do what, for the server: the key that signs tickets, and the peer's certificate.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Verifies tickets.
    pub key: VerifyingKey,
    /// What tickets call the peer: [`api::ticket::holder_of`] its certificate.
    pub holder: Digest,
}

/// The server's end of the control stream, and what it allows the connection's requests.
///
/// ```text
/// new → [ receive → poll_transmit, poll_event … | may_pull | may_push | go_away ] …
/// ```
/// Times are seconds since 1970. After an `Err` from `receive` send what `poll_transmit` gives (it
/// ends with the ERROR) and close the connection.
#[derive(Debug)]
pub struct ServerControl {
    peer: Peer,
    limits: Limits,
    inbox: Inbox,
    out: BytesMut,
    events: VecDeque<ServerEvent>,
    rights: Rights,
    hello: bool,
    gone: bool,
    refused: u32,
    failed: Option<Error>,
}

impl ServerControl {
    /// Waits for a HELLO. `limits` is what this side takes from the client.
    pub fn new(peer: Peer, limits: Limits) -> Self {
        Self {
            peer,
            limits,
            inbox: Inbox::new(),
            out: BytesMut::new(),
            events: VecDeque::new(),
            rights: Rights::new(limits.tickets),
            hello: false,
            gone: false,
            refused: 0,
            failed: None,
        }
    }

    /// Bytes to send, if there are any.
    pub fn poll_transmit(&mut self) -> Option<Bytes> {
        (!self.out.is_empty()).then(|| self.out.split().freeze())
    }

    /// The next thing learned.
    pub fn poll_event(&mut self) -> Option<ServerEvent> {
        self.events.pop_front()
    }

    /// Takes the next bytes from the client.
    pub fn receive(&mut self, bytes: Bytes, now: u64) -> Result<()> {
        if let Some(e) = &self.failed {
            return Err(e.clone());
        }
        self.inbox.feed(bytes);
        let result = self.take_all(now);
        if let Err(e) = &result {
            self.out.extend_from_slice(&Message::Error(e.clone()).encode());
            self.failed = Some(e.clone());
        }
        result
    }

    /// Whether the client may read an image on this connection.
    pub fn may_pull(&self, image: &Digest, now: u64) -> Result<()> {
        self.open()?;
        self.rights.pull(image, now)
    }

    /// Whether the client may push such an image on this connection.
    pub fn may_push(&self, plan: &ImagePlan, now: u64) -> Result<()> {
        self.open()?;
        self.rights.push(plan, now)
    }

    /// The same for a push that has begun: a shutdown lets it finish.
    pub fn may_finish_push(&self, plan: &ImagePlan, now: u64) -> Result<()> {
        self.rights.push(plan, now)
    }

    /// Whether the client has said HELLO, and it was good.
    pub fn said_hello(&self) -> bool {
        self.hello
    }

    /// Takes no further requests, and says so.
    pub fn go_away(&mut self) {
        if self.hello && !self.gone && self.failed.is_none() {
            self.out.extend_from_slice(&Message::GoAway.encode());
        }
        self.gone = true;
    }

    fn open(&self) -> Result<()> {
        if let Some(e) = &self.failed {
            return Err(e.clone());
        }
        if !self.hello {
            return Err(Error::new(Kind::Invalid, "a request before HELLO"));
        }
        if self.gone {
            return Err(Error::new(Kind::Retry, "this server is shutting down; ask another"));
        }
        Ok(())
    }

    fn take_all(&mut self, now: u64) -> Result<()> {
        loop {
            let expected = if self.hello { &[Type::Ticket] } else { &[Type::Hello] };
            match self.inbox.poll(&mut Only(expected)).map_err(as_request)? {
                None => return Ok(()),
                Some(Message::Hello { min, max, features, limits }) => {
                    self.take_hello((min, max), features, limits)?;
                }
                Some(Message::Ticket(token)) => self.take_ticket(&token, now)?,
                Some(other) => return Err(as_request(unexpected(other.ty(), expected))),
            }
        }
    }

    fn take_hello(&mut self, theirs: (u16, u16), features: u64, limits: Limits) -> Result<()> {
        let version = negotiate((MIN_VERSION, MAX_VERSION), theirs)?;
        check_features(features)?;
        self.hello = true;
        let features = features & FEATURES;
        let welcome = Message::Welcome { version, features, limits: self.limits };
        self.out.extend_from_slice(&welcome.encode());
        if self.gone {
            self.out.extend_from_slice(&Message::GoAway.encode());
        }
        self.events.push_back(ServerEvent::Hello { version, limits });
        Ok(())
    }

    fn take_ticket(&mut self, token: &str, now: u64) -> Result<()> {
        match self.open_ticket(token, now) {
            Ok(granted) => {
                self.out.extend_from_slice(&Message::Granted(granted.clone()).encode());
                self.events.push_back(ServerEvent::Granted(granted));
                Ok(())
            }
            Err(e) => {
                self.refused += 1;
                self.events.push_back(ServerEvent::Refused(e.clone()));
                if self.refused > MAX_REFUSED {
                    let why = format!("more than {MAX_REFUSED} tickets refused; the last: {e}");
                    return Err(Error::new(Kind::Denied, why));
                }
                self.out.extend_from_slice(&Message::Error(e).encode());
                Ok(())
            }
        }
    }

    fn open_ticket(&mut self, token: &str, now: u64) -> Result<Granted> {
        let ticket = Ticket::open(token, &self.peer.key, &self.peer.holder, now)?;
        let (grant, expires): (Grant, u64) = (ticket.grant.clone(), ticket.expires);
        self.rights.grant(ticket, now)?;
        Ok(Granted { grant, expires, grace: GRACE_SECS as u32 })
    }
}

/// What a server says of bytes from a client that are not the protocol's.
pub(crate) fn as_request(e: Error) -> Error {
    match e.kind() {
        Kind::Corrupt => Error::new(Kind::Invalid, e.message()),
        _ => e,
    }
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;
