//! `forebay volume`: volumes of this node, by its daemon.

use std::path::{Path, PathBuf};

use api::volume::{
    AttachVolume, Attachment, CreateVolume, ExportKind, Hydration, ResizeVolume, Scrubbed, Terms,
    VolumeInfo,
};
use image::{Error, Kind, Result};
use node::daemon::DaemonClient;

use super::node::daemon_client;
use super::{block_on, unix_now};
use crate::cli::{
    AttachVolumeArgs, CreateVolumeArgs, ExportArg, ResizeVolumeArgs, RmVolumesArgs, VolumeCommand,
    VolumeNameArgs,
};
use crate::config::Config;
use crate::output::{Output, bytes, chunks, say, table, time};

/// Runs the command.
pub fn run(config: &Config, command: VolumeCommand, output: Output) -> Result<()> {
    if let VolumeCommand::Identify { path } = &command {
        let found = node::volumes::identify(&absolute(path)?)?;
        return output.result(&found, human);
    }
    let daemon = daemon_client(config);
    let info = match command {
        VolumeCommand::Ls => {
            let all = block_on(async { daemon.volumes().await })?;
            return output.result(&all, |all| rows(all));
        }
        VolumeCommand::Scrub(VolumeNameArgs { name }) => {
            let found = block_on(daemon.scrub_volume(&name))?;
            return output.result(&found, human_scrubbed);
        }
        VolumeCommand::Identify { .. } => unreachable!("it needs no daemon"),
        VolumeCommand::Rm(args) => return remove(&daemon, &args, output),
        VolumeCommand::Release(args) => return super::release::run(config, &args, output),
        VolumeCommand::Erasures(args) => return super::release::list(config, &args, output),
        VolumeCommand::Create(args) => block_on(create(&daemon, &args))?,
        VolumeCommand::Show(VolumeNameArgs { name }) => block_on(daemon.volume(&name))?,
        VolumeCommand::Resize(ResizeVolumeArgs { name, size, extend }) => {
            block_on(daemon.resize_volume(&name, &ResizeVolume { size, extend }))?
        }
        VolumeCommand::Attach(args) => block_on(attach(&daemon, &args))?,
        VolumeCommand::Detach(VolumeNameArgs { name }) => block_on(daemon.detach_volume(&name))?,
    };
    output.result(&info, human)
}

async fn create(daemon: &DaemonClient, args: &CreateVolumeArgs) -> Result<VolumeInfo> {
    let name = match &args.name {
        Some(name) => name.clone(),
        None => free_name(daemon, args.image.as_deref().unwrap_or("blank")).await?,
    };
    let sector = args.sector_size.as_deref().and_then(|s| s.parse().ok());
    let (image, size) = (args.image.clone(), args.size.or(args.blank));
    let device = args.device.as_deref().map(absolute).transpose()?;
    let asked = CreateVolume { name, image, size, sector, device, extend: args.extend };
    daemon.create_volume(&asked).await
}

/// `debian-12-1` for the first volume of `debian:12`.
async fn free_name(daemon: &DaemonClient, image: &str) -> Result<String> {
    // A digest is long enough to be known by its beginning.
    let short = if image.len() == 64 { &image[..12] } else { image };
    let stem = short.replace(|c: char| !c.is_ascii_alphanumeric() && c != '.' && c != '_', "-");
    let all = daemon.volumes().await?;
    let taken = |name: &String| all.iter().any(|v| v.name == *name);
    let names = (1..=all.len() + 1).map(|n| format!("{stem}-{n}"));
    Ok(names.into_iter().find(|name| !taken(name)).unwrap_or(stem))
}

async fn attach(daemon: &DaemonClient, args: &AttachVolumeArgs) -> Result<VolumeInfo> {
    if args.is_plain() {
        let now = daemon.volume(&args.name).await?;
        if now.attached.is_some() {
            return Ok(now);
        }
    }
    let kind = match args.export {
        None | Some(ExportArg::Nbd) => ExportKind::Nbd,
        Some(ExportArg::VhostUser) => ExportKind::VhostUser,
        Some(ExportArg::Fuse) => ExportKind::Fuse,
    };
    let asked = AttachVolume {
        kind,
        path: args.path.as_deref().map(absolute).transpose()?,
        qmp: args.qmp.as_deref().map(absolute).transpose()?,
        read_only: args.read_only,
        fill: !args.no_fill,
        terms: Terms {
            patience: args.patience.map(|t| t.as_secs().max(1)),
            rate: args.rate,
            by: args.by.map(|t| unix_now() + t.as_secs()),
            copy: args.copy,
        },
        trace: !args.no_trace,
        record: args.record,
    };
    let info = daemon.attach_volume(&args.name, &asked).await?;
    if let (Some(by), Some(h)) = (asked.terms.by, info.hydration.filter(|h| h.late)) {
        let (by, left) = (time(by), bytes(h.left));
        say(format!("warning: {}: it will not all be here by {by}: {left} are to come", args.name));
    }
    Ok(info)
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|e| Error::io(path.display(), e))
}

/// Removes each. A name that nobody bears is mistyped, and may mean any of the others: then none is removed.
fn remove(daemon: &DaemonClient, args: &RmVolumesArgs, output: Output) -> Result<()> {
    let look = |name: &String| block_on(daemon.volume(name)).err();
    let unknown = args.names.iter().filter_map(look).filter(|e| e.kind() == Kind::Gone);
    none_of(unknown.collect())?;
    let (mut removed, mut failed) = (Vec::new(), Vec::new());
    for name in &args.names {
        match block_on(daemon.remove_volume(name)) {
            Ok(info) => removed.push(info),
            Err(error) => failed.push(error),
        }
    }
    if !removed.is_empty() {
        let names = |all: &Vec<VolumeInfo>| {
            all.iter().map(|v| format!("removed {}\n", v.name)).collect::<String>()
        };
        output.result(&removed, names)?;
    }
    none_of(failed)
}

/// Of several errors the last is the command's; the others are said before.
fn none_of(mut errors: Vec<Error>) -> Result<()> {
    let last = errors.pop();
    errors.iter().for_each(say);
    last.map_or(Ok(()), Err)
}

fn rows(all: &[VolumeInfo]) -> String {
    let head = ["NAME", "SIZE", "STATE", "HERE", "ATTACHED", "IMAGE"].map(str::to_owned).to_vec();
    let rows = all.iter().map(|v| {
        let image = v.image.map_or("-".to_owned(), |i| i.to_string()[..12].to_owned());
        let attached = v.attached.as_ref().map_or("-".to_owned(), |a| shown(a).to_owned());
        vec![v.name.clone(), bytes(v.size), v.state.clone(), here(v), attached, image]
    });
    table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

/// How it is shown.
fn shown(attached: &Attachment) -> &'static str {
    if attached.moved { "plain file" } else { attached.kind.name() }
}

/// How much of it is here.
fn here(v: &VolumeInfo) -> String {
    match &v.hydration {
        _ if v.plain => "all".to_owned(),
        Some(h) if h.chunks > 0 => format!("{} %", h.present * 100 / h.chunks),
        // What is here is looked at when it is attached.
        _ => "not all".to_owned(),
    }
}

fn human_scrubbed(s: &Scrubbed) -> String {
    format!(
        "as in the image: {}; written by the guest: {}; rotten: {}, made good of these: {}",
        chunks(s.right),
        s.written,
        s.wrong,
        s.repaired
    )
}

/// What came over the network since it was attached. Tables of sections come before chunks do.
fn fetched(h: &Hydration) -> String {
    match (h.fetched, h.received) {
        (0, 0) => "nothing yet".to_owned(),
        (0, tables) => format!("no chunks yet, {} of tables", bytes(tables)),
        (n, received) => format!("{}, {}", chunks(n), bytes(received)),
    }
}

/// What guests had and have to wait for.
fn waits(h: &Hydration) -> String {
    format!("waited for {} so far, wait for {} now", chunks(h.demanded), chunks(h.wanted))
}

/// How it is with the QEMU that is to use the plain file.
fn with_qemu(v: &VolumeInfo, a: &Attachment, qmp: &Path) -> String {
    let at = qmp.display();
    match (a.moved, v.plain) {
        (true, _) => "moved to the plain file".to_owned(),
        (false, true) => {
            format!("not moved to the plain file yet, is asked again and again: QMP at {at}")
        }
        (false, false) => format!("moves to the plain file when all is here: QMP at {at}"),
    }
}

fn human(v: &VolumeInfo) -> String {
    let mut lines = vec![
        ("volume", v.name.clone()),
        ("size", bytes(v.size)),
        ("sector", format!("{} bytes", v.sector)),
        ("state", v.state.clone()),
        ("image", v.image.map_or("none".to_owned(), |i| i.to_string())),
        ("created", time(v.created)),
        ("here", here(v)),
        ("disk", v.disk.display().to_string()),
    ];
    if v.shares {
        let how = match v.plain {
            true => "blocks of its disk, with other volumes of its image",
            false => "the chunks of its image, which are kept with it, with other volumes",
        };
        lines.push(("shares", how.to_owned()));
    }
    if let Some(a) = &v.attached {
        let how = if a.read_only { "read-only, " } else { "" };
        lines.push((
            "attached",
            format!("{how}{} {}", shown(a), if a.moved { &v.disk } else { &a.path }.display()),
        ));
    }
    if let Some((a, qmp)) = v.attached.as_ref().and_then(|a| Some((a, a.qmp.as_ref()?))) {
        lines.push(("qemu", with_qemu(v, a, qmp)));
    }
    if let Some(h) = v.hydration.filter(|_| !v.plain) {
        lines.push(("fetched", fetched(&h)));
        lines.push(("guests", waits(&h)));
        if let Some(seconds) = h.seconds {
            let takes = humantime::format_duration(std::time::Duration::from_secs(seconds));
            lines.push(("left", format!("{}, about {takes}", bytes(h.left))));
        }
        if let Some(by) = v.attached.as_ref().and_then(|a| a.terms.by) {
            let late = if h.late { ": it will be LATE" } else { "" };
            lines.push(("due", format!("{}{late}", time(by))));
        }
    }
    if let Some(trouble) = &v.trouble {
        lines.push(("trouble", trouble.message.clone()));
    }
    lines.iter().map(|(what, value)| format!("{what:9} {value}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_and_who_waits_is_told_in_numbers_that_fit() {
        let came = |fetched, received| Hydration { fetched, received, ..Hydration::default() };
        for (h, says) in [
            (came(0, 0), "nothing yet"),
            (came(0, 2765), "no chunks yet, 2.7 KiB of tables"),
            (came(1, 1 << 18), "1 chunk, 256.0 KiB"),
            (came(2, 1 << 19), "2 chunks, 512.0 KiB"),
        ] {
            assert_eq!(fetched(&h), says);
        }
        let h = Hydration { demanded: 1, wanted: 0, ..Hydration::default() };
        assert_eq!(waits(&h), "waited for 1 chunk so far, wait for no chunks now");
        let scrubbed = Scrubbed { right: 1, written: 0, wrong: 2, repaired: 2 };
        let says =
            "as in the image: 1 chunk; written by the guest: 0; rotten: 2, made good of these: 2";
        assert_eq!(human_scrubbed(&scrubbed), says);
    }

    #[test]
    fn a_volume_says_how_it_is_with_its_qemu() {
        let told = |plain: bool, moved: bool| {
            let volume: VolumeInfo = serde_json::from_value(serde_json::json!({
                "name": "v", "id": "", "state": "allocated", "size": 512, "sector": 512, "created": 0,
                "plain": plain, "disk": "/v/disk.raw",
                "attached": {"kind": "nbd", "path": "/v.nbd", "qmp": "/q", "read_only": false,
                             "fill": true, "moved": moved},
            }))
            .unwrap();
            let all = human(&volume);
            all.lines().find_map(|line| line.strip_prefix("qemu      ")).unwrap().to_owned()
        };
        assert_eq!(told(false, false), "moves to the plain file when all is here: QMP at /q");
        assert!(told(true, false).contains("not moved to the plain file yet"));
        assert_eq!(told(true, true), "moved to the plain file");
    }
}
