//! Real members of etcd, for tests.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use tempfile::TempDir;

/// Whether there may be real ones.
pub fn wanted() -> bool {
    let wanted = std::env::var_os("FOREBAY_E2E").is_some();
    if !wanted {
        println!("left out: needs FOREBAY_E2E=1 and etcd");
    }
    wanted
}

struct Member {
    args: Vec<String>,
    port: u16,
    running: Option<Child>,
}

/// An etcd cluster, killed when dropped.
pub struct Etcd {
    pub dir: TempDir,
    members: Vec<Member>,
}

impl Etcd {
    /// Of so many members, on ports that nobody uses.
    pub async fn start(count: usize) -> Self {
        Self::start_with(count, |_| Vec::new()).await
    }

    /// With more arguments, given the directory.
    pub async fn start_with(count: usize, more: impl Fn(&Path) -> Vec<String>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // etcd does not say which ports it took. All are held until all are known.
        let held: Vec<_> =
            (0..2 * count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports: Vec<_> = held.iter().map(|l| l.local_addr().unwrap().port()).collect();
        drop(held);
        let more = more(dir.path());
        let scheme =
            if more.iter().any(|a| a.starts_with("--cert-file")) { "https" } else { "http" };
        let peer = |i: usize| format!("http://127.0.0.1:{}", ports[2 * i + 1]);
        let all: Vec<_> = (0..count).map(|i| format!("m{i}={}", peer(i))).collect();
        let member = |i: usize| {
            let client = format!("{scheme}://127.0.0.1:{}", ports[2 * i]);
            let data = dir.path().join(format!("m{i}"));
            let mut args = vec![
                format!("--name=m{i}"),
                format!("--data-dir={}", data.display()),
                format!("--listen-client-urls={client}"),
                format!("--advertise-client-urls={client}"),
                format!("--listen-peer-urls={}", peer(i)),
                format!("--initial-advertise-peer-urls={}", peer(i)),
                format!("--initial-cluster={}", all.join(",")),
                "--log-level=error".into(),
            ];
            args.extend(more.clone());
            Member { args, port: ports[2 * i], running: None }
        };
        let members = (0..count).map(member).collect();
        let mut etcd = Self { dir, members };
        (0..count).for_each(|i| etcd.run(i));
        etcd
    }

    /// Starts a member that is not running.
    pub fn run(&mut self, i: usize) {
        let log = self.dir.path().join(format!("m{i}.log"));
        let log = std::fs::File::options().create(true).append(true).open(log).unwrap();
        let mut command = Command::new("etcd");
        command.args(&self.members[i].args).stdout(log.try_clone().unwrap()).stderr(log);
        self.members[i].running = Some(command.spawn().expect("etcd can be started"));
    }

    pub fn kill(&mut self, i: usize) {
        let mut running = self.members[i].running.take().expect("it runs");
        running.kill().unwrap();
        running.wait().unwrap();
    }

    pub fn signal(&self, i: usize, signal: &str) {
        let pid = self.members[i].running.as_ref().expect("it runs").id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// Host and port of a member.
    pub fn address(&self, i: usize) -> String {
        format!("127.0.0.1:{}", self.members[i].port)
    }

    /// Host and port of each, this one first.
    pub fn addresses(&self, first: usize) -> Vec<String> {
        let count = self.members.len();
        (0..count).map(|i| self.address((first + i) % count)).collect()
    }

    /// What a member answers to a request of its HTTP interface.
    pub fn http(&self, i: usize, request: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(self.address(i)).unwrap();
        let length = body.len();
        let text = format!("{request} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}");
        stream.write_all(text.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Who leads.
    pub fn leader(&self) -> usize {
        let leads = |i: &usize| self.http(*i, "GET /metrics", "").contains("is_leader 1");
        (0..self.members.len()).find(leads).expect("somebody leads")
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for mut running in self.members.iter_mut().filter_map(|m| m.running.take()) {
            let _ = running.kill();
            let _ = running.wait();
        }
    }
}

/// Looks again and again until something is so.
pub async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    for _ in 0..600 {
        if so().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("never: {what}");
}
