//! What must not go wrong when something else does.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::harness::{Background, Disk, Grid, files, flip, path, until};

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
        let whole = grid.dir.join("whole.raw");
        grid.pull("d:1", &whole).json();
        grid.stop();
        grid.objects(folder).iter().for_each(|object| flip(object, at));
        grid.restart();
        let named = |object: &PathBuf| object.file_name().unwrap().to_str().unwrap().to_owned();
        let damaged: Vec<String> = grid.objects(folder).iter().map(named).collect();
        let [damaged] = &damaged[..] else { panic!("{damaged:?}: one small image has one") };
        let copy = grid.dir.join("copy");
        grid.pull("d:1", &copy).fails(76, &[damaged]);
        assert!(!copy.exists(), "{folder}");
        grid.run(&["verify", "d:1", "--deep"])
            .fails(76, &["d:1", damaged, "import the same disk again"]);
        // The copy that was pulled before mends nothing by itself, but importing it again does.
        grid.import(&whole, "d:2");
        grid.run(&["verify", "d:1", "--deep"]).json();
        grid.pull("d:1", &copy).json();
        assert!(holds(&copy, &disk), "{folder}");
    }
}

#[test]
fn what_rots_in_the_store_is_named_and_given_back_by_a_cache_that_has_it() {
    let mut grid = Grid::start();
    let disk = Disk::new("abcd");
    grid.import(&grid.disk("d.raw", &disk), "d:1");
    let rot = |grid: &Grid| {
        grid.objects("packs").iter().for_each(|pack| flip(pack, 5000));
        grid.run(&["verify", "d:1", "--deep"]).fails(76, &["section 0 chunk ", "--repair"]);
    };
    let repair = ["verify", "d:1", "--deep", "--repair"];
    rot(&grid);
    grid.run(&repair).fails(76, &["section 0 chunk ", "no cache has it"]);
    grid.import(&grid.disk("d.raw", &disk), "d:1");
    grid.pull("d:1", &grid.dir.join("cached")).json();
    let packs = grid.objects("packs");
    rot(&grid);
    let report = grid.run(&repair).json();
    assert_eq!((&report["bad"], report["repaired"].as_array().unwrap().len()), (&json!([]), 1));
    assert_eq!(grid.objects("packs").len(), packs.len() + 1, "one chunk was given back");
    // Of the store alone.
    grid.stop();
    std::fs::remove_dir_all(grid.data.join("cache")).unwrap();
    grid.restart();
    let report = grid.run(&["verify", "d:1", "--deep"]).json();
    assert_eq!((&report["bad"], &report["repaired"]), (&json!([]), &json!([])));
    let copy = grid.dir.join("copy");
    grid.pull("d:1", &copy).json();
    assert!(holds(&copy, &disk));
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
            // Without any grace it may delete what has been committed and not named yet.
            let ended = grid.run(&["gc", "--grace", "10s"]);
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
    until("it works", || {
        assert!(slow.child.try_wait().unwrap().is_none(), "the slow pull ended early");
        partial.exists()
    });
    grid.pull("d:1", &copy).fails(73, &["copy"]);
    assert!(slow.child.wait().unwrap().success());
    assert!(holds(&copy, &disk));
}

#[test]
fn an_interrupted_command_says_so_and_is_run_again() {
    let grid = Grid::start();
    let disk = Disk::new("abcdefghijklmnopqrstuvwx");
    let file = grid.disk("d.raw", &disk);
    grid.import(&file, "d:1");
    for signal in ["-TERM", "-INT"] {
        let copy = grid.dir.join(format!("copy{signal}"));
        let args = ["pull", "d:1", "--to", path(&copy), "--no-daemon", "--rate", "256KiB"];
        let mut pull = Background::start(&mut grid.command(&args));
        let partial = grid.dir.join(format!(".copy{signal}.forebay-partial"));
        until("it works", || partial.exists());
        assert_eq!(pull.end(signal).1, 130, "{signal}");
        assert!(!copy.exists());
        grid.pull("d:1", &copy).json();
        assert!(holds(&copy, &disk));
    }
    // One that waits for its input, and is told to end.
    let mut import = grid.command(&["import", "-", "d:2"]);
    let mut import = Background::start(import.stdin(std::process::Stdio::piped()));
    let handles = format!("/proc/{}/status", import.child.id());
    until("it handles signals", || catches_term(Path::new(&handles)));
    assert_eq!(import.end("-TERM").1, 130);
    grid.run(&["inspect", "d:2"]).fails(66, &["d:2"]);
}

/// Whether a process has a handler for SIGTERM.
fn catches_term(status: &Path) -> bool {
    let status = std::fs::read_to_string(status).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    caught.is_some_and(|mask| mask >> 14 & 1 == 1)
}
