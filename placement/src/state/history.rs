//! The latest changes of the embedded state, in memory, for those who watch it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use futures::stream;
use image::{Error, Kind, Result};
use tokio::sync::watch;

use super::keys::{Change, Watch};

/// Most bytes of keys and values that are remembered.
const MEMORY: usize = 4 << 20;

/// What was changed lately. Cheap to clone.
#[derive(Clone)]
pub(super) struct History(Arc<Inner>);

struct Inner {
    past: Mutex<Past>,
    /// The latest revision that is in the past.
    latest: watch::Sender<u64>,
}

struct Past {
    /// All changes after this revision are here, in their order.
    after: u64,
    changes: VecDeque<Change>,
    bytes: usize,
}

fn size(change: &Change) -> usize {
    change.key.len() + change.value.as_ref().map_or(0, Vec::len) + size_of::<Change>()
}

impl History {
    /// Of a state that is at a revision.
    pub(super) fn new(revision: u64) -> Self {
        let past = Past { after: revision, changes: VecDeque::new(), bytes: 0 };
        Self(Arc::new(Inner { past: Mutex::new(past), latest: watch::Sender::new(revision) }))
    }

    /// Holds others up, so that what is committed is remembered in the order in which it was.
    pub(super) fn turn(&self) -> Turn<'_> {
        Turn { past: self.0.past.lock().expect("nothing panics in a turn"), latest: &self.0.latest }
    }

    /// The changes of keys that begin with `prefix`, after a revision.
    pub(super) fn watch(&self, prefix: String, after: u64) -> Watch {
        let cursor = (self.clone(), self.0.latest.subscribe(), after, VecDeque::new());
        Box::pin(stream::try_unfold(cursor, move |(history, mut latest, mut after, mut due)| {
            let prefix = prefix.clone();
            async move {
                while due.is_empty() {
                    let now = *latest.borrow_and_update();
                    history.collect(&prefix, after, &mut due)?;
                    after = after.max(now).max(due.back().map_or(0, |c: &Change| c.version));
                    // The sender is as old as the history that we hold.
                    if due.is_empty() && latest.changed().await.is_err() {
                        return Ok(None);
                    }
                }
                Ok(due.pop_front().map(|change| (change, (history, latest, after, due))))
            }
        }))
    }

    fn collect(&self, prefix: &str, after: u64, due: &mut VecDeque<Change>) -> Result<()> {
        let past = self.0.past.lock().expect("nothing panics in a turn");
        if after < past.after {
            let what = format!(
                "placement's state: the changes after revision {after} are no longer known; list anew"
            );
            return Err(Error::new(Kind::Gone, what));
        }
        let from = past.changes.partition_point(|change| change.version <= after);
        due.extend(past.changes.range(from..).filter(|c| c.key.starts_with(prefix)).cloned());
        Ok(())
    }
}

/// The right to commit, one at a time.
pub(super) struct Turn<'h> {
    past: MutexGuard<'h, Past>,
    latest: &'h watch::Sender<u64>,
}

impl Turn<'_> {
    /// Remembers what was committed in a revision, and wakes who watches.
    pub(super) fn committed(mut self, revision: u64, changes: Vec<(String, Option<Vec<u8>>)>) {
        for (key, value) in changes {
            let change = Change { key, version: revision, value };
            self.past.bytes += size(&change);
            self.past.changes.push_back(change);
        }
        // Revisions are forgotten whole.
        while self.past.bytes > MEMORY
            && let Some(oldest) = self.past.changes.front().map(|c| c.version)
        {
            while let Some(change) = self.past.changes.pop_front_if(|c| c.version == oldest) {
                self.past.bytes -= size(&change);
            }
            self.past.after = oldest;
        }
        drop(self.past);
        self.latest.send_replace(revision);
    }

    /// It is not known what was committed in a revision: nobody who watches may go on.
    pub(super) fn unknown(mut self, revision: u64) {
        (self.past.after, self.past.bytes) = (revision, 0);
        self.past.changes.clear();
        drop(self.past);
        self.latest.send_replace(revision);
    }
}
