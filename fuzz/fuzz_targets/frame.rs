//! A frame parser that never panics nor allocates from an unchecked length; what it accepts is
//! canonical, and decoding it into a chunk's memory fails or gives exactly the digest's bytes.
//!
//! The bytes are taken as they are, and with their checksums put right: else hardly a mutant would
//! get past those.
#![no_main]

use bytes::Bytes;
use image::frame::HEADER_LEN;
use image::{Decoder, Digest, FormatError, Frame};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    check(Bytes::copy_from_slice(data));
    let sealed = sealed(data.to_vec());
    let refused = Frame::split_from(&mut sealed.clone()).err();
    assert!(!matches!(refused, Some(FormatError::Mismatch { .. })), "{refused:?}");
    check(sealed);
});

fn check(mut rest: Bytes) {
    let mut decoder = Decoder::new().unwrap();
    while let Ok(frame) = Frame::split_from(&mut rest) {
        let header = *frame.header();
        assert_eq!(header.to_bytes()[..], frame.bytes()[..HEADER_LEN]);
        assert_eq!(Frame::parse(frame.bytes().clone()).unwrap(), frame);
        let mut plain = vec![0; header.plain_len as usize];
        match decoder.decode(&frame, &header.digest, &mut plain) {
            Ok(()) => assert_eq!(Digest::of_chunk(&plain), header.digest),
            Err(FormatError::Mismatch { which: "BLAKE3 of the plain bytes", .. }) => {
                honest(&mut decoder, &frame, &plain);
            }
            Err(_) => {}
        }
    }
}

/// The same payload under the digest of what it decodes to is accepted.
fn honest(decoder: &mut Decoder, frame: &Frame, plain: &[u8]) {
    let (header, digest) = (frame.header(), Digest::of_chunk(plain));
    let payload = frame.payload();
    let frame = Frame::new(header.codec, header.domain, digest, header.plain_len, payload);
    let mut again = vec![0; plain.len()];
    decoder.decode(&frame, &digest, &mut again).unwrap();
    assert_eq!(again, plain);
}

/// One frame after the other with the CRC32Cs of its payload and header.
fn sealed(mut bytes: Vec<u8>) -> Bytes {
    let mut rest = &mut bytes[..];
    while rest.len() >= HEADER_LEN {
        let (header, after) = rest.split_at_mut(HEADER_LEN);
        let stored = u32::from_le_bytes(header[16..20].try_into().unwrap()) as usize;
        let (payload, after) = after.split_at_mut(stored.min(after.len()));
        header[20..24].copy_from_slice(&crc32c::crc32c(payload).to_le_bytes());
        let crc = crc32c::crc32c(&header[..60]);
        header[60..].copy_from_slice(&crc.to_le_bytes());
        rest = after;
    }
    bytes.into()
}
