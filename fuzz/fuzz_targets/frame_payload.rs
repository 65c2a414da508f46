//! A frame whose checksums are right but whose payload is hostile: a zstd bomb, garbage, a wrong
//! length. Never a panic, never more memory than a chunk, never accepted under another digest.
#![no_main]

use image::{Codec, Decoder, Digest, Domain, Frame};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((plain_len, payload)) = data.split_first_chunk::<4>() else { return };
    let plain_len = u32::from_le_bytes(*plain_len) % (1 << 20) + 1;
    let digest = Digest::of_chunk(b"something else");
    let frame = Frame::new(Codec::Zstd, Domain::PUBLIC, digest, plain_len, payload);
    let mut plain = vec![0; plain_len as usize];
    assert!(Decoder::new().unwrap().decode(&frame, &digest, &mut plain).is_err());
});
