//! The end of a use of a volume, and of its time as one that is not whole.

use image::{Error, Kind, Result};

use super::{Volume, io};
#[cfg(doc)]
use crate::identity::VolumeState;

impl Volume {
    /// Writes everything down, so that the next use finds what has changed without comparing anything.
    /// Nothing may be under way, and nothing may follow.
    pub async fn close(&self) -> Result<()> {
        // A fill that was given up may still be on its way to the disk, where the next use may write.
        self.engine.settle().await;
        self.not_captured();
        self.flush().await?;
        let pages = self.maps.borrow_mut().take_changed();
        self.write_pages(pages).await?;
        let pages = {
            let mut maps = self.maps.borrow_mut();
            maps.intent.clear_all();
            maps.take_intent()
        };
        self.write_pages(pages).await
    }

    /// Has nothing reach the data from here on, until it may [be written again](Self::write_again): what was written lasts,
    /// reads go on, and a point in time stays. Whatever is still under way fails when it comes to write.
    ///
    /// # Errors
    ///
    /// If what was written could not be made to last, or the data can be written still: then it is to be closed.
    pub async fn stop_writing(&self) -> Result<()> {
        self.engine.settle().await;
        let flushed = self.flush().await;
        self.data.stop_writing().map_err(io)?;
        flushed
    }

    /// Lets a volume be written again after [`stop_writing`](Self::stop_writing).
    ///
    /// # Errors
    ///
    /// If somebody else has taken to the file meanwhile.
    pub fn write_again(&self) -> Result<()> {
        self.data.write_again().map_err(io)
    }

    /// Makes a volume of which everything is here a plain raw disk: from now on its maps are not needed to read
    /// it. Durable, or not at all; of one that is [being made](VolumeState::Building) only the bytes last yet.
    ///
    /// # Errors
    ///
    /// [`Kind::Conflict`] if something is still missing.
    pub async fn become_plain(&self) -> Result<()> {
        if !self.is_complete() {
            return Err(Error::new(Kind::Conflict, "chunks of this volume are still missing"));
        }
        self.flush().await?;
        // Its name and size must last as its bytes do. What is being made is synced here, too: a disk that failed tells
        // who wrote, and perhaps nobody later.
        self.engine.sync_data(&self.data).await.map_err(io)?;
        self.identity.borrow_mut().change(|identity| identity.plain = true)?;
        self.base.replace(None);
        Ok(())
    }

    /// Notes that others may write to a plain volume's data past us from now on. Durable: it has to be said before
    /// they can.
    ///
    /// # Errors
    ///
    /// Of the disk.
    pub fn lose_track(&self) -> Result<()> {
        let now = self.identity();
        if !now.plain || now.untracked {
            return Ok(());
        }
        self.identity.borrow_mut().change(|identity| identity.untracked = true)
    }
}
