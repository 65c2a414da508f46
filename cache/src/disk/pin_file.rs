//! The bytes of a pin: one small file for each pinned image, beside the segments.
//!
//! ```text
//!  0      4       6       8         40           44        48       56            60            64
//!  | FBPN | ver 1 | zeros | image   | domain u32 | count   | zeros  | CRC32C of   | CRC32C of   |
//!  |      | u16   | u16   | 32      |            | u32     | 8      | the chunks  | bytes 0..60 |
//!  then count times, by rising digest:  | digest of the plain chunk 32 | frame length u32 |
//! ```
//! Numbers are little-endian. It lists the chunks so that they are kept from the first moment after
//! a restart, whether or not the source can be asked what the image consists of.

use bytes::{BufMut, Bytes, BytesMut};
use image::frame::{HEADER_LEN as FRAME_HEADER, MAX_FRAME};
use image::reader::Reader;
use image::{Digest, Domain, FormatError};

use crate::pins::PinnedChunk;

/// More chunks than this cannot be pinned at once (4 TiB of 256 KiB chunks).
pub(crate) const MAX_CHUNKS: usize = 1 << 24;
/// The longest file there can be, in bytes.
pub(crate) const MAX_LEN: usize = HEADER_LEN + MAX_CHUNKS * CHUNK_LEN;

const HEADER_LEN: usize = 64;
const CHUNK_LEN: usize = 36;
const MAGIC: [u8; 4] = *b"FBPN";
const VERSION: u16 = 1;
const WHAT: &str = "pin";

/// What a pin's file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PinFile {
    pub(crate) image: Digest,
    pub(crate) domain: Domain,
    pub(crate) chunks: Vec<PinnedChunk>,
}

/// The name of the file of an image's pin.
pub(crate) fn file_name(image: &Digest) -> String {
    format!("pin-{image}")
}

/// The image of a pin, from the name of its file; `None` for other files.
pub(crate) fn parse_name(name: &str) -> Option<Digest> {
    let image: Digest = name.strip_prefix("pin-")?.parse().ok()?;
    (file_name(&image) == name).then_some(image)
}

/// Whether an error means that the file is another program's, or a newer one's: not ours to touch.
pub(crate) fn is_foreign(error: &FormatError) -> bool {
    matches!(error, FormatError::Magic { .. } | FormatError::Version { .. })
}

impl PinFile {
    /// The file's bytes. The chunks must be in rising order.
    pub(crate) fn to_bytes(&self) -> Bytes {
        let mut chunks = BytesMut::with_capacity(self.chunks.len() * CHUNK_LEN);
        for chunk in &self.chunks {
            chunks.put_slice(&chunk.digest.0);
            chunks.put_u32_le(chunk.len);
        }
        let mut out = BytesMut::with_capacity(HEADER_LEN + chunks.len());
        out.put_slice(&MAGIC);
        out.put_u16_le(VERSION);
        out.put_u16_le(0);
        out.put_slice(&self.image.0);
        out.put_u32_le(self.domain.0);
        out.put_u32_le(u32::try_from(self.chunks.len()).expect("at most MAX_CHUNKS"));
        out.put_u64_le(0);
        out.put_u32_le(crc32c::crc32c(&chunks));
        let crc = crc32c::crc32c(&out);
        out.put_u32_le(crc);
        out.put_slice(&chunks);
        out.freeze()
    }

    /// Parses a file with the name of `image`'s pin.
    pub(crate) fn parse(bytes: &[u8], image: &Digest) -> Result<Self, FormatError> {
        let mut r = Reader::new(WHAT, bytes);
        r.magic(MAGIC, VERSION)?;
        r.reserved(2)?;
        let found = r.digest()?;
        let (domain, count) = (Domain(r.u32()?), r.u32()?);
        r.reserved(8)?;
        let (chunks_crc, crc) = (r.u32()?, r.u32()?);
        if crc32c::crc32c(&bytes[..HEADER_LEN - 4]) != crc {
            return Err(FormatError::Mismatch { what: WHAT, which: "header CRC32C" });
        }
        if found != *image {
            return Err(FormatError::Mismatch { what: WHAT, which: "image" });
        }
        if r.remaining() as u64 != u64::from(count) * CHUNK_LEN as u64 {
            return Err(r.field("count of chunks", u64::from(count)));
        }
        if crc32c::crc32c(&bytes[HEADER_LEN..]) != chunks_crc {
            return Err(FormatError::Mismatch { what: WHAT, which: "CRC32C of the chunks" });
        }
        let chunks = (0..count).map(|_| parse_chunk(&mut r)).collect::<Result<Vec<_>, _>>()?;
        if !chunks.is_sorted_by(|a, b| a.digest < b.digest) {
            return Err(r.field("order of the chunks", u64::from(count)));
        }
        Ok(Self { image: *image, domain, chunks })
    }
}

fn parse_chunk(r: &mut Reader<'_>) -> Result<PinnedChunk, FormatError> {
    let (digest, len) = (r.digest()?, r.u32()?);
    if len as usize <= FRAME_HEADER || len as usize > MAX_FRAME {
        return Err(r.field("frame length", u64::from(len)));
    }
    Ok(PinnedChunk { digest, len })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    fn pin() -> PinFile {
        let chunk = |n, len| PinnedChunk { digest: Digest([n; 32]), len };
        let (image, domain) = (Digest([0xab; 32]), Domain::PUBLIC);
        PinFile { image, domain, chunks: vec![chunk(0x11, 100), chunk(0x22, 200)] }
    }

    /// These bytes are on people's disks. If this fails the version must go up, and files of the old
    /// version must be told apart.
    #[test]
    fn golden_bytes_version_bump_required() {
        let golden = [
            "4642504e01000000".to_owned() + &"ab".repeat(32),
            "00000000020000000000000000000000".to_owned(),
            "82fb3e27ba2f303e".to_owned(),
            "11".repeat(32) + "64000000",
            "22".repeat(32) + "c8000000",
        ];
        assert_eq!(hex(&pin().to_bytes()), golden.concat());
        assert_eq!(file_name(&pin().image), "pin-".to_owned() + &"ab".repeat(32));
        assert_eq!(parse_name(&file_name(&pin().image)), Some(pin().image));
        assert_eq!(parse_name(&("pin-".to_owned() + &"AB".repeat(32))), None);
    }

    #[test]
    fn is_read_as_written_and_no_flipped_bit_goes_unseen() {
        let good = pin().to_bytes();
        assert_eq!(PinFile::parse(&good, &pin().image).unwrap(), pin());
        assert!(PinFile::parse(&good, &Digest([1; 32])).is_err());
        for bit in 0..good.len() * 8 {
            let mut bad = good.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            let error = PinFile::parse(&bad, &pin().image).unwrap_err();
            assert_eq!(is_foreign(&error), bit < 6 * 8, "bit {bit}: {error}");
        }
    }

    #[test]
    fn chunks_out_of_order_are_refused() {
        let mut pin = pin();
        pin.chunks.swap(0, 1);
        assert!(PinFile::parse(&pin.to_bytes(), &pin.image).is_err());
        pin.chunks[0] = pin.chunks[1];
        assert!(PinFile::parse(&pin.to_bytes(), &pin.image).is_err());
    }

    proptest! {
        #[test]
        fn nothing_makes_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut bytes = bytes;
            let _ = PinFile::parse(&bytes, &Digest([0; 32]));
            bytes.splice(0..bytes.len().min(6), *b"FBPN\x01\0");
            let _ = PinFile::parse(&bytes, &Digest([0; 32]));
        }
    }
}
