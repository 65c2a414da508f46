//! Extends what is on a volume to its end: the last partition, and the file system in it.
//!
//! ```text
//!  look ─▶ grow ─▶ partition table ─▶ file system
//!   │        └────────────┴───────────────┴─ done again by the same command, from wherever it was ended
//!   └─ refuses, before anything is changed
//! ```
//! The volume is served to nobody but the tools, which have it as a file: what they read of it is fetched as for a
//! guest.

use std::ops::Range;
use std::path::PathBuf;
use std::rc::Rc;

use blockio::Arena;
use image::error::At;
use image::{Error, Kind, Result};
use volume_pool::inside::{Content, EDGE, Edges, Edit, FileSystem, FsKind, Table, content};
use volume_pool::{Shelf, Volume};

use super::cores::Core;
use super::live::Live;
use super::service::blocking;
use super::tools::{self, Part, Task};

/// Why a volume was not extended.
#[derive(Debug)]
pub(super) enum Failed {
    /// And nothing was changed.
    Before(Error),
    /// It may have its new size already; again goes on.
    Midway(Error),
}

/// A volume that nobody but the tools uses.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) shelf: Shelf,
    pub(super) name: String,
    /// The file as which it is served.
    pub(super) disk: PathBuf,
    /// A directory in which its file system may be mounted.
    pub(super) mount: PathBuf,
}

/// Extends a volume and what is on it.
pub(super) async fn extend(core: &Core, live: &Live, size: u64, site: &Site) -> Result<(), Failed> {
    let (table, fs) = look(core, &live.volume, size).await.map_err(Failed::Before)?;
    tools::check(fs.kind).map_err(Failed::Before)?;
    if table.is_damaged() {
        let repair = table.ending_at(live.volume.size()).map_err(Failed::Before)?;
        write(core, &live.volume, repair).await.map_err(Failed::Midway)?;
    }
    if size > live.volume.size() {
        live.grow(size).await.map_err(Failed::Before)?;
    }
    let extended = async {
        let (place, edits) = table.extended_to(size)?;
        write(core, &live.volume, edits).await?;
        let (file, sector) = (site.disk.clone(), live.volume.sector());
        let part = Part { file, start: place.start, length: place.end - place.start, sector };
        extend_in(&part, fs.kind, &live.volume, site).await.at(|| fs.kind.name().to_owned())
    };
    extended.await.map_err(Failed::Midway)
}

async fn extend_in(part: &Part, kind: FsKind, volume: &Volume, site: &Site) -> Result<()> {
    if kind == FsKind::Ext {
        // resize2fs is not atomic: what it leaves when it is killed is mended by more than what is done to
        // anybody's file system.
        let begun = site.shelf.is_extending(&site.name)?;
        let check = if begun { Task::MendExt } else { Task::CheckExt };
        tools::run(check, part, &site.mount).await?;
        site.note(Shelf::note_extending).await?;
    }
    tools::run(Task::Extend(kind), part, &site.mount).await?;
    volume.flush().await?;
    site.note(Shelf::forget_extending).await
}

impl Site {
    async fn note(&self, what: fn(&Shelf, &str) -> Result<()>) -> Result<()> {
        let (shelf, name) = (self.shelf.clone(), self.name.clone());
        blocking(move || what(&shelf, &name)).await
    }
}

/// What is on a volume, if it can be extended to `size` bytes.
async fn look(core: &Core, volume: &Rc<Volume>, size: u64) -> Result<(Table, FileSystem)> {
    let (arena, now) = (core.arena(volume.identity().chunk_log2)?, volume.size());
    let edge = now.min(EDGE as u64);
    let head = read(&arena, volume, 0..edge).await?;
    let tail = read(&arena, volume, now - edge..now).await?;
    let edges = Edges { size: now, sector: volume.sector(), head: &head, tail: &tail };
    let table = Table::read(&edges)?;
    // By what it is on the disk as it is: what is to be extended must have its place there already.
    let (place, _) = table.extended_to(now)?;
    table.extended_to(size)?;
    let end = place.end.min(place.start.saturating_add(EDGE as u64));
    let inside = content(&read(&arena, volume, place.start.min(end)..end).await?);
    let at = match table.last() {
        Some(last) => format!("the last partition, number {},", last.number),
        None => "the disk, which has no partitions,".to_owned(),
    };
    let room = table.last().map_or(now, |last| last.bytes.end - last.bytes.start);
    let refuse = |what| Err(Error::new(Kind::Unsupported, format!("{at} {what}")));
    match inside {
        Content::FileSystem(fs) if fs.bytes <= room => Ok((table, fs)),
        Content::FileSystem(fs) => {
            let (name, bytes) = (fs.kind.name(), fs.bytes);
            let what = format!("has {room} bytes, but the {name} in it {bytes}");
            Err(Error::new(Kind::Corrupt, format!("{at} {what}")))
        }
        Content::Other(name) => refuse(format!("holds {name}, which is not extended")),
        Content::Zeros | Content::Unknown => {
            refuse("holds no ext, XFS, btrfs or NTFS, which are what is extended".to_owned())
        }
    }
}

async fn read(arena: &Arena, volume: &Volume, range: Range<u64>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while range.start + (bytes.len() as u64) < range.end {
        let at = range.start + bytes.len() as u64;
        let mut buf = arena.acquire().await;
        buf.set_len((range.end - at).min(buf.capacity() as u64) as usize);
        let (done, buf) = volume.read(at, buf).await;
        done?;
        bytes.extend_from_slice(&buf);
    }
    Ok(bytes)
}

/// Makes edits, each durable before the next.
async fn write(core: &Core, volume: &Volume, edits: Vec<Edit>) -> Result<()> {
    let arena = core.arena(volume.identity().chunk_log2)?;
    for edit in edits {
        let mut done = 0;
        while done < edit.bytes.len() {
            let mut buf = arena.acquire().await;
            let end = edit.bytes.len().min(done + buf.capacity());
            buf.copy_from(&edit.bytes[done..end]);
            volume.write(edit.at + done as u64, buf).await.0?;
            done = end;
        }
        volume.flush().await?;
    }
    Ok(())
}
