//! The way to an image's chunks, found when it is first needed, and anew when it leads nowhere any more.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use image::{
    ChunkSink, ChunkSource, Digest, Error, Kind, Manifest, Place, ReadContext, Result, SectionTable,
};
use tokio::sync::Mutex;

use crate::daemon::Grid;
use crate::pull::Connect;

type SourceOf<G> = <<G as Grid>::Connect as Connect>::Source;

/// A [`ChunkSource`] for one image on one core. Placement and caches may be away when a volume is attached, and
/// may be elsewhere when they come back: what asks then fails, and what asks later looks for them.
pub(crate) struct LazySource<G: Grid> {
    grid: Arc<G>,
    image: Digest,
    core: usize,
    found: RefCell<Option<Rc<Found<G>>>>,
    /// Held by the one who looks.
    finding: Mutex<()>,
}

struct Found<G: Grid> {
    connect: G::Connect,
    source: SourceOf<G>,
}

impl<G: Grid> LazySource<G> {
    pub(crate) fn new(grid: Arc<G>, image: Digest, core: usize) -> Self {
        Self { grid, image, core, found: RefCell::default(), finding: Mutex::default() }
    }

    async fn get(&self) -> Result<Rc<Found<G>>> {
        let _one = self.finding.lock().await;
        if let Some(found) = &*self.found.borrow() {
            return Ok(Rc::clone(found));
        }
        let located = self.grid.locate(&self.image.to_string()).await;
        let (_, connect) = located.map_err(|error| self.lost(error))?;
        let source = connect.connect(self.core).await?;
        let found = Rc::new(Found { connect, source });
        self.found.replace(Some(Rc::clone(&found)));
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

    /// Asks, and forgets the way if nobody answers there or takes our ticket.
    async fn ask<T>(&self, ask: impl AsyncFnOnce(&SourceOf<G>) -> Result<T>) -> Result<T> {
        let found = self.get().await?;
        let answer = ask(&found.source).await;
        if answer.as_ref().is_err_and(|e| matches!(e.kind(), Kind::Retry | Kind::Denied)) {
            let mut now = self.found.borrow_mut();
            if now.as_ref().is_some_and(|now| Rc::ptr_eq(now, &found)) {
                *now = None;
            }
        }
        answer
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
