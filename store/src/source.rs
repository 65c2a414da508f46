//! A store gives chunks.

use std::sync::Arc;

use futures::stream::{self, StreamExt};
use image::error::At;
use image::{
    ChunkSet, ChunkSink, ChunkSource, Digest, Error, Manifest, Place, ReadContext, Result,
    SectionTable,
};

use crate::fetch::Job;
use crate::locate::is_bad_place;
use crate::plan::{Read, Want, coalesce};
use crate::store::{Shared, Store, run_on};

/// What is to be read for a place.
struct Plan {
    job: Arc<Job>,
    reads: Vec<Read>,
    /// The chunks that no pack holds.
    missing: Vec<(u32, Error)>,
}

/// Frames that come out of one read share its buffer of at most 4 MiB: who keeps some of them for
/// long copies them.
impl ChunkSource for Store {
    async fn manifest(&self, _ctx: &ReadContext, image: &Digest) -> Result<Arc<Manifest>> {
        let (shared, image) = (self.shared.clone(), *image);
        self.read(async move { shared.manifest(&image).await }).await
    }

    async fn section_table(
        &self,
        _ctx: &ReadContext,
        image: &Digest,
        section: u32,
    ) -> Result<Arc<SectionTable>> {
        let (shared, image) = (self.shared.clone(), *image);
        self.read(async move { shared.table_of(&image, section).await }).await
    }

    async fn chunks<S: ChunkSink>(
        &self,
        ctx: &ReadContext,
        place: &Place,
        sink: &mut S,
    ) -> Result<()> {
        let mut place = place.clone();
        let mut first: Option<(u32, Error)> = None;
        // A locator that is kept here may be older than a rewriting of packs: what is not where it
        // says is looked for once more by the one that counts now.
        for last in [false, true] {
            let (shared, wanted, deep) = (self.shared.clone(), place.clone(), ctx.repair);
            let plan = self.read(async move { shared.plan(&wanted, deep, last).await }).await?;
            let failed = self.give(plan, sink).await?;
            if failed.is_empty() {
                break;
            }
            // Whatever was believed about where its chunks lie is looked up anew next time.
            self.shared.forget_locator(&place.image);
            place.chunks = ChunkSet::empty(place.chunks.universe());
            for (chunk, e) in failed {
                if !last && is_bad_place(&e) {
                    place.chunks.insert(chunk);
                } else if first.as_ref().is_none_or(|(c, _)| chunk < *c) {
                    first = Some((chunk, e));
                }
            }
            if place.chunks.is_empty() {
                break;
            }
        }
        match first {
            None => Ok(()),
            Some((_, e)) => self.read(async move { Err(e) }).await,
        }
    }
}

impl Store {
    /// Gives what can be had of a plan; the chunks that cannot, and why.
    async fn give<S: ChunkSink>(&self, plan: Plan, sink: &mut S) -> Result<Vec<(u32, Error)>> {
        let mut failed = plan.missing;
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
                    Err(e) => failed.push((got.chunk, e)),
                }
            }
        }
        Ok(failed)
    }
}

impl Shared {
    async fn plan(&self, place: &Place, deep: bool, last: bool) -> Result<Plan> {
        let at = || format!("image {}", place.image);
        let manifest = self.manifest(&place.image).await?;
        let table = self.table_of(&place.image, place.section).await.at(at)?;
        let geometry = *manifest.geometry();
        let job = Job { section: place.section, geometry, table: table.clone(), deep, last };
        job.check_place(&place.chunks).at(at)?;
        if place.chunks.is_empty() {
            return Ok(Plan { job: Arc::new(job), reads: Vec::new(), missing: Vec::new() });
        }
        let spots = self.spots(&place.image, place.section, &table).await.at(at)?;
        let present = (0u32..).zip(table.digests()).filter(|(_, d)| !d.is_zero());
        let mut wants = Vec::with_capacity(place.chunks.count() as usize);
        let mut missing = Vec::new();
        for ((chunk, _), spot) in present.zip(spots) {
            match spot {
                _ if !place.chunks.contains(chunk) => {}
                Some(spot) => wants.push(Want { chunk, spot }),
                None => missing.push((chunk, job.nowhere(chunk).at(at()))),
            }
        }
        Ok(Plan { job: Arc::new(job), reads: coalesce(wants), missing })
    }
}
