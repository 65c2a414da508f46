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
use std::path::Path;
use std::rc::Rc;

use blockio::Arena;
use image::{Error, Kind, Result};
use volume_pool::Volume;
use volume_pool::inside::{Content, EDGE, Edges, Edit, FileSystem, Table, content};

use super::cores::Core;
use super::live::Live;
use super::tools::{self, Part};

/// Why a volume was not extended.
#[derive(Debug)]
pub(super) enum Failed {
    /// And nothing was changed.
    Before(Error),
    /// It may have its new size already; again goes on.
    Midway(Error),
}

/// Extends a volume, served as `disk`, that nobody else uses. `mount` is a directory in which its file system may be
/// mounted.
pub(super) async fn extend(
    core: &Core,
    live: &Live,
    size: u64,
    disk: &Path,
    mount: &Path,
) -> Result<(), Failed> {
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
        let (file, sector) = (disk.to_owned(), live.volume.sector());
        let part = Part { file, start: place.start, length: place.end - place.start, sector };
        tools::extend(fs.kind, &part, mount).await
    };
    extended.await.map_err(Failed::Midway)
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
