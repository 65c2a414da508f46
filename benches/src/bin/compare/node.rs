//! A node of a grid, with its daemon and its volumes.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::grid::Grid;
use crate::process::{Background, json, on_core, pause};

/// Ends with this.
pub struct Node<'a> {
    grid: &'a Grid,
    data: PathBuf,
    pub daemon: Background,
}

impl<'a> Node<'a> {
    /// Joins the grid and starts `forebay node`, where the grid's commands run.
    pub fn start(grid: &'a Grid, name: &str) -> Self {
        Self::start_as(grid, name, |command| command)
    }

    /// Starts one whose volume `v` of `v:1` is attached, and all here; also the volume's file, and its socket.
    pub fn with_volume(grid: &'a Grid, name: &str) -> (Self, PathBuf, String) {
        let node = Self::start(grid, name);
        let made = node.volume(&["create", "v:1", "--name", "v"]);
        let file = PathBuf::from(made["disk"].as_str().unwrap());
        assert!(file.exists(), "{}", file.display());
        let socket = node.attach("v", &["--no-trace"]);
        node.wait_for("v");
        (node, file, socket)
    }

    /// The same, in a way of its own.
    pub fn start_as(grid: &'a Grid, name: &str, how: impl Fn(Command) -> Command) -> Self {
        let data = grid.join("node", name);
        let mut daemon = Background::start(&mut how(grid.command_as(&data, &["node"])));
        assert!(!daemon.first_line().is_empty(), "the daemon ended before it served");
        Self { grid, data, daemon }
    }

    /// The same with one thread for volumes, all of the daemon kept to a core.
    pub fn start_on(grid: &'a Grid, name: &str, core: usize) -> Self {
        Self::start_as(grid, name, |mut command| {
            on_core(core, command.args(["--set", "node.cores=1"]))
        })
    }

    /// Where its daemon listens.
    pub fn socket(&self) -> PathBuf {
        self.data.join("node/node.sock")
    }

    pub fn command(&self, args: &[&str]) -> Command {
        self.grid.command_as(&self.data, args)
    }

    /// Does something with volumes; the volume as it is then.
    pub fn volume(&self, args: &[&str]) -> Value {
        json(&mut self.command(&[&["volume"], args].concat()))
    }

    /// Whether `volume attach` knows an option.
    pub fn can_attach(&self, option: &str) -> bool {
        let help = self.command(&["volume", "attach", "--help"]).output().unwrap();
        String::from_utf8_lossy(&help.stdout).contains(option)
    }

    /// Shows a volume; the path of its socket.
    pub fn attach(&self, name: &str, options: &[&str]) -> String {
        let attached = self.volume(&[&["attach", name], options].concat());
        attached["attached"]["path"].as_str().unwrap().to_owned()
    }

    /// Takes a volume from its guest, and removes it.
    pub fn remove(&self, name: &str) {
        self.volume(&["detach", name]);
        self.volume(&["rm", name]);
    }

    /// Waits until all of a volume is here.
    pub fn wait_for(&self, name: &str) {
        while self.volume(&["show", name])["plain"] != true {
            pause(Duration::from_millis(100));
        }
    }

    /// How far a volume is that is attached.
    pub fn hydration(&self, name: &str) -> Value {
        self.volume(&["show", name])["hydration"].take()
    }
}
