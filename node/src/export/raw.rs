//! A raw file or device as a disk.

use std::ops::Range;

use blockio::{BlockFile, Buf, Engine, FileKind};
use image::{Error, Kind, Result};

use super::{Disk, Stretch};

/// A raw file or device as a disk of its size at the time it was opened.
pub struct RawDisk {
    file: BlockFile,
    engine: Engine,
    size: u64,
    sector: u32,
    read_only: bool,
}

impl RawDisk {
    /// A disk that lies in `file`, in whole sectors of 512 or 4096 bytes.
    ///
    /// # Errors
    ///
    /// What the system says of its size; `Invalid` for sectors that cannot be had of it.
    pub fn new(file: BlockFile, engine: Engine, sector: u32, read_only: bool) -> Result<Self> {
        let size = file.size().map_err(failed)?;
        let device = match file.kind() {
            FileKind::Block => file.sectors().logical,
            FileKind::Regular => 1,
        };
        let path = file.path().display();
        if ![512, 4096].contains(&sector) || !sector.is_multiple_of(device) {
            let message = format!("{path}: no sectors of {sector} bytes here");
            return Err(Error::new(Kind::Invalid, message));
        }
        if !size.is_multiple_of(u64::from(sector)) {
            let message = format!("{path}: {size} bytes are not whole sectors of {sector}");
            return Err(Error::new(Kind::Invalid, message));
        }
        Ok(Self { file, engine, size, sector, read_only })
    }
}

impl Disk for RawDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn sector(&self) -> u32 {
        self.sector
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    async fn read(&self, at: u64, buf: Buf) -> (Result<()>, Buf) {
        let want = buf.len();
        let (result, buf) = self.engine.read_at(&self.file, buf, at).await;
        let whole = |read| match read == want {
            true => Ok(()),
            false => {
                let message =
                    format!("{}: ends at {}", self.file.path().display(), at + read as u64);
                Err(Error::new(Kind::Corrupt, message))
            }
        };
        (result.map_err(failed).and_then(whole), buf)
    }

    fn read_from(&self, _range: &Range<u64>) -> Option<(BlockFile, Engine)> {
        // Past the page cache memory has to be aligned.
        (!self.file.is_direct()).then(|| (self.file.clone(), self.engine.clone()))
    }

    async fn write(&self, at: u64, buf: Buf) -> (Result<()>, Buf) {
        let (result, buf) = self.engine.write_at(&self.file, buf, at).await;
        (result.map_err(failed), buf)
    }

    async fn zero(&self, range: Range<u64>, give_back: bool) -> Result<()> {
        if give_back {
            match self.engine.punch_hole(&self.file, range.clone()).await {
                Err(error) if error.kind() == std::io::ErrorKind::Unsupported => {}
                result => return result.map_err(failed),
            }
        }
        self.engine.zero_range(&self.file, range).await.map_err(failed)
    }

    async fn discard(&self, range: Range<u64>) -> Result<()> {
        match self.engine.punch_hole(&self.file, range).await {
            // It is only advice.
            Err(error) if error.kind() == std::io::ErrorKind::Unsupported => Ok(()),
            result => result.map_err(failed),
        }
    }

    async fn flush(&self) -> Result<()> {
        self.engine.sync_data(&self.file).await.map_err(failed)
    }

    fn stretches(&self, range: Range<u64>, most: usize) -> Result<Vec<(u64, Stretch)>> {
        let mut all: Vec<(u64, Stretch)> = Vec::new();
        let mut at = range.start;
        for extent in self.file.data_extents(range.clone()) {
            let extent = extent.map_err(failed)?;
            if extent.start > at {
                all.push((extent.start - at, Stretch::Hole));
            }
            all.push((extent.end - extent.start, Stretch::Data));
            at = extent.end;
            if all.len() >= most {
                break;
            }
        }
        if at < range.end && all.len() < most {
            all.push((range.end - at, Stretch::Hole));
        }
        all.truncate(most);
        Ok(all)
    }
}

fn failed(error: std::io::Error) -> Error {
    let kind = Error::io("", std::io::Error::from(error.kind())).kind();
    Error::caused(kind, error.to_string(), error)
}
