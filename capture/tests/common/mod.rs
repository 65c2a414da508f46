//! An image sink in memory that believes nothing, and what else the tests share.

#![allow(dead_code, reason = "each test crate uses its part")]
#![allow(missing_docs, reason = "test code")]

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;

use forebay_capture::{DiskSource, ImportOptions, Imported, SourceOptions, import};
use image::seam::{ImagePlan, ImageSession};
use image::{
    ChunkSet, Decoder, Digest, Error, Frame, ImageSink, Kind, Manifest, ReadContext, Result,
    SectionSink, SectionTable,
};
use tokio::sync::Barrier;

/// Where a sink is to fail, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    Open,
    Offer,
    Chunk,
    Seal,
    Commit,
}

#[derive(Default)]
pub struct State {
    pub plan: Option<ImagePlan>,
    pub plain: HashMap<Digest, Vec<u8>>,
    pub tables: BTreeMap<u32, SectionTable>,
    pub sealed: HashSet<u32>,
    pub manifest: Option<Manifest>,
    pub frames: u64,
    pub offers: u64,
}

/// Stores frames, checks all of them, and fails on request.
#[derive(Clone, Default)]
pub struct MemorySink {
    pub state: Rc<RefCell<State>>,
    pub fail: Rc<Cell<Option<(At, Kind)>>>,
    /// How often it still does so; always unless it is said.
    pub times: Rc<Cell<Option<u32>>>,
    /// Never answers an offer.
    pub hang: Rc<Cell<bool>>,
    /// Asks for all chunks, zeros too.
    pub greedy: Rc<Cell<bool>>,
    /// Says that it made another image.
    pub lie: Rc<Cell<bool>>,
    /// Seals only when as many sections wait for it.
    pub gather: Rc<RefCell<Option<Rc<Barrier>>>>,
}

impl MemorySink {
    fn check(&self, at: At) -> Result<()> {
        match self.fail.get() {
            Some((when, _)) if when == at && self.times.get() == Some(0) => Ok(()),
            Some((when, kind)) if when == at => {
                self.times.set(self.times.get().map(|times| times - 1));
                Err(Error::new(kind, format!("{at:?} fails")))
            }
            _ => Ok(()),
        }
    }

    /// The disk as its manifest, tables and frames say.
    pub fn disk(&self) -> Vec<u8> {
        let state = self.state.borrow();
        let manifest = state.manifest.as_ref().expect("committed");
        let geometry = manifest.geometry();
        let mut disk = vec![0; geometry.size() as usize];
        for (section, digest) in manifest.present() {
            let table = &state.tables[&section];
            assert_eq!(table.digest(), digest);
            for (chunk, digest) in (0..).zip(table.digests()).filter(|(_, d)| !d.is_zero()) {
                let start = geometry.chunk_start(section, chunk) as usize;
                let len = geometry.chunk_len_at(section, chunk);
                disk[start..start + len].copy_from_slice(&state.plain[digest]);
            }
        }
        disk
    }
}

impl ImageSink for MemorySink {
    type Session = MemorySink;

    async fn open(&self, _ctx: &ReadContext, plan: &ImagePlan) -> Result<MemorySink> {
        self.check(At::Open)?;
        self.state.borrow_mut().plan = Some(plan.clone());
        Ok(self.clone())
    }
}

pub struct Section {
    sink: MemorySink,
    index: u32,
    table: SectionTable,
    wanted: ChunkSet,
    decoder: Decoder,
}

impl ImageSession for MemorySink {
    type Section = Section;

    async fn offer(&self, index: u32, table: &SectionTable) -> Result<(ChunkSet, Section)> {
        self.check(At::Offer)?;
        if self.hang.get() {
            std::future::pending::<()>().await;
        }
        assert!(!table.is_zero(), "a section of zeros was offered");
        tokio::task::yield_now().await;
        let mut state = self.state.borrow_mut();
        state.offers += 1;
        let wanted = ChunkSet::of(table.chunks(), |c| {
            let digest = &table.digests()[c as usize];
            self.greedy.get() || !digest.is_zero() && !state.plain.contains_key(digest)
        });
        let (sink, table) = (self.clone(), table.clone());
        let section =
            Section { sink, index, table, wanted: wanted.clone(), decoder: Decoder::new()? };
        Ok((wanted, section))
    }

    async fn commit(&self, manifest: &Manifest) -> Result<Digest> {
        self.check(At::Commit)?;
        let mut state = self.state.borrow_mut();
        for (section, digest) in manifest.present() {
            assert!(state.sealed.contains(&section), "section {section} is not sealed");
            let table = &state.tables[&section];
            assert_eq!(table.digest(), digest);
            assert_eq!(table.chunks(), manifest.geometry().chunks_in(section));
        }
        state.manifest = Some(manifest.clone());
        Ok(if self.lie.get() { Digest::of_chunk(b"lie") } else { manifest.identity() })
    }
}

impl SectionSink for Section {
    async fn chunk(&mut self, chunk: u32, frame: Frame) -> Result<()> {
        self.sink.check(At::Chunk)?;
        assert!(self.wanted.remove(chunk), "chunk {chunk} was not wanted, or came twice");
        let mut plain = vec![0; frame.header().plain_len as usize];
        let digest = self.table.digests()[chunk as usize];
        let frame = Frame::parse(frame.bytes().clone())?;
        self.decoder.decode(&frame, &digest, &mut plain)?;
        tokio::task::yield_now().await;
        let mut state = self.sink.state.borrow_mut();
        state.plain.insert(digest, plain);
        state.frames += 1;
        Ok(())
    }

    async fn seal(self) -> Result<()> {
        self.sink.check(At::Seal)?;
        assert!(self.wanted.is_empty());
        let gather = self.sink.gather.borrow().clone();
        if let Some(gather) = gather {
            gather.wait().await;
        }
        let mut state = self.sink.state.borrow_mut();
        state.sealed.insert(self.index);
        state.tables.insert(self.index, self.table);
        Ok(())
    }
}

/// Runs a future on a runtime as the chunk path has it: one thread.
pub fn run<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// Imports with few threads.
pub fn import_into(source: DiskSource, sink: &MemorySink, chunk_log2: u8) -> Result<Imported> {
    let workers = 2.try_into().unwrap();
    run(import(source, sink, ImportOptions { chunk_log2, workers, ..ImportOptions::default() }))
}

/// Imports, and checks that what comes out is `disk`.
pub fn assert_imports(source: DiskSource, disk: &[u8], chunk_log2: u8) -> Imported {
    let sink = MemorySink::default();
    let imported = import_into(source, &sink, chunk_log2).unwrap();
    assert_eq!(imported.manifest.geometry().size(), disk.len() as u64);
    assert!(sink.disk() == disk, "the disk that came out is another one");
    assert_eq!(imported.image, imported.manifest.identity());
    assert_eq!(imported.stats.size, disk.len() as u64);
    assert_eq!(imported.stats.position, disk.len() as u64);
    imported
}

/// A stream over bytes.
pub fn stream(bytes: Vec<u8>, options: &SourceOptions) -> Result<DiskSource> {
    DiskSource::stream("stream", Box::new(std::io::Cursor::new(bytes)), options)
}

/// Bytes that do not compress, the same for the same seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (x ^ x >> 29).to_le_bytes()
    };
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        out.extend_from_slice(&next());
    }
    out.truncate(len);
    out
}
