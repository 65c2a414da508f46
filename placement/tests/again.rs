//! A placement that dies between a request and its answer: what may be asked again is, by itself.
#![allow(missing_docs)]

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use api::goal::{DiskRoom, StatusReport};
use api::grid::Role;
use api::pool::{NewClaim, SetPool};
use common::Grid;
use image::Kind;
use placement::Client;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Goes between a client and placement. What the first clients ask arrives, and no answer comes back; then they are cut off.
struct Relay {
    address: SocketAddr,
    /// Connections so far.
    taken: Arc<AtomicU32>,
    cut: watch::Sender<bool>,
}

impl Relay {
    /// Of so many clients.
    async fn start(to: SocketAddr, deaf: u32) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (taken, cut) = (Arc::<AtomicU32>::default(), watch::Sender::new(false));
        let (counts, cuts) = (Arc::clone(&taken), cut.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(to).await.unwrap();
                let nth = counts.fetch_add(1, Ordering::SeqCst);
                let mut is_cut = cuts.subscribe();
                tokio::spawn(async move {
                    tokio::select! {
                        () = pass(client, server, nth < deaf) => {}
                        _ = is_cut.wait_for(|cut| *cut && nth < deaf) => {}
                    }
                });
            }
        });
        Self { address, taken, cut }
    }
}

/// With `mute` the server is not heard any more once the client has answered it: what follows the handshake is the answer.
async fn pass(client: TcpStream, server: TcpStream, mute: bool) {
    let ((mut from, mut to_client), (mut back, mut to_server)) =
        (client.into_split(), server.into_split());
    let (heard, asked) = (AtomicBool::new(false), AtomicBool::new(false));
    let there = async {
        let mut buf = vec![0; 64 << 10];
        while let Ok(n @ 1..) = from.read(&mut buf).await {
            asked.store(heard.load(Ordering::SeqCst), Ordering::SeqCst);
            to_server.write_all(&buf[..n]).await.unwrap();
        }
    };
    let here = async {
        let mut buf = vec![0; 64 << 10];
        while let Ok(n @ 1..) = back.read(&mut buf).await {
            heard.store(true, Ordering::SeqCst);
            if !(mute && asked.load(Ordering::SeqCst)) {
                to_client.write_all(&buf[..n]).await.unwrap();
            }
        }
    };
    tokio::select! {
        () = there => {}
        () = here => {}
    }
}

/// A pool of which a volume has to be built, on a node that never does.
async fn pool(grid: &Grid) -> Client {
    let admin = grid.admin();
    let size = 1 << 30;
    let report = StatusReport {
        run: "1".into(),
        number: 1,
        disk: DiskRoom { size, free: size },
        ..StatusReport::default()
    };
    let node = grid.client(&grid.member(Role::Node, "n1"));
    node.report("n1", &report, Duration::ZERO).await.unwrap();
    let set = SetPool { size: Some(1 << 20), ..SetPool::default() };
    admin.set_pool("web", &set).await.unwrap();
    admin
}

const LONG: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_claim_whose_answer_is_lost_is_asked_for_again_and_is_one() {
    let grid = Grid::start().await;
    let admin = pool(&grid).await;
    let relay = Relay::start(grid.address, 1).await;
    let through = Client::new(&relay.address.to_string(), &grid.admin_papers()).unwrap();
    let through = through.asking_again(LONG);
    let id = "ab".repeat(16);
    let asked = NewClaim { request: id.clone(), volume: "v".into(), node: None, only: false };
    let steps = async {
        while admin.operations().await.unwrap().operations.is_empty() {
            tokio::task::yield_now().await;
        }
        relay.cut.send_replace(true);
    };
    let (claimed, ()) = tokio::join!(through.claim("web", &asked, Duration::ZERO), steps);
    let claimed = claimed.unwrap();
    assert_eq!((&claimed.id, claimed.object.as_str()), (&id, "pools/web"));
    assert_eq!(admin.operations().await.unwrap().operations, [claimed]);
    assert_eq!(relay.taken.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn what_is_not_safe_twice_is_asked_once_and_who_is_not_there_is_not_waited_for() {
    let grid = Grid::start().await;
    let admin = pool(&grid).await;
    let relay = Relay::start(grid.address, 1).await;
    let through = Client::new(&relay.address.to_string(), &grid.admin_papers()).unwrap();
    let through = through.asking_again(LONG);
    let steps = async {
        while !admin.pools().await.unwrap().pools.is_empty() {
            tokio::task::yield_now().await;
        }
        relay.cut.send_replace(true);
    };
    let (deleted, ()) = tokio::join!(through.delete_pool("web"), steps);
    let broken = deleted.unwrap_err();
    assert!(broken.kind() == Kind::Retry && broken.message().contains("broke"), "{broken}");
    assert_eq!(relay.taken.load(Ordering::SeqCst), 1);
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let nobody = Client::new(&nobody.to_string(), &grid.admin_papers()).unwrap();
    let nobody = nobody.asking_again(10 * LONG);
    let away = tokio::time::timeout(LONG, nobody.pools()).await.expect("at once").unwrap_err();
    assert!(away.kind() == Kind::Retry && away.message().contains("running there"), "{away}");
}
