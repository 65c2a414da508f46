//! `forebay diff`: what differs between two images.

use std::sync::Arc;

use image::{Digest, Kind, Result};
use node::diff::{Difference, FileSystemDiff, Side, differences, file_differences};
use node::patience::Patience;
use node::pull::Connect;

use super::block_on;
use crate::cli::DiffArgs;
use crate::config::Config;
use crate::connect::{Connector, Known};
use crate::grid::Grid;
use crate::output::{Output, bytes, chunks};
use crate::report::{BytesDiff, DiffReport, FilesDiff};

/// Runs the command.
pub fn run(config: &Config, args: &DiffArgs, output: Output) -> Result<()> {
    let report = block_on(compare(config, args, output))?;
    output.result(&report, |report| human(args, report))
}

async fn compare(config: &Config, args: &DiffArgs, output: Output) -> Result<DiffReport> {
    let grid = Grid::find(&config.data)?;
    let known = Known::new();
    let (old, was) = Connector::to_pull(&grid, &args.old, &known).await?;
    let (new, is) = Connector::to_pull(&grid, &args.new, &known).await?;
    let mut report = DiffReport { old, new, bytes: None, no_bytes: None, files: None };
    let difference = match by_digests((&was, old), (&is, new), output).await {
        Ok(difference) => Some(Arc::new(difference)),
        // Files can be compared all the same.
        Err(e) if e.kind() == Kind::Unsupported && args.files => {
            report.no_bytes = Some(e.to_string());
            None
        }
        Err(e) => return Err(e.at(format!("{} and {}", args.old, args.new))),
    };
    report.bytes = difference.as_deref().map(|d| bytes_diff(d, args.ranges));
    if args.files {
        quiet_readers();
        let mut shown = output.progress("comparing files", 0);
        let compared =
            file_differences((was, old), (is, new), difference, |came| shown.at(came, 0)).await;
        shown.finish();
        let (file_systems, received) =
            compared.map_err(|e| e.at(format!("files of {} and {}", args.old, args.new)))?;
        report.files = Some(FilesDiff { file_systems, received });
    }
    Ok(report)
}

async fn by_digests(
    (was, old): (&Connector, Digest),
    (is, new): (&Connector, Digest),
    output: Output,
) -> Result<Difference> {
    let connect =
        async |to: &Connector| Patience::with_busy().ask(async || to.connect(0).await).await;
    let (first, second) = (connect(was).await?, connect(is).await?);
    let mut shown = output.progress("comparing", 0);
    let result = {
        let old = Side { source: &first, image: old, trace: was.trace() };
        let new = Side { source: &second, image: new, trace: is.trace() };
        differences(&old, &new, |done, total| shown.at(done, total)).await
    };
    shown.finish();
    was.close(first).await;
    is.close(second).await;
    result
}

/// What panics on the thread of [`file_differences`] is the reader of a damaged file system. That is in the report.
fn quiet_readers() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        match std::thread::current().name() == Some(node::diff::files::THREAD) {
            true => tracing::debug!(%info, "a file system's reader gave up"),
            false => usual(info),
        }
    }));
}

fn bytes_diff(difference: &Difference, ranges: bool) -> BytesDiff {
    BytesDiff {
        old: difference.old,
        new: difference.new,
        sections: difference.sections,
        chunks: difference.chunks,
        differ: difference.bytes,
        ranges: ranges.then(|| difference.spans.clone()),
        untold: if ranges { difference.untold } else { 0 },
    }
}

fn human(args: &DiffArgs, report: &DiffReport) -> String {
    let mut lines = Vec::new();
    match &report.bytes {
        Some(diff) => human_bytes(args, diff, &mut lines),
        None => {
            lines.extend(report.no_bytes.iter().map(|why| format!("bytes not compared: {why}")))
        }
    }
    if let Some(files) = &report.files {
        files.file_systems.iter().for_each(|fs| human_files(fs, &mut lines));
        lines.extend(elsewhere(report.bytes.as_ref(), files));
        lines.push(format!("{} came for it", bytes(files.received)));
    }
    lines.join("\n")
}

/// What is to be said if bytes differ, and no file does.
fn elsewhere(bytes: Option<&BytesDiff>, files: &FilesDiff) -> Option<String> {
    let all_read = files.file_systems.iter().all(|fs| fs.unread.is_none());
    let changes = |fs: &FileSystemDiff| fs.added.len() + fs.removed.len() + fs.changed.len();
    let none = files.file_systems.iter().all(|fs| changes(fs) == 0 && fs.untold == 0);
    let differ = bytes.is_some_and(|bytes| bytes.differ > 0);
    (differ && all_read && none).then(|| {
        "what differs lies outside of files: boot code, a journal, free space, a file system's own notes".to_owned()
    })
}

fn human_bytes(args: &DiffArgs, diff: &BytesDiff, lines: &mut Vec<String>) {
    if diff.differ == 0 {
        lines.push("no byte differs".into());
        return;
    }
    lines.push(format!("{} differ: {}", bytes(diff.differ), chunks(diff.chunks)));
    for (name, side) in [(&args.old, &diff.old), (&args.new, &diff.new)] {
        let mut line = format!("{name}: {} of them are zeros", bytes(side.zeros));
        if side.absent > 0 {
            line += &format!(", {} lie behind its end", bytes(side.absent));
        }
        lines.push(line);
    }
    let ranges = diff.ranges.iter().flatten();
    lines.extend(ranges.map(|range| format!("{} +{}", range.start, range.len)));
    if diff.untold > 0 {
        lines.push(format!("and {} in more ranges than are told", bytes(diff.untold)));
    }
}

fn human_files(fs: &FileSystemDiff, lines: &mut Vec<String>) {
    let place = fs.partition.map_or("the disk".into(), |n| format!("partition {n}"));
    let what = match (&fs.old, &fs.new) {
        (Some(old), Some(new)) if old == new => old.clone(),
        (Some(old), Some(new)) => format!("{old} before, {new} now"),
        (Some(old), None) => format!("{old} before, not there now"),
        (None, Some(new)) => format!("{new}, not there before"),
        (None, None) => "not read".into(),
    };
    let count = fs.added.len() + fs.removed.len() + fs.changed.len();
    let state = match (fs.same, &fs.unread) {
        (true, _) => "the same".to_owned(),
        (false, Some(why)) => why.clone(),
        (false, None) => format!("{count} files differ"),
    };
    lines.push(format!("{place}: {what}: {}", shown(&state)));
    lines.extend(fs.added.iter().map(|path| format!("  + {}", shown(path))));
    lines.extend(fs.removed.iter().map(|path| format!("  - {}", shown(path))));
    let changed = fs.changed.iter();
    lines.extend(changed.map(|c| format!("  ~ {}  ({})", shown(&c.path), c.what.join(", "))));
    if fs.untold > 0 {
        lines.push(format!("  and {} more", fs.untold));
    }
}

/// A name out of an image, on a terminal: what would move the cursor is not passed on.
fn shown(text: &str) -> String {
    let safe = |c: char| match c.is_control() {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    text.chars().map(safe).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use node::diff::SideReport;

    #[test]
    fn bytes_that_differ_where_no_file_lies_are_said() {
        let side =
            SideReport { image: Digest::of_chunk(b"a"), size: 8, chunk: 8, zeros: 0, absent: 0 };
        let bytes = |differ| BytesDiff {
            old: side,
            new: side,
            sections: 1,
            chunks: 1,
            differ,
            ranges: None,
            untold: 0,
        };
        let files = |changed: &[&str], unread: Option<&str>| FilesDiff {
            file_systems: vec![FileSystemDiff {
                added: changed.iter().map(|path| (*path).to_owned()).collect(),
                unread: unread.map(str::to_owned),
                ..FileSystemDiff::default()
            }],
            received: 0,
        };
        assert!(elsewhere(Some(&bytes(4096)), &files(&[], None)).is_some());
        for (bytes, files) in [
            (Some(bytes(0)), files(&[], None)),
            (None, files(&[], None)),
            (Some(bytes(4096)), files(&["/a"], None)),
            (Some(bytes(4096)), files(&[], Some("an xfs is not read"))),
        ] {
            assert_eq!(elsewhere(bytes.as_ref(), &files), None);
        }
    }

    #[test]
    fn names_out_of_images_do_not_reach_the_terminal_as_they_are() {
        let fs = FileSystemDiff {
            old: Some("ext".into()),
            new: Some("ext".into()),
            added: vec!["/a\u{1b}[2Jé".into()],
            ..FileSystemDiff::default()
        };
        let mut lines = Vec::new();
        human_files(&fs, &mut lines);
        assert_eq!(lines, ["the disk: ext: 1 files differ", "  + /a\\u{1b}[2Jé"]);
    }
}
