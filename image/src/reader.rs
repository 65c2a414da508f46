//! A bounds-checked little-endian cursor: the one way bytes from outside are taken apart.

use crate::digest::Digest;
use crate::error::FormatError;

/// Reads fields off the front of a byte slice. Every read checks the length first.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    what: &'static str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A reader over `bytes`; `what` names the format in errors.
    pub fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { what, rest: bytes }
    }

    /// Takes the next `n` bytes.
    pub fn take(&mut self, n: usize) -> Result<&'a [u8], FormatError> {
        if self.rest.len() < n {
            let (need, have) = (n, self.rest.len());
            return Err(FormatError::Truncated { what: self.what, need, have });
        }
        let (head, rest) = self.rest.split_at(n);
        self.rest = rest;
        Ok(head)
    }

    /// Takes an array.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    /// Takes a byte.
    pub fn u8(&mut self) -> Result<u8, FormatError> {
        Ok(self.array::<1>()?[0])
    }

    /// Takes a little-endian 16-bit number.
    pub fn u16(&mut self) -> Result<u16, FormatError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// Takes a little-endian 32-bit number.
    pub fn u32(&mut self) -> Result<u32, FormatError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Takes a little-endian 64-bit number.
    pub fn u64(&mut self) -> Result<u64, FormatError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Takes a digest.
    pub fn digest(&mut self) -> Result<Digest, FormatError> {
        Ok(Digest(self.array()?))
    }

    /// Takes a magic number and version, and refuses others.
    pub fn magic(&mut self, magic: [u8; 4], version: u16) -> Result<(), FormatError> {
        let found = self.array()?;
        if found != magic {
            return Err(FormatError::Magic { what: self.what, found });
        }
        let found = self.u16()?;
        if found != version {
            return Err(FormatError::Version { what: self.what, found, known: version });
        }
        Ok(())
    }

    /// Takes reserved bytes, which must be zero.
    pub fn reserved(&mut self, n: usize) -> Result<(), FormatError> {
        match self.take(n)?.iter().find(|b| **b != 0) {
            None => Ok(()),
            Some(b) => Err(self.field("reserved bytes", u64::from(*b))),
        }
    }

    /// The error for a field that is out of bounds.
    pub fn field(&self, field: &'static str, value: u64) -> FormatError {
        FormatError::Field { what: self.what, field, value }
    }

    /// Bytes not yet taken.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Ends the reading: nothing may be left.
    pub fn end(self) -> Result<(), FormatError> {
        match self.rest.len() {
            0 => Ok(()),
            extra => Err(FormatError::Trailing { what: self.what, extra }),
        }
    }
}
