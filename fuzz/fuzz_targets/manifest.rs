//! Manifests and section tables: what is accepted is canonical, and its digest vouches for it.
#![no_main]

use image::{Manifest, SectionTable};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(manifest) = Manifest::parse_unverified(data) {
        assert_eq!(manifest.to_bytes(), data);
        assert_eq!(Manifest::parse(data, &manifest.identity()).unwrap(), manifest);
        let chunks = |s| manifest.geometry().chunks_in(s);
        assert!((0..manifest.geometry().sections().min(64)).all(|s| chunks(s) > 0));
    }
    if let Ok(table) = SectionTable::parse_unverified(data) {
        assert_eq!(table.to_bytes(), data);
        assert_eq!(SectionTable::parse(data, &table.digest()).unwrap(), table);
    }
});
