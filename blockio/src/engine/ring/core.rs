//! The ring itself and the table of what it carries.
//!
//! # The invariant
//!
//! An entry the kernel may act on names memory and a descriptor that an [`Op`] in `table` owns, and
//! that `Op` leaves the table only when its completion has been taken, or when its entry has not
//! been and never will be submitted. Every operation has at most one entry at a time, so there are
//! never more entries than table places, and the queues, which are at least as long as the table,
//! cannot overflow.

#![expect(unsafe_code, reason = "queues entries with the addresses of buffers")]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use io_uring::{EnterFlags, IoUring, Probe, opcode, squeue, types};
use rustix::io::Errno;
use tokio::sync::OwnedSemaphorePermit;

use super::registered::Registered;
use crate::arena::{Arena, Buf};
use crate::engine::EngineStats;
use crate::engine::pending::{Payload, Pending, Verb};

/// How often the kernel may answer "again" to one operation before that counts as an error: it is
/// not expected to for files at all, and must not keep us spinning.
const MAX_AGAIN: u32 = 64;

/// The most bytes asked for in one entry; the rest follows in another.
const MAX_ENTRY: usize = 1 << 30;

/// One ring and all that is under way in it.
pub(super) struct Core {
    /// Declared, and so dropped, before what its entries name.
    ring: IoUring,
    /// What is under way, by the number that the entry carries.
    table: Vec<Option<Op>>,
    /// The places in `table` that are free.
    free: Vec<u32>,
    /// Numbers of the entries that the kernel has not taken yet, oldest first.
    queued: VecDeque<u32>,
    /// How many entries the kernel has taken and not yet completed.
    in_kernel: u32,
    state: State,
    completed: u64,
    submissions: u64,
    registered: Registered,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// The last handle is gone: ends when all is done.
    Closing,
    /// Nothing will ever be submitted again.
    Stopped,
}

/// What the driver does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Sleep until something is queued or completes.
    Idle,
    /// Try again soon.
    Stalled,
    /// Go.
    Ended,
}

/// One operation under way.
struct Op {
    pending: Pending,
    /// Bytes transferred so far.
    done: usize,
    again: u32,
    /// Its place in the line; given back with the operation.
    permit: OwnedSemaphorePermit,
}

/// An operation that has left the table, and how it went.
pub(super) struct Finished {
    op: Op,
    result: io::Result<usize>,
}

impl Finished {
    /// Tells the caller, and lets the next in line in.
    pub(super) fn deliver(self) {
        self.op.pending.finish(self.result);
        drop(self.op.permit);
    }
}

impl Core {
    /// Sets up a ring for `depth` operations.
    pub(super) fn new(depth: u32, arenas: &[Arena]) -> io::Result<Core> {
        let ring = build(depth).map_err(no_ring)?;
        if !ring.params().is_feature_nodrop() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel may drop events"));
        }
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe).map_err(no_ring)?;
        let needed = [
            opcode::Read::CODE,
            opcode::Readv::CODE,
            opcode::Write::CODE,
            opcode::ReadFixed::CODE,
            opcode::WriteFixed::CODE,
            opcode::Fsync::CODE,
        ];
        if !needed.into_iter().all(|code| probe.is_supported(code)) {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "the ring lacks operations"));
        }
        let registered = Registered::new(&ring, arenas);
        Ok(Core {
            ring,
            table: (0..depth).map(|_| None).collect(),
            free: (0..depth).rev().collect(),
            queued: VecDeque::with_capacity(depth as usize),
            in_kernel: 0,
            state: State::Open,
            completed: 0,
            submissions: 0,
            registered,
        })
    }

    /// A descriptor that becomes readable when completions are posted.
    pub(super) fn descriptor(&self) -> io::Result<OwnedFd> {
        self.ring.as_fd().try_clone_to_owned()
    }

    pub(super) fn stats(&self) -> EngineStats {
        let in_flight = self.in_kernel + self.queued.len() as u32;
        EngineStats { completed: self.completed, submissions: self.submissions, in_flight }
    }

    /// Takes an operation in; gives it back if the ring has stopped.
    pub(super) fn queue(
        &mut self,
        pending: Pending,
        permit: OwnedSemaphorePermit,
    ) -> Option<Pending> {
        if self.state == State::Stopped {
            return Some(pending);
        }
        let id = self.free.pop().expect("there are as many permits as places");
        self.table[id as usize] = Some(Op { pending, done: 0, again: 0, permit });
        self.push(id);
        None
    }

    /// Puts an entry for what is left of operation `id` into the submission queue.
    fn push(&mut self, id: u32) {
        let op = self.table[id as usize].as_ref().expect("a queued operation is in the table");
        let entry = op.entry(&self.registered).user_data(u64::from(id));
        // SAFETY: the entry names the descriptor and the memory of `op`'s file and payload, the
        // memory for at most the length of the payload. `op` owns both, is in the table, and stays
        // there until the completion of this entry has been taken or the ring has stopped before
        // the kernel saw it (see the invariant above); moving an `Op` moves neither a file's
        // descriptor nor the bytes of a `Buf` or `Bytes` nor a `GuestBuf`'s vectors, and they point to memory that it
        // keeps mapped, and to which there are no references. A `Buf` in the table is out of everybody else's reach,
        // so that the kernel is the only one to write to its slot.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.expect("there are at least as many entries as places");
        self.queued.push_back(id);
    }

    /// The last handle is gone.
    pub(super) fn close(&mut self) {
        if self.state == State::Open {
            self.state = State::Closing;
        }
    }

    /// Hands the kernel what is queued and takes what has completed, until there is neither.
    pub(super) fn turn(&mut self, finished: &mut Vec<Finished>) -> Turn {
        while self.state != State::Stopped {
            let submitted = self.submit(finished);
            let reaped = self.reap(finished);
            if !submitted && reaped == 0 {
                break;
            }
        }
        match self.state {
            State::Stopped => Turn::Ended,
            _ if !self.queued.is_empty() && self.in_kernel == 0 => Turn::Stalled,
            State::Closing if self.queued.is_empty() && self.in_kernel == 0 => Turn::Ended,
            State::Closing | State::Open => Turn::Idle,
        }
    }

    /// One system call, if there is reason for it. Returns whether the kernel took anything.
    fn submit(&mut self, finished: &mut Vec<Finished>) -> bool {
        let queue = self.ring.submission();
        // The kernel has completions that it will only post when called.
        let owed = queue.taskrun() || queue.cq_overflow();
        drop(queue);
        if self.queued.is_empty() && !owed {
            return false;
        }
        match self.ring.submit() {
            Ok(taken) => {
                self.submissions += u64::from(taken > 0);
                self.in_kernel += taken as u32;
                self.queued.drain(..taken);
                taken > 0
            }
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::INTR | Errno::AGAIN | Errno::BUSY) => false,
                _ => {
                    tracing::error!(%error, "the ring no longer takes entries: the engine stops");
                    self.stop(finished);
                    false
                }
            },
        }
    }

    /// Takes what has completed; returns how many.
    fn reap(&mut self, finished: &mut Vec<Finished>) -> usize {
        let mut reaped = 0;
        // One at a time: a completion may queue the rest of its operation.
        loop {
            let Some(event) = self.ring.completion().next() else { break };
            reaped += 1;
            self.in_kernel -= 1;
            self.complete(event.user_data() as u32, event.result(), finished);
        }
        reaped
    }

    fn complete(&mut self, id: u32, answer: i32, finished: &mut Vec<Finished>) {
        let op = self.table[id as usize].as_mut().expect("what completes is in the table");
        let result = match op.step(answer) {
            Step::Done(result) => result,
            Step::More if self.state != State::Stopped => return self.push(id),
            Step::More => Err(Errno::CANCELED.into()),
        };
        self.completed += 1;
        self.retire(id, result, finished);
    }

    fn retire(&mut self, id: u32, result: io::Result<usize>, finished: &mut Vec<Finished>) {
        let op = self.table[id as usize].take().expect("what ends is in the table");
        self.free.push(id);
        finished.push(Finished { op, result });
    }

    /// Submits nothing more, cancels what the kernel has not seen, and blocks until it is done with
    /// what it has. Reads and writes of disks end in their own time; waiting for them is what keeps
    /// their memory ours to free.
    pub(super) fn stop(&mut self, finished: &mut Vec<Finished>) {
        self.state = State::Stopped;
        // Their entries stay in the submission queue; with nothing ever submitted again, the kernel
        // does not look at them.
        for id in std::mem::take(&mut self.queued) {
            self.retire(id, Err(Errno::CANCELED.into()), finished);
        }
        while self.in_kernel > 0 {
            if self.reap(finished) > 0 {
                continue;
            }
            let flags = EnterFlags::GETEVENTS.bits();
            // SAFETY: waits for one event without submitting any; no argument is passed.
            let waited =
                unsafe { self.ring.submitter().enter::<libc::sigset_t>(0, 1, flags, None) };
            match waited.as_ref().map_err(Errno::from_io_error) {
                Ok(_) | Err(Some(Errno::INTR | Errno::AGAIN | Errno::BUSY)) => {}
                Err(_) => {
                    // The kernel cannot say when it is done: what it holds is never freed.
                    tracing::error!(?waited, "cannot wait for the ring: leaking its buffers");
                    self.table.drain(..).for_each(std::mem::forget);
                    self.free.clear();
                    return;
                }
            }
        }
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        let mut finished = Vec::new();
        self.stop(&mut finished);
        finished.into_iter().for_each(Finished::deliver);
    }
}

/// What a completion means for its operation.
#[derive(Debug)]
enum Step {
    Done(io::Result<usize>),
    More,
}

impl Op {
    /// The entry for what is left to do.
    fn entry(&self, registered: &Registered) -> squeue::Entry {
        let file = self.pending.file.descriptor().expect("only files with one come to a ring");
        let fd = types::Fd(file.as_raw_fd());
        let at = self.pending.offset + self.done as u64;
        match (self.pending.verb, &self.pending.payload) {
            (Verb::Sync, _) => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            (Verb::Read, Payload::Buf(buf)) => {
                let (start, len) = (buf.start().wrapping_add(self.done), self.left(buf.len()));
                match self.piece(buf, registered) {
                    Some(piece) => opcode::ReadFixed::new(fd, start, len, piece).offset(at).build(),
                    None => opcode::Read::new(fd, start, len).offset(at).build(),
                }
            }
            // What is left of a read that was cut short is its caller's affair.
            (Verb::Read, Payload::Guest(guest)) => match guest.vectors() {
                [one] => {
                    let (start, len) = (one.iov_base.cast(), self.left(one.iov_len));
                    opcode::Read::new(fd, start, len).offset(at).build()
                }
                all => opcode::Readv::new(fd, all.as_ptr(), all.len() as u32).offset(at).build(),
            },
            (Verb::Write, Payload::Buf(buf)) => {
                let (start, len) = (buf.start().wrapping_add(self.done), self.left(buf.len()));
                match self.piece(buf, registered) {
                    Some(piece) => {
                        opcode::WriteFixed::new(fd, start, len, piece).offset(at).build()
                    }
                    None => opcode::Write::new(fd, start, len).offset(at).build(),
                }
            }
            (Verb::Write, Payload::Bytes(bytes)) => {
                let start = bytes.as_ptr().wrapping_add(self.done);
                opcode::Write::new(fd, start, self.left(bytes.len())).offset(at).build()
            }
            (verb, payload) => unreachable!("{verb:?} of {payload:?} does not come to a ring"),
        }
    }

    /// The registered piece to name, where that pays. Measured (`benches/cpu.rs`: writes of 256 KiB,
    /// processor time per chunk beside making it): past the page cache 8.8 µs instead of 10.3, into
    /// it 3 µs more than without.
    fn piece(&self, buf: &Buf, registered: &Registered) -> Option<u16> {
        if self.pending.file.is_direct() { registered.index(buf) } else { None }
    }

    fn left(&self, len: usize) -> u32 {
        (len - self.done).min(MAX_ENTRY) as u32
    }

    /// Takes the kernel's answer in: a count of bytes, or a negative errno.
    fn step(&mut self, answer: i32) -> Step {
        let Ok(count) = usize::try_from(answer) else {
            let errno = Errno::from_raw_os_error(-answer);
            if matches!(errno, Errno::AGAIN | Errno::INTR) && self.again < MAX_AGAIN {
                self.again += 1;
                return Step::More;
            }
            return Step::Done(Err(errno.into()));
        };
        self.done += count;
        let whole = self.done as u64 == self.pending.payload.len();
        match self.pending.verb {
            Verb::Read if matches!(self.pending.payload, Payload::Guest(_)) => {
                Step::Done(Ok(self.done))
            }
            Verb::Read if count > 0 && !whole && !self.pending.file.ended(self.done) => Step::More,
            Verb::Write if count == 0 => Step::Done(Err(io::ErrorKind::WriteZero.into())),
            Verb::Write if !whole => Step::More,
            _ => Step::Done(Ok(self.done)),
        }
    }
}

/// Builds a ring, without what older kernels do not know.
fn build(depth: u32) -> io::Result<IoUring> {
    // Completions need not interrupt the thread that computes: it takes them at its next call.
    let modern = IoUring::builder()
        .dontfork()
        .setup_coop_taskrun()
        .setup_taskrun_flag()
        .setup_submit_all()
        .build(depth);
    match modern {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => {
            IoUring::builder().dontfork().build(depth)
        }
        result => result,
    }
}

/// Tells a kernel without rings, or one that forbids them, from one that fails.
fn no_ring(error: io::Error) -> io::Error {
    match Errno::from_io_error(&error) {
        Some(Errno::NOSYS | Errno::PERM | Errno::ACCESS | Errno::INVAL | Errno::NOMEM) => {
            io::Error::new(io::ErrorKind::Unsupported, format!("no io_uring: {error}"))
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backing::OpenMode;
    use crate::fake::MemFs;
    use std::sync::Arc;
    use tokio::sync::Semaphore;

    fn op(verb: Verb, len: usize, mode: OpenMode) -> Op {
        let file = MemFs::new().fs().open("/f", mode).unwrap();
        let mut buf = Arena::new("test", 8192, 8192).unwrap().try_acquire().unwrap();
        buf.set_len(len);
        let (pending, _) = Pending::new(file, verb, Payload::Buf(buf), 0);
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        Op { pending, done: 0, again: 0, permit }
    }

    fn ends(op: &mut Op, answer: i32) -> Option<Result<usize, i32>> {
        match op.step(answer) {
            Step::More => None,
            Step::Done(result) => Some(result.map_err(|error| error.raw_os_error().unwrap_or(0))),
        }
    }

    #[test]
    fn a_short_write_goes_on_where_it_stopped() {
        let mut op = op(Verb::Write, 1000, OpenMode::create());
        assert_eq!(ends(&mut op, 300), None);
        assert_eq!((op.done, op.left(1000)), (300, 700));
        assert_eq!(ends(&mut op, -Errno::INTR.raw_os_error()), None);
        assert_eq!(ends(&mut op, 700), Some(Ok(1000)));
    }

    #[test]
    fn a_write_that_gets_nowhere_is_an_error() {
        let mut short = op(Verb::Write, 1000, OpenMode::create());
        assert_eq!(ends(&mut short, 0), Some(Err(0)));
        let mut full = op(Verb::Write, 1000, OpenMode::create());
        assert_eq!(ends(&mut full, 999), None);
        let nospc = Errno::NOSPC.raw_os_error();
        assert_eq!(ends(&mut full, -nospc), Some(Err(nospc)));
    }

    #[test]
    fn a_read_ends_when_full_or_at_the_end() {
        let mut op1 = op(Verb::Read, 1000, OpenMode::create());
        assert_eq!(ends(&mut op1, 600), None);
        assert_eq!(ends(&mut op1, 0), Some(Ok(600)));
        let mut op2 = op(Verb::Read, 1000, OpenMode::create());
        assert_eq!(ends(&mut op2, 1000), Some(Ok(1000)));
    }

    #[test]
    fn a_direct_read_does_not_ask_again_from_within_a_sector() {
        let mut op1 = op(Verb::Read, 8192, OpenMode::create().direct());
        assert_eq!(ends(&mut op1, 4096), None);
        assert_eq!(ends(&mut op1, 100), Some(Ok(4196)));
    }

    #[test]
    fn the_kernel_cannot_keep_us_spinning() {
        let again = Errno::AGAIN.raw_os_error();
        let mut op = op(Verb::Read, 1000, OpenMode::create());
        let turns = (0..).take_while(|_| ends(&mut op, -again).is_none()).count();
        assert_eq!(turns, MAX_AGAIN as usize);
    }
}
