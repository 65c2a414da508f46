//! `forebay cache …`: taking care of caches, one or all, each asked by itself.

use std::future::Future;
use std::time::Duration;

use api::care::{
    Asks, CacheStatus, DrainOrder, Evicted, Held, Part, Pinned, ScrubOrder, ScrubStatus, Tier,
    WarmState, Warming,
};
use image::error::At;
use image::{Digest, Error, Kind, Result};
use placement::CareClient;
use serde::Serialize;

use super::with_grid;
use crate::cli::{CacheCommand, CacheStatusArgs, DrainArgs, On, OnCachesArgs, ScrubArgs};
use crate::config::Config;
use crate::grid::Grid;
use crate::output::{Output, bytes, chunks, table};

/// How often a warming is looked at.
const TICK: Duration = Duration::from_millis(200);

/// Runs the command.
pub fn run(config: &Config, command: &CacheCommand, output: Output) -> Result<()> {
    match command {
        CacheCommand::Status(args) => status(config, args, output),
        CacheCommand::Warm(args) => bring(config, args, output, false),
        CacheCommand::Pin(args) => bring(config, args, output, true),
        CacheCommand::Unpin(args) => unpin(config, args, output),
        CacheCommand::Evict(args) => evict(config, args, output),
        CacheCommand::Scrub(args) => scrub(config, args, output),
        CacheCommand::Metrics(on) => metrics(config, on),
        CacheCommand::Drain(args) => drain(config, args, output),
    }
}

/// What one cache answered.
#[derive(Serialize)]
struct From<T> {
    cache: String,
    #[serde(flatten)]
    answer: T,
}

/// Asks each cache in turn. One that does not answer keeps no other from being asked: all such errors
/// are printed, the last by who called.
async fn each<T>(
    grid: &Grid,
    on: &On,
    mut ask: impl AsyncFnMut(&str, &CareClient) -> Result<T>,
) -> Result<(Vec<From<T>>, Result<()>)> {
    let (mut answers, mut failed) = (Vec::new(), Ok(()));
    for (cache, client) in grid.caches(&on.on).await? {
        let answer = match client {
            Ok(client) => ask(&cache.name, &client).await,
            Err(e) => Err(e),
        };
        match answer.at(|| format!("cache {}", cache.name)) {
            Ok(answer) => answers.push(From { cache: cache.name, answer }),
            Err(e) => {
                if let Err(before) = std::mem::replace(&mut failed, Err(e)) {
                    eprintln!("forebay: {before}");
                }
            }
        }
    }
    Ok((answers, failed))
}

/// Asks each cache, prints what they answered, and fails if one failed.
fn ask_and_print<T: Serialize, F>(
    config: &Config,
    output: Output,
    on: &On,
    name: Option<&str>,
    ask: impl Fn(CareClient, Digest) -> F,
    human: impl FnOnce(&[From<T>]) -> String,
) -> Result<()>
where
    F: Future<Output = Result<T>>,
{
    let (answers, failed) = with_grid(config, |grid| async move {
        let image = match name {
            Some(name) => grid.resolve(name).await?,
            None => Digest::ZERO,
        };
        each(&grid, on, async |_, client| ask(client.clone(), image).await).await
    })?;
    show(output, &answers, failed, human)
}

/// Prints what caches answered, unless none did, and fails if one failed.
fn show<T: Serialize>(
    output: Output,
    answers: &[From<T>],
    failed: Result<()>,
    human: impl FnOnce(&[From<T>]) -> String,
) -> Result<()> {
    if failed.is_ok() || output.is_json() || !answers.is_empty() {
        output.result(&answers, |answers| human(answers))?;
    }
    failed
}

fn status(config: &Config, args: &CacheStatusArgs, output: Output) -> Result<()> {
    match &args.name {
        None => ask_and_print(
            config,
            output,
            &args.on,
            None,
            |c, _| async move { c.status().await },
            human_status,
        ),
        Some(name) => ask_and_print(
            config,
            output,
            &args.on,
            Some(name),
            |c, image| async move { c.held(&image).await },
            human_held,
        ),
    }
}

fn rows(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let head = head.iter().map(|h| (*h).to_owned()).collect();
    table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

fn human_status(all: &[From<CacheStatus>]) -> String {
    let head = [
        "CACHE",
        "MEMORY",
        "DISK",
        "STATE",
        "HITS",
        "GUEST HITS",
        "STORE EGRESS",
        "PINNED",
        "SCRUB",
    ];
    let table = rows(
        &head,
        all.iter().map(|From { cache, answer: s }| {
            let tier = |t: &Tier| format!("{} of {}", bytes(t.bytes), bytes(t.budget));
            let asks = [s.asks.guest, s.asks.trace, s.asks.background];
            let scrub = match s.scrub.rate {
                0 => "rests".to_owned(),
                rate => format!("{}/s, {} bad so far", bytes(rate), s.scrub.bad_in_all),
            };
            let mut state = state(s).to_owned();
            if s.draining {
                state = format!("draining; {state}");
            }
            if s.disk_warning.is_some() {
                state += "; see below";
            }
            vec![
                cache.clone(),
                tier(&s.memory),
                tier(&s.disk),
                state,
                hits(&asks),
                hits(&[s.asks.guest]),
                bytes(s.store_egress),
                s.pinned.len().to_string(),
                scrub,
            ]
        }),
    );
    table + &all.iter().map(why).collect::<String>()
}

/// How the disk tier is, in a word.
fn state(status: &CacheStatus) -> &str {
    status.disk_state.split(':').next().unwrap_or_default()
}

/// What would make the table too wide: why the disk tier is as it is, and what should be changed.
fn why(From { cache, answer: s }: &From<CacheStatus>) -> String {
    let reason = (state(s) != s.disk_state).then_some(&s.disk_state);
    let lines = reason.into_iter().chain(&s.disk_warning);
    lines.map(|line| format!("{cache}: {line}\n")).collect()
}

/// The part of asks that the store had nothing to do with.
fn hits(asks: &[Asks]) -> String {
    let fetched: u64 = asks.iter().map(|a| a.fetched).sum();
    let all: u64 = asks.iter().map(|a| a.memory + a.disk + a.joined + a.fetched).sum();
    match (all - fetched).saturating_mul(100).checked_div(all) {
        Some(percent) => format!("{percent} %"),
        None => "-".into(),
    }
}

fn part(part: &Part) -> String {
    format!("{} ({})", part.chunks, bytes(part.bytes))
}

fn human_held(all: &[From<Held>]) -> String {
    let head = ["CACHE", "HELD", "IN MEMORY", "ON DISK", "PINNED"];
    rows(
        &head,
        all.iter().map(|From { cache, answer: h }| {
            let held = format!("{} of {} chunks", h.held, h.chunks);
            let pinned = if h.pinned { "yes" } else { "no" };
            vec![cache.clone(), held, part(&h.in_memory), part(&h.on_disk), pinned.into()]
        }),
    )
}

/// Fetches an image into caches, to be pinned there or not, and waits for that.
fn bring(config: &Config, args: &OnCachesArgs, output: Output, pins: bool) -> Result<()> {
    let (done, failed) = with_grid(config, |grid| async move {
        let image = grid.resolve(&args.name).await?;
        let order = async |_: &str, cache: &CareClient| match pins {
            true => cache.pin(&image).await,
            false => cache.warm(&image).await,
        };
        // All begin before the first is waited for.
        let (begun, refused) = each(&grid, &args.on, order).await?;
        let begun = On { on: begun.into_iter().map(|from| from.cache).collect() };
        if begun.on.is_empty() {
            return Ok((Vec::new(), refused));
        }
        let watch =
            async |name: &str, cache: &CareClient| watched(name, cache, &image, output).await;
        let (done, failed) = each(&grid, &begun, watch).await?;
        Ok((done, refused.and(failed)))
    })?;
    for From { cache, answer } in &done {
        if let Some(warning) = &answer.warning {
            eprintln!("forebay: cache {cache}: {warning}");
        }
    }
    show(output, &done, failed, human_warm)
}

/// Waits until a cache has all of an image.
async fn watched(
    name: &str,
    cache: &CareClient,
    image: &Digest,
    output: Output,
) -> Result<Warming> {
    let mut shown = output.progress(&format!("{name}: warming {}", image.short()), 0);
    loop {
        let at = cache.warming(image).await?;
        shown.at(done(&at), at.size);
        match at.state {
            WarmState::Running => tokio::time::sleep(TICK).await,
            WarmState::Done => {
                shown.finish();
                return Ok(at);
            }
            WarmState::Cancelled => return Err(Error::new(Kind::Cancelled, "it was told to stop")),
            WarmState::Failed => return Err(at.failure()),
        }
    }
}

/// The part of an image that is there, in bytes of the image: its sections are counted.
fn done(at: &Warming) -> u64 {
    let whole = u128::from(at.size) * u128::from(at.sections);
    whole.checked_div(at.of_sections.into()).map_or(0, |done| done as u64)
}

fn human_warm(all: &[From<Warming>]) -> String {
    let head = ["CACHE", "CHUNKS", "FETCHED", "BYTES", "HELD"];
    rows(
        &head,
        all.iter().map(|From { cache, answer: w }| {
            let held = w.held.map_or("-".into(), |held| held.to_string());
            let (chunks, fetched) = (w.chunks.to_string(), w.fetched.to_string());
            vec![cache.clone(), chunks, fetched, bytes(w.fetched_bytes), held]
        }),
    )
}

fn unpin(config: &Config, args: &OnCachesArgs, output: Output) -> Result<()> {
    let unpin = |c: CareClient, image: Digest| async move { c.unpin(&image).await };
    ask_and_print(config, output, &args.on, Some(&args.name), unpin, |all| {
        let line = |f: &From<Pinned>| format!("{}: {} let go\n", f.cache, bytes(f.answer.bytes));
        all.iter().map(line).collect()
    })
}

fn evict(config: &Config, args: &OnCachesArgs, output: Output) -> Result<()> {
    let evict = |c: CareClient, image: Digest| async move { c.evict(&image).await };
    ask_and_print(config, output, &args.on, Some(&args.name), evict, |all| {
        let line = |f: &From<Evicted>| {
            let e = f.answer;
            let dropped = chunks(e.chunks);
            format!("{}: {dropped} dropped, {} kept for pinned images\n", f.cache, e.kept)
        };
        all.iter().map(line).collect()
    })
}

fn scrub(config: &Config, args: &ScrubArgs, output: Output) -> Result<()> {
    let order = ScrubOrder { rate: args.rate };
    let scrub = |c: CareClient, _| async move { c.scrub(&order).await };
    ask_and_print(config, output, &args.on, None, scrub, |all| {
        let line = |f: &From<ScrubStatus>| format!("{}: {}\n", f.cache, human_scrub(&f.answer));
        all.iter().map(line).collect()
    })
}

fn human_scrub(s: &ScrubStatus) -> String {
    let rate = bytes(s.rate);
    match (s.rate, s.begins) {
        (0, _) => "scrubbing is switched off".into(),
        (_, true) => format!("pass {} begins, at {rate}/s", s.pass),
        (_, false) => {
            format!("pass {} goes on, at {rate}/s: {} frames, {} bad", s.pass, s.frames, s.bad)
        }
    }
}

fn metrics(config: &Config, on: &On) -> Result<()> {
    let (all, failed) = with_grid(config, |grid| async move {
        each(&grid, on, async |_, cache| cache.metrics().await).await
    })?;
    for From { answer, .. } in all {
        print!("{answer}");
    }
    failed
}

fn drain(config: &Config, args: &DrainArgs, output: Output) -> Result<()> {
    let order = DrainOrder { drain: !args.undo };
    let on = On { on: vec![args.name.clone()] };
    let drain = |c: CareClient, _| async move { c.drain(&order).await };
    ask_and_print(config, output, &on, None, drain, |all: &[From<CacheStatus>]| {
        let line = |f: &From<CacheStatus>| match f.answer.draining {
            true => format!("{} is draining: it ends when nobody asks it any more\n", f.cache),
            false => format!("{} stays\n", f.cache),
        };
        all.iter().map(line).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reasons_of_a_disk_stand_below_the_table() {
        let of = |cache: &str, state: &str, warning: Option<&str>| From {
            cache: cache.into(),
            answer: CacheStatus {
                disk_state: state.into(),
                disk_warning: warning.map(Into::into),
                ..CacheStatus::default()
            },
        };
        let full = "full: /cache: 1.0 GiB free; it is tried again every 30s";
        let all = [of("c1", "on", None), of("c2", full, None), of("c3", "on", Some("too large"))];
        let shown = human_status(&all);
        let lines: Vec<_> = shown.lines().collect();
        assert_eq!(lines.len(), 1 + 3 + 2, "{shown}");
        assert!(lines[..4].iter().all(|line| line.len() < 120), "{shown}");
        assert!(lines[1].contains(" on "), "{shown}");
        assert!(lines[2].contains(" full "), "{shown}");
        assert!(lines[3].contains("on; see below"), "{shown}");
        assert_eq!(lines[4..], [format!("c2: {full}"), "c3: too large".into()]);
    }

    #[test]
    fn a_scrub_says_whether_it_begins_and_how_fast_it_is() {
        let goes_on = ScrubStatus { rate: 8 << 20, pass: 3, frames: 5, ..ScrubStatus::default() };
        assert_eq!(human_scrub(&goes_on), "pass 3 goes on, at 8.0 MiB/s: 5 frames, 0 bad");
        let begins = ScrubStatus { begins: true, ..goes_on };
        assert_eq!(human_scrub(&begins), "pass 3 begins, at 8.0 MiB/s");
        assert!(human_scrub(&ScrubStatus::default()).contains("switched off"));
    }

    #[test]
    fn progress_is_of_the_images_own_size() {
        let mut at = serde_json::from_value::<Warming>(serde_json::json!({
            "image": Digest::ZERO, "state": "running", "pins": false, "of_sections": 0,
            "sections": 0, "chunks": 0, "fetched": 0, "fetched_bytes": 0,
        }))
        .unwrap();
        assert_eq!(done(&at), 0);
        (at.size, at.of_sections) = (300 << 20, 5);
        at.sections = 2;
        assert_eq!(done(&at), 120 << 20);
        at.sections = 5;
        assert_eq!(done(&at), 300 << 20);
    }
}
