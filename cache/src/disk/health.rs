//! How the disk tier is, since when, and what went wrong with it.

use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::disk::writer::TRY_AGAIN;
use crate::sharded::lock;
use crate::shared::Clock;

/// After so many failed reads with no good one between them the disk is given up.
pub(super) const MAX_FAILED_READS: u32 = 8;
/// A disk that answers no read for so long, while reads are tried, is given up.
pub(super) const NO_ANSWER: Duration = Duration::from_secs(30);

const READS: u8 = 1;
const WRITES: u8 = 2;

/// How the disk tier is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DiskState {
    /// None was asked for.
    #[default]
    None,
    /// It is being read in: what was found so far is served, nothing is written yet.
    Recovering,
    /// It is read and written.
    On,
    /// It is read. Nothing is written until there is room again; the text says why.
    Full(String),
    /// It is not used; the text says why.
    Off(String),
}

impl fmt::Display for DiskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DiskState::None => f.write_str("none"),
            DiskState::Recovering => f.write_str("recovering"),
            DiskState::On => f.write_str("on"),
            DiskState::Full(why) => {
                write!(f, "full: {why}; it is tried again every {TRY_AGAIN:?}")
            }
            DiskState::Off(why) => write!(f, "off: {why}"),
        }
    }
}

/// How well the disk of the disk tier does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskHealth {
    /// How long it has been in its state.
    pub in_state_for: Duration,
    /// Reads that failed or took too long.
    pub failed_reads: u64,
    /// Writes that failed, for lack of room among other things.
    pub failed_writes: u64,
    /// Frames that were not what they should be, found by readers or by scrubbing.
    pub bad_frames: u64,
    /// The latest of these, with path and offset.
    pub last_error: Option<String>,
    /// What should be changed before it goes wrong.
    pub warning: Option<String>,
}

/// The state and the marks of a disk tier.
pub(crate) struct Health {
    clock: Clock,
    state: Mutex<State>,
    /// Bits of the state for the chunk path.
    open_for: AtomicU8,
    /// Since the last good one.
    failed_in_a_row: AtomicU32,
    /// Whether there is something in `State::late`.
    some_late: AtomicBool,
    failed_reads: AtomicU64,
    failed_writes: AtomicU64,
    pub(crate) bad_frames: AtomicU64,
}

struct State {
    state: DiskState,
    since: Duration,
    /// The first and the last of the reads that had no answer in time, since the last good one.
    late: Option<(Duration, Duration)>,
    last_error: Option<String>,
    warning: Option<String>,
}

impl Health {
    pub(crate) fn new(clock: Clock) -> Self {
        let since = clock();
        let (state, late) = (DiskState::Recovering, None);
        let state = State { state, since, late, last_error: None, warning: None };
        Self {
            clock,
            state: Mutex::new(state),
            open_for: AtomicU8::new(READS | WRITES),
            failed_in_a_row: AtomicU32::new(0),
            some_late: AtomicBool::new(false),
            failed_reads: AtomicU64::new(0),
            failed_writes: AtomicU64::new(0),
            bad_frames: AtomicU64::new(0),
        }
    }

    /// How it is.
    pub(crate) fn state(&self) -> DiskState {
        lock(&self.state).state.clone()
    }

    /// How well it does.
    pub(crate) fn report(&self) -> DiskHealth {
        let state = lock(&self.state);
        DiskHealth {
            in_state_for: (self.clock)().saturating_sub(state.since),
            failed_reads: self.failed_reads.load(Ordering::Relaxed),
            failed_writes: self.failed_writes.load(Ordering::Relaxed),
            bad_frames: self.bad_frames.load(Ordering::Relaxed),
            last_error: state.last_error.clone(),
            warning: state.warning.clone(),
        }
    }

    /// Changes how it is. A tier that was given up stays so.
    pub(crate) fn set_state(&self, new: DiskState) {
        let mut state = lock(&self.state);
        if state.state == new || matches!(state.state, DiskState::Off(_)) {
            return;
        }
        let bits = match &new {
            DiskState::Recovering | DiskState::On => READS | WRITES,
            DiskState::Full(_) => READS,
            DiskState::None | DiskState::Off(_) => 0,
        };
        self.open_for.store(bits, Ordering::Release);
        // Said once, not at every try.
        if std::mem::discriminant(&state.state) != std::mem::discriminant(&new) {
            state.since = (self.clock)();
            match &new {
                DiskState::Off(_) | DiskState::Full(_) => {
                    tracing::error!(state = %new, "cache: serving goes on without the disk tier");
                }
                _ => tracing::info!(state = %new, "cache: disk tier"),
            }
        }
        state.state = new;
    }

    /// A tier that could not be taken because another process has it may be tried again.
    pub(crate) fn revive(&self) {
        let mut state = lock(&self.state);
        state.state = DiskState::Recovering;
        state.since = (self.clock)();
        self.open_for.store(READS | WRITES, Ordering::Release);
    }

    /// Says what should be changed.
    pub(crate) fn warn(&self, why: String) {
        tracing::warn!(why, "cache: disk tier");
        lock(&self.state).warning = Some(why);
    }

    pub(crate) fn is_read(&self) -> bool {
        self.open_for.load(Ordering::Acquire) & READS != 0
    }

    pub(crate) fn is_written(&self) -> bool {
        self.open_for.load(Ordering::Acquire) & WRITES != 0
    }

    pub(crate) fn note_good_read(&self) {
        self.failed_in_a_row.store(0, Ordering::Relaxed);
        if self.some_late.load(Ordering::Acquire) && self.some_late.swap(false, Ordering::AcqRel) {
            lock(&self.state).late = None;
        }
    }

    /// A read that waited too long for a buffer, all of which are lent to other reads. A disk may be
    /// that slow, or not answer at all: which of them, time tells.
    pub(crate) fn note_late_read(&self, why: &str) {
        let now = (self.clock)();
        let mut state = lock(&self.state);
        // After a pause of as long it begins anew.
        let spell = state.late.filter(|(_, last)| now.saturating_sub(*last) < NO_ANSWER);
        let first = spell.map_or(now, |(first, _)| first);
        state.late = Some((first, now));
        drop(state);
        self.some_late.store(true, Ordering::Release);
        if now.saturating_sub(first) >= NO_ANSWER {
            self.set_state(DiskState::Off(why.to_owned()));
        }
    }

    /// A read that had no answer in time.
    pub(crate) fn note_unanswered_read(&self, why: &str) {
        self.count_failed_read(why);
        self.note_late_read(why);
    }

    /// A read that failed; too many in a row are of the disk itself.
    pub(crate) fn note_failed_read(&self, why: &str) {
        self.count_failed_read(why);
        if self.failed_in_a_row.fetch_add(1, Ordering::Relaxed) + 1 >= MAX_FAILED_READS {
            self.set_state(DiskState::Off(why.to_owned()));
        }
    }

    fn count_failed_read(&self, why: &str) {
        tracing::warn!(why, "cache: a disk read failed");
        self.failed_reads.fetch_add(1, Ordering::Relaxed);
        lock(&self.state).last_error = Some(why.to_owned());
    }

    pub(crate) fn note_failed_write(&self, why: &str) {
        self.failed_writes.fetch_add(1, Ordering::Relaxed);
        lock(&self.state).last_error = Some(why.to_owned());
    }

    pub(crate) fn note_bad_frame(&self, why: String) {
        tracing::warn!(why, "cache: dropped a frame");
        self.bad_frames.fetch_add(1, Ordering::Relaxed);
        lock(&self.state).last_error = Some(why);
    }
}
