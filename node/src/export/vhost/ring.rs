//! One ring while it runs: takes what the guest makes available, answers it in any order.
//!
//! A task of its own runs each ring ([`Ring::run`]), and the session changes what it works on from
//! outside, all on one thread. A turn answers whatever has ended, takes a slice of what is available and
//! polls it once, so that a disk that batches sees a batch; and the guest is told once.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use image::{Error, Kind, Result};
use tokio::io::unix::AsyncFd;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::chain::{Broken, walk};
use super::config::Shape;
use super::inflight::{Shared, Track};
use super::memory::{Mapped, write};
use super::perform::{Device, Job, Terms};
use super::request::{Request, Status};
use crate::export::Disk;

/// The longest ring that is taken, in descriptors.
pub const MAX_SIZE: u16 = 1024;
/// Requests of one ring under way at a time.
const IN_FLIGHT: usize = 256;
/// Requests that are begun before other tasks of the core get their turn, the disk's engine among them.
/// Measured (`vhost load --random`, 32 requests of 4 KiB at a time): with 8, a disk past the page cache
/// gives 7 to 14 % more than when all are begun at once, as it is not idle while they are being begun, and
/// the page cache 23 % more; 4 are as good for the former and 12 % worse for the latter.
const SLICE: usize = 8;
/// The same in bytes of data, so that a buffer that the page cache has filled is copied out of while it is
/// in the processor's cache. Measured (as above, in order, 128 KiB, 8 at a time): 9 % more than without.
const SLICE_BYTES: u64 = 256 << 10;
/// Turns after which other tasks get theirs, whatever happens.
const TURNS: usize = 16;
/// In the flags of the available ring: the guest does not want to be told.
const NO_INTERRUPT: u16 = 1;

/// A ring as the front-end has described it.
pub struct Description {
    /// How many descriptors it has: a power of two, at most [`MAX_SIZE`].
    pub size: u16,
    /// Where the guest sees its table, its available ring and its used ring.
    pub table: GuestAddress,
    /// See above.
    pub available: GuestAddress,
    /// See above.
    pub used: GuestAddress,
    /// The next entry of the available ring, unless shared memory knows better.
    pub base: u16,
    /// Whether both sides name the event that they want to be told of.
    pub event_idx: bool,
    /// Whether a write is durable when it is answered.
    pub write_through: bool,
}

/// The descriptors by which both sides wake each other.
#[derive(Default)]
pub struct Signals {
    /// The guest has made something available.
    pub kick: Option<AsyncFd<OwnedFd>>,
    /// Something was answered.
    pub call: Option<OwnedFd>,
    /// The ring is broken.
    pub error: Option<OwnedFd>,
}

/// A running ring.
pub struct Ring<D> {
    device: Rc<Device<D>>,
    terms: Rc<Terms>,
    state: RefCell<State>,
    waker: RefCell<Option<Waker>>,
}

struct State {
    queue: Queue,
    mem: Mapped,
    track: Option<Track<Shared>>,
    /// What a process before us had taken and not answered, oldest first.
    replay: VecDeque<u16>,
    /// By the head of its chain: whether a request is under way.
    under_way: Vec<bool>,
    signals: Signals,
    enabled: bool,
    stopping: bool,
    broken: bool,
    /// Something was answered since the guest was last told.
    answered: bool,
}

/// A request that has ended.
struct Done {
    head: u16,
    at: GuestAddress,
    status: Status,
    /// Bytes of data that the guest was given.
    given: u32,
    mem: Mapped,
}

enum Rest {
    /// There is something to do already.
    No,
    /// Somebody will wake us.
    Asleep,
    Ended,
}

/// What was taken in one go.
enum Took {
    Nothing,
    All,
    /// There may be more.
    Slice,
}

#[derive(PartialEq, Eq)]
enum Turned {
    /// Others get their turn before there are more.
    Busy,
    Ended,
}

impl<D> Ring<D> {
    /// Takes nothing more, and answers nothing more: the guest's memory is not ours to touch.
    pub fn abandon(&self) {
        self.terms.live.set(false);
        self.change(|state| {
            state.stopping = true;
            state.replay.clear();
        });
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.borrow_mut());
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

impl<D: Disk> Ring<D> {
    /// A ring that can run. With `shared`, what was in flight there is done again first.
    pub fn new(
        device: Rc<Device<D>>,
        mem: Mapped,
        description: &Description,
        shared: Option<(Shared, u16)>,
        signals: Signals,
    ) -> Result<Self> {
        let mut queue = queue(description).map_err(refused)?;
        if !queue.is_valid(mem.as_ref()) {
            return Err(Error::new(Kind::Invalid, "a ring lies outside of the guest's memory"));
        }
        let used = queue.used_idx(mem.as_ref(), Ordering::Acquire).map_err(refused)?.0;
        queue.set_next_used(used);
        queue.set_next_avail(description.base);
        let (mut track, mut replay) = (None, Vec::new());
        if let Some((shared, entries)) = shared {
            let (opened, heads) = Track::open(shared, entries, used)?;
            // Whatever the guest made available was either answered or is in flight.
            queue.set_next_avail(used.wrapping_add(heads.len() as u16));
            (track, replay) = (Some(opened), heads);
        }
        let terms = Terms { live: Cell::new(true), write_through: description.write_through };
        let state = State {
            queue,
            mem,
            // A process before us may have answered without telling.
            answered: track.is_some(),
            track,
            replay: replay.into(),
            under_way: vec![false; usize::from(description.size)],
            signals,
            enabled: true,
            stopping: false,
            broken: false,
        };
        Ok(Self {
            device,
            terms: Rc::new(terms),
            state: RefCell::new(state),
            waker: RefCell::new(None),
        })
    }

    /// Runs until it is stopped or abandoned, and all that was taken has ended. Gives the next entry of
    /// the available ring.
    pub async fn run(&self) -> u16 {
        let mut running = FuturesUnordered::new();
        let start = |head, request, mem| {
            carry_out(Rc::clone(&self.device), Rc::clone(&self.terms), head, request, mem)
        };
        while std::future::poll_fn(|cx| self.turns(&mut running, &start, cx)).await == Turned::Busy
        {
            tokio::task::yield_now().await;
        }
        self.state.borrow().queue.next_avail()
    }

    /// Takes nothing more; [`run`](Self::run) returns when all has been answered.
    pub fn stop(&self) {
        self.change(|state| state.stopping = true);
    }

    /// Takes requests, or leaves them where they are.
    pub fn enable(&self, on: bool) {
        self.change(|state| state.enabled = on);
    }

    /// The guest's memory has changed.
    pub fn set_memory(&self, mem: &Mapped) {
        self.change(|state| {
            state.mem = Arc::clone(mem);
            if !state.queue.is_valid(mem.as_ref()) {
                state.break_down(&Broken::Gone);
            }
        });
    }

    /// Whom to tell of answers. Told at once, as what was answered before may have gone elsewhere.
    pub fn set_call(&self, call: Option<OwnedFd>) {
        self.change(|state| {
            state.signals.call = call;
            state.signal();
        });
    }

    /// Whom to tell that the ring is broken.
    pub fn set_error(&self, error: Option<OwnedFd>) {
        self.change(|state| state.signals.error = error);
    }

    /// Who says that something is available.
    pub fn set_kick(&self, kick: AsyncFd<OwnedFd>) {
        self.change(|state| state.signals.kick = Some(kick));
    }

    fn turns<F: Future<Output = Done>>(
        &self,
        running: &mut FuturesUnordered<F>,
        start: &impl Fn(u16, Request, Mapped) -> F,
        cx: &mut Context<'_>,
    ) -> Poll<Turned> {
        self.waker.replace(Some(cx.waker().clone()));
        for _ in 0..TURNS {
            let moved = self.finish(running, cx);
            match self.take(running, start) {
                Took::Slice => {
                    // It is begun, and the disk's engine sees it before there is more.
                    self.finish(running, cx);
                    break;
                }
                Took::All => continue,
                Took::Nothing if moved => continue,
                Took::Nothing => {}
            }
            let mut state = self.state.borrow_mut();
            state.tell();
            match state.rest(running.len(), cx) {
                Rest::No => {}
                Rest::Asleep => return Poll::Pending,
                Rest::Ended => return Poll::Ready(Turned::Ended),
            }
        }
        self.state.borrow_mut().tell();
        Poll::Ready(Turned::Busy)
    }

    /// Goes on with what can go on, and answers what has ended. Returns whether anything had.
    fn finish<F: Future<Output = Done>>(
        &self,
        running: &mut FuturesUnordered<F>,
        cx: &mut Context<'_>,
    ) -> bool {
        let mut moved = false;
        while let Poll::Ready(Some(done)) = running.poll_next_unpin(cx) {
            self.state.borrow_mut().finish(&done, self.terms.live.get());
            moved = true;
        }
        moved
    }

    /// Starts a slice of what is available, as far as there is room.
    fn take<F: Future<Output = Done>>(
        &self,
        running: &FuturesUnordered<F>,
        start: &impl Fn(u16, Request, Mapped) -> F,
    ) -> Took {
        let (mut count, mut bytes) = (0, 0);
        let mut state = self.state.borrow_mut();
        let shape = self.device.shape();
        while running.len() < IN_FLIGHT {
            if count == SLICE || bytes >= SLICE_BYTES {
                return Took::Slice;
            }
            match state.next(shape) {
                Ok(Some((head, request))) => {
                    count += 1;
                    bytes += request.data.bytes();
                    running.push(start(head, request, Arc::clone(&state.mem)));
                }
                Ok(None) => break,
                Err(broken) => {
                    state.break_down(&broken);
                    break;
                }
            }
        }
        if count == 0 { Took::Nothing } else { Took::All }
    }
}

/// Carries one request out.
async fn carry_out<D: Disk>(
    device: Rc<Device<D>>,
    terms: Rc<Terms>,
    head: u16,
    request: Request,
    mem: Mapped,
) -> Done {
    let job = Job { device: &device, mem: &mem, terms: &terms };
    let (status, given) = job.perform(&request).await;
    Done { head, at: request.status, status, given, mem }
}

impl State {
    /// The next request to start: first what a process before us left, then what is available.
    fn next(&mut self, shape: Shape) -> Result<Option<(u16, Request)>, Broken> {
        if self.broken {
            return Ok(None);
        }
        let (head, again) = match self.replay.pop_front() {
            Some(head) => (head, true),
            None if !self.enabled || self.stopping => return Ok(None),
            None => match self.queue.iter(self.mem.as_ref())?.next() {
                Some(chain) => (chain.head_index(), false),
                None => return Ok(None),
            },
        };
        let under_way = self.under_way.get_mut(usize::from(head)).ok_or(Broken::Chain)?;
        if std::mem::replace(under_way, true) {
            return Err(Broken::Twice);
        }
        let table = GuestAddress(self.queue.desc_table());
        let chain = walk(&self.mem, table, self.queue.size(), head)?;
        let request = Request::parse(&self.mem, chain, shape)?;
        if let Some(track) = self.track.as_mut().filter(|_| !again) {
            track.taken(head);
        }
        Ok(Some((head, request)))
    }

    /// Answers a request.
    fn finish(&mut self, done: &Done, live: bool) {
        self.under_way[usize::from(done.head)] = false;
        if !live {
            return;
        }
        if let Err(broken) = self.answer(done) {
            self.break_down(&broken);
        }
    }

    fn answer(&mut self, done: &Done) -> Result<(), Broken> {
        write(&done.mem, done.at, &[done.status.byte()])?;
        if let Some(track) = &mut self.track {
            track.answering(done.head);
        }
        self.queue.add_used(self.mem.as_ref(), done.head, done.given.saturating_add(1))?;
        if let Some(track) = &mut self.track {
            track.answered(done.head, self.queue.next_used());
        }
        self.answered = true;
        Ok(())
    }

    /// Tells the guest of answers, unless it says that it need not be told.
    fn tell(&mut self) {
        if !std::mem::take(&mut self.answered) {
            return;
        }
        match self.wants_to_be_told() {
            Ok(true) => self.signal(),
            Ok(false) => {}
            Err(broken) => self.break_down(&broken),
        }
    }

    fn wants_to_be_told(&mut self) -> Result<bool, Broken> {
        let wants = self.queue.needs_notification(self.mem.as_ref())?;
        if self.queue.event_idx_enabled() {
            return Ok(wants);
        }
        let flags = GuestAddress(self.queue.avail_ring());
        let flags: u16 = self.mem.load(flags, Ordering::Relaxed)?;
        Ok(u16::from_le(flags) & NO_INTERRUPT == 0)
    }

    fn signal(&self) {
        self.signals.call.as_ref().inspect(|call| add_one(call));
    }

    /// Whether there is something to do at once, or who will say so.
    fn rest(&mut self, running: usize, cx: &mut Context<'_>) -> Rest {
        if self.stopping && (self.replay.is_empty() || self.broken) {
            return if running == 0 { Rest::Ended } else { Rest::Asleep };
        }
        if !self.enabled || self.broken || running >= IN_FLIGHT {
            return Rest::Asleep;
        }
        match self.queue.enable_notification(self.mem.as_ref()) {
            Ok(true) => return Rest::No,
            Ok(false) => {}
            Err(error) => {
                self.break_down(&error.into());
                return Rest::Asleep;
            }
        }
        let Some(kick) = &self.signals.kick else { return Rest::Asleep };
        match kick.poll_read_ready(cx) {
            // It need not be read: whatever is added to it makes it ready again.
            Poll::Ready(Ok(mut ready)) => {
                ready.clear_ready();
                Rest::No
            }
            Poll::Ready(Err(error)) => {
                tracing::error!(%error, "lost a ring's kicks");
                self.broken = true;
                Rest::Asleep
            }
            Poll::Pending => Rest::Asleep,
        }
    }

    /// The guest broke the rules: nothing more is taken from this ring until it is set up anew.
    fn break_down(&mut self, why: &Broken) {
        tracing::warn!(%why, "a guest broke its ring");
        self.broken = true;
        self.signals.error.as_ref().inspect(|error| add_one(error));
    }
}

fn queue(of: &Description) -> Result<Queue, virtio_queue::Error> {
    let mut queue = Queue::new(MAX_SIZE)?;
    queue.try_set_size(of.size)?;
    queue.try_set_desc_table_address(of.table)?;
    queue.try_set_avail_ring_address(of.available)?;
    queue.try_set_used_ring_address(of.used)?;
    queue.set_event_idx(of.event_idx);
    queue.set_ready(true);
    Ok(queue)
}

fn refused(error: virtio_queue::Error) -> Error {
    Error::caused(Kind::Invalid, format!("a ring: {error}"), error)
}

/// Adds one to an eventfd. If it is full, whoever it belongs to has much to read already.
fn add_one(event: &OwnedFd) {
    if let Err(error) = rustix::io::write(event, &1u64.to_ne_bytes())
        && error != rustix::io::Errno::AGAIN
    {
        tracing::warn!(%error, "could not wake a guest");
    }
}
