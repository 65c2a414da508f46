//! Leadership: of several placements over one state, one runs the controllers.
//!
//! A leader holds a key. Over etcd the key hangs on a lease that the leader keeps alive; its own [`Deadline`]
//! passes before that lease can end, counted on a clock that goes on while the machine is suspended.
//! What it commits as a leader compares the version of its key, so that a leader who was deposed and does
//! not know it yet changes nothing, whatever any clock says.

use std::any::Any;
use std::future::{Future, poll_fn};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use image::{Error, Kind, Result};
use tokio::sync::watch;

use super::keys::{Keys, Transaction};
use crate::clock::Uptime;

/// Longest nap of who waits for a deadline. Timers stand still while a machine is suspended, the clock does
/// not: this long after it woke up at most, who waits knows.
const NAP: Duration = Duration::from_millis(250);

/// Until when its holder may act, by the holder's own clock. Once it has passed it stays so. Cheap to clone.
#[derive(Clone)]
pub struct Deadline {
    uptime: Uptime,
    /// Nothing: it has passed.
    until: Arc<watch::Sender<Option<Duration>>>,
}

impl Deadline {
    /// One that passes when the clock shows `until`.
    pub fn at(until: Duration, uptime: Uptime) -> Self {
        Self { uptime, until: Arc::new(watch::Sender::new(Some(until))) }
    }

    /// One that passes only if it is told to.
    pub(super) fn never() -> Self {
        Self::at(Duration::MAX, Uptime::new(|| Duration::ZERO))
    }

    /// Puts it off; not if it has passed. Returns whether it still stands.
    pub fn put_off(&self, until: Duration) -> bool {
        self.look(|old| until.max(old))
    }

    /// Makes it pass.
    pub fn pass(&self) {
        self.until.send_replace(None);
    }

    /// Whether it has passed.
    pub(super) fn passed(&self) -> bool {
        !self.look(|old| old)
    }

    fn look(&self, next: impl FnOnce(Duration) -> Duration) -> bool {
        let now = self.uptime.now();
        let mut stands = false;
        self.until.send_if_modified(|until| {
            let before = *until;
            *until = before.filter(|until| now < *until).map(next);
            stands = until.is_some();
            *until != before
        });
        stands
    }

    async fn wait(&self) {
        let mut changes = self.until.subscribe();
        while !self.passed() {
            let left = changes
                .borrow_and_update()
                .map_or(Duration::ZERO, |until| until.saturating_sub(self.uptime.now()).min(NAP));
            // The sender is ours, so it is there.
            let _ = tokio::time::timeout(left, changes.changed()).await;
        }
    }
}

/// A key that was taken by [`Keys::campaign`].
pub struct Reign {
    /// The version of the key, as it was taken.
    pub version: u64,
    /// Until when it is held for sure.
    pub deadline: Deadline,
    /// What keeps it; dropped, the key lapses.
    pub keep: Box<dyn Any + Send + Sync>,
}

/// Leadership. Dropped, it lapses after its time; [`Lead::resign`] ends it at once.
pub struct Lead {
    keys: Arc<dyn Keys>,
    key: String,
    version: u64,
    deadline: Deadline,
    /// See [`Reign::keep`]; nothing: it was given up.
    keep: Mutex<Option<Box<dyn Any + Send + Sync>>>,
}

impl Lead {
    pub(super) fn new(keys: Arc<dyn Keys>, key: String, reign: Reign) -> Self {
        let Reign { version, deadline, keep } = reign;
        Self { keys, key, version, deadline, keep: Mutex::new(Some(keep)) }
    }

    /// Whether it is held for sure, as of now.
    pub fn holds(&self) -> bool {
        !self.deadline.passed()
    }

    /// Ends when leadership is lost, before somebody else can have it.
    pub async fn lost(&self) {
        self.deadline.wait().await;
    }

    /// Does work as long as leadership is held: what it has not begun by then it does not begin any more.
    ///
    /// # Errors
    ///
    /// Of the work; [`Kind::Retry`] if leadership was lost meanwhile, and some of it may have been done.
    pub async fn during<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let (mut work, mut lost) = (std::pin::pin!(work), std::pin::pin!(self.lost()));
        poll_fn(|cx| {
            // Asked of the clock itself: after this process has stood still, a timer may be late.
            if !self.holds() || lost.as_mut().poll(cx).is_ready() {
                let what = "another placement leads now: ask it, and look what was done";
                return Poll::Ready(Err(Error::new(Kind::Retry, what)));
            }
            work.as_mut().poll(cx)
        })
        .await
    }

    /// Commits a transaction if leadership still holds, by the state's own account; else it is a conflict.
    pub async fn commit(&self, mut transaction: Transaction) -> Result<()> {
        if !self.holds() {
            return Err(self.deposed());
        }
        transaction.compares.push((self.key.clone(), Some(self.version)));
        match self.keys.commit(transaction).await {
            Err(e) if e.kind() == Kind::Conflict && !self.is_ours().await? => Err(self.deposed()),
            done => done,
        }
    }

    /// Ends it, so that somebody else can lead at once.
    pub async fn resign(&self) -> Result<()> {
        self.deadline.pass();
        let key = (self.key.clone(), Some(self.version));
        let mut resign = Transaction::default().delete(&self.key);
        resign.compares.push(key);
        let resigned = self.keys.commit(resign).await;
        drop(self.keep.lock().unwrap_or_else(PoisonError::into_inner).take());
        match resigned {
            Err(e) if e.kind() == Kind::Conflict => Ok(()),
            done => done,
        }
    }

    async fn is_ours(&self) -> Result<bool> {
        let there = self.keys.get(self.key.clone()).await?;
        let ours = there.is_some_and(|there| there.version == self.version);
        if !ours {
            self.deadline.pass();
        }
        Ok(ours)
    }

    fn deposed(&self) -> Error {
        let what = format!("placement's state: `{}` is held by this process no longer", self.key);
        Error::new(Kind::Conflict, what)
    }
}
