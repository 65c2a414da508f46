//! A grid to measure, in a namespace or not.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::Setup;
use crate::process::{Background, inside, json, on_core, run, within};

/// The server's namespace and address, and the namespace of the commands.
pub type Place = (&'static str, &'static str, &'static str);

/// How a grid's servers are started.
#[derive(Clone, Default)]
pub struct Servers {
    pub place: Option<Place>,
    /// Configuration, `key=value`.
    pub set: Vec<String>,
    pub environment: Vec<(&'static str, String)>,
    /// Kept to one core.
    pub core: Option<usize>,
    /// The cgroup (its `cgroup.procs`) in which it is from its first instruction.
    pub within: Option<PathBuf>,
}

impl Servers {
    /// A server of the grid, until it says that it serves.
    fn start(&self, setup: &Setup, data: &Path, args: &[&str]) -> Background {
        let (namespace, ip) = self.place.map_or((None, "127.0.0.1"), |p| (Some(p.0), p.1));
        let mut command = inside(namespace, &setup.program);
        command.args(args).args(["--json", "--set", &format!("serve.ip={ip}")]);
        for set in &self.set {
            command.args(["--set", set]);
        }
        command.arg("--data").arg(data).envs(self.environment.iter().cloned());
        let mut command = match self.core {
            Some(core) => on_core(core, &command),
            None => command,
        };
        if let Some(procs) = &self.within {
            command = within(procs, &command);
        }
        let mut server = Background::start(&mut command);
        assert!(!server.first_line().is_empty(), "{command:?} ended before it served");
        server
    }
}

pub struct Grid {
    program: PathBuf,
    pub data: PathBuf,
    pub up: Background,
    client: Option<&'static str>,
}

impl Grid {
    /// Starts `forebay up` on `ip`; commands run in the client's namespace.
    pub fn start(setup: &Setup, data: &Path, place: Option<Place>) -> Self {
        Self::start_as(setup, data, &Servers { place, ..Servers::default() })
    }

    /// Starts `forebay up` in a way of its own.
    pub fn start_as(setup: &Setup, data: &Path, servers: &Servers) -> Self {
        let ip = servers.place.map_or("127.0.0.1", |p| p.1);
        let up = servers.start(setup, data, &["up", "--listen", &format!("{ip}:0")]);
        let client = servers.place.map(|p| p.2);
        Self { program: setup.program.clone(), data: data.to_owned(), up, client }
    }

    /// Starts it in a directory of this name, with the disk as `v:1`.
    pub fn with_disk(setup: &Setup, name: &str) -> Self {
        let dir = setup.dir.join(name);
        std::fs::create_dir_all(&dir).unwrap();
        let grid = Self::start(setup, &dir.join("up"), None);
        grid.import(&setup.disk, "v:1");
        grid
    }

    /// A command against this grid.
    pub fn command(&self, args: &[&str]) -> Command {
        self.command_as(&self.data, args)
    }

    /// A command of a member.
    pub fn command_as(&self, data: &Path, args: &[&str]) -> Command {
        let mut command = inside(self.client, &self.program);
        command.args(args).args(["--json", "--data"]).arg(data);
        command
    }

    /// Imports a disk; what the command reports.
    pub fn import(&self, disk: &Path, name: &str) -> Value {
        json(&mut self.command(&["import", disk.to_str().unwrap(), name]))
    }

    /// Bytes of the files under the store.
    pub fn stored(&self) -> u64 {
        size_of(&self.data.join("store"))
    }

    /// Has a new member join; its data directory, beside the grid's.
    pub fn join(&self, role: &str, name: &str) -> PathBuf {
        let token = json(&mut self.command(&["node", "token", "--role", role]));
        let data = self.data.with_file_name(name);
        let token = token["token"].as_str().unwrap();
        run(&mut self.command_as(&data, &["node", "join", token, "--name", name]));
        data
    }

    /// Starts `forebay cache` as the member of this data directory.
    pub fn cache(&self, setup: &Setup, data: &Path, servers: &Servers) -> Background {
        servers.start(setup, data, &["cache"])
    }

    /// Ends `up`; what it says of its run.
    pub fn stop(self) -> Value {
        self.up.terminate()
    }
}

fn size_of(path: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(path) else {
        return std::fs::metadata(path).map_or(0, |m| m.len());
    };
    entries.map(|e| size_of(&e.unwrap().path())).sum()
}
