//! Filling: a chunk has come, and goes where the guest has not written.

use std::ops::Range;

use blockio::FileKind;
use bytes::Bytes;
use image::{Error, Result, SectionTable};

use super::traffic::FillTurn;
use super::{Volume, io};
use crate::Verified;
use crate::layout::BLOCK;

impl Volume {
    /// Writes a chunk of the image where the guest has written nothing, and lets who waits for it go on.
    /// Whether it was still missing.
    ///
    /// # Errors
    ///
    /// Of the disk; then the chunk is still missing, and who waits for it goes on waiting.
    pub async fn fill(&self, section: u32, chunk: u32, plain: Verified) -> Result<bool> {
        let chunk = self.layout.get().chunk_at(section, chunk);
        let Some(turn) = self.fill_turn(chunk).await else { return Ok(false) };
        let image = self.layout.get().image_bytes_of(chunk);
        debug_assert_eq!(plain.len() as u64, image.end - image.start);
        let runs = self.unwritten(&image);
        if runs.len() == 1 && runs[0] == image {
            let (written, _) =
                self.engine.write_at(&self.data, plain.into_buf(), image.start).await;
            written.map_err(io)?;
        } else {
            let bytes = Bytes::from(plain.into_buf());
            for run in runs {
                let part = (run.start - image.start) as usize..(run.end - image.start) as usize;
                let part = bytes.slice(part);
                self.engine.write_bytes_at(&self.data, part, run.start).await.map_err(io)?;
            }
        }
        self.now_present(chunk..chunk + 1);
        drop(turn);
        Ok(true)
    }

    /// Notes that the chunks of a section that are zeros in the image are here: on a device they are made
    /// zeros, in a file that was made for the volume they are.
    pub async fn fill_zeros(&self, section: u32, table: &SectionTable) -> Result<()> {
        let is_file = self.data.kind() == FileKind::Regular;
        let zeros = table.digests().iter().enumerate().filter(|(_, digest)| digest.is_zero());
        for (number, _) in zeros {
            let chunk = self.layout.get().chunk_at(section, number as u32);
            match self.is_present(chunk) {
                true => {}
                // As the file was made: see `Volume::open`.
                false if is_file => self.now_present(chunk..chunk + 1),
                false => self.zero_chunk(chunk).await?,
            }
        }
        Ok(())
    }

    async fn zero_chunk(&self, chunk: u64) -> Result<()> {
        let Some(turn) = self.fill_turn(chunk).await else { return Ok(()) };
        for run in self.unwritten(&self.layout.get().image_bytes_of(chunk)) {
            self.engine.zero_range(&self.data, run).await.map_err(io)?;
        }
        self.now_present(chunk..chunk + 1);
        drop(turn);
        Ok(())
    }

    /// Whether a chunk is here.
    pub fn is_present(&self, chunk: u64) -> bool {
        self.maps.borrow().present.all(chunk..chunk + 1)
    }

    /// The first chunk at or after `from` that is not here, and not behind `end`.
    pub fn next_absent(&self, from: u64, end: u64) -> Option<u64> {
        self.maps.borrow().present.next_clear(from, end)
    }

    /// Waits until nobody writes to a chunk; nothing if it is here by then.
    pub(super) async fn fill_turn(&self, chunk: u64) -> Option<FillTurn<'_>> {
        let attempt = || match self.is_present(chunk) {
            true => Some(None),
            false => self.traffic.try_fill(chunk).map(Some),
        };
        self.traffic.turn(attempt).await
    }

    /// The stretches of a range that the guest has not written.
    pub(super) fn unwritten(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let maps = self.maps.borrow();
        let blocks = self.layout.get().blocks_of(range);
        let runs = maps.written.clear_runs(blocks);
        runs.map(|run| (run.start * BLOCK).max(range.start)..(run.end * BLOCK).min(range.end))
            .collect()
    }

    pub(super) fn now_present(&self, chunks: Range<u64>) {
        self.maps.borrow_mut().present.set(chunks.clone());
        self.wanted.arrived(chunks);
    }

    /// The place of a chunk in its image: section, and chunk in the section.
    ///
    /// # Errors
    ///
    /// [`image::Kind::Invalid`] behind the end.
    pub fn place_of(&self, chunk: u64) -> Result<(u32, u32)> {
        let layout = self.layout.get();
        if chunk < layout.chunks() {
            return Ok(layout.place_of(chunk));
        }
        Err(Error::new(image::Kind::Invalid, format!("chunk {chunk} of {}", layout.chunks())))
    }
}
