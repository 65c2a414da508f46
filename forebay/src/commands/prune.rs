//! `forebay prune`: removes names of images by rules; what they named is for `forebay gc`.

use std::collections::BTreeSet;

use api::catalog::{ImageLine, ImageList};
use image::{Error, Kind, Result};
use placement::Clock;
use placement::retention::{Candidate, Decision, Policy, Verdict, decide};

use super::images::matches;
use super::{usage, with_grid};
use crate::cli::PruneArgs;
use crate::config::Config;
use crate::grid::Grid;
use crate::output::{Output, say, table, time};
use crate::report::{PruneAction, PruneLine, PruneReport};

/// Runs the command.
pub fn run(config: &Config, args: &PruneArgs, output: Output) -> Result<()> {
    let policy = policy(args);
    // An empty one would remove all: whoever wants that can say so.
    if policy.is_empty() {
        let what = "no rule says what is to be kept: give one (--keep-last, --keep-daily, …), or name what is to \
                    go: `forebay rm REF …`";
        return Err(usage(what));
    }
    let (report, ended) = with_grid(config, |grid| async move {
        let list = grid.placement.images().await?;
        let mut report = plan(list, args, &policy, Clock::system().now());
        let emptied = if args.keep_none { Ok(()) } else { keeps_some(&report) };
        let ended = match (emptied, args.dry_run) {
            (Err(error), _) => Err(error),
            (_, true) => Ok(()),
            (_, false) => remove(&grid, &mut report).await,
        };
        Ok((report, ended))
    })?;
    output.result(&report, human)?;
    if report.names.is_empty() {
        say(match args.filters.is_empty() {
            true => "nothing to prune: no image has a name".to_owned(),
            false => format!("nothing to prune: no name is like {}", args.filters.join(" or ")),
        });
    }
    ended
}

fn policy(args: &PruneArgs) -> Policy {
    let number = |n: Option<u32>| n.unwrap_or(0);
    Policy {
        last: number(args.keep_last),
        hourly: number(args.keep_hourly),
        daily: number(args.keep_daily),
        weekly: number(args.keep_weekly),
        monthly: number(args.keep_monthly),
        yearly: number(args.keep_yearly),
        within: args.keep_within.map(|time| time.as_secs()),
        labels: args.keep_label.clone(),
    }
}

/// What is to be done, before anything is.
fn plan(list: ImageList, args: &PruneArgs, policy: &Policy, now: u64) -> PruneReport {
    let wanted = |line: &ImageLine| {
        let name = line.name.to_string();
        args.filters.is_empty() || args.filters.iter().any(|filter| chosen(filter, &name))
    };
    let candidates = list.images.into_iter().filter(wanted).map(|line| Candidate {
        name: line.name,
        image: line.image,
        created: line.created,
        labels: line.labels,
    });
    let decisions = decide(candidates.collect(), policy, now);
    let names = decisions.into_iter().map(line).collect();
    PruneReport { dry_run: args.dry_run, names }
}

/// Rules that keep nothing of a group are mistyped more often than meant.
fn keeps_some(report: &PruneReport) -> Result<()> {
    let group = |line: &PruneLine| {
        let name = line.name.to_string();
        name.rsplit_once(':').map_or(name.clone(), |(group, _)| group.to_owned())
    };
    let kept = |line: &&PruneLine| line.action != PruneAction::ToRemove;
    let some: BTreeSet<String> = report.names.iter().filter(kept).map(group).collect();
    match report.names.iter().map(group).find(|group| !some.contains(group)) {
        None => Ok(()),
        Some(group) => {
            let what = format!(
                "{group}: these rules keep none of its images: nothing was removed; if that is meant, say --keep-none"
            );
            Err(Error::new(Kind::Conflict, what))
        }
    }
}

/// Whether a name is like a filter. Without a `*` it is one group, or one name: `web1` shall not reach `web10`.
fn chosen(filter: &str, name: &str) -> bool {
    match filter.contains('*') {
        true => matches(filter, name),
        false => name == filter || name.split_once(':').is_some_and(|(group, _)| group == filter),
    }
}

fn line(decision: Decision) -> PruneLine {
    let Candidate { name, image, created, .. } = decision.candidate;
    let (action, kept_by) = match decision.verdict {
        Verdict::Kept(reasons) => {
            (PruneAction::Kept, reasons.iter().map(ToString::to_string).collect())
        }
        Verdict::Undated => (PruneAction::Undated, Vec::new()),
        Verdict::Removed => (PruneAction::ToRemove, Vec::new()),
    };
    PruneLine { name, image, created, action, kept_by }
}

/// Removes what is to be removed, each name only while it points where it did. What cannot be removed ends it.
async fn remove(grid: &Grid, report: &mut PruneReport) -> Result<()> {
    for line in report.names.iter_mut().filter(|line| line.action == PruneAction::ToRemove) {
        line.action = match grid.placement.delete_ref_at(&line.name, &line.image).await {
            Ok(_) => PruneAction::Removed,
            Err(e) if e.kind() == Kind::Conflict => PruneAction::Moved,
            Err(e) if e.kind() == Kind::Gone => PruneAction::Gone,
            Err(e) => return Err(e.at(format!("removing {}", line.name))),
        };
    }
    Ok(())
}

fn human(report: &PruneReport) -> String {
    let head = ["REF", "IMAGE", "CREATED", "", "BY"].map(str::to_owned).to_vec();
    let rows = report.names.iter().map(|line| {
        let created = line.created.map(time).unwrap_or_default();
        let (name, image) = (line.name.to_string(), line.image.to_string());
        vec![name, image, created, said(line.action).to_owned(), line.kept_by.join(", ")]
    });
    let text = table(&std::iter::once(head).chain(rows).collect::<Vec<_>>());
    let count = |action| report.names.iter().filter(|line| line.action == action).count();
    let (all, removed) = (report.names.len(), count(PruneAction::Removed));
    match report.dry_run {
        true => text + &format!("{} of {all} names would go", count(PruneAction::ToRemove)),
        false if removed == 0 => text + &format!("none of {all} names removed"),
        false => text + &format!("{removed} of {all} names removed; `forebay gc` frees the space"),
    }
}

fn said(action: PruneAction) -> &'static str {
    match action {
        PruneAction::Kept => "kept",
        PruneAction::Undated => "kept: nobody knows when it was made",
        PruneAction::ToRemove => "to remove",
        PruneAction::Removed => "removed",
        PruneAction::Moved => "kept: it was moved meanwhile",
        PruneAction::Gone => "gone: somebody else removed it",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_keep_nothing_of_a_group_are_not_carried_out() {
        let line = |name: &str, action| {
            let (image, kept_by) = (image::Digest::of_chunk(b"a"), Vec::new());
            PruneLine { name: name.parse().unwrap(), image, created: None, action, kept_by }
        };
        let (kept, gone) = (PruneAction::Kept, PruneAction::ToRemove);
        let report = |names| PruneReport { dry_run: false, names };
        keeps_some(&report(vec![line("a:1", kept), line("a:2", gone)])).unwrap();
        let bare = report(vec![line("a:1", kept), line("a:2", gone), line("t/b:1", gone)]);
        let error = keeps_some(&bare).unwrap_err();
        assert!(error.message().starts_with("t/b: these rules keep none"), "{error}");
    }

    #[test]
    fn a_filter_is_a_group_or_a_name_or_has_stars() {
        for (filter, name, expected) in [
            ("web1", "web1:a", true),
            ("web1", "web10:a", false),
            ("web1", "acme/web1:a", false),
            ("acme/web1", "acme/web1:a", true),
            ("web1:a", "web1:a", true),
            ("web1:a", "web1:ab", false),
            ("web1:a*", "web1:ab", true),
            ("web*", "web10:a", true),
            ("", "web1:a", false),
        ] {
            assert_eq!(chosen(filter, name), expected, "{filter} {name}");
        }
    }
}
