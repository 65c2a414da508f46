//! Making room: the oldest segment goes, but what is in use is written again first.
//!
//! ```text
//!  oldest ──► |a|b|c|d|e| ──► in use (read from disk, or used in memory) and within half a
//!                             segment: appended to the open segment; the rest is forgotten
//! ```
//! So the log is a FIFO with a second chance, each frame is rewritten at most once per round, and at
//! least half of every new segment is new frames. It goes on frame by frame between other work.

use std::cmp::Reverse;
use std::io;
use std::sync::atomic::Ordering;

use blockio::BlockFile;
use bytes::Bytes;
use image::Frame;

use crate::disk::format::{Entry, TRAILER_LEN, Trailer};
use crate::disk::index::Spot;
use crate::disk::writer::LogWriter;
use crate::key::Key;

/// A segment on its way out.
pub(super) struct Eviction {
    id: u32,
    file: BlockFile,
    /// What is still to be written again, the most used last.
    spared: Vec<Entry>,
}

impl LogWriter {
    /// Brings the log within its budget with one more segment, at once: nothing is spared.
    pub(super) fn make_room(&mut self) {
        if let Some(eviction) = self.eviction.take() {
            self.drop_segment(eviction.id);
        }
        while self.used() + self.limits.segment > self.limits.budget && self.drop_oldest() {}
    }

    /// Begins to move out the oldest segment, if the one after the open one would need its room.
    pub(super) fn begin_eviction(&mut self) {
        let open = self.open.as_ref().map(|open| open.id);
        if self.used() + 2 * self.limits.segment <= self.limits.budget {
            return;
        }
        let oldest = self.disk.segments().first_key_value().map(|(id, s)| (*id, s.clone()));
        let Some((id, segment)) = oldest.filter(|(id, _)| Some(*id) != open) else { return };
        match read_footer(&segment.file, id, segment.bytes) {
            Ok(entries) => {
                let spared = self.choose_spared(id, entries);
                self.eviction = Some(Eviction { id, file: segment.file, spared });
            }
            Err(error) => {
                tracing::warn!(%error, "cache: a segment has no footer and is dropped whole");
                self.drop_segment(id);
            }
        }
    }

    /// Forgets what is not in use, or too much.
    fn choose_spared(&self, id: u32, entries: Vec<Entry>) -> Vec<Entry> {
        let index = &self.disk.index;
        let mut used = Vec::new();
        for entry in entries {
            let spot = Spot::new(id, entry.offset, entry.len);
            let Some(found) = index.peek(&entry.key).filter(|s| s.same_place(&spot)) else {
                continue;
            };
            match found.uses() + u32::from(self.memory.in_use(&entry.key)) {
                0 => index.remove(&entry.key, &spot),
                uses => used.push((uses, entry)),
            }
        }
        used.sort_by_key(|(uses, _)| Reverse(*uses));
        let mut left = self.limits.segment / 2;
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
        spared
    }

    /// Writes one frame again, or removes the segment if there is none left; `false` if there was
    /// nothing to do.
    pub(super) fn evict_next(&mut self) -> bool {
        let Some(eviction) = &mut self.eviction else { return false };
        let (id, file) = (eviction.id, eviction.file.clone());
        let Some(entry) = eviction.spared.pop() else {
            self.eviction = None;
            self.drop_segment(id);
            return true;
        };
        let spot = Spot::new(id, entry.offset, entry.len);
        if self.disk.index.peek(&entry.key).is_none_or(|found| !found.same_place(&spot)) {
            return true;
        }
        let Some(frame) = read_frame(&file, &entry) else {
            self.disk.index.remove(&entry.key, &spot);
            return true;
        };
        if let Err(error) = self.append(&entry.key, &frame) {
            self.write_failed(&error);
        }
        true
    }

    /// Drops the oldest segment that is not being written; `false` if there is none.
    pub(super) fn drop_oldest(&mut self) -> bool {
        let open = self.open.as_ref().map(|open| open.id);
        let oldest = self.disk.segments().keys().find(|id| Some(**id) != open).copied();
        let Some(id) = oldest else { return false };
        self.drop_segment(id);
        true
    }

    /// Forgets a segment's frames and removes its file. Reads under way keep the file until they
    /// are done.
    pub(super) fn drop_segment(&mut self, id: u32) {
        self.eviction.take_if(|eviction| eviction.id == id);
        let Some(segment) = self.disk.segments_mut().remove(&id) else { return };
        self.disk.counts.bytes.fetch_sub(segment.bytes, Ordering::Relaxed);
        match read_footer(&segment.file, id, segment.bytes) {
            Ok(entries) => entries.iter().for_each(|entry| {
                let spot = Spot::new(id, entry.offset, entry.len);
                self.disk.index.remove(&entry.key, &spot);
            }),
            Err(_) => self.disk.index.forget_segment(id),
        }
        if let Err(error) = self.outside.fs.remove_file(segment.file.path()) {
            tracing::warn!(%error, "cache: a segment could not be removed");
        }
    }

    /// What the segments take, with the open one counted as full.
    fn used(&self) -> u64 {
        let open = self.open.as_ref().map(|open| open.id);
        let segments = self.disk.segments();
        let bytes = segments.iter().map(|(id, segment)| match Some(*id) == open {
            true => self.limits.segment,
            false => segment.bytes,
        });
        bytes.sum()
    }
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
fn read_frame(file: &BlockFile, entry: &Entry) -> Option<Frame> {
    let mut bytes = vec![0; entry.len as usize];
    file.read_exact_at(&mut bytes, u64::from(entry.offset)).ok()?;
    let frame = Frame::parse(Bytes::from(bytes)).ok()?;
    let header = frame.header();
    let key = Key { domain: header.domain, digest: header.digest };
    (key == entry.key && frame.check_payload().is_ok()).then_some(frame)
}
