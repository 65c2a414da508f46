//! A chunk as it will lie in the file: cut into cells, those of zeros left out, the others compressed where the
//! format is.

use std::ops::Range;

use bytes::Bytes;
use flate2::{Compress, Compression, FlushCompress, Status};
use image::{Error, Kind, Result, is_zero};

use super::{Codec, Piece};
use crate::Verified;

/// The window of deflated clusters, as a power of two: QEMU inflates with one of 4 KiB.
const CLUSTER_WINDOW: u8 = 12;
/// What deflate may add to what it cannot shrink, and more.
const SPARE: usize = 512;
/// Sectors, to which grains are padded.
const SECTOR: usize = 512;
/// zstd's own default; twice as much takes thrice the time for a few percent.
const ZSTD_LEVEL: i32 = 3;

/// Packs chunks, on any thread.
#[derive(Clone, Copy, Debug)]
pub struct Packer {
    cell_log2: u8,
    how: How,
}

/// What becomes of a cell.
#[derive(Clone, Copy, Debug)]
pub(super) enum How {
    /// It stays as it is.
    Plain,
    /// A cluster of qcow2: compressed if that makes it shorter.
    Clusters(Codec),
    /// A grain of vmdk: always deflated, behind a marker, and padded to whole sectors.
    Grains,
}

/// A packed chunk.
#[derive(Debug)]
pub struct Packed {
    /// Where the chunk lies on the disk, and how long it is.
    pub(super) at: u64,
    pub(super) len: u64,
    pub(super) bytes: Bytes,
    /// In the order of the disk, and of the bytes.
    pub(super) cells: Vec<Cell>,
}

/// One cell, or several that lie side by side and are stored plain.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    /// Where it lies on the disk.
    pub(super) at: u64,
    /// Where it is in the packed bytes. A plain one may end early, where the disk does.
    pub(super) range: Range<usize>,
    pub(super) compressed: bool,
}

impl Packed {
    /// Bytes of the chunk as it is on the disk.
    pub fn plain_len(&self) -> u64 {
        self.len
    }

    /// What is to be written of a cell that lies in the file at `at`.
    pub(super) fn piece(&self, cell: &Cell, at: u64) -> Piece {
        Piece { at, bytes: self.bytes.slice(cell.range.clone()) }
    }
}

impl Packer {
    pub(super) fn new(cell_log2: u8, how: How) -> Self {
        Self { cell_log2, how }
    }

    /// Whether packing takes its time, as it compresses.
    pub fn compresses(&self) -> bool {
        !matches!(self.how, How::Plain)
    }

    /// Packs the chunk that begins at byte `at` of the disk.
    ///
    /// # Errors
    ///
    /// What the compressor says; none of its inputs can make it fail.
    pub fn pack(&self, at: u64, plain: Verified) -> Result<Packed> {
        self.pack_bytes(at, plain.into_bytes())
    }

    pub(super) fn pack_bytes(&self, at: u64, plain: Bytes) -> Result<Packed> {
        let len = plain.len() as u64;
        let (bytes, cells) = match self.how {
            How::Plain => {
                let cells = self.runs(at, &plain);
                (plain, cells)
            }
            How::Clusters(codec) => self.clusters(at, &plain, codec)?,
            How::Grains => self.grains(at, &plain)?,
        };
        Ok(Packed { at, len, bytes, cells })
    }

    /// The cells that are not zeros, with their places on the disk.
    fn cells<'a>(&self, at: u64, plain: &'a [u8]) -> impl Iterator<Item = (u64, &'a [u8])> {
        let log2 = self.cell_log2;
        let cells = plain.chunks(1 << log2).enumerate();
        cells.map(move |(i, cell)| (at + ((i as u64) << log2), cell)).filter(|(_, c)| !is_zero(c))
    }

    fn runs(&self, at: u64, plain: &[u8]) -> Vec<Cell> {
        let mut runs: Vec<Cell> = Vec::new();
        for (cell_at, cell) in self.cells(at, plain) {
            let start = (cell_at - at) as usize;
            let range = start..start + cell.len();
            match runs.last_mut() {
                Some(last) if last.range.end == start => last.range.end = range.end,
                _ => runs.push(Cell { at: cell_at, range, compressed: false }),
            }
        }
        runs
    }

    fn clusters(&self, at: u64, plain: &[u8], codec: Codec) -> Result<(Bytes, Vec<Cell>)> {
        let mut squeeze = Squeeze::new(codec)?;
        let (mut bytes, mut cells) = (Vec::with_capacity(plain.len()), Vec::new());
        let mut padded = Vec::new();
        for (at, cell) in self.cells(at, plain) {
            let start = bytes.len();
            // A reader wants a whole cluster, also where the disk ends in it.
            let whole = match cell.len() == 1 << self.cell_log2 {
                true => cell,
                false => {
                    padded.clear();
                    padded.extend_from_slice(cell);
                    padded.resize(1 << self.cell_log2, 0);
                    &padded
                }
            };
            squeeze.append(whole, &mut bytes)?;
            let compressed = bytes.len() - start < whole.len();
            if !compressed {
                bytes.truncate(start);
                bytes.extend_from_slice(cell);
            }
            cells.push(Cell { at, range: start..bytes.len(), compressed });
        }
        Ok((bytes.into(), cells))
    }

    fn grains(&self, at: u64, plain: &[u8]) -> Result<(Bytes, Vec<Cell>)> {
        let mut deflate = Compress::new(Compression::default(), true);
        let (mut bytes, mut cells) = (Vec::with_capacity(plain.len()), Vec::new());
        for (at, cell) in self.cells(at, plain) {
            let start = bytes.len();
            // The marker: where it lies on the disk, and how long it has become.
            bytes.extend_from_slice(&(at / SECTOR as u64).to_le_bytes());
            bytes.extend_from_slice(&[0; 4]);
            let from = bytes.len();
            append(&mut deflate, cell, &mut bytes)?;
            let len = (bytes.len() - from) as u32;
            bytes[from - 4..from].copy_from_slice(&len.to_le_bytes());
            bytes.resize(bytes.len().next_multiple_of(SECTOR), 0);
            cells.push(Cell { at, range: start..bytes.len(), compressed: true });
        }
        Ok((bytes.into(), cells))
    }
}

/// A compressor of clusters.
enum Squeeze {
    Zlib(Compress),
    Zstd(zstd::bulk::Compressor<'static>),
}

impl Squeeze {
    fn new(codec: Codec) -> Result<Self> {
        Ok(match codec {
            Codec::Zlib => {
                let level = Compression::default();
                Self::Zlib(Compress::new_with_window_bits(level, false, CLUSTER_WINDOW))
            }
            Codec::Zstd => Self::Zstd(zstd::bulk::Compressor::new(ZSTD_LEVEL).map_err(failed)?),
        })
    }

    fn append(&mut self, plain: &[u8], to: &mut Vec<u8>) -> Result<()> {
        match self {
            Self::Zlib(deflate) => append(deflate, plain, to),
            Self::Zstd(zstd) => {
                to.extend_from_slice(&zstd.compress(plain).map_err(failed)?);
                Ok(())
            }
        }
    }
}

/// Deflates `plain`, as a stream of its own, to the end of `to`.
fn append(deflate: &mut Compress, plain: &[u8], to: &mut Vec<u8>) -> Result<()> {
    let start = to.len();
    to.resize(start + plain.len() + SPARE, 0);
    deflate.reset();
    let status = deflate.compress(plain, &mut to[start..], FlushCompress::Finish);
    to.truncate(start + deflate.total_out() as usize);
    match status {
        Ok(Status::StreamEnd) => Ok(()),
        Ok(_) => Err(Error::new(Kind::Io, "compressing: it became longer than it can")),
        Err(e) => Err(Error::caused(Kind::Io, format!("compressing: {e}"), e)),
    }
}

fn failed(e: std::io::Error) -> Error {
    Error::io("compressing", e)
}
