//! Compares what a volume has of the image that its changes count from with that image, and repairs what has rotted.

use std::cell::Cell;

use api::volume::Scrubbed;
use image::{ChunkSet, ChunkSource, Priority, Result};
use volume_pool::{Original, Verdict, Verified, Volume};

use super::hydrate::Hydration;
use crate::pull::batch::{Batch, Deliver};

/// Chunks that are named in the log; the number of all of them is in the result.
const TOLD: u64 = 10;

impl<S: ChunkSource> Hydration<'_, S> {
    /// Checks these chunks, in rising order; what is wrong is fetched and written again.
    pub(super) async fn scrub(&self, chunks: impl Iterator<Item = u64>) -> Result<Scrubbed> {
        let mut found = Scrubbed::default();
        let of = self.original();
        for chunk in chunks {
            let (section, within) = self.volume.place_of(chunk)?;
            if section >= self.fetch.geometry.sections() || !self.volume.is_present(chunk) {
                continue;
            }
            let table = self.table(section, Priority::Background).await?;
            let Some(digest) = table.digests().get(within as usize) else { continue };
            let buf = self.fetch.arena.acquire().await;
            match self.volume.check_chunk(&of, section, within, digest, buf).await? {
                Verdict::Right => found.right += 1,
                Verdict::Other => found.written += 1,
                Verdict::Wrong => {
                    found.wrong += 1;
                    if found.wrong <= TOLD {
                        let volume = self.volume.identity().name;
                        tracing::warn!(volume, chunk, "a chunk has rotted on this disk");
                    }
                    found.repaired += u64::from(self.repair(section, within, &table).await?);
                }
            }
        }
        if found.repaired > 0 {
            self.volume.flush().await?;
        }
        Ok(found)
    }

    fn original(&self) -> Original {
        Original { image: self.fetch.image, geometry: self.fetch.geometry }
    }

    async fn repair(
        &self,
        section: u32,
        chunk: u32,
        table: &std::sync::Arc<image::SectionTable>,
    ) -> Result<bool> {
        if table.digests()[chunk as usize].is_zero() {
            return self.volume.repair_zeros(&self.original(), section, chunk).await;
        }
        let mut chunks = ChunkSet::empty(table.chunks());
        chunks.insert(chunk);
        let repaired = Repair { volume: self.volume, of: self.original(), done: Cell::new(false) };
        let priority = Priority::Background;
        let batch = Batch { section, table: std::sync::Arc::clone(table), chunks, priority };
        self.fetch.batch(batch, &repaired).await?;
        Ok(repaired.done.get())
    }
}

/// Writes verified chunks over what has rotted.
struct Repair<'a> {
    volume: &'a Volume,
    of: Original,
    done: Cell<bool>,
}

impl Deliver for Repair<'_> {
    async fn deliver(&self, section: u32, chunk: u32, plain: Verified) -> Result<()> {
        self.done.set(self.volume.repair(&self.of, section, chunk, plain).await?);
        Ok(())
    }
}
