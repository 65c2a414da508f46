//! A batch: neighbouring missing chunks of one section, asked for together, and again until each
//! has come right.

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

use blockio::Arena;
use image::{
    ChunkSet, ChunkSink, ChunkSource, Decoder, Digest, Error, Frame, Geometry, Kind, Place,
    Priority, ReadContext, Result, SectionTable,
};
use volume_pool::Verified;

use super::Watch;
use crate::patience::Patience;
use crate::rate::Rate;

/// Plain bytes of a batch at most: 16 chunks of 256 KiB.
pub(super) const BATCH_BYTES: usize = 4 << 20;

/// Chunks of one section that are fetched together.
pub(crate) struct Batch {
    pub(crate) section: u32,
    pub(crate) table: Arc<SectionTable>,
    pub(crate) chunks: ChunkSet,
    pub(crate) priority: Priority,
}

/// Cuts the missing chunks of a section into batches.
pub(super) fn batches_of(
    geometry: &Geometry,
    section: u32,
    table: &Arc<SectionTable>,
    missing: ChunkSet,
) -> Vec<Batch> {
    let per_batch = (BATCH_BYTES >> geometry.chunk_log2()).max(1);
    let all: Vec<u32> = missing.iter().collect();
    let cut = all.chunks(per_batch).map(|some| {
        let mut chunks = ChunkSet::empty(missing.universe());
        some.iter().for_each(|c| chunks.insert(*c));
        Batch { section, table: Arc::clone(table), chunks, priority: Priority::Background }
    });
    cut.collect()
}

/// Takes chunks whose plain bytes have been verified.
pub(crate) trait Deliver {
    fn deliver(
        &self,
        section: u32,
        chunk: u32,
        plain: Verified,
    ) -> impl Future<Output = Result<()>>;
}

/// What fetching takes, on one core.
pub(crate) struct Fetch<'a, S> {
    pub(crate) source: &'a S,
    pub(crate) image: Digest,
    pub(crate) geometry: Geometry,
    pub(crate) arena: &'a Arena,
    pub(crate) decoder: Rc<RefCell<Decoder>>,
    pub(crate) rate: Option<&'a Rate>,
    pub(crate) watch: &'a Watch,
    pub(crate) trace: u128,
    /// How often what failed is asked for again.
    pub(crate) patience: fn() -> Patience,
}

impl<S: ChunkSource> Fetch<'_, S> {
    /// Fetches a batch, and again what came wrong or not at all, until every chunk is delivered.
    pub(crate) async fn batch(&self, batch: Batch, deliver: &impl Deliver) -> Result<()> {
        let mut left = batch.chunks.clone();
        let (mut patience, mut repair) = ((self.patience)(), false);
        loop {
            let ctx = self.context(batch.priority, repair);
            let place = Place { image: self.image, section: batch.section, chunks: left.clone() };
            let mut sink = Verify { fetch: self, batch: &batch, deliver, left, wrong: None };
            let answer = self.source.chunks(&ctx, &place, &mut sink).await;
            let wrong = sink.wrong.take();
            left = sink.left;
            if left.is_empty() {
                return Ok(());
            }
            let error = reason(wrong, answer).at(format!("section {}", batch.section));
            let Some(pause) = patience.again(&error) else { return Err(error) };
            tracing::info!(%error, "asking again for {} chunks", left.count());
            repair |= error.kind() == Kind::Corrupt;
            tokio::time::sleep(pause).await;
        }
    }
}

impl<S: ChunkSource> Fetch<'_, S> {
    fn context(&self, priority: Priority, repair: bool) -> ReadContext {
        ReadContext { priority, repair, trace: self.trace, ..ReadContext::default() }
    }

    /// The digests of a section, asked for until they come.
    pub(crate) async fn table(
        &self,
        section: u32,
        priority: Priority,
    ) -> Result<Arc<SectionTable>> {
        let ctx = self.context(priority, false);
        let ask = async || self.source.section_table(&ctx, &self.image, section).await;
        (self.patience)().ask(ask).await
    }
}

/// Why chunks are missing after an answer: what came wrong, else what the source says.
fn reason(wrong: Option<Error>, answer: Result<()>) -> Error {
    let silent = || Error::new(Kind::Retry, "the source left chunks out without saying why");
    wrong.unwrap_or_else(|| answer.err().unwrap_or_else(silent))
}

/// Verifies frames to their plain bytes and delivers them.
struct Verify<'f, 'a, S, D> {
    fetch: &'f Fetch<'a, S>,
    batch: &'f Batch,
    deliver: &'f D,
    left: ChunkSet,
    wrong: Option<Error>,
}

impl<S: ChunkSource, D: Deliver> ChunkSink for Verify<'_, '_, S, D> {
    async fn chunk(&mut self, chunk: u32, frame: Frame) -> Result<()> {
        let fetch = self.fetch;
        let bytes = frame.bytes().len() as u64;
        fetch.watch.add(|w| &w.received, bytes);
        if let Some(rate) = fetch.rate {
            rate.wait(bytes).await;
        }
        if !self.left.contains(chunk) {
            let why = format!("chunk {chunk} came without being asked for, or twice");
            return Err(Error::new(Kind::Corrupt, why));
        }
        let digest = &self.batch.table.digests()[chunk as usize];
        let len = fetch.geometry.chunk_len_at(self.batch.section, chunk);
        let buf = fetch.arena.acquire().await;
        // A statement of its own: the decoder must be free again before the delivery is awaited.
        let decoded = Verified::decode(&mut fetch.decoder.borrow_mut(), &frame, digest, buf, len);
        match decoded {
            Ok(plain) => {
                self.deliver.deliver(self.batch.section, chunk, plain).await?;
                self.left.remove(chunk);
                fetch.watch.add(|w| &w.chunks, 1);
            }
            Err(error) => {
                // Never written as good: it stays in `left`, and is asked for again with the
                // demand that whoever holds a copy looks at it.
                fetch.watch.add(|w| &w.repaired, 1);
                self.wrong = Some(Error::from(error).at(format!("chunk {chunk} as it came")));
            }
        }
        Ok(())
    }
}
