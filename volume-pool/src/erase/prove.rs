//! Reading back: what is on the medium after the last pass.

use std::ops::Range;

use image::{Kind, Result};

use super::medium::{bytes_of, look, total};
use super::pattern::{self, Pattern};
use super::work::{Work, ask};
use super::{Hook, Proof};

/// Bytes of one place of a sample; places begin at multiples of it.
const PLACE: u64 = 4096;

impl Work<'_> {
    /// Reads back as much as is planned, from where the journal is.
    ///
    /// # Errors
    ///
    /// [`Kind::Corrupt`] if it is not what the last pass has written. That is to be done again then, which is noted.
    pub(super) fn prove(&mut self, hook: &mut Hook<'_>) -> Result<()> {
        let proved = match self.journal.now().plan.proof {
            Proof::None => Ok(()),
            Proof::Sample { places } => self.prove_some(places, hook),
            Proof::All => self.prove_all(hook),
        };
        match proved {
            Err(error) if error.kind() == Kind::Corrupt => {
                self.journal.change(|state| state.again(state.passes() - 1))?;
                Err(error)
            }
            proved => proved,
        }
    }

    fn prove_all(&mut self, hook: &mut Hook<'_>) -> Result<()> {
        while let Some(range) = self.next_step() {
            let there = bytes_of(&look(self.data, range.clone())?, |_| true);
            self.compare(&there, hook)?;
            let note = |state: &mut super::State| {
                state.at = range.end;
                state.tally.read_back += total(&there);
            };
            match there.is_empty() {
                true => self.journal.change_soon(note),
                false => self.journal.change(note)?,
            }
        }
        Ok(())
    }

    /// Places are drawn among those that take space: holes have nothing to show.
    fn prove_some(&mut self, places: u32, hook: &mut Hook<'_>) -> Result<()> {
        let mut all = 0;
        self.each_step(|there| {
            all += total(&there);
            Ok(())
        })?;
        let drawn = pattern::sample(&self.journal.now().plan, places, all);
        let mut behind = 0;
        let mut read = Vec::new();
        self.each_step(|there| {
            for range in &there {
                let until = behind + range.end - range.start;
                let first = drawn.partition_point(|place| *place < behind);
                let hits = drawn[first..].iter().take_while(|place| **place < until);
                for hit in hits {
                    let at = range.start + (hit - behind);
                    let block = at - at % PLACE;
                    read.push(block.max(range.start)..(block + PLACE).min(range.end));
                }
                behind = until;
            }
            Ok(())
        })?;
        read.dedup();
        self.compare(&read, hook)?;
        self.journal.change(|state| state.tally.read_back = total(&read))
    }

    fn each_step(&self, mut with: impl FnMut(Vec<Range<u64>>) -> Result<()>) -> Result<()> {
        let mut at = 0;
        while at < self.size {
            let end = (at + self.step).min(self.size);
            with(bytes_of(&look(self.data, at..end)?, |_| true))?;
            at = end;
        }
        Ok(())
    }

    fn compare(&self, ranges: &[Range<u64>], hook: &mut Hook<'_>) -> Result<()> {
        let state = self.journal.now();
        let mut pattern: Pattern = state.pattern(state.passes() - 1);
        let gate = &mut |next| ask(state, self.size, hook, next);
        self.pump.compare(ranges, &mut pattern, gate)
    }
}
