//! A cache's own API over the network: who may ask, and that each route reaches its method.

mod common;

use std::sync::{Arc, Mutex};

use api::care::{
    CacheStatus, DrainOrder, Evicted, Held, Pinned, ScrubOrder, ScrubStatus, WarmState, Warming,
};
use api::grid::{CacheInfo, Revocations, Role};
use common::Grid;
use image::{Digest, Error, Kind};
use placement::{Answer, Care, CareClient, Papers};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};

/// Writes down what it is asked for.
#[derive(Default)]
struct Notes(Mutex<Vec<String>>);

impl Notes {
    fn note<T: Send + 'static>(&self, what: String, answer: T) -> Answer<'_, T> {
        self.0.lock().unwrap().push(what);
        Box::pin(async move { Ok(answer) })
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

fn warming(image: Digest) -> Warming {
    Warming {
        image,
        state: WarmState::Running,
        pins: false,
        of_sections: 4,
        sections: 1,
        chunks: 9,
        fetched: 2,
        fetched_bytes: 20,
        size: 0,
        held: None,
        warning: None,
        error: None,
        error_code: None,
    }
}

impl Care for Notes {
    fn status(&self) -> Answer<'_, CacheStatus> {
        self.note("status".into(), CacheStatus { name: "c1".into(), ..CacheStatus::default() })
    }

    fn held(&self, image: Digest) -> Answer<'_, Held> {
        self.note(format!("held {image}"), Held { chunks: 7, ..Held::default() })
    }

    fn warm(&self, image: Digest) -> Answer<'_, Warming> {
        self.note(format!("warm {image}"), warming(image))
    }

    fn warming(&self, image: Digest) -> Answer<'_, Warming> {
        self.note(format!("warming {image}"), warming(image))
    }

    fn stop_warming(&self, image: Digest) -> Answer<'_, Warming> {
        self.note(format!("stop {image}"), warming(image))
    }

    fn pin(&self, image: Digest) -> Answer<'_, Warming> {
        self.note(format!("pin {image}"), warming(image))
    }

    fn unpin(&self, image: Digest) -> Answer<'_, Pinned> {
        self.note(format!("unpin {image}"), Pinned { image, chunks: 2, bytes: 5 })
    }

    fn evict(&self, _: Digest) -> Answer<'_, Evicted> {
        Box::pin(async { Err(Error::new(Kind::Conflict, "it is pinned")) })
    }

    fn scrub(&self, order: ScrubOrder) -> Answer<'_, ScrubStatus> {
        self.note(format!("scrub {:?}", order.rate), ScrubStatus::default())
    }

    fn drain(&self, order: DrainOrder) -> Answer<'_, CacheStatus> {
        self.note(format!("drain {}", order.drain), CacheStatus::default())
    }

    fn metrics(&self) -> String {
        "forebay_build_info 1\n".into()
    }
}

struct Cache {
    info: CacheInfo,
    notes: Arc<Notes>,
    revoke: watch::Sender<Arc<Revocations>>,
    _stop: oneshot::Sender<()>,
}

/// A cache of the grid that serves its API.
async fn cache(grid: &Grid) -> Cache {
    let papers = grid.member(Role::Server, "c1");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let notes = Arc::new(Notes::default());
    let (stop, stopped) = oneshot::channel::<()>();
    let (care, clock) = (notes.clone(), grid.clock());
    let shown = placement::Shown::new(papers).unwrap();
    let (revoke, revoked) = watch::channel(Arc::default());
    tokio::spawn(async move {
        let shutdown = async move { drop(stopped.await) };
        placement::care::serve(listener, shown, care, (&clock, revoked), shutdown).await.unwrap();
    });
    let info = CacheInfo {
        name: "c1".into(),
        server_name: "c1.forebay.internal".into(),
        endpoints: vec![],
        receives: false,
        api: Some(address),
        weight: 1.0,
        draining: false,
    };
    Cache { info, notes, revoke, _stop: stop }
}

fn client(cache: &Cache, papers: &Papers) -> CareClient {
    CareClient::new(&cache.info, papers).unwrap()
}

#[tokio::test]
async fn an_admin_may_order_and_a_member_may_look() {
    let grid = Grid::start().await;
    let cache = cache(&grid).await;
    let image = Digest::of_chunk(b"image");
    let admin = client(&cache, &grid.admin_papers());
    assert_eq!(admin.status().await.unwrap().name, "c1");
    assert_eq!(admin.held(&image).await.unwrap().chunks, 7);
    assert_eq!(admin.warm(&image).await.unwrap(), warming(image));
    assert_eq!(admin.warming(&image).await.unwrap(), warming(image));
    assert_eq!(admin.stop_warming(&image).await.unwrap(), warming(image));
    assert_eq!(admin.pin(&image).await.unwrap(), warming(image));
    assert_eq!(admin.unpin(&image).await.unwrap().image, image);
    admin.scrub(&ScrubOrder { rate: Some(8) }).await.unwrap();
    admin.drain(&DrainOrder { drain: true }).await.unwrap();
    let of = |what: &str| format!("{what} {image}");
    let expected = ["status".into(), of("held"), of("warm"), of("warming"), of("stop"), of("pin")];
    let orders = [of("unpin"), "scrub Some(8)".into(), "drain true".into()];
    assert_eq!(cache.notes.take(), expected.into_iter().chain(orders).collect::<Vec<_>>());
    let refused = admin.evict(&image).await.unwrap_err();
    assert_eq!((refused.kind(), refused.to_string().contains("pinned")), (Kind::Conflict, true));

    let node = client(&cache, &grid.member(Role::Node, "n1"));
    node.status().await.unwrap();
    node.held(&image).await.unwrap();
    node.warming(&image).await.unwrap();
    cache.notes.take();
    let denied = [
        node.warm(&image).await.map(drop),
        node.stop_warming(&image).await.map(drop),
        node.pin(&image).await.map(drop),
        node.unpin(&image).await.map(drop),
        node.evict(&image).await.map(drop),
        node.scrub(&ScrubOrder::default()).await.map(drop),
        node.drain(&DrainOrder { drain: true }).await.map(drop),
    ];
    for answer in denied {
        assert_eq!(answer.unwrap_err().kind(), Kind::Denied);
    }
    assert!(cache.notes.take().is_empty(), "nothing reached the cache");
}

#[tokio::test]
async fn strangers_get_no_answer_and_nobody_answers_in_a_caches_place() {
    let (grid, other) = (Grid::start().await, Grid::start().await);
    let cache = cache(&grid).await;
    let stranger = client(&cache, &other.admin_papers()).status().await.unwrap_err();
    assert_eq!(stranger.kind(), Kind::Denied, "{stranger}");
    // Another member in the cache's place.
    let info = CacheInfo { server_name: "c2.forebay.internal".into(), ..cache.info.clone() };
    let swapped = CareClient::new(&info, &grid.admin_papers()).unwrap();
    assert_eq!(swapped.status().await.unwrap_err().kind(), Kind::Denied);
}

#[tokio::test]
async fn a_cache_without_an_api_says_so() {
    let grid = Grid::start().await;
    let info = CacheInfo { api: None, ..cache(&grid).await.info };
    let error = CareClient::new(&info, &grid.admin_papers()).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
}

#[tokio::test]
async fn a_cache_refuses_whose_certificate_was_revoked() {
    let grid = Grid::start().await;
    let cache = cache(&grid).await;
    let papers = grid.member(Role::Admin, "boss");
    let boss = client(&cache, &papers);
    boss.status().await.unwrap();
    let names = [("boss".to_owned(), vec![])].into();
    let told = |names| Arc::new(Revocations { version: "1".into(), names: Some(names) });
    cache.revoke.send_replace(told(names));
    // On the connection that it has, too.
    let refused = boss.status().await.unwrap_err();
    assert!(refused.kind() == Kind::Denied && refused.message().contains("removed"), "{refused}");
    // One that was issued to the name since is good.
    let good = api::ticket::holder_of(&papers.certificate().unwrap());
    cache.revoke.send_replace(told([("boss".to_owned(), vec![good])].into()));
    boss.status().await.unwrap();
}
