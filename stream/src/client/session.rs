//! One connection of a client: opened, its control stream kept, its requests started.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use image::error::At;
use image::{Error, Kind, Priority, Result};
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use super::link::Dial;
use crate::io;
use crate::messages::{Granted, Limits, Message};
use crate::session::control::{ClientControl, ClientEvent};
use crate::transport::close_code;

/// A ticket to show, and who waits for the answer.
type Show = (String, oneshot::Sender<Result<Granted>>);

/// A connection on which requests may be made.
#[derive(Debug)]
pub(crate) struct Session {
    quic: Connection,
    name: String,
    limits: Limits,
    gone: Arc<AtomicBool>,
    shows: mpsc::Sender<Show>,
    /// Places for requests that are no guest's.
    bulk: Arc<Semaphore>,
    in_flight: Arc<AtomicUsize>,
}

/// Counts a request as in flight, and holds its place.
#[derive(Debug)]
pub(crate) struct Place {
    _bulk: Option<OwnedSemaphorePermit>,
    in_flight: Arc<AtomicUsize>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request under way.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) send: SendStream,
    pub(crate) recv: RecvStream,
    _place: Place,
}

impl Session {
    /// Connects, says HELLO and shows the tickets. An error if no ticket is accepted.
    pub(crate) async fn open(dial: &Dial, addr: SocketAddr) -> Result<Arc<Self>> {
        let name = format!("{} ({addr})", dial.server_name);
        let opened = timeout(dial.limits.connect, Self::connect(dial, addr, name.clone())).await;
        let late = || {
            let secs = dial.limits.connect.as_secs_f32();
            Error::new(Kind::Retry, format!("no connection within {secs} s"))
        };
        opened.unwrap_or_else(|_| Err(late())).at(|| name)
    }

    async fn connect(dial: &Dial, addr: SocketAddr, name: String) -> Result<Arc<Self>> {
        let connecting =
            dial.endpoint
                .connect_with(dial.config.clone(), addr, &dial.server_name)
                .map_err(|e| Error::caused(Kind::Invalid, format!("connecting: {e}"), e))?;
        let quic = connecting.await.map_err(|e| io::connection_error(&e))?;
        let (send, recv) = quic.open_bi().await.map_err(|e| io::connection_error(&e))?;
        let mut control = Control {
            machine: ClientControl::new(dial.limits.announced()),
            send,
            recv,
            gone: Arc::new(AtomicBool::new(false)),
            waiting: VecDeque::new(),
            welcome: None,
            patience: dial.limits.answer,
        };
        let tickets = dial.tickets.all();
        let answers = control.show_all(&tickets)?;
        let limits = control.greeted().await?;
        let (shows, orders) = mpsc::channel(16);
        let gone = control.gone.clone();
        tokio::spawn(control.run(quic.clone(), orders));
        // A quarter of what the server takes at once is for guests alone.
        let shared = limits.requests.max(2) - (limits.requests / 4).max(1);
        let bulk = shared.min(dial.limits.bulk).max(1) as usize;
        let session = Self {
            quic,
            name,
            limits,
            gone,
            shows,
            bulk: Arc::new(Semaphore::new(bulk)),
            in_flight: Arc::new(AtomicUsize::new(0)),
        };
        session.await_tickets(dial, answers).await?;
        session.show_added(dial, tickets).await;
        Ok(Arc::new(session))
    }

    async fn await_tickets(
        &self,
        dial: &Dial,
        answers: Vec<(String, oneshot::Receiver<Result<Granted>>)>,
    ) -> Result<()> {
        let (mut refused, mut granted) = (None, false);
        for (token, answer) in answers {
            match answer.await.unwrap_or_else(|_| Err(self.lost())) {
                Ok(right) => {
                    dial.tickets.granted(&token, right);
                    granted = true;
                }
                Err(e) => refused = Some(e),
            }
        }
        match refused {
            Some(e) if !granted => Err(e),
            _ => Ok(()),
        }
    }

    /// Shows the tickets that were added while it connected.
    async fn show_added(&self, dial: &Dial, mut shown: Vec<String>) {
        while let Some(token) = dial.tickets.all().into_iter().find(|t| !shown.contains(t)) {
            if let Ok(right) = self.show(&token).await {
                dial.tickets.granted(&token, right);
            }
            shown.push(token);
        }
    }

    /// Why the connection is of no use any more.
    fn lost(&self) -> Error {
        match self.quic.close_reason() {
            Some(e) => io::connection_error(&e),
            None => Error::new(Kind::Retry, "the server ended the control stream"),
        }
    }

    /// Shows one more ticket.
    pub(crate) async fn show(&self, token: &str) -> Result<Granted> {
        let (answer, answered) = oneshot::channel();
        let sent = self.shows.send((token.to_owned(), answer)).await;
        sent.map_err(|_| self.lost()).at(|| &self.name)?;
        answered.await.unwrap_or_else(|_| Err(self.lost())).at(|| &self.name)
    }

    /// Whether requests may still be made here.
    pub(crate) fn usable(&self) -> bool {
        !self.gone.load(Ordering::Relaxed) && self.quic.close_reason().is_none()
    }

    /// Ends the connection, and returns when the server was told, though perhaps has not heard.
    pub(crate) async fn close(&self) {
        const IN_TIME: Duration = Duration::from_millis(100);
        let sent = || self.quic.stats().udp_tx.datagrams;
        let before = sent();
        self.quic.close(close_code::DONE, b"");
        // Its driver, which runs beside, sends nothing else from now on.
        let told = async {
            while sent() == before {
                tokio::task::yield_now().await;
            }
        };
        let _ = timeout(IN_TIME, told).await;
    }

    /// Requests in flight.
    pub(crate) fn load(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Whether every place for requests that are no guest's is taken.
    pub(crate) fn full(&self) -> bool {
        self.bulk.available_permits() == 0
    }

    /// The server, for people.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Longest frame that the server takes.
    pub(crate) fn max_frame(&self) -> usize {
        self.limits.frame as usize
    }

    /// Waits for a place, opens a stream and sends the request on it.
    pub(crate) async fn request(
        &self,
        message: &Message,
        priority: Priority,
        patience: Duration,
    ) -> Result<Request> {
        // Counted before it waits, so that others see the queue and go elsewhere.
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        let mut place = Place { _bulk: None, in_flight: self.in_flight.clone() };
        if priority != Priority::Guest {
            let permit = self.bulk.clone().acquire_owned().await;
            place._bulk = Some(permit.expect("the semaphore is never closed"));
        }
        let (mut send, recv) = self.quic.open_bi().await.map_err(|e| io::connection_error(&e))?;
        let _ = send.set_priority(io::urgency(priority));
        io::write(&mut send, patience, &mut [message.encode()]).await?;
        Ok(Request { send, recv, _place: place })
    }
}

/// The control stream of a session and what waits on it.
struct Control {
    machine: ClientControl,
    send: SendStream,
    recv: RecvStream,
    gone: Arc<AtomicBool>,
    waiting: VecDeque<oneshot::Sender<Result<Granted>>>,
    welcome: Option<Limits>,
    patience: Duration,
}

impl Control {
    fn show_all(
        &mut self,
        tokens: &[String],
    ) -> Result<Vec<(String, oneshot::Receiver<Result<Granted>>)>> {
        let mut answers = Vec::new();
        for token in tokens {
            self.machine.ticket(token)?;
            let (answer, answered) = oneshot::channel();
            self.waiting.push_back(answer);
            answers.push((token.clone(), answered));
        }
        Ok(answers)
    }

    /// Says HELLO and waits for the WELCOME.
    async fn greeted(&mut self) -> Result<Limits> {
        self.flush().await?;
        loop {
            if let Some(limits) = self.welcome {
                return Ok(limits);
            }
            let mut pieces = Vec::new();
            if !io::read(&mut self.recv, self.patience, |p| pieces.push(p)).await? {
                return Err(Error::new(Kind::Retry, "the control stream ended before WELCOME"));
            }
            for piece in pieces {
                self.take(piece)?;
            }
        }
    }

    fn take(&mut self, bytes: bytes::Bytes) -> Result<()> {
        let result = self.machine.receive(bytes);
        while let Some(event) = self.machine.poll_event() {
            match event {
                ClientEvent::Welcome { limits, .. } => self.welcome = Some(limits),
                ClientEvent::Granted(granted) => self.answer(Ok(granted)),
                ClientEvent::Refused(e) => self.answer(Err(e)),
                ClientEvent::GoAway => self.gone.store(true, Ordering::Relaxed),
            }
        }
        result
    }

    fn answer(&mut self, answer: Result<Granted>) {
        let waiting = self.waiting.pop_front().expect("the machine pairs answers with tickets");
        // Who asked may have lost interest.
        let _ = waiting.send(answer);
    }

    async fn flush(&mut self) -> Result<()> {
        while let Some(bytes) = self.machine.poll_transmit() {
            io::write(&mut self.send, self.patience, &mut [bytes]).await?;
        }
        Ok(())
    }

    /// Lives as long as the session: until its owners are gone, or the server.
    async fn run(mut self, quic: Connection, mut orders: mpsc::Receiver<Show>) {
        loop {
            let result = tokio::select! {
                biased;
                order = orders.recv() => match order {
                    None => return quic.close(close_code::DONE, b""),
                    Some((token, answer)) => self.show(&token, answer).await,
                },
                read = self.recv.read_chunk(64 << 10, true) => match read {
                    Ok(Some(piece)) => self.take(piece.bytes),
                    Ok(None) | Err(_) => break,
                },
            };
            if let Err(e) = result {
                tracing::warn!(peer = %quic.remote_address(), reason = %e, "control stream failed");
                break;
            }
        }
        self.gone.store(true, Ordering::Relaxed);
    }

    async fn show(&mut self, token: &str, answer: oneshot::Sender<Result<Granted>>) -> Result<()> {
        if let Err(e) = self.machine.ticket(token) {
            let _ = answer.send(Err(e));
            return Ok(());
        }
        self.waiting.push_back(answer);
        self.flush().await
    }
}
