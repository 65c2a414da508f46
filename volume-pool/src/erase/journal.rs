//! The journal of an erasure: what is planned, how far it is, what was done.
//!
//! ```text
//!  0        4       6          7         8         16         32          64           68
//!  | "FBVE" | ver 1 | method u8| proof u8| seq u64 | id       | seed      | passes u32 | places u32 |
//!  72         76          77        78        80       88          96             104
//!  | pass u32 | medium u8 | flags   | 2 zeros | at u64 | begun u64 | overwritten  | discarded u64 |
//!  112          120         128             136            508          512
//!  | shared u64 | moved u64 | read back u64 | zeros …      | CRC32C u32 |
//! ```
//! It fills one 512-byte sector of `erasing` in the volume's directory, and there are two of them, as of an
//! [identity](crate::identity): the newer one that can be read counts. Methods: 1 zeros, 2 random, 3 discard. Proofs: 0
//! none, 1 a sample, 2 all. Mediums: 1 device, 2 file, 3 copy on write. Flag 1: what is given back of the step at `at` is
//! counted. Flag 2: all is done.
//!
//! It is made before the volume becomes `Erasing`, so that one that is found erasing with a journal is gone on with, and
//! not just removed. A step is noted when its bytes are on the medium; so it may be behind, and never leads.

use std::io::ErrorKind;
use std::path::Path;

use blockio::{BlockFile, Fs, OpenMode};
use image::{Error, Kind, Result};

use super::{Medium, Method, Plan, Proof, Tally};
use crate::shelf::io;

const MAGIC: &[u8; 4] = b"FBVE";
const VERSION: u16 = 1;
const LEN: usize = 512;
const COUNTED: u8 = 1;
const DONE: u8 = 2;

/// What it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct State {
    /// The volume's.
    pub(super) id: [u8; 16],
    pub(super) plan: Plan,
    pub(super) medium: Medium,
    /// In seconds since 1970.
    pub(super) begun: u64,
    /// From 0; as many as are planned: it is read back.
    pub(super) pass: u32,
    /// Up to here this pass is done, in bytes.
    pub(super) at: u64,
    /// What is given back of the step that begins there is in the tally.
    pub(super) counted: bool,
    pub(super) done: bool,
    pub(super) tally: Tally,
}

impl State {
    pub(super) fn new(id: [u8; 16], plan: Plan, medium: Medium, begun: u64) -> Self {
        let tally = Tally::default();
        Self { id, plan, medium, begun, pass: 0, at: 0, counted: false, done: false, tally }
    }

    /// Goes back to the beginning of a pass.
    pub(super) fn again(&mut self, pass: u32) {
        (self.pass, self.at, self.counted, self.done) = (pass, 0, false, false);
        self.tally.read_back = 0;
        if pass == 0 {
            self.tally.overwritten = 0;
        }
        if pass == 0 && self.medium == Medium::Device {
            // A device takes its space whatever was given back: it is counted again.
            self.tally.discarded = 0;
        }
    }

    fn encode(&self, seq: u64) -> [u8; LEN] {
        let (method, passes) = match self.plan.method {
            Method::Zeros { passes } => (1, passes),
            Method::Random { passes } => (2, passes),
            Method::Discard => (3, 1),
        };
        let (proof, places) = match self.plan.proof {
            Proof::None => (0, 0),
            Proof::Sample { places } => (1, places),
            Proof::All => (2, 0),
        };
        let flags = if self.counted { COUNTED } else { 0 } | if self.done { DONE } else { 0 };
        let Tally { overwritten, discarded, shared, moved, read_back } = self.tally;
        let mut b = [0; LEN];
        b[..4].copy_from_slice(MAGIC);
        b[4..6].copy_from_slice(&VERSION.to_le_bytes());
        (b[6], b[7]) = (method, proof);
        b[8..16].copy_from_slice(&seq.to_le_bytes());
        b[16..32].copy_from_slice(&self.id);
        b[32..64].copy_from_slice(&self.plan.seed);
        b[64..68].copy_from_slice(&passes.to_le_bytes());
        b[68..72].copy_from_slice(&places.to_le_bytes());
        b[72..76].copy_from_slice(&self.pass.to_le_bytes());
        (b[76], b[77]) = (self.medium as u8, flags);
        let numbers = [self.at, self.begun, overwritten, discarded, shared, moved, read_back];
        for (at, number) in (80..).step_by(8).zip(numbers) {
            b[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        let crc = crc32c::crc32c(&b[..508]);
        b[508..].copy_from_slice(&crc.to_le_bytes());
        b
    }

    /// Reads a sector; nothing if it is none, or damaged.
    fn decode(b: &[u8; LEN]) -> Result<Option<(u64, Self)>> {
        let le64 = |at: usize| u64::from_le_bytes(b[at..at + 8].try_into().expect("eight bytes"));
        let le32 = |at: usize| u32::from_le_bytes(b[at..at + 4].try_into().expect("four bytes"));
        if &b[..4] != MAGIC || crc32c::crc32c(&b[..508]) != le32(508) {
            return Ok(None);
        }
        let version = u16::from_le_bytes([b[4], b[5]]);
        let strange = |what: String| {
            Err(Error::new(Kind::Unsupported, format!("journal of an erasure: {what}")))
        };
        if version != VERSION {
            return strange(format!("version {version}; this program knows {VERSION}"));
        }
        let method = match b[6] {
            1 => Method::Zeros { passes: le32(64) },
            2 => Method::Random { passes: le32(64) },
            3 => Method::Discard,
            other => return strange(format!("method {other}")),
        };
        let proof = match b[7] {
            0 => Proof::None,
            1 => Proof::Sample { places: le32(68) },
            2 => Proof::All,
            other => return strange(format!("proof {other}")),
        };
        let Some(medium) = Medium::by_number(b[76]) else {
            return strange(format!("medium {}", b[76]));
        };
        if b[77] & !(COUNTED | DONE) != 0 {
            return strange(format!("flags {}", b[77]));
        }
        let plan = Plan { method, proof, seed: b[32..64].try_into().expect("32 bytes") };
        plan.check().map_err(|e| e.at("journal of an erasure"))?;
        let state = Self {
            id: b[16..32].try_into().expect("16 bytes"),
            plan,
            medium,
            begun: le64(88),
            pass: le32(72),
            at: le64(80),
            counted: b[77] & COUNTED != 0,
            done: b[77] & DONE != 0,
            tally: Tally {
                overwritten: le64(96),
                discarded: le64(104),
                shared: le64(112),
                moved: le64(120),
                read_back: le64(128),
            },
        };
        Ok(Some((le64(8), state)))
    }
}

/// The two sectors, in their file.
#[derive(Debug)]
pub(super) struct Journal {
    file: BlockFile,
    seq: u64,
    now: State,
}

impl Journal {
    /// Opens the journal of a volume whose erasure `was_begun`, or makes one that says `fresh`; it lasts when this
    /// returns. One of another plan begins anew, and keeps what it has given back.
    pub(super) fn begin(fs: &Fs, path: &Path, fresh: State, was_begun: bool) -> Result<Self> {
        let file = fs.open(path, OpenMode::create()).map_err(io)?;
        let found = newest(&file)?.filter(|(_, found)| found.id == fresh.id);
        let seq = found.as_ref().map_or(0, |(seq, _)| *seq);
        let now = match found.filter(|_| was_begun) {
            Some((_, found)) if found.plan.is_like(&fresh.plan) => found,
            Some((_, found)) => {
                let mut anew = State { tally: found.tally, begun: found.begun, ..fresh };
                anew.again(0);
                anew
            }
            None => fresh,
        };
        let mut journal = Self { file, seq, now };
        journal.change(|_| {})?;
        let dir = path.parent().unwrap_or(Path::new(""));
        fs.sync_dir(dir).map_err(io)?;
        Ok(journal)
    }

    /// What the journal of a volume says; nothing if there is none of it that can be read.
    pub(super) fn read(fs: &Fs, path: &Path, id: &[u8; 16]) -> Result<Option<State>> {
        match fs.open(path, OpenMode::read()) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            opened => {
                let found = newest(&opened.map_err(io)?)?;
                Ok(found.map(|(_, state)| state).filter(|state| state.id == *id))
            }
        }
    }

    pub(super) fn now(&self) -> &State {
        &self.now
    }

    /// Changes what it says, durably or, with an error, perhaps.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut State)) -> Result<()> {
        let mut next = self.now.clone();
        change(&mut next);
        let seq = self.seq + 1;
        self.file.write_all_at(&next.encode(seq), seq % 2 * LEN as u64).map_err(io)?;
        self.file.sync_data().map_err(io)?;
        (self.seq, self.now) = (seq, next);
        Ok(())
    }

    /// The same, durable with the next [`change`](Self::change).
    pub(super) fn change_soon(&mut self, change: impl FnOnce(&mut State)) {
        change(&mut self.now);
    }
}

fn newest(file: &BlockFile) -> Result<Option<(u64, State)>> {
    let mut newest: Option<(u64, State)> = None;
    for slot in 0..2 {
        let mut sector = [0; LEN];
        if file.read_at(&mut sector, slot * LEN as u64).map_err(io)? == LEN {
            let found = State::decode(&sector).map_err(|e| e.at(file.path().display()))?;
            newest = newest.into_iter().chain(found).max_by_key(|(seq, _)| *seq);
        }
    }
    Ok(newest)
}

#[cfg(test)]
mod tests {
    use blockio::fake::MemFs;
    use proptest::prelude::*;

    use super::*;

    fn state() -> State {
        let plan = Plan {
            method: Method::Random { passes: 3 },
            proof: Proof::Sample { places: 100 },
            seed: [5; 32],
        };
        let mut state = State::new([7; 16], plan, Medium::File, 1_700_000_000);
        (state.pass, state.at, state.counted) = (1, 256 << 20, true);
        state.tally = Tally { overwritten: 1, discarded: 2, shared: 3, moved: 4, read_back: 5 };
        state
    }

    #[test]
    fn golden() {
        let hex = |b: &[u8]| b.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let sector = state().encode(9);
        let head = "4642564501000201090000000000000007070707070707070707070707070707\
                    0505050505050505050505050505050505050505050505050505050505050505\
                    03000000640000000100000002010000000000100000000000f1536500000000\
                    0100000000000000020000000000000003000000000000000400000000000000\
                    0500000000000000";
        assert_eq!(hex(&sector[..136]), head, "version bump required");
        assert_eq!(hex(&sector[508..]), "ed0f069f", "version bump required");
        assert_eq!(State::decode(&sector).unwrap().unwrap(), (9, state()));
        let done = State { done: true, medium: Medium::Device, ..state() };
        assert_eq!(State::decode(&done.encode(9)).unwrap().unwrap().1, done);
    }

    #[test]
    fn what_it_does_not_know_it_names() {
        for (at, value, what) in [
            (4, 2, "version 2"),
            (6, 9, "method 9"),
            (7, 9, "proof 9"),
            (76, 9, "medium 9"),
            (77, 9, "flags 9"),
        ] {
            let mut sector = state().encode(9);
            sector[at] = value;
            let crc = crc32c::crc32c(&sector[..508]);
            sector[508..].copy_from_slice(&crc.to_le_bytes());
            let error = State::decode(&sector).unwrap_err();
            assert!(error.kind() == Kind::Unsupported && error.message().contains(what), "{error}");
        }
    }

    #[test]
    fn another_plan_begins_anew_and_another_volume_from_nothing() {
        let fs = MemFs::new().fs();
        let begin = |state: &State, was_begun| {
            Journal::begin(&fs, Path::new("/erasing"), state.clone(), was_begun)
                .unwrap()
                .now
                .clone()
        };
        let mut fresh = state();
        (fresh.pass, fresh.at, fresh.counted, fresh.tally) = (0, 0, false, Tally::default());
        assert_eq!(begin(&fresh, false), fresh);
        Journal::begin(&fs, Path::new("/erasing"), fresh.clone(), true)
            .unwrap()
            .change(|now| *now = state())
            .unwrap();
        // By its own seed, whatever is drawn now.
        let mut like = fresh.clone();
        like.plan.seed = [9; 32];
        assert_eq!(begin(&like, true), state());
        let mut other = fresh.clone();
        other.plan.method = Method::Discard;
        let anew = begin(&other, true);
        assert_eq!((anew.pass, anew.at, anew.plan), (0, 0, other.plan));
        assert_eq!(anew.tally, Tally { discarded: 2, shared: 3, moved: 4, ..Tally::default() });
        // Left from a release that came to nothing; and of a volume that was there before.
        assert_eq!(begin(&fresh, false), fresh);
        let another = State { id: [8; 16], ..fresh };
        assert_eq!(begin(&another, true), another);
    }

    proptest! {
        #[test]
        fn a_flipped_bit_is_seen(bit in 0..LEN * 8) {
            let mut sector = state().encode(5);
            sector[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(State::decode(&sector).unwrap().is_none());
        }

        #[test]
        fn any_bytes_are_read_or_refused(mut bytes in prop::collection::vec(any::<u8>(), LEN)) {
            bytes[..6].copy_from_slice(b"FBVE\x01\x00");
            let crc = crc32c::crc32c(&bytes[..508]);
            bytes[508..].copy_from_slice(&crc.to_le_bytes());
            let _ = State::decode(&bytes.try_into().unwrap());
        }
    }
}
