//! Where an image's chunks lie: reading its locator, and making it anew from the chunk index.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use image::error::At;
use image::locator::FIXED_LEN;
use image::manifest::MAX_MANIFEST;
use image::section::MAX_TABLE;
use image::{
    Digest, Error, FormatError, Kind, Locator, Manifest, PackId, Result, SectionTable, Spot,
};

use crate::index::Lookup;
use crate::keys::{self, Key};
use crate::objects::Listed;
use crate::rewrites::standing;
use crate::store::Shared;

/// Read at the start of a locator in the hope that the whole head is in it: 300 sections, 19 GiB.
const HEAD: u64 = 16 << 10;
/// An image whose locator could not be made anew is not tried again for so many seconds.
const LOST_SECS: u64 = 60;

/// The head of the locator that counts.
pub(crate) struct Head {
    /// Its number: the highest one that parses.
    pub(crate) seq: u64,
    pub(crate) locator: Locator,
}

impl Shared {
    /// An image's manifest, checked against its identity.
    pub(crate) async fn manifest(&self, image: &Digest) -> Result<Arc<Manifest>> {
        if let Some(manifest) = self.manifests.get(image) {
            return Ok(manifest);
        }
        let key = keys::manifest(image);
        let bytes = self.objects.get(&key, MAX_MANIFEST).await?;
        let manifest = Arc::new(Manifest::parse(&bytes, image).at(|| &key)?);
        self.manifests.insert(*image, manifest.clone(), 100 + 32 * manifest.sections().len());
        Ok(manifest)
    }

    /// The table of a section that is not zeros, checked against the section's digest.
    pub(crate) async fn table(&self, digest: &Digest) -> Result<Arc<SectionTable>> {
        if let Some(table) = self.tables.get(digest) {
            return Ok(table);
        }
        let key = keys::section(digest);
        let bytes = self.objects.get(&key, MAX_TABLE).await?;
        let table = Arc::new(SectionTable::parse(&bytes, digest).at(|| &key)?);
        self.keep_table(digest, &table);
        Ok(table)
    }

    pub(crate) fn keep_table(&self, digest: &Digest, table: &Arc<SectionTable>) {
        self.tables.insert(*digest, table.clone(), 100 + 32 * table.digests().len());
    }

    /// The table of any section of an image.
    pub(crate) async fn table_of(&self, image: &Digest, section: u32) -> Result<Arc<SectionTable>> {
        let manifest = self.manifest(image).await?;
        match manifest.section(section) {
            None => Err(no_section(&manifest, section)),
            Some(digest) if digest.is_zero() => {
                let chunks = manifest.geometry().chunks_in(section);
                Ok(Arc::new(SectionTable::zeros(manifest.domain(), chunks)))
            }
            Some(digest) => {
                let table = self.table(&digest).await?;
                if table.chunks() != manifest.geometry().chunks_in(section) {
                    let e = FormatError::Mismatch { what: "section table", which: "length" };
                    return Err(e).at(|| keys::section(&digest));
                }
                Ok(table)
            }
        }
    }

    /// The head of the locator that counts; `None` if none parses.
    pub(crate) async fn head(&self, image: &Digest) -> Result<Option<Arc<Head>>> {
        if let Some(head) = self.heads.get(image) {
            return Ok(Some(head));
        }
        Ok(self.newest_locator(image).await?.0)
    }

    /// The head of the locator that counts, and the number of the next one.
    pub(crate) async fn newest_locator(&self, image: &Digest) -> Result<(Option<Arc<Head>>, u64)> {
        let mut listed = self.objects.list_sorted(&keys::locators(image)).await?;
        listed.retain(|o| matches!(Key::parse(&o.key), Some(Key::Locator(..))));
        let seq = |o: &Listed| match Key::parse(&o.key) {
            Some(Key::Locator(_, seq)) => seq,
            _ => 0,
        };
        let next = listed.last().map_or(0, |o| seq(o) + 1);
        for object in listed.iter().rev() {
            match self.read_head(object, image).await {
                Ok(locator) => {
                    let head = Arc::new(Head { seq: seq(object), locator });
                    self.keep_head(image, &head);
                    return Ok((Some(head), next));
                }
                Err(error) if is_bad_place(&error) => {
                    tracing::warn!(%error, "a locator is unreadable; trying the one before");
                }
                Err(e) => return Err(e),
            }
        }
        Ok((None, next))
    }

    fn keep_head(&self, image: &Digest, head: &Arc<Head>) {
        let locator = &head.locator;
        let bytes = 200 + 16 * locator.packs().len() + 56 * locator.blocks().len();
        self.heads.insert(*image, head.clone(), bytes);
    }

    async fn read_head(&self, object: &Listed, image: &Digest) -> Result<Locator> {
        let key = &object.key;
        let mut bytes = self.objects.range(key, 0..object.len.min(HEAD)).await?;
        let need = Locator::head_len(&bytes[..bytes.len().min(FIXED_LEN)]).at(|| key)? as u64;
        if need > bytes.len() as u64 {
            bytes = self.objects.range(key, 0..need).await?;
        }
        let locator = Locator::parse(&bytes[..need as usize], image).at(|| key)?;
        let end = locator.blocks().last().map_or(need, |b| b.offset + b.len());
        if end != object.len {
            let (what, have) = ("locator", object.len as usize);
            return Err(FormatError::Truncated { what, need: end as usize, have }).at(|| key);
        }
        Ok(locator)
    }

    /// Where the chunks of a section lie, one spot per chunk that is not zeros, in order; `None`
    /// for those that no pack holds. A locator that is lost or damaged is made anew.
    pub(crate) async fn spots(
        &self,
        image: &Digest,
        section: u32,
        table: &Arc<SectionTable>,
    ) -> Result<Vec<Option<Spot>>> {
        let bad = match self.head(image).await? {
            Some(head) => match self.block(image, &head, section, table).await {
                Ok(spots) => return Ok(spots.iter().copied().map(Some).collect()),
                Err(e) if is_bad_place(&e) => Some((head.seq, e)),
                Err(e) => return Err(e),
            },
            None => None,
        };
        if let Some((_, error)) = &bad {
            tracing::warn!(%error, "a locator is damaged; making it anew");
        }
        match self.rebuild_locator(image, bad.map(|(seq, _)| seq)).await {
            Ok(head) => {
                let spots = self.block(image, &head, section, table).await?;
                Ok(spots.iter().copied().map(Some).collect())
            }
            Err(e) if !self.has_index() => Err(e),
            Err(error) => {
                tracing::warn!(%error, "the locator cannot be made anew; going by the chunk index");
                let (table, rewritten) = (table.clone(), self.rewrites.from());
                let look = move |l: &Lookup| Ok(section_spots(l, &table, &rewritten)?.collect());
                self.indexed(move |i| i.look(look)).await
            }
        }
    }

    async fn block(
        &self,
        image: &Digest,
        head: &Head,
        section: u32,
        table: &SectionTable,
    ) -> Result<Arc<Vec<Spot>>> {
        let at = (*image, head.seq, section);
        if let Some(spots) = self.blocks.get(&at) {
            return Ok(spots);
        }
        let key = keys::locator(image, head.seq);
        let place = || format!("{key}: section {section}");
        let wrong = |which| Err(FormatError::Mismatch { what: "locator", which }).at(place);
        let Some(block) = head.locator.block(section) else {
            return wrong("list of sections");
        };
        let present = table.digests().iter().filter(|d| !d.is_zero()).count();
        if block.spots as usize != present {
            return wrong("number of chunks");
        }
        let bytes = self.objects.range(&key, block.offset..block.offset + block.len()).await?;
        let spots = Arc::new(head.locator.spots(block, &bytes).at(place)?);
        self.blocks.insert(at, spots.clone(), 100 + size_of::<Spot>() * spots.len());
        Ok(spots)
    }

    /// Makes an image's locator anew from the chunk index, unless somebody just did: `bad` is the
    /// number of the one that was found wanting.
    pub(crate) async fn rebuild_locator(
        &self,
        image: &Digest,
        bad: Option<u64>,
    ) -> Result<Arc<Head>> {
        let _one_at_a_time = self.rebuilding.lock().await;
        let (head, _) = self.newest_locator(image).await?;
        if let Some(head) = head.filter(|h| bad != Some(h.seq)) {
            return Ok(head);
        }
        if !self.has_index() {
            let message = format!(
                "image {image}: there is no locator that can be read, and it cannot be made anew where \
                 the store is only read; `forebay verify` has it made anew"
            );
            return Err(Error::new(Kind::Corrupt, message));
        }
        if self.lost.get(image).is_some_and(|at| self.now() < at.saturating_add(LOST_SECS)) {
            let message = format!("image {image}: its locator could not be made anew a moment ago");
            return Err(Error::new(Kind::Corrupt, message));
        }
        self.is_here().await?;
        self.refresh_index_if_old().await?;
        let bytes = self.locator_by_index(image).await.inspect_err(|_| {
            self.lost.insert(*image, self.now(), 64);
        })?;
        self.write_locator(image, bytes).await
    }

    /// A whole locator.
    pub(crate) async fn locator_bytes(&self, image: &Digest, head: &Head) -> Result<Bytes> {
        let key = keys::locator(image, head.seq);
        let len = self.objects.head(&key).await?.len;
        self.objects.get(&key, len as usize).await
    }

    /// Every spot of an image, section by section, by its locator; one that is damaged is made
    /// anew. 56 bytes per chunk, which the caller owns.
    pub(crate) async fn all_spots(&self, image: &Digest) -> Result<Vec<(u32, Vec<Spot>)>> {
        let mut bad = None;
        for _ in 0..2 {
            let head = match self.head(image).await? {
                Some(head) if bad != Some(head.seq) => head,
                _ => self.rebuild_locator(image, bad).await?,
            };
            match self.spots_of(image, &head).await {
                Err(e) if is_bad_place(&e) => bad = Some(head.seq),
                other => return other,
            }
        }
        let message = format!("image {image}: its locator is damaged as soon as it is made");
        Err(Error::new(Kind::Corrupt, message))
    }

    async fn spots_of(&self, image: &Digest, head: &Head) -> Result<Vec<(u32, Vec<Spot>)>> {
        let key = keys::locator(image, head.seq);
        let bytes = self.locator_bytes(image, head).await?;
        let blocks = head.locator.blocks().iter().map(|block| {
            let (start, end) = (block.offset as usize, (block.offset + block.len()) as usize);
            let bytes = bytes.get(start..end).unwrap_or_default();
            let spots = head.locator.spots(block, bytes).at(|| &key)?;
            Ok((block.section, spots))
        });
        blocks.collect()
    }

    /// Writes the next locator of an image; it counts from now on.
    pub(crate) async fn write_locator(&self, image: &Digest, bytes: Bytes) -> Result<Arc<Head>> {
        let locator = Locator::parse(&bytes, image)?;
        let (_, mut seq) = self.newest_locator(image).await?;
        loop {
            match self.objects.create(&keys::locator(image, seq), bytes.clone()).await {
                Ok(()) => break,
                // Another writer of the same image was first.
                Err(e) if e.kind() == Kind::Conflict => seq += 1,
                Err(e) => return Err(e),
            }
        }
        self.forget_locator(image);
        let head = Arc::new(Head { seq, locator });
        self.keep_head(image, &head);
        Ok(head)
    }
}

/// Whether the bytes are lost for good: another copy is needed.
pub(crate) fn is_lost(e: &Error) -> bool {
    matches!(e.kind(), Kind::Corrupt | Kind::Gone | Kind::Unsupported)
}

/// Whether the bytes cannot be had from this place: lost for good, or in a bad place of a disk. Not if it
/// is the store that is away, or refuses.
pub(crate) fn is_bad_place(e: &Error) -> bool {
    is_lost(e) || e.kind() == Kind::Io
}

pub(crate) fn no_section(manifest: &Manifest, section: u32) -> Error {
    let n = manifest.geometry().sections();
    Error::new(Kind::Invalid, format!("section {section}: the image has {n} sections"))
}

/// Spots of a section by the index. Chunks that follow each other on the disk are taken from the
/// same pack where possible, so that they can be read together.
pub(crate) fn section_spots(
    lookup: &Lookup,
    table: &SectionTable,
    rewritten: &HashSet<PackId>,
) -> Result<impl Iterator<Item = Option<Spot>> + use<>> {
    let mut last = None;
    let present = table.digests().iter().filter(|d| !d.is_zero());
    let spots = present.map(|digest| {
        let copies = standing(lookup.copies(table.domain(), digest)?, rewritten);
        let copy = copies.iter().find(|c| Some(c.pack) == last).or(copies.first());
        last = copy.map(|c| c.pack).or(last);
        Ok(copy.map(|c| c.spot()))
    });
    Ok(spots.collect::<Result<Vec<_>>>()?.into_iter())
}

/// The same, if every chunk is somewhere.
pub(crate) fn whole_section(
    lookup: &Lookup,
    table: &SectionTable,
    rewritten: &HashSet<PackId>,
    place: impl Fn(u32) -> String,
) -> Result<Vec<Spot>> {
    let present = (0u32..).zip(table.digests()).filter(|(_, d)| !d.is_zero());
    let spots =
        present.zip(section_spots(lookup, table, rewritten)?).map(|((chunk, digest), spot)| {
            spot.ok_or_else(|| {
                let message = format!("{}: no pack holds chunk {digest}", place(chunk));
                Error::new(Kind::Corrupt, message)
            })
        });
    spots.collect()
}
