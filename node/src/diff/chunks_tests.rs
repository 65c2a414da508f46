//! Any two disks against their bytes, and what is not asked for.

use std::cell::RefCell;

use image::geometry::SECTION_LEN;
use image::{ChunkSink, Domain, Place};
use proptest::prelude::*;

use super::*;

/// The largest chunks, so that few make a section.
const LOG2: u8 = 22;
const CHUNK: u64 = 1 << LOG2;

/// A disk by its chunks: 0 is zeros, of others each is alike at the same length only.
struct Disk {
    manifest: Arc<Manifest>,
    tables: Vec<SectionTable>,
    asked: RefCell<Vec<u32>>,
}

impl Disk {
    fn new(chunks: &[u8], size: u64) -> Self {
        let geometry = Geometry::new(size, 512, LOG2).unwrap();
        let mut tables = Vec::new();
        for section in 0..geometry.sections() {
            let digest = |chunk: u32| {
                let at = (section * geometry.chunks_per_section() + chunk) as usize;
                match chunks.get(at).copied().unwrap_or(0) {
                    0 => Digest::ZERO,
                    n => Digest::of_chunk(
                        &[&[n][..], &geometry.chunk_len_at(section, chunk).to_le_bytes()].concat(),
                    ),
                }
            };
            let digests = (0..geometry.chunks_in(section)).map(digest).collect();
            tables.push(SectionTable::new(Domain::PUBLIC, digests));
        }
        let sections = tables.iter().map(SectionTable::digest).collect();
        let manifest = Arc::new(Manifest::new(Domain::PUBLIC, geometry, sections));
        Self { manifest, tables, asked: RefCell::default() }
    }

    fn side(&self) -> Side<'_, Self> {
        Side { source: self, image: self.manifest.identity(), trace: 0 }
    }
}

impl ChunkSource for Disk {
    async fn manifest(&self, _: &ReadContext, _: &Digest) -> Result<Arc<Manifest>> {
        Ok(Arc::clone(&self.manifest))
    }

    async fn section_table(
        &self,
        _: &ReadContext,
        _: &Digest,
        n: u32,
    ) -> Result<Arc<SectionTable>> {
        self.asked.borrow_mut().push(n);
        Ok(Arc::new(self.tables[n as usize].clone()))
    }

    async fn chunks<S: ChunkSink>(&self, _: &ReadContext, _: &Place, _: &mut S) -> Result<()> {
        panic!("no chunk is needed");
    }
}

fn diff(old: &Disk, new: &Disk) -> Difference {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(differences(&old.side(), &new.side(), |_, _| {})).unwrap()
}

/// What the byte at `at` is; nothing behind the end. A chunk that is cut is another.
fn byte(chunks: &[u8], size: u64, at: u64) -> Option<(u8, u64)> {
    let chunk = at / CHUNK;
    let kind = chunks.get(chunk as usize).copied().unwrap_or(0);
    let len = if kind == 0 { 0 } else { CHUNK.min(size - chunk * CHUNK) };
    (at < size).then_some((kind, len))
}

fn check(old: (&[u8], u64), new: (&[u8], u64)) {
    let found = diff(&Disk::new(old.0, old.1), &Disk::new(new.0, new.1));
    let size = old.1.max(new.1);
    // All is the same within a sector's distance of nothing but chunks' and disks' ends.
    let mut edges: Vec<u64> = (0..=size.div_ceil(CHUNK)).map(|n| (n * CHUNK).min(size)).collect();
    edges.extend([old.1, new.1]);
    edges.sort_unstable();
    edges.dedup();
    let (mut bytes, mut zeros, mut absent) = (0, [0, 0], [0, 0]);
    let mut spans: Vec<Span> = Vec::new();
    for edge in edges.windows(2) {
        let (start, len) = (edge[0], edge[1] - edge[0]);
        let sides = [byte(old.0, old.1, start), byte(new.0, new.1, start)];
        if sides[0] == sides[1] {
            continue;
        }
        bytes += len;
        for (i, side) in sides.iter().enumerate() {
            absent[i] += if side.is_none() { len } else { 0 };
            zeros[i] += if *side == Some((0, 0)) { len } else { 0 };
        }
        match spans.last_mut() {
            Some(last) if last.start + last.len == start => last.len += len,
            _ => spans.push(Span { start, len }),
        }
    }
    assert_eq!(found.bytes, bytes);
    assert_eq!([found.old.zeros, found.new.zeros], zeros);
    assert_eq!([found.old.absent, found.new.absent], absent);
    assert_eq!(found.spans, spans);
    assert!(found.chunks >= bytes.div_ceil(CHUNK) && found.untold == 0);
    for span in &spans {
        assert!(found.touches(&(span.start..span.start + 1)));
        assert!(span.start == 0 || !found.touches(&(span.start - 1..span.start)));
    }
}

proptest! {
    #[test]
    fn any_two_disks_differ_where_their_bytes_do(
        old in proptest::collection::vec(0u8..3, 0..40),
        new in proptest::collection::vec(0u8..3, 0..40),
        cuts in proptest::array::uniform2(0u64..CHUNK / 512),
    ) {
        let size = |disk: &[u8], cut: u64| (disk.len() as u64 * CHUNK).saturating_sub(cut * 512);
        check((&old, size(&old, cuts[0])), (&new, size(&new, cuts[1])));
        check((&old, size(&old, cuts[0])), (&old, size(&old, cuts[1])));
    }
}

#[test]
fn only_sections_that_differ_are_looked_at() {
    let mut chunks = vec![1u8; 64];
    chunks[16..32].fill(0);
    let old = Disk::new(&chunks, 4 * SECTION_LEN);
    assert_eq!(diff(&old, &old).chunks, 0);
    assert!(old.asked.take().is_empty());
    chunks[20] = 2;
    let new = Disk::new(&chunks, 4 * SECTION_LEN);
    let found = diff(&old, &new);
    assert_eq!((found.sections, found.chunks, found.old.zeros, found.new.zeros), (1, 1, CHUNK, 0));
    // Of zeros nothing need be asked.
    assert_eq!((old.asked.take(), new.asked.take()), (vec![], vec![1]));
}

#[test]
fn a_disk_of_64_tib_is_compared_at_once() {
    let small = Disk::new(&[1], CHUNK);
    let mut large = Disk::new(&[1], CHUNK);
    let geometry = Geometry::new(64 << 40, 512, LOG2).unwrap();
    let mut sections = vec![Digest::ZERO; geometry.sections() as usize];
    let mut table = large.tables[0].digests().to_vec();
    table.resize(geometry.chunks_per_section() as usize, Digest::ZERO);
    large.tables = vec![SectionTable::new(Domain::PUBLIC, table)];
    sections[0] = large.tables[0].digest();
    large.manifest = Arc::new(Manifest::new(Domain::PUBLIC, geometry, sections));
    let found = diff(&small, &large);
    let more = (64 << 40) - CHUNK;
    assert_eq!((found.bytes, found.new.zeros, found.old.absent), (more, more, more));
    assert_eq!((found.chunks, found.spans.len()), (more / CHUNK, 1));
}

#[test]
fn chunks_of_other_lengths_are_told_apart() {
    let old = Disk::new(&[1], CHUNK);
    let geometry = Geometry::new(CHUNK, 512, LOG2 - 1).unwrap();
    let manifest = Manifest::new(Domain::PUBLIC, geometry, vec![Digest::ZERO]);
    let error = comparable(&old.manifest, &manifest).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(error.message().contains("4096 KiB and 2048 KiB"), "{error}");
}
