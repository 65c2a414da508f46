use super::*;
use proptest::prelude::*;

fn entry(n: u8, offset: u32, len: u32) -> Entry {
    Entry { key: Key { domain: Domain::PUBLIC, digest: Digest::of_chunk(&[n]) }, offset, len }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// These bytes are on people's disks. If this fails the version must go up, and files of the old
/// version must be told apart.
#[test]
fn golden_bytes_version_bump_required() {
    let golden = format!("4642534701000000efcdab0000000000{}8028990f", "00".repeat(44));
    assert_eq!(hex(&header(0xabcdef)), golden);

    let key = |n: u8| Key { domain: Domain::PUBLIC, digest: Digest([n; 32]) };
    let one = Entry { key: key(0x11), offset: 64, len: 100 };
    let two = Entry { key: key(0x22), offset: 164, len: 200 };
    let golden = [
        "11".repeat(32) + "00000000400000006400000000000000",
        "22".repeat(32) + "00000000a4000000c800000000000000",
        "46425345010000000700000000000000020000006c010000".to_owned(),
        "00".repeat(32) + "e4dca4b2bb575379",
    ];
    assert_eq!(hex(&footer(7, &[one, two], 364)), golden.concat());
    assert_eq!(file_name(0xabcdef), "seg-0000000000abcdef");
}

#[test]
fn names_are_read_exactly() {
    assert_eq!(parse_name("seg-00000000000000ff"), Some(255));
    for other in [
        "lock",
        "seg-ff",
        "seg-00000000000000FF",
        "seg-0000000100000000",
        "seg-00000000000000ff.tmp",
        "seg-+0000000000000ff",
        "seg-",
    ] {
        assert_eq!(parse_name(other), None, "{other}");
    }
}

#[test]
fn a_header_is_ours_damaged_or_foreign() {
    let good = header(5);
    assert_eq!(check_header(&good, 5), Header::Good);
    assert_eq!(check_header(&good, 6), Header::Damaged, "another segment's");
    assert_eq!(check_header(&[0; HEADER_LEN], 5), Header::Damaged, "never written");
    for len in 0..HEADER_LEN {
        assert_eq!(check_header(&good[..len], 5), Header::Damaged, "{len} bytes");
    }
    for byte in 0..HEADER_LEN {
        for bit in 0..8 {
            let mut bad = good;
            bad[byte] ^= 1 << bit;
            let found = check_header(&bad, 5);
            let foreign = matches!(found, Header::Foreign(_));
            assert_eq!((found == Header::Good, foreign), (false, byte < 6), "byte {byte}");
        }
    }
    for other in [&b"PK"[..], b"#!/bin/sh", &[0, 1]] {
        assert!(matches!(check_header(other, 5), Header::Foreign(_)));
    }
}

fn parse(bytes: &[u8], id: u32, file_len: u64) -> Result<Vec<Entry>, FormatError> {
    let at = bytes.len().saturating_sub(TRAILER_LEN);
    Trailer::parse(&bytes[at..], id, file_len)?.entries(&bytes[..at])
}

#[test]
fn every_flipped_bit_of_a_footer_is_caught() {
    let entries = [entry(1, 64, 100), entry(2, 164, 200), entry(3, 364, 65)];
    let good = footer(9, &entries, 429);
    let file_len = 429 + good.len() as u64;
    assert_eq!(parse(&good, 9, file_len).unwrap(), entries);
    assert!(parse(&good, 8, file_len).is_err());
    assert!(parse(&good, 9, file_len + 1).is_err());
    for byte in 0..good.len() {
        for bit in 0..8 {
            let mut bad = good.to_vec();
            bad[byte] ^= 1 << bit;
            assert!(parse(&bad, 9, file_len).is_err(), "byte {byte} bit {bit}");
        }
    }
}

#[test]
fn entries_that_do_not_tile_the_frames_are_refused() {
    for entries in [
        [entry(1, 64, 100), entry(2, 165, 199)],
        [entry(1, 65, 99), entry(2, 164, 200)],
        [entry(1, 64, 100), entry(2, 164, 199)],
        [entry(1, 64, 60), entry(2, 124, 240)],
    ] {
        let bytes = footer(9, &entries, 364);
        assert!(parse(&bytes, 9, 364 + bytes.len() as u64).is_err(), "{entries:?}");
    }
}

proptest! {
    #[test]
    fn footers_round_trip(lens in proptest::collection::vec(65u32..100_000, 0..50), id: u32) {
        let mut at = HEADER_LEN as u32;
        let mut entries = Vec::new();
        for (n, len) in lens.into_iter().enumerate() {
            entries.push(entry(n as u8, at, len));
            at += len;
        }
        let bytes = footer(id, &entries, at);
        prop_assert_eq!(bytes.len(), footer_len(entries.len()));
        prop_assert_eq!(parse(&bytes, id, u64::from(at) + bytes.len() as u64).unwrap(), entries);
    }

    #[test]
    fn any_bytes_are_read_or_refused(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        len: u64,
    ) {
        let _ = check_header(&bytes[..bytes.len().min(HEADER_LEN)], 1);
        prop_assert!(parse(&bytes, 1, len).is_err());
    }
}
