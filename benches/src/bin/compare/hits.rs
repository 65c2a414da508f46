//! How fast a cache serves what it has, from memory and from disk.
//!
//! Both ends have one core each, the server the first and the client the second, in two namespaces
//! joined by a cable. The client (`reader drain`) takes every frame of the image and drops it: it
//! receives and checks CRC32C, no more, so that the server is what is measured. Beside it the same bytes
//! as one bare quinn stream, served on the same cores from memory. Both connections have carried the
//! image once before, so that slow start and the search for the longest packet are over.
//!
//! For the disk, beside `fio` as well: it reads past the page cache, in blocks as long as the average
//! frame, as many at once as the cache may have under way.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{Advice, fadvise};

use crate::Setup;
use crate::bars::{Bars, Bound, median, mib};
use crate::grid::{Grid, Place, Servers};
use crate::network::{CLIENT, Pair, SERVER, SERVER_IP};
use crate::process::{Answering, Background, beside, cpu_seconds, inside, json, on_core, settle};

const PLACE: Place = (SERVER, SERVER_IP, CLIENT);
const SERVER_CORE: usize = 0;
const CLIENT_CORE: usize = 1;
/// Frames that the client asks for at once: 16 with each of 8 requests. The cache reads neighbours together,
/// and so has fewer and longer reads under way.
const DEPTH: usize = 128;
/// Times that the image is taken for one measurement: alone it takes a tenth of a second.
const DRAINS: usize = 4;

/// The image's frames: what is served, barely and not.
struct Frames {
    file: PathBuf,
    count: u64,
    bytes: u64,
}

impl Frames {
    fn of(setup: &Setup) -> Self {
        let frames = forebay_benches::frames_of(&setup.disk);
        let file = setup.dir.join("frames");
        let bytes: Vec<u8> = frames.iter().flat_map(|f| f.bytes().to_vec()).collect();
        std::fs::write(&file, &bytes).unwrap();
        Self { file, count: frames.len() as u64, bytes: bytes.len() as u64 }
    }
}

/// A client, connected, kept to its core, which takes the image whenever it is asked to.
struct Client(Answering);

impl Client {
    /// Connected, and settled.
    fn start(program: &Command) -> Self {
        let (mut client, _) = Answering::start(&mut on_core(CLIENT_CORE, program));
        client.ask();
        Self(client)
    }

    /// Bytes a second. How busy both ends were says which of them was waited for.
    fn take(&mut self, frames: &Frames, server: &Background) -> f64 {
        let (mut bytes, mut seconds, mut client) = (0.0, 0.0, 0.0);
        let before = cpu_seconds(server.0.id());
        for _ in 0..DRAINS {
            let said = self.0.ask();
            let get = |key: &str| said[key].as_f64().unwrap();
            assert!(get("bytes") >= frames.bytes as f64, "the whole image came");
            (bytes, seconds) = (bytes + get("bytes"), seconds + get("seconds"));
            client += get("cpu_seconds");
        }
        let server = (cpu_seconds(server.0.id()) - before) / seconds;
        let (speed, client) = (bytes / seconds, client / seconds);
        let busy =
            format!("the server {:.0} %, the client {:.0} % busy", 100.0 * server, 100.0 * client);
        eprintln!("{}/s, {busy}", mib(speed));
        speed
    }
}

/// A bare quinn stream of them.
struct Bare {
    address: String,
    dir: PathBuf,
    server: Background,
}

impl Bare {
    /// From memory (`serve`), or read past the page cache and checked (`disk`).
    fn serve(setup: &Setup, frames: &Frames, how: &str) -> Self {
        let dir = setup.dir.join(how);
        std::fs::create_dir_all(&dir).unwrap();
        let mut serve = inside(Some(SERVER), beside("quinn-stream"));
        serve.arg(how).arg(&dir).arg(&frames.file).arg(SERVER_IP);
        let mut server = Background::start(&mut on_core(SERVER_CORE, &serve));
        Self { address: server.first_line(), dir, server }
    }

    fn client(&self) -> Client {
        let mut each = inside(Some(CLIENT), beside("quinn-stream"));
        Client::start(each.arg("each").arg(&self.dir).arg(&self.address))
    }
}

/// A cache on one core, and its client on the other.
struct Served {
    servers: Servers,
    data: PathBuf,
    image: String,
}

impl Served {
    fn new(setup: &Setup, name: &str, set: &[&str]) -> Self {
        let mut set: Vec<_> = set.iter().map(|s| (*s).to_owned()).collect();
        set.push("serve.cores=1".into());
        let servers = Servers { place: Some(PLACE), set, ..Servers::default() };
        let data = setup.dir.join(name);
        let grid = Grid::start_as(setup, &data, &servers);
        let image = grid.import(&setup.disk, "v:1")["image"].as_str().unwrap().to_owned();
        grid.stop();
        Self { servers: Servers { core: Some(SERVER_CORE), ..servers }, data, image }
    }

    fn start(&self, setup: &Setup) -> Grid {
        Grid::start_as(setup, &self.data, &self.servers)
    }

    /// Connected when the cache has served it once.
    fn client(&self) -> Client {
        let mut drain = inside(Some(CLIENT), beside("reader"));
        Client::start(drain.args(["drain", &self.image]).arg(&self.data))
    }

    /// Ends the server; how much it fetched, in copies of the image.
    fn fetched(grid: Grid, frames: &Frames) -> f64 {
        grid.stop()["store_egress"].as_f64().unwrap() / frames.bytes as f64
    }
}

pub fn memory(setup: &Setup, bars: &mut Bars) {
    let _pair = Pair::up(None);
    let frames = Frames::of(setup);
    let bare = Bare::serve(setup, &frames, "serve");
    let served = Served::new(setup, "hits-memory", &["cache.memory=4GiB", "cache.disk=0"]);
    let grid = served.start(setup);
    let (mut client, mut beside) = (served.client(), bare.client());
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..setup.runs {
        theirs.push(beside.take(&frames, &bare.server));
        ours.push(client.take(&frames, &grid.up));
    }
    let fetched = Served::fetched(grid, &frames);
    assert!(fetched < 1.01, "these were hits: the store was read {fetched:.2} times");
    let ratio = median(ours.iter().zip(&theirs).map(|(a, b)| a / b).collect());
    let what = "hits from memory, beside a bare quinn stream of the frames; one core each end";
    bars.add(what, rate(&ours), rate(&theirs), ratio, Bound::AtLeast(0.85));
}

pub fn disk(setup: &Setup, bars: &mut Bars) {
    let _pair = Pair::up(None);
    let frames = Frames::of(setup);
    let bare = Bare::serve(setup, &frames, "serve");
    let least = Bare::serve(setup, &frames, "disk");
    let served = Served::new(setup, "hits-disk", &["cache.memory=4MiB"]);
    fill(setup, &served, &frames);
    let grid = served.start(setup);
    let cached = served.data.join("cache");
    let (mut client, mut beside, mut least_client) =
        (served.client(), bare.client(), least.client());
    let (mut ours, mut lower, mut fios) = (Vec::new(), Vec::new(), Vec::new());
    let mut leasts = Vec::new();
    for _ in 0..setup.runs {
        settle();
        forget_pages(&cached);
        ours.push(client.take(&frames, &grid.up));
        leasts.push(least_client.take(&frames, &least.server));
        fios.push(fio(setup, &frames));
        lower.push(beside.take(&frames, &bare.server).min(*fios.last().unwrap()));
    }
    let fetched = Served::fetched(grid, &frames);
    assert!(fetched < 0.01, "these were hits: {fetched:.2} of the image came from the store");
    eprintln!("fio alone: {}", rate(&fios));
    let ratio = median(ours.iter().zip(&lower).map(|(a, b)| a / b).collect());
    let what = "hits from disk, beside the lower of that and fio past the page cache";
    bars.add(what, rate(&ours), rate(&lower), ratio, Bound::AtLeast(0.80));
    let ratio = median(leasts.iter().zip(&lower).map(|(a, b)| a / b).collect());
    let what =
        "… a quinn stream of the frames, read past the page cache and checked, no cache at all";
    bars.add(what, rate(&leasts), rate(&lower), ratio, Bound::Told);
}

/// Reads the image until all of it is in the log: the log takes no more than the disk can.
fn fill(setup: &Setup, served: &Served, frames: &Frames) {
    for _ in 0..6 {
        let grid = served.start(setup);
        served.client();
        if Served::fetched(grid, frames) < 0.001 {
            return;
        }
    }
    panic!("the image does not stay in the cache");
}

/// Drops the pages of every file of a directory from the page cache.
fn forget_pages(dir: &Path) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let file = File::open(entry.unwrap().path()).unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
    }
}

/// Bytes a second.
fn fio(setup: &Setup, frames: &Frames) -> f64 {
    let block = (frames.bytes / frames.count).next_multiple_of(4096);
    let mut fio = Command::new("fio");
    fio.args(["--name=r", "--rw=read", "--direct=1", "--ioengine=io_uring", "--readonly"])
        .args(["--time_based", "--runtime=1"])
        .args(["--output-format=json", &format!("--bs={block}"), &format!("--iodepth={DEPTH}")])
        .arg(format!("--filename={}", frames.file.display()))
        .current_dir(&setup.dir);
    let said = json(&mut on_core(SERVER_CORE, &fio));
    said["jobs"][0]["read"]["bw_bytes"].as_f64().unwrap()
}

fn rate(speeds: &[f64]) -> String {
    format!("{}/s", mib(median(speeds.to_vec())))
}
