//! A raw disk: a file or block device whose bytes are the disk's.

use std::ops::Range;

use blockio::BlockFile;
use image::Result;

use super::fingerprint::{Fingerprint, resized};
use super::{Disk, read_error};

/// A file or block device whose bytes are the disk's. Its holes are not read; a device is all data.
#[derive(Debug)]
pub struct RawDisk {
    file: BlockFile,
    size: u64,
    fingerprint: Fingerprint,
}

impl RawDisk {
    /// Takes an open file; its size now is the disk's.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn new(file: BlockFile) -> Result<Self> {
        let fingerprint = Fingerprint::take(&file)?;
        let size = file.size().map_err(read_error)?;
        Ok(Self { file, size, fingerprint })
    }
}

impl Disk for RawDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn next_data(&self, from: u64) -> Result<Option<Range<u64>>> {
        self.file.data_extents(from..self.size).next().transpose().map_err(read_error)
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let read = self.file.read_at(buf, offset).map_err(read_error)?;
        self.has_read(offset, read, buf.len())
    }

    fn read_narrow(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let read = self.file.read_narrow_at(buf, offset).map_err(read_error)?;
        self.has_read(offset, read, buf.len())
    }

    fn read_once(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let read = self.file.read_once_at(buf, offset).map_err(read_error)?;
        self.has_read(offset, read, buf.len())
    }

    fn check_unchanged(&self) -> Result<()> {
        self.fingerprint.check()
    }

    fn raw_file(&self) -> Option<&BlockFile> {
        Some(&self.file)
    }
}

impl RawDisk {
    fn has_read(&self, offset: u64, read: usize, wanted: usize) -> Result<()> {
        // The range lay within the file when it was opened.
        match read < wanted {
            true => Err(resized(self.size, offset + read as u64)),
            false => Ok(()),
        }
    }
}
