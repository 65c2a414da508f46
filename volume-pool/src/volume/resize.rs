//! A larger disk, also while it is in use.

use blockio::FileKind;
use image::{Error, Geometry, Kind, Result};

use super::{Volume, io};
use crate::layout::Layout;

impl Volume {
    /// Makes the volume larger; what is added is zeros. Durable, or the volume is as it was.
    ///
    /// # Errors
    ///
    /// [`Kind::Invalid`] for a smaller size, and for one that is no multiple of the sector;
    /// [`Kind::Unsupported`] on a device, which has the size that it has.
    pub async fn grow(&self, size: u64) -> Result<()> {
        let now = self.layout.get();
        let geometry = Geometry::new(size, now.volume.sector(), now.volume.chunk_log2());
        let no_size = |e| Error::caused(Kind::Invalid, format!("a size of {size} bytes: {e}"), e);
        let geometry = geometry.map_err(no_size)?;
        if size < now.size() {
            let what = format!("{} bytes are there: a volume is not made smaller", now.size());
            return Err(Error::new(Kind::Invalid, what));
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
