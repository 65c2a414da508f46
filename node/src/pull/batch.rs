//! A batch: neighbouring missing chunks of one section, asked for together, and again until each
//! has come right.

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

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
            let mut sink = Verify { fetch: self, batch: &batch, deliver, left, wrong: Vec::new() };
            let answer = self.source.chunks(&ctx, &place, &mut sink).await;
            let wrong = std::mem::take(&mut sink.wrong);
            left = sink.left;
            if left.is_empty() {
                return Ok(());
            }
            let looked = repair;
            repair |= !wrong.is_empty();
            let error = reason(wrong, &left, answer).at(format!("section {}", batch.section));
            let corrupt = error.kind() == Kind::Corrupt;
            repair |= corrupt;
            let pause = match patience.again(&error) {
                Some(pause) => pause,
                // Patience went on other failures: nobody who holds a copy has been asked to look at it yet.
                None if corrupt && !looked => Duration::ZERO,
                None => return Err(error),
            };
            tracing::info!(%error, "asking again for {} chunks", left.count());
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

/// Why chunks are missing after an answer: what the source says, if others are missing than those that came wrong.
fn reason(mut wrong: Vec<(u32, Error)>, left: &ChunkSet, answer: Result<()>) -> Error {
    wrong.retain(|(chunk, _)| left.contains(*chunk));
    let silent = || Error::new(Kind::Retry, "the source left chunks out without saying why");
    match wrong.pop() {
        Some((chunk, error)) if wrong.len() + 1 >= left.count() as usize => {
            error.at(format!("chunk {chunk} as it came"))
        }
        _ => answer.err().unwrap_or_else(silent),
    }
}

/// Verifies frames to their plain bytes and delivers them.
struct Verify<'f, 'a, S, D> {
    fetch: &'f Fetch<'a, S>,
    batch: &'f Batch,
    deliver: &'f D,
    left: ChunkSet,
    /// Each chunk once.
    wrong: Vec<(u32, Error)>,
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
                self.wrong.retain(|(other, _)| *other != chunk);
                self.wrong.push((chunk, Error::from(error)));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::VecDeque;

    use image::{Domain, Encoder, Manifest};

    use super::*;

    const CHUNK: usize = 16 << 10;

    /// What becomes of a request.
    #[derive(Clone, Copy)]
    enum Answer {
        Cut,
        /// Of these chunks another's bytes come; then it is cut, or not.
        Wrong(&'static [u32], bool),
        Right,
    }
    use Answer::{Cut, Right, Wrong};

    struct Scripted {
        answers: RefCell<VecDeque<Answer>>,
        repairs: Cell<u32>,
    }

    fn plain(chunk: u32) -> Vec<u8> {
        vec![chunk as u8 + 1; CHUNK]
    }

    impl ChunkSource for Scripted {
        async fn manifest(&self, _: &ReadContext, _: &Digest) -> Result<Arc<Manifest>> {
            unreachable!("a batch needs none")
        }

        async fn section_table(
            &self,
            _: &ReadContext,
            _: &Digest,
            _: u32,
        ) -> Result<Arc<SectionTable>> {
            unreachable!("a batch has it")
        }

        async fn chunks<S: ChunkSink>(
            &self,
            ctx: &ReadContext,
            place: &Place,
            sink: &mut S,
        ) -> Result<()> {
            self.repairs.set(self.repairs.get() + u32::from(ctx.repair));
            let answer = self.answers.borrow_mut().pop_front().expect("no more requests");
            let cut = Err(Error::new(Kind::Retry, "cut"));
            let (wrong, cut) = match answer {
                Cut => return cut,
                Wrong(wrong, true) => (wrong, cut),
                Wrong(wrong, false) => (wrong, Ok(())),
                Right => (&[][..], Ok(())),
            };
            for chunk in place.chunks.iter() {
                let bad = wrong.contains(&chunk);
                if cut.is_err() && !bad {
                    continue;
                }
                let bytes = plain(if bad { chunk + 100 } else { chunk });
                let digest = Digest::of_chunk(&bytes);
                let frame = Encoder::new()?.encode(Domain::PUBLIC, digest, &bytes);
                sink.chunk(chunk, frame).await?;
            }
            cut
        }
    }

    struct Nowhere;

    impl Deliver for Nowhere {
        async fn deliver(&self, _: u32, _: u32, _: Verified) -> Result<()> {
            Ok(())
        }
    }

    /// Asks for three chunks, briefly; how that ended, and how often a repair was asked for.
    async fn fetched(answers: &[Answer]) -> (std::result::Result<(), Kind>, u32) {
        let source =
            Scripted { answers: RefCell::new(answers.to_vec().into()), repairs: Cell::new(0) };
        let digests = (0..3).map(|chunk| Digest::of_chunk(&plain(chunk))).collect();
        let mut chunks = ChunkSet::empty(3);
        (0..3).for_each(|chunk| chunks.insert(chunk));
        let table = Arc::new(SectionTable::new(Domain::PUBLIC, digests));
        let fetch = Fetch {
            source: &source,
            image: Digest::ZERO,
            geometry: Geometry::new(3 * CHUNK as u64, 512, 14).unwrap(),
            arena: &Arena::new("test", CHUNK, 4 * CHUNK).unwrap(),
            decoder: Rc::new(RefCell::new(Decoder::new().unwrap())),
            rate: None,
            watch: &Watch::default(),
            trace: 0,
            patience: Patience::brief,
        };
        let batch = Batch { section: 0, table, chunks, priority: Priority::Guest };
        let ended = fetch.batch(batch, &Nowhere).await;
        assert!(source.answers.borrow().is_empty(), "requests that were not made");
        (ended.map_err(|error| error.kind()), source.repairs.get())
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_corrupt_before_a_repair_was_asked_for() {
        let one = Wrong(&[1], false);
        assert_eq!(fetched(&[one, Right]).await, (Ok(()), 1));
        assert_eq!(fetched(&[one, one]).await, (Err(Kind::Corrupt), 1));
        assert_eq!(fetched(&[Cut, one, Right]).await, (Ok(()), 1));
        assert_eq!(fetched(&[Cut, one, one]).await, (Err(Kind::Corrupt), 1));
        assert_eq!(fetched(&[Cut, one, Cut]).await, (Err(Kind::Retry), 1));
        assert_eq!(fetched(&[Cut, Cut]).await, (Err(Kind::Retry), 0));
    }

    #[tokio::test(start_paused = true)]
    async fn one_wrong_chunk_does_not_make_those_that_did_not_come_corrupt() {
        let one = Wrong(&[1], true);
        assert_eq!(fetched(&[one, one]).await, (Err(Kind::Retry), 1));
        assert_eq!(fetched(&[one, Right]).await, (Ok(()), 1));
        let all = Wrong(&[0, 1, 2], true);
        assert_eq!(fetched(&[all, all]).await, (Err(Kind::Corrupt), 1));
    }
}
