//! How much memory the connections of a server process may take, together and each node.
//!
//! A connection is lent a little at first and twice as much whenever its reader has taken what was lent: one
//! that never reads never gets more. The last quarter of the whole is lent to newcomers alone, and no node
//! (by its certificate, however many connections it has) gets more than a quarter, or a half in least parts.
//! What is lent is the connection's send window, a quarter, and the frames that its requests have in work.
//! Its receive window is promised to it as soon as there is a connection, so that is lent with it.
//!
//! ```text
//!   first ── reader took it: twice ── … ── a window that bulk cannot fill faster
//!     ▲                                              │
//!     └──────────────── nothing to do ───────────────┘
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use image::Digest;

use crate::transport::REQUEST_WINDOW;

/// What a connection is lent at first: a window of a chunk, and three chunks in work.
const FIRST: usize = 1 << 20;
/// The receive window of a connection.
const RECEIVE: usize = REQUEST_WINDOW as usize;
/// What one of very many connections of a node is lent: a small window, and a chunk in work.
const LEAST: usize = 512 << 10;
/// Least window of one of many connections of a node.
pub(super) const LEAST_WINDOW: usize = 64 << 10;
/// So long after a guest's read its node's other reads keep the way free for the next.
const GUEST_STAYS: Duration = Duration::from_secs(2);

/// The memory that all connections of a server process share; a clone is the same memory. Its cores each
/// get a clone.
#[derive(Clone, Debug)]
pub struct Memory(Arc<Mutex<Ledger>>);

#[derive(Debug)]
struct Ledger {
    total: usize,
    lent: usize,
    nodes: BTreeMap<Digest, Node>,
    refused: u64,
}

/// What is lent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lent {
    /// Bytes that may be lent.
    pub total: usize,
    /// Bytes that are.
    pub bytes: usize,
    /// Connections that have some.
    pub connections: usize,
    /// Connections so far that got none.
    pub refused: u64,
}

#[derive(Debug, Default)]
struct Node {
    lent: usize,
    connections: usize,
    guest: Option<Instant>,
}

impl Ledger {
    fn lend(&mut self, holder: &Digest, bytes: usize, of_all: usize, of_node: usize) -> bool {
        let node = self.nodes.entry(*holder).or_default();
        let fits = self.lent + bytes <= of_all && node.lent + bytes <= of_node;
        if fits {
            self.lent += bytes;
            node.lent += bytes;
        }
        fits
    }

    fn take_back(&mut self, holder: &Digest, bytes: usize) {
        self.lent -= bytes;
        let node = self.nodes.entry(*holder).or_default();
        node.lent -= bytes;
        if node.lent == 0 && node.connections == 0 {
            self.nodes.remove(holder);
        }
    }
}

impl Memory {
    /// Memory of so many bytes.
    pub fn new(total: usize) -> Self {
        let total = total.max(8 * FIRST);
        Self(Arc::new(Mutex::new(Ledger { total, lent: 0, nodes: BTreeMap::new(), refused: 0 })))
    }

    /// What is lent now.
    pub fn lent(&self) -> Lent {
        let ledger = self.ledger();
        let connections = ledger.nodes.values().map(|node| node.connections).sum();
        let Ledger { total, lent: bytes, refused, .. } = *ledger;
        Lent { total, bytes, connections, refused }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // Every change keeps the sums right before it can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lends to a new connection; nothing if there is none left, or its node has its share.
    pub(super) fn open(&self, holder: Digest) -> Option<Loan> {
        let mut ledger = self.ledger();
        let all = ledger.total;
        let lent = [(FIRST, all / 4), (LEAST, all / 2)].into_iter();
        let lent =
            lent.map(|(bytes, node)| (bytes, ledger.lend(&holder, bytes + RECEIVE, all, node)));
        let first = lent.filter(|(_, lent)| *lent).map(|(bytes, _)| bytes).next();
        ledger.refused += u64::from(first.is_none());
        let node = ledger.nodes.entry(holder).or_default();
        node.connections += usize::from(first.is_some());
        if node.lent == 0 && node.connections == 0 {
            ledger.nodes.remove(&holder);
        }
        drop(ledger);
        first.map(|first| Loan { memory: self.clone(), holder, first, bytes: first })
    }
}

/// What one connection was lent, its receive window aside. Dropped, all is given back.
#[derive(Debug)]
pub(super) struct Loan {
    memory: Memory,
    holder: Digest,
    first: usize,
    bytes: usize,
}

impl Loan {
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// More, for something that ends by itself; nothing if there is none.
    pub(super) fn extra(&self, bytes: usize) -> Option<Extra> {
        let mut ledger = self.memory.ledger();
        // The node's other half is for new connections of its own.
        let (all, node) = (ledger.total - ledger.total / 4, ledger.total / 4);
        let lent = ledger.lend(&self.holder, bytes, all, node);
        drop(ledger);
        lent.then(|| Extra { memory: self.memory.clone(), holder: self.holder, bytes })
    }

    /// Asks for twice as much, up to `most`; whether it was lent.
    pub(super) fn grow(&mut self, most: usize) -> bool {
        let more = self.bytes.min(most.saturating_sub(self.bytes));
        let mut ledger = self.memory.ledger();
        let (all, node) = (ledger.total - ledger.total / 4, ledger.total / 4);
        let lent = more > 0 && ledger.lend(&self.holder, more, all, node);
        drop(ledger);
        self.bytes += if lent { more } else { 0 };
        lent
    }

    /// Gives back all but what a connection has at first.
    pub(super) fn rest(&mut self) {
        self.memory.ledger().take_back(&self.holder, self.bytes - self.first);
        self.bytes = self.first;
    }

    /// Connections of the same node, this one included.
    pub(super) fn beside(&self) -> usize {
        let ledger = self.memory.ledger();
        ledger.nodes.get(&self.holder).map_or(1, |node| node.connections.max(1))
    }

    /// The node has a guest that reads.
    pub(super) fn guest_reads(&self, now: Instant) {
        if let Some(node) = self.memory.ledger().nodes.get_mut(&self.holder) {
            node.guest = Some(now);
        }
    }

    /// Whether a guest of the node has read lately.
    pub(super) fn has_guests(&self, now: Instant) -> bool {
        let ledger = self.memory.ledger();
        let seen = ledger.nodes.get(&self.holder).and_then(|node| node.guest);
        seen.is_some_and(|seen| now.saturating_duration_since(seen) < GUEST_STAYS)
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let mut ledger = self.memory.ledger();
        if let Some(node) = ledger.nodes.get_mut(&self.holder) {
            node.connections -= 1;
        }
        ledger.take_back(&self.holder, self.bytes + RECEIVE);
    }
}

/// Lent besides. Dropped, it is given back.
#[derive(Debug)]
pub(super) struct Extra {
    memory: Memory,
    holder: Digest,
    bytes: usize,
}

impl Drop for Extra {
    fn drop(&mut self) {
        self.memory.ledger().take_back(&self.holder, self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(n: u8) -> Digest {
        Digest::of_chunk(&[n])
    }

    proptest! {
        #[test]
        fn never_more_than_the_whole_nor_a_node_more_than_its_share(
            steps in prop::collection::vec((0u8..20, 0u8..6, 0usize..64), 0..600),
        ) {
            let total = 64 << 20;
            let memory = Memory::new(total);
            let mut loans: Vec<Loan> = Vec::new();
            let mut extras: Vec<Extra> = Vec::new();
            for (who, what, which) in steps {
                let which = which % loans.len().max(1);
                match what {
                    0 => loans.extend(memory.open(node(who))),
                    1 if !loans.is_empty() => drop(loans.swap_remove(which)),
                    2 if !loans.is_empty() => loans[which].rest(),
                    3 if !loans.is_empty() => extras.extend(loans[which].extra(16 << 20 >> (who % 8))),
                    4 if !extras.is_empty() => drop(extras.swap_remove(which % extras.len())),
                    _ if !loans.is_empty() => drop(loans[which].grow(16 << 20)),
                    _ => {}
                }
                prop_assert!(memory.lent().bytes <= total);
                prop_assert_eq!(memory.lent().connections, loans.len());
                let of = |n: Option<Digest>| {
                    let is = |holder: &Digest| n.is_none_or(|n| n == *holder);
                    let lent = loans.iter().filter(|l| is(&l.holder)).map(|l| l.bytes + RECEIVE);
                    let besides = extras.iter().filter(|e| is(&e.holder)).map(|e| e.bytes);
                    lent.chain(besides).sum::<usize>()
                };
                prop_assert_eq!(memory.lent().bytes, of(None));
                for n in 0..20 {
                    prop_assert!(of(Some(node(n))) <= total / 2);
                }
            }
            drop((loans, extras));
            prop_assert!(memory.ledger().nodes.is_empty() && memory.lent().bytes == 0);
        }
    }

    #[test]
    fn who_grew_leaves_room_for_newcomers() {
        let memory = Memory::new(64 << 20);
        let mut greedy: Vec<Loan> = (0..36).filter_map(|n| memory.open(node(n / 2))).collect();
        while greedy.iter_mut().any(|loan| loan.grow(16 << 20)) {}
        assert!(memory.lent().bytes <= 48 << 20);
        let newcomers = (200..=255).filter_map(|n| memory.open(node(n))).collect::<Vec<_>>();
        assert!(newcomers.len() >= 12, "{}", newcomers.len());
    }
}
