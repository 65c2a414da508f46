//! Drafts: a file is there whole or not at all, and one writes to it.

use std::path::Path;

use blockio::fake::{CrashPlan, FaultOp, FaultPlan, MemFs};
use blockio::{Engine, EngineKind, EngineOptions, Fs, OpenMode};
use bytes::Bytes;
use forebay_volume_pool::foreign::{Draft, Piece};
use image::{Kind, Result};

const PATH: &str = "/d/disk.qcow2";

fn memory() -> (MemFs, Fs) {
    let disk = MemFs::new();
    let fs = disk.fs();
    fs.create_dir_all("/d").unwrap();
    disk.settle();
    (disk, fs)
}

fn content(fs: &Fs) -> Option<Vec<u8>> {
    fs.read(PATH, 1 << 20).ok()
}

fn put(fs: &Fs, bytes: &[u8]) {
    let file = fs.open(PATH, OpenMode::create()).unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file.sync_data().unwrap();
    fs.sync_dir("/d").unwrap();
}

/// Writes a file of 5000 bytes in two pieces.
fn export(fs: &Fs, replace: bool) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let engine = Engine::start(EngineOptions::kind(EngineKind::Portable)).unwrap();
        let draft = Draft::open_in(fs, Path::new(PATH), replace)?;
        for at in [1000, 0] {
            draft.write(&engine, Piece { at, bytes: Bytes::from(vec![7; 1000]) }).await?;
        }
        draft.finish(&engine, 5000).await
    })
}

fn whole() -> Vec<u8> {
    [vec![7; 2000], vec![0; 3000]].concat()
}

#[test]
fn it_is_there_when_it_is_complete_and_replaces_nothing_unasked() {
    let (_, fs) = memory();
    put(&fs, b"old");
    let refused = export(&fs, false).unwrap_err();
    assert_eq!(refused.kind(), Kind::Conflict);
    assert!(refused.message().contains(PATH) && refused.message().contains("--force"));
    assert_eq!(content(&fs).unwrap(), b"old");
    export(&fs, true).unwrap();
    assert_eq!(content(&fs).unwrap(), whole());
    assert_eq!(fs.list("/d").unwrap(), ["disk.qcow2"]);
}

#[test]
fn one_at_a_time_and_what_is_given_up_leaves_nothing() {
    let (_, fs) = memory();
    let first = Draft::open_in(&fs, Path::new(PATH), false).unwrap();
    assert_eq!(export(&fs, false).unwrap_err().kind(), Kind::Conflict);
    assert_eq!(fs.list("/d").unwrap().len(), 1, "the first one's");
    drop(first);
    assert!(fs.list("/d").unwrap().is_empty());
    // What a killed process left is taken, and nothing of it stays.
    let left = fs.open("/d/.disk.qcow2.forebay-export", OpenMode::create()).unwrap();
    left.write_all_at(&[9; 9000], 0).unwrap();
    drop(left);
    export(&fs, false).unwrap();
    assert_eq!(content(&fs).unwrap(), whole());
    assert_eq!(fs.list("/d").unwrap(), ["disk.qcow2"]);
}

#[test]
fn what_came_to_the_path_meanwhile_stays() {
    let (_, fs) = memory();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ended = runtime.block_on(async {
        let engine = Engine::start(EngineOptions::kind(EngineKind::Portable)).unwrap();
        let draft = Draft::open_in(&fs, Path::new(PATH), false).unwrap();
        put(&fs, b"other");
        draft.finish(&engine, 10).await
    });
    assert_eq!(ended.unwrap_err().kind(), Kind::Conflict);
    assert_eq!(content(&fs).unwrap(), b"other");
    assert_eq!(fs.list("/d").unwrap(), ["disk.qcow2"]);
}

#[test]
fn what_fails_leaves_what_was_there() {
    for (op, fault, kind) in [
        (FaultOp::Write, blockio::fake::Fault::Full, Kind::Full),
        (FaultOp::Sync, blockio::fake::Fault::Io, Kind::Io),
    ] {
        for replace in [false, true] {
            for nth in 1.. {
                let (_, fs) = memory();
                if replace {
                    put(&fs, b"old");
                }
                let plan = FaultPlan::new();
                let wrapped = plan.wrap_fs(&fs);
                plan.fail(op, nth, fault);
                let Err(error) = export(&wrapped, replace) else { break };
                assert_eq!(error.kind(), kind, "{error}");
                assert_eq!(content(&fs), replace.then(|| b"old".to_vec()));
                assert_eq!(fs.list("/d").unwrap().len(), usize::from(replace), "{error}");
            }
        }
    }
}

#[test]
fn a_power_cut_leaves_it_whole_or_as_it_was() {
    for replace in [false, true] {
        let (disk, fs) = memory();
        if replace {
            put(&fs, b"old");
            disk.settle();
        }
        export(&fs, replace).unwrap();
        disk.mark("done");
        for image in disk.crash_images(CrashPlan::default()) {
            let before = !image.reached("done");
            match content(&image.fs()) {
                Some(found) if found == whole() => {}
                found => assert!(
                    before && found == replace.then(|| b"old".to_vec()),
                    "{image}: {:?} bytes",
                    found.map(|f| f.len())
                ),
            }
            export(&image.fs(), true).unwrap();
            assert_eq!(content(&image.fs()).unwrap(), whole());
        }
    }
}
