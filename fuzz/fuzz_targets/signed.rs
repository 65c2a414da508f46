//! Image records and tickets: from strangers they are refused, and under a good signature the
//! checks behind it hold, whatever is signed. Never a panic. And refs.
#![no_main]

use api::Ticket;
use api::ticket::SKEW_SECS;
use image::signing::{Purpose, SigningKey};
use image::{Digest, ImageRecord, Ref};
use libfuzzer_sys::fuzz_target;
use serde_json::value::RawValue;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(name) = text.parse::<Ref>() {
        assert_eq!(name.to_string().parse::<Ref>().unwrap(), name);
        assert!(!text.contains("..") && !text.contains(char::is_whitespace));
    }
    let key = SigningKey::from_bytes(&KEY).unwrap();
    let verify = key.verifying_key();
    let digest = Digest::of_chunk(b"x");
    assert!(ImageRecord::open(text, &verify, &digest).is_err());
    assert!(Ticket::open(text, &verify, &digest, 0).is_err());
    if let Ok(statement) = serde_json::from_str::<&RawValue>(text) {
        ticket(&key, statement);
        record(&key, statement);
    }
});

/// What is signed as a ticket opens only for its holder, in its time, and in this version.
fn ticket(key: &SigningKey, statement: &RawValue) {
    let (token, verify) = (key.sign(Purpose::Ticket, &statement), key.verifying_key());
    let Ok(said) = serde_json::from_str::<Ticket>(statement.get()) else {
        assert!(Ticket::open(&token, &verify, &Digest::ZERO, 0).is_err());
        return;
    };
    let other = Digest::of_stored(&said.holder.0);
    for now in [0, said.issued, said.expires, said.expires.saturating_add(SKEW_SECS), u64::MAX] {
        assert!(Ticket::open(&token, &verify, &other, now).is_err());
        if let Ok(ticket) = Ticket::open(&token, &verify, &said.holder, now) {
            assert_eq!((&ticket, ticket.version), (&said, Ticket::VERSION));
            assert!(now.saturating_sub(SKEW_SECS) <= ticket.expires && ticket.session_good(now));
            assert!(now.saturating_add(SKEW_SECS) >= ticket.issued);
        }
    }
    assert!(ImageRecord::open(&token, &verify, &said.holder).is_err());
}

/// What is signed as a record opens only for its image, and says the same when signed again.
fn record(key: &SigningKey, statement: &RawValue) {
    let (token, verify) = (key.sign(Purpose::Record, &statement), key.verifying_key());
    let Ok(said) = serde_json::from_str::<ImageRecord>(statement.get()) else {
        assert!(ImageRecord::open(&token, &verify, &Digest::ZERO).is_err());
        return;
    };
    assert!(ImageRecord::open(&token, &verify, &Digest::of_stored(&said.image.0)).is_err());
    if let Ok(record) = ImageRecord::open(&token, &verify, &said.image) {
        assert_eq!((&record, record.version), (&said, ImageRecord::VERSION));
        assert_eq!(ImageRecord::open(&record.sign(key), &verify, &said.image).unwrap(), record);
    }
}

/// RFC 8032's first test key: seed and public key.
const KEY: [u8; 64] = [
    0x9d, 0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec, 0x2c, 0xc4,
    0x44, 0x49, 0xc5, 0x69, 0x7b, 0x32, 0x69, 0x19, 0x70, 0x3b, 0xac, 0x03, 0x1c, 0xae, 0x7f, 0x60,
    0xd7, 0x5a, 0x98, 0x01, 0x82, 0xb1, 0x0a, 0xb7, 0xd5, 0x4b, 0xfe, 0xd3, 0xc9, 0x64, 0x07, 0x3a,
    0x0e, 0xe1, 0x72, 0xf3, 0xda, 0xa6, 0x23, 0x25, 0xaf, 0x02, 0x1a, 0x68, 0xf7, 0x07, 0x51, 0x1a,
];
