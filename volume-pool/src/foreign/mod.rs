//! Images as files of other programs: which bytes lie where in a raw, a qcow2 or a vmdk file.
//!
//! ```text
//!                         any thread                 in the order of the disk
//! a chunk, verified      ───────────▶ Packer::pack ───────────▶ Writer::place ─▶ pieces of the file
//!                                                               Writer::finish ─▶ the last ones, its length
//! ```
//! Nothing here does I/O: who calls writes the pieces, into a [`Draft`] or a stream. Equal images give equal
//! bytes. What is in memory does not grow with the data of the disk, only with its size: 8 bytes for each 512 MiB
//! in a qcow2 (and as much for each 2 GiB of the file), 4 for each 32 MiB in a vmdk; sixteen times that, or four
//! times, where chunks are as small as they can be.

mod draft;
mod host;
mod pack;
mod qcow2;
#[cfg(test)]
mod tests;
mod vmdk;

use bytes::Bytes;
use image::{Digest, Geometry, Result};

pub use draft::Draft;
pub use pack::{Packed, Packer};

use pack::How;
use qcow2::Qcow2;
use vmdk::Vmdk;

/// What is allocated, and left out if it is zeros, as a whole: 64 KiB, as other programs do it. Where
/// chunks are smaller it is a chunk.
const CELL_LOG2: u8 = 16;

/// How a disk lies in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// One to one, with holes.
    Raw,
    /// QEMU's, version 3 (QEMU's `docs/interop/qcow2.rst`), without a backing file; its clusters compressed, if
    /// so said.
    Qcow2(Option<Codec>),
    /// VMware's, `streamOptimized` ("Virtual Disk Format 5.0"): compressed, and to be read only.
    Vmdk,
}

impl Format {
    /// Whether its bytes can be written from front to back.
    pub fn is_stream(self) -> bool {
        !matches!(self, Format::Qcow2(_))
    }

    /// Whether a file of it takes as much as the data of the disk, and hardly more.
    pub fn is_plain(self) -> bool {
        matches!(self, Format::Raw | Format::Qcow2(None))
    }
}

/// What clusters of a qcow2 file are compressed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codec {
    /// Deflate: what every reader of qcow2 knows.
    Zlib,
    /// zstd: QEMU 5.1 and later.
    Zstd,
}

/// Bytes of the file, and where they lie in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Byte offset in the file.
    pub at: u64,
    /// The bytes.
    pub bytes: Bytes,
}

/// The end of a file.
#[derive(Debug)]
pub struct End {
    /// What remains to be written.
    pub pieces: Vec<Piece>,
    /// How long the file is, in bytes. What no piece has covered is zeros.
    pub len: u64,
}

/// Lays a file out. Pieces do not overlap; those of a [stream](Format::is_stream) come in their order in
/// the file.
#[derive(Debug)]
pub struct Writer {
    packer: Packer,
    size: u64,
    /// The disk's bytes before this have been placed.
    placed: u64,
    layout: Layout,
}

#[derive(Debug)]
enum Layout {
    Raw,
    Qcow2(Qcow2),
    Vmdk(Vmdk),
}

impl Writer {
    /// Begins the file of an image. `name` is what the file will be called, which a vmdk repeats in its
    /// text.
    pub fn new(format: Format, geometry: &Geometry, image: &Digest, name: &str) -> Self {
        let log2 = CELL_LOG2.min(geometry.chunk_log2());
        Self::with_cells(format, geometry.size(), log2, image, name)
    }

    fn with_cells(format: Format, size: u64, log2: u8, image: &Digest, name: &str) -> Self {
        let (how, layout) = match format {
            Format::Raw => (How::Plain, Layout::Raw),
            Format::Qcow2(None) => (How::Plain, Layout::Qcow2(Qcow2::new(size, log2, None))),
            Format::Qcow2(Some(codec)) => {
                (How::Clusters(codec), Layout::Qcow2(Qcow2::new(size, log2, Some(codec))))
            }
            Format::Vmdk => (How::Grains, Layout::Vmdk(Vmdk::new(size, log2, image, name))),
        };
        Self { packer: Packer::new(log2, how), size, placed: 0, layout }
    }

    /// What chunks of this file are packed with.
    pub fn packer(&self) -> Packer {
        self.packer
    }

    /// Finds the place of a chunk. Chunks of zeros are left out.
    ///
    /// # Errors
    ///
    /// [`image::Kind::Unsupported`] if the format has no room for so much.
    ///
    /// # Panics
    ///
    /// If chunks do not come in the order of the disk.
    pub fn place(&mut self, packed: Packed) -> Result<Vec<Piece>> {
        assert!(packed.at >= self.placed, "chunks are placed in the order of the disk");
        self.placed = packed.at + packed.len;
        debug_assert!(self.placed <= self.size);
        match &mut self.layout {
            Layout::Raw => {
                Ok(packed.cells.iter().map(|cell| packed.piece(cell, cell.at)).collect())
            }
            Layout::Qcow2(qcow2) => Ok(qcow2.place(&packed)),
            Layout::Vmdk(vmdk) => vmdk.place(&packed),
        }
    }

    /// Ends the file.
    ///
    /// # Errors
    ///
    /// As for [`place`](Writer::place).
    pub fn finish(self) -> Result<End> {
        match self.layout {
            Layout::Raw => Ok(End { pieces: Vec::new(), len: self.size }),
            Layout::Qcow2(qcow2) => Ok(qcow2.finish()),
            Layout::Vmdk(vmdk) => vmdk.finish(),
        }
    }
}
