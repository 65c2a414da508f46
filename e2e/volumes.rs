//! Volumes of a node: used before their image has arrived.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::harness::{Background, Disk, Grid, flip, forebay, path, run, until};
use crate::nbd::Nbd;
use crate::real::{Mount, must, wanted};

const CHUNK: usize = 256 << 10;

/// A grid with an image `d:1`, and a node.
pub struct Rig {
    pub grid: Grid,
    node: Option<Background>,
    pub disk: Disk,
    args: Vec<String>,
    /// Of the node's volumes.
    share: &'static str,
}

impl Rig {
    pub fn start(disk: &str) -> Self {
        Self::start_with(disk, &[])
    }

    /// With more arguments for `node`.
    pub fn start_with(disk: &str, args: &[&str]) -> Self {
        let (grid, disk) = (Grid::start(), Disk::new(disk));
        grid.import(&grid.disk("d.raw", &disk), "d:1");
        let args = args.iter().map(|a| (*a).to_owned()).collect();
        let mut rig = Self { grid, node: None, disk, args, share: "auto" };
        rig.start_node();
        rig
    }

    pub fn start_node(&mut self) {
        let mut node = forebay(&self.grid.data);
        node.args(["node", "--json"]).args(&self.args).env("FOREBAY_VOLUMES_SHARE", self.share);
        let mut node = Background::start(&mut node);
        assert!(node.line().contains("socket"));
        self.node = Some(node);
    }

    pub fn kill_node(&mut self) {
        self.node.take().expect("a node runs").kill();
    }

    /// As systemd ends it.
    pub fn end_node(&mut self) {
        let (_, code) = self.node.take().expect("a node runs").terminate();
        assert_eq!(code, 0);
    }

    pub fn volume(&self, args: &[&str]) -> Value {
        self.grid.run(&[&["volume"], args].concat()).json()
    }

    pub fn refused(&self, args: &[&str], code: i32, says: &[&str]) {
        self.grid.run(&[&["volume"], args].concat()).fails(code, says);
    }

    /// Makes a volume of the image, and shows it.
    pub fn attached(&self, name: &str, how: &[&str]) -> PathBuf {
        self.volume(&["create", "d:1", "--name", name]);
        self.attach(name, how)
    }

    pub fn attach(&self, name: &str, how: &[&str]) -> PathBuf {
        let info = self.volume(&[&["attach", name], how].concat());
        PathBuf::from(info["attached"]["path"].as_str().expect("a path"))
    }

    pub fn present(&self, name: &str) -> u64 {
        self.volume(&["show", name])["hydration"]["present"].as_u64().expect("a number")
    }

    pub fn is_plain(&self, name: &str) -> bool {
        self.volume(&["show", name])["plain"] == true
    }
}

pub fn connect(socket: &Path) -> Nbd {
    let mut connected = None;
    until("a connection to the volume", || {
        connected = Nbd::connect(socket).ok();
        connected.is_some()
    });
    connected.expect("it is there now")
}

#[test]
fn a_volume_is_used_before_it_has_arrived_and_keeps_what_was_flushed() {
    let mut rig = Rig::start("abc.def");
    let mut wanted = rig.disk.bytes.clone();
    let socket = rig.attached("v", &["--no-fill"]);
    // The chunk of zeros is not waited for, nor what nobody asks for.
    let here = rig.present("v");
    let mut guest = connect(&socket);
    assert_eq!(guest.size, wanted.len() as u64);
    assert_eq!(guest.read(CHUNK as u64 + 512, 5120).unwrap(), wanted[CHUNK + 512..CHUNK + 5632]);
    assert_eq!(rig.present("v"), here + 2, "the chunk that was read, and the zeros of its section");

    // Whole blocks of a chunk that is not here, and a part of a block.
    for (at, len) in [(5 * CHUNK + 4096, 8192), (2 * CHUNK + 512, 1024)] {
        let bytes: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
        guest.write(at as u64, &bytes).unwrap();
        wanted[at..at + len].copy_from_slice(&bytes);
    }
    assert_eq!(rig.present("v"), here + 3, "only the part of a block was waited for");
    guest.flush().unwrap();
    rig.kill_node();

    // It is shown again at the same place, without being asked to.
    rig.start_node();
    let mut guest = connect(&socket);
    assert!(guest.read(0, wanted.len()).unwrap() == wanted);
    drop(guest);

    let info = rig.volume(&["detach", "v"]);
    assert_eq!(info["attached"], Value::Null);
    assert!(Nbd::connect(&socket).is_err());
    rig.attach("v", &[]);
    until("all of it is here", || rig.is_plain("v"));
    let plain = std::fs::read(info["disk"].as_str().unwrap()).unwrap();
    assert!(plain == wanted, "the data file is the disk");
    rig.volume(&["detach", "v"]);
    rig.volume(&["rm", "v"]);
    assert_eq!(rig.volume(&["ls"]), serde_json::json!([]));
}

#[test]
fn volumes_that_share_keep_their_guests_writes_apart_and_through_a_kill() {
    let mut rig = Rig::start("abc.def");
    rig.kill_node();
    rig.share = "always";
    rig.start_node();
    let sockets = ["v", "w"].map(|name| rig.attached(name, &["--no-fill"]));
    let mut wanted = [1, 2].map(|_| rig.disk.bytes.clone());
    for (which, socket) in sockets.iter().enumerate() {
        let mut guest = connect(socket);
        for (at, len) in [(2 * CHUNK + 512, 1024), (5 * CHUNK + 4096, 8192)] {
            let bytes = vec![which as u8 + 1; len];
            guest.write(at as u64, &bytes).unwrap();
            wanted[which][at..at + len].copy_from_slice(&bytes);
        }
        guest.flush().unwrap();
        let info = rig.volume(&["show", "w"]);
        assert_eq!((&info["shares"], &info["hydration"]["fetched"]), (&true.into(), &1.into()));
    }
    rig.kill_node();
    rig.start_node();
    for (socket, wanted) in sockets.iter().zip(&wanted) {
        assert!(connect(socket).read(0, wanted.len()).unwrap() == *wanted);
    }
    let info = rig.volume(&["show", "v"]);
    assert_eq!(info["plain"], false);
    rig.volume(&["detach", "v"]);
    rig.attach("v", &["--copy"]);
    until("all of it is here", || rig.is_plain("v"));
    let disk = info["disk"].as_str().unwrap();
    assert!(std::fs::read(disk).unwrap() == wanted[0], "the data file is the disk");
    let dir = Path::new(disk).parent().unwrap();
    assert_eq!(rig.volume(&["identify", path(dir)])["id"], info["id"]);
    for name in ["v", "w"] {
        rig.volume(&["detach", name]);
        rig.volume(&["rm", name]);
    }
    let bases = dir.parent().unwrap().join(".images");
    assert_eq!(std::fs::read_dir(bases).unwrap().count(), 0);
}

#[test]
fn guests_of_a_grid_that_is_away_have_what_is_here_and_wait_for_the_rest() {
    let mut rig = Rig::start("abcdef");
    let socket = rig.attached("v", &["--no-fill"]);
    let mut guest = connect(&socket);
    assert!(guest.read(0, CHUNK).unwrap() == rig.disk.bytes[..CHUNK]);
    let read_away = |chunk: usize| {
        let mut other = connect(&socket);
        std::thread::spawn(move || other.read((chunk * CHUNK) as u64, 4096))
    };
    rig.grid.kill();
    let away = read_away(3);
    until("somebody waits", || rig.volume(&["show", "v"])["hydration"]["wanted"] == 1);
    assert!(guest.read(4096, 4096).unwrap() == rig.disk.bytes[4096..8192]);
    // Also a write does not need the grid.
    guest.write(4 * CHUNK as u64, &[7; 4096]).unwrap();
    guest.flush().unwrap();
    let metrics = rig.grid.run(&["node", "metrics"]).out;
    let waited = "forebay_volume_chunks_waited_for{volume=\"v\"} 1";
    assert!(metrics.contains(waited), "{metrics}");
    until("the trouble is told", || rig.volume(&["show", "v"])["trouble"]["kind"] == "retry");
    rig.grid.restart();
    let came = away.join().expect("it reads").unwrap();
    assert!(came == rig.disk.bytes[3 * CHUNK..3 * CHUNK + 4096]);
    assert_eq!(guest.read(4 * CHUNK as u64, 4096).unwrap(), [7; 4096]);
    // One that was ended in good order is not to be found at all.
    rig.grid.stop();
    let away = read_away(2);
    until("the trouble is told", || rig.volume(&["show", "v"])["trouble"]["kind"] == "retry");
    rig.grid.restart();
    let came = away.join().expect("it reads").unwrap();
    assert!(came == rig.disk.bytes[2 * CHUNK..2 * CHUNK + 4096]);
}

/// Asks the daemon for something over its socket, and goes away before there is an answer.
fn ask_and_go(rig: &Rig, path: &str, body: &str) {
    let socket = rig.grid.data.join("node/node.sock");
    let mut asker = UnixStream::connect(socket).expect("a daemon");
    let head = format!("POST {path} HTTP/1.1\r\nHost: node\r\nContent-Type: application/json");
    write!(asker, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).expect("it listens");
}

#[test]
fn who_asks_for_a_volume_may_go_away_and_it_is_attached_or_it_is_not() {
    let rig = Rig::start("abc.def");
    rig.volume(&["create", "d:1", "--name", "v"]);
    let mut seen = [0, 0];
    for wait in 0..40 {
        ask_and_go(&rig, "/v1/volumes/v/attach", r#"{"kind": "nbd"}"#);
        std::thread::park_timeout(Duration::from_micros(100 * wait));
        let there = rig.volume(&["show", "v"])["attached"] != Value::Null;
        assert_eq!(rig.volume(&["ls"])[0]["name"], "v");
        // To ask again is answered when the first one is done with, and then it is served.
        let mut guest = connect(&rig.attach("v", &[]));
        assert!(guest.read(0, CHUNK).unwrap() == rig.disk.bytes[..CHUNK]);
        drop(guest);
        ask_and_go(&rig, "/v1/volumes/v/detach", "");
        std::thread::park_timeout(Duration::from_micros(100 * wait));
        // Whoever was first: it is taken away once.
        let ended = rig.grid.run(&["volume", "detach", "v"]);
        assert!([0, 73].contains(&ended.code), "{}", ended.err);
        assert_eq!(rig.volume(&["show", "v"])["attached"], Value::Null);
        seen[usize::from(there)] += 1;
    }
    println!("it was seen attached {} times, not yet {} times", seen[1], seen[0]);
    rig.volume(&["rm", "v"]);
}

#[test]
fn a_volume_can_be_blank_or_larger_than_its_image_and_grows() {
    let rig = Rig::start("ab");
    let size = (1 << 20) + 4096;
    rig.volume(&["create", "d:1", "--name", "v", "--size", "1052672"]);
    let mut guest = connect(&rig.attach("v", &[]));
    assert_eq!(guest.size, size);
    assert_eq!(guest.read(size - 4096, 4096).unwrap(), [0; 4096]);
    guest.write(size - 512, &[1; 512]).unwrap();
    assert_eq!(rig.volume(&["resize", "v", "2MiB"])["size"], 2 << 20);
    let mut again = connect(&rig.attach("v", &[]));
    assert_eq!(again.size, 2 << 20);
    assert_eq!(again.read(size - 512, 1024).unwrap(), [[1; 512], [0; 512]].concat());

    let made = rig.volume(&["create", "--blank", "1MiB", "--name", "b", "--sector-size", "4096"]);
    assert_eq!((&made["plain"], &made["image"]), (&Value::Bool(true), &Value::Null));
    let mut blank = connect(&rig.attach("b", &[]));
    blank.write(8192, &[5; 4096]).unwrap();
    blank.flush().unwrap();
    // The daemon is not needed to read it.
    let disk = std::fs::read(made["disk"].as_str().unwrap()).unwrap();
    assert_eq!((disk.len(), &disk[8192..12288]), (1 << 20, &[5; 4096][..]));
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let rig = Rig::start("ab");
    rig.refused(&["create", "none:1"], 66, &["none:1"]);
    rig.refused(&["create", "d:1", "--name", "../x"], 65, &["../x", "letters"]);
    rig.refused(
        &["create", "d:1", "--name", "v", "--size", "100KiB"],
        65,
        &["at least", "512.0 KiB"],
    );
    rig.refused(&["create", "d:1", "--name", "v", "--size", "1000001"], 65, &["1000001"]);
    rig.refused(&["show", "v"], 66, &["v", "no such volume"]);
    rig.refused(&["rm", "v"], 66, &["no such volume"]);
    rig.refused(&["attach", "v"], 66, &["no such volume"]);
    rig.attached("v", &["--no-fill"]);
    rig.refused(&["create", "d:1", "--name", "v"], 73, &["there is a volume of this name"]);
    rig.refused(&["rm", "v"], 73, &["detach it first"]);
    rig.refused(&["attach", "v", "--read-only"], 73, &["in another way", "nbd at", "v.nbd"]);
    rig.refused(&["resize", "v", "4096"], 73, &["detach it before"]);
    rig.volume(&["attach", "v", "--no-fill"]);
    rig.volume(&["detach", "v"]);
    rig.refused(&["detach", "v"], 73, &["not attached"]);
    // A socket where something else is, is left alone.
    let file = rig.grid.file("file", b"mine");
    rig.refused(&["attach", "v", "--path", path(&file)], 73, &[path(&file)]);
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
    // Names are given where none is.
    assert_eq!(rig.volume(&["create", "d:1"])["name"], "d-1-1");
    assert_eq!(rig.volume(&["create", "d:1"])["name"], "d-1-2");
    let names =
        |all: Value| all.as_array().unwrap().iter().map(|v| v["name"].clone()).collect::<Vec<_>>();
    assert_eq!(names(rig.volume(&["ls"])), ["d-1-1", "d-1-2", "v"]);
    // A name that is mistyped may mean any of the others.
    rig.refused(&["rm", "d-1-1", "none", "d-1-2", "nil"], 66, &["none", "nil"]);
    assert_eq!(names(rig.volume(&["ls"])), ["d-1-1", "d-1-2", "v"]);
    rig.attach("d-1-1", &[]);
    rig.refused(&["rm", "d-1-1", "d-1-2"], 73, &["d-1-1", "detach it first"]);
    assert_eq!(names(rig.volume(&["ls"])), ["d-1-1", "v"]);
}

#[test]
fn reading_only_is_reading_only() {
    let rig = Rig::start("ab");
    let mut guest = connect(&rig.attached("v", &["--read-only"]));
    assert!(guest.read(0, CHUNK).unwrap() == rig.disk.bytes[..CHUNK]);
    assert_eq!(guest.write(0, &[1; 512]).unwrap_err().raw_os_error(), Some(1));
}

#[test]
fn what_has_rotted_on_this_disk_is_made_good() {
    let rig = Rig::start("ab.c");
    let socket = rig.attached("v", &["--no-fill"]);
    let mut guest = connect(&socket);
    assert!(guest.read(0, 4 * CHUNK).unwrap() == rig.disk.bytes);
    guest.write(CHUNK as u64, &[1; 512]).unwrap();
    guest.flush().unwrap();
    // A sample is looked at before it is plain: what has rotted by then is made good already.
    until("it is plain", || rig.is_plain("v"));
    let disk = PathBuf::from(rig.volume(&["show", "v"])["disk"].as_str().unwrap());
    for chunk in [0, 1, 2] {
        flip(&disk, (chunk * CHUNK + 9000) as u64);
    }
    let found = rig.volume(&["scrub", "v"]);
    assert_eq!(found, serde_json::json!({"right": 1, "written": 1, "wrong": 2, "repaired": 2}));
    assert!(guest.read(0, CHUNK).unwrap() == rig.disk.bytes[..CHUNK]);
    assert!(guest.read(2 * CHUNK as u64, CHUNK).unwrap() == [0; CHUNK]);
    // What the guest wrote to is the guest's, rotten or not.
    assert_eq!(guest.read(CHUNK as u64, 512).unwrap(), [1; 512]);
    rig.volume(&["detach", "v"]);
    rig.refused(&["scrub", "v"], 73, &["attach it first"]);
}

#[test]
fn a_plain_file_that_others_could_write_to_is_not_made_the_image_again() {
    let rig = Rig::start("ab.c");
    rig.attached("v", &[]);
    until("it is plain", || rig.is_plain("v"));
    assert_eq!(rig.volume(&["scrub", "v"])["right"], 4, "nobody could so far");
    rig.volume(&["detach", "v"]);
    let disk = PathBuf::from(rig.volume(&["show", "v"])["disk"].as_str().unwrap());
    flip(&disk, 9000);
    let written = std::fs::read(&disk).unwrap();
    rig.attach("v", &[]);
    rig.refused(&["scrub", "v"], 69, &["v: its plain file", "written past this daemon"]);
    assert!(std::fs::read(&disk).unwrap() == written);
}

#[test]
fn patience_that_was_asked_for_ends_and_what_cannot_be_in_time_is_said() {
    let mut rig = Rig::start("abcdef");
    let terms = ["--rate", "1KiB", "--by", "10s"];
    let late = rig.volume(&["create", "d:1", "--name", "late"]);
    assert_eq!(late["plain"], false);
    let late = rig.volume(&[&["attach", "late"][..], &terms].concat());
    assert_eq!(late["hydration"]["late"], true, "{late}");
    let socket = rig.attached("v", &["--no-fill", "--patience", "1s"]);
    let mut guest = connect(&socket);
    assert!(guest.read(0, CHUNK).unwrap() == rig.disk.bytes[..CHUNK]);
    rig.grid.kill();
    assert_eq!(guest.read(3 * CHUNK as u64, 4096).unwrap_err().raw_os_error(), Some(5));
    // Only there, and only then.
    assert!(guest.read(0, CHUNK).unwrap() == rig.disk.bytes[..CHUNK]);
    rig.grid.restart();
    until("it comes after all", || guest.read(3 * CHUNK as u64, 4096).is_ok());
}

#[test]
fn a_chunk_that_is_wrong_everywhere_is_an_error_there_and_nowhere_else() {
    let rig = Rig::start("abcdef");
    let pack = rig.grid.objects("packs");
    assert_eq!(pack.len(), 1);
    flip(&pack[0], std::fs::metadata(&pack[0]).unwrap().len() / 2);
    let mut guest = connect(&rig.attached("v", &["--no-fill"]));
    let mut bad = Vec::new();
    for chunk in 0..6 {
        match guest.read((chunk * CHUNK) as u64, CHUNK) {
            Ok(read) => assert!(read == rig.disk.bytes[chunk * CHUNK..(chunk + 1) * CHUNK]),
            Err(error) => bad.push((chunk, error.raw_os_error())),
        }
    }
    let [(chunk, Some(5))] = bad[..] else { panic!("{bad:?}") };
    let trouble = rig.volume(&["show", "v"])["trouble"].clone();
    assert_eq!(trouble["kind"], "corrupt", "{trouble}");
    // It can be written, and is whole then.
    guest.write((chunk * CHUNK) as u64, &[7; CHUNK]).unwrap();
    assert!(guest.read((chunk * CHUNK) as u64, CHUNK).unwrap() == [7; CHUNK]);
    assert_eq!(rig.present("v"), 6);
}

/// A loop device, detached at the end.
pub struct Loop(pub String);

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).output();
    }
}

#[test]
fn real_loop_devices_over_a_volume_wait_while_the_daemon_is_dead_and_do_not_hold_it_up() {
    if !wanted() {
        return;
    }
    let mut rig = Rig::start("abc.def");
    let file = rig.attached("v", &["--export", "fuse"]);
    // The daemon looks at all loop devices when it begins to serve a volume; what is below this one only it serves.
    let device =
        Loop(must(Command::new("losetup").args(["-f", "--show"]).arg(&file)).trim().into());
    rig.kill_node();
    let copy = rig.grid.dir.join("copy");
    let mut dd = Command::new("dd");
    dd.args(["bs=256k", &format!("if={}", device.0), &format!("of={}", path(&copy))]);
    let reads = std::thread::spawn(move || must(&mut dd));
    rig.start_node();
    reads.join().expect("it waits, and goes on");
    assert!(std::fs::read(&copy).unwrap() == rig.disk.bytes);
    drop(device);
    rig.volume(&["detach", "v"]);
}

#[test]
fn real_guests_wait_while_the_disk_is_full_and_go_on() {
    if !wanted() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let mount = Mount::of(temp.path().join("small.img"), temp.path().join("small"), 32);
    let dir = format!("volumes.dir={}", path(&mount.at.join("volumes")));
    let rig = Rig::start_with("abcdef", &["--set", &dir]);
    let ballast = mount.at.join("ballast");
    let socket = rig.attached("v", &["--no-fill"]);
    rig.volume(&["create", "--blank", "16MiB", "--name", "b"]);
    let blank = rig.attach("b", &[]);
    let full = run(Command::new("dd")
        .args(["if=/dev/zero", "bs=64k"])
        .arg(format!("of={}", path(&ballast))));
    assert_ne!(full.code, 0, "the disk is full now");
    // What must be fetched has no place, and what is written neither.
    let read = std::thread::spawn(move || connect(&socket).read(0, CHUNK).unwrap());
    let written = std::thread::spawn(move || {
        let mut guest = connect(&blank);
        guest.write(0, &[9; 4 << 20]).unwrap();
        guest.flush().unwrap();
        guest.read(0, 4 << 20).unwrap() == [9; 4 << 20]
    });
    until("the full disk is told", || rig.volume(&["show", "v"])["trouble"]["kind"] == "full");
    assert!(!written.is_finished() && !read.is_finished());
    std::fs::remove_file(&ballast).unwrap();
    assert!(written.join().unwrap() && read.join().unwrap() == rig.disk.bytes[..CHUNK]);
    rig.volume(&["detach", "v"]);
    rig.volume(&["detach", "b"]);
}
