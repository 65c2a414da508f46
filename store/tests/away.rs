//! A store that is away: its file system was unmounted, and the bare mount point looks like an empty
//! store.

mod common;

use std::path::{Path, PathBuf};
use std::time::Duration;

use common::*;
use forebay_store::testing::{ManualClock, Verb};
use forebay_store::{IndexPlace, Receiver, RefMove, Store, VerifyAll};
use image::seam::ImageSession;
use image::{ChunkSource, Error, ImageSink, Kind};
use tokio::runtime::Handle;

/// A directory that is mounted and unmounted.
struct Mount {
    dir: tempfile::TempDir,
}

impl Mount {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn point(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    async fn open(&self, clock: &ManualClock) -> Store {
        Store::open_dir(self.point(), Handle::current(), options(clock, 1)).await.unwrap()
    }

    /// Leaves the bare mount point.
    fn unmount(&self) {
        std::fs::rename(self.point(), self.dir.path().join("away")).unwrap();
        std::fs::create_dir(self.point()).unwrap();
    }

    /// Over whatever was written into the mount point.
    fn mount(&self) {
        std::fs::remove_dir_all(self.point()).unwrap();
        std::fs::rename(self.dir.path().join("away"), self.point()).unwrap();
    }

    fn is_bare(&self) -> bool {
        std::fs::read_dir(self.point()).unwrap().count() == 0
    }
}

#[track_caller]
fn is_away(e: Option<Error>, place: &Path) {
    let e = e.expect("the store is away");
    assert_eq!(e.kind(), Kind::Retry, "{e}");
    for said in ["the store is away", "mount it again", place.to_str().unwrap()] {
        assert!(e.message().contains(said), "`{said}` is not in: {e}");
    }
}

#[tokio::test]
async fn nothing_is_written_to_the_bare_mount_point_and_nothing_called_good_there() {
    let (mount, clock) = (Mount::new(), ManualClock::at(START));
    let store = mount.open(&clock).await;
    let (disk, receiver) = (small_disk(), Receiver::new(&store));
    disk.push(&receiver, None).await.unwrap();
    let image = disk.image();
    let name = "debian:12".parse().unwrap();
    let moved = RefMove { seq: 1, name, image: None, at: START };
    let gc = sweep(Duration::from_secs(GRACE), false, clock.now());
    mount.unmount();
    let place = mount.point();
    is_away(receiver.open(&CTX, &disk.plan(None)).await.err(), &place);
    is_away(store.keep(&image).await.err(), &place);
    is_away(store.put_record(&image, START, "token").await.err(), &place);
    is_away(store.append_ref_move(&moved).await.err(), &place);
    is_away(store.gc(&[image], &gc).await.err(), &place);
    is_away(store.verify(&image, false).await.err(), &place);
    is_away(store.verify_all(&VerifyAll::default(), |_| {}).await.err(), &place);
    assert!(mount.is_bare());
    // Another store in its place is no better.
    Store::open_dir(&place, Handle::current(), options(&clock, 2)).await.unwrap();
    is_away(receiver.open(&CTX, &disk.plan(None)).await.err(), &place);
    mount.mount();
    receiver.open(&CTX, &disk.plan(None)).await.unwrap();
    assert_eq!(Disk::pull(&store, &image).await.unwrap(), disk);
    let report = store.verify_all(&VerifyAll::default(), |_| {}).await.unwrap();
    assert_eq!((report.images, report.bad), (1, Vec::new()));
}

#[tokio::test]
async fn a_push_under_way_makes_no_image_while_the_store_is_away() {
    let (mount, clock) = (Mount::new(), ManualClock::at(START));
    let store = mount.open(&clock).await;
    let disk = small_disk();
    let session = Receiver::new(&store).open(&CTX, &disk.plan(None)).await.unwrap();
    disk.send_all(&session).await.unwrap();
    mount.unmount();
    is_away(session.commit(&disk.manifest()).await.err(), &mount.point());
    assert!(mount.is_bare());
    mount.mount();
    session.commit(&disk.manifest()).await.unwrap();
    assert_eq!(Disk::pull(&store, &disk.image()).await.unwrap(), disk);
}

#[tokio::test]
async fn what_is_not_found_while_the_store_is_away_is_not_lost() {
    let (mount, clock) = (Mount::new(), ManualClock::at(START));
    let writer = mount.open(&clock).await;
    let disk = small_disk();
    disk.push(&Receiver::new(&writer), None).await.unwrap();
    let image = disk.image();
    let mut reading = options(&clock, 2);
    reading.index = IndexPlace::Nowhere;
    let reader = Store::open_dir(mount.point(), Handle::current(), reading).await.unwrap();
    // One knows nothing yet, the others know manifest, table and locator, and lack the packs.
    Disk::pull(&writer, &image).await.unwrap();
    let knows =
        Store::open_dir(mount.point(), Handle::current(), options(&clock, 3)).await.unwrap();
    Disk::pull(&knows, &image).await.unwrap();
    for bare in [true, false] {
        mount.unmount();
        if !bare {
            std::fs::remove_dir(mount.point()).unwrap();
        }
        // What was looked at a second ago counts no more.
        clock.advance(60);
        for store in [&writer, &knows, &reader] {
            for _ in 0..2 {
                is_away(Disk::pull(store, &image).await.err(), &mount.point());
            }
        }
        is_away(reader.manifest(&CTX, &image).await.err(), &mount.point());
        is_away(reader.facts(&image).await.err(), &mount.point());
        is_away(reader.records(&image).await.err(), &mount.point());
        if bare {
            assert!(mount.is_bare());
        } else {
            std::fs::create_dir(mount.point()).unwrap();
        }
        mount.mount();
        clock.advance(1);
        for store in [&writer, &knows] {
            assert_eq!(Disk::pull(store, &image).await.unwrap(), disk);
        }
    }
    assert_eq!(Disk::pull(&reader, &image).await.unwrap(), disk);
}

#[tokio::test]
async fn what_is_missing_in_a_store_that_is_there_is_looked_for_at_little_cost() {
    let bench = Bench::new().await;
    let disk = small_disk();
    let gets = || bench.objects.requests(Verb::Get);
    for (second, marker) in [(0, 1), (0, 0), (1, 1)] {
        bench.clock.advance(second);
        let before = gets();
        for _ in 0..10 {
            let e = bench.store.manifest(&CTX, &disk.image()).await.unwrap_err();
            assert_eq!(e.kind(), Kind::Gone, "{e}");
        }
        assert_eq!(gets() - before, 10 + marker);
    }
}

#[tokio::test]
async fn where_a_known_store_should_be_none_is_made() {
    let (mount, clock) = (Mount::new(), ManualClock::at(START));
    let open = |seed, expect: Option<&str>| {
        let mut options = options(&clock, seed);
        options.expect = expect.map(str::to_owned);
        Store::open_dir(mount.point(), Handle::current(), options)
    };
    let id = mount.open(&clock).await.id().to_owned();
    open(2, Some(&id)).await.unwrap();
    mount.unmount();
    let refused = |e: Error, kind| {
        assert_eq!(e.kind(), kind, "{e}");
        for said in [&id, mount.point().to_str().unwrap(), "mount it", "store.at", "lost for good"]
        {
            assert!(e.message().contains(said), "`{said}` is not in: {e}");
        }
    };
    refused(open(3, Some(&id)).await.unwrap_err(), Kind::Gone);
    assert!(mount.is_bare());
    std::fs::remove_dir(mount.point()).unwrap();
    refused(open(4, Some(&id)).await.unwrap_err(), Kind::Gone);
    assert!(!mount.point().exists());
    let other = open(5, None).await.unwrap().id().to_owned();
    let e = open(6, Some(&id)).await.unwrap_err();
    assert!(e.message().contains(&other), "{e}");
    refused(e, Kind::Invalid);
}
