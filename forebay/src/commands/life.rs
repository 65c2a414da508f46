//! `forebay node cordon`, `uncordon`, `drain`, `forget`: what may be put on a node, and its end.

use std::time::Duration;

use api::life::{Forgotten, NodeLife, Standing};
use image::{Error, Kind, Result};

use super::with_grid;
use crate::cli::{DrainNodeArgs, ForgetArgs, NodeNameArgs};
use crate::config::Config;
use crate::output::{Output, bytes, table};

/// How often is looked at what is left.
const LOOK: Duration = Duration::from_millis(500);

/// Says what may be put on a node.
pub fn stand(
    config: &Config,
    NodeNameArgs { name }: NodeNameArgs,
    standing: Standing,
    output: Output,
) -> Result<()> {
    let set =
        with_grid(
            config,
            |grid| async move { grid.placement.set_standing(&name, standing).await },
        )?;
    output.result(&set, human)
}

/// Drains a node; waits if that is wanted until nothing is left that goes by itself.
pub fn drain(config: &Config, args: DrainNodeArgs, output: Output) -> Result<()> {
    let life = with_grid(config, |grid| async move {
        let mut life = grid.placement.set_standing(&args.name, Standing::Draining).await?;
        let mut left = args.wait.unwrap_or_default();
        let mut said = None;
        while !goes_by_itself(&life) && !left.is_zero() {
            let now = (life.ready.len(), life.open);
            if said != Some(now) && !output.is_json() {
                eprintln!("{}: {} ready volumes and {} items to go", life.name, now.0, now.1);
                said = Some(now);
            }
            tokio::time::sleep(LOOK.min(left)).await;
            left = left.saturating_sub(LOOK);
            life = grid.placement.node(&args.name).await?;
        }
        Ok(life)
    })?;
    output.result(&life, human)?;
    match args.wait.is_some() && !life.drained {
        true => Err(left_over(&life)),
        false => Ok(()),
    }
}

/// Whether nothing is left but what people must move.
fn goes_by_itself(life: &NodeLife) -> bool {
    !life.away && life.ready.is_empty() && life.open == 0
}

fn left_over(life: &NodeLife) -> Error {
    let (ready, volumes) = (life.ready.len(), life.volumes.len());
    let what = format!(
        "node {}: {ready} ready volumes, {} items, {volumes} volumes of somebody and {} leases are left",
        life.name,
        life.open,
        life.leases.len()
    );
    Error::new(Kind::Busy(Duration::from_secs(10)), what)
}

/// Forgets a node.
pub fn forget(config: &Config, args: ForgetArgs, output: Output) -> Result<()> {
    let ForgetArgs { name, force } = args;
    let was = with_grid(config, |grid| async move { grid.placement.forget(&name, force).await })?;
    output.result(&was, gone)
}

/// What is left of a node.
pub fn human(life: &NodeLife) -> String {
    let heard = match (life.heard, life.away) {
        (None, _) => "not yet".to_owned(),
        (Some(s), false) => format!("{s} s ago"),
        (Some(s), true) => format!("away: {s} s ago"),
    };
    let mut lines = vec![
        vec!["node".to_owned(), life.name.clone()],
        vec!["standing".into(), standing(life)],
        vec!["heard".into(), heard],
        vec!["ready".into(), format!("{} volumes", life.ready.len())],
        vec!["to do".into(), format!("{} items", life.open)],
    ];
    lines.extend(left(life));
    table(&lines)
}

fn standing(life: &NodeLife) -> String {
    let drained = if life.drained { ": drained" } else { "" };
    format!("{}{drained}", life.standing.name())
}

/// What is somebody's, and who has the lease to write it.
fn left(life: &NodeLife) -> Vec<Vec<String>> {
    let line = |v: &api::life::NodeVolume| {
        let holder = life.leases.iter().find(|lease| lease.volume == v.id);
        let lease = match holder.and_then(|lease| lease.holder.as_ref()) {
            Some(holder) => format!("leased by {holder}"),
            None if v.attached => "attached".to_owned(),
            None => "at rest".to_owned(),
        };
        vec!["left".to_owned(), format!("{} ({}), {}: {lease}", v.called, v.id, bytes(v.size))]
    };
    let elsewhere = life.leases.iter().filter(|l| life.volumes.iter().all(|v| v.id != l.volume));
    let lease = |l: &api::lease::LeaseInfo| {
        vec!["left".to_owned(), format!("the lease of {} ({})", l.called, l.volume)]
    };
    life.volumes.iter().map(line).chain(elsewhere.map(lease)).collect()
}

fn gone(forgotten: &Forgotten) -> String {
    let was = &forgotten.was;
    let mut text = format!("forgot node {}", was.name);
    if forgotten.revoked {
        text += "; its certificate is refused from now on";
    }
    text.push('\n');
    if forgotten.lapses > 0 {
        let (leases, lapses) = (was.leases.len(), forgotten.lapses);
        text += &format!("its {leases} leases are free in {lapses} s at the latest\n");
    }
    if !was.ready.is_empty() {
        text += &format!("{} ready volumes went with it\n", was.ready.len());
    }
    for volume in &was.volumes {
        let size = bytes(volume.size);
        text +=
            &format!("volume {} ({}), {size}, is on its disks alone\n", volume.called, volume.id);
    }
    text
}
