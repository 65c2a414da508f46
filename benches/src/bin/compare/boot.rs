//! A guest on a node that has nothing of its image: seconds to running services, beside a local disk.
//!
//! ```text
//!  namespace fbcmp-a           1 Gbit/s or 100 Mbit/s       namespace fbcmp-b
//!  forebay up, a warm cache ─────────────────────────────── forebay node ─ NBD ─ QEMU
//!  nbdkit ───────────────────────────────────────────────── nbdcopy, then QEMU; QEMU with an overlay
//! ```
//! Debian, emulated (`e2e/guest/boot`), until nginx and PostgreSQL answer; what has to be done before QEMU
//! starts counts. Everybody has a disk of his own that was never booted, and writes to it: a copy, a new
//! volume, a new overlay. The disk is in the page cache for whoever serves or boots it from a file, its frames are in the
//! memory of the cache. Everything shares the processors of this machine, so what arrives while the guest boots also
//! costs it time that it would not cost on a machine with an idle core.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use forebay_benches::CHUNK;
use image::{Digest, Domain, Encoder, is_zero};

use crate::Setup;
use crate::bars::{Bars, Bound, median, mib, seconds};
use crate::grid::{Grid, Place, Servers};
use crate::network::{CLIENT, Pair, SERVER, SERVER_IP};
use crate::node::Node;
use crate::process::{Background, cpu_seconds, inside, now, pause, run, settle};

const PLACE: Place = (SERVER, SERVER_IP, CLIENT);
/// What a guest's writes are told apart by, in bytes.
const BLOCK: u64 = 4096;
/// Of a boot, a full copy before it not included.
const PATIENCE: &str = "600";

/// A link, and what a boot over it may take beside a local one.
struct Link {
    rate: &'static str,
    called: &'static str,
    lazy: f64,
    traced: f64,
}

const FAST: Link = Link { rate: "1gbit", called: "1 Gbit/s", lazy: 1.15, traced: 1.05 };
const SLOW: Link = Link { rate: "100mbit", called: "100 Mbit/s", lazy: 1.25, traced: 1.12 };

/// A way to boot; seconds from nothing to running services.
type Way<'a> = (&'a str, Bound, Box<dyn Fn() -> f64 + 'a>);

pub fn fast(setup: &Setup, bars: &mut Bars) {
    measure(setup, bars, &FAST);
}

pub fn slow(setup: &Setup, bars: &mut Bars) {
    measure(setup, bars, &SLOW);
}

fn measure(setup: &Setup, bars: &mut Bars, link: &Link) {
    let dir = setup.dir.join(format!("boot-{}", link.rate));
    std::fs::create_dir_all(&dir).unwrap();
    let pair = Pair::up(None);
    let set = vec!["cache.memory=1GiB".to_owned()];
    let servers = Servers { place: Some(PLACE), set, ..Servers::default() };
    let grid = Grid::start_as(setup, &dir.join("up"), &servers);
    grid.import(&setup.disk, "v:1");
    run(&mut grid.command(&["cache", "warm", "v:1"]));
    let node = Node::start(&grid, "boot-node");
    let _far = serve_disk(setup);
    pair.shape(link.rate);
    let guest = Guest { setup, dir, node: &node, up: grid.up.0.id() };

    let traces = node.can_attach("--no-trace");
    let untraced: &[&str] = if traces { &["--no-trace"] } else { &[] };
    let quiet = [&["--no-fill"], untraced].concat();
    let lazy = Bound::AtMost(link.lazy);
    let mut ways: Vec<Way> = vec![
        ("a volume attached at once", lazy, Box::new(|| guest.lazily(untraced))),
        (
            "… nothing fetched but what the guest asks for",
            Bound::Told,
            Box::new(|| guest.lazily(&quiet)),
        ),
        ("… all of the disk copied before, by nbdcopy", Bound::Told, Box::new(|| guest.copied())),
        ("… QEMU's overlay over NBD", Bound::Told, Box::new(|| guest.overlaid())),
    ];
    if traces {
        // The first boot is the one that is remembered.
        guest.lazily(&[]);
        let bound = Bound::AtMost(link.traced);
        let way: Way = ("… with a trace of an earlier boot", bound, Box::new(|| guest.lazily(&[])));
        ways.insert(1, way);
    }
    beside_local(&guest, link, &ways, bars);
    fetched_beside_read(&guest, &quiet, link, bars);
}

/// nbdkit on the far side.
fn serve_disk(setup: &Setup) -> Background {
    let mut nbdkit = inside(Some(SERVER), "nbdkit");
    nbdkit.args(["-f", "-r", "-i", SERVER_IP, "-p", "10809", "file"]).arg(&setup.disk);
    let server = Background::start(&mut nbdkit);
    pause(Duration::from_millis(500));
    server
}

fn beside_local(guest: &Guest, link: &Link, ways: &[Way], bars: &mut Bars) {
    let (mut local, mut took) = (Vec::new(), vec![Vec::new(); ways.len()]);
    for round in 0..guest.setup.runs {
        local.push(guest.local());
        for ((what, _, way), took) in ways.iter().zip(&mut took) {
            let one = way();
            eprintln!(
                "{round}: {what}: {}, local {}",
                seconds(one),
                seconds(*local.last().unwrap())
            );
            took.push(one);
        }
    }
    for ((what, bound, _), took) in ways.iter().zip(took) {
        let ratio = median(took.iter().zip(&local).map(|(a, b)| a / b).collect());
        let what = match what.starts_with('…') {
            true => (*what).to_owned(),
            false => format!("Debian boots at {}, {what}, beside a local disk", link.called),
        };
        bars.add(&what, seconds(median(took)), seconds(median(local.clone())), ratio, *bound);
    }
}

/// Who boots.
struct Guest<'a> {
    setup: &'a Setup,
    dir: PathBuf,
    node: &'a Node<'a>,
    /// The process that its chunks come from.
    up: u32,
}

impl Guest<'_> {
    /// Seconds from the start of QEMU to running services.
    fn boot(&self, disk: &str, format: &str) -> f64 {
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../e2e/guest/boot");
        let beside = |what| format!("{}.{what}", self.setup.disk.display());
        let mut boot = inside(Some(CLIENT), script);
        boot.arg(disk).arg(beside("vmlinuz")).arg(beside("initrd"));
        boot.args(["--write", "--format", format, "--timeout", PATIENCE]);
        let said = run(&mut boot).stdout;
        String::from_utf8_lossy(&said).trim().parse().expect("seconds")
    }

    fn local(&self) -> f64 {
        let copy = self.dir.join("local.raw");
        run(Command::new("cp").arg("--sparse=always").arg(&self.setup.disk).arg(&copy));
        settle();
        let took = self.boot(copy.to_str().unwrap(), "raw");
        std::fs::remove_file(copy).unwrap();
        took
    }

    fn lazily(&self, options: &[&str]) -> f64 {
        settle();
        let start = now();
        self.node.volume(&["create", "v:1", "--name", "guest"]);
        let socket = self.node.attach("guest", options);
        let attached = (now() - start).as_secs_f64();
        let cpu = [self.node.daemon.0.id(), self.up].map(|pid| (pid, cpu_seconds(pid)));
        let took = self.boot(&format!("nbd+unix:///guest?socket={socket}"), "raw");
        let [node, up] = cpu.map(|(pid, before)| cpu_seconds(pid) - before);
        let came = self.node.hydration("guest");
        eprintln!(
            "made and attached in {attached:.2} s; processor time: {node:.1} s of the node's daemon, {up:.1} s of \
             `up`; {came}"
        );
        self.node.remove("guest");
        attached + took
    }

    fn copied(&self) -> f64 {
        let copy = self.dir.join("copy.raw");
        let size = std::fs::metadata(&self.setup.disk).unwrap().len();
        settle();
        let start = now();
        File::create(&copy).unwrap().set_len(size).unwrap();
        let mut nbdcopy = inside(Some(CLIENT), "nbdcopy");
        nbdcopy.arg("--destination-is-zero").arg(format!("nbd://{SERVER_IP}")).arg(&copy);
        run(&mut nbdcopy);
        let copied = (now() - start).as_secs_f64();
        let took = self.boot(copy.to_str().unwrap(), "raw");
        std::fs::remove_file(copy).unwrap();
        copied + took
    }

    fn overlaid(&self) -> f64 {
        let overlay = self.dir.join("overlay.qcow2");
        settle();
        let start = now();
        let mut create = inside(Some(CLIENT), "qemu-img");
        create.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]);
        run(create.arg(format!("nbd://{SERVER_IP}")).arg(&overlay));
        let made = (now() - start).as_secs_f64();
        let took = self.boot(overlay.to_str().unwrap(), "qcow2");
        std::fs::remove_file(overlay).unwrap();
        made + took
    }
}

/// What comes over the network when nothing is fetched but what a guest asks for, beside the frames of the
/// chunks that it reads something of that it has not written itself.
fn fetched_beside_read(guest: &Guest, quiet: &[&str], link: &Link, bars: &mut Bars) {
    guest.node.volume(&["create", "v:1", "--name", "quiet"]);
    let socket = guest.node.attach("quiet", quiet);
    let (log, logged) = (guest.dir.join("reads"), guest.dir.join("logged.sock"));
    let mut nbdkit = Command::new("nbdkit");
    nbdkit.args(["-f", "-U"]).arg(&logged).args(["--filter=log", "nbd", "export=quiet"]);
    nbdkit.arg(format!("socket={socket}")).arg(format!("logfile={}", log.display()));
    let between = Background::start(&mut nbdkit);
    pause(Duration::from_millis(500));
    guest.boot(&format!("nbd+unix:///?socket={}", logged.display()), "raw");
    let came = guest.node.hydration("quiet");
    guest.node.remove("quiet");
    drop(between);

    let chunks = chunks_read(&log);
    let (held, frames) = frames_of(&guest.setup.disk, &chunks);
    eprintln!("{held} chunks were read that are not zeros; {came}");
    let received = came["received"].as_f64().unwrap();
    let what = format!(
        "… what a boot at {} fetches without filling, beside the frames of the chunks it reads",
        link.called
    );
    let ratio = received / frames as f64;
    bars.add(&what, mib(received), mib(frames as f64), ratio, Bound::AtMost(1.2));
}

/// The chunks of which a guest read what it had not written, by nbdkit's log.
fn chunks_read(log: &Path) -> HashSet<u64> {
    let (mut written, mut read) = (HashSet::new(), HashSet::new());
    let text = std::fs::read_to_string(log).unwrap();
    for line in text.lines() {
        let number = |key: &str| {
            let value = line.split_whitespace().find_map(|word| word.strip_prefix(key));
            value.and_then(|v| u64::from_str_radix(v.trim_start_matches("0x"), 16).ok())
        };
        let (Some(at), Some(len)) = (number("offset="), number("count=")) else { continue };
        let blocks = at / BLOCK..(at + len).div_ceil(BLOCK);
        if line.contains(" Read ") {
            let fresh = blocks.filter(|block| !written.contains(block));
            read.extend(fresh.map(|block| block * BLOCK / CHUNK as u64));
        } else if line.contains(" Write ") || line.contains(" Zero ") {
            written.extend(blocks);
        }
    }
    read
}

/// Of these chunks of a disk, how many are not zeros, and the bytes of their frames.
fn frames_of(disk: &Path, chunks: &HashSet<u64>) -> (usize, usize) {
    let disk = File::open(disk).unwrap();
    let size = disk.metadata().unwrap().len();
    let (mut encoder, mut plain) = (Encoder::new().unwrap(), vec![0; CHUNK]);
    let frames = chunks.iter().filter_map(|chunk| {
        let at = chunk * CHUNK as u64;
        let plain = &mut plain[..(size - at).min(CHUNK as u64) as usize];
        disk.read_exact_at(plain, at).unwrap();
        let digest = Digest::of_chunk(plain);
        (!is_zero(plain)).then(|| encoder.encode(Domain::PUBLIC, digest, plain).bytes().len())
    });
    let frames: Vec<usize> = frames.collect();
    (frames.len(), frames.iter().sum())
}
