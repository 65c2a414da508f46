//! The file of a backup: all keys of the state as of one moment.
//!
//! ```text
//! header   magic "FBPB" · version u16 · 0 u16 · revision u64 · at u64 · keys u64
//! key      key length u32 · value length u32 · version u64 · key · value        in the order of the keys
//! end      BLAKE3 of all before
//! ```
//!
//! Little-endian; `at` in seconds since 1970.

use image::error::FormatError;
use image::{Error, Result};

use super::keys::{Listing, Versioned};

const WHAT: &str = "backup of placement's state";
const MAGIC: [u8; 4] = *b"FBPB";
const VERSION: u16 = 1;
const HEADER: usize = 32;
const DIGEST: usize = 32;

/// All keys of a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Backup {
    /// When it was made, in seconds since 1970.
    pub at: u64,
    /// The keys.
    pub listing: Listing,
}

impl Backup {
    /// The bytes of the file.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER + DIGEST);
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend([0; 2]);
        let entries = &self.listing.entries;
        for number in [self.listing.revision, self.at, entries.len() as u64] {
            out.extend(number.to_le_bytes());
        }
        for (key, Versioned { version, value }) in entries {
            for len in [key.len(), value.len()] {
                let len = u32::try_from(len).expect("keys and values are short");
                out.extend(len.to_le_bytes());
            }
            out.extend(version.to_le_bytes());
            out.extend(key.as_bytes());
            out.extend(value);
        }
        let digest = blake3::hash(&out);
        out.extend(digest.as_bytes());
        out
    }

    /// Reads the bytes of a file. The version first, then the digest: what is wrong with the rest of one that
    /// has its digest was never right.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        Self::read(bytes).map_err(Error::from)
    }

    fn read(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut rest = bytes;
        let magic = array::<4>(&mut rest)?;
        if magic != MAGIC {
            return Err(FormatError::Magic { what: WHAT, found: magic });
        }
        let version = u16::from_le_bytes(array(&mut rest)?);
        if version != VERSION {
            return Err(FormatError::Version { what: WHAT, found: version, known: VERSION });
        }
        let body = bytes.len().checked_sub(DIGEST).filter(|body| *body >= HEADER);
        let Some((body, digest)) = body.map(|body| bytes.split_at(body)) else {
            let need = HEADER + DIGEST;
            return Err(FormatError::Truncated { what: WHAT, need, have: bytes.len() });
        };
        if blake3::hash(body).as_bytes() != digest {
            return Err(FormatError::Mismatch { what: WHAT, which: "its BLAKE3" });
        }
        let mut rest = &body[6..];
        let zero = u16::from_le_bytes(array(&mut rest)?);
        if zero != 0 {
            return Err(FormatError::Field { what: WHAT, field: "zero", value: zero.into() });
        }
        let [revision, at, count] = [number(&mut rest)?, number(&mut rest)?, number(&mut rest)?];
        let mut entries: Vec<(String, Versioned)> = Vec::new();
        for _ in 0..count {
            let entry = entry(&mut rest)?;
            if entries.last().is_some_and(|before| before.0 >= entry.0) {
                return Err(text(format!("key `{}` is out of order", entry.0)));
            }
            entries.push(entry);
        }
        match rest.len() {
            0 => Ok(Self { at, listing: Listing { revision, entries } }),
            extra => Err(FormatError::Trailing { what: WHAT, extra }),
        }
    }
}

fn text(why: String) -> FormatError {
    FormatError::Text { what: WHAT, why }
}

fn entry(rest: &mut &[u8]) -> Result<(String, Versioned), FormatError> {
    let [key, value] = [u32::from_le_bytes(array(rest)?), u32::from_le_bytes(array(rest)?)];
    let version = number(rest)?;
    let key = take(rest, key as usize)?;
    let key = std::str::from_utf8(key).map_err(|e| text(format!("a key is no text: {e}")))?;
    let value = take(rest, value as usize)?.to_vec();
    Ok((key.to_owned(), Versioned { version, value }))
}

fn number(rest: &mut &[u8]) -> Result<u64, FormatError> {
    Ok(u64::from_le_bytes(array(rest)?))
}

fn array<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], FormatError> {
    Ok(take(rest, N)?.try_into().expect("as many as were asked for"))
}

fn take<'b>(rest: &mut &'b [u8], need: usize) -> Result<&'b [u8], FormatError> {
    let Some((taken, left)) = rest.split_at_checked(need) else {
        return Err(FormatError::Truncated { what: WHAT, need, have: rest.len() });
    };
    *rest = left;
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use image::Kind;

    use super::*;

    fn sample() -> Backup {
        let entry = |key: &str, version, value: &str| {
            (key.to_owned(), Versioned { version, value: value.into() })
        };
        let entries = vec![
            entry("format", 1, "1"),
            entry("grid", 1, "\"g\""),
            entry("refs/debian:12", 7, ""),
        ];
        Backup { at: 1_700_000_000, listing: Listing { revision: 9, entries } }
    }

    const GOLDEN: &[u8] = include_bytes!("golden/backup-v1.bin");

    #[test]
    fn golden_bytes() {
        assert_eq!(sample().to_bytes(), GOLDEN, "version bump required");
        assert_eq!(Backup::parse(GOLDEN).unwrap(), sample());
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_found() {
        for bit in 0..GOLDEN.len() * 8 {
            let mut bytes = GOLDEN.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let e = Backup::parse(&bytes).unwrap_err();
            let version = (4..6).contains(&(bit / 8));
            let kind = if version { Kind::Unsupported } else { Kind::Corrupt };
            assert_eq!(e.kind(), kind, "bit {bit}: {e}");
        }
        for len in 0..GOLDEN.len() {
            assert_eq!(Backup::parse(&GOLDEN[..len]).unwrap_err().kind(), Kind::Corrupt, "{len}");
        }
        assert!(Backup::parse(&[GOLDEN, &[0]].concat()).is_err());
    }

    #[test]
    fn lengths_that_lie_under_a_good_digest_are_refused() {
        for (at, lie) in [(24, u64::MAX), (32, u64::MAX), (24, 2), (6, 1)] {
            let mut bytes = GOLDEN[..GOLDEN.len() - DIGEST].to_vec();
            bytes[at..at + 8].copy_from_slice(&lie.to_le_bytes());
            let digest = blake3::hash(&bytes);
            bytes.extend(digest.as_bytes());
            assert_eq!(Backup::parse(&bytes).unwrap_err().kind(), Kind::Corrupt, "{at}");
        }
    }
}
