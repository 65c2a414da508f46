//! `forebay verify --repair`: what the store has lost of an image is given back by the grid's caches, if one has it.

use api::catalog::{VerifyReport, VerifyRequest};
use capture::Mended;
use image::{Digest, Result};
use node::patience::Patience;
use node::pull::Connect;

use crate::connect::{Connector, Known, to_push};
use crate::grid::Grid;

/// Repairs what a verification has found bad, and verifies again.
pub async fn repaired(grid: &Grid, name: &str, found: VerifyReport) -> Result<VerifyReport> {
    let (image, caches) = Connector::to_pull(grid, name, &Known::new()).await?;
    let mended = from(grid, image, &caches).await?;
    for error in &mended.failed {
        tracing::warn!(%error, "no cache has it");
    }
    tracing::info!(chunks = mended.chunks, "the caches gave back what the store had lost");
    // By digest: the name may have moved meanwhile.
    let asked = VerifyRequest { deep: true };
    let mut report = grid.placement.verify(&image.to_string(), &asked).await?;
    let good = found.bad.into_iter().filter(|place| !report.bad.contains(place));
    report.repaired.extend(good);
    report.repaired.extend(found.repaired);
    Ok(report)
}

async fn from(grid: &Grid, image: Digest, caches: &Connector) -> Result<Mended> {
    let source = Patience::with_busy().ask(async || caches.connect(0).await).await?;
    let (_, sink) = to_push(grid, Some(&image.to_string())).await?;
    let mended = capture::mend(&image, &source, &sink).await;
    sink.close().await;
    caches.close(source).await;
    mended
}
