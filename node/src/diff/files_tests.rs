//! Two small file systems (`tests/fixtures/ext4`), on disks and damaged.

use std::cell::Cell;

use proptest::prelude::*;

use super::super::ext::guarded;
use super::*;

struct Memory {
    bytes: Vec<u8>,
    read: Cell<u64>,
}

impl ReadAt for Memory {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn sector(&self) -> u32 {
        512
    }

    fn read_at(&self, at: u64, into: &mut [u8]) -> Result<()> {
        self.read.set(self.read.get() + into.len() as u64);
        into.copy_from_slice(&self.bytes[at as usize..][..into.len()]);
        Ok(())
    }
}

fn fixture(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/fixtures/ext4/{name}.ext4.zst", env!("CARGO_MANIFEST_DIR"));
    zstd::decode_all(&std::fs::read(path).unwrap()[..]).unwrap()
}

fn disk(bytes: Vec<u8>) -> Rc<Memory> {
    Rc::new(Memory { bytes, read: Cell::default() })
}

fn compared(old: Vec<u8>, new: Vec<u8>, difference: Option<&Difference>) -> Vec<FileSystemDiff> {
    compare_disks(&[disk(old), disk(new)], difference, &Arc::default()).unwrap()
}

fn said(report: &FileSystemDiff) -> Vec<String> {
    let added = report.added.iter().map(|path| format!("+{path}"));
    let removed = report.removed.iter().map(|path| format!("-{path}"));
    let changed = report.changed.iter().map(|c| format!("{} {}", c.path, c.what.join(" ")));
    let mut all: Vec<_> = added.chain(removed).chain(changed).collect();
    all.sort();
    all
}

const CHANGES: [&str; 8] = [
    "+/kind/added",
    "-/gone",
    "/etc/hostname content time",
    "/kind type mode",
    "/link target",
    "/perm mode",
    "/touched time",
    "/usr/bin/tool size content time",
];

#[test]
fn what_was_added_removed_and_changed_is_told() {
    let reports = compared(fixture("old"), fixture("new"), None);
    let [report] = &reports[..] else { panic!("{reports:?}") };
    assert_eq!((report.partition, report.old.as_deref()), (None, Some("ext")));
    assert_eq!((&report.unread, report.untold, report.same), (&None, 0, false));
    assert_eq!(said(report), CHANGES);
    let tool = report.changed.iter().find(|c| c.path == "/usr/bin/tool").unwrap();
    assert_eq!(tool.size, [3893, 4893]);
    assert!(said(&compared(fixture("old"), fixture("old"), None)[0]).is_empty());
}

/// A disk with these partitions of 1 MiB, by their numbers.
fn mbr(partitions: &[(usize, Vec<u8>)]) -> Vec<u8> {
    let mut disk = vec![0; (1 + partitions.len()) << 20];
    for (i, (number, bytes)) in partitions.iter().enumerate() {
        let (entry, sectors) = (446 + 16 * (number - 1), 1u32 << 11);
        disk[entry + 4] = 0x83;
        disk[entry + 8..][..4].copy_from_slice(&(sectors * (1 + i as u32)).to_le_bytes());
        disk[entry + 12..][..4].copy_from_slice(&sectors.to_le_bytes());
        disk[(1 + i) << 20..][..bytes.len()].copy_from_slice(bytes);
    }
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk
}

#[test]
fn file_systems_are_paired_by_partition_and_others_are_named() {
    let xfs = |n: u8| [&b"XFSB\0\0\x10\0\0\0\0\0\0\0\0"[..], &[n]].concat();
    let old = mbr(&[(1, fixture("old")), (2, xfs(9)), (3, fixture("old"))]);
    let new = mbr(&[(1, fixture("old")), (2, xfs(8)), (4, fixture("new"))]);
    let reports = compared(old, new, None);
    let told: Vec<_> = reports
        .iter()
        .map(|r| (r.partition.unwrap(), r.old.as_deref(), r.new.as_deref(), r.unread.is_some()))
        .collect();
    let expected = [
        (1, Some("ext"), Some("ext"), false),
        (2, Some("XFS"), Some("XFS"), true),
        (3, Some("ext"), None, false),
        (4, None, Some("ext"), false),
    ];
    assert_eq!(told, expected);
    assert!(reports.iter().all(|r| said(r).is_empty()));
    let (old, new) = (mbr(&[(2, fixture("old"))]), mbr(&[(2, fixture("new"))]));
    assert_eq!(said(&compared(old, new, None)[0]), CHANGES);
}

#[test]
fn what_is_damaged_is_told_and_takes_no_memory() {
    let damaged = |at: usize, bytes: &[u8]| {
        let mut disk = fixture("new");
        disk[at..at + bytes.len()].copy_from_slice(bytes);
        let report = compared(fixture("old"), disk, None).remove(0);
        report.unread.unwrap_or_default()
    };
    // Fields of the superblock, at 1024: blocks, those of a group, features, the journal's inode.
    assert!(damaged(1024 + 4, &[0xff; 4]).contains("its place only"));
    assert!(damaged(1024 + 0x60, &[0xc2 | 4, 2, 0, 0]).contains("journal"));
    assert!(damaged(1024 + 0x28, &[0; 4]).contains("corrupt"));
    let mut disk = fixture("new");
    disk.truncate(300 << 10);
    let report = compared(fixture("old"), disk, None).remove(0);
    assert!(report.unread.unwrap().contains("its place only"));
}

#[test]
fn what_cannot_be_read_does_not_keep_the_rest() {
    let mut disk = fixture("new");
    // A time of the first file that was written then: it is after 2038.
    let touched = 1_700_000_100u32.to_le_bytes();
    let at = disk.windows(4).position(|w| w == touched).expect("a time");
    disk[at + 3] = 0xff;
    let report = compared(fixture("old"), disk, None).remove(0);
    assert!(report.unread.is_some(), "{report:?}");
    let said = said(&report);
    assert!(said.iter().any(|line| line.ends_with(" unread")), "{said:?}");
    assert!(said.contains(&"-/gone".to_owned()) && said.contains(&"+/kind/added".to_owned()));
}

#[test]
fn a_directory_that_is_its_own_child_ends_somewhere() {
    let mut disk = fixture("new");
    // Inode of the first entry of `kind`, which is `added`: the root, as a directory.
    let at = disk.windows(5).position(|w| w == b"added").unwrap() - 8;
    disk[at..at + 4].copy_from_slice(&2u32.to_le_bytes());
    let report = compared(fixture("old"), disk, None).remove(0);
    assert!(report.unread.as_ref().unwrap().contains("directories in each other"), "{report:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn no_damage_does_harm(
        hits in proptest::collection::vec((0usize..64 << 10, any::<u8>()), 1..12),
        more in proptest::collection::vec((1024usize..2048, any::<u8>()), 0..2),
    ) {
        let mut disk = fixture("new");
        hits.iter().chain(&more).for_each(|(at, byte)| disk[*at] = *byte);
        let disks: [Rc<dyn ReadAt>; 2] = [self::disk(fixture("old")), self::disk(disk)];
        if let Err(e) = compare_disks(&disks, None, &Arc::default()) {
            prop_assert!(is_of_the_disk(&e), "{e}");
        }
    }
}

#[test]
fn a_report_that_is_too_long_is_cut() {
    let (old, new) = (disk(fixture("old")), disk(fixture("new")));
    let open = |disk: &Rc<Memory>| {
        let bytes = 0..disk.size();
        ExtFs::open(Extent { disk: disk.clone(), bytes }, Arc::default()).unwrap()
    };
    let (was, is) = (open(&old), open(&new));
    let (mut report, mut told) = (FileSystemDiff::default(), 150);
    let walk = Walk::new(&was, &is, &mut report, &mut told, 0);
    walk.run().unwrap();
    assert_eq!(said(&report).len() as u64 + report.untold, CHANGES.len() as u64);
    assert_eq!(said(&report).len(), 2);
    // Nothing may be compared: then it is said that it was not.
    assert!(
        report
            .changed
            .iter()
            .all(|c| !c.what.contains(&"content".to_owned()) || c.size[0] != c.size[1])
    );
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_goes_round_in_circles_is_given_up_and_one_that_waits_is_not() {
    let pace = Arc::new(Pace::default());
    let (_circling, ended) = oneshot::channel::<Result<()>>();
    let given_up = watched(ended, &pace, &mut |_| ()).await.unwrap_err();
    assert!(given_up.kind() == Kind::Corrupt && given_up.message().contains("circles"));
    // One that goes on slowly, one that waits, and one that died.
    for waits in [false, true] {
        let (done, ended) = oneshot::channel();
        pace.set_waiting(waits);
        let reader = async {
            for _ in 0..5 {
                tokio::time::sleep(LOOK * (LOOKS - 1)).await;
                pace.step().unwrap();
            }
            done.send(Ok(7)).unwrap();
        };
        let mut looks = 0;
        let mut progress = |_| looks += 1;
        let (found, ()) = tokio::join!(watched(ended, &pace, &mut progress), reader);
        assert_eq!((found.unwrap(), looks > 50), (7, true));
    }
    let (died, ended) = oneshot::channel::<Result<()>>();
    drop(died);
    assert_eq!(watched(ended, &pace, &mut |_| ()).await.unwrap_err().kind(), Kind::Corrupt);
    pace.end();
    assert_eq!(pace.step().unwrap_err().kind(), Kind::Cancelled);
}

#[test]
fn a_reader_that_panics_has_found_damage() {
    let ended = guarded(|| -> Result<()> { panic!("as at a directory whose hashes are damaged") });
    assert_eq!(ended.unwrap_err().kind(), Kind::Corrupt);
}
