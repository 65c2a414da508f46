//! What the protocol costs on top of QUIC: a section of 256 KiB frames, pulled from a source in memory
//! through `Client`, against the same bytes on a bare quinn stream between the same two threads.
//!
//! `cargo bench -p forebay-stream` prints both, and the ratio of their medians.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
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

const CHUNKS: u32 = 256;
const CHUNK: usize = 256 << 10;
const NAME: &str = "server";
/// Rounds of which the printed ratio is the median.
const ROUNDS: usize = 15;

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

/// Both servers on one thread of their own.
fn start_servers(
    tls: Arc<rustls::ServerConfig>,
    key: &SigningKey,
    section: Arc<Section>,
) -> (SocketAddr, SocketAddr) {
    let (tell, told) = std::sync::mpsc::channel();
    let auth = Auth { key: key.verifying_key(), clock: Arc::new(|| 1_800_000_000) };
    thread::spawn(move || {
        runtime().block_on(async {
            let any = ([127, 0, 0, 1], 0).into();
            let tuning = Tuning::default();
            let ours = tuning.server_endpoint(any, tls.clone()).expect("an endpoint");
            let bare = tuning.server_endpoint(any, tls).expect("an endpoint");
            let addrs = (ours.local_addr().expect("bound"), bare.local_addr().expect("bound"));
            tell.send(addrs).expect("the main thread waits");
            let sinks = None::<fn(Digest) -> NoSink>;
            let source = Source(section.clone());
            let never = std::future::pending();
            let limits = ServerLimits::default();
            tokio::join!(
                serve(ours, source, sinks, auth, limits, never),
                bare_server(bare, section)
            )
        });
    });
    told.recv().expect("the servers start")
}

/// Writes the section to whoever opens a stream.
async fn bare_server(endpoint: quinn::Endpoint, section: Arc<Section>) {
    let connection = endpoint.accept().await.expect("one client").await.expect("a handshake");
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
        total += pieces[..n].iter().map(Bytes::len).sum::<usize>();
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

fn main() {
    let ca_key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(Vec::<String>::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&ca_key).expect("a certificate").pem();
    let issuer = Issuer::new(params, ca_key);
    let (server, node) = (member(&issuer), member(&issuer));
    let key = SigningKey::generate().expect("a key");
    let section = Section::new();
    let server_tls = server_config(papers(&ca, &server)).expect("good papers");
    let (ours, bare) = start_servers(server_tls, &key, section.clone());

    let (runtime, tuning) = (runtime(), Tuning::default());
    let tls = client_config(papers(&ca, &node)).expect("good papers");
    let config = tuning.client(tls).expect("good settings");
    let grant = Grant::Pull { image: section.image };
    let ticket = Ticket::new(grant, node.holder, 1_800_000_000).sign(&key);
    let (client, connection) = runtime.block_on(async {
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
    let place = Rc::new(section.place());
    let read_ours = || time(|| runtime.block_on(our_read(&client, &place)));
    let read_bare = || time(|| runtime.block_on(bare_read(&connection)));

    let mut criterion = Criterion::default().sample_size(20).configure_from_args();
    let mut group = criterion.benchmark_group("throughput");
    group.throughput(Throughput::Bytes(u64::from(CHUNKS) * CHUNK as u64));
    group.bench_function("client", |b| b.iter(&read_ours));
    group.bench_function("bare quinn stream", |b| b.iter(&read_bare));
    group.finish();

    let (a, b): (Vec<_>, Vec<_>) = (0..ROUNDS).map(|_| (read_ours(), read_bare())).unzip();
    let (a, b) = (median(a), median(b));
    let rate = |secs| f64::from(CHUNKS) * CHUNK as f64 / secs / 1e9;
    let (ours, bare, ratio) = (rate(a), rate(b), b / a);
    println!("client {ours:.2} GB/s, bare quinn stream {bare:.2} GB/s: ratio {ratio:.3}");
}
