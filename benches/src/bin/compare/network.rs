//! Network namespaces joined by cables, shaped or not: a pair, and a star of servers around a client.

use std::path::PathBuf;
use std::process::Command;

use crate::process::{inside, run};

/// The server's namespace and address; the client's namespace.
pub const SERVER: &str = "fbcmp-a";
pub const SERVER_IP: &str = "10.77.0.1";
pub const CLIENT: &str = "fbcmp-b";

/// The pair, taken down when dropped.
pub struct Pair;

fn netns(args: &[&str]) {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../e2e/guest/netns");
    run(Command::new(script).args(args));
}

impl Pair {
    /// With a rate (`1gbit`), or as fast as it goes.
    pub fn up(rate: Option<&str>) -> Self {
        match rate {
            Some(rate) => netns(&["up", "fbcmp", "--rate", rate]),
            // TCP sends 64 KiB segments over such a cable whatever its MTU; UDP gets jumbo frames, as
            // a data centre has them.
            None => netns(&["up", "fbcmp", "--mtu", "9000"]),
        }
        Pair
    }

    /// Gives what both sides send a rate, with packets as they are on the wire.
    pub fn shape(&self, rate: &str) {
        netns(&["up", "fbcmp", "--rate", rate]);
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        netns(&["down", "fbcmp"]);
    }
}

/// Servers, each in a namespace of its own with a cable of its own to the client's, which routes between
/// them. Taken down when dropped.
pub struct Star;

const ARMS: [(&str, &str); 3] =
    [("fbcmp-s0", "10.78.0.1"), ("fbcmp-s1", "10.78.1.1"), ("fbcmp-s2", "10.78.2.1")];

impl Star {
    /// What the servers send is shaped to this rate (`100mbit`), each.
    pub fn up(rate: &str) -> Self {
        let star = Star;
        star.down();
        let tie = |namespace: &str, rest: &str| {
            let mut ip = Command::new("ip");
            run(ip.args(["-n", namespace]).args(rest.split(' ')));
        };
        run(Command::new("ip").args(["netns", "add", CLIENT]));
        tie(CLIENT, "link set lo up");
        for (number, (namespace, address)) in ARMS.iter().enumerate() {
            run(Command::new("ip").args(["netns", "add", namespace]));
            tie(namespace, "link set lo up");
            tie(CLIENT, &format!("link add arm{number} type veth peer name arm netns {namespace}"));
            tie(namespace, &format!("address add {address}/24 dev arm"));
            tie(namespace, "link set arm up");
            tie(CLIENT, &format!("address add 10.78.{number}.2/24 dev arm{number}"));
            tie(CLIENT, &format!("link set arm{number} up"));
            tie(namespace, &format!("route add default via 10.78.{number}.2"));
            star.shape(number, rate);
        }
        let forward = "echo 1 > /proc/sys/net/ipv4/ip_forward";
        run(inside(Some(CLIENT), "sh").args(["-c", forward]));
        star
    }

    /// A server's namespace and address.
    pub fn arm(&self, number: usize) -> (&'static str, &'static str) {
        ARMS[number]
    }

    /// Gives what a server sends another rate.
    pub fn shape(&self, number: usize, rate: &str) {
        // The bucket holds less than a long GSO packet: those are cut up first, so that many connections
        // share the queue as they do on a wire. The queue is that of a switch's port.
        let shaper = format!("qdisc replace dev arm root tbf rate {rate} burst 60000 latency 50ms");
        run(Command::new("tc").args(["-n", ARMS[number].0]).args(shaper.split(' ')));
    }

    fn down(&self) {
        for namespace in ARMS.iter().map(|(namespace, _)| *namespace).chain([CLIENT]) {
            // It need not be there.
            let _ = Command::new("ip").args(["netns", "delete", namespace]).output();
        }
    }
}

impl Drop for Star {
    fn drop(&mut self) {
        self.down();
    }
}
