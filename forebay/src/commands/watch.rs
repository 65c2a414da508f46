//! `forebay watch` and `forebay operations watch`: what changes, as it happens.

use std::time::Duration;

use api::operation::Operation;
use api::watch::WatchEvent;
use image::{Error, Kind, Result};
use placement::Client;

use super::with_grid;
use crate::cli::WatchArgs;
use crate::config::Config;
use crate::output::{Output, line};

/// Pause before watching is begun anew.
const PAUSE: Duration = Duration::from_secs(1);

/// Runs `forebay watch`, until it is interrupted.
pub fn run(config: &Config, args: &WatchArgs, output: Output) -> Result<()> {
    let of = args.of.join(",");
    let json = output.is_json();
    with_grid(config, |grid| async move {
        follow(&grid.placement, &of, args.after, |event| {
            if *event != WatchEvent::Alive {
                line(json, event, human)?;
            }
            Ok(true)
        })
        .await
    })
}

/// Runs `forebay operations watch`, until the operation has ended.
pub fn operation(config: &Config, id: &str, output: Output) -> Result<Operation> {
    let json = output.is_json();
    let mut last: Option<Operation> = None;
    let (wanted, seen) = (id.to_owned(), &mut last);
    with_grid(config, |grid| async move {
        // That there is one is known before it is waited for.
        grid.placement.operation(&wanted, Duration::ZERO).await?;
        follow(&grid.placement, "operations", None, |event| {
            let WatchEvent::Set { name, value, .. } = event else { return Ok(true) };
            if *name != wanted {
                return Ok(true);
            }
            let unknown = |e| Error::caused(Kind::Unsupported, "an operation not known here", e);
            let now: Operation = serde_json::from_value(value.clone()).map_err(unknown)?;
            let news = seen.as_ref() != Some(&now);
            if news && !json {
                crate::output::say(format!("{} {}", now.state.name(), now.step));
            }
            let goes_on = !now.state.is_final();
            *seen = Some(now);
            Ok(goes_on)
        })
        .await
    })?;
    last.ok_or_else(|| Error::new(Kind::Gone, format!("operation {id}: there is none")))
}

/// Watches until `told` says that it is enough; over connections that break, and placements that end.
async fn follow(
    placement: &Client,
    of: &str,
    after: Option<u64>,
    mut told: impl FnMut(&WatchEvent) -> Result<bool>,
) -> Result<()> {
    let mut after = after;
    loop {
        let mut enough = false;
        let watched = placement
            .watch(of, after, |event| {
                match event {
                    // Of one revision there may be more.
                    WatchEvent::Set { revision, .. } | WatchEvent::Gone { revision, .. }
                        if after.is_some() =>
                    {
                        after = Some(revision.saturating_sub(1));
                    }
                    WatchEvent::Now { revision } => after = Some(*revision),
                    _ => {}
                }
                enough = !told(event)?;
                Ok(!enough)
            })
            .await;
        match watched {
            _ if enough => return Ok(()),
            Ok(WatchEvent::End { error }) => match Error::from(error) {
                error if error.kind() == Kind::Gone => after = None,
                error if matches!(error.kind(), Kind::Retry | Kind::Busy(_)) => {}
                error => return Err(error),
            },
            Ok(_) => {}
            Err(error) if matches!(error.kind(), Kind::Retry | Kind::Busy(_)) => {
                tracing::debug!(%error, "watching is begun anew");
            }
            Err(error) => return Err(error),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn human(event: &WatchEvent) -> String {
    match event {
        WatchEvent::Set { revision, kind, name, value } => {
            let state = value.get("state").and_then(|s| s.as_str());
            let holder = value.get("holder").map(ToString::to_string);
            let said = state.map(str::to_owned).or(holder).unwrap_or_default();
            format!("{revision} {kind}/{name} {said}")
        }
        WatchEvent::Gone { revision, kind, name } => format!("{revision} {kind}/{name} gone"),
        WatchEvent::Now { revision } => format!("{revision} now"),
        WatchEvent::Alive | WatchEvent::Unknown => String::new(),
        WatchEvent::End { error } => format!("interrupted: {}", error.message),
    }
}
