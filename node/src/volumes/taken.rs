//! A volume that is being captured: opened, if it is not attached, fixed at a point in time, and read as it was then
//! by the threads of the capture, while its guest goes on writing.
//!
//! ```text
//! capture's thread ── next_data, read ──▶ the volume's core: where does this lie? (not asked of what is all here)
//!                  ◀──── files and places ────┘
//!                  ── reads the files itself, then what was put aside meanwhile
//! ```

use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use api::volume::ExportKind;
use blockio::BlockFile;
use capture::Disk;
use futures::FutureExt;
use futures::executor::block_on;
use futures::future::LocalBoxFuture;
use image::error::At;
use image::{Digest, Error, Kind, Result};
use tokio::sync::OwnedMutexGuard;
use volume_pool::{Aside, Captured, Files, Identity, Piece, PointInTime, Since};

use super::cores::Core;
use super::left;
use super::live::{Live, Surroundings};
use super::service::{UNPOISONED, Volumes, take_patiently};
use super::serving::ENDS;
use super::shared;
use crate::daemon::Grid;

/// Pieces of a volume that are looked at in one go for some that are not holes.
const LOOK: usize = 256;

/// What a volume's core keeps of a capture.
pub(super) struct OnCore {
    pub(super) live: Rc<Live>,
    /// It was opened for the capture.
    ours: bool,
    point: Option<Rc<PointInTime>>,
    /// The guest stays with us: what it writes past us would not be kept.
    _stays: OwnedMutexGuard<()>,
}

/// A volume that is being captured. To be [ended](Taken::end).
pub struct Taken<G> {
    volumes: Volumes<G>,
    core: usize,
    /// What it says of itself.
    pub identity: Identity,
    /// What its changes count from.
    pub since: Since,
    /// Why that is not to be relied on, if it is not.
    pub doubt: Option<&'static str>,
    /// Sections of which all counts as changed after a crash.
    pub left_open: u64,
}

/// A volume at a point in time.
pub struct Fixed<G> {
    taken: Arc<Taken<G>>,
    /// What is to be read of it, in bytes.
    pub ranges: Vec<Range<u64>>,
    size: u64,
    /// The data file, if all was here at that point.
    whole: Option<BlockFile>,
    aside: Arc<Aside>,
}

impl<G: Grid> Volumes<G> {
    /// Opens a volume for a capture, for which it stays as it is: attached or not, and of this size.
    ///
    /// # Errors
    ///
    /// [`Kind::Conflict`] while it is captured; [`Kind::Retry`] while its lease is over; [`Kind::Unsupported`] if its guest writes to it past this daemon.
    pub async fn take(&self, name: &str) -> Result<Taken<G>> {
        let _only = self.only(name).await;
        self.reserve(name)?;
        let taken = self.take_reserved(name).await.at(|| name.to_owned());
        if taken.is_err() {
            self.release(name);
        }
        taken
    }

    pub(super) fn reserve(&self, name: &str) -> Result<()> {
        self.is_not_captured(name)?;
        self.0.capturing.lock().expect(UNPOISONED).insert(name.to_owned());
        Ok(())
    }

    pub(super) fn release(&self, name: &str) {
        self.0.capturing.lock().expect(UNPOISONED).remove(name);
    }

    /// Refuses what cannot be done to a volume while it is captured.
    pub(super) fn is_not_captured(&self, name: &str) -> Result<()> {
        match self.0.capturing.lock().expect(UNPOISONED).contains(name) {
            false => Ok(()),
            true => {
                let what = format!("{name}: it is being captured: wait, or cancel the capture");
                Err(Error::new(Kind::Conflict, what))
            }
        }
    }

    async fn take_reserved(&self, name: &str) -> Result<Taken<G>> {
        let identity = self.0.shelf.identity(name)?;
        let attached = self.0.kept.get(name).is_some();
        let files = match attached {
            true => None,
            false => {
                let (shelf, name) = (self.0.shelf.clone(), name.to_owned());
                Some(take_patiently(move || shelf.take(&name)).await?)
            }
        };
        // Where it lives, if it does: that it has become plain since does not move it.
        let home = self.0.homes.lock().expect(UNPOISONED).get(name).copied();
        let core = home.unwrap_or(self.home(&identity));
        let (key, around) = (name.to_owned(), self.around(None));
        let Opened { since, identity, left_open, as_left } = self
            .on(core, move |core| {
                async move { open(&core, around, key, files).await }.boxed_local()
            })
            .await?;
        let doubt = match identity {
            _ if identity.untracked => {
                Some("it was written to past this daemon, or could have been")
            }
            _ if identity.plain && !attached && as_left == Some(false) => {
                Some("its plain file has changed, or could have, since it was detached")
            }
            _ if identity.plain && !attached && as_left.is_none() => {
                Some("nobody watched its plain file while it was not attached")
            }
            _ if since == Since::Unknown => Some("what its changes count from is not known"),
            _ => None,
        };
        Ok(Taken { volumes: self.clone(), core, identity, since, doubt, left_open })
    }
}

/// What is told of a volume when it is opened for a capture.
struct Opened {
    since: Since,
    identity: Identity,
    left_open: u64,
    /// Whether its file lies there as it was left when it was detached, if that was noted.
    as_left: Option<bool>,
}

/// Opens a volume on its core, or finds it there.
async fn open<G: Grid>(
    core: &Rc<Core>,
    around: Surroundings<G>,
    name: String,
    files: Option<Files>,
) -> Result<Opened> {
    let ours = files.is_some();
    let (kept, shelf) = (Arc::clone(&around.kept), around.shelf.clone());
    let live = match files {
        Some(files) => Live::start_unshown(core, around, files, false).await?,
        None => {
            let live = core.live.borrow().get(&name).cloned();
            let why = "it is not served just now: it has no lease until placement answers, or was attached or detached just now";
            live.ok_or_else(|| Error::new(Kind::Retry, why))?
        }
    };
    let stays = live.stays().await;
    let identity = live.volume.identity();
    let how = kept.get(&name);
    let moved = how.as_ref().is_some_and(|how| how.moved);
    let passed = identity.untracked && how.is_some_and(|how| how.kind == ExportKind::Fuse);
    if moved || passed {
        let why = "its guest writes to the plain file, past this daemon: stop the guest and detach the volume first";
        return Err(Error::new(Kind::Unsupported, why));
    }
    // What cannot be told is in doubt.
    let as_left = left::is_as_left(&shelf, &live.volume).unwrap_or(Some(false));
    let (since, left_open) = (live.volume.since(), live.volume.left_open());
    let taken = OnCore { live, ours, point: None, _stays: stays };
    core.taken.borrow_mut().insert(name, taken);
    Ok(Opened { since, identity, left_open, as_left })
}

impl<G: Grid> Taken<G> {
    /// Brings what the capture needs: see [`Volume::prepare_point`](volume_pool::Volume::prepare_point).
    pub async fn prepare(&self, what: Captured) -> Result<()> {
        let work = move |on: Here| {
            async move { Ok((on.volume.prepare_point(what).await?, None)) }.boxed_local()
        };
        self.here(work).await
    }

    /// The image with whose base it shares what is as there, if it may.
    pub fn shares_with(&self) -> Option<Digest> {
        shared::image_of(&self.identity)
    }

    /// Counts as changed what the volume's file does not share with its image's base; whether that can be told. What its
    /// guest changes meanwhile and later counts by itself.
    pub async fn count_unshared(&self) -> Result<bool> {
        let data = |on: Here| async move { Ok((on.volume.data().clone(), None)) };
        let data = self.here(move |on| data(on).boxed_local()).await?;
        let Some(unshared) = self.volumes.unshared(&self.identity, data).await else {
            return Ok(false);
        };
        let count = move |on: Here| {
            on.volume.also_changed(&unshared);
            async { Ok(((), None)) }.boxed_local()
        };
        self.here(count).await?;
        Ok(true)
    }

    /// Fixes the point in time: see [`Volume::fix_point`](volume_pool::Volume::fix_point).
    pub async fn fix(self: &Arc<Self>, what: Captured) -> Result<Fixed<G>> {
        let scratch = self.volumes.0.shelf.scratch(&self.identity.name)?;
        let taken = Arc::clone(self);
        self.here(move |on| {
            async move {
                let point = on.volume.fix_point(what, scratch).await?;
                let (ranges, size, aside) = (point.ranges(), point.size(), point.aside().clone());
                let fixed = Fixed { taken, ranges, size, whole: on.volume.whole_file(), aside };
                Ok((fixed, Some(point)))
            }
            .boxed_local()
        })
        .await
    }

    /// Ends the capture: with an image that was made of the volume its changes count from there, without one as
    /// before.
    pub async fn end(&self, image: Option<Digest>) -> Result<()> {
        let (shelf, name) = (self.volumes.0.shelf.clone(), self.identity.name.clone());
        let ended = self.volumes.on(self.core, move |core| {
            async move {
                let Some(on) = core.taken.borrow_mut().remove(&name) else { return Ok(()) };
                let volume = &on.live.volume;
                let noted = match image {
                    Some(image) => match shelf.note_since(&volume.identity(), &image) {
                        Ok(()) => volume.captured(&image).await,
                        Err(error) => {
                            volume.not_captured();
                            Err(error)
                        }
                    },
                    None => {
                        volume.not_captured();
                        Ok(())
                    }
                };
                let ended = match on.ours {
                    true => on.live.stop(true, ENDS).await,
                    false => on.live.close_if_still().await,
                };
                drop(on);
                core.bases.release().await;
                noted.and(ended)
            }
            .boxed_local()
        });
        let ended = ended.await;
        self.volumes.0.still.lock().expect(UNPOISONED).remove(&self.identity.name);
        self.volumes.release(&self.identity.name);
        ended
    }

    /// Does something with the volume on its core; a point in time that comes of it is kept there.
    async fn here<T: Send + 'static>(
        &self,
        work: impl FnOnce(Here) -> LocalBoxFuture<'static, Result<(T, Option<Rc<PointInTime>>)>>
        + Send
        + 'static,
    ) -> Result<T> {
        let name = self.identity.name.clone();
        self.volumes
            .on(self.core, move |core| {
                async move {
                    let gone = || Error::new(Kind::Cancelled, "the capture was ended");
                    let here = {
                        let taken = core.taken.borrow();
                        let on = taken.get(&name).ok_or_else(gone)?;
                        Here { volume: Rc::clone(&on.live.volume), point: on.point.clone() }
                    };
                    let (done, point) = work(here).await?;
                    if let Some(on) = core.taken.borrow_mut().get_mut(&name) {
                        on.point = on.point.take().or(point);
                    }
                    Ok(done)
                }
                .boxed_local()
            })
            .await
    }
}

/// A volume on its core, and its point in time.
struct Here {
    volume: Rc<volume_pool::Volume>,
    point: Option<Rc<PointInTime>>,
}

impl<G: Grid> Fixed<G> {
    /// Asks the point in time something, from any thread but the core's.
    fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(Here, Rc<PointInTime>) -> LocalBoxFuture<'static, Result<T>> + Send + 'static,
    ) -> Result<T> {
        block_on(self.taken.here(move |here| {
            async move {
                let gone = || Error::new(Kind::Cancelled, "the capture was ended");
                let point = here.point.clone().ok_or_else(gone)?;
                Ok((work(here, point).await?, None))
            }
            .boxed_local()
        }))
    }
}

impl<G: Grid> Disk for Fixed<G> {
    fn size(&self) -> u64 {
        self.size
    }

    fn next_data(&self, from: u64) -> Result<Option<Range<u64>>> {
        let size = self.size;
        self.ask(move |here, point| {
            async move {
                let mut at = from;
                while at < size {
                    for (len, piece) in here.volume.pieces(at..size, LOOK)? {
                        let range = at..at + len;
                        at = range.end;
                        if piece != Piece::Hole {
                            return Ok(Some(range));
                        }
                        // What the guest has discarded since is a hole now.
                        if let Some(kept) = point.aside().of(&range)?.into_iter().next() {
                            return Ok(Some(kept));
                        }
                    }
                }
                Ok(None)
            }
            .boxed_local()
        })
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.read_by(BlockFile::read_at, buf, offset)
    }

    fn read_narrow(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.read_by(BlockFile::read_narrow_at, buf, offset)
    }

    fn read_once(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.read_by(BlockFile::read_once_at, buf, offset)
    }

    fn check_unchanged(&self) -> Result<()> {
        self.aside.check()
    }

    fn stored(&self, range: Range<u64>) {
        let done = self.ask(move |_, point| {
            async move {
                point.done(&range);
                Ok(())
            }
            .boxed_local()
        });
        // Then there is nothing left to be told.
        drop(done);
    }
}

/// A way to read a file: how much of it came.
type Read = fn(&BlockFile, &mut [u8], u64) -> std::io::Result<usize>;

impl<G: Grid> Fixed<G> {
    fn read_by(&self, read: Read, buf: &mut [u8], offset: u64) -> Result<()> {
        let range = offset..offset + buf.len() as u64;
        match &self.whole {
            Some(file) => read_part(read, file, buf, offset, range.clone())?,
            None => {
                let asked = range.clone();
                let files = move |here: Here, _| async move { here.volume.files_of(&asked).await };
                for (file, part) in self.ask(move |here, point| files(here, point).boxed_local())? {
                    read_part(read, &file, buf, offset, part)?;
                }
            }
        }
        self.aside.read_over(buf, offset)?;
        self.aside.spill();
        Ok(())
    }
}

/// Reads a part of what belongs at `offset`.
fn read_part(
    read: Read,
    file: &BlockFile,
    buf: &mut [u8],
    offset: u64,
    part: Range<u64>,
) -> Result<()> {
    let within = (part.start - offset) as usize..(part.end - offset) as usize;
    let failed = |e| Error::io(format!("reading the volume at {}", part.start), e);
    let want = within.len();
    match read(file, &mut buf[within], part.start).map_err(failed)? < want {
        true => Err(failed(std::io::ErrorKind::UnexpectedEof.into())),
        false => Ok(()),
    }
}
