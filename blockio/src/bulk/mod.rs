//! One disk read from end to end: import, capture, scrub.
//!
//! Such a job is bound by the disk, not by the core, and lives on a thread of its own: a
//! [`tokio-uring`](tokio_uring) runtime keeps a window of reads under way, and hands over the pieces
//! in the order of their offsets. Where there is no ring, the same thread reads one piece after the
//! other and has the system read ahead.

mod plan;
mod uring;

use std::io;
use std::ops::Range;
use std::thread;

use tokio::sync::mpsc;

use crate::arena::{Arena, Buf};
use crate::engine::{EngineChoice, EngineKind, ring_available};
use crate::file::BlockFile;
use plan::Plan;

/// Reads under way at once, unless told otherwise.
const DEPTH: usize = 16;

/// How to read.
#[derive(Clone, Debug)]
pub struct BulkOptions {
    /// Bytes per read, at most a slot of the arena: a piece lies within one multiple of this.
    pub piece: usize,
    /// Reads under way, and pieces read but not yet taken, at most.
    pub depth: usize,
    /// Leave out the pieces that are nothing but hole.
    pub skip_holes: bool,
    /// Ring or plain calls.
    pub choice: EngineChoice,
}

impl BulkOptions {
    /// The defaults for this piece size: holes left out, the best engine there is.
    pub fn new(piece: usize) -> BulkOptions {
        BulkOptions { piece, depth: DEPTH, skip_holes: true, choice: EngineChoice::Auto }
    }
}

/// Part of a disk.
#[derive(Debug)]
pub struct Piece {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// What is there.
    pub buf: Buf,
}

/// A running job: the end at which the pieces come out. Dropping it ends the job; its thread goes
/// on until the kernel is done with its buffers, which then return to the arena.
#[derive(Debug)]
pub struct BulkReader {
    pieces: mpsc::Receiver<Message>,
    kind: EngineKind,
    ended: bool,
}

/// What the thread says. A channel that closes before `End` means that the thread died.
#[derive(Debug)]
enum Message {
    Piece(Piece),
    Failed(io::Error),
    End,
}

/// What the thread works on.
struct Job {
    file: BlockFile,
    plan: Plan,
    depth: usize,
    arena: Arena,
    sink: mpsc::Sender<Message>,
}

/// Starts reading `ranges` of `file` into buffers out of `arena`.
///
/// The ranges are in bytes, ascending and apart. What lies beyond the end of the file is left out.
/// Pieces are cut at multiples of the piece size, so a range that begins or ends within one gives a
/// shorter piece there. The file must not shrink meanwhile.
///
/// # Errors
///
/// `InvalidInput` if the ranges are not ascending, or a piece is empty or larger than a slot;
/// `Unsupported` if a ring was insisted on and there is none; otherwise what starting a thread says.
pub fn read_sequential(
    file: &BlockFile,
    ranges: Vec<Range<u64>>,
    arena: &Arena,
    options: BulkOptions,
) -> io::Result<BulkReader> {
    if options.piece == 0 || options.piece > arena.slot_bytes() || options.depth == 0 {
        let what = "a piece must fit a slot, and at least one read be under way";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    let kind = choose(file, options.choice)?;
    let plan = Plan::new(file.clone(), ranges, options.piece as u64, options.skip_holes)?;
    let (sink, pieces) = mpsc::channel(options.depth);
    let job = Job { file: file.clone(), plan, depth: options.depth, arena: arena.clone(), sink };
    thread::Builder::new().name("forebay-bulk".to_owned()).spawn(move || job.run(kind))?;
    Ok(BulkReader { pieces, kind, ended: false })
}

fn choose(file: &BlockFile, choice: EngineChoice) -> io::Result<EngineKind> {
    if file.descriptor().is_none() {
        return Ok(EngineKind::Portable);
    }
    match choice {
        EngineChoice::Just(EngineKind::Portable) => Ok(EngineKind::Portable),
        EngineChoice::Just(EngineKind::Ring) => ring_available().map(|()| EngineKind::Ring),
        EngineChoice::Auto => {
            Ok(ring_available().map_or(EngineKind::Portable, |()| EngineKind::Ring))
        }
    }
}

impl BulkReader {
    /// The next piece, or `None` when all have come.
    ///
    /// # Errors
    ///
    /// What the system says, with the offset; nothing comes after that. `UnexpectedEof` if the file
    /// has shrunk.
    pub async fn next(&mut self) -> Option<io::Result<Piece>> {
        if self.ended {
            return None;
        }
        let message = self.pieces.recv().await;
        self.accept(message)
    }

    /// As [`next`](BulkReader::next), from a thread without a runtime.
    ///
    /// # Errors
    ///
    /// As for `next`.
    ///
    /// # Panics
    ///
    /// If called on a runtime's thread.
    pub fn blocking_next(&mut self) -> Option<io::Result<Piece>> {
        if self.ended {
            return None;
        }
        let message = self.pieces.blocking_recv();
        self.accept(message)
    }

    /// Which kind of engine reads.
    pub fn kind(&self) -> EngineKind {
        self.kind
    }

    fn accept(&mut self, message: Option<Message>) -> Option<io::Result<Piece>> {
        match message {
            Some(Message::Piece(piece)) => return Some(Ok(piece)),
            Some(Message::End) => {
                self.ended = true;
                return None;
            }
            Some(Message::Failed(error)) => {
                self.ended = true;
                return Some(Err(error));
            }
            None => {}
        }
        self.ended = true;
        Some(Err(io::Error::other("the reading thread died")))
    }
}

impl Job {
    fn run(mut self, kind: EngineKind) {
        let result = match kind {
            EngineKind::Ring => uring::run(&mut self),
            EngineKind::Portable => self.run_portable(),
        };
        let last = match result {
            Ok(()) => Message::End,
            Err(error) => Message::Failed(error),
        };
        // Who hears the end may count on the file being closed.
        let Job { sink, file, plan, .. } = self;
        drop((file, plan));
        // Nobody there: nobody to tell.
        let _ = sink.blocking_send(last);
    }

    /// One read after the other, with the system reading `depth` pieces ahead.
    fn run_portable(&mut self) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        let mut ahead = std::collections::VecDeque::new();
        loop {
            while ahead.len() < self.depth
                && let Some(range) = self.plan.next().transpose()?
            {
                self.file.will_read(range.clone());
                ahead.push_back(range);
            }
            let Some(range) = ahead.pop_front() else { return Ok(()) };
            let mut buf = runtime.block_on(self.arena.acquire());
            buf.set_len(padded(&self.file, &range, buf.capacity()));
            let read = self.file.read_at(&mut buf, range.start)?;
            let piece = finish(&self.file, range, buf, read)?;
            if self.sink.blocking_send(Message::Piece(piece)).is_err() {
                return Ok(());
            }
        }
    }
}

/// How many bytes to ask for: past the page cache the last read must go on to the end of the
/// sector, although the file does not.
fn padded(file: &BlockFile, range: &Range<u64>, capacity: usize) -> usize {
    let len = (range.end - range.start) as usize;
    match file.is_direct() {
        true => len.next_multiple_of(file.sectors().logical as usize).min(capacity),
        false => len,
    }
}

/// Makes a piece of what was read; less than the range is an error.
fn finish(file: &BlockFile, range: Range<u64>, mut buf: Buf, read: usize) -> io::Result<Piece> {
    let len = (range.end - range.start) as usize;
    if read < len {
        let at = range.start + read as u64;
        return Err(file.at("read", Some(at), io::ErrorKind::UnexpectedEof.into()));
    }
    buf.set_len(len);
    Ok(Piece { offset: range.start, buf })
}
