//! Checks what lies on a scratch copy, with the standard tools.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blockio::{BlockFile, OpenMode};
use image::{Error, Result};

use super::layout::{Plan, Spot, survey};
use super::report::{Part, Verdict};
use super::run::{command, run};
use super::scratch::{DISK, Scratch};
use super::verdict::{Ended, Task, judge, judge_replayed};
use crate::tools;

const SCRIPT: &str = include_str!("check.sh");
/// A tool that takes longer is ended: file systems can be made that keep one busy for ever.
const LIMIT: Duration = Duration::from_secs(3600);

/// What lies on a disk, and what came of checking it.
pub type Survey = Vec<Part>;

/// How a copy is checked.
#[derive(Clone, Debug)]
pub struct CheckOptions {
    /// Logical sector of the disk, in bytes.
    pub sector: u32,
    /// Whether this machine's kernel may mount an XFS of the copy, which is what it takes to replay its log.
    pub mount: bool,
}

#[expect(clippy::disallowed_methods, reason = "measures how long real tools take")]
fn now() -> Instant {
    Instant::now()
}

/// Checks everything on the disk of a scratch directory. The disk is changed nowhere but where a journal has to be
/// replayed, or the mark taken away by which a file system says that it is in use.
///
/// The calling thread must outlive the check: tools end with the thread that starts them.
///
/// # Errors
///
/// If the disk cannot be read, or no tool be started at all. What is wrong with the disk is a verdict.
pub async fn check(scratch: &Scratch, options: &CheckOptions) -> Result<Survey> {
    let (path, sector) = (scratch.disk(), options.sector);
    let looked = tokio::task::spawn_blocking(move || look(path, sector));
    let looked = looked.await.map_err(|e| Error::io("looking at the copy", e.into()))?;
    let (file, spots) = looked?;
    let run = Checker { scratch, options, file: Arc::new(file), dirs: tools::path() };
    let mut parts = Vec::new();
    for spot in spots {
        let began = now();
        let (tool, verdict) = run.one(&spot).await?;
        parts.push(Part {
            number: spot.number,
            start: spot.bytes.start,
            bytes: spot.bytes.end - spot.bytes.start,
            holds: spot.holds,
            tool: tool.map(|task| task.tool().to_owned()),
            verdict,
            millis: (now() - began).as_millis() as u64,
        });
    }
    Ok(parts)
}

fn look(path: PathBuf, sector: u32) -> Result<(BlockFile, Vec<Spot>)> {
    let failed = |e| Error::io("the scratch copy", e);
    let file = BlockFile::open(path, OpenMode::write()).map_err(failed)?;
    let spots = survey(file.size().map_err(failed)?, sector, |range| {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        file.read_exact_at(&mut bytes, range.start).map_err(failed)?;
        Ok(bytes)
    })?;
    Ok((file, spots))
}

struct Checker<'a> {
    scratch: &'a Scratch,
    options: &'a CheckOptions,
    file: Arc<BlockFile>,
    dirs: Vec<PathBuf>,
}

/// How a tool ended, or what is to be said in its place.
type Done = std::result::Result<Ended, Verdict>;

impl Checker<'_> {
    async fn one(&self, spot: &Spot) -> Result<(Option<Task>, Verdict)> {
        let (task, verdict) = match &spot.plan {
            Plan::Known(verdict) => return Ok((None, verdict.clone())),
            Plan::Check(Task::Xfs) => (Task::Xfs, self.xfs(spot).await?),
            Plan::Check(task) => (*task, verdict(*task, self.run(*task, spot).await?)),
            Plan::Replay => (Task::Ext, self.replay(spot).await?),
            Plan::Unmark { at } => (Task::Fat, self.unmark(spot, *at).await?),
        };
        Ok((Some(task), verdict))
    }

    /// An ext whose journal has to be replayed.
    async fn replay(&self, spot: &Spot) -> Result<Verdict> {
        let mut ends = Vec::new();
        for task in [Task::Ext, Task::ExtReplay, Task::Ext] {
            match self.run(task, spot).await? {
                Ok(ended) => ends.push(ended),
                Err(verdict) => return Ok(verdict),
            }
        }
        Ok(judge_replayed(&ends[0], &ends[1], &ends[2]))
    }

    /// An XFS: if its log has to be replayed and that is allowed, it is mounted.
    async fn xfs(&self, spot: &Spot) -> Result<Verdict> {
        let first = match self.run(Task::Xfs, spot).await? {
            Ok(ended) => ended,
            Err(verdict) => return Ok(verdict),
        };
        let found = judge(Task::Xfs, &first);
        if !(first.said.has(1) && self.options.mount) {
            return Ok(found);
        }
        Ok(match verdict(Task::XfsReplay, self.run(Task::XfsReplay, spot).await?) {
            Verdict::Clean => {
                let done = "its log was replayed by mounting it".to_owned();
                Verdict::Recovered { done, clean_before: first.code == Some(0) }
            }
            other => other,
        })
    }

    /// A FAT that says it is in use.
    async fn unmark(&self, spot: &Spot, at: u64) -> Result<Verdict> {
        let before = verdict(Task::Fat, self.run(Task::Fat, spot).await?);
        if !matches!(before, Verdict::Damaged { .. }) {
            return Ok(before);
        }
        let file = Arc::clone(&self.file);
        let cleared = tokio::task::spawn_blocking(move || {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at)?;
            file.write_all_at(&[byte[0] & !1], at)
        });
        let cleared = cleared.await.unwrap_or_else(|e| Err(e.into()));
        cleared.map_err(|e| Error::io("the scratch copy", e))?;
        Ok(match verdict(Task::Fat, self.run(Task::Fat, spot).await?) {
            Verdict::Clean => {
                let done = "the mark was taken away that it is in use".to_owned();
                Verdict::Recovered { done, clean_before: false }
            }
            other => other,
        })
    }

    /// Has a tool look at a part.
    async fn run(&self, task: Task, spot: &Spot) -> Result<Done> {
        let tool = task.tool();
        if tools::find(tool, &self.dirs).is_none() {
            let why = format!("`{tool}` is not here: install the package {}", task.package());
            return Ok(Err(Verdict::not_checked(why)));
        }
        let whole = spot.bytes == (0..self.file.size().unwrap_or(0));
        let loops = task == Task::XfsReplay || !(whole || task == Task::Ext);
        if loops && !rustix::process::geteuid().is_root() {
            let why = format!(
                "`{tool}` looks at a partition only through a loop device, which needs root"
            );
            return Ok(Err(Verdict::not_checked(why)));
        }
        let dir = self.scratch.dir();
        let mut command = match task {
            // What is mounted for it nobody else sees, and it goes with the one who mounted it.
            Task::XfsReplay => {
                let mut command = command("unshare", dir)?;
                command.args(["--mount", "--propagation", "private", "--", "sh"]);
                command
            }
            _ => command("sh", dir)?,
        };
        let numbers =
            [spot.bytes.start, spot.bytes.end - spot.bytes.start, self.options.sector.into()];
        command.args(["-c", SCRIPT, "check"]).arg(format!("./{DISK}"));
        command.args(numbers.map(|n| n.to_string())).arg(task.name());
        if task == Task::XfsReplay {
            command.arg(self.scratch.mount()?);
        }
        Ok(match run(command, task.wanted(), LIMIT).await? {
            Some(ended) => Ok(ended),
            None => {
                let hours = LIMIT.as_secs() / 3600;
                Err(Verdict::not_checked(format!("`{tool}` had not ended after {hours} h")))
            }
        })
    }
}

fn verdict(task: Task, done: Done) -> Verdict {
    done.map_or_else(|verdict| verdict, |ended| judge(task, &ended))
}
