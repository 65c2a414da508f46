//! Checking: whether a chunk that the guest never wrote is still the image's, and making it so again.

use blockio::Buf;
use image::{Digest, Result, is_zero};

use super::traffic::FillTurn;
use super::{Volume, io};
use crate::Verified;
use crate::since::Since;

/// What was found of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is the image's.
    Right,
    /// It should be the image's, and is not.
    Wrong,
    /// It is not here, or the guest wrote to it: there is nothing to compare it with.
    Other,
}

impl Volume {
    /// Reads a chunk into `buf` and compares it with what the image has there.
    ///
    /// # Errors
    ///
    /// Of the disk.
    pub async fn check_chunk(
        &self,
        section: u32,
        chunk: u32,
        expected: &Digest,
        mut buf: Buf,
    ) -> Result<Verdict> {
        let chunk = self.layout.get().chunk_at(section, chunk);
        if !self.is_of_the_image(chunk) {
            return Ok(Verdict::Other);
        }
        let image = self.layout.get().image_bytes_of(chunk);
        buf.set_len((image.end - image.start) as usize);
        let (read, buf) = self.engine.read_at(&self.data, buf, image.start).await;
        read.map_err(io)?;
        let right = match expected.is_zero() {
            true => is_zero(&buf),
            false => Digest::of_chunk(&buf) == *expected,
        };
        // A guest may have begun to write while we read.
        Ok(match (right, self.is_of_the_image(chunk)) {
            (true, _) => Verdict::Right,
            (false, true) => Verdict::Wrong,
            (false, false) => Verdict::Other,
        })
    }

    /// Writes a chunk of the image again. Whether it was still to be: not if the guest has begun to write
    /// to it.
    ///
    /// # Errors
    ///
    /// Of the disk.
    pub async fn repair(&self, section: u32, chunk: u32, plain: Verified) -> Result<bool> {
        let chunk = self.layout.get().chunk_at(section, chunk);
        let Some(turn) = self.repair_turn(chunk).await else { return Ok(false) };
        let at = self.layout.get().image_bytes_of(chunk).start;
        let (written, _) = self.engine.write_at(&self.data, plain.into_buf(), at).await;
        self.written.set(true);
        drop(turn);
        written.map(|()| true).map_err(io)
    }

    /// The same of a chunk of which the image has only zeros.
    ///
    /// # Errors
    ///
    /// Of the disk.
    pub async fn repair_zeros(&self, section: u32, chunk: u32) -> Result<bool> {
        let chunk = self.layout.get().chunk_at(section, chunk);
        let Some(turn) = self.repair_turn(chunk).await else { return Ok(false) };
        let range = self.layout.get().image_bytes_of(chunk);
        let zeroed = self.engine.zero_range(&self.data, range).await;
        self.written.set(true);
        drop(turn);
        zeroed.map(|()| true).map_err(io)
    }

    /// Keeps writes from a chunk of the image; nothing if the guest has begun to write to it.
    async fn repair_turn(&self, chunk: u64) -> Option<FillTurn<'_>> {
        let turn = self.traffic.turn(|| self.traffic.try_fill(chunk)).await;
        // Writes that have begun have said so; those that come wait for our turn to end.
        self.is_of_the_image(chunk).then_some(turn)
    }

    /// Whether a chunk is here and the guest has never written to it. Of a volume that was captured nobody knows
    /// what was written before.
    fn is_of_the_image(&self, chunk: u64) -> bool {
        let base = self.identity.borrow().get().base.map(|base| base.image);
        if base.map(Since::Image) != Some(self.since.get()) {
            return false;
        }
        let (maps, layout) = (self.maps.borrow(), self.layout.get());
        let blocks = layout.blocks_of(&layout.bytes_of(chunk));
        let written = |map: &crate::maps::Bits| map.next_set(blocks.start, blocks.end).is_some();
        maps.present.all(chunk..chunk + 1)
            && !written(&maps.changed)
            && !maps.captured.as_ref().is_some_and(written)
    }
}
