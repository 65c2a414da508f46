//! How long a guest's file systems hold still while it is saved: a guest with an agent, whose disk has that.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::Setup;
use crate::bars::{Bars, Bound, median};
use crate::grid::Grid;
use crate::node::Node;
use crate::process::{Background, pause};

/// Milliseconds.
const ALLOWED: f64 = 200.0;
/// An emulated guest takes its time to start.
const TRIES: u32 = 1200;

pub fn measure(setup: &Setup, bars: &mut Bars) {
    let grid = Grid::with_disk(setup, "save-frozen");
    let (node, _, socket) = Node::with_volume(&grid, "save-frozen-node");
    let agent = setup.dir.join("save-frozen/agent.sock");
    let _guest = guest(setup, &socket, &agent);
    let frozen = (0..setup.runs.max(5)).map(|run| {
        let saved = node.save(&["v", &format!("saved:{run}"), "--agent", agent.to_str().unwrap()]);
        let frozen = saved["frozen_ms"].as_f64();
        frozen.unwrap_or_else(|| panic!("its file systems did not hold still: {saved}"))
    });
    let frozen: Vec<f64> = frozen.collect();
    let millis = |ms: f64| format!("{ms:.0} ms");
    let longest = frozen.iter().copied().fold(0.0, f64::max);
    let ours = format!("{}, median {}", millis(longest), millis(median(frozen)));
    let what =
        "the longest that a guest's file systems held still, by its agent, while it was saved";
    bars.add(what, ours, millis(ALLOWED), longest / ALLOWED, Bound::AtMost(1.0));
}

/// Starts it, and waits until its agent answers.
fn guest(setup: &Setup, socket: &str, agent: &Path) -> Background {
    let beside = |suffix: &str| format!("{}.{suffix}", setup.disk.display());
    let disk = format!("driver=nbd,node-name=d,server.type=unix,server.path={socket},export=v");
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-accel", "tcg", "-m", "768", "-smp", "1", "-nographic", "-no-reboot"])
        .args(["-monitor", "none", "-nic", "none", "-serial", "none"])
        .args(["-kernel", &beside("vmlinuz"), "-initrd", &beside("initrd")])
        .args(["-append", "root=/dev/vda rw panic=-1"])
        .args(["-blockdev", &disk, "-device", "virtio-blk-pci,drive=d"])
        .args(["-device", "virtio-serial-pci"])
        .args(["-chardev", &format!("socket,id=a,path={},server=on,wait=off", agent.display())])
        .args(["-device", "virtserialport,chardev=a,name=org.qemu.guest_agent.0"]);
    let guest = Background::start(qemu.stdin(Stdio::null()));
    for _ in 0..TRIES {
        if answers(agent).unwrap_or(false) {
            return guest;
        }
        pause(Duration::from_millis(250));
    }
    panic!("no agent answers in the guest of {}", setup.disk.display());
}

fn answers(agent: &Path) -> std::io::Result<bool> {
    let mut stream = UnixStream::connect(agent)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"{\"execute\":\"guest-ping\"}\n")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(line.contains("return"))
}
