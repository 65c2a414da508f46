//! The tour's grid: this very program in processes of its own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, bail};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::ChildStdout;

use crate::report::Stopped;

/// A running `forebay up`.
pub struct Grid {
    data: PathBuf,
    up: Running,
}

/// A process that does not outlive its guard: the tour may be interrupted anywhere.
struct Running {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Running {
    /// Starts this program with nothing that the user has set for grids of their own: a
    /// `FOREBAY_STORE_AT` would have the tour's disks imported there.
    fn start(args: &[&str], data: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        let ours = |name: &std::ffi::OsStr| name.as_encoded_bytes().starts_with(b"FOREBAY_");
        std::env::vars_os().filter(|(name, _)| ours(name)).for_each(|(name, _)| {
            command.env_remove(name);
        });
        command.args(args).arg("--json").arg("--data").arg(data);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let out = child.stdout.take().context("a piped stdout")?;
        Ok(Self { child, out: BufReader::new(ChildStdout::from_std(out)?) })
    }

    async fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.out.read_line(&mut line).await?;
        Ok(line)
    }

    /// What else it says, and how it ends.
    async fn rest(&mut self) -> anyhow::Result<(String, ExitStatus)> {
        let mut text = String::new();
        self.out.read_to_string(&mut text).await?;
        // Its output has ended, so it has, or is about to.
        Ok((text, self.child.wait()?))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Does nothing to one that has ended. It is waited for, because it may be making files in the
        // directory that goes next.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Grid {
    /// Starts `forebay up` with its data under `dir`, and waits until it serves.
    pub async fn start(dir: &Path) -> anyhow::Result<Self> {
        let data = dir.join("grid");
        let mut up = Running::start(&["up", "--listen", "127.0.0.1:0"], &data)?;
        if up.line().await?.is_empty() {
            bail!("forebay up ended before it served");
        }
        Ok(Self { data, up })
    }

    /// Where the cache keeps its files.
    pub fn cache_dir(&self) -> PathBuf {
        self.data.join("cache")
    }

    /// Runs a command against the grid and parses what it reports.
    pub async fn command<T: DeserializeOwned>(&self, args: &[&str]) -> anyhow::Result<T> {
        let (text, status) = Running::start(args, &self.data)?.rest().await?;
        if !status.success() {
            bail!("forebay {} ended with {status}", args.join(" "));
        }
        serde_json::from_str(&text).with_context(|| format!("its report: {text}"))
    }

    /// Stops it as systemd would, and returns what it says of its run.
    pub async fn stop(mut self) -> anyhow::Result<Stopped> {
        let pid = rustix::process::Pid::from_child(&self.up.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let (text, status) = self.up.rest().await?;
        if !status.success() {
            bail!("forebay up ended with {status}");
        }
        serde_json::from_str(&text).with_context(|| format!("its last line: {text}"))
    }
}
