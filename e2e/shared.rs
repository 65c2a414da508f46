//! Volumes whose files were written to past the daemon, on file systems on which they share blocks with their image's
//! base: what is saved of them, and by what.
//!
//! Needs root, mkfs.xfs, mkfs.btrfs and QEMU; runs with `FOREBAY_E2E=1`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::graduation::Machine;
use crate::harness::{Disk, forebay, path, run, until};
use crate::qmp::{Monitor, Relay};
use crate::real::{Mount, must, wanted};
use crate::volumes::{Rig, connect};

const CHUNK: usize = 256 << 10;
const DISK: &str = "abcdefgh.ijklmnop.qrstuv";

/// A node with its volumes on a file system of its own. Ends before that is unmounted.
struct World {
    rig: Rig,
    mount: Mount,
    _temp: tempfile::TempDir,
}

/// A volume's file, and what should be in it.
struct Past {
    file: File,
    path: PathBuf,
    bytes: Vec<u8>,
}

impl World {
    fn on(mkfs: &str, options: &'static str) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let [image, at] = ["image", "at"].map(|name| temp.path().join(name));
        let mount = Mount::with(mkfs, options, image, at, 1 << 10);
        let dir = format!("volumes.dir={}", path(&mount.at.join("volumes")));
        Self { rig: Rig::start_with(DISK, &["--set", &dir]), mount, _temp: temp }
    }

    /// Makes a volume of an image that becomes plain, and is then nobody's.
    fn plain(&self, image: &str, name: &str) -> Past {
        self.rig.volume(&["create", image, "--name", name]);
        self.rig.attach(name, &[]);
        until("all of it is here", || self.rig.is_plain(name));
        self.rig.volume(&["detach", name]);
        self.past(name, self.rig.disk.bytes.clone())
    }

    fn past(&self, name: &str, bytes: Vec<u8>) -> Past {
        let info = self.rig.volume(&["show", name]);
        let path = PathBuf::from(info["disk"].as_str().expect("a path"));
        assert!(path.starts_with(&self.mount.at) && info["shares"] == true, "{info}");
        Past { file: File::options().write(true).open(&path).unwrap(), path, bytes }
    }

    /// Saves a volume of which the map is in doubt, for what it says.
    #[track_caller]
    fn saved_by(&self, truth: &str, args: &[&str], why: &str, bytes: &[u8]) -> Value {
        let saved = self.rig.save(args);
        assert_eq!(saved["truth"], truth, "{saved}");
        assert!(saved["why"].as_str().expect("a reason").contains(why), "{saved}");
        assert!(self.rig.pulled(args[1]) == bytes, "{saved}");
        saved
    }
}

impl Past {
    fn write(&mut self, at: usize, bytes: &[u8]) {
        self.file.write_all_at(bytes, at as u64).unwrap();
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Has the file share what it has at one place at another place of it, too.
    fn share(&mut self, from: usize, to: usize, len: usize) {
        let reflink = format!("reflink {} {from} {to} {len}", path(&self.path));
        must(Command::new("xfs_io").args(["-c", &reflink, path(&self.path)]));
        self.bytes.copy_within(from..from + len, to);
    }

    fn punch(&mut self, at: usize, len: usize) {
        let (at_text, len_text) = (at.to_string(), len.to_string());
        let words = ["-p", "-o", &at_text, "-l", &len_text, path(&self.path)];
        must(Command::new("fallocate").args(words));
        self.bytes[at..at + len].fill(0);
    }
}

const PATIENCE: Duration = Duration::from_secs(120);
const DETACHED: &str = "since it was detached";
const UNTRACKED: &str = "written to past this daemon";

fn only_what_was_written_is_read(mkfs: &str) {
    if !wanted() {
        return;
    }
    let world = World::on(mkfs, "loop");
    let rig = &world.rig;
    let mut past = world.plain("d:1", "v");
    past.write(3 * CHUNK + 4096, &[1; 8192]);
    // Within a block; where the image has a hole; over what was written already.
    past.write(5 * CHUNK + 512, &[2; 512]);
    past.write(8 * CHUNK, &[3; 4096]);
    past.write(3 * CHUNK + 8192, &[4; 4096]);
    past.punch(10 * CHUNK + 65536, 65536);
    // What it shares with its image, but elsewhere.
    past.share(15 * CHUNK, 16 * CHUNK + 4096, 65536);
    let saved = world.saved_by("shared-extents", &["v", "saved:1"], DETACHED, &past.bytes);
    assert_eq!(saved["progress"]["to_read"], 5 * CHUNK, "{saved}");
    assert_eq!(saved["progress"]["read"], 5 * CHUNK, "{saved}");
    assert_eq!(saved["progress"]["new_chunks"], 5, "{saved}");
    let image = rig.grid.run(&["inspect", "d:1"]).json()["image"].clone();
    assert_eq!(saved["parent"], image);
    let again = world.saved_by("shared-extents", &["v", "saved:2"], DETACHED, &past.bytes);
    assert_eq!(
        (&again["image"], &again["progress"]["read"]),
        (&saved["image"], &(5 * CHUNK).into())
    );

    // A whole chunk is let go of, and its neighbours are not.
    past.punch(12 * CHUNK, CHUNK);
    let saved = world.saved_by("shared-extents", &["v", "saved:2"], DETACHED, &past.bytes);
    assert_eq!(saved["progress"]["to_read"], 6 * CHUNK, "{saved}");
    assert_eq!(saved["progress"]["read"], 5 * CHUNK, "{saved}");

    // What its guest writes then is known, and what was written before it is not.
    let mut guest = connect(&rig.attach("v", &[]));
    guest.write(14 * CHUNK as u64, &[5; 4096]).unwrap();
    past.bytes[14 * CHUNK..14 * CHUNK + 4096].fill(5);
    let saved = world.saved_by("shared-extents", &["v", "saved:2"], UNTRACKED, &past.bytes);
    assert_eq!(saved["progress"]["to_read"], 7 * CHUNK, "{saved}");

    // Whoever wants all read gets that, and who leans on another image.
    world.saved_by("full-read", &["v", "saved:2", "--all"], "asked for", &past.bytes);
    let other = ["v", "saved:2", "--parent", "saved:1"];
    world.saved_by("full-read", &other, UNTRACKED, &past.bytes);
    let said = run(forebay(&rig.grid.data).args(["save", "v", "saved:2"])).out;
    assert!(said.contains("by the extents that it no longer shares with its image"), "{said}");
}

#[test]
fn real_on_xfs_only_what_was_written_past_us_is_read() {
    only_what_was_written_is_read("mkfs.xfs");
}

#[test]
fn real_on_btrfs_only_what_was_written_past_us_is_read() {
    only_what_was_written_is_read("mkfs.btrfs");
}

#[test]
fn real_on_a_btrfs_that_compresses_the_image_is_right_whatever_is_read() {
    if !wanted() {
        return;
    }
    let world = World::on("mkfs.btrfs", "loop,compress-force=zstd");
    let rig = &world.rig;
    // Two chunks in each compressed extent.
    const SMALL: usize = 64 << 10;
    let disk = rig.grid.disk("e.raw", &rig.disk);
    rig.grid.run(&["import", path(&disk), "e:1", "--chunk-size", "64KiB"]).json();
    let mut past = world.plain("e:1", "v");
    past.write(12 * SMALL + 4096, &[1; 8192]);
    past.punch(20 * SMALL, SMALL);
    // Zeros again, what the image has there, and another part of one extent, of which the file system tells the
    // beginning alone.
    past.write(8 * CHUNK, &[0; 4096]);
    let was = past.bytes[28 * SMALL..29 * SMALL].to_vec();
    past.write(28 * SMALL, &[9; SMALL]);
    past.write(28 * SMALL, &was);
    past.share(41 * SMALL, 40 * SMALL, SMALL);
    let saved = world.saved_by("shared-extents", &["v", "saved:1"], DETACHED, &past.bytes);
    assert_eq!(saved["progress"]["new_chunks"], 1, "{saved}");
}

#[test]
fn real_a_guest_that_goes_on_and_a_daemon_that_dies_cost_nothing_of_the_instant() {
    if !wanted() {
        return;
    }
    let mut world = World::on("mkfs.xfs", "loop");
    let mut past = world.plain("d:1", "v");
    for chunk in 0..6 {
        past.write(chunk * CHUNK, &[1; 4096]);
    }
    let mut guest = connect(&world.rig.attach("v", &[]));
    let slow = ["v", "saved:1", "--rate", "256KiB"];
    let begin = |rig: &Rig| {
        let id = rig.begin_save(&slow);
        let all = || rig.grid.run(&["node", "captures"]).json();
        let read = |c: &Value| c["id"] == id && c["progress"]["read"] != 0;
        until("something was read", || all().as_array().expect("a list").iter().any(read));
        id
    };
    let id = begin(&world.rig);
    // Of what is still to be read, and of what is shared.
    for chunk in [5, 18] {
        guest.write((chunk * CHUNK) as u64, &[2; 4096]).unwrap();
    }
    let ended = world.rig.ended(id);
    assert_eq!((&ended["state"], &ended["truth"]), (&"done".into(), &"shared-extents".into()));
    assert!(world.rig.pulled("saved:1") == past.bytes);
    for chunk in [5, 18] {
        past.bytes[chunk * CHUNK..chunk * CHUNK + 4096].fill(2);
    }
    begin(&world.rig);
    drop(guest);
    world.rig.kill_node();
    world.rig.start_node();
    let both = "or could have been; the daemon did not end as it should";
    let saved = world.saved_by("shared-extents", &["v", "saved:1"], both, &past.bytes);
    assert_eq!(saved["progress"]["new_chunks"], 2, "{saved}");
}

#[test]
fn real_blocks_that_are_moved_meanwhile_are_the_same_blocks() {
    if !wanted() {
        return;
    }
    let world = World::on("mkfs.btrfs", "loop");
    let mut past = world.plain("d:1", "v");
    for round in 1..6 {
        past.write(round * 3 * CHUNK, &[round as u8; 8192]);
        let balance = ["balance", "start", "--full-balance", path(&world.mount.at)];
        let mut balance =
            Command::new("btrfs").args(balance).stdout(Stdio::null()).spawn().unwrap();
        while balance.try_wait().unwrap().is_none() {
            world.saved_by("shared-extents", &["v", "saved:1"], DETACHED, &past.bytes);
        }
        assert!(balance.wait().unwrap().success());
    }
    let saved = world.saved_by("shared-extents", &["v", "saved:1"], DETACHED, &past.bytes);
    assert_eq!(saved["progress"]["read"], 5 * CHUNK, "moved together, they are shared as before");
}

#[test]
fn real_without_a_base_that_is_whole_all_is_read() {
    if !wanted() {
        return;
    }
    let world = World::on("mkfs.xfs", "loop");
    let mut past = world.plain("d:1", "v");
    past.write(3 * CHUNK + 4096, &[1; 8192]);
    world.saved_by("shared-extents", &["v", "saved:1"], DETACHED, &past.bytes);
    let bases = world.mount.at.join("volumes/.images");
    std::fs::remove_dir_all(&bases).unwrap();
    std::fs::create_dir(&bases).unwrap();
    world.saved_by("full-read", &["v", "saved:2"], DETACHED, &past.bytes);
    // One that is made anew has not got the image yet, and when it has it shares nothing with the volume.
    world.rig.attached("w", &["--no-fill"]);
    assert_eq!(std::fs::read_dir(&bases).unwrap().count(), 1);
    world.saved_by("full-read", &["v", "saved:3"], DETACHED, &past.bytes);
    world.rig.volume(&["detach", "w"]);
    world.rig.attach("w", &[]);
    until("all of it is here", || world.rig.is_plain("w"));
    let saved = world.saved_by("shared-extents", &["v", "saved:4"], DETACHED, &past.bytes);
    let data = world.rig.disk.bytes.len() - 2 * CHUNK;
    assert_eq!(saved["progress"]["read"], data, "{saved}");
}

#[test]
fn real_a_volume_larger_than_its_image_is_saved_to_its_end() {
    if !wanted() {
        return;
    }
    let world = World::on("mkfs.xfs", "loop");
    let rig = &world.rig;
    // The image ends within a chunk.
    let disk = Disk::new("abc.def").cut(100 << 10);
    rig.grid.import(&rig.grid.disk("e.raw", &disk), "e:1");
    rig.volume(&["create", "e:1", "--name", "v"]);
    rig.attach("v", &[]);
    until("all of it is here", || rig.is_plain("v"));
    rig.volume(&["detach", "v"]);
    rig.volume(&["resize", "v", "4MiB"]);
    let mut past = world.past("v", disk.bytes.clone());
    past.bytes.resize(4 << 20, 0);
    let end = disk.bytes.len();
    past.write(end + 4096, &[1; 512]);
    past.write(10 * CHUNK + 4096, &[2; 512]);
    past.write((4 << 20) - 512, &[3; 512]);
    past.write(CHUNK, &[4; 512]);
    let saved = world.saved_by("shared-extents", &["v", "saved:1"], DETACHED, &past.bytes);
    assert_eq!(saved["progress"]["to_read"], 4 * CHUNK, "{saved}");
}

#[test]
fn real_a_guest_on_the_plain_file_of_which_qemu_has_noted_nothing_is_saved_by_its_extents() {
    if !wanted() {
        return;
    }
    let world = World::on("mkfs.xfs", "loop");
    let rig = &world.rig;
    let temp = tempfile::tempdir().unwrap();
    let [relayed, qmp, own, said] =
        ["relayed", "qmp", "own", "said"].map(|what| temp.path().join(what));
    let relay = Relay::start(&relayed, qmp.clone(), None);
    relay.open();
    let nbd = rig.attached("v", &["--no-trace", "--qmp", path(&relayed)]);
    let _machine = Machine::start(&nbd, "v", [&qmp, &own], &said);
    let mut guest = Monitor::connect(&own);
    until("the guest is moved", || rig.volume(&["show", "v"])["attached"]["moved"] == true);
    let mut disk = rig.disk.bytes.clone();
    let mut write = |guest: &mut Monitor, chunk: usize, pattern: u8| {
        let at = chunk * CHUNK;
        guest.io(&format!("write -P {pattern} {at} 64k"));
        disk[at..at + (64 << 10)].fill(pattern);
        disk.clone()
    };
    write(&mut guest, 2, 1);
    let bitmap = || {
        let nodes = rig.grid.run(&["volume", "show", "v"]).json();
        let id = nodes["id"].as_str().expect("an id")[..16].to_owned();
        (format!("fb-{id}"), format!("fb-{id}-changed"))
    };
    let (node, name) = bitmap();
    guest.execute("block-dirty-bitmap-remove", json!({ "node": node, "name": name }));
    write(&mut guest, 4, 2);
    // What the guest writes before the instant is of it, whatever is under way: nothing notes changes yet; the extents
    // were compared already.
    let noted = relay.hold_up("block-dirty-bitmap-add");
    let id = rig.begin_save(&["v", "saved:1"]);
    relay.stopped.recv_timeout(PATIENCE).expect("a bitmap is begun");
    write(&mut guest, 6, 3);
    let fixed = relay.hold_up("qom-set");
    noted.send(()).unwrap();
    relay.stopped.recv_timeout(PATIENCE).expect("the instant comes");
    let wanted = write(&mut guest, 9, 4);
    fixed.send(()).unwrap();
    let ended = rig.ended(id);
    assert_eq!((&ended["state"], &ended["truth"]), (&"done".into(), &"shared-extents".into()));
    assert!(ended["why"].as_str().unwrap().contains("nothing of QEMU's tells what"), "{ended}");
    assert!(rig.pulled("saved:1") == wanted);
    assert_eq!(ended["progress"]["to_read"], 4 * CHUNK, "{ended}");
    // From there on QEMU notes it; what was written just before the instant counts as well.
    let wanted = write(&mut guest, 11, 5);
    let saved = rig.save(&["v", "saved:2"]);
    assert_eq!(saved["truth"], "qemu-bitmap", "{saved}");
    assert_eq!(saved["progress"]["to_read"], 2 * CHUNK, "{saved}");
    assert!(rig.pulled("saved:2") == wanted);
}
