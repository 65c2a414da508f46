//! Writing: what covers whole blocks does not wait for the chunk; an edge smaller than a block does.

use std::io::ErrorKind;
use std::ops::Range;

use blockio::Buf;
use image::{Error, Kind, Result};

use super::traffic::{UnderWay, WriteTurn};
use super::{Volume, io};
use crate::layout::{BLOCK, Layout};
use crate::maps::Maps;

impl Volume {
    /// Writes all of `buf` at `at`. It lasts after the next [`flush`](Volume::flush).
    pub async fn write(&self, at: u64, buf: Buf) -> (Result<()>, Buf) {
        let range = at..at + buf.len() as u64;
        let begun = match self.begin(&range).await {
            Ok(begun) => begun,
            Err(error) => return (Err(error), buf),
        };
        let (written, buf) = self.engine.write_at(&self.data, buf, at).await;
        (self.end(&range, begun, written.map_err(io)), buf)
    }

    /// Makes a range read as zeros. With `give_back` its space is given back where that can be done; without,
    /// a later write into it does not find the disk full, where that can be promised.
    pub async fn zero(&self, range: Range<u64>, give_back: bool) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let begun = self.begin(&range).await?;
        let zeroed = match give_back {
            true => match self.engine.punch_hole(&self.data, range.clone()).await {
                Err(e) if e.kind() == ErrorKind::Unsupported => {
                    self.engine.zero_range(&self.data, range.clone()).await
                }
                done => done,
            },
            false => self.engine.zero_range(&self.data, range.clone()).await,
        };
        self.end(&range, begun, zeroed.map_err(io))
    }

    /// Says that nobody needs what is in a range: whole blocks of it become zeros.
    pub async fn discard(&self, range: Range<u64>) -> Result<()> {
        self.check(&range)?;
        let blocks = self.layout.get().whole_blocks_of(&range);
        let range = blocks.start * BLOCK..(blocks.end * BLOCK).min(self.size());
        self.zero(range, true).await
    }

    /// What must be done before the first byte of a write.
    async fn begin(&self, range: &Range<u64>) -> Result<Begun<'_>> {
        self.check(range)?;
        if self.identity.borrow().get().state != crate::VolumeState::Allocated {
            return Err(Error::new(Kind::Conflict, "a volume that is nobody's is not written to"));
        }
        let layout = self.layout.get();
        self.intend(layout.sections_of(range)).await?;
        let begun = loop {
            self.fetch_edges(range).await?;
            let attempt = || {
                let maps = self.maps.borrow();
                let chunks = layout.chunks_of(range);
                let here = maps.present.all(chunks.clone());
                if !here && edge_to_fetch(&maps, &layout, range).is_some() {
                    return Some(Attempt::Fetch);
                }
                if !here && self.point_lacks(range).is_some() {
                    return Some(Attempt::Keep);
                }
                let under_way = self.traffic.try_begin()?;
                let turn = match here {
                    true if self.traffic.fills_any(&chunks) => return None,
                    true => None,
                    false => Some(self.traffic.try_write(chunks)?),
                };
                Some(Attempt::Begin(Begun { turn, _under_way: under_way }))
            };
            match self.traffic.turn(attempt).await {
                Attempt::Begin(begun) => break begun,
                Attempt::Fetch => {}
                Attempt::Keep => self.arrive_for_point(range).await,
            }
        };
        self.maps.borrow_mut().changed.set(layout.blocks_of(range));
        if self.point.borrow().is_some() {
            Box::pin(self.put_aside(range)).await;
        }
        Ok(begun)
    }

    async fn fetch_edges(&self, range: &Range<u64>) -> Result<()> {
        loop {
            let edge = edge_to_fetch(&self.maps.borrow(), &self.layout.get(), range);
            let Some((chunk, block)) = edge else { return Ok(()) };
            let base = self.base.borrow().clone();
            match base {
                Some(base) => self.take_over_block(&base, chunk, block).await?,
                None => self.wanted.wait(chunk).await?,
            }
        }
    }

    /// Notes what was written. The data were written before; that they last is for the next flush.
    fn end(&self, range: &Range<u64>, begun: Begun<'_>, written: Result<()>) -> Result<()> {
        // A flush that began meanwhile has not covered it.
        self.written.set(true);
        written?;
        if begun.turn.is_some() {
            let arrived = self.maps.borrow_mut().note_written(&self.layout.get(), range);
            arrived.into_iter().for_each(|chunks| self.wanted.arrived(chunks));
        }
        Ok(())
    }
}

/// A write that may change bytes now.
struct Begun<'a> {
    /// Not of one to what is here already.
    turn: Option<WriteTurn<'a>>,
    _under_way: UnderWay<'a>,
}

enum Attempt<'a> {
    Begin(Begun<'a>),
    /// A part of a block is missing.
    Fetch,
    /// A point in time wants what is there, and missing.
    Keep,
}

/// A block, and its chunk, of which a write covers a part, and that is not here: its first or its last one.
fn edge_to_fetch(maps: &Maps, layout: &Layout, range: &Range<u64>) -> Option<(u64, u64)> {
    let whole = layout.whole_blocks_of(range);
    let touched = layout.blocks_of(range);
    let edges =
        [touched.start..whole.start.min(touched.end), whole.end.max(touched.start)..touched.end];
    edges.into_iter().flatten().find_map(|block| {
        let at = block * BLOCK;
        let chunk = layout.chunks_of(&(at..at + 1)).start;
        let is_zeros = at >= layout.image_bytes_of(chunk).end;
        let is_here =
            is_zeros || maps.present.all(chunk..chunk + 1) || maps.written.all(block..block + 1);
        (!is_here).then_some((chunk, block))
    })
}

impl Maps {
    /// Notes that a range was written; returns the chunks that are here now because all of them was.
    fn note_written(&mut self, layout: &Layout, range: &Range<u64>) -> Vec<Range<u64>> {
        // Blocks that are written in part were here before; as `written` says, or as zeros behind the image.
        let blocks = layout.blocks_of(range);
        let chunks = layout.chunks_of(range);
        let mut arrived = Vec::new();
        let whole = |chunk: u64| {
            let bytes = layout.bytes_of(chunk);
            range.start <= bytes.start && bytes.end <= range.end
        };
        let first = chunks.start + u64::from(!whole(chunks.start));
        let last =
            if chunks.end > first && !whole(chunks.end - 1) { chunks.end - 1 } else { chunks.end };
        if first < last && self.present.set(first..last) {
            arrived.push(first..last);
        }
        for chunk in [chunks.start, chunks.end - 1] {
            if !self.present.all(chunk..chunk + 1) && self.note_part(layout, chunk, &blocks) {
                arrived.push(chunk..chunk + 1);
            }
        }
        arrived
    }

    /// The same of a chunk that was written in part; whether all of it is here now.
    pub(super) fn note_part(&mut self, layout: &Layout, chunk: u64, blocks: &Range<u64>) -> bool {
        let of_chunk = layout.blocks_of(&layout.bytes_of(chunk));
        self.written.set(blocks.start.max(of_chunk.start)..blocks.end.min(of_chunk.end));
        let of_image = layout.blocks_of(&layout.image_bytes_of(chunk));
        self.written.all(of_image) && self.present.set(chunk..chunk + 1)
    }
}
