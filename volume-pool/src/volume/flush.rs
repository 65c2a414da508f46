//! Flushing: the data first, then the maps that guard them.

use image::Result;

use super::{Volume, io};
use crate::identity::VolumeState;
use crate::maps::{DirtyPage, Maps};

impl Volume {
    /// Makes every write that has returned last, and so what arrived before. While chunks arrive or absent ones
    /// are written that takes two syncs; after that, one.
    pub async fn flush(&self) -> Result<()> {
        self.flushing.run(async || self.flush_once().await).await
    }

    async fn flush_once(&self) -> Result<()> {
        if self.is_being_made() {
            return Ok(());
        }
        // Bits are set when their data have been written: those that are set now have data that the
        // sync covers, and no others are written down.
        let pages = self.maps.borrow_mut().take_guarding();
        let taken = GiveBack { maps: &self.maps, pages };
        // A plain disk may have been written to past us, but for one that is nobody's.
        let identity = self.identity();
        let past_us = identity.plain && !identity.is_settled();
        if self.written.replace(false) || !taken.pages.is_empty() || past_us {
            let synced = self.engine.sync_data(&self.data).await;
            synced.inspect_err(|_| self.written.set(true)).map_err(io)?;
        }
        if taken.pages.is_empty() {
            return Ok(());
        }
        self.map_file.write(&self.engine, &taken.pages).await?;
        self.map_file.sync(&self.engine).await?;
        taken.keep();
        Ok(())
    }

    /// Whether nothing of it need last yet: who makes it makes all of it last in the end, and its maps are not needed then.
    pub(super) fn is_being_made(&self) -> bool {
        self.identity.borrow().get().state == VolumeState::Building
    }

    /// Writes pages and makes them last, or leaves them to be written.
    pub(super) async fn write_pages(&self, pages: Vec<DirtyPage>) -> Result<()> {
        let taken = GiveBack { maps: &self.maps, pages };
        if taken.pages.is_empty() || self.is_being_made() {
            return Ok(());
        }
        self.map_file.write(&self.engine, &taken.pages).await?;
        self.map_file.sync(&self.engine).await?;
        taken.keep();
        Ok(())
    }
}

/// Pages on their way to the disk. If they do not get there, also because nobody waits any more, they are to be
/// written again.
struct GiveBack<'a> {
    maps: &'a std::cell::RefCell<Maps>,
    pages: Vec<DirtyPage>,
}

impl GiveBack<'_> {
    fn keep(mut self) {
        self.pages.clear();
    }
}

impl Drop for GiveBack<'_> {
    fn drop(&mut self) {
        self.maps.borrow_mut().give_back(&self.pages);
    }
}
