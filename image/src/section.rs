//! The section table: the digests of a section's chunks.
//!
//! ```text
//!  0        4        6        8        12      16
//!  | "FBST" | ver 1  | zeros  | domain | count | count × 32-byte chunk digest (zeros: zero chunk) |
//! ```
//! Its digest — BLAKE3 with the section context over domain, count and chunk digests — stands in the
//! manifest, so a table is verified alone, and equal sections of different images share one table.

use bytes::{BufMut, Bytes, BytesMut};

use crate::chunk_set::MAX_CHUNKS;
use crate::digest::{Digest, Domain};
use crate::error::FormatError;
use crate::reader::Reader;

const WHAT: &str = "section table";
const MAGIC: [u8; 4] = *b"FBST";
const VERSION: u16 = 1;
/// Longest section table in bytes.
pub const MAX_TABLE: usize = 16 + 32 * MAX_CHUNKS as usize;

/// The chunk digests of one section, in order; [`Digest::ZERO`] for chunks of zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SectionTable {
    domain: Domain,
    digests: Vec<Digest>,
}

impl SectionTable {
    /// A table of at most [`MAX_CHUNKS`] digests.
    pub fn new(domain: Domain, digests: Vec<Digest>) -> Self {
        assert!(digests.len() <= MAX_CHUNKS as usize);
        Self { domain, digests }
    }

    /// The table of a section of zeros; it is never stored or sent.
    pub fn zeros(domain: Domain, chunks: u32) -> Self {
        Self::new(domain, vec![Digest::ZERO; chunks as usize])
    }

    /// The trust domain.
    pub fn domain(&self) -> Domain {
        self.domain
    }

    /// The chunk digests in order.
    pub fn digests(&self) -> &[Digest] {
        &self.digests
    }

    /// Number of chunks in the section.
    pub fn chunks(&self) -> u32 {
        self.digests.len() as u32
    }

    /// Whether every chunk is zeros.
    pub fn is_zero(&self) -> bool {
        self.digests.iter().all(Digest::is_zero)
    }

    /// The section's digest: [`Digest::ZERO`] if every chunk is zeros.
    pub fn digest(&self) -> Digest {
        if self.is_zero() {
            return Digest::ZERO;
        }
        let mut hasher = Digest::section_hasher();
        hasher.update(&self.domain.0.to_le_bytes());
        hasher.update(&self.chunks().to_le_bytes());
        self.digests.iter().for_each(|d| {
            hasher.update(&d.0);
        });
        Digest::finish(&hasher)
    }

    /// The stored and sent form.
    pub fn to_bytes(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(16 + 32 * self.digests.len());
        out.put_slice(&MAGIC);
        out.put_u16_le(VERSION);
        out.put_u16_le(0);
        out.put_u32_le(self.domain.0);
        out.put_u32_le(self.chunks());
        self.digests.iter().for_each(|d| out.put_slice(&d.0));
        out.freeze()
    }

    /// Parses a table and checks it against the digest that vouches for it.
    pub fn parse(bytes: &[u8], expected: &Digest) -> Result<Self, FormatError> {
        let table = Self::parse_unverified(bytes)?;
        if table.digest() != *expected {
            return Err(FormatError::Mismatch { what: WHAT, which: "digest" });
        }
        Ok(table)
    }

    /// Parses a table that nothing vouches for yet (a pushed one: its digest is computed from it).
    pub fn parse_unverified(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut r = Reader::new(WHAT, bytes);
        r.magic(MAGIC, VERSION)?;
        r.reserved(2)?;
        let domain = Domain(r.u32()?).check(WHAT)?;
        let count = r.u32()?;
        if count > MAX_CHUNKS {
            return Err(r.field("number of chunks", u64::from(count)));
        }
        let digests = r.take(32 * count as usize)?.chunks_exact(32);
        let digests = digests.map(|d| Digest(d.try_into().expect("chunks of 32"))).collect();
        r.end()?;
        Ok(Self { domain, digests })
    }
}
