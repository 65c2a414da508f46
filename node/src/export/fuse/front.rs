//! The thread that takes requests from the kernel and passes them on to the disk's core.
//!
//! It does nothing that could wait for the disk, but for memory: when all buffers for writes are in use it
//! waits for one, and the kernel keeps what comes meanwhile.

use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use blockio::{Arena, Buf};
use fuser::{
    BsdFileFlags, Errno, FileHandle, Filesystem, FopenFlags, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenAccMode, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyLseek, ReplyOpen,
    ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use rustix::fs::FallocateFlags;
use tokio::sync::mpsc;

use super::MOST;
use super::range::Seek;
use super::session::Shared;

/// What we ask of the kernel; each is done without where there is none.
pub(super) const WANTED: InitFlags = InitFlags::FUSE_ASYNC_READ
    .union(InitFlags::FUSE_BIG_WRITES)
    .union(InitFlags::FUSE_MAX_PAGES)
    // Requests of one guest's queue side by side.
    .union(InitFlags::FUSE_ASYNC_DIO)
    .union(InitFlags::FUSE_HAS_RESEND)
    .union(InitFlags::FUSE_PASSTHROUGH);

/// Requests that the kernel has under way by itself (those of `io_submit` and `io_uring`); others wait there.
/// As many as the deepest queue of a virtio disk in use.
const BACKGROUND: u16 = 256;

/// A request, and where its answer goes. One that is dropped is answered with an I/O error.
pub(super) enum Call {
    Attributes(ReplyAttr),
    Read { at: u64, len: u32, reply: ReplyData },
    Write { at: u64, data: Buf, sync: bool, reply: ReplyWrite },
    Sync(ReplyEmpty),
    Zero { at: u64, len: u64, give_back: bool, grow: bool, reply: ReplyEmpty },
    Seek { from: u64, what: Seek, reply: ReplyLseek },
}

pub(super) struct Front {
    pub calls: mpsc::Sender<Call>,
    pub writes: Arena,
    pub shared: Arc<Shared>,
    pub read_only: bool,
}

impl Front {
    fn pass_on(&self, call: Call) {
        if let Err(unsent) = self.calls.blocking_send(call)
            && self.shared.has_left()
        {
            unsent.0.leave_unanswered();
        }
        // Otherwise nobody serves any more: dropped, it is answered with an error.
    }
}

impl Call {
    /// Says nothing: the kernel will ask the next process. What it holds is lost until this one ends.
    pub fn leave_unanswered(self) {
        std::mem::forget(self);
    }
}

impl Filesystem for Front {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for flag in WANTED.iter() {
            if config.add_capabilities(flag).is_err() {
                tracing::debug!(?flag, "this kernel's FUSE has no");
            }
        }
        // A file system may lie on one other at most: the raw file's.
        let _ = config.set_max_stack_depth(1);
        let _ = config.set_max_write(MOST as u32);
        let _ = config.set_max_background(BACKGROUND);
        Ok(())
    }

    fn getattr(&self, _: &Request, _: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.pass_on(Call::Attributes(reply));
    }

    /// A disk has its size, and its owner is ours to choose. Times may be set, and are not kept.
    fn setattr(
        &self,
        _: &Request,
        _: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        if size.is_some() || mode.is_some() || uid.is_some() || gid.is_some() {
            return reply.error(Errno::EPERM);
        }
        self.pass_on(Call::Attributes(reply));
    }

    fn open(&self, _: &Request, _: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if self.read_only && flags.acc_mode() != OpenAccMode::O_RDONLY {
            return reply.error(Errno::EROFS);
        }
        // Close flushes nothing, as on any disk.
        if let Some(id) = self.shared.backing(|raw| reply.open_backing(raw)) {
            return reply.opened_passthrough(FileHandle(0), FopenFlags::FOPEN_NOFLUSH, &id);
        }
        let flags = FopenFlags::FOPEN_DIRECT_IO
            | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES
            | FopenFlags::FOPEN_NOFLUSH;
        reply.opened(FileHandle(0), flags);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        at: u64,
        len: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.pass_on(Call::Read { at, len, reply });
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        at: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // The kernel has asked nobody's leave but ours.
        if self.read_only {
            return reply.error(Errno::EROFS);
        }
        if data.len() > MOST {
            return reply.error(Errno::EINVAL);
        }
        if self.shared.has_left() {
            // There may never be a buffer again.
            return std::mem::forget(reply);
        }
        let mut buf = futures::executor::block_on(self.writes.acquire());
        buf.copy_from(data);
        // The kernel leaves it to us to make a synchronous write last. `O_SYNC` includes this one (and
        // rustix has the former's value for it).
        let sync = flags.0 & libc::O_DSYNC != 0;
        self.pass_on(Call::Write { at, data: buf, sync, reply });
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.pass_on(Call::Sync(reply));
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        at: u64,
        len: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if self.read_only {
            return reply.error(Errno::EROFS);
        }
        let mode = FallocateFlags::from_bits_retain(mode as u32);
        let keep = FallocateFlags::KEEP_SIZE;
        let (give_back, grow) = match mode {
            _ if mode == FallocateFlags::PUNCH_HOLE | keep => (true, false),
            _ if mode == FallocateFlags::ZERO_RANGE | keep => (false, false),
            FallocateFlags::ZERO_RANGE => (false, true),
            // Reserving space and keeping what is there is nothing that a disk can do.
            _ => return reply.error(Errno::EOPNOTSUPP),
        };
        self.pass_on(Call::Zero { at, len, give_back, grow, reply });
    }

    fn lseek(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        from: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        match (u64::try_from(from), Seek::of(whence)) {
            (Ok(from), Some(what)) => self.pass_on(Call::Seek { from, what, reply }),
            _ => reply.error(Errno::EINVAL),
        }
    }
}
