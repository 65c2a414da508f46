//! The mark phase of gc: what images reach.

use std::collections::{HashMap, HashSet};

use futures::TryStreamExt;
use image::error::At;
use image::{Digest, Domain, Kind, PackId, Result};

use crate::index::Copy;
use crate::keys::{Key, folder};
use crate::locate::is_lost;
use crate::rewrites::standing;
use crate::store::Shared;

/// What a set of images reaches. Memory: 32 bytes per image and section, 64 per pack, one bit per
/// chunk. Owner: the run of gc.
///
/// A pack is reached if it holds a chunk of an image, whether or not a locator leans on that copy:
/// a second copy is what a damaged one is repaired from. One that was rewritten is reached only if a
/// locator that counts names it, or if it holds the only copy of a chunk.
#[derive(Default)]
pub(crate) struct Reached {
    images: HashSet<Digest>,
    sections: HashSet<Digest>,
    packs: HashSet<PackId>,
    /// By the index: what is live in which pack.
    live: HashMap<PackId, Live>,
    /// The locator that counts; none if none parses, and then all are reached.
    locators: HashMap<Digest, u64>,
}

/// What is live in a pack.
#[derive(Clone, Debug)]
pub(crate) struct Live {
    pub(crate) domain: Domain,
    /// Length of its live frames.
    pub(crate) bytes: u64,
    /// Number of its live frames.
    pub(crate) frames: u64,
    /// Which of its entries, a bit each.
    bits: Vec<u64>,
}

impl Live {
    /// Whether an entry is live.
    pub(crate) fn has(&self, entry: u32) -> bool {
        self.bits.get(entry as usize / 64).is_some_and(|word| word >> (entry % 64) & 1 == 1)
    }

    fn add(&mut self, copy: &Copy) {
        if self.has(copy.number) {
            return;
        }
        let word = copy.number as usize / 64;
        self.bits.resize(self.bits.len().max(word + 1), 0);
        self.bits[word] |= 1 << (copy.number % 64);
        self.bytes += u64::from(copy.frame_len);
        self.frames += 1;
    }
}

/// An image in the store: whether its manifest is there, and when it was last committed or kept
/// (seconds since 1970).
pub(crate) type ImageTimes = HashMap<Digest, (bool, u64)>;

impl Reached {
    /// Marks from the roots, which must be readable, from images that recent ref moves name, and
    /// from those whose objects are young.
    pub(crate) async fn by_names(
        shared: &Shared,
        roots: &[Digest],
        times: &ImageTimes,
        is_young: impl Fn(u64) -> bool + Send + Sync,
    ) -> Result<Self> {
        let mut reached = Self::default();
        for image in roots {
            reached.add(shared, image).await.at(|| {
                format!("image {image}, which a ref names, cannot be read, so nothing is removed")
            })?;
        }
        let young = times.iter().filter(|(_, (exists, at))| *exists && is_young(*at));
        let mut others: Vec<Digest> = young.map(|(image, _)| *image).collect();
        others.extend(shared.recently_named(&is_young).await?);
        reached.add_readable(shared, others).await?;
        Ok(reached)
    }

    /// Adds what can be read of images that no name depends on.
    pub(crate) async fn add_readable(
        &mut self,
        shared: &Shared,
        images: impl IntoIterator<Item = Digest>,
    ) -> Result<()> {
        for image in images {
            match self.add(shared, &image).await {
                Ok(()) => {}
                Err(error) if is_lost(&error) => {
                    tracing::warn!(%image, %error, "gc: an image without a name cannot be read");
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Number of images.
    pub(crate) fn images(&self) -> usize {
        self.images.len()
    }

    /// The images themselves.
    pub(crate) fn image_ids(&self) -> impl Iterator<Item = &Digest> {
        self.images.iter()
    }

    /// What is live in a pack, by the index; none if nothing is.
    pub(crate) fn live(&self, pack: &PackId) -> Option<&Live> {
        self.live.get(pack)
    }

    /// Whether something leans on an object.
    pub(crate) fn has(&self, key: &Key) -> bool {
        match key {
            Key::Pack(id) => self.packs.contains(id) || self.live.contains_key(id),
            Key::Section(digest) => self.sections.contains(digest),
            Key::Manifest(image) | Key::Record(image) => self.images.contains(image),
            Key::Locator(image, seq) => {
                let counts = self.locators.get(image).is_none_or(|s| s == seq);
                self.images.contains(image) && counts
            }
        }
    }

    async fn add(&mut self, shared: &Shared, image: &Digest) -> Result<()> {
        if self.images.contains(image) {
            return Ok(());
        }
        let manifest = shared.manifest(image).await;
        if manifest.as_ref().is_err_and(|e| e.kind() == Kind::Gone) {
            return manifest.map(drop);
        }
        self.images.insert(*image);
        if let (Some(head), _) = shared.newest_locator(image).await? {
            self.locators.insert(*image, head.seq);
            self.packs.extend(head.locator.packs());
        }
        for (_, digest) in manifest?.present() {
            if self.sections.insert(digest) {
                self.add_chunks(shared, &digest).await?;
            }
        }
        Ok(())
    }

    /// Adds what packs hold of the chunks of a section.
    async fn add_chunks(&mut self, shared: &Shared, section: &Digest) -> Result<()> {
        let table = shared.table(section).await?;
        let (domain, rewritten) = (table.domain(), shared.rewrites.from());
        let copies = shared.indexed(move |index| {
            index.look(|lookup| {
                let mut all = Vec::new();
                for digest in table.digests().iter().filter(|d| !d.is_zero()) {
                    all.extend(standing(lookup.copies(domain, digest)?, &rewritten));
                }
                Ok(all)
            })
        });
        for copy in copies.await? {
            let none = || Live { domain, bytes: 0, frames: 0, bits: Vec::new() };
            self.live.entry(copy.pack).or_insert_with(none).add(&copy);
        }
        Ok(())
    }
}

/// Lists the images.
pub(crate) async fn image_times(shared: &Shared) -> Result<ImageTimes> {
    let mut times = ImageTimes::new();
    for name in ["locators", "manifests"] {
        let mut listed = shared.objects.list(&folder(name));
        while let Some(object) = listed.try_next().await? {
            let Some(key) = Key::parse(&object.key) else { continue };
            let Some(image) = key.image() else { continue };
            let entry = times.entry(*image).or_insert((false, 0));
            entry.0 |= matches!(key, Key::Manifest(_));
            entry.1 = entry.1.max(object.modified);
        }
    }
    Ok(times)
}
