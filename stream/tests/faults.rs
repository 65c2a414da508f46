//! A network that loses, repeats, reorders and corrupts packets, and servers that come and go.

mod common;

use std::cell::Cell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use api::ticket::{GRACE_SECS, LIFETIME_SECS};
use common::{Grid, MemImage, World, block_on, pull_and_check};
use forebay_stream::{Client, NoSink};
use image::seam::{ImagePlan, ImageSession};
use image::{ChunkSource, Digest, Domain, ImageSink, Kind, ReadContext, SectionSink};
use tokio::net::UdpSocket;
use tokio::sync::Notify;

/// xorshift: the same faults for the same seed.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.next().is_multiple_of(n)
    }
}

/// What the relay did to packets.
#[derive(Debug, Default)]
struct Faults {
    dropped: Cell<u32>,
    repeated: Cell<u32>,
    altered: Cell<u32>,
    held_back: Cell<u32>,
}

fn count(cell: &Cell<u32>) {
    cell.set(cell.get() + 1);
}

/// One direction: packets go out as the faults say.
struct Lane<'a> {
    rng: Rng,
    late: VecDeque<Vec<u8>>,
    faults: &'a Faults,
}

impl Lane<'_> {
    /// What to send when `packet` arrives.
    fn pass(&mut self, mut packet: Vec<u8>) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        if self.rng.one_in(25) {
            count(&self.faults.dropped);
        } else if self.rng.one_in(20) {
            count(&self.faults.held_back);
            self.late.push_back(packet);
        } else {
            if self.rng.one_in(20) {
                count(&self.faults.altered);
                let at = self.rng.next() as usize % packet.len();
                packet[at] ^= 1 << (self.rng.next() % 8);
            }
            if self.rng.one_in(20) {
                count(&self.faults.repeated);
                out.push(packet.clone());
            }
            out.push(packet);
        }
        if self.late.len() > 3 || (!self.late.is_empty() && self.rng.one_in(4)) {
            out.extend(self.late.pop_front());
        }
        out
    }
}

/// Carries packets between one client and the server.
async fn relay(front: UdpSocket, server: SocketAddr, seed: u64, faults: &Faults) {
    let back = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    back.connect(server).await.unwrap();
    let lane = |seed| Lane { rng: Rng(seed), late: VecDeque::new(), faults };
    let (mut there, mut here) = (lane(seed | 1), lane(seed << 7 | 1));
    let (mut buf, mut other) = (vec![0; 65_536], vec![0; 65_536]);
    let mut client = None;
    loop {
        tokio::select! {
            got = front.recv_from(&mut buf) => {
                let (n, from) = got.unwrap();
                client = Some(from);
                for packet in there.pass(buf[..n].to_vec()) {
                    back.send(&packet).await.unwrap();
                }
            }
            got = back.recv(&mut other) => {
                let n = got.unwrap();
                for packet in here.pass(other[..n].to_vec()) {
                    front.send_to(&packet, client.unwrap()).await.unwrap();
                }
            }
        }
    }
}

fn plan(image: &MemImage) -> ImagePlan {
    let geometry = *image.manifest.geometry();
    ImagePlan { domain: Domain::PUBLIC, geometry, parent: None }
}

async fn push_all(client: &Client, grid: &Grid) {
    let image = grid.image();
    let session = client.open(&ReadContext::default(), &plan(image)).await.unwrap();
    for section in 0..2 {
        let table = &image.tables[section as usize];
        let (want, mut sink) = session.offer(section, table).await.unwrap();
        for chunk in want.iter() {
            sink.chunk(chunk, image.frames[&(section, chunk)].clone()).await.unwrap();
        }
        sink.seal().await.unwrap();
    }
    assert_eq!(session.commit(&image.manifest).await.unwrap(), image.id);
    let received = grid.world.sink.received.borrow();
    assert!(received.chunks.iter().all(|(at, plain)| image.plain[at] == *plain));
    assert_eq!(received.chunks.len(), image.plain.len());
}

fn through_a_bad_network(seed: u64) {
    let mut world = World::new(MemImage::small());
    // Short packets, so that there are many.
    world.tuning.max_payload = 1452;
    // The relay ends before the server: what the client says at last does not arrive.
    world.limits.drain = Duration::from_millis(100);
    world.run(async |grid| {
        let front = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (addr, faults) = (front.local_addr().unwrap(), Faults::default());
        let test = async {
            let member = grid.world.ca.member("node-1");
            let push = api::Grant::Push { domain: 0, parent: None };
            let tickets = vec![grid.ticket(grid.pull_grant(), &member), grid.ticket(push, &member)];
            let mut options = grid.options(&member, tickets);
            options.servers = vec![addr];
            options.limits.connect = Duration::from_secs(30);
            let client = Client::connect(options).await.unwrap();
            pull_and_check(&client, grid.image()).await;
            push_all(&client, grid).await;
        };
        tokio::select! {
            () = relay(front, grid.addr, seed, &faults) => {}
            () = test => {}
        }
        let Faults { dropped, repeated, altered, held_back } = &faults;
        for fault in [dropped, repeated, altered, held_back] {
            assert!(fault.get() > 3, "a network that does nothing tests nothing: {faults:?}");
        }
    });
}

#[test]
fn bytes_are_right_through_a_bad_network_1() {
    through_a_bad_network(0x9e37_79b9_7f4a_7c15);
}

#[test]
fn bytes_are_right_through_a_bad_network_2() {
    through_a_bad_network(0xd1b5_4a32_d192_ed03);
}

#[test]
fn a_client_comes_back_to_a_server_that_was_restarted() {
    let world = World::new(MemImage::small());
    block_on(async {
        let sinks = None::<fn(Digest) -> NoSink>;
        let first = Rc::new(Notify::new());
        let (addr, server) = world.server(([127, 0, 0, 1], 0).into(), sinks, first.clone());
        let grid = Grid { world, addr, stop: first.clone() };
        let client = async {
            let client = grid.reader().await;
            pull_and_check(&client, grid.image()).await;
            first.notify_one();
            client
        };
        let (client, ()) = tokio::join!(client, server);
        // Nobody is there: the caller may try again, now or after a pause.
        let place = grid.image().place(0);
        let ctx =
            ReadContext { deadline: Some(Duration::from_millis(300)), ..ReadContext::default() };
        for _ in 0..3 {
            let e = client.chunks(&ctx, &place, &mut Vec::new()).await.unwrap_err();
            assert!(matches!(e.kind(), Kind::Retry | Kind::Busy(_)), "{e:?}");
        }
        let second = Rc::new(Notify::new());
        let (_, server) = grid.world.server(addr, sinks, second.clone());
        let again = async {
            loop {
                let mut got = Vec::new();
                match client.chunks(&ReadContext::default(), &place, &mut got).await {
                    Ok(()) => break,
                    Err(e) => match e.kind() {
                        Kind::Busy(pause) => tokio::time::sleep(pause).await,
                        Kind::Retry => tokio::task::yield_now().await,
                        _ => panic!("{e:?}"),
                    },
                }
            }
            pull_and_check(&client, grid.image()).await;
            second.notify_one();
        };
        tokio::join!(again, server);
    });
}

#[test]
fn a_ticket_that_is_renewed_while_the_server_is_down_counts_when_it_is_back() {
    let world = World::new(MemImage::small());
    block_on(async {
        let sinks = None::<fn(Digest) -> NoSink>;
        let first = Rc::new(Notify::new());
        let (addr, server) = world.server(([127, 0, 0, 1], 0).into(), sinks, first.clone());
        let grid = Grid { world, addr, stop: first.clone() };
        let member = grid.world.ca.member("node-1");
        let ticket = grid.ticket(grid.pull_grant(), &member);
        let client = async {
            let client = Client::connect(grid.options(&member, vec![ticket])).await.unwrap();
            first.notify_one();
            client
        };
        let (client, ()) = tokio::join!(client, server);
        // The server's socket is closed by a task of its own.
        tokio::time::sleep(Duration::from_millis(100)).await;
        // The first ticket opens nothing any more, and nobody is there to take the second.
        let later = common::START + LIFETIME_SECS + GRACE_SECS + 1;
        grid.world.now.store(later, Ordering::Relaxed);
        let renewed = grid.ticket(grid.pull_grant(), &member);
        assert_eq!(client.add_ticket(&renewed).await.unwrap(), None);
        let second = Rc::new(Notify::new());
        let (_, server) = grid.world.server(addr, sinks, second.clone());
        let again = async {
            pull_and_check(&client, grid.image()).await;
            second.notify_one();
        };
        tokio::join!(again, server);
    });
}

#[test]
fn reads_in_flight_when_the_server_dies_can_be_tried_again() {
    World::new(MemImage::small()).run(async |grid| {
        let mut world = World::new(MemImage::small());
        world.limits.drain = Duration::from_millis(50);
        let stop = Rc::new(Notify::new());
        let sinks = None::<fn(Digest) -> NoSink>;
        let (addr, server) = world.server(([127, 0, 0, 1], 0).into(), sinks, stop.clone());
        world.source.0.hang.set(true);
        let dying = Grid { world, addr, stop };
        let read = async {
            let client = dying.reader().await;
            let place = dying.image().place(1);
            let (ctx, mut got) = (ReadContext::default(), Vec::new());
            let read = client.chunks(&ctx, &place, &mut got);
            let kill = async {
                dying.world.source.until(|s| s.started.get() == 1).await;
                dying.stop.notify_one();
            };
            let (e, ()) = tokio::join!(read, kill);
            assert_eq!(e.unwrap_err().kind(), Kind::Retry);
        };
        tokio::join!(read, server);
        assert_eq!(dying.world.source.0.dropped.get(), 1);
        pull_and_check(&grid.reader().await, grid.image()).await;
    });
}

#[test]
fn a_client_of_two_endpoints_goes_on_with_the_one_that_lives() {
    let world = World::new(MemImage::small());
    block_on(async {
        let sinks = None::<fn(Digest) -> NoSink>;
        let (one, two) = (Rc::new(Notify::new()), Rc::new(Notify::new()));
        let any = ([127, 0, 0, 1], 0).into();
        let (first, server_one) = world.server(any, sinks, one.clone());
        let (second, server_two) = world.server(any, sinks, two.clone());
        let grid = Grid { world, addr: first, stop: one.clone() };
        let test = async {
            let member = grid.world.ca.member("node-1");
            let mut options = grid.options(&member, vec![grid.ticket(grid.pull_grant(), &member)]);
            options.servers = vec![first, second];
            let client = Client::connect(options).await.unwrap();
            pull_and_check(&client, grid.image()).await;
            one.notify_one();
            for _ in 0..4 {
                let place = grid.image().place(0);
                loop {
                    let mut got = Vec::new();
                    match client.chunks(&ReadContext::default(), &place, &mut got).await {
                        Ok(()) => break,
                        Err(e) => assert_eq!(e.kind(), Kind::Retry, "{e}"),
                    }
                }
            }
            two.notify_one();
        };
        tokio::join!(test, server_one, server_two);
    });
}
