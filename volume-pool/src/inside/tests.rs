//! Disks made by hand, and disks that nobody would make.

use std::ops::Range;

use image::Kind;
use proptest::prelude::*;

use super::content::{Content, FileSystem, FsKind, content};
use super::table::{Partition, Table};
use super::{EDGE, Edges, Edit, Proof, le32, proof};

const KIB: usize = 1 << 10;
/// Room for the copies of a GPT in sectors of 4 KiB.
const ROOM: usize = 32 * KIB;

fn edges(disk: &[u8], sector: u32) -> Edges<'_> {
    let edge = disk.len().min(EDGE);
    let (head, tail) = (&disk[..edge], &disk[disk.len() - edge..]);
    Edges { size: disk.len() as u64, sector, head, tail }
}

fn table(disk: &[u8], sector: u32) -> Table {
    Table::read(&edges(disk, sector)).unwrap()
}

fn refused(disk: &[u8]) -> (Kind, String) {
    let error = Table::read(&edges(disk, 512)).unwrap_err();
    (error.kind(), error.message().to_owned())
}

fn make(disk: &mut [u8], edits: &[Edit]) {
    for edit in edits {
        disk[edit.at as usize..][..edit.bytes.len()].copy_from_slice(&edit.bytes);
    }
}

fn put(disk: &mut [u8], at: usize, bytes: &[u8]) {
    disk[at..at + bytes.len()].copy_from_slice(bytes);
}

fn mbr_entry(disk: &mut [u8], number: usize, kind: u8, start: u32, sectors: u32) {
    let at = 446 + 16 * (number - 1);
    disk[at + 4] = kind;
    put(disk, at + 8, &start.to_le_bytes());
    put(disk, at + 12, &sectors.to_le_bytes());
    put(disk, 510, &[0x55, 0xaa]);
}

fn mbr(size: usize, partitions: &[(usize, u8, u32, u32)]) -> Vec<u8> {
    let mut disk = vec![0; size];
    partitions
        .iter()
        .for_each(|(number, kind, at, len)| mbr_entry(&mut disk, *number, *kind, *at, *len));
    disk
}

/// A disk with these partitions, by their number and place in bytes.
pub(crate) fn gpt(size: usize, sector: u32, partitions: &[(usize, Range<usize>)]) -> Vec<u8> {
    let (mut disk, sector) = (vec![0; size], sector as usize);
    let last = size / sector - 1;
    mbr_entry(&mut disk, 1, 0xee, 1, u32::try_from(last).unwrap());
    let mut entries = vec![0; 16 * KIB];
    for (number, range) in partitions {
        let at = (number - 1) * 128;
        entries[at..at + 32].fill(*number as u8);
        put(&mut entries, at + 32, &((range.start / sector) as u64).to_le_bytes());
        put(&mut entries, at + 40, &((range.end / sector - 1) as u64).to_le_bytes());
        put(&mut entries, at + 56, b"n\0a\0m\0e\0");
    }
    let of_entries = entries.len().div_ceil(sector);
    for (own, other, at) in [(1, last, 2), (last, 1, last - of_entries)] {
        let mut header = vec![0; 92];
        put(&mut header, 0, b"EFI PART");
        put(&mut header, 8, &0x0001_0000u32.to_le_bytes());
        put(&mut header, 12, &92u32.to_le_bytes());
        let usable = [2 + of_entries, last - of_entries - 1];
        let places = [(24, own), (32, other), (40, usable[0]), (48, usable[1]), (72, at)];
        for (place, n) in places {
            put(&mut header, place, &(n as u64).to_le_bytes());
        }
        put(&mut header, 80, &128u32.to_le_bytes());
        put(&mut header, 84, &128u32.to_le_bytes());
        put(&mut header, 88, &crc32fast::hash(&entries).to_le_bytes());
        let sum = crc32fast::hash(&header);
        put(&mut header, 16, &sum.to_le_bytes());
        put(&mut disk, own * sector, &header);
        put(&mut disk, at * sector, &entries);
    }
    disk
}

fn ext4(disk: &mut [u8], at: usize, bytes: u64) {
    put(disk, at + 1024 + 4, &(bytes as u32 / 4096).to_le_bytes());
    put(disk, at + 1024 + 24, &2u32.to_le_bytes());
    put(disk, at + 1024 + 32, &32768u32.to_le_bytes());
    put(disk, at + 1024 + 56, &[0x53, 0xef]);
    put(disk, at + 1024 + 76, &1u32.to_le_bytes());
}

fn ntfs(disk: &mut [u8], at: usize, bytes: u64) {
    put(disk, at, b"\xeb\x52\x90NTFS    \x00\x02");
    put(disk, at + 40, &(bytes / 512 - 1).to_le_bytes());
    put(disk, at + 510, &[0x55, 0xaa]);
}

#[test]
fn the_last_partition_is_the_one_that_ends_last() {
    let disk = mbr(256 * KIB, &[(1, 0x83, 300, 100), (3, 0x83, 8, 200)]);
    let mut larger = disk.clone();
    larger.resize(512 * KIB, 0);
    let (place, edits) = table(&disk, 512).extended_to(512 * KIB as u64).unwrap();
    assert_eq!(place, 300 * 512..512 * KIB as u64);
    make(&mut larger, &edits);
    let last = table(&larger, 512).last().unwrap().clone();
    assert_eq!((last.number, last.bytes), (1, place));
    // Again there is nothing to do.
    assert_eq!(table(&larger, 512).extended_to(512 * KIB as u64).unwrap().1, []);

    let disk = gpt(512 * KIB, 512, &[(2, ROOM..ROOM + 64 * KIB), (1, 200 * KIB..300 * KIB)]);
    let (place, _) = table(&disk, 512).extended_to(512 * KIB as u64).unwrap();
    assert_eq!(place, 200 * KIB as u64..(512 - 20) * KIB as u64, "up to the copy, in whole 4 KiB");
    let found = table(&disk, 512);
    assert_eq!(found.partitions().iter().map(|p| p.number).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(found.least(), 300 * KIB as u64 + 33 * 512);
}

#[test]
fn a_table_that_is_damaged_or_unclear_is_refused() {
    let good = gpt(256 * KIB, 512, &[(1, ROOM..100 * KIB)]);
    let mut broken = good.clone();
    broken[512 + 50] ^= 1;
    assert!(table(&broken, 512).is_damaged(), "the other copy tells");
    let edits = table(&broken, 512).ending_at(256 * KIB as u64).unwrap();
    make(&mut broken, &edits);
    assert!(broken == good, "and makes it good");
    for at in [512 + 50, 256 * KIB - 512 + 50] {
        broken[at] ^= 1;
    }
    assert!(refused(&broken).1.contains("both copies"));
    // Of a disk that was cut off the copy at the beginning is whole, but a partition ends behind.
    let cut = table(&good[..64 * KIB], 512).extended_to(64 * KIB as u64).unwrap_err();
    assert_eq!(cut.kind(), Kind::Corrupt);

    let mut hybrid = good.clone();
    mbr_entry(&mut hybrid, 2, 0x83, 100, 8);
    assert!(refused(&hybrid).1.contains("not clear"));
    let mut unprotected = good.clone();
    unprotected[446..512].fill(0);
    assert!(refused(&unprotected).1.contains("not clear"));
    let overlapping = mbr(256 * KIB, &[(1, 0x83, 8, 100), (2, 0x83, 100, 100)]);
    assert!(refused(&overlapping).1.contains("overlap"));
    let mut both = mbr(256 * KIB, &[(1, 0x83, 200, 100)]);
    ext4(&mut both, 0, 256 * KIB as u64);
    assert!(refused(&both).1.contains("not clear"));

    let logical = mbr(256 * KIB, &[(1, 0x83, 8, 100), (2, 0x05, 200, 100)]);
    let error = table(&logical, 512).extended_to(256 * KIB as u64).unwrap_err();
    assert!(error.message().contains("extended one"), "{error}");
    assert_eq!(table(&logical, 512).least(), 300 * 512);
    let error = table(&mbr(256 * KIB, &[(1, 0x83, 8, 100)]), 512).extended_to(3 << 40).unwrap_err();
    assert!(error.message().contains("2047 GiB"), "{error}");
}

#[test]
fn file_systems_say_what_they_are_and_how_large() {
    let is = |kind, bytes| Content::FileSystem(FileSystem { kind, bytes });
    let disk = |fill: &dyn Fn(&mut [u8])| {
        let mut disk = vec![0; EDGE];
        fill(&mut disk);
        content(&disk)
    };
    let xfs = |d: &mut [u8]| {
        put(d, 0, b"XFSB\0\0\x10\0");
        put(d, 8, &77u64.to_be_bytes());
    };
    let btrfs = |d: &mut [u8], devices: u64| {
        let sb = 64 * KIB;
        put(d, sb + 0x40, b"_BHRfS_M");
        put(d, sb + 0x88, &devices.to_le_bytes());
        put(d, sb + 0xc9, &3u64.to_le_bytes());
        put(d, sb + 0xd1, &(9u64 << 20).to_le_bytes());
    };
    assert_eq!(disk(&|d| ext4(d, 0, 1 << 20)), is(FsKind::Ext, 1 << 20));
    assert_eq!(disk(&xfs), is(FsKind::Xfs, 77 << 12));
    assert_eq!(disk(&|d| btrfs(d, 1)), is(FsKind::Btrfs { device: 3 }, 9 << 20));
    assert_eq!(disk(&|d| ntfs(d, 0, 1 << 20)), is(FsKind::Ntfs, 1 << 20));
    assert_eq!(disk(&|d| btrfs(d, 2)), Content::Other("a btrfs of several devices"));
    assert_eq!(disk(&|d| put(d, 4086, b"SWAPSPACE2")), Content::Other("swap"));
    assert_eq!(disk(&|d| put(d, 512, b"LABELONE")), Content::Other("LVM"));
    assert_eq!(disk(&|d| put(d, 0, b"LUKS\xba\xbe\0\x02")), Content::Other("LUKS"));
    let elsewhere = disk(&|d| {
        ext4(d, 0, 1 << 20);
        put(d, 1024 + 92, &[4]);
    });
    let says = "an ext file system whose journal lies on another disk";
    assert_eq!(elsewhere, Content::Other(says));
    let two = disk(&|d| {
        ext4(d, 0, 1 << 20);
        btrfs(d, 1);
    });
    assert_eq!(two, Content::Other("the marks of several file systems"));
    let huge = disk(&|d| {
        xfs(d);
        put(d, 8, &[0xff; 8]);
    });
    assert_eq!(huge, Content::Other("a damaged file system"));
    assert_eq!((disk(&|_| ()), disk(&|d| d[77] = 1)), (Content::Zeros, Content::Unknown));
}

#[test]
fn what_lies_behind_the_new_end_keeps_a_disk_from_being_made_smaller() {
    let size = 512 * KIB;
    let prove = |disk: &[u8], to: usize| {
        let table = table(disk, 512);
        let at = table.last().map_or(0, |last| last.bytes.start as usize);
        proof(&table, &disk[at..disk.len().min(at + EDGE)], to as u64)
    };
    let refused = |disk: &[u8], to, kind, says: &str| {
        let error = prove(disk, to).unwrap_err();
        assert!(error.kind() == kind && error.message().contains(says), "{error}");
    };
    for fill in [ext4, ntfs] {
        let mut bare = vec![0; size];
        fill(&mut bare, 0, 256 * KIB as u64);
        assert_eq!(prove(&bare, 256 * KIB).unwrap(), Proof::Ends);
        refused(&bare, 252 * KIB, Kind::Conflict, "on the disk has 262144 bytes");

        let mut parted = gpt(size, 512, &[(2, ROOM..ROOM + 256 * KIB)]);
        fill(&mut parted, ROOM, 256 * KIB as u64);
        let least = ROOM + 256 * KIB + 33 * 512;
        assert_eq!(prove(&parted, least).unwrap(), Proof::Ends);
        refused(&parted, least - 512, Kind::Conflict, "table needs");
        refused(&parted, ROOM + 255 * KIB, Kind::Conflict, "partition 2 ends");
        // Only the partition was made smaller.
        fill(&mut parted, ROOM, 300 * KIB as u64);
        refused(&parted, least, Kind::Conflict, "on partition 2 has 307200 bytes");
    }
    assert_eq!(prove(&vec![0; size], 4096).unwrap(), Proof::Zeros);
    let mut swap = vec![0; size];
    put(&mut swap, 4086, b"SWAPSPACE2");
    refused(&swap, 256 * KIB, Kind::Unsupported, "swap");
    let empty = gpt(size, 512, &[]);
    refused(&empty, 32 * KIB, Kind::Conflict, "table needs");
    assert_eq!(prove(&empty, 64 * KIB).unwrap(), Proof::Ends);
}

/// Partitions in order, with or without gaps.
fn partitions(end: usize) -> impl Strategy<Value = Vec<(usize, Range<usize>)>> {
    let cuts = prop::collection::btree_set(ROOM / 4096..end / 4096, 2..8);
    cuts.prop_map(|cuts| {
        let cuts: Vec<usize> = cuts.into_iter().map(|cut| cut * 4096).collect();
        let ranges = cuts.chunks_exact(2).map(|pair| pair[0]..pair[1]);
        ranges.rev().enumerate().map(|(index, range)| (index * 2 + 1, range)).collect()
    })
}

/// The disk after some of the edits, and of the next one only the sectors that a mask picks.
fn torn(disk: &[u8], edits: &[Edit], done: usize, mask: u64, sector: usize) -> Vec<u8> {
    let mut disk = disk.to_vec();
    make(&mut disk, &edits[..done]);
    if let Some(edit) = edits.get(done) {
        for (n, bytes) in edit.bytes.chunks(sector).enumerate() {
            if mask >> (n % 64) & 1 == 1 {
                put(&mut disk, edit.at as usize + n * sector, bytes);
            }
        }
    }
    disk
}

proptest! {
    #[test]
    fn a_gpt_is_whole_at_every_instant_while_it_is_extended_or_cut(
        sector in prop_oneof![Just(512u32), Just(4096)],
        parts in partitions(300 * KIB), size in 340..400usize, larger in 400..500usize,
        done in 0..5usize, mask in any::<u64>(),
    ) {
        let (size, larger) = (size * 4096 / 4, larger * 4096 / 4);
        let (size, larger) = (size / 4096 * 4096, larger / 4096 * 4096);
        let disk = gpt(size, sector, &parts);
        let was = table(&disk, sector);
        let (place, edits) = was.extended_to(larger as u64).unwrap();
        let mut grown = disk.clone();
        grown.resize(larger, 0);
        let cut = torn(&grown, &edits, done.min(edits.len()), mask, sector as usize);
        let now = table(&cut, sector);
        let (old, new) = (was.last().unwrap(), now.last().unwrap());
        prop_assert_eq!(old.number, new.number);
        prop_assert!(new.bytes == old.bytes || new.bytes == place, "{:?}", new);
        // From there the same again comes to the same end.
        let (again, more) = now.extended_to(larger as u64).unwrap();
        let mut ended = cut;
        make(&mut ended, &more);
        let mut wanted = grown;
        make(&mut wanted, &edits);
        prop_assert_eq!(&again, &place);
        prop_assert!(ended == wanted);
        prop_assert!(!table(&ended, sector).is_damaged());
        let spares = |p: &Partition| {
            edits.iter().all(|e| e.at + e.bytes.len() as u64 <= p.bytes.start || e.at >= p.bytes.end)
        };
        let spared = was.partitions().iter().all(spares);
        prop_assert!(spared);

        // And back: on the disk as it is, with its table where it will end.
        let least = was.least().next_multiple_of(4096);
        let back = was.ending_at(least).unwrap();
        let cut = torn(&disk, &back, done.min(back.len()), mask, sector as usize);
        let cut = table(&cut, sector);
        prop_assert_eq!(cut.partitions(), was.partitions());
        let mut small = disk;
        make(&mut small, &back);
        small.truncate(least as usize);
        let small = table(&small, sector);
        prop_assert_eq!(small.partitions(), was.partitions());
        prop_assert!(!small.is_damaged());
        prop_assert!(was.ending_at(was.least() - u64::from(sector)).is_err());
    }

    #[test]
    fn no_bytes_do_any_harm(
        seed in prop::collection::vec(any::<u8>(), 0..2000), at in 0..200 * KIB, size in 0..200 * KIB,
        sector in prop_oneof![Just(512u32), Just(4096)], made in any::<bool>(), to in any::<u64>(),
    ) {
        let parts = [(1, ROOM..60 * KIB), (3, 60 * KIB..100 * KIB)];
        let mut disk = if made { gpt(200 * KIB / 4096 * 4096, sector, &parts) } else { vec![0; size] };
        for (place, byte) in disk.iter_mut().skip(at).zip(&seed) {
            *place = *byte;
        }
        if let Some(boot) = disk.get_mut(510..512) {
            boot.copy_from_slice(&[0x55, 0xaa]);
        }
        let _ = content(&disk);
        let Ok(table) = Table::read(&edges(&disk, sector)) else { return Ok(()) };
        let _ = (table.extended_to(to), table.ending_at(to), table.least());
        let _ = proof(&table, &disk, to);
        if let Ok((place, edits)) = table.extended_to(disk.len() as u64) {
            prop_assert!(place.end <= disk.len() as u64);
            prop_assert!(edits.iter().all(|e| e.at + e.bytes.len() as u64 <= disk.len() as u64));
        }
    }
}

#[test]
fn a_protective_entry_covers_the_disk() {
    let disk = gpt(256 * KIB, 512, &[(1, ROOM..100 * KIB)]);
    let mut larger = disk.clone();
    larger.resize(512 * KIB, 0);
    let (_, edits) = table(&disk, 512).extended_to(512 * KIB as u64).unwrap();
    make(&mut larger, &edits);
    assert_eq!(le32(&larger, 446 + 12), 1023);
}
