//! vmdk disks in one file: `monolithicSparse` and `streamOptimized`.
//!
//! ```text
//! | header | descriptor (text) | grain directory → grain tables → grains | [footer: header again] |
//! ```
//! A grain (64 KiB, mostly) is stored plain, or, in a stream-optimized file, behind a small header
//! and deflated. `imago` reads neither kind, and what it does read (descriptors of flat extents)
//! always leads to other files, which we refuse; so this format has a reader here.

mod descriptor;
mod header;
mod tables;

use std::cell::RefCell;
use std::ops::Range;

use blockio::BlockFile;
use flate2::{Decompress, FlushDecompress, Status};
use image::{Error, Kind, Result};

use super::fingerprint::Fingerprint;
use super::{Disk, read_error};
use header::{Header, SECTOR};
use tables::{Grain, Tables};

/// A vmdk file without references to others. Grains that are not allocated are not read.
pub(super) struct VmdkDisk {
    file: BlockFile,
    header: Header,
    tables: Tables,
    fingerprint: Fingerprint,
}

thread_local! {
    /// Deflated and inflated bytes of the grain at hand: at most 2 × 2 MiB and a sector per thread.
    static SCRATCH: RefCell<(Vec<u8>, Vec<u8>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

impl VmdkDisk {
    pub(super) fn open(file: BlockFile) -> Result<Self> {
        let fingerprint = Fingerprint::take(&file)?;
        let header = Header::open(&file)?;
        let tables = Tables::open(&file, &header)?;
        Ok(Self { file, header, tables, fingerprint })
    }

    /// The part of grain `grain` that lies on the disk, and its place there.
    fn on_disk(&self, grain: u64) -> Range<u64> {
        let start = grain * self.header.grain;
        start..(start + self.header.grain).min(self.header.size)
    }

    /// Fills `buf` from byte `skip` of a grain.
    fn read_grain(&self, grain: u64, skip: usize, buf: &mut [u8]) -> Result<()> {
        match self.tables.grain(&self.file, grain)? {
            Grain::Zeros => buf.fill(0),
            Grain::At(sector) if self.header.compressed => {
                SCRATCH.with_borrow_mut(|(deflated, plain)| {
                    self.inflate(grain, sector * SECTOR, deflated, plain)?;
                    buf.copy_from_slice(&plain[skip..skip + buf.len()]);
                    Ok::<_, Error>(())
                })?;
            }
            Grain::At(sector) => {
                read_exact(&self.file, buf, sector * SECTOR + skip as u64)?;
            }
        }
        Ok(())
    }

    /// Reads the marker of a deflated grain (its place on the disk, its length) and inflates it.
    fn inflate(
        &self,
        grain: u64,
        at: u64,
        deflated: &mut Vec<u8>,
        plain: &mut Vec<u8>,
    ) -> Result<()> {
        let mut marker = [0; 12];
        read_exact(&self.file, &mut marker, at)?;
        let place = u64::from_le_bytes(marker[..8].try_into().expect("eight bytes"));
        let len = u32::from_le_bytes(marker[8..].try_into().expect("four bytes")) as usize;
        if place != grain * self.header.grain / SECTOR {
            return Err(corrupt(format!("byte {at}: a grain of another place on the disk")));
        }
        // Deflate adds a few bytes per block to what it cannot shrink; a sector is ample.
        if len == 0 || len > self.header.grain as usize + SECTOR as usize {
            return Err(corrupt(format!("byte {at}: a deflated grain of {len} bytes")));
        }
        deflated.resize(len, 0);
        read_exact(&self.file, deflated, at + marker.len() as u64)?;
        plain.resize(self.header.grain as usize, 0);
        let mut zlib = Decompress::new(true);
        let done = zlib.decompress(deflated, plain, FlushDecompress::Finish);
        let on_disk = self.on_disk(grain);
        // The last grain may be stored only as far as the disk goes.
        let enough = zlib.total_out() >= on_disk.end - on_disk.start;
        match done {
            Ok(Status::StreamEnd) if enough => Ok(()),
            Ok(_) => Err(corrupt(format!("byte {at}: a deflated grain of the wrong length"))),
            Err(e) => Err(corrupt(format!("byte {at}: a deflated grain: {e}"))),
        }
    }
}

impl Disk for VmdkDisk {
    fn size(&self) -> u64 {
        self.header.size
    }

    fn next_data(&self, from: u64) -> Result<Option<Range<u64>>> {
        if from >= self.header.size {
            return Ok(None);
        }
        let found = self.tables.next_data(&self.file, from / self.header.grain)?;
        Ok(found.map(|grains| {
            let start = self.on_disk(grains.start).start.max(from);
            start..self.on_disk(grains.end - 1).end
        }))
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let grain = at / self.header.grain;
            let skip = at % self.header.grain;
            let len = rest.len().min((self.header.grain - skip) as usize);
            let (now, later) = rest.split_at_mut(len);
            let place = || format!("at byte {at} of the disk");
            self.read_grain(grain, skip as usize, now).map_err(|e| e.at(place()))?;
            at += len as u64;
            rest = later;
        }
        Ok(())
    }

    fn granule(&self) -> usize {
        self.header.grain as usize
    }

    fn check_unchanged(&self) -> Result<()> {
        self.fingerprint.check()
    }
}

/// The error of a file that wants another one opened.
fn refers(name: &str) -> Error {
    let what = format!(
        "it refers to another file, `{name}`, which is not opened: make it one file first with \
         `qemu-img convert -O vmdk`"
    );
    Error::new(Kind::Unsupported, what)
}

fn corrupt(what: String) -> Error {
    Error::new(Kind::Corrupt, format!("vmdk: {what}"))
}

fn unsupported(what: String) -> Error {
    Error::new(Kind::Unsupported, format!("vmdk: {what}"))
}

/// Reads what must be there.
fn read_exact(file: &BlockFile, buf: &mut [u8], at: u64) -> Result<()> {
    let read = match at.checked_add(buf.len() as u64) {
        Some(end) if i64::try_from(end).is_ok() => file.read_at(buf, at).map_err(read_error)?,
        _ => 0,
    };
    if read < buf.len() {
        let end = at.saturating_add(read as u64);
        let what = format!("the file ends at byte {end}, in the middle: is the copy complete?");
        return Err(corrupt(what));
    }
    Ok(())
}
