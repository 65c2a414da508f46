//! The grid's receiver, reached when an image is opened for it: what is to be sent is being read by then.

use image::seam::ImagePlan;
use image::{ImageSink, ReadContext, Result};
use tokio::sync::OnceCell;

use super::Saves;

/// Takes images into the grid. To be [closed](Dialled::close).
pub(super) struct Dialled<'a, G: Saves> {
    grid: &'a G,
    sink: OnceCell<G::Sink>,
}

impl<'a, G: Saves> Dialled<'a, G> {
    /// Nobody is reached yet.
    pub(super) fn new(grid: &'a G) -> Self {
        Self { grid, sink: OnceCell::new() }
    }

    /// Takes leave of it.
    pub(super) async fn close(self) {
        if let Some(sink) = self.sink.into_inner() {
            self.grid.close(sink).await;
        }
    }
}

impl<G: Saves> ImageSink for Dialled<'_, G> {
    type Session = <G::Sink as ImageSink>::Session;

    async fn open(&self, ctx: &ReadContext, plan: &ImagePlan) -> Result<Self::Session> {
        let parent = plan.parent.map(|image| image.to_string());
        let dial = async || self.grid.push(parent.as_deref()).await.map(|(_, sink)| sink);
        self.sink.get_or_try_init(dial).await?.open(ctx, plan).await
    }
}
