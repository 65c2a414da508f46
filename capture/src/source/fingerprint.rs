//! Whether a file is still the one it was.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

use blockio::{BlockFile, FileKind};
use image::{Error, Kind, Result};

use super::read_error;

/// Size and time of the last change of a file. A device has no such time: whoever imports one that
/// is in use must freeze or snapshot it.
#[derive(Clone, Debug)]
pub(crate) struct Fingerprint {
    file: BlockFile,
    taken: (u64, Option<(i64, i64)>),
}

impl Fingerprint {
    /// Looks at the file.
    pub(crate) fn take(file: &BlockFile) -> Result<Self> {
        let taken = look(file).map_err(read_error)?;
        Ok(Self { file: file.clone(), taken })
    }

    /// Looks again.
    pub(crate) fn check(&self) -> Result<()> {
        let now = look(&self.file).map_err(read_error)?;
        if now.0 != self.taken.0 {
            return Err(resized(self.taken.0, now.0));
        }
        if now == self.taken { Ok(()) } else { Err(changed()) }
    }
}

/// The error of a file that does not hold still.
pub(crate) fn changed() -> Error {
    Error::new(
        Kind::Conflict,
        "it changed while it was being read: stop what writes to it, or import a snapshot of it",
    )
}

/// The error of a file that has become longer, or shorter: all from the lesser of the two on is not as it was.
pub(crate) fn resized(was: u64, is: u64) -> Error {
    changed().at(format!("it had {was} bytes, and has {is}"))
}

fn look(file: &BlockFile) -> io::Result<(u64, Option<(i64, i64)>)> {
    let size = file.size()?;
    let descriptor = file.descriptor().filter(|_| file.kind() == FileKind::Regular);
    let modified = match descriptor {
        Some(fd) => {
            let meta = File::from(fd.try_clone_to_owned()?).metadata()?;
            Some((meta.mtime(), meta.mtime_nsec()))
        }
        None => None,
    };
    Ok((size, modified))
}
