//! What nodes feel of a cache that dies, and of one that limps.
//!
//! Three caches, each behind a link of its own, of 500 Mbit/s in all; 20 nodes pull one image into
//! memory (`/dev/shm`), all at once, each a process that knows nothing of the caches at first. The image is a little of each section of the disk, as much as takes some twenty seconds.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::Setup;
use crate::bars::{Bars, Bound, median, seconds};
use crate::grid::{Grid, Servers};
use crate::network::{CLIENT, Star};
use crate::process::{Background, now, pause, run};

const NODES: usize = 20;
/// Bytes of disk in a section.
const SECTION: u64 = 64 << 20;
const RATE: &str = "166667kbit";
const A_TWENTIETH: &str = "8333kbit";
/// Bytes that the links bring in a second.
const LINKS: f64 = 500e6 / 8.0;
/// Of each section of the disk.
const PIECE: u64 = 10 << 20;

/// The grid, its nodes, and the image.
struct World {
    grid: Grid,
    nodes: Vec<PathBuf>,
    /// What all pulls together take over these links, if nothing else does.
    expected: Duration,
}

impl World {
    fn new(setup: &Setup, star: &Star) -> Self {
        let dir = setup.dir.join("tails");
        std::fs::create_dir_all(&dir).unwrap();
        let piece = dir.join("piece.raw");
        thin(&setup.disk, &piece);
        let frames = forebay_benches::frames_of(&piece);
        let bytes: usize = frames.iter().map(|f| f.bytes().len()).sum();
        let grid = Grid::start_as(setup, &dir.join("up"), &at(star, 0));
        grid.import(&piece, "v:1");
        let nodes = (0..NODES).map(|i| grid.join("node", &format!("node-{i}"))).collect();
        eprintln!("the image takes {} as frames", crate::bars::mib(bytes as f64));
        let expected = Duration::from_secs_f64((bytes * NODES) as f64 / LINKS);
        Self { grid, nodes, expected }
    }

    /// One more cache, which holds the image.
    fn cache(&self, setup: &Setup, star: &Star, number: usize) -> Background {
        let mut servers = at(star, number);
        servers.set.push(format!("store.at={}", self.grid.data.join("store").display()));
        let name = format!("cache-{number}");
        let cache = self.grid.cache(setup, &self.grid.join("server", &name), &servers);
        run(&mut self.grid.command(&["cache", "warm", "v:1"]));
        cache
    }

    /// All nodes pull, and something happens when a third of the time has passed. The seconds that each
    /// took, the shortest first. None may fail.
    fn pulls(&self, happens: impl FnOnce()) -> Vec<f64> {
        let start = now();
        let sinks = Path::new("/dev/shm/forebay-tails");
        std::fs::create_dir_all(sinks).unwrap();
        let pulling = |node: &PathBuf| {
            let sink = sinks.join(node.file_name().unwrap());
            let sink = sink.to_str().unwrap();
            let args = ["pull", "v:1", "--no-daemon", "--no-sync", "--to", sink];
            let mut command = self.grid.command_as(node, &args);
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let mut left: Vec<_> = self.nodes.iter().map(pulling).collect();
        let (mut took, mut happens) = (Vec::new(), Some(happens));
        while !left.is_empty() {
            pause(Duration::from_millis(5));
            if since(start) >= self.expected / 3
                && let Some(happens) = happens.take()
            {
                happens();
            }
            left.retain_mut(|pull| {
                let Some(status) = pull.try_wait().unwrap() else { return true };
                let mut said = String::new();
                pull.stderr.take().unwrap().read_to_string(&mut said).unwrap();
                assert!(status.success(), "a pull failed: {said}");
                took.push(since(start).as_secs_f64());
                false
            });
        }
        std::fs::remove_dir_all(sinks).unwrap();
        eprintln!("{NODES} pulls, {:.1} s at best: {took:.1?}", self.expected.as_secs_f64());
        took
    }
}

/// The beginning of each section of a disk, in its place.
fn thin(disk: &Path, to: &Path) {
    let (disk, to) = (File::open(disk).unwrap(), File::create(to).unwrap());
    let size = disk.metadata().unwrap().len();
    to.set_len(size).unwrap();
    let mut piece = vec![0; PIECE as usize];
    for at in (0..size).step_by(SECTION as usize) {
        disk.read_exact_at(&mut piece, at).unwrap();
        to.write_all_at(&piece, at).unwrap();
    }
}

fn since(start: Instant) -> Duration {
    now() - start
}

fn at(star: &Star, number: usize) -> Servers {
    let (namespace, ip) = star.arm(number);
    Servers { place: Some((namespace, ip, CLIENT)), ..Servers::default() }
}

pub fn measure(setup: &Setup, bars: &mut Bars) {
    let star = Star::up(RATE);
    let world = World::new(setup, &star);
    let _second = world.cache(setup, &star, 1);
    let two = world.pulls(|| {});
    let mut third = world.cache(setup, &star, 2);
    star.shape(2, A_TWENTIETH);
    let slow = world.pulls(|| {});
    star.shape(2, RATE);
    let killed = world.pulls(|| third.0.kill().unwrap());

    // Of twenty the last is the 99th percentile.
    let last = |took: &[f64]| *took.last().unwrap();
    let what =
        "20 pulls from three caches, one 20 × slower: the last to end, beside two caches alone";
    let ratio = last(&slow) / last(&two);
    bars.add(what, seconds(last(&slow)), seconds(last(&two)), ratio, Bound::AtMost(1.3));
    let middle = median(killed.clone());
    let what = "20 pulls from three caches, one killed: the last to end, beside the median; seconds \
                between them";
    let after = last(&killed) - middle;
    bars.add(what, seconds(last(&killed)), seconds(middle), after, Bound::AtMost(2.0));
}
