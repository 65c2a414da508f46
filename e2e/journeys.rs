//! What a user does, command by command.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::harness::{Background, Disk, Grid, forebay, path, run};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../capture/tests/fixtures").join(name)
}

#[track_caller]
fn same(copy: &Path, disk: &Disk) {
    assert!(
        std::fs::read(copy).expect("the copy") == disk.bytes,
        "{}: other bytes",
        copy.display()
    );
}

#[test]
fn a_disk_goes_in_and_comes_out_and_only_changes_travel_after_that() {
    let grid = Grid::start();
    let first = Disk::new("ab..cd....efgh").cut(512);
    let second = Disk::new("ab..cX....efgh.Z").cut(1024);
    let imported = grid.import(&grid.disk("one.raw", &first), "acme/web:1");
    assert_eq!(imported["chunks_sent"], 8);
    let copy = grid.dir.join("a copy – ü.raw");
    let pulled = grid.pull("acme/web:1", &copy).json();
    assert_eq!(pulled["progress"]["chunks"], 8);
    same(&copy, &first);
    let used = std::fs::metadata(&copy).unwrap().blocks() * 512;
    assert!(used < first.bytes.len() as u64 * 3 / 4, "{used} bytes: not sparse");

    let again = grid.pull("acme/web:1", &copy).json();
    assert_eq!(again["progress"]["chunks"], 0);
    let imported = grid.import(&grid.disk("two.raw", &second), "acme/web:1");
    assert_eq!(imported["chunks_sent"], 3, "X, the h that is whole now, and Z");
    let pulled = grid.pull("acme/web:1", &copy).json();
    assert_eq!(pulled["progress"]["chunks"], 3);
    same(&copy, &second);
    assert_eq!(grid.run(&["verify", "acme/web:1", "--deep"]).json()["bad"], serde_json::json!([]));
}

#[test]
fn both_engines_and_standard_output_give_the_same_bytes() {
    let grid = Grid::start_with(&["--set", "io.engine=portable"]);
    let disk = Disk::new("..ab.c..").cut(4096);
    grid.run(&["import", path(&grid.disk("d.raw", &disk)), "d:1", "--set", "io.engine=portable"])
        .json();
    for engine in ["portable", "auto"] {
        let copy = grid.dir.join(engine);
        let set = format!("io.engine={engine}");
        grid.run(&["pull", "d:1", "--to", path(&copy), "--no-daemon", "--set", &set]).json();
        same(&copy, &disk);
    }
    let output = grid.command(&["pull", "d:1", "--to", "-"]).output().unwrap();
    assert!(output.status.success() && output.stdout == disk.bytes);
}

#[test]
fn empty_disks_zeros_and_every_format() {
    let grid = Grid::start();
    for (name, disk) in [("empty:1", Disk::new("")), ("zeros:1", Disk::new(".........").cut(512))] {
        grid.import(&grid.disk("d.raw", &disk), name);
        let copy = grid.dir.join(name);
        assert_eq!(grid.pull(name, &copy).json()["progress"]["received"], 0);
        same(&copy, &disk);
    }
    let disk = Disk::new("ab.c");
    let raw = grid.disk("d.raw", &disk);
    let image = grid.import(&raw, "raw:1")["image"].clone();
    // A stream need not say how large its disk is; if it is said, it must be so.
    for (size, code) in [(None, 0), (Some("1MiB"), 0), (Some("2MiB"), 65), (Some("512KiB"), 65)] {
        let stdin = std::fs::File::open(&raw).unwrap();
        let mut import = grid.command(&["import", "-", "stdin:1"]);
        import.args(size.iter().flat_map(|size| ["--size", size]));
        let ended = import.stdin(Stdio::from(stdin)).output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(code), "{size:?}: {said}");
        if code == 0 {
            assert_eq!(grid.run(&["inspect", "stdin:1"]).json()["image"], image);
            grid.run(&["rm", "stdin:1"]).json();
        }
    }
    // Most likely what should have filled it has failed.
    grid.run(&["import", "-", "x:1"]).fails(65, &["standard input", "empty"]);
    let mut formats = 0;
    for entry in std::fs::read_dir(fixture("")).unwrap() {
        let file = entry.unwrap().path();
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        if name.ends_with(".md") {
            continue;
        }
        let ended = grid.run(&["import", path(&file), &format!("fixture:{formats}")]);
        let good = ended.code == 0;
        // A fixture is either imported, or refused with a reason and the file's name.
        assert!(good || (ended.err.contains(&name) && [65, 69].contains(&ended.code)), "{ended:?}");
        formats += 1;
    }
    assert!(formats >= 6, "{formats} fixtures");
}

#[test]
fn wrong_input_is_refused_clearly_and_changes_nothing() {
    let grid = Grid::start();
    let disk = grid.disk("d.raw", &Disk::new("a"));
    let odd = grid.file("odd.raw", &[1; 1000]);
    grid.run(&["import", path(&odd), "odd:1"]).fails(65, &["odd.raw", "1000"]);
    let unknown = grid.file("disk.xyz", &[1; 512]);
    grid.run(&["import", path(&unknown), "x:1"]).fails(65, &["disk.xyz", "--format"]);
    let missing = grid.run(&["import", "/no/such/disk.raw", "x:1"]);
    missing.fails(66, &["/no/such/disk.raw"]);
    assert_eq!(missing.err.matches("os error 2").count(), 1, "{}", missing.err);
    for bad in ["../x:1", "a b:1", "dé:1", "a/b/c:1", ""] {
        grid.run(&["import", path(&disk), bad]).fails(64, &[]);
    }
    let copy = grid.dir.join("copy");
    grid.pull("no/such:1", &copy).fails(66, &["no/such:1"]);
    assert!(!copy.exists());
    assert_eq!(grid.run(&["images"]).json()["images"], serde_json::json!([]));
    grid.run(&["frobnicate"]).fails(64, &["frobnicate"]);
    run(forebay(&grid.dir.join("nowhere")).arg("images")).fails(66, &["forebay up", "node join"]);
}

#[test]
fn names_come_and_go_and_garbage_goes_in_two_steps() {
    let grid = Grid::start();
    let disk = grid.disk("d.raw", &Disk::new("abc"));
    grid.import(&disk, "d:1");
    grid.run(&["import", path(&disk), "d:1", "--new"]).fails(73, &["d:1"]);
    grid.run(&["tag", "d:1", "d:stable"]).json();
    grid.run(&["tag", "d:1", "d:stable", "--new"]).fails(73, &["d:stable"]);
    assert_eq!(grid.run(&["images"]).json()["images"].as_array().unwrap().len(), 2);
    grid.run(&["rm", "d:1"]).json();
    grid.run(&["rm", "d:1"]).fails(66, &["d:1"]);
    let kept = grid.run(&["gc", "--grace", "0s"]).json();
    assert_eq!(kept["images"], 1, "its other name keeps it; only old locators go");
    assert_eq!(grid.run(&["verify", "d:stable", "--deep"]).json()["bad"], serde_json::json!([]));
    grid.run(&["rm", "d:stable"]).json();
    let dry = grid.run(&["gc", "--grace", "0s", "--dry-run"]).json();
    assert_ne!(dry["condemned"], 0);
    assert!(!grid.objects("packs").is_empty());
    assert_ne!(grid.run(&["gc", "--grace", "0s"]).json()["condemned"], 0);
    // The image can be had again at once, whatever is condemned.
    grid.import(&disk, "d:2");
    grid.run(&["gc", "--grace", "0s"]).json();
    let copy = grid.dir.join("copy");
    grid.pull("d:2", &copy).json();
    same(&copy, &Disk::new("abc"));
}

#[test]
fn what_is_said_of_an_image_is_shown() {
    let grid = Grid::start();
    let disk = grid.disk("d.raw", &Disk::new("ab"));
    let mut import = grid.command(&["import", path(&disk), "d:1", "--kind", "application"]);
    import.args(["--os", "debian 12", "--arch", "x86_64", "--firmware", "uefi", "--cpus", "2"]);
    import.args(["--memory-mib", "512", "--nics", "1", "--hypervisor", "qemu"]);
    run(import.args(["--label", "team=infra", "--label", "note=a=b"])).json();
    let info = grid.run(&["inspect", "d:1"]).json();
    for (field, value) in [
        ("kind", "application".into()),
        ("os", "debian 12".into()),
        ("architecture", "x86_64".into()),
        ("firmware", "uefi".into()),
        ("cpus", 2.into()),
        ("memory_mib", 512.into()),
        ("nics", 1.into()),
        ("hypervisor", "qemu".into()),
        ("labels", serde_json::json!({"team": "infra", "note": "a=b"})),
    ] {
        assert_eq!(info["record"][field], value, "{field}: {info}");
    }
    let shown = run(forebay(&grid.data).args(["inspect", "d:1"])).out;
    for says in ["debian 12", "x86_64", "uefi", "512 MiB", "qemu", "team=infra", "note=a=b"] {
        assert!(shown.contains(says), "{says}: {shown}");
    }
    assert_eq!(grid.run(&["images"]).json()["images"][0]["os"], "debian 12");
}

#[test]
fn configuration_and_completions_are_printed() {
    let grid = Grid::start();
    let all = grid.run(&["config", "--set", "cache.memory=3MiB"]).json();
    let memory = all.as_array().unwrap().iter().find(|e| e["key"] == "cache.memory").unwrap();
    assert_eq!((&memory["value"], &memory["origin"]["from"]), (&"3MiB".into(), &"flag".into()));
    grid.run(&["config", "--set", "cache.memry=3MiB"]).fails(64, &["cache.memry"]);
    let human = run(forebay(&grid.data).arg("config"));
    assert!(toml::from_str::<toml::Table>(&human.out).is_ok(), "{}", human.out);
    for shell in ["bash", "zsh", "fish"] {
        assert!(run(forebay(&grid.data).args(["completions", shell])).out.contains("forebay"));
    }
}

#[test]
fn another_machine_joins_with_a_token_once_and_may_do_what_a_node_may() {
    let grid = Grid::start();
    let disk = Disk::new("ab");
    grid.import(&grid.disk("d.raw", &disk), "d:1");
    let token = grid.run(&["node", "token"]).json()["token"].as_str().unwrap().to_owned();
    let other = grid.dir.join("other machine");
    let on_other = |args: &[&str]| run(forebay(&other).arg("--json").args(args));
    on_other(&["node", "join", &token, "--name", "n1"]).json();
    let copy = grid.dir.join("copy");
    on_other(&["pull", "d:1", "--to", path(&copy)]).json();
    same(&copy, &disk);
    on_other(&["rm", "d:1"]).fails(77, &[]);
    on_other(&["gc"]).fails(77, &[]);
    on_other(&["node", "list"]).fails(77, &[]);
    let third = grid.dir.join("third");
    let again = run(forebay(&third).args(["node", "join", &token, "--name", "n2"]));
    assert_ne!(again.code, 0, "a token works once");

    // Papers of another grid are worth nothing here.
    let stranger = Grid::start();
    std::fs::copy(grid.data.join("up.json"), stranger.data.join("up.json")).unwrap();
    assert_ne!(stranger.run(&["images"]).code, 0);
}

#[test]
fn the_daemon_does_one_transfer_per_image_and_survives_being_killed() {
    let grid = Grid::start();
    let disk = Disk::new("abcdefghijkl");
    grid.import(&grid.disk("d.raw", &disk), "d:1");
    let node = || {
        let mut daemon = Background::start(forebay(&grid.data).arg("node"));
        assert!(daemon.line().contains("serves"));
        daemon
    };
    let mut daemon = node();
    let (one, two) = (grid.dir.join("one"), grid.dir.join("two"));
    let first = grid.run(&["pull", "d:1", "--to", path(&one)]).json();
    assert_eq!(first["progress"]["chunks"], 12);
    let second = grid.run(&["pull", "d:1", "--to", path(&two)]).json();
    assert_eq!(second["progress"]["received"], 0, "taken from the first copy");
    same(&one, &disk);
    same(&two, &disk);
    run(forebay(&grid.data).arg("node")).fails(73, &["is using it"]);
    daemon.kill();
    let mut daemon = node();
    let three = grid.dir.join("three");
    grid.run(&["pull", "d:1", "--to", path(&three)]).json();
    same(&three, &disk);
    let all = grid.run(&["node", "transfers"]).json();
    assert_eq!(all.as_array().unwrap().len(), 3, "those of the killed daemon are remembered");
    assert!(all.as_array().unwrap().iter().all(|t| t["state"] == "done"));
    assert_eq!(daemon.terminate().1, 0);
}

#[test]
fn one_up_per_data_directory_and_a_restart_keeps_everything() {
    let mut grid = Grid::start();
    let disk = Disk::new("a.b");
    grid.import(&grid.disk("d.raw", &disk), "d:1");
    run(forebay(&grid.data).args(["up", "--listen", "127.0.0.1:0"])).fails(73, &["another"]);
    grid.stop();
    grid.run(&["images"]).fails(66, &["forebay up"]);
    grid.restart();
    let copy = grid.dir.join("copy");
    grid.pull("d:1", &copy).json();
    same(&copy, &disk);
}
