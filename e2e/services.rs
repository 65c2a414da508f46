//! Programs that go on: how they say that they serve, and where.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::Duration;

use crate::harness::{Background, Disk, Grid, forebay, path, run, until};

/// Starts a service as systemd does, and waits until it says that it is ready.
fn ready(command: &mut Command, dir: &std::path::Path) -> Background {
    let notify = dir.join("notify");
    let _ = std::fs::remove_file(&notify);
    let socket = UnixDatagram::bind(&notify).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    let service = Background::start(command.env("NOTIFY_SOCKET", &notify));
    let mut said = [0; 256];
    let len = socket.recv(&mut said).expect("it says something");
    assert!(said[..len].split(|b| *b == b'\n').any(|line| line == b"READY=1"));
    service
}

#[test]
fn each_service_tells_systemd_that_it_is_ready() {
    let mut grid = Grid::start();
    grid.stop();
    let mut up = forebay(&grid.data);
    let mut up = ready(up.args(["up", "--listen", "127.0.0.1:0"]), &grid.dir);
    grid.run(&["images"]).json();
    let token = grid.run(&["node", "token", "--role", "server"]).json();
    let member = grid.dir.join("c1");
    let token = token["token"].as_str().unwrap();
    run(forebay(&member).args(["--json", "node", "join", token, "--name", "c1"])).json();
    let store = format!("store.at={}", path(&grid.data.join("store")));
    let mut cache = ready(forebay(&member).args(["cache", "--set", &store]), &grid.dir);
    let mut node = ready(forebay(&grid.data).arg("node"), &grid.dir);
    for service in [&mut node, &mut cache, &mut up] {
        assert_eq!(service.terminate().1, 0);
    }
}

#[test]
fn the_node_daemon_says_where_it_serves_and_who_goes_past_it_is_told() {
    let grid = Grid::start();
    let disk = Disk::new("ab");
    grid.import(&grid.disk("d.raw", &disk), "d:1");
    let mut node = Background::start(forebay(&grid.data).args(["node", "--json"]));
    let serving: serde_json::Value = serde_json::from_str(&node.line()).unwrap();
    assert_eq!(serving["socket"], path(&grid.data.join("node/node.sock")));
    let copy = grid.dir.join("copy");
    let args = ["pull", "d:1", "--to", path(&copy), "--rate", "100MiB"];
    let pulled = grid.run(&args);
    pulled.json();
    assert!(pulled.err.contains("--rate"), "{}", pulled.err);
    assert_eq!(grid.run(&["node", "transfers"]).json(), serde_json::json!([]));
    // A path that no JSON can name, neither to the daemon nor in a report.
    let odd = grid.dir.join(OsStr::from_bytes(b"c\xffpy"));
    let pull = |options: &[&str]| {
        run(forebay(&grid.data).args(["pull", "d:1", "--to"]).arg(&odd).args(options))
    };
    pull(&[]).fails(65, &["UTF-8", "--no-daemon"]);
    pull(&["--no-daemon", "--json"]).fails(65, &["UTF-8", "--json"]);
    assert!(!odd.exists());
    assert_eq!(pull(&["--no-daemon"]).code, 0);
    assert!(std::fs::read(&odd).unwrap() == disk.bytes);
    assert_eq!(node.terminate().1, 0);
}

#[test]
fn what_is_no_socket_is_left_alone() {
    let grid = Grid::start();
    let file = grid.file("file", b"mine");
    let socket = format!("node.socket={}", path(&file));
    run(forebay(&grid.data).args(["node", "--set", &socket])).fails(73, &["not a socket"]);
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
}

#[test]
fn addresses_that_lead_nobody_here_are_refused_unless_another_is_told() {
    let mut grid = Grid::start();
    grid.stop();
    let up = |args: &[&str]| {
        let mut command = forebay(&grid.data);
        command.args(["up", "--json"]).args(args);
        command
    };
    let here = ["--listen", "127.0.0.1:0"];
    for (listen, set) in [
        (["--listen", "0.0.0.0:0"], &[][..]),
        (["--listen", "[::]:0"], &[]),
        (here, &["--set", "serve.ip=0.0.0.0"]),
        (here, &["--set", "serve.ip=::"]),
        (here, &["--set", "serve.advertise_ip=0.0.0.0"]),
    ] {
        let mut command = up(&listen);
        run(command.args(set)).fails(65, &["set serve.advertise_ip"]);
    }
    let everywhere = ["--listen", "0.0.0.0:0", "--set", "serve.ip=0.0.0.0"];
    let mut command = up(&everywhere);
    let mut served = Background::start(command.args(["--set", "serve.advertise_ip=127.0.0.1"]));
    let line = served.line();
    assert!(line.contains("\"chunks\":[\"127.0.0.1:"), "{line}");
    let token = grid.run(&["node", "token"]).json();
    assert!(token["token"].as_str().unwrap().starts_with("127.0.0.1:"), "{token}");
    let (disk, copy) = (Disk::new("ab"), grid.dir.join("copy"));
    grid.import(&grid.disk("d.raw", &disk), "d:1");
    grid.pull("d:1", &copy).json();
    assert!(std::fs::read(&copy).unwrap() == disk.bytes);
    assert_eq!(served.terminate().1, 0);
}

/// Ends with the test.
struct Holder(std::process::Child);

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn of_two_that_would_keep_mounts_the_first_does() {
    use node::export::fuse::holder::{give, keep};
    use std::os::fd::AsFd;

    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("holder.sock");
    let hold = || {
        let mut command = forebay(dir.path());
        command.args(["node", "hold", path(&socket)]);
        command
    };
    let _first = Holder(hold().spawn().unwrap());
    let file = std::fs::File::create(dir.path().join("file")).unwrap();
    until("it keeps", || keep(&socket, "mount", file.as_fd()).is_ok());
    assert_eq!(run(&mut hold()).code, 0);
    assert!(give(&socket, "mount").unwrap().is_some(), "its socket is still its own");
}
