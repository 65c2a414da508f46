//! The way to an image's chunks, found when it is first needed.

use std::rc::Rc;
use std::sync::Arc;

use image::{
    ChunkSink, ChunkSource, Digest, Error, Manifest, Place, ReadContext, Result, SectionTable,
};
use tokio::sync::OnceCell;

use crate::daemon::Grid;
use crate::pull::Connect;

type SourceOf<G> = <<G as Grid>::Connect as Connect>::Source;

/// A [`ChunkSource`] for one image on one core. Placement and caches may be away when a volume is attached:
/// then what asks first fails, and what asks later tries anew.
pub(super) struct LazySource<G: Grid> {
    grid: Arc<G>,
    image: Digest,
    core: usize,
    found: OnceCell<(G::Connect, Rc<SourceOf<G>>)>,
}

impl<G: Grid> LazySource<G> {
    pub(super) fn new(grid: Arc<G>, image: Digest, core: usize) -> Self {
        Self { grid, image, core, found: OnceCell::new() }
    }

    async fn get(&self) -> Result<&Rc<SourceOf<G>>> {
        let find = async || {
            let (_, connect) = self.grid.locate(&self.image.to_string()).await?;
            let source = connect.connect(self.core).await?;
            Ok::<_, Error>((connect, Rc::new(source)))
        };
        Ok(&self.found.get_or_try_init(find).await?.1)
    }

    /// Takes leave of whoever was found.
    pub(super) async fn close(self) {
        if let Some((connect, source)) = self.found.into_inner()
            && let Some(source) = Rc::into_inner(source)
        {
            connect.close(source).await;
        }
    }
}

impl<G: Grid> ChunkSource for LazySource<G> {
    async fn manifest(&self, ctx: &ReadContext, image: &Digest) -> Result<Arc<Manifest>> {
        self.get().await?.manifest(ctx, image).await
    }

    async fn section_table(
        &self,
        ctx: &ReadContext,
        image: &Digest,
        section: u32,
    ) -> Result<Arc<SectionTable>> {
        self.get().await?.section_table(ctx, image, section).await
    }

    async fn chunks<S: ChunkSink>(
        &self,
        ctx: &ReadContext,
        place: &Place,
        sink: &mut S,
    ) -> Result<()> {
        self.get().await?.chunks(ctx, place, sink).await
    }
}
