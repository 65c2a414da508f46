//! What `forebay volume` says to people, and what of that scripts may count on.

use std::path::Path;
use std::process::Child;

use crate::harness::{Ended, Grid, forebay, path, run, until};
use crate::operator::closed_pipe;
use crate::volumes::Rig;

/// What a command says to people; all goes well.
fn told(rig: &Rig, args: &[&str]) -> Ended {
    let ended = run(forebay(&rig.grid.data).arg("volume").args(args));
    assert_eq!(ended.code, 0, "{}", ended.err);
    ended
}

#[track_caller]
fn says(text: &str, lines: &[&str]) {
    lines.iter().for_each(|line| assert!(text.contains(line), "`{line}` is not in: {text}"));
}

#[test]
fn a_script_may_attach_again_and_whoever_wants_it_otherwise_is_told_how_it_is() {
    let rig = Rig::start("ab");
    rig.volume(&["create", "d:1", "--name", "v"]);
    let socket = rig.grid.dir.join("v.sock");
    let how = ["--export", "vhost-user", "--path", path(&socket), "--no-fill"];
    rig.attach("v", &how);
    for args in [&[][..], &how] {
        let again = rig.volume(&[&["attach", "v"], args].concat());
        assert_eq!(again["attached"]["kind"], "vhost-user");
        assert_eq!(again["attached"]["path"], path(&socket));
    }
    let said = ["vhost-user at", path(&socket), "takes the disk from a running guest"];
    // Also what is asked for by default, if somebody asks for it.
    for args in [&["--export", "nbd"][..], &["--read-only"]] {
        rig.refused(&[&["attach", "v"], args].concat(), 73, &said);
    }
}

#[test]
fn sizes_that_cannot_be_are_told_from_those_that_can() {
    let rig = Rig::start("ab");
    rig.volume(&["create", "d:1", "--name", "v", "--size", "1MiB"]);
    let sector = "6442450945 bytes: must be a multiple of 512 (the sector)";
    rig.refused(&["resize", "v", "6442450945"], 65, &[sector]);
    rig.refused(&["resize", "v", "6442450945", "--extend"], 65, &[sector]);
    rig.volume(&["attach", "v"]);
    rig.refused(&["resize", "v", "6442450945"], 65, &[sector]);
    rig.refused(&["resize", "v", "1PiB"], 65, &["1.0 PiB", "64.0 TiB"]);
    let blank = |size, code, says: &str| {
        rig.refused(&["create", "--name", "b", "--blank", size], code, &[says]);
    };
    blank("0", 65, "at least one sector");
    blank("1PiB", 65, "1.0 PiB: the largest volume has 64.0 TiB");
    blank("100EiB", 64, "the largest disk has 64.0 TiB");
    let least = "at least as large as its image, 512.0 KiB: leave --size out or give a larger one";
    rig.refused(&["create", "d:1", "--name", "s", "--size", "256KiB"], 65, &[least]);
    assert_eq!(rig.volume(&["ls"]).as_array().unwrap().len(), 1);
}

#[test]
fn what_is_written_wrongly_is_answered_with_an_example() {
    let grid = Grid::start();
    for (args, example) in [
        (&["create", "d:1", "--size", "abc"][..], "20GiB"),
        (&["create", "--blank", "7x"], "20GiB"),
        (&["resize", "v", "7x"], "20GiB"),
        (&["attach", "v", "--by", "banana"], "30m"),
        (&["attach", "v", "--by", "0s"], "a second is the least"),
        (&["attach", "v", "--rate", "x"], "40MiB"),
        (&["attach", "v", "--patience", "x"], "30s"),
    ] {
        grid.run(&[&["volume"], args].concat()).fails(64, &[example]);
    }
    for (command, examples) in [("attach", &["30m", "40MiB", "30s"][..]), ("create", &["20GiB"])] {
        let help = grid.run(&["volume", command, "--help"]).out;
        says(&help, examples);
        let global = help.find("Global options:").expect("a heading");
        assert!(help.find("--data").unwrap() > global && help.find("--json").unwrap() > global);
    }
    // What is in the environment is not what the command needs.
    let wrong = grid.run(&["volume", "create"]);
    wrong.fails(64, &["<REF>"]);
    assert!(!wrong.err.contains("--data"), "{}", wrong.err);
}

#[test]
fn directories_that_are_not_there_are_named() {
    let rig = Rig::start("ab");
    rig.volume(&["create", "d:1", "--name", "v"]);
    let nowhere = rig.grid.dir.join("nowhere");
    let (socket, missing) = (nowhere.join("x.sock"), format!("no directory {}", path(&nowhere)));
    for option in ["--path", "--qmp"] {
        let refused = ["attach", "v", option, path(&socket)];
        rig.refused(&refused, 66, &[&missing, "make it first"]);
    }
    assert!(rig.volume(&["show", "v"])["attached"].is_null());
    run(forebay(Path::new("/proc/nope")).arg("node"))
        .fails(66, &["the data directory /proc/nope cannot be made"]);
}

#[test]
fn what_will_be_late_is_warned_of() {
    let rig = Rig::start("abcdef");
    rig.volume(&["create", "d:1", "--name", "v"]);
    let late = told(&rig, &["attach", "v", "--rate", "1KiB", "--by", "10s"]);
    says(&late.err, &["warning: v: it will not all be here by"]);
    says(&late.out, &["LATE"]);
}

#[test]
fn a_volume_is_identified_by_its_directory_and_says_where_its_bytes_are() {
    let rig = Rig::start("ab");
    let made = rig.volume(&["create", "d:1", "--name", "v"]);
    let disk = Path::new(made["disk"].as_str().unwrap());
    let found = rig.volume(&["identify", path(disk.parent().unwrap())]);
    assert_eq!((&found["id"], &found["disk"]), (&made["id"], &made["disk"]));
    let (image, none) = (rig.grid.dir.join("d.raw"), rig.grid.dir.join("none"));
    for file in [disk, &image, &rig.grid.file("small", b"a")] {
        rig.refused(&["identify", path(file)], 76, &[path(file), "a volume's directory"]);
    }
    let refused = rig.grid.run(&["volume", "identify", path(&none)]);
    refused.fails(66, &[path(&none), "No such file"]);
    assert!(!refused.err.contains("volume:"), "{}", refused.err);
}

#[test]
fn a_volume_is_shown_in_words_that_are_so() {
    let rig = Rig::start("ab");
    rig.volume(&["create", "d:1", "--name", "v"]);
    says(&told(&rig, &["show", "v"]).out, &["here      not all"]);
    let qmp = rig.grid.dir.join("qmp");
    let shown = told(&rig, &["attach", "v", "--no-fill", "--qmp", path(&qmp)]).out;
    says(
        &shown,
        &["fetched   no", "guests    waited for no chunks so far, wait for no chunks now"],
    );
    says(&shown, &["moves to the plain file when all is here: QMP at", path(&qmp)]);
}

/// Killed when dropped.
struct Unread(Child);

impl Drop for Unread {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_serves_does_not_mind_that_nobody_reads_what_it_says() {
    let dir = tempfile::tempdir().unwrap();
    let start = |args: &[&str]| {
        let mut command = forebay(dir.path());
        Unread(command.args(args).stdout(closed_pipe()).spawn().expect("a program that starts"))
    };
    let mut up = start(&["up", "--listen", "127.0.0.1:0"]);
    until("it serves", || run(forebay(dir.path()).arg("images")).code == 0);
    let mut node = start(&["node"]);
    until("it serves", || run(forebay(dir.path()).args(["volume", "ls"])).code == 0);
    for served in [&mut node, &mut up] {
        assert!(served.0.try_wait().unwrap().is_none(), "it has ended");
    }
}
