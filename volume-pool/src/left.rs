//! How the file of a plain volume lay there when we let go of it: what is the same when we come back was not written to.
//!
//! ```text
//! DIR/NAME/left   "forebay volume left 1", then the volume's id, the system's boot, the file's stamp, a line each
//! ```
//! Made when the volume is detached, after all was synced, and removed when it is served again.

use std::io::ErrorKind;

use blockio::Stamp;
use image::Result;

use crate::shelf::{LEFT, io};
use crate::{Identity, Shelf};

const HEAD: &str = "forebay volume left 1";
/// Longest note that is read, in bytes.
const MOST: usize = 1 << 10;

fn text(id: &[u8; 16], boot: &str, stamp: &Stamp) -> String {
    let id = crate::ready::name_of(id);
    format!("{HEAD}\n{id}\n{boot}\n{stamp}\n")
}

impl Shelf {
    /// Notes how a volume's file lies there in this boot. Durable when this returns.
    ///
    /// # Errors
    ///
    /// Of the disk; then nothing is noted, or it is.
    pub fn note_left(&self, identity: &Identity, boot: &str, stamp: &Stamp) -> Result<()> {
        let path = self.path(&identity.name)?.join(LEFT);
        self.fs.replace(path, text(&identity.id, boot, stamp).as_bytes()).map_err(io)
    }

    /// Whether a volume's file lies there as was noted; nothing if nothing was.
    ///
    /// # Errors
    ///
    /// Of the disk.
    pub fn is_as_left(
        &self,
        identity: &Identity,
        boot: &str,
        stamp: Option<&Stamp>,
    ) -> Result<Option<bool>> {
        let now = stamp.map(|stamp| text(&identity.id, boot, stamp));
        match self.fs.read(self.path(&identity.name)?.join(LEFT), MOST) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            read => {
                Ok(Some(now.is_some_and(|now| read.is_ok_and(|noted| noted == now.as_bytes()))))
            }
        }
    }

    /// Removes the note: the file is to be written to.
    ///
    /// # Errors
    ///
    /// Of the disk.
    pub fn forget_left(&self, name: &str) -> Result<()> {
        match self.fs.remove_file(self.path(name)?.join(LEFT)) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(io(e)),
            _ => Ok(()),
        }
    }
}
