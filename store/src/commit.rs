//! Committing an image: everything it leans on is made sure of, then the locator is written, then
//! the manifest. The image exists when its manifest does.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use image::error::At;
use image::record::Verified;
use image::{Digest, Error, Kind, Locator, Manifest, PackId, Result, SectionTable, Spot};

use crate::index::Lookup;
use crate::keys;
use crate::objects::Created;
use crate::receiver::{Incoming, Sealed};
use crate::rewrites::standing;
use crate::session::{Leans, WriterSession};
use crate::store::{Shared, Store};

impl Incoming {
    pub(crate) async fn commit(&self, manifest: &Manifest) -> Result<Digest> {
        let image = manifest.identity();
        let mut committed = self.committed.lock().await;
        if *committed == Some(image) {
            return Ok(image);
        }
        self.check_manifest(manifest)?;
        let place = || format!("committing image {image}");
        self.shared.is_here().await.at(place)?;
        self.writer.renew().await.at(place)?;
        let (locator, leans) = self.locate(&image, manifest).await.at(place)?;
        self.writer.secure(&leans).await.at(place)?;
        self.shared.write_locator(&image, locator).await.at(place)?;
        self.publish(&image, manifest, &leans).await.at(place)?;
        *committed = Some(image);
        self.shared.verified.insert(image, self.verified(manifest), size_of::<Verified>());
        self.writer.end().await;
        Ok(image)
    }

    /// What this session has verified of what it has sealed.
    fn verified(&self, manifest: &Manifest) -> Verified {
        let (by, at) = ("receiver".to_owned(), self.shared.now());
        let none = Verified { by, at, sections: 0, chunks: 0, bytes: 0, taken_over: 0 };
        let sealed = manifest.present().filter_map(|(section, _)| self.sealed(section));
        sealed.fold(none, |all, Sealed { present, read_back: (chunks, bytes), .. }| Verified {
            sections: all.sections + 1,
            chunks: all.chunks + chunks,
            bytes: all.bytes + bytes,
            taken_over: all.taken_over + u64::from(present).saturating_sub(chunks),
            ..all
        })
    }

    fn check_manifest(&self, manifest: &Manifest) -> Result<()> {
        self.plan.admits(manifest)?;
        let geometry = manifest.geometry();
        for (section, digest) in manifest.present() {
            let invalid = |why: &str| {
                Err(Error::new(Kind::Invalid, format!("manifest: section {section} {why}")))
            };
            let Some(sealed) = self.sealed(section) else {
                return invalid("was not sealed in this session");
            };
            if sealed.digest != digest {
                return invalid("was sealed with another digest");
            }
            let last = sealed.chunks - 1;
            let last_len = geometry.chunk_len_at(section, last) as u32;
            if sealed.chunks != geometry.chunks_in(section)
                || sealed.last_len.is_some_and(|len| len != last_len)
            {
                return invalid("does not end where the disk, or the section, ends");
            }
        }
        Ok(())
    }

    /// Lays out the locator from the packs that this session leans on. Its size is 44 bytes per
    /// chunk; the session owns it until it is written.
    async fn locate(&self, image: &Digest, manifest: &Manifest) -> Result<(Bytes, Leans)> {
        let packs = Arc::new(self.packs());
        let mut leans = Leans::default();
        let (mut sections, mut leant_on) = (Vec::new(), HashSet::new());
        for (section, digest) in manifest.present() {
            let table = self.shared.table(&digest).await.map_err(taken_away)?;
            let (allowed, rewritten) = (packs.clone(), self.shared.rewrites.from());
            let spots = self
                .shared
                .indexed(move |index| {
                    index.look(|lookup| section_spots(lookup, &table, &allowed, &rewritten))
                })
                .await
                .at(|| format!("section {section}"))?;
            leans.existing.insert(keys::section(&digest));
            leant_on.extend(spots.iter().map(|spot| spot.pack));
            sections.push((section, spots));
        }
        leans.existing.extend(leant_on.iter().map(keys::pack));
        leans.making.insert(keys::manifest(image));
        Ok((Locator::build(image, &sections), leans))
    }

    /// Creates the manifest while the session lives.
    async fn publish(&self, image: &Digest, manifest: &Manifest, leans: &Leans) -> Result<()> {
        let left = self.writer.remaining().await?;
        let (key, bytes) = (keys::manifest(image), manifest.to_bytes());
        let creating = self.shared.objects.create_same(&key, &bytes);
        let created = tokio::time::timeout(left, creating).await.map_err(|_| {
            let message = "creating the manifest took longer than the session lives; push again";
            Error::new(Kind::Retry, message)
        })??;
        if self.writer.remaining().await.is_ok() {
            return Ok(());
        }
        // It lapsed while the manifest was being created. gc counts it as live for a while longer,
        // so this is only for a clock that jumped: make sure once more, or take it back.
        let again = self.shared.check_existing(leans).await;
        if again.is_err() && created == Created::New {
            self.shared.objects.delete(&key).await?;
        }
        again
    }
}

/// What was there when the section was sealed is gone: the push must begin again.
fn taken_away(e: Error) -> Error {
    match e.kind() {
        Kind::Gone => Error::new(Kind::Conflict, format!("{e}; push again")),
        _ => e,
    }
}

/// Where a section's chunks lie in the packs that the session leans on, or, if the index knows none of
/// those any more, in others; those of one pack together where there is a choice.
fn section_spots(
    lookup: &Lookup,
    table: &SectionTable,
    allowed: &HashSet<PackId>,
    rewritten: &HashSet<PackId>,
) -> Result<Vec<Spot>> {
    let mut last = None;
    let present = (0u32..).zip(table.digests()).filter(|(_, d)| !d.is_zero());
    let spots = present.map(|(chunk, digest)| {
        let mut copies = standing(lookup.copies(table.domain(), digest)?, rewritten);
        if copies.iter().any(|c| allowed.contains(&c.pack)) {
            copies.retain(|c| allowed.contains(&c.pack));
        }
        let copy = copies.iter().find(|c| Some(c.pack) == last).or(copies.first());
        let copy = copy.ok_or_else(|| {
            let message = format!("chunk {chunk} is no longer where it was stored; push again");
            Error::new(Kind::Conflict, message)
        })?;
        last = Some(copy.pack);
        Ok(copy.spot())
    });
    spots.collect()
}

impl Store {
    /// Keeps an image that gc may have condemned: to be called before a ref is moved to an image
    /// that was not committed just now. Afterwards the image is safe for the grace of gc, as if it
    /// had just been committed. Gone if it is being removed already.
    pub async fn keep(&self, image: &Digest) -> Result<()> {
        let (shared, image) = (self.shared.clone(), *image);
        self.run(async move {
            let writer = WriterSession::open(shared.clone()).await?;
            let kept = shared.keep(&writer, &image).await.at(|| format!("keeping image {image}"));
            writer.end().await;
            kept
        })
        .await
    }
}

impl Shared {
    async fn keep(&self, writer: &WriterSession, image: &Digest) -> Result<()> {
        // Not from memory: another process may have removed it.
        self.forget_image(image);
        let manifest = self.manifest(image).await?;
        let head = match self.head(image).await? {
            Some(head) => head,
            None => self.rebuild_locator(image, None).await?,
        };
        let mut leans = Leans::default();
        leans.existing.insert(keys::manifest(image));
        leans.existing.extend(manifest.present().map(|(_, digest)| keys::section(&digest)));
        leans.existing.extend(head.locator.packs().iter().map(keys::pack));
        writer.secure(&leans).await?;
        // A young locator is what tells gc that the image is in use.
        let bytes = self.locator_bytes(image, &head).await?;
        self.write_locator(image, bytes).await.map(drop)
    }
}
