//! Pack headers, trailers and footers: what is accepted describes frames that lie inside the pack.
#![no_main]

use image::pack::{Footer, Trailer, check_pack_header};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = check_pack_header(data);
    let Some((len, footer)) = data.split_first_chunk::<4>() else { return };
    let len = u64::from(u32::from_le_bytes(*len));
    let _ = Trailer::parse(footer, len);
    if let Ok(footer) = Footer::parse(footer, len) {
        let ends = footer.entries.iter().map(|e| u64::from(e.offset) + u64::from(e.frame_len));
        assert!(ends.max().unwrap_or(0) <= len);
    }
});
