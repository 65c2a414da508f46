//! How a disk is cut: chunks inside sections.

use crate::error::FormatError;

/// Plain bytes of a full section. The unit of capture, upload, checksum, verification and retry.
pub const SECTION_LEN: u64 = 64 << 20;
/// Log2 of the chunk length unless the image says otherwise (256 KiB).
pub const DEFAULT_CHUNK_LOG2: u8 = 18;
/// Smallest and largest log2 of a chunk length: 16 KiB and 4 MiB.
pub const CHUNK_LOG2: std::ops::RangeInclusive<u8> = 14..=22;
/// Largest disk: 64 TiB, so that a full manifest stays within 33 MiB.
pub const MAX_DISK: u64 = 64 << 40;

/// Size of a disk and how it is cut. Part of an image's identity.
///
/// ```text
/// disk      |<------------------------- size ------------------------->|
/// sections  |     0 (64 MiB)    |     1 (64 MiB)    |  2 (may be short) |
/// chunks    |0|1|2| …       |255|0|1| …         |255|0|1| … |n: may be short|
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Geometry {
    size: u64,
    sector: u32,
    chunk_log2: u8,
}

impl Geometry {
    /// `size` in bytes (a multiple of 512, at most [`MAX_DISK`]); `sector` 512 or 4096 bytes, and
    /// `size` a multiple of it.
    pub fn new(size: u64, sector: u32, chunk_log2: u8) -> Result<Self, FormatError> {
        let bad = |field, value| FormatError::Field { what: "geometry", field, value };
        if sector != 512 && sector != 4096 {
            return Err(bad("logical sector size", u64::from(sector)));
        }
        if size > MAX_DISK || !size.is_multiple_of(u64::from(sector)) {
            return Err(bad("disk size", size));
        }
        if !CHUNK_LOG2.contains(&chunk_log2) {
            return Err(bad("log2 of the chunk size", u64::from(chunk_log2)));
        }
        Ok(Self { size, sector, chunk_log2 })
    }

    /// Disk size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Logical sector size in bytes.
    pub fn sector(&self) -> u32 {
        self.sector
    }

    /// Log2 of the chunk length.
    pub fn chunk_log2(&self) -> u8 {
        self.chunk_log2
    }

    /// Length of a full chunk in bytes.
    pub fn chunk_len(&self) -> usize {
        1 << self.chunk_log2
    }

    /// Chunks in a full section.
    pub fn chunks_per_section(&self) -> u32 {
        (SECTION_LEN >> self.chunk_log2) as u32
    }

    /// Number of sections.
    pub fn sections(&self) -> u32 {
        self.size.div_ceil(SECTION_LEN) as u32
    }

    /// Byte offset of a section.
    pub fn section_start(&self, section: u32) -> u64 {
        u64::from(section) * SECTION_LEN
    }

    /// Plain length of a section in bytes; 0 past the end.
    pub fn section_len(&self, section: u32) -> u64 {
        self.size.saturating_sub(self.section_start(section)).min(SECTION_LEN)
    }

    /// Number of chunks of a section; 0 past the end.
    pub fn chunks_in(&self, section: u32) -> u32 {
        self.section_len(section).div_ceil(1 << self.chunk_log2) as u32
    }

    /// Byte offset on the disk of a section's chunk.
    pub fn chunk_start(&self, section: u32, chunk: u32) -> u64 {
        self.section_start(section) + (u64::from(chunk) << self.chunk_log2)
    }

    /// Plain length of a section's chunk in bytes: short at the end of the disk, 0 past it.
    pub fn chunk_len_at(&self, section: u32, chunk: u32) -> usize {
        let left = self.size.saturating_sub(self.chunk_start(section, chunk));
        left.min(1 << self.chunk_log2) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn refuses_what_cannot_be_a_disk() {
        assert!(Geometry::new(511, 512, 18).is_err());
        assert!(Geometry::new(512, 4096, 18).is_err());
        assert!(Geometry::new(4096, 1024, 18).is_err());
        assert!(Geometry::new(512, 512, 13).is_err());
        assert!(Geometry::new(512, 512, 23).is_err());
        assert!(Geometry::new(MAX_DISK + 512, 512, 18).is_err());
        let empty = Geometry::new(0, 512, 18).unwrap();
        assert_eq!((empty.sections(), empty.chunks_in(0)), (0, 0));
    }

    proptest! {
        #[test]
        fn chunks_tile_the_disk(sectors in 0u64..700_000, log2 in CHUNK_LOG2) {
            let g = Geometry::new(sectors * 512, 512, log2).unwrap();
            let mut at = 0;
            for s in 0..g.sections() {
                for c in 0..g.chunks_in(s) {
                    prop_assert_eq!(g.chunk_start(s, c), at);
                    let len = g.chunk_len_at(s, c) as u64;
                    prop_assert!(len > 0);
                    at += len;
                }
            }
            prop_assert_eq!(at, g.size());
        }
    }
}
