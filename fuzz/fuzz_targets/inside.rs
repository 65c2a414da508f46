//! A disk of whatever bytes: what lies on it is known or refused; and what is to be written to extend it or to cut it
//! lies on the disk, spares its partitions, and leads to what was announced.
#![no_main]

use libfuzzer_sys::fuzz_target;
use volume_pool::inside::{EDGE, Edges, Edit, Table, content, proof};

fn edges(disk: &[u8], sector: u32) -> Edges<'_> {
    let edge = disk.len().min(EDGE);
    let (head, tail) = (&disk[..edge], &disk[disk.len() - edge..]);
    Edges { size: disk.len() as u64, sector, head, tail }
}

/// Gives a header the checksums that it should have: none would be found by chance.
fn sign(disk: &mut [u8], sector: usize) -> Option<()> {
    let word = |disk: &[u8], at: usize| Some(u32::from_le_bytes(disk.get(at..at + 4)?.try_into().ok()?));
    let (count, each) = (word(disk, sector + 80)?, word(disk, sector + 84)?);
    let at = (word(disk, sector + 72)? as usize).checked_mul(sector)?;
    let len = (count as usize).checked_mul(each as usize)?;
    let sum = crc32fast::hash(disk.get(at..at.checked_add(len)?)?);
    disk.get_mut(sector + 88..sector + 92)?.copy_from_slice(&sum.to_le_bytes());
    disk.get_mut(sector + 16..sector + 20)?.fill(0);
    let len = word(disk, sector + 12)? as usize;
    let sum = crc32fast::hash(disk.get(sector..sector.checked_add(len)?)?);
    disk[sector + 16..sector + 20].copy_from_slice(&sum.to_le_bytes());
    Some(())
}

fn make(disk: &mut [u8], edits: &[Edit]) {
    for edit in edits {
        disk[edit.at as usize..][..edit.bytes.len()].copy_from_slice(&edit.bytes);
    }
}

fuzz_target!(|data: &[u8]| {
    let [how, more, disk @ ..] = data else { return };
    let sector: u32 = if how & 1 == 0 { 512 } else { 4096 };
    let mut disk = disk.to_vec();
    disk.truncate(disk.len() / sector as usize * sector as usize);
    if how & 2 == 0 {
        let _ = sign(&mut disk, sector as usize);
    }
    let _ = content(&disk);
    let Ok(table) = Table::read(&edges(&disk, sector)) else { return };
    let _ = proof(&table, &disk, u64::from(*more) * 4096);
    let was = disk.clone();
    disk.resize(was.len() + usize::from(*more) * 4096, 0);
    if let Ok((place, edits)) = table.extended_to(disk.len() as u64) {
        assert!(place.end <= disk.len() as u64);
        make(&mut disk, &edits);
        for p in table.partitions() {
            // One may have been cut off with the disk.
            let within = |at: u64| (at as usize).min(was.len());
            let bytes = within(p.bytes.start)..within(p.bytes.end);
            assert_eq!(disk[bytes.clone()], was[bytes]);
        }
        if let Some(last) = table.last() {
            let again = Table::read(&edges(&disk, sector)).unwrap();
            assert_eq!((again.last().unwrap().number, &again.last().unwrap().bytes), (last.number, &place));
        }
    }
    let least = table.least().next_multiple_of(sector.into()) as usize;
    let mut small = was;
    if least <= small.len() && let Ok(edits) = table.ending_at(least as u64) {
        make(&mut small, &edits);
        small.truncate(least);
        if !table.partitions().is_empty() {
            let again = Table::read(&edges(&small, sector)).unwrap();
            assert_eq!(again.partitions(), table.partitions());
        }
    }
});
