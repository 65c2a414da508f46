//! A disk of a running QEMU that is no volume of ours: QEMU fixes the point in time, and notes between captures what
//! changes.
//!
//! A bitmap's name says from which image its changes count; it is there as long as that QEMU runs. What has to lie in a
//! file meanwhile lies in a directory of its own, beside the disk unless another place is named.

use std::fs::File;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use api::capture::RunningDisk;
use image::error::At;
use image::{Digest, Error, Kind, Result};

use super::fleecing::{Fleecing, give, remove};
use super::nbd::NbdDisk;
use crate::hypervisor::qmp::Monitor;
use crate::hypervisor::qmp::fleece::{self, Device, Fleece};

/// What the names of all begin with that a capture makes in a QEMU, and in a file system with a dot before it.
const NAMES: &str = "forebay-save-";
/// What the name of a bitmap begins with, before an image's digest.
const BITMAP: &str = "forebay-";
const SCRATCH: &str = "aside.raw";
const SOCKET: &str = "nbd.sock";

/// A disk that QEMU is to keep as it was. To be [ended](Running::end).
pub(super) struct Running {
    fleecing: Fleecing,
    /// Where the scratch file and the socket lie.
    dir: PathBuf,
    /// That directory, locked: it is in use.
    held: OnceLock<File>,
    /// A file that QEMU may open.
    like: PathBuf,
    size: u64,
    /// The device's logical sectors, in bytes.
    pub(super) sector: u32,
    /// The image from which a bitmap counts what has changed.
    pub(super) since: Option<Digest>,
    /// All bitmaps of ours.
    bitmaps: Vec<String>,
}

impl Running {
    /// Finds the disk, and takes away what a process has left in this QEMU that died.
    ///
    /// # Errors
    ///
    /// [`Kind::Gone`] if there is no such disk, [`Kind::Invalid`] if there are several and none was named; both say which
    /// there are.
    pub(super) async fn take(asked: &RunningDisk, scratch: Option<&Path>) -> Result<Self> {
        let place = || format!("the QEMU behind {}", asked.qmp.display());
        Self::take_from(asked, scratch).await.at(place)
    }

    async fn take_from(asked: &RunningDisk, scratch: Option<&Path>) -> Result<Self> {
        let mut monitor = Fleecing::monitor(&asked.qmp).await?;
        fleece::tidy(&mut monitor, NAMES).await?;
        let (device, sector) = choose(&mut monitor, asked.disk.as_deref()).await?;
        let mut bitmaps = fleece::bitmaps(&mut monitor, &device.node).await?;
        bitmaps.retain(|name| since(name).is_some());
        let (above, like) = room(&device, scratch, &asked.qmp)?;
        sweep(&above)?;
        let name = format!("{NAMES}{}", token()?);
        let dir = above.join(format!(".{name}"));
        let fleece = Fleece {
            source: device.node,
            name: name.clone(),
            scratch: dir.join(SCRATCH),
            socket: dir.join(SOCKET),
        };
        Ok(Self {
            fleecing: Fleecing::new(asked.qmp.clone(), fleece, name),
            dir,
            held: OnceLock::new(),
            like,
            size: device.size,
            sector,
            since: bitmaps.first().and_then(|name| since(name)),
            bitmaps,
        })
    }

    /// Makes all ready for the point in time.
    pub(super) async fn prepare(&self) -> Result<()> {
        let place = |e| Error::io(self.dir.display(), e);
        std::fs::DirBuilder::new().mode(0o700).create(&self.dir).map_err(place)?;
        let held = File::open(&self.dir).map_err(place)?;
        held.lock().map_err(place)?;
        let _ = self.held.set(held);
        give(&self.dir, &self.like)?;
        self.fleecing.prepare(self.size, &self.like).await
    }

    /// Has QEMU fix it, and if it is `known` what has changed keep that too.
    pub(super) async fn fix(&self, known: bool) -> Result<()> {
        let bitmap = self.since.as_ref().map(bitmap).filter(|_| known);
        self.fleecing.fix(bitmap.as_deref()).await
    }

    /// What was there then, and if it is `known` what had changed.
    pub(super) async fn disk(&self, known: bool) -> Result<Arc<NbdDisk>> {
        self.fleecing.disk(known).await
    }

    /// Ends the capture, with the image that was made: changes count from there.
    pub(super) async fn end(&self, image: Option<Digest>) -> Result<()> {
        let noted = match image {
            Some(image) => self.fleecing.captured(&bitmap(&image), &self.bitmaps).await,
            None => Ok(()),
        };
        let ended = self.fleecing.end().await;
        noted.and(ended).and(forget(&self.dir))
    }
}

fn bitmap(image: &Digest) -> String {
    format!("{BITMAP}{image}")
}

/// The image from which a bitmap of this name counts what changes, if it is one of ours.
fn since(bitmap: &str) -> Option<Digest> {
    bitmap.strip_prefix(BITMAP)?.parse().ok()
}

/// Removes what captures have laid down here that died.
fn sweep(above: &Path) -> Result<()> {
    let place = |e| Error::io(above.display(), e);
    for entry in std::fs::read_dir(above).map_err(place)? {
        let entry = entry.map_err(place)?;
        let name = entry.file_name();
        let is_ours = name.to_str().and_then(|name| name.strip_prefix('.'));
        // One that goes away meanwhile is somebody's who does.
        let left = is_ours
            .filter(|name| name.starts_with(NAMES))
            .and_then(|_| File::open(entry.path()).ok())
            .filter(|dir| dir.try_lock().is_ok());
        if left.is_some() {
            forget(&entry.path())?;
        }
    }
    Ok(())
}

/// Removes a capture's directory.
fn forget(dir: &Path) -> Result<()> {
    remove(&dir.join(SCRATCH))?;
    remove(&dir.join(SOCKET))?;
    match std::fs::remove_dir(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(dir.display(), e)),
        _ => Ok(()),
    }
}

/// The disk that was named, or the only one, and its sectors.
async fn choose(monitor: &mut Monitor, named: Option<&str>) -> Result<(Device, u32)> {
    let mut disks = Vec::new();
    for device in fleece::devices(monitor).await? {
        if let Some(sector) = fleece::sector(monitor, &device).await? {
            disks.push((device, sector));
        }
    }
    let all: Vec<_> = disks.iter().map(|(device, _)| told(device)).collect();
    let all = all.join("; ");
    let is_it = |device: &Device| {
        named.is_none_or(|name| {
            [device.node.as_str(), &device.drive, &device.path, id(device)].contains(&name)
        })
    };
    let mut fit = disks.into_iter().filter(|(device, _)| is_it(device));
    match (fit.next(), fit.next(), named) {
        (Some(disk), None, _) => Ok(disk),
        (None, _, Some(name)) => {
            Err(Error::new(Kind::Gone, format!("it has no disk {name}; those that it has: {all}")))
        }
        (None, ..) => Err(Error::new(Kind::Gone, "its guest has no disk")),
        _ => {
            let what = format!("which disk? Name its node after a `#`: {all}");
            Err(Error::new(Kind::Invalid, what))
        }
    }
}

fn told(device: &Device) -> String {
    let Device { node, driver, size, filename, .. } = device;
    format!("{node} ({driver}, {size} bytes, {filename})")
}

/// The name that the device was given, if it was (`-device id=`).
fn id(device: &Device) -> &str {
    device.path.strip_prefix("/machine/peripheral/").and_then(|p| p.split('/').next()).unwrap_or("")
}

/// Where what the guest overwrites can lie, and a file of whom QEMU belongs to.
fn room(device: &Device, scratch: Option<&Path>, qmp: &Path) -> Result<(PathBuf, PathBuf)> {
    let file = Path::new(&device.filename);
    let file = Some(file).filter(|file| file.is_absolute() && file.is_file());
    match (scratch, file.and_then(Path::parent)) {
        (Some(scratch), _) => Ok((scratch.to_owned(), file.unwrap_or(qmp).to_owned())),
        (None, Some(beside)) => Ok((beside.to_owned(), file.unwrap_or(qmp).to_owned())),
        (None, None) => {
            let what = format!(
                "disk {} is no file with a place of its own for what the guest overwrites meanwhile: name a directory \
                 (`--scratch DIR`)",
                told(device)
            );
            Err(Error::new(Kind::Invalid, what))
        }
    }
}

/// What tells this capture from others.
fn token() -> Result<String> {
    let mut bytes = [0; 4];
    let failed = |e| Error::io("drawing a name", std::io::Error::from(e));
    #[expect(clippy::disallowed_methods, reason = "captures are told apart by chance alone")]
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).map_err(failed)?;
    Ok(format!("{:08x}", u32::from_le_bytes(bytes)))
}
