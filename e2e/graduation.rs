//! The daemon dies while it moves a guest to the plain file: after each message that it sends to QEMU. Its next start
//! goes on, and the guest notices nothing.
//!
//! Needs QEMU; runs with `FOREBAY_E2E=1`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::json;

use crate::guests::Node;
use crate::harness::{Disk, Grid, path, until};
use crate::qmp::{Monitor, Relay};
use crate::real::wanted;

const MIB: usize = 1 << 20;

/// A QEMU whose guest never runs: its disk is used through its monitor.
pub struct Machine(pub Child);

impl Machine {
    /// What qemu-io finds is said in `said`: the monitor does not tell.
    pub fn start(nbd: &Path, volume: &str, monitors: [&Path; 2], said: &Path) -> Self {
        let disk = format!(
            "driver=nbd,node-name=d,server.type=unix,server.path={},export={volume},reconnect-delay=60",
            nbd.display()
        );
        let qmp = monitors.map(|qmp| format!("unix:{},server=on,wait=off", qmp.display()));
        let qemu = Command::new("qemu-system-x86_64")
            .args(["-accel", "tcg", "-m", "64", "-nodefaults", "-display", "none", "-S"])
            .args(["-qmp", &qmp[0], "-qmp", &qmp[1]])
            .args(["-blockdev", &disk, "-device", "virtio-blk-pci,drive=d"])
            .stdin(Stdio::null())
            .stdout(File::create(said).expect("a file in a temporary directory"))
            .spawn();
        Self(qemu.expect("QEMU"))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the guest writes where, and what is then on its disk.
struct Written(Vec<u8>);

impl Written {
    fn write(&mut self, monitor: &mut Monitor, at: usize, pattern: u8) {
        monitor.io(&format!("write -P {pattern} {at} 128k"));
        self.has(at, pattern);
    }

    fn has(&mut self, at: usize, pattern: u8) {
        self.0[at..at + (128 << 10)].fill(pattern);
    }
}

/// One volume from its making to its end. The daemon is killed after so many of its messages to QEMU; returns how many
/// there were.
fn moves_a_guest(node: &mut Node, dir: &Path, disk: &Disk, stop: Option<usize>) -> usize {
    let name = stop.map_or("v".to_owned(), |n| format!("v{n}"));
    let [relayed, monitor, own, said] =
        ["relay", "qmp", "own", "said"].map(|what| dir.join(format!("{name}.{what}")));
    let relay = Relay::start(&relayed, monitor.clone(), stop);
    node.volume(&["create", "d:1", "--name", &name]);
    let info = node.volume(&["attach", &name, "--no-trace", "--qmp", path(&relayed)]);
    let nbd = PathBuf::from(info["attached"]["path"].as_str().unwrap());
    let mut machine = Machine::start(&nbd, &name, [&monitor, &own], &said);
    let mut guest = Monitor::connect(&own);
    let mut written = Written(disk.bytes.clone());
    written.write(&mut guest, MIB + 4096, 1);
    guest.io("flush");
    relay.open();
    if stop.is_some() {
        // It may take fewer messages than the time before.
        let moved = || node.volume(&["show", &name])["attached"]["moved"] == true;
        until("so many messages", || relay.stopped.try_recv().is_ok() || moved());
        node.daemon.take().unwrap().kill();
        relay.pass_all();
        // Something is under way while nobody serves.
        let writes = std::thread::spawn(move || {
            guest.io("write -P 2 2M 128k");
            guest
        });
        node.restart();
        guest = writes.join().expect("the guest has its disk");
        written.has(2 * MIB, 2);
    }
    let show = || node.volume(&["show", &name]);
    until("the guest is moved to the plain file", || show()["attached"]["moved"] == true);
    let scrubbed = node.run(&["scrub", &name]);
    scrubbed.fails(69, &["written past this daemon"]);
    let info = show();
    assert_eq!((&info["plain"], &info["trouble"]), (&true.into(), &json!(null)), "{info}");

    // It sees what it wrote, and the rest of the image; what it writes is in the file.
    written.write(&mut guest, 3 * MIB - 4096, 3);
    guest.io("flush");
    for (at, pattern) in [(MIB + 4096, 1), (3 * MIB - 4096, 3)] {
        guest.io(&format!("read -P {pattern} {at} 128k"));
    }
    let nodes = guest.execute("query-named-block-nodes", json!({ "flat": true }));
    assert!(nodes.as_array().unwrap().iter().all(|node| node["drv"] != "nbd"), "{nodes}");
    assert_eq!(guest.execute("query-jobs", json!({})), json!([]));
    let bad = |event: &&String| event.contains("ERROR") || event.contains("CANCEL");
    assert_eq!(guest.events.iter().find(bad), None);
    guest.execute("quit", json!({}));
    machine.0.wait().unwrap();
    let said = std::fs::read_to_string(&said).unwrap();
    let done = said.lines().filter(|line| line.contains("131072/131072 bytes")).count();
    let all = if stop.is_some() { 5 } else { 4 };
    assert!(done == all && !said.contains("failed") && !said.contains("rror"), "{said}");

    node.volume(&["detach", &name]);
    let found = std::fs::read(info["disk"].as_str().unwrap()).unwrap();
    assert!(found == written.0, "after {stop:?} messages");
    node.volume(&["rm", &name]);
    relay.passed()
}

#[test]
fn real_guests_are_moved_to_the_plain_file_wherever_the_daemon_dies() {
    if !wanted() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let grid = Grid::start();
    let disk = Disk::new("abcdefgh.ijklmnop");
    grid.import(&grid.disk("d.raw", &disk), "d:1");
    let mut node = Node::start(grid.data.clone());
    let messages = moves_a_guest(&mut node, temp.path(), &disk, None);
    println!("{messages} messages from a daemon that is left alone");
    for stop in 0..=messages {
        let in_all = moves_a_guest(&mut node, temp.path(), &disk, Some(stop));
        println!("killed after {stop}: {in_all} in all");
    }
}
