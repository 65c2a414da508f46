//! What the protocol costs on top of QUIC: a section of 256 KiB frames, pulled from a source in memory
//! through `Client`, against the same bytes on a bare quinn stream between the same two threads.
//!
//! `cargo bench -p forebay-stream` prints both, and the ratio of their medians, for three lengths of
//! packets: Ethernet's, jumbo frames', loopback's.
//!
//! With glibc's allocator half of the client's time went into page faults: a chunk's buffer is above
//! its mmap and trim thresholds, so every freed frame gave its pages back and every new one asked for
//! them again. That is the program's choice and not the protocol's, so an allocator that keeps them is
//! used here.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use api::ticket::holder_of;
use api::{Grant, Ticket};
use bytes::Bytes;
use criterion::{Criterion, Throughput};
use forebay_stream::transport::{Papers, Tuning, client_config, server_config};
use forebay_stream::{Auth, Client, ClientLimits, ClientOptions, NoSink, ServerLimits, serve};
use image::signing::SigningKey;
use image::{
    ChunkSet, ChunkSink, ChunkSource, Codec, Digest, Domain, Frame, Geometry, Manifest, Place,
    ReadContext, Result, SectionTable,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::runtime::Runtime;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CHUNKS: u32 = 256;
const CHUNK: usize = 256 << 10;
const NAME: &str = "server";
/// The time by everybody's clock, in seconds since 1970.
const NOW: u64 = 1_800_000_000;
/// Rounds of which the printed ratio is the median, after some in which the path is learned.
const ROUNDS: usize = 21;
const WARM_UP: usize = 5;
/// Longest UDP payloads: Ethernet, jumbo frames, loopback.
const PAYLOADS: [u16; 3] = [1452, 8952, 65_507];

/// One section of chunks that zstd cannot shrink.
struct Section {
    image: Digest,
    manifest: Arc<Manifest>,
    table: Arc<SectionTable>,
    frames: HashMap<u32, Frame>,
}

impl Section {
    fn new() -> Arc<Self> {
        let mut x = 1u64;
        let mut chunk = || -> Vec<u8> {
            let word = |_| {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                x.to_le_bytes()
            };
            (0..CHUNK / 8).flat_map(word).collect()
        };
        let frames: HashMap<_, _> = (0..CHUNKS)
            .map(|c| {
                let plain = chunk();
                let digest = Digest::of_chunk(&plain);
                (c, Frame::new(Codec::Raw, Domain::PUBLIC, digest, CHUNK as u32, &plain))
            })
            .collect();
        let digests = (0..CHUNKS).map(|c| frames[&c].header().digest).collect();
        let table = SectionTable::new(Domain::PUBLIC, digests);
        let geometry = Geometry::new(64 << 20, 512, 18).expect("a valid geometry");
        let manifest = Manifest::new(Domain::PUBLIC, geometry, vec![table.digest()]);
        let image = manifest.identity();
        Arc::new(Self { image, manifest: Arc::new(manifest), table: Arc::new(table), frames })
    }

    fn place(&self) -> Place {
        Place { image: self.image, section: 0, chunks: ChunkSet::of(CHUNKS, |_| true) }
    }
}

#[derive(Clone)]
struct Source(Arc<Section>);

impl ChunkSource for Source {
    async fn manifest(&self, _: &ReadContext, _: &Digest) -> Result<Arc<Manifest>> {
        Ok(self.0.manifest.clone())
    }

    async fn section_table(
        &self,
        _: &ReadContext,
        _: &Digest,
        _: u32,
    ) -> Result<Arc<SectionTable>> {
        Ok(self.0.table.clone())
    }

    async fn chunks<S: ChunkSink>(&self, _: &ReadContext, p: &Place, sink: &mut S) -> Result<()> {
        for chunk in p.chunks.iter() {
            sink.chunk(chunk, self.0.frames[&chunk].clone()).await?;
        }
        Ok(())
    }
}

/// Counts bytes.
struct Count(usize);

impl ChunkSink for Count {
    async fn chunk(&mut self, _: u32, frame: Frame) -> Result<()> {
        self.0 += frame.bytes().len();
        Ok(())
    }
}

struct Member {
    certificate: String,
    key: String,
    holder: Digest,
}

#[expect(clippy::disallowed_methods, reason = "keys of a benchmark: any will do")]
fn member(issuer: &Issuer<'_, KeyPair>) -> Member {
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec![NAME.to_owned()]).expect("valid names");
    let certificate = params.signed_by(&key, issuer).expect("a certificate");
    let holder = holder_of(certificate.der());
    Member { certificate: certificate.pem(), key: key.serialize_pem(), holder }
}

fn papers<'a>(ca: &'a str, member: &'a Member) -> Papers<'a> {
    let (certificate, key) = (member.certificate.as_bytes(), member.key.as_bytes());
    Papers { ca: ca.as_bytes(), certificate, key }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// What both ends need to know of each other.
struct Grid {
    ca: String,
    server: Member,
    node: Member,
    key: SigningKey,
    section: Arc<Section>,
}

impl Grid {
    #[expect(clippy::disallowed_methods, reason = "keys of a benchmark: any will do")]
    fn new() -> Self {
        let ca_key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::<String>::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&ca_key).expect("a certificate").pem();
        let issuer = Issuer::new(params, ca_key);
        let (server, node) = (member(&issuer), member(&issuer));
        let key = SigningKey::generate().expect("a key");
        Self { ca, server, node, key, section: Section::new() }
    }

    /// Both servers, on one thread of their own; their addresses.
    fn start_servers(&self, tuning: Tuning) -> (SocketAddr, SocketAddr) {
        let (tell, told) = std::sync::mpsc::channel();
        let tls = server_config(papers(&self.ca, &self.server)).expect("good papers");
        let auth = Auth { key: self.key.verifying_key(), clock: Arc::new(|| NOW), revoked: None };
        let section = self.section.clone();
        thread::spawn(move || {
            runtime().block_on(async {
                let any = ([127, 0, 0, 1], 0).into();
                let ours = tuning.server_endpoint(any, tls.clone()).expect("an endpoint");
                let bare = tuning.server_endpoint(any, tls).expect("an endpoint");
                let addrs = (ours.local_addr().expect("bound"), bare.local_addr().expect("bound"));
                tell.send(addrs).expect("the main thread waits");
                let source = Source(section.clone());
                let sinks = None::<fn(Digest) -> NoSink>;
                let never = std::future::pending();
                let ours = serve(ours, source, sinks, auth, ServerLimits::default(), never);
                tokio::join!(ours, bare_server(bare, section))
            });
        });
        told.recv().expect("the servers start")
    }
}

/// Writes the section to whoever opens a stream.
async fn bare_server(endpoint: quinn::Endpoint, section: Arc<Section>) {
    let connection = endpoint.accept().await.expect("one client").await.expect("a handshake");
    connection.set_max_concurrent_bi_streams(4u32.into());
    while let Ok((mut send, mut recv)) = connection.accept_bi().await {
        recv.read_to_end(8).await.expect("a request");
        for chunk in 0..CHUNKS {
            let bytes = section.frames[&chunk].bytes().clone();
            send.write_all_chunks(&mut [bytes]).await.expect("a reader");
        }
        send.finish().expect("open until now");
    }
}

async fn bare_read(connection: &quinn::Connection) -> usize {
    let (mut send, mut recv) = connection.open_bi().await.expect("a stream");
    send.write_all(b"x").await.expect("a server");
    send.finish().expect("open until now");
    let (mut pieces, mut total): ([Bytes; 32], usize) = Default::default();
    while let Some(n) = recv.read_chunks(&mut pieces).await.expect("a server") {
        total += pieces[..n].iter_mut().map(|piece| std::mem::take(piece).len()).sum::<usize>();
    }
    total
}

async fn our_read(client: &Client, place: &Place) -> usize {
    let mut count = Count(0);
    client.chunks(&ReadContext::default(), place, &mut count).await.expect("a good read");
    count.0
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
fn time(read: impl FnOnce() -> usize) -> Duration {
    let start = Instant::now();
    let total = read();
    assert_eq!(total, CHUNKS as usize * (CHUNK + 64));
    start.elapsed()
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64()
}

/// A client and a bare connection to the two servers, on this thread.
struct Pair {
    runtime: Runtime,
    client: Client,
    bare: quinn::Connection,
    place: Place,
}

impl Pair {
    fn new(grid: &Grid, max_payload: u16) -> Self {
        let tuning = Tuning { max_payload, ..Tuning::default() };
        let (ours, bare) = grid.start_servers(tuning.clone());
        let tls = client_config(papers(&grid.ca, &grid.node)).expect("good papers");
        let config = tuning.client(tls).expect("good settings");
        let grant = Grant::Pull { image: grid.section.image };
        let ticket = Ticket::new(grant, grid.node.holder, NOW).sign(&grid.key);
        let runtime = runtime();
        let (client, bare) = runtime.block_on(async {
            let endpoint = tuning.client_endpoint(([127, 0, 0, 1], 0).into()).expect("an endpoint");
            let to_bare = endpoint.connect_with(config.clone(), bare, NAME).expect("a good name");
            let options = ClientOptions {
                endpoint,
                config,
                servers: vec![ours],
                server_name: NAME.into(),
                tickets: vec![ticket],
                limits: ClientLimits::default(),
            };
            (Client::connect(options).await.expect("a server"), to_bare.await.expect("a server"))
        });
        Self { runtime, client, bare, place: grid.section.place() }
    }

    fn read_ours(&self) -> Duration {
        time(|| self.runtime.block_on(our_read(&self.client, &self.place)))
    }

    fn read_bare(&self) -> Duration {
        time(|| self.runtime.block_on(bare_read(&self.bare)))
    }

    /// In turn, so that both see the same machine.
    fn compare(&self, max_payload: u16) {
        let rounds = (0..WARM_UP + ROUNDS).map(|_| (self.read_ours(), self.read_bare()));
        let (a, b): (Vec<_>, Vec<_>) = rounds.skip(WARM_UP).unzip();
        let (a, b) = (median(a), median(b));
        let rate = |secs| f64::from(CHUNKS) * CHUNK as f64 / secs / 1e9;
        let (ours, bare, ratio) = (rate(a), rate(b), b / a);
        println!(
            "packets of {max_payload}: client {ours:.2} GB/s, bare quinn stream {bare:.2} GB/s, \
             ratio {ratio:.3}"
        );
    }
}

fn main() {
    let grid = Grid::new();
    let pair = Pair::new(&grid, Tuning::default().max_payload);
    let mut criterion = Criterion::default().sample_size(20).configure_from_args();
    let mut group = criterion.benchmark_group("throughput");
    group.throughput(Throughput::Bytes(u64::from(CHUNKS) * CHUNK as u64));
    group.bench_function("client", |b| b.iter(|| pair.read_ours()));
    group.bench_function("bare quinn stream", |b| b.iter(|| pair.read_bare()));
    group.finish();
    for max_payload in PAYLOADS {
        Pair::new(&grid, max_payload).compare(max_payload);
    }
}
