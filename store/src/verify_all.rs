//! Verifying a whole store, or a random sample of it: every image's papers (manifest, tables, locator,
//! and that footers agree), and every pack down to its frames.
//!
//! Images and packs are looked at in an order drawn from a seed, so a run that stops early has looked
//! at a fair sample, and a later one with the same seed goes on where it stopped.

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use image::error::At;
use image::pack::{Entry, PACK_HEADER_LEN, check_pack_header};
use image::{Decoder, Digest, Error, Kind, PackId, Result};

use crate::footers::{check_entry, pieces, read_footer};
use crate::keys::{self, Key, folder};
use crate::locate::{is_bad_place, is_lost};
use crate::objects::blocking;
use crate::store::{Shared, Store};
use crate::verify::Run;

/// Bad places and orphans that a report names; of more it only says how many.
const NAMES: usize = 1000;

/// How a store is verified.
#[derive(Clone, Debug, Default)]
pub struct VerifyAll {
    /// Decode every chunk and check its plain bytes; else CRC32C and BLAKE3 of what is stored.
    pub deep: bool,
    /// Where the order comes from: the same seed, the same order.
    pub seed: u64,
    /// Nothing is begun after so many bytes of packs were read; all if unset.
    pub bytes: Option<u64>,
    /// Nothing is begun after so long, by the store's clock; all if unset.
    pub within: Option<Duration>,
    /// Bytes of packs per second at most; as fast as it goes if unset.
    pub rate: Option<u64>,
    /// Where an earlier run with the same seed ended ([`StoreReport::next`]).
    pub after: Option<String>,
}

/// What a verification of a store found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreReport {
    /// Images that were looked at: manifest, tables, locator, and the footers that it leans on.
    pub images: u64,
    /// Sections of theirs.
    pub sections: u64,
    /// Chunks of theirs of which the locator and the footers agree.
    pub chunks: u64,
    /// Packs that were read whole.
    pub packs: u64,
    /// Frames in them.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Images and packs that there are.
    pub in_all: u64,
    /// Those before which an earlier run ended.
    pub before: u64,
    /// Bad places that were repaired from another copy, by name; the first 1,000.
    pub repaired: Vec<String>,
    /// Bad places that were not, by name; the first 1,000.
    pub bad: Vec<String>,
    /// Number of bad places, named or not.
    pub bad_places: u64,
    /// Packs and tables that no image leans on, by name, the first 1,000: garbage, or of pushes that
    /// are not ended. Known only if the run looked at every image, and could read the papers of each.
    pub orphans: Option<Vec<String>>,
    /// Bytes of those packs.
    pub orphan_bytes: u64,
    /// Where to go on, if it stopped early.
    pub next: Option<String>,
}

impl StoreReport {
    fn bad(&mut self, place: String) {
        self.bad_places += 1;
        if self.bad.len() < NAMES {
            self.bad.push(place);
        }
    }

    fn orphan(&mut self, key: &object_store::path::Path) {
        if let Some(orphans) = self.orphans.as_mut().filter(|o| o.len() < NAMES) {
            orphans.push(key.to_string());
        }
    }
}

impl Store {
    /// Verifies the store, or as much of it as the options give room for. `progress` is called after
    /// each image and pack. What can be repaired of locators is. Memory: 48 bytes per image and pack
    /// that there are, 32 per section; and one piece of a pack.
    ///
    /// Fails only if the verification could not be done: what is bad is in the report.
    pub async fn verify_all(
        &self,
        options: &VerifyAll,
        progress: impl FnMut(&StoreReport) + Send + 'static,
    ) -> Result<StoreReport> {
        let (shared, options) = (self.shared.clone(), options.clone());
        self.run(async move {
            let mut all = All::new(&shared, &options);
            let what = || "verifying the store";
            shared.is_here().await.at(what)?;
            all.verify(progress).await.at(what)?;
            if !all.report.bad.is_empty() {
                // What was not found may be away, not bad.
                shared.is_here().await.at(what)?;
            }
            Ok(all.report)
        })
        .await
    }
}

/// What is looked at as one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Item {
    Image(Digest),
    Pack(PackId, u64),
}

impl Item {
    /// Its place in the order of a seed.
    fn place(&self, seed: u64) -> u64 {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes());
        match self {
            Item::Image(image) => hasher.update(&image.0),
            Item::Pack(id, _) => hasher.update(&id.0),
        };
        let hash = hasher.finalize();
        u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("8 of 32 bytes"))
    }
}

struct All<'a> {
    shared: &'a Shared,
    options: &'a VerifyAll,
    papers: Run<'a>,
    report: StoreReport,
    /// What the images lean on that were looked at.
    tables: HashSet<Digest>,
    packs: HashSet<PackId>,
    /// Whether the papers of an image could not be read: what it leans on is not known then, and
    /// nothing may be called an orphan.
    leans_unknown: bool,
}

impl<'a> All<'a> {
    fn new(shared: &'a Shared, options: &'a VerifyAll) -> Self {
        let report = StoreReport::default();
        let (tables, packs) = (HashSet::new(), HashSet::new());
        let papers = Run::new(shared, false);
        Self { shared, options, papers, report, tables, packs, leans_unknown: false }
    }

    async fn verify(&mut self, mut progress: impl FnMut(&StoreReport)) -> Result<()> {
        let until = self.options.within.map(|t| self.shared.now().saturating_add(t.as_secs()));
        let mut items = self.items().await?;
        self.report.in_all = items.len() as u64;
        let first = self.first(&items)?;
        self.report.before = first as u64;
        for (place, item) in items.drain(..).skip(first) {
            let spent = self.options.bytes.is_some_and(|most| self.report.bytes >= most);
            if spent || until.is_some_and(|t| self.shared.now() >= t) {
                self.report.next = Some(format!("{place:016x}"));
                return Ok(());
            }
            match item {
                Item::Image(image) => self.image(&image).await?,
                Item::Pack(id, len) => self.pack(&id, len).await?,
            }
            progress(&self.report);
        }
        if first == 0 && !self.leans_unknown {
            self.orphans().await?;
        }
        self.ref_log().await
    }

    /// Everything there is to look at, in the order of the seed.
    async fn items(&self) -> Result<Vec<(u64, Item)>> {
        let mut items = Vec::new();
        for name in ["manifests", "packs"] {
            let mut listed = self.shared.objects.list(&folder(name));
            while let Some(object) = listed.try_next().await? {
                let item = match Key::parse(&object.key) {
                    Some(Key::Manifest(image)) => Item::Image(image),
                    Some(Key::Pack(id)) => Item::Pack(id, object.len),
                    _ => continue,
                };
                items.push((item.place(self.options.seed), item));
            }
        }
        items.sort_unstable();
        Ok(items)
    }

    /// Where to begin.
    fn first(&self, items: &[(u64, Item)]) -> Result<usize> {
        let Some(after) = &self.options.after else { return Ok(0) };
        let place = keys::parse_hex(after, 16).ok_or_else(|| {
            let message = format!("`{after}` is not where a verification ended: 16 hex digits");
            Error::new(Kind::Invalid, message)
        })?;
        Ok(items.partition_point(|(p, _)| *p < place))
    }

    async fn image(&mut self, image: &Digest) -> Result<()> {
        let found = match self.papers.verify(*image).await {
            Ok(found) => found,
            // Garbage that was collected since it was listed.
            Err(e) if e.kind() == Kind::Gone => return Ok(()),
            Err(e) if is_lost(&e) => {
                self.report.bad(e.to_string());
                self.leans_unknown = true;
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        self.report.images += 1;
        self.report.sections += found.sections;
        self.report.chunks += found.chunks;
        let room = NAMES.saturating_sub(self.report.repaired.len());
        self.report.repaired.extend(found.repaired.into_iter().take(room));
        found.bad.into_iter().for_each(|bad| self.report.bad(bad));
        match self.shared.manifest(image).await {
            Ok(manifest) => self.tables.extend(manifest.present().map(|(_, digest)| digest)),
            Err(_) => self.leans_unknown = true,
        }
        match self.shared.head(image).await {
            Ok(Some(head)) => self.packs.extend(head.locator.packs()),
            _ => self.leans_unknown = true,
        }
        Ok(())
    }

    async fn pack(&mut self, id: &PackId, len: u64) -> Result<()> {
        match self.frames(id, len).await {
            Ok(()) => {}
            Err(e) if e.kind() == Kind::Gone => return Ok(()),
            Err(e) if is_bad_place(&e) => self.report.bad(e.to_string()),
            Err(e) => return Err(e),
        }
        self.report.packs += 1;
        self.report.bytes += len;
        if let Some(rate) = self.options.rate.filter(|r| *r > 0) {
            tokio::time::sleep(Duration::from_secs_f64(len as f64 / rate as f64)).await;
        }
        Ok(())
    }

    /// Reads a whole pack; each bad frame is named.
    async fn frames(&mut self, id: &PackId, len: u64) -> Result<()> {
        let (objects, key) = (&self.shared.objects, keys::pack(id));
        let header = objects.range(&key, 0..PACK_HEADER_LEN as u64).await?;
        check_pack_header(&header).at(|| format!("pack {id}: offset 0"))?;
        let footer = read_footer(objects, id, len).await?;
        for piece in pieces(&footer.entries) {
            let (first, last) = (piece[0], piece[piece.len() - 1]);
            let range = u64::from(first.offset)..u64::from(last.offset + last.frame_len);
            let bytes = match objects.range(&key, range).await {
                Ok(bytes) => bytes,
                // A bad place of a disk: the rest of the pack may be good.
                Err(e) if e.kind() == Kind::Io => {
                    self.report.bad(format!("pack {id}: offset {}: {e}", first.offset));
                    continue;
                }
                Err(e) => return Err(e),
            };
            let (entries, deep) = (piece.to_vec(), self.options.deep);
            let bad = blocking(move || Ok(bad_frames(&bytes, &entries, deep))).await?;
            for (offset, error) in bad {
                self.report.bad(format!("pack {id}: offset {offset}: {error}"));
            }
            self.report.frames += piece.len() as u64;
        }
        Ok(())
    }

    /// What no image leans on that was looked at: all were.
    async fn orphans(&mut self) -> Result<()> {
        self.report.orphans = Some(Vec::new());
        for name in ["sections", "packs"] {
            let mut listed = self.shared.objects.list(&folder(name));
            while let Some(object) = listed.try_next().await? {
                match Key::parse(&object.key) {
                    Some(Key::Section(digest)) if !self.tables.contains(&digest) => {}
                    Some(Key::Pack(id)) if !self.packs.contains(&id) => {
                        self.report.orphan_bytes += object.len;
                    }
                    _ => continue,
                }
                self.report.orphan(&object.key);
            }
        }
        Ok(())
    }

    async fn ref_log(&mut self) -> Result<()> {
        match self.shared.read_ref_log().await {
            Ok(log) => log.bad.into_iter().for_each(|bad| self.report.bad(bad)),
            Err(e) if is_bad_place(&e) => self.report.bad(e.to_string()),
            Err(e) => return Err(e),
        }
        Ok(())
    }
}

/// The bad frames of a piece of a pack.
fn bad_frames(bytes: &Bytes, entries: &[Entry], deep: bool) -> Vec<(u32, Error)> {
    let start = entries.first().map_or(0, |e| e.offset);
    let (mut decoder, mut plain) = (None, Vec::new());
    let mut check = |entry: &Entry| -> Result<()> {
        let at = (entry.offset - start) as usize;
        let frame = check_entry(bytes.slice(at..at + entry.frame_len as usize), entry)?;
        if deep {
            let decoder = match &mut decoder {
                Some(decoder) => decoder,
                none => none.insert(Decoder::new()?),
            };
            plain.resize(frame.header().plain_len as usize, 0);
            decoder.decode(&frame, &entry.digest, &mut plain)?;
        }
        Ok(())
    };
    entries.iter().filter_map(|e| Some((e.offset, check(e).err()?))).collect()
}
