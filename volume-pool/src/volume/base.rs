//! Leaning on a base: a volume of the same image, on the same core, that no guest writes to. Blocks that are
//! neither here nor written are read from it, and it is asked for the chunks that it has not got, so that many
//! volumes fetch and keep each chunk once.
//!
//! The maps of a volume never count what its base has. So no crash can part the two, and whether the base's own
//! bytes are durable is nobody's concern until they are taken over: block by block where a write needs the rest
//! of one, as if the guest had written it; and all of them in the end, when the base is plain and so durable.

use std::rc::Rc;

use blockio::FileKind;
use image::{Error, Kind, Result};

use super::{Volume, io};
use crate::layout::BLOCK;
use crate::maps::Bits;

impl Volume {
    /// Leaves chunks that are not here with `base`. A plain volume needs none, and takes none.
    ///
    /// # Errors
    ///
    /// [`Kind::Invalid`] if it is of another image; [`Kind::Unsupported`] on a device.
    pub fn lean_on(&self, base: Rc<Volume>) -> Result<()> {
        let (ours, theirs) = (self.identity(), base.identity());
        let image = |of: &crate::Identity| of.base.map(|base| (base.image, of.chunk_log2));
        if image(&ours).is_none() || image(&ours) != image(&theirs) {
            let what = format!("{}: its base is of another image", ours.name);
            return Err(Error::new(Kind::Invalid, what));
        }
        if [&self.data, &base.data].iter().any(|file| file.kind() != FileKind::Regular) {
            return Err(Error::new(Kind::Unsupported, "a volume on a device shares nothing"));
        }
        if !ours.plain {
            self.base.replace(Some(base));
        }
        Ok(())
    }

    /// Takes over what the base has, so that all of the volume is here. Where the file system can, the blocks are
    /// shared between the files; elsewhere they are copied. What others write meanwhile is left as it is; who writes to
    /// what is just being taken over waits for so many chunks at most.
    ///
    /// # Errors
    ///
    /// [`Kind::Conflict`] if the base is not [plain](crate::Identity::plain) yet.
    pub async fn take_over(&self, at_once: u64) -> Result<()> {
        let Some(base) = self.base.borrow().clone() else { return Ok(()) };
        if !base.identity().plain {
            return Err(Error::new(Kind::Conflict, "chunks of the base are still missing"));
        }
        let (mut from, end) = (0, self.layout.get().image_chunks());
        while let Some(chunk) = self.next_absent(from, end) {
            from = self.take_over_run(&base, chunk, chunk.saturating_add(at_once).min(end)).await?;
        }
        Ok(())
    }

    /// Takes over the chunks from this one to the next that is here, or in use, or to `end`; returns where it ended.
    async fn take_over_run(&self, base: &Volume, chunk: u64, end: u64) -> Result<u64> {
        let Some(mut turn) = self.fill_turn(chunk).await else { return Ok(chunk + 1) };
        let here = self.maps.borrow().present.next_set(chunk, end);
        let chunks = turn.grow(here.unwrap_or(end));
        let layout = self.layout.get();
        let bytes = layout.image_bytes_of(chunk).start..layout.image_bytes_of(chunks.end - 1).end;
        for run in self.unwritten(&bytes) {
            // What is a hole there is one here.
            for data in base.data.data_extents(run) {
                let data = data.map_err(io)?;
                self.engine.copy_range(&self.data, &base.data, data).await.map_err(io)?;
            }
        }
        self.now_present(chunks.clone());
        drop(turn);
        Ok(chunks.end)
    }

    /// Takes over one block, so that a part of it can be written.
    pub(super) async fn take_over_block(
        &self,
        base: &Volume,
        chunk: u64,
        block: u64,
    ) -> Result<()> {
        let range = block * BLOCK..((block + 1) * BLOCK).min(self.size());
        base.arrive(&range).await?;
        // A fill, as far as writes are concerned: the guest's must not be undone.
        let Some(turn) = self.fill_turn(chunk).await else { return Ok(()) };
        if self.maps.borrow().written.all(block..block + 1) {
            return Ok(());
        }
        self.engine.copy_range(&self.data, &base.data, range).await.map_err(io)?;
        let whole =
            self.maps.borrow_mut().note_part(&self.layout.get(), chunk, &(block..block + 1));
        if whole {
            self.wanted.arrived(chunk..chunk + 1);
        }
        drop(turn);
        Ok(())
    }

    /// Whether the base has a chunk.
    pub(super) fn base_has(&self, chunk: u64) -> bool {
        self.base.borrow().as_ref().is_some_and(|base| base.is_present(chunk))
    }

    /// How many chunks that are not `present` the base has.
    pub(super) fn with_base(&self, present: &Bits) -> u64 {
        let Some(base) = &*self.base.borrow() else { return 0 };
        let absent = present.clear_runs(0..present.len()).flatten();
        absent.filter(|chunk| base.is_present(*chunk)).count() as u64
    }
}
