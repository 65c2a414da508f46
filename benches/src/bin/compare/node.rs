//! A node of a grid, with its daemon and its volumes.

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::grid::Grid;
use crate::process::{Background, json};

/// Ends with this.
pub struct Node<'a> {
    grid: &'a Grid,
    data: PathBuf,
    pub daemon: Background,
}

impl<'a> Node<'a> {
    /// Joins the grid and starts `forebay node`, where the grid's commands run.
    pub fn start(grid: &'a Grid, name: &str) -> Self {
        let data = grid.join("node", name);
        let mut daemon = Background::start(&mut grid.command_as(&data, &["node"]));
        assert!(!daemon.first_line().is_empty(), "the daemon ended before it served");
        Self { grid, data, daemon }
    }

    fn command(&self, args: &[&str]) -> Command {
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

    /// How far a volume is that is attached.
    pub fn hydration(&self, name: &str) -> Value {
        self.volume(&["show", name])["hydration"].take()
    }
}
