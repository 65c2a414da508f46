//! The requests of a connection that are not answered yet, and the replies that their pieces add up to.
//!
//! A read in chunks is answered piece by piece, as the disk gives them; the last piece carries the mark
//! that it is the last, or an error does. A read in a simple reply that is longer than a buffer cannot be:
//! once its header is out its data follow in order and nothing else in between (a [`Stream`]).

use std::collections::BTreeMap;

use image::Error;

use super::fault::Fault;
use super::memory::Lent;
use super::outbox::{Body, Message, Outbox};
use super::proto::Framing;
use super::proto::reply::{Head, To};
use super::proto::request::{Command, Refusal};
use super::proto::wire::Errno;
use super::work::{Done, Work};

/// The table.
pub(super) struct Ledger {
    framing: Framing,
    open: Vec<Option<Open>>,
    free: Vec<usize>,
    stream: Option<Stream>,
    outbox: Outbox,
    /// Replies that wait for the end of a stream.
    later: Outbox,
}

/// A request without its last reply.
struct Open {
    to: To,
    command: Command,
    /// Pieces that the disk has.
    outstanding: u32,
    /// All pieces were begun.
    whole: bool,
    /// Making it last, which comes after everything else.
    flushing: bool,
    error: Option<Failure>,
}

struct Failure {
    errno: Errno,
    why: String,
    at: u64,
}

/// A simple reply of several pieces.
struct Stream {
    request: usize,
    /// Where the next piece to send begins, in bytes.
    next: u64,
    /// The length of the reply's data, in bytes, until its header is on its way.
    head: Option<u32>,
    /// Pieces that came before their turn.
    early: BTreeMap<u64, Lent>,
}

impl Ledger {
    pub fn new(framing: Framing) -> Ledger {
        let (outbox, later) = (Outbox::default(), Outbox::default());
        Ledger { framing, open: Vec::new(), free: Vec::new(), stream: None, outbox, later }
    }

    /// What is to be sent now.
    pub fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }

    /// Bytes of replies that no share accounts for.
    pub fn unshared(&self) -> usize {
        self.outbox.unshared() + self.later.unshared()
    }

    /// Whether nothing waits to be sent.
    pub fn is_sent(&self) -> bool {
        self.outbox.is_empty() && self.later.is_empty()
    }

    /// Opens a request.
    pub fn open(&mut self, to: To, command: Command) -> usize {
        let open = Open { to, command, outstanding: 0, whole: false, flushing: false, error: None };
        match self.free.pop() {
            Some(request) => {
                self.open[request] = Some(open);
                request
            }
            None => {
                self.open.push(Some(open));
                self.open.len() - 1
            }
        }
    }

    /// Whether a simple reply in pieces can be begun.
    pub fn can_stream(&self) -> bool {
        self.stream.is_none()
    }

    /// Announces that the request is a read of `len` bytes that goes in pieces.
    pub fn in_pieces(&mut self, request: usize, len: u32) {
        if self.framing == Framing::Simple {
            let next = self.entry(request).to.offset;
            let (head, early) = (Some(len), BTreeMap::new());
            self.stream = Some(Stream { request, next, head, early });
        }
    }

    /// A piece of it goes to the disk.
    pub fn begin(&mut self, request: usize) {
        self.entry(request).outstanding += 1;
    }

    /// Whether a piece of it has failed, so that the others need not be begun.
    pub fn has_failed(&self, request: usize) -> bool {
        self.open[request].as_ref().is_some_and(|open| open.error.is_some())
    }

    /// Answers a request that may not be asked.
    pub fn refuse(&mut self, to: To, refusal: Refusal) {
        let (head, body) = self.framing.error(to, refusal.errno, refusal.why, None);
        self.push(head, Body::Bytes(body));
    }

    /// Answers with statuses, one for each context.
    pub fn statuses(&mut self, to: To, statuses: Vec<Vec<u8>>) {
        let last = statuses.len() - 1;
        for (i, status) in statuses.into_iter().enumerate() {
            let head = self.framing.status(to, status.len() as u32, i == last);
            self.push(head, Body::Bytes(status));
        }
    }

    /// Answers a request that was not opened with the disk's error.
    pub fn fail(&mut self, to: To, error: &Error) {
        let (head, body) = self.framing.error(to, errno(error), error.message(), None);
        self.push(head, Body::Bytes(body));
    }

    /// A piece of a read in chunks that is known to be zeros.
    pub fn hole(&mut self, request: usize, at: u64, len: u32, last: bool) {
        let open = self.entry(request);
        let (to, end) = (open.to, last && open.outstanding == 0 && open.error.is_none());
        let head = self.framing.hole(to, at, len, end);
        self.push(head, Body::None);
        if end {
            self.close(request);
        } else if last {
            self.all_begun(request);
        }
    }

    /// All pieces of a request were begun. Returns what is to be done for it now, if that is not to wait.
    pub fn all_begun(&mut self, request: usize) -> Option<Work> {
        self.entry(request).whole = true;
        self.conclude(request)
    }

    /// Takes in how a piece went. Returns what is to be done next for its request.
    pub fn settle(&mut self, done: Done) -> Result<Option<Work>, Fault> {
        let Done { request, at, result, data } = done;
        let open = self.open[request].as_mut().expect("pieces keep their request open");
        open.outstanding -= 1;
        if let Err(error) = result {
            let failure = || Failure { errno: errno(&error), why: error.message().to_owned(), at };
            open.error.get_or_insert_with(failure);
        } else if let (Command::Read { .. }, Some(lent)) = (open.command, data) {
            let last = open.whole && open.outstanding == 0 && open.error.is_none();
            if self.stream.as_ref().is_some_and(|stream| stream.request == request) {
                // One that has failed before its header was sent is answered with the error alone.
                if open.error.is_none() {
                    self.stream_piece(at, lent);
                }
            } else {
                let head = self.framing.data(open.to, at, lent.buf.len() as u32, last);
                self.push(head, Body::Data(lent));
                if last {
                    self.close(request);
                    return Ok(None);
                }
            }
        }
        let failed = self.open[request].as_ref().and_then(|open| open.error.as_ref());
        if let (Some(stream), Some(failure)) = (&self.stream, failed)
            && stream.request == request
            && stream.head.is_none()
        {
            return Err(Fault::Broken { at: failure.at, why: failure.why.clone() });
        }
        Ok(self.conclude(request))
    }

    /// Ends a request of which nothing is outstanding: with an error, or by making it last, or well.
    fn conclude(&mut self, request: usize) -> Option<Work> {
        let open = self.open[request].as_mut().expect("only open requests are concluded");
        if !open.whole || open.outstanding > 0 {
            return None;
        }
        let to = open.to;
        if let Some(Failure { errno, why, at }) = open.error.take() {
            let at = matches!(open.command, Command::Read { .. }).then_some(at);
            let (head, body) = self.framing.error(to, errno, &why, at);
            self.close(request);
            self.push(head, Body::Bytes(body));
            return None;
        }
        let lasting = match open.command {
            // Its last piece was its last reply, or its stream's.
            Command::Read { .. } => {
                self.close(request);
                return None;
            }
            Command::Write { lasting } | Command::Trim { lasting } => lasting,
            Command::Zero { lasting, .. } => lasting,
            Command::Flush | Command::Cache | Command::Status { .. } => false,
        };
        if lasting && !open.flushing {
            open.flushing = true;
            open.outstanding = 1;
            return Some(Work::Flush);
        }
        self.close(request);
        let head = self.framing.ok(to);
        self.push(head, Body::None);
        None
    }

    /// Sends the pieces of a stream whose turn it is.
    fn stream_piece(&mut self, at: u64, lent: Lent) {
        let stream = self.stream.as_mut().expect("only called for the stream's pieces");
        stream.early.insert(at, lent);
        while let Some(lent) = stream.early.remove(&stream.next) {
            let open = self.open[stream.request].as_ref().expect("a stream is of an open request");
            let len = lent.buf.len();
            let head = match stream.head.take() {
                Some(all) => self.framing.data(open.to, open.to.offset, all, true),
                None => Head::none(),
            };
            stream.next += len as u64;
            self.outbox.push(Message { head, body: Body::Data(lent) });
        }
    }

    fn push(&mut self, head: Head, body: Body) {
        let streams = self.stream.as_ref().is_some_and(|stream| stream.head.is_none());
        let to = if streams { &mut self.later } else { &mut self.outbox };
        to.push(Message { head, body });
    }

    fn close(&mut self, request: usize) {
        self.open[request] = None;
        self.free.push(request);
        if self.stream.as_ref().is_some_and(|stream| stream.request == request) {
            self.stream = None;
            self.outbox.append(&mut self.later);
        }
    }

    fn entry(&mut self, request: usize) -> &mut Open {
        self.open[request].as_mut().expect("only open requests are spoken of")
    }
}

fn errno(error: &Error) -> Errno {
    Errno::from(error.kind())
}
