//! A grid to measure, in a namespace or not.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Setup;
use crate::process::{Background, inside, run};

pub struct Grid {
    program: PathBuf,
    pub data: PathBuf,
    pub up: Background,
    client: Option<&'static str>,
}

impl Grid {
    /// Starts `forebay up` on `ip`; commands run in the client's namespace.
    pub fn start(setup: &Setup, data: &Path, place: Option<(&str, &str, &'static str)>) -> Self {
        Self::start_by(setup, data, place, |up| up)
    }

    /// The same, by what `wrap` makes of the command.
    pub fn start_by(
        setup: &Setup,
        data: &Path,
        place: Option<(&str, &str, &'static str)>,
        wrap: impl FnOnce(Command) -> Command,
    ) -> Self {
        let ip = place.map_or("127.0.0.1", |p| p.1);
        let mut command = inside(place.map(|p| p.0), &setup.program);
        command.args(["up", "--json", "--listen", &format!("{ip}:0")]);
        command.args(["--set", &format!("serve.ip={ip}"), "--data"]).arg(data);
        let mut up = Background::start(&mut wrap(command));
        let mut line = String::new();
        BufReader::new(up.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "forebay up ended before it served");
        Self {
            program: setup.program.clone(),
            data: data.to_owned(),
            up,
            client: place.map(|p| p.2),
        }
    }

    /// A command against this grid.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = inside(self.client, &self.program);
        command.args(args).args(["--json", "--data"]).arg(&self.data);
        command
    }

    /// Imports a disk; what the command reports.
    pub fn import(&self, disk: &Path, name: &str) -> serde_json::Value {
        let mut command = Command::new(&self.program);
        command.arg("import").arg(disk).args([name, "--json", "--data"]).arg(&self.data);
        let mut command = match self.client {
            None => command,
            Some(_) => self.command(&["import", disk.to_str().unwrap(), name]),
        };
        serde_json::from_slice(&run(&mut command).stdout).expect("a JSON report")
    }

    /// Bytes of the files under the store.
    pub fn stored(&self) -> u64 {
        size_of(&self.data.join("store"))
    }
}

fn size_of(path: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(path) else {
        return std::fs::metadata(path).map_or(0, |m| m.len());
    };
    entries.map(|e| size_of(&e.unwrap().path())).sum()
}
