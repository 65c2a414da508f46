//! Who waits for a key of the state to change: each is woken by its own key alone, however many wait.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use super::UNPOISONED;

/// See the [module](self).
#[derive(Default)]
pub(super) struct Waiting {
    keys: Mutex<BTreeMap<String, Arc<Notify>>>,
    closed: AtomicBool,
}

/// One who waits. Dropped, it waits no more.
pub(super) struct Waiter<'a> {
    waiting: &'a Waiting,
    key: String,
    pub(super) told: Arc<Notify>,
}

impl Waiting {
    /// Waits for a key from now on.
    pub(super) fn on(&self, key: &str) -> Waiter<'_> {
        let mut keys = self.keys.lock().expect(UNPOISONED);
        let told = Arc::clone(keys.entry(key.to_owned()).or_default());
        Waiter { waiting: self, key: key.to_owned(), told }
    }

    /// Says that a key has changed.
    pub(super) fn tell(&self, key: &str) {
        if let Some(told) = self.keys.lock().expect(UNPOISONED).get(key) {
            told.notify_waiters();
        }
    }

    /// Ends all waiting, for good.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        self.keys.lock().expect(UNPOISONED).values().for_each(|told| told.notify_waiters());
    }

    /// Whether all waiting has ended.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut keys = self.waiting.keys.lock().expect(UNPOISONED);
        // The map's, and ours: nobody else waits for it.
        if Arc::strong_count(&self.told) == 2 {
            keys.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_nobody_waits_for_are_forgotten() {
        let waiting = Waiting::default();
        let (a, b) = (waiting.on("a"), waiting.on("a"));
        drop(a);
        assert_eq!(waiting.keys.lock().unwrap().len(), 1);
        drop(b);
        assert!(waiting.keys.lock().unwrap().is_empty());
        waiting.tell("a");
        waiting.close();
        assert!(waiting.is_closed());
    }
}
