//! Pack headers, trailers and footers: what is accepted describes frames that lie inside the pack.
//!
//! The bytes are taken as they are, and with their checksums put right: else hardly a mutant would
//! get past those.
#![no_main]

mod index_sum;

use image::FormatError;
use image::pack::{Footer, TRAILER_LEN, Trailer, check_pack_header};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = check_pack_header(data);
    let Some((len, footer)) = data.split_first_chunk::<4>() else { return };
    let len = u64::from(u32::from_le_bytes(*len));
    let _ = check(footer, len);
    let mut sealed = footer.to_vec();
    let Some(fitting) = seal(&mut sealed) else { return };
    for len in [len, fitting] {
        let refused = check(&sealed, len).err();
        assert!(!matches!(refused, Some(FormatError::Mismatch { .. })), "{refused:?}");
    }
});

fn check(footer: &[u8], len: u64) -> Result<(), FormatError> {
    let _ = Trailer::parse(footer, len);
    let footer = Footer::parse(footer, len)?;
    let ends = footer.entries.iter().map(|e| u64::from(e.offset) + u64::from(e.frame_len));
    assert!(ends.max().unwrap_or(0) <= len);
    Ok(())
}

/// Puts BLAKE3 and CRC32C right; the length of the pack whose end this would be.
fn seal(footer: &mut [u8]) -> Option<u64> {
    let len = footer.len() as u64;
    let (entries, trailer) = footer.split_at_mut(footer.len().checked_sub(TRAILER_LEN)?);
    let sum = index_sum::index_sum(&[entries, &trailer[..28]]);
    trailer[28..60].copy_from_slice(&sum);
    let crc = crc32c::crc32c(&trailer[..60]);
    trailer[60..].copy_from_slice(&crc.to_le_bytes());
    let entries_at = u32::from_le_bytes(trailer[16..20].try_into().unwrap());
    Some(u64::from(entries_at) + len)
}
