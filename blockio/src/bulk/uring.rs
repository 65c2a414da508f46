//! The job on a `tokio-uring` runtime.

#![expect(unsafe_code, reason = "lends buffers to the kernel through tokio-uring's traits")]

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::rc::Rc;

use tokio::task::JoinHandle;
use tokio_uring::buf::{BoundedBuf, IoBuf, IoBufMut};
use tokio_uring::fs::File;

use super::{Job, Message, Piece, finish, padded};
use crate::arena::Buf;
use crate::file::BlockFile;

// SAFETY: the slot of a `Buf` does not move when the `Buf` does, and is mapped for as long as the
// `Buf` exists, so the pointer stays valid while the runtime owns it. All of it is initialised.
unsafe impl IoBuf for Buf {
    fn stable_ptr(&self) -> *const u8 {
        self.start()
    }

    fn bytes_init(&self) -> usize {
        self.capacity()
    }

    fn bytes_total(&self) -> usize {
        self.capacity()
    }
}

// SAFETY: as above; a `Buf` is the only holder of its slot, so it may be written to.
unsafe impl IoBufMut for Buf {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.start()
    }

    /// Nothing to remember: all bytes are initialised from the start, and the length is the
    /// reader's to set.
    unsafe fn set_init(&mut self, _pos: usize) {}
}

/// Reads on this thread until the plan is done, fails, or nobody listens any more.
pub(super) fn run(job: &mut Job) -> io::Result<()> {
    let mut builder = tokio_uring::builder();
    builder.entries(u32::try_from(job.depth.next_power_of_two()).unwrap_or(u32::MAX).max(8));
    let runtime = tokio_uring::Runtime::new(&builder)?;
    runtime.block_on(read_all(job))
}

type Reading = JoinHandle<io::Result<Piece>>;

async fn read_all(job: &mut Job) -> io::Result<()> {
    let fd = job.file.descriptor().ok_or(io::ErrorKind::Unsupported)?.try_clone_to_owned()?;
    let disk = Rc::new(File::from_std(fd.into()));
    let mut window = VecDeque::new();
    let result = pump(job, &disk, &mut window).await;
    // Whatever ended it, the runtime must not end before the kernel is done with the buffers.
    for reading in window {
        let _ = reading.await;
    }
    result
}

/// Keeps the window full and hands over its front.
async fn pump(job: &mut Job, disk: &Rc<File>, window: &mut VecDeque<Reading>) -> io::Result<()> {
    let mut upcoming = job.plan.next().transpose()?;
    loop {
        while window.len() < job.depth
            && let Some(range) = upcoming.clone()
        {
            // With nothing under way it waits for a buffer; else what is under way brings one back.
            let buf = match window.is_empty() {
                true => Some(job.arena.acquire().await),
                false => job.arena.try_acquire(),
            };
            let Some(buf) = buf else { break };
            let reading = read_piece(job.file.clone(), Rc::clone(disk), buf, range);
            window.push_back(tokio_uring::spawn(reading));
            upcoming = job.plan.next().transpose()?;
        }
        let Some(front) = window.pop_front() else { return Ok(()) };
        let piece = front.await.map_err(io::Error::other)??;
        if job.sink.send(Message::Piece(piece)).await.is_err() {
            return Ok(());
        }
    }
}

async fn read_piece(
    file: BlockFile,
    disk: Rc<File>,
    mut buf: Buf,
    range: Range<u64>,
) -> io::Result<Piece> {
    let want = padded(&file, &range, buf.capacity());
    let mut done = 0;
    while done < want {
        let at = range.start + done as u64;
        let (result, slice) = disk.read_at(buf.slice(done..want), at).await;
        buf = slice.into_inner();
        match result {
            Ok(n) => {
                done += n;
                if n == 0 || file.ended(done) {
                    break;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(file.at("read", Some(at), error)),
        }
    }
    finish(&file, range, buf, done)
}
