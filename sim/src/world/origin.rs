//! The way from a cache to the store: the real store, behind a line that is slow, breaks and lies.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use image::{
    ChunkSink, ChunkSource, Codec, Digest, Domain, Error, Frame, Kind, Manifest, Place,
    ReadContext, Result, SectionTable,
};
use tokio::time::sleep;

use crate::chance::Chance;
use crate::corpus::{Corpus, Truth};
use crate::invariants::{Life, Watch};
use crate::trace::Trace;

/// How the store is just now, for everybody. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Mood(Arc<Mutex<Moods>>);

/// What a store does that is not well.
#[derive(Clone, Copy, Debug, Default)]
pub struct Moods {
    /// It answers nothing, for as long as this is set.
    pub silent: bool,
    /// It fails so many requests of a thousand, half of them midway.
    pub fails: u64,
    /// So many frames of a thousand come altered: half with bad checksums, half with good ones.
    pub lies: u64,
}

impl Mood {
    /// How it is.
    pub fn now(&self) -> Moods {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes how it is.
    pub fn set(&self, change: impl FnOnce(&mut Moods)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// How far away the store is.
#[derive(Clone, Copy, Debug)]
pub struct Distance {
    /// Before the first byte of an answer, in ms.
    pub delay: u64,
    /// Bytes per ms.
    pub speed: u64,
}

/// The store as one cache sees it, in one of its lives.
pub struct Origin {
    pub(super) corpus: &'static Corpus,
    pub(super) distance: Distance,
    pub(super) mood: Mood,
    pub(super) life: Life,
    pub(super) watch: Watch,
    pub(super) trace: Trace,
    pub(super) chance: RefCell<Chance>,
}

impl Origin {
    /// The way to the store, and what becomes of a request on it: the part after which it breaks off, of
    /// a thousand.
    async fn travel(&self) -> Result<u64> {
        let delay = self.chance.borrow_mut().within(1..self.distance.delay + 2);
        sleep(Duration::from_millis(delay)).await;
        while self.mood.now().silent {
            sleep(Duration::from_millis(100)).await;
        }
        let mut chance = self.chance.borrow_mut();
        let (fails, midway) = (chance.per_mille(self.mood.now().fails), chance.one_in(2));
        let after = chance.within(0..1000);
        match (fails, midway) {
            (false, _) => Ok(1000),
            (true, true) => Ok(after),
            (true, false) => Err(broken()),
        }
    }

    /// A frame as it comes out of the line.
    fn through_the_line(&self, digest: &Digest, frame: Frame, repair: bool) -> Frame {
        let mut chance = self.chance.borrow_mut();
        let lies = chance.per_mille(self.mood.now().lies);
        let (forge, at) = (chance.one_in(2), chance.number() as usize);
        if !lies || repair {
            return frame;
        }
        let header = frame.header();
        let mut payload = frame.payload().to_vec();
        let at = at % payload.len();
        payload[at] ^= 0x10;
        if forge {
            self.watch.forged(*digest);
            return Frame::new(header.codec, header.domain, *digest, header.plain_len, &payload);
        }
        let other = Digest::of_chunk(b"some other chunk");
        Frame::new(Codec::Raw, Domain::PUBLIC, other, payload.len() as u32, &payload)
    }

    fn truth(&self, image: &Digest) -> Result<&'static Truth> {
        let truth = self.corpus.truth(image);
        truth.map(Arc::as_ref).ok_or_else(|| Error::new(Kind::Gone, "no such image"))
    }

    async fn give<S: ChunkSink>(
        &self,
        ctx: &ReadContext,
        place: &Place,
        sink: &mut S,
    ) -> Result<()> {
        let truth = self.truth(&place.image)?;
        let digest = |chunk| truth.digest(place.section, chunk);
        let asked: BTreeSet<_> = place.chunks.iter().map(digest).collect();
        let mut fetch = self.watch.asks(self.life, &asked, ctx);
        let part = self.travel().await?;
        let mut frames: Vec<(u32, Frame)> = Vec::new();
        at_once(self.corpus.store.chunks(ctx, place, &mut frames))?;
        // The store reads pieces of packs side by side: in which order they come is for us to say.
        frames.sort_unstable_by_key(|(chunk, _)| *chunk);
        if self.chance.borrow_mut().one_in(2) {
            self.chance.borrow_mut().shuffle(&mut frames);
        }
        let whole = (frames.len() as u64 * part).div_ceil(1000) as usize;
        let (mut owed, all) = (0, frames.len());
        for (chunk, frame) in frames.into_iter().take(whole) {
            owed += frame.bytes().len() as u64;
            if owed >= self.distance.speed {
                sleep(Duration::from_millis(owed / self.distance.speed)).await;
                owed %= self.distance.speed;
            }
            let frame = self.through_the_line(&digest(chunk), frame, ctx.repair);
            fetch.gives(&digest(chunk), &frame);
            sink.chunk(chunk, frame).await?;
        }
        if whole < all { Err(broken()) } else { Ok(()) }
    }
}

fn broken() -> Error {
    Error::new(Kind::Retry, "the line to the store broke")
}

/// Waits for the real store while the run's time stands still.
fn at_once<T>(work: impl Future<Output = T>) -> T {
    // Unconstrained: this task's share of turns must not depend on how often a real thread wakes us.
    futures::executor::block_on(tokio::task::unconstrained(work))
}

impl ChunkSource for Origin {
    async fn manifest(&self, ctx: &ReadContext, image: &Digest) -> Result<Arc<Manifest>> {
        self.travel().await?;
        at_once(self.corpus.store.manifest(ctx, image))
    }

    async fn section_table(
        &self,
        ctx: &ReadContext,
        image: &Digest,
        section: u32,
    ) -> Result<Arc<SectionTable>> {
        self.travel().await?;
        at_once(self.corpus.store.section_table(ctx, image, section))
    }

    async fn chunks<S: ChunkSink>(
        &self,
        ctx: &ReadContext,
        place: &Place,
        sink: &mut S,
    ) -> Result<()> {
        let given = self.give(ctx, place, sink).await;
        let (life, asked, repair) = (self.life, place.chunks.count(), ctx.repair);
        let end = given.as_ref().map_err(|e| e.kind().name());
        self.trace.note(format_args!("{life} < store: {asked} chunks, repair {repair}: {end:?}"));
        given
    }
}
