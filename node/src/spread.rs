//! One source out of several caches: each section is asked of the cache that owns it, and of the next
//! in line while that one is away.
//!
//! ```text
//! place ─ rendezvous order ─ who rests goes last ─ ask ── all came ─────────────▶ done
//!                                                   └── failed: it rests, the next
//!                                                       is asked for what is left
//! ```

use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use api::rendezvous::{Candidate, order};
use image::{
    ChunkSet, ChunkSink, ChunkSource, Digest, Error, Frame, Kind, Manifest, Place, ReadContext,
    Result, SectionTable,
};
use tokio::sync::OnceCell;

/// How long a cache rests after its first failure; doubled with each further one in a row.
const FIRST_REST: Duration = Duration::from_secs(2);
/// Longest rest. It is asked earlier if the others fail too.
const LAST_REST: Duration = Duration::from_secs(30);
/// For connecting to a cache while there is another to ask.
const PATIENCE: Duration = Duration::from_secs(1);
/// What the manifest counts as when its cache is chosen: no section has this number.
const MANIFEST: u32 = u32::MAX;

/// Makes the way to a cache when it is first needed, and again when that failed.
pub trait Dial {
    /// The way to one cache.
    type Source: ChunkSource;

    /// Connects to cache number `member`.
    fn dial(&self, member: usize) -> impl Future<Output = Result<Self::Source>>;

    /// The time since some moment.
    fn now(&self) -> Duration;
}

/// A [`ChunkSource`] over the caches of a grid, for one core.
pub struct Spread<D: Dial> {
    dial: D,
    /// Chooses, with the section: the lineage's root.
    root: Digest,
    members: Vec<Member<D::Source>>,
    /// Requests for repair so far.
    repairs: Cell<usize>,
}

struct Member<S> {
    name: String,
    source: OnceCell<Rc<S>>,
    /// Failures in a row.
    failures: Cell<u32>,
    rests_until: Cell<Duration>,
}

impl<D: Dial> Spread<D> {
    /// The caches of these names, which [`Dial`] knows by their number here.
    pub fn new(dial: D, root: Digest, names: impl IntoIterator<Item = String>) -> Self {
        let member = |name| Member {
            name,
            source: OnceCell::new(),
            failures: Cell::new(0),
            rests_until: Cell::new(Duration::ZERO),
        };
        let members = names.into_iter().map(member).collect();
        Self { dial, root, members, repairs: Cell::new(0) }
    }

    /// Whom to ask for a section, in turn. What came wrong is asked of the next in line each time: a
    /// cache may be beyond repair.
    fn turn(&self, ctx: &ReadContext, section: u32) -> Vec<usize> {
        let candidates: Vec<_> =
            self.members.iter().map(|m| Candidate { name: &m.name, weight: 1.0 }).collect();
        let now = self.dial.now();
        let mut turn = order(&candidates, &self.root, section);
        if ctx.repair && !turn.is_empty() {
            turn.rotate_left(self.repairs.get() % self.members.len());
            self.repairs.set(self.repairs.get() + 1);
        }
        // Stable: among those who rest, and those who do not, the order stays.
        turn.sort_by_key(|i| self.members[*i].rests_until.get() > now);
        turn
    }

    /// The way to a cache; all who need it wait for the same attempt.
    async fn source(&self, number: usize) -> Result<Rc<D::Source>> {
        let dial = || async { Ok(Rc::new(self.dial.dial(number).await?)) };
        self.members[number].source.get_or_try_init(dial).await.cloned()
    }

    async fn source_soon(&self, number: usize) -> Result<Rc<D::Source>> {
        let late = |_| {
            let why = format!("not connected within {} s", PATIENCE.as_secs());
            Err(Error::new(Kind::Retry, why))
        };
        tokio::time::timeout(PATIENCE, self.source(number)).await.unwrap_or_else(late)
    }

    fn answered(&self, number: usize) {
        self.members[number].failures.set(0);
        self.members[number].rests_until.set(Duration::ZERO);
    }

    fn failed(&self, number: usize, error: &Error) {
        let member = &self.members[number];
        let failures = member.failures.get();
        member.failures.set(failures.saturating_add(1));
        let rest = FIRST_REST.saturating_mul(1 << failures.min(10)).min(LAST_REST);
        let rest = match error.kind() {
            Kind::Busy(after) => after.max(rest),
            _ => rest,
        };
        member.rests_until.set(self.dial.now() + rest);
        tracing::warn!(cache = member.name, %error, "asking another cache");
    }

    /// Asks one after the other until one gives an answer.
    async fn ask<T>(
        &self,
        ctx: &ReadContext,
        section: u32,
        mut ask: impl AsyncFnMut(Rc<D::Source>) -> Asked<T>,
    ) -> Result<T> {
        let mut worst: Option<Error> = None;
        let turn = self.turn(ctx, section);
        for (place, number) in turn.iter().copied().enumerate() {
            let source = match place + 1 == turn.len() {
                true => self.source(number).await,
                false => self.source_soon(number).await,
            };
            let asked = match source {
                Ok(source) => ask(source).await,
                Err(e) => Asked::Failed(e),
            };
            match asked {
                Asked::Answer(answer) => {
                    self.answered(number);
                    return Ok(answer);
                }
                Asked::Ours(error) => return Err(error),
                Asked::Failed(error) => {
                    self.failed(number, &error);
                    let error = error.at(format!("cache {}", self.members[number].name));
                    worst = Some(more_telling(worst, error));
                }
            }
        }
        Err(worst.unwrap_or_else(|| Error::new(Kind::Retry, "no cache is known")))
    }
}

/// What came of asking a cache.
enum Asked<T> {
    Answer(T),
    /// It could not: another may.
    Failed(Error),
    /// The asker itself could not go on.
    Ours(Error),
}

impl<T> From<Result<T>> for Asked<T> {
    fn from(result: Result<T>) -> Self {
        match result {
            Ok(answer) => Asked::Answer(answer),
            Err(e) => Asked::Failed(e),
        }
    }
}

/// Of two failures the one that can be waited for: the whole request is worth repeating then.
fn more_telling(first: Option<Error>, second: Error) -> Error {
    match first {
        Some(first) if passes(&first) || !passes(&second) => first,
        _ => second,
    }
}

fn passes(error: &Error) -> bool {
    matches!(error.kind(), Kind::Retry | Kind::Busy(_))
}

/// Passes chunks on, and remembers which are still to come.
struct Rest<'a, K> {
    sink: &'a mut K,
    left: ChunkSet,
    refused: bool,
}

impl<K: ChunkSink> ChunkSink for Rest<'_, K> {
    async fn chunk(&mut self, chunk: u32, frame: Frame) -> Result<()> {
        let taken = self.sink.chunk(chunk, frame).await;
        match taken {
            Ok(()) => drop(self.left.remove(chunk)),
            Err(_) => self.refused = true,
        }
        taken
    }
}

impl<D: Dial> ChunkSource for Spread<D> {
    async fn manifest(&self, ctx: &ReadContext, image: &Digest) -> Result<Arc<Manifest>> {
        self.ask(ctx, MANIFEST, async |source| source.manifest(ctx, image).await.into()).await
    }

    async fn section_table(
        &self,
        ctx: &ReadContext,
        image: &Digest,
        section: u32,
    ) -> Result<Arc<SectionTable>> {
        let ask =
            async |source: Rc<D::Source>| source.section_table(ctx, image, section).await.into();
        self.ask(ctx, section, ask).await
    }

    async fn chunks<S: ChunkSink>(
        &self,
        ctx: &ReadContext,
        place: &Place,
        sink: &mut S,
    ) -> Result<()> {
        let mut rest = Rest { sink, left: place.chunks.clone(), refused: false };
        let ask = async |source: Rc<D::Source>| {
            let place = Place { chunks: rest.left.clone(), ..place.clone() };
            match source.chunks(ctx, &place, &mut rest).await {
                Err(e) if rest.refused => Asked::Ours(e),
                Ok(()) if !rest.left.is_empty() => {
                    let why = format!("it left {} chunks out", rest.left.count());
                    Asked::Failed(Error::new(Kind::Retry, why))
                }
                answer => answer.into(),
            }
        };
        self.ask(ctx, place.section, ask).await
    }
}

#[cfg(test)]
#[path = "spread_tests.rs"]
mod tests;
