//! Reads what the kernel says. Each file may be missing, or say something else than expected: then that is left out.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use api::stats::{MemoryStats, Pressures, RaidStats, SpaceStats};

use super::disks::{self, Done};
use super::guests::{self, Guest};
use super::links::{self, Vlan};
use super::processor::{self, Processors};
use super::raids;

/// Longest file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// Where things are: a test has other places.
#[derive(Clone, Debug)]
pub struct Roots {
    /// `/proc`
    pub proc: PathBuf,
    /// `/sys`
    pub sys: PathBuf,
    /// `/dev`
    pub dev: PathBuf,
    /// Directories whose file systems are looked at, and what they hold: `volumes`, `data`.
    pub spaces: Vec<(String, PathBuf)>,
}

impl Roots {
    /// Those of this machine.
    pub fn of_the_system(spaces: Vec<(String, PathBuf)>) -> Self {
        Self { proc: "/proc".into(), sys: "/sys".into(), dev: "/dev".into(), spaces }
    }
}

/// What there was at one moment: what only grows, and what is as it is.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    /// Since some moment.
    pub millis: u64,
    pub processors: Option<Processors>,
    pub memory: Option<MemoryStats>,
    pub pressure: Pressures,
    pub spaces: Vec<SpaceStats>,
    pub disks: Vec<(Done, disks::About)>,
    pub raids: Vec<RaidStats>,
    pub links: Vec<links::About>,
    pub vlans: Vec<Vlan>,
    pub guests: Vec<Guest>,
}

/// Looks at everything once. May block: a process that hangs can hang whoever reads its command line.
pub(super) fn look(roots: &Roots, millis: u64) -> Counts {
    let proc = |name: &str| text(&roots.proc.join(name));
    let pressure = |name: &str| processor::stall(&proc(&format!("pressure/{name}"))?);
    Counts {
        millis,
        processors: proc("stat").and_then(|text| processor::processors(&text)),
        memory: proc("meminfo").and_then(|text| processor::memory(&text)),
        pressure: Pressures {
            cpu: pressure("cpu"),
            memory: pressure("memory"),
            io: pressure("io"),
        },
        spaces: roots.spaces.iter().filter_map(|(holds, dir)| space(holds, dir)).collect(),
        disks: disks_of(roots),
        raids: raids_of(roots),
        links: links_of(&roots.sys),
        vlans: proc("net/vlan/config").map(|text| links::vlans(&text)).unwrap_or_default(),
        guests: guests_of(&roots.proc),
    }
}

fn bytes(path: &Path) -> Option<Vec<u8>> {
    let mut found = Vec::new();
    File::open(path).ok()?.take(MAX_FILE).read_to_end(&mut found).ok()?;
    Some(found)
}

fn text(path: &Path) -> Option<String> {
    bytes(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// The names in a directory, in their order.
fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

fn space(holds: &str, dir: &Path) -> Option<SpaceStats> {
    let found = rustix::fs::statvfs(dir).ok()?;
    Some(SpaceStats {
        holds: holds.to_owned(),
        total_bytes: found.f_blocks.saturating_mul(found.f_frsize),
        free_bytes: found.f_bavail.saturating_mul(found.f_frsize),
    })
}

fn disks_of(roots: &Roots) -> Vec<(Done, disks::About)> {
    let block = roots.sys.join("block");
    let whole = names(&block);
    let all = text(&roots.proc.join("diskstats")).map(|text| disks::done(&text));
    let of = |done: &Done| whole.contains(&done.name) && disks::is_disk(&done.name);
    let about = |done: Done| {
        let read = |file: &str| text(&block.join(&done.name).join(file));
        let about = disks::About {
            size: read("size"),
            rotational: read("queue/rotational"),
            errors: read("device/ioerr_cnt"),
        };
        (done, about)
    };
    all.unwrap_or_default().into_iter().filter(of).map(about).collect()
}

fn raids_of(roots: &Roots) -> Vec<RaidStats> {
    let arrays = text(&roots.proc.join("mdstat")).map(|text| raids::arrays(&text));
    let with = |array: RaidStats| {
        let md = roots.sys.join("block").join(&array.name).join("md");
        let devices = names(&md).into_iter().filter(|name| name.starts_with("dev-"));
        let about = raids::About {
            array_state: text(&md.join("array_state")),
            degraded: text(&md.join("degraded")),
            mismatch_cnt: text(&md.join("mismatch_cnt")),
            errors: devices.filter_map(|name| text(&md.join(name).join("errors"))).collect(),
        };
        raids::with(array, &about)
    };
    arrays.unwrap_or_default().into_iter().map(with).collect()
}

fn links_of(sys: &Path) -> Vec<links::About> {
    let dir = sys.join("class/net");
    let about = |name: String| {
        let read = |file: &str| text(&dir.join(&name).join(file));
        let count = |file: &str| read(&format!("statistics/{file}"));
        links::About {
            operstate: read("operstate"),
            speed: read("speed"),
            physical: dir.join(&name).join("device").exists(),
            rx_bytes: count("rx_bytes"),
            tx_bytes: count("tx_bytes"),
            rx_errors: count("rx_errors"),
            tx_errors: count("tx_errors"),
            rx_dropped: count("rx_dropped"),
            tx_dropped: count("tx_dropped"),
            name,
        }
    };
    names(&dir).into_iter().filter(|name| name != "lo").map(about).collect()
}

fn guests_of(proc: &Path) -> Vec<Guest> {
    let pids = names(proc).into_iter().filter_map(|name| name.parse::<u32>().ok());
    let guest = |pid: u32| {
        let cmdline = bytes(&proc.join(pid.to_string()).join("cmdline"))?;
        guests::guest(pid, &cmdline)
    };
    pids.filter_map(guest).collect()
}
