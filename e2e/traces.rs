//! Boot traces: what a guest touches first is recorded, and brought ahead of the next ones.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;

use crate::harness::{Background, CHUNK, Disk, Grid, forebay, path, until};

/// A guest that reads over NBD: the fixed newstyle handshake, and simple replies.
struct Guest(UnixStream);

impl Guest {
    fn connect(socket: &Path, export: &str) -> Self {
        let mut stream = UnixStream::connect(socket).expect("a volume that is served");
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).expect("a greeting");
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        let mut hello = vec![0, 0, 0, 3];
        hello.extend(b"IHAVEOPT");
        // NBD_OPT_EXPORT_NAME: the answer is the size and the flags.
        hello.extend(1u32.to_be_bytes());
        hello.extend((export.len() as u32).to_be_bytes());
        hello.extend(export.as_bytes());
        stream.write_all(&hello).expect("a server that listens");
        stream.read_exact(&mut [0; 10]).expect("an export");
        Self(stream)
    }

    /// Sends a request with what belongs to it; reads as much as `answer` takes.
    fn ask(&mut self, command: u16, at: usize, len: usize, payload: &[u8], answer: &mut [u8]) {
        let mut request = 0x2560_9513u32.to_be_bytes().to_vec();
        request.extend([0, 0]);
        request.extend(command.to_be_bytes());
        request.extend([7; 8]);
        request.extend((at as u64).to_be_bytes());
        request.extend((len as u32).to_be_bytes());
        request.extend(payload);
        self.0.write_all(&request).expect("a server that listens");
        let mut reply = [0; 16];
        self.0.read_exact(&mut reply).expect("a reply");
        assert_eq!(reply[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0], "an error");
        self.0.read_exact(answer).expect("what was asked for");
    }

    #[track_caller]
    fn reads(&mut self, disk: &Disk, at: usize, len: usize) {
        let mut read = vec![0; len];
        self.ask(0, at, len, &[], &mut read);
        assert!(read == disk.bytes[at..at + len], "{len} bytes at {at}");
    }

    fn writes(&mut self, at: usize, bytes: &[u8]) {
        self.ask(1, at, bytes.len(), bytes, &mut []);
    }
}

fn node(grid: &Grid) -> Background {
    let mut node = Background::start(forebay(&grid.data).arg("node"));
    assert!(node.line().contains("serves"));
    node
}

/// Makes a volume of an image and attaches it, without filling.
fn attach(grid: &Grid, image: &str, name: &str, options: &[&str]) -> std::path::PathBuf {
    grid.run(&["volume", "create", image, "--name", name]).json();
    again(grid, name, options)
}

fn again(grid: &Grid, name: &str, options: &[&str]) -> std::path::PathBuf {
    let socket = grid.dir.join(format!("{name}.sock"));
    let attach = ["volume", "attach", name, "--no-fill", "--path", path(&socket)];
    grid.run(&[&attach, options].concat()).json();
    socket
}

fn hydration(grid: &Grid, name: &str) -> Value {
    grid.run(&["volume", "show", name]).json()["hydration"].clone()
}

fn detach(grid: &Grid, name: &str) {
    grid.run(&["volume", "detach", name]).json();
}

/// Waits until so many starts of an image count, and returns how many chunks they touch.
fn recorded(grid: &Grid, image: &str, starts: u64) -> u64 {
    let trace = || grid.run(&["inspect", image]).json()["boot_trace"].clone();
    until(&format!("{starts} starts of {image}"), || trace()["recordings"] == starts);
    trace()["chunks"].as_u64().unwrap()
}

/// Waits until so many chunks have come, none of them asked for by a guest.
fn comes_ahead(grid: &Grid, name: &str, chunks: u64) {
    until(&format!("{chunks} chunks of {name}"), || hydration(grid, name)["fetched"] == chunks);
    assert_eq!(hydration(grid, name)["demanded"], 0);
}

#[test]
fn what_the_first_guest_touches_comes_ahead_of_the_next() {
    let grid = Grid::start();
    let disk = Disk::new("abcdefghijklmnop");
    grid.import(&grid.disk("d.raw", &disk), "d:1");
    let mut node = node(&grid);

    let mut guest = Guest::connect(&attach(&grid, "d:1", "one", &[]), "one");
    guest.reads(&disk, 9 * CHUNK, 512);
    guest.reads(&disk, 3 * CHUNK - 4096, 8192);
    // All of these blocks is written: nothing of the chunk is needed.
    guest.writes(12 * CHUNK, &[1; 8192]);
    guest.writes(14 * CHUNK + 512, &[1; 512]);
    detach(&grid, "one");
    assert_eq!(recorded(&grid, "d:1", 1), 4);
    let said = grid.run(&["inspect", "d:1"]);
    assert!(said.json()["boot_trace"]["millis"].is_u64());

    // These four, unasked; and a guest that reads them waits for nothing.
    let mut guest = Guest::connect(&attach(&grid, "d:1", "two", &[]), "two");
    comes_ahead(&grid, "two", 4);
    for chunk in [9, 2, 3, 14] {
        guest.reads(&disk, chunk * CHUNK, CHUNK);
    }
    assert_eq!(hydration(&grid, "two")["demanded"], 0);
    guest.reads(&disk, 5 * CHUNK, CHUNK);
    assert_eq!(hydration(&grid, "two")["demanded"], 1);
    // What was in use before is not recorded again, unless it is asked for.
    detach(&grid, "two");
    assert_eq!(recorded(&grid, "d:1", 2), 5);
    Guest::connect(&again(&grid, "two", &[]), "two").reads(&disk, 0, CHUNK);
    detach(&grid, "two");
    let socket = again(&grid, "two", &["--record"]);
    let record = ["volume", "attach", "two", "--no-fill", "--path", path(&socket), "--record"];
    grid.run(&record).fails(73, &["two", "detach it first"]);
    Guest::connect(&socket, "two").reads(&disk, 7 * CHUNK, CHUNK);
    detach(&grid, "two");
    assert_eq!(recorded(&grid, "d:1", 3), 6);

    // Without, nothing comes and nothing is recorded.
    let mut guest = Guest::connect(&attach(&grid, "d:1", "three", &["--no-trace"]), "three");
    guest.reads(&disk, 0, 512);
    assert_eq!(hydration(&grid, "three")["fetched"], 1);
    detach(&grid, "three");
    assert_eq!(recorded(&grid, "d:1", 3), 6);
    assert_eq!(node.terminate().1, 0);
}

#[test]
fn the_next_version_of_an_image_begins_with_what_is_the_same() {
    let mut grid = Grid::start();
    let (old, new) = (Disk::new("abcdefghijklmnop"), Disk::new("abcXefghijklmnopq"));
    grid.import(&grid.disk("old.raw", &old), "d:1");
    let import = grid.disk("new.raw", &new);
    grid.run(&["import", path(&import), "d:2", "--parent", "d:1"]).json();
    let mut node = node(&grid);
    let mut guest = Guest::connect(&attach(&grid, "d:1", "one", &[]), "one");
    for chunk in [8, 3, 1] {
        guest.reads(&old, chunk * CHUNK, 4096);
    }
    detach(&grid, "one");
    assert_eq!(recorded(&grid, "d:1", 1), 3);

    // The chunk that differs is not the one that guests of the parent wanted.
    let mut guest = Guest::connect(&attach(&grid, "d:2", "two", &[]), "two");
    comes_ahead(&grid, "two", 2);
    guest.reads(&new, 8 * CHUNK, CHUNK);
    guest.reads(&new, CHUNK, CHUNK);
    assert_eq!(hydration(&grid, "two")["demanded"], 0);
    guest.reads(&new, 3 * CHUNK, CHUNK);
    assert_eq!(hydration(&grid, "two")["demanded"], 1);

    // While placement is away guests start without a trace, and what they touch is told later.
    grid.stop();
    detach(&grid, "two");
    grid.restart();
    assert_eq!(recorded(&grid, "d:2", 2), 3, "what is inherited counts as one start");
    assert_eq!(node.terminate().1, 0);
}
