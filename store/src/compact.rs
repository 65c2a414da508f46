//! Rewriting packs: what is live in mostly dead or small packs is copied into new ones, and the
//! locators of the images follow. The old packs are then reached by nothing, and go the way of all
//! garbage: a later run condemns them, and one that is at least the grace later deletes them. Who
//! reads by an old locator finds the frames until then, and reads the locator anew after that.
//!
//! ```text
//! mark (what images reach: bits per pack) → plan → for each new pack: record → put, read back, index
//!      → for each image that names a rewritten pack: next locator, made from the index
//! ```
//! # Why nothing is lost
//!
//! Nothing is deleted here. A crash leaves, at worst, a record without its pack, a new pack that no
//! locator names yet (the next run's locators will), or a locator more. Whether a rewritten pack may
//! be condemned is decided like for every pack, by what images reach at that time: it stays while the
//! newest locator of an image names it, or while it holds the only known copy of a live chunk (see
//! `rewrites`). A push that leans on a rewritten pack is safe as the `session` module argues, with
//! «the newest locator names it» in the place of «the manifest is there»: both come after the
//! writer's checks and before its session ends.
//!
//! So names may move while packs are rewritten. What images reach was marked before that: an image
//! that was named since is not seen here. It keeps its locator, and the chunks that only it has are
//! not copied: they stay where they are, in packs that the next run finds to hold their only copy.
//!
//! It runs under a mark of gc like the deleting does, and ends within one life of a session: no two
//! runs copy the same pack, and none deletes while another rewrites.

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use image::error::At;
use image::pack::{Entry, PACK_HEADER_LEN, PackBuilder, check_pack_header};
use image::{Digest, Error, Frame, Kind, Locator, PackId, Result, Spot};

use crate::compact_plan::{Compaction, Group, PackUse, plan};
use crate::footers::{check_entry, read_footer};
use crate::gc::GcReport;
use crate::keys::{self, Key, folder};
use crate::locate::{is_bad_place, whole_section};
use crate::mark::{Live, Reached};
use crate::packer::fly;
use crate::plan::{Want, coalesce};
use crate::rewrites::{Rewrite, out_of_time, record_key};
use crate::store::Shared;

/// A run of it.
pub(crate) struct Compactor<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) options: &'a Compaction,
    /// The name of the run of gc.
    pub(crate) run: &'a str,
    /// By the store's own clock, in seconds: nothing is begun after it.
    pub(crate) until: u64,
    pub(crate) reached: &'a Reached,
    pub(crate) report: &'a mut GcReport,
}

impl Compactor<'_> {
    /// What would be done, into the report. Packs for which `is_young` holds are left alone: they may
    /// be part of something unfinished.
    pub(crate) async fn plan(&mut self, is_young: impl Fn(u64) -> bool) -> Result<Vec<Group>> {
        let mut packs = Vec::new();
        let mut listed = self.shared.objects.list(&folder("packs"));
        while let Some(object) = listed.try_next().await? {
            let Some(Key::Pack(id)) = Key::parse(&object.key) else { continue };
            if let Some(live) = self.reached.live(&id).filter(|_| !is_young(object.modified)) {
                let Live { domain, bytes, frames, .. } = *live;
                packs.push(PackUse { id, domain, len: object.len, live: bytes, frames });
            }
        }
        let mut groups = plan(packs, self.options, self.shared.options.limits.pack as u64);
        let mut budget = self.options.max_bytes;
        let all = groups.len();
        groups.retain(|g| {
            let fits = budget > 0;
            budget = budget.saturating_sub(if fits { g.room() } else { 0 });
            fits
        });
        self.report.unfinished |= groups.len() < all;
        for group in &groups {
            self.report.rewritten += group.from.len() as u64;
            self.report.rewritten_bytes += group.len();
            self.report.written += 1;
            self.report.written_bytes += group.room().min(group.len());
        }
        Ok(groups)
    }

    /// Rewrites, and lets the images follow.
    pub(crate) async fn execute(&mut self, groups: Vec<Group>) -> Result<()> {
        self.report.rewritten = 0;
        self.report.rewritten_bytes = 0;
        self.report.written = 0;
        self.report.written_bytes = 0;
        let done = match self.rewrite_all(groups).await {
            Ok(()) => self.relocate_all().await,
            other => other,
        };
        match done {
            Err(e) if e.kind() == Kind::Retry && self.is_late() => {
                self.report.unfinished = true;
                Ok(())
            }
            other => other,
        }
    }

    fn is_late(&self) -> bool {
        self.shared.now() >= self.until
    }

    fn in_time(&self) -> Result<()> {
        if self.is_late() { Err(out_of_time()) } else { Ok(()) }
    }

    async fn rewrite_all(&mut self, groups: Vec<Group>) -> Result<()> {
        for (n, group) in groups.into_iter().enumerate() {
            self.in_time()?;
            self.rewrite(n, group).await?;
        }
        Ok(())
    }

    /// Makes one new pack. Memory: the pack, and a piece of at most 4 MiB of an old one.
    async fn rewrite(&mut self, n: usize, group: Group) -> Result<()> {
        let mut builder = PackBuilder::new(group.domain);
        let (mut from, mut len, mut has) = (Vec::new(), 0, HashSet::new());
        for pack in &group.from {
            match self.live_frames(pack).await {
                Ok(frames) => {
                    from.push(pack.id.to_string());
                    len += pack.len;
                    for frame in frames.iter().filter(|f| has.insert(f.header().digest)) {
                        builder.push(frame);
                    }
                }
                Err(error) if is_bad_place(&error) => {
                    tracing::warn!(%error, "gc: a pack cannot be rewritten, and is left alone");
                    self.report.bad_packs += 1;
                }
                Err(e) => return Err(e),
            }
        }
        if builder.is_empty() {
            return Ok(());
        }
        let to = PackId((self.shared.options.ids)());
        let (parts, footer) = builder.finish();
        let written: u64 = parts.iter().map(|p| p.len() as u64).sum();
        let rewrite = Rewrite { at: self.shared.now(), from, to: to.to_string() };
        let packs = rewrite.from.len() as u64;
        let key = record_key(self.run, n);
        self.shared.rewrites.add(&self.shared.objects, key, rewrite).await?;
        fly(self.shared, to, parts, footer, Vec::new()).await?;
        self.report.rewritten += packs;
        self.report.rewritten_bytes += len;
        self.report.written += 1;
        self.report.written_bytes += written;
        self.pace(2 * written).await;
        Ok(())
    }

    /// The frames of a pack that are live, each checked as when it was written. They own their bytes.
    async fn live_frames(&self, pack: &PackUse) -> Result<Vec<Frame>> {
        let (objects, id) = (&self.shared.objects, &pack.id);
        let key = keys::pack(id);
        let header = objects.range(&key, 0..PACK_HEADER_LEN as u64).await?;
        let domain = check_pack_header(&header).at(|| format!("pack {id}: offset 0"))?;
        let footer = read_footer(objects, id, pack.len).await?;
        if domain != pack.domain || footer.domain != pack.domain {
            let message = format!("pack {id}: it is of another trust domain than its chunks");
            return Err(Error::new(Kind::Corrupt, message));
        }
        let live = self.reached.live(id);
        let wants: Vec<Want> = (0u32..)
            .zip(&footer.entries)
            .filter(|(n, _)| live.is_some_and(|l| l.has(*n)))
            .map(|(n, e)| Want { chunk: n, spot: spot(id, e) })
            .collect();
        let mut frames = Vec::with_capacity(wants.len());
        for read in coalesce(wants) {
            let range = u64::from(read.range.start)..u64::from(read.range.end);
            let bytes = objects.range(&key, range).await?;
            self.pace(bytes.len() as u64).await;
            for want in &read.wants {
                let entry = &footer.entries[want.chunk as usize];
                let at = (entry.offset - read.range.start) as usize;
                let own = Bytes::copy_from_slice(&bytes[at..at + entry.frame_len as usize]);
                let frame = check_entry(own, entry);
                frames.push(frame.at(|| format!("pack {id}: offset {}", entry.offset))?);
            }
        }
        Ok(frames)
    }

    /// Sleeps as long as so many bytes may take.
    async fn pace(&self, bytes: u64) {
        if let Some(rate) = self.options.rate.filter(|r| *r > 0) {
            tokio::time::sleep(Duration::from_secs_f64(bytes as f64 / rate as f64)).await;
        }
    }

    /// Gives every image that names a rewritten pack a locator that does not, where it can do without.
    async fn relocate_all(&mut self) -> Result<()> {
        if self.shared.rewrites.from().is_empty() {
            return Ok(());
        }
        for image in self.reached.image_ids() {
            self.in_time()?;
            match self.relocate(image).await {
                Ok(moved) => self.report.relocated += u64::from(moved),
                Err(error) if is_bad_place(&error) => {
                    tracing::warn!(%error, "gc: an image keeps its locator");
                }
                Err(e) => return Err(e).at(|| format!("image {image}")),
            }
        }
        Ok(())
    }

    async fn relocate(&self, image: &Digest) -> Result<bool> {
        let rewritten = self.shared.rewrites.from();
        let (Some(head), _) = self.shared.newest_locator(image).await? else { return Ok(false) };
        let old = head.locator.packs().iter().filter(|p| rewritten.contains(*p)).count();
        if old == 0 {
            return Ok(false);
        }
        let bytes = self.shared.locator_by_index(image).await?;
        let new = Locator::parse(&bytes, image)?;
        let still = new.packs().iter().filter(|p| rewritten.contains(*p)).count();
        if still >= old {
            return Ok(false);
        }
        self.in_time()?;
        self.shared.write_locator(image, bytes).await.map(|_| true)
    }
}

fn spot(pack: &PackId, entry: &Entry) -> Spot {
    let Entry { offset, frame_len, stored, .. } = *entry;
    Spot { pack: *pack, offset, frame_len, stored }
}

impl Shared {
    /// A locator of an image as the index would have it. Its size is 44 bytes per chunk, which the
    /// caller owns.
    pub(crate) async fn locator_by_index(&self, image: &Digest) -> Result<Bytes> {
        let manifest = self.manifest(image).await?;
        let mut sections = Vec::new();
        for (section, digest) in manifest.present() {
            let table = self.table(&digest).await?;
            let place = move |c| format!("section {section} chunk {c}");
            let rewritten = self.rewrites.from();
            let look = move |i: &crate::index::Index| {
                i.look(|l| whole_section(l, &table, &rewritten, place))
            };
            sections.push((section, self.indexed(look).await.at(|| format!("image {image}"))?));
        }
        Ok(Locator::build(image, &sections))
    }
}
