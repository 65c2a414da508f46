//! Real members of etcd, for tests.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
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
    place: Place,
    running: Option<Child>,
}

/// Where a member runs.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its network namespace, if it has one to itself.
    pub namespace: Option<String>,
    pub host: String,
    /// Where clients ask, and where other members do.
    pub ports: [u16; 2],
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
        // etcd does not say which ports it took. All are held until all are known.
        let held: Vec<_> =
            (0..2 * count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let port = |i: usize| held[i].local_addr().unwrap().port();
        let place = |i: usize| Place {
            namespace: None,
            host: "127.0.0.1".into(),
            ports: [port(2 * i), port(2 * i + 1)],
        };
        let places = (0..count).map(place).collect();
        drop(held);
        Self::start_at(places, more).await
    }

    /// At these places, with more arguments.
    pub async fn start_at(places: Vec<Place>, more: impl Fn(&Path) -> Vec<String>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let more = more(dir.path());
        let scheme =
            if more.iter().any(|a| a.starts_with("--cert-file")) { "https" } else { "http" };
        let peer = |place: &Place| format!("http://{}:{}", place.host, place.ports[1]);
        let named = places.iter().enumerate().map(|(i, place)| format!("m{i}={}", peer(place)));
        let all = named.collect::<Vec<_>>().join(",");
        let member = |(i, place): (usize, Place)| {
            let client = format!("{scheme}://{}:{}", place.host, place.ports[0]);
            let data = dir.path().join(format!("m{i}"));
            let mut args = vec![
                format!("--name=m{i}"),
                format!("--data-dir={}", data.display()),
                format!("--listen-client-urls={client}"),
                format!("--advertise-client-urls={client}"),
                format!("--listen-peer-urls={}", peer(&place)),
                format!("--initial-advertise-peer-urls={}", peer(&place)),
                format!("--initial-cluster={all}"),
                "--log-level=error".into(),
            ];
            args.extend(more.clone());
            Member { args, place, running: None }
        };
        let members: Vec<_> = places.into_iter().enumerate().map(member).collect();
        let mut etcd = Self { dir, members };
        (0..etcd.members.len()).for_each(|i| etcd.run(i));
        etcd
    }

    /// Starts a member that is not running.
    pub fn run(&mut self, i: usize) {
        let log = self.dir.path().join(format!("m{i}.log"));
        let log = File::options().create(true).append(true).open(log).unwrap();
        let Member { args, place, .. } = &self.members[i];
        let mut command = Command::new("etcd");
        if let Some(namespace) = &place.namespace {
            // It becomes the member.
            command = Command::new("ip");
            command.args(["netns", "exec", namespace, "etcd"]);
        }
        command.args(args).stdout(log.try_clone().unwrap()).stderr(log);
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
        let Place { host, ports, .. } = &self.members[i].place;
        format!("{host}:{}", ports[0])
    }

    /// Host and port of each, this one first.
    pub fn addresses(&self, first: usize) -> Vec<String> {
        let count = self.members.len();
        (0..count).map(|i| self.address((first + i) % count)).collect()
    }

    /// What a member answers to a request of its HTTP interface.
    pub fn http(&self, i: usize, request: &str, body: &str) -> String {
        http(&self.address(i), request, body)
    }

    /// Who leads.
    pub fn leader(&self) -> usize {
        let leads = |i: &usize| leads(&self.address(*i));
        (0..self.members.len()).find(leads).expect("somebody leads")
    }
}

/// What is answered at an address to a request.
pub fn http(address: &str, request: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let length = body.len();
    let text = format!("{request} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(text.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Whether the member leads whose measurements are at an address.
pub fn leads(address: &str) -> bool {
    http(address, "GET /metrics", "").contains("is_leader 1")
}

/// Writes an authority of its own, and a certificate of it for hosts; the files of the first, of the second, and of its
/// key.
pub fn papers(dir: &Path, name: &str, hosts: &[String]) -> [PathBuf; 3] {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let generate = || {
        #[expect(clippy::disallowed_methods, reason = "a test founds an authority")]
        KeyPair::generate().unwrap()
    };
    let (ca_key, key) = (generate(), generate());
    let mut ca = CertificateParams::new(vec![]).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let of = CertificateParams::new([hosts, &["localhost".into()]].concat()).unwrap();
    let cert = of.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap().pem();
    [("ca", ca_pem), ("cert", cert), ("key", key.serialize_pem())].map(|(what, text)| {
        let path = dir.join(format!("{name}-{what}.pem"));
        let mut file = File::options();
        let mut file = file.create_new(true).write(true).mode(0o600).open(&path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        path
    })
}

/// What has a member talk to those alone who show such papers.
pub fn tls_args([ca, cert, key]: &[PathBuf; 3]) -> Vec<String> {
    vec![
        format!("--cert-file={}", cert.display()),
        format!("--key-file={}", key.display()),
        format!("--trusted-ca-file={}", ca.display()),
        "--client-cert-auth".into(),
    ]
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
