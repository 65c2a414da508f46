//! The network: datagrams between addresses, late, lost, doubled, out of order, or not at all.
//!
//! ```text
//! Socket ─ send ─ Link (what becomes of it: seeded) ─ in the air, until it is due ─ Mailbox ─ recv ─ Socket
//! ```
//! What becomes of a datagram depends on the seed, the link, how many went before it and its length;
//! never on its bytes, which differ from run to run (keys are random).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;

use crate::chance::Chance;
use crate::trace::Trace;

/// What a socket keeps for its reader, in bytes; the rest is dropped, as a kernel does.
const MAILBOX: usize = 4 << 20;
/// A link's queue: what would wait longer is dropped.
const QUEUE: Duration = Duration::from_millis(400);
/// Datagrams that are remembered, to be sent again in a storm.
const REMEMBERED: usize = 16;

/// How good a link is.
#[derive(Clone, Copy, Debug)]
pub struct Quality {
    /// Datagrams lost, of a thousand.
    pub loss: u64,
    /// Datagrams that arrive twice, of a thousand.
    pub doubled: u64,
    /// Datagrams that others overtake, of a thousand.
    pub late: u64,
    /// Time on the way, in ms.
    pub delay: u64,
    /// Bytes per ms.
    pub speed: u64,
    /// Longest datagram, in bytes.
    pub mtu: usize,
}

/// What became of datagrams.
#[derive(Clone, Copy, Debug, Default)]
pub struct NetCounts {
    /// Sent.
    pub sent: u64,
    /// Lost by chance, in a full queue, or to a partition.
    pub lost: u64,
    /// Arrived twice.
    pub doubled: u64,
    /// Overtaken.
    pub late: u64,
}

/// The network of a run. Clones are the same network.
#[derive(Clone, Debug)]
pub struct Net {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Told when something is due earlier than all before.
    sooner: Notify,
    trace: Trace,
    seed: u64,
}

#[derive(Debug)]
struct State {
    quality: Quality,
    links: BTreeMap<(IpAddr, IpAddr), Link>,
    mailboxes: BTreeMap<SocketAddr, Arc<Mailbox>>,
    air: BinaryHeap<Reverse<Datagram>>,
    next: u64,
    next_port: u16,
    /// The speed of hosts that limp, in bytes per ms.
    limps: BTreeMap<IpAddr, u64>,
    /// The latest datagrams to each address.
    seen: BTreeMap<SocketAddr, VecDeque<(SocketAddr, Bytes)>>,
    counts: NetCounts,
}

#[derive(Debug)]
struct Link {
    chance: Chance,
    cut: bool,
    /// Until when what was sent before takes the line.
    busy: Duration,
}

/// A datagram in the air; ordered by when it is due.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Datagram {
    due: Duration,
    number: u64,
    from: SocketAddr,
    to: SocketAddr,
    bytes: Bytes,
}

/// Where datagrams to one address arrive.
#[derive(Debug, Default)]
pub(super) struct Mailbox(Mutex<Inbox>);

#[derive(Debug, Default)]
struct Inbox {
    datagrams: VecDeque<(SocketAddr, Bytes)>,
    bytes: usize,
    reader: Option<Waker>,
}

impl Mailbox {
    fn put(&self, from: SocketAddr, bytes: Bytes) {
        let mut inbox = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if inbox.bytes + bytes.len() > MAILBOX {
            return;
        }
        inbox.bytes += bytes.len();
        inbox.datagrams.push_back((from, bytes));
        if let Some(reader) = inbox.reader.take() {
            reader.wake();
        }
    }

    pub(super) fn poll(&self, cx: &mut Context<'_>) -> Poll<(SocketAddr, Bytes)> {
        let mut inbox = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match inbox.datagrams.pop_front() {
            Some((from, bytes)) => {
                inbox.bytes -= bytes.len();
                Poll::Ready((from, bytes))
            }
            None => {
                inbox.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Net {
    /// A network whose links are all of this quality.
    pub fn new(seed: u64, quality: Quality, trace: &Trace) -> Self {
        let state = State {
            quality,
            links: BTreeMap::new(),
            mailboxes: BTreeMap::new(),
            air: BinaryHeap::new(),
            next: 0,
            next_port: 49152,
            limps: BTreeMap::new(),
            seen: BTreeMap::new(),
            counts: NetCounts::default(),
        };
        let state = Mutex::new(state);
        let shared = Shared { state, sooner: Notify::new(), trace: trace.clone(), seed };
        Self { shared: Arc::new(shared) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Delivers what is due, for ever.
    pub async fn run(self) {
        loop {
            let due = self.state().air.peek().map(|Reverse(first)| first.due);
            match due {
                None => self.shared.sooner.notified().await,
                Some(due) => tokio::select! {
                    biased;
                    () = self.shared.trace.until(due) => self.deliver(due),
                    () = self.shared.sooner.notified() => {}
                },
            }
        }
    }

    fn deliver(&self, now: Duration) {
        let mut state = self.state();
        while state.air.peek().is_some_and(|Reverse(first)| first.due <= now) {
            let Some(Reverse(datagram)) = state.air.pop() else { return };
            if let Some(mailbox) = state.mailboxes.get(&datagram.to) {
                mailbox.put(datagram.from, datagram.bytes);
            }
        }
    }

    /// Sends a datagram on its way, in whoever's name.
    pub fn send(&self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        let now = self.shared.trace.now();
        let mut state = self.state();
        state.counts.sent += 1;
        let dues = state.fate(self.shared.seed, now, from, to, bytes.len());
        self.shared.trace.note(format_args!("{from} > {to} {} {dues:?}", bytes.len()));
        if dues.is_empty() {
            state.counts.lost += 1;
            return;
        }
        let bytes = Bytes::copy_from_slice(bytes);
        state.remember(from, to, &bytes);
        let earliest = state.air.peek().map(|Reverse(first)| first.due);
        for due in &dues {
            let number = state.next;
            state.next += 1;
            let datagram = Datagram { due: *due, number, from, to, bytes: bytes.clone() };
            state.air.push(Reverse(datagram));
        }
        drop(state);
        if earliest.is_none_or(|earliest| dues.iter().any(|due| *due < earliest)) {
            self.shared.sooner.notify_one();
        }
    }

    /// Takes an address; port 0 is some free one.
    pub(super) fn bind(&self, addr: SocketAddr) -> (SocketAddr, Arc<Mailbox>) {
        let mut state = self.state();
        let mut addr = addr;
        if addr.port() == 0 {
            addr.set_port(state.next_port);
            state.next_port = state.next_port.checked_add(1).unwrap_or(49152);
        }
        let mailbox = Arc::new(Mailbox::default());
        state.mailboxes.insert(addr, Arc::clone(&mailbox));
        (addr, mailbox)
    }

    /// Whether this mailbox is still the one of its address.
    pub(super) fn is_bound(&self, addr: &SocketAddr, mailbox: &Arc<Mailbox>) -> bool {
        self.state().mailboxes.get(addr).is_some_and(|bound| Arc::ptr_eq(bound, mailbox))
    }

    /// Gives an address back.
    pub(super) fn unbind(&self, addr: &SocketAddr, mailbox: &Arc<Mailbox>) {
        if self.is_bound(addr, mailbox) {
            self.state().mailboxes.remove(addr);
        }
    }

    /// A host is gone: nothing of it sends or receives any more.
    pub fn unplug(&self, host: IpAddr) {
        self.state().mailboxes.retain(|addr, _| addr.ip() != host);
    }

    /// Cuts the line from one host to another, or mends it.
    pub fn cut(&self, from: IpAddr, to: IpAddr, cut: bool) {
        let seed = self.shared.seed;
        self.state().link(seed, from, to).cut = cut;
    }

    /// A host sends no faster than this, in bytes per ms; `None` ends that.
    pub fn limp(&self, host: IpAddr, speed: Option<u64>) {
        let mut state = self.state();
        match speed {
            Some(speed) => drop(state.limps.insert(host, speed)),
            None => drop(state.limps.remove(&host)),
        }
    }

    /// What was sent to an address lately, and from where.
    pub fn seen(&self, to: &SocketAddr) -> Vec<(SocketAddr, Bytes)> {
        self.state().seen.get(to).map_or_else(Vec::new, |seen| seen.iter().cloned().collect())
    }

    /// What became of all datagrams so far.
    pub fn counts(&self) -> NetCounts {
        self.state().counts
    }
}

impl State {
    fn link(&mut self, seed: u64, from: IpAddr, to: IpAddr) -> &mut Link {
        self.links.entry((from, to)).or_insert_with(|| Link {
            chance: Chance::new(seed, &format!("link {from} {to}")),
            cut: false,
            busy: Duration::ZERO,
        })
    }

    /// When a datagram arrives: never, once or twice.
    fn fate(
        &mut self,
        seed: u64,
        now: Duration,
        from: SocketAddr,
        to: SocketAddr,
        len: usize,
    ) -> Vec<Duration> {
        let quality = self.quality;
        let speed =
            self.limps.get(&from.ip()).map_or(quality.speed, |limp| quality.speed.min(*limp));
        let link = self.link(seed, from.ip(), to.ip());
        // Always as many draws, so that one fate does not change those after it.
        let (lost, doubled, late) = (
            link.chance.per_mille(quality.loss),
            link.chance.per_mille(quality.doubled),
            link.chance.per_mille(quality.late),
        );
        let jitter = link.chance.within(0..quality.delay / 4 + 1);
        let wait = link.chance.within(1..20);
        let starts = link.busy.max(now);
        if link.cut || lost || len > quality.mtu || starts - now > QUEUE {
            return Vec::new();
        }
        link.busy = starts + Duration::from_micros(len as u64 * 1000 / speed.max(1));
        let on_the_way = quality.delay + jitter / 2 + if late { wait } else { 0 };
        let due = link.busy + Duration::from_millis(on_the_way);
        self.counts.doubled += u64::from(doubled);
        self.counts.late += u64::from(late);
        match doubled {
            true => vec![due, due + Duration::from_millis(wait)],
            false => vec![due],
        }
    }

    fn remember(&mut self, from: SocketAddr, to: SocketAddr, bytes: &Bytes) {
        let seen = self.seen.entry(to).or_default();
        if seen.len() >= REMEMBERED {
            seen.pop_front();
        }
        seen.push_back((from, bytes.clone()));
    }
}
