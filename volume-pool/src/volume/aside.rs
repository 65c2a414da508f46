//! What a point in time keeps of what is overwritten: in memory first, so that the guest waits for nothing but a read, and
//! then in a file, where whoever reads the point in time has it written.
//!
//! ```text
//! guest's write ─▶ what it overwrites is read ─▶ memory, while there is room ── spill ──▶ file
//!                                                  └─ else it is copied to the file at once ─▲
//! ```
//! A write waits for a read that the page cache answers. Copying to a file first took it to another thread and back: the p99
//! of a guest's paced writes was 2.75 times what it is without a capture, and is 1.69 times that (`compare save-beside`).

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use blockio::{Arena, BlockFile, Buf};
use image::{Error, Result};

use super::io;
use super::point::runs_of;
use crate::layout::{BLOCK, Layout};
use crate::maps::Bits;

/// Memory of a capture, in bytes, and of that for each write that is kept there.
const MEMORY: usize = 4 << 20;
const SLOT: usize = 16 << 10;

/// What was put aside. The volume's core tells of it, and threads that read the point in time ask.
///
/// A block is told of before the write that overwrites it is begun. So whoever reads the data file *first* and asks
/// then learns of every block that may have been overwritten under its read.
#[derive(Debug)]
pub struct Aside {
    layout: Layout,
    /// As long as the volume; holds what was put aside, at its place.
    file: BlockFile,
    memory: Arena,
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    /// Blocks that are kept as they were.
    blocks: Bits,
    /// By their first block, those that do not lie in the file yet. No two have a block in common.
    held: BTreeMap<u64, Arc<Buf>>,
    failed: Option<Error>,
}

/// The blocks of a point in time that are kept, for who adds to them.
pub(super) struct Known<'a>(MutexGuard<'a, Kept>);

impl Known<'_> {
    /// Whether nothing can be read any more.
    pub(super) fn has_failed(&self) -> bool {
        self.0.failed.is_some()
    }

    /// Whether a block is kept.
    pub(super) fn has(&self, block: u64) -> bool {
        self.0.blocks.all(block..block + 1)
    }
}

impl Aside {
    /// Nothing so far. The file is empty.
    ///
    /// # Errors
    ///
    /// If there is no memory, or the file cannot be made so long.
    pub(super) fn new(layout: Layout, file: BlockFile) -> Result<Self> {
        file.set_len(layout.size()).map_err(io)?;
        let memory = Arena::new("aside", SLOT, MEMORY).map_err(io)?;
        let blocks = Bits::new(layout.blocks());
        let kept = Kept { blocks, held: BTreeMap::new(), failed: None };
        Ok(Self { layout, file, memory, kept: Mutex::new(kept) })
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Whoever panicked with it had set bits, or none.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn known(&self) -> Known<'_> {
        Known(self.kept())
    }

    /// The parts of a range that are kept as they were, in rising order. What is read of them elsewhere *before* this is
    /// asked may be what the guest has written since.
    ///
    /// # Errors
    ///
    /// If something could not be put aside: then nobody knows any more what was there.
    pub fn of(&self, range: &Range<u64>) -> Result<Vec<Range<u64>>> {
        self.kept().of(&self.layout, range)
    }

    /// Puts what is kept of a range over what was read elsewhere, *before*, from `offset` on. Blocks.
    ///
    /// # Errors
    ///
    /// As [`of`](Self::of); what the file says.
    pub fn read_over(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let range = offset..offset + buf.len() as u64;
        let parts = {
            let kept = self.kept();
            let parts = kept.of(&self.layout, &range)?;
            parts.into_iter().flat_map(|part| kept.copy(buf, offset, part)).collect::<Vec<_>>()
        };
        for part in parts {
            let within = (part.start - offset) as usize..(part.end - offset) as usize;
            self.file.read_exact_at(&mut buf[within], part.start).map_err(io)?;
        }
        Ok(())
    }

    /// Writes what is in memory to the file. Blocks; to be called now and then by who reads. If that fails nothing can
    /// be read any more.
    pub fn spill(&self) {
        loop {
            let next = self.kept().held.first_key_value().map(|(block, buf)| (*block, buf.clone()));
            let Some((block, buf)) = next else { return };
            match self.file.write_all_at(&buf, block * BLOCK) {
                Ok(()) => drop(self.kept().held.remove(&block)),
                Err(error) => self.fail(io(error).at("keeping what the guest overwrites")),
            }
        }
    }

    /// Holds what was put aside.
    pub fn file(&self) -> &BlockFile {
        &self.file
    }

    /// Memory for so many bytes, if there is room.
    pub(super) fn room(&self, len: usize) -> Option<Buf> {
        let mut buf = (len <= SLOT).then(|| self.memory.try_acquire())??;
        buf.set_len(len);
        Some(buf)
    }

    /// These blocks are in memory as they were.
    pub(super) fn hold(&self, blocks: Range<u64>, bytes: Buf) {
        let mut kept = self.kept();
        if kept.failed.is_none() {
            kept.held.insert(blocks.start, Arc::new(bytes));
            kept.blocks.set(blocks);
        }
    }

    /// These blocks are in the file as they were.
    pub(super) fn copied(&self, blocks: Range<u64>) {
        self.kept().blocks.set(blocks);
    }

    /// Nobody can read it any more; the room that it takes is given back at once, for the guest may wait for some.
    pub(super) fn fail(&self, error: Error) {
        let mut kept = self.kept();
        kept.held.clear();
        if kept.failed.is_none() {
            kept.failed = Some(error);
            if let Err(error) = self.file.set_len(0) {
                tracing::warn!(%error, "what was kept for a capture is not given back");
            }
        }
    }
}

impl Kept {
    fn of(&self, layout: &Layout, range: &Range<u64>) -> Result<Vec<Range<u64>>> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let parts = runs_of(&self.blocks, layout.blocks_of(range))
            .map(|run| (run.start * BLOCK).max(range.start)..(run.end * BLOCK).min(range.end));
        Ok(parts.collect())
    }

    /// Copies what is in memory of a part to where it belongs, in what begins at `offset`; returns the rest of the part.
    fn copy(&self, to: &mut [u8], offset: u64, part: Range<u64>) -> Vec<Range<u64>> {
        let (mut rest, mut at) = (Vec::new(), part.start);
        let before = self.held.range(..=part.start / BLOCK).next_back();
        let from = before.map_or(part.start / BLOCK, |(block, _)| *block);
        for (block, bytes) in self.held.range(from..part.end.div_ceil(BLOCK)) {
            let start = block * BLOCK;
            let (from, until) = (start.max(at), (start + bytes.len() as u64).min(part.end));
            if from >= until {
                continue;
            }
            if at < from {
                rest.push(at..from);
            }
            let there = (from - offset) as usize..(until - offset) as usize;
            to[there].copy_from_slice(&bytes[(from - start) as usize..(until - start) as usize]);
            at = until;
        }
        if at < part.end {
            rest.push(at..part.end);
        }
        rest
    }
}
