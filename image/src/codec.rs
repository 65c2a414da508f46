//! Plain chunk ⇄ frame. The two hottest functions of the project.

use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::compress_bound;

use crate::digest::{Digest, Domain};
use crate::error::{Error, FormatError, Kind};
use crate::frame::{Codec, Frame, MAX_PLAIN};

/// The zstd level of a chunk: 3, the knee of the curve for 256 KiB chunks of a Debian disk.
pub const ZSTD_LEVEL: i32 = 3;

/// Whether a plain chunk is all zeros, and so is neither hashed, stored nor sent.
pub fn is_zero(plain: &[u8]) -> bool {
    // Folding whole lines lets the compiler use vector ORs; the first line of a chunk with data
    // mostly ends the scan.
    let lines = plain.chunks_exact(128);
    let tail = lines.remainder();
    lines.into_iter().all(|line| line.iter().fold(0, |acc, b| acc | b) == 0)
        && tail.iter().all(|b| *b == 0)
}

/// Makes frames. Holds a zstd context and scratch memory; one per thread.
pub struct Encoder {
    zstd: Compressor<'static>,
    scratch: Vec<u8>,
}

impl Encoder {
    /// An encoder at [`ZSTD_LEVEL`]. Fails only without memory.
    pub fn new() -> Result<Self, Error> {
        let zstd = Compressor::new(ZSTD_LEVEL)
            .map_err(|e| Error::caused(Kind::Io, format!("zstd compressor: {e}"), e))?;
        Ok(Self { zstd, scratch: Vec::new() })
    }

    /// Makes the frame of a chunk whose digest is already known. `plain` is 1..=4 MiB and not all
    /// zeros.
    pub fn encode(&mut self, domain: Domain, digest: Digest, plain: &[u8]) -> Frame {
        debug_assert!(!plain.is_empty() && plain.len() <= MAX_PLAIN as usize && !is_zero(plain));
        let bound = compress_bound(plain.len());
        if self.scratch.len() < bound {
            self.scratch.resize(bound, 0);
        }
        let plain_len = plain.len() as u32;
        match self.zstd.compress_to_buffer(plain, &mut self.scratch[..]) {
            Ok(n) if n < plain.len() => {
                Frame::new(Codec::Zstd, domain, digest, plain_len, &self.scratch[..n])
            }
            // Incompressible, or out of memory inside zstd: raw is always right.
            _ => Frame::new(Codec::Raw, domain, digest, plain_len, plain),
        }
    }
}

/// Opens frames. Holds a zstd context; one per thread.
pub struct Decoder {
    zstd: Decompressor<'static>,
}

impl Decoder {
    /// A decoder. Fails only without memory.
    pub fn new() -> Result<Self, Error> {
        let zstd = Decompressor::new()
            .map_err(|e| Error::caused(Kind::Io, format!("zstd decompressor: {e}"), e))?;
        Ok(Self { zstd })
    }

    /// Checks a frame's CRC32C, decodes it into `out`, and checks the plain bytes against
    /// `expected`. `out` must be exactly as long as the chunk is by the image's geometry: a frame
    /// of another length is not that chunk. On an error `out` holds garbage.
    pub fn decode(
        &mut self,
        frame: &Frame,
        expected: &Digest,
        out: &mut [u8],
    ) -> Result<(), FormatError> {
        const WHAT: &str = "chunk";
        if frame.header().digest != *expected {
            return Err(FormatError::Mismatch { what: WHAT, which: "digest in the frame" });
        }
        let plain_len = frame.header().plain_len;
        if plain_len as usize != out.len() {
            let value = u64::from(plain_len);
            return Err(FormatError::Field { what: WHAT, field: "plain length", value });
        }
        frame.check_payload()?;
        match frame.header().codec {
            Codec::Raw => out.copy_from_slice(frame.payload()),
            // zstd stops at the end of `out`, so a bomb costs no more than a chunk.
            Codec::Zstd => match self.zstd.decompress_to_buffer(frame.payload(), out) {
                Ok(n) if n == plain_len as usize => {}
                Ok(_) => return Err(FormatError::Mismatch { what: WHAT, which: "decoded length" }),
                Err(e) => return Err(FormatError::Text { what: WHAT, why: format!("zstd: {e}") }),
            },
        }
        if Digest::of_chunk(out) != *expected {
            return Err(FormatError::Mismatch { what: WHAT, which: "BLAKE3 of the plain bytes" });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round_trip(plain: &[u8]) -> Frame {
        let digest = Digest::of_chunk(plain);
        let frame = Encoder::new().unwrap().encode(Domain::PUBLIC, digest, plain);
        let mut out = vec![0; plain.len()];
        Decoder::new().unwrap().decode(&frame, &digest, &mut out).unwrap();
        assert_eq!(out, plain);
        assert_eq!(Frame::parse(frame.bytes().clone()).unwrap(), frame);
        frame
    }

    #[test]
    fn compressible_is_smaller_and_noise_is_raw() {
        assert_eq!(round_trip(&[7; 4096]).header().codec, Codec::Zstd);
        let mut x = 1u64;
        let noise: Vec<u8> = (0..4096)
            .map(|_| {
                x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (x >> 56) as u8
            })
            .collect();
        assert_eq!(round_trip(&noise).header().codec, Codec::Raw);
    }

    #[test]
    fn a_bomb_costs_no_more_than_a_chunk() {
        let bomb = zstd::bulk::compress(&vec![0u8; 64 << 20], 3).unwrap();
        let digest = Digest::of_chunk(b"whatever");
        let frame = Frame::new(Codec::Zstd, Domain::PUBLIC, digest, 1 << 18, &bomb);
        let mut out = vec![0; 1 << 18];
        let e = Decoder::new().unwrap().decode(&frame, &digest, &mut out).unwrap_err();
        assert!(e.to_string().contains("zstd"), "{e}");
    }

    #[test]
    fn every_flipped_bit_of_a_frame_is_caught() {
        let plain: Vec<u8> = (0..600u32).flat_map(|i| (i / 3).to_le_bytes()).collect();
        let digest = Digest::of_chunk(&plain);
        let frame = Encoder::new().unwrap().encode(Domain::PUBLIC, digest, &plain);
        let mut decoder = Decoder::new().unwrap();
        let mut out = vec![0; plain.len()];
        for byte in 0..frame.bytes().len() {
            for bit in 0..8 {
                let mut bad = frame.bytes().to_vec();
                bad[byte] ^= 1 << bit;
                let caught = match Frame::parse(bad.into()) {
                    Err(_) => true,
                    Ok(f) => decoder.decode(&f, &digest, &mut out).is_err(),
                };
                assert!(caught, "byte {byte} bit {bit}");
            }
        }
        for len in 0..frame.bytes().len() {
            assert!(Frame::parse(frame.bytes().slice(..len)).is_err(), "truncated at {len}");
        }
    }

    proptest! {
        #[test]
        fn any_chunk_round_trips(mut plain in proptest::collection::vec(any::<u8>(), 1..5000)) {
            plain[0] |= 1;
            round_trip(&plain);
        }

        #[test]
        fn zero_scan_agrees_with_the_obvious(len in 0usize..700, at in proptest::option::of(0usize..700)) {
            let mut v = vec![0u8; len];
            if let Some(i) = at.filter(|i| *i < len) { v[i] = 1; }
            prop_assert_eq!(is_zero(&v), v.iter().all(|b| *b == 0));
        }
    }
}
