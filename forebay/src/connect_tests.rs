//! Sessions outlive the ticket that they were opened with.

use std::sync::atomic::{AtomicU64, Ordering};

use api::ticket::{GRACE_SECS, Grant, Ticket, holder_of};
use image::{ChunkSource, Geometry, Manifest, Place, ReadContext, SectionTable};
use placement::{Authority, Clock, Papers};
use stream::{Auth, NoSink, ServerLimits};

use super::*;
use crate::grid::{quic_client, quic_server};

/// An image of one section, of which nobody asks for more than the table.
#[derive(Clone)]
struct OneTable(Arc<Manifest>, Arc<SectionTable>);

impl ChunkSource for OneTable {
    async fn manifest(&self, _: &ReadContext, _: &Digest) -> Result<Arc<Manifest>> {
        Ok(Arc::clone(&self.0))
    }

    async fn section_table(
        &self,
        _: &ReadContext,
        _: &Digest,
        _: u32,
    ) -> Result<Arc<SectionTable>> {
        Ok(Arc::clone(&self.1))
    }

    async fn chunks<K: image::ChunkSink>(
        &self,
        _: &ReadContext,
        _: &Place,
        _: &mut K,
    ) -> Result<()> {
        unreachable!("nobody asks for chunks")
    }
}

/// A server of one image, whose clock runs ahead by `ahead` seconds.
struct Served {
    authority: Authority,
    ahead: Arc<AtomicU64>,
    node: Papers,
    image: Digest,
    cache: CacheInfo,
    _stop: tokio::sync::oneshot::Sender<()>,
}

fn now() -> u64 {
    Clock::system().now()
}

impl Served {
    fn start(dir: &std::path::Path) -> Self {
        Self::within(dir, ServerLimits::default())
    }

    fn within(dir: &std::path::Path, limits: ServerLimits) -> Self {
        let authority = Authority::open(&dir.join("ca"), now()).unwrap();
        let papers = authority.issue(api::grid::Role::Server, "c1", now()).unwrap();
        let node = authority.issue(api::grid::Role::Node, "n1", now()).unwrap();
        let geometry = Geometry::new(1 << 20, 512, 18).unwrap();
        let digests = (0..4).map(|n| Digest::of_chunk(&[n])).collect();
        let table = SectionTable::new(image::Domain::PUBLIC, digests);
        let manifest = Manifest::new(image::Domain::PUBLIC, geometry, vec![table.digest()]);
        let image = manifest.identity();
        let ahead = Arc::new(AtomicU64::new(0));
        let clock = Arc::clone(&ahead);
        let auth = Auth {
            key: authority.verifying_key(),
            clock: Arc::new(move || now() + clock.load(Ordering::Relaxed)),
            revoked: None,
        };
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let tls = quic_server(&placement::Shown::new(papers).unwrap()).unwrap();
        let endpoint = Tuning::default().server_endpoint(address, tls).unwrap();
        let address = endpoint.local_addr().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        tokio::task::spawn_local(async move {
            let source = OneTable(Arc::new(manifest), Arc::new(table));
            let shutdown = async { drop(stopped.await) };
            stream::serve(endpoint, source, None::<fn(Digest) -> NoSink>, auth, limits, shutdown)
                .await;
        });
        let cache = CacheInfo {
            name: "c1".into(),
            server_name: "c1.forebay.internal".into(),
            endpoints: vec![address],
            receives: false,
            api: None,
            weight: 1.0,
            draining: false,
        };
        Self { authority, ahead, node, image, cache, _stop: stop }
    }

    fn answer(&self) -> TicketAnswer {
        let now = now() + self.ahead.load(Ordering::Relaxed);
        let holder = holder_of(&self.node.certificate().unwrap());
        let ticket = Ticket::new(Grant::Pull { image: self.image }, holder, now);
        TicketAnswer {
            image: Some(self.image),
            root: None,
            expires: ticket.expires,
            ticket: ticket.sign(self.authority.signing_key()),
            servers: vec![self.cache.clone()],
        }
    }
}

#[tokio::test(flavor = "local")]
async fn a_session_outlives_the_ticket_that_it_was_opened_with() {
    let dir = tempfile::tempdir().unwrap();
    let served = Served::start(dir.path());
    let answer = served.answer();
    let (renew, way) = Way::new(&answer, quic_client(&served.node).unwrap()).unwrap();
    let mut renewal = Renewal { ticket: renew, expires: answer.expires };
    let client = way.connect(&served.cache, 0).await.unwrap();
    let ask = async || client.section_table(&ReadContext::default(), &served.image, 0).await;
    ask().await.unwrap();
    // Not much longer: not worth showing.
    served.ahead.store(RENEW_SECS - 10, Ordering::Relaxed);
    renewal.take(&served.answer());
    assert_eq!(renewal.expires, answer.expires);
    served.ahead.store(LIFETIME_SECS, Ordering::Relaxed);
    renewal.take(&served.answer());
    assert!(renewal.expires > answer.expires);
    // Long after the first ticket and its grace the second one counts, if it was shown in time.
    let mut last = None;
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        served.ahead.store(LIFETIME_SECS + GRACE_SECS + 60, Ordering::Relaxed);
        last = Some(ask().await);
        if last.as_ref().is_some_and(Result::is_ok) {
            break;
        }
        served.ahead.store(LIFETIME_SECS, Ordering::Relaxed);
    }
    last.unwrap().unwrap();
    served.ahead.store(2 * LIFETIME_SECS + GRACE_SECS + 60, Ordering::Relaxed);
    assert_eq!(ask().await.unwrap_err().kind(), Kind::Denied, "rights do end");
    // Who renews does not keep the connection open.
    let weak = client.downgrade();
    drop(client);
    assert!(weak.upgrade().is_none());
}

#[tokio::test(flavor = "local")]
async fn a_busy_server_is_waited_for_though_another_is_dead() {
    let dir = tempfile::tempdir().unwrap();
    let full = ServerLimits { per_peer: 0, ..ServerLimits::default() };
    let served = Served::within(dir.path(), full);
    // A port that was free a moment ago: nobody listens there.
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let nobody = socket.local_addr().unwrap();
    drop(socket);
    let dead = CacheInfo { endpoints: vec![nobody], ..served.cache.clone() };
    let (_renew, way) = Way::new(&served.answer(), quic_client(&served.node).unwrap()).unwrap();
    let e = first_of(&[served.cache.clone(), dead], &way).await.map(|_| ()).unwrap_err();
    assert!(matches!(e.kind(), Kind::Busy(_)), "{e:?}");
}
