//! What to ask for: the places of an image's chunks.

use std::sync::Arc;

use image::{ChunkSet, Digest, Manifest, Place, SectionTable};

/// Chunks of 256 KiB that a pull asks for together.
const TOGETHER: usize = 16;

/// The sections that are not zeros.
pub fn sections(manifest: &Manifest) -> Vec<u32> {
    let all = (0u32..).zip(manifest.sections());
    all.filter(|(_, digest)| !digest.is_zero()).map(|(section, _)| section).collect()
}

/// The chunks of a section that are not zeros.
pub fn chunks(table: &SectionTable) -> Vec<u32> {
    let all = (0u32..).zip(table.digests());
    all.filter(|(_, digest)| !digest.is_zero()).map(|(chunk, _)| chunk).collect()
}

/// Some chunks of a section.
pub fn place(image: Digest, section: u32, table: &SectionTable, some: &[u32]) -> Place {
    let mut chunks = ChunkSet::empty(table.chunks());
    some.iter().for_each(|chunk| chunks.insert(*chunk));
    Place { image, section, chunks }
}

/// All of a section, in requests as a pull makes them.
pub fn requests(image: Digest, section: u32, table: &Arc<SectionTable>) -> Vec<Place> {
    let cut = chunks(table);
    cut.chunks(TOGETHER).map(|some| place(image, section, table, some)).collect()
}
