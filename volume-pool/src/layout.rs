//! How a volume is cut, and where its image ends.

use std::ops::Range;

use image::{Geometry, Result};

use crate::Identity;

/// Bytes of a block: what a guest can write without the rest of its chunk being fetched first.
pub const BLOCK: u64 = 4096;

/// Sizes of a volume, all in bytes unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// What the guest sees.
    pub(crate) volume: Geometry,
    /// The image's disk; it may end before the volume does. What follows is zeros.
    pub(crate) image: Geometry,
}

impl Layout {
    pub(crate) fn of(identity: &Identity) -> Result<Self> {
        let geometry = |size| Geometry::new(size, identity.sector, identity.chunk_log2);
        let image = identity.base.map_or(0, |base| base.size);
        // An image of 512-byte sectors in a volume of 4 KiB ones may end anywhere.
        let image = Geometry::new(image, 512, identity.chunk_log2)?;
        Ok(Self { volume: geometry(identity.size)?, image })
    }

    pub(crate) fn size(&self) -> u64 {
        self.volume.size()
    }

    fn log2(&self) -> u8 {
        self.volume.chunk_log2()
    }

    /// Number of chunks.
    pub(crate) fn chunks(&self) -> u64 {
        self.size().div_ceil(1 << self.log2())
    }

    /// Number of chunks of which the image has a part.
    pub(crate) fn image_chunks(&self) -> u64 {
        self.image.size().div_ceil(1 << self.log2())
    }

    /// Number of blocks.
    pub(crate) fn blocks(&self) -> u64 {
        self.size().div_ceil(BLOCK)
    }

    /// The chunks that a range touches.
    pub(crate) fn chunks_of(&self, range: &Range<u64>) -> Range<u64> {
        range.start >> self.log2()..(range.end + (1 << self.log2()) - 1) >> self.log2()
    }

    /// The bytes of a chunk.
    pub(crate) fn bytes_of(&self, chunk: u64) -> Range<u64> {
        chunk << self.log2()..((chunk + 1) << self.log2()).min(self.size())
    }

    /// The bytes of a chunk that the image has.
    pub(crate) fn image_bytes_of(&self, chunk: u64) -> Range<u64> {
        let start = chunk << self.log2();
        start..((chunk + 1) << self.log2()).min(self.image.size()).max(start)
    }

    /// The blocks that a range touches.
    pub(crate) fn blocks_of(&self, range: &Range<u64>) -> Range<u64> {
        range.start / BLOCK..range.end.div_ceil(BLOCK)
    }

    /// The blocks that a range covers whole. The last block of the volume may be short.
    pub(crate) fn whole_blocks_of(&self, range: &Range<u64>) -> Range<u64> {
        let end = if range.end == self.size() { self.blocks() } else { range.end / BLOCK };
        let start = range.start.div_ceil(BLOCK);
        start.min(end)..end
    }

    /// The sections that a range touches.
    pub(crate) fn sections_of(&self, range: &Range<u64>) -> Range<u64> {
        range.start / image::geometry::SECTION_LEN..range.end.div_ceil(image::geometry::SECTION_LEN)
    }

    /// The blocks of a section.
    pub(crate) fn blocks_in(&self, section: u64) -> Range<u64> {
        let per = image::geometry::SECTION_LEN / BLOCK;
        section * per..((section + 1) * per).min(self.blocks())
    }

    /// Section, and chunk in the section, of a chunk.
    pub(crate) fn place_of(&self, chunk: u64) -> (u32, u32) {
        let per = u64::from(self.volume.chunks_per_section());
        ((chunk / per) as u32, (chunk % per) as u32)
    }

    /// The chunk of the volume that is chunk number `chunk` of a section.
    pub(crate) fn chunk_at(&self, section: u32, chunk: u32) -> u64 {
        u64::from(section) * u64::from(self.volume.chunks_per_section()) + u64::from(chunk)
    }
}
