//! Machines in network namespaces of their own, on one bridge. Needs root and iproute2.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{Background, Ended, forebay, path, run};
use crate::real::must;

fn ip(args: &str) -> Command {
    let mut command = Command::new("ip");
    command.args(args.split(' '));
    command
}

/// A bridge and the machines on it, taken down at the end.
pub struct Network {
    name: &'static str,
    /// Of each machine's address, the first three bytes.
    net: &'static str,
    machines: Vec<&'static str>,
}

impl Network {
    /// `name` is short, and nobody else's.
    pub fn up(name: &'static str, net: &'static str, machines: &[&'static str]) -> Self {
        let network = Self { name, net, machines: machines.to_vec() };
        network.down();
        must(&mut ip(&format!("netns add {name}")));
        must(&mut ip(&format!("-n {name} link add hub type bridge")));
        must(&mut ip(&format!("-n {name} link set hub up")));
        for machine in machines {
            let (space, address) = (network.space(machine), network.address(machine));
            must(&mut ip(&format!("netns add {space}")));
            must(&mut ip(&format!("-n {space} link set lo up")));
            let tie =
                format!("-n {name} link add to-{machine} type veth peer name arm netns {space}");
            must(&mut ip(&tie));
            must(&mut ip(&format!("-n {name} link set to-{machine} master hub up")));
            must(&mut ip(&format!("-n {space} address add {address}/24 dev arm")));
            must(&mut ip(&format!("-n {space} link set arm up")));
        }
        network
    }

    fn space(&self, machine: &str) -> String {
        format!("{}-{machine}", self.name)
    }

    fn down(&self) {
        let spaces = self.machines.iter().map(|machine| self.space(machine));
        for space in spaces.chain([self.name.to_owned()]) {
            // It need not be there.
            let _ = ip(&format!("netns delete {space}")).output();
        }
    }

    pub fn address(&self, machine: &str) -> String {
        let at = self.machines.iter().position(|name| *name == machine);
        format!("{}.{}", self.net, at.expect("a machine of this network") + 1)
    }

    /// Nothing reaches a machine any more, or everything does again.
    pub fn cut(&self, machine: &str, cut: bool) {
        let how = if cut { "down" } else { "up" };
        must(&mut ip(&format!("-n {} link set to-{machine} {how}", self.name)));
    }

    /// Gives a machine one more address, or takes it away.
    pub fn second_address(&self, machine: &str, address: &str, has: bool) {
        let how = if has { "add" } else { "del" };
        let space = self.space(machine);
        must(&mut ip(&format!("-n {space} address {how} {address}/24 dev arm")));
    }

    /// A machine with a data directory.
    pub fn host(&self, machine: &'static str, data: PathBuf) -> Host {
        Host { name: machine, space: self.space(machine), data }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.down();
    }
}

/// A machine, and what `forebay` has there.
pub struct Host {
    pub name: &'static str,
    space: String,
    pub data: PathBuf,
}

impl Host {
    /// A program in its namespace.
    pub fn inside(&self, program: &Command) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.space));
        command.arg(program.get_program()).args(program.get_args());
        for (name, value) in program.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }

    pub fn command(&self, args: &[&str]) -> Command {
        self.inside(forebay(&self.data).arg("--json").args(args))
    }

    pub fn run(&self, args: &[&str]) -> Ended {
        run(&mut self.command(args))
    }

    /// Starts a server, and waits until it says that it serves.
    pub fn serve(&self, args: &[&str]) -> Background {
        let log = File::options().create(true).append(true).open(self.log()).unwrap();
        let mut server = Background::start(self.command(args).stderr(log));
        assert!(!server.line().is_empty(), "{} ended before it served: {args:?}", self.name);
        server
    }

    fn log(&self) -> PathBuf {
        self.data.with_extension("log")
    }

    /// Joins the grid of `of`, where an admin is.
    pub fn join(&self, of: &Self, role: &str) {
        let token = of.run(&["node", "token", "--role", role]).json();
        self.run(&["node", "join", token["token"].as_str().unwrap(), "--name", self.name]).json();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.log()).unwrap_or_default();
            eprintln!("what {} logged:\n{log}", self.name);
        }
    }
}

/// Bytes that nothing else has, and that do not get smaller.
pub fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut x = seed << 1 | 1;
    let mut next = || {
        x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (x >> 56) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

/// Writes a file that has these bytes.
pub fn file(at: &Path, bytes: &[u8]) -> String {
    std::fs::write(at, bytes).unwrap();
    path(at).to_owned()
}
