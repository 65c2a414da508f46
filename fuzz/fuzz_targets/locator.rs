//! Locators: what is accepted has blocks inside the object and spots inside packs.
#![no_main]

use image::{Digest, Locator};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = Locator::head_len(data);
    // The image is part of the head: take it from there, so that the rest is reached.
    let image = data.get(8..40).and_then(|d| d.try_into().ok()).map_or(Digest::ZERO, Digest);
    let Ok(locator) = Locator::parse(data, &image) else { return };
    for block in locator.blocks() {
        let at = usize::try_from(block.offset).unwrap_or(usize::MAX);
        let end = at.saturating_add(block.len() as usize);
        if let Some(bytes) = data.get(at..end)
            && let Ok(spots) = locator.spots(block, bytes)
        {
            assert_eq!(spots.len(), block.spots as usize);
        }
    }
});
