//! Making room: the oldest segment goes, but what is in use is written again first.
//!
//! ```text
//!  oldest ──► |a|b|c|d|e| ──► pinned: appended to the open segment, all of it
//!                             in use (read from disk, or used in memory) and, with the pinned,
//!                             within half a segment: appended too; the rest is forgotten
//! ```
//! So the log is a FIFO with a second chance, each frame is rewritten at most once per round, and at
//! least half of every new segment is new frames. It goes on frame by frame between other work.
//!
//! A segment more than half of which is pinned is passed over, so that pinned frames mostly lie
//! still. Pinned frames are never dropped with their segment: room for those that have to be moved
//! is kept in the open segment, and a segment that cannot be emptied of them stays.
//!
//! Where pins lie scattered there may be no segment that can just be dropped. Then one is opened above
//! the budget, and nothing new is taken until enough segments were emptied into it.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::Ordering;

use blockio::{BlockFile, OpenMode};
use bytes::Bytes;
use image::Frame;

use crate::disk::format::{ENTRY_LEN, Entry, HEADER_LEN, TRAILER_LEN, Trailer};
use crate::disk::index::Spot;
use crate::disk::writer::{LogWriter, Open};
use crate::disk::{DiskState, Segment};
use crate::key::Key;

/// A segment on its way out.
pub(super) struct Eviction {
    id: u32,
    file: BlockFile,
    /// What is still to be written again: what is written next is the last. The pinned come first,
    /// then the most used.
    spared: Vec<Entry>,
    /// How many of `spared` are pinned, and their bytes.
    pinned: usize,
    pinned_bytes: usize,
    /// A pinned frame found no room elsewhere: the segment is kept for it.
    stays: bool,
}

impl LogWriter {
    /// Brings the log within its budget with one more segment, at once: nothing but the pinned is
    /// spared. `false` if that leaves too little.
    pub(super) fn make_room(&mut self) -> bool {
        if let Some(eviction) = self.eviction.take()
            && eviction.pinned == 0
            && !eviction.stays
        {
            self.drop_segment(eviction.id);
        }
        loop {
            let fits = self.used() + self.limits.segment <= self.limits.budget;
            if fits || !self.drop_oldest() {
                return fits;
            }
        }
    }

    /// Drops the oldest segments that the budget has no room for. A power cut may have brought back what
    /// was removed, or the budget may have become smaller.
    pub(super) fn trim(&mut self) {
        while self.used() > self.limits.budget && self.drop_oldest() {}
    }

    /// Goes on to empty segments of what is not pinned while the log takes more than its budget;
    /// `false` if it does not, or if nothing but pinned frames is left.
    pub(super) fn shrink(&mut self) -> bool {
        if self.used() <= self.limits.budget || self.disk.state() != DiskState::On {
            return false;
        }
        if self.eviction.is_none() {
            self.begin_eviction();
        }
        let shrunk = self.evict_next();
        if !shrunk && let Err(error) = self.seal() {
            self.write_failed(&error);
        }
        shrunk
    }

    /// Begins to move out a segment, if the one after the open one would need its room.
    pub(super) fn begin_eviction(&mut self) {
        if self.used() + 2 * self.limits.segment <= self.limits.budget {
            return;
        }
        let Some((id, segment)) = self.choose_victim() else { return };
        let read = self.buffered(&segment).and_then(|file| {
            let entries = read_footer(&file, id, segment.bytes)?;
            Ok((file, entries))
        });
        match read {
            Ok((file, entries)) => self.eviction = Some(self.choose_spared(id, file, entries)),
            Err(error) if is_damage(&error) || self.disk.pins().generation().is_none() => {
                tracing::warn!(%error, "cache: a segment has no footer and is dropped whole");
                self.drop_segment(id);
            }
            Err(error) => {
                tracing::warn!(%error, "cache: a segment's footer cannot be read now");
                self.forget_pinned_bytes(id);
            }
        }
    }

    /// What is pinned in a segment is looked up anew, and taken to be all of it if it cannot be.
    fn forget_pinned_bytes(&self, id: u32) {
        if let Some(segment) = self.disk.segments_mut().get_mut(&id) {
            segment.pinned = None;
        }
    }

    /// The oldest segment at most half of which is pinned; else the one that gives back most. None
    /// if there is next to nothing but pinned frames.
    pub(super) fn choose_victim(&self) -> Option<(u32, Segment)> {
        let mut best: Option<(f64, u32, Segment)> = None;
        for (id, segment) in self.sealed() {
            let frames = segment.bytes.saturating_sub((HEADER_LEN + TRAILER_LEN) as u64);
            let part = self.pinned_bytes(id, &segment) as f64 / frames.max(1) as f64;
            if part <= 0.5 {
                return Some((id, segment));
            }
            if part <= 0.9 && best.as_ref().is_none_or(|(least, ..)| part < *least) {
                best = Some((part, id, segment));
            }
        }
        best.map(|(_, id, segment)| (id, segment))
    }

    /// Forgets what is not in use, or too much.
    fn choose_spared(&self, id: u32, file: BlockFile, entries: Vec<Entry>) -> Eviction {
        let index = self.disk.index();
        let (mut pinned, mut used) = (Vec::new(), Vec::new());
        for entry in entries {
            let spot = Spot::new(id, entry.offset, entry.len);
            let Some(found) = index.peek(&entry.key).filter(|s| s.same_place(&spot)) else {
                continue;
            };
            if self.disk.pins().contains(&entry.key) {
                pinned.push(entry);
                continue;
            }
            match found.uses() + u32::from(self.memory.in_use(&entry.key)) {
                0 => index.remove(&entry.key, &spot),
                uses => used.push((uses, entry)),
            }
        }
        let pinned_bytes = pinned.iter().map(|entry| entry.len as usize).sum();
        used.sort_by_key(|(uses, _)| Reverse(*uses));
        let mut left = self.room_for_spared().saturating_sub(pinned_bytes as u64);
        let mut spared = Vec::new();
        for (_, entry) in used {
            match left.checked_sub(u64::from(entry.len)) {
                Some(rest) => {
                    left = rest;
                    spared.push(entry);
                }
                None => index.remove(&entry.key, &Spot::new(id, entry.offset, entry.len)),
            }
        }
        spared.reverse();
        let count = pinned.len();
        spared.extend(pinned);
        Eviction { id, file, spared, pinned: count, pinned_bytes, stays: false }
    }

    /// Bytes that may be written again into the open segment: none while the log is above its budget.
    fn room_for_spared(&self) -> u64 {
        if self.used() > self.limits.budget {
            return 0;
        }
        let again = self.open.as_ref().map_or(0, |open| open.again);
        (self.limits.segment / 2).saturating_sub(again)
    }

    /// Writes one frame again, or removes the segment if there is none left, and begins with the next
    /// one if that did not give back enough; `false` if there was nothing to do.
    pub(super) fn evict_next(&mut self) -> bool {
        let Some(eviction) = &mut self.eviction else { return false };
        let (id, file) = (eviction.id, eviction.file.clone());
        let Some(entry) = eviction.spared.pop() else {
            match self.eviction.take().is_some_and(|eviction| eviction.stays) {
                true => self.pass_over(id),
                false => {
                    self.drop_segment(id);
                    self.begin_eviction();
                }
            }
            return true;
        };
        if eviction.pinned > 0 {
            eviction.pinned -= 1;
            eviction.pinned_bytes -= entry.len as usize;
        }
        let spot = Spot::new(id, entry.offset, entry.len);
        if !self.disk.index().is_at(&entry.key, &spot) {
            return true;
        }
        match read_frame(&file, &entry) {
            Ok(frame) => self.write_again(&entry.key, &frame),
            Err(error) => self.disk.drop_bad(&entry.key, &spot, file.path(), &error),
        }
        true
    }

    fn write_again(&mut self, key: &Key, frame: &Frame) {
        match self.append(key, frame) {
            Ok(true) => {
                if let Some(open) = &mut self.open {
                    open.again += frame.bytes().len() as u64;
                }
            }
            Ok(false) => {
                let stays = self.disk.pins().contains(key);
                if let Some(eviction) = &mut self.eviction {
                    eviction.stays |= stays;
                }
            }
            Err(error) => self.write_failed(&error),
        }
    }

    /// Moves pinned frames until the open segment has room for the rest of them behind a new frame
    /// of `len` bytes.
    pub(super) fn keep_room_for_pinned(&mut self, len: usize) {
        let capacity = self.limits.segment as usize;
        while let (Some(open), Some(eviction)) = (&self.open, &self.eviction) {
            let (frames, bytes) = (1 + eviction.pinned, len + eviction.pinned_bytes);
            if eviction.pinned == 0 || open.fits(frames, bytes, capacity) {
                return;
            }
            self.evict_next();
        }
    }

    /// Drops the oldest segment that is neither being written nor holds anything pinned; `false` if
    /// there is none.
    pub(super) fn drop_oldest(&mut self) -> bool {
        let mut sealed = self.sealed().into_iter();
        let oldest = sealed.find(|(id, segment)| self.pinned_bytes(*id, segment) == 0);
        let Some((id, _)) = oldest else { return false };
        self.drop_segment(id);
        true
    }

    /// Forgets a segment's frames and removes its file. Reads under way keep the file until they
    /// are done.
    pub(super) fn drop_segment(&mut self, id: u32) {
        self.eviction.take_if(|eviction| eviction.id == id);
        let Some(segment) = self.disk.segments_mut().remove(&id) else { return };
        self.disk.counts().bytes.fetch_sub(segment.bytes, Ordering::Relaxed);
        match self.footer(id, &segment) {
            Ok(entries) => entries.iter().for_each(|entry| {
                let spot = Spot::new(id, entry.offset, entry.len);
                if self.disk.index().is_at(&entry.key, &spot) {
                    self.disk.drop_frame(&entry.key, &spot);
                }
            }),
            Err(_) => {
                self.disk.index().forget_segment(id);
                self.disk.pins().lost.notify_one();
            }
        }
        if let Err(error) = self.outside.fs.remove_file(segment.file.path()) {
            tracing::warn!(%error, "cache: a segment could not be removed");
        }
    }

    /// Removes those of these segments in which nothing lies any more that the index knows.
    pub(super) fn sweep(&mut self, ids: &BTreeSet<u32>) {
        for (id, segment) in self.sealed() {
            if !ids.contains(&id) {
                continue;
            }
            let there = |entry: &Entry| {
                let spot = Spot::new(id, entry.offset, entry.len);
                self.disk.index().is_at(&entry.key, &spot)
            };
            if self.footer(id, &segment).is_ok_and(|entries| !entries.iter().any(there)) {
                self.drop_segment(id);
            }
        }
    }

    /// All segments but the open one, the oldest first.
    pub(super) fn sealed(&self) -> Vec<(u32, Segment)> {
        let open = self.open.as_ref().map(|open| open.id);
        let segments = self.disk.segments();
        let sealed = segments.iter().filter(|(id, _)| Some(**id) != open);
        sealed.map(|(id, segment)| (*id, segment.clone())).collect()
    }

    /// A segment kept a pinned frame that no segment has room for: it is no victim until pins change.
    /// What found no room because the disk is full may find it later.
    fn pass_over(&self, id: u32) {
        let generation = self.disk.pins().generation();
        if self.disk.state() == DiskState::On
            && let Some(segment) = self.disk.segments_mut().get_mut(&id)
        {
            segment.pinned = generation.map(|at| (at, segment.bytes));
        }
    }

    /// Bytes of pinned frames that lie in a sealed segment, and of their entries; looked up anew only
    /// when pins have changed. Frames that left the segment since are still counted. A segment whose
    /// footer cannot be read for now may be pinned, all of it; in a damaged one nothing can be kept.
    fn pinned_bytes(&self, id: u32, segment: &Segment) -> u64 {
        let Some(generation) = self.disk.pins().generation() else { return 0 };
        if let Some((at, bytes)) = segment.pinned
            && at == generation
        {
            return bytes;
        }
        let entries = match self.footer(id, segment) {
            Ok(entries) => entries,
            Err(error) if is_damage(&error) => Vec::new(),
            Err(_) => return segment.bytes,
        };
        let pinned = entries.iter().filter(|entry| {
            let spot = Spot::new(id, entry.offset, entry.len);
            self.disk.pins().contains(&entry.key) && self.disk.index().is_at(&entry.key, &spot)
        });
        let bytes = pinned.map(|entry| u64::from(entry.len) + ENTRY_LEN as u64).sum();
        if let Some(segment) = self.disk.segments_mut().get_mut(&id) {
            segment.pinned = Some((generation, bytes));
        }
        bytes
    }

    /// The footer of a sealed segment.
    pub(super) fn footer(&self, id: u32, segment: &Segment) -> io::Result<Vec<Entry>> {
        read_footer(&self.buffered(segment)?, id, segment.bytes)
    }

    /// A segment's file through the page cache, for reads that are not of whole sectors.
    fn buffered(&self, segment: &Segment) -> io::Result<BlockFile> {
        match segment.file.is_direct() {
            true => self.outside.fs.open(segment.file.path(), OpenMode::read()),
            false => Ok(segment.file.clone()),
        }
    }

    /// The file of a sealed segment as it is read from now on: past the page cache, where that can
    /// be had.
    pub(super) fn for_readers(&self, file: BlockFile) -> BlockFile {
        if !self.limits.direct {
            return file;
        }
        self.outside.fs.open(file.path(), OpenMode::read().direct()).unwrap_or(file)
    }

    /// What the segments take, with the open one counted as full.
    pub(super) fn used(&self) -> u64 {
        let bytes = self.disk.counts().bytes.load(Ordering::Relaxed);
        let rest = |open: &Open| self.limits.segment.saturating_sub(u64::from(open.end));
        bytes + self.open.as_ref().map_or(0, rest)
    }
}

/// Whether what was to be read is wrong or not there, rather than out of reach for now.
fn is_damage(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, NotFound, UnexpectedEof};
    matches!(error.kind(), InvalidData | UnexpectedEof | NotFound)
}

/// Reads the footer of a sealed segment of `len` bytes.
pub(super) fn read_footer(file: &BlockFile, id: u32, len: u64) -> io::Result<Vec<Entry>> {
    let bad = |error: image::FormatError| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", file.path().display()))
    };
    let mut bytes = [0; TRAILER_LEN];
    let at = len.checked_sub(TRAILER_LEN as u64).ok_or(io::ErrorKind::UnexpectedEof)?;
    file.read_exact_at(&mut bytes, at)?;
    let trailer = Trailer::parse(&bytes, id, len).map_err(bad)?;
    // The trailer's parser has checked the number of entries against the file's length.
    let mut entries = vec![0; (at - u64::from(trailer.entries_at)) as usize];
    file.read_exact_at(&mut entries, u64::from(trailer.entries_at))?;
    trailer.entries(&entries).map_err(bad)
}

/// Reads a frame and checks that it is whole and what the footer says it is.
fn read_frame(file: &BlockFile, entry: &Entry) -> image::Result<Frame> {
    let mut bytes = vec![0; entry.len as usize];
    let read = file.read_exact_at(&mut bytes, u64::from(entry.offset));
    read.map_err(|error| image::Error::io("read", error))?;
    entry.check(Frame::parse(Bytes::from(bytes))?)
}
