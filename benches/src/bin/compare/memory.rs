//! Peak memory: RssAnon + RssShmem sampled, and that of a memory cgroup in which the process runs from
//! its first instruction, page cache and all. The cgroup has no more than the bar: what needs more is
//! killed there. Without a cgroup nobody knows, and the bar is not met.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Setup;
use crate::bars::{Bars, Bound, mib};
use crate::grid::{Grid, Servers};
use crate::node::Node;
use crate::process::{MemoryWatch, run, within};

const MIB: u64 = 1 << 20;
const PULL: u64 = 192 * MIB;
const UP: u64 = 384 * MIB;
const SAVE: u64 = 256 * MIB;
const SPARSE: u64 = 100 << 30;
const HUGE: u64 = 1 << 40;

/// A memory cgroup (version 1 or 2) with a limit.
struct Group {
    dir: PathBuf,
    peak: &'static str,
}

impl Group {
    /// Who writes its number there is in the group.
    fn procs(&self) -> PathBuf {
        self.dir.join("cgroup.procs")
    }

    /// None if this machine or kernel has no such thing for us.
    fn new(name: &str, limit: u64) -> Option<Self> {
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let (root, bound, swap, peak) = if v1.exists() {
            let swap = "memory.memsw.limit_in_bytes";
            (v1, "memory.limit_in_bytes", (swap, limit), "memory.max_usage_in_bytes")
        } else {
            let root = Path::new("/sys/fs/cgroup");
            let _ = std::fs::write(root.join("cgroup.subtree_control"), "+memory");
            (root, "memory.max", ("memory.swap.max", 0), "memory.peak")
        };
        // A name of its own: one that was left behind has a peak already.
        let dir = root.join(format!("{name}-{}", std::process::id()));
        std::fs::create_dir(&dir).ok()?;
        let group = Self { dir, peak };
        std::fs::write(group.dir.join(bound), limit.to_string()).ok()?;
        // Not everywhere; where it is missing nothing is swapped.
        let _ = std::fs::write(group.dir.join(swap.0), swap.1.to_string());
        group.peak().map(|_| group)
    }

    /// The most that it ever held, in bytes.
    fn peak(&self) -> Option<u64> {
        std::fs::read_to_string(self.dir.join(self.peak)).ok()?.trim().parse().ok()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.dir);
    }
}

/// Adds a bar for what was sampled and what the group held.
fn add(bars: &mut Bars, what: &str, sampled: u64, group: Option<&Group>, limit: u64) {
    let beside = mib(limit as f64);
    let Some(peak) = group.and_then(Group::peak) else {
        let ours = format!("{}; no memory cgroup here: not known", mib(sampled as f64));
        return bars.add(what, ours, beside, f64::NAN, Bound::AtMost(1.0));
    };
    let ours = format!("{}, cgroup {}", mib(sampled as f64), mib(peak as f64));
    let ratio = sampled.max(peak) as f64 / limit as f64;
    bars.add(what, ours, beside, ratio, Bound::AtMost(1.0));
}

pub fn measure(setup: &Setup, bars: &mut Bars) {
    let sparse = Sparse::make(&setup.dir.join("sparse.raw"), SPARSE);
    let grid = Grid::start(setup, &setup.dir.join("memory"), None);
    grid.import(&setup.disk, "v:1");
    grid.import(&sparse.path, "sparse:1");
    for (name, disk) in [("v:1", "the disk"), ("sparse:1", "a 100 GiB sparse disk")] {
        pulling(setup, bars, &grid, name, disk);
    }
    drop(grid);
    serving(setup, bars, "v:1", "the disk", |copy| {
        run(Command::new("cmp").arg(&setup.disk).arg(copy));
    });
    serving(setup, bars, "sparse:1", "a 100 GiB sparse disk", |copy| sparse.check(copy));
    std::fs::remove_file(&sparse.path).unwrap();
}

fn pulling(setup: &Setup, bars: &mut Bars, grid: &Grid, name: &str, disk: &str) {
    let copy = setup.dir.join("copy.raw");
    let command = grid.command(&["pull", name, "--no-daemon", "--to", copy.to_str().unwrap()]);
    let what = format!("peak memory of a pull of {disk}");
    running(bars, &what, command, &format!("fbcmp-pull-{name}"), PULL);
    std::fs::remove_file(&copy).unwrap();
}

/// A command, in a group of its own.
fn running(bars: &mut Bars, what: &str, mut command: Command, group: &str, limit: u64) {
    let group = Group::new(group, limit);
    if let Some(group) = &group {
        command = within(&group.procs(), &command);
    }
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let watch = MemoryWatch::start(child.id());
    let status = child.wait().unwrap();
    let sampled = watch.peak();
    assert!(status.success(), "{command:?}: {status}");
    add(bars, what, sampled, group.as_ref(), limit);
}

/// `up` while it serves four pulls at once.
fn serving(setup: &Setup, bars: &mut Bars, name: &str, disk: &str, check: impl Fn(&Path)) {
    let group = Group::new(&format!("fbcmp-up-{name}"), UP);
    let data = setup.dir.join("memory");
    let procs = group.as_ref().map(Group::procs);
    let grid = Grid::start_as(setup, &data, &Servers { within: procs, ..Servers::default() });
    let watch = MemoryWatch::start(grid.up.0.id());
    let pulls: Vec<_> = (0..4)
        .map(|i| {
            let copy = setup.dir.join(format!("copy-{i}.raw"));
            let args = ["pull", name, "--no-daemon", "--to", copy.to_str().unwrap()];
            (grid.command(&args).stdout(Stdio::null()).spawn().unwrap(), copy)
        })
        .collect();
    for (mut pull, copy) in pulls {
        assert!(pull.wait().unwrap().success());
        check(&copy);
        std::fs::remove_file(copy).unwrap();
    }
    let sampled = watch.peak();
    let what = format!("peak memory of `up` while it serves four pulls of {disk}");
    add(bars, &what, sampled, group.as_ref(), UP);
    // It must have left its group before that can be removed.
    drop(grid);
}

/// A disk of a tebibyte is saved: by the command, and as a volume by its node's daemon.
pub fn saving(setup: &Setup, bars: &mut Bars) {
    let huge = Sparse::make(&setup.dir.join("huge.raw"), HUGE);
    let grid = Grid::start(setup, &setup.dir.join("memory-save"), None);
    let command = grid.command(&["save", huge.path.to_str().unwrap(), "huge:1"]);
    running(bars, "peak memory of saving a sparse disk of 1 TiB", command, "fbcmp-save", SAVE);
    std::fs::remove_file(&huge.path).unwrap();
    let group = Group::new("fbcmp-save-node", SAVE);
    let enter = |command: Command| match &group {
        Some(group) => within(&group.procs(), &command),
        None => command,
    };
    let node = Node::start_as(&grid, "memory-save-node", enter);
    node.volume(&["create", "huge:1", "--name", "huge"]);
    let watch = MemoryWatch::start(node.daemon.0.id());
    node.attach("huge", &["--no-trace"]);
    node.wait_for("huge");
    node.save(&["huge", "huge:2", "--all"]);
    let what = "… of the daemon that has it as a volume, brings it here, and saves all of it";
    add(bars, what, watch.peak(), group.as_ref(), SAVE);
}

/// A disk with something in every tenth GiB, and holes elsewhere.
struct Sparse {
    path: PathBuf,
    data: Vec<u8>,
    size: u64,
}

impl Sparse {
    fn places(&self) -> impl Iterator<Item = u64> {
        (0..self.size).step_by(10 << 30)
    }

    fn make(path: &Path, size: u64) -> Self {
        let (file, data) = (File::create(path).unwrap(), std::fs::read("/bin/bash").unwrap());
        file.set_len(size).unwrap();
        let made = Self { path: path.to_owned(), data, size };
        made.places().for_each(|at| file.write_all_at(&made.data, at).unwrap());
        made
    }

    /// That a copy is the same. Its holes are not read: that would take longer than everything else.
    fn check(&self, copy: &Path) {
        let file = File::open(copy).unwrap();
        let mut found = vec![0; self.data.len()];
        for at in self.places() {
            file.read_exact_at(&mut found, at).unwrap();
            assert!(found == self.data, "{}: at {at}", copy.display());
        }
        let (len, held) = file.metadata().map(|m| (m.len(), m.blocks() * 512)).unwrap();
        let most = self.places().count() as u64 * (self.data.len() as u64 + MIB);
        assert!(len == self.size && held <= most, "{}: {len} bytes, {held} held", copy.display());
    }
}
