//! A real QEMU (emulating) over a real NBD server. Runs with `FOREBAY_E2E=1`; needs
//! `qemu-system-x86_64`, `qemu-storage-daemon` and fio with its NBD engine, and for the boot a disk made by
//! `e2e/guest/build-debian` as `v1.raw` in `FOREBAY_GUEST_DIR`.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use blockio::{BlockFile, OpenMode};
use image::Kind;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

const PATIENCE: Duration = Duration::from_secs(30);
const SIZE: u64 = 64 << 20;

/// A process that does not outlive the test.
struct Process(Child);

impl Process {
    fn start(command: &mut Command) -> Process {
        Process(command.stdin(Stdio::null()).spawn().unwrap())
    }

    fn has_ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A file, an NBD server over it, and a place for sockets.
struct Rig {
    dir: TempDir,
    server: Option<Process>,
}

impl Rig {
    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    async fn new(make_disk: impl FnOnce(&Path)) -> Rig {
        let mut rig = Rig { dir: tempfile::tempdir().unwrap(), server: None };
        make_disk(Path::new(&rig.path("d.raw")));
        let socket = rig.path("nbd");
        let mut server = Command::new("qemu-storage-daemon");
        server
            .args([
                "--blockdev",
                &format!(
                    "driver=file,node-name=f,discard=unmap,locking=off,filename={}",
                    rig.path("d.raw")
                ),
            ])
            .args(["--nbd-server", &format!("addr.type=unix,addr.path={socket}")])
            .args(["--export", "nbd,id=e,node-name=f,name=vol1,writable=on"]);
        rig.server = Some(Process::start(&mut server));
        appears(Path::new(&socket)).await;
        rig
    }

    /// A QEMU with these options. `@` stands for what leads to the export, `%` for its socket.
    fn machine(&self, options: &[&str]) -> Process {
        let socket = self.path("nbd");
        let nbd = "server.type=unix,server.path=%,export=vol1";
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-accel", "tcg", "-nodefaults", "-display", "none", "-name", "guest1"])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", self.path("qmp"))])
            .args(options.iter().map(|o| o.replace('@', nbd).replace('%', &socket)));
        Process::start(&mut qemu)
    }

    async fn monitor(&self) -> Monitor {
        let socket = PathBuf::from(self.path("qmp"));
        appears(&socket).await;
        Monitor::connect(&socket, PATIENCE).await.unwrap()
    }

    fn pivot(&self) -> Pivot {
        Pivot {
            export: NbdExport { socket: self.path("nbd"), name: "vol1".to_owned() },
            raw: self.path("d.raw"),
            ..recorded()
        }
    }
}

async fn appears(path: &Path) {
    for _ in 0..3000 {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            // A monitor that was connected to and left again is ready soon.
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("nothing listens at {}", path.display());
}

fn empty_disk(path: &Path) {
    std::fs::File::create(path).unwrap().set_len(SIZE).unwrap();
}

fn wanted() -> bool {
    let wanted = std::env::var_os("FOREBAY_E2E").is_some();
    if !wanted {
        println!("left out: needs FOREBAY_E2E=1 and QEMU");
    }
    wanted
}

/// Writes and reads through the guest's disk, as its device would.
async fn use_disk(monitor: &mut Monitor, device: &str, pattern: u8) {
    for command in [
        format!("write -P {pattern} {}M 1M", pattern % 32),
        format!("read -P {pattern} {}M 1M", pattern % 32),
        "flush".to_owned(),
    ] {
        let line = format!("qemu-io -d {device} \"{command}\"");
        let answer = monitor.execute("human-monitor-command", json!({ "command-line": line }));
        let answer = answer.await.unwrap();
        let text = answer.as_str().unwrap();
        assert!(!text.contains("rror") && !text.contains("failed"), "{command}: {text}");
    }
}

/// The guest's device, as `qemu-io -d` takes it.
async fn device(monitor: &mut Monitor) -> String {
    let devices = monitor.execute("query-block", Value::Null).await.unwrap();
    devices[0]["qdev"].as_str().unwrap().to_owned()
}

/// Pivots, and prints how long that took.
#[expect(clippy::disallowed_methods, reason = "prints how long a pivot takes")]
async fn timed_pivot(monitor: &mut Monitor, spec: &Pivot) -> Outcome {
    let begin = std::time::Instant::now();
    let outcome = pivot(monitor, spec, PATIENCE).await.unwrap();
    println!("{outcome:?} in {:?}", begin.elapsed());
    outcome
}

const NBD: &str = "driver=nbd,node-name=nbd0,@";

#[tokio::test]
async fn guests_are_moved_however_their_disk_is_wired() {
    if !wanted() {
        return;
    }
    let shapes: &[&[&str]] = &[
        &["-blockdev", NBD, "-device", "virtio-blk-pci,drive=nbd0"],
        &[
            "-object",
            "iothread,id=io",
            "-blockdev",
            NBD,
            "-device",
            "virtio-blk-pci,drive=nbd0,iothread=io",
        ],
        &[
            "-blockdev",
            NBD,
            "-blockdev",
            "driver=raw,node-name=fmt0,file=nbd0",
            "-device",
            "virtio-blk-pci,drive=fmt0",
        ],
        &[
            "-object",
            "throttle-group,id=tg",
            "-blockdev",
            NBD,
            "-blockdev",
            "driver=raw,node-name=fmt0,file=nbd0",
            "-blockdev",
            "driver=throttle,node-name=thr0,throttle-group=tg,file=fmt0",
            "-device",
            "virtio-blk-pci,drive=thr0",
        ],
        &[
            "-drive",
            "if=none,id=d,format=raw,file=nbd+unix:///vol1?socket=%",
            "-device",
            "virtio-blk-pci,drive=d",
        ],
        &[
            "-blockdev",
            "driver=nbd,node-name=nbd0,read-only=on,@",
            "-device",
            "virtio-blk-pci,drive=nbd0",
        ],
    ];
    for shape in shapes {
        let mut rig = Rig::new(empty_disk).await;
        let read_only = shape.iter().any(|option| option.contains("read-only"));
        let mut machine = rig.machine(shape);
        let mut monitor = rig.monitor().await;
        let who = identify(&mut monitor).await.unwrap();
        assert_eq!((who.name.as_deref(), who.status.as_str()), (Some("guest1"), "running"));
        let device = device(&mut monitor).await;
        if !read_only {
            use_disk(&mut monitor, &device, 11).await;
        }
        let spec = rig.pivot();
        let moved = timed_pivot(&mut monitor, &spec).await;
        assert_eq!(moved, Outcome::Moved, "{shape:?}");
        drop(rig.server.take());
        let after = view(&mut monitor).await.unwrap();
        assert!(after.jobs.is_empty() && after.nodes.iter().all(|node| node.driver != "nbd"));
        assert_eq!(after.node("vol").unwrap().read_only, read_only);
        if !read_only {
            use_disk(&mut monitor, &device, 12).await;
            let bytes = std::fs::read(rig.path("d.raw")).unwrap();
            for pattern in [11, 12] {
                let from = usize::from(pattern) << 20;
                assert!(bytes[from..from + (1 << 20)].iter().all(|byte| *byte == pattern));
            }
        }
        let again = pivot(&mut monitor, &spec, PATIENCE).await.unwrap();
        assert_eq!(again, Outcome::WasThere);
        assert!(machine.has_ended().is_none());
    }
}

/// fio as the guest: 16 writes under way at any time, each read again and checked.
#[tokio::test]
async fn a_disk_under_load_keeps_every_write() {
    if !wanted() {
        return;
    }
    for round in 0..5 {
        let mut rig = Rig::new(empty_disk).await;
        let nbd = format!("server.type=unix,server.path={},export=vol1", rig.path("nbd"));
        let mut machine = Command::new("qemu-storage-daemon");
        machine
            .args([
                "--chardev",
                &format!("socket,id=c,path={},server=on,wait=off", rig.path("qmp")),
            ])
            .args(["--monitor", "chardev=c"])
            .args(["--blockdev", &format!("driver=nbd,node-name=nbd0,{nbd}")])
            .args(["--nbd-server", &format!("addr.type=unix,addr.path={}", rig.path("guest"))])
            .args(["--export", "nbd,id=e,node-name=nbd0,name=disk,writable=on"]);
        let _machine = Process::start(&mut machine);
        appears(Path::new(&rig.path("guest"))).await;
        let mut fio = Command::new("fio");
        fio.args(["--name=t", "--ioengine=nbd", "--rw=randwrite", "--bsrange=4k-64k"])
            .arg(format!("--uri=nbd+unix:///disk?socket={}", rig.path("guest")))
            .args(["--size=32M", "--iodepth=16", "--loops=20", "--verify=crc32c"])
            .arg(format!("--randseed={round}"))
            .current_dir(rig.dir.path())
            .stdout(Stdio::null());
        let mut fio = Process::start(&mut fio);
        tokio::time::sleep(Duration::from_millis(300 + 70 * round)).await;
        let mut monitor = rig.monitor().await;
        assert_eq!(timed_pivot(&mut monitor, &rig.pivot()).await, Outcome::Moved);
        drop(rig.server.take());
        assert!(fio.has_ended().is_none(), "fio was to be at work all the time");
        let ended = loop {
            match fio.has_ended() {
                Some(status) => break status,
                None => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        };
        assert!(ended.success(), "fio saw an error, or wrong bytes");
    }
}

#[tokio::test]
async fn an_interrupted_pivot_is_taken_up_at_any_step() {
    if !wanted() {
        return;
    }
    let mirror = json!({ "job-id": "vol-job", "device": "nbd0", "target": "vol", "sync": "none",
        "copy-mode": "write-blocking", "auto-dismiss": false });
    for interrupted_after in 0..6 {
        let rig = Rig::new(empty_disk).await;
        let _machine = rig.machine(&["-blockdev", NBD, "-device", "virtio-blk-pci,drive=nbd0"]);
        let mut monitor = rig.monitor().await;
        let spec = rig.pivot();
        let job = json!({ "id": "vol-job" });
        let steps = [
            ("blockdev-add", spec.node_options(false)),
            ("blockdev-mirror", mirror.clone()),
            ("job-complete", job.clone()),
            ("job-dismiss", job.clone()),
            ("blockdev-del", json!({ "node-name": "nbd0" })),
        ];
        for (command, arguments) in steps.into_iter().take(interrupted_after) {
            if command.starts_with("job-") {
                let state = if command == "job-complete" { "ready" } else { "concluded" };
                while view(&mut monitor).await.unwrap().jobs[0].status != state {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            monitor.execute(command, arguments).await.unwrap();
        }
        drop(monitor);
        let mut monitor = rig.monitor().await;
        pivot(&mut monitor, &spec, PATIENCE).await.unwrap();
        let after = view(&mut monitor).await.unwrap();
        assert!(after.jobs.is_empty() && after.nodes.len() == 2, "{after:?}");
        let device = device(&mut monitor).await;
        use_disk(&mut monitor, &device, 3).await;
    }
}

#[tokio::test]
async fn who_holds_the_bytes_of_the_file_must_let_go_first() {
    if !wanted() {
        return;
    }
    let rig = Rig::new(empty_disk).await;
    let _machine = rig.machine(&["-blockdev", NBD, "-device", "virtio-blk-pci,drive=nbd0"]);
    let mut monitor = rig.monitor().await;
    let spec = rig.pivot();
    let open = || BlockFile::open(rig.path("d.raw"), OpenMode::write()).unwrap();
    let ours = open();
    assert!(ours.try_lock_exclusive().unwrap());
    assert!(ours.other_user().unwrap().is_none(), "the export of this test locks nothing");
    let device = device(&mut monitor).await;
    for locked in ["for all", "against writers"] {
        let error = pivot(&mut monitor, &spec, PATIENCE).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Conflict, "{error}");
        println!("while the bytes are locked {locked}: {error}");
        assert!(view(&mut monitor).await.unwrap().node("vol").is_none());
        use_disk(&mut monitor, &device, 5).await;
        ours.admit_others().unwrap();
        assert!(ours.deny_writers().unwrap());
    }
    // The lock on the whole file may stay: QEMU does not see it.
    ours.admit_others().unwrap();
    pivot(&mut monitor, &spec, PATIENCE).await.unwrap();
    assert!(!open().try_lock_exclusive().unwrap());
    assert!(ours.other_user().unwrap().is_some(), "now QEMU keeps others out");
}

/// A loop device that goes away with the test.
struct Loop(String);

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

#[tokio::test]
async fn a_volume_on_a_device_is_claimed_and_moved_to_all_the_same() {
    if !wanted() {
        return;
    }
    let rig = Rig::new(empty_disk).await;
    let attached = Command::new("losetup").args(["-f", "--show", &rig.path("d.raw")]).output();
    let attached = attached.unwrap();
    if !attached.status.success() {
        println!("left out: no loop device");
        return;
    }
    let device = Loop(String::from_utf8(attached.stdout).unwrap().trim().to_owned());
    // Open for writing is claimed.
    let _ours = BlockFile::open(&device.0, OpenMode::write()).unwrap();
    let machine = rig.machine(&["-blockdev", NBD, "-device", "virtio-blk-pci,drive=nbd0"]);
    let mut monitor = rig.monitor().await;
    let spec = Pivot { raw: device.0.clone(), device: true, ..rig.pivot() };
    pivot(&mut monitor, &spec, PATIENCE).await.unwrap();
    let guest = self::device(&mut monitor).await;
    use_disk(&mut monitor, &guest, 5).await;
    assert_eq!(view(&mut monitor).await.unwrap().node("vol").unwrap().filename, device.0);
    drop(machine);
}

#[tokio::test]
async fn a_disk_that_grew_is_larger_in_the_guest() {
    if !wanted() {
        return;
    }
    let rig = Rig::new(empty_disk).await;
    let _machine = rig.machine(&["-blockdev", NBD, "-device", "virtio-blk-pci,drive=nbd0"]);
    let mut monitor = rig.monitor().await;
    assert!(resize(&mut monitor, "nbd0", 2 * SIZE).await.is_err(), "an export has its size");
    pivot(&mut monitor, &rig.pivot(), PATIENCE).await.unwrap();
    std::fs::File::options()
        .write(true)
        .open(rig.path("d.raw"))
        .unwrap()
        .set_len(2 * SIZE)
        .unwrap();
    resize(&mut monitor, "vol", 2 * SIZE).await.unwrap();
    assert_eq!(view(&mut monitor).await.unwrap().node("vol").unwrap().size, 2 * SIZE);
    let less = resize(&mut monitor, "vol", SIZE).await.unwrap_err();
    assert_eq!(less.kind(), Kind::Invalid);
    assert_eq!(std::fs::metadata(rig.path("d.raw")).unwrap().len(), 2 * SIZE);
}

#[tokio::test]
async fn a_guest_that_boots_does_not_notice() {
    let guest = std::env::var_os("FOREBAY_GUEST_DIR").map(PathBuf::from);
    let Some(guest) = guest.filter(|_| wanted()) else {
        println!("left out: needs FOREBAY_GUEST_DIR");
        return;
    };
    let image = guest.join("v1.raw");
    let mut rig = Rig::new(|path| {
        let copied = Command::new("cp").arg("--sparse=always").arg(&image).arg(path).status();
        assert!(copied.unwrap().success());
    })
    .await;
    let file = |suffix: &str| format!("{}.{suffix}", image.display());
    let (kernel, initrd, console) = (file("vmlinuz"), file("initrd"), rig.path("console"));
    let mut machine = rig.machine(&[
        "-m",
        "1024",
        "-smp",
        "2",
        "-no-reboot",
        "-serial",
        &format!("file:{console}"),
        "-blockdev",
        NBD,
        "-device",
        "virtio-blk-pci,drive=nbd0",
        "-kernel",
        &kernel,
        "-initrd",
        &initrd,
        "-append",
        "root=/dev/vda rw console=ttyS0 panic=-1 forebay.poweroff",
    ]);
    let mut monitor = rig.monitor().await;
    let said = |text: &str| {
        String::from_utf8_lossy(&std::fs::read(&console).unwrap_or_default()).contains(text)
    };
    // The root file system is mounted, and services are starting.
    wait(async || said("Started") || said("Starting"), &mut machine).await;
    assert!(!said("FOREBAY-GUEST-READY"));
    timed_pivot(&mut monitor, &rig.pivot()).await;
    drop(rig.server.take());
    assert!(!said("FOREBAY-GUEST-READY"), "it should still be booting");
    drop(monitor);
    wait(async || said("FOREBAY-GUEST-READY nginx=ok postgres=ok"), &mut machine).await;
    let text = std::fs::read(&console).unwrap();
    let text = String::from_utf8_lossy(&text);
    assert!(!text.contains("I/O error") && !text.contains("EXT4-fs error"), "{text}");
    while machine.has_ended().is_none() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(machine.has_ended().unwrap().success());
    let check = Command::new("e2fsck").args(["-fn", &rig.path("d.raw")]).output().unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
}

async fn wait(until: impl AsyncFn() -> bool, machine: &mut Process) {
    while !until().await {
        assert!(machine.has_ended().is_none(), "QEMU ended");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
