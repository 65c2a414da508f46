//! Where the frames of one read arrive, from whichever flights and cores fetch them.
//!
//! A flight must not be held up by one slow reader, and a slow reader must not hold up memory. So a
//! mailbox takes frames up to a window; beyond it (or when the in-flight budget is used up) it takes
//! only the chunk's number, and the reader looks that chunk up again when it gets to it: by then it
//! is in a tier, or it is fetched once more. An empty mailbox takes one frame always: the read's own
//! place pays for that, and so every round of a read gives it at least one frame.
//!
//! Exactly one event comes for each chunk that boarded a flight.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use image::{Error, Frame};
use tokio::sync::mpsc;

use crate::admission::Charge;

/// What became of a chunk.
pub(crate) enum Event {
    /// Here it is.
    Frame(u32, Frame, Option<Arc<Charge>>),
    /// It was fetched, but there was no room here: look again.
    LookAgain(u32),
    /// It cannot be had.
    Failed(u32, Error),
}

/// The flights' end.
pub(crate) struct Mailbox {
    window: u64,
    queued: AtomicU64,
    events: mpsc::UnboundedSender<Event>,
}

/// The read's end.
pub(crate) struct Inbox {
    mailbox: Arc<Mailbox>,
    events: mpsc::UnboundedReceiver<Event>,
}

/// A mailbox that holds frames of about `window` bytes.
pub(crate) fn mailbox(window: u64) -> Inbox {
    let (sender, events) = mpsc::unbounded_channel();
    let mailbox = Arc::new(Mailbox { window, queued: AtomicU64::new(0), events: sender });
    Inbox { mailbox, events }
}

impl Mailbox {
    /// Takes a frame, or its number. Who has gone needs neither.
    pub(crate) fn give(&self, chunk: u32, frame: &Frame, charge: Option<&Arc<Charge>>) {
        let len = frame.bytes().len() as u64;
        let queued = self.queued.load(Ordering::Acquire);
        let fits = charge.is_some() && queued + len <= self.window;
        let event = if queued == 0 || fits {
            self.queued.fetch_add(len, Ordering::AcqRel);
            Event::Frame(chunk, frame.clone(), charge.cloned())
        } else {
            Event::LookAgain(chunk)
        };
        let _ = self.events.send(event);
    }

    /// Takes the news that a chunk cannot be had.
    pub(crate) fn fail(&self, chunk: u32, error: Error) {
        let _ = self.events.send(Event::Failed(chunk, error));
    }
}

impl Inbox {
    /// What flights are given.
    pub(crate) fn mailbox(&self) -> &Arc<Mailbox> {
        &self.mailbox
    }

    /// The next event.
    pub(crate) async fn next(&mut self) -> Event {
        self.events.recv().await.expect("this end holds a sender itself")
    }

    /// Makes room for what a frame took, once the sink has it.
    pub(crate) fn taken(&self, frame_len: usize) {
        self.mailbox.queued.fetch_sub(frame_len as u64, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::Admission;
    use image::{Codec, Digest, Domain};
    use std::time::Duration;

    fn frame() -> Frame {
        Frame::new(Codec::Raw, Domain::PUBLIC, Digest::of_chunk(b"x"), 36, &[1; 36])
    }

    async fn kinds(inbox: &mut Inbox, n: usize) -> String {
        let mut kinds = String::new();
        for _ in 0..n {
            kinds.push(match inbox.next().await {
                Event::Frame(..) => 'F',
                Event::LookAgain(_) => 'L',
                Event::Failed(..) => 'E',
            });
        }
        kinds
    }

    #[tokio::test]
    async fn beyond_the_window_come_numbers() {
        let admission = Admission::new(10_000, Duration::ZERO);
        let mut inbox = mailbox(250);
        for chunk in 0..4 {
            let charge = admission.try_charge(100).map(Arc::new);
            inbox.mailbox().give(chunk, &frame(), charge.as_ref());
        }
        assert_eq!(kinds(&mut inbox, 4).await, "FFLL");
        inbox.taken(200);
        inbox.mailbox().give(4, &frame(), admission.try_charge(100).map(Arc::new).as_ref());
        assert_eq!(kinds(&mut inbox, 1).await, "F");
        assert_eq!(admission.in_flight(), 0);
    }

    #[tokio::test]
    async fn without_budget_only_an_empty_mailbox_takes_a_frame() {
        let mut inbox = mailbox(250);
        inbox.mailbox().give(0, &frame(), None);
        inbox.mailbox().give(1, &frame(), None);
        assert_eq!(kinds(&mut inbox, 2).await, "FL");
    }
}
