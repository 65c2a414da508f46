//! Boot traces: what a guest touches first is recorded, and brought ahead of the next ones.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::caches::join;
use crate::harness::{Background, CHUNK, Disk, Ended, Grid, forebay, path, run, until};

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

/// A node's daemon over a data directory.
struct Node {
    data: PathBuf,
    daemon: Background,
}

impl Node {
    fn start(data: PathBuf, options: &[&str]) -> Self {
        let mut daemon = Background::start(forebay(&data).arg("node").args(options));
        assert!(daemon.line().contains("serves"));
        Self { data, daemon }
    }

    fn ask(&self, args: &[&str]) -> Ended {
        run(forebay(&self.data).args(["--json", "volume"]).args(args))
    }

    /// Makes a volume of an image and attaches it, without filling.
    fn attach(&self, image: &str, name: &str, options: &[&str]) -> Guest {
        self.ask(&["create", image, "--name", name]).json();
        self.again(name, options)
    }

    fn again(&self, name: &str, options: &[&str]) -> Guest {
        let attach = ["attach", name, "--no-fill"];
        let info = self.ask(&[&attach, options].concat()).json();
        Guest::connect(Path::new(info["attached"]["path"].as_str().unwrap()), name)
    }

    fn hydration(&self, name: &str) -> Value {
        self.ask(&["show", name]).json()["hydration"].clone()
    }

    fn detach(&self, name: &str) {
        self.ask(&["detach", name]).json();
    }

    /// Waits until so many chunks have come, none of them asked for by a guest.
    fn comes_ahead(&self, name: &str, chunks: u64) {
        until(&format!("{chunks} chunks"), || self.hydration(name)["fetched"] == chunks);
        assert_eq!(self.hydration(name)["demanded"], 0);
    }
}

/// Waits until so many starts of an image count, and returns how many chunks they touch.
fn recorded(grid: &Grid, image: &str, starts: u64) -> u64 {
    let trace = || grid.run(&["inspect", image]).json()["boot_trace"].clone();
    until(&format!("{starts} starts of {image}"), || trace()["recordings"] == starts);
    trace()["chunks"].as_u64().unwrap()
}

#[test]
fn what_the_first_guest_touches_comes_ahead_of_the_next() {
    let grid = Grid::start();
    let disk = Disk::new("abcdefghijklmnop");
    grid.import(&grid.disk("d.raw", &disk), "d:1");
    let mut node = Node::start(grid.data.clone(), &[]);

    let mut guest = node.attach("d:1", "one", &[]);
    guest.reads(&disk, 9 * CHUNK, 512);
    guest.reads(&disk, 3 * CHUNK - 4096, 8192);
    // All of these blocks is written: nothing of the chunk is needed.
    guest.writes(12 * CHUNK, &[1; 8192]);
    guest.writes(14 * CHUNK + 512, &[1; 512]);
    node.detach("one");
    assert_eq!(recorded(&grid, "d:1", 1), 4);
    node.ask(&["rm", "one"]).json();

    // These four, unasked; and a guest that reads them waits for nothing.
    let mut guest = node.attach("d:1", "two", &[]);
    node.comes_ahead("two", 4);
    for chunk in [9, 2, 3, 14] {
        guest.reads(&disk, chunk * CHUNK, CHUNK);
    }
    assert_eq!(node.hydration("two")["demanded"], 0);
    guest.reads(&disk, 5 * CHUNK, CHUNK);
    assert_eq!(node.hydration("two")["demanded"], 1);
    guest.writes(0, &[1; 4096]);
    node.detach("two");
    assert_eq!(recorded(&grid, "d:1", 2), 5);

    // What was in use before is not recorded again, unless it is asked for.
    node.again("two", &[]).reads(&disk, CHUNK, CHUNK);
    node.detach("two");
    let mut guest = node.again("two", &["--record"]);
    guest.reads(&disk, 7 * CHUNK, CHUNK);
    node.ask(&["attach", "two", "--no-fill", "--record"]).fails(73, &["two", "detach it first"]);
    node.detach("two");
    assert_eq!(recorded(&grid, "d:1", 3), 6);
    node.ask(&["rm", "two"]).json();

    // Without, nothing comes and nothing is recorded.
    let mut guest = node.attach("d:1", "three", &["--no-trace"]);
    guest.reads(&disk, 0, 512);
    assert_eq!(node.hydration("three")["fetched"], 1);
    node.detach("three");
    assert_eq!(recorded(&grid, "d:1", 3), 6);
    assert_eq!(node.daemon.terminate().1, 0);
}

#[test]
fn a_guest_of_one_node_helps_those_of_another_whose_volumes_share() {
    let grid = Grid::start();
    let disk = Disk::new("abcdefghijklmnop");
    grid.import(&grid.disk("d.raw", &disk), "d:1");
    let one = Node::start(grid.data.clone(), &[]);
    let mut guest = one.attach("d:1", "one", &[]);
    for chunk in [11, 4, 0] {
        guest.reads(&disk, chunk * CHUNK, 4096);
    }
    one.detach("one");
    assert_eq!(recorded(&grid, "d:1", 1), 3);

    let two = Node::start(join(&grid, "node", "n2"), &["--set", "volumes.share=always"]);
    let mut guest = two.attach("d:1", "two", &[]);
    two.comes_ahead("two", 3);
    guest.reads(&disk, 11 * CHUNK, CHUNK);
    guest.reads(&disk, 6 * CHUNK, CHUNK);
    let mut beside = two.attach("d:1", "beside", &[]);
    beside.reads(&disk, 0, CHUNK);
    beside.reads(&disk, 6 * CHUNK, CHUNK);
    assert_eq!(two.hydration("beside")["fetched"], 4, "they share what has come");
    two.detach("two");
    assert_eq!(recorded(&grid, "d:1", 2), 4);
    two.detach("beside");
    assert_eq!(recorded(&grid, "d:1", 3), 4, "who finds all of it here is recorded as well");
}

#[test]
fn the_next_version_of_an_image_begins_with_what_is_the_same() {
    let mut grid = Grid::start();
    let (old, new) = (Disk::new("abcdefghijklmnop"), Disk::new("abcXefghijklmnopq"));
    grid.import(&grid.disk("old.raw", &old), "d:1");
    let import = grid.disk("new.raw", &new);
    grid.run(&["import", path(&import), "d:2", "--parent", "d:1"]).json();
    let mut node = Node::start(grid.data.clone(), &[]);
    let mut guest = node.attach("d:1", "one", &[]);
    for chunk in [8, 3, 1] {
        guest.reads(&old, chunk * CHUNK, 4096);
    }
    node.detach("one");
    assert_eq!(recorded(&grid, "d:1", 1), 3);

    // The chunk that differs is not the one that guests of the parent wanted.
    let mut guest = node.attach("d:2", "two", &[]);
    node.comes_ahead("two", 2);
    guest.reads(&new, 8 * CHUNK, CHUNK);
    guest.reads(&new, CHUNK, CHUNK);
    assert_eq!(node.hydration("two")["demanded"], 0);
    guest.reads(&new, 3 * CHUNK, CHUNK);
    assert_eq!(node.hydration("two")["demanded"], 1);

    // While placement is away guests start without a trace, and what they touch is told later.
    grid.stop();
    node.detach("two");
    grid.restart();
    assert_eq!(recorded(&grid, "d:2", 2), 3, "what is inherited counts as one start");
    assert_eq!(node.daemon.terminate().1, 0);
}
