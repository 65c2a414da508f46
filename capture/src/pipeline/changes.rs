//! What is not read of a disk, because it is known to be as in an image: the sections of the new image are put
//! together of what was read and of that image's section tables.

use std::ops::Range;
use std::sync::Arc;

use image::{
    ChunkSource, Digest, Domain, Error, Geometry, Kind, Manifest, Priority, ReadContext, Result,
    SectionTable,
};

/// An image that a disk was made from.
#[derive(Clone, Debug)]
pub struct Ancestor<S> {
    /// Its manifest.
    pub manifest: Arc<Manifest>,
    /// Has its section tables.
    pub source: S,
}

impl<S> Ancestor<S> {
    /// Where it, or a disk of `size` bytes that was made from it, ends within a chunk of the other: the offset of the
    /// shorter one's last byte. The two have another chunk there, whether it was written to or not.
    pub fn edge(&self, size: u64) -> Option<u64> {
        let geometry = self.manifest.geometry();
        let end = size.min(geometry.size());
        let within = end > 0 && !end.is_multiple_of(geometry.chunk_len() as u64);
        (size != geometry.size() && within).then(|| end - 1)
    }
}

/// What may have changed on a disk.
#[derive(Clone, Debug)]
pub struct Changes<S> {
    /// In bytes, in rising order. Whole chunks are read.
    pub ranges: Vec<Range<u64>>,
    /// What the rest of the disk is as; zeros if there is none.
    pub ancestor: Option<Ancestor<S>>,
}

/// What is read of a disk, and what comes of the rest.
pub(super) trait Reading {
    /// What is to be read of a disk of so many bytes, in rising order.
    fn ranges(&self, size: u64) -> Vec<Range<u64>>;

    /// Whether most of what is read will have to be sent, of an image that has a parent or not.
    fn expects_new(&self, has_parent: bool) -> bool;

    /// Sections of which nothing is read, and which are not zeros for that.
    fn untouched(&self) -> Vec<u32>;

    /// The table of a section, of that of what was read. Not all that was read need be in it.
    async fn complete(&self, section: u32, read: SectionTable) -> Result<SectionTable>;
}

/// All of it.
pub(super) struct All;

impl Reading for All {
    fn ranges(&self, size: u64) -> Vec<Range<u64>> {
        std::iter::once(0..size).collect()
    }

    fn expects_new(&self, has_parent: bool) -> bool {
        !has_parent
    }

    fn untouched(&self) -> Vec<u32> {
        Vec::new()
    }

    async fn complete(&self, _section: u32, read: SectionTable) -> Result<SectionTable> {
        Ok(read)
    }
}

/// What has changed.
pub(super) struct Changed<'a, S> {
    ancestor: Option<&'a Ancestor<S>>,
    context: ReadContext,
    domain: Domain,
    geometry: Geometry,
    /// Whole pieces, in rising order; neighbours do not touch.
    ranges: Vec<Range<u64>>,
    /// The same in whole chunks: what else lies in these pieces has not changed, and may be changing now.
    taken: Vec<Range<u64>>,
}

impl<'a, S> Changed<'a, S> {
    /// Of a disk with this geometry, which is read `piece` bytes at a time.
    ///
    /// # Errors
    ///
    /// [`Kind::Invalid`] if the ancestor is cut into other chunks, or of another domain.
    pub(super) fn new(
        changes: &'a Changes<S>,
        geometry: Geometry,
        domain: Domain,
        piece: usize,
        context: ReadContext,
    ) -> Result<Self> {
        let Changes { ranges, ancestor } = changes;
        let ancestor = ancestor.as_ref();
        let mut ranges = ranges.clone();
        if let Some(Ancestor { manifest, .. }) = ancestor {
            let (ours, theirs) = (geometry.chunk_log2(), manifest.geometry().chunk_log2());
            if ours != theirs || manifest.domain() != domain {
                let what = format!("image {} is cut in another way", manifest.identity());
                return Err(Error::new(Kind::Invalid, what));
            }
            let edge = ancestor.and_then(|ancestor| ancestor.edge(geometry.size()));
            ranges.extend(edge.map(|edge| edge..edge + 1));
        }
        let context = ReadContext { priority: Priority::Background, ..context };
        let taken = whole(ranges, geometry.chunk_len() as u64, geometry.size());
        let ranges = whole(taken.clone(), piece as u64, geometry.size());
        Ok(Self { ancestor, context, domain, geometry, ranges, taken })
    }

    fn is_taken(&self, section: u32, chunk: u32) -> bool {
        let at = self.geometry.chunk_start(section, chunk);
        let after = self.taken.partition_point(|range| range.end <= at);
        self.taken.get(after).is_some_and(|range| range.start <= at)
    }
}

/// Rounds ranges of a disk of `size` bytes to whole pieces, and joins those that touch.
pub fn whole(mut ranges: Vec<Range<u64>>, piece: u64, size: u64) -> Vec<Range<u64>> {
    ranges.sort_by_key(|range| range.start);
    let mut all: Vec<Range<u64>> = Vec::new();
    for range in ranges.into_iter().filter(|range| !range.is_empty()) {
        let start = range.start - range.start % piece;
        let end = range.end.next_multiple_of(piece).min(size);
        match all.last_mut() {
            Some(last) if start <= last.end => last.end = last.end.max(end),
            _ => all.push(start..end),
        }
    }
    all
}

impl<S: ChunkSource> Reading for Changed<'_, S> {
    fn ranges(&self, _size: u64) -> Vec<Range<u64>> {
        self.ranges.clone()
    }

    /// Without an ancestor all is read.
    fn expects_new(&self, has_parent: bool) -> bool {
        self.ancestor.is_some() || !has_parent
    }

    fn untouched(&self) -> Vec<u32> {
        let of_ancestor = |section: &u32| {
            let manifest = self.ancestor.map(|ancestor| &ancestor.manifest);
            manifest.and_then(|m| m.section(*section)).is_some_and(|digest| !digest.is_zero())
        };
        (0..self.geometry.sections()).filter(of_ancestor).collect()
    }

    async fn complete(&self, section: u32, read: SectionTable) -> Result<SectionTable> {
        let ancestor = self.ancestor.filter(|a| section < a.manifest.geometry().sections());
        let as_before = match ancestor {
            Some(Ancestor { manifest, source }) => {
                let image = manifest.identity();
                Some(source.section_table(&self.context, &image, section).await?)
            }
            None => None,
        };
        let digest = |table: Option<&SectionTable>, chunk: u32| {
            table.and_then(|t| t.digests().get(chunk as usize)).copied().unwrap_or(Digest::ZERO)
        };
        let digests = (0..self.geometry.chunks_in(section)).map(|chunk| {
            match self.is_taken(section, chunk) {
                true => digest(Some(&read), chunk),
                false => digest(as_before.as_deref(), chunk),
            }
        });
        Ok(SectionTable::new(self.domain, digests.collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_become_whole_pieces_that_do_not_touch() {
        let got = whole(vec![9..10, 0..1, 4..5, 3..4, 20..20, 17..23], 4, 22);
        assert_eq!(got, [0..12, 16..22]);
    }
}
