//! Verifying a stored image: every place where it is damaged, by name, and repair from another copy
//! where there is one.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use futures::stream::{self, StreamExt};
use image::error::At;
use image::pack::{Entry, PACK_HEADER_LEN, check_pack_header};
use image::{Digest, Error, Kind, Locator, Manifest, PackId, Result, SectionTable, Spot};

use crate::cache::Cache;
use crate::fetch::{Got, Job};
use crate::footers::read_footer;
use crate::keys;
use crate::locate::{is_bad_place, is_lost};
use crate::plan::{Want, coalesce};
use crate::store::{Shared, Store};

/// Footers that are kept while an image is verified, in bytes. Owner: the verification.
const FOOTERS: usize = 16 << 20;

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Sections that were checked.
    pub sections: u64,
    /// Chunks that were checked.
    pub chunks: u64,
    /// Bytes of the frames that were checked; only a deep verification reads them.
    pub bytes: u64,
    /// Bad places that another copy repaired, by name.
    pub repaired: Vec<String>,
    /// Bad places that nothing could repair, by name.
    pub bad: Vec<String>,
}

impl Store {
    /// Verifies an image: its manifest, section tables and locator, and that the footers of the
    /// packs agree; if `deep`, every chunk down to its plain bytes as well. What can be repaired
    /// from another copy is. Fails only if the verification could not be done.
    pub async fn verify(&self, image: &Digest, deep: bool) -> Result<VerifyReport> {
        let (shared, image) = (self.shared.clone(), *image);
        self.run(async move {
            shared.is_here().await?;
            Run::new(&shared, deep).verify(image).await
        })
        .await
    }
}

type Entries = Arc<HashMap<u32, Entry>>;

/// The verification of one image after the other.
pub(crate) struct Run<'a> {
    shared: &'a Shared,
    image: Digest,
    deep: bool,
    report: VerifyReport,
    /// Chunks whose good copy is not where the locator says, by section and chunk.
    moved: BTreeMap<(u32, u32), Spot>,
    footers: Cache<PackId, Entries>,
    /// Packs whose footer is lost, each named once.
    bad_footers: HashMap<PackId, Kind>,
}

impl<'a> Run<'a> {
    pub(crate) fn new(shared: &'a Shared, deep: bool) -> Self {
        Self {
            shared,
            image: Digest::ZERO,
            deep,
            report: VerifyReport::default(),
            moved: BTreeMap::new(),
            footers: Cache::new(FOOTERS),
            bad_footers: HashMap::new(),
        }
    }

    /// Verifies an image. A pack whose footer is lost is named with the first image that leans on it.
    pub(crate) async fn verify(&mut self, image: Digest) -> Result<VerifyReport> {
        // Nothing from memory: what is in the store is to be verified.
        self.shared.forget_image(&image);
        self.shared.facts.forget(|k| *k == image);
        self.image = image;
        self.moved.clear();
        self.report = VerifyReport::default();
        match self.image().await {
            // A bad place of a disk, without which the rest cannot be looked at.
            Err(e) if e.kind() == Kind::Io => self.bad(&e)?,
            other => other?,
        }
        Ok(std::mem::take(&mut self.report))
    }

    async fn image(&mut self) -> Result<()> {
        let manifest = match self.shared.manifest(&self.image).await {
            Ok(manifest) => manifest,
            Err(e) if e.kind() == Kind::Corrupt => return self.bad(&e),
            Err(e) => return Err(e),
        };
        self.locator().await?;
        for (section, digest) in manifest.present() {
            self.shared.tables.forget(|k| *k == digest);
            match self.shared.table_of(&self.image, section).await {
                Ok(table) => self.section(&manifest, section, table).await?,
                Err(e) if is_bad_place(&e) => self.bad(&e.at(format_args!("section {section}")))?,
                Err(e) => return Err(e),
            }
        }
        self.repair().await
    }

    fn bad(&mut self, e: &Error) -> Result<()> {
        self.report.bad.push(e.to_string());
        Ok(())
    }

    /// Names locators that do not parse. One that is made anew here is repaired.
    async fn locator(&mut self) -> Result<()> {
        let (head, next) = self.shared.newest_locator(&self.image).await?;
        let unreadable = head.as_ref().map_or(0, |h| h.seq + 1)..next;
        let names = |seq| format!("{}: unreadable", keys::locator(&self.image, seq));
        let names: Vec<String> = unreadable.map(names).collect();
        if head.is_some() {
            self.report.repaired.extend(names);
            return Ok(());
        }
        let names = if names.is_empty() {
            vec![format!("{}: there is none", keys::locators(&self.image))]
        } else {
            names
        };
        match self.shared.rebuild_locator(&self.image, None).await {
            Ok(_) => self.report.repaired.extend(names),
            Err(e) if is_lost(&e) => self.report.bad.extend(names),
            Err(e) => return Err(e),
        }
        Ok(())
    }

    async fn section(
        &mut self,
        manifest: &Manifest,
        section: u32,
        table: Arc<SectionTable>,
    ) -> Result<()> {
        let before = self.shared.head(&self.image).await?.map(|h| h.seq);
        let spots = self.shared.spots(&self.image, section, &table).await?;
        let after = self.shared.head(&self.image).await?.map(|h| h.seq);
        if let (Some(old), true) = (before, before != after) {
            let key = keys::locator(&self.image, old);
            self.report.repaired.push(format!("{key}: section {section}: unreadable"));
        }
        let job =
            Job { section, geometry: *manifest.geometry(), table, deep: self.deep, last: true };
        let job = Arc::new(job);
        let present = (0u32..).zip(job.table.digests()).filter(|(_, d)| !d.is_zero());
        let mut wants = Vec::new();
        for ((chunk, _), spot) in present.zip(spots) {
            match spot {
                Some(spot) => wants.push(Want { chunk, spot }),
                None => self.bad(&job.nowhere(chunk))?,
            }
        }
        self.report.sections += 1;
        self.report.chunks += wants.len() as u64;
        let doubtful = self.by_footers(&job, &wants).await?;
        if self.deep {
            return self.read(&job, wants).await;
        }
        self.read(&job, doubtful).await
    }

    /// The chunks of which the footers of their packs say something else than the locator, or
    /// whose packs are gone.
    async fn by_footers(&mut self, job: &Job, wants: &[Want]) -> Result<Vec<Want>> {
        let mut doubtful = Vec::new();
        for want in wants {
            let agrees = match self.footer(&want.spot.pack).await? {
                Some(entries) => entries.get(&want.spot.offset).is_some_and(|e| {
                    e.digest == job.table.digests()[want.chunk as usize]
                        && e.stored == want.spot.stored
                        && e.frame_len == want.spot.frame_len
                }),
                None => false,
            };
            if !agrees {
                doubtful.push(*want);
            }
        }
        Ok(doubtful)
    }

    /// The footer of a pack; `None` if it is lost.
    async fn footer(&mut self, id: &PackId) -> Result<Option<Entries>> {
        if let Some(entries) = self.footers.get(id) {
            return Ok(Some(entries));
        }
        if self.bad_footers.contains_key(id) {
            return Ok(None);
        }
        match self.read_footer(id).await {
            Ok(entries) => Ok(Some(entries)),
            Err(e) if is_bad_place(&e) => {
                self.bad_footers.insert(*id, e.kind());
                // A pack that is gone is named by each chunk that was in it.
                if e.kind() != Kind::Gone {
                    self.bad(&e)?;
                }
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    async fn read_footer(&self, id: &PackId) -> Result<Entries> {
        let key = keys::pack(id);
        let len = self.shared.objects.head(&key).await?.len;
        let header = self.shared.objects.range(&key, 0..PACK_HEADER_LEN as u64).await?;
        check_pack_header(&header).at(|| format!("pack {id}: offset 0"))?;
        let footer = read_footer(&self.shared.objects, id, len).await?;
        let bytes = 120 * footer.entries.len();
        let entries: Entries =
            Arc::new(footer.entries.into_iter().map(|e| (e.offset, e)).collect());
        self.footers.insert(*id, entries.clone(), bytes);
        Ok(entries)
    }

    async fn read(&mut self, job: &Arc<Job>, wants: Vec<Want>) -> Result<()> {
        let lens: HashMap<u32, u32> = wants.iter().map(|w| (w.chunk, w.spot.frame_len)).collect();
        let shared = self.shared;
        let mut batches = stream::iter(coalesce(wants))
            .map(|read| shared.fetch(job, read))
            .buffer_unordered(shared.options.limits.reads);
        while let Some(batch) = batches.next().await {
            for got in batch?.chunks.drain(..) {
                self.report.bytes += u64::from(lens.get(&got.chunk).copied().unwrap_or(0));
                self.judge(job.section, got)?;
            }
        }
        Ok(())
    }

    fn judge(&mut self, section: u32, got: Got) -> Result<()> {
        match (got.frame, got.instead) {
            (Err(e), _) if is_bad_place(&e) => self.bad(&e),
            (Err(e), _) => Err(e),
            (Ok(_), Some((spot, error))) => {
                self.moved.insert((section, got.chunk), spot);
                self.report.repaired.push(error.to_string());
                Ok(())
            }
            (Ok(_), None) => Ok(()),
        }
    }

    /// Writes a locator that names the good copies.
    async fn repair(&mut self) -> Result<()> {
        if self.moved.is_empty() {
            return Ok(());
        }
        let mut sections = self.shared.all_spots(&self.image).await?;
        for (section, spots) in &mut sections {
            let table = self.shared.table_of(&self.image, *section).await?;
            let present = (0u32..).zip(table.digests()).filter(|(_, d)| !d.is_zero());
            for ((chunk, _), spot) in present.zip(spots) {
                if let Some(good) = self.moved.get(&(*section, chunk)) {
                    *spot = *good;
                }
            }
        }
        let bytes = Locator::build(&self.image, &sections);
        let written = self.shared.write_locator(&self.image, bytes).await;
        written.map(drop).at(|| format!("image {}: repairing its locator", self.image))
    }
}
