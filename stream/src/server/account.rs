//! One connection's loan at work: how much may be written and not yet acknowledged, how many requests may
//! have frames in work, and who writes next.
//!
//! What QUIC has taken it sends by priority, and what was sent cannot be overtaken. So a guest's answer waits
//! for what is on its way, and for nothing else: while it is written nobody else writes, and while its node
//! has guests the others keep no more on its way than the path carries and one frame.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use bytes::Bytes;
use image::{Error, Kind, Priority, Result};
use quinn::{Connection, SendStream};
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::timeout;

use super::ServerLimits;
use super::budget::Budget;
use super::memory::{Extra, LEAST_WINDOW, Loan};
use crate::io;

/// Of what is lent a quarter is the send window; the rest is for frames in work.
const PARTS: usize = 4;
/// For the frames in work of images on their way in.
const IMAGE_WORK: usize = 8 << 20;
/// What one frame of a usual chunk takes on its way.
const ONE_FRAME: usize = 272 << 10;

/// The memory of one connection.
pub(super) struct Account {
    quic: Connection,
    loan: RefCell<Loan>,
    budget: Budget,
    receiving: RefCell<Option<Extra>>,
    /// Most that the send window and the frames in work may become.
    most: (usize, usize),
    patience: Duration,
    /// Written since it was lent more.
    taken: Cell<usize>,
    window: Cell<usize>,
    guests: Cell<usize>,
    guests_changed: Notify,
}

#[expect(clippy::disallowed_methods, reason = "a driver: guests are recent in the runtime's time")]
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl Account {
    pub(super) fn new(quic: Connection, loan: Loan, limits: &ServerLimits) -> Self {
        let work = limits.held.min(loan.bytes() / PARTS * (PARTS - 1));
        let account = Self {
            quic,
            loan: RefCell::new(loan),
            budget: Budget::new(work),
            receiving: RefCell::new(None),
            most: (limits.window, limits.held),
            patience: limits.stall,
            taken: Cell::new(0),
            window: Cell::new(0),
            guests: Cell::new(0),
            guests_changed: Notify::new(),
        };
        account.set_window(account.bulk_window());
        account
    }

    /// Waits for room for a request's frame in work. What is not there in time is busy: the client has others
    /// to ask, or reads too slowly itself.
    pub(super) async fn take(
        &self,
        bytes: usize,
        priority: Priority,
    ) -> Result<OwnedSemaphorePermit> {
        if priority == Priority::Guest {
            self.loan.borrow().guest_reads(now());
        }
        let taken = timeout(self.patience / 2, self.budget.take(bytes, priority)).await;
        taken.unwrap_or_else(|_| {
            let why = "the requests before this one take all memory of the connection";
            Err(Error::new(Kind::Busy(BUSY), why))
        })
    }

    /// The same for a message that may be longer than all of the connection's own: what is beyond that is lent
    /// besides, or busy.
    pub(super) async fn take_long(&self, bytes: usize) -> Result<Room> {
        let beyond = bytes.saturating_sub(self.budget.most());
        let besides = match beyond {
            0 => None,
            beyond => Some(self.loan.borrow().extra(beyond).ok_or_else(|| {
                Error::new(Kind::Busy(BUSY), "there is no memory for a message so long")
            })?),
        };
        Ok(Room { _own: self.take(bytes, Priority::Background).await?, _besides: besides })
    }

    /// Writes buffers without copying them, guests' first. It is an error if nothing is taken for too long.
    pub(super) async fn write(
        &self,
        send: &mut SendStream,
        priority: Priority,
        buffers: &mut [Bytes],
    ) -> Result<()> {
        if priority != Priority::Guest {
            return self.write_bulk(send, buffers).await;
        }
        let bytes: usize = buffers.iter().map(Bytes::len).sum();
        let _writing = Writing::new(self);
        io::write(send, self.patience, buffers).await?;
        self.wrote(bytes);
        Ok(())
    }

    /// Lets guests pass, also in the middle.
    async fn write_bulk(&self, send: &mut SendStream, mut buffers: &mut [Bytes]) -> Result<()> {
        while !buffers.is_empty() {
            let changed = self.guests_changed.notified();
            if self.guests.get() > 0 {
                changed.await;
                continue;
            }
            self.set_window(self.bulk_window());
            let written = tokio::select! {
                biased;
                // Nothing of what is written here was taken then.
                () = changed => continue,
                written = io::write_some(send, self.patience, buffers) => written?,
            };
            self.wrote(written.bytes);
            buffers = &mut buffers[written.chunks..];
        }
        Ok(())
    }

    /// The reader has taken what was lent once it was written twice: then it gets more.
    fn wrote(&self, bytes: usize) {
        self.taken.set(self.taken.get() + bytes);
        let mut loan = self.loan.borrow_mut();
        let lent = loan.bytes();
        if self.taken.get() < 2 * lent / PARTS {
            return;
        }
        self.taken.set(0);
        if loan.grow(PARTS * self.most.0) {
            let more = (loan.bytes() - lent) / PARTS * (PARTS - 1);
            self.budget.grow(more, self.most.1);
        }
    }

    /// Nothing is in work and everything was acknowledged: what was lent is given back, but for the first.
    pub(super) fn rest(&self) {
        self.taken.set(0);
        let mut loan = self.loan.borrow_mut();
        loan.rest();
        let images = if self.receiving.borrow().is_some() { IMAGE_WORK } else { 0 };
        self.budget.shrink(loan.bytes() / PARTS * (PARTS - 1) + images);
    }

    /// Takes more at once from a peer that sends an image, if there is memory for that; else it goes on
    /// with what it has. What was promised to it cannot be taken back, so the connection keeps that until its
    /// end; that of a peer which died lasts until it is given up.
    pub(super) fn receive(&self, window: u32) {
        let mut receiving = self.receiving.borrow_mut();
        if receiving.is_some() {
            return;
        }
        if let Some(extra) = self.loan.borrow().extra(window as usize + IMAGE_WORK) {
            self.quic.set_receive_window(window.into());
            self.budget.grow(IMAGE_WORK, self.most.1);
            *receiving = Some(extra);
        }
    }

    fn set_window(&self, bytes: usize) {
        if self.window.replace(bytes) != bytes {
            self.quic.set_send_window(bytes as u64);
        }
    }

    /// The connection's own part of what its node may have on its way.
    fn own_window(&self) -> usize {
        let loan = self.loan.borrow();
        (loan.bytes() / PARTS).min(share(self.most.0, loan.beside()))
    }

    /// The window of those who are no guests.
    fn bulk_window(&self) -> usize {
        let own = self.own_window();
        if !self.loan.borrow().has_guests(now()) {
            return own;
        }
        // What was on its way in the last round trip, cut down to what the path carries without a queue.
        let path = self.quic.stats().path;
        let sent = own.min(usize::try_from(path.cwnd).unwrap_or(own)) as f64;
        let carried = sent * path.min_rtt.as_secs_f64() / path.rtt.as_secs_f64().max(1e-9);
        own.min(carried as usize + ONE_FRAME)
    }
}

/// What one of the connections of a node may have on its way.
fn share(most: usize, connections: usize) -> usize {
    (most / connections).max(LEAST_WINDOW)
}

/// Memory for a long message. Dropped, it is given back.
pub(super) struct Room {
    _own: OwnedSemaphorePermit,
    _besides: Option<Extra>,
}

/// When a client should ask again: a few frames later.
pub(super) const BUSY: Duration = Duration::from_secs(1);

/// A guest's answer is being written: the others wait, and the window is open.
struct Writing<'a>(&'a Account);

impl<'a> Writing<'a> {
    fn new(account: &'a Account) -> Self {
        account.guests.set(account.guests.get() + 1);
        account.guests_changed.notify_waiters();
        // Beside what the others may have on their way there is always room for one frame.
        let window = account.own_window().max(account.bulk_window() + ONE_FRAME);
        account.set_window(window);
        Self(account)
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.guests.set(self.0.guests.get() - 1);
        self.0.guests_changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_with_many_connections_has_no_more_on_its_way_than_one_with_one() {
        let most = ServerLimits::default().window;
        for connections in [1, 2, 3, 16, 64, 128] {
            assert!(connections * share(most, connections) <= most);
        }
    }
}
