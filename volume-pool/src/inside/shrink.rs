//! Whether a disk can be made smaller: what is on it must say so itself.

use image::{Error, Kind, Result};

use super::content::{Content, FileSystem, FsKind, content};
use super::table::Table;

/// What proves that nothing is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// What is on the disk says that it ends before.
    Ends,
    /// Nothing on the disk says anything: it holds if all bytes behind the new end are zeros.
    Zeros,
}

/// Whether a disk can have `size` bytes: by its table, and by the first [`EDGE`](super::EDGE) bytes of its last
/// partition, or of the disk if it has none.
///
/// # Errors
///
/// [`Kind::Conflict`] if something lies behind, with what to do about it; [`Kind::Unsupported`] for what
/// says nothing that we understand.
pub fn proof(table: &Table, head: &[u8], size: u64) -> Result<Proof> {
    let inside = content(head);
    let Some(last) = table.last() else {
        return match (table, inside) {
            (Table::None, Content::Zeros | Content::Unknown) => Ok(Proof::Zeros),
            (Table::None, Content::FileSystem(fs)) if fs.bytes <= size => Ok(Proof::Ends),
            (Table::None, Content::FileSystem(fs)) => Err(too_large(fs, "the disk", size)),
            (Table::None, Content::Other(name)) => {
                let what = format!("{name} has the whole disk: how far it reaches is not known");
                Err(Error::new(Kind::Unsupported, what))
            }
            _ if table.least() <= size => Ok(Proof::Ends),
            _ => Err(no_room(table, size)),
        };
    };
    let partition = format!("partition {}", last.number);
    let room = last.bytes.end - last.bytes.start;
    if let Content::FileSystem(fs) = inside
        && fs.bytes > room
    {
        return Err(too_large(fs, &partition, room));
    }
    if table.least() <= size {
        return Ok(Proof::Ends);
    }
    if last.bytes.end <= size {
        return Err(no_room(table, size));
    }
    let first = match inside {
        Content::FileSystem(fs) => format!("{}, then ", how(fs.kind)),
        _ => String::new(),
    };
    let what = format!(
        "{partition} ends at byte {}, behind {size}: make what is in it smaller first ({first}the partition: sfdisk)",
        last.bytes.end
    );
    Err(Error::new(Kind::Conflict, what))
}

fn no_room(table: &Table, size: u64) -> Error {
    let least = table.least();
    let what = format!("the partition table needs {least} bytes: {size} are too few");
    Error::new(Kind::Conflict, what)
}

fn too_large(fs: FileSystem, place: &str, room: u64) -> Error {
    let (name, bytes, how) = (fs.kind.name(), fs.bytes, how(fs.kind));
    let what = format!(
        "the {name} on {place} has {bytes} bytes, and would have {room}: make it smaller first ({how})"
    );
    Error::new(Kind::Conflict, what)
}

/// With what a file system is made smaller.
fn how(kind: FsKind) -> &'static str {
    match kind {
        FsKind::Ext => "resize2fs",
        FsKind::Xfs => "which XFS cannot be: copy it to another disk",
        FsKind::Btrfs { .. } => "btrfs filesystem resize",
        FsKind::Ntfs => "ntfsresize",
    }
}
