//! Locators: what is accepted has blocks inside the object and spots inside packs.
//!
//! The bytes are taken as they are, and with their checksums put right: else hardly a mutant would
//! get past those.
#![no_main]

mod index_sum;

use image::locator::FIXED_LEN;
use image::{Digest, FormatError, Locator};
use libfuzzer_sys::fuzz_target;

/// Length of a directory entry; its block's digest is the last of it.
const ENTRY: usize = 48;
/// Length of a spot.
const SPOT: usize = 44;

fuzz_target!(|data: &[u8]| {
    let _ = check(data);
    let mut sealed = data.to_vec();
    if seal(&mut sealed).is_some() {
        let refused = check(&sealed).err();
        assert!(!matches!(refused, Some(FormatError::Mismatch { .. })), "{refused:?}");
    }
});

fn check(data: &[u8]) -> Result<(), FormatError> {
    // The image is part of the head: take it from there, so that the rest is reached.
    let image = data.get(8..40).and_then(|d| d.try_into().ok()).map_or(Digest::ZERO, Digest);
    let locator = Locator::parse(data, &image)?;
    for block in locator.blocks() {
        let at = usize::try_from(block.offset).unwrap_or(usize::MAX);
        let end = at.saturating_add(block.len() as usize);
        let Some(bytes) = data.get(at..end) else { continue };
        let spots = locator.spots(block, bytes)?;
        assert_eq!(spots.len(), block.spots as usize);
        assert!(spots.iter().all(|s| locator.packs().contains(&s.pack)));
    }
    Ok(())
}

/// Puts the blocks' digests right where a block is there, and the head's.
fn seal(data: &mut [u8]) -> Option<()> {
    let len = Locator::head_len(data).ok().filter(|len| *len <= data.len())?;
    let packs = u32::from_le_bytes(data[40..44].try_into().unwrap()) as usize;
    let (head, _) = data.split_at_mut(len - 32);
    let entries = FIXED_LEN + 16 * packs..head.len();
    for at in entries.step_by(ENTRY) {
        let field = |i: usize| u32::from_le_bytes(data[at + i..at + i + 4].try_into().unwrap());
        let (spots, offset) = (field(4) as usize, field(8) as usize);
        let Some(block) = data.get(offset..offset.saturating_add(spots * SPOT)) else { continue };
        let sum = index_sum::index_sum(&[block]);
        data[at + 16..at + ENTRY].copy_from_slice(&sum);
    }
    let sum = index_sum::index_sum(&[&data[..len - 32]]);
    data[len - 32..len].copy_from_slice(&sum);
    Some(())
}
