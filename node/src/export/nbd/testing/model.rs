//! Random operations against a server, and against an array of bytes.
//!
//! Operations that would race (one writes what the other touches) are kept apart by the client; all
//! others are under way at once. What a read gives must be what the array holds; every reply must be
//! whole; what fails must be what the disk refuses.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use blockio::Arena;
use image::Kind;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;

use super::MemDisk;
use super::client::{Ask, Told, reply, request, shake};
use crate::export::nbd::proto::Framing;
use crate::export::nbd::proto::context::{ABSENT, Context, HOLE, ZERO};
use crate::export::nbd::proto::wire::{Errno, command, command_flag};
use crate::export::nbd::{Export, Limits, Memory, Server};
use crate::export::{Disk, Stretch};

const SECTOR: u64 = 512;
/// Sectors of the disk.
const SECTORS: u64 = 2049;
/// The largest buffer, in bytes: longer requests go in pieces.
const PIECE: usize = 64 << 10;
/// Most operations of one run.
const MOST: usize = 200;

#[derive(Clone, Debug)]
struct Op {
    command: u16,
    flags: u16,
    range: Range<u64>,
    /// What the payload of a write is made of.
    seed: u8,
}

impl Op {
    fn decode(bytes: &[u8; 6]) -> Op {
        let [kind, flags, at, high, len, seed] = *bytes;
        let at = u64::from(u16::from_le_bytes([at, high])) % (SECTORS + 2) * SECTOR;
        let sectors = if kind & 0x80 == 0 { u64::from(len) % 16 } else { u64::from(len) * 4 };
        // One in many is not on a sector's boundary.
        let skew = u64::from(kind & 0x78 == 0x78) * 7;
        let command = u16::from(kind % 8);
        let allowed = match command {
            command::READ => command_flag::DF,
            command::WRITE | command::TRIM => command_flag::FUA,
            command::WRITE_ZEROES => {
                command_flag::FUA | command_flag::NO_HOLE | command_flag::FAST_ZERO
            }
            command::BLOCK_STATUS => command_flag::REQ_ONE,
            _ => 0,
        };
        let range = if command == command::FLUSH { 0..0 } else { at..at + sectors * SECTOR + skew };
        Op { command, flags: u16::from(flags) & allowed, range, seed }
    }

    fn writes(&self) -> bool {
        matches!(self.command, command::WRITE | command::TRIM | command::WRITE_ZEROES)
    }

    fn races(&self, other: &Op) -> bool {
        let (a, b) = (&self.range, &other.range);
        (self.writes() || other.writes()) && a.start < b.end && b.start < a.end
    }

    fn payload(&self) -> Vec<u8> {
        let len = self.range.end - self.range.start;
        (0..len).map(|i| self.seed.wrapping_add((i / 13) as u8)).collect()
    }

    fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// The errors that it may end with, for reasons of its own.
    fn refusals(&self, framing: Framing) -> Vec<Errno> {
        let mut errors = Vec::new();
        let beyond = self.range.end > SECTORS * SECTOR;
        let askew = !self.len().is_multiple_of(SECTOR);
        let one = self.flags & command_flag::DF != 0 && self.len() > PIECE as u64;
        let slow = self.flags & (command_flag::FAST_ZERO | command_flag::NO_HOLE)
            == command_flag::FAST_ZERO | command_flag::NO_HOLE;
        let chunks = framing != Framing::Simple;
        if self.command == command::FLUSH {
            return errors;
        }
        if self.len() == 0 || askew {
            errors.push(Errno::Einval);
        }
        if beyond {
            let room = matches!(self.command, command::WRITE | command::WRITE_ZEROES);
            errors.push(if room { Errno::Enospc } else { Errno::Einval });
        }
        if one {
            errors.push(if chunks { Errno::Eoverflow } else { Errno::Einval });
        }
        if self.flags & command_flag::DF != 0 && !chunks {
            errors.push(Errno::Einval);
        }
        if slow {
            errors.push(Errno::Enotsup);
        }
        if self.command == command::BLOCK_STATUS && !chunks {
            errors.push(Errno::Einval);
        }
        errors
    }
}

/// An operation under way.
struct Pending {
    op: Op,
    /// What of a read is there.
    covered: BTreeMap<u64, u64>,
    contexts: Vec<u32>,
    error: Option<u32>,
}

struct State {
    model: Vec<u8>,
    pending: BTreeMap<u64, Pending>,
    said_all: bool,
}

struct Run {
    disk: Rc<MemDisk>,
    framing: Framing,
    state: RefCell<State>,
    changed: Notify,
}

/// Runs the operations that `script` describes, six bytes each after the first four, which set the
/// scene: framing, how slow the disk is, where it is bad.
///
/// # Panics
///
/// If the server does not do as it should.
pub async fn run(script: &[u8]) {
    let Some((&[framing, delays, bad, sockets], ops)) = script.split_first_chunk() else { return };
    let framing =
        [Framing::Simple, Framing::Structured, Framing::Extended][usize::from(framing) % 3];
    let disk = disk(delays, bad, framing);
    let small = Arena::new("small", 4096, 8 * 4096).expect("memory");
    let large = Arena::new("large", PIECE, 3 * PIECE).expect("memory");
    let (name, description) = ("a".to_owned(), String::new());
    let export = Export { name, description, disk: Rc::clone(&disk) };
    let memory = Memory::new(small, large).expect("buffers of 64 KiB");
    let limits = Limits { connections: 1, requests: 6, ..Limits::default() };
    let server = Server::new(vec![export], memory.clone(), limits).expect("a server");
    let (mut here, there) = tokio::io::duplex(512 + usize::from(sockets) * 256);
    let client = async {
        let contexts = if framing == Framing::Simple { vec![] } else { Context::ALL.to_vec() };
        let ask = Ask { framing, contexts, ..Ask::default() };
        assert_eq!(shake(&mut here, &ask).await.0, SECTORS * SECTOR);
        let model = disk.bytes.borrow().clone();
        let state = State { model, pending: BTreeMap::new(), said_all: false };
        let run = Run { disk, framing, state: state.into(), changed: Notify::new() };
        let (mut reader, mut writer) = tokio::io::split(here);
        let ops = ops.chunks_exact(6).take(MOST).map(|op| Op::decode(op.try_into().expect("6")));
        futures::join!(run.say(&mut writer, ops), run.hear(&mut reader));
        assert_eq!(*run.disk.bytes.borrow(), run.state.borrow().model);
    };
    let (served, ()) = futures::join!(server.connection(there, std::future::pending()), client);
    served.expect("a connection that ends in order");
    assert_eq!(memory.used_bytes(), 0);
}

fn disk(delays: u8, bad: u8, framing: Framing) -> Rc<MemDisk> {
    let mut bytes: Vec<u8> = (0..SECTORS * SECTOR).map(|i| (i / 512 + i) as u8).collect();
    bytes[100 << 10..300 << 10].fill(0);
    bytes[301 << 10..302 << 10].fill(0);
    let mut disk = MemDisk::new(bytes);
    disk.marks = RefCell::new(vec![
        (100 << 10..300 << 10, Stretch::Hole),
        (301 << 10..302 << 10, Stretch::Hole),
        (500 << 10..700 << 10, Stretch::Absent),
    ]);
    disk.delays.set(u64::from(delays) * 0x9e37_79b9);
    // A simple reply that has begun cannot fail but by an end of the connection.
    if bad & 1 == 1 && framing != Framing::Simple {
        let start = u64::from(bad | 0x80) << 12;
        *disk.bad.borrow_mut() = Some((start..start + 4096, Kind::Io));
    }
    Rc::new(disk)
}

impl Run {
    async fn say(&self, writer: &mut (impl AsyncWrite + Unpin), ops: impl Iterator<Item = Op>) {
        for (cookie, op) in ops.enumerate() {
            let cookie = cookie as u64;
            // DISC is for the end; in the middle it stands for waiting until all is answered.
            let alone = op.command == command::DISC;
            let clear = |state: &State| {
                let mut pending = state.pending.values();
                if alone { pending.len() == 0 } else { !pending.any(|other| other.op.races(&op)) }
            };
            while !clear(&self.state.borrow()) {
                self.changed.notified().await;
            }
            if alone {
                continue;
            }
            let header =
                request(self.framing, (op.command, op.flags), cookie, op.range.start, op.len());
            let payload = if op.command == command::WRITE { op.payload() } else { Vec::new() };
            let (covered, contexts, error) = (BTreeMap::new(), Vec::new(), None);
            let pending = Pending { op, covered, contexts, error };
            self.state.borrow_mut().pending.insert(cookie, pending);
            writer.write_all(&header).await.expect("the server reads");
            // The rest of a write of nothing does not exist in extended framing either.
            writer.write_all(&payload).await.expect("the server reads");
        }
        let bye = request(self.framing, (command::DISC, 0), u64::MAX, 0, 0);
        writer.write_all(&bye).await.expect("the server reads");
        self.state.borrow_mut().said_all = true;
    }

    async fn hear(&self, reader: &mut (impl AsyncRead + Unpin)) {
        loop {
            let read = |cookie| {
                let state = self.state.borrow();
                let op = &state.pending[&cookie].op;
                (op.command == command::READ).then(|| (op.range.start, op.len() as u32))
            };
            match reply(reader, read).await {
                Ok((cookie, last, told)) => self.take(cookie, last, told),
                Err(error) => {
                    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
                    let state = self.state.borrow();
                    assert!(state.said_all && state.pending.is_empty(), "an early end");
                    return;
                }
            }
        }
    }

    fn take(&self, cookie: u64, last: bool, told: Told) {
        let mut state = self.state.borrow_mut();
        let State { model, pending, .. } = &mut *state;
        let this = pending.get_mut(&cookie).expect("a reply to what was asked");
        let op = this.op.clone();
        let mut cover = |at: u64, len: u64| {
            assert_eq!(op.command, command::READ);
            assert!(len > 0 && at >= op.range.start && at + len <= op.range.end);
            let before = this.covered.range(..at + len).next_back();
            assert!(before.is_none_or(|(start, len)| start + len <= at), "pieces overlap");
            this.covered.insert(at, len);
            at as usize..(at + len) as usize
        };
        match told {
            Told::Ok => assert_ne!(op.command, command::BLOCK_STATUS),
            Told::Data(at, data) => {
                let there = cover(at, data.len() as u64);
                assert!(model[there] == data[..], "wrong bytes at {at}");
            }
            Told::Hole(at, len) => {
                let there = cover(at, len.into());
                assert!(model[there].iter().all(|byte| *byte == 0), "a hole at {at}");
            }
            Told::Status(id, extents) => {
                this.contexts.push(id);
                self.check_status(id, &op, &extents);
            }
            Told::Error(errno, _) => this.error = Some(errno),
        }
        if last {
            let this = pending.remove(&cookie).expect("found above");
            self.check_end(&this, model);
            self.changed.notify_one();
        }
    }

    fn check_status(&self, id: u32, op: &Op, extents: &[(u64, u64)]) {
        let one = op.flags & command_flag::REQ_ONE != 0;
        assert!(!extents.is_empty() && (!one || extents.len() == 1));
        let mut at = op.range.start;
        for (len, flags) in extents {
            assert!(*len > 0 && at + len <= op.range.end);
            for sector in (at..at + len).step_by(SECTOR as usize) {
                let here = self.disk.stretches(sector..sector + SECTOR, 1).expect("it can tell");
                let wanted = match (id, here[0].1) {
                    (1, Stretch::Hole) => HOLE | ZERO,
                    (2, Stretch::Absent) => ABSENT,
                    _ => 0,
                };
                assert_eq!(*flags, u64::from(wanted), "context {id} at {sector}");
            }
            at += len;
        }
        assert!(one || at == op.range.end, "all of it is told");
    }

    /// Holds the end of an operation against what it should be, and takes its effect into the model.
    fn check_end(&self, this: &Pending, model: &mut [u8]) {
        let op = &this.op;
        let refusals = op.refusals(self.framing);
        let bad = self.disk.bad.borrow().as_ref().is_some_and(|(bad, _)| {
            op.command != command::BLOCK_STATUS
                && bad.start < op.range.end
                && op.range.start < bad.end
        });
        let touched = op.range.start as usize..(op.range.end as usize).min(model.len());
        match this.error {
            Some(errno) if refusals.iter().any(|refusal| *refusal as u32 == errno) => return,
            Some(errno) => assert!(bad && errno == Errno::Eio as u32, "{errno} for {op:?}"),
            // What was fetched ahead may not have been tried at all.
            None => assert!(
                refusals.is_empty() && (!bad || op.command == command::CACHE),
                "{op:?} goes well"
            ),
        }
        match op.command {
            command::READ if this.error.is_none() => {
                assert_eq!(this.covered.values().sum::<u64>(), op.len(), "all of {op:?}");
            }
            command::BLOCK_STATUS => assert_eq!(this.contexts, [1, 2]),
            command::WRITE if this.error.is_some() => {
                // Some of its pieces may have been written.
                let (disk, new) = (self.disk.bytes.borrow(), op.payload());
                for (i, at) in touched.enumerate() {
                    assert!(disk[at] == model[at] || disk[at] == new[i]);
                    model[at] = disk[at];
                }
            }
            command::WRITE => model[touched].copy_from_slice(&op.payload()),
            command::TRIM | command::WRITE_ZEROES if this.error.is_none() => model[touched].fill(0),
            _ => {}
        }
        if op.flags & command_flag::FUA != 0 && this.error.is_none() {
            assert!(self.disk.flushes.get() > 0, "it lasts");
        }
    }
}
