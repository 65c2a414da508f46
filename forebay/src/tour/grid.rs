//! The tour's grid: this very program in processes of its own.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};
use serde::de::DeserializeOwned;

use crate::report::Stopped;

/// A running `forebay up`.
pub struct Grid {
    program: PathBuf,
    data: PathBuf,
    up: Option<Up>,
}

struct Up {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Grid {
    /// Starts `forebay up` with its data under `dir`, and waits until it serves.
    pub fn start(dir: &Path) -> anyhow::Result<Self> {
        let (program, data) = (std::env::current_exe()?, dir.join("grid"));
        let mut child = Command::new(&program)
            .args(["up", "--json", "--listen", "127.0.0.1:0", "--data"])
            .arg(&data)
            .stdout(Stdio::piped())
            .spawn()?;
        let lines = BufReader::new(child.stdout.take().context("a piped stdout")?);
        let mut grid = Self { program, data, up: Some(Up { child, lines }) };
        let line = grid.line()?;
        if line.is_empty() {
            bail!("forebay up ended before it served");
        }
        Ok(grid)
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        if let Some(up) = &mut self.up {
            up.lines.read_line(&mut line)?;
        }
        Ok(line)
    }

    /// Where the cache keeps its files.
    pub fn cache_dir(&self) -> PathBuf {
        self.data.join("cache")
    }

    /// Runs a command against the grid and parses what it reports.
    pub fn command<T: DeserializeOwned>(&self, args: &[&str]) -> anyhow::Result<T> {
        let output = Command::new(&self.program)
            .args(args)
            .arg("--json")
            .arg("--data")
            .arg(&self.data)
            .stderr(Stdio::inherit())
            .output()?;
        if !output.status.success() {
            bail!("forebay {} ended with {}", args.join(" "), output.status);
        }
        let text = String::from_utf8(output.stdout)?;
        serde_json::from_str(&text).with_context(|| format!("its report: {text}"))
    }

    /// Stops it as systemd would, and returns what it says of its run.
    pub fn stop(&mut self) -> anyhow::Result<Stopped> {
        let up = self.up.as_ref().context("the grid runs")?;
        let pid = rustix::process::Pid::from_child(&up.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let line = self.line()?;
        let mut up = self.up.take().context("the grid runs")?;
        let status = up.child.wait()?;
        if !status.success() {
            bail!("forebay up ended with {status}");
        }
        serde_json::from_str(&line).with_context(|| format!("its last line: {line}"))
    }
}

impl Drop for Grid {
    fn drop(&mut self) {
        if let Some(up) = &mut self.up {
            // An error on the way out: do not leave the process behind.
            let _ = up.child.kill();
            let _ = up.child.wait();
        }
    }
}
