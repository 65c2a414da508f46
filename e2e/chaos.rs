//! Chaos: real caches that are killed, stopped, cut off, filled up and corrupted, one after the other, while
//! nodes pull. Every pull ends well and brings the right bytes, as the store can always be reached.
//!
//! Needs root and iproute2; runs with `FOREBAY_E2E=1`, for `FOREBAY_CHAOS_SECONDS` (30), with the faults of
//! `FOREBAY_CHAOS_SEED` (1).

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::harness::{Background, Ended, flip, forebay, path, run, until};

const CACHES: usize = 3;
const NODES: usize = 3;
/// Plain bytes of an image, half of which are noise.
const IMAGE: usize = 96 << 20;
/// Of the file system that a cache has to itself.
const CACHE_DISK: &str = "80m";
const CACHE: [&str; 8] = [
    "--set",
    "cache.memory=16MiB",
    "--set",
    "cache.disk=48MiB",
    "--set",
    "cache.reserve=4MiB",
    "--set",
    "cache.scrub=64MiB",
];
/// What a cache of these budgets may have taken at most: 16 MiB of frames, 128 in flight, the process, and what
/// is lent to so few connections, which is far from `serve.memory`.
const MOST: u64 = 384 << 20;
/// No pull takes longer, whatever happens to one cache at a time.
const PATIENCE: Duration = Duration::from_secs(60);

#[track_caller]
fn must(command: &mut Command) -> Ended {
    let ended = run(command);
    assert_eq!(ended.code, 0, "{command:?}\n{}\n{}", ended.out, ended.err);
    ended
}

fn ip(args: &str) -> Command {
    let mut command = Command::new("ip");
    command.args(args.split(' '));
    command
}

/// A hub with placement, the store and the nodes, and a namespace for each cache.
struct Network;

impl Network {
    fn up() -> Self {
        let network = Self;
        network.down();
        must(&mut ip("netns add fbch-hub"));
        must(&mut ip("-n fbch-hub link set lo up"));
        must(&mut ip("-n fbch-hub link add hub type bridge"));
        must(&mut ip("-n fbch-hub address add 10.79.0.1/24 dev hub"));
        must(&mut ip("-n fbch-hub link set hub up"));
        for n in 0..CACHES {
            must(&mut ip(&format!("netns add fbch-{n}")));
            must(&mut ip(&format!("-n fbch-{n} link set lo up")));
            let tie = format!("-n fbch-hub link add arm{n} type veth peer name arm netns fbch-{n}");
            must(&mut ip(&tie));
            must(&mut ip(&format!("-n fbch-hub link set arm{n} master hub up")));
            must(&mut ip(&format!("-n fbch-{n} address add 10.79.0.1{n}/24 dev arm")));
            must(&mut ip(&format!("-n fbch-{n} link set arm up")));
        }
        network
    }

    fn down(&self) {
        for name in (0..CACHES).map(|n| format!("fbch-{n}")).chain(["fbch-hub".into()]) {
            // It need not be there.
            let _ = ip(&format!("netns delete {name}")).output();
        }
    }

    /// The program, inside a namespace.
    fn inside(namespace: &str, data: &Path) -> Command {
        let program = forebay(data);
        let mut command = ip(&format!("netns exec {namespace}"));
        command.arg(program.get_program()).args(program.get_args());
        for (name, value) in program.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.arg("--json");
        command
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.down();
    }
}

/// A file system of its own, in memory.
struct Mount(PathBuf);

impl Mount {
    fn new(at: PathBuf) -> Self {
        std::fs::create_dir_all(&at).unwrap();
        let size = format!("size={CACHE_DISK}");
        must(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&at));
        Self(at)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

struct Cache {
    number: usize,
    data: PathBuf,
    disk: Mount,
    store: String,
    log: PathBuf,
    process: Option<Background>,
}

impl Cache {
    fn start(&mut self) {
        let mut command = Network::inside(&format!("fbch-{}", self.number), &self.data);
        let dir = format!("cache.dir={}", self.log_dir().display());
        command.args(["cache", "--set", &self.store, "--set", &dir]).args(CACHE);
        command.args(["--set", &format!("serve.ip=10.79.0.1{}", self.number)]);
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let mut process = Background::start(command.stderr(log));
        assert!(!process.line().is_empty(), "cache {} ended before it served", self.number);
        self.process = Some(process);
    }

    fn log_dir(&self) -> PathBuf {
        self.disk.0.join("log")
    }

    fn pid(&self) -> String {
        self.process.as_ref().unwrap().child.id().to_string()
    }

    fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.pid()]).status().unwrap().success());
    }

    fn link(&self, state: &str) {
        must(&mut ip(&format!("-n fbch-hub link set arm{} {state}", self.number)));
    }

    fn segments(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.log_dir()).into_iter().flatten();
        let files = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let big = |file: &PathBuf| std::fs::metadata(file).is_ok_and(|m| m.len() > 1 << 20);
        files.filter(big).collect()
    }

    /// The most memory that it has taken.
    fn peak(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
    }
}

/// What can happen to a cache.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Killed,
    Stopped,
    CutOff,
    Full,
    Corrupt,
    Emptied,
}

const FAULTS: [Fault; 6] =
    [Fault::Killed, Fault::Stopped, Fault::CutOff, Fault::Full, Fault::Corrupt, Fault::Emptied];

/// xorshift: the same faults for the same seed.
pub struct Chance(pub u64);

impl Chance {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

impl Fault {
    /// Happens, lasts, and is over.
    fn happens(self, cache: &mut Cache, lasts: Duration, chance: &mut Chance) {
        let wait = || std::thread::park_timeout(lasts);
        match self {
            Self::Killed => {
                cache.process.as_mut().unwrap().kill();
                wait();
                cache.start();
            }
            Self::Emptied => {
                cache.process.as_mut().unwrap().kill();
                std::fs::remove_dir_all(cache.log_dir()).unwrap();
                cache.start();
            }
            Self::Stopped => {
                cache.signal("-STOP");
                wait();
                cache.signal("-CONT");
            }
            Self::CutOff => {
                cache.link("down");
                wait();
                cache.link("up");
            }
            Self::Full => {
                let filler = cache.disk.0.join("filler");
                let mut file = File::create(&filler).unwrap();
                while file.write_all(&[7; 1 << 20]).is_ok() {}
                wait();
                std::fs::remove_file(filler).unwrap();
            }
            Self::Corrupt => {
                for segment in cache.segments() {
                    let len = std::fs::metadata(&segment).map_or(0, |m| m.len());
                    for _ in 0..16.min(len) {
                        flip(&segment, chance.below(len));
                    }
                }
            }
        }
    }
}

/// Half noise, half text; the same for the same seed.
fn disk(seed: u64) -> Vec<u8> {
    let mut chance = Chance(seed);
    let mut bytes = vec![0; IMAGE];
    for (i, line) in bytes.chunks_mut(64).enumerate() {
        if i % 2 == 0 {
            let _ = write!(&mut line[..], "line {i} of disk {seed}");
        } else {
            line.chunks_mut(8).for_each(|word| word.copy_from_slice(&chance.next_word()));
        }
    }
    bytes
}

impl Chance {
    fn next_word(&mut self) -> [u8; 8] {
        self.below(u64::MAX).to_le_bytes()
    }
}

#[expect(clippy::disallowed_methods, reason = "how long real processes take")]
fn now() -> Instant {
    Instant::now()
}

pub fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().expect("a number"))
}

/// Pulls one image after the other until it is over; how many, and the longest.
fn pulls(node: &Path, images: &[Vec<u8>; 2], over: &AtomicBool) -> (u64, Duration) {
    let (mut count, mut longest) = (0, Duration::ZERO);
    while !over.load(Ordering::Relaxed) {
        let version = (count % 2) as usize;
        longest = longest.max(pull(node, version, &images[version]));
        count += 1;
    }
    (count, longest)
}

fn pull(node: &Path, version: usize, image: &[u8]) -> Duration {
    let (to, start) = (node.join("copy.raw"), now());
    let name = format!("v:{version}");
    let args = ["pull", &name, "--no-daemon", "--no-sync", "--to", path(&to)];
    must(Network::inside("fbch-hub", node).args(args));
    let took = now() - start;
    assert!(took < PATIENCE, "a pull took {took:?}");
    is_right(&to, image);
    std::fs::remove_file(&to).unwrap();
    took
}

#[track_caller]
fn is_right(copy: &Path, image: &[u8]) {
    let file = File::open(copy).unwrap();
    assert_eq!(file.metadata().unwrap().len(), image.len() as u64);
    let mut piece = vec![0; 1 << 20];
    for (i, right) in image.chunks(piece.len()).enumerate() {
        file.read_exact_at(&mut piece[..right.len()], (i << 20) as u64).unwrap();
        assert!(piece[..right.len()] == *right, "wrong bytes in MiB {i} of {}", copy.display());
    }
}

fn join(admin: &Path, dir: &Path, role: &str, name: &str) -> PathBuf {
    let token = ["node", "token", "--role", role];
    let token = must(Network::inside("fbch-hub", admin).args(token)).json();
    let data = dir.join(name);
    let join = ["node", "join", token["token"].as_str().unwrap(), "--name", name];
    must(Network::inside("fbch-hub", &data).args(join));
    data
}

#[test]
fn real_chaos_costs_time_and_nothing_else() {
    if std::env::var_os("FOREBAY_E2E").is_none() {
        println!("left out: needs FOREBAY_E2E=1, root and iproute2");
        return;
    }
    let (seconds, seed) = (number("FOREBAY_CHAOS_SECONDS", 30), number("FOREBAY_CHAOS_SEED", 1));
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let _network = Network::up();
    let admin = dir.join("grid");
    let mut up = Network::inside("fbch-hub", &admin);
    up.args(["up", "--listen", "10.79.0.1:0", "--set", "serve.ip=10.79.0.1"]);
    let mut up = Background::start(up.stderr(File::create(dir.join("up.log")).unwrap()));
    assert!(!up.line().is_empty(), "up ended before it served");
    let images = [disk(1), disk(2)];
    for (version, image) in images.iter().enumerate() {
        let raw = dir.join("disk.raw");
        std::fs::write(&raw, image).unwrap();
        let import = ["import", path(&raw), &format!("v:{version}")];
        must(Network::inside("fbch-hub", &admin).args(import));
    }
    let mut caches: Vec<Cache> = (0..CACHES)
        .map(|number| Cache {
            number,
            data: join(&admin, dir, "server", &format!("cache-{number}")),
            disk: Mount::new(dir.join(format!("disk-{number}"))),
            store: format!("store.at={}", admin.join("store").display()),
            log: dir.join(format!("cache-{number}.log")),
            process: None,
        })
        .collect();
    caches.iter_mut().for_each(Cache::start);
    let nodes: Vec<_> =
        (0..NODES).map(|n| join(&admin, dir, "node", &format!("node-{n}"))).collect();

    let over = AtomicBool::new(false);
    let pulled: Vec<_> = std::thread::scope(|threads| {
        let (images, over) = (&images, &over);
        let pull = |node: &'_ PathBuf| {
            let node = node.clone();
            threads.spawn(move || pulls(&node, images, over))
        };
        let pulling: Vec<_> = nodes.iter().map(pull).collect();
        let going = || pulling.iter().all(|node| !node.is_finished());
        let happened = havoc(&mut caches, seed, Duration::from_secs(seconds), going);
        over.store(true, Ordering::Relaxed);
        println!("{happened}");
        pulling.into_iter().map(|node| node.join().unwrap()).collect()
    });
    for (count, longest) in &pulled {
        println!("{count} pulls, the longest {longest:.1?}");
        assert!(*count > 0);
    }

    // Then every cache is whole again, by itself.
    let in_use = || {
        let status = must(Network::inside("fbch-hub", &admin).args(["cache", "status"])).json();
        let caches = status.as_array().unwrap();
        assert_eq!(caches.len(), CACHES + 1, "{status}");
        caches.iter().all(|cache| cache["disk_state"] == "on")
    };
    until("every disk in use again", in_use);
    must(Network::inside("fbch-hub", &admin).args(["cache", "scrub", "--rate", "1GiB"]));
    for (version, image) in images.iter().enumerate() {
        pull(&nodes[0], version, image);
    }
    until("every disk still in use", in_use);
    for cache in &caches {
        let peak = cache.peak();
        println!("cache {}: {} MiB at most", cache.number, peak >> 20);
        assert!(peak < MOST, "cache {} took {peak} bytes", cache.number);
    }
    must(Network::inside("fbch-hub", &admin).args(["store", "verify"]));
    for cache in &mut caches {
        let (_, code) = cache.process.as_mut().unwrap().terminate();
        assert_eq!(code, 0, "cache {}", cache.number);
    }
    assert_eq!(up.terminate().1, 0);
}

/// One fault after the other, one cache at a time; which there were.
fn havoc(caches: &mut [Cache], seed: u64, time: Duration, going: impl Fn() -> bool) -> String {
    let (start, mut happened) = (now(), [0; FAULTS.len()]);
    let mut chance = Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    while now() - start < time && going() {
        let fault = chance.below(FAULTS.len() as u64) as usize;
        let cache = &mut caches[chance.below(CACHES as u64) as usize];
        let lasts = Duration::from_millis(300 + chance.below(5000));
        let (at, what) = ((now() - start).as_secs_f64(), FAULTS[fault]);
        println!("{at:.1} s: cache {}: {what:?}, {lasts:?}", cache.number);
        what.happens(cache, lasts, &mut chance);
        happened[fault] += 1;
        std::thread::park_timeout(Duration::from_millis(chance.below(2000)));
    }
    let each = FAULTS.iter().zip(happened).map(|(fault, times)| format!("{fault:?} {times}"));
    each.collect::<Vec<_>>().join(", ")
}
