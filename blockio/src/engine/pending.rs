//! An operation from the moment an engine takes it until somebody has heard how it went.
//!
//! [`Pending`] owns everything the kernel may use (the buffer, the file) and the way back to the
//! caller. It ends in exactly one [`Outcome`]: delivered, or, if the caller has gone, judged here,
//! so that a write that failed unheard is noted on its file.

use std::io;
use std::ops::{Deref, Range};

use bytes::Bytes;
use rustix::io::Errno;
use tokio::sync::oneshot;

use crate::arena::Buf;
use crate::file::BlockFile;
use crate::guest::GuestBuf;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Read,
    Write,
    Sync,
    Zero,
    Punch,
    Copy,
}

impl Verb {
    pub(super) fn name(self) -> &'static str {
        match self {
            Verb::Read => "read",
            Verb::Write => "write",
            Verb::Sync => "sync",
            Verb::Zero => "zero",
            Verb::Punch => "punch",
            Verb::Copy => "copy",
        }
    }
}

/// What it is done with. Moving a payload does not move the bytes.
#[derive(Debug)]
pub(super) enum Payload {
    None,
    Buf(Buf),
    Bytes(Bytes),
    /// To be read into.
    Guest(GuestBuf),
    /// A length in the file, without bytes.
    Range(u64),
    /// A length in this file.
    Of(BlockFile, u64),
    /// To be read, these ranges out of this file.
    Over(Buf, BlockFile, Vec<Range<u64>>),
}

impl Payload {
    pub(super) fn len(&self) -> u64 {
        match self {
            Payload::None => 0,
            Payload::Buf(buf) => buf.len() as u64,
            Payload::Bytes(bytes) => bytes.len() as u64,
            Payload::Guest(guest) => guest.len(),
            Payload::Range(len) | Payload::Of(_, len) => *len,
            Payload::Over(buf, ..) => buf.len() as u64,
        }
    }
}

/// How an operation went. If it is dropped without having been [taken](Outcome::take), and was one
/// that must not fail unheard, its failure is noted on the file.
#[derive(Debug)]
struct Outcome {
    file: BlockFile,
    verb: Verb,
    result: Option<io::Result<usize>>,
    payload: Payload,
}

impl Outcome {
    fn take(mut self) -> (io::Result<usize>, Payload) {
        let result = self.result.take().expect("only `take` takes the result, and takes `self`");
        (result, std::mem::replace(&mut self.payload, Payload::None))
    }
}

impl Drop for Outcome {
    fn drop(&mut self) {
        if let Some(Err(error)) = &self.result
            // A failed sync has noted itself already.
            && matches!(self.verb, Verb::Write | Verb::Zero | Verb::Punch | Verb::Copy)
        {
            self.file.note_lost(error);
        }
    }
}

/// The caller's end.
pub(super) struct Reply {
    receiver: oneshot::Receiver<Outcome>,
}

impl Reply {
    pub(super) async fn wait(self) -> (io::Result<usize>, Payload) {
        let outcome = self.receiver.await;
        outcome.expect("a pending operation always sends its outcome, at the latest on drop").take()
    }
}

/// The engine's end: the operation itself.
#[derive(Debug)]
pub(super) struct Pending {
    /// Gone once the outcome has been sent: by the time the caller hears of it, the engine holds
    /// neither the file nor the buffer any more, and a lock or a claim that hangs on the file is
    /// the caller's to give up.
    parts: Option<Parts>,
}

#[derive(Debug)]
pub(super) struct Parts {
    pub(super) file: BlockFile,
    pub(super) verb: Verb,
    pub(super) payload: Payload,
    pub(super) offset: u64,
    reply: oneshot::Sender<Outcome>,
}

impl Deref for Pending {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        self.parts.as_ref().expect("the parts leave only with the operation")
    }
}

impl Pending {
    pub(super) fn new(
        file: BlockFile,
        verb: Verb,
        payload: Payload,
        offset: u64,
    ) -> (Pending, Reply) {
        let (reply, receiver) = oneshot::channel();
        let parts = Parts { file, verb, payload, offset, reply };
        (Pending { parts: Some(parts) }, Reply { receiver })
    }

    /// Does the operation on this thread, and tells the caller.
    pub(super) fn run_blocking(mut self) {
        if let Some(mut parts) = self.parts.take() {
            let (result, payload) =
                run_blocking(&parts.file, parts.verb, parts.payload, parts.offset);
            parts.payload = payload;
            parts.deliver(result);
        }
    }

    /// Tells the caller; `result` is what the kernel said.
    pub(super) fn finish(mut self, result: io::Result<usize>) {
        if let Some(parts) = self.parts.take() {
            let result = match (parts.verb, result) {
                (Verb::Sync, result) => parts.file.note_sync(result.map(drop)).map(|()| 0),
                (_, result) => result.map_err(|error| parts.at(error)),
            };
            parts.deliver(result);
        }
    }
}

impl Parts {
    fn at(&self, error: io::Error) -> io::Error {
        self.file.at(self.verb.name(), Some(self.offset), error)
    }

    fn deliver(self, result: io::Result<usize>) {
        let Parts { file, verb, payload, reply, .. } = self;
        // Nobody there: the outcome comes back and is dropped, which notes a lost write.
        drop(reply.send(Outcome { file, verb, result: Some(result), payload }));
    }
}

impl Drop for Pending {
    /// An operation that was never done was cancelled. A sync that was not done has lost nothing.
    fn drop(&mut self) {
        if let Some(parts) = self.parts.take() {
            let cancelled = parts.at(Errno::CANCELED.into());
            parts.deliver(Err(cancelled));
        }
    }
}

/// Does an operation on this thread, with the file's own blocking calls.
pub(super) fn run_blocking(
    file: &BlockFile,
    verb: Verb,
    mut payload: Payload,
    offset: u64,
) -> (io::Result<usize>, Payload) {
    let result = match (verb, &mut payload) {
        (Verb::Read, Payload::Buf(buf)) => file.read_at(buf, offset),
        (Verb::Read, Payload::Guest(guest)) => read_guest(file, guest, offset),
        (Verb::Read, Payload::Over(buf, other, ranges)) => {
            read_over(file, buf, offset, other, ranges)
        }
        (Verb::Write, Payload::Buf(buf)) => file.write_all_at(buf, offset).map(|()| buf.len()),
        (Verb::Write, Payload::Bytes(b)) => file.write_all_at(b, offset).map(|()| b.len()),
        (Verb::Sync, _) => file.sync_data().map(|()| 0),
        (Verb::Zero, Payload::Range(len)) => file.zero_range(offset..offset + *len).map(|()| 0),
        (Verb::Punch, Payload::Range(len)) => file.punch_hole(offset..offset + *len).map(|()| 0),
        (Verb::Copy, Payload::Of(source, len)) => {
            file.copy_range(source, offset..offset + *len).map(|()| 0)
        }
        (verb, payload) => unreachable!("{verb:?} does not go with {payload:?}"),
    };
    (result, payload)
}

/// Reads by way of memory of our own: nothing here may refer to a guest's.
fn read_guest(file: &BlockFile, guest: &GuestBuf, offset: u64) -> io::Result<usize> {
    let mut bytes = vec![0; guest.len() as usize];
    let read = file.read_at(&mut bytes, offset)?;
    guest.copy_in(&bytes[..read]).map_err(io::Error::other)?;
    Ok(read)
}

/// Fills a buffer, the `ranges` from `other` and what is between them from `file`.
fn read_over(
    file: &BlockFile,
    buf: &mut Buf,
    offset: u64,
    other: &BlockFile,
    ranges: &[Range<u64>],
) -> io::Result<usize> {
    let read = file.read_at(buf, offset)?;
    for range in ranges {
        let part = (range.start - offset) as usize..(range.end - offset) as usize;
        other.read_exact_at(&mut buf[part], range.start)?;
    }
    Ok(read)
}
