//! What one pull works on: the manifest, the target, the seeds, the memory.

use std::path::Path;
use std::sync::Arc;

use blockio::{Arena, BlockFile, Engine, OpenMode};
use image::{ChunkSet, Digest, Error, Manifest, Result, SectionTable};
use volume_pool::{Target, Verified};

use super::{PullOptions, Watch};

/// One pull's manifest, target, seeds and memory; shared by its cores.
pub struct Job {
    pub(super) manifest: Arc<Manifest>,
    pub(super) target: Target,
    pub(super) arena: Arena,
    seeds: Vec<BlockFile>,
    watch: Arc<Watch>,
}

impl Job {
    pub(super) fn open(
        path: &Path,
        manifest: Arc<Manifest>,
        options: &PullOptions,
        watch: &Arc<Watch>,
    ) -> Result<Self> {
        let geometry = *manifest.geometry();
        let target = match &options.fs {
            None => Target::open(path, geometry)?,
            Some(fs) => Target::open_in(fs, path, geometry)?,
        };
        target.check_room(watch.progress().total)?;
        let arena =
            Arena::new("pull", geometry.chunk_len(), options.memory.max(geometry.chunk_len()))
                .map_err(|e| Error::io("memory for the pull", e))?;
        let seeds = options.seeds.iter().filter_map(|path| {
            let opened = BlockFile::open(path, OpenMode::read());
            opened.inspect_err(|e| tracing::info!("seed left out: {e}")).ok()
        });
        let seeds = seeds.collect();
        watch.add(|w| &w.size, geometry.size());
        Ok(Self { manifest, target, arena, seeds, watch: Arc::clone(watch) })
    }

    /// Whether a section needs not even be looked at: zeros, in a target that is all zeros.
    pub(super) fn nothing_to_do(&self, section: u32) -> bool {
        let zero = self.manifest.section(section).is_none_or(|d| d.is_zero());
        zero && self.target.is_fresh()
    }

    /// The chunks of a section that must be fetched. What the target has is hashed, what must be
    /// zeros is made so, and what a seed has at the same place is hashed and taken from there.
    pub(super) async fn missing(
        self: &Arc<Self>,
        engine: &Engine,
        section: u32,
        table: &Arc<SectionTable>,
    ) -> Result<ChunkSet> {
        let present = ChunkSet::of(table.chunks(), |c| !table.digests()[c as usize].is_zero());
        let geometry = self.manifest.geometry();
        let bytes = |set: &ChunkSet| -> u64 {
            set.iter().map(|c| geometry.chunk_len_at(section, c) as u64).sum()
        };
        self.watch.add(|w| &w.data, bytes(&present));
        let mut missing = if self.target.is_fresh() {
            present.clone()
        } else {
            self.target.scan(section, table).await?
        };
        self.watch.add(|w| &w.reused, bytes(&present) - bytes(&missing));
        for seed in &self.seeds {
            for chunk in missing.iter().collect::<Vec<_>>() {
                let expected = &table.digests()[chunk as usize];
                if let Some(plain) =
                    self.take_from_seed(engine, seed, section, chunk, expected).await
                {
                    let len = plain.len() as u64;
                    self.target.write(engine, section, chunk, plain).await?;
                    self.watch.add(|w| &w.reused, len);
                    missing.remove(chunk);
                }
            }
        }
        Ok(missing)
    }

    /// A chunk out of a seed, if it is there and right.
    async fn take_from_seed(
        &self,
        engine: &Engine,
        seed: &BlockFile,
        section: u32,
        chunk: u32,
        expected: &Digest,
    ) -> Option<Verified> {
        let geometry = self.manifest.geometry();
        let mut buf = self.arena.acquire().await;
        buf.set_len(geometry.chunk_len_at(section, chunk));
        let (read, buf) = engine.read_at(seed, buf, geometry.chunk_start(section, chunk)).await;
        read.ok()?;
        Verified::check(buf, geometry.chunk_len_at(section, chunk), expected).ok()
    }

    /// Makes the target complete; durable too if `sync`.
    pub(super) fn finish(self: Arc<Self>, sync: bool) -> Result<()> {
        self.target.finish(sync)
    }
}
