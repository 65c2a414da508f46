//! Keys of the state in memory: as they were when they were listed, and every change since.
//!
//! A decision that is made by them is written with the versions that they have here. If somebody else was faster it is a
//! conflict, and made anew: what is late here is never wrong for it.
//!
//! A value that cannot be read is left out, and said with its key: it concerns nobody else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use image::Result;

use crate::state::State;
use crate::state::keys::{Change, Versioned, Watch};

/// How long one waits to see what one has written oneself, before all is listed anew.
const SEEN: Duration = Duration::from_secs(1);

/// What a key's value is here; nothing: it is of no interest.
type Read<T> = fn(&str, &Versioned) -> Result<Option<T>>;

/// The keys that begin with a prefix, by the rest of each.
pub(super) struct Mirror<T> {
    prefix: &'static str,
    read: Read<T>,
    entries: BTreeMap<String, (T, Versioned)>,
    /// Of which nothing can be read.
    unreadable: BTreeSet<String>,
    /// In a lock that is never taken, so that a mirror can be shared, which a stream cannot.
    changes: Option<Mutex<Watch>>,
    /// Keys that were written here, and are to be seen.
    written: BTreeSet<String>,
}

impl<T> Mirror<T> {
    pub(super) fn new(prefix: &'static str, read: Read<T>) -> Self {
        let (entries, unreadable, written) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        Self { prefix, read, entries, unreadable, changes: None, written }
    }

    /// All that is known by now, and what was written here in any case.
    pub(super) async fn catch_up(&mut self, state: &State) -> Result<()> {
        while let Some(changes) = &mut self.changes {
            let changes = changes.get_mut().unwrap_or_else(PoisonError::into_inner);
            let next = match self.written.is_empty() {
                true => changes.next().now_or_never(),
                false => tokio::time::timeout(SEEN, changes.next()).await.ok(),
            };
            match next {
                Some(Some(Ok(change))) => self.apply(change),
                None if self.written.is_empty() => return Ok(()),
                // It was too slow, or what is due is not known any more.
                _ => self.changes = None,
            }
        }
        let listing = state.listing(self.prefix).await?;
        self.entries.clear();
        self.unreadable.clear();
        self.written.clear();
        for (key, value) in listing.entries {
            self.put(&key, value);
        }
        self.changes = Some(Mutex::new(state.watch(self.prefix, listing.revision)));
        Ok(())
    }

    fn apply(&mut self, Change { key, version, value }: Change) {
        self.written.remove(&key);
        match value {
            Some(value) => self.put(&key, Versioned { version, value }),
            None => {
                let name = &key[self.prefix.len()..];
                self.entries.remove(name);
                self.unreadable.remove(name);
            }
        }
    }

    fn put(&mut self, key: &str, value: Versioned) {
        let name = &key[self.prefix.len()..];
        self.unreadable.remove(name);
        match (self.read)(key, &value) {
            Ok(Some(read)) => {
                // What was read is what counts; the bytes are not needed to compare versions.
                let seen = Versioned { version: value.version, value: Vec::new() };
                self.entries.insert(name.to_owned(), (read, seen));
            }
            Ok(None) => drop(self.entries.remove(name)),
            Err(error) => {
                tracing::error!(key, %error, "it is left out, and what it concerns stands still");
                self.entries.remove(name);
                self.unreadable.insert(name.to_owned());
            }
        }
    }

    /// A key was written here: who looks next is to see it.
    pub(super) fn wrote(&mut self, key: &str) {
        if key.starts_with(self.prefix) && self.changes.is_some() {
            self.written.insert(key.to_owned());
        }
    }

    /// What is left out, by the rest of each key.
    pub(super) fn unreadable(&self) -> &BTreeSet<String> {
        &self.unreadable
    }

    pub(super) fn entries(&self) -> &BTreeMap<String, (T, Versioned)> {
        &self.entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::keys::{Transaction, decode, encode};

    #[tokio::test]
    async fn it_is_what_the_state_is_after_any_changes() {
        let state = State::in_memory("g").await;
        let even = |key: &str, value: &Versioned| {
            Ok(Some(decode::<u64>(key, value)?).filter(|n| n.is_multiple_of(2)))
        };
        let mut mirror = Mirror::new("n/", even);
        for n in 0..40_u64 {
            let key = format!("n/{}", n % 7);
            let tx = Transaction::default();
            let tx = if n % 5 == 4 { tx.delete(&key) } else { tx.put(&key, encode(&n)) };
            state.commit(tx.put("other", encode(&n))).await.unwrap();
            if n % 3 == 0 {
                continue;
            }
            mirror.wrote(&key);
            mirror.catch_up(&state).await.unwrap();
            let all = state.list_versioned::<u64>("n/").await.unwrap();
            let all = all.into_iter().filter(|(_, n, _)| n.is_multiple_of(2));
            let all: Vec<_> = all.map(|(name, n, seen)| (name, n, seen.version)).collect();
            let here = mirror.entries().iter();
            let here: Vec<_> =
                here.map(|(name, (n, seen))| (name.clone(), *n, seen.version)).collect();
            assert_eq!(here, all);
        }
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_left_out_until_it_can() {
        let state = State::in_memory("g").await;
        let mut mirror = Mirror::new("n/", |key, value| decode::<u64>(key, value).map(Some));
        let put = |name: &str, value: &str| Transaction::default().put(name, value.into());
        for tx in [put("n/a", "1"), put("n/b", "{"), put("n/c", "3")] {
            state.commit(tx).await.unwrap();
        }
        let mut sees = async |names: &[&str], bad: &[&str]| {
            mirror.catch_up(&state).await.unwrap();
            assert_eq!(mirror.entries().keys().collect::<Vec<_>>(), names);
            assert_eq!(mirror.unreadable().iter().collect::<Vec<_>>(), bad);
        };
        sees(&["a", "c"], &["b"]).await;
        state.commit(put("n/a", "x")).await.unwrap();
        state.commit(put("n/b", "2")).await.unwrap();
        sees(&["b", "c"], &["a"]).await;
        state.commit(Transaction::default().delete("n/a")).await.unwrap();
        sees(&["b", "c"], &[]).await;
    }

    #[tokio::test]
    async fn what_is_no_longer_known_is_listed_anew() {
        let state = State::in_memory("g").await;
        let mut mirror = Mirror::new("n/", |_, value| Ok(Some(value.value.len())));
        mirror.catch_up(&state).await.unwrap();
        // More than the state remembers of its changes.
        for n in 0..6 {
            let tx = Transaction::default().put("other", vec![n; 1 << 20]);
            state.commit(tx.put("n/a", vec![0; usize::from(n)])).await.unwrap();
        }
        mirror.catch_up(&state).await.unwrap();
        assert_eq!(mirror.entries()["a"].0, 5);
    }
}
