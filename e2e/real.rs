//! The real thing: a Debian disk, two network namespaces, a booted virtual machine. Needs root,
//! debootstrap, iproute2 and QEMU; runs with `FOREBAY_E2E=1`. `FOREBAY_GUEST_DIR` keeps the disk between
//! runs.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use crate::harness::{Background, forebay, path, run, until};

pub fn wanted() -> bool {
    let wanted = std::env::var_os("FOREBAY_E2E").is_some();
    if !wanted {
        println!("left out: needs FOREBAY_E2E=1, root, debootstrap, iproute2 and QEMU");
    }
    wanted
}

pub fn script(name: &str) -> Command {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../e2e/guest").join(name))
}

#[track_caller]
pub fn must(command: &mut Command) -> String {
    let ended = run(command);
    assert_eq!(ended.code, 0, "{command:?}\n{}\n{}", ended.out, ended.err);
    ended.out
}

/// A Debian disk: one that is kept, or a new one in `temp`.
pub fn guest(temp: &Path) -> PathBuf {
    static BUILDING: Mutex<()> = Mutex::new(());
    let _one = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    let kept = std::env::var_os("FOREBAY_GUEST_DIR").map(PathBuf::from);
    let raw = kept.unwrap_or_else(|| temp.to_owned()).join("v1.raw");
    if !raw.exists() {
        must(script("build-debian").arg(&raw));
    }
    raw
}

/// A file system of its own in a sparse file, unmounted at the end.
pub struct Mount {
    image: PathBuf,
    pub at: PathBuf,
    options: &'static str,
}

impl Mount {
    /// An ext4.
    pub fn of(image: PathBuf, at: PathBuf, mib: u64) -> Self {
        Self::with("mkfs.ext4", "loop", image, at, mib)
    }

    /// Another one, mounted with these options.
    pub fn with(mkfs: &str, options: &'static str, image: PathBuf, at: PathBuf, mib: u64) -> Self {
        File::create(&image).unwrap().set_len(mib << 20).unwrap();
        must(Command::new(mkfs).arg("-q").arg(&image));
        std::fs::create_dir(&at).unwrap();
        let mount = Self { image, at, options };
        mount.mount();
        mount
    }

    fn mount(&self) {
        must(Command::new("mount").args(["-o", self.options]).args([&self.image, &self.at]));
    }

    /// What has not been made to last is lost from now on, as when the power goes; nothing is written any more.
    pub fn lose_power(&self) {
        must(Command::new("xfs_io").args(["-x", "-r", "-c", "shutdown", path(&self.at)]));
    }

    /// Mounts it again, when nobody uses it any more.
    pub fn come_back(&self) {
        self.unmount();
        self.mount();
    }

    /// The same of an ext4 in which something was wrong.
    pub fn is_mended(&self) {
        self.unmount();
        let checked = run(Command::new("e2fsck").args(["-f", "-y"]).arg(&self.image));
        assert!(checked.code <= 1, "{}{}", checked.out, checked.err);
        self.mount();
    }

    fn unmount(&self) {
        let unmounted = || run(Command::new("umount").arg(&self.at)).code == 0;
        until(&format!("{} can be unmounted", self.at.display()), unmounted);
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).output();
    }
}

/// Two namespaces, taken down at the end.
struct Network;

impl Network {
    fn up() -> Self {
        must(script("netns").args(["up", "fbe2e", "--rate", "1gbit"]));
        Self
    }

    /// The program, inside a namespace.
    fn inside(namespace: &str, data: &Path) -> Command {
        let program = forebay(data);
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace]).arg(program.get_program());
        command.env("FOREBAY_DATA", data).args(program.get_args()).arg("--json");
        command
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = script("netns").args(["down", "fbe2e"]).output();
    }
}

fn boot(disk: &Path, guest: &Path) {
    let beside = |suffix: &str| PathBuf::from(format!("{}.{suffix}", guest.display()));
    let took = must(script("boot").arg(disk).arg(beside("vmlinuz")).arg(beside("initrd")));
    println!("{} is up after {} s", disk.display(), took.trim());
}

#[test]
fn real_debian_disks_travel_between_namespaces_and_boot() {
    if !wanted() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let raw = guest(temp.path());
    let dir = raw.parent().expect("a directory");
    let [qcow2, vmdk] = ["v1.qcow2", "v1.vmdk"].map(|name| dir.join(name));
    if !qcow2.exists() || !vmdk.exists() {
        must(script("formats").arg(&raw).arg(dir));
    }

    let _network = Network::up();
    let data = temp.path().join("grid");
    let mut up = Network::inside("fbe2e-a", &data);
    up.args(["up", "--listen", "10.77.0.1:0", "--set", "serve.ip=10.77.0.1"]);
    let mut up = Background::start(&mut up);
    assert!(up.line().contains("10.77.0.1"));
    let mut images = Vec::new();
    for (disk, name) in [(&raw, "debian:raw"), (&qcow2, "debian:qcow2"), (&vmdk, "debian:vmdk")] {
        let text = must(Network::inside("fbe2e-a", &data).args(["import", path(disk), name]));
        let report: serde_json::Value = serde_json::from_str(&text).unwrap();
        println!("import {name}: {} bytes sent in {} s", report["sent"], report["seconds"]);
        images.push(report["image"].clone());
    }
    // The other namespace is another machine: all that it gets of this one is a token.
    let token = must(Network::inside("fbe2e-a", &data).args(["node", "token"]));
    let token: serde_json::Value = serde_json::from_str(&token).unwrap();
    let node = temp.path().join("node");
    let join = ["node", "join", token["token"].as_str().unwrap(), "--name", "n1"];
    must(Network::inside("fbe2e-b", &node).args(join));
    assert!(images.windows(2).all(|w| w[0] == w[1]), "one disk, one identity: {images:?}");
    for name in ["debian:raw", "debian:qcow2", "debian:vmdk"] {
        let copy = temp.path().join("copy.raw");
        let text =
            must(Network::inside("fbe2e-b", &node).args(["pull", name, "--to", path(&copy)]));
        let report: serde_json::Value = serde_json::from_str(&text).unwrap();
        println!("pull {name} at 1 Gbit/s: {} s", report["seconds"]);
        must(Command::new("cmp").arg(&raw).arg(&copy));
        boot(&copy, &raw);
        std::fs::remove_file(&copy).unwrap();
    }
    assert_eq!(up.terminate().1, 0);
}
