//! A smaller disk, of a volume that nobody uses.
//!
//! | | what is written, each durable before the next | a power cut leaves |
//! |---|---|---|
//! | 1 | the partition table, so that it ends where the disk will | the disk as it was: a GPT need not end with it |
//! | 2 | the identity: the size, and no image if it was larger | a file that is longer than its volume |
//! | 3 | the file's length | the smaller volume |
//!
//! What is left of the file after 2 is of nobody: a volume that grows cuts it off before.

use std::ops::Range;

use blockio::{BlockFile, FileKind};
use image::error::At;
use image::{Error, Geometry, Kind, Result};

use crate::Shelf;
use crate::identity::Identity;
use crate::inside::{EDGE, Edges, Proof, Table, proof};
use crate::shelf::io;

/// Bytes that are looked at in one go for some that are not zero.
const LOOK: usize = 1 << 20;

impl Shelf {
    /// Makes a plain volume smaller, if what is on it says that nothing lies behind `size`, or if it says nothing
    /// and all behind are zeros. A volume that becomes smaller than its image is of no image any more. Reads
    /// all that is to go, if it must.
    ///
    /// # Errors
    ///
    /// [`Kind::Conflict`] if something lies there, if the volume is not plain, or somebody uses it;
    /// [`Kind::Unsupported`] if what is on it says nothing that is understood, and on a device; [`Kind::Invalid`]
    /// for a size that is no multiple of the sector, or not smaller.
    pub fn shrink(&self, name: &str, size: u64) -> Result<()> {
        let mut files = self.take(name)?;
        let identity = files.identity.get().clone();
        check(&identity, &files.data, size).at(|| name.to_owned())?;
        let edits = cut(&identity, &files.data, size).at(|| name.to_owned())?;
        for edit in edits {
            files.data.write_all_at(&edit.bytes, edit.at).map_err(io)?;
            files.data.sync_data().map_err(io)?;
        }
        files.identity.change(|identity| {
            identity.size = size;
            identity.base = identity.base.filter(|base| base.size <= size);
            identity.shares &= identity.base.is_some();
        })?;
        files.data.set_len(size).map_err(io)?;
        files.data.sync_data().map_err(io)
    }
}

fn check(identity: &Identity, data: &BlockFile, size: u64) -> Result<()> {
    let refuse = |kind, what: &str| Err(Error::new(kind, what));
    Geometry::new(size, identity.sector, identity.chunk_log2)?;
    if size >= identity.size {
        return refuse(Kind::Invalid, "a size that is not smaller");
    }
    if data.kind() != FileKind::Regular {
        return refuse(Kind::Unsupported, "a device has the size that it has");
    }
    if !identity.plain {
        let why = "it has not arrived yet: attach it, and make it smaller when it is plain";
        return refuse(Kind::Conflict, why);
    }
    match data.other_user().map_err(io)? {
        None => Ok(()),
        Some(who) => refuse(Kind::Conflict, &format!("in use: {who}")),
    }
}

/// What is to be written before the disk is cut off.
fn cut(identity: &Identity, data: &BlockFile, size: u64) -> Result<Vec<crate::inside::Edit>> {
    let head = read(data, 0..identity.size.min(EDGE as u64))?;
    let tail = read(data, identity.size.saturating_sub(EDGE as u64)..identity.size)?;
    let edges = Edges { size: identity.size, sector: identity.sector, head: &head, tail: &tail };
    let table = Table::read(&edges)?;
    let last = table.last().map(|last| last.bytes.clone()).unwrap_or(0..identity.size);
    let end = last.end.min(identity.size).min(last.start.saturating_add(EDGE as u64));
    let inside = read(data, last.start.min(end)..end)?;
    if proof(&table, &inside, size)? == Proof::Zeros {
        all_zeros(data, size..identity.size)?;
    }
    table.ending_at(size)
}

fn read(data: &BlockFile, range: Range<u64>) -> Result<Vec<u8>> {
    let mut bytes = vec![0; (range.end - range.start) as usize];
    data.read_exact_at(&mut bytes, range.start).map_err(io)?;
    Ok(bytes)
}

fn all_zeros(data: &BlockFile, range: Range<u64>) -> Result<()> {
    for extent in data.data_extents(range) {
        let extent = extent.map_err(io)?;
        for at in extent.clone().step_by(LOOK) {
            let bytes = read(data, at..extent.end.min(at + LOOK as u64))?;
            if let Some(place) = bytes.iter().position(|byte| *byte != 0) {
                let what = format!(
                    "neither a partition table nor a file system that is known, and byte {} is not zero: \
                     nothing proves that it is not needed",
                    at + place as u64
                );
                return Err(Error::new(Kind::Conflict, what));
            }
        }
    }
    Ok(())
}
