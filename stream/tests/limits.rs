//! Hostile and slow peers: nothing is taken that was not bounded first.

mod common;

use std::time::Duration;

use api::Grant;
use bytes::Bytes;
use common::{Grid, MemImage, Member, World, pull_and_check};
use forebay_stream::Client;
use forebay_stream::messages::{Limits, Message, decode};
use forebay_stream::server::Memory;
use forebay_stream::session::control::ClientControl;
use forebay_stream::transport::{client_config, close_code, stream_code};
use forebay_stream::wire::{Header, Type};
use futures::future::join_all;
use image::seam::ImagePlan;
use image::{
    ChunkSet, ChunkSink, ChunkSource, Domain, Error, Frame, Kind, Place, Priority, ReadContext,
    Result,
};
use quinn::{Connection, ConnectionError, ReadError, RecvStream, SendStream};

/// A connection with nothing said on it.
async fn silent(grid: &Grid, member: &Member) -> Connection {
    let tls = client_config(member.papers()).unwrap();
    let config = grid.world.tuning.client(tls).unwrap();
    let endpoint = grid.world.tuning.client_endpoint(([127, 0, 0, 1], 0).into()).unwrap();
    endpoint.connect_with(config, grid.addr, common::SERVER).unwrap().await.unwrap()
}

/// A connection that has said HELLO and shown a ticket to pull. Its control stream must be kept.
async fn greeted(grid: &Grid) -> (Connection, SendStream, RecvStream) {
    greeted_with(grid, grid.pull_grant()).await
}

/// The same with a ticket for something.
async fn greeted_with(grid: &Grid, grant: Grant) -> (Connection, SendStream, RecvStream) {
    let member = grid.world.ca.member("raw");
    let quic = silent(grid, &member).await;
    let (mut send, mut recv) = quic.open_bi().await.unwrap();
    let mut control = ClientControl::new(Limits::default());
    control.ticket(&grid.ticket(grant, &member)).unwrap();
    send.write_all(&control.poll_transmit().unwrap()).await.unwrap();
    let mut events = 0;
    while events < 2 {
        let piece = recv.read_chunk(1 << 16, true).await.unwrap().unwrap();
        control.receive(piece.bytes).unwrap();
        while control.poll_event().is_some() {
            events += 1;
        }
    }
    (quic, send, recv)
}

/// The ERROR with which the server answers a stream of these bytes.
async fn refusal(quic: &Connection, bytes: &[u8], finish: bool) -> Error {
    let (mut send, mut recv) = quic.open_bi().await.unwrap();
    send.write_all(bytes).await.unwrap();
    if finish {
        send.finish().unwrap();
    }
    error(&mut recv).await
}

/// The ERROR that ends a stream.
async fn error(recv: &mut RecvStream) -> Error {
    let answer: Bytes = recv.read_to_end(1 << 16).await.unwrap().into();
    match decode(&answer).unwrap().0 {
        Message::Error(e) => e,
        other => panic!("{other:?}"),
    }
}

fn get_chunks(place: &Place) -> Bytes {
    Message::GetChunks { ctx: ReadContext::default(), place: place.clone() }.encode()
}

#[test]
fn hostile_requests_are_refused_and_the_connection_lives() {
    World::new(MemImage::small()).run(async |grid| {
        let (quic, _send, _recv) = greeted(grid).await;
        let mut huge = Header { ty: Type::GetChunks, len: 0 }.to_bytes();
        huge[4..].copy_from_slice(&u32::MAX.to_le_bytes());
        let frame = Message::Frame { chunk: 0, frame: grid.image().frames[&(0, 0)].clone() };
        let offer = Message::Offer { session: 1, section: 0, table: Bytes::from_static(b"x") };
        let request = get_chunks(&grid.image().place(0));
        let cases: [(&[u8], bool, Kind, &str); 6] = [
            (&huge, false, Kind::Invalid, "length of the body"),
            (&frame.encode()[..100], false, Kind::Invalid, "FRAME where"),
            (&Message::Commit(Bytes::new()).encode(), false, Kind::Invalid, "COMMIT where"),
            (&offer.encode(), false, Kind::Gone, "no push session"),
            (&request[..request.len() - 1], true, Kind::Invalid, "ended before a whole request"),
            (b"\xff\xff\0\0\0\0\0\0", false, Kind::Unsupported, "message type 65535"),
        ];
        for (bytes, finish, kind, text) in cases {
            let e = refusal(&quic, bytes, finish).await;
            assert_eq!(e.kind(), kind, "{e}");
            assert!(e.message().contains(text), "{text}: {e}");
        }
        assert!(quic.close_reason().is_none());
        assert_eq!(grid.world.source.0.started.get(), 0);
    });
}

#[test]
fn nothing_of_an_offer_is_taken_from_who_pushes_nothing() {
    World::new(MemImage::small()).run(async |grid| {
        let (quic, _send, _recv) = greeted(grid).await;
        let lent = grid.world.limits.memory.lent();
        let longest = Type::Offer.max_body();
        let header = Header::new(Type::Offer, longest).to_bytes();
        // The answer does not wait for a body, and what comes of one is thrown away: these are far more bytes
        // than the connection's window.
        let whole = [&header[..], &vec![0; longest]].concat();
        let offers = (0..200).map(async |n| match n % 2 {
            0 => refusal(&quic, &header, false).await,
            _ => {
                let (mut send, mut recv) = quic.open_bi().await.unwrap();
                let (e, _) = futures::join!(error(&mut recv), send.write_all(&whole));
                e
            }
        });
        for e in join_all(offers).await {
            assert_eq!(e.kind(), Kind::Gone, "{e}");
        }
        assert_eq!(grid.world.limits.memory.lent(), lent);
    });
}

/// A push session on a connection; its stream.
async fn push_session(grid: &Grid, quic: &Connection) -> (SendStream, RecvStream) {
    let geometry = *grid.image().manifest.geometry();
    let plan = ImagePlan { domain: Domain::PUBLIC, geometry, parent: None };
    let (mut send, mut recv) = quic.open_bi().await.unwrap();
    let open = Message::OpenPush { ctx: ReadContext::default(), plan };
    send.write_all(&open.encode()).await.unwrap();
    recv.read_exact(&mut [0; 16]).await.unwrap();
    (send, recv)
}

#[test]
fn a_commit_takes_memory_before_its_body_and_is_not_waited_for_long() {
    let mut world = World::new(MemImage::small());
    world.limits.stall = Duration::from_secs(2);
    world.run(async |grid| {
        let (quic, _send, _recv) =
            greeted_with(grid, Grant::Push { domain: 0, parent: None }).await;
        let (mut send, mut recv) = push_session(grid, &quic).await;
        let _idle = push_session(grid, &quic).await;
        let lent = || grid.world.limits.memory.lent().bytes;
        let before = lent();
        let header = Header::new(Type::Commit, Type::Commit.max_body()).to_bytes();
        send.write_all(&header).await.unwrap();
        while lent() < before + (20 << 20) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let e = error(&mut recv).await;
        assert!(e.message().contains("nothing came for 2 s"), "{e}");
        grid.world.sink.until(|r| r.closed == 1).await;
        assert_eq!(lent(), before);
        assert!(quic.close_reason().is_none());
    });
}

#[test]
fn a_commit_for_which_there_is_no_memory_is_busy() {
    let mut world = World::new(MemImage::small());
    world.limits.memory = Memory::new(8 << 20);
    world.run(async |grid| {
        let (quic, _send, _recv) =
            greeted_with(grid, Grant::Push { domain: 0, parent: None }).await;
        let (mut send, mut recv) = push_session(grid, &quic).await;
        let header = Header::new(Type::Commit, Type::Commit.max_body()).to_bytes();
        send.write_all(&header).await.unwrap();
        let e = error(&mut recv).await;
        assert!(matches!(e.kind(), Kind::Busy(_)), "{e}");
    });
}

#[test]
fn requests_before_hello_close_the_connection() {
    World::new(MemImage::small()).run(async |grid| {
        let member = grid.world.ca.member("raw");
        let quic = silent(grid, &member).await;
        let e = refusal(&quic, &get_chunks(&grid.image().place(0)), false).await;
        assert_eq!(e.kind(), Kind::Invalid);
        assert!(e.message().contains("GET_CHUNKS where HELLO belongs"), "{e}");
        match quic.closed().await {
            ConnectionError::ApplicationClosed(a) => assert_eq!(a.error_code, close_code::PROTOCOL),
            other => panic!("{other}"),
        }
    });
}

#[test]
fn who_says_nothing_is_not_waited_for() {
    let mut world = World::new(MemImage::small());
    world.limits.handshake = Duration::from_millis(1500);
    world.run(async |grid| {
        let quic = silent(grid, &grid.world.ca.member("raw")).await;
        let (mut send, _recv) = quic.open_bi().await.unwrap();
        // The stream is there, the HELLO is not.
        send.write_all(b"\x01").await.unwrap();
        match quic.closed().await {
            ConnectionError::ApplicationClosed(a) => assert_eq!(a.error_code, close_code::TIMEOUT),
            other => panic!("{other}"),
        }
        // A request that never gets whole.
        let (quic, _send, _recv) = greeted(grid).await;
        let e = refusal(&quic, &get_chunks(&grid.image().place(0))[..9], false).await;
        assert!(e.message().contains("did not come in time"), "{e}");
    });
}

/// 64 KiB chunks of noise.
fn noisy(chunks: u32) -> std::rc::Rc<MemImage> {
    let size = u64::from(chunks) << 16;
    MemImage::new(size, 16, |_, c, len| common::noise(u64::from(c) + 1, len))
}

#[test]
fn a_slow_reader_holds_a_bounded_amount_and_slows_nobody() {
    const REQUESTS: u32 = 40;
    let mut world = World::new(noisy(64));
    world.limits.held = 1 << 20;
    world.tuning.send_window = 512 << 10;
    world.tuning.connection_window = 256 << 10;
    world.tuning.stream_window = 128 << 10;
    world.run(async |grid| {
        let (quic, _send, _recv) = greeted(grid).await;
        let place = grid.image().place(0);
        let mut kept = Vec::new();
        for _ in 0..REQUESTS {
            let (mut send, recv) = quic.open_bi().await.unwrap();
            send.write_all(&get_chunks(&place)).await.unwrap();
            kept.push((send, recv));
        }
        let source = &grid.world.source.0;
        let frame = 64 + (64 << 10);
        // Of what is lent at first three quarters are for frames in work, and of these three quarters for
        // requests that nobody waits for.
        let at_once = (576 << 10) / (frame + 960);
        grid.world.source.until(|s| s.started.get() >= at_once).await;
        let reader = grid.reader().await;
        pull_and_check(&reader, grid.image()).await;
        pull_and_check(&reader, grid.image()).await;
        assert_eq!(source.started.get(), at_once + 2, "the other requests wait for memory");
        // The last frame of the second reader was held too, for a moment.
        assert!(source.most_held.get() <= grid.world.limits.held, "{}", source.most_held.get());
        let slow = source.taken.get() - 2 * grid.image().frames.len();
        let windows = (512 << 10) + (256 << 10);
        assert!(slow * frame <= windows, "{slow} frames were taken for a reader that reads none");
        // As soon as it reads it gets everything.
        let whole = kept
            .into_iter()
            .map(|(_send, mut recv)| async move { recv.read_to_end(1 << 30).await.unwrap().len() });
        let lengths = join_all(whole).await;
        let expected = 64 * (12 + frame) + 8;
        assert!(lengths.iter().all(|n| *n == expected), "{lengths:?} of {expected}");
    });
}

/// Says when it has had so many chunks.
struct Count(std::rc::Rc<std::cell::Cell<u32>>);

impl ChunkSink for Count {
    async fn chunk(&mut self, _: u32, _: Frame) -> Result<()> {
        self.0.set(self.0.get() + 1);
        Ok(())
    }
}

#[test]
fn a_guest_does_not_wait_behind_the_background() {
    let mut world = World::new(noisy(4));
    world.limits.held = 512 << 10;
    world.limits.requests = 16;
    world.run(async |grid| {
        let member = grid.world.ca.member("node-1");
        let mut options = grid.options(&member, vec![grid.ticket(grid.pull_grant(), &member)]);
        // No read gives up and makes room.
        options.limits.answer = Duration::from_secs(3600);
        let client = Client::connect(options).await.unwrap();
        let (place, source) = (grid.image().place(0), &grid.world.source);
        // Reads that never end take every place and all memory that are not kept for guests.
        source.0.hang.set(true);
        let ctx = ReadContext::default();
        let read = || async {
            let mut got = Vec::new();
            client.chunks(&ctx, &place, &mut got).await
        };
        let background = join_all((0..30).map(|_| read()));
        let guest = async {
            source.until(|s| s.started.get() == 5).await;
            let seen = std::rc::Rc::new(std::cell::Cell::new(0));
            let ctx = ReadContext { priority: Priority::Guest, ..ReadContext::default() };
            let mut sink = Count(seen.clone());
            let read = client.chunks(&ctx, &place, &mut sink);
            let done = async {
                source.until(|s| s.taken.get() == 24).await;
                while seen.get() < 4 {
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! {
                r = read => panic!("the source hangs: {r:?}"),
                () = done => {}
            }
            assert_eq!(source.0.started.get(), 6);
        };
        tokio::select! {
            _ = background => panic!("the source hangs"),
            () = guest => {}
        }
    });
}

/// Takes nothing, for ever.
struct Stuck;

impl ChunkSink for Stuck {
    async fn chunk(&mut self, _: u32, _: Frame) -> Result<()> {
        std::future::pending().await
    }
}

#[test]
fn what_slow_readers_leave_lying_does_not_keep_a_guest_out() {
    let mut world = World::new(noisy(64));
    world.tuning.stream_window = 64 << 10;
    world.tuning.connection_window = 1 << 20;
    world.run(async |grid| {
        let client = grid.reader().await;
        let (place, source) = (grid.image().place(0), &grid.world.source);
        let reads = (0..40)
            .map(|_| async { client.chunks(&ReadContext::default(), &place, &mut Stuck).await });
        let guest = async {
            source.until(|s| s.started.get() == 12).await;
            let ctx = ReadContext { priority: Priority::Guest, ..ReadContext::default() };
            let mut got = Vec::new();
            client.chunks(&ctx, &place, &mut got).await.unwrap();
            assert_eq!(got.len(), 64);
        };
        tokio::select! {
            _ = join_all(reads) => panic!("nobody takes anything"),
            () = guest => {}
        }
    });
}

#[test]
fn more_requests_than_the_server_allows_wait_their_turn() {
    let mut world = World::new(noisy(8));
    world.limits.requests = 3;
    world.run(async |grid| {
        let client = grid.reader().await;
        let place = grid.image().place(0);
        let reads = (0..40).map(|_| async {
            let mut got = Vec::new();
            client.chunks(&ReadContext::default(), &place, &mut got).await.unwrap();
            assert_eq!(got.len(), 8);
        });
        join_all(reads).await;
    });
}

#[test]
fn a_reader_that_has_stopped_is_given_up() {
    let mut world = World::new(noisy(64));
    world.limits.stall = Duration::from_millis(200);
    world.tuning.stream_window = 128 << 10;
    world.run(async |grid| {
        let (quic, _send, _recv) = greeted(grid).await;
        let (mut send, mut recv) = quic.open_bi().await.unwrap();
        send.write_all(&get_chunks(&grid.image().place(0))).await.unwrap();
        grid.world.source.until(|s| s.dropped.get() == 1).await;
        let e = loop {
            match recv.read_chunk(usize::MAX, true).await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the answer cannot be whole"),
                Err(e) => break e,
            }
        };
        assert_eq!(e, ReadError::Reset(stream_code::STALLED));
        assert_eq!(grid.world.source.0.held.get(), 0);
    });
}

#[test]
fn connections_are_bounded_in_all_and_per_certificate() {
    let mut world = World::new(MemImage::small());
    world.limits.connections = 3;
    world.limits.per_peer = 2;
    world.run(async |grid| {
        let member = grid.world.ca.member("node-1");
        let connect = async |member: &Member| {
            let ticket = grid.ticket(grid.pull_grant(), member);
            Client::connect(grid.options(member, vec![ticket])).await
        };
        let one = connect(&member).await.unwrap();
        let _two = connect(&member).await.unwrap();
        let e = connect(&member).await.map(|_| ()).unwrap_err();
        assert!(matches!(e.kind(), Kind::Busy(_)), "{e:?}");
        let other = grid.world.ca.member("node-2");
        let three = loop {
            // The place of the refused one is free as soon as the server has noticed.
            match connect(&other).await {
                Ok(client) => break client,
                Err(e) => assert_eq!(e.kind(), Kind::Retry, "{e:?}"),
            }
        };
        let e = connect(&grid.world.ca.member("node-3")).await.map(|_| ()).unwrap_err();
        assert_eq!(e.kind(), Kind::Retry, "{e:?}");
        drop(three);
        drop(one);
        loop {
            match connect(&member).await {
                Ok(client) => break pull_and_check(&client, grid.image()).await,
                Err(e) => assert!(matches!(e.kind(), Kind::Retry | Kind::Busy(_)), "{e:?}"),
            }
        }
    });
}

#[test]
fn a_client_that_takes_short_frames_is_not_sent_long_ones() {
    World::new(noisy(4)).run(async |grid| {
        let member = grid.world.ca.member("node-1");
        let ticket = grid.ticket(grid.pull_grant(), &member);
        let mut options = grid.options(&member, vec![ticket]);
        options.limits.frame = 1000;
        let client = Client::connect(options).await.unwrap();
        let place =
            Place { image: grid.image().id, section: 0, chunks: ChunkSet::of(4, |c| c == 1) };
        let e = client.chunks(&ReadContext::default(), &place, &mut Vec::new()).await.unwrap_err();
        assert_eq!(e.kind(), Kind::Unsupported, "{e}");
        assert!(e.message().contains("the client takes 1000"), "{e}");
    });
}
