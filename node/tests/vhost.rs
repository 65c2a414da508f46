//! A virtual machine on a vhost-user disk, served by a process that is killed again and again. Needs
//! QEMU, e2fsck and the disk of `e2e/guest/build-debian`; runs with `FOREBAY_E2E=1`. `FOREBAY_GUEST_DIR`
//! keeps that disk between runs.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use blockio::{Arena, BlockFile, Engine, OpenMode};
use forebay_node::export::raw::RawDisk;
use forebay_node::export::vhost::{Export, Options, listen};

/// In the environment of the process that serves: the disk, and the socket.
const DISK: &str = "FOREBAY_TEST_VHOST_DISK";
const SOCKET: &str = "FOREBAY_TEST_VHOST_SOCKET";
/// The guest takes this long to boot on a slow machine, in seconds.
const PATIENCE: u32 = 300;

/// Not a test: the process that the test below starts.
#[test]
fn a_process_that_serves() {
    let (Some(disk), Some(socket)) = (std::env::var_os(DISK), std::env::var_os(SOCKET)) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async move {
        let file = BlockFile::open(disk, OpenMode::write()).unwrap();
        let disk = RawDisk::new(file, Engine::detect().unwrap(), 512, false).unwrap();
        let buffers = Arena::new("test", 256 << 10, 16 << 20).unwrap();
        let options = Options { serial: "test".into(), ..Options::default() };
        let export = Export::new(Rc::new(disk), buffers, &options).unwrap();
        export.serve(listen(Path::new(&socket)).await.unwrap()).await;
    });
}

/// A process that is killed, not asked, when it goes.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve(disk: &Path, socket: &Path) -> Killed {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "a_process_that_serves"]).env(DISK, disk).env(SOCKET, socket);
    Killed(command.stdout(Stdio::null()).spawn().unwrap())
}

fn boot(guest: &Path, socket: &Path, console: &Path) -> Killed {
    let beside = |suffix: &str| format!("{}.{suffix}", guest.display());
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-accel", "tcg", "-m", "1024", "-smp", "2", "-nographic", "-no-reboot"])
        .args(["-monitor", "none", "-nic", "none", "-serial"])
        .arg(format!("file:{}", console.display()))
        .args(["-object", "memory-backend-memfd,id=mem,size=1024M,share=on"])
        .args(["-machine", "q35,memory-backend=mem", "-chardev"])
        .arg(format!("socket,id=disk,path={},reconnect=1", socket.display()))
        .args(["-device", "vhost-user-blk-pci,chardev=disk,num-queues=2"])
        .args(["-kernel", &beside("vmlinuz"), "-initrd", &beside("initrd"), "-append"])
        .arg("root=/dev/vda rw console=ttyS0 panic=-1 forebay.poweroff")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    Killed(qemu.spawn().unwrap())
}

fn guest_disk(temp: &Path) -> PathBuf {
    let kept = std::env::var_os("FOREBAY_GUEST_DIR").map(PathBuf::from);
    let disk = kept.unwrap_or_else(|| temp.to_owned()).join("v1.raw");
    if !disk.exists() {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../e2e/guest/build-debian");
        assert!(Command::new(script).arg(&disk).status().unwrap().success());
    }
    disk
}

#[test]
fn real_guests_do_not_notice_that_their_disk_is_served_by_one_process_after_another() {
    if std::env::var_os("FOREBAY_E2E").is_none() {
        println!("left out: needs FOREBAY_E2E=1, root, debootstrap and QEMU");
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let [disk, socket, console] = ["disk.raw", "disk.sock", "console"].map(|n| temp.path().join(n));
    let guest = guest_disk(temp.path());
    let copied = Command::new("cp").arg("--sparse=always").args([&guest, &disk]).status();
    assert!(copied.unwrap().success());
    std::fs::write(&console, "").unwrap();
    let mut served = serve(&disk, &socket);
    while !socket.exists() {
        std::thread::park_timeout(Duration::from_millis(10));
    }
    let mut qemu = boot(&guest, &socket, &console);
    let said = || String::from_utf8_lossy(&std::fs::read(&console).unwrap()).into_owned();
    let (mut kills, mut ended) = (0, None);
    for second in 0..PATIENCE {
        std::thread::park_timeout(Duration::from_secs(1));
        ended = qemu.0.try_wait().unwrap();
        if ended.is_some() {
            break;
        }
        // From when the guest has mounted its disk on, every other second.
        if said().contains("EXT4-fs (vda): mounted") && second % 2 == 0 {
            drop(served);
            served = serve(&disk, &socket);
            kills += 1;
        }
    }
    let said = said();
    assert!(ended.is_some_and(|ended| ended.success()), "{ended:?}: {said}");
    assert!(said.contains("FOREBAY-GUEST-READY nginx=ok postgres=ok"), "{said}");
    assert!(!said.contains("I/O error"), "{said}");
    println!("the guest was up and down again over {kills} kills");
    assert!(kills > 3);
    drop(served);
    let checked = Command::new("e2fsck").arg("-fn").arg(&disk).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}
