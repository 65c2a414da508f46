//! A volume that is all here, beside its file served by qemu-storage-daemon in the same way; and writes that
//! are flushed, beside a bare file behind the same server.
//!
//! The server has one core and the client the other. The disk is what of the disk is not zeros, so that there
//! is no hole to be told of; it is in the page cache. A volume that is all here asks its maps no less than one
//! that was just filled: for whoever still reads it through us there is no shorter way.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::Setup;
use crate::bars::{Bars, Bound, median};
use crate::fio::nbd;
use crate::grid::{Grid, Servers};
use crate::node::Node;
use crate::process::{Background, beside, on_core, pause, run, settle};

const SERVER_CORE: usize = 0;
const CLIENT_CORE: usize = 1;
/// Seconds of one measurement.
const SECONDS: &str = "2";

/// What is asked of a disk.
struct Load {
    what: &'static str,
    block: &'static str,
    depth: &'static str,
    random: bool,
    least: f64,
}

const READS: [Load; 2] = [
    Load {
        what: "random reads of 4 KiB, 32 at a time",
        block: "4096",
        depth: "32",
        random: true,
        least: 0.9,
    },
    Load {
        what: "reads of 1 MiB one after the other, 8 at a time",
        block: "1048576",
        depth: "8",
        random: false,
        least: 0.95,
    },
];

/// What of a disk is not zeros, as a disk; of whole chunks.
pub fn dense(setup: &Setup, to: &Path) {
    let mut file = File::create(to).unwrap();
    let chunks = forebay_benches::chunks_of(&setup.disk, usize::MAX);
    chunks.iter().for_each(|chunk| file.write_all(chunk).unwrap());
}

pub fn present(setup: &Setup, bars: &mut Bars) {
    let dir = setup.dir.join("volume");
    std::fs::create_dir_all(&dir).unwrap();
    let disk = dir.join("dense.raw");
    dense(setup, &disk);
    let grid = Grid::start_as(setup, &dir.join("up"), &Servers::default());
    grid.import(&disk, "v:1");
    let node = Node::start_on(&grid, "volume-node", SERVER_CORE);
    let made = node.volume(&["create", "v:1", "--name", "here"]);
    let file = PathBuf::from(made["disk"].as_str().unwrap());
    let socket = node.attach("here", &[]);
    node.wait_for("here");
    run(Command::new("cmp").arg(&disk).arg(&file));
    settle();

    let ours = format!("nbd+unix:///here?socket={socket}");
    let qemu = Exported::by_qemu(&dir.join("qemu-nbd.sock"), &file, "nbd");
    let theirs = format!("nbd+unix:///disk?socket={}", qemu.socket.display());
    for load in &READS {
        let one = |uri: &str| fio(setup, uri, &load.fio());
        beside_each_other(setup, bars, load, "NBD", || one(&ours), || one(&theirs));
    }
    drop(qemu);
    writes(setup, bars, &node, &ours, &disk);
    node.volume(&["detach", "here"]);

    let ours = node.attach("here", &["--export", "vhost-user"]);
    for load in &READS {
        // It serves one driver after the other, and not each of them more than once.
        let theirs = || {
            let qemu = Exported::by_qemu(&dir.join("qemu-vhost.sock"), &file, "vhost-user-blk");
            vhost(&qemu.socket, load)
        };
        let ours = || vhost(Path::new(&ours), load);
        beside_each_other(setup, bars, load, "vhost-user-blk", ours, theirs);
    }
    node.remove("here");
}

fn beside_each_other(
    setup: &Setup,
    bars: &mut Bars,
    load: &Load,
    how: &str,
    mut ours: impl FnMut() -> f64,
    mut theirs: impl FnMut() -> f64,
) {
    let both: Vec<_> = (0..setup.runs).map(|_| (theirs(), ours())).collect();
    let what = format!("{} of a volume over {how}, beside qemu-storage-daemon", load.what);
    let ratio = median(both.iter().map(|(theirs, ours)| ours / theirs).collect());
    let (theirs, ours) = both.into_iter().unzip();
    bars.add(&what, rate(ours), rate(theirs), ratio, Bound::AtLeast(load.least));
}

/// Writes with a flush after each 32: of a volume that is all here, and of one of which nothing is.
fn writes(setup: &Setup, bars: &mut Bars, node: &Node, here: &str, disk: &Path) {
    let bare = Exported::bare(&disk.with_file_name("bare.sock"), disk);
    let bare = (format!("nbd+unix:///disk?socket={}", bare.socket.display()), bare);
    let load = ["--rw=randwrite", "--bs=4096", "--iodepth=32", "--fsync=32"].map(str::to_owned);
    let (mut full, mut empty, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..setup.runs {
        theirs.push(fio(setup, &bare.0, &load));
        full.push(fio(setup, here, &load));
        node.volume(&["create", "v:1", "--name", "absent"]);
        let absent = node.attach("absent", &["--no-fill"]);
        empty.push(fio(setup, &format!("nbd+unix:///absent?socket={absent}"), &load));
        node.remove("absent");
    }
    let all = [
        ("writes of 4 KiB to a volume, a flush after each 32, beside a bare file", full),
        ("… to a volume of which nothing has arrived", empty),
    ];
    for ((what, ours), bound) in all.into_iter().zip([Bound::AtLeast(0.8), Bound::Told]) {
        let ratio = median(ours.iter().zip(&theirs).map(|(a, b)| a / b).collect());
        bars.add(what, rate(ours), rate(theirs.clone()), ratio, bound);
    }
}

impl Load {
    fn fio(&self) -> [String; 3] {
        let kind = if self.random { "randread" } else { "read" };
        [
            format!("--rw={kind}"),
            format!("--bs={}", self.block),
            format!("--iodepth={}", self.depth),
        ]
    }
}

/// A file that somebody else serves.
struct Exported {
    socket: PathBuf,
    _server: Background,
}

impl Exported {
    fn start(socket: &Path, command: &Command) -> Self {
        let _ = std::fs::remove_file(socket);
        let server = Background::start(&mut on_core(SERVER_CORE, command));
        while !socket.exists() {
            pause(Duration::from_millis(20));
        }
        // It is there before anybody listens at it.
        pause(Duration::from_millis(200));
        Self { socket: socket.to_owned(), _server: server }
    }

    fn by_qemu(socket: &Path, file: &Path, kind: &str) -> Self {
        let mut daemon = Command::new("qemu-storage-daemon");
        let file = format!(
            "driver=file,node-name=disk,aio=io_uring,read-only=on,locking=off,filename={}",
            file.display()
        );
        let at = socket.display();
        daemon.args(["--blockdev", &file]);
        let export = match kind {
            "nbd" => {
                daemon.args(["--nbd-server", &format!("addr.type=unix,addr.path={at}")]);
                "type=nbd,id=e,node-name=disk,name=disk".to_owned()
            }
            kind => format!("type={kind},id=e,node-name=disk,addr.type=unix,addr.path={at}"),
        };
        daemon.args(["--export", &export]);
        Self::start(socket, &daemon)
    }

    /// By our server, through our engine, with no volume in between.
    fn bare(socket: &Path, file: &Path) -> Self {
        let mut serve = Command::new(beside("nbd-serve"));
        serve.arg(file).arg(socket);
        Self::start(socket, &serve)
    }
}

/// Requests a second.
fn fio(setup: &Setup, uri: &str, load: &[String]) -> f64 {
    let runtime = format!("--runtime={SECONDS}");
    let load = load.iter().map(String::as_str);
    let args: Vec<&str> = load.chain(["--time_based", &runtime]).collect();
    let job = nbd(setup, Some(CLIENT_CORE), uri, &args);
    ["read", "write"].iter().map(|kind| job[kind]["iops"].as_f64().unwrap()).sum()
}

/// Requests a second.
fn vhost(socket: &Path, load: &Load) -> f64 {
    let mut program = Command::new(beside("vhost"));
    program.arg("load").arg(socket).args(["--block", load.block, "--depth", load.depth]);
    program.args(["--seconds", SECONDS]).args(load.random.then_some("--random"));
    let said = run(&mut on_core(CLIENT_CORE, &program)).stdout;
    let said = String::from_utf8_lossy(&said);
    said.split(' ').next().unwrap().parse().unwrap_or_else(|_| panic!("a rate: {said}"))
}

fn rate(rates: Vec<f64>) -> String {
    format!("{:.0} /s", median(rates))
}
