//! Images made of volumes, while guests write to them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::graduation::Machine;
use crate::harness::{Background, Disk, Grid, path, until};
use crate::qmp::Monitor;
use crate::real::wanted;
use crate::volumes::{Rig, connect};

const CHUNK: usize = 256 << 10;

impl Rig {
    pub fn save(&self, args: &[&str]) -> Value {
        self.grid.run(&[&["save"], args].concat()).json()
    }

    /// The bytes of an image.
    pub fn pulled(&self, name: &str) -> Vec<u8> {
        let to = self.grid.data.join(format!("pulled-{}", name.replace(':', "-")));
        self.grid.pull(name, &to).json();
        let bytes = std::fs::read(&to).unwrap();
        std::fs::remove_file(&to).unwrap();
        bytes
    }
}

#[test]
fn a_volume_is_saved_again_and_again_at_the_cost_of_what_changed() {
    let mut rig = Rig::start("abc.defghij");
    let mut wanted = rig.disk.bytes.clone();
    let socket = rig.attached("v", &["--no-fill"]);
    // What is as it was is still what it was.
    let same = rig.save(&["v", "same:1"]);
    let of = rig.grid.run(&["inspect", "d:1"]).json();
    assert_eq!((&same["image"], &of["record"]["kind"]), (&of["image"], &"os".into()), "{of}");
    let mut guest = connect(&socket);
    let mut write = |wanted: &mut Vec<u8>, at: usize, len: usize, byte: u8| {
        guest.write(at as u64, &vec![byte; len]).unwrap();
        wanted[at..at + len].fill(byte);
    };
    // A part of a chunk that is not here, and one that becomes zeros.
    write(&mut wanted, 5 * CHUNK + 4096, 8192, 1);
    write(&mut wanted, 7 * CHUNK, CHUNK, 0);
    let first = rig.save(&["v", "saved:1"]);
    assert_eq!((&first["state"], &first["truth"]), (&"done".into(), &"changed-map".into()));
    assert_eq!(first["progress"]["to_read"], 2 * CHUNK);
    assert_eq!(first["progress"]["new_chunks"], 1);
    assert!(rig.pulled("saved:1") == wanted);

    let again = rig.save(&["v", "saved:2"]);
    assert_eq!((&again["image"], &again["progress"]["to_read"]), (&first["image"], &0.into()));

    let before = wanted.clone();
    write(&mut wanted, 512, 512, 2);
    // What it should be is now in the image that was saved.
    let scrubbed = rig.volume(&["scrub", "v"]);
    assert_eq!((&scrubbed["right"], &scrubbed["written"]), (&3.into(), &1.into()), "{scrubbed}");
    rig.save(&["v", "saved:3"]);
    assert!(rig.pulled("saved:3") == wanted);
    assert!(rig.pulled("saved:1") == before);
    let record = &rig.grid.run(&["inspect", "saved:3"]).json()["record"];
    assert_eq!((&record["parent"], &record["kind"]), (&first["image"], &"snapshot".into()));

    // What was written since counts after a kill, too; and more, which is compared.
    write(&mut wanted, 9 * CHUNK, 4096, 3);
    guest.flush().unwrap();
    rig.kill_node();
    rig.start_node();
    let after = rig.save(&["v", "saved:4"]);
    assert_eq!(after["progress"]["new_chunks"], 1);
    assert!(after["why"].as_str().unwrap().contains("did not end as it should"), "{after}");
    assert!(rig.pulled("saved:4") == wanted);

    drop(guest);
    rig.volume(&["detach", "v"]);
    let detached = rig.save(&["v", "saved:5"]);
    assert_eq!(detached["image"], after["image"]);
}

impl Rig {
    /// Begins a capture, and returns its number.
    pub fn begin_save(&self, args: &[&str]) -> u64 {
        self.save(&[args, &["--no-wait"]].concat())["id"].as_u64().expect("a number")
    }

    fn capture(&self, id: u64) -> Value {
        let all = self.grid.run(&["node", "captures"]).json();
        let found = all.as_array().expect("a list").iter().find(|c| c["id"] == id);
        found.expect("it is remembered").clone()
    }

    pub fn ended(&self, id: u64) -> Value {
        until("the capture has ended", || {
            let state = self.capture(id)["state"].clone();
            ["done", "failed", "cancelled"].iter().any(|ended| state == *ended)
        });
        self.capture(id)
    }
}

#[test]
fn a_grid_that_goes_away_in_the_middle_is_waited_for_and_the_instant_stays() {
    let mut rig = Rig::start("abcdefgh");
    let socket = rig.attached("v", &[]);
    until("all of it is here", || rig.is_plain("v"));
    let mut guest = connect(&socket);
    guest.write(0, &vec![7; 8 * CHUNK]).unwrap();
    let wanted = vec![7; 8 * CHUNK];
    let id = rig.begin_save(&["v", "saved:1", "--rate", "1MiB"]);
    until("something was read", || rig.capture(id)["progress"]["read"] != 0);
    guest.write(0, &vec![8; 8 * CHUNK]).unwrap();
    rig.grid.kill();
    rig.grid.restart();
    let ended = rig.ended(id);
    assert_eq!(ended["state"], "done", "{ended}");
    assert!(rig.pulled("saved:1") == wanted);
    // What came after the instant is of the next.
    rig.save(&["v", "saved:2"]);
    assert!(rig.pulled("saved:2") == vec![8; 8 * CHUNK]);
}

#[test]
fn one_that_is_begun_while_placement_is_away_waits_for_it_or_is_cancelled() {
    let mut rig = Rig::start("abcdefgh");
    let socket = rig.attached("v", &[]);
    until("all of it is here", || rig.is_plain("v"));
    rig.grid.kill();
    let id = rig.begin_save(&["v", "saved:1"]);
    until("it waits", || {
        let capture = rig.capture(id);
        assert_eq!(capture["error"], Value::Null, "{capture}");
        !capture["trouble"].is_null()
    });
    assert_eq!(rig.capture(id)["taken"], Value::Null);
    let ended = rig.grid.run(&["node", "cancel-capture", &id.to_string()]).json();
    assert_eq!(ended["state"], "cancelled");
    let said = rig.grid.dir.join("said");
    let mut save = rig.grid.command(&["save", "v", "saved:1"]);
    let mut save = Background::start(save.stderr(std::fs::File::create(&said).unwrap()));
    until("it is said", || {
        let said = std::fs::read_to_string(&said).unwrap();
        said.contains("saved:1: waits for placement before it fixes its instant: placement at")
    });
    // Its instant is still to come.
    connect(&socket).write(0, &vec![7; 8 * CHUNK]).unwrap();
    rig.grid.restart();
    assert_eq!(save.child.wait().unwrap().code(), Some(0));
    let saved = rig.capture(2);
    assert_eq!((&saved["state"], &saved["truth"]), (&"done".into(), &"changed-map".into()));
    assert!(rig.pulled("saved:1") == vec![7; 8 * CHUNK]);
}

#[test]
fn one_that_is_cancelled_or_whose_daemon_is_killed_leaves_the_name_and_what_has_changed() {
    let mut rig = Rig::start("abcdefgh");
    let socket = rig.attached("v", &[]);
    until("all of it is here", || rig.is_plain("v"));
    let first = rig.save(&["v", "saved:1"])["image"].clone();
    let mut guest = connect(&socket);
    guest.write(CHUNK as u64, &vec![7; 6 * CHUNK]).unwrap();
    let mut wanted = rig.disk.bytes.clone();
    wanted[CHUNK..7 * CHUNK].fill(7);
    let slow = ["v", "saved:1", "--rate", "64KiB"];
    let id = rig.begin_save(&slow);
    until("something was read", || rig.capture(id)["progress"]["read"] != 0);
    rig.refused(&["detach", "v"], 73, &["being captured"]);
    rig.refused(&["resize", "v", "8MiB"], 73, &["being captured"]);
    let ended = rig.grid.run(&["node", "cancel-capture", &id.to_string()]).json();
    assert_eq!(ended["state"], "cancelled");
    let id = rig.begin_save(&slow);
    until("something was read", || rig.capture(id)["progress"]["read"] != 0);
    rig.kill_node();
    assert_eq!(rig.grid.run(&["inspect", "saved:1"]).json()["image"], first);
    rig.start_node();
    rig.save(&["v", "saved:1"]);
    assert!(rig.pulled("saved:1") == wanted);
}

#[test]
fn whoever_interrupts_the_command_ends_the_capture() {
    let rig = Rig::start("abcdefgh");
    let socket = rig.attached("v", &[]);
    until("all of it is here", || rig.is_plain("v"));
    connect(&socket).write(0, &vec![7; 6 * CHUNK]).unwrap();
    let mut save = rig.grid.command(&["save", "v", "saved:1", "--rate", "64KiB"]);
    let mut save = save.stdout(std::process::Stdio::null()).spawn().unwrap();
    until("something was read", || {
        let all = rig.grid.run(&["node", "captures"]).json();
        all[0]["progress"]["read"].as_u64().is_some_and(|read| read > 0)
    });
    let pid = save.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    assert_eq!(save.wait().unwrap().code(), Some(130));
    assert_eq!(rig.capture(1)["state"], "cancelled");
    rig.grid
        .run(&["save", "v", "saved:1", "--rate", "0"])
        .fails(64, &["leave it out for no limit"]);
}

#[test]
fn a_plain_volume_that_nobody_has_written_to_since_it_was_detached_is_saved_by_its_map() {
    // Files that share blocks would tell.
    let rig = Rig::start_with("abcdefgh", &["--set", "volumes.share=never"]);
    let mut wanted = rig.disk.bytes.clone();
    let mut socket = rig.attached("v", &[]);
    until("all of it is here", || rig.is_plain("v"));
    // Attached again its map goes on.
    for (round, chunk) in [(1, 2), (2, 5)] {
        connect(&socket).write((chunk * CHUNK) as u64, &[round; 4096]).unwrap();
        wanted[chunk * CHUNK..chunk * CHUNK + 4096].fill(round);
        rig.volume(&["detach", "v"]);
        let saved = rig.save(&["v", "saved:1"]);
        let known = (&saved["truth"], &saved["why"], &saved["progress"]["to_read"]);
        assert_eq!(known, (&"changed-map".into(), &Value::Null, &CHUNK.into()), "{saved}");
        assert!(rig.pulled("saved:1") == wanted);
        assert_eq!(rig.save(&["v", "saved:1"])["progress"]["to_read"], 0);
        socket = rig.attach("v", &[]);
    }
    rig.volume(&["detach", "v"]);
    // Somebody else writes, and sets the time to what it was.
    let disk = rig.volume(&["show", "v"])["disk"].as_str().unwrap().to_owned();
    let before = std::fs::metadata(&disk).unwrap().modified().unwrap();
    let file = std::fs::File::options().write(true).open(&disk).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[9; 512], 7 * CHUNK as u64).unwrap();
    file.set_modified(before).unwrap();
    wanted[7 * CHUNK..7 * CHUNK + 512].fill(9);
    let in_doubt = |says: &str| {
        let saved = rig.save(&["v", "saved:2"]);
        assert_eq!(saved["truth"], "full-read");
        assert!(saved["why"].as_str().unwrap().contains(says), "{saved}");
        assert!(rig.pulled("saved:2") == wanted);
    };
    in_doubt("since it was detached");
    // It stays in doubt when it is attached again.
    rig.attach("v", &[]);
    rig.volume(&["detach", "v"]);
    in_doubt("written to past this daemon");
}

#[test]
fn a_disk_that_is_a_path_is_read_as_it_is_said_to_lie_and_as_quietly_as_was_asked() {
    let grid = Grid::start();
    let disk = Disk::new("abcdefgh");
    // Nothing in its name says what it is.
    let file = grid.disk("disk.of-web1", &disk);
    let path = path(&file);
    let quietly = ["--background", "--rate", "1MiB", "--chunk-size", "64KiB", "--format", "raw"];
    let saved = grid.run(&[&["save", path, "web1:1"][..], &quietly].concat()).json();
    // Two MiB, less a burst of a quarter of a second.
    assert!(saved["seconds"].as_f64().unwrap() > 1.5, "{saved}");
    let told = grid.run(&["inspect", "web1:1"]).json();
    assert_eq!((&told["chunk"], &told["record"]["kind"]), (&65536.into(), &"snapshot".into()));
    let to = grid.dir.join("pulled");
    grid.pull("web1:1", &to).json();
    assert!(std::fs::read(to).unwrap() == disk.bytes);
    let background = [
        &["--set", "node.capture_rate=1MiB", "save", path, "web1:2", "--background"][..],
        &["--format", "raw"],
    ];
    let saved = grid.run(&background.concat()).json();
    assert!(saved["seconds"].as_f64().unwrap() > 1.5, "{saved}");
    // What is for a disk of the other kind is wrong usage, before anything is asked.
    let wrong =
        |args: &[&str], says: &[&str]| grid.run(&[&["save"], args].concat()).fails(64, says);
    wrong(&[path, "web1:3", "--no-wait"], &["--no-wait", "is for volumes"]);
    wrong(&["web1", "web1:3", "--format", "raw"], &["--format", "say ./web1"]);
    wrong(&["web1", "web1:3", "--size", "1MiB"], &["--size", "say ./web1"]);
}

#[test]
fn what_the_store_has_lost_of_the_image_before_is_read_from_the_volume() {
    let rig = Rig::start("abcdefgh");
    let socket = rig.attached("v", &[]);
    until("all of it is here", || rig.is_plain("v"));
    connect(&socket).write(0, &[7; 4096]).unwrap();
    let mut wanted = rig.disk.bytes.clone();
    wanted[..4096].fill(7);
    rig.grid.objects("packs").iter().for_each(|pack| std::fs::remove_file(pack).unwrap());
    let saved = rig.save(&["v", "saved:1"]);
    assert_eq!(
        (&saved["truth"], &saved["progress"]["new_chunks"]),
        (&"changed-map".into(), &8.into())
    );
    assert!(rig.pulled("saved:1") == wanted);
}

#[test]
fn of_two_to_one_name_one_gets_it_and_the_other_keeps_its_image() {
    let rig = Rig::start("abcdefgh");
    for (name, byte) in [("v", 1), ("w", 2)] {
        let socket = rig.attached(name, &[]);
        until("all of it is here", || rig.is_plain(name));
        connect(&socket).write(0, &[byte; 4096]).unwrap();
    }
    let ids = ["v", "w"].map(|name| rig.begin_save(&[name, "saved:1", "--rate", "256KiB"]));
    let ended = ids.map(|id| rig.ended(id));
    let done: Vec<_> = ended.iter().filter(|c| c["state"] == "done").collect();
    assert_eq!(done.len(), 1, "{ended:?}");
    let other = ended.iter().find(|c| c["state"] == "failed").expect("the other");
    assert_eq!(other["error"]["kind"], "conflict");
    let image = other["image"].as_str().expect("it is stored");
    assert!(other["error"]["message"].as_str().unwrap().contains(&format!("forebay tag {image}")));
    rig.grid.run(&["tag", image, "other:1"]).json();
    assert_ne!(rig.pulled("other:1"), rig.pulled("saved:1"));
    // Of one volume they follow each other.
    let ids = ["saved:2", "saved:3"].map(|name| rig.begin_save(&["v", name]));
    assert!(ids.map(|id| rig.ended(id)).iter().all(|c| c["state"] == "done"));
}

#[test]
fn a_guest_that_writes_all_the_while_is_saved_as_it_was_at_one_instant() {
    let rig = Rig::start(&"abcdefgh".repeat(12));
    let socket = rig.attached("v", &[]);
    until("all of it is here", || rig.is_plain("v"));
    let chunks = rig.disk.bytes.len() / CHUNK;
    let mut guest = connect(&socket);
    // Each round bears its number, in every chunk from first to last.
    let mark = move |guest: &mut crate::nbd::Nbd, round: u32| {
        for chunk in 0..chunks {
            guest.write((chunk * CHUNK) as u64, &round.to_le_bytes().repeat(128)).unwrap();
        }
    };
    mark(&mut guest, 1);
    let done = Arc::new(AtomicBool::new(false));
    let writes = {
        let done = Arc::clone(&done);
        std::thread::spawn(move || {
            let mut round = 1;
            while !done.load(Ordering::Relaxed) {
                round += 1;
                mark(&mut guest, round);
            }
            round
        })
    };
    let images: Vec<_> = (1..5).map(|n| format!("busy:{n}")).collect();
    for name in &images {
        rig.save(&["v", name]);
    }
    done.store(true, Ordering::Relaxed);
    assert!(writes.join().unwrap() > 2);
    for name in &images {
        let bytes = rig.pulled(name);
        let round = |chunk: usize| {
            let at = chunk * CHUNK;
            u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
        };
        let all: Vec<u32> = (0..chunks).map(round).collect();
        // One round up to some chunk, and from there on the one before it.
        let last = all[0];
        let turn = all.iter().position(|round| *round != last).unwrap_or(chunks);
        assert!(all[turn..].iter().all(|round| *round == last - 1), "{name}: {all:?}");
    }
}

/// Node and bitmap, of all that there are.
fn nodes_with_bitmaps(guest: &mut Monitor) -> Vec<(String, String)> {
    let nodes = guest.execute("query-named-block-nodes", json!({ "flat": true }));
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let of = |node: &Value| -> Vec<_> {
        let bitmaps = node["dirty-bitmaps"].as_array().cloned().unwrap_or_default();
        bitmaps.iter().map(|bitmap| (text(&node["node-name"]), text(&bitmap["name"]))).collect()
    };
    nodes.as_array().expect("a list").iter().flat_map(of).collect()
}

#[test]
fn real_a_guest_on_the_plain_file_is_saved_by_its_qemu_as_it_was_at_one_instant() {
    if !wanted() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let [qmp, own, said] = ["qmp", "own", "said"].map(|what| temp.path().join(what));
    // Files that share blocks would tell more.
    let share = ["--set", "volumes.share=never"];
    let mut rig = Rig::start_with("abcdefgh.ijklmnop", &share);
    let nbd = rig.attached("v", &["--no-trace", "--qmp", path(&qmp)]);
    let _machine = Machine::start(&nbd, "v", [&qmp, &own], &said);
    let mut guest = Monitor::connect(&own);
    until("the guest is moved", || rig.volume(&["show", "v"])["attached"]["moved"] == true);
    let mut disk = rig.disk.bytes.clone();
    let mut write = |guest: &mut Monitor, at: usize, pattern: u8| {
        guest.io(&format!("write -P {pattern} {at} 128k"));
        disk[at..at + (128 << 10)].fill(pattern);
        disk.clone()
    };
    let wanted = write(&mut guest, 4096, 1);
    let id = rig.begin_save(&["v", "saved:1", "--rate", "1MiB"]);
    until("something was read", || rig.capture(id)["progress"]["read"] != 0);
    for at in (0..16 * CHUNK).step_by(CHUNK) {
        write(&mut guest, at, 2);
    }
    let ended = rig.ended(id);
    assert_eq!(
        (&ended["state"], &ended["truth"]),
        (&"done".into(), &"qemu-bitmap".into()),
        "{ended}"
    );
    assert!(rig.pulled("saved:1") == wanted);

    // A daemon that dies in the middle leaves something, which the next capture takes away.
    let id = rig.begin_save(&["v", "saved:2", "--rate", "64KiB"]);
    until("something was read", || rig.capture(id)["progress"]["read"] != 0);
    rig.kill_node();
    let wanted = write(&mut guest, 8 * CHUNK, 3);
    rig.start_node();
    // All that changed before and after the daemon's death is known.
    let saved = rig.save(&["v", "saved:2"]);
    assert_eq!(saved["truth"], "qemu-bitmap");
    assert!(rig.pulled("saved:2") == wanted);
    let wanted = write(&mut guest, 5 * CHUNK + 8192, 4);
    let saved = rig.save(&["v", "saved:3"]);
    assert_eq!(
        (&saved["truth"], &saved["progress"]["to_read"]),
        (&"qemu-bitmap".into(), &CHUNK.into())
    );
    assert!(rig.pulled("saved:3") == wanted);
    // Without the bitmap nobody knows, and the next one does.
    let source = nodes_with_bitmaps(&mut guest).pop().expect("one");
    let bitmap = json!({ "node": source.0, "name": source.1 });
    guest.execute("block-dirty-bitmap-remove", bitmap);
    let wanted = write(&mut guest, 6 * CHUNK, 5);
    assert_eq!(rig.save(&["v", "saved:4"])["truth"], "full-read");
    assert!(rig.pulled("saved:4") == wanted);
    let saved = rig.save(&["v", "saved:5"]);
    assert_eq!(
        (&saved["truth"], &saved["progress"]["to_read"]),
        (&"qemu-bitmap".into(), &0.into())
    );
    assert_eq!(nodes_with_bitmaps(&mut guest).len(), 1);
    let jobs = guest.execute("query-jobs", json!({}));
    let exports = guest.execute("query-block-exports", json!({}));
    assert_eq!((jobs, exports), (json!([]), json!([])));
    let nodes = guest.execute("query-named-block-nodes", json!({ "flat": true }));
    assert!(nodes.as_array().unwrap().iter().all(|node| node["drv"] != "qcow2"), "{nodes}");
}
