//! What of one image is the same in another, by digests alone.

use image::{Digest, Result};

use crate::store::{Shared, Store};

impl Store {
    /// Which of these chunks (numbers on the disk) of an image are the same in another. Chunks of zeros, of
    /// which nothing is stored, are left out where they are met. None are the same if chunks are not equally
    /// long.
    pub async fn unchanged(
        &self,
        image: &Digest,
        before: &Digest,
        chunks: Vec<u64>,
    ) -> Result<Vec<u64>> {
        let (shared, image, before) = (self.shared.clone(), *image, *before);
        self.read(async move { shared.unchanged(&image, &before, chunks).await }).await
    }
}

impl Shared {
    async fn unchanged(
        &self,
        image: &Digest,
        before: &Digest,
        mut chunks: Vec<u64>,
    ) -> Result<Vec<u64>> {
        let (new, old) = (self.manifest(image).await?, self.manifest(before).await?);
        let geometry = new.geometry();
        if old.geometry().chunk_log2() != geometry.chunk_log2() {
            return Ok(Vec::new());
        }
        let per_section = u64::from(geometry.chunks_per_section());
        let mut same = Vec::with_capacity(chunks.len());
        chunks.sort_unstable();
        for chunks in chunks.chunk_by(|a, b| a / per_section == b / per_section) {
            let Ok(section) = u32::try_from(chunks[0] / per_section) else { continue };
            let (Some(now), Some(was)) = (new.section(section), old.section(section)) else {
                continue;
            };
            if now.is_zero() || was.is_zero() {
                continue;
            }
            if now == was {
                same.extend(chunks);
                continue;
            }
            let (now, was) =
                (self.table_of(image, section).await?, self.table_of(before, section).await?);
            same.extend(chunks.iter().filter(|chunk| {
                let within = (*chunk % per_section) as usize;
                let (now, was) = (now.digests().get(within), was.digests().get(within));
                now == was && now.is_some_and(|digest| !digest.is_zero())
            }));
        }
        Ok(same)
    }
}
