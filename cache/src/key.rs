//! What a cached frame is filed under.

use std::fmt;

use image::{Digest, Domain, Error, FormatError, Frame};

/// A chunk, wherever it occurs: images of one trust domain that hold the same bytes share one
/// cached frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) domain: Domain,
    pub(crate) digest: Digest,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "chunk {}", self.digest.short())
    }
}

/// Checks that a frame is whole and is what it was asked for as: every check there is short of
/// decoding it. `plain_len` is the chunk's length by the image's geometry.
pub(crate) fn check_frame(frame: &Frame, key: &Key, plain_len: u32) -> Result<(), FormatError> {
    const WHAT: &str = "chunk frame";
    let header = frame.header();
    if header.digest != key.digest {
        return Err(FormatError::Mismatch { what: WHAT, which: "digest" });
    }
    if header.domain != key.domain {
        return Err(FormatError::Mismatch { what: WHAT, which: "domain" });
    }
    if header.plain_len != plain_len {
        let value = u64::from(header.plain_len);
        return Err(FormatError::Field { what: WHAT, field: "plain length", value });
    }
    frame.check_payload()
}

/// As [`check_frame`], down to the plain bytes.
pub(crate) fn check_plain(frame: &Frame, key: &Key, plain_len: u32) -> Result<(), Error> {
    check_frame(frame, key, plain_len)?;
    let mut plain = vec![0; plain_len as usize];
    image::Decoder::new()?.decode(frame, &key.digest, &mut plain)?;
    Ok(())
}
