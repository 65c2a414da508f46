//! The commands that ask placement about images: small, and much alike.

use api::catalog::{
    Expect, GcReport, GcRequest, ImageInfo, ImageList, MoveRef, RefInfo, VerifyReport,
    VerifyRequest,
};
use image::{Error, Kind, Result};

use super::with_grid;
use crate::cli::{GcArgs, NameArgs, RmArgs, TagArgs, VerifyArgs};
use crate::config::Config;
use crate::output::{Output, bytes, table};

/// `forebay images`.
pub fn list(config: &Config, output: Output) -> Result<()> {
    let list = with_grid(config, |grid| async move { grid.placement.images().await })?;
    output.result(&list, human_list)
}

fn human_list(list: &ImageList) -> String {
    let head = ["REF", "IMAGE", "SIZE", "STORED", "OS"].map(str::to_owned).to_vec();
    let rows = list.images.iter().map(|i| {
        let os = i.os.clone().unwrap_or_default();
        vec![i.name.to_string(), i.image.short(), bytes(i.size), bytes(i.stored), os]
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
            ("created", Some(created(record.created))),
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
        ];
        rows.extend(said.into_iter().filter_map(|(k, v)| Some((k, v?))));
    }
    let labels = info.record.iter().flat_map(|r| &r.labels);
    let labels = labels.map(|(k, v)| vec!["label".to_owned(), format!("{k}={v}")]);
    let rows = rows.into_iter().map(|(k, v)| vec![k.to_owned(), v]);
    table(&rows.chain(labels).collect::<Vec<_>>())
}

fn created(at: u64) -> String {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(at);
    humantime::format_rfc3339_seconds(time).to_string()
}

/// `forebay verify`.
pub fn verify(config: &Config, args: &VerifyArgs, output: Output) -> Result<()> {
    let asked = VerifyRequest { deep: args.deep };
    let report =
        with_grid(config, |grid| async move { grid.placement.verify(&args.name, &asked).await })?;
    output.result(&report, |r| human_verify(&args.name, r))?;
    match report.bad.first() {
        None => Ok(()),
        Some(first) => {
            let more = report.bad.len() - 1;
            let message = format!(
                "{}: {first} is bad, and {more} other places: import the same disk again, which \
                 stores anew what is bad",
                args.name
            );
            Err(Error::new(Kind::Corrupt, message))
        }
    }
}

fn human_verify(name: &str, report: &VerifyReport) -> String {
    let mut text = format!(
        "{name}: {} sections, {} chunks, {} read",
        report.sections,
        report.chunks,
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
        grid.placement.move_ref(&args.new, &MoveRef { image, expect }).await
    })?;
    output.result(&moved, human_ref)
}

fn human_ref(info: &RefInfo) -> String {
    format!("{} → {}", info.name, info.image)
}

/// `forebay rm`.
pub fn remove(config: &Config, args: &RmArgs, output: Output) -> Result<()> {
    let was = with_grid(config, |grid| async move { grid.placement.delete_ref(&args.name).await })?;
    output.result(&was, |was| format!("removed {}", human_ref(was)))
}

/// `forebay gc`.
pub fn gc(config: &Config, args: &GcArgs, output: Output) -> Result<()> {
    let grace = args.grace.unwrap_or_else(|| config.time("gc.grace"));
    let asked = GcRequest { dry_run: args.dry_run, grace_secs: Some(grace.as_secs()) };
    let report = with_grid(config, |grid| async move { grid.placement.gc(&asked).await })?;
    output.result(&report, human_gc)
}

fn human_gc(report: &GcReport) -> String {
    let mut text = format!(
        "{} images are reachable\ncondemned {} objects, {}\ndeleted {} objects, {}",
        report.images,
        report.condemned,
        bytes(report.condemned_bytes),
        report.deleted,
        bytes(report.deleted_bytes)
    );
    if report.wait_secs > 0 {
        let wait = std::time::Duration::from_secs(report.wait_secs);
        let wait = humantime::format_duration(wait);
        text += &format!("\nwhat is condemned may be deleted in {wait}: run it again then");
    }
    text
}
