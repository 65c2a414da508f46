//! How much of an image is here, and getting rid of it.

use std::collections::BTreeSet;

use image::error::At;
use image::{ChunkSource, Digest, Error, Kind, ReadContext, Result, SectionTable};

use crate::cache::Cache;
use crate::disk::queue::Command;
use crate::key::Key;

/// How much of an image a cache holds. Chunks of zeros are not counted; a chunk that occurs several
/// times is counted each time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Whether the image is pinned.
    pub pinned: bool,
    /// All sections together; its number says nothing.
    pub all: HeldSection,
    /// Every section that is not zeros.
    pub sections: Vec<HeldSection>,
}

/// How much of one section a cache holds. Bytes are of frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeldSection {
    /// Its number.
    pub section: u32,
    /// Its chunks.
    pub chunks: u64,
    /// Those in memory or on disk.
    pub here: u64,
    /// Those in memory.
    pub memory_chunks: u64,
    /// Their bytes.
    pub memory_bytes: u64,
    /// Those on disk.
    pub disk_chunks: u64,
    /// Their bytes.
    pub disk_bytes: u64,
}

/// What became of an image that was evicted. A chunk that occurs several times is counted once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evicted {
    /// Chunks that were here and are not any more.
    pub chunks: u64,
    /// Chunks that stayed, as a pinned image has them too.
    pub stayed: u64,
}

impl<S: ChunkSource + 'static> Cache<S> {
    /// How much of an image is here. Nothing but the image's manifest and tables is fetched.
    ///
    /// # Errors
    ///
    /// What the source says if it cannot give these.
    pub async fn held(&self, ctx: &ReadContext, image: &Digest) -> Result<Held> {
        let held = self.count_held(ctx, image).await;
        held.at(|| format!("image {}", image.short()))
    }

    async fn count_held(&self, ctx: &ReadContext, image: &Digest) -> Result<Held> {
        let manifest = self.get_manifest(ctx, image).await?;
        let mut held = Held { pinned: self.shared().is_pinned(image), ..Held::default() };
        for (section, _) in manifest.present() {
            let (_, table) = self.get_table(ctx, image, section).await?;
            let mut counted = HeldSection { section, ..HeldSection::default() };
            keys(&table).for_each(|key| self.count_chunk(&key, &mut counted));
            held.all.add(&counted);
            held.sections.push(counted);
            // An image may have a million sections: others want the core as well.
            tokio::task::consume_budget().await;
        }
        Ok(held)
    }

    fn count_chunk(&self, key: &Key, counted: &mut HeldSection) {
        let shared = self.shared();
        let memory = shared.memory.peek(key).map(|frame| frame.bytes().len() as u64);
        let disk = shared.disk.as_ref().and_then(|disk| disk.frame_len(key)).map(u64::from);
        counted.chunks += 1;
        counted.here += u64::from(memory.is_some() || disk.is_some());
        counted.memory_chunks += u64::from(memory.is_some());
        counted.memory_bytes += memory.unwrap_or(0);
        counted.disk_chunks += u64::from(disk.is_some());
        counted.disk_bytes += disk.unwrap_or(0);
    }

    /// Forgets an image's chunks in memory and on disk, other images' shares in them included, but
    /// for the chunks of pinned images. Segments of the log in which nothing else lies are removed;
    /// elsewhere the bytes themselves go with their segment, and a restart before that may find them
    /// again.
    ///
    /// # Errors
    ///
    /// [`Kind::Conflict`] if the image itself is pinned; otherwise what the source says if it cannot
    /// give manifest and tables.
    pub async fn evict(&self, ctx: &ReadContext, image: &Digest) -> Result<Evicted> {
        let evicted = self.forget(ctx, image).await;
        evicted.at(|| format!("evict image {}", image.short()))
    }

    async fn forget(&self, ctx: &ReadContext, image: &Digest) -> Result<Evicted> {
        if self.shared().is_pinned(image) {
            return Err(Error::new(Kind::Conflict, "it is pinned: unpin it first"));
        }
        let manifest = self.get_manifest(ctx, image).await?;
        let (mut evicted, mut segments) = (Evicted::default(), BTreeSet::new());
        for (section, _) in manifest.present() {
            let (_, table) = self.get_table(ctx, image, section).await?;
            let keys: Vec<_> = keys(&table).collect::<BTreeSet<_>>().into_iter().collect();
            keys.iter().for_each(|key| self.forget_chunk(key, &mut evicted, &mut segments));
            if let Some(disk) = &self.shared().disk {
                // Once more when those that wait to be written have been.
                disk.queue().order(Command::Forget(keys));
            }
            tokio::task::consume_budget().await;
        }
        if let Some(disk) = &self.shared().disk {
            disk.queue().order(Command::Sweep(segments));
        }
        Ok(evicted)
    }

    fn forget_chunk(&self, key: &Key, evicted: &mut Evicted, segments: &mut BTreeSet<u32>) {
        let shared = self.shared();
        if shared.disk.as_ref().is_some_and(|disk| disk.pins().contains(key)) {
            evicted.stayed += 1;
            return;
        }
        let in_memory = shared.memory.remove(key);
        let segment = shared.forget_on_disk(key);
        evicted.chunks += u64::from(in_memory || segment.is_some());
        segments.extend(segment);
    }
}

impl HeldSection {
    fn add(&mut self, other: &HeldSection) {
        self.chunks += other.chunks;
        self.here += other.here;
        self.memory_chunks += other.memory_chunks;
        self.memory_bytes += other.memory_bytes;
        self.disk_chunks += other.disk_chunks;
        self.disk_bytes += other.disk_bytes;
    }
}

fn keys(table: &SectionTable) -> impl Iterator<Item = Key> {
    let digests = table.digests().iter().filter(|digest| !digest.is_zero());
    digests.map(|digest| Key { domain: table.domain(), digest: *digest })
}
