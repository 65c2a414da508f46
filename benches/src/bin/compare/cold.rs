//! A cold cache in front of a store that is far away, beside reading that store with nothing in between.
//!
//! ```text
//!  namespace fbcmp-far        relay: 10 ms each way        namespace fbcmp-near
//!  S3 server ───────────────────── TUN ──────────────────── forebay up ◀─ client
//!                                                      ╰────────────────── client
//! ```
//! Both clients stand near, so both wait 20 ms for whatever the store is asked. The relay carries 1
//! Gbit/s each way, so that the line is what a pull waits for and not the processors that everything
//! here shares; what relay and S3 server take of them is said beside. A client of the cache has its
//! ticket before the time begins: placement, in the same process, looked at the manifest for it.

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::Setup;
use crate::bars::{Bars, Bound, median, seconds};
use crate::grid::{Grid, Servers};
use crate::process::{Answering, beside, inside, json, run, settle};
use crate::s3::S3;

pub const FAR: &str = "fbcmp-far";
pub const FAR_IP: &str = "10.78.0.1";
pub const NEAR: &str = "fbcmp-near";
const NEAR_IP: &str = "10.78.0.2";
const DELAY_MS: &str = "10";
const MBIT: &str = "1000";

/// The two namespaces, taken down when dropped, and the line between them.
pub struct Line {
    relay: Answering,
}

fn namespaces(verb: &str) {
    for name in [FAR, NEAR] {
        // Taken down what a run before left behind, if it did.
        let _ = Command::new("ip").args(["netns", verb, name]).output();
    }
}

impl Line {
    pub fn up() -> Self {
        namespaces("delete");
        namespaces("add");
        for name in [FAR, NEAR] {
            run(Command::new("ip").args(["-n", name, "link", "set", "lo", "up"]));
        }
        let mut relay = Command::new(beside("relay"));
        relay.args(["--a", &format!("{FAR}={FAR_IP}/24"), "--b", &format!("{NEAR}={NEAR_IP}/24")]);
        let (relay, _) = Answering::start(relay.args(["--delay-ms", DELAY_MS, "--mbit", MBIT]));
        Self { relay }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        namespaces("delete");
    }
}

/// The far store, and what stands near.
struct Far<'a> {
    setup: &'a Setup,
    servers: Servers,
    data: PathBuf,
    image: String,
    /// Its URL and settings for those who read it themselves.
    url: String,
    s3: S3,
    line: Line,
}

impl<'a> Far<'a> {
    fn new(setup: &'a Setup) -> Self {
        let line = Line::up();
        let dir = setup.dir.join("cold");
        let s3 = S3::start(&dir.join("s3"), Some(FAR), FAR_IP);
        let place = Some((NEAR, "127.0.0.1", NEAR));
        let servers = Servers { place, ..s3.servers() };
        let data = dir.join("up");
        let grid = Grid::start_as(setup, &data, &servers);
        let image = grid.import(&setup.disk, "v:1")["image"].as_str().unwrap().to_owned();
        grid.stop();
        Self { setup, servers, data, image, url: forebay_benches::s3::url(), s3, line }
    }

    /// A grid whose cache has nothing, in memory or on disk.
    fn cold(&self) -> Grid {
        let _ = std::fs::remove_dir_all(self.data.join("cache"));
        settle();
        Grid::start_as(self.setup, &self.data, &self.servers)
    }

    fn reader(&self, args: &[&str]) -> Command {
        let mut reader = inside(Some(NEAR), beside("reader"));
        reader.args(args).envs(self.s3.environment());
        reader
    }

    fn pull_direct(&self) -> f64 {
        let copy = self.copy();
        let to = copy.to_str().unwrap();
        let said = json(&mut self.reader(&["pull", &self.image, &self.url, to]));
        self.check(copy);
        said["seconds"].as_f64().unwrap()
    }

    fn pull_through_cache(&self) -> f64 {
        let grid = self.cold();
        let copy = self.copy();
        let to = copy.to_str().unwrap();
        let pull = ["pull", &self.image, "--no-daemon", "--no-sync", "--to", to];
        let said = json(&mut grid.command(&pull));
        self.check(copy);
        grid.stop();
        said["seconds"].as_f64().unwrap()
    }

    fn copy(&self) -> PathBuf {
        settle();
        self.setup.dir.join("copy.raw")
    }

    fn check(&self, copy: PathBuf) {
        run(Command::new("cmp").arg(&self.setup.disk).arg(&copy));
        std::fs::remove_file(copy).unwrap();
    }

    /// Processor time of relay and S3 server so far.
    fn cpu(&mut self) -> (f64, f64) {
        (self.line.relay.ask()["cpu_seconds"].as_f64().unwrap(), self.s3.cpu())
    }
}

pub fn measure(setup: &Setup, bars: &mut Bars) {
    let mut far = Far::new(setup);
    first_chunk(&far, bars);
    let before = far.cpu();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..setup.runs.min(3) {
        theirs.push(far.pull_direct());
        ours.push(far.pull_through_cache());
    }
    let after = far.cpu();
    eprintln!(
        "processor time of the pulls ({:.1} s in all): relay {:.1} s, S3 server {:.1} s; {}",
        ours.iter().chain(&theirs).sum::<f64>(),
        after.0 - before.0,
        after.1 - before.1,
        far.line.relay.ask(),
    );
    let ratio = median(ours.iter().zip(&theirs).map(|(a, b)| a / b).collect());
    let what = "cold pull through the cache, the store 20 ms away, beside a direct pull";
    let (ours, theirs) = (seconds(median(ours)), seconds(median(theirs)));
    bars.add(what, ours, theirs, ratio, Bound::AtMost(1.15));
}

/// The time to the verified bytes of one chunk, of an image that was read before and of one that was
/// not.
fn first_chunk(far: &Far, bars: &mut Bars) {
    let (mut known, mut unknown) = ([const { Vec::new() }; 2], [const { Vec::new() }; 2]);
    for _ in 0..far.setup.runs.min(3) {
        let grid = far.cold();
        let ours = json(&mut far.reader(&["first", &far.image, far.data.to_str().unwrap()]));
        grid.stop();
        let theirs = json(&mut far.reader(&["first", &far.image, &far.url]));
        for (i, said) in [ours, theirs].iter().enumerate() {
            let times = said["known_image"].as_array().unwrap();
            known[i].extend(times.iter().map(|t| t.as_f64().unwrap()));
            unknown[i].push(Value::as_f64(&said["unknown_image"]).unwrap());
        }
    }
    let ms = |times: &[f64]| format!("{:.1} ms", median(times.to_vec()) * 1e3);
    for (what, [ours, theirs]) in [
        ("first verified byte of a cold chunk, the store 20 ms away, beside a direct read", known),
        ("… and of an image of which nothing was known, manifest and table included", unknown),
    ] {
        let ratio = median(ours.clone()) / median(theirs.clone());
        bars.add(what, ms(&ours), ms(&theirs), ratio, Bound::AtMost(1.3));
    }
}
