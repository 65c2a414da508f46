//! Virtual machines on volumes that have not arrived. Needs what [`crate::real`] needs.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::caches::{cache, join};
use crate::harness::{Background, Ended, Grid, forebay, path, run, until};
use crate::real::{guest, must, wanted};

/// What a guest does instead of its services: it writes something, and when that lasts, says what it was.
const WORK: &str =
    "dd if=/dev/urandom of=/root/proof bs=1M count=16; sync; sha256sum /root/proof >/dev/ttyS0";
/// How that ends.
const SUM: &str = "  /root/proof";

/// A node's daemon and its directory.
pub struct Node {
    data: PathBuf,
    pub daemon: Option<Background>,
}

impl Node {
    pub fn start(data: PathBuf) -> Self {
        let mut node = Self { data, daemon: None };
        node.restart();
        node
    }

    pub fn restart(&mut self) {
        let mut daemon = Background::start(forebay(&self.data).args(["node", "--json"]));
        assert!(daemon.line().contains("socket"));
        self.daemon = Some(daemon);
    }

    pub fn volume(&self, args: &[&str]) -> Value {
        self.run(args).json()
    }

    pub fn run(&self, args: &[&str]) -> Ended {
        run(forebay(&self.data).args(["--json", "volume"]).args(args))
    }

    pub fn is_plain(&self, name: &str) -> bool {
        self.volume(&["show", name])["plain"] == true
    }
}

/// A virtual machine, unplugged when it is dropped.
pub struct Machine {
    qemu: Child,
    console: PathBuf,
}

impl Machine {
    fn start(guest: &Path, dir: &Path, name: &str, disk: &[&str]) -> Self {
        Self::working(guest, dir, name, disk, WORK)
    }

    /// With this to do instead of its services.
    pub fn working(guest: &Path, dir: &Path, name: &str, disk: &[&str], work: &str) -> Self {
        let console = dir.join(format!("{name}.console"));
        let beside = |suffix: &str| format!("{}.{suffix}", guest.display());
        let append = format!(
            "root=/dev/vda rw console=ttyS0 panic=-1 systemd.run_success_action=none systemd.run=\"/bin/sh -c '{work}'\""
        );
        let qmp = format!("unix:{},server=on,wait=off", dir.join(format!("{name}.qmp")).display());
        let qemu = Command::new("qemu-system-x86_64")
            .args(["-accel", "tcg", "-m", "512", "-smp", "1", "-nographic", "-no-reboot"])
            .args(["-monitor", "none", "-nic", "none", "-qmp", &qmp])
            .args(["-serial", &format!("file:{}", console.display())])
            .args(["-kernel", &beside("vmlinuz"), "-initrd", &beside("initrd"), "-append", &append])
            .args(disk)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("QEMU");
        Self { qemu, console }
    }

    fn said(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    pub fn says(&mut self, what: &str) {
        until(&format!("{what} from {}", self.console.display()), || {
            assert!(self.qemu.try_wait().unwrap().is_none(), "QEMU ended: {}", self.said());
            self.said().contains(what)
        });
    }

    /// The power goes. What the guest said that it had written.
    fn unplug(mut self) -> String {
        let said = self.said();
        self.qemu.kill().unwrap();
        self.qemu.wait().unwrap();
        for bad in ["I/O error", "EXT4-fs error"] {
            assert!(!said.contains(bad), "{said}");
        }
        let sum = said.lines().find_map(|line| line.strip_suffix(SUM));
        let sum = sum.unwrap_or_else(|| panic!("no checksum: {said}")).trim();
        sum[sum.len() - 64..].to_owned()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// The file system is whole, and what the guest flushed is in it.
fn is_whole(disk: &Path, sum: &str) {
    // As a kernel does when it mounts after a power cut: the journal is replayed.
    let replayed = run(Command::new("e2fsck").args(["-fy", path(disk)]));
    assert!(replayed.code <= 1, "{}{}", replayed.out, replayed.err);
    must(Command::new("e2fsck").args(["-fn", path(disk)]));
    let script = "debugfs -R 'cat /root/proof' \"$0\" 2>/dev/null | sha256sum";
    let found = must(Command::new("sh").args(["-c", script, path(disk)]));
    assert!(found.starts_with(sum), "{}: {found} instead of {sum}", disk.display());
}

#[test]
fn real_guests_start_before_their_disks_arrive_whatever_dies_meanwhile() {
    if !wanted() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let guest = guest(temp.path());
    let grid = Grid::start();
    grid.run(&["import", path(&guest), "debian:12"]).json();
    let mut caches = ["c1", "c2"].map(|name| cache(&grid, &join(&grid, "server", name)));
    let mut nodes = ["n1", "n2"].map(|name| Node::start(join(&grid, "node", name)));

    // Slowly enough that they run before all is there.
    let attach = |node: &Node, name: &str, how: &[&str]| {
        node.volume(&["create", "debian:12", "--name", name]);
        let info = node.volume(&[&["attach", name, "--rate", "2MiB"], how].concat());
        info["attached"]["path"].as_str().unwrap().to_owned()
    };
    let qmp = temp.path().join("nbd.qmp");
    let nbd = attach(&nodes[0], "nbd", &["--qmp", path(&qmp)]);
    let vhost = attach(&nodes[0], "vhost", &["--export", "vhost-user"]);
    let fuse = attach(&nodes[1], "fuse", &["--export", "fuse"]);
    let start = |name: &str, disk: &[&str]| Machine::start(&guest, temp.path(), name, disk);
    let nbd = format!(
        "driver=nbd,node-name=d,server.type=unix,server.path={nbd},export=nbd,reconnect-delay=60"
    );
    let vhost = format!("socket,id=d,path={vhost},reconnect=1");
    let file = format!("if=virtio,format=raw,file={fuse}");
    let mut machines = [
        start("nbd", &["-blockdev", &nbd, "-device", "virtio-blk-pci,drive=d"]),
        start(
            "vhost",
            &[
                "-object",
                "memory-backend-memfd,id=m,size=512M,share=on",
                "-machine",
                "pc,memory-backend=m",
                "-chardev",
                &vhost,
                "-device",
                "vhost-user-blk-pci,chardev=d",
            ],
        ),
        start("fuse", &["-drive", &file]),
    ];
    for machine in &mut machines {
        machine.says("systemd[1]");
    }
    let here = ["nbd", "vhost"].map(|name| nodes[0].is_plain(name));
    assert_eq!(here, [false, false], "the guests run before their disks are here");
    for node in &mut nodes {
        node.daemon.take().unwrap().kill();
    }
    pause();
    nodes.iter_mut().for_each(Node::restart);
    caches[1].kill();
    for machine in &mut machines {
        machine.says(SUM);
    }
    for (node, name) in [(0, "nbd"), (0, "vhost"), (1, "fuse")] {
        until(&format!("all of {name} is here"), || nodes[node].is_plain(name));
    }
    until("the guest is moved to the plain file", || {
        nodes[0].volume(&["show", "nbd"])["attached"]["moved"] == true
    });
    for ((node, name), machine) in [(0, "nbd"), (0, "vhost"), (1, "fuse")].into_iter().zip(machines)
    {
        let sum = machine.unplug();
        let info = nodes[node].volume(&["detach", name]);
        is_whole(Path::new(info["disk"].as_str().unwrap()), &sum);
    }
}

/// Long enough for guests to notice.
#[expect(clippy::disallowed_methods, reason = "guests wait meanwhile")]
fn pause() {
    std::thread::sleep(std::time::Duration::from_secs(2));
}
