//! A small grid in memory: CA, certificates, one image, a server and clients on loopback.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use api::ticket::holder_of;
use api::{Grant, Ticket};
use forebay_stream::client::{Client, ClientLimits, ClientOptions};
use forebay_stream::server::{Auth, NoSink, ServerLimits, serve};
use forebay_stream::transport::{Papers, Tuning, client_config, server_config};
use image::seam::{ImagePlan, ImageSession};
use image::signing::SigningKey;
use image::{
    ChunkSet, ChunkSink, ChunkSource, Decoder, Digest, Domain, Encoder, Error, Frame, Geometry,
    ImageSink, Kind, Manifest, Place, ReadContext, Result, SectionSink, SectionTable, is_zero,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio::sync::Notify;

/// The server's name in its certificate.
pub const SERVER: &str = "cache-1.grid";

/// A certificate authority.
pub struct Ca {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A member's certificate and key.
pub struct Member {
    ca: String,
    certificate: String,
    key: String,
    /// What tickets call it.
    pub holder: Digest,
}

impl Ca {
    #[expect(clippy::disallowed_methods, reason = "keys of a test: any will do")]
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "grid");
        let certificate = params.self_signed(&key).unwrap();
        Self { pem: certificate.pem(), issuer: Issuer::new(params, key) }
    }

    #[expect(clippy::disallowed_methods, reason = "keys of a test: any will do")]
    pub fn member(&self, name: &str) -> Member {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let holder = holder_of(certificate.der());
        let (certificate, key) = (certificate.pem(), key.serialize_pem());
        Member { ca: self.pem.clone(), certificate, key, holder }
    }
}

impl Member {
    pub fn papers(&self) -> Papers<'_> {
        Papers {
            ca: self.ca.as_bytes(),
            certificate: self.certificate.as_bytes(),
            key: self.key.as_bytes(),
        }
    }

    /// The same member, who trusts another authority.
    pub fn trusting(mut self, ca: &Ca) -> Self {
        self.ca = ca.pem.clone();
        self
    }
}

/// An image with all its parts.
pub struct MemImage {
    pub id: Digest,
    pub manifest: Arc<Manifest>,
    pub tables: Vec<Arc<SectionTable>>,
    pub frames: HashMap<(u32, u32), Frame>,
    pub plain: HashMap<(u32, u32), Vec<u8>>,
}

/// Bytes that zstd cannot shrink.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        out.extend_from_slice(&x.to_le_bytes());
    }
    out.truncate(len);
    out
}

impl MemImage {
    /// A disk of `size` bytes where `fill(section, chunk, len)` says what stands in each chunk.
    pub fn new(size: u64, log2: u8, fill: impl Fn(u32, u32, usize) -> Vec<u8>) -> Rc<Self> {
        let geometry = Geometry::new(size, 512, log2).unwrap();
        let mut encoder = Encoder::new().unwrap();
        let (mut frames, mut plains, mut tables) = (HashMap::new(), HashMap::new(), Vec::new());
        for s in 0..geometry.sections() {
            let mut digests = Vec::new();
            for c in 0..geometry.chunks_in(s) {
                // An empty chunk stands for zeros, to save the tests' time.
                let plain = fill(s, c, geometry.chunk_len_at(s, c));
                if plain.is_empty() || is_zero(&plain) {
                    digests.push(Digest::ZERO);
                    continue;
                }
                let digest = Digest::of_chunk(&plain);
                digests.push(digest);
                frames.insert((s, c), encoder.encode(Domain::PUBLIC, digest, &plain));
                plains.insert((s, c), plain);
            }
            tables.push(Arc::new(SectionTable::new(Domain::PUBLIC, digests)));
        }
        let sections = tables.iter().map(|t| t.digest()).collect();
        let manifest = Arc::new(Manifest::new(Domain::PUBLIC, geometry, sections));
        Rc::new(Self { id: manifest.identity(), manifest, tables, frames, plain: plains })
    }

    /// Two sections, the last chunk short; noise, text and zeros in turn; 64 KiB chunks.
    pub fn small() -> Rc<Self> {
        Self::new((64 << 20) + (200 << 10) + 512, 16, |s, c, len| match (s, c % 3) {
            (0, _) if c > 20 => Vec::new(),
            (_, 0) => noise(u64::from(s * 1000 + c + 1), len),
            (_, 1) => vec![c as u8; len],
            _ => vec![0; len],
        })
    }

    pub fn place(&self, section: u32) -> Place {
        let digests = self.tables[section as usize].digests();
        let chunks = ChunkSet::of(digests.len() as u32, |c| !digests[c as usize].is_zero());
        Place { image: self.id, section, chunks }
    }
}

/// Gives one image, and counts.
#[derive(Clone)]
pub struct MemSource(pub Rc<MemSourceInner>);

pub struct MemSourceInner {
    pub image: Rc<MemImage>,
    /// Bytes of frames that a sink has been given and has not taken yet, and their greatest sum.
    pub held: Cell<usize>,
    pub most_held: Cell<usize>,
    /// Frames that sinks have taken.
    pub taken: Cell<usize>,
    /// Reads that were started, and dropped before they ended.
    pub started: Cell<usize>,
    pub dropped: Cell<usize>,
    /// Fails at this chunk, after the others.
    pub fail: RefCell<Option<(u32, Error)>>,
    /// Instead of ending, reads wait while this is set.
    pub hang: Cell<bool>,
    /// Gives a copy of each frame, as a cache does that reads its disk.
    pub copies: Cell<bool>,
    /// Says that something has changed.
    pub changed: Notify,
}

struct Held<'a>(&'a MemSourceInner, usize);

impl<'a> Held<'a> {
    fn new(source: &'a MemSourceInner, bytes: usize) -> Self {
        source.held.set(source.held.get() + bytes);
        source.most_held.set(source.most_held.get().max(source.held.get()));
        Self(source, bytes)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.held.set(self.0.held.get() - self.1);
    }
}

struct Running<'a>(&'a MemSourceInner, bool);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if !self.1 {
            self.0.dropped.set(self.0.dropped.get() + 1);
        }
        self.0.changed.notify_waiters();
    }
}

impl MemSource {
    pub fn new(image: Rc<MemImage>) -> Self {
        Self(Rc::new(MemSourceInner {
            image,
            held: Cell::new(0),
            most_held: Cell::new(0),
            taken: Cell::new(0),
            started: Cell::new(0),
            dropped: Cell::new(0),
            fail: RefCell::new(None),
            hang: Cell::new(false),
            copies: Cell::new(false),
            changed: Notify::new(),
        }))
    }

    /// Waits until `test` holds.
    pub async fn until(&self, test: impl Fn(&MemSourceInner) -> bool) {
        loop {
            let changed = self.0.changed.notified();
            if test(&self.0) {
                return;
            }
            changed.await;
        }
    }

    fn image(&self, id: &Digest) -> Result<&MemImage> {
        match &self.0.image {
            image if image.id == *id => Ok(image),
            _ => Err(Error::new(Kind::Gone, format!("image {id}: not here"))),
        }
    }
}

impl ChunkSource for MemSource {
    async fn manifest(&self, _: &ReadContext, image: &Digest) -> Result<Arc<Manifest>> {
        Ok(self.image(image)?.manifest.clone())
    }

    async fn section_table(
        &self,
        _: &ReadContext,
        image: &Digest,
        section: u32,
    ) -> Result<Arc<SectionTable>> {
        Ok(self.image(image)?.tables[section as usize].clone())
    }

    async fn chunks<S: ChunkSink>(
        &self,
        _: &ReadContext,
        place: &Place,
        sink: &mut S,
    ) -> Result<()> {
        let image = self.image(&place.image)?;
        self.0.started.set(self.0.started.get() + 1);
        let mut running = Running(&self.0, false);
        self.0.changed.notify_waiters();
        let fail = self.0.fail.borrow().clone();
        for chunk in place.chunks.iter() {
            if fail.as_ref().is_some_and(|(bad, _)| *bad == chunk) {
                continue;
            }
            let mut frame = image.frames[&(place.section, chunk)].clone();
            if self.0.copies.get() {
                frame = Frame::parse(frame.bytes().to_vec().into()).unwrap();
            }
            let held = Held::new(&self.0, frame.bytes().len());
            sink.chunk(chunk, frame).await?;
            drop(held);
            self.0.taken.set(self.0.taken.get() + 1);
            self.0.changed.notify_waiters();
        }
        self.until(|s| !s.hang.get()).await;
        running.1 = true;
        fail.map_or(Ok(()), |(_, e)| Err(e))
    }
}

/// What a receiver has been given.
#[derive(Default)]
pub struct Received {
    /// Who pushed, per opened session.
    pub opened: Vec<(Digest, ImagePlan)>,
    /// Chunks it has already, and so does not want.
    pub known: Vec<Digest>,
    pub chunks: BTreeMap<(u32, u32), Vec<u8>>,
    pub sealed: Vec<u32>,
    pub committed: Vec<Digest>,
    /// Sessions that were dropped.
    pub closed: usize,
    /// Sections that are or were being sealed.
    pub sealing: usize,
    /// Seals wait while this is set.
    pub hang_seal: bool,
    /// Refuses the next seal.
    pub fail_seal: Option<Error>,
    /// Refuses the next commit.
    pub fail_commit: Option<Error>,
    /// Says that it committed this.
    pub lie: Option<Digest>,
}

/// Takes images into memory.
#[derive(Clone, Default)]
pub struct MemSink {
    pub received: Rc<RefCell<Received>>,
    pub changed: Rc<Notify>,
    holder: Option<Digest>,
}

impl MemSink {
    pub fn for_holder(&self, holder: Digest) -> Self {
        Self { holder: Some(holder), ..self.clone() }
    }

    /// Waits until `test` holds.
    pub async fn until(&self, test: impl Fn(&Received) -> bool) {
        loop {
            let changed = self.changed.notified();
            if test(&self.received.borrow()) {
                return;
            }
            changed.await;
        }
    }
}

pub struct MemSession(MemSink, Geometry);

impl Drop for MemSession {
    fn drop(&mut self) {
        self.0.received.borrow_mut().closed += 1;
        self.0.changed.notify_waiters();
    }
}

pub struct MemSection {
    sink: MemSink,
    geometry: Geometry,
    section: u32,
    table: SectionTable,
    decoder: Decoder,
}

impl ImageSink for MemSink {
    type Session = MemSession;

    async fn open(&self, _: &ReadContext, plan: &ImagePlan) -> Result<MemSession> {
        let holder = self.holder.expect("made for a holder");
        self.received.borrow_mut().opened.push((holder, plan.clone()));
        Ok(MemSession(self.clone(), plan.geometry))
    }
}

impl ImageSession for MemSession {
    type Section = MemSection;

    async fn offer(&self, section: u32, table: &SectionTable) -> Result<(ChunkSet, MemSection)> {
        let received = self.0.received.borrow();
        let unknown = |d: &Digest| !d.is_zero() && !received.known.contains(d);
        let want = ChunkSet::of(table.chunks(), |c| unknown(&table.digests()[c as usize]));
        let (sink, decoder) = (self.0.clone(), Decoder::new()?);
        let section = MemSection { sink, geometry: self.1, section, table: table.clone(), decoder };
        Ok((want, section))
    }

    async fn commit(&self, manifest: &Manifest) -> Result<Digest> {
        let mut received = self.0.received.borrow_mut();
        if let Some(e) = received.fail_commit.take() {
            return Err(e);
        }
        received.committed.push(manifest.identity());
        Ok(received.lie.unwrap_or(manifest.identity()))
    }
}

impl SectionSink for MemSection {
    async fn chunk(&mut self, chunk: u32, frame: Frame) -> Result<()> {
        let mut plain = vec![0; self.geometry.chunk_len_at(self.section, chunk)];
        self.decoder.decode(&frame, &self.table.digests()[chunk as usize], &mut plain)?;
        self.sink.received.borrow_mut().chunks.insert((self.section, chunk), plain);
        self.sink.changed.notify_waiters();
        Ok(())
    }

    async fn seal(self) -> Result<()> {
        self.sink.received.borrow_mut().sealing += 1;
        self.sink.changed.notify_waiters();
        self.sink.until(|r| !r.hang_seal).await;
        let mut received = self.sink.received.borrow_mut();
        if let Some(e) = received.fail_seal.take() {
            return Err(e);
        }
        received.sealed.push(self.section);
        Ok(())
    }
}

/// A grid before its server runs.
pub struct World {
    pub ca: Ca,
    pub key: SigningKey,
    pub source: MemSource,
    pub sink: MemSink,
    /// The server's clock, in seconds since 1970.
    pub now: Arc<AtomicU64>,
    pub limits: ServerLimits,
    pub tuning: Tuning,
}

/// A grid whose server runs.
pub struct Grid {
    pub world: World,
    pub addr: SocketAddr,
    pub stop: Rc<Notify>,
}

/// When the tests' grids begin.
pub const START: u64 = 1_800_000_000;

impl World {
    #[expect(clippy::disallowed_methods, reason = "keys of a test: any will do")]
    pub fn new(image: Rc<MemImage>) -> Self {
        let limits = ServerLimits {
            drain: Duration::from_secs(5),
            handshake: Duration::from_secs(5),
            ..ServerLimits::default()
        };
        Self {
            ca: Ca::new(),
            key: SigningKey::generate().unwrap(),
            source: MemSource::new(image),
            sink: MemSink::default(),
            now: Arc::new(AtomicU64::new(START)),
            limits,
            tuning: Tuning::default(),
        }
    }

    /// Runs the server and the test on one thread, then shuts the server down.
    pub fn run(self, test: impl AsyncFnOnce(&Grid)) {
        let sink = self.sink.clone();
        self.run_with(Some(move |holder| sink.for_holder(holder)), test);
    }

    /// The same with a server that takes no images.
    pub fn run_without_sink(self, test: impl AsyncFnOnce(&Grid)) {
        self.run_with(None::<fn(Digest) -> NoSink>, test);
    }

    fn run_with<F, K>(self, sinks: Option<F>, test: impl AsyncFnOnce(&Grid))
    where
        F: Fn(Digest) -> K + Clone + 'static,
        K: ImageSink + 'static,
    {
        block_on(async {
            let stop = Rc::new(Notify::new());
            let (addr, server) = self.server(([127, 0, 0, 1], 0).into(), sinks, stop.clone());
            let grid = Grid { world: self, addr, stop };
            let test = async {
                test(&grid).await;
                grid.stop.notify_one();
            };
            tokio::join!(test, server);
        });
    }

    /// A server on an address of our choice, until `stop` is notified.
    pub fn server<F, K>(
        &self,
        addr: SocketAddr,
        sinks: Option<F>,
        stop: Rc<Notify>,
    ) -> (SocketAddr, impl Future<Output = ()> + use<F, K>)
    where
        F: Fn(Digest) -> K + Clone + 'static,
        K: ImageSink + 'static,
    {
        let tls = server_config(self.ca.member(SERVER).papers()).unwrap();
        let endpoint = self.tuning.server_endpoint(addr, tls).unwrap();
        let (addr, now) = (endpoint.local_addr().unwrap(), self.now.clone());
        let clock = Arc::new(move || now.load(Ordering::Relaxed));
        let auth = Auth { key: self.key.verifying_key(), clock, revoked: None };
        let (source, limits) = (self.source.clone(), self.limits.clone());
        let stopped = async move { stop.notified().await };
        (addr, serve(endpoint, source, sinks, auth, limits, stopped))
    }
}

/// Runs on a current-thread runtime.
pub fn block_on(future: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(future);
}

impl Grid {
    pub fn image(&self) -> &MemImage {
        &self.world.source.0.image
    }

    pub fn ticket(&self, grant: Grant, member: &Member) -> String {
        let now = self.world.now.load(Ordering::Relaxed);
        Ticket::new(grant, member.holder, now).sign(&self.world.key)
    }

    pub fn pull_grant(&self) -> Grant {
        Grant::Pull { image: self.image().id }
    }

    pub fn options(&self, member: &Member, tickets: Vec<String>) -> ClientOptions {
        let tls = client_config(member.papers()).unwrap();
        ClientOptions {
            endpoint: self.world.tuning.client_endpoint(([127, 0, 0, 1], 0).into()).unwrap(),
            config: self.world.tuning.client(tls).unwrap(),
            servers: vec![self.addr],
            server_name: SERVER.into(),
            tickets,
            limits: ClientLimits { connect: Duration::from_secs(5), ..ClientLimits::default() },
        }
    }

    /// A client that may pull the image.
    pub async fn reader(&self) -> Client {
        let member = self.world.ca.member("node-1");
        let ticket = self.ticket(self.pull_grant(), &member);
        Client::connect(self.options(&member, vec![ticket])).await.unwrap()
    }

    /// A client that may push.
    pub async fn pusher(&self) -> (Client, Digest) {
        let member = self.world.ca.member("node-2");
        let ticket = self.ticket(Grant::Push { domain: 0, parent: None }, &member);
        let client = Client::connect(self.options(&member, vec![ticket])).await.unwrap();
        (client, member.holder)
    }
}

/// Pulls a whole image and checks every plain byte.
pub async fn pull_and_check(client: &Client, image: &MemImage) {
    let ctx = ReadContext::default();
    let manifest = client.manifest(&ctx, &image.id).await.unwrap();
    assert_eq!(manifest, image.manifest);
    let mut decoder = Decoder::new().unwrap();
    let mut seen = 0;
    for section in 0..manifest.geometry().sections() {
        let table = client.section_table(&ctx, &image.id, section).await.unwrap();
        assert_eq!(table, image.tables[section as usize]);
        let mut got: Vec<(u32, Frame)> = Vec::new();
        client.chunks(&ctx, &image.place(section), &mut got).await.unwrap();
        for (chunk, frame) in got {
            let expected = &image.plain[&(section, chunk)];
            let mut plain = vec![0; expected.len()];
            decoder.decode(&frame, &table.digests()[chunk as usize], &mut plain).unwrap();
            assert_eq!(plain, *expected);
            seen += 1;
        }
    }
    assert_eq!(seen, image.frames.len());
}
