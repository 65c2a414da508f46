//! `forebay volume release` and `erasures`: volumes are given back and erased, and there is a record of it.

use std::path::PathBuf;
use std::time::Duration;

use api::released::{ReleasedList, ReleasedOn};
use api::volume::{EraseMethod, EraseProof, Erasure, ReleaseVolume};
use image::error::At;
use image::{Error, Kind, Result};
use node::daemon::DaemonClient;
use volume_pool::erase::{Outcome, Record};

use super::node::daemon_client;
use super::{block_on, with_grid};
use crate::cli::{EraseArg, ErasuresArgs, ProofArg, ReleaseVolumeArgs};
use crate::config::Config;
use crate::grid::Grid;
use crate::output::{Output, bytes, table, time};

/// How often it is looked at how far it is.
const TICK: Duration = Duration::from_millis(100);

/// Runs `forebay volume release`.
pub fn run(config: &Config, args: &ReleaseVolumeArgs, output: Output) -> Result<()> {
    let daemon = daemon_client(config);
    let asked = ReleaseVolume {
        method: match args.by {
            EraseArg::Zeros => EraseMethod::Zeros,
            EraseArg::Random => EraseMethod::Random,
            EraseArg::Discard => EraseMethod::Discard,
        },
        passes: args.passes,
        proof: match args.verify {
            ProofArg::None => EraseProof::None,
            ProofArg::Sample => EraseProof::Sample,
            ProofArg::All => EraseProof::All,
        },
    };
    let begun = block_on(async { daemon.release_volume(&args.name, &asked).await })?;
    if args.no_wait {
        return output.result(&begun, |e| {
            format!("{} is nobody's any more, and is being erased ({})\n", e.name, e.id)
        });
    }
    block_on(wait(&daemon, &begun, output))?;
    let record = record(config, &records(config).join(format!("{}.erasure", begun.id)))?;
    output.result(&record, |record| format!("{record}\n"))
}

/// Waits until it is erased.
async fn wait(daemon: &DaemonClient, begun: &Erasure, output: Output) -> Result<()> {
    let mut progress = output.progress("erasing", begun.size);
    loop {
        let all = daemon.erasures().await?;
        let Some(now) = all.into_iter().find(|e| e.id == begun.id) else { break };
        if let Some(failed) = now.failed {
            let error = Error::from(failed);
            return Err(error.at(format!("{}: it is not erased, and stays out of use", now.name)));
        }
        progress.at(now.done.min(now.size), now.size);
        tokio::time::sleep(TICK).await;
    }
    progress.finish();
    Ok(())
}

fn records(config: &Config) -> PathBuf {
    config.data.join("node/erasures")
}

/// A record of this node, checked.
fn record(config: &Config, path: &std::path::Path) -> Result<Record> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path.display(), e))?;
    let grid = Grid::find(&config.data)?;
    let is_good = |said: &[u8], signature: &[u8]| grid.has_signed(said, signature);
    Record::open(&text, is_good).at(|| path.display().to_string())
}

/// Runs `forebay volume erasures`.
pub fn list(config: &Config, args: &ErasuresArgs, output: Output) -> Result<()> {
    if args.grid {
        let all = with_grid(config, |grid| async move { grid.placement.released().await })?;
        return output.result(&all, grid_rows);
    }
    if !args.records {
        let all = block_on(async { daemon_client(config).erasures().await })?;
        return output.result(&all, |all| rows(all));
    }
    let dir = records(config);
    let mut all = Vec::new();
    match std::fs::read_dir(&dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        entries => {
            for entry in entries.map_err(|e| Error::io(dir.display(), e))? {
                let path = entry.map_err(|e| Error::io(dir.display(), e))?.path();
                if path.extension().is_some_and(|extension| extension == "erasure") {
                    all.push(record(config, &path)?);
                }
            }
        }
    }
    all.sort_by_key(|record| (record.ended, record.volume.clone()));
    if let Some(failed) = all.iter().find(|r| matches!(r.outcome, Outcome::Failed { .. })) {
        let what = format!("{}: its record says that it was not erased", failed.name);
        output.result(&all, |all| record_rows(all))?;
        return Err(Error::new(Kind::Corrupt, what));
    }
    output.result(&all, |all| record_rows(all))
}

fn rows(all: &[Erasure]) -> String {
    let head = ["ID", "VOLUME", "DONE", "OF", ""].map(str::to_owned).to_vec();
    let rows = all.iter().map(|e| {
        let why = e.failed.as_ref().map(|f| f.message.clone()).unwrap_or_default();
        vec![e.id.clone(), e.name.clone(), bytes(e.done), bytes(e.size), why]
    });
    table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

fn grid_rows(all: &ReleasedList) -> String {
    let head = ["VOLUME", "ID", "NODE", "POOL", "ENDED", "FREED", "READ BACK", "HOW"];
    let head = head.map(str::to_owned).to_vec();
    let rows = all.released.iter().map(|ReleasedOn { node, released: r }| {
        let pool = r.pool.clone().unwrap_or_else(|| "-".into());
        let names = vec![r.called.clone(), r.volume.clone(), node.clone(), pool, time(r.ended)];
        let how = format!("{}, {} passes", r.method, r.passes);
        [names, vec![bytes(r.freed), bytes(r.read_back), how]].concat()
    });
    let rows = table(&std::iter::once(head).chain(rows).collect::<Vec<_>>());
    format!("{rows}in all: {} volumes, {}\n", all.volumes, bytes(all.bytes))
}

fn record_rows(all: &[Record]) -> String {
    let head = ["VOLUME", "ID", "NODE", "ENDED", "OVERWRITTEN", "GIVEN BACK", "READ BACK"];
    let head = head.map(str::to_owned).to_vec();
    let rows = all.iter().map(|r| {
        let t = r.tally;
        let numbers = [t.overwritten, t.discarded + t.shared, t.read_back].map(bytes);
        let names = vec![r.name.clone(), r.volume.clone(), r.node.clone(), time(r.ended)];
        [names, numbers.to_vec()].concat()
    });
    table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}
