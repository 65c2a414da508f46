//! Every flipped bit and every truncation of every format is caught, and nothing panics.

use image::pack::check_pack_header;
use image::{Footer, FormatError, ImageRecord, Locator, Manifest, SectionTable};

/// `read` must succeed on `good`, and fail on each one-bit change and each shorter prefix of it.
fn hostile(what: &str, good: &[u8], read: impl Fn(&[u8]) -> Result<(), FormatError>) {
    read(good).unwrap();
    let mut bytes = good.to_vec();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            bytes[at] ^= 1 << bit;
            assert!(read(&bytes).is_err(), "{what}: bit {bit} of byte {at}");
            bytes[at] ^= 1 << bit;
        }
        assert!(read(&good[..at]).is_err(), "{what}: cut at {at}");
    }
    bytes.push(0);
    assert!(read(&bytes).is_err(), "{what}: one byte more");
}

#[test]
fn section_table() {
    let s = crate::sample::sample();
    let digest = s.table.digest();
    hostile("table", &s.table.to_bytes(), |b| SectionTable::parse(b, &digest).map(drop));
}

#[test]
fn manifest() {
    let s = crate::sample::sample();
    let image = s.manifest.identity();
    hostile("manifest", &s.manifest.to_bytes(), |b| Manifest::parse(b, &image).map(drop));
}

#[test]
fn pack_footer_and_header() {
    let s = crate::sample::sample();
    let len = s.pack.len() as u64;
    hostile("footer", &s.pack[s.footer_at..], |b| Footer::parse(b, len).map(drop));
    hostile("pack header", &s.pack[..16], |b| match b.len() {
        16 => check_pack_header(b).map(drop),
        n => Err(FormatError::Trailing { what: "pack header", extra: n }),
    });
}

#[test]
fn locator() {
    let s = crate::sample::sample();
    let image = s.manifest.identity();
    hostile("locator", &s.locator, |b| {
        let head = Locator::parse(b, &image)?;
        head.blocks().iter().try_for_each(|block| {
            let bytes = b.get(block.offset as usize..).unwrap_or_default();
            head.spots(block, bytes).map(drop)
        })
    });
}

#[test]
fn record() {
    let s = crate::sample::sample();
    let (key, image) = (s.key.verifying_key(), s.manifest.identity());
    hostile("record", s.record.as_bytes(), |b| {
        let bad = || FormatError::Text { what: "record", why: "not UTF-8".into() };
        let text = std::str::from_utf8(b).map_err(|_| bad())?;
        ImageRecord::open(text, &key, &image).map(drop)
    });
}

#[test]
fn a_valid_part_of_another_image_is_refused() {
    let s = crate::sample::sample();
    let other = image::Digest::of_chunk(b"another image");
    assert!(Manifest::parse(&s.manifest.to_bytes(), &other).is_err());
    assert!(SectionTable::parse(&s.table.to_bytes(), &other).is_err());
    assert!(Locator::parse(&s.locator, &other).is_err());
    assert!(ImageRecord::open(&s.record, &s.key.verifying_key(), &other).is_err());
}

#[test]
fn huge_counts_are_refused_before_anything_is_allocated() {
    let s = crate::sample::sample();
    for at in 0..64 {
        let mut bytes = s.manifest.to_bytes().to_vec();
        let end = (at + 4).min(bytes.len());
        bytes[at..end].fill(0xff);
        assert!(Manifest::parse_unverified(&bytes).is_err() || at >= 33, "manifest at {at}");
        let mut bytes = s.locator.to_vec();
        bytes[at..at + 4].fill(0xff);
        assert!(Locator::parse(&bytes, &s.manifest.identity()).is_err(), "locator at {at}");
    }
    let mut table = s.table.to_bytes().to_vec();
    table[12..16].fill(0xff);
    assert!(SectionTable::parse_unverified(&table).is_err());
}
