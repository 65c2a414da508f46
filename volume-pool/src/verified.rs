//! Bytes that were checked, by type.

use std::ops::Deref;

use blockio::Buf;
use bytes::Bytes;
use image::{Decoder, Digest, FormatError, Frame};

/// The plain bytes of a chunk, checked against the digest that the section table has for it. There
/// is no other way to make one, so what is written into a target has always been verified.
#[derive(Debug)]
pub struct Verified {
    buf: Buf,
}

impl Verified {
    /// Decodes a frame into `buf` and checks it. `len` is the chunk's length by the geometry, at
    /// most the buffer's capacity.
    pub fn decode(
        decoder: &mut Decoder,
        frame: &Frame,
        expected: &Digest,
        mut buf: Buf,
        len: usize,
    ) -> Result<Self, FormatError> {
        buf.set_len(len);
        decoder.decode(frame, expected, &mut buf)?;
        Ok(Self { buf })
    }

    /// Checks plain bytes that came from elsewhere, e.g. from another disk of this machine.
    pub fn check(buf: Buf, len: usize, expected: &Digest) -> Result<Self, FormatError> {
        const WHAT: &str = "plain chunk";
        if buf.len() != len {
            return Err(FormatError::Truncated { what: WHAT, need: len, have: buf.len() });
        }
        if Digest::of_chunk(&buf) != *expected {
            return Err(FormatError::Mismatch { what: WHAT, which: "digest" });
        }
        Ok(Self { buf })
    }

    pub(crate) fn into_buf(self) -> Buf {
        self.buf
    }

    /// The same bytes, where they are.
    pub(crate) fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self.buf)
    }
}

impl Deref for Verified {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buf
    }
}
