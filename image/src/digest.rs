//! BLAKE3 digests, one derive-key context per kind of node of the image's tree.
//!
//! A context per kind makes it impossible to pass a section table off as a chunk, or a chunk as an
//! image: the same bytes have different digests in different places (BLAKE3 paper, §5.6
//! "derive_key").

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use crate::error::FormatError;

/// A trust domain: whose chunks may be deduplicated with whose. 0 is public, and the only one that
/// this version implements; formats and protocol carry it everywhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Domain(pub u32);

impl Domain {
    /// The public domain.
    pub const PUBLIC: Domain = Domain(0);

    /// Refuses domains whose keyed digests and encryption this version does not implement.
    pub fn check(self, what: &'static str) -> Result<Self, FormatError> {
        if self == Self::PUBLIC {
            Ok(self)
        } else {
            let feature = format!("trust domain {}", self.0);
            Err(FormatError::Unimplemented { what, feature })
        }
    }
}

/// 32 bytes of BLAKE3. All zeros is reserved for "nothing but zeros here" (chunk or section).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

static CHUNK: LazyLock<blake3::Hasher> =
    LazyLock::new(|| blake3::Hasher::new_derive_key("forebay 1 chunk"));
static SECTION: LazyLock<blake3::Hasher> =
    LazyLock::new(|| blake3::Hasher::new_derive_key("forebay 1 section"));
static IMAGE: LazyLock<blake3::Hasher> =
    LazyLock::new(|| blake3::Hasher::new_derive_key("forebay 1 image"));
static STORED: LazyLock<blake3::Hasher> =
    LazyLock::new(|| blake3::Hasher::new_derive_key("forebay 1 stored payload"));
static INDEX: LazyLock<blake3::Hasher> =
    LazyLock::new(|| blake3::Hasher::new_derive_key("forebay 1 index"));

impl Digest {
    /// The reserved digest of zeros.
    pub const ZERO: Digest = Digest([0; 32]);

    /// Digest of a chunk's plain bytes (domain 0). The zero chunk is not hashed: see
    /// [`crate::codec::is_zero`].
    pub fn of_chunk(plain: &[u8]) -> Self {
        Self::finish(CHUNK.clone().update(plain))
    }

    /// Digest of a chunk's stored (compressed) payload, for who cannot decode it.
    pub fn of_stored(payload: &[u8]) -> Self {
        Self::finish(STORED.clone().update(payload))
    }

    /// Hasher for a section's digest.
    pub(crate) fn section_hasher() -> blake3::Hasher {
        SECTION.clone()
    }

    /// Hasher for an image's identity.
    pub(crate) fn image_hasher() -> blake3::Hasher {
        IMAGE.clone()
    }

    /// Checksum of index bytes (pack footers, locators): integrity, not identity.
    pub(crate) fn of_index(parts: &[&[u8]]) -> Self {
        let mut hasher = INDEX.clone();
        for part in parts {
            hasher.update(part);
        }
        Self::finish(&hasher)
    }

    pub(crate) fn finish(hasher: &blake3::Hasher) -> Self {
        Digest(*hasher.finalize().as_bytes())
    }

    /// Whether this is the reserved digest of zeros.
    pub fn is_zero(&self) -> bool {
        *self == Self::ZERO
    }

    /// The first 12 hex digits, for people.
    pub fn short(&self) -> String {
        self.to_string()[..12].to_owned()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl FromStr for Digest {
    type Err = FormatError;

    /// 64 lower-case hex digits.
    fn from_str(s: &str) -> Result<Self, FormatError> {
        parse_hex(s, "digest").map(Digest)
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

pub(crate) fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|b| write!(f, "{b:02x}"))
}

pub(crate) fn parse_hex<const N: usize>(
    s: &str,
    what: &'static str,
) -> Result<[u8; N], FormatError> {
    let why = || FormatError::Text { what, why: format!("`{s}` is not {} hex digits", 2 * N) };
    let digits = s.as_bytes();
    if digits.len() != 2 * N {
        return Err(why());
    }
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        let nibble = |c: u8| match c {
            b'0'..=b'9' => Ok(c - b'0'),
            b'a'..=b'f' => Ok(c - b'a' + 10),
            _ => Err(why()),
        };
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_separate_kinds() {
        let b = b"the same bytes";
        assert_ne!(Digest::of_chunk(b), Digest::of_stored(b));
        assert_ne!(Digest::of_chunk(b), Digest::of_index(&[b]));
        assert_eq!(Digest::of_index(&[&b[..4], &b[4..]]), Digest::of_index(&[b]));
    }

    #[test]
    fn hex_round_trips_and_refuses() {
        let d = Digest::of_chunk(b"x");
        assert_eq!(d.to_string().parse::<Digest>().unwrap(), d);
        for bad in ["", "00", &"g".repeat(64), &"A".repeat(64), &"é".repeat(32)] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }
}
