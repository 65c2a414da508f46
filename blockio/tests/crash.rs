//! The recorder catches what is wrong and passes what is right.

use std::collections::BTreeSet;
use std::io;

use blockio::fake::{CrashImage, CrashPlan, Fate, Fault, FaultOp, FaultPlan, MemFs, Op};
use blockio::{Fs, OpenMode};

/// Long enough to be torn.
const OLD: &[u8] = &[b'o'; 1500];
const NEW: &[u8] = &[b'n'; 2500];

/// Puts `bytes` at `/state` in the steps that are asked for.
fn put(fs: &Fs, bytes: &[u8], sync: bool, sync_dir: bool) -> io::Result<()> {
    let file = fs.open("/state.new", OpenMode::create())?;
    file.set_len(0)?;
    file.write_all_at(bytes, 0)?;
    if sync {
        file.sync_data()?;
    }
    if sync_dir {
        return fs.rename_durable("/state.new", "/state");
    }
    // What one gets without `rename_durable`.
    fs.open("/state", OpenMode::create())?.set_len(0)?;
    fs.open("/state", OpenMode::write())?.write_all_at(bytes, 0)
}

fn run(sync: bool, sync_dir: bool) -> MemFs {
    let disk = MemFs::new();
    put(&disk.fs(), OLD, true, true).unwrap();
    disk.settle();
    put(&disk.fs(), NEW, sync, sync_dir).unwrap();
    disk.mark("done");
    disk
}

/// Whether the disk is one that a reader may find.
fn fits(image: &CrashImage) -> bool {
    match image.fs().read("/state", 1 << 20) {
        Ok(state) if image.reached("done") => state == NEW,
        Ok(state) => state == OLD || state == NEW,
        Err(_) => false,
    }
}

#[test]
fn write_sync_rename_survives_everything() {
    let images: Vec<_> = run(true, true).crash_images(CrashPlan::default()).collect();
    assert!(images.len() > 10);
    for image in &images {
        assert!(fits(image), "{image}");
    }
    assert!(images.iter().any(|image| image.fates().iter().any(|(_, fate)| *fate == Fate::Lost)));
    assert!(images.last().unwrap().reached("done"));
}

#[test]
fn no_sync_before_the_rename_is_caught() {
    let bad: Vec<_> =
        run(false, true).crash_images(CrashPlan::default()).filter(|i| !fits(i)).collect();
    let empty = |image: &CrashImage| image.fs().read("/state", 1 << 20).unwrap().is_empty();
    let torn = |image: &CrashImage| {
        let state = image.fs().read("/state", 1 << 20).unwrap();
        state.contains(&b'n') && state.contains(&0)
    };
    assert!(bad.iter().any(empty), "renamed, but nothing in it");
    assert!(bad.iter().any(torn), "renamed, but half in it");
    println!("{}", bad[0]);
}

#[test]
fn writing_in_place_is_caught() {
    assert!(run(true, false).crash_images(CrashPlan::default()).any(|image| !fits(&image)));
}

#[test]
fn a_name_that_was_not_synced_may_be_gone() {
    let disk = MemFs::new();
    let file = disk.fs().open("/f", OpenMode::create_new()).unwrap();
    file.write_all_at(b"x", 0).unwrap();
    file.sync_all().unwrap();
    disk.mark("synced");
    let after = |image: &CrashImage| image.reached("synced");
    let there = |image: CrashImage| image.fs().exists("/f").unwrap();
    let seen: BTreeSet<_> =
        disk.crash_images(CrashPlan::default()).filter(after).map(there).collect();
    assert_eq!(seen, BTreeSet::from([false, true]));
    disk.fs().sync_dir("/").unwrap();
    disk.mark("named");
    for image in disk.crash_images(CrashPlan::default()).filter(|image| image.reached("named")) {
        assert_eq!(image.fs().read("/f", 1).unwrap(), b"x", "{image}");
    }
}

#[test]
fn every_subset_of_unsynced_writes_is_tried() {
    let disk = MemFs::new();
    let file = disk.fs().open("/f", OpenMode::create()).unwrap();
    file.set_len(5).unwrap();
    file.sync_data().unwrap();
    disk.fs().sync_dir("/").unwrap();
    disk.settle();
    for i in 0..5 {
        file.write_all_at(&[1], i).unwrap();
    }
    let content = |image: CrashImage| image.fs().read("/f", 5).unwrap();
    let plan = CrashPlan { torn: false, ..CrashPlan::default() };
    let seen: Vec<_> = disk.crash_images(plan).map(content).collect();
    assert_eq!((seen.len(), seen.iter().collect::<BTreeSet<_>>().len()), (32, 32));
    file.sync_data().unwrap();
    assert_eq!(disk.crash_images(plan).last().map(content).unwrap(), [1; 5]);
}

#[test]
fn with_too_many_to_try_all_it_tries_the_telling_ones() {
    let disk = MemFs::new();
    let file = disk.fs().open("/f", OpenMode::create()).unwrap();
    disk.fs().sync_dir("/").unwrap();
    disk.settle();
    for i in 0..40 {
        file.write_all_at(&[1; 1024], i * 1024).unwrap();
    }
    disk.mark("end");
    let plan = CrashPlan { seed: 7, per_point: 32, torn: true };
    let at_end = || disk.crash_images(plan).filter(|image| image.reached("end"));
    let lost = |image: &CrashImage| image.fates().iter().filter(|f| f.1 == Fate::Lost).count();
    let counts: BTreeSet<_> = at_end().map(|image| lost(&image)).collect();
    for telling in [0, 1, 39, 40] {
        assert!(counts.contains(&telling), "{counts:?}");
    }
    assert!(counts.iter().any(|count| (10..30).contains(count)), "{counts:?}");
    assert!(at_end().count() <= 32 + 8);
    let again: Vec<_> = at_end().map(|image| image.fates().to_vec()).collect();
    assert_eq!(again, at_end().map(|image| image.fates().to_vec()).collect::<Vec<_>>());
}

#[test]
fn a_torn_write_is_torn_between_sectors() {
    let disk = MemFs::new();
    let file = disk.fs().open("/f", OpenMode::create()).unwrap();
    file.write_all_at(&[1; 3000], 0).unwrap();
    file.sync_data().unwrap();
    disk.fs().sync_dir("/").unwrap();
    disk.settle();
    file.write_all_at(&[2; 1000], 700).unwrap();
    let mut torn = 0;
    for image in disk.crash_images(CrashPlan::default()) {
        let bytes = image.fs().read("/f", 3000).unwrap();
        assert!(bytes[..700].iter().chain(&bytes[1700..]).all(|byte| *byte == 1));
        for part in [700..1024, 1024..1536, 1536..1700] {
            assert!(bytes[part.clone()].iter().all(|byte| *byte == bytes[part.start]), "{image}");
        }
        torn += usize::from(bytes[700..1700].contains(&1) && bytes[700..1700].contains(&2));
    }
    assert!(torn > 0);
}

#[test]
fn a_sync_that_failed_makes_nothing_last() {
    let (disk, plan) = (MemFs::new(), FaultPlan::new());
    let fs = plan.wrap_fs(&disk.fs());
    let file = fs.open("/f", OpenMode::create()).unwrap();
    fs.sync_dir("/").unwrap();
    file.write_all_at(b"x", 0).unwrap();
    plan.fail(FaultOp::Sync, 1, Fault::Io);
    assert!(file.sync_data().is_err());
    disk.mark("end");
    let sizes: BTreeSet<_> = disk
        .crash_images(CrashPlan::default())
        .filter(|image| image.reached("end"))
        .map(|image| image.fs().read("/f", 1).unwrap().len())
        .collect();
    assert_eq!(sizes, BTreeSet::from([0, 1]));
}

#[test]
fn a_file_keeps_its_bytes_whatever_becomes_of_its_name() {
    let disk = MemFs::new();
    let fs = disk.fs();
    fs.create_dir_all("/pool/a").unwrap();
    fs.replace("/pool/a/data", OLD).unwrap();
    disk.settle();
    // A claim is a rename of the directory.
    fs.rename_new_durable("/pool/a", "/pool/claimed").unwrap();
    disk.mark("claimed");
    fs.open("/pool/claimed/data", OpenMode::write()).unwrap().write_all_at(b"x", 0).unwrap();
    for image in disk.crash_images(CrashPlan::default()) {
        let fs = image.fs();
        let (old, new) = (fs.read("/pool/a/data", 1500), fs.read("/pool/claimed/data", 1500));
        assert!(old.is_ok() != new.is_ok(), "{image}: exactly one name");
        assert!(!image.reached("claimed") || new.is_ok(), "{image}");
        assert_eq!(old.or(new).unwrap()[1..], OLD[1..]);
    }
}

#[test]
fn recovery_can_be_crashed_as_well() {
    let disk = run(true, true);
    let recover = |fs: &Fs| -> io::Result<()> {
        if fs.exists("/state.new")? {
            fs.remove_file("/state.new")?;
            fs.sync_dir("/")?;
        }
        Ok(())
    };
    let mut images = 0;
    for image in disk.crash_images(CrashPlan::default()) {
        recover(&image.fs()).unwrap();
        image.disk().mark("recovered");
        for second in image.disk().crash_images(CrashPlan::default()) {
            let state = second.fs().read("/state", 1 << 20).unwrap();
            assert!(state == OLD || state == NEW, "{image}, then {second}");
            let clean = !second.fs().exists("/state.new").unwrap();
            assert!(clean || !second.reached("recovered"), "{image}, then {second}");
            images += 1;
        }
    }
    assert!(images > 20);
}

#[test]
fn the_log_tells_what_was_done() {
    let text: Vec<_> = run(true, true).log().iter().map(Op::to_string).collect();
    let expected = [
        "create /state.new (#2)",
        "truncate #2 to 0",
        "write #2 at 0, 2500 bytes",
        "sync #2",
        "rename #2 to /state",
        "sync directory #0",
        "mark \"done\"",
    ];
    assert_eq!(text, expected);
}

#[test]
fn a_power_cut_by_lot_keeps_what_was_synced_and_loses_some_of_the_rest() {
    let disk = MemFs::new();
    let fs = disk.fs();
    put(&fs, OLD, true, true).unwrap();
    let synced = fs.open("/state", OpenMode::write()).unwrap();
    let fresh = fs.open("/fresh", OpenMode::create()).unwrap();
    fresh.write_all_at(NEW, 0).unwrap();
    let (mut named, mut whole, mut torn) = (0, 0, 0);
    for seed in 0..200 {
        let left = disk.cut_power(seed);
        assert_eq!(left.fs().read("/state", 1 << 20).unwrap(), OLD, "seed {seed}");
        let again = disk.cut_power(seed).fs().read("/fresh", 1 << 20).ok();
        let found = left.fs().read("/fresh", 1 << 20).ok();
        assert_eq!(found, again, "seed {seed}: the same seed, the same disk");
        named += u32::from(found.is_some());
        let Some(found) = found else { continue };
        whole += u32::from(found == NEW);
        torn += u32::from(!found.is_empty() && found != NEW);
    }
    assert!(named > 50 && named < 200, "{named}");
    assert!(whole > 20 && torn > 5, "{whole} whole, {torn} torn");
    // A later sync holds for all of them.
    fresh.sync_data().unwrap();
    synced.sync_data().unwrap();
    fs.sync_dir("/").unwrap();
    assert!((0..50).all(|seed| disk.cut_power(seed).fs().read("/fresh", 1 << 20).unwrap() == NEW));
}

#[test]
fn work_on_a_fake_is_done_at_once_on_this_thread() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let here = std::thread::current().id();
    let who = || std::thread::current().id();
    let (fake, real) = runtime.block_on(async {
        let failing = FaultPlan::new().wrap_fs(&MemFs::new().fs());
        (failing.unblock(who).await.unwrap(), Fs::os().unblock(who).await.unwrap())
    });
    assert_eq!(fake, here);
    assert_ne!(real, here);
}
