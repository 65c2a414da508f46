//! The transmission phase of one connection, as one task: requests are read many at a time, begun side by
//! side, and their replies gathered.
//!
//! Memory is bounded by the connection's share of the buffers, by the places for futures, and by
//! [`REPLIES`]. While any of them is used up the socket is not read, and the client waits.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::cut::{Cut, Piece};
use super::fault::Fault;
use super::inbox::Inbox;
use super::ledger::Ledger;
use super::memory::{Lent, Share};
use super::proto::context::status;
use super::proto::reply::To;
use super::proto::request::{Bounds, Command, Refusal, Request};
use super::proto::wire::Errno;
use super::proto::{Framing, Terms};
use super::slots::Slots;
use super::work::{Done, Work};
use crate::export::{Disk, Stretch};

/// Bytes of replies beside data that may wait for the client before the next request is looked at.
const REPLIES: usize = 256 << 10;
/// What is missing of a buffer is read right into it if it is at least this, in bytes; less comes by way
/// of the inbox, together with the requests behind it.
const DIRECT: usize = 32 << 10;
/// Extents in one status: a reply of at most 64 KiB for each context.
const EXTENTS: usize = 4096;
/// Stretches that are looked at to find the first extent of a status.
const LOOK_AHEAD: usize = 64;

/// What the next bytes of the client are.
enum Intake {
    /// A request.
    Header,
    /// The payload of a request that was refused: so many bytes.
    Skip(u64),
    /// The payload of a write.
    Write(Filling),
    /// Nothing: a read is being begun, piece by piece.
    Cut(Cut),
}

/// A write whose payload is coming in.
struct Filling {
    request: usize,
    /// Where the next piece belongs, in bytes.
    at: u64,
    /// Bytes of the payload that are not in a piece yet.
    left: u64,
    piece: Filled,
}

enum Filled {
    /// No buffer yet, and none asked for.
    Not,
    Waiting(Pin<Box<dyn Future<Output = Lent>>>),
    /// So many bytes of the buffer are there.
    Some(Lent, usize),
}

/// One connection after its handshake.
pub(super) struct Transmission<D, S, W, F> {
    socket: S,
    disk: Rc<D>,
    terms: Terms,
    share: Share,
    inbox: Inbox,
    intake: Intake,
    ledger: Ledger,
    slots: Slots<F>,
    begin: W,
    /// The client has closed its side.
    ended: bool,
    /// The client gets no more replies, and why.
    gone: Option<Result<(), Fault>>,
    /// No further request is looked at.
    last: bool,
}

impl<D, S, W, F> Transmission<D, S, W, F>
where
    D: Disk,
    S: AsyncRead + AsyncWrite + Unpin,
    W: Fn(Rc<D>, usize, Work) -> F,
    F: Future<Output = Done>,
{
    /// Goes on where a handshake has ended. At most `most` pieces are with the disk at a time, each a
    /// future that `begin` makes.
    pub fn new(
        (socket, inbox): (S, Inbox),
        disk: Rc<D>,
        terms: Terms,
        (share, most): (Share, usize),
        begin: W,
    ) -> Self {
        let (ledger, slots) = (Ledger::new(terms.framing), Slots::new(most));
        let intake = Intake::Header;
        let (ended, gone, last) = (false, None, false);
        Self { socket, disk, terms, share, inbox, intake, ledger, slots, begin, ended, gone, last }
    }

    /// Finishes what was begun, and looks at no further request.
    pub fn finish(&mut self) {
        self.last = true;
    }

    /// Whether the client has gone, and only its writes are carried through.
    pub fn client_has_gone(&self) -> bool {
        self.gone.is_some()
    }

    /// Serves until the client has said good-bye or [`finish`](Self::finish) was called, and until the
    /// replies to what was begun are out. If the client goes without a word, or misbehaves, it gets no
    /// more replies; what was begun of its writes is carried through, so that how they went is heard.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        self.slots.look(cx);
        if self.gone.is_none() {
            let ended = match self.serve(cx) {
                Ok(()) if self.ended => Ok(()),
                Ok(()) if self.is_over() => return Poll::Ready(Ok(())),
                Ok(()) => return Poll::Pending,
                Err(fault) => Err(fault),
            };
            self.slots.drop_idle();
            self.ledger = Ledger::new(self.terms.framing);
            self.intake = Intake::Header;
            // The client need not wait for what it will not hear of.
            let _ = Pin::new(&mut self.socket).poll_shutdown(cx);
            self.gone = Some(ended);
        }
        while let Some(done) = self.slots.next() {
            if let Err(error) = done.result {
                tracing::debug!(%error, at = done.at, "a write of an NBD client that has gone");
            }
        }
        match self.slots.len() {
            0 => Poll::Ready(self.gone.take().unwrap_or(Ok(()))),
            _ => Poll::Pending,
        }
    }

    /// Does all that can be done now.
    fn serve(&mut self, cx: &mut Context<'_>) -> Result<(), Fault> {
        loop {
            let mut moved = self.settle_all()?;
            moved |= self.take_in(cx)?;
            moved |= self.fill(cx)?;
            // Last, so that one write takes all there is.
            if self.ended || !moved && !self.send(cx)? {
                return Ok(());
            }
        }
    }

    fn is_over(&self) -> bool {
        let idle = self.last && matches!(self.intake, Intake::Header);
        idle && self.slots.len() == 0 && self.ledger.is_sent()
    }

    fn settle_all(&mut self) -> Result<bool, Fault> {
        let mut moved = false;
        while let Some(done) = self.slots.next() {
            moved = true;
            self.settle(done)?;
        }
        Ok(moved)
    }

    fn settle(&mut self, done: Done) -> Result<(), Fault> {
        let request = done.request;
        match self.ledger.settle(done)? {
            Some(next) => self.start(request, next),
            None => Ok(()),
        }
    }

    /// Gives the disk a piece that the ledger knows of. There is a place for it: the caller has asked, or
    /// the piece that it follows has left one.
    fn start(&mut self, request: usize, work: Work) -> Result<(), Fault> {
        let mut next = Some(work);
        while let Some(work) = next {
            let idle = work.is_idle();
            let future = (self.begin)(Rc::clone(&self.disk), request, work);
            next = match self.slots.start(future, idle) {
                Poll::Ready(done) => self.ledger.settle(done)?,
                Poll::Pending => None,
            };
        }
        Ok(())
    }

    /// Whether another piece may be begun.
    fn has_room(&self) -> bool {
        self.slots.has_room() && self.ledger.unshared() < REPLIES
    }

    /// Takes requests and payload in, as far as they are there and there is room.
    fn take_in(&mut self, cx: &mut Context<'_>) -> Result<bool, Fault> {
        let mut moved = false;
        loop {
            let went_on = match &mut self.intake {
                Intake::Header => self.take_request()?,
                Intake::Skip(left) => {
                    let used = (*left).min(self.inbox.unread().len() as u64);
                    self.inbox.use_up(used as usize);
                    *left -= used;
                    if *left == 0 {
                        self.intake = Intake::Header;
                    }
                    used > 0 || matches!(self.intake, Intake::Header)
                }
                Intake::Write(_) => self.take_payload(cx)?,
                Intake::Cut(_) => self.cut(cx)?,
            };
            if !went_on {
                return Ok(moved);
            }
            moved = true;
        }
    }

    fn take_request(&mut self) -> Result<bool, Fault> {
        if self.last || !self.has_room() {
            return Ok(false);
        }
        let parsed = Request::parse(self.inbox.unread(), self.terms.framing)?;
        let Some((used, request)) = parsed else { return Ok(false) };
        self.inbox.use_up(used);
        if request.is_disconnect() {
            self.last = true;
            return Ok(false);
        }
        let bounds = Bounds {
            size: self.disk.size(),
            sector: self.disk.sector(),
            read_only: self.disk.read_only(),
        };
        let to = To { cookie: request.cookie, offset: request.offset };
        let checked = request.check(&self.terms, &bounds);
        match checked.and_then(|command| self.admit(&request, command).map(|()| command)) {
            Ok(command) => self.begin_request(to, &request, command)?,
            Err(refusal) => {
                self.ledger.refuse(to, refusal);
                self.intake = Intake::Skip(u64::from(request.payload));
            }
        }
        Ok(true)
    }

    /// Refuses what this server or this disk does not do.
    fn admit(&self, request: &Request, command: Command) -> Result<(), Refusal> {
        match command {
            Command::Read { whole: true } if request.len > self.share.piece() as u64 => {
                Err(Refusal { errno: Errno::Eoverflow, why: "too long for one chunk" })
            }
            Command::Zero { fast: true, give_back, .. } if !self.disk.zero_is_fast(give_back) => {
                Err(Refusal { errno: Errno::Enotsup, why: "no faster than writing" })
            }
            _ => Ok(()),
        }
    }

    fn begin_request(&mut self, to: To, request: &Request, command: Command) -> Result<(), Fault> {
        let range = request.offset..request.offset.saturating_add(request.len);
        if let Command::Status { one } = command {
            self.tell_status(to, range, one);
            return Ok(());
        }
        let open = self.ledger.open(to, command);
        let work = match command {
            Command::Read { whole } => {
                let chunks = self.terms.framing != Framing::Simple;
                self.intake = Intake::Cut(Cut::read(open, range, chunks && !whole));
                return Ok(());
            }
            Command::Cache => {
                self.intake = Intake::Cut(Cut::cache(open, range));
                return Ok(());
            }
            Command::Write { .. } => {
                let (at, left, piece) = (request.offset, request.len, Filled::Not);
                self.intake = Intake::Write(Filling { request: open, at, left, piece });
                return Ok(());
            }
            Command::Zero { give_back, .. } => Work::Zero { range, give_back },
            Command::Trim { .. } => Work::Discard { range },
            Command::Flush | Command::Status { .. } => Work::Flush,
        };
        self.ledger.begin(open);
        self.ledger.all_begun(open);
        self.start(open, work)
    }

    fn tell_status(&mut self, to: To, range: std::ops::Range<u64>, one: bool) {
        let len = range.end - range.start;
        let most = if one { LOOK_AHEAD } else { EXTENTS };
        match self.disk.stretches(range, most) {
            Ok(mut stretches) => {
                if stretches.is_empty() {
                    stretches.push((len, Stretch::Data));
                }
                let tell = |context| status(context, self.terms.framing, &stretches, one);
                let statuses = self.terms.contexts.each().map(tell).collect();
                self.ledger.statuses(to, statuses);
            }
            Err(error) => self.ledger.fail(to, &error),
        }
    }

    /// Begins the next piece of a read.
    fn cut(&mut self, cx: &mut Context<'_>) -> Result<bool, Fault> {
        let Intake::Cut(cut) = &mut self.intake else { unreachable!("called for a cut") };
        let request = cut.request();
        if cut.is_done() || self.ledger.has_failed(request) {
            self.intake = Intake::Header;
            // A read that is all begun needs nothing more.
            self.ledger.all_begun(request);
            return Ok(true);
        }
        if !self.slots.has_room() || self.ledger.unshared() >= REPLIES {
            return Ok(false);
        }
        match cut.next(&*self.disk, self.share.piece()) {
            Piece::Read { at, len, last } => {
                let Some(into) = self.share.claim(len) else { return Ok(false) };
                if cut.is_first(at) && !last {
                    if !self.ledger.can_stream() {
                        return Ok(false);
                    }
                    self.ledger.in_pieces(request, cut.len());
                }
                cut.advance(len as u64);
                self.ledger.begin(request);
                if last {
                    self.intake = Intake::Header;
                    self.ledger.all_begun(request);
                }
                self.start(request, Work::Read { at, into })?;
            }
            Piece::Hole { at, len, last } => {
                cut.advance(u64::from(len));
                if last {
                    self.intake = Intake::Header;
                }
                self.ledger.hole(request, at, len, last);
            }
            Piece::Nothing(len) => {
                cut.advance(len);
                // There may be many of them, and others have their turn between.
                cx.waker().wake_by_ref();
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Moves payload from the inbox to its buffer, and full buffers to the disk.
    fn take_payload(&mut self, cx: &mut Context<'_>) -> Result<bool, Fault> {
        let Intake::Write(filling) = &mut self.intake else { unreachable!("called for a write") };
        let request = filling.request;
        match &mut filling.piece {
            Filled::Not if filling.left == 0 || self.ledger.has_failed(request) => {
                self.intake = Intake::Skip(filling.left);
                let next = self.ledger.all_begun(request);
                if let Some(work) = next {
                    self.start(request, work)?;
                }
                Ok(true)
            }
            Filled::Not => {
                let len = filling.left.min(self.share.piece() as u64) as usize;
                let Some(claim) = self.share.claim(len) else { return Ok(false) };
                filling.piece = match claim.try_buffer() {
                    Ok(lent) => Filled::Some(lent, 0),
                    Err(claim) => Filled::Waiting(Box::pin(claim.buffer())),
                };
                Ok(true)
            }
            Filled::Waiting(buffer) => match buffer.as_mut().poll(cx) {
                Poll::Ready(lent) => {
                    filling.piece = Filled::Some(lent, 0);
                    Ok(true)
                }
                Poll::Pending => Ok(false),
            },
            Filled::Some(lent, filled) => {
                let took = self.inbox.take(&mut lent.buf[*filled..]);
                *filled += took;
                if *filled < lent.buf.len() {
                    return Ok(took > 0);
                }
                if !self.slots.has_room() {
                    return Ok(false);
                }
                let Filled::Some(lent, len) = std::mem::replace(&mut filling.piece, Filled::Not)
                else {
                    unreachable!("matched above")
                };
                let at = filling.at;
                filling.at += len as u64;
                filling.left -= len as u64;
                self.ledger.begin(request);
                if filling.left == 0 {
                    self.intake = Intake::Header;
                    self.ledger.all_begun(request);
                }
                self.start(request, Work::Write { at, from: lent })?;
                Ok(true)
            }
        }
    }

    /// Reads the socket. Also while no request can be begun, as far as the inbox goes: that the client has
    /// gone is to be seen then, too.
    fn fill(&mut self, cx: &mut Context<'_>) -> Result<bool, Fault> {
        let socket = Pin::new(&mut self.socket);
        let came = match &mut self.intake {
            Intake::Header if self.last => return Ok(false),
            Intake::Write(Filling { piece: Filled::Some(lent, filled), .. })
                if self.inbox.unread().is_empty() && lent.buf.len() - *filled >= DIRECT =>
            {
                let mut room = ReadBuf::new(&mut lent.buf[*filled..]);
                let read = socket.poll_read(cx, &mut room)?;
                let came = room.filled().len();
                *filled += came;
                read.map(|()| came)
            }
            _ if self.inbox.is_full() => return Ok(false),
            _ => self.inbox.poll_fill(cx, socket)?,
        };
        self.ended = matches!(came, Poll::Ready(0));
        Ok(matches!(came, Poll::Ready(1..)))
    }

    fn send(&mut self, cx: &mut Context<'_>) -> Result<bool, Fault> {
        let outbox = self.ledger.outbox();
        if outbox.is_empty() {
            return Ok(false);
        }
        match outbox.poll_send(cx, Pin::new(&mut self.socket))? {
            Poll::Ready(()) => Ok(true),
            Poll::Pending => Ok(false),
        }
    }
}
