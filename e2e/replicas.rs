//! Several placements over one etcd: one leads, any can be asked, any can be lost.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use serde_json::Value;

use crate::etcd::{Etcd, free_ports};
use crate::harness::{Background, Disk, Ended, forebay, path, run, until};
use crate::member::Node;

/// One of several `forebay up`.
struct Replica {
    data: PathBuf,
    up: Option<Background>,
}

/// All of them: one CA, one store, one state.
struct Replicas {
    all: Vec<Replica>,
    settings: Vec<String>,
    ports: Vec<u16>,
}

impl Replicas {
    fn start(dir: &Path, etcd: &Etcd, many: usize) -> Self {
        let ports = free_ports(many);
        let addresses: Vec<_> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        let settings = vec![
            etcd.state(),
            format!("up.placements={}", addresses.join(",")),
            format!("store.at={}", path(&dir.join("store"))),
        ];
        let all = (0..many).map(|n| Replica { data: dir.join(format!("up{n}")), up: None });
        let mut replicas = Self { all: all.collect(), settings, ports };
        replicas.start_one(0);
        for n in 1..many {
            let [from, to] = [0, n].map(|n| replicas.all[n].data.join("ca"));
            std::fs::create_dir(to.parent().unwrap()).unwrap();
            let copied = Command::new("cp").arg("-a").args([&from, &to]).status();
            assert!(copied.unwrap().success());
            replicas.start_one(n);
        }
        replicas
    }

    fn start_one(&mut self, n: usize) {
        let mut command = forebay(&self.all[n].data);
        command.args(["up", "--json", "--listen", &format!("127.0.0.1:{}", self.ports[n])]);
        for set in self.settings.iter().chain([&format!("up.name=up-{n}")]) {
            command.args(["--set", set]);
        }
        let mut up = Background::start(&mut command);
        assert!(up.line().contains("grid"), "forebay up ended before it served");
        self.all[n].up = Some(up);
    }

    fn kill(&mut self, n: usize) {
        self.all[n].up.take().expect("it runs").kill();
    }

    fn signal(&self, n: usize, signal: &str) {
        let pid = self.all[n].up.as_ref().expect("it runs").child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// A command that asks one of them.
    fn run(&self, n: usize, args: &[&str]) -> Ended {
        run(forebay(&self.all[n].data).arg("--json").args(args))
    }

    fn until_ready(&self, n: usize, many: u64) {
        until(&format!("{many} ready volumes"), || {
            let shown = self.run(n, &["pool", "show", "web"]);
            shown.code == 0 && {
                let info = shown.json();
                info["ready"] == many && info["building"] == 0
            }
        });
    }

    /// How long it takes until one of them answers for the fleet, after something happened to the leader.
    #[expect(clippy::disallowed_methods, reason = "the time is told, nothing is decided by it")]
    fn away(&self, n: usize, what: &str) {
        let since = Instant::now();
        until("the fleet is answered for", || self.run(n, &["lease", "list"]).code == 0);
        println!("{what}: answered again after {:?}", since.elapsed());
    }
}

#[test]
fn real_any_placement_can_be_asked_and_any_can_be_lost() {
    if std::env::var_os("FOREBAY_E2E").is_none() {
        println!("left out: needs FOREBAY_E2E=1 and etcd");
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let mut etcd = Etcd::start(temp.path(), 3);
    let mut ups = Replicas::start(temp.path(), &etcd, 3);
    let (image, disk) = (temp.path().join("d.raw"), Disk::new("abc.def"));
    std::fs::write(&image, &disk.bytes).unwrap();
    ups.run(1, &["import", path(&image), "d:1"]).json();
    for n in 0..3 {
        assert_eq!(ups.run(n, &["images"]).json()["images"][0]["ref"], "d:1");
        assert_eq!(ups.run(n, &["cache", "status"]).json().as_array().unwrap().len(), 3);
    }
    let mut nodes: Vec<Node> = Vec::new();
    for name in ["n1", "n2"] {
        let token = ups.run(2, &["node", "token"]).json();
        nodes.push(Node::with_token(temp.path(), name, token["token"].as_str().unwrap()));
    }
    let set = ["pool", "create", "web", "--image", "d:1", "--target", "4", "--low", "4"];
    ups.run(2, &set).json();
    ups.until_ready(1, 4);
    let mut given = BTreeSet::new();
    let mut claim = |ups: &Replicas, at: usize, n: u8| {
        let (request, name) = (format!("{n:032x}"), format!("v{n}"));
        let claim = ["pool", "claim", "web", &name, "--request", &request];
        let mut claimed = Value::Null;
        until("a claim is served", || {
            let ended = ups.run(at, &claim);
            claimed = if ended.code == 0 { ended.json() } else { Value::Null };
            ended.code == 0
        });
        assert_eq!(ups.run(at, &claim).json(), claimed, "the same request is the same claim");
        assert!(given.insert(claimed["id"].to_string()), "handed out twice");
    };
    claim(&ups, 2, 1);

    // The first one leads. Without it another does, and knows what was going on.
    ups.kill(0);
    ups.away(1, "the leader is killed");
    claim(&ups, 1, 2);
    ups.until_ready(2, 4);
    // One that stands still leads no longer, and does no harm when it goes on.
    let leads = (1..3).find(|n| {
        let logged = ups.run(*n, &["placement", "status"]);
        logged.code == 0 && logged.json()["leader"]["name"] == format!("up-{n}")
    });
    let leads = leads.expect("somebody leads");
    let other = 3 - leads;
    ups.signal(leads, "-STOP");
    ups.away(other, "the leader stands still");
    claim(&ups, other, 3);
    ups.signal(leads, "-CONT");
    claim(&ups, leads, 4);
    ups.until_ready(leads, 4);
    // Back again, the first one is as good as the others; and of etcd two members are enough.
    ups.start_one(0);
    etcd.kill(0);
    ups.away(0, "a member of etcd is killed");
    claim(&ups, 0, 5);
    ups.until_ready(0, 4);
    let pulled = temp.path().join("out.raw");
    assert_eq!(nodes[0].run(&["pull", "d:1", "--to", path(&pulled), "--no-daemon"]).code, 0);
    assert!(std::fs::read(&pulled).unwrap() == disk.bytes);
    nodes.iter_mut().for_each(Node::kill);
}
