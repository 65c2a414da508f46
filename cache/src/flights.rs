//! Single flight: which chunks are being fetched, by whom, and who waits for them.
//!
//! ```text
//!            no entry             entry
//!  board ──► make one, lead   ──► join          (a more urgent reader leads a second fetch, once)
//!  land  ──► the entry goes; its waiters get the frame
//!  fail  ──► the fetch leaves the entry; with the last one it goes, its waiters get the error
//!  leave ──► a waiter goes; with the last one the fetches are told
//! ```
//! Pure bookkeeping: the fetch itself is [`crate::flight`]. A frame goes into the memory tier before
//! its entry goes, and who makes an entry looks into the memory tier once more under the entry's
//! lock: so a chunk that has just landed is not fetched again.

use std::collections::HashMap;
use std::collections::hash_map::Entry as MapEntry;
use std::sync::Arc;

use image::{Error, Priority};
use tokio::sync::Notify;

use crate::key::Key;
use crate::mailbox::Mailbox;
use crate::sharded::Sharded;

const SHARDS: usize = 64;

/// What a flight is for. A repair does not share one with others: they are content with a copy that
/// a repair would not believe.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct FlightKey {
    pub(crate) key: Key,
    pub(crate) repair: bool,
}

/// Who waits for a chunk.
#[derive(Clone)]
pub(crate) struct Waiter {
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) chunk: u32,
}

/// A fetch under way, seen from its entries.
#[derive(Default)]
pub(crate) struct Fetch {
    /// Told when an entry of this fetch has lost its last waiter.
    pub(crate) deserted: Notify,
}

/// How a reader came aboard.
pub(crate) enum Boarded {
    /// It waits for a fetch that is under way.
    Joined,
    /// It must fetch.
    Leads,
    /// It need not wait: the frame is in the memory tier.
    Landed,
}

/// All flights of a cache.
pub(crate) struct Flights {
    shards: Sharded<HashMap<FlightKey, Entry>>,
}

struct Entry {
    waiters: Vec<Waiter>,
    fetches: Vec<Arc<Fetch>>,
    priority: Priority,
}

impl Flights {
    pub(crate) fn new() -> Self {
        Self { shards: Sharded::new(SHARDS, HashMap::new) }
    }

    /// Adds a waiter. If that needs a fetch it is `fetch`, which the caller then has to run;
    /// `landed` looks whether the frame is in the memory tier by now.
    pub(crate) fn board(
        &self,
        key: FlightKey,
        waiter: Waiter,
        priority: Priority,
        fetch: &Arc<Fetch>,
        landed: impl FnOnce() -> bool,
    ) -> Boarded {
        match self.shards.of(&key.key.digest).entry(key) {
            MapEntry::Occupied(mut entry) => {
                let entry = entry.get_mut();
                entry.waiters.push(waiter);
                // Once only: the entry is a guest's from then on. So at most two fetch a chunk.
                if priority != Priority::Guest || entry.priority == priority {
                    return Boarded::Joined;
                }
                entry.priority = priority;
                entry.fetches.push(Arc::clone(fetch));
                Boarded::Leads
            }
            MapEntry::Vacant(place) => {
                if landed() {
                    return Boarded::Landed;
                }
                let fetches = vec![Arc::clone(fetch)];
                place.insert(Entry { waiters: vec![waiter], fetches, priority });
                Boarded::Leads
            }
        }
    }

    /// The chunk has come: who waited for it.
    pub(crate) fn land(&self, key: &FlightKey) -> Vec<Waiter> {
        let entry = self.shards.of(&key.key.digest).remove(key);
        entry.map_or_else(Vec::new, |entry| entry.waiters)
    }

    /// This fetch has failed to get the chunk; tells who waited, unless another fetch goes on.
    pub(crate) fn fail(&self, key: &FlightKey, fetch: &Arc<Fetch>, error: &Error) {
        let mut shard = self.shards.of(&key.key.digest);
        let Some(entry) = shard.get_mut(key) else { return };
        let before = entry.fetches.len();
        entry.fetches.retain(|other| !Arc::ptr_eq(other, fetch));
        if entry.fetches.len() == before || !entry.fetches.is_empty() {
            return;
        }
        let waiters = shard.remove(key).map_or_else(Vec::new, |entry| entry.waiters);
        drop(shard);
        waiters.into_iter().for_each(|w| w.mailbox.fail(w.chunk, error.clone()));
    }

    /// A reader went away without having got this chunk.
    pub(crate) fn leave(&self, key: &FlightKey, mailbox: &Arc<Mailbox>) {
        let mut shard = self.shards.of(&key.key.digest);
        let Some(entry) = shard.get_mut(key) else { return };
        entry.waiters.retain(|waiter| !Arc::ptr_eq(&waiter.mailbox, mailbox));
        if entry.waiters.is_empty() {
            entry.fetches.iter().for_each(|fetch| fetch.deserted.notify_one());
        }
    }

    /// Whether somebody waits for this chunk, from whichever fetch.
    pub(crate) fn is_awaited(&self, key: &FlightKey) -> bool {
        let shard = self.shards.of(&key.key.digest);
        shard.get(key).is_some_and(|entry| !entry.waiters.is_empty())
    }

    /// Takes this fetch off a chunk that nobody waits for; `false` if somebody does after all.
    pub(crate) fn give_up(&self, key: &FlightKey, fetch: &Arc<Fetch>) -> bool {
        let mut shard = self.shards.of(&key.key.digest);
        let Some(entry) = shard.get_mut(key) else { return true };
        if !entry.waiters.is_empty() {
            return false;
        }
        entry.fetches.retain(|other| !Arc::ptr_eq(other, fetch));
        if entry.fetches.is_empty() {
            shard.remove(key);
        }
        true
    }

    /// Chunks being fetched.
    pub(crate) fn len(&self) -> u64 {
        let mut len = 0;
        self.shards.each(|shard| len += shard.len() as u64);
        len
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mailbox::{Event, Inbox, mailbox};
    use futures::FutureExt;
    use image::{Digest, Domain, Kind};

    fn key() -> FlightKey {
        let digest = Digest::of_chunk(b"x");
        FlightKey { key: Key { domain: Domain::PUBLIC, digest }, repair: false }
    }

    fn waiter(inbox: &Inbox) -> Waiter {
        Waiter { mailbox: Arc::clone(inbox.mailbox()), chunk: 0 }
    }

    fn board(flights: &Flights, inbox: &Inbox, priority: Priority, fetch: &Arc<Fetch>) -> Boarded {
        flights.board(key(), waiter(inbox), priority, fetch, || false)
    }

    fn error_of(inbox: &mut Inbox) -> Option<Kind> {
        match inbox.next().now_or_never()? {
            Event::Failed(_, error) => Some(error.kind()),
            _ => None,
        }
    }

    #[test]
    fn what_has_landed_meanwhile_is_not_fetched_again() {
        let (flights, inbox, fetch) = (Flights::new(), mailbox(1), Arc::default());
        let boarded = flights.board(key(), waiter(&inbox), Priority::Guest, &fetch, || true);
        assert!(matches!(boarded, Boarded::Landed));
        assert_eq!(flights.len(), 0);
    }

    #[test]
    fn one_more_fetch_overtakes_and_only_the_last_to_fail_is_heard() {
        let (flights, mut inbox) = (Flights::new(), mailbox(1));
        let [slow, fast, third] = [(); 3].map(|()| Arc::new(Fetch::default()));
        assert!(matches!(board(&flights, &inbox, Priority::Background, &slow), Boarded::Leads));
        assert!(matches!(board(&flights, &inbox, Priority::Trace, &third), Boarded::Joined));
        assert!(matches!(board(&flights, &inbox, Priority::Guest, &fast), Boarded::Leads));
        assert!(matches!(board(&flights, &inbox, Priority::Guest, &third), Boarded::Joined));
        let error = Error::new(Kind::Retry, "failed");
        flights.fail(&key(), &third, &error);
        flights.fail(&key(), &fast, &error);
        flights.fail(&key(), &fast, &error);
        assert_eq!((error_of(&mut inbox), flights.len()), (None, 1));
        flights.fail(&key(), &slow, &error);
        assert_eq!((error_of(&mut inbox), flights.len()), (Some(Kind::Retry), 0));
    }

    #[test]
    fn a_fetch_is_told_when_nobody_waits_and_gives_up_unless_somebody_comes() {
        let (flights, first, second) = (Flights::new(), mailbox(1), mailbox(1));
        let fetch = Arc::new(Fetch::default());
        board(&flights, &first, Priority::Guest, &fetch);
        board(&flights, &second, Priority::Guest, &fetch);
        flights.leave(&key(), first.mailbox());
        assert!(fetch.deserted.notified().now_or_never().is_none());
        assert!(flights.is_awaited(&key()));
        flights.leave(&key(), second.mailbox());
        assert!(fetch.deserted.notified().now_or_never().is_some());
        assert!(!flights.is_awaited(&key()));
        assert!(matches!(board(&flights, &first, Priority::Guest, &fetch), Boarded::Joined));
        assert!(!flights.give_up(&key(), &fetch), "somebody came after all");
        flights.leave(&key(), first.mailbox());
        assert!(flights.give_up(&key(), &fetch));
        assert_eq!(flights.len(), 0);
    }

    #[test]
    fn a_repair_flies_alone() {
        let (flights, inbox, fetch) = (Flights::new(), mailbox(1), Arc::default());
        board(&flights, &inbox, Priority::Guest, &fetch);
        let repair = FlightKey { repair: true, ..key() };
        let boarded = flights.board(repair, waiter(&inbox), Priority::Guest, &fetch, || false);
        assert!(matches!(boarded, Boarded::Leads));
        assert_eq!((flights.land(&key()).len(), flights.len()), (1, 1));
    }
}
