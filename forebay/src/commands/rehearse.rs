//! `forebay rehearse`: restores of images drawn by lot, once or again and again, and the record of them.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use api::catalog::{ImageLine, ImageList};
use blockio::{BlockFile, OpenMode};
use image::{Digest, Error, Kind, Result};
use node::restore::{Candidate, Failure, Limits, Record, Rehearsal, draw};

use super::images::matches;
use super::restore::{human as human_restored, restore, summary};
use super::{block_on, interrupted, run_to_end};
use crate::cli::RehearseArgs;
use crate::config::Config;
use crate::grid::Grid;
use crate::output::{Output, bytes, line, print, say, seconds, table, time};
use crate::report::{RehearseReport, Rehearsing};
use crate::serve::{rehearsals, tell_systemd};

/// A run that could not begin, as placement was away, is tried again after this time, or the period if that is less.
const AGAIN: Duration = Duration::from_secs(300);

/// Runs the command.
pub fn run(config: &Config, args: &RehearseArgs, output: Output) -> Result<()> {
    let path = rehearsals::path(config);
    if args.report {
        let mut record = Record::load(&path)?;
        if let Some(filter) = &args.filter {
            record.rehearsals.retain(|rehearsal| matches(filter, &rehearsal.name));
        }
        if record.rehearsals.is_empty() {
            say("nothing was rehearsed yet");
        }
        return output.result(&record, human_record);
    }
    if args.metrics {
        let text = block_on(async { rehearsals::text(&Record::load(&path)?) })?;
        return print(text.as_bytes());
    }
    let _alone = alone(&path)?;
    match args.every {
        None => once(config, args, output),
        Some(period) => run_to_end(again_and_again(config, args, period, output)),
    }
}

/// One process at a time keeps the record.
fn alone(path: &Path) -> Result<BlockFile> {
    let failed = |e| Error::io("the record of rehearsals", e);
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(failed)?;
    }
    let lock = BlockFile::open(path.with_extension("lock"), OpenMode::create()).map_err(failed)?;
    if lock.try_lock_exclusive().map_err(failed)? {
        return Ok(lock);
    }
    let what = format!("{}: another `forebay rehearse` is at work", path.display());
    Err(Error::new(Kind::Conflict, what))
}

fn once(config: &Config, args: &RehearseArgs, output: Output) -> Result<()> {
    let (report, outcomes) = block_on(async {
        let mut report = begin(config, args).await?;
        let mut outcomes = Vec::new();
        for (name, image) in std::mem::take(&mut report.drawn) {
            let (rehearsal, outcome) = rehearse(config, args, name, image, output).await?;
            report.rehearsals.push(rehearsal);
            outcomes.push(outcome);
        }
        Ok::<_, Error>((report, outcomes))
    })?;
    output.result(&report, human_run)?;
    if let Some(why) = none_of(&report, args) {
        say(why);
    }
    worst(outcomes)
}

/// Why nothing was rehearsed, if nothing was.
fn none_of(report: &RehearseReport, args: &RehearseArgs) -> Option<String> {
    let why = match (report.rehearsals.len(), report.images, &args.filter) {
        (0, 0, Some(filter)) => format!("no image has a name like {filter}"),
        (0, 0, None) => "no image has a name".to_owned(),
        (0, ..) => "none of the images is within the budget".to_owned(),
        _ => return None,
    };
    Some(format!("nothing was rehearsed: {why}"))
}

/// What is wrong, if something is: of an image before anything else.
fn worst(outcomes: Vec<Result<()>>) -> Result<()> {
    let wrong: Vec<Error> = outcomes.into_iter().filter_map(Result::err).collect();
    let corrupt = wrong.iter().find(|error| error.kind() == Kind::Corrupt);
    corrupt.or(wrong.first()).map_or(Ok(()), |error| Err(error.clone()))
}

/// Until the process is asked to end, which is no failure.
async fn again_and_again(
    config: &Config,
    args: &RehearseArgs,
    period: Duration,
    output: Output,
) -> Result<()> {
    let asked_to_end = interrupted();
    Grid::find(&config.data)?;
    let rehearsing = Rehearsing { every: period.as_secs() };
    line(output.is_json(), &rehearsing, |_| {
        format!("forebay rehearse runs every {}", humantime::format_duration(period))
    })?;
    tell_systemd();
    let runs = async {
        loop {
            let began = now();
            let pause = match one_of_many(config, args, output).await {
                Ok(()) => period.saturating_sub(now() - began),
                Err(error) => {
                    say(format!("this run did not come to its end: {error}"));
                    period.min(AGAIN)
                }
            };
            tokio::time::sleep(pause).await;
        }
    };
    tokio::select! {
        () = runs => {}
        () = asked_to_end => {}
    }
    Ok(())
}

async fn one_of_many(config: &Config, args: &RehearseArgs, output: Output) -> Result<()> {
    for (name, image) in begin(config, args).await?.drawn {
        let (rehearsal, outcome) = rehearse(config, args, name, image, output).await?;
        line(output.is_json(), &rehearsal, human_one)?;
        if let Err(error) = outcome {
            say(error);
        }
    }
    Ok(())
}

/// Draws what is to be restored.
async fn begin(config: &Config, args: &RehearseArgs) -> Result<RehearseReport> {
    let images = Grid::find(&config.data)?.placement.images().await?;
    let path = rehearsals::path(config);
    let mut record = Record::load(&path)?;
    record.named = images.images.iter().map(|line| line.image).collect();
    record.save(&path)?;
    let last = record.last();
    let lines = named(images, args.filter.as_deref());
    let candidate = |line: &ImageLine| {
        let last = last.get(&line.image).copied();
        Candidate { cost: line.stored, last }
    };
    let candidates: Vec<Candidate> = lines.iter().map(candidate).collect();
    let limits = Limits {
        count: args.count.unwrap_or(if args.budget.is_some() { usize::MAX } else { 1 }),
        budget: args.budget.unwrap_or(u64::MAX),
    };
    let seed = match args.seed {
        Some(seed) => seed,
        None => chance()?,
    };
    let drawn = draw(&candidates, since_1970(), seed, limits);
    Ok(RehearseReport {
        seed,
        images: lines.len(),
        too_large: candidates.iter().filter(|c| c.cost > limits.budget).count(),
        drawn: drawn.iter().map(|n| (lines[*n].name.to_string(), lines[*n].image)).collect(),
        rehearsals: Vec::new(),
    })
}

/// The images of a list, each under the first of its names.
fn named(list: ImageList, filter: Option<&str>) -> Vec<ImageLine> {
    let mut first: BTreeMap<Digest, ImageLine> = BTreeMap::new();
    for line in list.images {
        if filter.is_none_or(|filter| matches(filter, &line.name.to_string())) {
            first.entry(line.image).or_insert(line);
        }
    }
    first.into_values().collect()
}

/// Restores one, and records what came of it. Also returns what is wrong with it, if something is.
async fn rehearse(
    config: &Config,
    args: &RehearseArgs,
    name: String,
    image: Digest,
    output: Output,
) -> Result<(Rehearsal, Result<()>)> {
    let at = since_1970();
    let restored = async {
        let grid = Grid::find(&config.data)?;
        // By digest: the name may be moved meanwhile.
        restore(config, &grid, &image.to_string(), &args.restore, output).await
    };
    let mut rehearsal = Rehearsal { at, name: name.clone(), image, restored: None, error: None };
    let outcome = match restored.await {
        Ok(mut restored) => {
            restored.name = name;
            let outcome = restored.passed();
            rehearsal.restored = Some(restored);
            outcome
        }
        Err(error) => {
            let (kind, message) = (error.kind().name().to_owned(), error.message().to_owned());
            rehearsal.error = Some(Failure { kind, message });
            Err(error.at(format!("{name} was not restored")))
        }
    };
    let path = rehearsals::path(config);
    let mut record = Record::load(&path)?;
    record.add(rehearsal.clone());
    record.save(&path)?;
    Ok((rehearsal, outcome))
}

fn human_run(report: &RehearseReport) -> String {
    let RehearseReport { images, too_large, rehearsals, seed, .. } = report;
    let mut text: String =
        rehearsals.iter().map(|r| human_one(r).trim_end().to_owned() + "\n\n").collect();
    let good = rehearsals.iter().filter(|r| r.passed()).count();
    text += &format!(
        "{good} of {} good; drawn among {images} images with seed {seed}",
        rehearsals.len()
    );
    if *too_large > 0 {
        text += &format!("; {too_large} are larger than the budget, and are never drawn");
    }
    text
}

fn human_one(rehearsal: &Rehearsal) -> String {
    match (&rehearsal.restored, &rehearsal.error) {
        (Some(restored), _) => human_restored(restored),
        (None, Some(error)) => format!("{}: NOT RESTORED: {}", rehearsal.name, error.message),
        (None, None) => rehearsal.name.clone(),
    }
}

fn human_record(record: &Record) -> String {
    let head = ["REF", "IMAGE", "WHEN", "DATA", "PULL", "RATE", "BOOT", "OUTCOME"];
    let head = head.map(str::to_owned).to_vec();
    let rows = record.rehearsals.iter().map(|r| {
        let mut row = vec![r.name.clone(), r.image.to_string(), time(r.at)];
        let took = |millis| seconds(Duration::from_millis(millis));
        match (&r.restored, &r.error) {
            (Some(restored), _) => {
                let boot = restored.boot.as_ref().map(|boot| took(boot.millis));
                row.extend([
                    bytes(restored.data),
                    took(restored.pull_millis),
                    format!("{}/s", bytes(restored.rate())),
                    boot.unwrap_or_default(),
                    summary(restored),
                ]);
            }
            (None, error) => {
                let said = error.as_ref().map_or("", |e| &e.message);
                row.extend([String::new(), String::new(), String::new(), String::new()]);
                row.push(format!("NOT RESTORED: {said}"));
            }
        }
        row
    });
    table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

#[expect(clippy::disallowed_methods, reason = "rehearsals take place in real time")]
fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "a record for people says when it was")]
fn since_1970() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn chance() -> Result<u64> {
    let mut bytes = [0; 8];
    let failed = |e| Error::io("drawing a seed", std::io::Error::from(e));
    #[expect(clippy::disallowed_methods, reason = "what is rehearsed is to be foreseen by nobody")]
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).map_err(failed)?;
    Ok(u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line_of(name: &str, image: &[u8]) -> ImageLine {
        ImageLine {
            name: name.parse().unwrap(),
            image: Digest::of_chunk(image),
            size: 1,
            stored: 1,
            created: None,
            os: None,
            kind: None,
            parent: None,
            labels: Default::default(),
            problem: None,
        }
    }

    #[test]
    fn an_image_is_drawn_once_whatever_its_names() {
        let images = vec![line_of("a:1", b"a"), line_of("a:2", b"a"), line_of("b:1", b"b")];
        let names = |filter: Option<&str>| {
            let lines = named(ImageList { images: images.clone(), ancestors: None }, filter);
            let mut names: Vec<_> = lines.iter().map(|line| line.name.to_string()).collect();
            names.sort();
            names
        };
        assert_eq!(names(None), ["a:1", "b:1"]);
        assert_eq!(names(Some("*:2")), ["a:2"]);
    }

    #[test]
    fn what_is_wrong_with_an_image_comes_before_all_else() {
        let failed = |kind: Kind| Err(Error::new(kind, "m"));
        let kind = |outcomes: Vec<Result<()>>| worst(outcomes).map_err(|error| error.kind());
        assert_eq!(kind(vec![Ok(()), Ok(())]), Ok(()));
        assert_eq!(kind(vec![Ok(()), failed(Kind::Retry), failed(Kind::Full)]), Err(Kind::Retry));
        assert_eq!(kind(vec![failed(Kind::Retry), failed(Kind::Corrupt)]), Err(Kind::Corrupt));
    }
}
