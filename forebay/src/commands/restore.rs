//! `forebay verify --restore-test`: an image is restored to scratch space, and looked at there.

use std::path::{Path, PathBuf};
use std::time::Duration;

use api::catalog::ImageInfo;
use image::{Error, ImageRecord, Kind, Result};
use node::restore::{
    Boot, BootTest, CheckOptions, Firmware, Kernel, Machine, Part, Restored, Scratch, boot, check,
};

use super::{pull, with_grid};
use crate::cli::{RestoreArgs, VerifyArgs};
use crate::config::Config;
use crate::grid::Grid;
use crate::output::{Output, bytes, seconds, table};

/// What a console says when somebody can log in.
const MARKER: &str = "login:";
const TIMEOUT: Duration = Duration::from_secs(300);
const MEMORY_MIB: u64 = 1024;
/// Characters of a verdict that are shown in a table.
const VERDICT: usize = 160;
/// More processors than this are not given to a machine, whatever its image wants.
const MOST_CPUS: u32 = 4;

/// Runs the command.
pub fn run(config: &Config, args: &VerifyArgs, output: Output) -> Result<()> {
    let work = async |grid: Grid| restore(config, &grid, &args.name, &args.restore, output).await;
    let restored = with_grid(config, work)?;
    output.result(&restored, human)?;
    restored.passed()?;
    match restored.not_booted {
        Some(why) => Err(Error::new(Kind::Unsupported, format!("{}: {why}", restored.name))),
        None => Ok(()),
    }
}

/// Restores an image to scratch space, which is given back, and checks it there.
///
/// # Errors
///
/// If it cannot be restored, or nothing can be said of what was restored.
pub async fn restore(
    config: &Config,
    grid: &Grid,
    name: &str,
    args: &RestoreArgs,
    output: Output,
) -> Result<Restored> {
    let base = base(config, args)?;
    let scratch = tokio::task::spawn_blocking(move || Scratch::make(&base)).await;
    let scratch = scratch.map_err(|e| Error::io("making scratch space", e.into()))??;
    let options = pull::options(config, true)?;
    let pulled = pull::to_file(grid, name, scratch.disk(), options, output).await;
    let (pulled, info) = pulled.map_err(|e| match e.kind() {
        Kind::Full => e.at("scratch space, for which --scratch names another directory"),
        _ => e,
    })?;
    // Where what describes the image is damaged it is restored all the same, and has the usual sectors most likely.
    let sector = info.as_ref().map_or(512, |info| info.sector);
    let parts = check(&scratch, &CheckOptions { sector, mount: args.mount }).await?;
    let (boot, not_booted) = match args.boot {
        true => match booted(&scratch, info.as_ref(), sector, args).await {
            Ok(boot) => (Some(boot), None),
            // Of another image, or another day's machine, it may be known whether it starts.
            Err(e) if e.kind() == Kind::Unsupported => (None, Some(e.message().to_owned())),
            Err(e) => return Err(e),
        },
        false => (None, None),
    };
    Ok(Restored {
        name: name.to_owned(),
        image: pulled.image,
        size: pulled.progress.size,
        data: pulled.progress.data,
        received: pulled.progress.received,
        pull_millis: (pulled.seconds * 1000.0) as u64,
        parts,
        boot,
        not_booted,
    })
}

async fn booted(
    scratch: &Scratch,
    info: Option<&ImageInfo>,
    sector: u32,
    args: &RestoreArgs,
) -> Result<Boot> {
    let test = boot_test(info, sector, args)?;
    boot(scratch, &test).await
}

fn base(config: &Config, args: &RestoreArgs) -> Result<PathBuf> {
    match &args.scratch {
        Some(dir) if !dir.is_dir() => {
            let what =
                format!("--scratch {}: there is no such directory: make it first", dir.display());
            Err(Error::new(Kind::Gone, what))
        }
        Some(dir) => Ok(dir.join("forebay-restore")),
        None => Ok(config.data.join("restore")),
    }
}

/// The machine that an image's record describes.
fn boot_test(info: Option<&ImageInfo>, sector: u32, args: &RestoreArgs) -> Result<BootTest> {
    let record: Option<&ImageRecord> = info.and_then(|info| info.record.as_ref());
    let architecture = record.and_then(|record| record.architecture.as_deref());
    if let Some(other) = architecture.filter(|a| !["x86_64", "amd64", "x86-64"].contains(a)) {
        let what = format!("its record names the architecture `{other}`: only x86_64 is started");
        return Err(Error::new(Kind::Unsupported, what));
    }
    let here = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let cpus = record.and_then(|record| record.cpus).unwrap_or(here);
    let memory = record.and_then(|record| record.memory_mib).unwrap_or(MEMORY_MIB);
    let machine = Machine {
        sector,
        firmware: Firmware::named(record.and_then(|record| record.firmware.as_deref()))?,
        memory_mib: args.memory_mib.unwrap_or(memory),
        cpus: cpus.clamp(1, here.min(MOST_CPUS)),
        kernel: match &args.kernel {
            Some(kernel) => Some(Kernel {
                kernel: absolute(kernel)?,
                initrd: args.initrd.as_deref().map(absolute).transpose()?,
                append: args.append.clone().unwrap_or_default(),
            }),
            None => None,
        },
    };
    Ok(BootTest {
        machine,
        marker: args.marker.clone().unwrap_or_else(|| MARKER.to_owned()),
        timeout: args.timeout.unwrap_or(TIMEOUT),
    })
}

/// A file that must be there, by a path that QEMU finds from where it is started.
fn absolute(path: &Path) -> Result<PathBuf> {
    path.canonicalize().map_err(|e| Error::io(path.display(), e))
}

fn millis(n: u64) -> String {
    seconds(Duration::from_millis(n))
}

/// For people.
pub fn human(restored: &Restored) -> String {
    let mut text = format!(
        "{}: {} of data restored in {}, {}/s; {} came; every byte verified\n",
        restored.name,
        bytes(restored.data),
        millis(restored.pull_millis),
        bytes(restored.rate()),
        bytes(restored.received),
    );
    let rows: Vec<Vec<String>> = restored.parts.iter().map(row).collect();
    text += &table(&rows);
    if let Some(boot) = &restored.boot {
        let (how, took) = (format!("{}, {}", boot.firmware, boot.accelerator), millis(boot.millis));
        text += &match &boot.failed {
            None => format!("booted in {took} ({how})\n"),
            Some(why) => format!("NOT BOOTED after {took} ({how}): {why}\n"),
        };
        boot.console.iter().for_each(|line| text += &format!("  | {line}\n"));
    }
    if let Some(why) = &restored.not_booted {
        text += &format!("NOT BOOTED: {why}\n");
    }
    text + &summary(restored)
}

fn row(part: &Part) -> Vec<String> {
    let what = match part.number {
        Some(number) => format!("partition {number}"),
        None => "disk".to_owned(),
    };
    let took = if part.tool.is_some() { millis(part.millis) } else { String::new() };
    let tool = part.tool.clone().unwrap_or_default();
    vec![what, part.holds.clone(), bytes(part.bytes), tool, took, short(&part.verdict.to_string())]
}

/// The beginning of a verdict; `--json` has all of it.
fn short(verdict: &str) -> String {
    match verdict.char_indices().nth(VERDICT) {
        Some((end, _)) => format!("{}… (--json tells more)", &verdict[..end]),
        None => verdict.to_owned(),
    }
}

/// In a few words.
pub fn summary(restored: &Restored) -> String {
    let damaged = restored.damaged().count();
    let checked = restored.parts.iter().filter(|p| p.tool.is_some());
    let clean = checked.clone().filter(|p| p.verdict.is_good()).count();
    let mut said: Vec<String> = match (clean, checked.count()) {
        (0, 0) => vec!["no file system was checked".to_owned()],
        (0, _) => Vec::new(),
        (1, _) => vec!["1 file system is clean".to_owned()],
        (n, _) => vec![format!("{n} file systems are clean")],
    };
    let unknown = restored.not_checked();
    if unknown > 0 {
        said.push(format!("NOT CHECKED: {unknown}"));
    }
    if damaged > 0 {
        said.push(format!("DAMAGED: {damaged}"));
    }
    match &restored.boot {
        Some(boot) if boot.failed.is_some() => said.push("it does not boot".to_owned()),
        Some(_) => said.push("it boots".to_owned()),
        None if restored.not_booted.is_some() => said.push("NOT BOOTED".to_owned()),
        None => {}
    }
    said.join("; ")
}
