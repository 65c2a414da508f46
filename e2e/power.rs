//! The power goes while databases commit on a volume that has not arrived: of guest and node at the same time, so
//! that the page caches of both are lost. What was said to be committed is there afterwards.
//!
//! Needs what [`crate::real`] needs, and xfs_io; runs with `FOREBAY_E2E=1`, for `FOREBAY_PULLS` (3) pulls of the plug
//! at moments drawn from `FOREBAY_PULL_SEED` (1).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::caches::{cache, join};
use crate::chaos::{Chance, number};
use crate::guests::Node;
use crate::harness::{Grid, path, run, until};
use crate::real::{Mount, guest, must, script, wanted};

/// As `e2e/guest/databases` calls them.
const DATABASES: [&str; 3] = ["postgres", "sqlite-wal", "sqlite-delete"];

/// A guest that is nothing but databases.
struct Machine {
    qemu: Child,
    console: PathBuf,
}

impl Machine {
    fn start(guest: &Path, dir: &Path, nbd: &Path, qmp: &Path) -> Self {
        let console = dir.join("console");
        let work = dir.join("work");
        let mut text = std::fs::read(script("databases").get_program()).unwrap();
        // It is read from a disk, whose sectors are whole.
        text.resize(text.len().next_multiple_of(512), b'\n');
        std::fs::write(&work, text).unwrap();
        std::fs::write(&console, "").unwrap();
        let beside = |suffix: &str| format!("{}.{suffix}", guest.display());
        let export = format!(
            "driver=nbd,node-name=d,server.type=unix,server.path={},export=v,reconnect-delay=60",
            nbd.display()
        );
        let qemu = Command::new("qemu-system-x86_64")
            .args(["-accel", "tcg", "-m", "512", "-smp", "1", "-nodefaults", "-display", "none"])
            .args(["-no-reboot", "-qmp", &format!("unix:{},server=on,wait=off", qmp.display())])
            .args(["-serial", &format!("file:{}", console.display())])
            .args(["-kernel", &beside("vmlinuz"), "-initrd", &beside("initrd"), "-append"])
            .arg("root=/dev/vda rw console=ttyS0 panic=-1 quiet init=/bin/bash -- /dev/vdb")
            .args(["-blockdev", &export, "-device", "virtio-blk-pci,drive=d"])
            .args(["-drive", &format!("if=virtio,format=raw,readonly=on,file={}", work.display())])
            .stdin(Stdio::null())
            .spawn()
            .expect("QEMU");
        Self { qemu, console }
    }

    fn said(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    /// What is said of each database in lines that begin so; the last of them.
    fn says(&self, begin: &str) -> BTreeMap<&'static str, String> {
        let said = self.said();
        let whole = said.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let lines = whole.lines().filter_map(|line| line.strip_prefix(begin));
        let known = lines.filter_map(|line| {
            let (name, rest) = line.split_once(' ')?;
            let name = DATABASES.iter().find(|known| **known == name)?;
            Some((*name, rest.trim_end().to_owned()))
        });
        known.collect()
    }

    /// The number of the last row of each that was said to be committed.
    fn committed(&self) -> BTreeMap<&'static str, u64> {
        let all = self.says("committed ").into_iter();
        all.map(|(name, number)| (name, number.parse().expect("a number"))).collect()
    }

    fn waits_until(&mut self, what: &str, so: impl Fn(&Self) -> bool) {
        until(what, || {
            assert!(self.qemu.try_wait().unwrap().is_none(), "QEMU ended: {}", self.said());
            let said = self.said();
            for bad in ["\nfailed", "I/O error", "EXT4-fs error", "ERROR:", "FATAL:", "PANIC:"] {
                assert!(!said.contains(bad), "{said}");
            }
            so(self)
        });
    }

    /// All that was committed before is there, and the databases say that they are whole.
    fn has(&mut self, committed: &BTreeMap<&'static str, u64>) -> BTreeMap<&'static str, u64> {
        self.waits_until("all databases are up", |m| m.says("found ").len() == DATABASES.len());
        let found = self.says("found ");
        let highest = found.iter().map(|(name, found)| {
            let [count, highest, check] = found.split(' ').collect::<Vec<_>>()[..] else {
                panic!("{name}: {found}")
            };
            assert_eq!((count, check), (highest, "ok"), "{name}: {found}");
            let highest: u64 = highest.parse().expect("a number");
            let said = committed.get(name).copied().unwrap_or(0);
            assert!(highest >= said, "{name}: {said} was committed, {highest} is there");
            (*name, highest)
        });
        highest.collect()
    }

    /// Waits until each of them has committed so many more.
    fn commits(&mut self, more: u64) {
        let before = self.committed();
        let all = |m: &Self| {
            let now = m.committed();
            let first = m.says("found ");
            let enough = |name: &&str| {
                let found = first[*name].split(' ').next().and_then(|n| n.parse().ok());
                let before = before.get(*name).copied().or(found).expect("a number");
                now.get(*name).is_some_and(|now| *now >= before + more)
            };
            DATABASES.iter().all(enough)
        };
        self.waits_until("rows are committed", all);
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

#[test]
fn real_databases_have_what_they_committed_however_often_the_power_goes() {
    if !wanted() {
        return;
    }
    let (pulls, seed) = (number("FOREBAY_PULLS", 3), number("FOREBAY_PULL_SEED", 1));
    let mut chance = Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let temp = tempfile::tempdir().unwrap();
    let disk = temp.path().join("guest.raw");
    must(
        script("build-debian")
            .args(["--extra", "sqlite3", "--from"])
            .args([&guest(temp.path()), &disk]),
    );
    let grid = Grid::start();
    grid.import(&disk, "db:1");
    let _cache = cache(&grid, &join(&grid, "server", "c1"));
    let mount = Mount::of(grid.dir.join("n1.img"), grid.dir.join("n1"), 8 << 10);
    let mut node = Node::start(join(&grid, "node", "n1"));
    node.volume(&["create", "db:1", "--name", "v"]);
    let qmp = temp.path().join("qmp");
    let mut committed = BTreeMap::new();
    for pull in 0..=pulls {
        // First nothing comes unasked, then a little, and in the end all of it: the guest is moved to the plain file.
        let how: &[&str] = match pulls - pull {
            0 | 1 => &[],
            _ if pull == 0 => &["--no-fill"],
            _ => &["--rate", "512KiB"],
        };
        let attach = [&["attach", "v", "--qmp", path(&qmp)], how].concat();
        let info = node.volume(&attach);
        let nbd = Path::new(info["attached"]["path"].as_str().unwrap());
        let mut machine = Machine::start(&disk, temp.path(), nbd, &qmp);
        let found = machine.has(&committed);
        println!("{found:?} found, of {committed:?} that were committed");
        if pull == pulls {
            break;
        }
        machine.commits(20 + chance.below(400));
        if pull + 1 == pulls {
            let moved = || node.volume(&["show", "v"])["attached"]["moved"] == true;
            machine.waits_until("the guest is on the plain file", |_| moved());
            machine.commits(20 + chance.below(400));
        } else {
            assert!(!node.is_plain("v"), "the power goes before all is here");
        }
        machine.qemu.kill().unwrap();
        mount.lose_power();
        committed = machine.committed();
        node.daemon.take().unwrap().kill();
        mount.come_back();
        node.restart();
        // It is attached as before; the next guest wants it in another way.
        node.volume(&["detach", "v"]);
    }
    let info = node.volume(&["detach", "v"]);
    let replayed = run(Command::new("e2fsck").args(["-fy", info["disk"].as_str().unwrap()]));
    assert!(replayed.code <= 1, "{}{}", replayed.out, replayed.err);
}
