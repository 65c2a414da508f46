//! Who gets what of a server: guests before bulk on the wire, newcomers beside slow readers, nobody more
//! than the server has.

mod common;

use std::cell::Cell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use common::{Grid, MemImage, Member, World, pull_and_check};
use forebay_stream::Client;
use forebay_stream::messages::{Limits, Message};
use forebay_stream::server::Memory;
use forebay_stream::session::control::ClientControl;
use forebay_stream::transport::client_config;
use futures::future::join_all;
use image::{ChunkSet, ChunkSink, ChunkSource, Frame, Kind, Place, Priority, ReadContext, Result};
use quinn::{Connection, RecvStream, SendStream};
use tokio::net::UdpSocket;

/// 64 KiB chunks of noise.
fn noisy(chunks: u32) -> Rc<MemImage> {
    let size = u64::from(chunks) << 16;
    MemImage::new(size, 16, |_, c, len| common::noise(u64::from(c) + 1, len))
}

/// A link: what the server sends waits in a queue that never overflows, and leaves it at this rate.
async fn link(front: UdpSocket, server: SocketAddr, bytes_per_ms: usize, queued: &Cell<usize>) {
    let back = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    back.connect(server).await.unwrap();
    let (mut buf, mut other) = (vec![0; 65_536], vec![0; 65_536]);
    let (mut queue, mut client) = (VecDeque::<Vec<u8>>::new(), None);
    let mut tick = tokio::time::interval(Duration::from_millis(1));
    let mut credit = 0usize;
    loop {
        tokio::select! {
            biased;
            got = front.recv_from(&mut buf) => {
                let (n, from) = got.unwrap();
                client = Some(from);
                back.send(&buf[..n]).await.unwrap();
            }
            got = back.recv(&mut other) => {
                queue.push_back(other[..got.unwrap()].to_vec());
            }
            _ = tick.tick() => {
                credit = (credit + bytes_per_ms).min(64 << 10);
                while queue.front().is_some_and(|packet| packet.len() <= credit) {
                    let packet = queue.pop_front().unwrap();
                    credit -= packet.len();
                    front.send_to(&packet, client.unwrap()).await.unwrap();
                }
            }
        }
        queued.set(queue.iter().map(Vec::len).sum());
    }
}

/// Counts chunks over many reads.
struct Count<'a>(&'a Cell<usize>);

impl ChunkSink for Count<'_> {
    async fn chunk(&mut self, _: u32, _: Frame) -> Result<()> {
        self.0.set(self.0.get() + 1);
        Ok(())
    }
}

async fn until(test: impl Fn() -> bool) {
    while !test() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[test]
fn a_guests_read_overtakes_bulk_on_the_wire() {
    const CHUNKS: u32 = 256;
    let mut world = World::new(noisy(CHUNKS));
    world.tuning.max_payload = 8952;
    world.run(async |grid| {
        let front = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (addr, queued) = (front.local_addr().unwrap(), Cell::new(0));
        let test = async {
            let member = grid.world.ca.member("node-1");
            let mut options = grid.options(&member, vec![grid.ticket(grid.pull_grant(), &member)]);
            options.servers = vec![addr];
            let client = Client::connect(options).await.unwrap();
            let (place, bulk) = (grid.image().place(0), Cell::new(0));
            let reads = (0..8).map(|_| async {
                while bulk.get() < usize::MAX {
                    let mut sink = Count(&bulk);
                    client.chunks(&ReadContext::default(), &place, &mut sink).await.unwrap();
                }
            });
            let guest = async || {
                let ctx = ReadContext { priority: Priority::Guest, ..ReadContext::default() };
                let one = ChunkSet::of(CHUNKS, |c| c == 7);
                let place = Place { chunks: one, ..place.clone() };
                let before = bulk.get();
                client.chunks(&ctx, &place, &mut Vec::new()).await.unwrap();
                bulk.get() - before
            };
            let guests = async {
                // 16 MB: by then the bulk's window is wide open, and its bytes fill the link's queue.
                until(|| bulk.get() > 256 && queued.get() > 384 << 10).await;
                // The first finds the queue as it is, and makes the way free for those that follow.
                guest().await;
                until(|| queued.get() < 512 << 10).await;
                for _ in 0..5 {
                    let ahead = guest().await;
                    // A MiB: what is on the link (here 9 of these chunks are usual), and the request's own
                    // way to the server meanwhile. A send window holds 128 of them.
                    assert!(ahead <= 16, "{ahead} chunks of 64 KiB came first");
                    let on = bulk.get();
                    until(|| bulk.get() > on + 4).await;
                }
            };
            tokio::select! {
                _ = join_all(reads) => {}
                () = guests => {}
            }
        };
        tokio::select! {
            () = link(front, grid.addr, 32 << 10, &queued) => {}
            () = test => {}
        }
    });
}

/// A connection that has said HELLO and shown a ticket. Its control stream must be kept.
async fn greeted(grid: &Grid, member: &Member) -> (Connection, SendStream, RecvStream) {
    let tls = client_config(member.papers()).unwrap();
    let config = grid.world.tuning.client(tls).unwrap();
    let endpoint = grid.world.tuning.client_endpoint(([127, 0, 0, 1], 0).into()).unwrap();
    let quic = endpoint.connect_with(config, grid.addr, common::SERVER).unwrap().await.unwrap();
    let (mut send, mut recv) = quic.open_bi().await.unwrap();
    let mut control = ClientControl::new(Limits::default());
    control.ticket(&grid.ticket(grid.pull_grant(), member)).unwrap();
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

#[test]
fn who_never_reads_is_lent_no_more_than_at_first_and_gives_all_back() {
    const FIRST: usize = (1 << 20) + (256 << 10);
    let mut world = World::new(noisy(64));
    world.limits.memory = Memory::new(64 << 20);
    world.tuning.connection_window = 128 << 10;
    world.tuning.stream_window = 64 << 10;
    world.run(async |grid| {
        let memory = grid.world.limits.memory.clone();
        let request =
            Message::GetChunks { ctx: ReadContext::default(), place: grid.image().place(0) };
        let mut kept = Vec::new();
        for n in 0..6 {
            let member = grid.world.ca.member(&format!("node-{n}"));
            let (quic, send, recv) = greeted(grid, &member).await;
            for _ in 0..40 {
                let (mut send, recv) = quic.open_bi().await.unwrap();
                send.write_all(&request.encode()).await.unwrap();
                kept.push((send, recv));
            }
            kept.push((send, recv));
        }
        let source = &grid.world.source;
        source.until(|s| s.started.get() >= 6 * 8).await;
        // One who reads is served beside them, and is lent more.
        let member = grid.world.ca.member("reader");
        let options = grid.options(&member, vec![grid.ticket(grid.pull_grant(), &member)]);
        let reader = Client::connect(options).await.unwrap();
        for _ in 0..3 {
            pull_and_check(&reader, grid.image()).await;
        }
        until(|| memory.lent().bytes == 7 * FIRST).await;
        let held = source.0.held.get();
        assert!(held <= 6 * FIRST, "{held} bytes in work for those who never read");
        drop((kept, reader));
        until(|| memory.lent().bytes == 0).await;
    });
}

#[test]
fn when_all_memory_is_lent_newcomers_are_told_to_come_later() {
    let mut world = World::new(noisy(4));
    // Eight connections, and two of a node.
    world.limits.memory = Memory::new(10 << 20);
    world.run(async |grid| {
        let connect = async |name: &str| {
            let member = grid.world.ca.member(name);
            let options = grid.options(&member, vec![grid.ticket(grid.pull_grant(), &member)]);
            Client::connect(options).await
        };
        let mut all = Vec::new();
        for n in 0..8 {
            all.push(connect(&format!("node-{n}")).await.unwrap());
        }
        let e = connect("node-9").await.map(|_| ()).unwrap_err();
        assert!(matches!(e.kind(), Kind::Busy(_)), "{e:?}");
        all.truncate(4);
        until(|| grid.world.limits.memory.lent().bytes <= 5 << 20).await;
        let client = connect("node-9").await.unwrap();
        pull_and_check(&client, grid.image()).await;
    });
}

#[test]
fn who_does_not_say_hello_takes_half_the_places_at_most() {
    let mut world = World::new(noisy(4));
    world.limits.connections = 8;
    world.limits.handshake = Duration::from_secs(3600);
    world.run(async |grid| {
        let tls = client_config(grid.world.ca.member("silent").papers()).unwrap();
        let config = grid.world.tuning.client(tls).unwrap();
        let endpoint = grid.world.tuning.client_endpoint(([127, 0, 0, 1], 0).into()).unwrap();
        let reader = grid.reader().await;
        let mut silent = Vec::new();
        let refused = loop {
            let connecting =
                endpoint.connect_with(config.clone(), grid.addr, common::SERVER).unwrap();
            match connecting.await {
                Ok(quic) => silent.push(quic),
                Err(e) => break e,
            }
        };
        assert_eq!(silent.len(), 4, "{refused}");
        pull_and_check(&reader, grid.image()).await;
        silent.clear();
        let member = grid.world.ca.member("node-2");
        let ticket = grid.ticket(grid.pull_grant(), &member);
        loop {
            // As soon as the server has noticed.
            match Client::connect(grid.options(&member, vec![ticket.clone()])).await {
                Ok(client) => break pull_and_check(&client, grid.image()).await,
                Err(e) => assert_eq!(e.kind(), Kind::Retry, "{e:?}"),
            }
        }
    });
}
