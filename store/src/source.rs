//! A store gives chunks.

use std::sync::Arc;

use futures::stream::{self, StreamExt};
use image::error::At;
use image::{
    ChunkSink, ChunkSource, Digest, Error, Manifest, Place, ReadContext, Result, SectionTable,
};

use crate::fetch::Job;
use crate::plan::{Read, Want, coalesce};
use crate::store::{Shared, Store, run_on};

/// What is to be read for a place.
struct Plan {
    job: Arc<Job>,
    reads: Vec<Read>,
    /// The first chunk that no pack holds, and why.
    missing: Option<(u32, Error)>,
}

/// Frames that come out of one read share its buffer of at most 4 MiB: who keeps some of them for
/// long copies them.
impl ChunkSource for Store {
    async fn manifest(&self, _ctx: &ReadContext, image: &Digest) -> Result<Arc<Manifest>> {
        let (shared, image) = (self.shared.clone(), *image);
        self.run(async move { shared.manifest(&image).await }).await
    }

    async fn section_table(
        &self,
        _ctx: &ReadContext,
        image: &Digest,
        section: u32,
    ) -> Result<Arc<SectionTable>> {
        let (shared, image) = (self.shared.clone(), *image);
        self.run(async move { shared.table_of(&image, section).await }).await
    }

    async fn chunks<S: ChunkSink>(
        &self,
        ctx: &ReadContext,
        place: &Place,
        sink: &mut S,
    ) -> Result<()> {
        let (shared, wanted, deep) = (self.shared.clone(), place.clone(), ctx.repair);
        let plan = self.run(async move { shared.plan(&wanted, deep).await }).await?;
        let mut first_error = plan.missing;
        let mut batches = stream::iter(plan.reads)
            .map(|read| {
                let (shared, job) = (self.shared.clone(), plan.job.clone());
                let fetching = async move { shared.fetch(&job, read).await };
                run_on(&self.shared.handle, fetching)
            })
            .buffer_unordered(self.shared.options.limits.reads);
        while let Some(batch) = batches.next().await {
            let mut batch = batch?;
            // The batch, and with it its room, is held until the sink has taken the last frame.
            for got in batch.chunks.drain(..) {
                match got.frame {
                    Ok(frame) => sink.chunk(got.chunk, frame).await?,
                    Err(e) if first_error.as_ref().is_none_or(|(c, _)| got.chunk < *c) => {
                        first_error = Some((got.chunk, e));
                    }
                    Err(_) => {}
                }
            }
        }
        match first_error {
            None => Ok(()),
            Some((_, e)) => {
                // Whatever was believed about where its chunks lie is looked up anew next time.
                self.shared.forget_locator(&place.image);
                Err(e)
            }
        }
    }
}

impl Shared {
    async fn plan(&self, place: &Place, deep: bool) -> Result<Plan> {
        let at = || format!("image {}", place.image);
        let manifest = self.manifest(&place.image).await?;
        let table = self.table_of(&place.image, place.section).await.at(at)?;
        let geometry = *manifest.geometry();
        let job = Job { section: place.section, geometry, table: table.clone(), deep };
        job.check_place(&place.chunks).at(at)?;
        if place.chunks.is_empty() {
            return Ok(Plan { job: Arc::new(job), reads: Vec::new(), missing: None });
        }
        let spots = self.spots(&place.image, place.section, &table).await.at(at)?;
        let present = (0u32..).zip(table.digests()).filter(|(_, d)| !d.is_zero());
        let mut wants = Vec::with_capacity(place.chunks.count() as usize);
        let mut missing = None;
        for ((chunk, _), spot) in present.zip(spots) {
            match spot {
                _ if !place.chunks.contains(chunk) => {}
                Some(spot) => wants.push(Want { chunk, spot }),
                None => missing = missing.or_else(|| Some((chunk, job.nowhere(chunk).at(at())))),
            }
        }
        Ok(Plan { job: Arc::new(job), reads: coalesce(wants), missing })
    }
}
