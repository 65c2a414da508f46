//! The one writer of the disk log: takes frames off the queue, appends, seals, switches off.
//!
//! It is a plain state machine over blocking files. [`LogWriter::run`] is the thread around it;
//! a test or a simulator calls [`LogWriter::run_pending`] instead, and is deterministic.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use blockio::{BlockFile, Fs, OpenMode};
use image::Frame;

use crate::disk::evict::Eviction;
use crate::disk::format::{Entry, HEADER_LEN, MAX_ENTRIES, file_name, footer, footer_len, header};
use crate::disk::index::Spot;
use crate::disk::queue::Command;
use crate::disk::scrub::Scrub;
use crate::disk::{Disk, DiskState, Segment};
use crate::human::bytes;
use crate::key::Key;
use crate::memory::Memory;
use crate::shared::{Clock, FreeSpace};

/// How long a tier that is full, or that another process has, is left before it is tried again.
pub(super) const TRY_AGAIN: Duration = Duration::from_secs(30);
/// So often an idle writer looks at the clock.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(1);
/// So often it is looked whether the log's files are still there.
const LOOK_AT_DIR: Duration = Duration::from_secs(5);
/// The file in the directory that is locked.
const LOCK: &str = "lock";
/// The free space is looked at every so many bytes.
const CHECK_SPACE_EVERY: u64 = 16 << 20;

/// What the log may take, and from where.
pub(crate) struct LogLimits {
    pub(crate) dir: PathBuf,
    /// All segments together, in bytes.
    pub(crate) budget: u64,
    /// What must stay free on the file system, in bytes.
    pub(crate) reserve: u64,
    /// One segment, in bytes; at most a fourth of the budget.
    pub(crate) segment: u64,
    /// Sealed segments are read past the page cache.
    pub(crate) direct: bool,
}

/// The world outside, as the writer sees it.
pub(crate) struct Outside {
    pub(crate) fs: Fs,
    pub(crate) clock: Clock,
    pub(crate) free_space: FreeSpace,
}

/// Writes the disk log of a cache. There is one for each [`Shared`](crate::Shared) with a disk; it
/// must be run for the disk tier to do anything.
///
/// ```text
/// run_pending: take the directory, with its pins → recover, segment by segment
///              → append ⇄ evict ⇄ scrub → (queue closed) seal the open segment
/// ```
pub struct LogWriter {
    pub(super) disk: Arc<Disk>,
    pub(super) memory: Arc<Memory>,
    pub(super) limits: LogLimits,
    pub(super) outside: Outside,
    /// Held for as long as we write: no two processes write one log.
    lock: Option<BlockFile>,
    pub(super) phase: Phase,
    pub(super) open: Option<Open>,
    pub(super) eviction: Option<Eviction>,
    pub(super) scrub: Scrub,
    pub(super) next_id: u32,
    unchecked: u64,
    retry_at: Option<Duration>,
    /// When it was last looked whether the files are there.
    looked_at: Duration,
}

/// How far the writer has come.
pub(super) enum Phase {
    Starting,
    /// These segments are still to be read in, the newest last.
    Recovering(Vec<u32>),
    Running,
    Closed,
}

/// The segment that is being written.
pub(super) struct Open {
    pub(super) id: u32,
    pub(super) file: BlockFile,
    pub(super) end: u32,
    pub(super) entries: Vec<Entry>,
    /// Bytes of its frames that lay in another segment before.
    pub(super) again: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Worked,
    Idle,
    Closed,
}

impl LogWriter {
    pub(crate) fn new(
        disk: Arc<Disk>,
        memory: Arc<Memory>,
        limits: LogLimits,
        outside: Outside,
    ) -> Self {
        Self {
            disk,
            memory,
            limits,
            outside,
            lock: None,
            phase: Phase::Starting,
            open: None,
            eviction: None,
            scrub: Scrub::default(),
            next_id: 1,
            unchecked: 0,
            retry_at: None,
            looked_at: Duration::ZERO,
        }
    }

    /// Works until the cache is closed or dropped, blocking this thread while there is nothing to
    /// do. What waits is written first, and the open segment is sealed.
    pub fn run(mut self) {
        loop {
            match self.step() {
                Step::Worked => {}
                Step::Idle => self.disk.queue().wait(self.scrub_in().min(LOOK_AT_CLOCK)),
                Step::Closed => return,
            }
        }
    }

    /// Does everything there is to do now, and returns.
    pub fn run_pending(&mut self) {
        while self.step() == Step::Worked {}
    }

    fn step(&mut self) -> Step {
        match self.phase {
            Phase::Closed => return Step::Closed,
            Phase::Starting => return self.start(),
            Phase::Recovering(_) if !self.disk.queue().is_closed() => {
                self.recover_next();
                return Step::Worked;
            }
            Phase::Recovering(_) | Phase::Running => {}
        }
        self.follow_state();
        let closed = self.disk.queue().is_closed();
        if !closed && self.shrink() {
            return Step::Worked;
        }
        let command = self.disk.queue().pop();
        let evicted = !closed && self.evict_next();
        match command {
            Some(command) => self.obey(command),
            None if evicted => {}
            None if closed => self.finish(),
            None if self.scrub_next() => {}
            None => return Step::Idle,
        }
        Step::Worked
    }

    /// Lets go of a disk that readers gave up, and tries a full one again when it is time.
    fn follow_state(&mut self) {
        if (self.outside.clock)().saturating_sub(self.looked_at) >= LOOK_AT_DIR {
            self.look_for_files();
        }
        match self.disk.state() {
            DiskState::Off(_) => self.forget_all(),
            DiskState::Full(_) if !self.is_too_early() => match self.has_room() {
                Ok(true) => self.go_on(),
                Ok(false) => {}
                Err(error) => self.write_failed(&error),
            },
            _ => {}
        }
    }

    /// Gives the tier up if the directory was removed, or emptied: the files that are open would take
    /// frames for as long as the process lives, and nobody could find them after that.
    fn look_for_files(&mut self) {
        self.looked_at = (self.outside.clock)();
        let lock = self.limits.dir.join(LOCK);
        if let Ok(false) = self.outside.fs.exists(lock) {
            self.disk.set_state(DiskState::Off(self.files_are_gone()));
        }
    }

    fn files_are_gone(&self) -> String {
        let dir = self.limits.dir.display();
        format!("{dir}: the directory is gone, or what was in it: restart the cache")
    }

    /// Whether a frame could be written now; if not, that has been said.
    fn has_room(&mut self) -> io::Result<bool> {
        Ok(self.has_space()? && (self.open.is_some() || self.may_open()))
    }

    /// Writes from now on; what is missing of the pinned can come.
    pub(super) fn go_on(&mut self) {
        self.disk.set_state(DiskState::On);
        self.disk.pins().lost.notify_one();
    }

    /// Takes the directory, unless somebody has it.
    fn start(&mut self) -> Step {
        if self.disk.queue().is_closed() {
            self.phase = Phase::Closed;
            return Step::Closed;
        }
        if self.is_too_early() {
            // Nobody must wait for us with what cannot be written.
            while self.disk.queue().pop().is_some() {}
            return Step::Idle;
        }
        match self.take_directory() {
            Ok(Some(names)) => {
                self.disk.health().revive();
                self.retry_at = None;
                self.look_through(&names);
                Step::Worked
            }
            Ok(None) => self.hold_off(format!(
                "another process uses {}; give each cache a directory of its own",
                self.limits.dir.display()
            )),
            Err(error) => self.hold_off(error.to_string()),
        }
    }

    fn hold_off(&mut self, why: String) -> Step {
        let why = format!("{why}; it is tried again every {TRY_AGAIN:?}");
        self.disk.set_state(DiskState::Off(why));
        self.retry_later();
        Step::Idle
    }

    /// Locks the directory; says which files are in it, or nothing if another process has it.
    fn take_directory(&mut self) -> io::Result<Option<Vec<OsString>>> {
        let Outside { fs, .. } = &self.outside;
        fs.create_dir_all(&self.limits.dir)?;
        let lock = fs.open(self.limits.dir.join(LOCK), OpenMode::create())?;
        if !lock.try_lock_exclusive()? {
            return Ok(None);
        }
        let names = fs.list(&self.limits.dir)?;
        self.lock = Some(lock);
        Ok(Some(names))
    }

    pub(super) fn retry_later(&mut self) {
        self.retry_at = Some((self.outside.clock)() + TRY_AGAIN);
    }

    fn is_too_early(&self) -> bool {
        self.retry_at.is_some_and(|at| (self.outside.clock)() < at)
    }

    fn obey(&mut self, command: Command) {
        if matches!(command, Command::SavePin(..) | Command::RemovePin(..)) {
            // These are to last.
            self.look_for_files();
        }
        match command {
            Command::Append(key, frame) => self.append_new(&key, &frame),
            Command::Clear => self.clear(),
            Command::Forget(keys) => keys.iter().for_each(|key| _ = self.disk.evict(key)),
            Command::Sweep(segments) => self.sweep(&segments),
            Command::Tell(reply) => _ = reply.send(Ok(())),
            // Who does not wait for the answer any more needs none.
            Command::SavePin(pin, reply) => _ = reply.send(self.save_pin(&pin)),
            Command::RemovePin(image, reply) => _ = reply.send(self.remove_pin(&image)),
        }
    }

    /// Appends a frame from the queue, unless it is there, or the log cannot shrink any more before it
    /// is closed.
    fn append_new(&mut self, key: &Key, frame: &Frame) {
        let above = self.used() > self.limits.budget && self.disk.queue().is_closed();
        if above || self.disk.state() != DiskState::On || self.disk.index().peek(key).is_some() {
            return;
        }
        self.keep_room_for_pinned(frame.bytes().len());
        if let Err(error) = self.append(key, frame) {
            self.write_failed(&error);
        }
    }

    /// Appends a frame to the open segment; `false` if there is no room for it, which has been
    /// said where it was found out.
    pub(super) fn append(&mut self, key: &Key, frame: &Frame) -> io::Result<bool> {
        let len = frame.bytes().len();
        let capacity = self.limits.segment as usize;
        if HEADER_LEN + len + footer_len(1) > capacity {
            return Ok(false);
        }
        if self.open.as_ref().is_some_and(|open| !open.fits(1, len, capacity)) {
            self.seal()?;
        }
        if !self.has_space()? || (self.open.is_none() && !self.open_segment()?) {
            return Ok(false);
        }
        let open = self.open.as_mut().expect("opened above");
        open.file.write_all_at(frame.bytes(), u64::from(open.end))?;
        let entry = Entry { key: *key, offset: open.end, len: len as u32 };
        open.entries.push(entry);
        open.end += entry.len;
        let (id, end) = (open.id, u64::from(open.end));
        self.disk.index().insert(key, Spot::new(id, entry.offset, entry.len));
        self.set_segment_bytes(id, end);
        self.unchecked += len as u64;
        self.disk.counts().written.fetch_add(len as u64, Ordering::Relaxed);
        Ok(true)
    }

    /// A failed write. A full disk may have room again; any other failure is of the disk itself.
    pub(super) fn write_failed(&mut self, error: &io::Error) {
        self.eviction = None;
        self.disk.health().note_failed_write(&error.to_string());
        if blockio::cause(error) == blockio::Cause::Full {
            self.disk.set_state(DiskState::Full(error.to_string()));
            self.retry_later();
        } else {
            let gone = error.kind() == io::ErrorKind::NotFound;
            let why = if gone { self.files_are_gone() } else { error.to_string() };
            self.disk.set_state(DiskState::Off(why));
            self.forget_all();
        }
    }

    /// Whether the file system has more than the reserve left, after giving up as many of the oldest
    /// segments as it takes.
    fn has_space(&mut self) -> io::Result<bool> {
        let full = matches!(self.disk.state(), DiskState::Full(_));
        if self.open.is_some() && self.unchecked < CHECK_SPACE_EVERY && !full {
            return Ok(true);
        }
        self.unchecked = 0;
        loop {
            let free = (self.outside.free_space)(&self.limits.dir)?;
            if free >= self.limits.reserve {
                return Ok(true);
            }
            if !self.drop_oldest() {
                let (dir, free) = (self.limits.dir.display(), bytes(free));
                let reserve = bytes(self.limits.reserve);
                let why = format!("{dir}: {free} free; {reserve} are kept (cache.reserve)");
                self.disk.set_state(DiskState::Full(why));
                self.retry_later();
                return Ok(false);
            }
        }
    }

    /// Says beforehand if the file system cannot hold the budget.
    pub(super) fn warn_of_budget(&self) {
        let Ok(free) = (self.outside.free_space)(&self.limits.dir) else { return };
        let LogLimits { dir, budget, reserve, .. } = &self.limits;
        let room = self.used().saturating_add(free).saturating_sub(*reserve);
        if *budget > room {
            self.disk.health().warn(format!(
                "{}: cache.disk is {}, but with a cache.reserve of {} its file system has room for \
                 {}: lower the budget, or give it a larger disk",
                dir.display(),
                bytes(*budget),
                bytes(*reserve),
                bytes(room)
            ));
        }
    }

    /// Whether a segment may be started: there is room for it within the budget, or others can be
    /// emptied into it. If not, says so.
    fn may_open(&mut self) -> bool {
        if self.make_room() || self.choose_victim().is_some() {
            return true;
        }
        let why = format!(
            "{}: pinned images leave no room to write in {}: unpin one, or give the cache a larger \
             disk budget (cache.disk)",
            self.limits.dir.display(),
            bytes(self.limits.budget)
        );
        self.disk.set_state(DiskState::Full(why));
        self.retry_later();
        false
    }

    /// Starts a segment, if it may.
    fn open_segment(&mut self) -> io::Result<bool> {
        if !self.may_open() {
            return Ok(false);
        }
        let id = self.next_id;
        let Some(next) = id.checked_add(1) else {
            return Err(io::Error::other("the log has used up its segment numbers: empty it"));
        };
        let path = self.limits.dir.join(file_name(id));
        let file = self.outside.fs.open(path, OpenMode::create_new())?;
        self.next_id = next;
        if let Err(error) = file.write_all_at(&header(id), 0) {
            // Else a full disk would fill with empty files.
            let _ = self.outside.fs.remove_file(file.path());
            return Err(error);
        }
        self.add_segment(id, Segment::new(file.clone(), HEADER_LEN as u64));
        self.open = Some(Open { id, file, end: HEADER_LEN as u32, entries: Vec::new(), again: 0 });
        self.begin_eviction();
        Ok(true)
    }

    /// Ends the open segment with its footer. If that cannot be written it stays open, and the next
    /// start finds the frames by reading the segment through.
    pub(super) fn seal(&mut self) -> io::Result<()> {
        let Some(open) = &self.open else { return Ok(()) };
        let bytes = footer(open.id, &open.entries, open.end);
        open.file.write_all_at(&bytes, u64::from(open.end))?;
        let Some(open) = self.open.take() else { return Ok(()) };
        self.set_segment_bytes(open.id, u64::from(open.end) + bytes.len() as u64);
        let file = self.for_readers(open.file);
        if let Some(segment) = self.disk.segments_mut().get_mut(&open.id) {
            segment.file = file;
        }
        Ok(())
    }

    fn clear(&mut self) {
        (self.open, self.eviction) = (None, None);
        for (id, _) in self.sealed() {
            self.drop_segment(id);
        }
        self.disk.index().clear();
        self.disk.pins().lost.notify_one();
    }

    /// Lets go of all files, without touching them.
    fn forget_all(&mut self) {
        (self.open, self.eviction) = (None, None);
        self.disk.segments_mut().clear();
        self.disk.index().clear();
        self.disk.counts().bytes.store(0, Ordering::Relaxed);
    }

    fn finish(&mut self) {
        if let Err(error) = self.seal() {
            tracing::warn!(%error, "cache: the last segment could not be sealed");
        }
        self.save_scrub();
        self.lock = None;
        self.phase = Phase::Closed;
    }

    pub(super) fn add_segment(&self, id: u32, segment: Segment) {
        self.disk.counts().bytes.fetch_add(segment.bytes, Ordering::Relaxed);
        self.disk.segments_mut().insert(id, segment);
    }

    pub(super) fn set_segment_bytes(&self, id: u32, bytes: u64) {
        if let Some(segment) = self.disk.segments_mut().get_mut(&id) {
            let was = std::mem::replace(&mut segment.bytes, bytes);
            self.disk.counts().bytes.fetch_add(bytes.wrapping_sub(was), Ordering::Relaxed);
        }
    }
}

impl Open {
    /// Whether so many frames of `bytes` together find room, and the footer behind them.
    pub(super) fn fits(&self, frames: usize, bytes: usize, capacity: usize) -> bool {
        let frames = self.entries.len() + frames;
        frames <= MAX_ENTRIES && self.end as usize + bytes + footer_len(frames) <= capacity
    }
}
