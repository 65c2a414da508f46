//! A whole grid in network namespaces: three placements, each beside a member of etcd, two caches, three nodes, each on an
//! XFS of its own, and a store that all of them see. All is set up by configuration files and tokens.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::harness::{Background, Ended, path, until};
use crate::network::{Host, Network};
use crate::real::{Mount, must};

const UPS: [&str; 3] = ["p1", "p2", "p3"];
const CACHES: [&str; 2] = ["c1", "c2"];
const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// How long a node that is not heard of has its volumes for itself. Longer than it takes until it does not count.
pub const LEASE: u64 = 36;
/// Of a node's file system.
const NODE_MIB: u64 = 8 << 10;

/// One placement, or one cache, or one node.
pub struct Server {
    pub host: Host,
    kind: &'static [&'static str],
    pub runs: Option<Background>,
}

impl Server {
    fn new(host: Host, kind: &'static [&'static str], config: &str) -> Self {
        std::fs::create_dir_all(&host.data).unwrap();
        std::fs::write(host.data.join("forebay.toml"), config).unwrap();
        Self { host, kind, runs: None }
    }

    pub fn start(&mut self) {
        self.runs = Some(self.host.serve(self.kind));
    }

    pub fn kill(&mut self) {
        self.runs.take().expect("it runs").kill();
    }

    pub fn run(&self, args: &[&str]) -> Ended {
        self.host.run(args)
    }

    pub fn volume(&self, args: &[&str]) -> Value {
        self.run(&[&["volume"], args].concat()).json()
    }
}

/// A node's file system, and what it lies in.
pub struct Disk {
    pub mount: Mount,
    image: PathBuf,
}

impl Disk {
    fn new(dir: &Path, node: &str) -> Self {
        let [image, at] = ["xfs", "disk"].map(|what| dir.join(format!("{node}.{what}")));
        Self { mount: Mount::with("mkfs.xfs", "loop", image.clone(), at, NODE_MIB), image }
    }

    /// Whether these bytes are anywhere on the device.
    pub fn has(&self, text: &str) -> bool {
        must(&mut Command::new("sync"));
        let mut grep = Command::new("grep");
        // By lines that end with a zero byte: what is not data is passed over.
        let found = grep.args(["-a", "-z", "-q", "-F", text]).arg(&self.image).status().unwrap();
        let code = found.code().expect("grep ends by itself");
        assert!(code < 2, "grep cannot read {}", self.image.display());
        code == 0
    }
}

/// All of it. What runs ends before the disks under it are unmounted.
pub struct Ground {
    pub ups: Vec<Server>,
    caches: Vec<Server>,
    pub nodes: Vec<Server>,
    etcd: Vec<Background>,
    pub disks: Vec<Disk>,
    pub network: Network,
}

impl Ground {
    pub fn start(dir: &Path) -> Self {
        let machines: Vec<_> = [&UPS[..], &CACHES, &NODES].concat();
        let network = Network::up("fbgrid", "10.83.0", &machines);
        let disks = NODES.map(|node| Disk::new(dir, node)).into();
        let etcd = etcd(&network, dir);
        let mut ground =
            Self { ups: ups(&network, dir), caches: vec![], nodes: vec![], etcd, disks, network };
        ground.start_ups();
        ground.caches = CACHES.map(|name| ground.joined(name, dir.join(name), "server")).into();
        let on = |n: usize| dir.join(format!("{}.disk/data", NODES[n]));
        ground.nodes = (0..NODES.len()).map(|n| ground.joined(NODES[n], on(n), "node")).collect();
        ground
    }

    /// The first one makes the CA, of which the others have a copy.
    fn start_ups(&mut self) {
        let answers = || self.ups[0].run(&["placement", "check"]).code != 75;
        until("etcd answers", answers);
        self.ups[0].start();
        let ca = self.ups[0].host.data.join("ca");
        for up in &mut self.ups[1..] {
            must(Command::new("cp").arg("-a").args([&ca, &up.host.data.join("ca")]));
            up.start();
        }
    }

    fn joined(&self, name: &'static str, data: PathBuf, role: &str) -> Server {
        let (store, ip) = (self.store(), self.network.address(name));
        let (kind, config): (&[_], _) = match role {
            "node" => (&["node"], String::new()),
            _ => (&["cache"], format!("[store]\nat = \"{store}\"\n[serve]\nip = \"{ip}\"\n")),
        };
        let mut server = Server::new(self.network.host(name, data), kind, &config);
        server.host.join(&self.ups[0].host, role);
        server.start();
        server
    }

    fn store(&self) -> String {
        path(&self.ups[0].host.data.with_file_name("store")).to_owned()
    }

    /// One of the placements that run.
    pub fn any(&self) -> &Server {
        self.ups.iter().find(|up| up.runs.is_some()).expect("one runs")
    }

    pub fn run(&self, args: &[&str]) -> Ended {
        self.any().run(args)
    }

    /// Which placement leads.
    pub fn leader(&self) -> usize {
        let status = self.run(&["placement", "status"]).json();
        let leads = |n: &usize| status["leader"]["name"] == UPS[*n];
        (0..UPS.len()).find(leads).unwrap_or_else(|| panic!("nobody leads: {status}"))
    }

    pub fn node(&self, name: &Value) -> usize {
        let at = NODES.iter().position(|node| *name == **node);
        at.unwrap_or_else(|| panic!("no node {name}"))
    }

    pub fn pool(&self, args: &[&str]) -> Value {
        self.run(&[&["pool"], args].concat()).json()
    }

    pub fn until_ready(&self, pool: &str, many: u64) {
        until(&format!("{many} ready volumes of {pool}"), || {
            let shown = self.run(&["pool", "show", pool]);
            shown.code == 0 && {
                let info = shown.json();
                info["ready"] == many && info["building"] == 0
            }
        });
    }

    /// Puts a copy of a volume where another node has its own, as a disk that both can reach has it.
    pub fn copy(&self, volume: &str, [from, to]: [usize; 2]) {
        let of = |n: usize| self.nodes[n].host.data.join("volumes");
        let (aside, into) = (self.nodes[to].host.data.join("copy"), of(to).join(volume));
        let from = of(from).join(volume);
        must(Command::new("cp").args(["-a", "--sparse=always"]).args([&from, &aside]));
        std::fs::rename(aside, into).unwrap();
    }

    pub fn stop(&mut self) {
        for server in self.nodes.iter_mut().chain(&mut self.caches).chain(&mut self.ups) {
            let ended = server.runs.take().map(|mut runs| runs.terminate().1);
            assert!(
                ended.is_none_or(|code| code == 0),
                "{} ended with {ended:?}",
                server.host.name
            );
        }
        self.etcd.clear();
    }
}

fn ups(network: &Network, dir: &Path) -> Vec<Server> {
    let all = |port: u16| UPS.map(|name| format!("{}:{port}", network.address(name))).join(",");
    let one = |name: &'static str| {
        let ip = network.address(name);
        let config = format!(
            "[up]\nname = \"{name}\"\nlisten = \"{ip}:7400\"\nplacements = \"{}\"\n\
             [placement]\nlease = \"{LEASE}s\"\nstate = \"etcd://{}/grid\"\n\
             etcd_ca = \"{dir}/ca.pem\"\netcd_cert = \"{dir}/cert.pem\"\netcd_key = \"{dir}/key.pem\"\n\
             [serve]\nip = \"{ip}\"\n[store]\nat = \"{dir}/store\"\n[cache]\nweight = \"0\"\n",
            all(7400),
            all(2379),
            dir = path(dir),
        );
        Server::new(network.host(name, dir.join(name)), &["up"], &config)
    };
    UPS.map(one).into()
}

/// A member of etcd on the machine of each placement, reached by mutual TLS.
fn etcd(network: &Network, dir: &Path) -> Vec<Background> {
    papers(dir, &UPS.map(|name| format!("IP:{}", network.address(name))).join(","));
    let url = |name: &str, port: u16| format!("https://{}:{port}", network.address(name));
    let all = UPS.map(|name| format!("{name}={}", url(name, 2380))).join(",");
    let member = |name: &'static str| {
        let mut etcd = Command::new("etcd");
        etcd.arg(format!("--data-dir={}", path(&dir.join(format!("{name}.etcd")))));
        etcd.args(["--name", name, "--initial-cluster", &all]);
        let sides =
            [("client", "advertise", "", 2379), ("peer", "initial-advertise", "peer-", 2380)];
        for (side, advertise, of, port) in sides {
            etcd.arg(format!("--listen-{side}-urls={}", url(name, port)));
            etcd.arg(format!("--{advertise}-{side}-urls={}", url(name, port)));
            etcd.arg(format!("--{of}cert-file={}", path(&dir.join("cert.pem"))));
            etcd.arg(format!("--{of}key-file={}", path(&dir.join("key.pem"))));
            etcd.arg(format!("--{of}trusted-ca-file={}", path(&dir.join("ca.pem"))));
            etcd.arg(format!("--{of}client-cert-auth"));
        }
        let host = network.host(name, dir.join(name));
        Background::start(host.inside(&etcd).stderr(Stdio::null()))
    };
    UPS.map(member).into()
}

/// An authority for etcd alone, and a certificate of it for its members and who asks them.
fn papers(dir: &Path, names: &str) {
    let openssl = |args: &[&str]| {
        let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
        let mut openssl = Command::new("openssl");
        must(openssl.args(["req", "-x509"]).args(key).args(args).current_dir(dir));
    };
    openssl(&["-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=etcd"]);
    let of = ["-CA", "ca.pem", "-CAkey", "ca.key", "-subj", "/CN=forebay"];
    let (san, leaf) = (format!("subjectAltName={names}"), "basicConstraints=critical,CA:FALSE");
    let what = ["-keyout", "key.pem", "-out", "cert.pem", "-addext", &san, "-addext", leaf];
    openssl(&[&of[..], &what].concat());
}
