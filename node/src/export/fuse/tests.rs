//! A session over a socket, with a test for a kernel: what is sent and answered, without a mount.

use std::cell::RefCell;
use std::fs::File;
use std::io::{Read, Write};
use std::ops::Range;
use std::rc::Rc;

use blockio::Buf;
use image::{Error, Kind, Result};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::super::{Disk, Stretch};
use super::{Connection, Export, MOST, Options};

const SECTOR: u64 = 512;
const SIZE: u64 = 4 << 20;

/// Bytes in memory, and what was asked of them.
struct Memory {
    bytes: RefCell<Vec<u8>>,
    log: RefCell<Vec<String>>,
    read_only: bool,
    broken: Option<Kind>,
}

impl Memory {
    fn new() -> Memory {
        let bytes = RefCell::new((0..SIZE).map(|i| (i / SECTOR) as u8).collect());
        Memory { bytes, log: RefCell::default(), read_only: false, broken: None }
    }

    fn did(&self, what: &str, range: Range<u64>) -> Result<Range<usize>> {
        assert!(
            range.start.is_multiple_of(SECTOR)
                && range.end.is_multiple_of(SECTOR)
                && range.end <= SIZE
        );
        assert!(!range.is_empty(), "an empty {what}");
        self.log.borrow_mut().push(format!("{what} {range:?}"));
        match self.broken {
            Some(kind) => Err(Error::new(kind, "broken")),
            None => Ok(range.start as usize..range.end as usize),
        }
    }
}

impl Disk for Memory {
    fn size(&self) -> u64 {
        SIZE
    }

    fn sector(&self) -> u32 {
        SECTOR as u32
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    async fn read(&self, at: u64, mut buf: Buf) -> (Result<()>, Buf) {
        let range = self.did("read", at..at + buf.len() as u64);
        // Others get a turn in the middle of each operation.
        tokio::task::yield_now().await;
        let done = range.map(|range| buf.copy_from_slice(&self.bytes.borrow()[range]));
        (done, buf)
    }

    async fn write(&self, at: u64, buf: Buf) -> (Result<()>, Buf) {
        let range = self.did("write", at..at + buf.len() as u64);
        tokio::task::yield_now().await;
        let done = range.map(|range| self.bytes.borrow_mut()[range].copy_from_slice(&buf));
        (done, buf)
    }

    async fn zero(&self, range: Range<u64>, give_back: bool) -> Result<()> {
        let range = self.did(if give_back { "punch" } else { "zero" }, range)?;
        self.bytes.borrow_mut()[range].fill(0);
        Ok(())
    }

    async fn discard(&self, _: Range<u64>) -> Result<()> {
        unreachable!("nothing that FUSE sends is one")
    }

    async fn flush(&self) -> Result<()> {
        self.log.borrow_mut().push("flush".to_owned());
        self.broken.map_or(Ok(()), |kind| Err(Error::new(kind, "broken")))
    }

    fn stretches(&self, range: Range<u64>, most: usize) -> Result<Vec<(u64, Stretch)>> {
        // Alternating mebibytes.
        let kinds = [Stretch::Hole, Stretch::Data, Stretch::Hole, Stretch::Absent];
        let mut found = Vec::new();
        let mut at = range.start;
        while at < range.end && found.len() < most {
            let end = (((at >> 20) + 1) << 20).min(range.end);
            found.push((end - at, kinds[(at >> 20) as usize]));
            at = end;
        }
        Ok(found)
    }
}

const GETATTR: u32 = 3;
const SETATTR: u32 = 4;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const FSYNC: u32 = 20;
const FLUSH: u32 = 25;
const FALLOCATE: u32 = 43;
const LSEEK: u32 = 46;

/// The other end of the connection.
struct Kernel(File);

impl Kernel {
    fn send(&mut self, operation: u32, unique: u64, words: &[u64], data: &[u8]) {
        let mut bytes = Vec::new();
        let length = 40 + words.len() * 8 + data.len();
        bytes.extend((length as u32).to_ne_bytes());
        bytes.extend(operation.to_ne_bytes());
        // The root; nobody in particular.
        for word in [unique, 1, 0, 0] {
            bytes.extend(word.to_ne_bytes());
        }
        words.iter().for_each(|word| bytes.extend(word.to_ne_bytes()));
        bytes.extend(data);
        assert_eq!(self.0.write(&bytes).unwrap(), length);
    }

    /// The error (0 if none), to which request, and what came with it.
    fn receive(&mut self) -> (i32, u64, Vec<u8>) {
        let mut bytes = vec![0; MOST + 4096];
        let length = self.0.read(&mut bytes).unwrap();
        bytes.truncate(length);
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(word(0) as usize, length);
        let unique = u64::from_ne_bytes(bytes[8..16].try_into().unwrap());
        (-(word(4) as i32), unique, bytes.split_off(16))
    }

    fn ask(&mut self, operation: u32, words: &[u64], data: &[u8]) -> (i32, Vec<u8>) {
        self.send(operation, 4, words, data);
        let (error, unique, data) = self.receive();
        assert_eq!(unique, 4);
        (error, data)
    }

    fn read(&mut self, at: u64, len: u64) -> (i32, Vec<u8>) {
        self.ask(READ, &[0, at, len, 0, 0], &[])
    }

    fn write(&mut self, at: u64, data: &[u8], flags: i32) -> (i32, Vec<u8>) {
        self.ask(WRITE, &[0, at, data.len() as u64, 0, flags as u64], data)
    }

    fn fallocate(&mut self, at: u64, len: u64, mode: i32) -> i32 {
        self.ask(FALLOCATE, &[0, at, len, mode as u64], &[]).0
    }

    fn seek(&mut self, from: u64, whence: i32) -> std::result::Result<u64, i32> {
        match self.ask(LSEEK, &[0, from, whence as u64], &[]) {
            (0, at) => Ok(u64::from_ne_bytes(at[..8].try_into().unwrap())),
            (error, _) => Err(error),
        }
    }
}

/// Runs `kernel` on a thread of its own against an export of `disk`, and returns the disk. The connection is
/// one that another process left: the kernel has said hello long ago.
fn session(disk: Memory, kernel: impl FnOnce(&mut Kernel) + Send + 'static) -> Rc<Memory> {
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let thread = std::thread::spawn(move || {
        let mut at_kernel = Kernel(File::from(ours));
        // First of all what was not answered is asked for again: 7 is FUSE_NOTIFY_RESEND.
        assert_eq!(at_kernel.receive(), (-7, 0, Vec::new()));
        kernel(&mut at_kernel);
    });
    let disk = Rc::new(disk);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ended = runtime.block_on(async {
        let connection = Connection::Left(theirs);
        let options = Options { memory: 4 * MOST, ..Options::default() };
        Export::start(connection, disk.clone(), options).unwrap().run().await
    });
    thread.join().unwrap();
    // A socket ends otherwise than a mount.
    assert!(ended.is_err());
    disk
}

fn pattern(range: Range<u64>) -> Vec<u8> {
    range.map(|i| (i / SECTOR) as u8).collect()
}

#[test]
fn any_bytes_can_be_read_and_whole_sectors_are() {
    let disk = session(Memory::new(), |kernel| {
        assert_eq!(kernel.read(0, 4096), (0, pattern(0..4096)));
        assert_eq!(kernel.read(700, 1000), (0, pattern(700..1700)));
        assert_eq!(kernel.read(SIZE - 10, 4096), (0, pattern(SIZE - 10..SIZE)));
        assert_eq!(kernel.read(SIZE, 4096), (0, Vec::new()));
        assert_eq!(kernel.read(1 << 62, 4096), (0, Vec::new()));
    });
    let log = disk.log.borrow();
    assert_eq!(log[..3], ["read 0..4096", "read 512..2048", "read 4193792..4194304"]);
    assert_eq!(log.len(), 3);
}

#[test]
fn a_write_of_part_of_a_sector_keeps_the_rest() {
    let disk = session(Memory::new(), |kernel| {
        let written = |answer: (i32, Vec<u8>)| (answer.0, answer.1.first_chunk().copied());
        assert_eq!(written(kernel.write(1024, &[9; 1024], 0)), (0, Some(1024u32.to_ne_bytes())));
        assert_eq!(written(kernel.write(700, &[8; 3], 0)), (0, Some(3u32.to_ne_bytes())));
        // Less where the disk ends, and then nothing.
        assert_eq!(written(kernel.write(SIZE - 1, &[7; 5], 0)), (0, Some(1u32.to_ne_bytes())));
        assert_eq!(kernel.write(SIZE, &[7; 5], 0).0, libc::ENOSPC);
        let mut expected = pattern(0..2048);
        expected[700..703].fill(8);
        expected[1024..].fill(9);
        assert_eq!(kernel.read(0, 2048).1, expected);
        assert_eq!(kernel.read(SIZE - 2, 2).1, [(SIZE / SECTOR - 1) as u8, 7]);
    });
    assert_eq!(disk.log.borrow()[..3], ["write 1024..2048", "read 512..1024", "write 512..1024"]);
}

#[test]
fn parts_of_one_sector_that_are_written_at_once_are_all_kept() {
    session(Memory::new(), |kernel| {
        for i in 0..64 {
            let at = u64::from(i) * 8;
            kernel.send(WRITE, u64::from(i), &[0, at, 8, 0, 0], &[i; 8]);
        }
        for _ in 0..64 {
            assert_eq!(kernel.receive().0, 0);
        }
        let expected: Vec<u8> = (0..64).flat_map(|i| [i; 8]).collect();
        assert_eq!(kernel.read(0, 512).1, expected);
    });
}

#[test]
fn flushes_come_when_they_are_asked_for_and_with_synchronous_writes() {
    let disk = session(Memory::new(), |kernel| {
        assert_eq!(kernel.ask(FSYNC, &[0, 0], &[]).0, 0);
        for flags in [libc::O_DSYNC, libc::O_SYNC, libc::O_DIRECT] {
            assert_eq!(kernel.write(0, &[0; 512], flags).0, 0);
        }
    });
    let write = "write 0..512";
    assert_eq!(*disk.log.borrow(), ["flush", write, "flush", write, "flush", write]);
}

#[test]
fn zeros_are_made_and_edges_kept() {
    const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
    let disk = session(Memory::new(), |kernel| {
        assert_eq!(kernel.fallocate(1000, 3000, PUNCH), 0);
        assert_eq!(kernel.fallocate(8192, 4096, ZERO | libc::FALLOC_FL_KEEP_SIZE), 0);
        assert_eq!(kernel.fallocate(8192, 4096, ZERO), 0);
        assert_eq!(kernel.fallocate(20_000, 10, ZERO), 0);
        assert_eq!(kernel.fallocate(SIZE - 512, 1024, ZERO), libc::ENOSPC);
        assert_eq!(kernel.fallocate(SIZE - 512, 1024, PUNCH), 0);
        assert_eq!(kernel.fallocate(SIZE, 1024, PUNCH), 0);
        for mode in [0, libc::FALLOC_FL_KEEP_SIZE, libc::FALLOC_FL_COLLAPSE_RANGE] {
            assert_eq!(kernel.fallocate(0, 4096, mode), libc::EOPNOTSUPP);
        }
        let mut expected = pattern(0..4096);
        expected[1000..4000].fill(0);
        assert_eq!(kernel.read(0, 4096).1, expected);
    });
    let log = disk.log.borrow();
    assert!(log.contains(&"punch 1024..3584".to_owned()));
    assert_eq!(log.iter().filter(|did| *did == "zero 8192..12288").count(), 2);
    assert!(log.contains(&"punch 4193792..4194304".to_owned()));
}

#[test]
fn data_and_holes_are_found() {
    session(Memory::new(), |kernel| {
        let (data, hole) = (libc::SEEK_DATA, libc::SEEK_HOLE);
        assert_eq!(kernel.seek(0, data), Ok(1 << 20));
        assert_eq!(kernel.seek(10, hole), Ok(10));
        assert_eq!(kernel.seek(1 << 20, hole), Ok(2 << 20));
        assert_eq!(kernel.seek((2 << 20) + 1, data), Ok(3 << 20), "what is absent is data");
        assert_eq!(kernel.seek(3 << 20, hole), Ok(SIZE));
        assert_eq!(kernel.seek(SIZE, data), Err(libc::ENXIO));
        assert_eq!(kernel.seek(0, libc::SEEK_END), Err(libc::EINVAL));
        assert_eq!(kernel.seek(u64::MAX, data), Err(libc::EINVAL));
    });
}

#[test]
fn what_a_disk_is_can_be_asked_and_not_changed() {
    session(Memory::new(), |kernel| {
        let (error, about) = kernel.ask(GETATTR, &[0, 0], &[]);
        let word = |at: usize| u64::from_ne_bytes(about[at..at + 8].try_into().unwrap());
        // After how long it is valid: inode, size, blocks (two of four mebibytes).
        assert_eq!((error, word(16), word(24), word(32)), (0, 1, SIZE, (2 << 20) / 512));
        // Mode, owner, size; and times, which nobody keeps.
        for (valid, expected) in
            [(1, libc::EPERM), (2, libc::EPERM), (8, libc::EPERM), (1 << 4 | 1 << 5, 0)]
        {
            let words = [valid, 0, 4096, 0, 0, 0, 0, 0, 0, 0, 0];
            assert_eq!(kernel.ask(SETATTR, &words, &[]).0, expected);
        }
        assert_eq!(kernel.ask(OPEN, &[libc::O_RDWR as u64], &[]).0, 0);
    });
}

#[test]
fn a_disk_that_is_not_to_be_written_is_not() {
    let disk = session(Memory { read_only: true, ..Memory::new() }, |kernel| {
        assert_eq!(kernel.ask(OPEN, &[libc::O_RDWR as u64], &[]).0, libc::EROFS);
        assert_eq!(kernel.ask(OPEN, &[libc::O_RDONLY as u64], &[]).0, 0);
        assert_eq!(kernel.write(0, &[1; 512], 0).0, libc::EROFS);
        assert_eq!(kernel.fallocate(0, 4096, libc::FALLOC_FL_ZERO_RANGE), libc::EROFS);
    });
    assert!(disk.log.borrow().is_empty());
}

#[test]
fn errors_are_told_by_what_they_mean() {
    for (kind, number) in [
        (Kind::Full, libc::ENOSPC),
        (Kind::Corrupt, libc::EIO),
        (Kind::Retry, libc::EIO),
        (Kind::Unsupported, libc::EOPNOTSUPP),
    ] {
        session(Memory { broken: Some(kind), ..Memory::new() }, move |kernel| {
            assert_eq!(kernel.read(0, 512).0, number);
            assert_eq!(kernel.write(0, &[0; 512], 0).0, number);
            assert_eq!(kernel.write(5, &[0; 5], 0).0, number);
            assert_eq!(kernel.ask(FSYNC, &[0, 0], &[]).0, number);
        });
    }
}

#[test]
fn a_request_that_comes_again_is_answered_by_the_name_it_has_then() {
    session(Memory::new(), |kernel| {
        // FUSE_UNIQUE_RESEND.
        let again = 1 << 63 | 6;
        kernel.send(READ, again, &[0, 0, 512, 0, 0], &[]);
        assert_eq!(kernel.receive(), (0, again, pattern(0..512)));
    });
}

#[test]
fn more_than_memory_holds_waits_and_is_done() {
    session(Memory::new(), |kernel| {
        // The arenas hold two each; sockets hold what is not taken.
        for i in 0..8u64 {
            kernel.send(READ, 2 * i, &[0, 0, 4096, 0, 0], &[]);
            kernel.send(WRITE, 2 * i + 1, &[0, i * 512, 512, 0, 0], &[5; 512]);
        }
        let mut seen: Vec<u64> = (0..16).map(|_| kernel.receive().1).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..16).collect::<Vec<_>>());
    });
}

#[test]
fn what_comes_after_leaving_is_left_unanswered() {
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let mut kernel = Kernel(File::from(ours));
    let disk = Rc::new(Memory::new());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let export = Export::start(Connection::Left(theirs), disk.clone(), Options::default());
        let export = export.unwrap();
        assert_eq!(kernel.receive().0, -7);
        let handle = export.handle();
        handle.leave();
        export.run().await.unwrap();
    });
    for unique in 0..100 {
        kernel.send(READ, 2 * unique, &[0, 0, 512, 0, 0], &[]);
        kernel.send(WRITE, 2 * unique + 1, &[0, 0, 512, 0, 0], &[0; 512]);
    }
    // This one needs no disk, and is answered after all that came before it was taken.
    kernel.send(FLUSH, 1000, &[0, 0, 0], &[]);
    assert_eq!(kernel.receive(), (0, 1000, Vec::new()));
    assert!(disk.log.borrow().is_empty());
}

#[test]
fn too_little_memory_is_refused() {
    let (_ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let options = Options { memory: MOST, ..Options::default() };
    let refused = Export::start(Connection::Left(theirs), Rc::new(Memory::new()), options);
    assert_eq!(refused.err().unwrap().kind(), Kind::Invalid);
}
