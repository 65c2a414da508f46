//! Power cuts: the embedded state over a file that remembers what was written and when it was
//! synced, opened again after every prefix of that.
//!
//! Assumed of the disk: a sync makes all before it last. Of what was not synced any part may be
//! lost, in any order; a change of the length happens whole or not at all, and so does the writing
//! of an aligned sector. Longer writes may be torn.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use api::grid::{CacheInfo, Role};
use image::Digest;
use redb::StorageBackend;

use super::disk::Disk;
use super::keys::{Keys, Versioned};
use super::{Holder, Issuer, State, Token};
use crate::archive::RefMove;

/// What is written whole or not at all, in bytes.
const SECTOR: usize = 512;
/// As long as there are no more ways than that to lose what was not synced, all are tried.
const WAYS: usize = 32;

/// What was done to the file.
#[derive(Clone)]
enum Op {
    Write(usize, Vec<u8>),
    SetLen(usize),
    Sync,
}

/// What a power cut did to an operation that was not synced.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Kept,
    Lost,
    /// Of its sectors only those are kept whose bit is set, over and over.
    Torn(u64),
}

fn apply(bytes: &mut Vec<u8>, op: &Op, fate: Fate) {
    match op {
        _ if fate == Fate::Lost => {}
        Op::Sync => {}
        Op::SetLen(len) => bytes.resize(*len, 0),
        Op::Write(at, data) => {
            bytes.resize(bytes.len().max(at + data.len()), 0);
            for (i, byte) in data.iter().enumerate() {
                let sector = (at + i) / SECTOR - at / SECTOR;
                if !matches!(fate, Fate::Torn(which) if which >> (sector % 64) & 1 == 0) {
                    bytes[at + i] = *byte;
                }
            }
        }
    }
}

/// A file in memory, and all that was done to it. Clones are the same file.
#[derive(Clone, Default)]
struct Recorded(Arc<Mutex<(Vec<u8>, Vec<Op>)>>);

impl Recorded {
    fn of(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new((bytes, Vec::new()))))
    }

    fn lock(&self) -> MutexGuard<'_, (Vec<u8>, Vec<Op>)> {
        self.0.lock().unwrap()
    }

    fn done(&self) -> usize {
        self.lock().1.len()
    }

    fn log(&self) -> Vec<Op> {
        self.lock().1.clone()
    }

    fn record(&self, op: Op) -> io::Result<()> {
        let (bytes, log) = &mut *self.lock();
        apply(bytes, &op, Fate::Kept);
        log.push(op);
        Ok(())
    }
}

impl std::fmt::Debug for Recorded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Recorded({})", self.done())
    }
}

impl StorageBackend for Recorded {
    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().0.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let at = offset as usize;
        let bytes = &self.lock().0;
        let found = bytes.get(at..at + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(found);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.record(Op::SetLen(len as usize))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.record(Op::Sync)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.record(Op::Write(offset as usize, data.to_vec()))
    }
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

/// What may have become of so many operations: all ways to lose some while there are few; beyond
/// that none, all, all but one, just one, and some by lot. And some in which writes are torn.
fn ways(pending: usize, chance: &mut Chance) -> Vec<Vec<Fate>> {
    let fate = |lost| if lost { Fate::Lost } else { Fate::Kept };
    let mut ways: Vec<Vec<Fate>> = Vec::new();
    if pending < 64 && 1 << pending <= WAYS {
        ways.extend((0..1 << pending).map(|w: usize| {
            let bits = (0..pending).map(|i| fate(w >> i & 1 == 1));
            bits.collect::<Vec<_>>()
        }));
    } else {
        for lost in [false, true] {
            ways.push(vec![fate(lost); pending]);
            ways.extend(
                (0..pending).map(|one| (0..pending).map(|i| fate((i == one) != lost)).collect()),
            );
        }
        ways.extend((0..8).map(|_| (0..pending).map(|_| fate(chance.next() & 1 == 1)).collect()));
    }
    for _ in 0..pending.min(4) {
        let mut torn = ways[chance.next() as usize % ways.len()].clone();
        torn[chance.next() as usize % pending] = Fate::Torn(chance.next());
        ways.push(torn);
    }
    ways
}

/// Every file that a power cut may leave after `start` operations or more, with the number of
/// operations that had been done.
fn crashes(base: &[u8], log: &[Op], start: usize, mut check: impl FnMut(usize, Vec<u8>)) {
    let mut chance = Chance(1);
    let (mut lasting, mut pending) = (base.to_vec(), Vec::<&Op>::new());
    for point in 0..=log.len() {
        if point >= start {
            for way in ways(pending.len(), &mut chance) {
                let mut bytes = lasting.clone();
                pending.iter().zip(way).for_each(|(op, fate)| apply(&mut bytes, op, fate));
                check(point, bytes);
            }
        }
        match log.get(point) {
            Some(Op::Sync) => {
                pending.drain(..).for_each(|op| apply(&mut lasting, op, Fate::Kept));
            }
            Some(op) => pending.push(op),
            None => {}
        }
    }
}

/// All that the state holds.
type Content = Vec<(String, Versioned)>;

async fn content(disk: &Disk) -> Content {
    disk.list(String::new()).await.expect("a state that can be read").entries
}

/// A run of the state, with what it held whenever something had been acknowledged, and after how
/// many operations on the file that was.
struct Run {
    file: Recorded,
    acknowledged: Vec<(usize, Content)>,
}

impl Run {
    async fn note(&mut self, disk: &Disk) {
        self.acknowledged.push((self.file.done(), content(disk).await));
    }

    /// That a file holds what was acknowledged last after so many operations, or what was asked
    /// for next, and opens as good as new.
    fn check(&self, runtime: &tokio::runtime::Runtime, point: usize, bytes: Vec<u8>) -> usize {
        let file = Recorded::of(bytes);
        runtime.block_on(async {
            let disk = Arc::new(Disk::over(file).unwrap_or_else(|e| panic!("after {point}: {e}")));
            let found = content(&disk).await;
            let last = self.acknowledged.iter().rposition(|(at, _)| *at <= point);
            let last = last.expect("it begins with what was acknowledged");
            let next = self.acknowledged.len().min(last + 2);
            let there = (last..next).find(|i| self.acknowledged[*i].1 == found);
            let there =
                there.unwrap_or_else(|| panic!("after {point}: neither {last} nor its next"));
            let state = State::over(disk.clone(), GRID).await.unwrap();
            state.lease_server(&server("z"), 1).await.unwrap();
            assert_eq!(state.servers(0).await.unwrap().last().unwrap().name, "z");
            there
        })
    }
}

const GRID: &str = "grid";

fn server(name: &str) -> CacheInfo {
    CacheInfo {
        name: name.into(),
        server_name: format!("{name}.forebay.internal"),
        endpoints: vec![],
        receives: false,
        api: None,
        weight: 1.0,
        draining: false,
    }
}

fn moves(seqs: std::ops::Range<u64>) -> Vec<RefMove> {
    let entry = |seq: u64| RefMove {
        seq,
        name: format!("image-{}:{}", seq % 5, seq % 40).parse().unwrap(),
        image: (seq % 7 != 3).then(|| Digest::of_chunk(&seq.to_le_bytes())),
        at: seq,
    };
    seqs.map(entry).collect()
}

/// Everything that the state acknowledges, over a file as placement has made it.
async fn run() -> Run {
    let file = Recorded::default();
    drop(Disk::over(file.clone()).unwrap());
    let mut run = Run { acknowledged: vec![(file.done(), Vec::new())], file: file.clone() };
    let disk = Arc::new(Disk::over(file.clone()).unwrap());
    let state = State::over(disk.clone(), GRID).await.unwrap();
    run.note(&disk).await;
    state.apply(&moves(1..3)).await.unwrap();
    run.note(&disk).await;
    let (used, kept) = (Digest::of_stored(b"used"), Digest::of_stored(b"kept"));
    for hash in [&used, &kept] {
        let issuer = Some(Issuer { name: "admin".into(), certificate: used });
        let token = Token { role: Role::Node, name: None, expires: 10, issuer };
        state.add_token(hash, &token).await.unwrap();
        run.note(&disk).await;
    }
    let holder =
        Holder { role: Role::Node, expires: 99, certificate: Some(used), before: None, own: false };
    state.redeem(&used, "n1", None, &holder).await.unwrap();
    run.note(&disk).await;
    state.lease_server(&server("c1"), 50).await.unwrap();
    run.note(&disk).await;
    // An orderly restart.
    drop((state, disk));
    let disk = Arc::new(Disk::over(file).unwrap());
    let state = State::over(disk.clone(), GRID).await.unwrap();
    state.apply(&moves(3..60)).await.unwrap();
    run.note(&disk).await;
    state.drop_server("c1").await.unwrap();
    run.note(&disk).await;
    let (_, seen) = state.holder("n1").await.unwrap().unwrap();
    state.remove_member("n1", Some(&seen), 9).await.unwrap();
    run.note(&disk).await;
    state.drop_expired_tokens(10).await.unwrap();
    run.note(&disk).await;
    drop((state, disk));
    run
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

#[test]
fn what_was_acknowledged_outlives_a_power_cut_at_any_instant() {
    let runtime = runtime();
    let run = runtime.block_on(run());
    let (start, log) = (run.acknowledged[0].0, run.file.log());
    let (mut seen, mut images) = (BTreeSet::new(), 0);
    crashes(&[], &log, start, |point, bytes| {
        seen.insert(run.check(&runtime, point, bytes));
        images += 1;
    });
    assert_eq!(seen.len(), run.acknowledged.len());
    assert!(images > 500, "{images}");
}

#[test]
fn a_power_cut_while_it_recovers_costs_nothing_either() {
    let runtime = runtime();
    let run = runtime.block_on(run());
    let (start, log) = (run.acknowledged[0].0, run.file.log());
    let mut nth = 0;
    crashes(&[], &log, start, |point, bytes| {
        nth += 1;
        if nth % 41 != 0 {
            return;
        }
        let file = Recorded::of(bytes.clone());
        drop(Disk::over(file.clone()).unwrap());
        crashes(&bytes, &file.log(), 0, |_, bytes| {
            run.check(&runtime, point, bytes);
        });
    });
    assert!(nth > 500, "{nth}");
}
