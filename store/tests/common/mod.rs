//! Small disks, and the way in and out of a store.
#![allow(dead_code, reason = "each test file uses some of it")]

pub mod relay;
pub mod s3;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use forebay_store::testing::{ManualClock, TestStore, counted_ids};
use forebay_store::{GcOptions, IndexPlace, Receiver, ReceiverSession, Store, StoreOptions};
use image::pack::{PackBuilder, Trailer};
use image::seam::{ImagePlan, ImageSession};
use image::{
    ChunkSet, ChunkSource, Decoder, Digest, Domain, Encoder, Error, Footer, Frame, Geometry,
    ImageSink, Manifest, Place, ReadContext, Result, SectionSink, SectionTable,
};
use object_store::ObjectStore;
use tokio::runtime::Handle;

pub const START: u64 = 1_700_000_000;
pub const LIFE: u64 = 600;
pub const GRACE: u64 = 24 * 3600;
pub const CTX: ReadContext =
    ReadContext { priority: image::Priority::Background, deadline: None, trace: 0, repair: false };

/// A disk: chunks that are not zeros, by section and chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    pub geometry: Geometry,
    pub chunks: BTreeMap<(u32, u32), Vec<u8>>,
}

/// Noise that zstd cannot shrink, or text that it can.
pub fn plain(seed: u64, len: usize, noise: bool) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x
    };
    let word = next();
    let fill = |i: usize| if noise { next() } else { word.wrapping_add(i as u64 / 64) };
    let words = (0..len.div_ceil(8)).map(fill).flat_map(u64::to_le_bytes);
    words.take(len).collect()
}

impl Disk {
    /// Chunks of 16 KiB with these seeds, at these places. Even seeds are noise.
    pub fn new(size: u64, chunks: &[(u32, u32, u64)]) -> Self {
        let geometry = Geometry::new(size, 512, 14).unwrap();
        let chunks = chunks.iter().map(|(s, c, seed)| {
            let len = geometry.chunk_len_at(*s, *c);
            ((*s, *c), plain(*seed, len, seed % 2 == 0))
        });
        Self { geometry, chunks: chunks.collect() }
    }

    pub fn table(&self, section: u32) -> SectionTable {
        let digest = |c| match self.chunks.get(&(section, c)) {
            Some(plain) => Digest::of_chunk(plain),
            None => Digest::ZERO,
        };
        let n = self.geometry.chunks_in(section);
        SectionTable::new(Domain::PUBLIC, (0..n).map(digest).collect())
    }

    pub fn manifest(&self) -> Manifest {
        let sections = (0..self.geometry.sections()).map(|s| self.table(s).digest()).collect();
        Manifest::new(Domain::PUBLIC, self.geometry, sections)
    }

    pub fn image(&self) -> Digest {
        self.manifest().identity()
    }

    pub fn plan(&self, parent: Option<Digest>) -> ImagePlan {
        ImagePlan { domain: Domain::PUBLIC, geometry: self.geometry, parent }
    }

    /// Offers, sends and seals a section; how many chunks were asked for.
    pub async fn send(&self, session: &ReceiverSession, section: u32) -> Result<u32> {
        let (wanted, mut sink) = session.offer(section, &self.table(section)).await?;
        let mut encoder = Encoder::new()?;
        for chunk in wanted.iter() {
            let plain = &self.chunks[&(section, chunk)];
            let frame = encoder.encode(Domain::PUBLIC, Digest::of_chunk(plain), plain);
            sink.chunk(chunk, frame).await?;
        }
        sink.seal().await?;
        Ok(wanted.count())
    }

    /// Sends every section, all at once.
    pub async fn send_all(&self, session: &ReceiverSession) -> Result<u32> {
        let manifest = self.manifest();
        let sending = manifest.present().map(|(section, _)| self.send(session, section));
        Ok(futures::future::try_join_all(sending).await?.iter().sum())
    }

    /// Pushes the whole disk; how many chunks were asked for.
    pub async fn push(&self, receiver: &Receiver, parent: Option<Digest>) -> Result<u32> {
        let session = receiver.open(&CTX, &self.plan(parent)).await?;
        let sent = self.send_all(&session).await?;
        assert_eq!(session.commit(&self.manifest()).await?, self.image());
        Ok(sent)
    }

    /// Reads an image back and decodes it.
    pub async fn pull(store: &Store, image: &Digest) -> Result<Self> {
        Self::pull_with(store, image, &CTX).await
    }

    pub async fn pull_with(store: &Store, image: &Digest, ctx: &ReadContext) -> Result<Self> {
        let manifest = store.manifest(ctx, image).await?;
        let geometry = *manifest.geometry();
        let mut chunks = BTreeMap::new();
        let mut decoder = Decoder::new()?;
        for section in 0..geometry.sections() {
            let table = store.section_table(ctx, image, section).await?;
            let present = ChunkSet::of(table.chunks(), |c| !table.digests()[c as usize].is_zero());
            let place = Place { image: *image, section, chunks: present.clone() };
            let mut frames = Vec::new();
            store.chunks(ctx, &place, &mut frames).await?;
            assert_eq!(frames.len(), present.count() as usize, "each chunk once");
            for (chunk, frame) in frames {
                let mut plain = vec![0; geometry.chunk_len_at(section, chunk)];
                let expected = &table.digests()[chunk as usize];
                decoder.decode(&frame, expected, &mut plain).map_err(Error::from)?;
                chunks.insert((section, chunk), plain);
            }
        }
        Ok(Self { geometry, chunks })
    }
}

/// A store over memory, with a clock that stands still.
pub struct Bench {
    pub clock: ManualClock,
    pub objects: TestStore,
    pub store: Store,
}

impl Bench {
    pub async fn new() -> Self {
        Self::on(ManualClock::at(START), 1).await
    }

    async fn on(clock: ManualClock, seed: u64) -> Self {
        let objects = TestStore::new(clock.clock());
        let store = open(&objects, &clock, seed).await.unwrap();
        Self { clock, objects, store }
    }

    /// Another process on the same objects.
    pub async fn reopen(&self, seed: u64) -> Store {
        open(&self.objects, &self.clock, seed).await.unwrap()
    }

    pub fn receiver(&self) -> Receiver {
        Receiver::new(&self.store)
    }

    pub async fn gc(&self, roots: &[Digest]) -> forebay_store::GcReport {
        self.store
            .gc(roots, &sweep(Duration::from_secs(GRACE), false, self.clock.now()))
            .await
            .unwrap()
    }

    /// Long enough for everything that is not named to be condemned, or deleted.
    pub fn wait(&self) {
        self.clock.advance(GRACE + 3 * LIFE);
    }
}

pub fn options(clock: &ManualClock, seed: u64) -> StoreOptions {
    let mut options = StoreOptions::system(IndexPlace::Memory);
    options.clock = clock.clock();
    options.ids = counted_ids(seed);
    options.session_life = Duration::from_secs(LIFE);
    options
}

pub async fn open(objects: &TestStore, clock: &ManualClock, seed: u64) -> Result<Store> {
    let objects: Arc<dyn ObjectStore> = objects.objects();
    Store::open(objects, Handle::current(), options(clock, seed)).await
}

pub const MIB: u64 = 1 << 20;

/// Collecting garbage without rewriting packs.
pub fn sweep(grace: Duration, dry_run: bool, now: u64) -> GcOptions {
    GcOptions { grace, dry_run, now, compact: None }
}

/// Two full sections and a short one, the middle one of zeros; the last chunk is short.
pub fn small_disk() -> Disk {
    Disk::new(128 * MIB + 20_480, &[(0, 0, 1), (0, 7, 2), (0, 4095, 3), (2, 0, 5), (2, 1, 4)])
}

pub fn footer_of(pack: &[u8]) -> Footer {
    let len = pack.len() as u64;
    let trailer = Trailer::parse(&pack[pack.len() - 64..], len).unwrap();
    Footer::parse(&pack[trailer.entries_at as usize..], len).unwrap()
}

/// The pack as if its first frame had been made of other plain bytes under the same digest.
pub fn forge(pack: &[u8]) -> Vec<u8> {
    let footer = footer_of(pack);
    let mut builder = PackBuilder::new(Domain::PUBLIC);
    for (i, entry) in footer.entries.iter().enumerate() {
        let at = entry.offset as usize;
        let frame = pack[at..at + entry.frame_len as usize].to_vec();
        let frame = Frame::parse(frame.into()).unwrap();
        if i > 0 {
            builder.push(&frame);
            continue;
        }
        let other = plain(4711, entry.plain_len as usize, false);
        builder.push(&Encoder::new().unwrap().encode(Domain::PUBLIC, entry.digest, &other));
    }
    builder.finish().0.concat()
}
