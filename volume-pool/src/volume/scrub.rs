//! Checking: whether a chunk that the guest has not written is still as in the image that changes count from, and
//! making it so again.

use std::ops::Range;

use blockio::Buf;
use image::{Digest, Geometry, Result, is_zero};

use super::traffic::FillTurn;
use super::{Volume, io};
use crate::Verified;
use crate::since::Since;

/// The image that a volume is compared with. Only the one that its changes count from says anything of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Original {
    /// Its identity.
    pub image: Digest,
    /// Its disk.
    pub geometry: Geometry,
}

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
        of: &Original,
        section: u32,
        chunk: u32,
        expected: &Digest,
        mut buf: Buf,
    ) -> Result<Verdict> {
        let (chunk, image) = self.place_in(of, section, chunk);
        if !self.is_as_in(of, chunk) {
            return Ok(Verdict::Other);
        }
        buf.set_len((image.end - image.start) as usize);
        let (read, buf) = self.engine.read_at(&self.data, buf, image.start).await;
        read.map_err(io)?;
        let right = match expected.is_zero() {
            true => is_zero(&buf),
            false => Digest::of_chunk(&buf) == *expected,
        };
        // A guest may have begun to write while we read.
        Ok(match (right, self.is_as_in(of, chunk)) {
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
    pub async fn repair(
        &self,
        of: &Original,
        section: u32,
        chunk: u32,
        plain: Verified,
    ) -> Result<bool> {
        let (chunk, image) = self.place_in(of, section, chunk);
        let Some(turn) = self.repair_turn(of, chunk).await else { return Ok(false) };
        let (written, _) = self.engine.write_at(&self.data, plain.into_buf(), image.start).await;
        self.written.set(true);
        drop(turn);
        written.map(|()| true).map_err(io)
    }

    /// The same of a chunk of which the image has only zeros.
    ///
    /// # Errors
    ///
    /// Of the disk.
    pub async fn repair_zeros(&self, of: &Original, section: u32, chunk: u32) -> Result<bool> {
        let (chunk, range) = self.place_in(of, section, chunk);
        let Some(turn) = self.repair_turn(of, chunk).await else { return Ok(false) };
        let zeroed = self.engine.zero_range(&self.data, range).await;
        self.written.set(true);
        drop(turn);
        zeroed.map(|()| true).map_err(io)
    }

    /// Keeps writes from a chunk of the image; nothing if the guest has begun to write to it.
    async fn repair_turn(&self, of: &Original, chunk: u64) -> Option<FillTurn<'_>> {
        let turn = self.traffic.turn(|| self.traffic.try_fill(chunk)).await;
        // Writes that have begun have said so; those that come wait for our turn to end.
        self.is_as_in(of, chunk).then_some(turn)
    }

    /// The number of an image's chunk in the volume, and the bytes that the image has of it.
    fn place_in(&self, of: &Original, section: u32, chunk: u32) -> (u64, Range<u64>) {
        let start = of.geometry.chunk_start(section, chunk);
        let end = start + of.geometry.chunk_len_at(section, chunk) as u64;
        (self.layout.get().chunk_at(section, chunk), start..end.min(self.size()))
    }

    /// Whether a chunk is here, and the guest has not written to it since it was as in an image.
    fn is_as_in(&self, of: &Original, chunk: u64) -> bool {
        if self.since.get() != Since::Image(of.image) {
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
