//! The locator: where an image's chunks lie now. Derived from pack footers, and replaceable.
//!
//! ```text
//!  0        4       6       8               40      44         48           52
//!  | "FBLC" | ver 1 | zeros | image digest  | packs | sections | head length| zeros 12 |
//!  64
//!  | packs × 16-byte pack id | sections × directory entry (48 bytes) | BLAKE3 of the head so far |
//!  head length
//!  | block | block | …
//!
//!  directory entry: | section u32 | spots u32 | block offset u64 (from the start) | BLAKE3 of the block |
//!  block: spots × | pack number u32 | offset u32 | frame length u32 | BLAKE3 of the stored payload |
//! ```
//! A block has one spot per chunk of the section that is not zeros, in order. The head is read
//! once; a section's block is a range read when the section is first touched.

use bytes::{BufMut, Bytes, BytesMut};

use crate::chunk_set::MAX_CHUNKS;
use crate::digest::Digest;
use crate::error::FormatError;
use crate::frame::{HEADER_LEN, MAX_FRAME};
use crate::geometry::{MAX_DISK, SECTION_LEN};
use crate::pack::{MAX_PACK, PackId};
use crate::reader::Reader;

/// Length of the fixed part that tells how long the head is.
pub const FIXED_LEN: usize = 64;
const DIRECTORY_LEN: usize = 48;
const SPOT_LEN: usize = 44;
const WHAT: &str = "locator";
const MAGIC: [u8; 4] = *b"FBLC";
const VERSION: u16 = 1;
const MAX_SECTIONS: u32 = (MAX_DISK / SECTION_LEN) as u32;
const MAX_PACKS: u32 = 1 << 24;

/// Where one chunk lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spot {
    /// The pack.
    pub pack: PackId,
    /// Where its frame starts, in bytes.
    pub offset: u32,
    /// Length of the frame, header included.
    pub frame_len: u32,
    /// Digest of the stored payload.
    pub stored: Digest,
}

/// Where a section's block lies in the locator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// The section.
    pub section: u32,
    /// Number of spots: chunks of the section that are not zeros.
    pub spots: u32,
    /// Where the block starts in the locator, in bytes.
    pub offset: u64,
    /// Digest of the block.
    pub digest: Digest,
}

impl Block {
    /// Length of the block in bytes.
    pub fn len(&self) -> u64 {
        u64::from(self.spots) * SPOT_LEN as u64
    }

    /// Whether there is nothing in the block; never so in a parsed locator.
    pub fn is_empty(&self) -> bool {
        self.spots == 0
    }
}

/// The head of a locator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Locator {
    /// The image.
    pub image: Digest,
    packs: Vec<PackId>,
    blocks: Vec<Block>,
}

impl Locator {
    /// Length of the head, from its first [`FIXED_LEN`] bytes.
    pub fn head_len(fixed: &[u8]) -> Result<usize, FormatError> {
        let mut r = Reader::new(WHAT, fixed);
        r.magic(MAGIC, VERSION)?;
        r.reserved(2)?;
        r.digest()?;
        let (packs, sections, head_len) = (r.u32()?, r.u32()?, r.u32()?);
        r.reserved(12)?;
        if packs > MAX_PACKS || sections > MAX_SECTIONS {
            return Err(r.field("number of packs or sections", u64::from(packs.max(sections))));
        }
        let len = FIXED_LEN + 16 * packs as usize + DIRECTORY_LEN * sections as usize + 32;
        if len != head_len as usize {
            return Err(r.field("head length", u64::from(head_len)));
        }
        Ok(len)
    }

    /// Parses the head, which may be followed by blocks.
    pub fn parse(bytes: &[u8], image: &Digest) -> Result<Self, FormatError> {
        let len = Self::head_len(bytes)?;
        let mut r = Reader::new(WHAT, bytes);
        let (body, sum) = r.take(len)?.split_at(len - 32);
        if Digest::of_index(&[body]).0 != sum {
            return Err(FormatError::Mismatch { what: WHAT, which: "BLAKE3 of the head" });
        }
        let mut r = Reader::new(WHAT, body);
        r.take(8)?;
        if r.digest()? != *image {
            return Err(FormatError::Mismatch { what: WHAT, which: "image" });
        }
        let (packs, sections) = (r.u32()?, r.u32()?);
        r.take(16)?;
        let packs = (0..packs).map(|_| r.array().map(PackId)).collect::<Result<Vec<_>, _>>()?;
        let mut blocks: Vec<Block> = Vec::with_capacity(sections as usize);
        let mut at = len as u64;
        for _ in 0..sections {
            let block =
                Block { section: r.u32()?, spots: r.u32()?, offset: r.u64()?, digest: r.digest()? };
            let rising = blocks.last().is_none_or(|b| b.section < block.section);
            let fits = (1..=MAX_CHUNKS).contains(&block.spots) && block.offset == at;
            if !rising || !fits || block.section >= MAX_SECTIONS {
                return Err(r.field("directory entry of section", u64::from(block.section)));
            }
            at += block.len();
            blocks.push(block);
        }
        r.end()?;
        Ok(Self { image: *image, packs, blocks })
    }

    /// The packs that the image leans on.
    pub fn packs(&self) -> &[PackId] {
        &self.packs
    }

    /// The directory, by rising section.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// The directory entry of a section; `None` if the section is zeros.
    pub fn block(&self, section: u32) -> Option<&Block> {
        self.blocks.binary_search_by_key(&section, |b| b.section).ok().map(|i| &self.blocks[i])
    }

    /// Parses a section's block: one spot per chunk that is not zeros, in order.
    pub fn spots(&self, block: &Block, bytes: &[u8]) -> Result<Vec<Spot>, FormatError> {
        if bytes.len() as u64 != block.len() {
            let (need, have) = (block.len() as usize, bytes.len());
            return Err(FormatError::Truncated { what: WHAT, need, have });
        }
        if Digest::of_index(&[bytes]) != block.digest {
            return Err(FormatError::Mismatch { what: WHAT, which: "BLAKE3 of a block" });
        }
        let mut r = Reader::new(WHAT, bytes);
        let spots = (0..block.spots).map(|_| {
            let (pack, offset, frame_len) = (r.u32()?, r.u32()?, r.u32()?);
            let stored = r.digest()?;
            let pack = *self
                .packs
                .get(pack as usize)
                .ok_or_else(|| r.field("pack number", u64::from(pack)))?;
            let end = offset as usize + frame_len as usize;
            if !(HEADER_LEN + 1..=MAX_FRAME).contains(&(frame_len as usize)) || end > MAX_PACK {
                return Err(r.field("frame length", u64::from(frame_len)));
            }
            Ok(Spot { pack, offset, frame_len, stored })
        });
        spots.collect()
    }

    /// Lays out a locator: for each section that is not zeros, by rising index, one spot per chunk
    /// that is not zeros.
    pub fn build(image: &Digest, sections: &[(u32, Vec<Spot>)]) -> Bytes {
        let mut packs: Vec<PackId> =
            sections.iter().flat_map(|(_, spots)| spots).map(|s| s.pack).collect();
        packs.sort_unstable();
        packs.dedup();
        let head_len = FIXED_LEN + 16 * packs.len() + DIRECTORY_LEN * sections.len() + 32;

        let mut head = BytesMut::with_capacity(head_len);
        head.put_slice(&MAGIC);
        head.put_u16_le(VERSION);
        head.put_u16_le(0);
        head.put_slice(&image.0);
        head.put_u32_le(packs.len() as u32);
        head.put_u32_le(sections.len() as u32);
        head.put_u32_le(head_len as u32);
        head.put_bytes(0, 12);
        packs.iter().for_each(|p| head.put_slice(&p.0));

        let mut blocks = BytesMut::new();
        for (section, spots) in sections {
            let start = blocks.len();
            for spot in spots {
                let pack = packs.binary_search(&spot.pack).expect("collected above");
                blocks.put_u32_le(pack as u32);
                blocks.put_u32_le(spot.offset);
                blocks.put_u32_le(spot.frame_len);
                blocks.put_slice(&spot.stored.0);
            }
            head.put_u32_le(*section);
            head.put_u32_le(spots.len() as u32);
            head.put_u64_le((head_len + start) as u64);
            head.put_slice(&Digest::of_index(&[&blocks[start..]]).0);
        }
        let sum = Digest::of_index(&[&head]);
        head.put_slice(&sum.0);
        head.unsplit(blocks);
        head.freeze()
    }
}
