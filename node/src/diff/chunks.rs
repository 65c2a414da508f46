//! Which bytes of two images differ, by manifests and section tables alone.
//!
//! Only sections whose digests differ are looked at. Zeros have a digest of their own, so what is zeros on either side
//! is known as well. Where one disk is longer, all behind the end of the other differs.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use image::error::At;
use image::{
    ChunkSource, Digest, Error, Geometry, Kind, Manifest, ReadContext, Result, SectionTable,
};
use serde::{Deserialize, Serialize};

use crate::patience::Patience;

/// Sections whose tables are asked for at the same time.
const LOOK_UPS: usize = 8;
/// Ranges that are told at most: 16 MiB of them.
const MAX_SPANS: usize = 1 << 20;

/// An image, and who gives its digests.
pub struct Side<'a, S> {
    /// The source.
    pub source: &'a S,
    /// The image.
    pub image: Digest,
    /// By what id requests are known.
    pub trace: u128,
}

/// Bytes of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// The first.
    pub start: u64,
    /// How many.
    pub len: u64,
}

/// What is known of one of the two images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SideReport {
    /// The image.
    pub image: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Its chunk length in bytes.
    pub chunk: u64,
    /// Of the bytes that differ: how many are zeros here.
    pub zeros: u64,
    /// Of the bytes that differ: how many lie behind the end here.
    pub absent: u64,
}

/// What differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The image that is compared with.
    pub old: SideReport,
    /// The image that is compared.
    pub new: SideReport,
    /// Sections in which something differs.
    pub sections: u64,
    /// Chunks that differ.
    pub chunks: u64,
    /// Their bytes; the longer counts, where one ends within.
    pub bytes: u64,
    /// Where they are, in order, merged where they touch.
    pub spans: Vec<Span>,
    /// Bytes that differ in spans that are too many to be told.
    pub untold: u64,
}

impl Difference {
    fn new(old: SideReport, new: SideReport) -> Self {
        Self { old, new, sections: 0, chunks: 0, bytes: 0, spans: Vec::new(), untold: 0 }
    }

    /// Whether something in these bytes may differ.
    pub fn touches(&self, bytes: &std::ops::Range<u64>) -> bool {
        let first = self.spans.partition_point(|span| span.start + span.len <= bytes.start);
        let hit = self.spans.get(first).is_some_and(|span| span.start < bytes.end);
        hit || self.untold > 0
    }

    fn add(&mut self, start: u64, len: u64, chunks: u64) {
        self.bytes += len;
        self.chunks += chunks;
        let full = self.spans.len() >= MAX_SPANS;
        match self.spans.last_mut() {
            Some(last) if self.untold == 0 && last.start + last.len == start => last.len += len,
            _ if full => self.untold += len,
            _ => self.spans.push(Span { start, len }),
        }
    }
}

/// One image's part in a section.
struct Part<'a> {
    geometry: Geometry,
    /// Without one all is zeros, or behind the end.
    table: Option<&'a SectionTable>,
}

impl Part<'_> {
    fn chunk(&self, section: u32, chunk: u32) -> (u64, Digest) {
        let digest = self.table.and_then(|t| t.digests().get(chunk as usize).copied());
        let len = self.geometry.chunk_len_at(section, chunk) as u64;
        (len, digest.unwrap_or(Digest::ZERO))
    }
}

/// Compares the chunks of one section.
fn compare(section: u32, old: &Part<'_>, new: &Part<'_>, difference: &mut Difference) {
    let before = difference.chunks;
    if old.table.is_none() && new.table.is_none() {
        compare_zeros(section, old, new, difference);
    } else {
        let chunks = old.geometry.chunks_in(section).max(new.geometry.chunks_in(section));
        for chunk in 0..chunks {
            let ((was, old_digest), (is, new_digest)) =
                (old.chunk(section, chunk), new.chunk(section, chunk));
            let same = old_digest == new_digest;
            if same && was == is {
                continue;
            }
            // Of the same digest and other lengths are only zeros.
            let from = if same { was.min(is) } else { 0 };
            let to = was.max(is);
            difference.add(old.geometry.chunk_start(section, chunk) + from, to - from, 1);
            count(&mut difference.old, from..to, was, old_digest.is_zero());
            count(&mut difference.new, from..to, is, new_digest.is_zero());
        }
    }
    difference.sections += u64::from(difference.chunks > before);
}

/// The same where there are only zeros, without a look at each chunk.
fn compare_zeros(section: u32, old: &Part<'_>, new: &Part<'_>, difference: &mut Difference) {
    let (was, is) = (old.geometry.section_len(section), new.geometry.section_len(section));
    let (from, to) = (was.min(is), was.max(is));
    if from == to {
        return;
    }
    let chunk = old.geometry.chunk_len() as u64;
    let chunks = to.div_ceil(chunk) - from / chunk;
    difference.add(old.geometry.section_start(section) + from, to - from, chunks);
    count(&mut difference.old, from..to, was, true);
    count(&mut difference.new, from..to, is, true);
}

/// Of the bytes `range` differ; the side has `len` of them, zeros or not.
fn count(side: &mut SideReport, range: std::ops::Range<u64>, len: u64, zeros: bool) {
    let end = len.clamp(range.start, range.end);
    side.absent += range.end - end;
    if zeros {
        side.zeros += end - range.start;
    }
}

/// Compares two images. `progress` is told of bytes that were looked at, and of how many there are.
///
/// # Errors
///
/// [`Kind::Unsupported`] if their chunks are not equally long, or their trust domains differ; what the sources say.
pub async fn differences<S: ChunkSource, T: ChunkSource>(
    old: &Side<'_, S>,
    new: &Side<'_, T>,
    mut progress: impl FnMut(u64, u64),
) -> Result<Difference> {
    let (was, is) = futures::try_join!(old.manifest(), new.manifest())?;
    comparable(&was, &is)?;
    let mut difference = Difference::new(old.report(&was), new.report(&is));
    let size = was.geometry().size().max(is.geometry().size());
    let all = was.geometry().sections().max(is.geometry().sections());
    let equal = |section: &u32| {
        let of = |m: &Manifest| (m.section(*section), m.geometry().section_len(*section));
        of(&was) == of(&is)
    };
    let tables = futures::stream::iter((0..all).filter(|section| !equal(section)))
        .map(async |section| {
            let tables = futures::try_join!(old.table(&was, section), new.table(&is, section))?;
            Ok::<_, Error>((section, tables))
        })
        .buffered(LOOK_UPS);
    let mut tables = std::pin::pin!(tables);
    while let Some((section, (before, now))) = tables.try_next().await? {
        let before = Part { geometry: *was.geometry(), table: before.as_deref() };
        let now = Part { geometry: *is.geometry(), table: now.as_deref() };
        compare(section, &before, &now, &mut difference);
        progress(was.geometry().section_start(section + 1).min(size), size);
    }
    Ok(difference)
}

fn comparable(old: &Manifest, new: &Manifest) -> Result<()> {
    let unsupported = |what: String| Err(Error::new(Kind::Unsupported, what));
    let (was, is) = (old.geometry().chunk_len() >> 10, new.geometry().chunk_len() >> 10);
    if was != is {
        return unsupported(format!(
            "their chunks are not equally long ({was} KiB and {is} KiB), so digests cannot be compared: import one \
             of the disks again with --chunk-size {was}KiB or {is}KiB"
        ));
    }
    if old.domain() != new.domain() {
        return unsupported("they are of different trust domains".into());
    }
    Ok(())
}

impl<S: ChunkSource> Side<'_, S> {
    fn context(&self) -> ReadContext {
        ReadContext { trace: self.trace, ..ReadContext::default() }
    }

    pub(super) async fn manifest(&self) -> Result<Arc<Manifest>> {
        let ctx = self.context();
        let ask = async || self.source.manifest(&ctx, &self.image).await;
        Patience::with_busy().ask(ask).await.at(|| format!("image {}", self.image))
    }

    /// The table of a section; none for one of zeros, or behind the end.
    pub(super) async fn table(
        &self,
        manifest: &Manifest,
        section: u32,
    ) -> Result<Option<Arc<SectionTable>>> {
        if manifest.section(section).is_none_or(|digest| digest.is_zero()) {
            return Ok(None);
        }
        let ctx = self.context();
        let ask = async || self.source.section_table(&ctx, &self.image, section).await;
        let table = Patience::new().ask(ask).await;
        table.map(Some).at(|| format!("image {}: section {section}", self.image))
    }

    fn report(&self, manifest: &Manifest) -> SideReport {
        let geometry = manifest.geometry();
        SideReport {
            image: self.image,
            size: geometry.size(),
            chunk: geometry.chunk_len() as u64,
            zeros: 0,
            absent: 0,
        }
    }
}

#[cfg(test)]
#[path = "chunks_tests.rs"]
mod tests;
