//! The clients that people use: libnbd's tools, QEMU's and fio's nbd engine. They run with `FOREBAY_E2E=1`;
//! what is not installed is left out, by name.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use tokio::sync::oneshot;

use super::testing::MemDisk;
use super::{Export, Limits, Memory, Server, Socket};
use crate::export::Stretch;

const MIB: usize = 1 << 20;
const SIZE: usize = 32 * MIB;

/// A server on a thread of its own.
struct Served {
    dir: tempfile::TempDir,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Vec<u8>>>,
}

impl Served {
    /// Serves a slow disk of 32 MiB; its second 4 MiB are a hole, the third ones absent.
    fn start() -> Served {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (end, ended) = oneshot::channel::<()>();
        let (ready, wait) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let disk = MemDisk::new(bytes());
            disk.delays.set(1);
            let marks = [
                (4 * MIB as u64..8 * MIB as u64, Stretch::Hole),
                (8 * MIB as u64..12 * MIB as u64, Stretch::Absent),
            ];
            disk.marks.borrow_mut().extend(marks);
            let disk = Rc::new(disk);
            let (name, description) = ("disk".to_owned(), "a disk".to_owned());
            let export = Export { name, description, disk: Rc::clone(&disk) };
            let memory = Memory::with_budget(64 * MIB).unwrap();
            let server = Server::new(vec![export], memory, Limits::default()).unwrap();
            let serve = async {
                let socket = Socket::bind(path).await.unwrap();
                ready.send(()).unwrap();
                server.serve(socket, async { drop(ended.await) }).await;
            };
            tokio::task::LocalSet::new().block_on(&runtime.unwrap(), serve);
            disk.bytes.take()
        });
        wait.recv().unwrap();
        Served { dir, end: Some(end), thread: Some(thread) }
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///disk?socket={}", self.dir.path().join("s").display())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Ends the server; what the disk holds then.
    fn end(mut self) -> Vec<u8> {
        self.end.take().unwrap().send(()).unwrap();
        self.thread.take().unwrap().join().unwrap()
    }
}

fn bytes() -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..SIZE).map(|i| (i / 512 + i) as u8 | 1).collect();
    bytes[4 * MIB..8 * MIB].fill(0);
    bytes
}

/// Whether a test with these tools is to run.
fn wanted(tools: &[&str]) -> bool {
    if std::env::var_os("FOREBAY_E2E").is_none() {
        println!("left out: needs FOREBAY_E2E=1 and {tools:?}");
        return false;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let has = |tool: &&&str| std::env::split_paths(&path).any(|dir| dir.join(tool).exists());
    let missing: Vec<_> = tools.iter().filter(|tool| !has(tool)).collect();
    if !missing.is_empty() {
        println!("left out: {missing:?} are not installed");
    }
    missing.is_empty()
}

fn run(program: &str, args: &[&str]) -> String {
    let done = Command::new(program).args(args).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{program} {args:?}: {out}{err}");
    out.into_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn nbdinfo_sees_the_export_and_its_map() {
    if !wanted(&["nbdinfo"]) {
        return;
    }
    let served = Served::start();
    let json = run("nbdinfo", &["--json", &served.uri()]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let export = &json["exports"][0];
    assert_eq!(export["export-size"], SIZE);
    assert_eq!(export["description"], "a disk");
    assert_eq!(export["block_size_minimum"], 512);
    for can in ["cache", "df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero"] {
        assert_eq!(export[format!("can_{can}")], true, "{can}");
    }
    let map = |context: &str| {
        let json = run("nbdinfo", &["--json", &format!("--map={context}"), &served.uri()]);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let extents = json.as_array().unwrap().iter();
        let number = |extent: &serde_json::Value, field: &str| extent[field].as_u64().unwrap();
        extents.map(|e| (number(e, "offset") as usize / MIB, number(e, "type"))).collect::<Vec<_>>()
    };
    assert_eq!(map("base:allocation"), [(0, 0), (4, 3), (8, 0)]);
    assert_eq!(map("forebay:present"), [(0, 0), (8, 1), (12, 0)]);
    assert!(run("nbdinfo", &["--list", &served.uri()]).contains("export=\"disk\""));
    served.end();
}

#[test]
fn nbdcopy_copies_out_and_in_over_several_connections() {
    if !wanted(&["nbdcopy"]) {
        return;
    }
    let served = Served::start();
    let (out, new) = (served.file("out"), served.file("new"));
    for more in [&["--connections=4", "--requests=64"][..], &["--synchronous"]] {
        run("nbdcopy", &[more, &[&served.uri(), text(&out)]].concat());
        assert!(std::fs::read(&out).unwrap() == bytes());
        std::fs::remove_file(&out).unwrap();
    }
    let mut other: Vec<u8> = bytes().iter().rev().copied().collect();
    other[20 * MIB..21 * MIB].fill(0);
    std::fs::write(&new, &other).unwrap();
    run("nbdcopy", &["--connections=4", "--flush", text(&new), &served.uri()]);
    assert!(served.end() == other);
}

#[test]
fn qemu_reads_writes_zeroes_and_discards() {
    if !wanted(&["qemu-io", "qemu-img"]) {
        return;
    }
    let served = Served::start();
    let uri = served.uri();
    let io = |commands: &[&str]| {
        let each = commands.iter().flat_map(|command| ["-c", command]);
        let args: Vec<_> = ["-f", "raw"].into_iter().chain(each).chain([&*uri]).collect();
        let said = run("qemu-io", &args);
        assert!(!said.contains("failed"), "{said}");
    };
    io(&[
        "write -P 7 1M 3M",
        "write -f -P 9 512 512",
        "write -z -u 2M 64k",
        "write -z 3M 4k",
        "flush",
        "read -P 7 1M 1M",
        "read -P 0 2M 64k",
        "read -P 9 512 512",
        "read -P 0 4M 4M",
        "discard 5M 1M",
        "aio_write -P 3 12M 2M",
        "aio_write -P 4 14M 2M",
        "aio_flush",
        "aio_read -P 3 12M 2M",
        "aio_flush",
    ]);
    let map = run("qemu-img", &["map", "--output=json", "-f", "raw", &uri]);
    let map: serde_json::Value = serde_json::from_str(&map).unwrap();
    let zeros = map.as_array().unwrap().iter().filter(|extent| extent["zero"] == true);
    assert_eq!(zeros.map(|extent| extent["length"].as_u64().unwrap()).sum::<u64>(), 3 << 20);
    let out = served.file("out");
    run("qemu-img", &["convert", "-f", "raw", "-O", "raw", "-m", "16", "-W", &uri, text(&out)]);
    let copied = std::fs::read(&out).unwrap();
    let held = served.end();
    assert!(copied == held);
    assert!(held[MIB..2 * MIB].iter().all(|byte| *byte == 7));
    assert!(held[14 * MIB..16 * MIB].iter().all(|byte| *byte == 4));
}

#[test]
fn fio_finds_what_it_has_written() {
    if !wanted(&["fio"]) {
        return;
    }
    let served = Served::start();
    let uri = format!("--uri={}", served.uri());
    for (rw, bs) in [("randrw", "4k"), ("randwrite", "512"), ("write", "1M")] {
        let (rw, bs) = (format!("--rw={rw}"), format!("--bs={bs}"));
        let size = format!("--size={}", 8 * MIB);
        let with = [
            "--name=v",
            "--ioengine=nbd",
            "--iodepth=32",
            "--verify=crc32c",
            "--verify_state_save=0",
        ];
        run("fio", &[&with[..], &[&uri, &rw, &bs, &size]].concat());
    }
    served.end();
}

/// What only a program says: flags that tools do not set, and what is refused.
const SCRIPT: &str = r#"
import errno, nbd, sys
def fails(what, *wanted):
    try:
        what()
    except nbd.Error as error:
        assert error.errnum in wanted, error
    else:
        assert False, "it went well"
h = nbd.NBD()
h.set_strict_mode(0)
h.add_meta_context("base:allocation")
h.add_meta_context("forebay:present")
h.set_opt_mode(True)
h.connect_uri(sys.argv[1])
names = []
h.opt_list_meta_context(lambda name: names.append(name))
assert names == ["base:allocation", "forebay:present"], names
h.set_export_name("none")
fails(h.opt_info, errno.ENOENT)
h.set_export_name("disk")
h.opt_go()
assert h.get_structured_replies_negotiated()
big = h.pread(16 << 20, 1 << 20)
assert len(big) == 16 << 20 and big[3 << 20:7 << 20] == bytes(4 << 20)
parts = []
h.pread_structured(8 << 20, 2 << 20, lambda b, at, kind, e: parts.append((at, kind)))
assert (4 << 20, nbd.READ_HOLE) in parts, parts
parts = []
h.pread_structured(65536, 4 << 20, lambda b, at, kind, e: parts.append(kind), nbd.CMD_FLAG_DF)
assert parts == [nbd.READ_DATA], parts
fails(lambda: h.pread(1 << 20, 0, nbd.CMD_FLAG_DF), errno.EOVERFLOW)
fails(lambda: h.pread(512, 1), errno.EINVAL)
fails(lambda: h.pread(512, 1 << 40), errno.EINVAL)
fails(lambda: h.pwrite(bytes(512), 1 << 40), errno.ENOSPC)
fails(lambda: h.zero(4096, 0, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE), errno.ENOTSUP)
h.zero(4096, 0, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_FUA)
h.pwrite(b"\5" * (3 << 20), 16 << 20, nbd.CMD_FLAG_FUA)
assert h.pread(3 << 20, 16 << 20) == b"\5" * (3 << 20)
h.cache(4 << 20, 6 << 20)
found = {}
h.block_status(12 << 20, 0, lambda c, at, e, err: found.setdefault(c, e), nbd.CMD_FLAG_REQ_ONE)
assert found == {"base:allocation": [4 << 20, 0], "forebay:present": [8 << 20, 0]}, found
h.shutdown()
plain = nbd.NBD()
plain.set_request_structured_replies(False)
plain.connect_uri(sys.argv[1])
assert plain.pread(32 << 20, 0)[4096:1 << 20] == big[:0] + plain.pread((1 << 20) - 4096, 4096)
plain.shutdown()
"#;

#[test]
fn libnbd_says_what_tools_do_not() {
    let python = "/usr/bin/python3";
    let has = || Command::new(python).args(["-c", "import nbd"]).output();
    if !wanted(&[]) || !has().is_ok_and(|done| done.status.success()) {
        println!("left out: needs FOREBAY_E2E=1 and libnbd for Python");
        return;
    }
    let served = Served::start();
    run(python, &["-c", SCRIPT, &served.uri()]);
    served.end();
}
