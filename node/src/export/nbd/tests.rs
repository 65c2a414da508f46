//! Clients of many kinds against a server over a disk in memory.

use std::future::{Future, pending};
use std::rc::Rc;

use image::Kind;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::oneshot;
use tokio::task::LocalSet;

use super::proto::Framing;
use super::proto::context::Context;
use super::proto::wire::{Errno, MAX_PAYLOAD, command, command_flag, export_flag};
use super::testing::client::{Ask, Told, reply, request, shake};
use super::testing::{MemDisk, model};
use super::{Export, Fault, Limits, Memory, Server, Socket};

const SIZE: usize = 4 << 20;

/// Runs on a clock that jumps over what would be waited for.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, future)
}

fn bytes() -> Vec<u8> {
    (0..SIZE).map(|i| (i / 512 + i) as u8).collect()
}

fn server(disk: MemDisk) -> (Server<MemDisk>, Rc<MemDisk>) {
    let disk = Rc::new(disk);
    let export = Export { name: "a".into(), description: "one".into(), disk: Rc::clone(&disk) };
    let memory = Memory::with_budget(32 << 20).unwrap();
    (Server::new(vec![export], memory, Limits::default()).unwrap(), disk)
}

/// A client and its connection, side by side.
async fn with<T>(
    disk: MemDisk,
    ask: Ask,
    client: impl AsyncFnOnce(&mut DuplexStream, u16) -> T,
) -> (T, Result<(), Fault>) {
    let (server, _) = server(disk);
    let (mut here, there) = duplex(64 << 10);
    let client = async move {
        let (_, flags) = shake(&mut here, &ask).await;
        client(&mut here, flags).await
    };
    futures::join!(client, server.connection(there, pending()))
}

fn framed(framing: Framing) -> Ask {
    Ask { framing, ..Ask::default() }
}

async fn answer(stream: &mut DuplexStream) -> (u64, bool, Told) {
    reply(stream, |_| None).await.unwrap()
}

/// Sends a request without payload and reads the one part of its reply.
async fn ask(
    stream: &mut DuplexStream,
    framing: Framing,
    what: (u16, u16),
    at: u64,
    len: u64,
) -> Told {
    stream.write_all(&request(framing, what, 7, at, len)).await.unwrap();
    let (cookie, last, told) = answer(stream).await;
    assert_eq!((cookie, last), (7, true));
    told
}

#[test]
fn a_server_that_could_not_serve_is_not_made() {
    let make = |names: &[&str], memory, connections| {
        let export = |name: &&str| Export {
            name: name.to_string(),
            description: String::new(),
            disk: Rc::new(MemDisk::new(bytes())),
        };
        let limits = Limits { connections, ..Limits::default() };
        let memory = Memory::with_budget(memory).unwrap();
        Server::new(names.iter().map(export).collect(), memory, limits).map_err(|e| e.kind())
    };
    assert!(make(&["a", "b"], 8 << 20, 16).is_ok());
    let long = "x".repeat(5000);
    let bad: [(&[&str], usize, usize); 5] =
        [(&[], 8, 16), (&["a", "a"], 8, 16), (&["a"], 8, 0), (&["a"], 8, 25), (&[&long], 8, 16)];
    for (names, mib, connections) in bad {
        assert_eq!(make(names, mib << 20, connections).err().unwrap(), Kind::Invalid);
    }
}

#[test]
fn flags_tell_what_a_disk_takes() {
    use export_flag as f;
    let flags = |read_only, framing| {
        let disk = MemDisk { read_only, ..MemDisk::new(bytes()) };
        block_on(with(disk, framed(framing), async |_: &mut DuplexStream, flags| flags)).0
    };
    let both = f::HAS_FLAGS | f::SEND_FLUSH | f::SEND_FUA | f::CAN_MULTI_CONN | f::SEND_CACHE;
    assert_eq!(flags(true, Framing::Simple), both | f::READ_ONLY);
    let writes = f::SEND_TRIM | f::SEND_WRITE_ZEROES | f::SEND_FAST_ZERO;
    assert_eq!(flags(false, Framing::Extended), both | writes | f::SEND_DF);
}

#[test]
fn nothing_is_written_to_a_disk_that_is_read_only() {
    let disk = MemDisk { read_only: true, ..MemDisk::new(bytes()) };
    let framing = Framing::Structured;
    let (told, ended) =
        block_on(with(disk, framed(framing), async |stream: &mut DuplexStream, _| {
            let write = request(framing, (command::WRITE, 0), 1, 0, 512);
            stream.write_all(&[write, vec![1; 512]].concat()).await.unwrap();
            let mut told = vec![answer(stream).await.2];
            for what in [command::WRITE_ZEROES, command::TRIM] {
                told.push(ask(stream, framing, (what, 0), 0, 512).await);
            }
            stream.write_all(&request(framing, (command::DISC, 0), 0, 0, 0)).await.unwrap();
            told
        }));
    ended.unwrap();
    assert_eq!(told, vec![Told::Error(Errno::Eperm as u32, None); 3]);
}

#[test]
fn errors_of_the_disk_are_told_with_their_place() {
    let kinds = [
        (Kind::Full, Errno::Enospc),
        (Kind::Invalid, Errno::Einval),
        (Kind::Unsupported, Errno::Enotsup),
        (Kind::Denied, Errno::Eperm),
        (Kind::Cancelled, Errno::Eshutdown),
        (Kind::Corrupt, Errno::Eio),
    ];
    for (kind, errno) in kinds {
        let disk = MemDisk::new(bytes());
        *disk.bad.borrow_mut() = Some((4096..8192, kind));
        let framing = Framing::Extended;
        let told = async |stream: &mut DuplexStream, _| {
            [
                ask(stream, framing, (command::READ, 0), 4096, 512).await,
                ask(stream, framing, (command::WRITE_ZEROES, 0), 0, 8192).await,
                ask(stream, framing, (command::FLUSH, 0), 0, 0).await,
            ]
        };
        let (told, _) = block_on(with(disk, framed(framing), told));
        let errno = errno as u32;
        let wanted = [Told::Error(errno, Some(4096)), Told::Error(errno, None), Told::Ok];
        assert_eq!(told, wanted);
    }
}

#[test]
fn a_simple_reply_that_fails_late_ends_the_connection_and_one_that_fails_early_does_not() {
    let late = MemDisk::new(bytes());
    *late.bad.borrow_mut() = Some((1 << 20..(1 << 20) + 512, Kind::Io));
    let read = async |stream: &mut DuplexStream, _| {
        let len = 2u32 << 20;
        let header = request(Framing::Simple, (command::READ, 0), 7, 0, len.into());
        stream.write_all(&header).await.unwrap();
        let told = reply(stream, |_| Some((0, len))).await.map(|(_, _, told)| told);
        stream.shutdown().await.unwrap();
        told.ok()
    };
    let (told, ended) = block_on(with(late, Ask::default(), read));
    assert_eq!(told, None);
    assert!(matches!(ended, Err(Fault::Broken { at: 0x10_0000, .. })), "{ended:?}");
    let early = MemDisk::new(bytes());
    *early.bad.borrow_mut() = Some((0..512, Kind::Io));
    let (told, ended) = block_on(with(early, Ask::default(), read));
    assert_eq!(told, Some(Told::Error(Errno::Eio as u32, None)));
    ended.unwrap();
}

#[test]
fn a_simple_reply_whose_end_fails_first_is_an_error_and_not_begun() {
    let (server, disk) = server(MemDisk::new(bytes()));
    *disk.bad.borrow_mut() = Some((256 << 10..257 << 10, Kind::Io));
    *disk.held.borrow_mut() = Some(0..512);
    let (mut here, there) = duplex(64 << 10);
    let client = async {
        shake(&mut here, &Ask::default()).await;
        let read = request(Framing::Simple, (command::READ, 0), 7, 0, 512 << 10);
        here.write_all(&read).await.unwrap();
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        *disk.held.borrow_mut() = None;
        let told = reply(&mut here, |_| Some((0, 512 << 10))).await.unwrap().2;
        assert_eq!(told, Told::Error(Errno::Eio as u32, None));
        let read = request(Framing::Simple, (command::READ, 0), 8, 0, 512);
        here.write_all(&read).await.unwrap();
        let told = reply(&mut here, |_| Some((0, 512))).await.unwrap().2;
        assert_eq!(told, Told::Data(0, bytes()[..512].to_vec()));
        drop(here);
    };
    block_on(async { futures::join!(client, server.connection(there, pending())) }).1.unwrap();
}

#[test]
fn simple_replies_in_pieces_do_not_mix() {
    let disk = MemDisk::new(bytes());
    disk.delays.set(1);
    let long = |cookie: u64| (cookie << 10, (600 << 10) as u32);
    let reads = async |stream: &mut DuplexStream, _| {
        let all = (1..20).flat_map(|cookie| {
            let (at, len) = if cookie % 3 == 0 { (cookie << 10, 512) } else { long(cookie) };
            request(Framing::Simple, (command::READ, 0), cookie, at, len.into())
        });
        let all: Vec<u8> = all.collect();
        stream.write_all(&all).await.unwrap();
        for _ in 1..20 {
            let wanted =
                |cookie| Some(if cookie % 3 == 0 { (cookie << 10, 512) } else { long(cookie) });
            let (cookie, _, told) = reply(stream, wanted).await.unwrap();
            let (at, len) = wanted(cookie).unwrap();
            let there = at as usize..at as usize + len as usize;
            assert!(told == Told::Data(at, bytes()[there].to_vec()), "{cookie}");
        }
    };
    block_on(with(disk, Ask::default(), reads)).1.unwrap();
}

#[test]
fn who_asks_for_lasting_writes_gets_them_flushed_first() {
    for (framing, command) in [
        (Framing::Simple, command::WRITE),
        (Framing::Structured, command::TRIM),
        (Framing::Extended, command::WRITE_ZEROES),
    ] {
        let (server, disk) = server(MemDisk::new(bytes()));
        let (mut here, there) = duplex(64 << 10);
        let client = async {
            shake(&mut here, &framed(framing)).await;
            let len = 600 << 10;
            for flag in [0, command_flag::FUA] {
                here.write_all(&request(framing, (command, flag), 1, 0, len)).await.unwrap();
                if command == command::WRITE {
                    here.write_all(&vec![9; len as usize]).await.unwrap();
                }
                assert_eq!(answer(&mut here).await.2, Told::Ok);
                assert_eq!(disk.flushes.get(), u64::from(flag));
            }
            drop(here);
        };
        let ((), ended) =
            block_on(async { futures::join!(client, server.connection(there, pending())) });
        ended.unwrap();
    }
}

#[test]
fn zeros_keep_their_space_if_asked_to_and_are_refused_if_slow() {
    let (server, disk) = server(MemDisk::new(bytes()));
    let (mut here, there) = duplex(64 << 10);
    let framing = Framing::Structured;
    let client = async {
        shake(&mut here, &framed(framing)).await;
        use command_flag::{FAST_ZERO, NO_HOLE};
        let mut told = Vec::new();
        for flags in [0, NO_HOLE, FAST_ZERO, NO_HOLE | FAST_ZERO] {
            told.push(ask(&mut here, framing, (command::WRITE_ZEROES, flags), 512, 1024).await);
        }
        told.push(ask(&mut here, framing, (command::TRIM, 0), 0, 512).await);
        drop(here);
        told
    };
    let (told, _) = block_on(async { futures::join!(client, server.connection(there, pending())) });
    let slow = Told::Error(Errno::Enotsup as u32, None);
    assert_eq!(told, [Told::Ok, Told::Ok, Told::Ok, slow, Told::Ok]);
    let range = || 512..1536;
    let wanted =
        [(range(), Some(true)), (range(), Some(false)), (range(), Some(true)), (0..512, None)];
    assert_eq!(*disk.zeroed.borrow(), wanted);
}

#[test]
fn a_status_of_more_than_four_gib_is_told_in_extended_framing() {
    struct Vast;
    impl crate::export::Disk for Vast {
        fn size(&self) -> u64 {
            1 << 50
        }
        fn sector(&self) -> u32 {
            4096
        }
        fn read_only(&self) -> bool {
            false
        }
        async fn read(&self, _: u64, buf: blockio::Buf) -> (image::Result<()>, blockio::Buf) {
            (Ok(()), buf)
        }
        async fn write(&self, _: u64, buf: blockio::Buf) -> (image::Result<()>, blockio::Buf) {
            (Ok(()), buf)
        }
        async fn zero(&self, range: std::ops::Range<u64>, _: bool) -> image::Result<()> {
            assert_eq!(range, 4096..1 << 50);
            Ok(())
        }
        async fn discard(&self, _: std::ops::Range<u64>) -> image::Result<()> {
            Ok(())
        }
        async fn flush(&self) -> image::Result<()> {
            Ok(())
        }
        fn stretches(
            &self,
            range: std::ops::Range<u64>,
            _: usize,
        ) -> image::Result<Vec<(u64, crate::export::Stretch)>> {
            Ok(vec![(range.end - range.start, crate::export::Stretch::Absent)])
        }
    }
    let export = Export { name: String::new(), description: String::new(), disk: Rc::new(Vast) };
    let memory = Memory::with_budget(8 << 20).unwrap();
    let server = Server::new(vec![export], memory, Limits::default()).unwrap();
    let (mut here, there) = duplex(4096);
    let framing = Framing::Extended;
    let client = async {
        let contexts = vec![Context::Present];
        let asked = Ask { framing, contexts, ..Ask::default() };
        assert_eq!(shake(&mut here, &asked).await.0, 1 << 50);
        let rest = (1 << 50) - 4096;
        let told = ask(&mut here, framing, (command::BLOCK_STATUS, 0), 4096, rest).await;
        assert_eq!(told, Told::Status(2, vec![(rest, 1)]));
        let zeroed = ask(&mut here, framing, (command::WRITE_ZEROES, 0), 4096, rest).await;
        assert_eq!(zeroed, Told::Ok);
        let askew = ask(&mut here, framing, (command::READ, 0), 512, 512).await;
        assert_eq!(askew, Told::Error(Errno::Einval as u32, None));
        let over = ask(&mut here, framing, (command::READ, 0), 0, u64::from(MAX_PAYLOAD) * 2).await;
        assert_eq!(over, Told::Error(Errno::Eoverflow as u32, None));
        drop(here);
    };
    block_on(async { futures::join!(client, server.connection(there, pending())) }).1.unwrap();
}

#[test]
fn a_payload_that_is_too_long_or_bytes_that_are_no_request_end_the_connection() {
    let long = request(Framing::Simple, (command::WRITE, 0), 1, 0, u64::from(MAX_PAYLOAD) + 1);
    for bytes in [long, vec![0; 28]] {
        let client = async |stream: &mut DuplexStream, _| {
            stream.write_all(&bytes).await.unwrap();
            stream.read(&mut [0; 1]).await.unwrap()
        };
        let (read, ended) = block_on(with(MemDisk::new(self::bytes()), Ask::default(), client));
        assert_eq!(read, 0);
        assert!(matches!(ended, Err(Fault::Violation(_))));
    }
}

#[test]
fn a_payload_where_none_belongs_is_passed_over() {
    let framing = Framing::Extended;
    let client = async |stream: &mut DuplexStream, _| {
        let what = (command::READ, command_flag::PAYLOAD_LEN);
        stream.write_all(&request(framing, what, 7, 0, 512)).await.unwrap();
        stream.write_all(&[0xaa; 512]).await.unwrap();
        assert_eq!(answer(stream).await.2, Told::Error(Errno::Einval as u32, None));
        ask(stream, framing, (command::FLUSH, 0), 0, 0).await
    };
    let (told, ended) = block_on(with(MemDisk::new(bytes()), framed(framing), client));
    assert_eq!(told, Told::Ok);
    ended.unwrap();
}

#[test]
fn a_client_that_takes_no_replies_holds_its_share_and_loses_it_when_it_goes() {
    let (server, _) = server(MemDisk::new(bytes()));
    let memory = server.memory().clone();
    let (mut here, there) = duplex(4096);
    block_on(async {
        let client = async {
            shake(&mut here, &Ask::default()).await;
            // More than the server reads ahead.
            let many: Vec<u8> = (0..5000)
                .flat_map(|i| request(Framing::Simple, (command::READ, 0), i, 0, 256 << 10))
                .collect();
            // What does not fit is not read any more; the server has stopped.
            let stalled = tokio::time::timeout(limits().grace, here.write_all(&many)).await;
            assert!(stalled.is_err());
            assert!(memory.used_bytes() > 0 && memory.used_bytes() <= (32 << 20) / 16);
            drop(here);
        };
        let ((), ended) = futures::join!(client, server.connection(there, pending()));
        assert!(matches!(ended, Err(Fault::Socket(_))), "{ended:?}");
    });
    assert_eq!(memory.used_bytes(), 0);
}

#[test]
fn writes_of_a_client_that_goes_are_carried_through_and_its_reads_are_not_waited_for() {
    let (server, disk) = server(MemDisk::new(bytes()));
    let memory = server.memory().clone();
    *disk.held.borrow_mut() = Some(0..4096);
    let (mut here, there) = duplex(64 << 10);
    block_on(async {
        let client = async {
            shake(&mut here, &Ask::default()).await;
            let write = request(Framing::Simple, (command::WRITE, 0), 1, 0, 512);
            let reads = [(0, 512), (512, 1 << 20)]
                .map(|(at, len)| request(Framing::Simple, (command::READ, 0), 2, at, len));
            let all = [write, vec![77; 512], reads.concat()].concat();
            here.write_all(&all).await.unwrap();
            let turns = async || {
                for _ in 0..100 {
                    tokio::task::yield_now().await;
                }
            };
            turns().await;
            assert!(memory.used_bytes() > 256 << 10);
            drop(here);
            turns().await;
            assert_eq!(memory.used_bytes(), 16 << 10);
            assert_eq!(disk.bytes.borrow()[0], bytes()[0]);
            *disk.held.borrow_mut() = None;
        };
        let ((), ended) = futures::join!(client, server.connection(there, pending()));
        ended.unwrap();
    });
    assert!(disk.bytes.borrow()[..512].iter().all(|byte| *byte == 77));
    assert_eq!(memory.used_bytes(), 0);
}

fn limits() -> Limits {
    Limits::default()
}

#[test]
fn a_handshake_that_does_not_come_is_not_waited_for() {
    let (server, _) = server(MemDisk::new(bytes()));
    let (_here, there) = duplex(4096);
    let ended = block_on(server.connection(there, pending()));
    assert!(matches!(ended, Err(Fault::Slow(10))));
}

#[test]
fn an_end_answers_what_was_begun_and_lets_nobody_in() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.sock");
    let disk = MemDisk::new(bytes());
    disk.delays.set(1);
    let (server, _) = server(disk);
    block_on(async {
        let socket = Socket::bind(&path).await.unwrap();
        let (end, ended) = oneshot::channel::<()>();
        let client = async {
            let mut stream = tokio::net::UnixStream::connect(&path).await.unwrap();
            shake(&mut stream, &Ask::default()).await;
            let read = |_| Some((0, 512));
            let read_one = |cookie| request(Framing::Simple, (command::READ, 0), cookie, 0, 512);
            let all: Vec<u8> = (0..20).flat_map(read_one).collect();
            stream.write_all(&all).await.unwrap();
            // One reply shows that they have been read, all in one go, and no more than its share allows.
            reply(&mut stream, read).await.unwrap();
            end.send(()).unwrap();
            let mut answered = 1;
            while reply(&mut stream, read).await.is_ok() {
                answered += 1;
            }
            answered
        };
        let ending = async { drop(ended.await) };
        let (answered, ()) = futures::join!(client, server.serve(socket, ending));
        assert_eq!(answered, 20);
        assert!(!path.exists());
    });
}

#[test]
fn who_is_one_too_many_waits_for_a_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.sock");
    let disk = Rc::new(MemDisk::new(bytes()));
    let export = Export { name: String::new(), description: String::new(), disk };
    let limits = Limits { connections: 1, ..Limits::default() };
    let memory = Memory::with_budget(8 << 20).unwrap();
    let server = Server::new(vec![export], memory, limits).unwrap();
    block_on(async {
        let socket = Socket::bind(&path).await.unwrap();
        let (end, ended) = oneshot::channel::<()>();
        let clients = async {
            let connect = || tokio::net::UnixStream::connect(&path);
            let (mut first, mut second) = (connect().await.unwrap(), connect().await.unwrap());
            shake(&mut first, &Ask::default()).await;
            let greeted = tokio::time::timeout(limits.handshake, second.readable()).await;
            assert!(greeted.is_err());
            drop(first);
            assert_eq!(shake(&mut second, &Ask::default()).await.0, SIZE as u64);
            end.send(()).unwrap();
            assert_eq!(second.read(&mut [0; 1]).await.unwrap(), 0);
        };
        let ending = async { drop(ended.await) };
        futures::join!(clients, server.serve(socket, ending));
    });
}

fn script() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 4..4 + 6 * 60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn operations_give_what_an_array_of_bytes_would(script in script()) {
        block_on(model::run(&script));
    }

    #[test]
    fn any_bytes_at_any_cut_end_without_a_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        way in 0..4u8,
        cut in 1..50usize,
    ) {
        block_on(super::testing::hostile::run(way, cut, &bytes));
    }
}

#[test]
fn who_comes_waits_for_the_writes_that_another_left_behind() {
    let (server, disk) = server(MemDisk::new(bytes()));
    *disk.held.borrow_mut() = Some(0..4096);
    let ((mut first, there), (mut second, there_too)) = (duplex(64 << 10), duplex(64 << 10));
    let turns = async || {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    };
    block_on(async {
        let gone = async {
            shake(&mut first, &Ask::default()).await;
            let write = request(Framing::Simple, (command::WRITE, 0), 1, 0, 512);
            first.write_all(&[write, vec![77; 512]].concat()).await.unwrap();
            turns().await;
            drop(first);
            turns().await;
        };
        let next = async {
            gone.await;
            shake(&mut second, &Ask::default()).await;
            let read = request(Framing::Simple, (command::READ, 0), 2, 8192, 512);
            second.write_all(&read).await.unwrap();
            turns().await;
            let mut reply = vec![0; 16 + 512];
            let early = futures::poll!(std::pin::pin!(second.read_exact(&mut reply)));
            assert!(early.is_pending(), "nothing is done while the other's write is under way");
            *disk.held.borrow_mut() = None;
            second.read_exact(&mut reply).await.unwrap();
            assert_eq!(reply[16..], bytes()[8192..8704]);
            assert_eq!(disk.bytes.borrow()[..512], [77; 512]);
            drop(second);
        };
        let connections = futures::future::join(
            server.connection(there, pending()),
            server.connection(there_too, pending()),
        );
        let ((), (first, second)) = futures::join!(next, connections);
        first.unwrap();
        second.unwrap();
    });
}
