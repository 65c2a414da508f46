//! A way to an image's chunks on which they are late, lost, damaged and in disorder: as a seed says.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use forebay_node::pull::Connect;
use image::{
    ChunkSink, ChunkSource, Digest, Error, Kind, Manifest, Place, ReadContext, Result, SectionTable,
};

use super::{Source, altered};

/// How rough it is: of a hundred requests so many fail, and so many bring a damaged chunk unless a repair is
/// asked for.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    pub fail: u64,
    pub damage: u64,
    /// Each request takes up to so long.
    pub late: Duration,
}

/// See the [module](self).
#[derive(Clone)]
pub struct Rough {
    source: Source,
    faults: Faults,
    chance: Arc<Mutex<u64>>,
}

/// What happens to a request.
enum Fate {
    Well,
    /// After so many chunks.
    Fails(usize),
    /// This one.
    Damages(usize),
}

impl Rough {
    pub fn new(source: &Source, faults: Faults, seed: u64) -> Self {
        let chance = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        Self { source: source.clone(), faults, chance: Arc::new(Mutex::new(chance)) }
    }

    /// xorshift.
    fn below(&self, n: u64) -> u64 {
        let mut x = self.chance.lock().unwrap();
        *x ^= *x << 13;
        *x ^= *x >> 7;
        *x ^= *x << 17;
        *x % n
    }

    async fn is_late(&self) {
        let most = self.faults.late.as_millis() as u64;
        tokio::time::sleep(Duration::from_millis(self.below(most + 1))).await;
    }

    /// It takes its time, and then perhaps there is no answer.
    async fn answers(&self) -> Result<()> {
        self.is_late().await;
        match self.below(100) < self.faults.fail {
            true => Err(Error::new(Kind::Retry, "nobody answers")),
            false => Ok(()),
        }
    }

    fn fate(&self, chunks: usize) -> Fate {
        let (chance, at) = (self.below(100), self.below(chunks as u64) as usize);
        let Faults { fail, damage, .. } = self.faults;
        match chance {
            c if c < fail => Fate::Fails(at),
            c if c < fail + damage => Fate::Damages(at),
            _ => Fate::Well,
        }
    }

    fn shuffled(&self, place: &Place) -> Vec<u32> {
        let mut chunks: Vec<u32> = place.chunks.iter().collect();
        for i in (1..chunks.len()).rev() {
            chunks.swap(i, self.below(i as u64 + 1) as usize);
        }
        chunks
    }
}

impl ChunkSource for Rough {
    async fn manifest(&self, ctx: &ReadContext, image: &Digest) -> Result<Arc<Manifest>> {
        self.answers().await?;
        self.source.manifest(ctx, image).await
    }

    async fn section_table(
        &self,
        ctx: &ReadContext,
        image: &Digest,
        section: u32,
    ) -> Result<Arc<SectionTable>> {
        self.answers().await?;
        self.source.section_table(ctx, image, section).await
    }

    async fn chunks<S: ChunkSink>(
        &self,
        ctx: &ReadContext,
        place: &Place,
        sink: &mut S,
    ) -> Result<()> {
        self.is_late().await;
        let chunks = self.shuffled(place);
        let fate = self.fate(chunks.len());
        for (i, chunk) in chunks.into_iter().enumerate() {
            let good = self.source.frame(place.section, chunk);
            let frame = match fate {
                Fate::Fails(at) if at == i => return Err(Error::new(Kind::Retry, "cut off")),
                Fate::Damages(at) if at == i && !ctx.repair => altered(&good),
                _ => good,
            };
            sink.chunk(chunk, frame).await?;
        }
        Ok(())
    }
}

impl Connect for Rough {
    type Source = Self;

    async fn connect(&self, _: usize) -> Result<Self> {
        self.answers().await?;
        Ok(self.clone())
    }
}
