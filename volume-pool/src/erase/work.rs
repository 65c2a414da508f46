//! The passes: step by step through the volume, each step whole before it is noted.

use std::ops::Range;

use blockio::{BlockFile, Placed};
use image::{Error, Kind, Result};

use super::journal::{Journal, State};
use super::medium::{self, Medium, bytes_of, total};
use super::pattern::Pattern;
use super::pump::Pump;
use super::{Erasure, Hook, Method, Progress};

/// An erasure while it runs.
pub(super) struct Work<'a> {
    pub(super) data: &'a BlockFile,
    pub(super) journal: &'a mut Journal,
    pub(super) pump: Pump,
    pub(super) size: u64,
    pub(super) step: u64,
}

impl State {
    /// Whether what is there is given back instead of being overwritten.
    pub(super) fn discards(&self) -> bool {
        self.plan.method == Method::Discard || self.medium == Medium::CopyOnWrite
    }

    /// How often the volume is gone through before it is read back.
    pub(super) fn passes(&self) -> u32 {
        match self.plan.method {
            Method::Zeros { passes } | Method::Random { passes } if !self.discards() => passes,
            _ => 1,
        }
    }

    /// What is to be there at the end of a pass, counted from 0.
    pub(super) fn pattern(&self, pass: u32) -> Pattern {
        if self.discards() { Pattern::Zeros } else { Pattern::of(&self.plan, pass) }
    }
}

impl<'a> Work<'a> {
    pub(super) fn new(erasure: &'a mut Erasure) -> Result<Self> {
        let Erasure { data, journal, size, step, .. } = erasure;
        Ok(Self { pump: Pump::new(data)?, data, journal, size: *size, step: *step })
    }

    /// Goes through the volume, from where the journal is, as often as is planned.
    pub(super) fn passes(&mut self, hook: &mut Hook<'_>) -> Result<()> {
        while self.journal.now().pass < self.journal.now().passes() {
            while let Some(range) = self.next_step() {
                self.step(range, hook)?;
            }
            self.journal.change(|state| (state.pass, state.at) = (state.pass + 1, 0))?;
        }
        Ok(())
    }

    /// The next stretch of this pass.
    pub(super) fn next_step(&self) -> Option<Range<u64>> {
        let at = self.journal.now().at;
        let end = (at - at % self.step + self.step).min(self.size);
        (at < end).then_some(at..end)
    }

    fn step(&mut self, range: Range<u64>, hook: &mut Hook<'_>) -> Result<()> {
        let found = medium::look(self.data, range.clone())?;
        let discards = self.journal.now().discards();
        let back = bytes_of(&found, |shared| shared || discards);
        self.give_back(&found, &back, hook)?;
        let own = if discards { Vec::new() } else { bytes_of(&found, |shared| !shared) };
        let moved = self.overwrite(&range, &found, &own, hook)?;
        let note = |state: &mut State| {
            (state.at, state.counted) = (range.end, false);
            if state.pass == 0 {
                state.tally.moved += moved;
                state.tally.overwritten += total(&own) - moved;
            }
        };
        match own.is_empty() && back.is_empty() {
            // To look at holes again costs less than to note that they are behind us.
            true => self.journal.change_soon(note),
            false => self.journal.change(note)?,
        }
        Ok(())
    }

    /// Gives back what cannot be overwritten, or is not to be. It is counted before it is done, as it cannot be seen
    /// afterwards.
    fn give_back(
        &mut self,
        found: &[Placed],
        back: &[Range<u64>],
        hook: &mut Hook<'_>,
    ) -> Result<()> {
        if back.is_empty() {
            return Ok(());
        }
        if !self.journal.now().counted {
            let shared = total(&bytes_of(found, |shared| shared));
            self.journal.change(|state| {
                state.counted = true;
                state.tally.shared += shared;
                state.tally.discarded += total(back) - shared;
            })?;
        }
        for range in back {
            self.ask(hook, range.end - range.start)?;
            medium::give_back(self.data, range)?;
        }
        self.data.sync_data().map_err(crate::shelf::io)
    }

    /// Writes this pass's pattern over what is nobody else's, so that it lasts. Returns how many bytes of it went elsewhere.
    fn overwrite(
        &mut self,
        step: &Range<u64>,
        found: &[Placed],
        own: &[Range<u64>],
        hook: &mut Hook<'_>,
    ) -> Result<u64> {
        if own.is_empty() {
            return Ok(0);
        }
        let state = self.journal.now();
        let mut pattern = state.pattern(state.pass);
        let gate = &mut |next| ask(state, self.size, hook, next);
        self.pump.write(own, &mut pattern, gate)?;
        self.pump.sync()?;
        let moved = medium::moved(found, &medium::look(self.data, step.clone())?);
        if moved > 0 {
            let (path, Range { start, end }) = (self.data.path().display(), step);
            tracing::warn!(
                "{path}: of bytes {start} to {end} {moved} were moved while they were overwritten"
            );
        }
        Ok(moved)
    }

    pub(super) fn ask(&self, hook: &mut Hook<'_>, next: u64) -> Result<()> {
        ask(self.journal.now(), self.size, hook, next)
    }
}

pub(super) fn ask(state: &State, size: u64, hook: &mut Hook<'_>, next: u64) -> Result<()> {
    let (pass, passes) = (state.pass + 1, state.passes());
    match hook(&Progress { pass, passes, at: state.at, size, next }) {
        std::ops::ControlFlow::Continue(()) => Ok(()),
        std::ops::ControlFlow::Break(()) => {
            let what = "the erasure was interrupted: erase the volume again to go on";
            Err(Error::new(Kind::Cancelled, what))
        }
    }
}
