//! What is found on the medium when a volume was erased, on file systems of their own.
//!
//! `FOREBAY_E2E=1 cargo test -p forebay-volume-pool --test erase`; needs root, mkfs.ext4, mkfs.xfs and mkfs.btrfs.

use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use blockio::{BlockFile, Fs, OpenMode};
use forebay_volume_pool::erase::{Medium, Method, Outcome, Plan, Proof, Record};
use forebay_volume_pool::{NewVolume, Shelf, VolumeState};
use image::Geometry;

const MIB: u64 = 1 << 20;
/// At the beginning of each sector that is not to be found.
const OURS: &[u8] = b"what the guest has written, and nobody else is to read";
/// And of those that another file has, too.
const THEIRS: &[u8] = b"what everybody has of the image, and is to keep it all";

fn run(words: &[&str]) {
    let done = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(done.status.success(), "{words:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// A file system in a file.
struct Mounted {
    dir: tempfile::TempDir,
}

impl Mounted {
    /// Nothing if this is left out.
    fn new(mkfs: &[&str]) -> Option<Self> {
        if std::env::var_os("FOREBAY_E2E").is_none() {
            println!("left out: needs FOREBAY_E2E=1, root and {}", mkfs[0]);
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let mounted = Self { dir };
        File::create(mounted.image()).unwrap().set_len(512 * MIB).unwrap();
        std::fs::create_dir(mounted.at()).unwrap();
        run(&[mkfs, &[mounted.image().to_str().unwrap()]].concat());
        let [image, at] = [mounted.image(), mounted.at()];
        run(&["mount", "-o", "loop", image.to_str().unwrap(), at.to_str().unwrap()]);
        Some(mounted)
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    fn at(&self) -> PathBuf {
        self.dir.path().join("at")
    }

    fn trim(&self) {
        run(&["sync", "-f", self.at().to_str().unwrap()]);
        run(&["fstrim", self.at().to_str().unwrap()]);
    }

    /// Bytes of the medium, in sectors that begin like that.
    fn found(&self, what: &[u8]) -> u64 {
        run(&["sync", "-f", self.at().to_str().unwrap()]);
        let image = File::open(self.image()).unwrap();
        let mut piece = vec![0; 1 << 20];
        let mut found = 0;
        for at in (0..512 * MIB).step_by(piece.len()) {
            image.read_exact_at(&mut piece, at).unwrap();
            found += piece.chunks(512).filter(|sector| sector.starts_with(what)).count() as u64;
        }
        found * 512
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.at()).status();
    }
}

/// So many bytes whose sectors begin like that.
fn sectors(what: &[u8], len: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    bytes.chunks_mut(512).for_each(|sector| sector[..what.len()].copy_from_slice(what));
    bytes
}

/// A volume of 64 MiB that was used: 24 MiB were written, and 3 MiB it has of another file.
fn used(at: &Path) -> Shelf {
    let shelf = Shelf::open(Fs::os(), at.join("volumes")).unwrap();
    let geometry = Geometry::new(64 * MIB, 512, 16).unwrap();
    let (name, id, created) = ("a".to_owned(), [1; 16], 0);
    let new = NewVolume { name, id, geometry, image: None, shares: false, device: None, created };
    shelf.create(&new).unwrap();
    let image = BlockFile::open(at.join("image"), OpenMode::create()).unwrap();
    image.set_len(64 * MIB).unwrap();
    image.write_all_at(&sectors(THEIRS, 8 * MIB), 40 * MIB).unwrap();
    image.sync_data().unwrap();
    let data = shelf.take("a").unwrap().data;
    for place in [0, 20] {
        data.write_all_at(&sectors(OURS, 8 * MIB), place * MIB).unwrap();
    }
    data.copy_range(&image, 40 * MIB..48 * MIB).unwrap();
    // In the middle of what is shared.
    data.write_all_at(&sectors(OURS, 8 * MIB), 43 * MIB).unwrap();
    data.sync_data().unwrap();
    shelf
}

fn erase(shelf: &Shelf, method: Method) -> Record {
    let plan = Plan { method, proof: Proof::All, seed: [5; 32] };
    let mut erasure = shelf.erase("a", &plan, 1).unwrap();
    erasure.run(&mut |_| ControlFlow::Continue(())).unwrap();
    let record = erasure.record("n", 2, None);
    assert_eq!(record.outcome, Outcome::Erased);
    drop(erasure);
    assert_eq!(shelf.identity("a").unwrap().state, VolumeState::Erasing);
    record
}

fn image_is_whole(at: &Path) {
    let bytes = std::fs::read(at.join("image")).unwrap();
    assert!(bytes[40 << 20..48 << 20] == sectors(THEIRS, 8 * MIB));
}

#[test]
fn real_on_ext4_nothing_is_found() {
    for method in [Method::Zeros { passes: 1 }, Method::Random { passes: 2 }] {
        let Some(disk) = Mounted::new(&["mkfs.ext4", "-q", "-F"]) else { return };
        let shelf = used(&disk.at());
        assert!(disk.found(OURS) > 0);
        let record = erase(&shelf, method);
        let tally = record.tally;
        assert_eq!((record.medium, tally.shared, tally.moved), (Medium::File, 0, 0));
        assert_eq!((tally.overwritten, record.holes()), (27 * MIB, 37 * MIB));
        assert_eq!(tally.read_back, 27 * MIB);
        assert_eq!(disk.found(OURS), 0, "{method}");
        assert_eq!(disk.found(THEIRS), 8 * MIB);
        shelf.remove("a").unwrap();
    }
}

#[test]
fn real_on_xfs_what_is_shared_is_let_go_of_and_stays() {
    let mkfs = ["mkfs.xfs", "-q", "-m", "reflink=1"];
    for method in [Method::Zeros { passes: 2 }, Method::Random { passes: 1 }] {
        let Some(disk) = Mounted::new(&mkfs) else { return };
        let shelf = used(&disk.at());
        assert!(disk.found(OURS) >= 19 * MIB);
        let record = erase(&shelf, method);
        let tally = record.tally;
        assert_eq!((record.medium, tally.moved, tally.discarded), (Medium::File, 0, 0));
        assert_eq!(tally.overwritten + tally.shared, 27 * MIB, "{tally:?}");
        assert_eq!(tally.shared, 3 * MIB, "{tally:?}");
        assert_eq!(disk.found(OURS), 0, "{method}");
        image_is_whole(&disk.at());
        assert_eq!(disk.found(THEIRS), 8 * MIB);
    }
}

#[test]
fn real_what_somebody_shares_meanwhile_is_not_said_to_be_overwritten() {
    let Some(disk) = Mounted::new(&["mkfs.xfs", "-q", "-m", "reflink=1"]) else { return };
    let shelf = used(&disk.at());
    let copy = BlockFile::open(disk.at().join("copy"), OpenMode::create()).unwrap();
    let volume = BlockFile::open(shelf.disk("a").unwrap(), OpenMode::read()).unwrap();
    let plan = Plan { method: Method::Zeros { passes: 1 }, proof: Proof::All, seed: [5; 32] };
    let mut erasure = shelf.erase("a", &plan, 1).unwrap();
    // After it was looked at where all of it lies, and before the first of it is written.
    erasure
        .run(&mut |progress| {
            if progress.at == 0 && copy.size().unwrap() == 0 && progress.next == MIB {
                copy.reflink_from(&volume).unwrap();
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    let tally = erasure.record("n", 2, None).tally;
    assert_eq!((tally.overwritten, tally.moved, tally.shared), (0, 24 * MIB, 3 * MIB), "{tally:?}");
    assert_eq!(disk.found(OURS), 24 * MIB);
}

#[test]
fn real_on_btrfs_all_is_discarded_and_said_to_be() {
    let Some(disk) = Mounted::new(&["mkfs.btrfs", "-q"]) else { return };
    let shelf = used(&disk.at());
    assert!(disk.found(OURS) >= 19 * MIB);
    let record = erase(&shelf, Method::Zeros { passes: 3 });
    let tally = record.tally;
    assert_eq!((record.medium, tally.overwritten), (Medium::CopyOnWrite, 0));
    assert_eq!((tally.discarded, tally.shared), (24 * MIB, 3 * MIB), "{tally:?}");
    image_is_whole(&disk.at());
    disk.trim();
    assert_eq!(disk.found(OURS), 0);
    assert_eq!(disk.found(THEIRS), 8 * MIB);
}

#[test]
fn real_on_a_device_nothing_is_found() {
    let Some(disk) = Mounted::new(&["mkfs.ext4", "-q", "-F"]) else { return };
    let file = disk.dir.path().join("device");
    let on_it = File::create(&file).unwrap();
    on_it.set_len(32 * MIB).unwrap();
    on_it.write_all_at(&sectors(OURS, 32 * MIB - 4096), 0).unwrap();
    let out = Command::new("losetup").args(["--find", "--show"]).arg(&file).output().unwrap();
    let device = String::from_utf8(out.stdout).unwrap().trim().to_owned();
    let erased = std::panic::catch_unwind(|| {
        let shelf = Shelf::open(Fs::os(), disk.dir.path().join("volumes")).unwrap();
        let (name, id, created) = ("a".to_owned(), [1; 16], 0);
        // It has a tail that no guest sees.
        let geometry = Geometry::new(30 * MIB, 512, 16).unwrap();
        let on = Some(PathBuf::from(&device));
        let new = NewVolume { name, id, geometry, image: None, shares: false, device: on, created };
        shelf.create(&new).unwrap();
        let taken = shelf.take("a").unwrap();
        taken.data.write_all_at(&sectors(OURS, 30 * MIB), 0).unwrap();
        drop(taken);
        let record = erase(&shelf, Method::Random { passes: 1 });
        assert_eq!((record.medium, record.tally.overwritten), (Medium::Device, 32 * MIB - 4096));
        let bytes = std::fs::read(&file).unwrap();
        let left = bytes.chunks(512).filter(|sector| sector.starts_with(OURS)).count();
        assert_eq!(left, 0);
        let record = erase(&shelf, Method::Discard);
        assert_eq!(record.tally.discarded, 32 * MIB - 4096);
        shelf.remove("a").unwrap();
    });
    run(&["losetup", "--detach", &device]);
    erased.unwrap();
}
