//! Golden bytes: every format as version 1 wrote it. A change that alters them needs a new format
//! version, and the old files must still load. `FOREBAY_BLESS=1` writes the files of a new version.

use std::path::Path;

use image::record::{Stretch, Unread, Verified};
use image::{
    BootTrace, Decoder, Digest, Footer, Frame, ImageRecord, Locator, Manifest, SectionTable, Touch,
};

fn golden(name: &str, bytes: &[u8]) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("FOREBAY_BLESS").is_some() && !path.exists() {
        std::fs::write(&path, bytes).unwrap();
    }
    let stored = std::fs::read(&path).unwrap();
    assert!(stored == bytes, "{name}: the format changed: version bump required");
    stored
}

#[test]
fn bytes_are_those_of_version_1_and_load() {
    let s = crate::sample::sample();
    let image = s.manifest.identity();
    assert_eq!(
        image.to_string(),
        "095c6ceb8deb439eea09767451522d12b37225bd2b211b0b97739a5bb91ec0ab",
        "the identity of an image changed: every stored name would be lost"
    );
    for (frame, name) in s.frames.iter().zip(["frame-zstd.v1", "frame-raw.v1"]) {
        let stored = Frame::parse(golden(name, frame.bytes()).into()).unwrap();
        stored.check_payload().unwrap();
        let header = stored.header();
        let mut plain = vec![0; header.plain_len as usize];
        Decoder::new().unwrap().decode(&stored, &header.digest, &mut plain).unwrap();
        assert_eq!(&stored, frame);
    }
    let table = golden("section-table.v1", &s.table.to_bytes());
    assert_eq!(SectionTable::parse(&table, &s.table.digest()).unwrap(), s.table);
    let manifest = golden("manifest.v1", &s.manifest.to_bytes());
    assert_eq!(Manifest::parse(&manifest, &image).unwrap(), s.manifest);
    let pack = golden("pack.v1", &s.pack);
    let footer = Footer::parse(&pack[s.footer_at..], pack.len() as u64).unwrap();
    assert_eq!(footer, s.footer);
    let locator = golden("locator.v1", &s.locator);
    let head = Locator::parse(&locator, &image).unwrap();
    let block = head.block(0).unwrap();
    let spots = head.spots(block, &locator[block.offset as usize..]).unwrap();
    assert_eq!(spots.len(), 2);
    assert_eq!(spots[1].offset, s.footer.entries[1].offset);
    let record = String::from_utf8(golden("record.v1", s.record.as_bytes())).unwrap();
    let record = ImageRecord::open(&record, &s.key.verifying_key(), &image).unwrap();
    assert_eq!(record.os.as_deref(), Some("debian 12"));
}

#[test]
fn what_a_record_says_of_bytes_is_as_in_version_1_and_loads() {
    let s = crate::sample::sample();
    let image = s.manifest.identity();
    let mut record = ImageRecord::new(image, 1_700_000_000);
    record.unread = Unread::of((0..300).map(|n| Stretch { start: n << 20, len: 4096 }));
    let (by, at) = ("receiver".to_owned(), 1_700_000_001);
    let verified = Verified { by, at, sections: 16, chunks: 500, bytes: 77_000, taken_over: 12 };
    record.verified = Some(verified);
    let stored = String::from_utf8(golden("record-bytes.v1", record.sign(&s.key).as_bytes()));
    let stored = ImageRecord::open(&stored.unwrap(), &s.key.verifying_key(), &image).unwrap();
    assert_eq!(stored, record);
    let unread = stored.unread.unwrap();
    assert_eq!((unread.bytes, unread.stretches, unread.first.len()), (300 * 4096, 300, 256));
}

#[test]
fn a_boot_trace_is_that_of_version_1_and_loads() {
    let touch = |chunk, at, seen| Touch { chunk, at, seen };
    let touches = vec![touch(0, 0, 3), touch(1, 4, 3), touch(70_000, 200, 1), touch(2, 20_000, 2)];
    let trace = BootTrace::new(Digest::of_chunk(b"image"), 3, touches).unwrap();
    let stored = golden("boot-trace.v1", &trace.to_bytes());
    assert_eq!(BootTrace::parse(&stored).unwrap(), trace);
}
