//! Every disk that a power cut may leave.
//!
//! # What is assumed of disk and file system
//!
//! - A sync that succeeded has made everything before it last: of that file, or of the names in
//!   that directory. Syncing a file does not make its name last.
//! - Of what was not synced, any part may be lost, in any order: later operations may survive
//!   earlier ones, also among names.
//! - A rename or any other change of a name happens whole or not at all; so do a truncation, a
//!   zeroing and the writing of one aligned 512-byte sector. A longer write may be torn into
//!   sectors, of which any may be lost.
//!
//! File systems with a journal promise more. What survives this survives them.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::mem::MemFs;
use super::model::{Model, Op};
use crate::fs::Fs;

/// What is written whole or not at all, in bytes.
const SECTOR: u64 = 512;

/// What a power cut did to one operation that was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    /// It is on the disk.
    Kept,
    /// It is not.
    Lost,
    /// Some sectors of a write are; the number says which, as a seed.
    Torn(u64),
}

impl Fate {
    /// The parts that survive of `len` bytes written at `offset`.
    pub(super) fn parts(self, offset: u64, len: usize) -> Vec<Range<usize>> {
        match self {
            Fate::Kept => std::iter::once(0..len).collect(),
            Fate::Lost => Vec::new(),
            Fate::Torn(seed) => {
                let mut chance = Chance(seed);
                let mut parts = sectors(offset, len);
                parts.retain(|_| chance.next() & 1 == 0);
                parts
            }
        }
    }
}

/// Cuts `len` bytes at `offset` where sectors begin.
fn sectors(offset: u64, len: usize) -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    let mut at = 0;
    while at < len {
        let left = SECTOR - (offset + at as u64) % SECTOR;
        let end = len.min(at + left as usize);
        parts.push(at..end);
        at = end;
    }
    parts
}

/// How many images to make of each point in time, and which.
#[derive(Clone, Copy, Debug)]
pub struct CrashPlan {
    /// Decides the images that are drawn by lot: the same seed, the same images.
    pub seed: u64,
    /// Up to this many images for each point in time. While there are no more ways than that to
    /// lose operations, all of them are tried; beyond, all kept, all lost, each one lost, each one
    /// kept, and the rest by lot.
    pub per_point: usize,
    /// Also tear writes into sectors.
    pub torn: bool,
}

impl Default for CrashPlan {
    fn default() -> CrashPlan {
        CrashPlan { seed: 0, per_point: 64, torn: true }
    }
}

/// A disk after a power cut.
pub struct CrashImage {
    log: Arc<[Op]>,
    point: usize,
    fates: Vec<(usize, Fate)>,
    disk: MemFs,
}

impl CrashImage {
    /// The file system to recover from.
    pub fn fs(&self) -> Fs {
        self.disk.fs()
    }

    /// The same with its own log, to crash the recovery as well.
    pub fn disk(&self) -> &MemFs {
        &self.disk
    }

    /// How many operations had been done when the power went.
    pub fn point(&self) -> usize {
        self.point
    }

    /// What became of those that were not synced, by their place in the log.
    pub fn fates(&self) -> &[(usize, Fate)] {
        &self.fates
    }

    /// The marks that had been passed, in order.
    pub fn marks(&self) -> impl Iterator<Item = &str> {
        self.log[..self.point].iter().filter_map(|op| match op {
            Op::Mark(label) => Some(label.as_str()),
            _ => None,
        })
    }

    /// Whether this mark had been passed.
    pub fn reached(&self, mark: &str) -> bool {
        self.marks().any(|label| label == mark)
    }
}

impl fmt::Display for CrashImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "power cut after {} operations", self.point)?;
        if let Some(op) = self.point.checked_sub(1).map(|last| &self.log[last]) {
            write!(f, " (last: {op})")?;
        }
        for (index, fate) in self.fates.iter().filter(|(_, fate)| *fate != Fate::Kept) {
            write!(f, "; {fate:?}: {index}: {}", self.log[*index])?;
        }
        Ok(())
    }
}

impl fmt::Debug for CrashImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The images, in the order of the points in time. See [`MemFs::crash_images`].
#[derive(Debug)]
pub struct CrashImages {
    plan: CrashPlan,
    log: Arc<[Op]>,
    /// What lasts for certain at `point`.
    base: Model,
    /// The operations before `point` that do not, by their place in the log.
    pending: Vec<usize>,
    point: usize,
    /// What is still to be tried at `point`: a fate for each of `pending`.
    choices: VecDeque<Vec<Fate>>,
}

impl CrashImages {
    pub(super) fn new(base: Model, log: Vec<Op>, plan: CrashPlan) -> CrashImages {
        let choices = VecDeque::from([Vec::new()]);
        CrashImages { plan, log: log.into(), base, pending: Vec::new(), point: 0, choices }
    }

    /// Moves on by one operation; `false` at the end of the log.
    fn advance(&mut self) -> bool {
        let log = Arc::clone(&self.log);
        let Some(op) = log.get(self.point) else { return false };
        if op.can_be_lost() {
            self.pending.push(self.point);
        } else {
            let base = &mut self.base;
            self.pending.retain(|index| {
                let settled = op.settles(&log[*index]);
                if settled {
                    base.apply(&log[*index], Fate::Kept);
                }
                !settled
            });
        }
        self.point += 1;
        self.choices = self.choose(op.can_be_lost());
        true
    }

    /// What to try at this point. If the last operation can be lost, the images without it are
    /// those of the point before, and are not made again.
    fn choose(&self, last_is_new: bool) -> VecDeque<Vec<Fate>> {
        let free = self.pending.len() - usize::from(last_is_new);
        let mut chance = Chance(self.plan.seed ^ (self.point as u64).wrapping_mul(0x9e37_79b9));
        let ways = u32::try_from(free).ok().and_then(|free| 1_usize.checked_shl(free));
        let mut choices = match ways.filter(|ways| *ways <= self.plan.per_point) {
            Some(ways) => self.all_ways(free, ways),
            None => self.some_ways(free, &mut chance),
        };
        if self.plan.torn {
            self.tear(&mut choices, &mut chance);
        }
        choices
    }

    /// Every way to lose some of the first `free` operations.
    fn all_ways(&self, free: usize, ways: usize) -> VecDeque<Vec<Fate>> {
        let fate = |way: usize, i: usize| {
            if i < free && way >> i & 1 == 1 { Fate::Lost } else { Fate::Kept }
        };
        (0..ways).map(|way| (0..self.pending.len()).map(|i| fate(way, i)).collect()).collect()
    }

    /// The telling ways, and others by lot.
    fn some_ways(&self, free: usize, chance: &mut Chance) -> VecDeque<Vec<Fate>> {
        let kept = vec![Fate::Kept; self.pending.len()];
        let mut lost = kept.clone();
        lost[..free].fill(Fate::Lost);
        let mut choices = VecDeque::from([kept.clone(), lost.clone()]);
        // The latest first: what was just done is what is least thought of.
        for i in (0..free).rev().take(self.plan.per_point / 4) {
            let (mut one_lost, mut one_kept) = (kept.clone(), lost.clone());
            one_lost[i] = Fate::Lost;
            one_kept[i] = Fate::Kept;
            choices.extend([one_lost, one_kept]);
        }
        while choices.len() < self.plan.per_point {
            let mut some = kept.clone();
            for fate in &mut some[..free] {
                *fate = if chance.next() & 1 == 0 { Fate::Kept } else { Fate::Lost };
            }
            choices.push_back(some);
        }
        choices
    }

    /// Adds, for the latest writes that span sectors, images in which just that write is torn, with
    /// everything else kept and with the others as they fall.
    fn tear(&self, choices: &mut VecDeque<Vec<Fate>>, chance: &mut Chance) {
        let spans = |index: &usize| match &self.log[*index] {
            Op::Write { offset, data, .. } => sectors(*offset, data.len()).len() > 1,
            _ => false,
        };
        let long = (0..self.pending.len()).rev().filter(|i| spans(&self.pending[*i]));
        for i in long.take((self.plan.per_point / 8).max(1)) {
            let mut alone = vec![Fate::Kept; self.pending.len()];
            alone[i] = Fate::Torn(chance.next());
            let mut among = choices[chance.next() as usize % choices.len()].clone();
            among[i] = Fate::Torn(chance.next());
            choices.extend([alone, among]);
        }
    }
}

impl Iterator for CrashImages {
    type Item = CrashImage;

    fn next(&mut self) -> Option<CrashImage> {
        let choice = loop {
            match self.choices.pop_front() {
                Some(choice) => break choice,
                None if self.advance() => {}
                None => return None,
            }
        };
        let fates: Vec<_> = self.pending.iter().copied().zip(choice).collect();
        let mut model = self.base.clone();
        for (index, fate) in &fates {
            model.apply(&self.log[*index], *fate);
        }
        let disk = MemFs::from_model(model);
        Some(CrashImage { log: Arc::clone(&self.log), point: self.point, fates, disk })
    }
}

/// What is left of `base` and the operations since when the power goes now, drawn by lot.
pub(super) fn cut_now(base: Model, log: &[Op], seed: u64) -> Model {
    let (mut model, mut pending) = (base, Vec::<&Op>::new());
    for op in log {
        if op.can_be_lost() {
            pending.push(op);
            continue;
        }
        pending.retain(|earlier| {
            let settled = op.settles(earlier);
            if settled {
                model.apply(earlier, Fate::Kept);
            }
            !settled
        });
    }
    // Some cuts lose little, some nearly everything.
    let mut chance = Chance(seed);
    let kept_of_eight = chance.next() % 9;
    for op in pending {
        let fate = match chance.next() {
            draw if draw % 8 < kept_of_eight => Fate::Kept,
            draw if draw & 8 == 0 => Fate::Lost,
            draw => Fate::Torn(draw),
        };
        model.apply(op, fate);
    }
    model
}

/// Numbers that look random and are the same every time (SplitMix64).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
