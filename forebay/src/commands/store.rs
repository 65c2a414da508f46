//! `forebay store …`: taking care of the permanent store.

use api::catalog::{StoreReport, VerifyStoreRequest};
use image::{Error, Kind, Result};
use placement::Clock;

use super::with_grid;
use crate::cli::{StoreCommand, VerifyStoreArgs};
use crate::config::Config;
use crate::output::{Output, bytes};

/// Runs the command.
pub fn run(config: &Config, command: &StoreCommand, output: Output) -> Result<()> {
    match command {
        StoreCommand::Verify(args) => verify(config, args, output),
    }
}

fn verify(config: &Config, args: &VerifyStoreArgs, output: Output) -> Result<()> {
    let asked = VerifyStoreRequest {
        deep: args.deep,
        within_secs: args.within.map(|t| t.as_secs()),
        bytes: args.bytes,
        rate: args.rate,
        // Another sample each time.
        seed: args.seed.unwrap_or_else(|| Clock::system().now()),
        after: args.after.clone(),
    };
    let verify = |grid: crate::grid::Grid| async move { grid.placement.verify_store(&asked).await };
    let report = with_grid(config, verify)?;
    output.result(&report, human)?;
    match report.bad.first() {
        None => Ok(()),
        Some(first) => {
            let more = report.bad_places - 1;
            let message = format!(
                "the store: {first} is bad, and {more} other places; to import the disks again heals \
                 what they still have"
            );
            Err(Error::new(Kind::Corrupt, message))
        }
    }
}

fn human(report: &StoreReport) -> String {
    let mut text = format!(
        "{} images and {} packs ({} frames, {}) of {} images and packs",
        report.images,
        report.packs,
        report.frames,
        bytes(report.bytes),
        report.in_all
    );
    report.repaired.iter().for_each(|place| text += &format!("\nrepaired: {place}"));
    report.bad.iter().for_each(|place| text += &format!("\nbad: {place}"));
    if let Some(orphans) = report.orphans.as_ref().filter(|orphans| !orphans.is_empty()) {
        let (count, size) = (orphans.len(), bytes(report.orphan_bytes));
        text += &format!(
            "\n{count} objects ({size}) that no image leans on: `forebay gc` removes them"
        );
    }
    if report.orphans.is_none() && report.next.is_none() && report.before == 0 {
        text += "\nwhat no image leans on is not known: papers of an image cannot be read, and it may \
                 lean on anything";
    }
    if let Some(next) = &report.next {
        text += &format!("\nto go on: --seed {} --after {next}", report.seed);
    }
    if report.bad.is_empty() { text + "\nall good" } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_orphans_are_not_known_is_said_where_all_was_looked_at() {
        let whole = StoreReport::default();
        let known = StoreReport { orphans: Some(Vec::new()), ..whole.clone() };
        let part = StoreReport { next: Some("1".into()), ..whole.clone() };
        let rest = StoreReport { before: 1, ..whole.clone() };
        let says = [whole, known, part, rest].map(|r| human(&r).contains("is not known"));
        assert_eq!(says, [true, false, false, false]);
    }
}
