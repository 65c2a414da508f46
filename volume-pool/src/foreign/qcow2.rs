//! The layout of a qcow2 file, version 3.
//!
//! ```text
//! | header | clusters of data … | L2 | … | L2 | … | counts | … | L2 | L1 | counts | table of counts |
//! ```
//! An L2 table is written when the disk has passed what it maps (512 MiB, with clusters of 64 KiB), so that one of
//! them is in memory. The header is written last. All numbers are big-endian.

use image::geometry::MAX_DISK;

use super::host::Host;
use super::pack::Packed;
use super::{Codec, End, Piece};

const MAGIC: u32 = 0x5146_49fb;
const VERSION: u32 = 3;
/// Length of the header: with the type of compression, and the zeros that pad it.
const HEADER_LEN: u32 = 112;
/// Incompatible feature: clusters are compressed in another way than deflate.
const OTHER_COMPRESSION: u64 = 1 << 3;
/// Of a table's entry: what it points at is referred to by it alone.
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// Counts of 16 bits.
const COUNT_ORDER: u32 = 4;
/// What a compressed cluster's length is counted in.
const SECTOR: u64 = 512;

/// A qcow2 file that is being laid out.
#[derive(Debug)]
pub(super) struct Qcow2 {
    log2: u8,
    size: u64,
    codec: Option<Codec>,
    host: Host,
    l1: Vec<u64>,
    /// Which L2 table is being filled, and its entries.
    l2: Option<(usize, Vec<u64>)>,
}

impl Qcow2 {
    pub(super) fn new(size: u64, log2: u8, codec: Option<Codec>) -> Self {
        debug_assert!(size <= MAX_DISK);
        // One at least: some readers want a table.
        let l1 = vec![0; size.div_ceil(1 << (2 * log2 - 3)).max(1) as usize];
        Self { log2, size, codec, host: Host::new(log2), l1, l2: None }
    }

    pub(super) fn place(&mut self, packed: &Packed) -> Vec<Piece> {
        let mut pieces = Vec::with_capacity(packed.cells.len());
        for cell in &packed.cells {
            let first = cell.at >> self.log2;
            let index = self.turn_to(first, &mut pieces);
            let len = (cell.range.end - cell.range.start) as u64;
            let at = match cell.compressed {
                true => self.compressed(index, len),
                false => self.plain(index, len.div_ceil(1 << self.log2)),
            };
            pieces.push(packed.piece(cell, at));
        }
        self.settle(&mut pieces);
        pieces
    }

    /// Maps clusters that are stored as they are. Chunks do not reach into what another L2 table maps.
    fn plain(&mut self, index: usize, clusters: u64) -> u64 {
        let at = self.host.clusters(clusters);
        for cluster in 0..clusters {
            self.set(index + cluster as usize, (at + (cluster << self.log2)) | COPIED);
        }
        at
    }

    fn compressed(&mut self, index: usize, len: u64) -> u64 {
        let at = self.host.compressed(len);
        let sectors = (at % SECTOR + len - 1) / SECTOR;
        self.set(index, at | sectors << (62 - (self.log2 - 8)) | COMPRESSED);
        at
    }

    fn set(&mut self, index: usize, entry: u64) {
        let (_, table) = self.l2.as_mut().expect("a table was turned to");
        table[index] = entry;
    }

    /// Sees to it that the table is at hand that maps a cluster of the disk; returns the entry's index.
    fn turn_to(&mut self, cluster: u64, pieces: &mut Vec<Piece>) -> usize {
        let entries = 1u64 << (self.log2 - 3);
        let table = (cluster / entries) as usize;
        if self.l2.as_ref().is_none_or(|(index, _)| *index != table) {
            self.flush(pieces);
            self.l2 = Some((table, vec![0; entries as usize]));
        }
        (cluster % entries) as usize
    }

    /// Writes the table at hand.
    fn flush(&mut self, pieces: &mut Vec<Piece>) {
        if let Some((index, table)) = self.l2.take() {
            let at = self.host.clusters(1);
            self.l1[index] = at | COPIED;
            pieces.push(numbers(at, &table));
        }
    }

    fn settle(&mut self, pieces: &mut Vec<Piece>) {
        while let Some((at, block)) = self.host.settled() {
            pieces.push(Piece { at, bytes: block.into() });
        }
    }

    pub(super) fn finish(mut self) -> End {
        let mut pieces = Vec::new();
        self.flush(&mut pieces);
        let l1_at = self.host.clusters((8 * self.l1.len() as u64).div_ceil(1 << self.log2));
        pieces.push(numbers(l1_at, &self.l1));
        self.settle(&mut pieces);
        let counts = self.host.finish();
        pieces.extend(counts.pieces.into_iter().map(|(at, b)| Piece { at, bytes: b.into() }));
        let mut header = Vec::with_capacity(HEADER_LEN as usize + 8);
        let mut put = |bytes: &[u8]| header.extend_from_slice(bytes);
        put(&MAGIC.to_be_bytes());
        put(&VERSION.to_be_bytes());
        // No backing file.
        put(&[0; 12]);
        put(&u32::from(self.log2).to_be_bytes());
        put(&self.size.to_be_bytes());
        // Not encrypted.
        put(&[0; 4]);
        put(&(self.l1.len() as u32).to_be_bytes());
        put(&l1_at.to_be_bytes());
        put(&counts.table.to_be_bytes());
        put(&counts.clusters.to_be_bytes());
        // No snapshots.
        put(&[0; 12]);
        let other = self.codec == Some(Codec::Zstd);
        put(&(if other { OTHER_COMPRESSION } else { 0 }).to_be_bytes());
        // No compatible features, none that clear themselves.
        put(&[0; 16]);
        put(&COUNT_ORDER.to_be_bytes());
        put(&HEADER_LEN.to_be_bytes());
        put(&[u8::from(other), 0, 0, 0, 0, 0, 0, 0]);
        // The end of the header's extensions.
        put(&[0; 8]);
        pieces.push(Piece { at: 0, bytes: header.into() });
        End { pieces, len: counts.len }
    }
}

fn numbers(at: u64, numbers: &[u64]) -> Piece {
    let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_be_bytes()).collect();
    Piece { at, bytes: bytes.into() }
}
