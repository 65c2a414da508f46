//! A store that is away: its file system was unmounted, and the bare mount point looks like an empty
//! store.

mod common;

use std::path::{Path, PathBuf};
use std::time::Duration;

use common::*;
use forebay_store::testing::ManualClock;
use forebay_store::{Receiver, RefMove, Store, VerifyAll};
use image::seam::ImageSession;
use image::{Error, ImageSink, Kind};
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
