//! Nodes that have joined a grid, each with a daemon of its own.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::harness::{Background, Ended, Grid, forebay, run};

/// A node of a grid, with a data directory of its own.
pub struct Node {
    pub name: String,
    pub data: PathBuf,
    pub daemon: Option<Background>,
}

impl Node {
    pub fn join(grid: &Grid, name: &str) -> Self {
        let token = grid.run(&["node", "token"]).json();
        Self::with_token(&grid.dir, name, token["token"].as_str().unwrap())
    }

    pub fn with_token(dir: &Path, name: &str, token: &str) -> Self {
        let data = dir.join(name);
        let join = ["node", "join", token, "--name", name];
        let joined = run(forebay(&data).args(join));
        assert_eq!(joined.code, 0, "{}", joined.err);
        let mut node = Self { name: name.into(), data, daemon: None };
        node.start();
        node
    }

    pub fn start(&mut self) {
        let mut daemon = Background::start(forebay(&self.data).args(["node", "--json"]));
        assert!(daemon.line().contains("socket"));
        self.daemon = Some(daemon);
    }

    pub fn kill(&mut self) {
        self.daemon.take().expect("a daemon runs").kill();
    }

    /// Placement was started anew, and listens elsewhere.
    pub fn follow(&self, grid: &Grid) {
        let up = std::fs::read(grid.data.join("up.json")).unwrap();
        let up: Value = serde_json::from_slice(&up).unwrap();
        let joined = serde_json::json!({ "placement": up["placement"] });
        std::fs::write(self.data.join("grid.json"), joined.to_string()).unwrap();
    }

    pub fn run(&self, args: &[&str]) -> Ended {
        run(forebay(&self.data).args(args))
    }

    pub fn ready(&self) -> Vec<Value> {
        let ready = self.run(&["pool", "ready", "--json"]).json();
        ready.as_array().unwrap().iter().filter(|v| v["state"] == "ready").cloned().collect()
    }

    pub fn disk(&self, volume: &str) -> Vec<u8> {
        let info = self.run(&["volume", "show", volume, "--json"]).json();
        assert_eq!((&info["state"], &info["plain"]), (&"allocated".into(), &true.into()));
        std::fs::read(info["disk"].as_str().unwrap()).unwrap()
    }
}
