//! Full disks, and block devices. Needs root, loop devices and mkfs.ext4; runs with `FOREBAY_E2E=1`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::harness::{Background, CHUNK, Disk, Grid, forebay, path, run, until};

fn wanted() -> bool {
    let wanted = std::env::var_os("FOREBAY_E2E").is_some();
    if !wanted {
        println!("left out: needs FOREBAY_E2E=1, root and loop devices");
    }
    wanted
}

#[track_caller]
fn must(program: &str, args: &[&str]) -> String {
    let ended = run(Command::new(program).args(args));
    assert_eq!(ended.code, 0, "{program} {args:?}: {}", ended.err);
    ended.out.trim().to_owned()
}

/// A small file system of its own, with a file that takes most of it until it is removed.
struct SmallFs {
    at: PathBuf,
}

impl SmallFs {
    fn new(dir: &Path, name: &str, mib: u64) -> Self {
        let (file, at) = (dir.join(format!("{name}.ext4")), dir.join(name));
        File::create(&file).unwrap().set_len(mib << 20).unwrap();
        must("mkfs.ext4", &["-q", "-m", "0", path(&file)]);
        std::fs::create_dir(&at).unwrap();
        must("mount", &["-o", "loop", path(&file), path(&at)]);
        Self { at }
    }

    fn free(&self) -> u64 {
        let out = must("df", &["--output=avail", "-B1", path(&self.at)]);
        out.lines().nth(1).unwrap().trim().parse().unwrap()
    }

    /// Leaves so many bytes free.
    fn fill_but(&self, free: u64) {
        // What was freed lately is free after that, or a moment later; what maps the ballast takes a few
        // blocks more.
        let settled = || {
            must("sync", &["-f", path(&self.at)]);
            self.free()
        };
        // Others may take some meanwhile; what did not fit may have been made in part.
        let ballast = self.at.join("ballast");
        let fits = |blocks: u64| {
            let _ = std::fs::remove_file(&ballast);
            let size = settled().saturating_sub(free + blocks * 4096).to_string();
            let made = run(Command::new("fallocate").args(["-l", &size, path(&ballast)]));
            made.code == 0 && settled() <= free + blocks * 4096
        };
        assert!((0..64).any(fits), "no ballast but for {free} bytes");
        // What is left, as less than a step or as it came free meanwhile, goes into a file that needs no block to map it.
        let more = self.at.join("ballast.more");
        for _ in 0..8 {
            let _ = std::fs::remove_file(&more);
            let left = settled().saturating_sub(free);
            let size = left.to_string();
            if left == 0
                || run(Command::new("fallocate").args(["-l", &size, path(&more)])).code == 0
            {
                break;
            }
        }
    }

    fn make_room(&self) {
        std::fs::remove_file(self.at.join("ballast")).unwrap();
        let _ = std::fs::remove_file(self.at.join("ballast.more"));
    }
}

impl Drop for SmallFs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).output();
    }
}

/// A loop device over a file.
struct Device {
    at: PathBuf,
}

impl Device {
    /// Of so many bytes, none of them zero.
    fn new(dir: &Path, name: &str, size: u64, sector: u32) -> Self {
        let file = dir.join(name);
        std::fs::write(&file, vec![0xaa; size as usize]).unwrap();
        Self::over(&file, sector)
    }

    fn over(file: &Path, sector: u32) -> Self {
        let sector = sector.to_string();
        let at = must("losetup", &["-f", "--show", "-b", &sector, path(file)]);
        Self { at: at.into() }
    }

    #[track_caller]
    fn begins_with(&self, disk: &Disk) {
        must("sync", &[]);
        let mut found = vec![0; disk.bytes.len()];
        File::open(&self.at).unwrap().read_exact_at(&mut found, 0).unwrap();
        assert!(found == disk.bytes, "{}", self.at.display());
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.at).output();
    }
}

/// As many different chunks, about half of each incompressible.
fn many(chunks: usize) -> Disk {
    Disk::new(&(0..chunks).map(|c| char::from(b'/' + c as u8)).collect::<String>())
}

#[track_caller]
fn holds(copy: &Path, disk: &Disk) {
    assert!(std::fs::read(copy).unwrap() == disk.bytes, "{}", copy.display());
}

#[test]
fn real_a_full_store_refuses_an_import_and_goes_on_when_there_is_room() {
    if !wanted() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let fs = SmallFs::new(temp.path(), "store", 96);
    let store = format!("store.at={}", path(&fs.at.join("store")));
    let grid = Grid::start_with(&["--set", &store]);
    let (small, big) = (Disk::new("ab"), many(76));
    let (first, file) = (grid.disk("first.raw", &small), grid.disk("big.raw", &big));
    grid.import(&first, "first:1");
    fs.fill_but(4 << 20);
    let import = ["import", path(&file), "big:1"];
    grid.run(&import).fails(74, &["the store is full", "make room"]);
    grid.run(&["inspect", "big:1"]).fails(66, &[]);
    grid.run(&["verify", "first:1", "--deep"]).json();
    let copy = grid.dir.join("copy");
    grid.pull("first:1", &copy).json();
    holds(&copy, &small);

    fs.make_room();
    grid.run(&import).json();
    grid.run(&["verify", "big:1", "--deep"]).json();
    grid.pull("big:1", &copy).json();
    holds(&copy, &big);
}

#[test]
fn real_a_full_cache_disk_costs_hits_and_not_answers() {
    if !wanted() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let fs = SmallFs::new(temp.path(), "cache", 32);
    let dir = format!("cache.dir={}", path(&fs.at.join("cache")));
    let sets = ["--set", &dir, "--set", "cache.reserve=0", "--set", "cache.memory=1MiB"];
    let mut grid = Grid::start_with(&sets);
    fs.fill_but(2 << 20);
    let disk = many(76);
    grid.import(&grid.disk("d.raw", &disk), "d:1");
    let copy = grid.dir.join("copy");
    for _ in 0..3 {
        grid.pull("d:1", &copy).json();
        holds(&copy, &disk);
        std::fs::remove_file(&copy).unwrap();
    }
    // A disk that is full when it starts is no reason not to.
    grid.stop();
    std::fs::write(fs.at.join("rest"), vec![1; fs.free() as usize]).ok();
    grid.restart();
    grid.pull("d:1", &copy).json();
    holds(&copy, &disk);
}

#[test]
fn real_a_full_target_is_named_and_gone_on_with_when_there_is_room() {
    if !wanted() {
        return;
    }
    let grid = Grid::start();
    let fs = SmallFs::new(&grid.dir, "target", 64);
    let disk = many(76);
    grid.import(&grid.disk("d.raw", &disk), "d:1");
    fs.fill_but(8 << 20);
    let copy = fs.at.join("disk.raw");
    grid.pull("d:1", &copy).fails(74, &["disk.raw", "make room", "free"]);
    assert_eq!(std::fs::read_dir(&fs.at).unwrap().count(), 2, "lost+found and the ballast");
    fs.make_room();
    // It fills up while the pull is under way: what came before is not fetched again.
    let args = ["pull", "d:1", "--to", path(&copy), "--no-daemon", "--rate", "4MiB"];
    let slow = grid.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let partial = fs.at.join(".disk.raw.forebay-partial");
    let begun = || partial.metadata().is_ok_and(|meta| meta.blocks() > 0);
    until("the first chunk", begun);
    fs.fill_but(0);
    let said = slow.wait_with_output().unwrap();
    assert_eq!(said.status.code(), Some(74));
    let said = String::from_utf8_lossy(&said.stderr);
    assert!(said.contains("disk.raw") && said.contains("make room"), "{said}");
    assert!(!copy.exists());
    // Nor does a second try do any harm.
    grid.pull("d:1", &copy).fails(74, &["disk.raw"]);
    fs.make_room();
    let report = grid.pull("d:1", &copy).json();
    holds(&copy, &disk);
    let fetched = report["progress"]["chunks"].as_u64().unwrap();
    assert!((1..76).contains(&fetched), "{fetched} chunks were fetched again");
}

#[test]
fn real_a_mounted_device_is_imported_only_if_nothing_writes_to_it() {
    if !wanted() {
        return;
    }
    let grid = Grid::start();
    let fs = SmallFs::new(&grid.dir, "mounted", 16);
    let device = must("findmnt", &["-n", "-o", "SOURCE", path(&fs.at)]);
    let import = ["import", &device, "d:1", "--format", "raw"];
    grid.run(&import).fails(73, &[&device, "mounted", "read-only"]);
    must("mount", &["-o", "remount,ro", path(&fs.at)]);
    grid.run(&import).json();
}

#[test]
fn real_a_device_that_a_virtual_machine_writes_to_is_not_imported() {
    if !wanted() {
        return;
    }
    let grid = Grid::start();
    let device = Device::over(&grid.disk("d.raw", &Disk::new("abcd")), 512);
    let import = ["import", path(&device.at), "d:1", "--format", "raw"];
    for writes in [true, false] {
        let socket = grid.dir.join(format!("nbd-{writes}"));
        let mut machine = Command::new("qemu-nbd");
        machine.args(["--persistent", "-f", "raw", "-k"]).arg(&socket).arg(&device.at);
        if !writes {
            machine.arg("--read-only");
        }
        let mut machine = Background::start(&mut machine);
        until("qemu-nbd", || socket.exists());
        let import = grid.run(&import);
        if writes {
            import.fails(73, &[path(&device.at), "virtual machine"]);
        } else {
            import.json();
        }
        machine.kill();
    }
}

#[test]
fn real_a_disk_that_a_loop_device_or_a_virtual_machine_uses_is_not_pulled_over() {
    if !wanted() {
        return;
    }
    let grid = Grid::start();
    let disk = Disk::new("abcd");
    let file = grid.disk("d.raw", &disk);
    grid.import(&file, "d:1");
    let device = Device::over(&file, 512);
    grid.pull("d:1", &file).fails(73, &["d.raw", path(&device.at), "losetup -d"]);
    drop(device);
    grid.pull("d:1", &file).json();
    let socket = grid.dir.join("nbd");
    let mut machine = Command::new("qemu-nbd");
    let machine = machine.args(["--persistent", "-f", "raw", "-k"]).arg(&socket).arg(&file);
    let mut machine = Background::start(machine);
    until("qemu-nbd", || socket.exists());
    grid.pull("d:1", &file).fails(73, &["d.raw", "virtual machine"]);
    machine.kill();
    grid.pull("d:1", &file).json();
    holds(&file, &disk);
}

#[test]
fn real_devices_of_both_sector_sizes_are_written_exactly_and_only_where_they_differ() {
    if !wanted() {
        return;
    }
    let grid = Grid::start();
    let (old, new) = (Disk::new("ab..cdef..gh").cut(8192), Disk::new("aX..cdYf....").cut(8192));
    for sector in [512, 4096] {
        let size = sector.to_string();
        for (name, disk) in [("old", &old), ("new", &new)] {
            let file = grid.disk(name, disk);
            let name = format!("{name}:{sector}");
            let import = ["import", path(&file), &name, "--format", "raw", "--sector-size", &size];
            grid.run(&import).json();
        }
        let device = Device::new(&grid.dir, &format!("dev{sector}"), 4 << 20, sector);
        grid.pull(&format!("old:{sector}"), &device.at).json();
        device.begins_with(&old);
        let report = grid.pull(&format!("new:{sector}"), &device.at).json();
        device.begins_with(&new);
        assert_eq!(report["progress"]["chunks"], 2);
        // Interrupted, and run again.
        let name = format!("old:{sector}");
        let slow = ["pull", &name, "--to", path(&device.at), "--no-daemon", "--rate", "256KiB"];
        let mut pull = Background::start(&mut grid.command(&slow));
        #[expect(clippy::disallowed_methods, reason = "the kill comes in the middle")]
        std::thread::sleep(std::time::Duration::from_millis(400));
        pull.kill();
        grid.pull(&name, &device.at).json();
        device.begins_with(&old);
    }
}

#[test]
fn real_a_device_is_an_image_as_its_file_is() {
    if !wanted() {
        return;
    }
    let grid = Grid::start();
    let disk = Disk::new("ab..c.de").cut(CHUNK - 4096);
    let file = grid.disk("d.raw", &disk);
    for sector in [512, 4096] {
        let size = sector.to_string();
        let import = ["import", path(&file), "file:1", "--sector-size", &size];
        let from_file = grid.run(&import).json();
        let device = Device::over(&file, sector);
        let import = ["import", path(&device.at), "device:1", "--format", "raw"];
        let from_device = grid.run(&import).json();
        assert_eq!(from_file["image"], from_device["image"], "sectors of {sector}");
    }
}

#[test]
fn real_devices_that_must_not_be_written_are_refused_and_unchanged() {
    if !wanted() {
        return;
    }
    let grid = Grid::start();
    grid.import(&grid.disk("d.raw", &Disk::new("abcdefgh")), "d:1");
    let small = Device::new(&grid.dir, "small", 1 << 20, 512);
    grid.pull("d:1", &small.at).fails(65, &["too small"]);
    small.begins_with(&Disk { bytes: vec![0xaa; 1 << 20] });
    let fs = SmallFs::new(&grid.dir, "mounted", 16);
    let device = must("findmnt", &["-n", "-o", "SOURCE", path(&fs.at)]);
    std::fs::write(fs.at.join("kept"), b"kept").unwrap();
    grid.pull("d:1", Path::new(&device)).fails(73, &["mounted"]);
    assert_eq!(std::fs::read(fs.at.join("kept")).unwrap(), b"kept");
}

#[test]
fn real_a_node_daemon_without_room_for_its_list_says_so() {
    if !wanted() {
        return;
    }
    let grid = Grid::start();
    let fs = SmallFs::new(&grid.dir, "node", 16);
    let token = grid.run(&["node", "token"]).json();
    let data = fs.at.join("data");
    let token = token["token"].as_str().unwrap();
    assert_eq!(run(forebay(&data).args(["node", "join", token, "--name", "n1"])).code, 0);
    let disk = Disk::new("abcd");
    grid.import(&grid.disk("d.raw", &disk), "d:1");
    let start = || {
        let mut daemon = Background::start(forebay(&data).arg("node"));
        assert!(daemon.line().contains("serves"));
        daemon
    };
    let copy = grid.dir.join("copy");
    let ask = ["pull", "d:1", "--to", path(&copy)];
    let mut daemon = start();
    fs.fill_but(0);
    let full = run(forebay(&data).args(ask));
    assert_eq!(full.code, 74, "{}{}", full.out, full.err);
    assert!(!copy.exists());
    fs.make_room();
    assert_eq!(run(forebay(&data).args(ask)).code, 0);
    holds(&copy, &disk);
    assert_eq!(daemon.terminate().1, 0);
    start().kill();
}

#[test]
fn real_an_export_without_room_is_refused_or_ends_and_leaves_nothing() {
    if !wanted() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let fs = SmallFs::new(temp.path(), "out", 32);
    fs.fill_but(2 << 20);
    let grid = Grid::start();
    grid.import(&grid.disk("d.raw", &many(32)), "d:1");
    // What is compressed shows only as it comes how much it takes.
    for (name, says) in [
        ("d.raw", "it needs"),
        ("d.qcow2", "it needs"),
        ("d.vmdk", "no space"),
        ("z.qcow2", "no space"),
    ] {
        let to = fs.at.join(name);
        let compress = if name == "z.qcow2" { &["--compress"][..] } else { &[] };
        let export = [&["export", "d:1", "--to", path(&to)], compress].concat();
        grid.run(&export).fails(74, &[name, says, "make room"]);
        let left: Vec<_> = std::fs::read_dir(&fs.at).unwrap().map(|e| e.unwrap().path()).collect();
        assert!(left.iter().all(|p| !path(p).contains("export") && *p != to), "{left:?}");
    }
    fs.make_room();
    let to = fs.at.join("d.raw");
    grid.run(&["export", "d:1", "--to", path(&to)]).json();
    holds(&to, &many(32));
}
