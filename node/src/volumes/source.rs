//! The way to an image's chunks, found when it is first needed, and anew when it leads nowhere any more.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use image::{
    ChunkSink, ChunkSource, Digest, Error, Kind, Manifest, Place, ReadContext, Result, SectionTable,
};
use tokio::sync::Mutex;

use crate::daemon::Grid;
use crate::patience::Patience;
use crate::pull::Connect;

type SourceOf<G> = <<G as Grid>::Connect as Connect>::Source;

/// A [`ChunkSource`] for one image on one core. Placement and caches may be away when a volume is attached, and
/// may be elsewhere when they come back: what asks then fails, and what asks later looks for them. A way on which
/// somebody did not answer is gone on all the same while placement is away: who serves may be back on it.
pub(crate) struct LazySource<G: Grid> {
    grid: Arc<G>,
    image: Digest,
    core: usize,
    found: RefCell<Option<Rc<Found<G>>>>,
    /// Whether the way that was found leads nowhere, as far as is known.
    stale: Cell<bool>,
    /// Held by the one who looks.
    finding: Mutex<()>,
}

struct Found<G: Grid> {
    connect: G::Connect,
    source: SourceOf<G>,
}

impl<G: Grid> LazySource<G> {
    pub(crate) fn new(grid: Arc<G>, image: Digest, core: usize) -> Self {
        let (found, stale) = (RefCell::default(), Cell::new(false));
        Self { grid, image, core, found, stale, finding: Mutex::default() }
    }

    /// Looks for the way until it is found, so that it is known when placement is away.
    pub(crate) async fn look(&self) {
        if let Err(error) = Patience::endless().ask(async || self.get().await).await {
            tracing::warn!(%error, image = %self.image, "nobody is known who serves an image");
        }
    }

    async fn get(&self) -> Result<Rc<Found<G>>> {
        let _one = self.finding.lock().await;
        let before = self.found.borrow().clone();
        if let Some(found) = before.as_ref().filter(|_| !self.stale.get()) {
            return Ok(Rc::clone(found));
        }
        match (self.find().await, before) {
            (Err(error), Some(before)) if error.kind() == Kind::Retry => Ok(before),
            (found, _) => found,
        }
    }

    async fn find(&self) -> Result<Rc<Found<G>>> {
        let located = self.grid.locate(&self.image.to_string()).await;
        let (_, connect) = located.map_err(|error| self.lost(error))?;
        let source = connect.connect(self.core).await?;
        let found = Rc::new(Found { connect, source });
        self.found.replace(Some(Rc::clone(&found)));
        self.stale.set(false);
        Ok(found)
    }

    /// A grid that is not to be found may come back, and an image that it does not know too: whoever waits for a
    /// chunk goes on waiting.
    fn lost(&self, error: Error) -> Error {
        match error.kind() {
            Kind::Gone => Error::caused(Kind::Retry, error.to_string(), error),
            _ => error,
        }
    }

    /// Asks, and looks for another way the next time if nobody answers there or takes our ticket.
    async fn ask<T>(&self, ask: impl AsyncFnOnce(&SourceOf<G>) -> Result<T>) -> Result<T> {
        let found = self.get().await?;
        let error = match ask(&found.source).await {
            Err(error) if matches!(error.kind(), Kind::Retry | Kind::Denied) => error,
            answer => return answer,
        };
        let now = self.found.borrow();
        if now.as_ref().is_some_and(|now| Rc::ptr_eq(now, &found)) {
            self.stale.set(true);
        }
        // Placement alone says who has no right: a ticket may have expired while it was away.
        Err(Error::caused(Kind::Retry, error.to_string(), error))
    }

    /// Takes leave of whoever was found.
    pub(crate) async fn close(self) {
        if let Some(Found { connect, source }) = self.found.take().and_then(Rc::into_inner) {
            connect.close(source).await;
        }
    }
}

impl<G: Grid> ChunkSource for LazySource<G> {
    async fn manifest(&self, ctx: &ReadContext, image: &Digest) -> Result<Arc<Manifest>> {
        self.ask(async |source| source.manifest(ctx, image).await).await
    }

    async fn section_table(
        &self,
        ctx: &ReadContext,
        image: &Digest,
        section: u32,
    ) -> Result<Arc<SectionTable>> {
        self.ask(async |source| source.section_table(ctx, image, section).await).await
    }

    async fn chunks<S: ChunkSink>(
        &self,
        ctx: &ReadContext,
        place: &Place,
        sink: &mut S,
    ) -> Result<()> {
        self.ask(async |source| source.chunks(ctx, place, sink).await).await
    }
}
