//! What can be said of a stored image without anybody's word.

use image::{Digest, Geometry, Result};

use crate::store::{Shared, Store};

/// Size and make-up of a stored image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageFacts {
    /// Its disk.
    pub geometry: Geometry,
    /// Sections that are not zeros.
    pub sections_present: u32,
    /// Chunks that are not zeros.
    pub chunks_present: u64,
    /// Bytes of the frames that it leans on, each counted once, shared with other images or not.
    pub stored: u64,
}

impl Store {
    /// Facts of an image.
    pub async fn facts(&self, image: &Digest) -> Result<ImageFacts> {
        let (shared, image) = (self.shared.clone(), *image);
        self.read(async move { shared.facts(&image).await }).await
    }
}

impl Shared {
    async fn facts(&self, image: &Digest) -> Result<ImageFacts> {
        // An image never changes, and nor does what it leans on but for repairs.
        if let Some(facts) = self.facts.get(image) {
            return Ok(facts);
        }
        let manifest = self.manifest(image).await?;
        let spots = self.all_spots(image).await?;
        let chunks_present = spots.iter().map(|(_, s)| s.len() as u64).sum();
        let mut frames: Vec<_> = spots
            .iter()
            .flat_map(|(_, spots)| spots)
            .map(|s| (s.pack, s.offset, s.frame_len))
            .collect();
        frames.sort_unstable();
        frames.dedup();
        let facts = ImageFacts {
            geometry: *manifest.geometry(),
            sections_present: manifest.present().count() as u32,
            chunks_present,
            stored: frames.iter().map(|(_, _, len)| u64::from(*len)).sum(),
        };
        self.facts.insert(*image, facts, 150);
        Ok(facts)
    }
}
