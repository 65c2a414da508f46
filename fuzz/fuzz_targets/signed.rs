//! Image records and tickets from strangers: refused, never a panic. And refs.
#![no_main]

use api::Ticket;
use image::signing::SigningKey;
use image::{Digest, ImageRecord, Ref};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(name) = text.parse::<Ref>() {
        assert_eq!(name.to_string().parse::<Ref>().unwrap(), name);
        assert!(!text.contains("..") && !text.contains(char::is_whitespace));
    }
    let key = SigningKey::from_bytes(&KEY).unwrap().verifying_key();
    let digest = Digest::of_chunk(b"x");
    assert!(ImageRecord::open(text, &key, &digest).is_err());
    assert!(Ticket::open(text, &key, &digest, 0).is_err());
    // And what a good signature may wrap around anything.
    let _ = serde_json::from_str::<ImageRecord>(text);
    let _ = serde_json::from_str::<Ticket>(text);
});

/// RFC 8032's first test key: seed and public key.
const KEY: [u8; 64] = [
    0x9d, 0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec, 0x2c, 0xc4,
    0x44, 0x49, 0xc5, 0x69, 0x7b, 0x32, 0x69, 0x19, 0x70, 0x3b, 0xac, 0x03, 0x1c, 0xae, 0x7f, 0x60,
    0xd7, 0x5a, 0x98, 0x01, 0x82, 0xb1, 0x0a, 0xb7, 0xd5, 0x4b, 0xfe, 0xd3, 0xc9, 0x64, 0x07, 0x3a,
    0x0e, 0xe1, 0x72, 0xf3, 0xda, 0xa6, 0x23, 0x25, 0xaf, 0x02, 0x1a, 0x68, 0xf7, 0x07, 0x51, 0x1a,
];
