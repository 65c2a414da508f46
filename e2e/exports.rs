//! Images as files of other programs. That `qemu-img` finds them identical is held with `FOREBAY_E2E=1`.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{Background, Disk, Grid, forebay, path, run, until};

/// What a format is asked for with, the file, and whether we read it ourselves.
const ALL: [(&str, &[&str], bool); 6] = [
    ("a.raw", &[], true),
    ("a.img", &[], true),
    ("a.qcow2", &[], true),
    ("zlib.qcow2", &["--compress"], true),
    ("zstd.qcow2", &["--compress=zstd"], false),
    ("a.vmdk", &[], true),
];

/// Disks with holes, a short end, nothing in them, and not a byte.
fn disks() -> Vec<(&'static str, Disk)> {
    vec![
        ("some:1", Disk::new("ab..c...........................d.e").cut(66048)),
        ("zeros:1", Disk::new(".........").cut(512)),
        ("empty:1", Disk::new("")),
        ("whole:1", Disk::new("abcdefgh")),
    ]
}

fn export(grid: &Grid, name: &str, to: &Path, how: &[&str]) -> serde_json::Value {
    let report = grid.run(&[&["export", name, "--to", path(to)], how].concat()).json();
    assert_eq!(report["path"], path(to));
    assert_eq!(report["len"], std::fs::metadata(to).unwrap().len());
    report
}

/// What lies in the directory of the exports.
fn left(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    found.sort();
    found
}

#[test]
fn what_goes_out_in_any_format_comes_back_as_the_same_image() {
    let grid = Grid::start();
    let dir = grid.dir.join("out");
    std::fs::create_dir(&dir).unwrap();
    for (name, disk) in disks() {
        let image = grid.import(&grid.disk("d.raw", &disk), name)["image"].clone();
        for (file, how, reads) in ALL {
            let to = dir.join(file);
            let report = export(&grid, name, &to, how);
            assert_eq!((&report["image"], &report["size"]), (&image, &disk.bytes.len().into()));
            assert!(file.contains(report["format"].as_str().unwrap()) || file == "a.img");
            if reads {
                let back = grid.run(&["import", path(&to), "back:1"]).json();
                assert_eq!(back["image"], image, "{name} as {file}");
            } else {
                grid.run(&["import", path(&to), "back:1"]).fails(69, &["zstd", "qemu-img"]);
            }
            std::fs::remove_file(&to).unwrap();
        }
        assert!(left(&dir).is_empty());
    }
    // Chunks and sectors of other sizes.
    let raw = grid.disk("d.raw", &disks()[0].1.clone().cut(3584));
    for (sector, chunk) in [("4096", "16KiB"), ("512", "32KiB"), ("512", "4MiB")] {
        let how = ["--sector-size", sector, "--chunk-size", chunk];
        let import = |file: &Path| {
            grid.run(&[&["import", path(file), "other:1"], &how[..]].concat()).json()["image"]
                .clone()
        };
        let image = import(&raw);
        for (file, how, _) in ALL.into_iter().filter(|(.., reads)| *reads) {
            let to = dir.join(file);
            export(&grid, "other:1", &to, how);
            assert_eq!(import(&to), image, "{file}, {sector}, {chunk}");
            std::fs::remove_file(&to).unwrap();
        }
    }
}

#[test]
fn zeros_are_left_out_and_streams_are_the_same_bytes() {
    let grid = Grid::start();
    let disk = Disk::new("ab..c.....................................");
    grid.import(&grid.disk("d.raw", &disk), "d:1");
    for (file, most) in [("d.raw", 3), ("d.qcow2", 5), ("d.vmdk", 3)] {
        let to = grid.dir.join(format!("out-{file}"));
        let report = export(&grid, "d:1", &to, &[]);
        assert!(
            report["written"].as_u64().unwrap() <= most * crate::harness::CHUNK as u64,
            "{report}"
        );
        let format = file.split_once('.').unwrap().1;
        if format == "qcow2" {
            continue;
        }
        let stream = grid.command(&["export", "d:1", "--to", "-", "--format", format]);
        let stream = { stream }.output().unwrap();
        assert!(stream.status.success());
        let (mut file, mut stream) = (std::fs::read(&to).unwrap(), stream.stdout);
        if format == "vmdk" {
            // Its text names the file.
            file[512..1536].fill(0);
            stream[512..1536].fill(0);
        }
        assert!(file == stream, "{format}");
    }
}

#[test]
fn what_cannot_be_is_refused_and_nothing_is_left_behind() {
    let grid = Grid::start();
    grid.import(&grid.disk("d.raw", &Disk::new("ab")), "d:1");
    let dir = grid.dir.join("out");
    std::fs::create_dir(&dir).unwrap();
    let at = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let fails = |args: &[&str], code, says: &[&str]| {
        grid.run(&[&["export"], args].concat()).fails(code, says);
    };
    fails(&["d:1"], 64, &["--to <PATH>"]);
    fails(&["d:1", "--to", &at("disk")], 65, &["out/disk", "--format raw, qcow2 or vmdk"]);
    fails(&["d:1", "--to", &at("disk.vdi")], 65, &["disk.vdi", "--format"]);
    fails(&["d:1", "--to", "-"], 65, &["--format raw or vmdk"]);
    fails(&["d:1", "--to", "-", "--format", "qcow2"], 64, &["name a file"]);
    fails(&["d:1", "--to", &at("d.raw"), "--compress"], 65, &["--compress", "qcow2"]);
    fails(&["d:1", "--to", &at("d.vmdk"), "--compress=zstd"], 65, &["--compress"]);
    fails(&["d:1", "--to", &at("no/such/d.raw")], 66, &["no/such", "mkdir"]);
    fails(&["d:1", "--to", path(&dir), "--format", "raw"], 65, &["a directory"]);
    fails(&["no/such:1", "--to", &at("d.raw")], 66, &["no/such:1"]);
    assert!(left(&dir).is_empty());

    let there = at("d.qcow2");
    std::fs::write(&there, "old").unwrap();
    fails(&["d:1", "--to", &there], 73, &[&there, "--force"]);
    assert_eq!(std::fs::read(&there).unwrap(), b"old");
    grid.run(&["export", "d:1", "--to", &there, "--force"]).json();
    assert!(std::fs::read(&there).unwrap().starts_with(b"QFI\xfb"));
    assert_eq!(left(&dir).len(), 1);
}

/// What a disk without room answers, and so does a limit.
#[test]
fn a_full_disk_leaves_what_was_there() {
    let grid = Grid::start();
    grid.import(&grid.disk("d.raw", &Disk::new("abcdefgh")), "d:1");
    let dir = grid.dir.join("out");
    std::fs::create_dir(&dir).unwrap();
    for file in ["d.raw", "d.qcow2", "d.vmdk"] {
        let to = dir.join(file);
        for there in [false, true] {
            if there {
                std::fs::write(&to, "old").unwrap();
            }
            let export = grid.command(&["export", "d:1", "--force", "--to", path(&to)]);
            let mut limited = Command::new("bash");
            limited.args(["-c", "trap '' XFSZ; ulimit -f 512; exec \"$0\" \"$@\""]);
            limited.arg(export.get_program()).args(export.get_args());
            limited.env("FOREBAY_DATA", &grid.data);
            run(&mut limited).fails(74, &[file, "make room"]);
            assert_eq!(left(&dir).len(), usize::from(there));
        }
        assert_eq!(std::fs::read(&to).unwrap(), b"old");
        std::fs::remove_file(&to).unwrap();
    }
}

#[test]
fn one_at_a_time_to_a_path_and_an_interrupted_one_leaves_nothing() {
    let grid = Grid::start();
    grid.import(&grid.disk("d.raw", &Disk::new("abcdefgh")), "d:1");
    let dir = grid.dir.join("out");
    std::fs::create_dir(&dir).unwrap();
    for signal in ["-TERM", "-INT"] {
        let to = dir.join("d.qcow2");
        let mut slow = forebay(&grid.data);
        slow.args(["export", "d:1", "--to", path(&to), "--set", "node.rate=1"]);
        let mut slow = Background::start(&mut slow);
        until("it has begun", || !left(&dir).is_empty());
        for how in [&[][..], &["--force"]] {
            let second = [&["export", "d:1", "--to", path(&to)], how].concat();
            grid.run(&second).fails(73, &[path(&to), "another"]);
        }
        assert_eq!(slow.end(signal).1, 130);
        assert!(left(&dir).is_empty(), "{:?}", left(&dir));
    }
    // What a kill leaves is not taken for the disk, and is no burden to the next.
    let to = dir.join("d.vmdk");
    let mut killed = forebay(&grid.data);
    killed.args(["export", "d:1", "--to", path(&to), "--set", "node.rate=1"]);
    let mut killed = Background::start(&mut killed);
    until("it has begun", || !left(&dir).is_empty());
    killed.kill();
    assert!(!to.exists());
    export(&grid, "d:1", &to, &[]);
    assert_eq!(left(&dir), [to]);
}

fn wanted() -> bool {
    let wanted = std::env::var_os("FOREBAY_E2E").is_some();
    if !wanted {
        println!("left out: needs FOREBAY_E2E=1 and qemu-img");
    }
    wanted
}

#[track_caller]
fn qemu_img(args: &[&str]) -> String {
    let ended = run(Command::new("qemu-img").args(args));
    assert_eq!(ended.code, 0, "qemu-img {args:?}: {}{}", ended.out, ended.err);
    ended.out
}

/// A guest's writes, over compressed clusters too, and what is deleted again: every count stays right.
fn write_into(qcow2: &Path, size: usize) {
    if size < 1 << 20 {
        return;
    }
    let mut writes = Command::new("qemu-io");
    writes.args(["-f", "qcow2", "-c", "write -P 7 1000 70000", "-c", "write -P 8 600k 100k"]);
    writes.args(["-c", "discard 128k 128k", "-c", "read -P 8 600k 100k"]).arg(qcow2);
    let ended = run(&mut writes);
    assert!(ended.code == 0 && !ended.out.contains("failed"), "{}{}", ended.out, ended.err);
    let checked = qemu_img(&["check", "-f", "qcow2", path(qcow2)]);
    assert!(checked.contains("No errors were found"), "{checked}");
}

#[test]
fn real_qemu_img_finds_every_format_identical() {
    if !wanted() {
        return;
    }
    let grid = Grid::start();
    // More than one L2 table, and more than one grain table.
    let long = format!("ab{}cd.e", ".".repeat(4200));
    let disks = disks().into_iter().chain([("long:1", Disk::new(&long).cut(1024))]);
    for (name, disk) in disks {
        let raw = grid.disk("d.raw", &disk);
        grid.import(&raw, name);
        for (file, how, _) in ALL {
            // Of no bytes: to QEMU that is a vmdk whose extents lie elsewhere.
            if disk.bytes.is_empty() && file.ends_with("vmdk") {
                continue;
            }
            let to = grid.dir.join(format!("out-{file}"));
            let format = export(&grid, name, &to, how)["format"].as_str().unwrap().to_owned();
            let compared =
                qemu_img(&["compare", "-f", "raw", "-F", &format, path(&raw), path(&to)]);
            println!("{name} as {file}: {}", compared.trim());
            let told = qemu_img(&["info", "--output=json", "-f", &format, path(&to)]);
            let told: serde_json::Value = serde_json::from_str(&told).unwrap();
            assert_eq!(told["virtual-size"], disk.bytes.len(), "{told}");
            match format.as_str() {
                "qcow2" => {
                    let checked = qemu_img(&["check", "-f", "qcow2", path(&to)]);
                    assert!(checked.contains("No errors were found"), "{checked}");
                    write_into(&to, disk.bytes.len());
                }
                "vmdk" => {
                    qemu_img(&["check", "-f", "vmdk", path(&to)]);
                    assert_eq!(told["format-specific"]["data"]["create-type"], "streamOptimized");
                }
                _ => {}
            }
            std::fs::remove_file(&to).unwrap();
        }
    }
}
