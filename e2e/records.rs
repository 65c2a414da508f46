//! What the record of an image says: what was verified, what could not be read, and what a machine needs.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{CHUNK, Disk, Grid, path, until};
use crate::real::{must, wanted};
use crate::volumes::{Loop, Rig, connect};

fn record(grid: &Grid, name: &str) -> Value {
    grid.run(&["inspect", name]).json()["record"].clone()
}

#[test]
fn what_was_verified_is_said_and_what_was_taken_over() {
    let rig = Rig::start("abc.defghij");
    let first = record(&rig.grid, "d:1")["verified"].clone();
    assert_eq!(first["by"], "receiver", "{first}");
    assert_eq!((&first["sections"], &first["chunks"]), (&1.into(), &10.into()), "{first}");
    let socket = rig.attached("v", &["--no-fill"]);
    connect(&socket).write(0, &[7; 4096]).unwrap();
    rig.grid.run(&["save", "v", "s:1"]).json();
    let saved = record(&rig.grid, "s:1")["verified"].clone();
    assert_eq!((&saved["chunks"], &saved["taken_over"]), (&1.into(), &9.into()), "{saved}");
    // What is verified again says nothing new.
    rig.grid.run(&["import", path(&rig.grid.dir.join("d.raw")), "again:1"]).json();
    assert_eq!(record(&rig.grid, "again:1")["verified"], first);
}

#[test]
fn a_snapshot_needs_what_its_image_needs_unless_somebody_says_otherwise() {
    let rig = Rig::start("abcd");
    let disk = rig.grid.dir.join("d.raw");
    let needs = ["--cpus", "4", "--memory-mib", "2048", "--firmware", "uefi", "--label", "a=b"];
    rig.grid.run(&[&["import", path(&disk), "d:1"], &needs[..]].concat()).json();
    let socket = rig.attached("v", &[]);
    connect(&socket).write(0, &[7; 4096]).unwrap();
    rig.grid.run(&["save", "v", "s:1", "--cpus", "2"]).json();
    let saved = record(&rig.grid, "s:1");
    let got = (&saved["kind"], &saved["cpus"], &saved["memory_mib"], &saved["firmware"]);
    assert_eq!(got, (&"snapshot".into(), &2.into(), &2048.into(), &"uefi".into()), "{saved}");
    assert_eq!(saved["labels"], Value::Null, "what people say of that image is of that image");
}

#[test]
fn a_disk_is_as_deployed_until_a_guest_can_write_to_it() {
    let mut rig = Rig::start("abcd");
    let as_deployed = ["save", "b", "dep:1", "--kind", "as-deployed"];
    rig.volume(&["create", "--blank", "1MiB", "--name", "b"]);
    rig.grid.run(&as_deployed).json();
    assert_eq!(record(&rig.grid, "dep:1")["kind"], "as-deployed");
    rig.volume(&["resize", "b", "2MiB"]);
    rig.attach("b", &["--read-only"]);
    rig.grid.run(&as_deployed).json();
    rig.volume(&["detach", "b"]);
    // That it was shown is known before it is, and for ever.
    rig.attach("b", &[]);
    rig.kill_node();
    rig.start_node();
    rig.grid.run(&as_deployed).fails(73, &["b: it is not as it was deployed", "snapshot"]);
    rig.volume(&["detach", "b"]);
    rig.grid.run(&as_deployed).fails(73, &["b: it is not as it was deployed"]);
    rig.grid.run(&["save", "b", "snap:1"]).json();
    // Of a disk that is a path people know.
    let disk = rig.grid.dir.join("d.raw");
    rig.grid.run(&["save", path(&disk), "dep:2", "--kind", "as-deployed"]).json();
}

#[test]
fn captures_are_counted() {
    let rig = Rig::start("abcd");
    let socket = rig.attached("v", &[]);
    connect(&socket).write(0, &[7; 4096]).unwrap();
    let saved = rig.grid.run(&["save", "v", "s:1"]).json();
    assert!(saved["took_ms"].is_u64(), "{saved}");
    rig.grid.run(&["save", "v", "s:1", "--new"]).fails(73, &["taken already"]);
    let metrics = rig.grid.run(&["node", "metrics"]).out;
    let (read, sent) = (&saved["progress"]["read"], &saved["progress"]["sent"]);
    for says in [
        r#"forebay_captures_total{result="done"} 1"#.to_owned(),
        r#"forebay_captures_total{result="failed"} 1"#.to_owned(),
        r#"forebay_captures{state="running"} 0"#.to_owned(),
        format!("forebay_capture_read_bytes_total {read}"),
        format!("forebay_capture_sent_bytes_total {sent}"),
        "forebay_capture_waits_total 0".to_owned(),
        "# TYPE forebay_capture_frozen_milliseconds_total counter".to_owned(),
    ] {
        assert!(metrics.contains(&says), "{says}: {metrics}");
    }
}

/// A loop device over a file whose end is gone since: what was there cannot be read.
fn cut_device(file: &Path, len: u64) -> Loop {
    let device = must(Command::new("losetup").args(["-f", "--show"]).arg(file));
    File::options().write(true).open(file).unwrap().set_len(len).unwrap();
    Loop(device.trim().to_owned())
}

#[test]
fn real_a_device_that_cannot_be_read_in_the_middle_is_named_or_skipped_openly() {
    if !wanted() {
        return;
    }
    let grid = Grid::start();
    let disk = Disk::new("abcdefgh");
    let device = cut_device(&grid.disk("cut.raw", &disk), 7 * CHUNK as u64 + 8192);
    let import = ["import", &device.0, "d:1", "--format", "raw"];
    let says = "253952 bytes at 1843200 cannot be read";
    grid.run(&import).fails(74, &[&device.0, says, "--skip-bad"]);
    grid.run(&["inspect", "d:1"]).fails(66, &[]);
    let done = grid.run(&[&import[..], &["--skip-bad"]].concat());
    let lost = CHUNK as u64 - 8192;
    let unread = json!({
        "bytes": lost,
        "stretches": 1,
        "first": [{"start": 7 * CHUNK + 8192, "len": lost}]
    });
    assert_eq!(
        (&done.json()["unread"], done.err.contains("not all could be read")),
        (&unread, true)
    );
    assert_eq!(record(&grid, "d:1")["unread"], unread);
    let copy = grid.dir.join("copy");
    grid.pull("d:1", &copy).json();
    let mut bytes = disk.bytes;
    bytes[7 * CHUNK + 8192..].fill(0);
    assert!(std::fs::read(copy).unwrap() == bytes);
}

#[test]
fn real_a_volume_that_cannot_be_read_in_the_middle_is_named_or_skipped_openly() {
    if !wanted() {
        return;
    }
    let mut rig = Rig::start("abcdefgh");
    rig.attached("v", &[]);
    until("all of it is here", || rig.is_plain("v"));
    rig.kill_node();
    let under = rig.grid.file("under.raw", &rig.disk.bytes);
    let device = cut_device(&under, 7 * CHUNK as u64 + 8192);
    let data = rig.grid.data.join("volumes/v/disk.raw");
    let _bound = Bound::new(&device, data);
    rig.start_node();
    let says = ["v: ", "253952 bytes at 1843200 cannot be read", "--skip-bad"];
    rig.grid.run(&["save", "v", "s:1", "--all"]).fails(74, &says);
    let skipped = rig.grid.run(&["save", "v", "s:2", "--all", "--skip-bad"]);
    let lost = CHUNK as u64 - 8192;
    assert_eq!(skipped.json()["unread"]["bytes"], lost);
    assert!(skipped.err.contains("not all could be read"), "{}", skipped.err);
    assert_eq!(record(&rig.grid, "s:2")["unread"]["bytes"], lost);
    // What changes count from is what the volume was before: nothing of it is zeros now.
    let whole = rig.grid.run(&["save", "v", "s:3"]).json();
    assert_eq!(whole["image"], rig.grid.run(&["inspect", "d:1"]).json()["image"], "{whole}");
    rig.kill_node();
}

/// A device in the place of a file, until dropped.
struct Bound(PathBuf);

impl Bound {
    fn new(device: &Loop, at: PathBuf) -> Self {
        must(Command::new("mount").args(["--bind", &device.0, path(&at)]));
        Self(at)
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}
