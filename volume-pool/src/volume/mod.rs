//! A volume: a writable disk that can be used before its image has arrived.
//!
//! ```text
//!            read ──────────── is it here? ──── yes ─▶ data file
//!                                  │ no
//!            whoever fetches ◀── wanted ◀── also what a write needs for its edges
//!                  │
//!                 fill ─▶ blocks that the guest has not written ─▶ data file, then `present`
//!            write ─▶ intent ─▶ data file, then `written` or nothing, and `changed`
//!            flush ─▶ sync the data, then write and sync the maps that guard them
//!          capture ─▶ fix a point in time; what writes overwrite of it is put aside before
//! ```
//! Nothing here fetches: [`Volume::next_wanted`] says what guests wait for, and [`Volume::fill`] takes what
//! has come and was verified. All of it runs on one core, and every method may be called while others wait.
//!
//! What holds at every instant, whatever of the unsynced is lost:
//!
//! - a chunk that `present` says is here is here, and so is a block that `written` says was written;
//! - what was written before a flush that has returned is there, as it was or as written later;
//! - a section in which anything was written since `changed` was last written down has its `intent` set.

mod aside;
mod base;
mod close;
mod fill;
mod flush;
mod intent;
mod marks;
mod point;
mod read;
mod resize;
mod scrub;
#[cfg(test)]
mod tests;
mod together;
mod traffic;
mod wanted;
mod write;

use std::cell::{Cell, RefCell};
use std::io;
use std::ops::Range;
use std::rc::Rc;

use blockio::{BlockFile, Engine, FileKind};
use image::{Error, Kind, Manifest, Result};

use crate::identity::{Identity, IdentityBlocks};
use crate::layout::Layout;
use crate::maps::{MapFile, Maps};
use crate::since::Since;
use together::Together;
use traffic::Traffic;
use wanted::Wanted;

pub use aside::Aside;
pub use point::{Captured, PointInTime};
pub use read::Piece;
pub use scrub::{Original, Verdict};

/// A volume that is in use.
#[derive(Debug)]
pub struct Volume {
    identity: RefCell<IdentityBlocks>,
    layout: Cell<Layout>,
    data: BlockFile,
    engine: Engine,
    maps: RefCell<Maps>,
    map_file: MapFile,
    /// Sections whose intent is on disk.
    intended: RefCell<crate::maps::Bits>,
    traffic: Traffic,
    wanted: Wanted,
    flushing: Together,
    intending: Together,
    /// Whether nobody had used it when it was opened.
    fresh: bool,
    /// Whether something was written since the last flush began.
    written: Cell<bool>,
    /// Has the chunks that are not here.
    base: RefCell<Option<Rc<Volume>>>,
    /// What `changed` counts from.
    since: Cell<Since>,
    /// Sections of which all counts as changed, because a crash came before `changed` was written down.
    left_open: Cell<u64>,
    /// What a capture under way reads.
    point: RefCell<Option<Rc<PointInTime>>>,
}

/// The files of a volume, opened for writing, and nobody else's.
#[derive(Debug)]
pub struct Files {
    /// What it says of itself.
    pub identity: IdentityBlocks,
    /// Its bytes.
    pub data: BlockFile,
    /// What is known of them.
    pub maps: BlockFile,
    /// The image that it is made of.
    pub image: Option<Manifest>,
    /// What its changes count from.
    pub since: Since,
}

/// How far a volume is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrived {
    /// Chunks.
    pub chunks: u64,
    /// Those that are here, or with its base.
    pub present: u64,
    /// Those that somebody waits for.
    pub wanted: u64,
    /// Bytes of memory that its maps take.
    pub memory: u64,
}

impl Volume {
    /// Opens a volume: reads its maps. Blocks for a disk's time. Operations go through `engine`, which
    /// belongs to this core.
    ///
    /// # Errors
    ///
    /// [`Kind::Corrupt`] if the maps are damaged beyond what their second copies make good; then the volume
    /// is left as it is.
    pub fn open(files: Files, engine: Engine) -> Result<Self> {
        let Files { identity, data, maps: map_file, image, since } = files;
        let layout = Layout::of(identity.get())?;
        let map_file = MapFile::new(map_file, identity.get().id);
        let mut maps = Maps::new(&layout);
        if identity.get().plain {
            maps.all_is_here();
        }
        if data.kind() == FileKind::Regular {
            // A file that was made for the volume is zeros where nothing was written.
            image.iter().for_each(|image| maps.zero_sections(&layout, image));
        }
        let zeros = maps.present.count();
        map_file.load(&mut maps)?;
        let used = [&maps.written, &maps.changed, &maps.intent].iter().any(|map| map.count() > 0);
        let fresh = !used && !identity.get().plain && maps.present.count() == zeros;
        // What a process that was killed has written counts as well.
        let written = Cell::new(!identity.get().is_settled());
        // Nobody wrote `changed` down since these sections were written to: all of them may have changed.
        let left_open = maps.intent.count();
        let mut at = 0;
        while let Some(section) = maps.intent.next_set(at, maps.intent.len()) {
            maps.changed.set(layout.blocks_in(section));
            at = section + 1;
        }
        let intended = maps.intent.clone();
        let size = data.size().map_err(io)?;
        if size < layout.size() {
            let (path, wanted) = (data.path().display(), layout.size());
            let what = format!("{path}: {size} bytes, but the volume has {wanted}");
            return Err(Error::new(Kind::Corrupt, what));
        }
        Ok(Self {
            identity: RefCell::new(identity),
            layout: Cell::new(layout),
            data,
            engine,
            maps: RefCell::new(maps),
            map_file,
            intended: RefCell::new(intended),
            traffic: Traffic::default(),
            wanted: Wanted::default(),
            flushing: Together::default(),
            intending: Together::default(),
            fresh,
            written,
            base: RefCell::default(),
            since: Cell::new(since),
            left_open: Cell::new(left_open),
            point: RefCell::default(),
        })
    }

    /// What it says of itself.
    pub fn identity(&self) -> Identity {
        self.identity.borrow().get().clone()
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.layout.get().size()
    }

    /// Logical sector in bytes.
    pub fn sector(&self) -> u32 {
        self.layout.get().volume.sector()
    }

    /// The file or device that holds its bytes, at the places where the guest sees them.
    pub fn data(&self) -> &BlockFile {
        &self.data
    }

    /// How far it is.
    pub fn arrived(&self) -> Arrived {
        let maps = self.maps.borrow();
        Arrived {
            chunks: maps.present.len(),
            present: maps.present.count() + self.with_base(&maps.present),
            wanted: self.wanted.len() as u64,
            memory: maps.memory() as u64,
        }
    }

    /// Whether nobody had used it when it was opened: nothing of its image was here, and nothing written.
    pub fn was_fresh(&self) -> bool {
        self.fresh
    }

    /// Whether a guest waits for a chunk: of this volume, or of another that leans on the same base.
    pub fn is_waited_for(&self) -> bool {
        self.base.borrow().as_deref().unwrap_or(self).wanted.len() > 0
    }

    /// What its changes count from.
    pub fn since(&self) -> Since {
        self.since.get()
    }

    /// Sections of 64 MiB of which all counts as changed since the last capture, because a crash came before it was
    /// written down what has.
    pub fn left_open(&self) -> u64 {
        self.left_open.get()
    }

    /// Number of chunks of which its image has a part.
    pub fn image_chunks(&self) -> u64 {
        self.layout.get().image_chunks()
    }

    /// Whether all of it is here.
    pub fn is_complete(&self) -> bool {
        let maps = self.maps.borrow();
        maps.present.count() == maps.present.len()
    }

    fn check(&self, range: &Range<u64>) -> Result<()> {
        if range.start <= range.end && range.end <= self.size() {
            return Ok(());
        }
        let what = format!("bytes {range:?} of a volume of {}", self.size());
        Err(Error::new(Kind::Invalid, what))
    }
}

/// The error names the path already.
fn io(error: io::Error) -> Error {
    Error::io("volume", error)
}
