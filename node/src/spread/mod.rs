//! One source out of several caches: each section is asked of the cache that owns it, and of the next
//! in line while that one is away, limps or is late.
//!
//! ```text
//! place ─ rendezvous order ─ who is out goes last ─ ask ── all came ─────────────▶ done
//!                                                    ├── late: the next is asked besides, within a
//!                                                    │   budget; the first copy of a chunk counts
//!                                                    └── failed, or too late: the next is asked
//!                                                        for what is left
//! ```
//! [`policy`] decides, by the last answers ([`window`]) and the last seconds ([`recent`]) of each cache;
//! `race` does what it says for one request, [`health`] is what all cores of a process know together.

pub mod budget;
pub mod health;
pub mod members;
pub mod policy;
mod race;
pub mod recent;
pub mod window;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use api::grid::CacheInfo;
use api::rendezvous::{Candidate, order};
use futures::FutureExt;
use futures::future::{LocalBoxFuture, Shared};
use image::{
    ChunkSet, ChunkSink, ChunkSource, Digest, Error, Frame, Kind, Manifest, Place, ReadContext,
    Result, SectionTable,
};

pub use health::Health;
pub use members::{Members, Updates};
use policy::Asks;
use race::{Ask, Job, Race};

/// What the manifest counts as when its cache is chosen: no section has this number.
const MANIFEST: u32 = u32::MAX;

/// Makes the way to a cache when it is first needed, and again when that failed.
pub trait Dial: 'static {
    /// The way to one cache.
    type Source: ChunkSource + 'static;

    /// Connects to a cache.
    fn dial(&self, cache: &CacheInfo) -> impl Future<Output = Result<Self::Source>>;

    /// Takes leave of a cache.
    fn close(&self, source: Rc<Self::Source>) -> impl Future<Output = ()> {
        drop(source);
        std::future::ready(())
    }

    /// The time since some moment: the same moment for all who share a [`Health`].
    fn now(&self) -> Duration;
}

/// A [`ChunkSource`] over the caches of a grid, for one core.
pub struct Spread<D: Dial> {
    dial: Rc<D>,
    /// Chooses, with the section: the lineage's root.
    root: Digest,
    members: Members,
    health: Arc<Health>,
    /// The list that `ways` was last held against.
    known: RefCell<Arc<[CacheInfo]>>,
    ways: RefCell<BTreeMap<String, Way<D::Source>>>,
    /// Requests for repair so far.
    repairs: Cell<usize>,
}

/// All who need the way to a cache wait for the same attempt.
type Opening<S> = Shared<LocalBoxFuture<'static, Result<Rc<S>>>>;

struct Way<S> {
    to: CacheInfo,
    opening: Opening<S>,
}

impl<D: Dial> Spread<D> {
    /// Spreads the sections of the images of one lineage over the members.
    pub fn new(dial: D, root: Digest, members: Members, health: Arc<Health>) -> Self {
        let known = RefCell::new(members.list());
        let (ways, repairs) = (RefCell::default(), Cell::new(0));
        Self { dial: Rc::new(dial), root, members, health, known, ways, repairs }
    }

    fn now(&self) -> Duration {
        self.dial.now()
    }

    /// Which of the members, by its number, owns a section while all are well.
    pub fn owner(&self, section: u32) -> usize {
        let members = self.members.list();
        let candidates: Vec<_> =
            members.iter().map(|c| Candidate { name: &c.name, weight: c.share() }).collect();
        order(&candidates, &self.root, section).first().copied().unwrap_or(0)
    }

    /// Takes leave of every cache.
    pub async fn close(self) {
        let ways = self.ways.take();
        let open = ways.values().filter_map(|way| way.opening.peek()?.clone().ok());
        futures::future::join_all(open.map(|source| self.dial.close(source))).await;
    }

    /// The members, as they are now. Who has left is forgotten.
    fn caches(&self) -> Arc<[CacheInfo]> {
        let caches = self.members.list();
        if !Arc::ptr_eq(&caches, &self.known.borrow()) {
            let listed = |name: &str| caches.iter().any(|c| c.name == name);
            self.ways.borrow_mut().retain(|name, _| listed(name));
            self.health.policy().keep(&caches);
            self.known.replace(Arc::clone(&caches));
        }
        caches
    }

    /// Whom to ask for a section, in turn. What came wrong is asked of the next in line each time: a
    /// cache may be beyond repair.
    fn turn(&self, ctx: &ReadContext, section: u32, caches: &[CacheInfo]) -> Vec<usize> {
        let skip = self.repairs.get();
        self.repairs.set(skip + usize::from(ctx.repair));
        let skip = if ctx.repair { skip } else { 0 };
        let asks = Asks { root: &self.root, section, priority: ctx.priority, skip };
        self.health.policy().turn(self.now(), caches, asks)
    }

    /// The way to a cache: open, being opened, or, after a failure or a move, a new attempt.
    fn way(&self, cache: &CacheInfo) -> Opening<D::Source> {
        let mut ways = self.ways.borrow_mut();
        if let Some(way) = ways.get(&cache.name)
            && (&way.to.endpoints, &way.to.server_name) == (&cache.endpoints, &cache.server_name)
            && !matches!(way.opening.peek(), Some(Err(_)))
        {
            return way.opening.clone();
        }
        let (dial, to) = (Rc::clone(&self.dial), cache.clone());
        let opening = async move { dial.dial(&to).await.map(Rc::new) }.boxed_local().shared();
        let way = Way { to: cache.clone(), opening: opening.clone() };
        ways.insert(cache.name.clone(), way);
        opening
    }

    /// The next who needs this cache connects anew.
    fn forget(&self, name: &str) {
        self.ways.borrow_mut().remove(name);
    }

    /// Asks until one cache gives an answer.
    async fn one<T: 'static>(
        &self,
        ctx: &ReadContext,
        section: u32,
        ask: impl AsyncFn(Rc<D::Source>) -> Result<T> + Clone + 'static,
    ) -> Result<T> {
        let mut one = One { ask, answer: Rc::default() };
        Race::new(self, *ctx, section).run(&mut one).await?;
        Ok(one.answer.take().expect("a race that was won has an answer"))
    }
}

/// A question with one answer.
struct One<T, A> {
    ask: A,
    answer: Rc<RefCell<Option<T>>>,
}

impl<T: 'static, S: 'static, A: AsyncFn(Rc<S>) -> Result<T> + Clone + 'static> Job<S>
    for One<T, A>
{
    fn left(&self) -> ChunkSet {
        ChunkSet::empty(0)
    }

    fn wants(&self, _: u32) -> bool {
        false
    }

    fn done(&self) -> bool {
        self.answer.borrow().is_some()
    }

    fn ask(&self) -> Ask<S> {
        let (ask, answer) = (self.ask.clone(), Rc::clone(&self.answer));
        Box::new(|source, _| {
            async move {
                let got = ask(source).await?;
                answer.replace(Some(got));
                Ok(())
            }
            .boxed_local()
        })
    }

    async fn deliver(&mut self, chunk: u32, _: Frame) -> Result<()> {
        Err(Error::new(Kind::Corrupt, format!("chunk {chunk} came unasked")))
    }
}

/// Chunks of one section, and which of them are still to come.
struct Chunks<'a, K> {
    ctx: ReadContext,
    place: Place,
    sink: &'a mut K,
}

impl<S: ChunkSource + 'static, K: ChunkSink> Job<S> for Chunks<'_, K> {
    fn left(&self) -> ChunkSet {
        self.place.chunks.clone()
    }

    fn wants(&self, chunk: u32) -> bool {
        self.place.chunks.contains(chunk)
    }

    fn done(&self) -> bool {
        self.place.chunks.is_empty()
    }

    fn ask(&self) -> Ask<S> {
        let (ctx, place) = (self.ctx, self.place.clone());
        Box::new(move |source, mut frames| {
            async move { source.chunks(&ctx, &place, &mut frames).await }.boxed_local()
        })
    }

    async fn deliver(&mut self, chunk: u32, frame: Frame) -> Result<()> {
        self.sink.chunk(chunk, frame).await?;
        self.place.chunks.remove(chunk);
        Ok(())
    }
}

impl<D: Dial> ChunkSource for Spread<D> {
    async fn manifest(&self, ctx: &ReadContext, image: &Digest) -> Result<Arc<Manifest>> {
        let (context, image) = (*ctx, *image);
        let ask = async move |source: Rc<D::Source>| source.manifest(&context, &image).await;
        self.one(ctx, MANIFEST, ask).await
    }

    async fn section_table(
        &self,
        ctx: &ReadContext,
        image: &Digest,
        section: u32,
    ) -> Result<Arc<SectionTable>> {
        let (context, image) = (*ctx, *image);
        let ask = async move |source: Rc<D::Source>| {
            source.section_table(&context, &image, section).await
        };
        self.one(ctx, section, ask).await
    }

    async fn chunks<S: ChunkSink>(
        &self,
        ctx: &ReadContext,
        place: &Place,
        sink: &mut S,
    ) -> Result<()> {
        let mut chunks = Chunks { ctx: *ctx, place: place.clone(), sink };
        Race::new(self, *ctx, place.section).run(&mut chunks).await
    }
}

#[cfg(test)]
mod tests;
