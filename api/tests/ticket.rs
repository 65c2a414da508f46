//! Tickets that are out in the world must load for ever, and what is signed today are the same
//! bytes: Ed25519 and PASETO leave nothing to chance.

use std::path::PathBuf;

use forebay_api::ticket::{Grant, LIFETIME_SECS, Ticket, holder_of};
use image::signing::SigningKey;
use image::{Digest, Kind};

/// RFC 8032's first test key: seed and public key.
const KEY: [u8; 64] = [
    0x9d, 0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec, 0x2c, 0xc4,
    0x44, 0x49, 0xc5, 0x69, 0x7b, 0x32, 0x69, 0x19, 0x70, 0x3b, 0xac, 0x03, 0x1c, 0xae, 0x7f, 0x60,
    0xd7, 0x5a, 0x98, 0x01, 0x82, 0xb1, 0x0a, 0xb7, 0xd5, 0x4b, 0xfe, 0xd3, 0xc9, 0x64, 0x07, 0x3a,
    0x0e, 0xe1, 0x72, 0xf3, 0xda, 0xa6, 0x23, 0x25, 0xaf, 0x02, 0x1a, 0x68, 0xf7, 0x07, 0x51, 0x1a,
];
const ISSUED: u64 = 1_700_000_000;

/// A golden file's text. `FOREBAY_BLESS=1` writes the files of a new version.
fn golden(name: &str, now: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("FOREBAY_BLESS").is_some() && !path.exists() {
        std::fs::write(&path, now).unwrap();
    }
    std::fs::read_to_string(&path).unwrap()
}

fn tickets() -> [(&'static str, Ticket); 3] {
    let (image, parent) = (Digest::of_chunk(b"image"), Some(Digest::of_chunk(b"parent")));
    let ticket = |grant| Ticket::new(grant, holder_of(b"certificate"), ISSUED);
    [
        ("ticket-pull.v1", ticket(Grant::Pull { image })),
        ("ticket-push.v1", ticket(Grant::Push { domain: 0, parent: None })),
        ("ticket-push-parent.v1", ticket(Grant::Push { domain: 0, parent })),
    ]
}

#[test]
fn tickets_have_golden_bytes() {
    let key = SigningKey::from_bytes(&KEY).unwrap();
    let holder = holder_of(b"certificate");
    for (name, ticket) in tickets() {
        let token = ticket.sign(&key);
        let stored = golden(name, &token);
        let open = |now| Ticket::open(&stored, &key.verifying_key(), &holder, now);
        assert_eq!(open(ISSUED).expect(name), ticket, "{name}: tickets of version 1 must load");
        let late = open(ISSUED + 2 * LIFETIME_SECS).unwrap_err();
        assert_eq!(late.kind(), Kind::Denied, "{name}: {late}");
        assert!(stored == token, "{name}: the ticket changed: version bump required");
    }
}

#[test]
fn a_ticket_of_a_later_version_is_refused_by_name() {
    let key = SigningKey::from_bytes(&KEY).unwrap();
    let [(_, mut ticket), ..] = tickets();
    ticket.version += 1;
    let opened = Ticket::open(&ticket.sign(&key), &key.verifying_key(), &ticket.holder, ISSUED);
    let e = opened.unwrap_err();
    assert_eq!(e.kind(), Kind::Unsupported, "{e}");
    assert!(e.message().contains("version 2"), "{e}");
}

#[test]
fn a_ticket_may_name_any_time() {
    let key = SigningKey::from_bytes(&KEY).unwrap();
    let [(_, mut ticket), ..] = tickets();
    (ticket.issued, ticket.expires) = (u64::MAX, u64::MAX);
    let token = ticket.sign(&key);
    for (now, good) in [(0, false), (u64::MAX, true)] {
        let opened = Ticket::open(&token, &key.verifying_key(), &ticket.holder, now);
        assert_eq!(opened.is_ok_and(|t| t.session_good(now)), good, "at {now}");
    }
}
