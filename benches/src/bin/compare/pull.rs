//! Pulling across two network namespaces, beside a bare quinn stream and beside nbdcopy.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Command;

use forebay_benches::CHUNK;
use image::{Decoder, Digest, Domain, Encoder, Frame};

use crate::Setup;
use crate::bars::{Bars, Bound, median, seconds};
use crate::grid::Grid;
use crate::network::{CLIENT, Pair, SERVER, SERVER_IP};
use crate::process::{Background, inside, now, run, settle, timed};

const PLACE: Option<(&str, &str, &str)> = Some((SERVER, SERVER_IP, CLIENT));

fn pull(grid: &Grid, to: &Path, sync: bool) -> f64 {
    let to = to.to_str().unwrap();
    let mut args = vec!["pull", "v:1", "--no-daemon", "--to", to];
    if !sync {
        args.push("--no-sync");
    }
    timed(&mut grid.command(&args))
}

fn check(setup: &Setup, copy: &Path) {
    run(Command::new("cmp").arg(&setup.disk).arg(copy));
}

/// A bare quinn stream of one file between the namespaces.
struct Bare {
    program: PathBuf,
    address: String,
    _server: Background,
}

impl Bare {
    fn serve(setup: &Setup, file: &Path) -> Self {
        let program = std::env::current_exe().unwrap().with_file_name("quinn-stream");
        let mut serve = inside(Some(SERVER), &program);
        serve.arg("serve").arg(&setup.dir).arg(file).arg(SERVER_IP);
        let mut server = Background::start(&mut serve);
        let mut address = String::new();
        BufReader::new(server.0.stdout.as_mut().unwrap()).read_line(&mut address).unwrap();
        Self { program, address: address.trim().to_owned(), _server: server }
    }

    /// Seconds to take all of it.
    fn get(&self, setup: &Setup) -> f64 {
        let mut get = inside(Some(CLIENT), &self.program);
        timed(get.arg("get").arg(&setup.dir).arg(&self.address))
    }
}

/// What no pull of these frames can do without, done as barely as it goes: the frames over a bare
/// quinn stream, then decoded and verified on all cores. Both ends share this machine's cores and
/// keep them busy, so the two times add up. Nothing is asked for, scheduled or written.
struct Least {
    frames: Vec<Frame>,
    stream: Bare,
}

impl Least {
    fn of(setup: &Setup) -> Self {
        let mut encoder = Encoder::new().unwrap();
        let chunks = forebay_benches::chunks_of(&setup.disk, usize::MAX);
        let frame = |c: &Vec<u8>| encoder.encode(Domain::PUBLIC, Digest::of_chunk(c), c);
        let frames: Vec<Frame> = chunks.iter().map(frame).collect();
        let file = setup.dir.join("frames");
        let bytes: Vec<u8> = frames.iter().flat_map(|f| f.bytes().to_vec()).collect();
        std::fs::write(&file, bytes).unwrap();
        Self { frames, stream: Bare::serve(setup, &file) }
    }

    fn seconds(&self, setup: &Setup) -> f64 {
        self.stream.get(setup) + self.decode()
    }

    fn decode(&self) -> f64 {
        let cores = std::thread::available_parallelism().unwrap().get();
        let start = now();
        std::thread::scope(|scope| {
            for part in self.frames.chunks(self.frames.len().div_ceil(cores)) {
                scope.spawn(move || {
                    let (mut decoder, mut out) = (Decoder::new().unwrap(), vec![0; CHUNK]);
                    for frame in part {
                        let len = frame.header().plain_len as usize;
                        decoder.decode(frame, &frame.header().digest, &mut out[..len]).unwrap();
                    }
                });
            }
        });
        (now() - start).as_secs_f64()
    }
}

/// At 1 Gbit/s, beside a bare quinn stream of the file that `zstd -3` makes of the disk.
pub fn shaped(setup: &Setup, bars: &mut Bars) {
    let _pair = Pair::up(Some("1gbit"));
    let grid = Grid::start(setup, &setup.dir.join("shaped"), PLACE);
    // Imported inside the server's namespace would be the same: the store is the same.
    grid.import(&setup.disk, "v:1");
    let zst = setup.dir.join("disk.zst");
    run(Command::new("zstd").args(["-q", "-3", "-T0", "-f"]).arg(&setup.disk).arg("-o").arg(&zst));
    let stream = Bare::serve(setup, &zst);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..setup.runs {
        let copy = setup.dir.join("copy.raw");
        settle();
        ours.push(pull(&grid, &copy, false));
        check(setup, &copy);
        std::fs::remove_file(&copy).unwrap();
        theirs.push(stream.get(setup));
    }
    let ratio = median(ours.iter().zip(&theirs).map(|(a, b)| a / b).collect());
    let what = "pull at 1 Gbit/s, beside a bare quinn stream of the zstd -3 file";
    let (ours, theirs) = (seconds(median(ours)), seconds(median(theirs)));
    bars.add(what, ours, theirs, ratio, Bound::AtMost(1.25));
}

/// As fast as it goes, beside nbdcopy from nbdkit; neither syncs, both sync.
pub fn unshaped(setup: &Setup, bars: &mut Bars) {
    let _pair = Pair::up(None);
    let grid = Grid::start(setup, &setup.dir.join("unshaped"), PLACE);
    grid.import(&setup.disk, "v:1");
    let mut nbdkit = inside(Some(SERVER), "nbdkit");
    nbdkit.args(["-f", "-r", "-i", SERVER_IP, "-p", "10809", "file"]).arg(&setup.disk);
    let _server = Background::start(&mut nbdkit);
    crate::process::pause(std::time::Duration::from_millis(500));
    let least = Least::of(setup);
    for sync in [false, true] {
        let (mut ours, mut theirs, mut bare) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..setup.runs {
            let copy = setup.dir.join("copy.raw");
            settle();
            bare.push(least.seconds(setup));
            ours.push(pull(&grid, &copy, sync));
            check(setup, &copy);
            std::fs::remove_file(&copy).unwrap();
            settle();
            let size = std::fs::metadata(&setup.disk).unwrap().len();
            std::fs::File::create(&copy).unwrap().set_len(size).unwrap();
            let mut nbdcopy = inside(Some(CLIENT), "nbdcopy");
            if sync {
                nbdcopy.arg("--flush");
            }
            // The target is known to be zeros, as ours is: nbdcopy need not write them.
            nbdcopy.arg("--destination-is-zero").arg(format!("nbd://{SERVER_IP}")).arg(&copy);
            theirs.push(timed(&mut nbdcopy));
            check(setup, &copy);
            std::fs::remove_file(&copy).unwrap();
        }
        let what = match sync {
            false => "neither syncs",
            true => "both sync",
        };
        let ratio =
            |of: &[f64]| median(of.iter().zip(&theirs).map(|(a, b)| a / b).collect::<Vec<_>>());
        let (ours_ratio, bare_ratio) = (ratio(&ours), ratio(&bare));
        let (ours, bare) = (seconds(median(ours)), seconds(median(bare)));
        let theirs = seconds(median(theirs));
        let pulled = format!("pull unshaped, beside nbdcopy from nbdkit; {what}");
        bars.add(&pulled, ours, theirs.clone(), ours_ratio, Bound::AtMost(1.5));
        let least = "… its frames over a bare quinn stream, decoded and verified, nothing written";
        bars.add(least, bare, theirs, bare_ratio, Bound::Told);
    }
}
