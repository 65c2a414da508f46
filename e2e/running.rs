//! Images made of disks of running QEMUs that are no volumes. Needs QEMU; runs with `FOREBAY_E2E=1`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::harness::{Ended, path, until};
use crate::qmp::{Monitor, Relay};
use crate::real::{Mount, must, wanted};
use crate::volumes::Rig;

const CHUNK: usize = 256 << 10;

/// A QEMU whose guest never runs: its first disk, `root`, is used through its monitor.
struct Guest {
    qemu: Child,
    monitor: Monitor,
    dir: PathBuf,
    /// What the disk holds.
    bytes: Vec<u8>,
}

impl Guest {
    /// With an empty qcow2 disk of so many chunks, and more options.
    fn start(dir: &Path, chunks: usize, more: &[&str]) -> Self {
        let disk = dir.join("disk.qcow2");
        let size = (chunks * CHUNK).to_string();
        must(Command::new("qemu-img").args(["create", "-q", "-f", "qcow2", path(&disk), &size]));
        let node =
            format!("driver=qcow2,node-name=d,file.driver=file,file.filename={}", path(&disk));
        let qmp =
            ["qmp", "own"].map(|name| format!("unix:{},server=on,wait=off", path(&dir.join(name))));
        let qemu = Command::new("qemu-system-x86_64")
            .args(["-accel", "tcg", "-m", "64", "-nodefaults", "-display", "none", "-S"])
            .args(["-qmp", &qmp[0], "-qmp", &qmp[1], "-blockdev", &node])
            .args(if more.is_empty() {
                &["-device", "virtio-blk-pci,drive=d,id=root"]
            } else {
                more
            })
            .stdin(Stdio::null())
            .stdout(File::create(dir.join("said")).unwrap())
            .spawn()
            .unwrap();
        let monitor = Monitor::connect(&dir.join("own"));
        Self { qemu, monitor, dir: dir.to_owned(), bytes: vec![0; chunks * CHUNK] }
    }

    fn write(&mut self, chunk: usize, chunks: usize, pattern: u8) {
        let (at, len) = (chunk * CHUNK, chunks * CHUNK);
        self.monitor.io(&format!("write -P {pattern} {at} {len}"));
        self.bytes[at..at + len].fill(pattern);
    }

    fn source(&self) -> String {
        format!("qmp:{}", path(&self.dir.join("qmp")))
    }

    /// No write of the guest's has failed, and nothing of ours is left but one bitmap, which counts from this image.
    fn is_well(&mut self, image: &Value) {
        assert!(self.qemu.try_wait().unwrap().is_none(), "QEMU ended");
        let said = std::fs::read_to_string(self.dir.join("said")).unwrap();
        assert!(said.contains("wrote") && !said.contains("failed"), "{said}");
        let exports = self.monitor.execute("query-block-exports", json!({}));
        assert_eq!(exports, json!([]));
        let nodes = self.monitor.execute("query-named-block-nodes", json!({ "flat": true }));
        let nodes = nodes.as_array().unwrap();
        assert!(nodes.iter().all(|node| !node["node-name"].as_str().unwrap().contains("forebay")));
        let bitmaps: Vec<_> =
            nodes.iter().flat_map(|node| node["dirty-bitmaps"].as_array()).flatten().collect();
        assert_eq!(bitmaps.len(), 1, "{bitmaps:?}");
        assert_eq!(bitmaps[0]["name"], format!("forebay-{}", image.as_str().unwrap()));
        let left = std::fs::read_dir(&self.dir).unwrap().map(|entry| entry.unwrap().file_name());
        let left: Vec<_> = left.filter(|name| name.to_string_lossy().contains("forebay")).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

impl Rig {
    fn save_running(&self, guest: &Guest, more: &[&str]) -> Ended {
        self.grid.run(&[&["save", &guest.source(), "web:1"], more].concat())
    }

    /// Saves the disk, and finds that the image is what the disk holds.
    fn saved_running(&self, guest: &Guest) -> Value {
        let saved = self.save_running(guest, &[]).json();
        self.holds("web:1", &guest.bytes);
        saved
    }

    fn holds(&self, name: &str, bytes: &[u8]) {
        let to = self.grid.dir.join("pulled");
        self.grid.pull(name, &to).json();
        assert!(std::fs::read(&to).unwrap() == bytes, "{name} holds something else");
    }

    /// Begins a capture, and returns its number when the point in time is fixed.
    fn begin_running(&self, guest: &Guest, more: &[&str]) -> u64 {
        let begun = self.save_running(guest, &[&["--no-wait"], more].concat()).json();
        let id = begun["id"].as_u64().unwrap();
        until("the point in time is fixed", || {
            let capture = self.one(id);
            assert_ne!(capture["state"], "failed", "{capture}");
            !capture["taken"].is_null()
        });
        id
    }

    fn one(&self, id: u64) -> Value {
        let all = self.grid.run(&["node", "captures"]).json();
        all.as_array().unwrap().iter().find(|c| c["id"] == id).unwrap().clone()
    }

    fn end_of(&self, id: u64) -> Value {
        until("the capture has ended", || {
            ["done", "failed", "cancelled"].iter().any(|end| self.one(id)["state"] == *end)
        });
        self.one(id)
    }
}

const BITMAP: &str = "qemu-bitmap";

#[test]
fn real_a_disk_of_a_running_qemu_is_saved_again_and_again_at_the_cost_of_what_changed() {
    if !wanted() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let mut rig = Rig::start("ab");
    let mut guest = Guest::start(temp.path(), 16, &[]);
    guest.write(0, 8, 1);
    let first = rig.saved_running(&guest);
    assert_eq!(first["truth"], "full-read");
    assert!(first["why"].as_str().unwrap().contains("no bitmap"), "{first}");
    guest.is_well(&first["image"]);

    // What the guest writes while it is captured is of the next image.
    guest.write(3, 1, 2);
    let before = guest.bytes.clone();
    let id = rig.begin_running(&guest, &["--rate", "128KiB"]);
    guest.write(0, 16, 3);
    let ended = rig.end_of(id);
    assert_eq!(
        (&ended["truth"], &ended["progress"]["to_read"]),
        (&BITMAP.into(), &CHUNK.into()),
        "{ended}"
    );
    rig.holds("web:1", &before);
    guest.is_well(&ended["image"]);
    let record = &rig.grid.run(&["inspect", "web:1"]).json()["record"];
    assert_eq!((&record["parent"], &record["kind"]), (&first["image"], &"snapshot".into()));
    let next = rig.saved_running(&guest);
    assert_eq!(
        (&next["truth"], &next["progress"]["to_read"]),
        (&BITMAP.into(), &(16 * CHUNK).into())
    );
    assert_eq!(rig.saved_running(&guest)["progress"]["to_read"], 0);

    // One that came to nothing: what had changed before it still counts.
    guest.write(5, 1, 4);
    let id = rig.begin_running(&guest, &["--rate", "64KiB"]);
    guest.write(6, 1, 5);
    rig.grid.run(&["node", "cancel-capture", &id.to_string()]).json();
    let after = rig.saved_running(&guest);
    assert_eq!(
        (&after["truth"], &after["progress"]["to_read"]),
        (&BITMAP.into(), &(2 * CHUNK).into())
    );

    // So it does if the daemon died, whose remains are taken away.
    guest.write(7, 1, 6);
    rig.begin_running(&guest, &["--rate", "64KiB"]);
    rig.kill_node();
    guest.write(8, 1, 7);
    rig.start_node();
    let after = rig.saved_running(&guest);
    assert_eq!(
        (&after["truth"], &after["progress"]["to_read"]),
        (&BITMAP.into(), &(2 * CHUNK).into())
    );
    guest.is_well(&after["image"]);

    // Without the bitmap, or its image, nobody knows.
    let bitmap =
        json!({ "node": "d", "name": format!("forebay-{}", after["image"].as_str().unwrap()) });
    guest.monitor.execute("block-dirty-bitmap-remove", bitmap);
    guest.write(9, 1, 8);
    assert_eq!(rig.saved_running(&guest)["truth"], "full-read");
    guest.write(9, 1, 9);
    let of_another = rig.save_running(&guest, &["--parent", "d:1"]).json();
    assert!(of_another["why"].as_str().unwrap().contains("is not the parent"), "{of_another}");
    rig.holds("web:1", &guest.bytes);
    guest.is_well(&of_another["image"]);
}

#[test]
fn real_a_daemon_that_dies_at_any_word_to_qemu_costs_neither_the_guest_nor_what_has_changed() {
    if !wanted() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let mut rig = Rig::start("ab");
    let mut guest = Guest::start(temp.path(), 8, &[]);
    guest.write(0, 8, 1);
    rig.saved_running(&guest);
    let relayed = temp.path().join("relayed");
    let relay = Relay::start(&relayed, temp.path().join("qmp"), None);
    relay.open();
    let source = format!("qmp:{}", path(&relayed));
    let mut stop = 1;
    loop {
        guest.write(stop % 8, 1, stop as u8);
        relay.stop_after(stop);
        let begun = rig.grid.run(&["save", &source, "web:1", "--no-wait"]).json();
        let mut stopped = false;
        until("the daemon is stopped, or has ended", || {
            stopped = relay.stopped.try_recv().is_ok();
            stopped || rig.one(begun["id"].as_u64().unwrap())["state"] == "done"
        });
        rig.kill_node();
        relay.pass_all();
        guest.write((stop + 3) % 8, 1, stop as u8);
        rig.start_node();
        let saved = rig.saved_running(&guest);
        assert_eq!(saved["truth"], BITMAP, "after {stop} commands: {saved}");
        guest.is_well(&saved["image"]);
        if !stopped {
            assert!(stop > 30, "a capture is more than {stop} commands");
            break;
        }
        stop += 1;
    }
}

#[test]
fn real_a_guest_goes_on_when_there_is_no_room_for_what_it_overwrites() {
    if !wanted() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let small = Mount::of(temp.path().join("small.img"), temp.path().join("small"), 8);
    let rig = Rig::start("ab");
    let mut guest = Guest::start(temp.path(), 96, &[]);
    guest.write(0, 96, 1);
    let first = rig.saved_running(&guest)["image"].clone();
    guest.write(0, 40, 2);
    let id = rig.begin_running(&guest, &["--rate", "1MiB", "--scratch", path(&small.at)]);
    for chunk in 0..96 {
        guest.write(chunk, 1, 3);
    }
    let ended = rig.end_of(id);
    assert_eq!(ended["state"], "failed", "{ended}");
    assert!(ended["error"]["message"].as_str().unwrap().contains("no room"), "{ended}");
    assert_eq!(rig.grid.run(&["inspect", "web:1"]).json()["image"], first);
    guest.is_well(&first);
    let after = rig.saved_running(&guest);
    assert_eq!(after["truth"], BITMAP);
    guest.is_well(&after["image"]);
}

#[test]
fn real_what_could_cost_the_guest_is_refused_and_says_what_there_is_instead() {
    if !wanted() {
        return;
    }
    let rig = Rig::start("ab");
    let threaded = tempfile::tempdir().unwrap();
    let thread = ["-object", "iothread,id=io", "-device", "virtio-blk-pci,drive=d,iothread=io"];
    let mut guest = Guest::start(threaded.path(), 4, &thread);
    guest.write(0, 4, 1);
    let version = guest.monitor.execute("query-version", json!({}));
    if version["qemu"]["major"].as_u64().unwrap() < 9 {
        rig.save_running(&guest, &[]).fails(69, &["I/O thread", "stop the guest"]);
        guest.write(0, 4, 2);
        assert!(guest.qemu.try_wait().unwrap().is_none(), "QEMU ended");
    }

    let two = tempfile::tempdir().unwrap();
    let second = [
        "-blockdev",
        "driver=null-co,node-name=other,size=1048576,read-zeroes=on",
        "-device",
        "virtio-blk-pci,drive=d,id=root",
        "-device",
        "virtio-blk-pci,drive=other",
    ];
    let mut guest = Guest::start(two.path(), 4, &second);
    guest.write(0, 4, 1);
    rig.save_running(&guest, &[])
        .fails(65, &["which disk?", "d (qcow2, 1048576 bytes", "other (null-co"]);
    let named =
        |name: &str| rig.grid.run(&["save", &format!("{}#{name}", guest.source()), "web:1"]);
    named("sda").fails(66, &["no disk sda", "d (qcow2"]);
    named("other").fails(65, &["--scratch DIR"]);
    for name in ["d", "root"] {
        named(name).json();
        rig.holds("web:1", &guest.bytes);
    }
    // Somebody else's server stays.
    let socket = two.path().join("nbd");
    let server = json!({ "addr": { "type": "unix", "data": { "path": path(&socket) } } });
    guest.monitor.execute("nbd-server-start", server);
    rig.grid
        .run(&["save", &format!("{}#d", guest.source()), "web:1"])
        .fails(73, &["NBD server already running"]);
    assert!(std::os::unix::net::UnixStream::connect(&socket).is_ok());
}
