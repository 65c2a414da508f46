//! Peak memory: RssAnon + RssShmem sampled, and inside a memory cgroup of just that size, page cache
//! and all: what needs more is killed there.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Setup;
use crate::bars::{Bars, Bound, mib};
use crate::grid::Grid;
use crate::process::{MemoryWatch, run};

const MIB: u64 = 1 << 20;
const PULL: u64 = 192;
const UP: u64 = 384;

/// A memory cgroup (version 1 or 2) with a limit.
struct Group(PathBuf);

impl Group {
    fn new(name: &str, limit: u64) -> Option<Self> {
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let (root, file) = if v1.exists() {
            (v1, "memory.limit_in_bytes")
        } else {
            (Path::new("/sys/fs/cgroup"), "memory.max")
        };
        let dir = root.join(name);
        std::fs::create_dir_all(&dir).ok()?;
        std::fs::write(dir.join(file), limit.to_string()).ok()?;
        Some(Self(dir))
    }

    fn add(&self, pid: u32) {
        std::fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// Runs a command inside a group, from its first instruction; its peak of RssAnon + RssShmem.
fn peak_of(command: Command, group: Option<&Group>) -> u64 {
    let mut shell = Command::new("sh");
    let enter = match group {
        Some(group) => format!("echo $$ > {}/cgroup.procs; exec \"$@\"", group.0.display()),
        None => "exec \"$@\"".to_owned(),
    };
    shell.arg("-c").arg(enter).arg("sh").arg(command.get_program()).args(command.get_args());
    let mut child = shell.stdout(std::process::Stdio::null()).spawn().unwrap();
    let watch = MemoryWatch::start(child.id());
    let status = child.wait().unwrap();
    let peak = watch.peak();
    assert!(status.success(), "{command:?}: {status}");
    peak
}

pub fn measure(setup: &Setup, bars: &mut Bars) {
    let grid = Grid::start(setup, &setup.dir.join("memory"), None);
    grid.import(&setup.disk, "v:1");
    let sparse = setup.dir.join("sparse.raw");
    std::fs::File::create(&sparse).unwrap().set_len(100 << 30).unwrap();
    run(Command::new("cp").args(["--sparse=never", "/bin/bash"]).arg(setup.dir.join("bash")));
    let bash = std::fs::read(setup.dir.join("bash")).unwrap();
    let file = std::fs::File::options().write(true).open(&sparse).unwrap();
    // Something in every tenth GiB.
    for gib in (0..100).step_by(10) {
        std::os::unix::fs::FileExt::write_all_at(&file, &bash, gib << 30).unwrap();
    }
    grid.import(&sparse, "sparse:1");
    let copy = setup.dir.join("copy.raw");
    for (name, what) in [
        ("v:1", "peak memory of a pull of the disk"),
        ("sparse:1", "peak memory of a pull of a 100 GiB sparse disk"),
    ] {
        let group = Group::new("fbcmp-pull", PULL * MIB);
        let to = copy.to_str().unwrap();
        let peak =
            peak_of(grid.command(&["pull", name, "--no-daemon", "--to", to]), group.as_ref());
        let beside = if group.is_some() { "and inside a cgroup of 192 MiB" } else { "no cgroup" };
        let ratio = peak as f64 / (PULL * MIB) as f64;
        bars.add(what, mib(peak as f64), beside.into(), ratio, Bound::AtMost(1.0));
        std::fs::remove_file(&copy).unwrap();
    }
    drop(grid);
    serving(setup, bars);
}

/// `up` while it serves four pulls at once, started inside its group.
fn serving(setup: &Setup, bars: &mut Bars) {
    let data = setup.dir.join("memory");
    let grid = Grid::start(setup, &data, None);
    let group = Group::new("fbcmp-up", UP * MIB);
    if let Some(group) = &group {
        group.add(grid.up.0.id());
    }
    let watch = MemoryWatch::start(grid.up.0.id());
    let pulls: Vec<_> = (0..4)
        .map(|i| {
            let copy = setup.dir.join(format!("copy-{i}.raw"));
            let args = ["pull", "v:1", "--no-daemon", "--to", copy.to_str().unwrap()];
            (grid.command(&args).stdout(std::process::Stdio::null()).spawn().unwrap(), copy)
        })
        .collect();
    for (mut pull, copy) in pulls {
        assert!(pull.wait().unwrap().success());
        run(Command::new("cmp").arg(&setup.disk).arg(&copy));
        std::fs::remove_file(copy).unwrap();
    }
    let peak = watch.peak();
    let what = "peak memory of `up` while it serves four pulls";
    let beside = if group.is_some() { "and inside a cgroup of 384 MiB" } else { "no cgroup" };
    let ratio = peak as f64 / (UP * MIB) as f64;
    bars.add(what, mib(peak as f64), beside.into(), ratio, Bound::AtMost(1.0));
    drop(grid);
}
