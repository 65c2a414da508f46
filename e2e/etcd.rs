//! A real etcd, of one member or of several.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::harness::{Background, path, until};

/// Ports that nobody uses just now.
pub fn free_ports(many: usize) -> Vec<u16> {
    let held: Vec<_> = (0..many).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    held.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
}

/// Its members, each of which can be killed.
pub struct Etcd {
    members: Vec<Background>,
    /// Where clients ask.
    pub ports: Vec<u16>,
}

impl Etcd {
    pub fn start(dir: &Path, members: usize) -> Self {
        let (ports, peers) = (free_ports(members), free_ports(members));
        let url = |port: &u16| format!("http://127.0.0.1:{port}");
        let all: Vec<_> =
            peers.iter().enumerate().map(|(n, port)| format!("m{n}={}", url(port))).collect();
        let start = |n: usize| {
            let (client, peer) = (url(&ports[n]), url(&peers[n]));
            let data = dir.join(format!("etcd{n}"));
            let mut command = Command::new("etcd");
            command.args([format!("--data-dir={}", path(&data)), format!("--name=m{n}")]);
            command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
            command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
            command.arg(format!("--initial-cluster={}", all.join(","))).stderr(Stdio::null());
            Background::start(&mut command)
        };
        let members = (0..members).map(start).collect();
        for port in &ports {
            until("etcd serves", || TcpStream::connect(("127.0.0.1", *port)).is_ok());
        }
        Self { members, ports }
    }

    /// The state at all of its members, as the configuration names it.
    pub fn state(&self) -> String {
        let all: Vec<_> = self.ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        format!("placement.state=etcd://{}", all.join(","))
    }

    pub fn kill(&mut self, member: usize) {
        self.members[member].kill();
    }
}
