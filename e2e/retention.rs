//! Keeping some of many images, what they were made from, and what differs between them.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{CHUNK, Disk, Grid, forebay, path, run};
use crate::real;

/// Names and what became of them, as `forebay prune` says.
fn actions(report: &Value) -> Vec<(String, String)> {
    let text = |line: &Value, key: &str| line[key].as_str().expect("a text").to_owned();
    let names = report["names"].as_array().expect("a list");
    names.iter().map(|line| (text(line, "ref"), text(line, "action"))).collect()
}

fn names(grid: &Grid) -> Vec<String> {
    let list = grid.run(&["images"]).json();
    let lines = list["images"].as_array().expect("a list").clone();
    lines.iter().map(|line| line["ref"].as_str().expect("a name").to_owned()).collect()
}

#[test]
fn names_go_by_rules_and_their_images_with_the_next_collections() {
    let grid = Grid::start();
    for (disk, name) in [("ab", "web:1"), ("ac", "web:2"), ("ad", "web:3"), ("xy", "db:1")] {
        grid.import(&grid.disk("d.raw", &Disk::new(disk)), name);
    }
    grid.run(&["tag", "web:3", "web:latest"]).json();
    // Without a rule all would go.
    grid.run(&["prune"]).fails(64, &["--keep-last", "forebay rm"]);
    grid.run(&["prune", "--keep-last", "0"]).fails(64, &["no rule"]);

    // All are of the same hour and of the same second perhaps: names decide then.
    let dry = grid.run(&["prune", "web", "--keep-last", "1", "--dry-run"]).json();
    let expected =
        [("web:latest", "kept"), ("web:3", "kept"), ("web:2", "to-remove"), ("web:1", "to-remove")];
    let expected = expected.map(|(name, action)| (name.to_owned(), action.to_owned()));
    assert_eq!((&dry["dry_run"], actions(&dry)), (&json!(true), expected.to_vec()));
    assert_eq!(dry["names"][0]["kept_by"], json!(["last"]));
    assert_eq!(names(&grid).len(), 5, "nothing is changed");

    let table = run(forebay(&grid.data).args(["prune", "web", "--keep-last", "1"])).out;
    assert!(table.contains("removed") && table.contains("2 of 4 names removed"), "{table}");
    assert_eq!(names(&grid), ["db:1", "web:3", "web:latest"]);
    let again = run(forebay(&grid.data).args(["prune", "web", "--keep-last", "2"]));
    assert!(
        again.out.contains("none of 2 names removed") && !again.out.contains("gc"),
        "{}",
        again.out
    );
    // Nothing is no success without a word.
    for (nothing, says) in [
        (&["prune", "wbe", "--keep-last", "1"][..], "no name is like wbe"),
        (&["images", "wbe"], "no image has a name like wbe"),
        (&["images", "--tree", "wbe"], "no image has a name like wbe"),
        (&["rehearse", "wbe"], "nothing was rehearsed: no image has a name like wbe"),
    ] {
        let ended = grid.run(nothing);
        assert!(ended.code == 0 && ended.err.contains(says), "{nothing:?}: {}", ended.err);
    }
    // What is shown of an image can be said to a command.
    let image = grid.run(&["inspect", "web:3"]).json()["image"].as_str().unwrap().to_owned();
    assert!(run(forebay(&grid.data).arg("images")).out.contains(&image));
    grid.run(&["tag", "web:3", &image]).fails(64, &["taken for the digest"]);
    // Each group has its own.
    let all = grid.run(&["prune", "--keep-daily", "1", "--keep-within", "1d"]).json();
    assert!(actions(&all).iter().all(|(_, action)| action == "kept"), "{all}");
    let by = all["names"][0]["kept_by"].as_array().expect("a list").clone();
    assert!(by[0].as_str().unwrap().starts_with("daily 2") && by[1] == "within", "{by:?}");
    for _ in 0..3 {
        grid.run(&["gc", "--grace", "0s"]).json();
    }
    let copy = grid.dir.join("copy");
    grid.pull("web:latest", &copy).json();
    assert!(std::fs::read(&copy).unwrap() == Disk::new("ad").bytes);
}

#[test]
fn what_has_a_label_stays_and_only_an_admin_prunes() {
    let grid = Grid::start();
    for (disk, name, label) in [("a", "vm:1", "keep=yes"), ("b", "vm:2", "keep=no")] {
        let disk = grid.disk("d.raw", &Disk::new(disk));
        grid.run(&["import", path(&disk), name, "--label", label]).json();
    }
    let token = grid.run(&["node", "token"]).json()["token"].as_str().unwrap().to_owned();
    let other = grid.dir.join("other machine");
    let on_other = |args: &[&str]| run(forebay(&other).arg("--json").args(args));
    on_other(&["node", "join", &token, "--name", "n1"]).json();
    let rule = ["prune", "vm", "--keep-label", "keep=yes"];
    let refused = on_other(&rule);
    refused.fails(77, &["removing vm:2"]);
    // What was not done is told all the same.
    let report: Value = serde_json::from_str(&refused.out).unwrap();
    assert_eq!(actions(&report)[0], ("vm:2".into(), "to-remove".into()));
    grid.run(&rule).json();
    assert_eq!(names(&grid), ["vm:1"]);
}

#[test]
fn images_stand_below_what_they_were_made_from() {
    let mut grid = Grid::start();
    let import = |grid: &Grid, disk: &str, name: &str, parent: &str| {
        let disk = grid.disk("d.raw", &Disk::new(disk));
        let mut args = vec!["import", path(&disk), name];
        args.extend(if parent.is_empty() { vec![] } else { vec!["--parent", parent] });
        grid.run(&args).json()["image"].clone()
    };
    let base = import(&grid, "ab", "os:1", "");
    let middle = import(&grid, "ac", "vm:1", "os:1");
    let last = import(&grid, "ad", "vm:2", "vm:1");
    grid.run(&["rm", "vm:1"]).json();
    let told = |grid: &Grid| {
        let tree = grid.run(&["images", "--tree"]).json();
        let lines = tree["images"].as_array().expect("a list").clone();
        let line = |l: &Value| {
            (l["image"].clone(), l["depth"].clone(), l["refs"].clone(), l["gone"].clone())
        };
        lines.iter().map(line).collect::<Vec<_>>()
    };
    let tree = |gone: bool| {
        vec![
            (base.clone(), json!(0), json!(["os:1"]), json!(false)),
            (middle.clone(), json!(1), json!([]), json!(gone)),
            (last.clone(), json!(2), json!(["vm:2"]), json!(false)),
        ]
    };
    assert_eq!(told(&grid), tree(false));
    let drawn = run(forebay(&grid.data).args(["images", "--tree", "vm"])).out;
    assert!(drawn.contains("└─ ") && drawn.contains("(no name)"), "{drawn}");
    for _ in 0..3 {
        grid.run(&["gc", "--grace", "0s"]).json();
    }
    grid.stop();
    grid.restart();
    let after = told(&grid);
    // Of one that is gone nobody knows what it was made from.
    assert!(after.contains(&(middle, json!(0), json!([]), json!(true))), "{after:?}");
    assert!(after.contains(&(last, json!(1), json!(["vm:2"]), json!(false))), "{after:?}");
}

#[test]
fn bytes_that_differ_are_counted_and_found_without_fetching_them() {
    let grid = Grid::start();
    grid.import(&grid.disk("one.raw", &Disk::new("ab..cd")), "d:1");
    grid.import(&grid.disk("two.raw", &Disk::new("aX.Yc.Z")), "d:2");
    let chunk = CHUNK as u64;
    let diff = grid.run(&["diff", "d:1", "d:2", "--ranges"]).json();
    let found = &diff["bytes"];
    assert_eq!((&found["chunks"], &found["differ"]), (&json!(4), &json!(4 * chunk)));
    let sides =
        ["old", "new"].map(|side| (found[side]["zeros"].clone(), found[side]["absent"].clone()));
    assert_eq!(sides[0], (json!(chunk), json!(chunk)), "{found}");
    assert_eq!(sides[1], (json!(chunk), json!(0)), "{found}");
    let ranges = [(chunk, chunk), (3 * chunk, chunk), (5 * chunk, 2 * chunk)];
    let ranges = ranges.map(|(start, len)| json!({"start": start, "len": len}));
    assert_eq!(found["ranges"], json!(ranges));
    let same = grid.run(&["diff", "d:1", "d:1"]).json();
    assert!(same["bytes"]["differ"] == 0 && same["bytes"]["ranges"].is_null(), "{same}");

    let disk = grid.disk("three.raw", &Disk::new("ab"));
    grid.run(&["import", path(&disk), "d:3", "--chunk-size", "64KiB"]).json();
    grid.run(&["diff", "d:1", "d:3"]).fails(69, &["256 KiB and 64 KiB", "--chunk-size"]);
    grid.run(&["diff", "d:1", "none:1"]).fails(66, &["none:1"]);
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../node/tests/fixtures/ext4").join(name)
}

/// Paths, each with what became of it.
fn files(report: &Value) -> Vec<String> {
    let texts = |key: &str| report[key].as_array().expect("a list").clone();
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let mut all: Vec<_> = texts("added").iter().map(|p| format!("+{}", text(p))).collect();
    all.extend(texts("removed").iter().map(|p| format!("-{}", text(p))));
    all.extend(texts("changed").iter().map(|c| text(&c["path"])));
    all.sort();
    all
}

#[test]
fn files_that_differ_are_named_whatever_the_chunks_are() {
    let grid = Grid::start();
    let import = |file: &str, name: &str, size: &str| {
        let file = fixture(file);
        let args = [
            "import",
            path(&file),
            name,
            "--format",
            "raw",
            "--compression",
            "zstd",
            "--chunk-size",
            size,
        ];
        grid.run(&args).json();
    };
    import("old.ext4.zst", "fs:1", "16KiB");
    import("new.ext4.zst", "fs:2", "16KiB");
    import("new.ext4.zst", "fs:3", "64KiB");
    let expected = [
        "+/kind/added",
        "-/gone",
        "/etc/hostname",
        "/kind",
        "/link",
        "/perm",
        "/touched",
        "/usr/bin/tool",
    ];
    for (other, compared) in [("fs:2", true), ("fs:3", false)] {
        let diff = grid.run(&["diff", "fs:1", other, "--files"]).json();
        let systems = diff["files"]["file_systems"].as_array().unwrap().clone();
        assert_eq!(systems.len(), 1, "{diff}");
        assert_eq!(files(&systems[0]), expected, "{diff}");
        assert!(diff["bytes"].is_null() != compared, "{diff}");
    }
    let same = grid.run(&["diff", "fs:1", "fs:1", "--files"]).json();
    assert_eq!(same["files"]["file_systems"][0]["same"], true);
    let told = run(forebay(&grid.data).args(["diff", "fs:1", "fs:2", "--files"])).out;
    for line in ["  + /kind/added", "  - /gone", "  ~ /perm  (mode)", "the disk: ext: 8 files"] {
        assert!(told.contains(line), "{line}: {told}");
    }
    // A disk without a file system is no error.
    grid.import(&grid.disk("d.raw", &Disk::new("ab")), "d:1");
    let other = grid.run(&["diff", "fs:1", "d:1", "--files"]).json();
    assert!(other["files"]["file_systems"][0]["unread"].is_string(), "{other}");
}

#[test]
fn real_partitions_with_journals_and_many_files_are_compared() {
    if !real::wanted() {
        return;
    }
    let grid = Grid::start();
    let tree = grid.dir.join("tree");
    for dir in 0..40 {
        let dir = tree.join(format!("d{dir}"));
        std::fs::create_dir_all(&dir).unwrap();
        (0..60).for_each(|n| std::fs::write(dir.join(format!("f{n}")), format!("{n}")).unwrap());
    }
    let disk = grid.dir.join("d.raw");
    let make = |name: &str| {
        let fs = grid.dir.join("fs");
        let _ = std::fs::remove_file(&fs);
        real::must(Command::new("mkfs.ext4").args(["-q", "-d", path(&tree), path(&fs), "96M"]));
        let _ = std::fs::remove_file(&disk);
        real::must(Command::new("truncate").args(["-s", "128M", path(&disk)]));
        real::must(Command::new("sgdisk").args([
            "-n",
            "1:2048:+8M",
            "-n",
            "2:0:+100M",
            path(&disk),
        ]));
        let at = format!("seek={}", 2048 + (8 << 11));
        let (from, to) = (format!("if={}", path(&fs)), format!("of={}", path(&disk)));
        real::must(Command::new("dd").args([&from, &to, "bs=512", &at, "conv=notrunc,sparse"]));
        grid.run(&["import", path(&disk), name]).json();
    };
    make("fs:1");
    std::fs::remove_dir_all(tree.join("d7")).unwrap();
    std::fs::write(tree.join("d8/f1"), "longer than it was").unwrap();
    std::fs::write(tree.join("new"), "new").unwrap();
    make("fs:2");
    let diff = grid.run(&["diff", "fs:1", "fs:2", "--files"]).json();
    let systems = diff["files"]["file_systems"].as_array().unwrap().clone();
    let parts: Vec<_> =
        systems.iter().map(|fs| (fs["partition"].clone(), fs["same"].clone())).collect();
    assert_eq!(parts, [(json!(1), json!(true)), (json!(2), json!(false))]);
    let found = files(&systems[1]);
    assert_eq!(systems[1]["unread"], Value::Null);
    assert_eq!(found.len(), 61 + 2, "{found:?}");
    assert!(found.contains(&"+/new".to_owned()) && found.contains(&"/d8/f1".to_owned()));
    assert!(found.contains(&"-/d7/f59".to_owned()));
}
