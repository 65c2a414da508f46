//! A Debian that is saved while it runs, twice and once more; its images pulled, checked and booted. Needs what
//! [`crate::real`] needs.

use std::cell::Cell;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::caches::join;
use crate::guests::Node;
use crate::harness::{Grid, forebay, path, run};
use crate::real::{guest, must, wanted};

/// A guest that runs its services, and an agent that does what it is told.
struct Debian {
    qemu: Child,
    agent: PathBuf,
    /// Questions so far.
    asked: Cell<u64>,
}

impl Drop for Debian {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

impl Debian {
    /// On a volume, with its monitor at `DIR/qmp`.
    fn start(guest: &Path, dir: &Path, volume: &str, nbd: &str) -> Self {
        let agent = dir.join(format!("{volume}.agent"));
        let beside = |suffix: &str| format!("{}.{suffix}", guest.display());
        let disk = format!(
            "driver=nbd,node-name=d,server.type=unix,server.path={nbd},export={volume},reconnect-delay=60"
        );
        let qemu = Command::new("qemu-system-x86_64")
            .args(["-accel", "tcg", "-m", "768", "-smp", "2", "-nographic", "-no-reboot"])
            .args(["-monitor", "none", "-nic", "none"])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", path(&dir.join("qmp")))])
            .args(["-serial", &format!("file:{}", path(&dir.join(format!("{volume}.console"))))])
            .args(["-kernel", &beside("vmlinuz"), "-initrd", &beside("initrd")])
            .args(["-append", "root=/dev/vda rw console=ttyS0 panic=-1"])
            .args(["-blockdev", &disk, "-device", "virtio-blk-pci,drive=d"])
            .args(["-device", "virtio-serial-pci"])
            .args(["-chardev", &format!("socket,id=a,path={},server=on,wait=off", path(&agent))])
            .args(["-device", "virtserialport,chardev=a,name=org.qemu.guest_agent.0"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("QEMU");
        Self { qemu, agent, asked: Cell::new(0) }
    }

    /// What the agent answers; it has one client at a time. One that has just started answers what it was asked before
    /// by others, too: what comes before the answer with our number is not ours.
    fn ask(&self, command: &str, arguments: &Value) -> Option<Value> {
        let number = self.asked.get() + 1;
        self.asked.set(number);
        let stream = UnixStream::connect(&self.agent).ok()?;
        stream.set_read_timeout(Some(std::time::Duration::from_secs(20))).ok()?;
        let mut answers = BufReader::new(stream.try_clone().ok()?).lines();
        let mut answer = || serde_json::from_str::<Value>(&answers.next()?.ok()?).ok();
        let say = |what: &Value| (&stream).write_all(format!("{what}\n").as_bytes()).ok();
        say(&json!({ "execute": "guest-sync", "arguments": { "id": number } }))?;
        while answer()?["return"] != number {}
        say(&json!({ "execute": command, "arguments": arguments }))?;
        answer()?.get("return").cloned()
    }

    fn wait_for_agent(&mut self) {
        patiently("an answer of the guest's agent", || {
            assert!(self.qemu.try_wait().unwrap().is_none(), "QEMU ended");
            self.ask("guest-ping", &json!({})).is_some()
        });
    }

    /// What a shell in the guest prints.
    fn shell(&self, script: &str) -> String {
        let asked = json!({ "path": "/bin/sh", "arg": ["-c", script], "capture-output": true });
        let begun = self.ask("guest-exec", &asked).expect("the agent runs it");
        let mut status = Value::Null;
        patiently(script, || {
            let now = self.ask("guest-exec-status", &json!({ "pid": begun["pid"] }));
            status = now.unwrap_or_default();
            status["exited"] == true
        });
        assert_eq!(status["exitcode"], 0, "{script}: {status}");
        let said = status["out-data"].as_str().unwrap_or_default();
        must(Command::new("sh").args(["-c", "echo \"$0\" | base64 -d", said]))
    }

    /// Writes a file of random bytes, which need not have reached the disk; its checksum.
    fn writes(&self, name: &str) -> String {
        let script = format!("head -c 8388608 /dev/urandom >/root/{name}; sha256sum </root/{name}");
        self.shell(&script)[..64].to_owned()
    }
}

/// Emulated guests take their time.
#[expect(clippy::disallowed_methods, reason = "guests start in real time")]
fn patiently(what: &str, mut so: impl FnMut() -> bool) {
    for _ in 0..1200 {
        if so() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(250));
    }
    panic!("waited in vain: {what}");
}

/// Without any repair: the file systems held still at that instant.
fn is_clean(disk: &Path) {
    must(Command::new("e2fsck").args(["-fn", path(disk)]));
}

/// The checksum of a file in the guest's file system, if it is there.
fn file(disk: &Path, name: &str) -> Option<String> {
    let script = "debugfs -R \"cat /root/$1\" \"$0\" 2>/dev/null | sha256sum";
    let listed = must(Command::new("debugfs").args(["-R", "ls -p /root", path(disk)]));
    let there = listed.lines().any(|line| line.split('/').nth(5) == Some(name));
    let sum = must(Command::new("sh").args(["-c", script, path(disk), name]));
    there.then(|| sum[..64].to_owned())
}

#[test]
fn real_a_debian_is_saved_while_it_runs_and_its_images_are_whole() {
    if !wanted() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let guest = guest(temp.path());
    let grid = Grid::start();
    let first = grid.run(&["import", path(&guest), "debian:12"]).json();
    let data = join(&grid, "node", "n1");
    let node = Node::start(data.clone());
    let save = |volume: &str, name: &str, debian: &Debian| {
        let words = ["--json", "save", volume, name, "--agent", path(&debian.agent)];
        let saved = run(forebay(&data).args(words)).json();
        assert!(saved["frozen_ms"].is_u64(), "its file systems held still: {saved}");
        saved
    };
    let start = |image: &str, volume: &str, qmp: &[&str]| {
        node.volume(&["create", image, "--name", volume]);
        let attached = node.volume(&[&["attach", volume, "--no-trace"], qmp].concat());
        let nbd = attached["attached"]["path"].as_str().unwrap();
        let mut debian = Debian::start(&guest, temp.path(), volume, nbd);
        debian.wait_for_agent();
        debian
    };

    // All of this guest's writes go through the daemon.
    let debian = start("debian:12", "web", &[]);
    let mut sums = vec![("one", debian.writes("one"))];
    let one = save("web", "web:1", &debian);
    assert_eq!((&one["truth"], &one["parent"]), (&"changed-map".into(), &first["image"]));
    sums.push(("two", debian.writes("two")));
    let two = save("web", "web:2", &debian);
    assert_eq!((&two["truth"], &two["parent"]), (&"changed-map".into(), &one["image"]));
    drop(debian);
    // The second one boots, and this guest is moved to the plain file.
    let qmp = temp.path().join("qmp");
    let debian = start("web:2", "next", &["--qmp", path(&qmp)]);
    patiently("the guest is moved to the plain file", || {
        node.volume(&["show", "next"])["attached"]["moved"] == true
    });
    sums.push(("three", debian.writes("three")));
    let three = save("next", "web:3", &debian);
    assert_eq!((&three["truth"], &three["parent"]), (&"qemu-bitmap".into(), &two["image"]));
    drop(debian);
    // At the cost of what has changed: the file, and what a guest does besides.
    for saved in [&two, &three] {
        let new = saved["progress"]["new"].as_u64().unwrap();
        assert!((8 << 20..192 << 20).contains(&new), "{saved}");
    }

    let pulled = temp.path().join("pulled.raw");
    for (saved, name) in ["web:1", "web:2", "web:3"].into_iter().enumerate() {
        grid.pull(name, &pulled).json();
        is_clean(&pulled);
        for (written, (file_name, sum)) in sums.iter().enumerate() {
            let wanted = (written <= saved).then_some(sum);
            assert_eq!(file(&pulled, file_name).as_ref(), wanted, "{file_name} in {name}");
        }
    }
}
