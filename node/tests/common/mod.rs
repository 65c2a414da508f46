//! An image in memory, and a source of its chunks that lies, fails and counts as it is told.
#![allow(dead_code, reason = "each test file uses some of it")]

pub mod grid;
pub mod rough;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};

use blockio::EngineChoice;
use forebay_node::pull::{Connect, PullOptions, Watch, pull};
use image::{
    ChunkSink, ChunkSource, Codec, Digest, Domain, Encoder, Error, Frame, Geometry, Kind, Manifest,
    Place, ReadContext, Result, SectionTable, is_zero,
};
use tokio::sync::Semaphore;

pub const CHUNK: usize = 16 << 10;

/// A disk: letters for chunks, the same letter the same bytes, `.` for zeros.
#[derive(Clone, Debug)]
pub struct Disk {
    pub bytes: Vec<u8>,
}

impl Disk {
    pub fn new(chunks: &str) -> Self {
        let chunk = |c: u8| {
            (0..CHUNK).map(move |i| match c {
                b'.' => 0,
                // Half of it compresses.
                _ if i < CHUNK / 2 => c,
                _ => ((i * i * usize::from(c)) >> 7) as u8 | 1,
            })
        };
        Self { bytes: chunks.bytes().flat_map(chunk).collect() }
    }

    pub fn cut(mut self, bytes: usize) -> Self {
        self.bytes.truncate(self.bytes.len() - bytes);
        self
    }

    pub fn geometry(&self) -> Geometry {
        Geometry::new(self.bytes.len() as u64, 512, 14).unwrap()
    }

    fn chunk(&self, section: u32, chunk: u32) -> &[u8] {
        let geometry = self.geometry();
        let start = geometry.chunk_start(section, chunk) as usize;
        &self.bytes[start..start + geometry.chunk_len_at(section, chunk)]
    }

    fn table(&self, section: u32) -> SectionTable {
        let digest = |c| match self.chunk(section, c) {
            plain if is_zero(plain) => Digest::ZERO,
            plain => Digest::of_chunk(plain),
        };
        let chunks = self.geometry().chunks_in(section);
        SectionTable::new(Domain::PUBLIC, (0..chunks).map(digest).collect())
    }

    pub fn manifest(&self) -> Manifest {
        let sections = 0..self.geometry().sections();
        let digest = |s| match self.table(s) {
            table if table.is_zero() => Digest::ZERO,
            table => table.digest(),
        };
        Manifest::new(Domain::PUBLIC, self.geometry(), sections.map(digest).collect())
    }

    pub fn image(&self) -> Digest {
        self.manifest().identity()
    }

    #[track_caller]
    pub fn is_at(&self, path: &Path) {
        assert!(std::fs::read(path).unwrap() == self.bytes, "{}", path.display());
    }
}

/// What a source does with a request.
#[derive(Clone, Debug)]
pub enum Lie {
    /// Another chunk's frame, under this one's number.
    Swapped,
    /// The frame of other bytes, as an older version of the image had them here.
    Stale,
    /// Stale bytes in a frame that claims the right digest; its CRC32C is good.
    Forged,
    /// A payload with a flipped bit; its CRC32C was made after.
    Altered,
    /// A frame that is too short for its place.
    Short,
    /// Every chunk twice.
    Twice,
    /// Chunks that nobody asked for, besides.
    Unasked,
    /// Only every other chunk, and no word of it.
    LeftOut,
    /// An error, after the first chunk.
    Fails(Kind),
}

/// How often a source lies.
#[derive(Clone, Debug)]
pub enum Until {
    /// That many requests.
    Requests(usize),
    /// Until it is asked to repair.
    Repair,
    /// For ever.
    Ever,
}

/// What was asked, and how it was answered.
#[derive(Debug, Default)]
pub struct Said {
    pub asked: Mutex<Vec<(u32, BTreeSet<u32>, bool)>>,
}

impl Said {
    pub fn requests(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    /// Chunks that were asked for, each time counted; forgets them.
    pub fn chunks(&self) -> usize {
        self.asked.lock().unwrap().drain(..).map(|(_, chunks, _)| chunks.len()).sum()
    }

    pub fn repairs(&self) -> usize {
        self.asked.lock().unwrap().iter().filter(|(_, _, repair)| *repair).count()
    }
}

/// A source of one image.
#[derive(Clone, Debug)]
pub struct Source {
    pub disk: Arc<Disk>,
    pub lie: Option<(Lie, Until)>,
    pub said: Arc<Said>,
    /// Each chunk takes a permit; a closed gate is wide open.
    pub gate: Option<Arc<Semaphore>>,
}

impl Source {
    pub fn honest(disk: &Disk) -> Self {
        Self { disk: Arc::new(disk.clone()), lie: None, said: Arc::default(), gate: None }
    }

    /// Gives so many chunks, and the rest once its gate is closed.
    pub fn gated(disk: &Disk, chunks: usize) -> Self {
        Self { gate: Some(Arc::new(Semaphore::new(chunks))), ..Self::honest(disk) }
    }

    pub fn go_on(&self) {
        self.gate.as_ref().unwrap().close();
    }

    pub fn lying(disk: &Disk, lie: Lie, until: Until) -> Self {
        Self { lie: Some((lie, until)), ..Self::honest(disk) }
    }

    fn frame(&self, section: u32, chunk: u32) -> Frame {
        let plain = self.disk.chunk(section, chunk);
        Encoder::new().unwrap().encode(Domain::PUBLIC, Digest::of_chunk(plain), plain)
    }

    fn lie_now(&self, request: usize, repair: bool) -> Option<&Lie> {
        let (lie, until) = self.lie.as_ref()?;
        let lies = match until {
            Until::Requests(n) => request < *n,
            Until::Repair => !repair,
            Until::Ever => true,
        };
        lies.then_some(lie)
    }

    async fn tell<S: ChunkSink>(
        &self,
        lie: &Lie,
        section: u32,
        chunks: &[u32],
        sink: &mut S,
    ) -> Result<()> {
        for (i, chunk) in chunks.iter().copied().enumerate() {
            let good = self.frame(section, chunk);
            let plain = self.disk.chunk(section, chunk);
            let stale: Vec<u8> = plain.iter().map(|b| b ^ 0x55).collect();
            let with = |digest, plain: &[u8]| {
                Encoder::new().unwrap().encode(Domain::PUBLIC, digest, plain)
            };
            match lie {
                Lie::Swapped => {
                    let other = chunks[(i + 1) % chunks.len()];
                    sink.chunk(chunk, self.frame(section, other)).await?;
                }
                Lie::Stale => sink.chunk(chunk, with(Digest::of_chunk(&stale), &stale)).await?,
                Lie::Forged => sink.chunk(chunk, with(Digest::of_chunk(plain), &stale)).await?,
                Lie::Altered => sink.chunk(chunk, altered(&good)).await?,
                Lie::Short => {
                    let short = &plain[..512];
                    let digest = Digest::of_chunk(plain);
                    let frame = Frame::new(Codec::Raw, Domain::PUBLIC, digest, 512, short);
                    sink.chunk(chunk, frame).await?;
                }
                Lie::Twice => {
                    sink.chunk(chunk, good.clone()).await?;
                    sink.chunk(chunk, good).await?;
                }
                Lie::Unasked => {
                    sink.chunk(chunk, good).await?;
                    sink.chunk(chunks[0] + 1, self.frame(section, chunks[0] + 1)).await?;
                }
                Lie::LeftOut if i % 2 == 1 => {}
                Lie::Fails(kind) if i > 0 => return Err(Error::new(*kind, "as it was told")),
                Lie::LeftOut | Lie::Fails(_) => sink.chunk(chunk, good).await?,
            }
        }
        Ok(())
    }
}

/// A frame with a flipped bit, and a CRC32C that was made after.
fn altered(good: &Frame) -> Frame {
    let header = good.header();
    let mut payload = good.payload().to_vec();
    let middle = payload.len() / 2;
    payload[middle] ^= 4;
    Frame::new(header.codec, Domain::PUBLIC, header.digest, header.plain_len, &payload)
}

impl ChunkSource for Source {
    async fn manifest(&self, _: &ReadContext, image: &Digest) -> Result<Arc<Manifest>> {
        assert_eq!(*image, self.disk.image());
        Ok(Arc::new(self.disk.manifest()))
    }

    async fn section_table(
        &self,
        _: &ReadContext,
        _: &Digest,
        section: u32,
    ) -> Result<Arc<SectionTable>> {
        Ok(Arc::new(self.disk.table(section)))
    }

    async fn chunks<S: ChunkSink>(
        &self,
        ctx: &ReadContext,
        place: &Place,
        sink: &mut S,
    ) -> Result<()> {
        let chunks: Vec<u32> = place.chunks.iter().collect();
        let request = {
            let mut asked = self.said.asked.lock().unwrap();
            asked.push((place.section, chunks.iter().copied().collect(), ctx.repair));
            asked.len() - 1
        };
        if let Some(lie) = self.lie_now(request, ctx.repair) {
            return self.tell(lie, place.section, &chunks, sink).await;
        }
        for chunk in chunks {
            if let Some(gate) = &self.gate
                && let Ok(permit) = gate.acquire().await
            {
                permit.forget();
            }
            sink.chunk(chunk, self.frame(place.section, chunk)).await?;
        }
        Ok(())
    }
}

impl Connect for Source {
    type Source = Source;

    async fn connect(&self, _: usize) -> Result<Source> {
        Ok(self.clone())
    }
}

pub fn options(engine: EngineChoice) -> PullOptions {
    PullOptions { cores: 2, memory: 1 << 20, engine, sync: false, ..PullOptions::default() }
}

/// Pulls; what was counted.
pub async fn run(source: &Source, to: &Path) -> Result<api::node::Progress> {
    run_with(source, to, options(EngineChoice::Auto)).await
}

pub async fn run_with(
    source: &Source,
    to: &Path,
    options: PullOptions,
) -> Result<api::node::Progress> {
    let watch = Arc::new(Watch::default());
    let image = source.disk.image();
    pull(source.clone(), image, to.to_owned(), options, Arc::clone(&watch)).await?;
    Ok(watch.progress())
}
