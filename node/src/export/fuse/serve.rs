//! Does on the disk's core what the kernel asked for, and answers.

use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::time::{Duration, UNIX_EPOCH};

use blockio::{Arena, Buf};
use fuser::{BackgroundSession, Errno, FileAttr, FileType, INodeNo};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use image::{Error, Kind, Result};
use tokio::sync::{RwLock, mpsc};

use super::super::{Disk, Stretch};
use super::front::{Call, Front};
use super::range::{Found, Seek, clip, outer, pieces, search};
use super::session::{Connection, Handle, begin};
use super::{MOST, Options};

/// The kernel asks for size and owner again after so long, or after a write.
const ATTRIBUTES_LAST: Duration = Duration::from_secs(1);
/// Requests in work at once. Each is a few hundred bytes and what it holds of the arenas.
const IN_WORK: usize = 512;
/// Requests on their way from thread to core.
const QUEUE: usize = 64;
/// Stretches that are looked at in one go.
const LOOK: usize = 64;

/// A disk that is shown as a file.
pub struct Export<D> {
    serving: Serving<D>,
    calls: mpsc::Receiver<Call>,
    session: BackgroundSession,
    handle: Handle,
}

struct Serving<D> {
    disk: Rc<D>,
    reads: Arena,
    /// Held alone by who changes part of a sector, which is read, changed and written: nothing
    /// else is written meanwhile.
    parts: RwLock<()>,
    options: Options,
}

impl<D: Disk> Export<D> {
    /// Begins to take requests; they are done by [`run`](Export::run).
    ///
    /// # Errors
    ///
    /// [`Kind::Invalid`] for too little memory; what the system says, among it [`Kind::Unsupported`]
    /// if the kernel cannot send requests again and the connection is a [`Left`](Connection::Left) one.
    pub fn start(connection: Connection, disk: Rc<D>, options: Options) -> Result<Export<D>> {
        // Room for a request that begins and ends inside sectors.
        let slot = MOST + 2 * blockio::arena::ALIGN;
        if options.memory < 4 * MOST {
            let message = format!("{} bytes of memory: at least {}", options.memory, 4 * MOST);
            return Err(Error::new(Kind::Invalid, message));
        }
        let half = options.memory / 2;
        let arena = |owner, slot: usize| {
            Arena::new(owner, slot, half.max(slot)).map_err(|e| Error::io("memory for FUSE", e))
        };
        let (reads, writes) = (arena("fuse reads", slot)?, arena("fuse writes", MOST)?);
        let (sender, calls) = mpsc::channel(QUEUE);
        let handle = Handle::default();
        let shared = handle.shared.clone();
        let front = Front { calls: sender, writes, shared, read_only: disk.read_only() };
        let failed = |e: io::Error| match e.kind() {
            io::ErrorKind::InvalidInput => {
                Error::caused(Kind::Unsupported, format!("a FUSE session: {e}"), e)
            }
            _ => Error::io("a FUSE session", e),
        };
        let session = begin(connection, front).and_then(|s| s.spawn()).map_err(failed)?;
        let serving = Serving { disk, reads, parts: RwLock::new(()), options };
        Ok(Export { serving, calls, session, handle })
    }

    /// What others tell this export by.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Serves until the mount and all files of it are gone, or until [`Handle::leave`]. Dropped before, requests
    /// fail with an I/O error.
    ///
    /// # Errors
    ///
    /// What the connection ended with, if not by that.
    pub async fn run(self) -> Result<()> {
        let Export { serving, mut calls, session, handle } = self;
        let mut work = FuturesUnordered::new();
        loop {
            tokio::select! {
                call = calls.recv(), if work.len() < IN_WORK => match call {
                    Some(call) => work.push(serving.answer(call)),
                    None => break,
                },
                Some(()) = work.next() => {}
                () = handle.shared.leaving() => {
                    calls.close();
                    break;
                }
            }
        }
        while let Some(call) = calls.recv().await {
            call.leave_unanswered();
        }
        while work.next().await.is_some() {}
        if handle.shared.has_left() {
            return Ok(());
        }
        // The thread has given up its end of the queue: it has ended, or is about to.
        session.join().map_err(|e| Error::io("a FUSE session", e))
    }
}

impl<D: Disk> Serving<D> {
    async fn answer(&self, call: Call) {
        match call {
            Call::Attributes(reply) => match self.attributes() {
                Ok(attributes) => reply.attr(&ATTRIBUTES_LAST, &attributes),
                Err(error) => reply.error(errno(&error)),
            },
            Call::Read { at, len, reply } => match self.read(at, len).await {
                Ok(Some((buf, within))) => reply.data(&buf[within]),
                Ok(None) => reply.data(&[]),
                Err(error) => reply.error(errno(&error)),
            },
            Call::Write { at, data, sync, reply } => match self.write(at, data, sync).await {
                Ok(written) => reply.written(written),
                Err(error) => reply.error(errno(&error)),
            },
            Call::Sync(reply) => match self.disk.flush().await {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(errno(&error)),
            },
            Call::Zero { at, len, give_back, grow, reply } => {
                match self.zero(at, len, give_back, grow).await {
                    Ok(()) => reply.ok(),
                    Err(error) => reply.error(errno(&error)),
                }
            }
            Call::Seek { from, what, reply } => match self.seek(from, what).await {
                Ok(Some(at)) => reply.offset(i64::try_from(at).unwrap_or(i64::MAX)),
                Ok(None) => reply.error(Errno::ENXIO),
                Err(error) => reply.error(errno(&error)),
            },
        }
    }

    fn attributes(&self) -> Result<FileAttr> {
        let size = self.disk.size();
        // Only as far as it costs little: that there are holes is what copying programs want to know.
        let stretches = self.disk.stretches(0..size, LOOK)?;
        let holes: u64 =
            stretches.iter().filter(|(_, s)| *s == Stretch::Hole).map(|(len, _)| len).sum();
        let writable = if self.disk.read_only() { 0o444 } else { 0o666 };
        Ok(FileAttr {
            ino: INodeNo::ROOT,
            size,
            blocks: size.saturating_sub(holes).div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: FileType::RegularFile,
            perm: self.options.mode & writable,
            nlink: 1,
            uid: self.options.uid,
            gid: self.options.gid,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    /// The buffer, and where in it the bytes lie.
    async fn read(&self, at: u64, len: u32) -> Result<Option<(Buf, Range<usize>)>> {
        let size = self.disk.size();
        let range = clip(at, u64::from(len).min(MOST as u64), size);
        if range.is_empty() {
            return Ok(None);
        }
        let outer = outer(&range, u64::from(self.disk.sector()), size);
        let mut buf = self.reads.acquire().await;
        buf.set_len((outer.end - outer.start) as usize);
        let (result, buf) = self.disk.read(outer.start, buf).await;
        result?;
        let skip = (range.start - outer.start) as usize;
        Ok(Some((buf, skip..skip + (range.end - range.start) as usize)))
    }

    /// How much was written: less than `data` where the disk ends.
    async fn write(&self, at: u64, mut data: Buf, sync: bool) -> Result<u32> {
        let range = clip(at, data.len() as u64, self.disk.size());
        if range.is_empty() && !data.is_empty() {
            return Err(Error::new(Kind::Full, "the disk ends before"));
        }
        let len = (range.end - range.start) as usize;
        data.set_len(len);
        let sector = u64::from(self.disk.sector());
        if range.start.is_multiple_of(sector) && range.end.is_multiple_of(sector) {
            let _whole = self.parts.read().await;
            if len > 0 {
                self.disk.write(range.start, data).await.0?;
            }
        } else {
            self.write_part(&range, |part| part.copy_from_slice(&data)).await?;
        }
        if sync {
            self.disk.flush().await?;
        }
        Ok(len as u32)
    }

    /// Writes what does not fill its sectors: they are read, filled in, and written.
    async fn write_part(&self, range: &Range<u64>, fill: impl FnOnce(&mut [u8])) -> Result<()> {
        let outer = outer(range, u64::from(self.disk.sector()), self.disk.size());
        let mut buf = self.reads.acquire().await;
        let _alone = self.parts.write().await;
        buf.set_len((outer.end - outer.start) as usize);
        let (result, mut buf) = self.disk.read(outer.start, buf).await;
        result?;
        let skip = (range.start - outer.start) as usize;
        fill(&mut buf[skip..skip + (range.end - range.start) as usize]);
        self.disk.write(outer.start, buf).await.0
    }

    async fn zero(&self, at: u64, len: u64, give_back: bool, grow: bool) -> Result<()> {
        let size = self.disk.size();
        if grow && at.saturating_add(len) > size {
            return Err(Error::new(Kind::Full, "the disk ends before"));
        }
        let (head, middle, tail) = pieces(&clip(at, len, size), u64::from(self.disk.sector()));
        for part in [head, tail] {
            if !part.is_empty() {
                self.write_part(&part, |bytes| bytes.fill(0)).await?;
            }
        }
        if !middle.is_empty() {
            let _whole = self.parts.read().await;
            self.disk.zero(middle, give_back).await?;
        }
        Ok(())
    }

    /// Where the next data or hole is; `None` at the end.
    async fn seek(&self, from: u64, what: Seek) -> Result<Option<u64>> {
        let size = self.disk.size();
        if from >= size {
            return Ok(None);
        }
        let sector = u64::from(self.disk.sector());
        let mut from = from;
        while from < size {
            let start = from - from % sector;
            match search(start, &self.disk.stretches(start..size, LOOK)?, from, what) {
                Found::At(at) => return Ok(Some(at)),
                Found::NotBefore(at) if at > from => from = at,
                Found::NotBefore(_) => break,
            }
            // Others want the core too.
            tokio::task::yield_now().await;
        }
        // The end counts as a hole.
        Ok((what == Seek::Hole).then_some(size))
    }
}

/// What a guest's hypervisor is told. Most of it makes an I/O error in the guest; a full disk has a meaning
/// there (QEMU's `werror=enospc` stops the guest).
fn errno(error: &Error) -> Errno {
    match error.kind() {
        // A guest can have these as often as it likes.
        Kind::Full | Kind::Unsupported | Kind::Invalid => {
            tracing::debug!(%error, "refused over FUSE");
        }
        _ => tracing::warn!(%error, "a request over FUSE failed"),
    }
    match error.kind() {
        Kind::Full => Errno::ENOSPC,
        Kind::Unsupported => Errno::EOPNOTSUPP,
        Kind::Invalid => Errno::EINVAL,
        Kind::Denied => Errno::EACCES,
        _ => Errno::EIO,
    }
}
