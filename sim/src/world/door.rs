//! What a server serves from: its cache, and a watch on every frame that goes out. Bugs of caches are planted
//! here.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use cache::Cache;
use image::{
    ChunkSink, ChunkSource, Digest, Frame, Manifest, Place, ReadContext, Result, SectionTable,
};

use super::World;
use super::origin::Origin;
use crate::bugs::Bug;
use crate::chance::Chance;
use crate::corpus::Truth;
use crate::invariants::Life;

/// A core's cache, as its server sees it.
#[derive(Clone)]
pub(super) struct Door {
    cache: Cache<Origin>,
    /// The store itself, for bugs that have no cache.
    bare: Rc<Origin>,
    world: World,
    life: Life,
    chance: Rc<RefCell<Chance>>,
}

impl Door {
    /// The door of one core.
    pub(super) fn new(
        cache: Cache<Origin>,
        bare: Origin,
        world: World,
        life: Life,
        chance: Chance,
    ) -> Self {
        Self { cache, bare: Rc::new(bare), world, life, chance: Rc::new(RefCell::new(chance)) }
    }
}

impl ChunkSource for Door {
    async fn manifest(&self, ctx: &ReadContext, image: &Digest) -> Result<Arc<Manifest>> {
        self.cache.manifest(ctx, image).await
    }

    async fn section_table(
        &self,
        ctx: &ReadContext,
        image: &Digest,
        section: u32,
    ) -> Result<Arc<SectionTable>> {
        self.cache.section_table(ctx, image, section).await
    }

    async fn chunks<S: ChunkSink>(
        &self,
        ctx: &ReadContext,
        place: &Place,
        sink: &mut S,
    ) -> Result<()> {
        let Some(truth) = self.world.corpus.truth(&place.image) else {
            return self.cache.chunks(ctx, place, sink).await;
        };
        if self.world.has(Bug::Forgets) {
            self.cache.shared().drop_all();
        }
        if self.world.has(Bug::LeftBehind) {
            let (cache, place) = (self.cache.clone(), place.clone());
            let read = async move {
                let _ = cache.chunks(&ReadContext::default(), &place, &mut Never).await;
            };
            tokio::task::spawn_local(read);
        }
        let mut looked = Looked { door: self, truth, section: place.section, sink };
        match self.world.has(Bug::NoSharing) {
            true => self.bare.chunks(ctx, place, &mut looked).await,
            false => self.cache.chunks(ctx, place, &mut looked).await,
        }
    }
}

/// Looks at every frame that goes out.
struct Looked<'a, S> {
    door: &'a Door,
    truth: &'a Truth,
    section: u32,
    sink: &'a mut S,
}

impl<S: ChunkSink> ChunkSink for Looked<'_, S> {
    async fn chunk(&mut self, chunk: u32, frame: Frame) -> Result<()> {
        let world = &self.door.world;
        let frame = match world.has(Bug::AlteredFrames) && self.door.chance.borrow_mut().one_in(100)
        {
            true => altered(&frame),
            false => frame,
        };
        world.watch.given(self.door.life, self.truth, self.section, chunk, &frame);
        self.sink.chunk(chunk, frame).await
    }
}

fn altered(frame: &Frame) -> Frame {
    let header = frame.header();
    let mut payload = frame.payload().to_vec();
    payload[0] ^= 1;
    Frame::new(header.codec, header.domain, header.digest, header.plain_len, &payload)
}

/// A reader that never takes anything.
struct Never;

impl ChunkSink for Never {
    async fn chunk(&mut self, _: u32, _: Frame) -> Result<()> {
        std::future::pending().await
    }
}
