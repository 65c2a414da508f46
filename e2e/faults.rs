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

/// Kill points: so many milliseconds after the command began. `FOREBAY_E2E=1` tries 200 of them.
fn kill_points() -> impl Iterator<Item = Duration> {
    let many = std::env::var_os("FOREBAY_E2E").is_some();
    let n = if many { 200 } else { 6 };
    (0..n).map(move |i| Duration::from_millis(i * 600 / n + 5))
}

#[expect(clippy::disallowed_methods, reason = "a kill comes at some time")]
fn wait(t: Duration) {
    std::thread::sleep(t);
}

#[test]
fn an_import_killed_at_any_time_leaves_no_half_image_and_is_run_again() {
    let grid = Grid::start();
    for (i, after) in kill_points().enumerate() {
        let letters: String = (0..24).map(|c| char::from(b'A' + ((i + c) % 26) as u8)).collect();
        let disk = Disk::new(&letters);
        let (file, name) = (grid.disk("d.raw", &disk), format!("d:{i}"));
        let mut import = Background::start(&mut grid.command(&["import", path(&file), &name]));
        wait(after);
        import.kill();
        let half = grid.run(&["verify", &name, "--deep"]);
        assert!(half.code == 0 || half.code == 66, "after {after:?}: {}", half.err);
        grid.import(&file, &name);
        grid.run(&["verify", &name, "--deep"]).json();
    }
}

#[test]
fn a_pull_killed_at_any_time_shows_a_whole_image_or_none_and_is_run_again() {
    let grid = Grid::start();
    let (old, new) = (Disk::new("abcdefghijklmnop"), Disk::new("abcXefghYjklmnoZ"));
    grid.import(&grid.disk("old.raw", &old), "d:1");
    grid.import(&grid.disk("new.raw", &new), "d:2");
    let copy = grid.dir.join("copy");
    for after in kill_points() {
        for (name, disk) in [("d:2", &new), ("d:1", &old)] {
            let args = ["pull", name, "--to", path(&copy), "--no-daemon"];
            let mut pull = Background::start(&mut grid.command(&args));
            wait(after / 3);
            pull.kill();
            let whole = holds(&copy, &old) || holds(&copy, &new);
            assert!(whole || !copy.exists(), "after {after:?}: half an image has the name");
            grid.pull(name, &copy).json();
            assert!(holds(&copy, disk));
        }
    }
}

#[test]
fn a_grid_killed_at_any_time_has_every_image_that_it_acknowledged() {
    let mut grid = Grid::start();
    let mut acknowledged = Vec::new();
    for (i, after) in kill_points().enumerate().take(40) {
        let letters: String = (0..16).map(|c| char::from(b'a' + ((i + c) % 26) as u8)).collect();
        let disk = Disk::new(&letters);
        let file = grid.disk(&format!("d{i}.raw"), &disk);
        let name = format!("d:{i}");
        let mut import = Background::start(&mut grid.command(&["import", path(&file), &name]));
        wait(after);
        grid.kill();
        let done = import.child.wait().unwrap().success();
        grid.restart();
        if !done {
            grid.import(&file, &name);
        }
        acknowledged.push((name, disk));
    }
    let copy = grid.dir.join("copy");
    for (name, disk) in &acknowledged {
        grid.pull(name, &copy).json();
        assert!(holds(&copy, disk), "{name}");
    }
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
