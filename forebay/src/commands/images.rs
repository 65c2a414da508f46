//! The commands that ask placement about images: small, and much alike.

use std::time::Duration;

use api::catalog::{
    Expect, GcReport, GcRequest, ImageInfo, ImageList, MoveRef, RefInfo, VerifyReport,
    VerifyRequest,
};
use api::trace::TraceInfo;
use image::{Error, Kind, Result};

use super::{mend, usage, with_grid};
use crate::cli::{GcArgs, ImagesArgs, NameArgs, RmArgs, TagArgs, VerifyArgs};
use crate::config::Config;
use crate::output::{Output, bytes, chunks, say, table, time};

/// `forebay images`.
pub fn list(config: &Config, args: &ImagesArgs, output: Output) -> Result<()> {
    if args.tree {
        return super::lineage::run(config, args, output);
    }
    let mut list = with_grid(config, |grid| async move { grid.placement.images().await })?;
    if let Some(filter) = &args.filter {
        list.images.retain(|line| matches(filter, &line.name.to_string()));
        if list.images.is_empty() {
            say(format!("no image has a name like {filter}"));
        }
    }
    output.result(&list, human_list)
}

/// Whether a name begins like `filter`; or is like it as a whole, where it has a `*` for any text.
pub fn matches(filter: &str, name: &str) -> bool {
    let Some((first, rest)) = filter.split_once('*') else { return name.starts_with(filter) };
    let Some(mut name) = name.strip_prefix(first) else { return false };
    let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
    for part in middle.split('*') {
        // The earliest place leaves the most for what follows.
        let Some(at) = name.find(part) else { return false };
        name = &name[at + part.len()..];
    }
    name.ends_with(last)
}

fn human_list(list: &ImageList) -> String {
    let head = ["REF", "IMAGE", "SIZE", "STORED", "CREATED", "OS"].map(str::to_owned).to_vec();
    let rows = list.images.iter().map(|i| {
        let os = i.os.clone().unwrap_or_default();
        let at = i.created.map(time).unwrap_or_default();
        vec![i.name.to_string(), i.image.to_string(), bytes(i.size), bytes(i.stored), at, os]
    });
    table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

/// `forebay inspect`.
pub fn inspect(config: &Config, args: &NameArgs, output: Output) -> Result<()> {
    let info = with_grid(config, |grid| async move { grid.placement.image(&args.name).await })?;
    output.result(&info, human_info)
}

fn human_info(info: &ImageInfo) -> String {
    let refs: Vec<_> = info.refs.iter().map(ToString::to_string).collect();
    let mut rows = vec![
        ("image", info.image.to_string()),
        ("refs", refs.join(", ")),
        ("size", format!("{} ({} bytes)", bytes(info.size), info.size)),
        ("sector", format!("{} bytes", info.sector)),
        ("chunk", bytes(u64::from(info.chunk))),
        ("sections", format!("{} of {} hold data", info.sections_present, info.sections)),
        ("chunks", format!("{} hold data", info.chunks_present)),
        ("stored", bytes(info.stored)),
    ];
    if let Some(record) = &info.record {
        let text = |v: &Option<String>| v.clone();
        let number = |v: Option<u64>| v.map(|n| n.to_string());
        let said = [
            ("parent", record.parent.map(|p| p.to_string())),
            ("created", Some(time(record.created))),
            (
                "kind",
                serde_json::to_value(record.kind).ok().and_then(|k| Some(k.as_str()?.to_owned())),
            ),
            ("os", text(&record.os)),
            ("architecture", text(&record.architecture)),
            ("firmware", text(&record.firmware)),
            ("cpus", number(record.cpus.map(u64::from))),
            ("memory", record.memory_mib.map(|m| format!("{m} MiB"))),
            ("nics", number(record.nics.map(u64::from))),
            ("hypervisor", text(&record.hypervisor)),
            ("verified", record.verified.as_ref().map(|v| format!("{} {v}", time(v.at)))),
            (
                "not read",
                record.unread.as_ref().map(|unread| format!("{unread}; zeros stand for them")),
            ),
        ];
        rows.extend(said.into_iter().filter_map(|(k, v)| Some((k, v?))));
    }
    rows.extend(info.boot_trace.as_ref().map(|trace| ("boot trace", boot_trace(trace))));
    let labels = info.record.iter().flat_map(|r| &r.labels);
    let labels = labels.map(|(k, v)| vec!["label".to_owned(), format!("{k}={v}")]);
    let rows = rows.into_iter().map(|(k, v)| vec![k.to_owned(), v]);
    table(&rows.chain(labels).collect::<Vec<_>>())
}

fn boot_trace(trace: &TraceInfo) -> String {
    let TraceInfo { chunks: touched, recordings, millis } = trace;
    let (touched, took) = (chunks(*touched), f64::from(*millis) / 1000.0);
    format!("{touched} in {took:.1} s; starts recorded: {recordings}")
}

/// `forebay verify`, of what the store has.
pub fn verify(config: &Config, args: &VerifyArgs, output: Output) -> Result<()> {
    if args.restore.is_asked() {
        return Err(usage("these options are of a restore: add --restore-test"));
    }
    let asked = VerifyRequest { deep: args.deep };
    let report = with_grid(config, |grid| async move {
        let found = grid.placement.verify(&args.name, &asked).await?;
        match args.repair && !found.bad.is_empty() {
            true => mend::repaired(&grid, &args.name, found).await,
            false => Ok(found),
        }
    })?;
    output.result(&report, |r| human_verify(&args.name, r))?;
    match report.bad.first() {
        None => Ok(()),
        Some(first) => {
            let more = report.bad.len() - 1;
            let message = format!(
                "{}: {first} is bad, and {more} other places: {}save a volume that was made of it, or import \
                 the same disk again, which stores anew what is bad",
                args.name,
                if args.repair {
                    "no cache has it: "
                } else {
                    "have caches give it back (--deep --repair), "
                }
            );
            Err(Error::new(Kind::Corrupt, message))
        }
    }
}

fn human_verify(name: &str, report: &VerifyReport) -> String {
    let mut text = format!(
        "{name}: {} sections, {}, {} read",
        report.sections,
        chunks(report.chunks),
        bytes(report.bytes)
    );
    report.repaired.iter().for_each(|place| text += &format!("\nrepaired: {place}"));
    report.bad.iter().for_each(|place| text += &format!("\nbad: {place}"));
    if report.bad.is_empty() { text + "\nall good" } else { text }
}

/// `forebay tag`.
pub fn tag(config: &Config, args: &TagArgs, output: Output) -> Result<()> {
    let expect = if args.only_new { Expect::Absent } else { Expect::Anything };
    let moved = with_grid(config, |grid| async move {
        let image = grid.resolve(&args.name).await?;
        grid.move_ref(&args.new, &MoveRef { image, expect, fence: None }).await
    })?;
    output.result(&moved, human_ref)
}

fn human_ref(info: &RefInfo) -> String {
    format!("{} → {}", info.name, info.image)
}

/// `forebay rm`.
pub fn remove(config: &Config, args: &RmArgs, output: Output) -> Result<()> {
    with_grid(config, |grid| async move {
        let mut failed = Ok(());
        for name in &args.names {
            match grid.placement.delete_ref(name).await {
                Ok(was) => output.result(&was, |was| format!("removed {}", human_ref(was)))?,
                Err(e) if failed.is_ok() => failed = Err(e),
                Err(e) => eprintln!("forebay: {e}"),
            }
        }
        failed
    })
}

/// `forebay gc`.
pub fn gc(config: &Config, args: &GcArgs, output: Output) -> Result<()> {
    let grace = args.grace.unwrap_or_else(|| config.time("gc.grace"));
    let asked = GcRequest { dry_run: args.dry_run, grace_secs: Some(grace.as_secs()) };
    let report = with_grid(config, |grid| async move { grid.placement.gc(&asked).await })?;
    output.result(&report, |report| human_gc(report, grace))
}

fn human_gc(report: &GcReport, grace: Duration) -> String {
    let mut lines = vec![
        format!(
            "{} images are reachable, by a name or one that went within {}",
            report.images,
            humantime::format_duration(grace)
        ),
        format!("condemned {} objects, {}", report.condemned, bytes(report.condemned_bytes)),
        format!("deleted {} objects, {}", report.deleted, bytes(report.deleted_bytes)),
    ];
    if report.rewritten > 0 {
        let GcReport { rewritten, written, saved_bytes, .. } = report;
        let saved = bytes(*saved_bytes);
        lines.push(format!(
            "rewrote {rewritten} packs as {written}, which gives {saved} back later"
        ));
    }
    if report.unfinished {
        lines.push("there is more to rewrite: the next run goes on with it".into());
    }
    if report.bad_packs > 0 {
        let bad = report.bad_packs;
        lines.push(format!("{bad} packs are damaged: `forebay store verify` names them"));
    }
    if report.wait_secs > 0 {
        let wait = humantime::format_duration(Duration::from_secs(report.wait_secs));
        lines.push(format!("what is condemned may be deleted in {wait}: run it again then"));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collection_tells_what_people_have_to_know() {
        let report = GcReport { images: 2, condemned: 3, ..GcReport::default() };
        let said = human_gc(&report, Duration::from_secs(3600));
        assert!(
            said.contains("within 1h") && said.contains("condemned 3") && !said.contains("rewr")
        );
        let report = GcReport {
            rewritten: 4,
            written: 1,
            saved_bytes: 5 << 20,
            unfinished: true,
            bad_packs: 2,
            wait_secs: 60,
            ..report
        };
        let said = human_gc(&report, Duration::from_secs(3600));
        for what in ["rewrote 4 packs as 1", "5.0 MiB", "goes on", "2 packs are damaged", "in 1m"] {
            assert!(said.contains(what), "{what}: {said}");
        }
    }

    #[test]
    fn a_filter_is_a_beginning_or_has_stars() {
        for (filter, name, expected) in [
            ("", "debian:12", true),
            ("deb", "debian:12", true),
            ("ian", "debian:12", false),
            ("*:12", "debian:12", true),
            ("*:12", "debian:123", false),
            ("d*n:1*", "debian:12", true),
            ("acme/*:*b", "acme/web:lab", true),
            ("acme/*:*bb", "acme/web:lab", false),
            ("a*a", "a", false),
            ("**", "a", true),
            ("*a*a*", "banana", true),
            ("*x*", "banana", false),
        ] {
            assert_eq!(matches(filter, name), expected, "{filter} {name}");
        }
    }
}
