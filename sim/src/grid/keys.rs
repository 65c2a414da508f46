//! Keys as etcd keeps them, in memory: one revision after the other, and leases that end.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::stream;
use image::{Error, Kind, Result};
use placement::state::keys::{Change, Listing, Transaction, Versioned, Watch};
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::trace::Trace;

/// See the [module](self).
pub(crate) struct Etcd {
    trace: Trace,
    kept: Mutex<Kept>,
    changed: Notify,
}

#[derive(Default)]
struct Kept {
    revision: u64,
    keys: BTreeMap<String, Versioned>,
    /// Keys that end, and when.
    ends: BTreeMap<String, Duration>,
    past: Vec<Change>,
    /// It has no power.
    off: bool,
    /// How often it was started.
    starts: u64,
}

impl Kept {
    fn version(&self, key: &str) -> Option<u64> {
        self.keys.get(key).map(|there| there.version)
    }

    fn change(&mut self, changes: Vec<(String, Option<Vec<u8>>)>) {
        self.revision += 1;
        let version = self.revision;
        for (key, value) in changes {
            self.ends.remove(&key);
            match value.clone() {
                Some(value) => self.keys.insert(key.clone(), Versioned { version, value }),
                None => self.keys.remove(&key),
            };
            self.past.push(Change { key, version, value });
        }
    }
}

impl Etcd {
    pub(crate) fn new(trace: &Trace) -> Arc<Self> {
        Arc::new(Self { trace: trace.clone(), kept: Mutex::default(), changed: Notify::new() })
    }

    /// Its power goes, and comes back later. What it has acknowledged is there; who watches has to begin anew.
    pub(crate) async fn power_cut(&self, lasts: Duration) {
        {
            let mut kept = self.kept();
            kept.off = true;
            kept.starts += 1;
        }
        self.changed.notify_waiters();
        sleep(lasts).await;
        self.kept().off = false;
    }

    pub(crate) fn is_off(&self) -> bool {
        self.kept().off
    }

    pub(crate) fn starts(&self) -> u64 {
        self.kept().starts
    }

    /// As of now: what has ended is gone.
    fn kept(&self) -> MutexGuard<'_, Kept> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.trace.now();
        let over = kept.ends.iter().filter(|(_, end)| **end <= now);
        let over: Vec<_> = over.map(|(key, _)| (key.clone(), None)).collect();
        if !over.is_empty() {
            kept.change(over);
            self.changed.notify_waiters();
        }
        kept
    }

    pub(crate) fn get(&self, key: &str) -> Option<Versioned> {
        self.kept().keys.get(key).cloned()
    }

    pub(crate) fn list(&self, prefix: &str) -> Listing {
        let kept = self.kept();
        let from = kept.keys.range(prefix.to_owned()..);
        let some = from.take_while(|(key, _)| key.starts_with(prefix));
        let entries = some.map(|(key, value)| (key.clone(), value.clone())).collect();
        Listing { revision: kept.revision, entries }
    }

    pub(crate) fn commit(&self, transaction: Transaction) -> Result<()> {
        let mut kept = self.kept();
        if !transaction.compares.iter().all(|(key, version)| kept.version(key) == *version) {
            return Err(Error::new(Kind::Conflict, "it was changed meanwhile"));
        }
        kept.change(transaction.changes);
        self.changed.notify_waiters();
        Ok(())
    }

    /// Takes a key that nobody has, until a time.
    pub(crate) fn take(&self, key: &str, id: &[u8], end: Duration) -> Option<u64> {
        let mut kept = self.kept();
        if kept.keys.contains_key(key) {
            return None;
        }
        kept.change(vec![(key.to_owned(), Some(id.to_vec()))]);
        kept.ends.insert(key.to_owned(), end);
        self.changed.notify_waiters();
        Some(kept.revision)
    }

    /// Keeps a key that was taken until a later time; says whether it is still there.
    pub(crate) fn keep(&self, key: &str, version: u64, end: Duration) -> bool {
        let mut kept = self.kept();
        let ours = kept.version(key) == Some(version);
        if ours {
            kept.ends.insert(key.to_owned(), end);
        }
        ours
    }

    pub(crate) fn watch(self: &Arc<Self>, prefix: String, after: u64) -> Watch {
        let from = Some((Arc::clone(self), after, 0, self.starts()));
        Box::pin(stream::unfold(from, move |from| {
            let prefix = prefix.clone();
            async move {
                let (etcd, after, mut at, starts) = from?;
                loop {
                    if etcd.starts() != starts {
                        let over = Error::new(Kind::Retry, "the power has gone");
                        return Some((Err(over), None));
                    }
                    let mut changed = pin!(etcd.changed.notified());
                    changed.as_mut().enable();
                    let change = {
                        let kept = etcd.kept();
                        let next = kept.past[at..].iter().position(|change| {
                            change.version > after && change.key.starts_with(&prefix)
                        });
                        let found = next.map(|next| at + next);
                        let change = found.map(|found| kept.past[found].clone());
                        at = found.map_or(kept.past.len(), |found| found + 1);
                        change
                    };
                    if let Some(change) = change {
                        let next = (Arc::clone(&etcd), after, at, starts);
                        return Some((Ok(change), Some(next)));
                    }
                    changed.await;
                }
            }
        }))
    }
}
