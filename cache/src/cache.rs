//! The cache as one core sees it.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use blockio::Engine;
use image::error::At;
use image::frame::HEADER_LEN;
use image::{
    ChunkSink, ChunkSource, Digest, Error, Kind, Manifest, Place, ReadContext, Result, SectionTable,
};

use crate::gone::Absent;
use crate::papers::{self, Paper, check_manifest, check_table};
use crate::read::Read;
use crate::shared::Shared;

/// A [`ChunkSource`] that remembers: memory, else disk, else one fetch from the source behind it,
/// however many ask.
///
/// There is one for each core, each with its own handle of the source and its own file engine; they
/// share the tiers and the flights ([`Shared`]). It works inside a [`tokio::task::LocalSet`] (or a
/// local runtime): a fetch is a local task, which outlives the reader that began it.
///
/// Every frame that it gives has a good CRC32C, and the digest, domain and length that the section
/// table and the geometry say; that the payload decodes to that digest it checks when it is asked
/// to repair ([`ReadContext::repair`]).
pub struct Cache<S> {
    core: Rc<Core<S>>,
}

/// What the tasks of one core need.
pub(crate) struct Core<S> {
    pub(crate) source: S,
    pub(crate) shared: Arc<Shared>,
    pub(crate) engine: Engine,
}

impl<S> Clone for Cache<S> {
    fn clone(&self) -> Self {
        Self { core: Rc::clone(&self.core) }
    }
}

impl<S: ChunkSource + 'static> Cache<S> {
    /// The cache before `source` on this core. `engine` must have been started on this runtime.
    pub fn new(source: S, shared: Arc<Shared>, engine: Engine) -> Self {
        Self { core: Rc::new(Core { source, shared, engine }) }
    }

    /// What all cores share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.core.shared
    }

    pub(crate) async fn get_manifest(
        &self,
        ctx: &ReadContext,
        image: &Digest,
    ) -> Result<Arc<Manifest>> {
        let (core, ctx, image) = (Rc::clone(&self.core), without_deadline(ctx), *image);
        let fetch =
            || async move { check_manifest(&image, core.source.manifest(&ctx, &image).await?) };
        match papers::get(self.shared(), image, Absent::Manifest(image), fetch).await? {
            Paper::Manifest(manifest) => Ok(manifest),
            Paper::Table(_) => Err(confused(&image)),
        }
    }

    pub(crate) async fn get_table(
        &self,
        ctx: &ReadContext,
        image: &Digest,
        section: u32,
    ) -> Result<(Arc<Manifest>, Arc<SectionTable>)> {
        let manifest = self.get_manifest(ctx, image).await?;
        let Some(digest) = manifest.section(section) else {
            let why = format!("there is no section {section} of {}", manifest.sections().len());
            return Err(Error::new(Kind::Invalid, why));
        };
        if digest.is_zero() {
            let chunks = manifest.geometry().chunks_in(section);
            let table = SectionTable::zeros(manifest.domain(), chunks);
            return Ok((manifest, Arc::new(table)));
        }
        let (core, ctx, image) = (Rc::clone(&self.core), without_deadline(ctx), *image);
        let vouches = Arc::clone(&manifest);
        let fetch = || async move {
            let table = core.source.section_table(&ctx, &image, section).await?;
            check_table(&vouches, section, table)
        };
        match papers::get(self.shared(), digest, Absent::Table(image, section), fetch).await? {
            Paper::Table(table) => Ok((manifest, table)),
            Paper::Manifest(_) => Err(confused(&digest)),
        }
    }

    pub(crate) async fn get_chunks<K: ChunkSink>(
        &self,
        ctx: &ReadContext,
        place: &Place,
        sink: &mut K,
    ) -> Result<()> {
        let (manifest, table) = self.get_table(ctx, &place.image, place.section).await?;
        let frame_len = manifest.geometry().chunk_len() + HEADER_LEN;
        let mut read = Read::new(&self.core, ctx, place, manifest, table)?;
        let charge = self.shared().admission.enter(frame_len, ctx.priority).await?;
        let result = read.run(sink).await;
        drop(charge);
        result
    }
}

impl<S: ChunkSource + 'static> ChunkSource for Cache<S> {
    async fn manifest(&self, ctx: &ReadContext, image: &Digest) -> Result<Arc<Manifest>> {
        let manifest = in_time(ctx, self.get_manifest(ctx, image)).await;
        manifest.at(|| format!("image {}", image.short()))
    }

    async fn section_table(
        &self,
        ctx: &ReadContext,
        image: &Digest,
        section: u32,
    ) -> Result<Arc<SectionTable>> {
        let table = in_time(ctx, self.get_table(ctx, image, section)).await;
        table.map(|(_, table)| table).at(|| format!("image {}", image.short()))
    }

    async fn chunks<K: ChunkSink>(
        &self,
        ctx: &ReadContext,
        place: &Place,
        sink: &mut K,
    ) -> Result<()> {
        let read = in_time(ctx, self.get_chunks(ctx, place, sink)).await;
        read.at(|| format!("image {}: section {}", place.image.short(), place.section))
    }
}

fn without_deadline(ctx: &ReadContext) -> ReadContext {
    ReadContext { deadline: None, ..*ctx }
}

/// Papers of different kinds have digests of different contexts, so this needs a broken hash.
fn confused(digest: &Digest) -> Error {
    Error::new(Kind::Corrupt, format!("{digest} names both a manifest and a section table"))
}

/// Waits no longer than the answer is of use.
async fn in_time<T>(ctx: &ReadContext, work: impl Future<Output = Result<T>>) -> Result<T> {
    let Some(deadline) = ctx.deadline else { return work.await };
    tokio::time::timeout(deadline, work).await.unwrap_or_else(|_| Err(too_late(deadline)))
}

fn too_late(deadline: Duration) -> Error {
    Error::new(Kind::Retry, format!("cache: not there within the deadline of {deadline:?}"))
}
