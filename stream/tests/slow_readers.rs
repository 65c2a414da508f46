//! What many connections cost a server of which half never read: measured on the real process, whose clients
//! are another. A few of them; 200 with
//! `FOREBAY_E2E=1 cargo test --release -p forebay-stream --test slow_readers -- --nocapture`

mod common;

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use common::{MemImage, World, block_on};
use forebay_stream::messages::{Limits, Message};
use forebay_stream::server::Memory;
use forebay_stream::session::control::ClientControl;
use forebay_stream::transport::{Papers, Tuning, client_config};
use forebay_stream::{Client, ClientLimits, ClientOptions};
use image::{ChunkSet, ChunkSink, ChunkSource, Frame, Place, ReadContext, Result};

/// How much is measured.
struct Size {
    connections: usize,
    budget: usize,
    /// What the process may take beside the budget.
    aside: usize,
    /// Chunks that are read meanwhile.
    chunks: usize,
}

const SMALL: Size = Size { connections: 24, budget: 32 << 20, aside: 32 << 20, chunks: 400 };
const LARGE: Size =
    Size { connections: 200, budget: 256 << 20, aside: (256 << 20) / 100 * 15, chunks: 20_000 };

impl Size {
    fn of_this_run() -> &'static Self {
        if std::env::var_os("FOREBAY_E2E").is_some() { &LARGE } else { &SMALL }
    }
}

/// 256 KiB chunks of the image.
const CHUNKS: u32 = 128;
/// Requests on a connection: as many as a server takes.
const REQUESTS: usize = 64;
/// Where the process of the clients finds its papers.
const PAPERS: &str = "FOREBAY_TEST_PAPERS";

fn noisy() -> Rc<MemImage> {
    let size = u64::from(CHUNKS) << 18;
    MemImage::new(size, 18, |_, c, len| common::noise(u64::from(c) + 1, len))
}

/// Anonymous memory of this process, in bytes.
fn anonymous() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

#[test]
fn slow_readers_hold_no_more_than_the_budget() {
    let size = Size::of_this_run();
    let mut world = World::new(noisy());
    world.limits.memory = Memory::new(size.budget);
    world.source.0.copies.set(true);
    world.run(async |grid| {
        let dir = std::env::temp_dir().join(format!("forebay-slow-readers-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let write = |name: String, bytes: &[u8]| std::fs::write(dir.join(name), bytes).unwrap();
        for n in 0..size.connections {
            let member = grid.world.ca.member(&format!("node-{n}"));
            write(format!("{n}.crt"), member.papers().certificate);
            write(format!("{n}.key"), member.papers().key);
            write(format!("{n}.ticket"), grid.ticket(grid.pull_grant(), &member).as_bytes());
            write("ca.crt".into(), member.papers().ca);
        }
        write("image".into(), grid.image().id.to_string().as_bytes());
        write("address".into(), grid.addr.to_string().as_bytes());
        let before = anonymous();
        let mut clients = Command::new(std::env::current_exe().unwrap())
            .args(["clients", "--exact", "--nocapture"])
            .env(PAPERS, &dir)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let (mut peak, mut lent) = (0, 0);
        let source = &grid.world.source.0;
        // Until everybody has asked, and those who read have read for a while.
        while source.taken.get() < size.chunks && clients.try_wait().unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
            peak = peak.max(anonymous());
            lent = lent.max(grid.world.limits.memory.lent().bytes);
        }
        let ended = clients.try_wait().unwrap();
        let _ = clients.kill();
        let _ = clients.wait();
        std::fs::remove_dir_all(&dir).unwrap();
        let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
        let took = peak.saturating_sub(before);
        println!(
            "{} connections, half never read: {:.0} MiB of {:.0} MiB, {:.0} MiB lent; {} chunks",
            size.connections,
            mib(took),
            mib(size.budget),
            mib(lent),
            source.taken.get()
        );
        assert_eq!(ended, None, "the clients could not go on");
        assert!(lent >= size.connections << 20, "{lent} bytes lent: not everybody connected");
        assert!(took <= size.budget + size.aside, "{:.0} MiB", mib(took));
    });
}

/// The other process.
#[test]
fn clients() {
    let Some(dir) = std::env::var_os(PAPERS).map(PathBuf::from) else { return };
    let connections = Size::of_this_run().connections;
    block_on(async {
        let mut kept = Vec::new();
        for n in 0..connections / 2 {
            kept.push(never_reads(&dir, n).await);
        }
        let readers = (connections / 2..connections).map(|n| reads(&dir, n));
        futures::future::join_all(readers).await;
    });
}

fn text(dir: &Path, name: &str) -> String {
    std::fs::read_to_string(dir.join(name)).unwrap()
}

fn place(dir: &Path) -> Place {
    let chunks = ChunkSet::of(CHUNKS, |_| true);
    Place { image: text(dir, "image").parse().unwrap(), section: 0, chunks }
}

fn options(dir: &Path, n: usize, tuning: &Tuning) -> ClientOptions {
    let [ca, certificate, key, ticket] =
        ["ca.crt", &format!("{n}.crt"), &format!("{n}.key"), &format!("{n}.ticket")]
            .map(|name| text(dir, name));
    let papers =
        Papers { ca: ca.as_bytes(), certificate: certificate.as_bytes(), key: key.as_bytes() };
    ClientOptions {
        endpoint: tuning.client_endpoint(([127, 0, 0, 1], 0).into()).unwrap(),
        config: tuning.client(client_config(papers).unwrap()).unwrap(),
        servers: vec![text(dir, "address").parse().unwrap()],
        server_name: common::SERVER.into(),
        tickets: vec![ticket],
        limits: ClientLimits { connect: Duration::from_secs(60), ..ClientLimits::default() },
    }
}

/// Asks for everything, as often as it may, and reads nothing of it.
async fn never_reads(dir: &Path, n: usize) -> impl Sized {
    let options = options(dir, n, &Tuning { stream_window: 16 << 10, ..Tuning::default() });
    let connecting = options.endpoint.connect_with(
        options.config.clone(),
        options.servers[0],
        &options.server_name,
    );
    let quic = connecting.unwrap().await.unwrap();
    let (mut send, mut recv) = quic.open_bi().await.unwrap();
    let mut control = ClientControl::new(Limits::default());
    control.ticket(&options.tickets[0]).unwrap();
    send.write_all(&control.poll_transmit().unwrap()).await.unwrap();
    let mut events = 0;
    while events < 2 {
        let piece = recv.read_chunk(1 << 16, true).await.unwrap().unwrap();
        control.receive(piece.bytes).unwrap();
        while control.poll_event().is_some() {
            events += 1;
        }
    }
    let request = Message::GetChunks { ctx: ReadContext::default(), place: place(dir) }.encode();
    let mut kept = vec![(send, recv)];
    for _ in 0..REQUESTS {
        let (mut send, recv) = quic.open_bi().await.unwrap();
        send.write_all(&request).await.unwrap();
        kept.push((send, recv));
    }
    (quic, kept, options)
}

/// Takes chunks and forgets them.
struct Discard(Cell<u32>);

impl ChunkSink for Discard {
    async fn chunk(&mut self, _: u32, _: Frame) -> Result<()> {
        self.0.set(self.0.get() + 1);
        Ok(())
    }
}

async fn reads(dir: &Path, n: usize) {
    let client = Client::connect(options(dir, n, &Tuning::default())).await.unwrap();
    let place = place(dir);
    let requests = (0..8).map(|_| async {
        for _ in 0..u32::MAX {
            let mut sink = Discard(Cell::new(0));
            client.chunks(&ReadContext::default(), &place, &mut sink).await.unwrap();
        }
    });
    futures::future::join_all(requests).await;
}
