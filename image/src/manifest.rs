//! The manifest: an image's geometry and section digests, and its identity.
//!
//! ```text
//!  0        4       6           7            8        12     16          20       24
//!  | "FBMF" | ver 1 | log2 chunk| log2 sector| domain | zeros | sections | present | size u64 |
//!  32
//!  | bitmap: ceil(sections / 8) bytes, section 0 lowest | present × 32-byte section digest |
//! ```
//! Sections of zeros have no digest, so a 1 TiB disk with 1 GiB of data has a 2.5 KiB manifest.
//! The identity — BLAKE3 with the image context over domain, size, sector size, chunk size and each
//! (index, digest) of a section that is not zeros — depends on content and geometry alone: not on
//! this encoding, nor on where bytes lie.

use bytes::{BufMut, Bytes, BytesMut};

use crate::digest::{Digest, Domain};
use crate::error::FormatError;
use crate::geometry::{Geometry, MAX_DISK, SECTION_LEN};
use crate::reader::Reader;

const WHAT: &str = "manifest";
const MAGIC: [u8; 4] = *b"FBMF";
const VERSION: u16 = 1;
const MAX_SECTIONS: usize = (MAX_DISK / SECTION_LEN) as usize;
/// Longest manifest in bytes.
pub const MAX_MANIFEST: usize = 32 + MAX_SECTIONS / 8 + 32 * MAX_SECTIONS;

/// Geometry and section digests of one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    domain: Domain,
    geometry: Geometry,
    sections: Vec<Digest>,
}

impl Manifest {
    /// A manifest with one digest per section; [`Digest::ZERO`] for sections of zeros.
    pub fn new(domain: Domain, geometry: Geometry, sections: Vec<Digest>) -> Self {
        assert_eq!(sections.len(), geometry.sections() as usize);
        Self { domain, geometry, sections }
    }

    /// The trust domain.
    pub fn domain(&self) -> Domain {
        self.domain
    }

    /// Disk size and how it is cut.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// All section digests in order, [`Digest::ZERO`] for sections of zeros.
    pub fn sections(&self) -> &[Digest] {
        &self.sections
    }

    /// Digest of one section; `None` past the end.
    pub fn section(&self, section: u32) -> Option<Digest> {
        self.sections.get(section as usize).copied()
    }

    /// Index and digest of each section that is not zeros.
    pub fn present(&self) -> impl Iterator<Item = (u32, Digest)> + '_ {
        let all = self.sections.iter().enumerate();
        all.filter(|(_, d)| !d.is_zero()).map(|(i, d)| (i as u32, *d))
    }

    /// The image's identity.
    pub fn identity(&self) -> Digest {
        let mut hasher = Digest::image_hasher();
        hasher.update(&self.domain.0.to_le_bytes());
        hasher.update(&self.geometry.size().to_le_bytes());
        hasher.update(&self.geometry.sector().to_le_bytes());
        hasher.update(&u32::from(self.geometry.chunk_log2()).to_le_bytes());
        for (index, digest) in self.present() {
            hasher.update(&index.to_le_bytes());
            hasher.update(&digest.0);
        }
        Digest::finish(&hasher)
    }

    /// The stored and sent form.
    pub fn to_bytes(&self) -> Bytes {
        let n = self.sections.len();
        let mut out = BytesMut::with_capacity(32 + n.div_ceil(8) + 32 * n);
        out.put_slice(&MAGIC);
        out.put_u16_le(VERSION);
        out.put_u8(self.geometry.chunk_log2());
        out.put_u8(self.geometry.sector().ilog2() as u8);
        out.put_u32_le(self.domain.0);
        out.put_u32_le(0);
        out.put_u32_le(n as u32);
        out.put_u32_le(self.present().count() as u32);
        out.put_u64_le(self.geometry.size());
        for eight in self.sections.chunks(8) {
            let bits = eight.iter().enumerate();
            out.put_u8(bits.fold(0, |b, (i, d)| b | u8::from(!d.is_zero()) << i));
        }
        self.present().for_each(|(_, d)| out.put_slice(&d.0));
        out.freeze()
    }

    /// Parses a manifest and checks it against the image's identity.
    pub fn parse(bytes: &[u8], expected: &Digest) -> Result<Self, FormatError> {
        let manifest = Self::parse_unverified(bytes)?;
        if manifest.identity() != *expected {
            return Err(FormatError::Mismatch { what: WHAT, which: "identity" });
        }
        Ok(manifest)
    }

    /// Parses a manifest that nothing vouches for yet (a pushed one).
    pub fn parse_unverified(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut r = Reader::new(WHAT, bytes);
        r.magic(MAGIC, VERSION)?;
        let (chunk_log2, sector_log2) = (r.u8()?, r.u8()?);
        let domain = Domain(r.u32()?).check(WHAT)?;
        r.reserved(4)?;
        let (count, present, size) = (r.u32()?, r.u32()?, r.u64()?);
        let sector = 1u32.checked_shl(u32::from(sector_log2)).unwrap_or(0);
        let geometry = Geometry::new(size, sector, chunk_log2)?;
        if count != geometry.sections() {
            return Err(r.field("number of sections", u64::from(count)));
        }
        let bitmap = r.take((count as usize).div_ceil(8))?;
        let set: u32 = bitmap.iter().map(|b| b.count_ones()).sum();
        let past_end = bitmap.last().filter(|_| count % 8 != 0).map_or(0, |b| b >> (count % 8));
        if set != present || past_end != 0 {
            return Err(r.field("bitmap of sections", u64::from(present)));
        }
        if r.remaining() != 32 * present as usize {
            // Checked before anything is allocated for the digests.
            return Err(r.field("length of the digests", r.remaining() as u64));
        }
        let mut sections = vec![Digest::ZERO; count as usize];
        for (i, slot) in sections.iter_mut().enumerate() {
            if bitmap[i / 8] >> (i % 8) & 1 == 1 {
                *slot = r.digest()?;
                if slot.is_zero() {
                    return Err(r.field("digest reserved for zeros", i as u64));
                }
            }
        }
        r.end()?;
        Ok(Self { domain, geometry, sections })
    }
}
