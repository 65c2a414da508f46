//! Which of a server's endpoints a client connects to.

mod common;

use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use common::{Grid, MemImage, Member, World, block_on, pull_and_check};
use forebay_stream::{Client, NoSink};
use futures::future::join_all;
use image::{ChunkSource, Digest, ReadContext};
use tokio::net::UdpSocket;
use tokio::sync::Notify;

/// Runs a server with so many endpoints, as one with so many cores, and the test beside it.
fn with_endpoints(n: usize, test: impl AsyncFnOnce(&Grid, &[SocketAddr])) {
    let world = World::new(MemImage::small());
    block_on(async {
        let (mut addresses, mut servers, mut stops) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..n {
            let (stop, sinks) = (Rc::new(Notify::new()), None::<fn(Digest) -> NoSink>);
            let (addr, server) = world.server(([127, 0, 0, 1], 0).into(), sinks, stop.clone());
            addresses.push(addr);
            servers.push(server);
            stops.push(stop);
        }
        let grid = Grid { world, addr: addresses[0], stop: stops[0].clone() };
        let test = async {
            test(&grid, &addresses).await;
            stops.iter().for_each(|stop| stop.notify_one());
        };
        tokio::join!(test, join_all(servers));
    });
}

fn connect(
    grid: &Grid,
    member: &Member,
    servers: Vec<SocketAddr>,
) -> impl Future<Output = Client> + use<> {
    let mut options = grid.options(member, vec![grid.ticket(grid.pull_grant(), member)]);
    options.servers = servers;
    async { Client::connect(options).await.unwrap() }
}

fn connections(grid: &Grid) -> usize {
    grid.world.limits.memory.lent().connections
}

/// Waits until there are so many connections: who lost a race on a slow machine is let go soon.
async fn settles_at(grid: &Grid, n: usize) {
    for _ in 0..1_000 {
        if connections(grid) == n {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{} connections, not {n}", connections(grid));
}

#[test]
fn each_core_of_a_client_connects_to_one_endpoint() {
    with_endpoints(4, async |grid, addresses| {
        let member = grid.world.ca.member("node-1");
        let mut cores = Vec::new();
        for core in 0..3 {
            let mut servers = addresses.to_vec();
            servers.rotate_left(core);
            cores.push(connect(grid, &member, servers).await);
            settles_at(grid, core + 1).await;
        }
        // Some requests at a time are no reason for another connection.
        let place = grid.image().place(0);
        for core in &cores {
            let reads = (0..8).map(|_| async {
                core.chunks(&ReadContext::default(), &place, &mut Vec::new()).await.unwrap();
            });
            join_all(reads).await;
            pull_and_check(core, grid.image()).await;
        }
        settles_at(grid, cores.len()).await;
    });
}

#[test]
fn many_requests_at_a_time_are_a_reason_for_one_more_connection() {
    with_endpoints(2, async |grid, addresses| {
        let member = grid.world.ca.member("node-1");
        let client = connect(grid, &member, addresses.to_vec()).await;
        let (place, source) = (grid.image().place(0), &grid.world.source);
        source.0.hang.set(true);
        let read = || async {
            let mut got = Vec::new();
            client.chunks(&ReadContext::default(), &place, &mut got).await
        };
        let more = async {
            while connections(grid) < 2 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            _ = join_all((0..30).map(|_| read())) => panic!("the source hangs"),
            () = more => {}
        }
    });
}

/// Carries packets between one client and a server, once it is told to begin.
async fn late_relay(front: &UdpSocket, server: SocketAddr, begin: &Notify) {
    let back = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    back.connect(server).await.unwrap();
    begin.notified().await;
    let (mut there, mut here) = (vec![0; 65_536], vec![0; 65_536]);
    let mut client = None;
    loop {
        tokio::select! {
            got = front.recv_from(&mut there) => {
                let (n, from) = got.unwrap();
                client = Some(from);
                back.send(&there[..n]).await.unwrap();
            }
            got = back.recv(&mut here) => {
                let n = got.unwrap();
                front.send_to(&here[..n], client.unwrap()).await.unwrap();
            }
        }
    }
}

#[test]
fn an_endpoint_that_answers_late_keeps_no_connection() {
    with_endpoints(2, async |grid, addresses| {
        let front = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (late, begin) = (front.local_addr().unwrap(), Notify::new());
        let test = async {
            let member = grid.world.ca.member("node-1");
            let client = connect(grid, &member, vec![late, addresses[1]]).await;
            settles_at(grid, 1).await;
            begin.notify_one();
            tokio::time::sleep(Duration::from_millis(300)).await;
            pull_and_check(&client, grid.image()).await;
            settles_at(grid, 1).await;
        };
        tokio::select! {
            () = late_relay(&front, addresses[0], &begin) => {}
            () = test => {}
        }
    });
}
