//! What must not go wrong when something else does.

use std::path::Path;
use std::time::Duration;

use crate::harness::{Background, Disk, Grid, files, flip, path};

fn holds(copy: &Path, disk: &Disk) -> bool {
    std::fs::read(copy).is_ok_and(|bytes| bytes == disk.bytes)
}

#[test]
fn a_corrupted_cache_is_caught_and_repaired_from_the_store() {
    let mut grid = Grid::start();
    let disk = Disk::new("abcdefgh");
    grid.import(&grid.disk("d.raw", &disk), "d:1");
    grid.pull("d:1", &grid.dir.join("first")).json();
    grid.stop();
    let mut segments = Vec::new();
    files(&grid.data.join("cache"), &mut segments);
    segments.retain(|p| p.metadata().unwrap().len() > 300_000);
    assert!(!segments.is_empty(), "nothing was cached on disk");
    segments.iter().for_each(|segment| flip(segment, 200_000));
    grid.restart();
    let copy = grid.dir.join("copy");
    grid.pull("d:1", &copy).json();
    assert!(holds(&copy, &disk));
    assert!(grid.stop()["bad_frames"].as_u64().unwrap() > 0);
}

#[test]
fn a_corrupted_store_is_named_and_nothing_wrong_gets_a_name() {
    for (folder, at) in [("packs", 5000), ("manifests", 40), ("sections", 40)] {
        let mut grid = Grid::start_with(&["--set", "cache.disk=0"]);
        let disk = Disk::new("abcd");
        grid.import(&grid.disk("d.raw", &disk), "d:1");
        let whole = grid.dir.join("whole");
        grid.pull("d:1", &whole).json();
        grid.stop();
        grid.objects(folder).iter().for_each(|object| flip(object, at));
        grid.restart();
        let copy = grid.dir.join("copy");
        let failed = grid.pull("d:1", &copy);
        assert_ne!(failed.code, 0, "{folder}");
        assert!(!copy.exists(), "{folder}: {}", failed.err);
        let verified = grid.run(&["verify", "d:1", "--deep"]);
        assert_ne!(verified.code, 0, "{folder}");
        // The copy that was pulled before mends nothing by itself, but importing it again does.
        assert!(holds(&whole, &disk));
    }
}

#[test]
fn a_damaged_locator_is_made_anew() {
    let mut grid = Grid::start_with(&["--set", "cache.disk=0"]);
    let disk = Disk::new("abcd");
    grid.import(&grid.disk("d.raw", &disk), "d:1");
    grid.stop();
    grid.objects("locators").iter().for_each(|object| flip(object, 70));
    grid.restart();
    let copy = grid.dir.join("copy");
    grid.pull("d:1", &copy).json();
    assert!(holds(&copy, &disk));
}

#[expect(clippy::disallowed_methods, reason = "polls what another process does")]
fn wait(t: Duration) {
    std::thread::sleep(t);
}

#[test]
fn two_at_once() {
    let grid = Grid::start();
    let disk = Disk::new("abcdefghijklmnopqrstuvwx");
    let file = grid.disk("d.raw", &disk);
    let imports =
        [0, 1].map(|_| Background::start(&mut grid.command(&["import", path(&file), "d:1"])));
    let mut collected = 0;
    for mut import in imports {
        while import.child.try_wait().unwrap().is_none() {
            let ended = grid.run(&["gc", "--grace", "0s"]);
            assert!([0, 73, 75].contains(&ended.code), "{}", ended.err);
            collected += 1;
        }
        assert!(import.child.wait().unwrap().success());
    }
    assert!(collected > 0);
    let copy = grid.dir.join("copy");
    let args = ["pull", "d:1", "--to", path(&copy), "--no-daemon", "--rate", "2MiB"];
    let mut slow = Background::start(&mut grid.command(&args));
    let partial = grid.dir.join(".copy.forebay-partial");
    while !partial.exists() {
        assert!(slow.child.try_wait().unwrap().is_none(), "the slow pull ended early");
        wait(Duration::from_millis(5));
    }
    grid.pull("d:1", &copy).fails(73, &["copy"]);
    assert!(slow.child.wait().unwrap().success());
    assert!(holds(&copy, &disk));
}
