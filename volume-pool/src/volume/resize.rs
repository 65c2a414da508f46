//! A larger disk, also while it is in use.

use blockio::FileKind;
use image::{Error, Kind, Result};

use super::{Volume, io};
use crate::layout::Layout;
use crate::size::{geometry, shown};

impl Volume {
    /// Makes the volume larger; what is added is zeros. Durable, or the volume is as it was.
    ///
    /// # Errors
    ///
    /// [`Kind::Conflict`] while it is captured; [`Kind::Invalid`] for a smaller size, and for one that is no multiple of the sector;
    /// [`Kind::Unsupported`] on a device, which has the size that it has.
    pub async fn grow(&self, size: u64) -> Result<()> {
        let now = self.layout.get();
        let geometry = geometry(size, now.volume.sector(), now.volume.chunk_log2())?;
        if size < now.size() {
            let what = format!("it has {}: a volume is not made smaller", shown(now.size()));
            return Err(Error::new(Kind::Invalid, what));
        }
        if self.point.borrow().is_some() {
            return Err(Error::new(
                Kind::Conflict,
                "it is being captured: wait until that is done",
            ));
        }
        if self.data.kind() != FileKind::Regular {
            return Err(Error::new(Kind::Unsupported, "a device has the size that it has"));
        }
        // A crash before the identity says so leaves a file that is longer than its volume. One while it was made
        // smaller too, and then the rest is not zeros.
        if self.data.size().map_err(io)? > now.size() {
            self.data.set_len(now.size()).map_err(io)?;
        }
        self.data.set_len(size).map_err(io)?;
        self.engine.sync_data(&self.data).await.map_err(io)?;
        self.identity.borrow_mut().change(|identity| identity.size = size)?;
        let layout = Layout { volume: geometry, ..now };
        self.maps.borrow_mut().grow(&layout);
        self.intended.borrow_mut().grow(u64::from(geometry.sections()));
        self.layout.set(layout);
        Ok(())
    }
}
