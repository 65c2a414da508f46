//! Placement is away for long, and what runs goes on: volumes that are attached, those that are still filled, pulls,
//! captures, and claims at nodes. When it is back, everything that happened meanwhile is known to it.
//!
//! Needs root and iproute2; runs with `FOREBAY_E2E=1`, for `FOREBAY_AWAY_SECONDS` (45).

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{Background, path, until};
use crate::leases::until_over;
use crate::nbd::Nbd;
use crate::network::{Host, Network, file, noise};
use crate::real::wanted;
use crate::volumes::connect;

const MIB: usize = 1 << 20;
/// Of the image.
const SIZE: usize = 64 * MIB;
/// Of what is written before a volume is saved.
const CHANGED: usize = 16 * MIB;

/// How long placement is away.
fn term() -> Duration {
    let seconds = std::env::var("FOREBAY_AWAY_SECONDS").ok();
    Duration::from_secs(seconds.map_or(45, |text| text.parse().expect("seconds")))
}

/// So many bytes a second that it takes this part of the time.
fn rate(bytes: usize, part: f64) -> String {
    format!("{}", (bytes as f64 / (term().as_secs_f64() * part)) as u64)
}

struct Rig {
    network: Network,
    /// Where placement alone listens: chunks come and go by the machine's other address.
    placement: String,
    up: Host,
    nodes: [Host; 2],
    servers: Vec<Background>,
}

impl Rig {
    fn start(dir: &Path, name: &'static str, net: &'static str, args: &[&str]) -> Self {
        let (network, placement) =
            (Network::up(name, net, &["up", "n1", "n2"]), format!("{net}.100"));
        network.second_address("up", &placement, true);
        let host = |name: &'static str| network.host(name, dir.join(name));
        let (up, nodes) = (host("up"), ["n1", "n2"].map(host));
        let serve = format!("serve.ip={}", network.address("up"));
        let listen = format!("{placement}:7400");
        let serving = [&["up", "--listen", &listen, "--set", &serve], args].concat();
        let mut servers = vec![up.serve(&serving)];
        for node in &nodes {
            node.join(&up, "node");
            servers.push(node.serve(&["node"]));
        }
        Self { network, placement, up, nodes, servers }
    }

    /// Placement goes away, or comes back.
    fn is_there(&self, there: bool) {
        self.network.second_address("up", &self.placement, there);
    }

    fn volume(&self, node: usize, args: &[&str]) -> Value {
        self.nodes[node].run(&[&["volume"], args].concat()).json()
    }

    fn attach(&self, node: usize, name: &str, how: &[&str]) -> String {
        self.volume(node, &["create", "d:1", "--name", name]);
        let info = self.volume(node, &[&["attach", name], how].concat());
        info["attached"]["path"].as_str().unwrap().to_owned()
    }

    fn is_plain(&self, node: usize, name: &str) -> bool {
        self.volume(node, &["show", name])["plain"] == true
    }

    fn until_ready(&self, many: u64) {
        until("the pool is filled", || {
            let shown = self.up.run(&["pool", "show", "web"]).json();
            shown["ready"] == many && shown["building"] == 0
        });
    }
}

/// A guest that never stops writing; what it wrote last, and how long it had to wait at most.
#[expect(clippy::disallowed_methods, reason = "the time is told, nothing is decided by it")]
fn works(socket: &str, over: &AtomicBool) -> (u8, Duration) {
    let (mut guest, mut last, mut longest) = (connect(socket.as_ref()), 0, Duration::ZERO);
    while !over.load(Ordering::Relaxed) {
        let since = Instant::now();
        last = u8::wrapping_add(last, 1);
        guest.write(0, &[last; 8192]).unwrap();
        guest.flush().unwrap();
        assert_eq!(guest.read(4096, 4096).unwrap(), [last; 4096]);
        longest = longest.max(since.elapsed());
        std::thread::park_timeout(Duration::from_millis(20));
    }
    (last, longest)
}

#[test]
#[expect(clippy::disallowed_methods, reason = "placement is away for a time")]
fn real_what_runs_goes_on_while_placement_is_away() {
    if !wanted() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(temp.path(), "fbaway", "10.81.0", &[]);
    let image = noise(1, SIZE);
    rig.up.run(&["import", &file(&temp.path().join("d.raw"), &image), "d:1"]).json();
    rig.up.run(&["pool", "create", "web", "--size", "16MiB", "--target", "2", "--low", "2"]).json();
    rig.until_ready(2);

    // A volume that is filled, one of which only what is asked for comes, and one that is saved.
    let filled = rig.attach(0, "filled", &["--rate", &rate(SIZE, 0.7)]);
    let lazy = rig.attach(0, "lazy", &["--no-fill"]);
    let mut lazy = connect(lazy.as_ref());
    let saved = rig.attach(1, "saved", &[]);
    until("all of it is here", || rig.is_plain(1, "saved"));
    let written = noise(2, CHANGED);
    let mut guest = connect(saved.as_ref());
    for (n, piece) in written.chunks(MIB).enumerate() {
        guest.write((n * MIB) as u64, piece).unwrap();
    }
    guest.flush().unwrap();
    let save = ["save", "saved", "s:1", "--rate", &rate(CHANGED, 0.6)];
    let mut save = Background::start(&mut rig.nodes[1].command(&save));
    let copy = temp.path().join("copy.raw");
    let pull = ["pull", "d:1", "--to", path(&copy), "--rate", &rate(SIZE, 0.7)];
    let mut pull = Background::start(&mut rig.nodes[1].command(&pull));
    let captures = || rig.nodes[1].run(&["node", "captures"]).json();
    until("the capture reads", || captures()[0]["progress"]["read"].as_u64() > Some(0));
    until("the pull writes", || temp.path().join(".copy.raw.forebay-partial").exists());

    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let guest = scope.spawn(|| works(&filled, &over));
        rig.is_there(false);
        let since = Instant::now();
        let away =
            |what: &str| println!("{what} after {:.0} s away", since.elapsed().as_secs_f64());
        rig.nodes[0].run(&["images"]).fails(75, &[&rig.placement]);
        assert!(lazy.read(8 << 20, 4096).unwrap() == image[8 * MIB..][..4096]);
        // A node hands out what it has; what nobody had yet is not attached.
        rig.nodes[0].run(&["pool", "claim", "web", "mine", "--here"]).json();
        let refused = rig.nodes[0].run(&["volume", "attach", "mine"]);
        refused.fails(75, &["the lease to write mine"]);

        assert_eq!(pull.ended(2 * term()).1, 0);
        assert!(std::fs::read(&copy).unwrap() == image);
        away("a pull is done");
        until("all of it is here", || rig.is_plain(0, "filled"));
        away("a volume is filled");
        // All but its name.
        until("the capture has read all", || {
            captures()[0]["progress"]["read"].as_u64() >= Some(CHANGED as u64)
        });
        away("a capture has read all");
        assert!(save.child.try_wait().unwrap().is_none(), "it waits for placement");
        std::thread::sleep(term().saturating_sub(since.elapsed()));
        assert!(lazy.read(16 << 20, 4096).unwrap() == image[16 * MIB..][..4096]);
        lazy.write(0, &[7; 4096]).unwrap();
        lazy.flush().unwrap();
        away("what had not come yet is read");
        rig.nodes[0].run(&["images"]).fails(75, &[&rig.placement]);

        rig.is_there(true);
        let back = Instant::now();
        until("placement answers", || rig.nodes[0].run(&["images"]).code == 0);
        // What was used meanwhile is known, and built anew.
        rig.until_ready(2);
        println!("the pool is whole {:?} after placement is back", back.elapsed());
        let (line, code) = save.ended(2 * term());
        assert_eq!(code, 0, "{line}");
        println!("the capture has its name {:?} after placement is back", back.elapsed());
        rig.volume(0, &["attach", "mine"]);
        over.store(true, Ordering::Relaxed);
        let (last, longest) = guest.join().unwrap();
        println!("the guest's longest wait was {longest:?}");
        assert_eq!(connect(filled.as_ref()).read(0, 4096).unwrap(), [last; 4096]);
    });
    let leases = rig.up.run(&["lease", "list"]).json()["leases"].clone();
    let held = |lease: &Value| (lease["called"].clone(), lease["epoch"].clone());
    let mut held: Vec<_> = leases.as_array().unwrap().iter().map(held).collect();
    held.sort_by_key(|(called, _)| called.to_string());
    let names = ["filled", "lazy", "mine", "saved"];
    assert_eq!(held, names.map(|name| (name.into(), 1.into())), "nobody lost a lease");
    let out = temp.path().join("out.raw");
    rig.up.run(&["pull", "s:1", "--to", path(&out), "--no-daemon"]).json();
    assert!(std::fs::read(&out).unwrap() == [&written, &image[CHANGED..]].concat());
    rig.servers.iter_mut().rev().for_each(Background::kill);
}

#[test]
fn real_a_capture_reads_on_while_placement_is_away_for_longer_than_a_lease() {
    if !wanted() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let lease = ["--set", "placement.lease=10s"];
    let mut rig = Rig::start(temp.path(), "fbover", "10.84.0", &lease);
    let image = noise(1, SIZE);
    rig.up.run(&["import", &file(&temp.path().join("d.raw"), &image), "d:1"]).json();
    let socket = rig.attach(0, "saved", &[]);
    until("all of it is here", || rig.is_plain(0, "saved"));
    let written = noise(2, CHANGED);
    let mut guest = connect(socket.as_ref());
    for (n, piece) in written.chunks(MIB).enumerate() {
        guest.write((n * MIB) as u64, piece).unwrap();
    }
    // Some of it is read, and sent, when nothing may be written any more.
    let save = ["save", "saved", "s:1", "--rate", "768KiB"];
    let mut save = Background::start(&mut rig.nodes[0].command(&save));
    let capture = || rig.nodes[0].run(&["node", "captures"]).json()[0].clone();
    let read = || capture()["progress"]["read"].as_u64().unwrap_or(0);
    until("the capture reads", || read() > 0);
    rig.is_there(false);
    guest.write(0, &[8; 4096]).unwrap();
    until("the lease is over", || Nbd::connect(socket.as_ref()).is_err());
    assert!(read() < CHANGED as u64);
    until_over(&temp.path().join("n1"));
    until("the capture has read all", || read() >= CHANGED as u64);
    assert!(save.child.try_wait().unwrap().is_none(), "it waits for placement");
    assert!(Nbd::connect(socket.as_ref()).is_err(), "so does the guest");
    rig.is_there(true);
    let (line, code) = save.ended(term());
    assert_eq!(code, 0, "{line}");
    until("the guest goes on", || Nbd::connect(socket.as_ref()).is_ok());
    assert_eq!(connect(socket.as_ref()).read(0, 4096).unwrap(), [8; 4096]);
    let out = temp.path().join("out.raw");
    rig.up.run(&["pull", "s:1", "--to", path(&out), "--no-daemon"]).json();
    assert!(std::fs::read(&out).unwrap() == [&written, &image[CHANGED..]].concat());
    rig.servers.iter_mut().rev().for_each(Background::kill);
}
