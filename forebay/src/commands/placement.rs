//! `forebay placement …`: taking care of placement's state, where it lies.

use std::collections::BTreeMap;
use std::path::PathBuf;

use api::grid::{PlacementInfo, PlacementStatus};
use image::{Error, Kind, Result};
use placement::state::{
    self, BackupReport, CheckReport, ClusterPlace, Papers, RestoreReport, StatePlace,
};
use placement::{Authority, Clock, Uptime};

use super::block_on;
use crate::cli::PlacementCommand;
use crate::config::Config;
use crate::grid::Grid;
use crate::output::{Output, bytes};

/// Where placement's state is, by the configuration.
pub fn state_place(config: &Config) -> Result<StatePlace> {
    let text = config.text("placement.state");
    if !ClusterPlace::is_meant(text) {
        return Ok(config.path("placement.state", "placement.redb").into());
    }
    let place = papers(config).and_then(|papers| ClusterPlace::parse(text, papers));
    let place = place.map_err(|e| e.at("placement.state"))?;
    Ok(StatePlace::Cluster { place, uptime: Uptime::system() })
}

fn papers(config: &Config) -> Result<Option<Papers>> {
    let keys = ["placement.etcd_ca", "placement.etcd_cert", "placement.etcd_key"];
    match keys.map(|key| config.text(key)) {
        ["", "", ""] => Ok(None),
        set if set.contains(&"") => {
            let what = format!("either all of {} are set, or none", keys.join(", "));
            Err(Error::new(Kind::Invalid, what))
        }
        set => {
            let [ca, cert, key] = set.map(PathBuf::from);
            Ok(Some(Papers { ca, cert, key }))
        }
    }
}

/// Runs the command.
pub fn run(config: &Config, command: &PlacementCommand, output: Output) -> Result<()> {
    let place = state_place(config)?;
    // The grid's CA is made by who serves, and not here.
    let grid = Authority::grid_in(&config.data.join("ca"))?;
    let (grid, now) = (grid.as_deref(), Clock::system().now());
    match command {
        PlacementCommand::Backup(args) => {
            let report = block_on(state::backup(&place, grid, &args.file, now))?;
            output.result(&report, backed_up)
        }
        PlacementCommand::Restore(args) => {
            let lease = config.time("placement.lease");
            let work = state::restore(&place, grid, &args.file, args.force, lease, now);
            let report = block_on(work)?;
            output.result(&report, restored)
        }
        PlacementCommand::Status => {
            let placement = Grid::find(&config.data)?.placement;
            output.result(&block_on(placement.placement())?, status_text)
        }
        PlacementCommand::Check => {
            let report = block_on(state::check(&place, grid))?;
            output.result(&report, checked)?;
            match report.bad.len() {
                0 => Ok(()),
                n => {
                    let what = format!("{place}: {n} keys are bad, the first is {}", report.bad[0]);
                    Err(Error::new(Kind::Corrupt, what))
                }
            }
        }
    }
}

fn status_text(status: &PlacementStatus) -> String {
    let PlacementStatus { asked, leader, generation, look_micros } = status;
    let leads = leader
        .as_ref()
        .map_or("nobody leads".to_owned(), |l| format!("{} leads, at {}", l.name, l.address));
    let look = look_micros.map_or_else(String::new, |micros| {
        let ms = micros as f64 / 1000.0;
        format!("\nit looks at all nodes in {ms:.1} ms")
    });
    let PlacementInfo { name, address } = asked;
    format!("{name} answers, at {address}\n{leads}{look}\ngeneration {generation}")
}

fn list(kinds: &BTreeMap<String, u64>) -> String {
    let kinds: Vec<_> = kinds.iter().map(|(kind, n)| format!("{kind} {n}")).collect();
    kinds.join(", ")
}

fn backed_up(report: &BackupReport) -> String {
    let size = bytes(report.bytes);
    format!(
        "grid {}, revision {}, {size}\nkeys: {}",
        report.grid,
        report.revision,
        list(&report.keys)
    )
}

fn restored(report: &RestoreReport) -> String {
    let at = |secs| {
        humantime::format_rfc3339_seconds(
            std::time::UNIX_EPOCH + std::time::Duration::from_secs(secs),
        )
    };
    let mut text = format!(
        "grid {}, as it was at {}, generation {}\nkeys: {}\nno lease is handed out before {}",
        report.grid,
        at(report.made),
        report.generation,
        list(&report.keys),
        at(report.not_before)
    );
    if !report.lost.is_empty() {
        text += &format!("\nlost, as they were there before: {}", list(&report.lost));
    }
    text
}

fn checked(report: &CheckReport) -> String {
    let mut text = format!("{} keys, revision {}", report.keys, report.revision);
    report.repaired.iter().for_each(|what| text += &format!("\nrepaired: {what}"));
    report.bad.iter().for_each(|what| text += &format!("\nbad: {what}"));
    if report.bad.is_empty() { text + "\nall good" } else { text }
}
