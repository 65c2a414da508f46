//! `forebay lease`: who may write which volume.

use api::lease::{BreakLease, LeaseInfo, LeaseList};
use image::Result;

use super::with_grid;
use crate::cli::LeaseCommand;
use crate::config::Config;
use crate::output::{Output, table, time};

/// Runs the command.
pub fn run(config: &Config, command: LeaseCommand, output: Output) -> Result<()> {
    match command {
        LeaseCommand::List => {
            let all = with_grid(config, |grid| async move { grid.placement.leases().await })?;
            output.result(&all, rows)
        }
        LeaseCommand::Break(args) => {
            let asked = BreakLease { why: args.why, at_once: args.at_once };
            let info = with_grid(config, |grid| async move {
                grid.placement.break_lease(&args.volume, &asked).await
            })?;
            output.result(&info, human)
        }
    }
}

fn rows(list: &LeaseList) -> String {
    let head = ["VOLUME", "CALLED", "NODE", "EPOCH", "SINCE", "LAPSES", ""];
    let head = head.map(str::to_owned).to_vec();
    let rows = list.leases.iter().map(|l| {
        let lapses = l.lapses.map_or_else(String::new, |s| format!("in {s} s"));
        let revoked = if l.revoked { "is being taken back" } else { "" };
        let node = l.holder.clone().unwrap_or_default();
        let (epoch, since) = (l.epoch.to_string(), time(l.since));
        vec![l.volume.clone(), l.called.clone(), node, epoch, since, lapses, revoked.to_owned()]
    });
    let mut text = table(&std::iter::once(head).chain(rows).collect::<Vec<_>>());
    if !list.reads.is_empty() {
        let head = ["IMAGE", "READ BY", "LAPSES"].map(str::to_owned).to_vec();
        let rows = list.reads.iter().map(|read| {
            let image = read.image.to_string();
            vec![image, read.holder.clone(), format!("in {} s", read.lapses)]
        });
        text.push('\n');
        text += &table(&std::iter::once(head).chain(rows).collect::<Vec<_>>());
    }
    text
}

fn human(info: &LeaseInfo) -> String {
    match (&info.holder, info.lapses) {
        (Some(holder), Some(lapses)) => format!(
            "node {holder} is told to stop; the lease is free when it has, at the latest in {lapses} s\n"
        ),
        _ => "the lease is free\n".to_owned(),
    }
}
