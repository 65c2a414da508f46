//! A real S3 server behind a relay that spoils its answers: right bytes or a clear error, in bounded
//! time, and never wrong bytes.

mod common;

use std::collections::HashSet;
use std::time::Duration;

use common::relay::{Fault, Relay};
use common::s3::{KEY, S3, SECRET};
use common::*;
use forebay_store::{IndexPlace, Receiver, Remote, Store, StoreOptions};
use image::{Kind, Result};
use tokio::runtime::Handle;

const URL: &str = "s3://images/grid";
/// No test waits longer: whatever the relay does, an answer comes.
const BOUND: Duration = Duration::from_secs(60);

struct Bench {
    s3: S3,
    relay: Relay,
    disk: Disk,
}

impl Bench {
    /// A disk in a store behind a relay.
    async fn new() -> Self {
        let s3 = S3::start().await;
        let relay = Relay::before(&s3.address).await;
        let disk = small_disk();
        let store = s3.open(URL).await.unwrap();
        disk.push(&Receiver::new(&store), None).await.unwrap();
        Self { s3, relay, disk }
    }

    /// Patient enough for the test, and no more.
    fn remote(&self) -> Remote {
        let mut settings = self.s3.settings(KEY, SECRET);
        settings.retain(|(name, _)| name != "aws_endpoint");
        settings.push(("aws_endpoint".into(), self.relay.address.clone()));
        let mut remote = Remote::new(settings);
        remote.retries = 3;
        remote.retry_for = Duration::from_secs(10);
        remote.stall = Duration::from_secs(2);
        remote.request = Duration::from_secs(5);
        remote
    }

    async fn open(&self, remote: &Remote) -> Result<Store> {
        Store::open_url(URL, remote, Handle::current(), StoreOptions::reading()).await
    }

    /// Pulls the disk by a reader of its own, while answers to reads of packs are spoiled.
    async fn pull(&self, remote: &Remote, fault: Fault, times: usize) -> Result<Disk> {
        let store = self.open(remote).await?;
        let mut left = times;
        self.relay.spoil(move |method, target| {
            let hit = method == "GET" && target.contains("/packs/") && left > 0;
            left -= usize::from(hit);
            hit.then(|| fault.clone())
        });
        let pulled = tokio::time::timeout(BOUND, Disk::pull(&store, &self.disk.image())).await;
        self.relay.heal();
        pulled.expect("bounded in time")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_spoiled_once_is_asked_for_again() {
    let bench = Bench::new().await;
    for fault in [
        Fault::Status(503, "SlowDown"),
        Fault::Status(500, "InternalError"),
        Fault::Status(429, "TooManyRequests"),
        Fault::Silence,
        Fault::Cut(100),
        Fault::Cut(16_000),
        Fault::Flip(40),
        Fault::Late(Duration::from_millis(300)),
    ] {
        let pulled = bench.pull(&bench.remote(), fault.clone(), 1).await;
        assert_eq!(
            pulled.as_ref().ok(),
            Some(&bench.disk),
            "{fault:?}: {:?}",
            pulled.as_ref().err()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stays_spoiled_is_a_clear_error() {
    let bench = Bench::new().await;
    let mut remote = bench.remote();
    remote.retries = 1;
    remote.stall = Duration::from_millis(500);
    remote.request = Duration::from_secs(1);
    for (fault, kinds) in [
        (Fault::Status(503, "SlowDown"), vec![Kind::Retry]),
        (Fault::Silence, vec![Kind::Retry]),
        (Fault::Cut(100), vec![Kind::Retry]),
        (Fault::Length(10), vec![Kind::Retry]),
        (Fault::Length(-10), vec![Kind::Corrupt, Kind::Retry]),
        (Fault::Flip(40), vec![Kind::Corrupt]),
        (Fault::Status(403, "AccessDenied"), vec![Kind::Denied]),
        (Fault::Status(404, "NoSuchKey"), vec![Kind::Gone]),
    ] {
        let e = bench.pull(&remote, fault.clone(), usize::MAX).await.unwrap_err();
        assert!(kinds.contains(&e.kind()), "{fault:?}: {e}");
        assert!(e.message().contains("pack"), "{fault:?}: {e}");
    }
    assert_eq!(
        Disk::pull(&bench.open(&remote).await.unwrap(), &bench.disk.image()).await.unwrap(),
        bench.disk
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_objects_bytes_are_not_taken() {
    let bench = Bench::new().await;
    // Packs of the same lengths, at the same offsets, full of other chunks.
    let store = bench.s3.open(URL).await.unwrap();
    let (a, b) = (Disk::new(64 * MIB, &[(0, 0, 100)]), Disk::new(64 * MIB, &[(0, 0, 200)]));
    for disk in [&a, &b] {
        disk.push(&Receiver::new(&store), None).await.unwrap();
    }
    let reader = bench.open(&bench.remote()).await.unwrap();
    for (wrong, right) in [(&a, &b), (&b, &a)] {
        assert_eq!(Disk::pull(&reader, &wrong.image()).await.unwrap(), *wrong);
        let read = bench.relay.requests().into_iter().rfind(|r| r.contains("/packs/")).unwrap();
        bench.relay.spoil(move |_, target| {
            target.contains("/packs/").then(|| Fault::AnswerOf(read.clone()))
        });
        let e = Disk::pull(&reader, &right.image()).await.unwrap_err();
        assert_eq!(e.kind(), Kind::Corrupt, "{e}");
        bench.relay.heal();
        assert_eq!(Disk::pull(&reader, &right.image()).await.unwrap(), *right);
    }
    // The same of manifests and tables.
    for folder in ["/manifests/", "/sections/"] {
        let fresh = bench.open(&bench.remote()).await.unwrap();
        Disk::pull(&fresh, &a.image()).await.unwrap();
        let read = bench.relay.requests().into_iter().rfind(|r| r.contains(folder)).unwrap();
        bench
            .relay
            .spoil(move |_, target| target.contains(folder).then(|| Fault::AnswerOf(read.clone())));
        let e = Disk::pull(&fresh, &b.image()).await.unwrap_err();
        bench.relay.heal();
        assert_eq!(e.kind(), Kind::Corrupt, "{folder}: {e}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_listing_costs_an_error_and_no_more() {
    let bench = Bench::new().await;
    let image = bench.disk.image();
    let reader = bench.open(&bench.remote()).await.unwrap();
    assert_eq!(Disk::pull(&reader, &image).await.unwrap(), bench.disk);
    let grid = bench.s3.dir.path().join("images/grid");
    let files = |folder: &str| -> Vec<std::path::PathBuf> {
        let entries = std::fs::read_dir(grid.join(folder)).unwrap();
        entries.map(|e| e.unwrap().path()).collect()
    };
    let old_pack = files("packs")[0].clone();
    // Stored once more, by who does not know of the first copy; then that one goes.
    let aside = bench.s3.dir.path().join("aside");
    std::fs::rename(&old_pack, &aside).unwrap();
    let other = bench.s3.open(URL).await.unwrap();
    bench.disk.push(&Receiver::new(&other), None).await.unwrap();
    let list = bench.relay.requests().into_iter().rfind(|r| r.contains("list-type")).unwrap();
    let stale = list.clone();
    bench.relay.spoil(move |method, target| {
        (format!("{method} {target}") == stale).then(|| Fault::AnswerOf(stale.clone()))
    });
    // The relay knows the answer from before: the locator that names the pack that is gone.
    let e = Disk::pull(&reader, &image).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Gone, "{e}");
    bench.relay.heal();
    assert_eq!(Disk::pull(&reader, &image).await.unwrap(), bench.disk);
    assert!(list.contains("locators"), "{list}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_goes_on_when_answers_are_lost() {
    let bench = Bench::new().await;
    let mut remote = bench.remote();
    remote.stall = Duration::from_millis(700);
    let options = StoreOptions::system(IndexPlace::Memory);
    let store = Store::open_url(URL, &remote, Handle::current(), options).await.unwrap();
    for fault in [Fault::Silence, Fault::Status(503, "SlowDown"), Fault::Cut(30)] {
        let disk = Disk::new(64 * MIB, &[(0, 0, 300), (0, 1, bench.relay.requests().len() as u64)]);
        let mut seen = HashSet::new();
        let spoiled = fault.clone();
        // Each pack's first creation is made, but its answer is lost.
        bench.relay.spoil(move |method, target| {
            let first =
                method == "PUT" && target.contains("/packs/") && seen.insert(target.to_owned());
            first.then(|| spoiled.clone())
        });
        let pushed = tokio::time::timeout(BOUND, disk.push(&Receiver::new(&store), None)).await;
        bench.relay.heal();
        pushed.expect("bounded in time").unwrap_or_else(|e| panic!("{fault:?}: {e}"));
        let reader = bench.open(&remote).await.unwrap();
        assert_eq!(Disk::pull(&reader, &disk.image()).await.unwrap(), disk, "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_get_better_is_said_at_once_with_what_to_do() {
    let bench = Bench::new().await;
    for (status, code, kind, next) in [
        (403, "RequestTimeTooSkewed", Kind::Denied, "set the clock"),
        (403, "InvalidAccessKeyId", Kind::Denied, "AWS_ACCESS_KEY_ID"),
        (403, "SignatureDoesNotMatch", Kind::Denied, "AWS_SECRET_ACCESS_KEY"),
        (400, "ExpiredToken", Kind::Denied, "get new ones"),
        (403, "AccessDenied", Kind::Denied, "right to list, read, create"),
        (404, "NoSuchBucket", Kind::Invalid, "no such bucket"),
        (301, "PermanentRedirect", Kind::Invalid, "AWS_REGION"),
        (400, "AuthorizationHeaderMalformed", Kind::Invalid, "AWS_REGION"),
    ] {
        let before = bench.relay.requests().len();
        bench.relay.spoil(move |_, _| Some(Fault::Status(status, code)));
        let e = bench.open(&bench.remote()).await.unwrap_err();
        bench.relay.heal();
        assert_eq!(e.kind(), kind, "{code}: {e}");
        assert!(e.message().contains(next) && e.message().contains(URL), "{code}: {e}");
        let asked = bench.relay.requests().len() - before;
        assert!(asked <= 2, "{code}: asked {asked} times");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_cannot_be_reached_is_said_to_be_so() {
    let bench = Bench::new().await;
    let mut remote = bench.remote();
    // A port on which nobody listens.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    remote.settings.insert("aws_endpoint".into(), format!("http://{free}"));
    let opened = tokio::time::timeout(BOUND, bench.open(&remote)).await;
    let e = opened.expect("bounded in time").unwrap_err();
    assert_eq!(e.kind(), Kind::Retry, "{e}");
    assert!(
        e.message().contains("cannot be reached") && e.message().contains("AWS_ENDPOINT_URL"),
        "{e}"
    );
    // Silent, not closed.
    bench.relay.spoil(|_, _| Some(Fault::Silence));
    remote = bench.remote();
    (remote.retries, remote.stall) = (1, Duration::from_millis(300));
    let opened = tokio::time::timeout(BOUND, bench.open(&remote)).await;
    let e = opened.expect("bounded in time").unwrap_err();
    assert_eq!(e.kind(), Kind::Retry, "{e}");
}
