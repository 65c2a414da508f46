//! What must hold in every run, whatever happens; watched while it runs and looked at when it is over.
//!
//! | invariant | watched where |
//! |---|---|
//! | right frames | at the door of each cache: every frame that goes out |
//! | right bytes | on each node's disk: every write, every name |
//! | durable | after each power cut: what a pull called done is there; at the end: what was pinned is |
//! | kept | at the end, when the disk works: all chunks of what is pinned are on it |
//! | single flight | between a cache and the store: nothing is asked for twice at once |
//! | egress | there as well: with room for everything nothing comes twice |
//! | memory | each cache's own account, compared with its budget |
//! | finished | when the faults are over and time has passed: every pull is done |
//! | quiet | after the last pull: no fetch, no place in any budget is left behind |

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use blockio::OpenMode;
use blockio::fake::{MemFs, Op};
use cache::{Budget, Status};
use image::frame::MAX_FRAME;
use image::{Digest, Frame, Priority, ReadContext};

use crate::corpus::Truth;
use crate::trace::Trace;

/// Violations that are kept; one is enough to fail a run.
const KEPT: usize = 8;

/// What must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invariant {
    /// A cache gives only frames that are what the image has there. (Unless the store forged one with
    /// good checksums, which only the node can find out.)
    RightFrames,
    /// Only right bytes are written into a target, and what has a name is whole.
    RightBytes,
    /// A pull that was done durably is done after a power cut; what was pinned is pinned.
    Durable,
    /// A cache with a disk that works has all chunks of what is pinned there, if it may take so much.
    Kept,
    /// One fetch for all who ask.
    SingleFlight,
    /// What a cache has room for it fetches once.
    Egress,
    /// Budgets are kept.
    Memory,
    /// Every pull that can finish does.
    Finished,
    /// Nothing is left behind.
    Quiet,
}

/// Something that must hold and did not.
#[derive(Clone, Debug)]
pub struct Violation {
    /// When it was seen.
    pub at: Duration,
    /// What was violated.
    pub invariant: Invariant,
    /// How.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {:.3} s: {}", self.invariant, self.at.as_secs_f64(), self.what)
    }
}

/// A cache from a start to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Life {
    /// Which cache.
    pub cache: usize,
    /// Which of its starts.
    pub start: u32,
}

impl fmt::Display for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cache-{} (start {})", self.cache, self.start)
    }
}

/// Who fetches a chunk that has not come yet.
#[derive(Debug, Default)]
struct Fetching {
    requests: BTreeSet<u64>,
    /// A guest is among them.
    guest: bool,
}

/// The watch over one run. Clones share it.
#[derive(Clone, Debug)]
pub struct Watch {
    trace: Trace,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    violations: Vec<Violation>,
    /// Chunks that are being fetched from the store now, other than for repair.
    fetching: BTreeMap<(Life, Digest), Fetching>,
    /// Requests to the store so far.
    requests: u64,
    /// Chunks that came from the store, other than for repair.
    fetched: BTreeMap<(Life, Digest), u32>,
    /// Chunks that more than one fetch may have brought, as a guest has overtaken.
    overtaken: BTreeSet<(Life, Digest)>,
    /// Chunks of which the store gave forged frames: only who decodes them can tell.
    forged: BTreeSet<Digest>,
}

impl Watch {
    /// Nothing has happened yet.
    pub fn new(trace: &Trace) -> Self {
        Self { trace: trace.clone(), state: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something does not hold.
    pub fn violated(&self, invariant: Invariant, what: String) {
        let mut state = self.state();
        if state.violations.iter().any(|v| v.invariant == invariant && v.what == what) {
            return;
        }
        self.trace.note(format_args!("VIOLATED {invariant:?}: {what}"));
        if state.violations.len() < KEPT {
            state.violations.push(Violation { at: self.trace.now(), invariant, what });
        }
    }

    /// What did not hold.
    pub fn violations(&self) -> Vec<Violation> {
        self.state().violations.clone()
    }

    /// The store forged a frame of this chunk: its checksums are good, its bytes are not.
    pub fn forged(&self, digest: Digest) {
        self.state().forged.insert(digest);
    }

    /// Whether the store has forged a frame of this chunk.
    pub fn is_forged(&self, digest: &Digest) -> bool {
        self.state().forged.contains(digest)
    }

    /// A cache gives a frame to a node.
    pub fn given(&self, life: Life, truth: &Truth, section: u32, chunk: u32, frame: &Frame) {
        let digest = truth.digest(section, chunk);
        let right = match self.is_forged(&digest) {
            true => frame.header().digest == digest && frame.check_payload().is_ok(),
            false => truth.frame(section, chunk) == Some(frame),
        };
        if !right {
            let what = format!("{life} gave a wrong frame of section {section}, chunk {chunk}");
            self.violated(Invariant::RightFrames, what);
        }
    }

    /// A cache asks the store for chunks. While one is being fetched it is not asked for again, but for
    /// a repair, and once for a guest, who does not wait for others. Which of the two comes first is open: the
    /// other may have read a bad copy from disk before.
    pub fn asks(&self, life: Life, digests: &BTreeSet<Digest>, ctx: &ReadContext) -> Fetch {
        let (guest, mut open) = (ctx.priority == Priority::Guest, BTreeSet::new());
        let mut state = self.state();
        state.requests += 1;
        let (request, mut twice) = (state.requests, Vec::new());
        for digest in digests.iter().filter(|_| !ctx.repair) {
            let key = (life, *digest);
            let fetching = state.fetching.entry(key).or_default();
            let (others, overtaken) = (fetching.requests.len(), fetching.guest);
            fetching.requests.insert(request);
            fetching.guest |= guest;
            open.insert(*digest);
            if others > 0 {
                state.overtaken.insert(key);
            }
            if others > 1 || (others == 1 && overtaken == guest) {
                twice.push(*digest);
            }
        }
        drop(state);
        for digest in twice {
            let what = format!("{life} asks for {} while it is being fetched", digest.short());
            self.violated(Invariant::SingleFlight, what);
        }
        Fetch { watch: self.clone(), life, request, open }
    }

    /// Whether a cache's account is within its budget.
    pub fn account(&self, life: Life, status: &Status, budget: &Budget) {
        let at_least_a_frame = |bytes: u64| bytes.max(MAX_FRAME as u64);
        let disk = budget.disk.as_ref().map_or(0, |disk| disk.bytes);
        let bounds = [
            ("frames in memory", status.memory_bytes, budget.memory - budget.memory / 8),
            ("manifests and tables", status.paper_bytes, budget.memory / 8),
            ("reads", status.in_flight_bytes, at_least_a_frame(budget.in_flight / 2)),
            (
                "frames for the disk",
                status.disk_queued_bytes,
                at_least_a_frame(budget.in_flight / 4),
            ),
            ("files", if may_exceed(status) { 0 } else { status.disk_bytes }, disk),
        ];
        for (what, found, bound) in bounds {
            if found > bound {
                let what = format!("{life}: {what} take {found} bytes of {bound}");
                self.violated(Invariant::Memory, what);
            }
        }
    }

    /// Whether the account of a cache's files is right: `found` bytes are there.
    pub fn files(&self, life: Life, status: &Status, found: u64) {
        let counted = status.disk_bytes;
        if found > counted && !status.is_recovering() {
            let what = format!("{life} has {found} bytes in files, and knows of {counted}");
            self.violated(Invariant::Memory, what);
        }
    }

    /// A cache ends, and had room for everything: what came from the store more than once?
    pub fn account_of_egress(&self, life: Life) {
        let state = self.state();
        let twice = |(key, n): &(&(Life, Digest), &u32)| {
            key.0 == life && **n > 1 && !state.overtaken.contains(*key)
        };
        let all = state.fetched.iter().filter(twice);
        let twice: Vec<_> = all.map(|((_, digest), n)| (*digest, *n)).collect();
        drop(state);
        for (digest, n) in twice {
            let what = format!("{life} had {} {n} times from the store", digest.short());
            self.violated(Invariant::Egress, what);
        }
    }

    /// A pin that was acknowledged is not there any more.
    pub fn unpinned(&self, life: Life, image: &Digest) {
        let what = format!("{life} had pinned image {}, and has not any more", image.short());
        self.violated(Invariant::Durable, what);
    }

    /// A pinned image is not all on the disk, or nothing is written there.
    pub fn not_kept(&self, life: Life, image: &Digest, how: &str) {
        let what = format!("{life} does not keep pinned image {}: {how}", image.short());
        self.violated(Invariant::Kept, what);
    }

    /// A cache that nobody uses any more.
    pub fn at_rest(&self, life: Life, status: &Status) {
        if status.flights > 0 || status.in_flight_bytes > 0 {
            let (flights, bytes) = (status.flights, status.in_flight_bytes);
            let what = format!("{life} has {flights} fetches and {bytes} bytes in flight at rest");
            self.violated(Invariant::Quiet, what);
        }
    }

    /// Looks at everything that was written on a node's disk: `truths` are the images of its pulls,
    /// each beginning with a mark of its number.
    pub fn written(&self, node: usize, log: &[Op], truths: &[Arc<Truth>], first: usize) {
        let mut current = first;
        for op in log {
            let right = match op {
                Op::Mark(number) => {
                    current = number.parse().unwrap_or(current);
                    true
                }
                Op::Write { offset, data, .. } => truths[current].holds(*offset, data),
                _ => true,
            };
            if !right {
                let what =
                    format!("node-{node}: pull {current}: {op}: not what the image has there");
                self.violated(Invariant::RightBytes, what);
            }
        }
    }

    /// Looks at what has the target's name on a node's disk: it may be any of the images that were
    /// pulled there, whole; it must be `done` if that is given.
    pub fn named(
        &self,
        node: usize,
        disk: &MemFs,
        path: &Path,
        may: &[Arc<Truth>],
        done: Option<usize>,
    ) {
        let fs = disk.fs();
        let found = match fs.open(path, OpenMode::read()) {
            Ok(file) => {
                let is = |truth: &Arc<Truth>| truth.is(&file).unwrap_or(false);
                let found = (0..may.len()).filter(|n| is(&may[*n])).collect::<Vec<_>>();
                if found.is_empty() {
                    let what = format!("node-{node}: {} is no whole image", path.display());
                    self.violated(Invariant::RightBytes, what);
                }
                found
            }
            Err(_) => Vec::new(),
        };
        if let Some(done) = done
            && !found.contains(&done)
        {
            let what = format!("node-{node}: pull {done} was done, and is not any more");
            self.violated(Invariant::Durable, what);
        }
    }
}

/// Whether a cache's files may take more than its budget: what is found at start is all read in first,
/// and pins from before are kept although a smaller budget has no room for them.
fn may_exceed(status: &Status) -> bool {
    status.is_recovering() || status.pinned_bytes > status.pin_limit
}

/// A request to the store, until it is dropped.
pub struct Fetch {
    watch: Watch,
    life: Life,
    request: u64,
    open: BTreeSet<Digest>,
}

impl Fetch {
    /// A frame is about to be given to the cache, which keeps it if it can be right.
    pub fn gives(&mut self, digest: &Digest, frame: &Frame) {
        if !self.open.remove(digest) {
            return;
        }
        let mut state = self.watch.state();
        let key = (self.life, *digest);
        if frame.header().digest != *digest {
            return state.ended(key, self.request);
        }
        // It is there now: whoever fetches it as well was overtaken, and is nobody's concern.
        state.fetching.remove(&key);
        if !state.forged.contains(digest) {
            *state.fetched.entry(key).or_default() += 1;
        }
    }
}

impl Drop for Fetch {
    fn drop(&mut self) {
        let mut state = self.watch.state();
        for digest in &self.open {
            state.ended((self.life, *digest), self.request);
        }
    }
}

impl State {
    /// A request for a chunk has ended without it.
    fn ended(&mut self, key: (Life, Digest), request: u64) {
        if let Some(fetching) = self.fetching.get_mut(&key) {
            fetching.requests.remove(&request);
            if fetching.requests.is_empty() {
                self.fetching.remove(&key);
            }
        }
    }
}
