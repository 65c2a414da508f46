//! One request: asked of one cache, of a second besides while the first is late, of the next when one
//! fails or is too late.
//!
//! Frames of all who are asked come through one channel and are delivered here, so a cache can be let go
//! at any moment: nothing is ever half delivered, and of two copies of a chunk the first counts.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use api::grid::CacheInfo;
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use image::{ChunkSet, ChunkSink, Error, Frame, Kind, Priority, ReadContext, Result};
use tokio::sync::mpsc;

use super::health::Health;
use super::policy::{Policy, Underway, Verdict};
use super::window::Sample;
use super::{Dial, Spread};

/// A cache that must ask the store first has its chunks before that.
const COLD: Duration = Duration::from_secs(2);

/// The policy is told of waiting after so long.
const TELL: Duration = Duration::from_millis(50);

/// Asks one cache for what was missing when this was made; chunks go to the [`Frames`].
pub(super) type Ask<S> = Box<dyn FnOnce(Rc<S>, Frames) -> LocalBoxFuture<'static, Result<()>>>;

/// When everybody has been asked, the last is given so long for a chunk; four times as long the next time.
const FIRST_ROUND: Duration = Duration::from_secs(4);

/// What is asked, of any cache.
pub(super) trait Job<S> {
    /// Chunks that are still to come.
    fn left(&self) -> ChunkSet;

    /// Whether this chunk is one of them.
    fn wants(&self, chunk: u32) -> bool;

    /// Whether everything is there.
    fn done(&self) -> bool;

    /// To ask one more cache.
    fn ask(&self) -> Ask<S>;

    /// Takes a chunk out of those that are left. An error is the reader's own.
    async fn deliver(&mut self, chunk: u32, frame: Frame) -> Result<()>;
}

/// Where a cache that is asked puts its chunks.
pub(super) struct Frames {
    leg: usize,
    to: mpsc::Sender<(usize, u32, Frame)>,
}

impl ChunkSink for Frames {
    async fn chunk(&mut self, chunk: u32, frame: Frame) -> Result<()> {
        let sent = self.to.send((self.leg, chunk, frame)).await;
        sent.map_err(|_| Error::new(Kind::Cancelled, "nobody reads any more"))
    }
}

/// A cache that is being asked.
struct Leg {
    number: usize,
    cache: CacheInfo,
    work: LocalBoxFuture<'static, Result<()>>,
    connected: Rc<Cell<bool>>,
    /// What it was asked for and has not given.
    owes: ChunkSet,
    asked: u32,
    given: u32,
    began: Duration,
    /// Waiting in all, since the last chunk, and for the chunk that took longest.
    waited: Duration,
    gap: Duration,
    longest: Duration,
    /// Waiting and chunks that the policy has not been told of.
    untold: (Duration, u32),
    /// When `waited` is so long it is looked at.
    look_at: Duration,
    counted: bool,
    in_flight: InFlight,
}

/// Counts a request as in flight at a cache, until it is dropped.
struct InFlight {
    health: Arc<Health>,
    name: String,
    beside: u32,
}

impl InFlight {
    fn new(health: &Arc<Health>, name: &str, now: Duration) -> Self {
        let beside = health.policy().begins(name, now);
        Self { health: Arc::clone(health), name: name.to_owned(), beside }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.health.policy().ends(&self.name);
    }
}

impl Leg {
    fn waits(&mut self, time: Duration) {
        self.waited += time;
        self.untold.0 += time;
        self.gap += time;
        self.longest = self.longest.max(self.gap);
    }

    /// It gave a chunk. False if it was not asked for that, or gave it already.
    fn gives(&mut self, chunk: u32) -> bool {
        self.gap = Duration::ZERO;
        self.given += 1;
        self.untold.1 += 1;
        self.owes.remove(chunk)
    }

    /// Tells what happened since this was last done, if it is about chunks.
    fn tell(&mut self, now: Duration, priority: Priority) {
        let (waited, chunks) = std::mem::take(&mut self.untold);
        if self.asked > 0 {
            let mut policy = self.in_flight.health.policy();
            policy.waited(&self.cache.name, now, priority, waited, chunks);
        }
    }

    /// How it went, if it was about chunks and has not been counted.
    fn sample(&self) -> Option<Sample> {
        let (gap, beside) = (self.longest, self.in_flight.beside);
        let counts = self.given > 0 && !self.counted;
        counts.then(|| Sample { gap, pace: self.waited / self.given, beside })
    }

    fn underway(&self, ctx: &ReadContext) -> Underway {
        // What is cold comes late, and then all at once; but not that late.
        let come = if self.waited < COLD { self.asked } else { self.given + 1 };
        let pace = self.waited / come.clamp(1, self.asked.max(1));
        let so_far = Sample { gap: self.gap, pace, beside: self.in_flight.beside };
        let (began, counted) = (self.began, self.counted);
        Underway { began, priority: ctx.priority, so_far, counted }
    }
}

enum Event {
    Frame(usize, u32, Frame),
    Ended(usize, Result<()>),
    Look,
}

/// One request under way.
pub(super) struct Race<'a, D: Dial> {
    spread: &'a Spread<D>,
    ctx: ReadContext,
    caches: Arc<[CacheInfo]>,
    /// Whom to ask, and how many of them have been.
    turn: Vec<usize>,
    asked: usize,
    /// How often everybody had been asked, and it began anew.
    rounds: u32,
    /// Who was left for being slow.
    left: Vec<usize>,
    /// Legs so far: the next one's number.
    began: usize,
    legs: Vec<Leg>,
    frames: mpsc::Receiver<(usize, u32, Frame)>,
    to: mpsc::Sender<(usize, u32, Frame)>,
    failures: Vec<Error>,
}

impl<'a, D: Dial> Race<'a, D> {
    pub(super) fn new(spread: &'a Spread<D>, ctx: ReadContext, section: u32) -> Self {
        let caches = spread.caches();
        let turn = spread.turn(&ctx, section, &caches);
        let (to, frames) = mpsc::channel(1);
        let (legs, failures) = (Vec::new(), Vec::new());
        Self {
            spread,
            ctx,
            caches,
            turn,
            asked: 0,
            rounds: 0,
            left: Vec::new(),
            began: 0,
            legs,
            frames,
            to,
            failures,
        }
    }

    /// Returns when everything was delivered, or nobody is left to ask.
    pub(super) async fn run<J: Job<D::Source>>(mut self, job: &mut J) -> Result<()> {
        loop {
            if job.done() {
                self.finish().await;
                return Ok(());
            }
            if self.legs.is_empty() && !self.ask_next(job) && !self.ask_who_was_left(job) {
                return Err(self.failure());
            }
            match self.event().await {
                Event::Frame(leg, chunk, frame) => self.frame(job, leg, chunk, frame).await?,
                Event::Ended(at, result) => self.ended(job, at, result).await?,
                Event::Look => self.look(job),
            }
        }
    }

    /// When all others have failed, who was too slow is asked again: false if nobody was.
    fn ask_who_was_left<J: Job<D::Source>>(&mut self, job: &J) -> bool {
        (self.turn, self.asked) = (std::mem::take(&mut self.left), 0);
        self.ask_next(job)
    }

    /// Asks the next in turn for what is missing; false if everybody has been asked.
    fn ask_next<J: Job<D::Source>>(&mut self, job: &J) -> bool {
        let Some(cache) = self.turn.get(self.asked).map(|i| self.caches[*i].clone()) else {
            return false;
        };
        let number = self.began;
        self.began += 1;
        self.asked += 1;
        let (way, ask) = (self.spread.way(&cache), job.ask());
        let frames = Frames { leg: number, to: self.to.clone() };
        let connected = Rc::new(Cell::new(false));
        let is_connected = Rc::clone(&connected);
        let work = async move {
            let source = way.await?;
            is_connected.set(true);
            ask(source, frames).await
        };
        let in_flight = InFlight::new(&self.spread.health, &cache.name, self.spread.now());
        let look_at = self.spread.health.policy().first_look(&cache.name, self.ctx.priority);
        let owes = job.left();
        self.legs.push(Leg {
            number,
            cache,
            work: work.boxed_local(),
            connected,
            asked: owes.count(),
            owes,
            given: 0,
            began: self.spread.now(),
            waited: Duration::ZERO,
            gap: Duration::ZERO,
            longest: Duration::ZERO,
            untold: (Duration::ZERO, 0),
            look_at,
            counted: false,
            in_flight,
        });
        true
    }

    /// What happens next. Only the waiting here is the caches'.
    async fn event(&mut self) -> Event {
        let Self { legs, frames, spread, ctx, .. } = self;
        let before = spread.now();
        let due = legs.iter().map(|leg| leg.look_at.saturating_sub(leg.waited)).min();
        let event = tokio::select! {
            biased;
            Some((leg, chunk, frame)) = frames.recv() => Event::Frame(leg, chunk, frame),
            (at, result) = poll_fn(|cx| poll_any(legs, cx)) => Event::Ended(at, result),
            () = tokio::time::sleep(due.unwrap_or_default()) => Event::Look,
        };
        let now = spread.now();
        for leg in legs.iter_mut() {
            leg.waits(now.saturating_sub(before));
            if leg.untold.0 >= TELL {
                leg.tell(now, ctx.priority);
            }
        }
        event
    }

    /// Delivers a chunk that nobody gave before.
    async fn frame<J: Job<D::Source>>(
        &mut self,
        job: &mut J,
        number: usize,
        chunk: u32,
        frame: Frame,
    ) -> Result<()> {
        let Some(at) = self.legs.iter().position(|leg| leg.number == number) else {
            // It was let go: what it owes is asked of others.
            return Ok(());
        };
        if !self.legs[at].gives(chunk) {
            let leg = self.legs.remove(at);
            let why = format!("chunk {chunk} came without being asked for, or twice");
            self.failed(&leg, Error::new(Kind::Corrupt, why));
            return Ok(());
        }
        match job.wants(chunk) {
            true => job.deliver(chunk, frame).await,
            false => Ok(()),
        }
    }

    /// One who was asked has nothing more to say.
    async fn ended<J: Job<D::Source>>(
        &mut self,
        job: &mut J,
        at: usize,
        result: Result<()>,
    ) -> Result<()> {
        let number = self.legs[at].number;
        // What it gave last came before its end.
        while let Ok((leg, chunk, frame)) = self.frames.try_recv() {
            self.frame(job, leg, chunk, frame).await?;
        }
        let Some(at) = self.legs.iter().position(|leg| leg.number == number) else { return Ok(()) };
        let mut leg = self.legs.remove(at);
        match result {
            Ok(()) if job.done() => {
                self.answered(&mut leg);
                // Whoever else was asked is let go at once.
                self.legs.clear();
            }
            Ok(()) => {
                let why = format!("it left {} chunks out", leg.owes.count());
                self.failed(&leg, Error::new(Kind::Retry, why));
            }
            Err(error) => self.failed(&leg, error),
        }
        Ok(())
    }

    /// Looks at those who take long.
    fn look<J: Job<D::Source>>(&mut self, job: &J) {
        let now = self.spread.now();
        for at in (0..self.legs.len()).rev() {
            let leg = &mut self.legs[at];
            if leg.waited < leg.look_at {
                continue;
            }
            let underway = leg.underway(&self.ctx);
            let (verdict, counted) =
                self.spread.health.policy().look(&leg.cache.name, now, underway);
            leg.counted |= counted;
            let (Verdict::Wait(again) | Verdict::Late(again) | Verdict::Leave(again)) = verdict;
            leg.look_at = leg.waited + again;
            match verdict {
                Verdict::Wait(_) => {}
                Verdict::Late(_) => self.hedge(job, Policy::is_in),
                Verdict::Leave(_) if self.finds_better(at) => self.leave(at, now),
                // Everybody left is worse off. It is helped by the next, however slow that is.
                Verdict::Leave(_) => self.hedge(job, Policy::is_alive),
            }
        }
    }

    /// Asks the next in turn besides, if it is fit and the budget allows it.
    fn hedge<J: Job<D::Source>>(&mut self, job: &J, fit: impl Fn(&Policy, &str) -> bool) {
        let next = self.turn.get(self.asked).map(|i| self.caches[*i].name.as_str());
        let mut policy = self.spread.health.policy();
        let other = self.legs.len() == 1 && next.is_some_and(|name| fit(&policy, name));
        if other && policy.may_hedge() {
            drop(policy);
            self.ask_next(job);
        }
    }

    /// Whether another who is asked, or can be, is better than this one; begins the turn anew if that is how.
    /// A cache that is in is not left for one that limps. The last is left for those that were left before,
    /// if it limps or gives nothing for long, each time for longer: a store that is slow makes all of them
    /// late.
    fn finds_better(&mut self, at: usize) -> bool {
        let policy = self.spread.health.policy();
        let leg = &self.legs[at];
        let this = leg.cache.name.as_str();
        let (limps, dead) = (!policy.is_in(this), !policy.is_alive(this));
        let better = |name: &str| policy.is_in(name) || (dead && policy.is_alive(name));
        let beside = self.legs.iter().any(|leg| leg.cache.name != this && better(&leg.cache.name));
        let next = self.turn.get(self.asked).map(|i| self.caches[*i].name.as_str());
        if beside || next.is_some_and(better) {
            return true;
        }
        let again = |i: &usize| self.caches[*i].name != this && policy.is_in(&self.caches[*i].name);
        let again: Vec<_> = self.turn.iter().copied().filter(again).collect();
        let long = FIRST_ROUND.saturating_mul(1 << (2 * self.rounds).min(16));
        let anew = self.legs.len() == 1 && !again.is_empty() && (limps || leg.gap >= long);
        if anew {
            (self.turn, self.asked, self.rounds) = (again, 0, self.rounds + 1);
        }
        anew
    }

    fn leave(&mut self, at: usize, now: Duration) {
        let leg = self.legs.remove(at);
        let waited = leg.waited.as_secs_f32();
        if leg.connected.get() {
            let this = self.caches.iter().position(|cache| cache.name == leg.cache.name);
            self.left.extend(this.filter(|this| !self.left.contains(this)));
            self.spread.health.policy().left(&leg.cache.name, now);
            let why = format!("{} of {} chunks in {waited:.1} s", leg.given, leg.asked);
            let error = Error::new(Kind::Retry, why).at(format!("cache {}", leg.cache.name));
            tracing::info!(%error, "slow: asking another cache");
            self.failures.push(error);
        } else {
            let why = format!("not connected within {waited:.1} s");
            self.failed(&leg, Error::new(Kind::Retry, why));
        }
    }

    fn answered(&self, leg: &mut Leg) {
        let (now, sample) = (self.spread.now(), leg.sample());
        leg.tell(now, self.ctx.priority);
        let (name, priority) = (&leg.cache.name, self.ctx.priority);
        self.spread.health.policy().answered(name, now, leg.began, priority, sample);
    }

    fn failed(&mut self, leg: &Leg, error: Error) {
        let (name, kind) = (&leg.cache.name, error.kind());
        let news = self.spread.health.policy().failed(name, self.spread.now(), leg.began, kind);
        if kind == Kind::Denied {
            // What it knows of our rights may be older than what we could show now.
            self.spread.forget(name);
        }
        match news {
            true => tracing::warn!(cache = name, %error, "asking another cache"),
            false => tracing::info!(cache = name, %error, "asking another cache"),
        }
        self.failures.push(error.at(format!("cache {name}")));
    }

    /// Everything is there. Who gave the last of it, alone, is heard to the end, which costs less than to
    /// stop it; whoever else was asked is let go at once.
    async fn finish(&mut self) {
        self.legs.retain(|leg| leg.given > 0 && leg.gap.is_zero());
        if let [leg] = &mut self.legs[..]
            && leg.owes.is_empty()
        {
            let left = leg.look_at.saturating_sub(leg.waited);
            let _ = tokio::time::timeout(left, &mut leg.work).await;
        }
        for mut leg in std::mem::take(&mut self.legs) {
            self.answered(&mut leg);
        }
    }

    /// Why it cannot be had, naming all who were asked. If one of them can be waited for, so can this.
    fn failure(&mut self) -> Error {
        let telling = self.failures.iter().min_by_key(|e| match e.kind() {
            // Who says when to come back is there.
            Kind::Busy(after) => (0, after),
            Kind::Retry => (1, Duration::ZERO),
            _ => (2, Duration::ZERO),
        });
        match (telling, &self.failures[..]) {
            (None, _) => Error::new(Kind::Retry, "no cache is known"),
            (Some(only), [_]) => only.clone(),
            (Some(telling), all) => {
                let all: Vec<_> = all.iter().map(Error::message).collect();
                let why = format!("none of {} caches could: {}", all.len(), all.join("; "));
                Error::new(telling.kind(), why)
            }
        }
    }
}

/// The first of the legs that ends.
fn poll_any(legs: &mut [Leg], cx: &mut Context<'_>) -> Poll<(usize, Result<()>)> {
    for (at, leg) in legs.iter_mut().enumerate() {
        if let Poll::Ready(result) = Pin::new(&mut leg.work).poll(cx) {
            return Poll::Ready((at, result));
        }
    }
    Poll::Pending
}
