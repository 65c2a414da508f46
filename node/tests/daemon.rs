//! The daemon: one transfer per image, so many at a time, within its limits, whatever restarts.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::node::{PullRequest, Transfer, TransferState};
use blockio::{BlockFile, EngineChoice, OpenMode};
use common::{CHUNK, Disk, Source};
use forebay_node::daemon::{Daemon, DaemonOptions, Grid};
use forebay_node::pull::Connect;
use forebay_node::rate::{Rate, Time};
use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use image::{Digest, Error, Kind, Result};

/// A grid of a few images; who is asked for what is noted.
#[derive(Clone, Default)]
struct Fake(Arc<Noted>);

#[derive(Default)]
struct Noted {
    images: Mutex<BTreeMap<String, Source>>,
    /// The name of each ticket that was given out.
    tickets: Mutex<Vec<String>>,
    /// Pulls that run, and the most there were at a time.
    running: Mutex<(usize, usize)>,
    /// How often placement is away yet.
    away: AtomicUsize,
}

impl Fake {
    fn with(images: &[(&str, &Source)]) -> Self {
        let fake = Self::default();
        images.iter().for_each(|(name, source)| fake.points(name, source));
        fake
    }

    fn points(&self, name: &str, source: &Source) {
        self.0.images.lock().unwrap().insert(name.into(), source.clone());
    }

    fn source(&self, name: &str) -> Result<Source> {
        let images = self.0.images.lock().unwrap();
        images.get(name).cloned().ok_or_else(|| Error::new(Kind::Gone, name))
    }

    fn tickets(&self, name: &str) -> usize {
        self.0.tickets.lock().unwrap().iter().filter(|t| *t == name).count()
    }

    /// Placement is away for so many questions.
    fn goes_away(&self, questions: usize) {
        self.0.away.store(questions, Ordering::Relaxed);
    }

    fn answers(&self) -> Result<()> {
        let less = |left: usize| left.checked_sub(1);
        match self.0.away.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less) {
            Ok(_) => Err(Error::new(Kind::Retry, "placement is away")),
            Err(_) => Ok(()),
        }
    }

    fn most_at_a_time(&self) -> usize {
        self.0.running.lock().unwrap().1
    }
}

impl Grid for Fake {
    type Connect = Counted;

    async fn find(&self, name: &str) -> Result<(Digest, u64)> {
        self.answers()?;
        let disk = self.source(name)?.disk;
        Ok((disk.image(), disk.bytes.len() as u64))
    }

    async fn locate(&self, name: &str) -> Result<(Digest, Counted)> {
        self.answers()?;
        let source = self.source(name)?;
        self.0.tickets.lock().unwrap().push(name.into());
        let mut running = self.0.running.lock().unwrap();
        running.0 += 1;
        running.1 = running.1.max(running.0);
        Ok((source.disk.image(), Counted { source, grid: self.clone() }))
    }
}

/// The way to a source, there as long as its pull runs.
struct Counted {
    source: Source,
    grid: Fake,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.grid.0.running.lock().unwrap().0 -= 1;
    }
}

impl Connect for Counted {
    type Source = Source;

    async fn connect(&self, _: usize) -> Result<Source> {
        Ok(self.source.clone())
    }
}

fn options(dir: &Path) -> DaemonOptions {
    DaemonOptions {
        dir: dir.join("node"),
        transfers: 2,
        cores: 2,
        memory: 1 << 20,
        rate: None,
        engine: EngineChoice::Auto,
    }
}

fn to(image: &str, path: &Path) -> PullRequest {
    PullRequest { image: image.into(), to: path.to_owned(), sync: false }
}

/// However long it takes, this is not what a test waits for.
const PATIENCE: Duration = Duration::from_secs(60);

async fn done(daemon: &Daemon<Fake>, id: u64) -> Transfer {
    let ended = tokio::time::timeout(PATIENCE, daemon.ended(id)).await;
    let transfer = ended.expect("it ends").unwrap();
    assert_eq!(transfer.state, TransferState::Done, "{:?}", transfer.error);
    transfer
}

/// Looks again and again until something is so.
async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let look = async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, look).await.unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn however_many_ask_each_chunk_is_fetched_once() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::new(&"abcdefgh..".repeat(20)).cut(512);
    let source = Source::honest(&disk);
    let daemon = Daemon::start(Fake::with(&[("a:1", &source)]), options(dir.path())).unwrap();
    let paths: Vec<PathBuf> = (0..6).map(|i| dir.path().join(i.to_string())).collect();
    let asks = paths.iter().chain(&paths).map(|path| {
        let (daemon, request) = (daemon.clone(), to("a:1", path));
        tokio::spawn(async move { daemon.ask(request).unwrap().id })
    });
    let ids: BTreeSet<u64> = join_all(asks).await.into_iter().map(|id| id.unwrap()).collect();
    assert_eq!(ids.len(), 6, "who asks for a path that is on its way joins");
    for id in ids {
        done(&daemon, id).await;
    }
    paths.iter().for_each(|path| disk.is_at(path));
    assert_eq!(source.said.chunks(), 160);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_an_image_holds_up_no_other_and_has_no_ticket_yet() {
    let dir = tempfile::tempdir().unwrap();
    let (slow, quick) = (Disk::new("abcdefgh"), Disk::new("stuvwxyz"));
    let (slow_source, quick_source) = (Source::gated(&slow, 3), Source::honest(&quick));
    let grid = Fake::with(&[("slow:1", &slow_source), ("quick:1", &quick_source)]);
    let daemon = Daemon::start(grid.clone(), options(dir.path())).unwrap();
    let path = |name: &str| dir.path().join(name);
    let ask = |image, name| daemon.ask(to(image, &path(name))).unwrap().id;
    let slow_ids = ["1", "2", "3"].map(|name| ask("slow:1", name));
    until("the image is on its way", || slow_source.said.requests() > 0).await;
    let given_up = ask("slow:1", "given up");
    done(&daemon, ask("quick:1", "4")).await;
    quick.is_at(&path("4"));
    daemon.cancel(given_up).unwrap();
    assert_eq!(daemon.ended(given_up).await.unwrap().state, TransferState::Cancelled);
    assert_eq!(grid.tickets("slow:1"), 1, "the others ask when their turn has come");
    let states = daemon.transfers().into_iter().map(|t| t.state);
    let states: Vec<_> = states.filter(|state| !state.is_final()).collect();
    assert_eq!(states.iter().filter(|s| **s == TransferState::Running).count(), 1, "{states:?}");
    slow_source.go_on();
    for (id, name) in slow_ids.into_iter().zip(["1", "2", "3"]) {
        done(&daemon, id).await;
        slow.is_at(&path(name));
    }
    assert_eq!((grid.tickets("slow:1"), slow_source.said.chunks()), (3, 8));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ref_that_moves_while_it_is_waited_for_brings_what_it_points_at_then() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (Disk::new("abcdefgh"), Disk::new("abcXefgh"));
    let (old_source, new_source) = (Source::gated(&old, 3), Source::honest(&new));
    let grid = Fake::with(&[("a:1", &old_source), ("a:2", &new_source)]);
    let daemon = Daemon::start(grid.clone(), options(dir.path())).unwrap();
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    let first_id = daemon.ask(to("a:1", &first)).unwrap().id;
    until("the image is on its way", || old_source.said.requests() > 0).await;
    let second_id = daemon.ask(to("a:1", &second)).unwrap().id;
    until("it waits", || daemon.transfer(second_id).unwrap().image.is_some()).await;
    grid.points("a:1", &new_source);
    old_source.go_on();
    done(&daemon, first_id).await;
    old.is_at(&first);
    assert_eq!(done(&daemon, second_id).await.image, Some(new.image()));
    new.is_at(&second);
}

#[tokio::test(flavor = "multi_thread")]
async fn so_many_run_at_a_time_with_as_little_memory_as_there_can_be() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["a:1", "b:1", "c:1", "d:1", "e:1"];
    let disks: Vec<Disk> = (0..5).map(|i| Disk::new(&"abcdefghij"[i..=i + 5].repeat(30))).collect();
    let sources: Vec<Source> = disks.iter().map(|disk| Source::gated(disk, 10)).collect();
    let images: Vec<_> = names.into_iter().zip(&sources).collect();
    let grid = Fake::with(&images);
    // A chunk each.
    let options = DaemonOptions { memory: 2 * CHUNK, ..options(dir.path()) };
    let daemon = Daemon::start(grid.clone(), options).unwrap();
    let ask = |name: &str| daemon.ask(to(name, &dir.path().join(name))).unwrap().id;
    let ids = names.map(ask);
    until("two run", || grid.most_at_a_time() >= 2).await;
    sources.iter().for_each(Source::go_on);
    for (id, (name, disk)) in ids.into_iter().zip(names.into_iter().zip(&disks)) {
        let transfer = done(&daemon, id).await;
        assert_eq!(transfer.progress.total, disk.bytes.len() as u64);
        disk.is_at(&dir.path().join(name));
    }
    assert_eq!(grid.most_at_a_time(), 2);
}

/// Time that passes only where somebody sleeps.
#[derive(Clone, Debug, Default)]
struct Asleep(Arc<Mutex<Duration>>);

impl Time for Asleep {
    fn now(&self) -> Duration {
        *self.0.lock().unwrap()
    }

    fn sleep(&self, pause: Duration) -> BoxFuture<'_, ()> {
        *self.0.lock().unwrap() += pause;
        async {}.boxed()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_transfers_together_keep_to_the_rate() {
    const RATE: u64 = 100_000;
    let dir = tempfile::tempdir().unwrap();
    let disks = [Disk::new(&"abcdefgh".repeat(10)), Disk::new(&"ijklmnop".repeat(10))];
    let sources = disks.clone().map(|disk| Source::honest(&disk));
    let grid = Fake::with(&[("a:1", &sources[0]), ("b:1", &sources[1])]);
    let time = Asleep::default();
    let rate = Some(Arc::new(Rate::new(RATE, time.clone())));
    let daemon = Daemon::start(grid, DaemonOptions { rate, ..options(dir.path()) }).unwrap();
    let ids = ["a:1", "b:1"].map(|name| daemon.ask(to(name, &dir.path().join(name))).unwrap().id);
    let mut received = 0;
    for id in ids {
        received += done(&daemon, id).await.progress.received;
    }
    let most = (time.now().as_secs_f64() + 0.25) * RATE as f64 + 1.0;
    assert!(received > RATE && received as f64 <= most, "{received} bytes in {:?}", time.now());
}

#[tokio::test]
async fn who_asks_hears_that_placement_is_away() {
    let dir = tempfile::tempdir().unwrap();
    let grid = Fake::with(&[("a:1", &Source::honest(&Disk::new("abc")))]);
    grid.goes_away(1);
    let daemon = Daemon::start(grid, options(dir.path())).unwrap();
    let id = daemon.ask(to("a:1", &dir.path().join("disk"))).unwrap().id;
    let ended = tokio::time::timeout(PATIENCE, daemon.ended(id)).await.expect("it ends").unwrap();
    assert_eq!(ended.state, TransferState::Failed);
}

#[test]
fn a_restart_in_the_middle_finishes_it_unasked() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::new(&"abcdefghijklmnop".repeat(10));
    let (path, partial) = (dir.path().join("disk"), dir.path().join(".disk.forebay-partial"));
    let runtime = || tokio::runtime::Runtime::new().unwrap();

    let cut = Source::gated(&disk, 50);
    let first = runtime();
    first.block_on(async {
        let daemon = Daemon::start(Fake::with(&[("a:1", &cut)]), options(dir.path())).unwrap();
        let id = daemon.ask(to("a:1", &path)).unwrap().id;
        let written = || daemon.transfer(id).unwrap().progress.written;
        until("fifty chunks are there", || written() == 50 * CHUNK as u64).await;
    });
    first.shutdown_background();
    assert!(!path.exists());

    runtime().block_on(async {
        // A process takes its locks with it; here its threads may take a moment to end.
        let free = || BlockFile::open(&partial, OpenMode::read()).unwrap().try_lock_exclusive();
        until("the first has ended", || free().unwrap()).await;
        let source = Source::honest(&disk);
        let grid = Fake::with(&[("a:1", &source)]);
        // The whole site was without power, and placement starts later than this.
        grid.goes_away(3);
        let daemon = Daemon::start(grid, options(dir.path())).unwrap();
        let transfer = done(&daemon, 0).await;
        disk.is_at(&path);
        assert_eq!((transfer.progress.chunks, source.said.chunks()), (110, 110));
        assert_eq!(daemon.ask(to("a:1", &path)).unwrap().id, 1, "numbers go on");
    });
}
