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
use image::{Error, Kind, Result};

use crate::Shelf;
use crate::identity::Identity;
use crate::inside::{EDGE, Edges, Proof, Table, proof};
use crate::shelf::io;
use crate::size::geometry;

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
        if !edits.is_empty() {
            // Nobody writes down that these blocks have changed.
            files.identity.change(|identity| identity.untracked = true)?;
        }
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
    geometry(size, identity.sector, identity.chunk_log2)?;
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use blockio::fake::{CrashPlan, MemFs};
    use blockio::{Engine, EngineKind, EngineOptions, OpenMode};
    use image::{Digest, Domain, Geometry, Manifest};

    use super::*;
    use crate::{NewVolume, Volume};

    const SIZE: u64 = 1 << 20;
    const SMALL: u64 = 512 << 10;
    const DISK: &str = "/v/a/disk.raw";

    fn shelf(disk: &MemFs) -> Shelf {
        Shelf::open(disk.fs(), "/v".into()).unwrap()
    }

    fn blank() -> NewVolume {
        NewVolume {
            name: "a".into(),
            id: [3; 16],
            geometry: Geometry::new(SIZE, 512, 14).unwrap(),
            image: None,
            shares: false,
            device: None,
            created: 0,
        }
    }

    fn of_image() -> NewVolume {
        let geometry = Geometry::new(SIZE, 512, 14).unwrap();
        let image = Manifest::new(Domain(0), geometry, vec![Digest([1; 32])]);
        NewVolume { image: Some(Arc::new(image)), ..blank() }
    }

    fn disk_with(new: &NewVolume) -> MemFs {
        let disk = MemFs::new();
        shelf(&disk).create(new).unwrap();
        disk
    }

    fn file(disk: &MemFs) -> BlockFile {
        disk.fs().open(DISK, OpenMode::write()).unwrap()
    }

    /// Its bytes as the volume has them; none of what is left behind.
    fn bytes(disk: &MemFs) -> Vec<u8> {
        read(&file(disk), 0..shelf(disk).identity("a").unwrap().size).unwrap()
    }

    /// A GPT with a partition of 0xee, at 64 KiB.
    fn partitioned(disk: &MemFs) -> Range<u64> {
        let mut bytes = crate::inside::tests::gpt(SIZE as usize, 512, &[(1, 64 << 10..256 << 10)]);
        bytes[64 << 10..256 << 10].fill(0xee);
        // What nobody needs, and nobody may see when the volume grows again.
        bytes[600 << 10..900 << 10].fill(0xdd);
        file(disk).write_all_at(&bytes, 0).unwrap();
        64 << 10..256 << 10
    }

    async fn grow(disk: &MemFs, size: u64) {
        let engine = Engine::start(EngineOptions::kind(EngineKind::Portable)).unwrap();
        let volume = Volume::open(shelf(disk).take("a").unwrap(), engine).unwrap();
        volume.grow(size).await.unwrap();
    }

    #[tokio::test]
    async fn a_power_cut_while_a_volume_is_made_smaller_leaves_one_or_the_other() {
        let disk = disk_with(&blank());
        let place = partitioned(&disk);
        disk.settle();
        shelf(&disk).shrink("a", SMALL).unwrap();
        disk.mark("smaller");
        let mut seen = [false; 2];
        for image in disk.crash_images(CrashPlan::default()) {
            let left = image.disk();
            let size = shelf(left).identity("a").unwrap().size;
            assert!(size == SMALL || (size == SIZE && !image.reached("smaller")), "{image}");
            seen[usize::from(size == SMALL)] = true;
            let found = bytes(left);
            let edge = found.len().min(EDGE);
            let (head, tail) = (&found[..edge], &found[found.len() - edge..]);
            let table = Table::read(&Edges { size, sector: 512, head, tail }).unwrap();
            assert_eq!(table.last().unwrap().bytes, place, "{image}");
            assert!(!table.is_damaged(), "{image}");
            let kept = &found[place.start as usize..place.end as usize];
            assert!(kept.iter().all(|byte| *byte == 0xee), "{image}");
            if size == SIZE {
                shelf(left).shrink("a", SMALL).unwrap();
            }
            // What was there is not seen again, whatever is left of the file.
            grow(left, SIZE).await;
            assert!(bytes(left)[SMALL as usize..].iter().all(|byte| *byte == 0), "{image}");
        }
        assert_eq!(seen, [true; 2]);
    }

    #[test]
    fn what_is_not_proved_is_refused_and_changes_nothing() {
        let refused = |disk: &MemFs, size, kind, says: &str| {
            let error = shelf(disk).shrink("a", size).unwrap_err();
            assert!(error.kind() == kind && error.message().contains(says), "{error}");
        };
        let disk = disk_with(&blank());
        refused(&disk, SIZE, Kind::Invalid, "not smaller");
        refused(&disk, 8200, Kind::Invalid, "8200 bytes");
        file(&disk).write_all_at(&[1], SIZE - 77).unwrap();
        refused(&disk, SMALL, Kind::Conflict, &format!("byte {} is not zero", SIZE - 77));
        let held = shelf(&disk).take("a").unwrap();
        refused(&disk, SMALL, Kind::Conflict, "in use");
        drop(held);
        file(&disk).write_all_at(&[0], SIZE - 77).unwrap();
        partitioned(&disk);
        refused(&disk, 128 << 10, Kind::Conflict, "partition 1 ends at byte 262144");
        assert_eq!(shelf(&disk).identity("a").unwrap().size, SIZE);
        let disk = disk_with(&of_image());
        refused(&disk, SMALL, Kind::Conflict, "not arrived yet");
    }

    #[test]
    fn what_is_smaller_than_its_image_is_of_none() {
        for (size, image) in [(SIZE, true), (SIZE + 4096, false)] {
            let new =
                NewVolume { geometry: Geometry::new(SIZE + 8192, 512, 14).unwrap(), ..of_image() };
            let disk = disk_with(&new);
            let mut files = shelf(&disk).take("a").unwrap();
            files.identity.change(|identity| identity.plain = true).unwrap();
            drop(files);
            shelf(&disk).shrink("a", size - if image { 0 } else { 8192 }).unwrap();
            let left = shelf(&disk).identity("a").unwrap();
            assert_eq!(left.base.is_some(), image);
            drop(shelf(&disk).take("a").unwrap());
        }
    }
}
