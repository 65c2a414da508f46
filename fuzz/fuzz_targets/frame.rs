//! A frame parser that never panics nor allocates from an unchecked length; what it accepts is
//! canonical, and decoding it into a chunk's memory fails or gives exactly the digest's bytes.
#![no_main]

use bytes::Bytes;
use image::{Decoder, Digest, Frame};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut rest = Bytes::copy_from_slice(data);
    while let Ok(frame) = Frame::split_from(&mut rest) {
        let header = *frame.header();
        assert_eq!(header.to_bytes()[..], frame.bytes()[..64]);
        assert_eq!(Frame::parse(frame.bytes().clone()).unwrap(), frame);
        let mut plain = vec![0; header.plain_len as usize];
        let decoded = Decoder::new().unwrap().decode(&frame, &header.digest, &mut plain);
        if decoded.is_ok() {
            assert_eq!(Digest::of_chunk(&plain), header.digest);
        }
    }
});
