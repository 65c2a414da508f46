//! What an operator meets at the command line: exit codes, warnings, output that nobody reads.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::harness::{Background, Disk, Ended, Grid, forebay, path, run, until};

/// Runs a command whose standard output goes to `out`; its code, and what it said of errors.
fn run_into(command: &mut Command, out: Stdio) -> (i32, String) {
    let ended = command.stdin(Stdio::null()).stdout(out).output().unwrap();
    (ended.status.code().unwrap_or(-1), String::from_utf8_lossy(&ended.stderr).into_owned())
}

/// A pipe that nobody reads.
pub fn closed_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

#[test]
fn the_same_bytes_under_another_name_keep_what_was_said_of_them() {
    let grid = Grid::start();
    let disk = grid.disk("d.raw", &Disk::new("ab"));
    let said = ["--os", "debian 12", "--kind", "snapshot", "--label", "team=red"];
    let import = |name: &str, options: &[&str]| {
        grid.run(&[&["import", path(&disk), name], options].concat()).json();
        grid.run(&["inspect", name]).json()["record"].clone()
    };
    let first = import("d:1", &said);
    // Over its own name as well, which then points at the image already.
    for name in ["d:2", "d:1"] {
        assert_eq!(import(name, &[]), first, "{name}");
    }
    let mut more = import("d:3", &["--cpus", "2", "--label", "site=one"]);
    assert!(more["revised"].as_u64() > first["created"].as_u64(), "{more}");
    more.as_object_mut().unwrap().remove("revised");
    let mut expected = first.clone();
    expected["cpus"] = 2.into();
    expected["labels"]["site"] = "one".into();
    assert_eq!(more, expected);
    // A new version of a name is a child of the old one, as before.
    let newer = grid.disk("e.raw", &Disk::new("ac"));
    grid.import(&newer, "d:1");
    let child = grid.run(&["inspect", "d:1"]).json();
    assert_eq!(child["record"]["parent"], first["image"]);
}

#[test]
fn a_disk_of_another_format_that_is_taken_as_raw_is_told_of() {
    let grid = Grid::start();
    let mut bytes = vec![0; 1 << 20];
    bytes[..4].copy_from_slice(b"QFI\xfb");
    let disk = grid.file("d.img", &bytes);
    let warned = grid.run(&["import", path(&disk), "d:1"]);
    let piped = grid.command(&["import", "-", "d:2"]).stdin(File::open(&disk).unwrap()).output();
    let piped = String::from_utf8_lossy(&piped.unwrap().stderr).into_owned();
    for said in [&warned.err, &piped] {
        assert!(said.contains("looks like qcow2") && said.contains("--format qcow2"), "{said}");
    }
    // The bytes decide nothing.
    assert_eq!(warned.json()["size"], 1 << 20);
    let quiet = grid.run(&["import", path(&grid.disk("e.raw", &Disk::new("ab"))), "e:1"]);
    assert_eq!(quiet.err, "");
    let other = grid.file("d.vhdx", &bytes);
    grid.run(&["import", path(&other), "x:1"]).fails(69, &["d.vhdx", "qemu-img convert"]);
}

#[test]
fn exit_codes_tell_what_a_script_can_do() {
    let grid = Grid::start();
    // More than a pipe holds.
    grid.import(&grid.disk("d.raw", &Disk::new("abcdefgh")), "d:1");
    let (code, said) = run_into(&mut grid.command(&["pull", "d:1", "--to", "-"]), closed_pipe());
    assert_eq!(code, 74, "{said}");
    assert!(said.contains("reader"), "{said}");
    let nowhere = grid.dir.join("nowhere");
    grid.run(&["try", "--from", path(&nowhere)]).fails(66, &[path(&nowhere)]);
    for flags in [
        &["pull", "d:1", "--to", "x", "--rate", "fast"][..],
        &["up", "--listen", "here"],
        &["images", "--set", "cache.memory=lots"],
        &["images", "--set", "cache.memry=3MiB"],
    ] {
        grid.run(flags).fails(64, &[flags[flags.len() - 1].split('=').next_back().unwrap()]);
    }
    let copy = nowhere.join("copy");
    grid.pull("d:1", &copy).fails(66, &["there is no directory", path(&nowhere)]);
    let dir = format!("{}/", path(&nowhere));
    grid.run(&["pull", "d:1", "--to", &dir]).fails(65, &["a directory"]);
    assert!(!nowhere.exists());
}

#[test]
fn who_waits_for_a_node_daemon_that_dies_is_told_to_try_again() {
    let grid = Grid::start();
    grid.import(&grid.disk("d.raw", &Disk::new("abcdefgh")), "d:1");
    let mut daemon = Background::start(forebay(&grid.data).args(["node", "--set", "node.rate=1"]));
    assert!(daemon.line().contains("serves"));
    let copy = grid.dir.join("copy");
    let mut pull = grid.command(&["pull", "d:1", "--to", path(&copy)]);
    let waiting = pull.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until("a transfer", || grid.run(&["node", "transfers"]).json() != serde_json::json!([]));
    daemon.kill();
    let ended = waiting.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(75), "{said}");
    assert!(said.contains("is `forebay node` running?"), "{said}");
}

/// Leaves an empty directory where the store is, as if its file system were unmounted.
fn unmount(grid: &Grid, away: &Path) {
    std::fs::rename(grid.data.join("store"), away).unwrap();
    std::fs::create_dir(grid.data.join("store")).unwrap();
}

/// The opposite, over whatever was written there.
fn mount(grid: &Grid, away: &Path) {
    std::fs::remove_dir_all(grid.data.join("store")).unwrap();
    std::fs::rename(away, grid.data.join("store")).unwrap();
}

#[test]
fn a_grid_that_serves_tells_that_its_store_is_away() {
    let mut grid = Grid::start();
    let disk = grid.disk("d.raw", &Disk::new("ab"));
    grid.import(&disk, "d:1");
    grid.stop();
    grid.restart();
    let away = grid.dir.join("away");
    unmount(&grid, &away);
    let store = grid.data.join("store");
    for command in [
        &["import", path(&disk), "e:1"][..],
        &["store", "verify"],
        &["gc"],
        &["cache", "warm", "d:1"],
        &["rm", "d:1"],
    ] {
        grid.run(command).fails(75, &["the store is away", "mount it again", path(&store)]);
    }
    assert_eq!(grid.objects(""), [] as [std::path::PathBuf; 0]);
    mount(&grid, &away);
    grid.import(&disk, "e:1");
    grid.pull("d:1", &grid.dir.join("copy")).json();
}

#[test]
fn a_grid_does_not_start_without_its_store() {
    let mut grid = Grid::start();
    grid.import(&grid.disk("d.raw", &Disk::new("ab")), "d:1");
    grid.stop();
    let (store, away) = (grid.data.join("store"), grid.dir.join("away"));
    let up = |grid: &Grid| run(forebay(&grid.data).args(["up", "--listen", "127.0.0.1:0"]));
    let says = ["this grid's store is", "mount it", "store.at", "placement.redb", path(&store)];
    unmount(&grid, &away);
    up(&grid).fails(66, &says);
    assert_eq!(std::fs::read_dir(&store).unwrap().count(), 0);
    mount(&grid, &away);
    grid.restart();
    grid.pull("d:1", &grid.dir.join("copy")).json();
    grid.stop();
    // The way out if it is lost for good.
    unmount(&grid, &away);
    let state = grid.data.join("placement.redb");
    std::fs::rename(&state, grid.dir.join("state")).unwrap();
    grid.restart();
    assert_eq!(grid.run(&["images"]).json()["images"], serde_json::json!([]));
    grid.stop();
    // From then on the new one is the grid's.
    mount(&grid, &away);
    up(&grid).fails(65, &says);
    std::fs::remove_file(&state).unwrap();
    grid.restart();
    grid.pull("d:1", &grid.dir.join("again")).json();
}

#[test]
fn results_that_cannot_be_written_are_errors_and_readers_that_went_are_none() {
    let grid = Grid::start();
    for args in [&["images"][..], &["config"], &["completions", "bash"]] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let (code, said) = run_into(&mut grid.command(args), full.into());
        assert_eq!(code, 74, "{args:?}: {said}");
        assert!(said.contains("standard output"), "{args:?}: {said}");
        let (code, said) = run_into(&mut grid.command(args), closed_pipe());
        assert_eq!((code, said.as_str()), (0, ""), "{args:?}");
    }
}

#[test]
fn an_error_tells_each_cause_once() {
    let grid = Grid::start();
    grid.import(&grid.disk("d.raw", &Disk::new("ab")), "d:1");
    let once = |ended: Ended, what: &str| {
        assert_ne!(ended.code, 0);
        assert_eq!(ended.err.matches(what).count(), 1, "{}", ended.err);
    };
    let nope = grid.dir.join("nope.raw");
    once(grid.run(&["import", path(&nope), "x:1"]), "No such file");
    once(grid.run(&["images", "--config", path(&nope)]), "No such file");
    let file = grid.file("file", b"x");
    once(grid.pull("d:1", &file.join("copy")), "Not a directory");
    once(grid.run(&["import", path(&grid.dir), "x:1", "--format", "raw"]), "neither a regular");
}

#[test]
fn images_are_listed_by_name_and_names_removed_together() {
    let grid = Grid::start();
    let disk = grid.disk("d.raw", &Disk::new("ab"));
    for name in ["debian:12", "debian:13", "acme/web:lab"] {
        grid.import(&disk, name);
    }
    let names = |filter: &[&str]| {
        let list = grid.run(&[&["images"], filter].concat()).json();
        let lines = list["images"].as_array().unwrap().clone();
        lines.iter().map(|l| l["ref"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&["deb"]), ["debian:12", "debian:13"]);
    assert_eq!(names(&["*:1*3"]), ["debian:13"]);
    assert_eq!(names(&[]).len(), 3);
    let table = run(forebay(&grid.data).args(["images", "acme"])).out;
    assert!(table.contains("CREATED") && table.contains("T") && table.lines().count() == 2);
    let ended = grid.run(&["rm", "debian:12", "no:1", "debian:13"]);
    ended.fails(66, &["no:1"]);
    assert_eq!(names(&[]), ["acme/web:lab"]);
}

#[test]
fn a_machine_that_was_removed_gets_nothing_more() {
    let grid = Grid::start();
    grid.import(&grid.disk("d.raw", &Disk::new("ab")), "d:1");
    let token = grid.run(&["node", "token"]).json()["token"].as_str().unwrap().to_owned();
    let other = grid.dir.join("other");
    let on_other = |args: &[&str]| run(forebay(&other).args(args));
    assert_eq!(on_other(&["node", "join", &token, "--name", "n1"]).code, 0);
    let listed = || {
        let list = grid.run(&["node", "list"]).json();
        list["members"].as_array().unwrap().iter().any(|m| m["name"] == "n1" && m["role"] == "node")
    };
    assert!(listed());
    assert_eq!(grid.run(&["node", "remove", "n1"]).json()["role"], "node");
    assert!(!listed());
    let copy = grid.dir.join("copy");
    on_other(&["pull", "d:1", "--to", path(&copy)]).fails(77, &["node n1 was removed"]);
    assert!(!copy.exists());
    let table = run(forebay(&grid.data).args(["node", "list"])).out;
    assert!(table.starts_with("NAME") && table.contains("admin"), "{table}");
}
