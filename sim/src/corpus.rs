//! What the simulated grids serve: small images in real stores, and the truth about every byte of them.
//!
//! A corpus is made once in a process and only read from then on, so every run may use any of them.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use blockio::BlockFile;
use bytes::Bytes;
use image::geometry::SECTION_LEN;
use image::seam::{ImagePlan, ImageSession};
use image::{
    Digest, Domain, Encoder, Frame, Geometry, ImageSink, Manifest, ReadContext, Result,
    SectionSink, SectionTable,
};
use store::testing::{ManualClock, TestStore, counted_ids};
use store::{IndexPlace, Receiver, Store, StoreOptions};
use tokio::runtime::Runtime;

use crate::chance::Chance;

/// How many there are: see [`corpus`].
pub const CORPORA: usize = 4;
/// Section and chunk.
type At = (u32, u32);

/// An image, and all that is right about it.
#[derive(Debug)]
pub struct Truth {
    /// Its identity.
    pub image: Digest,
    /// Its shape.
    pub geometry: Geometry,
    /// The tables of its sections.
    pub tables: Vec<SectionTable>,
    manifest: Manifest,
    plain: BTreeMap<At, Bytes>,
    frames: BTreeMap<At, Frame>,
}

/// A store with some images: the second is the first with changes, the third shares chunks with both.
pub struct Corpus {
    /// The store.
    pub store: Store,
    /// The images.
    pub images: Vec<Arc<Truth>>,
}

impl Truth {
    fn of(geometry: Geometry, plain: BTreeMap<At, Bytes>) -> Result<Self> {
        let mut encoder = Encoder::new()?;
        let digest = |at: &At| plain.get(at).map_or(Digest::ZERO, |p| Digest::of_chunk(p));
        let table = |s| {
            let digests = (0..geometry.chunks_in(s)).map(|c| digest(&(s, c)));
            SectionTable::new(Domain::PUBLIC, digests.collect())
        };
        let tables: Vec<_> = (0..geometry.sections()).map(table).collect();
        let sections = tables.iter().map(SectionTable::digest).collect();
        let manifest = Manifest::new(Domain::PUBLIC, geometry, sections);
        let frames =
            plain.iter().map(|(at, p)| (*at, encoder.encode(Domain::PUBLIC, digest(at), p)));
        let (frames, image) = (frames.collect(), manifest.identity());
        Ok(Self { image, geometry, tables, manifest, plain, frames })
    }

    /// The length of its longest frame, in bytes.
    pub fn longest_frame(&self) -> u64 {
        self.frames.values().map(|frame| frame.bytes().len() as u64).max().unwrap_or(0)
    }

    /// The digest of a chunk.
    pub fn digest(&self, section: u32, chunk: u32) -> Digest {
        let table = self.tables.get(section as usize);
        table.and_then(|t| t.digests().get(chunk as usize)).copied().unwrap_or(Digest::ZERO)
    }

    /// The frame of a chunk that is not zeros.
    pub fn frame(&self, section: u32, chunk: u32) -> Option<&Frame> {
        self.frames.get(&(section, chunk))
    }

    /// Whether `bytes` are what the disk holds at `offset`.
    pub fn holds(&self, offset: u64, bytes: &[u8]) -> bool {
        let mut at = 0;
        while at < bytes.len() {
            let place = offset + at as u64;
            let section = (place / SECTION_LEN) as u32;
            let chunk = ((place % SECTION_LEN) >> self.geometry.chunk_log2()) as u32;
            let within = (place % self.geometry.chunk_len() as u64) as usize;
            let len = (self.geometry.chunk_len() - within).min(bytes.len() - at);
            let part = &bytes[at..at + len];
            let right = match self.plain.get(&(section, chunk)) {
                Some(plain) => plain.get(within..within + len) == Some(part),
                None => image::is_zero(part),
            };
            if !right {
                return false;
            }
            at += len;
        }
        true
    }

    /// Whether a file is this disk, whole.
    pub fn is(&self, file: &BlockFile) -> std::io::Result<bool> {
        if file.size()? != self.geometry.size() {
            return Ok(false);
        }
        let mut buf = vec![0; self.geometry.chunk_len()];
        for ((section, chunk), plain) in &self.plain {
            let start = self.geometry.chunk_start(*section, *chunk);
            file.read_exact_at(&mut buf[..plain.len()], start)?;
            if buf[..plain.len()] != **plain {
                return Ok(false);
            }
        }
        // What is right between them is a hole, or at least zeros.
        for extent in file.data_extents(0..self.geometry.size()) {
            let extent = extent?;
            let mut data = vec![0; (extent.end - extent.start) as usize];
            file.read_exact_at(&mut data, extent.start)?;
            if !self.holds(extent.start, &data) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn push(&self, receiver: &Receiver) -> Result<()> {
        let ctx = ReadContext::default();
        let plan = ImagePlan { domain: Domain::PUBLIC, geometry: self.geometry, parent: None };
        let session = receiver.open(&ctx, &plan).await?;
        for (section, _) in self.manifest.present() {
            let table = &self.tables[section as usize];
            let (wanted, mut sink) = session.offer(section, table).await?;
            for chunk in wanted.iter() {
                let frame = self.frames[&(section, chunk)].clone();
                sink.chunk(chunk, frame).await?;
            }
            sink.seal().await?;
        }
        session.commit(&self.manifest).await.map(drop)
    }
}

/// One of the corpora.
///
/// # Panics
///
/// If a store cannot be made in memory.
pub fn corpus(number: usize) -> &'static Corpus {
    static ALL: [OnceLock<Corpus>; CORPORA] = [const { OnceLock::new() }; CORPORA];
    ALL[number].get_or_init(|| Corpus::make(number as u64).expect("a store in memory"))
}

/// Where the stores work: their time is real, and no run sees any of it.
fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(1).enable_all().build().expect("a runtime for the stores")
    })
}

impl Corpus {
    fn make(number: u64) -> Result<Self> {
        let mut chance = Chance::new(number, "corpus");
        let log2 = [14, 16, 14, 18][number as usize % 4];
        let images = images(log2, &mut chance)?;
        let objects = TestStore::new(ManualClock::at(1_700_000_000).clock());
        let mut options = StoreOptions::system(IndexPlace::Memory);
        options.ids = counted_ids(number);
        let handle = runtime().handle().clone();
        let store = runtime().block_on(async {
            let store = Store::open(objects.objects(), handle, options).await?;
            let receiver = Receiver::new(&store);
            for image in &images {
                image.push(&receiver).await?;
            }
            Ok::<_, image::Error>(store)
        })?;
        Ok(Self { store, images: images.into_iter().map(Arc::new).collect() })
    }

    /// The truth about an image.
    pub fn truth(&self, image: &Digest) -> Option<&Arc<Truth>> {
        self.images.iter().find(|truth| truth.image == *image)
    }
}

/// Three disks of two to three sections, mostly holes, the last chunk short.
fn images(log2: u8, chance: &mut Chance) -> Result<Vec<Truth>> {
    let chunk = 1u64 << log2;
    let size = SECTION_LEN * 2 + chunk * chance.within(2..9) + 512 * chance.within(1..8);
    let geometry = Geometry::new(size, 512, log2)?;
    let places = |chance: &mut Chance| -> Vec<At> {
        let section = chance.within(0..u64::from(geometry.sections())) as u32;
        let first = chance.within(0..u64::from(geometry.chunks_in(section))) as u32;
        let last = geometry.chunks_in(section).min(first + chance.within(1..8) as u32);
        (first..last).map(|chunk| (section, chunk)).collect()
    };
    let content = |chance: &mut Chance, at: At| {
        let len = geometry.chunk_len_at(at.0, at.1);
        // Bytes that compress well, half, or not at all.
        let noise = [len / 16, len / 2, len][chance.within(0..3) as usize];
        let mut bytes = chance.bytes(noise.max(1));
        bytes.resize(len, 0x5a);
        Bytes::from(bytes)
    };
    let chunks = (1 << 20) / chunk as usize;
    let mut first = BTreeMap::new();
    while first.len() < chunks.clamp(12, 48) {
        for at in places(chance) {
            first.insert(at, content(chance, at));
        }
    }
    let mut second = first.clone();
    for at in first.keys() {
        match chance.within(0..10) {
            0 => drop(second.remove(at)),
            1..3 => drop(second.insert(*at, content(chance, *at))),
            _ => {}
        }
    }
    let mut third = BTreeMap::new();
    for (at, bytes) in first.iter().chain(&second) {
        // The same bytes elsewhere: one frame serves both.
        let there = (at.0, (at.1 + 3) % geometry.chunks_in(at.0));
        if chance.one_in(3) && geometry.chunk_len_at(there.0, there.1) == bytes.len() {
            third.insert(there, bytes.clone());
        }
    }
    for at in places(chance) {
        third.insert(at, content(chance, at));
    }
    [first, second, third].into_iter().map(|plain| Truth::of(geometry, plain)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_share_chunks_and_differ() {
        for number in 0..CORPORA {
            let images = &corpus(number).images;
            let digests = |i: usize| {
                let all = images[i].frames.keys().map(|(s, c)| images[i].digest(*s, *c));
                all.collect::<std::collections::BTreeSet<_>>()
            };
            let shared = digests(0).intersection(&digests(1)).count();
            assert!(shared > 3 && shared < digests(1).len());
            assert!(digests(2).intersection(&digests(0)).count() > 0);
        }
    }
}
