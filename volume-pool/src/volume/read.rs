//! Reading: at once what is here, and the rest when it has come.

use std::ops::Range;
use std::rc::Rc;

use blockio::{BlockFile, Buf, Engine};
use image::{Error, Kind, Result};

use super::{Volume, io};
use crate::layout::{BLOCK, Layout};
use crate::maps::Maps;

/// What a stretch of a volume holds, as far as that is known without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Bytes.
    Data,
    /// Zeros that take no space.
    Hole,
    /// Bytes that are not here yet.
    Absent,
}

impl Volume {
    /// Fills `buf`, all of its length, from `at`; waits for what is not here.
    pub async fn read(&self, at: u64, buf: Buf) -> (Result<()>, Buf) {
        let (range, len) = (at..at + buf.len() as u64, buf.len());
        // Nearly always: what waits is kept out of the way, for it makes the future large.
        let (read, buf) = match range.end <= self.size() && self.is_here(&range) {
            true => self.engine.read_at(&self.data, buf, at).await,
            false => match Box::pin(self.arrive(&range)).await {
                Ok(()) => Box::pin(self.read_parts(range, buf)).await,
                Err(error) => return (Err(error), buf),
            },
        };
        let result = match read {
            Ok(read) if read == len => Ok(()),
            Ok(_) => Err(self.too_short()),
            Err(error) => Err(io(error)),
        };
        (result, buf)
    }

    /// The file in which all of a range lies now, at the same place, and the engine to read it with; nothing if it
    /// has to be waited for, lies in two files, or is beyond the end.
    pub fn read_from(&self, range: &Range<u64>) -> Option<(BlockFile, Engine)> {
        if range.end > self.size() {
            return None;
        }
        if self.is_here(range) {
            return Some((self.data.clone(), self.engine.clone()));
        }
        let (base, parts) = self.of_base(range)?;
        let whole = parts == std::slice::from_ref(range) && base.is_here(range);
        whole.then(|| (base.data.clone(), self.engine.clone()))
    }

    /// Reads a range that can be read, from the data file or the base's or both.
    async fn read_parts(&self, range: Range<u64>, buf: Buf) -> (io::Result<usize>, Buf) {
        let at = range.start;
        match self.of_base(&range) {
            Some((base, parts)) if parts == [range] => {
                self.engine.read_at(&base.data, buf, at).await
            }
            Some((base, parts)) => {
                self.engine.read_over(&self.data, buf, at, &base.data, parts).await
            }
            None => self.engine.read_at(&self.data, buf, at).await,
        }
    }

    fn too_short(&self) -> Error {
        let path = self.data.path().display();
        Error::new(Kind::Corrupt, format!("{path}: was made shorter than its volume"))
    }

    /// Whether all of a range, which is within the volume, can be read from the data file as it lies there.
    pub fn is_here(&self, range: &Range<u64>) -> bool {
        let (maps, layout) = (self.maps.borrow(), self.layout.get());
        maps.present.all(layout.chunks_of(range)) || first_missing(&maps, &layout, range).is_none()
    }

    /// Whether all of a range is here, or with the base.
    pub(super) fn can_read(&self, range: &Range<u64>) -> bool {
        self.is_here(range) || self.missing(range).is_empty()
    }

    /// The base and what of a range is to be read from it; nothing if all is in the data file.
    pub(super) fn of_base(&self, range: &Range<u64>) -> Option<(Rc<Volume>, Vec<Range<u64>>)> {
        let base = self.base.borrow().clone()?;
        let (maps, layout) = (self.maps.borrow(), self.layout.get());
        let mut parts = Vec::new();
        let mut left = range.clone();
        while !left.is_empty()
            && let Some(part) = missing_at(&maps, &layout, left.start, left.end)
        {
            left.start = part.end;
            parts.push(part);
        }
        (!parts.is_empty()).then_some((base, parts))
    }

    /// Waits until all of a range can be read, from the data file or from the base's.
    pub async fn arrive(&self, range: &Range<u64>) -> Result<()> {
        self.check(range)?;
        if self.is_here(range) {
            return Ok(());
        }
        loop {
            let missing = self.missing(range);
            if missing.is_empty() {
                return Ok(());
            }
            let base = self.base.borrow().clone();
            let wanted = &base.as_deref().unwrap_or(self).wanted;
            let waits = missing.into_iter().map(|chunk| wanted.wait(chunk));
            futures::future::try_join_all(waits).await?;
        }
    }

    /// The chunks of a range that a read has to wait for.
    fn missing(&self, range: &Range<u64>) -> Vec<u64> {
        let (maps, layout) = (self.maps.borrow(), self.layout.get());
        let mut missing = Vec::new();
        let mut left = range.clone();
        while let Some(chunk) = first_missing(&maps, &layout, &left) {
            if !self.base_has(chunk) {
                missing.push(chunk);
            }
            left.start = layout.bytes_of(chunk).end.min(left.end);
        }
        missing
    }

    /// Waits for chunks that guests wait for, and returns them in the order they were asked for. For whoever
    /// fetches: each is to be [filled](Volume::fill) or [failed](Volume::fail).
    pub async fn next_wanted(&self) -> Vec<u64> {
        self.wanted.next().await
    }

    /// Tells who waits for a chunk that it cannot be had. The next who wants it asks anew.
    pub fn fail(&self, chunk: u64, error: Error) {
        self.wanted.end(chunk, Err(error));
    }

    /// The same of all that is waited for.
    pub fn fail_all(&self, error: &Error) {
        self.wanted.end_all(error);
    }

    /// What a range holds, piece by piece, `most` at most. Neighbours differ.
    pub fn pieces(&self, range: Range<u64>, most: usize) -> Result<Vec<(u64, Piece)>> {
        self.check(&range)?;
        let mut pieces: Vec<(u64, Piece)> = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let (end, piece) = self.piece_at(at, range.end)?;
            if let Some((len, _)) = pieces.last_mut().filter(|(_, last)| *last == piece) {
                *len += end - at;
            } else if pieces.len() < most {
                pieces.push((end - at, piece));
            } else {
                break;
            }
            at = end;
        }
        Ok(pieces)
    }

    /// What is at `at`, and up to where at least.
    fn piece_at(&self, at: u64, end: u64) -> Result<(u64, Piece)> {
        let missing = {
            let (maps, layout) = (self.maps.borrow(), self.layout.get());
            missing_at(&maps, &layout, at, end)
        };
        if let Some(to) = missing.filter(|missing| missing.start == at).map(|m| m.end) {
            let base = self.base.borrow().clone();
            return base.map_or(Ok((to, Piece::Absent)), |base| base.piece_at(at, to));
        }
        let here = missing_end(&self.maps.borrow(), &self.layout.get(), at, end);
        match self.data.data_extents(at..here).next().transpose().map_err(io)? {
            None => Ok((here, Piece::Hole)),
            Some(data) if data.start > at => Ok((data.start, Piece::Hole)),
            Some(data) => Ok((data.end, Piece::Data)),
        }
    }
}

/// The first stretch of `at..end` that is not here.
fn missing_at(maps: &Maps, layout: &Layout, at: u64, end: u64) -> Option<Range<u64>> {
    let mut from = at;
    loop {
        let chunk = maps.present.next_clear(
            layout.chunks_of(&(from..from + 1)).start,
            layout.chunks_of(&(from..end)).end,
        )?;
        let bytes = layout.bytes_of(chunk);
        let within = bytes.start.max(from)..bytes.end.min(end);
        let block = maps.written.next_clear(within.start / BLOCK, within.end.div_ceil(BLOCK));
        if let Some(block) = block {
            let stop = maps.written.next_set(block, within.end.div_ceil(BLOCK));
            let stop = stop.map_or(within.end, |block| block * BLOCK);
            return Some((block * BLOCK).max(within.start)..stop);
        }
        from = within.end;
        if from >= end {
            return None;
        }
    }
}

/// Up to where all of `at..end` is here.
fn missing_end(maps: &Maps, layout: &Layout, at: u64, end: u64) -> u64 {
    missing_at(maps, layout, at, end).map_or(end, |missing| missing.start)
}

/// The first chunk of which some part of the range is not here.
fn first_missing(maps: &Maps, layout: &Layout, range: &Range<u64>) -> Option<u64> {
    if range.is_empty() {
        return None;
    }
    let missing = missing_at(maps, layout, range.start, range.end)?;
    Some(layout.chunks_of(&(missing.start..missing.start + 1)).start)
}
