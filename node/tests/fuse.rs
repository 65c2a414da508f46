//! FUSE mounts with real programs on them. Run with
//! `cargo build -p forebay-node --example fuse-serve`, then
//! `FOREBAY_E2E=1 cargo test -p forebay-node --test fuse`; needs root, a kernel of 6.9 or later and
//! fio. With `FOREBAY_GUEST_DIR` (where `e2e/guest/build-debian` made `v1.raw`) and QEMU a guest boots.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::Duration;

use tempfile::TempDir;

fn wanted() -> bool {
    let wanted = std::env::var_os("FOREBAY_E2E").is_some();
    if !wanted {
        println!("left out: needs FOREBAY_E2E=1, root and fio");
    }
    wanted
}

/// The example, which `cargo test` builds beside the tests.
fn program() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let program = tests.parent().unwrap().with_file_name("examples").join("fuse-serve");
    assert!(program.exists(), "build it: cargo build -p forebay-node --example fuse-serve");
    program
}

/// A process that tells what it does, line by line.
struct Process {
    child: Child,
    says: BufReader<ChildStdout>,
}

impl Process {
    fn start(args: &[&str]) -> Process {
        let mut command = Command::new(program());
        let mut child = command.args(args).stdout(Stdio::piped()).spawn().unwrap();
        let says = BufReader::new(child.stdout.take().unwrap());
        Process { child, says }
    }

    /// Waits for a line that begins like this, and returns the rest.
    fn wait_for(&mut self, begin: &str) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.says.read_line(&mut line).unwrap(), 0, "it ended before {begin:?}");
            if let Some(rest) = line.trim_end().strip_prefix(begin) {
                return rest.trim().to_owned();
            }
        }
    }

    fn signal(&self, signal: &str) {
        let killed = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        assert!(killed.unwrap().success());
    }

    /// Reads, writes and flushes that reached the server.
    fn served(&mut self) -> [u64; 3] {
        self.signal("-USR2");
        let served = self.wait_for("served");
        let served: Vec<u64> = served.split(' ').map(|n| n.parse().unwrap()).collect();
        served.try_into().unwrap()
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A mounted disk, its server, and a holder of its connection.
struct Rig {
    dir: TempDir,
    server: Option<Process>,
    holder: Option<Process>,
}

impl Rig {
    fn new(size: u64) -> Rig {
        let rig = Rig { dir: tempfile::tempdir().unwrap(), server: None, holder: None };
        std::fs::File::create(rig.path("raw")).unwrap().set_len(size).unwrap();
        rig
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn serve(&mut self, options: &[&str]) -> &mut Process {
        let (raw, disk) = (self.path("raw"), self.path("disk"));
        let mut args = vec!["serve", &raw, &disk];
        args.extend(options);
        let mut server = Process::start(&args);
        server.wait_for("serving");
        self.server.insert(server)
    }

    fn hold(&mut self) -> String {
        let socket = self.path("holder");
        let mut holder = Process::start(&["hold", &socket]);
        holder.wait_for("holding");
        self.holder = Some(holder);
        socket
    }

    /// Runs a shell script over `$disk` and `$raw`. What hangs is ended.
    fn shell(&self, script: &str) -> Output {
        let mut command = Command::new("timeout");
        command.args(["120", "bash", "-euo", "pipefail", "-c", script]);
        command
            .env("disk", self.path("disk"))
            .env("raw", self.path("raw"))
            .env("dir", self.path(""));
        command.output().unwrap()
    }

    fn must(&self, script: &str) -> String {
        let ended = self.shell(script);
        let (out, err) =
            (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
        assert!(ended.status.success(), "{script}\n{out}\n{err}");
        out.into_owned()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // Without server and holder whoever still waits is told that there is nothing.
        self.server = None;
        self.holder = None;
        let _ =
            Command::new("umount").args(["-l", &self.path("disk")]).stderr(Stdio::null()).status();
    }
}

const SIZE: u64 = 64 << 20;

#[test]
fn programs_use_it_like_a_disk_image() {
    if !wanted() {
        return;
    }
    let mut rig = Rig::new(SIZE);
    rig.serve(&[]);
    let about = std::fs::metadata(rig.path("disk")).unwrap();
    assert_eq!((about.len(), about.blocks(), about.mode() & 0o777), (SIZE, 0, 0o600));
    for engine in ["psync", "libaio --iodepth=16", "io_uring --iodepth=16"] {
        for direct in [0, 1] {
            rig.must(&format!(
                "cd $dir; fio --name=t --filename=$disk --rw=randrw --bsrange=512-64k --bs_unaligned=0 \
                 --size=32M --direct={direct} --verify=crc32c --fsync=50 --ioengine={engine}"
            ));
        }
    }
    rig.must("dd if=/dev/urandom of=$disk bs=777 count=500 seek=1234 conv=notrunc; cmp $disk $raw");
    rig.must("dd if=/dev/urandom of=$disk bs=1M count=8 seek=40 conv=notrunc,fsync oflag=direct");
    rig.must("dd if=/dev/urandom of=$disk bs=3 count=1 seek=22369620 conv=notrunc; cmp $disk $raw");
    // The end of a disk is the end.
    let beyond = rig.shell("dd if=/dev/zero of=$disk bs=1M count=2 seek=63 conv=notrunc");
    assert!(String::from_utf8_lossy(&beyond.stderr).contains("No space left on device"));
    assert_eq!(std::fs::metadata(rig.path("raw")).unwrap().len(), SIZE);
    for refused in ["truncate -s 1M $disk", "chmod 666 $disk", "echo x > $disk"] {
        assert!(!rig.shell(refused).status.success(), "{refused}");
    }
    rig.must("cmp $disk $raw");
    rig.server.as_ref().unwrap().signal("-TERM");
    assert!(rig.server.as_mut().unwrap().child.wait().unwrap().success());
    assert_eq!(std::fs::metadata(rig.path("disk")).unwrap().len(), 0, "the mount is gone");
}

#[test]
fn a_flush_reaches_the_disk_and_so_does_a_synchronous_write() {
    if !wanted() {
        return;
    }
    let mut rig = Rig::new(SIZE);
    rig.serve(&[]);
    let flushed = |rig: &mut Rig, script: &str| {
        let before = rig.server.as_mut().unwrap().served()[2];
        rig.must(script);
        rig.server.as_mut().unwrap().served()[2] - before
    };
    assert_eq!(flushed(&mut rig, "dd if=/dev/zero of=$disk bs=4k count=5 conv=notrunc"), 0);
    assert_eq!(flushed(&mut rig, "dd if=/dev/zero of=$disk bs=4k count=5 conv=notrunc,fsync"), 1);
    assert_eq!(
        flushed(&mut rig, "dd if=/dev/zero of=$disk bs=4k count=5 conv=notrunc,fdatasync"),
        1
    );
    assert_eq!(
        flushed(&mut rig, "dd if=/dev/zero of=$disk bs=4k count=5 conv=notrunc oflag=dsync"),
        5
    );
    assert_eq!(
        flushed(&mut rig, "dd if=/dev/zero of=$disk bs=4k count=5 conv=notrunc oflag=sync,direct"),
        5
    );
}

#[test]
fn holes_are_made_found_and_copied() {
    if !wanted() {
        return;
    }
    let mut rig = Rig::new(SIZE);
    std::fs::File::options()
        .write(true)
        .open(rig.path("raw"))
        .unwrap()
        .write_all_at(&[7; 4 << 20], 8 << 20)
        .unwrap();
    rig.serve(&[]);
    rig.must("cp --sparse=auto $disk $dir/copy; cmp $dir/copy $raw");
    let taken = |name: &str| std::fs::metadata(rig.path(name)).unwrap().blocks() * 512;
    assert_eq!((taken("copy"), taken("disk"), taken("raw")), (4 << 20, 4 << 20, 4 << 20));
    // Aligned, and not: what lies beside is kept.
    rig.must(
        "fallocate -p -o 9M -l 1M $disk; fallocate -p -o 11000001 -l 300001 $disk; cmp $disk $raw",
    );
    assert!(taken("raw") < 3 << 20);
    let raw = std::fs::read(rig.path("raw")).unwrap();
    assert!(raw[11_000_001..11_300_002].iter().all(|b| *b == 0));
    assert_eq!((raw[11_000_000], raw[11_300_002]), (7, 7));
    rig.must("fallocate -z -n -o 11400001 -l 5001 $disk; cmp $disk $raw");
    let raw = std::fs::read(rig.path("raw")).unwrap();
    assert_eq!((raw[11_400_000], raw[11_400_001], raw[11_405_001], raw[11_405_002]), (7, 0, 0, 7));
    assert!(!rig.shell("fallocate -z -o 63M -l 2M $disk").status.success(), "it would grow");
    assert!(!rig.shell("fallocate -o 0 -l 1M $disk").status.success(), "nothing is reserved");
    let map = rig.must("python3 -c 'import os,sys\nf=os.open(sys.argv[1],os.O_RDONLY)\nprint(os.lseek(f,0,3),os.lseek(f,8<<20,4),os.lseek(f,9<<20,3))' $disk");
    assert_eq!(map.trim(), format!("{} {} {}", 8 << 20, 9 << 20, 10 << 20));
}

#[test]
fn who_uses_it_waits_while_its_server_is_killed_or_leaves_and_is_started_again() {
    if !wanted() {
        return;
    }
    let mut rig = Rig::new(SIZE);
    let holder = rig.hold();
    // Slow, so that there is always something under way.
    rig.serve(&["--holder", &holder, "--delay", "2"]);
    let mut fio = Command::new("timeout");
    fio.args(["120", "fio", "--name=t", "--rw=randrw", "--bs=4k", "--size=32M", "--direct=1"])
        .args(["--ioengine=libaio", "--iodepth=16", "--verify=crc32c", "--fsync=100"])
        .arg(format!("--filename={}", rig.path("disk")))
        .current_dir(rig.dir.path())
        .stdout(Stdio::null());
    let mut fio = fio.spawn().unwrap();
    for round in 0..5 {
        std::thread::park_timeout(Duration::from_millis(400));
        assert!(fio.try_wait().unwrap().is_none(), "fio ended in round {round}");
        let server = rig.server.as_mut().unwrap();
        match round % 2 {
            0 => server.kill(),
            _ => {
                server.signal("-HUP");
                assert!(server.child.wait().unwrap().success());
            }
        }
        // Whoever comes while nobody serves waits too.
        let mut late = Command::new("dd");
        late.args([&format!("if={}", rig.path("disk")), "of=/dev/null", "bs=4k", "count=1"]);
        let mut late = late.stderr(Stdio::null()).spawn().unwrap();
        std::thread::park_timeout(Duration::from_millis(100));
        assert!(late.try_wait().unwrap().is_none());
        rig.serve(&["--holder", &holder, "--delay", if round < 4 { "2" } else { "0" }]);
        assert!(late.wait().unwrap().success());
    }
    assert!(fio.wait().unwrap().success(), "fio saw an error, or wrong bytes");
    rig.must("cmp $disk $raw");
}

#[test]
fn without_a_holder_a_killed_server_is_an_error_and_the_next_mounts_anew() {
    if !wanted() {
        return;
    }
    let mut rig = Rig::new(SIZE);
    rig.serve(&[]).kill();
    let error = std::fs::metadata(rig.path("disk")).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::NotConnected);
    rig.serve(&[]);
    rig.must("cmp $disk $raw");
}

#[test]
fn a_graduated_disk_is_read_and_written_past_the_server() {
    if !wanted() {
        return;
    }
    let mut rig = Rig::new(SIZE);
    rig.serve(&[]);
    let open = || std::fs::File::options().read(true).write(true).open(rig.path("disk")).unwrap();
    let before = open();
    before.write_all_at(&[1; 4096], 0).unwrap();
    let server = rig.server.as_mut().unwrap();
    assert_eq!(server.served(), [0, 1, 0]);
    server.signal("-USR1");
    server.wait_for("graduated");
    let after =
        std::fs::File::options().read(true).write(true).open(rig.dir.path().join("disk")).unwrap();
    let mut bytes = [0; 4096];
    after.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, [1; 4096]);
    after.write_all_at(&[2; 4096], 4096).unwrap();
    assert_eq!(server.served(), [0, 1, 0], "what was opened after goes by");
    before.read_exact_at(&mut bytes, 4096).unwrap();
    assert_eq!(bytes, [2; 4096]);
    before.write_all_at(&[3; 4096], 0).unwrap();
    assert_eq!(server.served(), [1, 2, 0], "what was opened before does not");
    after.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, [3; 4096]);
    after.sync_data().unwrap();
    assert_eq!(server.served(), [1, 2, 1], "flushes always come");
    drop((before, after));
    rig.must(
        "cd $dir; fio --name=t --filename=$disk --rw=randrw --bs=4k --size=32M --direct=1 \
         --ioengine=libaio --iodepth=16 --verify=crc32c; cmp $disk $raw",
    );
    assert_eq!(rig.server.as_mut().unwrap().served()[..2], [1, 2]);
}

#[test]
fn a_guest_boots_while_its_server_is_killed() {
    let guest = std::env::var_os("FOREBAY_GUEST_DIR").map(PathBuf::from);
    let Some(guest) = guest.filter(|_| wanted()) else {
        println!("left out: needs FOREBAY_GUEST_DIR");
        return;
    };
    let image = guest.join("v1.raw");
    let beside = |suffix: &str| format!("{}.{suffix}", image.display());
    let mut rig = Rig::new(0);
    rig.must(&format!("cp --sparse=always {} $raw", image.display()));
    let holder = rig.hold();
    rig.serve(&["--holder", &holder]);
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-accel", "tcg", "-m", "1024", "-smp", "2", "-nodefaults", "-display", "none"])
        .args(["-no-reboot", "-serial", "stdio", "-kernel", &beside("vmlinuz")])
        .args(["-initrd", &beside("initrd"), "-drive"])
        .arg(format!("if=virtio,format=raw,cache=none,file={}", rig.path("disk")))
        .args(["-append", "root=/dev/vda rw console=ttyS0 panic=-1 forebay.poweroff"]);
    let mut qemu = qemu.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut console = BufReader::new(qemu.stdout.take().unwrap());
    let (mut said, mut killed) = (String::new(), 0);
    loop {
        let mut line = Vec::new();
        if (&mut console).take(1 << 20).read_until(b'\n', &mut line).unwrap() == 0 {
            break;
        }
        let line = String::from_utf8_lossy(&line);
        if line.contains("Started") && killed < 5 {
            killed += 1;
            rig.server.as_mut().unwrap().kill();
            rig.serve(&["--holder", &holder]);
        }
        said.push_str(&line);
    }
    assert!(qemu.wait().unwrap().success());
    assert!(said.contains("FOREBAY-GUEST-READY nginx=ok postgres=ok"), "{said}");
    assert!(!said.contains("I/O error") && !said.contains("EXT4-fs error"), "{said}");
    assert_eq!(killed, 5);
    rig.must("e2fsck -fn $raw");
}
