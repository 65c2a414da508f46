//! The bars: Forebay beside other tools, or beside a limit, on a real disk, in one run.
//!
//! ```text
//! cargo run --release -p forebay-benches --bin compare -- --disk V1.raw --second V2.raw [NAME…]
//! ```
//! Needs root (network namespaces, TUN devices, a memory cgroup), `zstd`, `borg`, `nbdkit`, `nbdcopy`, `fio`, QEMU,
//! `valgrind`, and two cores; `e2e/guest/build-debian` makes the disks. Prints a table of ratios with each bar and whether it
//! is met, and ends with 1 if one is missed. Beside it must lie `forebay` and the other programs of this
//! crate: `cargo build --release -p forebay -p forebay-benches`.
//!
//! | name | what |
//! |---|---|
//! | `codec`, `import`, `second` | chunks in: beside zstd, and beside what differs |
//! | `shaped`, `unshaped`, `memory` | pulls: beside a bare quinn stream, nbdcopy, and their limits |
//! | `hits`, `hits-disk` | what a cache serves, beside a bare quinn stream and fio ([`hits`]) |
//! | `cold` | a store 20 ms away, through a cache and without ([`cold`]) |
//! | `fleet`, `versions` | what the store is asked for: by 50 nodes at once, for a second version ([`fleet`], [`versions`]) |
//! | `tails` | what nodes feel of a cache that dies, and of one that limps ([`tails`]) |
//! | `overload` | what a cache gets done when too much is asked of it ([`overload`]) |
//! | `boot`, `boot-slow` | a guest that boots from a volume, over 1 Gbit/s and over 100 Mbit/s ([`boot`]) |
//! | `volume` | reads and writes of a volume that is all here, beside other servers of its file ([`volume`]) |
//! | `volume-absent`, `volume-idle` | a read of what has not arrived; what idle volumes hold ([`absent`], [`idle`]) |
//! | `volume-cpu` | instructions of a read through the maps ([`cpu`]) |
//! | `build` | a volume of a pool from an image at hand, beside `cp`; needs root ([`build`]) |
//! | `nodes` | ten thousand modelled nodes at one placement ([`nodes`]) |
//! | `claim` | ready volumes handed out, beside a journaled rename ([`claim`]) |
//! | `erase` | what was in a volume overwritten, beside fio ([`erase`]) |
//! | `format` | a blank disk that is partitioned and formatted, beside the tools alone ([mod@format]) |
//! | `save` | captures of a volume of which little has changed ([`save`]) |
//! | `save-cold` | a disk of which nothing is stored, beside borg and zstd ([`save_cold`]) |
//! | `save-beside` | what a guest feels of a capture in the background ([`save_beside`]) |
//! | `save-frozen` | how long a guest's file systems hold still ([`save_frozen`]) |
//! | `save-memory` | a disk of 1 TiB ([`memory`]) |

mod absent;
mod bars;
mod boot;
mod build;
mod claim;
mod codec;
mod cold;
mod cpu;
mod erase;
mod fio;
mod fleet;
mod format;
mod grid;
mod hits;
mod idle;
mod import;
mod memory;
mod network;
mod node;
mod nodes;
mod overload;
mod process;
mod pull;
mod s3;
mod save;
mod save_beside;
mod save_cold;
mod save_frozen;
mod tails;
mod versions;
mod volume;

use std::path::PathBuf;

use bars::Bars;

/// What everything is measured on.
pub struct Setup {
    /// `forebay`.
    pub program: PathBuf,
    /// A raw disk.
    pub disk: PathBuf,
    /// A later version of it.
    pub second: PathBuf,
    /// Where to work.
    pub dir: PathBuf,
    /// Runs of each measurement; medians are quoted.
    pub runs: usize,
}

/// Measures something and adds its bars.
type Measure = fn(&Setup, &mut Bars);

fn main() {
    let mut args = std::env::args().skip(1);
    let here = std::env::current_exe().unwrap();
    let scratch = here.parent().unwrap().join("compare-work");
    let mut setup = Setup {
        program: here.with_file_name("forebay"),
        disk: PathBuf::new(),
        second: PathBuf::new(),
        dir: scratch,
        runs: 5,
    };
    let mut only = Vec::new();
    while let Some(arg) = args.next() {
        let mut value = || args.next().unwrap_or_else(|| panic!("{arg} needs a value"));
        match arg.as_str() {
            "--disk" => setup.disk = value().into(),
            "--second" => setup.second = value().into(),
            "--dir" => setup.dir = value().into(),
            "--program" => setup.program = value().into(),
            "--runs" => setup.runs = value().parse().expect("a number of runs"),
            name => only.push(name.to_owned()),
        }
    }
    for path in [&setup.disk, &setup.program] {
        assert!(path.exists(), "{}: not there", path.display());
    }
    let _ = std::fs::remove_dir_all(&setup.dir);
    std::fs::create_dir_all(&setup.dir).unwrap();
    let mut bars = Bars::default();
    let all: [(&str, Measure); 29] = [
        ("codec", codec::measure),
        ("import", import::measure),
        ("second", import::second_version),
        ("shaped", pull::shaped),
        ("unshaped", pull::unshaped),
        ("memory", memory::measure),
        ("hits", hits::memory),
        ("hits-disk", hits::disk),
        ("fleet", fleet::measure),
        ("versions", versions::measure),
        ("cold", cold::measure),
        ("tails", tails::measure),
        ("overload", overload::measure),
        ("boot", boot::fast),
        ("boot-slow", boot::slow),
        ("volume", volume::present),
        ("volume-absent", absent::measure),
        ("volume-idle", idle::measure),
        ("volume-cpu", cpu::measure),
        ("claim", claim::measure),
        ("build", build::measure),
        ("nodes", nodes::measure),
        ("erase", erase::measure),
        ("format", format::measure),
        ("save", save::measure),
        ("save-cold", save_cold::measure),
        ("save-beside", save_beside::measure),
        ("save-frozen", save_frozen::measure),
        ("save-memory", memory::saving),
    ];
    for (name, measure) in all {
        if only.is_empty() || only.iter().any(|o| o == name) {
            eprintln!("== {name}");
            measure(&setup, &mut bars);
        }
    }
    let _ = std::fs::remove_dir_all(&setup.dir);
    print!("{}", bars.table());
    std::process::exit(i32::from(!bars.all_met()));
}
