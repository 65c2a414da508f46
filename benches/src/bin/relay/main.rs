//! A long line between two network namespaces, for kernels without netem: two TUN devices, and this
//! program, which carries IP packets from one to the other with a delay each way.
//!
//! ```text
//! relay --a NAMESPACE=10.78.0.1/24 --b NAMESPACE=10.78.0.2/24 --delay-ms 10
//!       [--mbit N] [--loss 0.01] [--reorder 0.01] [--seed N]
//!
//!  namespace a │ device ── fill ─▶ pipe ── drain ─▶ device │ namespace b
//!              │        ◀─ drain ─ pipe ◀─ fill ───        │
//! ```
//! The namespaces must exist; the devices vanish with the program. It prints `ready`, and for every line
//! that it reads one of JSON: packets, bytes and losses each way, and the processor time that it took
//! itself, for it may be what limits a measurement. It ends with its input. Needs root.
//!
//! Without loss and reordering the devices exchange packets of up to 64 KiB that are cut into
//! segments where they leave the line, which saves most of the work; with them every packet is one that
//! a wire would carry, so that chance hits single ones.

mod line;
mod pipe;

use std::io::BufRead;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use forebay_benches::cpu_seconds;
use tun_rs::{DeviceBuilder, SyncDevice};

use line::{Line, Shape};
use pipe::{Counts, Pipe};

/// Packets that a device holds until they are read.
const DEVICE_QUEUE: u32 = 4096;

fn main() {
    let options = Options::parse(std::env::args().skip(1));
    let big = options.shape.loss == 0.0 && options.shape.reorder == 0.0;
    let ends = [&options.a, &options.b].map(|end| Arc::new(open(end, big)));
    let pipes = [(0, 1), (1, 0)].map(|(from, to)| {
        let pipe = Arc::new(Pipe::new());
        let line = Line::new(options.shape, options.seed + from as u64);
        let (filled, device) = (Arc::clone(&pipe), Arc::clone(&ends[from]));
        run("fill", move || {
            // Without its devices there is no line.
            eprintln!("relay: {}", filled.fill(&device, line));
            std::process::exit(1);
        });
        let (drained, device) = (Arc::clone(&pipe), Arc::clone(&ends[to]));
        run("drain", move || drained.drain(&device));
        pipe
    });
    println!("ready");
    for _ in std::io::stdin().lock().lines() {
        let [a, b] = [0, 1].map(|i| said(&pipes[i].counts));
        let cpu = cpu_seconds();
        println!("{}", serde_json::json!({ "from_a": a, "from_b": b, "cpu_seconds": cpu }));
    }
}

fn said(counts: &Counts) -> serde_json::Value {
    let get = |a: &std::sync::atomic::AtomicU64| a.load(Ordering::Relaxed);
    serde_json::json!({
        "packets": get(&counts.packets), "bytes": get(&counts.bytes), "lost": get(&counts.lost),
    })
}

fn run(name: &str, work: impl FnOnce() + Send + 'static) {
    std::thread::Builder::new().name(name.into()).spawn(work).expect("a thread can be started");
}

/// A device at one end of the line.
struct End {
    namespace: String,
    /// Address and length of the prefix.
    address: String,
}

/// Makes a device, and puts it into its namespace.
fn open(end: &End, big: bool) -> SyncDevice {
    // Unique while it is still in the namespace that all relays start in.
    let name = format!("fb{}", std::process::id());
    let builder = DeviceBuilder::new().name(&name).offload(big).tx_queue_len(DEVICE_QUEUE);
    let device = builder.build_sync().unwrap_or_else(|e| panic!("a TUN device: {e}"));
    ip(&["link", "set", &name, "netns", &end.namespace]);
    let inside = ["-n", &end.namespace];
    ip(&[&inside[..], &["link", "set", &name, "name", "relay0"]].concat());
    ip(&[&inside[..], &["address", "add", &end.address, "dev", "relay0"]].concat());
    ip(&[&inside[..], &["link", "set", "relay0", "up"]].concat());
    device
}

fn ip(args: &[&str]) {
    let output = Command::new("ip").args(args).output().expect("`ip` of iproute2");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {}: {error}", args.join(" "));
}

struct Options {
    a: End,
    b: End,
    shape: Shape,
    seed: u64,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> Self {
        let (mut a, mut b, mut seed) = (None, None, 1);
        let mut shape = Shape { delay: Duration::ZERO, rate: None, loss: 0.0, reorder: 0.0 };
        while let Some(arg) = args.next() {
            let value = args.next().unwrap_or_else(|| panic!("{arg} needs a value"));
            let number = || value.parse::<f64>().unwrap_or_else(|e| panic!("{arg} {value}: {e}"));
            match arg.as_str() {
                "--a" => a = Some(end(&value)),
                "--b" => b = Some(end(&value)),
                "--delay-ms" => shape.delay = Duration::from_secs_f64(number() / 1e3),
                "--mbit" => shape.rate = Some((number() * 1e6 / 8.0) as u64),
                "--loss" => shape.loss = number(),
                "--reorder" => shape.reorder = number(),
                "--seed" => seed = number() as u64,
                _ => panic!("{arg}: unknown; see the head of the source"),
            }
        }
        let [a, b] = [("--a", a), ("--b", b)]
            .map(|(name, end)| end.unwrap_or_else(|| panic!("{name} NAMESPACE=ADDRESS is needed")));
        Self { a, b, shape, seed }
    }
}

fn end(text: &str) -> End {
    let (namespace, address) = text.split_once('=').expect("NAMESPACE=ADDRESS/LENGTH");
    End { namespace: namespace.into(), address: address.into() }
}
