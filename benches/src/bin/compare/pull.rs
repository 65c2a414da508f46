//! Pulling across two network namespaces, beside a bare quinn stream and beside nbdcopy.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Command;

use crate::Setup;
use crate::bars::{Bars, Bound, median, seconds};
use crate::grid::Grid;
use crate::network::{CLIENT, Pair, SERVER, SERVER_IP};
use crate::process::{Background, inside, run, settle, timed};

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

/// At 1 Gbit/s, beside a bare quinn stream of the file that `zstd -3` makes of the disk.
pub fn shaped(setup: &Setup, bars: &mut Bars) {
    let _pair = Pair::up(Some("1gbit"));
    let grid = Grid::start(setup, &setup.dir.join("shaped"), PLACE);
    // Imported inside the server's namespace would be the same: the store is the same.
    grid.import(&setup.disk, "v:1");
    let zst = setup.dir.join("disk.zst");
    run(Command::new("zstd").args(["-q", "-3", "-T0", "-f"]).arg(&setup.disk).arg("-o").arg(&zst));
    let bench = std::env::current_exe().unwrap().with_file_name("quinn-stream");
    let mut serve = inside(Some(SERVER), &bench);
    serve.arg("serve").arg(&setup.dir).arg(&zst).arg(SERVER_IP);
    let mut server = Background::start(&mut serve);
    let mut address = String::new();
    BufReader::new(server.0.stdout.as_mut().unwrap()).read_line(&mut address).unwrap();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..setup.runs {
        let copy = setup.dir.join("copy.raw");
        settle();
        ours.push(pull(&grid, &copy, false));
        check(setup, &copy);
        std::fs::remove_file(&copy).unwrap();
        let mut get = inside(Some(CLIENT), &bench);
        theirs.push(timed(get.arg("get").arg(&setup.dir).arg(address.trim())));
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
    for sync in [false, true] {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..setup.runs {
            let copy = setup.dir.join("copy.raw");
            settle();
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
        let ratio = median(ours.iter().zip(&theirs).map(|(a, b)| a / b).collect());
        let what = match sync {
            false => "pull unshaped, beside nbdcopy from nbdkit; neither syncs",
            true => "pull unshaped, beside nbdcopy from nbdkit; both sync",
        };
        let (ours, theirs) = (seconds(median(ours)), seconds(median(theirs)));
        bars.add(what, ours, theirs, ratio, Bound::AtMost(1.5));
    }
}
