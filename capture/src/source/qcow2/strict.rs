//! The one file, as `imago` sees it: read-only, and with an end.

#![expect(
    unsafe_code,
    reason = "imago's trait declares some of these methods unsafe to call; their bodies have no \
              unsafe code and ask nothing of their caller"
)]

use std::fmt;
use std::io;

use blockio::BlockFile;
use imago::Storage;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::drivers::CommonStorageHelper;

/// A file that reads exactly or not at all, cannot be written, and opens nothing by name.
#[derive(Debug)]
pub(super) struct Exact {
    file: BlockFile,
    helper: CommonStorageHelper,
}

impl Exact {
    pub(super) fn new(file: BlockFile) -> Self {
        Self { file, helper: CommonStorageHelper::default() }
    }
}

impl fmt::Display for Exact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.file.path().display().fmt(f)
    }
}

impl Storage for Exact {
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    unsafe fn pure_readv(&self, bufv: IoVectorMut<'_>, mut offset: u64) -> io::Result<()> {
        for mut buf in bufv.into_inner() {
            self.file.read_exact_at(&mut buf, offset)?;
            offset += buf.len() as u64;
        }
        Ok(())
    }

    unsafe fn pure_writev(&self, _bufv: IoVector<'_>, _offset: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.helper
    }
}
