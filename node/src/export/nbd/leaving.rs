//! Clients that have gone, and what they left under way.
//!
//! A client that connects again repeats what was not answered, and then goes on: a write that it left behind
//! must not land on what it writes next. So whoever comes waits for those who have gone.

use std::cell::Cell;

use tokio::sync::Notify;

/// How many connections have no client any more, and still work for it.
#[derive(Debug, Default)]
pub(super) struct Leaving {
    count: Cell<usize>,
    ended: Notify,
}

/// One such connection; ends when dropped.
#[derive(Debug)]
pub(super) struct Left<'a>(&'a Leaving);

impl Leaving {
    /// A client has gone.
    pub(super) fn begin(&self) -> Left<'_> {
        self.count.set(self.count.get() + 1);
        Left(self)
    }

    /// Waits until nothing is under way for any that has gone.
    pub(super) async fn over(&self) {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            if self.count.get() == 0 {
                return;
            }
            ended.await;
        }
    }
}

impl Drop for Left<'_> {
    fn drop(&mut self) {
        self.0.count.set(self.0.count.get() - 1);
        self.0.ended.notify_waiters();
    }
}
