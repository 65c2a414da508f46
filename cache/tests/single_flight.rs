//! One fetch for all who ask.

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{CHUNK, Fake, Rig, Stuff, TestImage, engine, on_core, on_core_paused, read};
use forebay_cache::{Budget, Cache, Options, Shared};
use futures::future::join_all;
use image::{ChunkSink, ChunkSource, Error, Frame, Kind, Priority, ReadContext, Result};
use tokio::sync::mpsc;
use tokio::task::spawn_local;

/// Passes frames on as they come.
struct Channel(mpsc::UnboundedSender<(u32, Frame)>);

impl ChunkSink for Channel {
    async fn chunk(&mut self, chunk: u32, frame: Frame) -> Result<()> {
        let gone = |_| Error::new(Kind::Cancelled, "nobody listens");
        self.0.send((chunk, frame)).map_err(gone)
    }
}

/// A reader on a task of its own, and what it gets.
type Reader = (tokio::task::JoinHandle<Result<()>>, mpsc::UnboundedReceiver<(u32, Frame)>);

fn reader(cache: &Cache<Arc<Fake>>, place: image::Place, ctx: ReadContext) -> Reader {
    let (sender, receiver) = mpsc::unbounded_channel();
    let cache = cache.clone();
    let task = async move { cache.chunks(&ctx, &place, &mut Channel(sender)).await };
    (spawn_local(task), receiver)
}

fn image() -> TestImage {
    TestImage::of(0..20, Stuff::Text)
}

async fn turns() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[test]
fn fifty_askers_cost_one_fetch_of_each_chunk() {
    on_core(async {
        let (image, source) = (image(), Fake::new([image()]));
        let rig = Rig::in_memory(&source, 64 << 20);
        let (place, some) = (image.all(), image.place(|c| c % 3 == 0));
        let places = (0..50).map(|i| if i % 2 == 0 { &place } else { &some });
        let answers = join_all(places.clone().map(|place| rig.read(place))).await;
        for (answer, place) in answers.into_iter().zip(places) {
            image.check(place, answer.unwrap());
        }
        assert!((0..20).all(|chunk| source.given(&image, chunk) == 1));
        assert_eq!(source.papers.load(Ordering::Relaxed), 2, "one manifest, one table");
        let status = rig.status();
        assert_eq!(status.misses, 20);
        assert_eq!(status.misses + status.joined + status.memory_hits, 25 * (20 + 7));
        assert_eq!((status.flights, status.in_flight_bytes), (0, 0));
    });
}

#[test]
fn misses_of_a_read_are_one_request() {
    on_core(async {
        let (image, source) = (image(), Fake::new([image()]));
        let rig = Rig::in_memory(&source, 64 << 20);
        rig.read(&image.place(|c| c % 2 == 0)).await.unwrap();
        rig.read(&image.all()).await.unwrap();
        assert_eq!(source.requests.load(Ordering::Relaxed), 2);
        assert_eq!(source.given_in_all(), 20);
    });
}

#[test]
fn cores_share_memory_and_flights() {
    let (image, source) = (image(), Fake::new([image()]));
    let gate = source.gate();
    let budget = Budget { memory: 64 << 20, in_flight: 64 << 20, disk: None };
    let (shared, _) = Shared::open(budget, Options::default()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let (image, source, shared) = (&image, Arc::clone(&source), Arc::clone(&shared));
            scope.spawn(move || {
                on_core(async move {
                    let cache = Cache::new(source, shared, engine());
                    image.check(&image.all(), read(&cache, &image.all()).await.unwrap());
                });
            });
        }
        // No frame comes before all have asked.
        while shared.status().joined + shared.status().misses < 80 {
            std::thread::yield_now();
        }
        gate.add_permits(1000);
    });
    assert_eq!(source.given_in_all(), 20);
}

#[test]
fn frames_reach_everybody_while_the_rest_is_arriving() {
    on_core(async {
        let (image, source) = (image(), Fake::new([image()]));
        let gate = source.gate();
        let rig = Rig::in_memory(&source, 64 << 20);
        let readers = [0, 1, 2].map(|_| reader(&rig.cache, image.all(), ReadContext::default()));
        let [mut a, mut b, mut c] = readers;
        for chunk in 0..5 {
            gate.add_permits(1);
            for reader in [&mut a, &mut b, &mut c] {
                let (number, frame) = reader.1.recv().await.unwrap();
                assert_eq!((number, &frame), (chunk, &image.frames[chunk as usize]));
            }
        }
        turns().await;
        assert!(a.1.try_recv().is_err(), "more than was let through");
        gate.add_permits(15);
        for reader in [a, b, c] {
            reader.0.await.unwrap().unwrap();
        }
        assert_eq!(source.given_in_all(), 20);
    });
}

#[test]
fn who_began_a_fetch_may_go_without_ending_it() {
    on_core(async {
        let (image, source) = (image(), Fake::new([image()]));
        let gate = source.gate();
        let rig = Rig::in_memory(&source, 64 << 20);
        let first = reader(&rig.cache, image.all(), ReadContext::default());
        turns().await;
        let second = reader(&rig.cache, image.one(19), ReadContext::default());
        turns().await;
        first.0.abort();
        turns().await;
        gate.add_permits(20);
        second.0.await.unwrap().unwrap();
        assert_eq!((source.given_in_all(), source.requests.load(Ordering::Relaxed)), (20, 1));
    });
}

#[test]
fn a_fetch_that_nobody_waits_for_is_dropped_and_what_came_is_kept() {
    on_core(async {
        let (image, source) = (image(), Fake::new([image()]));
        let gate = source.gate();
        let rig = Rig::in_memory(&source, 64 << 20);
        let (task, mut frames) = reader(&rig.cache, image.all(), ReadContext::default());
        gate.add_permits(3);
        for _ in 0..3 {
            frames.recv().await.unwrap();
        }
        task.abort();
        turns().await;
        assert_eq!(source.dropped.load(Ordering::Relaxed), 1);
        assert_eq!((rig.status().flights, rig.status().in_flight_bytes), (0, 0));
        gate.add_permits(100);
        image.check(&image.all(), rig.read(&image.all()).await.unwrap());
        assert_eq!(source.given_in_all(), 20, "the three that came were kept");
    });
}

#[test]
fn an_error_reaches_everybody_and_the_next_ask_tries_again() {
    on_core(async {
        let (image, source) = (image(), Fake::new([image()]));
        let rig = Rig::in_memory(&source, 64 << 20);
        source.fail_next(Kind::Retry);
        let place = image.all();
        for answer in join_all((0..10).map(|_| rig.read(&place))).await {
            let error = answer.unwrap_err();
            assert_eq!(error.kind(), Kind::Retry);
            let place = format!("image {}: section 0: chunk 0: the source", image.id.short());
            assert!(error.message().starts_with(&place), "{error}");
        }
        assert_eq!(source.requests.load(Ordering::Relaxed), 1);
        image.check(&place, rig.read(&place).await.unwrap());
    });
}

#[test]
fn one_lost_chunk_costs_only_itself() {
    on_core(async {
        let (image, source) = (image(), Fake::new([image()]));
        source.lose(7, Some(Kind::Corrupt));
        let rig = Rig::in_memory(&source, 64 << 20);
        let mut got = Vec::new();
        let result = rig.cache.chunks(&ReadContext::default(), &image.all(), &mut got).await;
        let error = result.unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        assert!(error.message().contains("chunk 7: "), "{error}");
        image.check(&image.place(|c| c != 7), got);
    });
}

#[test]
fn what_is_gone_is_not_asked_for_again_for_a_moment() {
    on_core(async {
        let (image, source) = (image(), Fake::new([image()]));
        source.lose(7, Some(Kind::Gone));
        let clock = common::Clock::default();
        let budget = Budget { memory: 64 << 20, in_flight: 64 << 20, disk: None };
        let options = Options { clock: clock.get(), ..Options::default() };
        let rig = Rig::new(&source, budget, options);
        for _ in 0..3 {
            assert_eq!(rig.read(&image.one(7)).await.unwrap_err().kind(), Kind::Gone);
        }
        assert_eq!(source.requests.load(Ordering::Relaxed), 1);
        let late = TestImage::of(100..103, Stuff::Text);
        for _ in 0..3 {
            assert_eq!(rig.read(&late.all()).await.unwrap_err().kind(), Kind::Gone);
        }
        assert_eq!(source.papers.load(Ordering::Relaxed), 3, "asked for the manifest once");
        source.lose(7, None);
        source.add(TestImage::of(100..103, Stuff::Text));
        clock.advance(Duration::from_secs(1));
        rig.read(&image.one(7)).await.unwrap();
        late.check(&late.all(), rig.read(&late.all()).await.unwrap());
    });
}

#[test]
fn images_with_equal_chunks_share_them() {
    on_core(async {
        let (a, b) = (TestImage::of(0..20, Stuff::Text), TestImage::of(10..30, Stuff::Text));
        let source = Fake::new([image(), TestImage::of(10..30, Stuff::Text)]);
        let rig = Rig::in_memory(&source, 64 << 20);
        a.check(&a.all(), rig.read(&a.all()).await.unwrap());
        b.check(&b.all(), rig.read(&b.all()).await.unwrap());
        assert_eq!(source.given_in_all(), 30);
    });
}

#[test]
fn a_chunk_that_occurs_twice_is_fetched_once() {
    on_core(async {
        let image = TestImage::of([1, 2, 1, 2, 1], Stuff::Text);
        let source = Fake::new([TestImage::of([1, 2, 1, 2, 1], Stuff::Text)]);
        let rig = Rig::in_memory(&source, 64 << 20);
        image.check(&image.all(), rig.read(&image.all()).await.unwrap());
        assert_eq!(source.given_in_all(), 2);
    });
}

#[test]
fn a_guest_overtakes_a_background_fetch_once() {
    on_core(async {
        let (image, source) = (image(), Fake::new([image()]));
        let gate = source.gate();
        let rig = Rig::in_memory(&source, 64 << 20);
        let pull = reader(&rig.cache, image.all(), ReadContext::default());
        turns().await;
        let urgent = ReadContext { priority: Priority::Guest, ..ReadContext::default() };
        let guests = [0; 3].map(|_| reader(&rig.cache, image.one(19), urgent));
        turns().await;
        assert_eq!(source.requests.load(Ordering::Relaxed), 2);
        // The pull waits for the first permit, the guest for the second.
        gate.add_permits(2);
        for mut guest in guests {
            assert_eq!(guest.1.recv().await.unwrap().0, 19);
            guest.0.await.unwrap().unwrap();
        }
        gate.add_permits(100);
        pull.0.await.unwrap().unwrap();
        assert_eq!(source.given(&image, 19), 2);
        assert_eq!(source.given_in_all(), 21);
    });
}

#[test]
fn the_slower_of_two_fetches_may_fail() {
    on_core(async {
        let (image, source) = (image(), Fake::new([image()]));
        let gate = source.gate();
        let rig = Rig::in_memory(&source, 64 << 20);
        let pull = reader(&rig.cache, image.one(3), ReadContext::default());
        turns().await;
        source.fail_next(Kind::Retry);
        let urgent = ReadContext { priority: Priority::Guest, ..ReadContext::default() };
        let guest = reader(&rig.cache, image.one(3), urgent);
        turns().await;
        gate.add_permits(1);
        guest.0.await.unwrap().unwrap();
        pull.0.await.unwrap().unwrap();
    });
}

#[test]
fn a_deadline_ends_the_wait_of_one_reader_only() {
    on_core_paused(async {
        let (image, source) = (image(), Fake::new([image()]));
        let gate = source.gate();
        let rig = Rig::in_memory(&source, 64 << 20);
        let ctx = ReadContext { deadline: Some(Duration::from_secs(1)), ..Default::default() };
        let hurried = reader(&rig.cache, image.all(), ctx);
        let patient = reader(&rig.cache, image.all(), ReadContext::default());
        assert_eq!(hurried.0.await.unwrap().unwrap_err().kind(), Kind::Retry);
        gate.add_permits(20);
        patient.0.await.unwrap().unwrap();
        assert_eq!(source.given_in_all(), 20);
    });
}

#[test]
fn a_source_that_hangs_wedges_nobody() {
    on_core_paused(async {
        let (image, source) = (image(), Fake::new([image()]));
        let gate = source.gate();
        let rig = Rig::in_memory(&source, 64 << 20);
        let error = rig.read(&image.all()).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Retry, "{error}");
        assert!(error.message().contains("gave nothing for 30s"), "{error}");
        gate.add_permits(20);
        image.check(&image.all(), rig.read(&image.all()).await.unwrap());
    });
}

#[test]
fn a_slow_source_is_not_one_that_hangs() {
    on_core_paused(async {
        let (image, source) = (image(), Fake::new([image()]));
        let gate = source.gate();
        let rig = Rig::in_memory(&source, 64 << 20);
        let drip = spawn_local(async move {
            for _ in 0..20 {
                tokio::time::sleep(Duration::from_secs(20)).await;
                gate.add_permits(1);
            }
        });
        image.check(&image.all(), rig.read(&image.all()).await.unwrap());
        drip.await.unwrap();
    });
}

#[test]
fn a_core_that_ends_leaves_nobody_waiting_on_another() {
    let (image, source) = (image(), Fake::new([image()]));
    let gate = source.gate();
    let budget = Budget { memory: 64 << 20, in_flight: 64 << 20, disk: None };
    let (shared, _) = Shared::open(budget, Options::default()).unwrap();
    let leader = {
        let (place, source, shared) = (image.all(), Arc::clone(&source), Arc::clone(&shared));
        move || {
            on_core(async move {
                let cache = Cache::new(source, Arc::clone(&shared), engine());
                let _reader = reader(&cache, place, ReadContext::default());
                while shared.status().joined < 20 {
                    tokio::task::yield_now().await;
                }
            });
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(leader);
        while shared.status().misses < 20 {
            std::thread::yield_now();
        }
        on_core(async {
            let cache = Cache::new(Arc::clone(&source), Arc::clone(&shared), engine());
            let error = read(&cache, &image.all()).await.unwrap_err();
            assert_eq!(error.kind(), Kind::Retry, "{error}");
            gate.add_permits(20);
            image.check(&image.all(), read(&cache, &image.all()).await.unwrap());
        });
    });
}

#[test]
fn a_core_that_ends_while_it_fetches_a_manifest_leaves_nobody_waiting() {
    let image = image();
    let source = Fake::new([image.clone()]);
    let budget = Budget { memory: 64 << 20, in_flight: 64 << 20, disk: None };
    let (shared, _) = Shared::open(budget, Options::default()).unwrap();
    let cache_here = || Cache::new(Arc::clone(&source), Arc::clone(&shared), engine());
    // A core whose runtime is not driven any further once the fetch has begun.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let core = tokio::task::LocalSet::new();
    let ctx = ReadContext::default();
    core.block_on(&runtime, async {
        let cache = cache_here();
        let ask = cache.manifest(&ctx, &image.id);
        assert!(futures::poll!(std::pin::pin!(ask)).is_pending());
    });
    let papers = source.papers.load(Ordering::Relaxed);
    on_core(async {
        let cache = cache_here();
        let mut ask = std::pin::pin!(cache.manifest(&ctx, &image.id));
        assert!(futures::poll!(&mut ask).is_pending());
        drop(core);
        assert_eq!(ask.await.unwrap_err().kind(), Kind::Retry);
        assert_eq!(source.papers.load(Ordering::Relaxed), papers, "it had joined");
        cache.manifest(&ctx, &image.id).await.unwrap();
    });
}

#[test]
fn a_slow_reader_holds_up_nobody_and_gets_everything() {
    on_core(async {
        let image = TestImage::of(0..64, Stuff::Noise);
        let source = Fake::new([TestImage::of(0..64, Stuff::Noise)]);
        let budget = Budget { memory: 64 << 20, in_flight: 64 << 20, disk: None };
        let options = Options { window: 2 * CHUNK as u64, ..Options::default() };
        let rig = Rig::new(&source, budget, options);
        let (sender, mut slow_frames) = mpsc::channel(1);
        struct Slow(mpsc::Sender<(u32, Frame)>);
        impl ChunkSink for Slow {
            async fn chunk(&mut self, chunk: u32, frame: Frame) -> Result<()> {
                self.0.send((chunk, frame)).await.map_err(|_| Error::new(Kind::Cancelled, "gone"))
            }
        }
        let (cache, place) = (rig.cache.clone(), image.all());
        let slow = spawn_local(async move {
            cache.chunks(&ReadContext::default(), &place, &mut Slow(sender)).await
        });
        turns().await;
        image.check(&image.all(), rig.read(&image.all()).await.unwrap());
        // One place for the read, and no more than its window of queued frames.
        let in_flight = rig.status().in_flight_bytes;
        assert!(in_flight <= 3 * (CHUNK as u64 + 64), "{in_flight} bytes wait for one reader");
        let mut got = Vec::new();
        while let Some(frame) = slow_frames.recv().await {
            got.push(frame);
        }
        slow.await.unwrap().unwrap();
        image.check(&image.all(), got);
        assert_eq!(source.given_in_all(), 64);
    });
}

#[test]
fn a_cache_too_small_for_a_section_still_gives_all_of_it() {
    on_core(async {
        let image = TestImage::of(0..64, Stuff::Noise);
        let source = Fake::new([TestImage::of(0..64, Stuff::Noise)]);
        for memory in [0, 20_000, 10 * CHUNK as u64] {
            let budget = Budget { memory, in_flight: 64 << 20, disk: None };
            let options = Options { window: 2 * CHUNK as u64, ..Options::default() };
            let rig = Rig::new(&source, budget, options);
            image.check(&image.all(), rig.read(&image.all()).await.unwrap());
            assert!(rig.status().memory_bytes <= memory);
        }
        assert_eq!(source.given_in_all(), 3 * 64, "nothing was fetched twice for one read");
    });
}

#[test]
fn too_many_readers_are_told_to_come_back() {
    on_core_paused(async {
        let (image, source) = (image(), Fake::new([image()]));
        let gate = source.gate();
        // Half of it is for reads and their queues, an eighth of that for guests: 7/2 MiB.
        let budget = Budget { memory: 64 << 20, in_flight: 8 << 20, disk: None };
        let rig = Rig::new(&source, budget, Options::default());
        let places = 7 * (4 << 20) / 8 / (CHUNK + 64);
        let readers: Vec<_> =
            (0..places).map(|_| reader(&rig.cache, image.all(), ReadContext::default())).collect();
        turns().await;
        let error = rig.read(&image.all()).await.unwrap_err();
        assert!(matches!(error.kind(), Kind::Busy(_)), "{error:?}");
        let urgent = ReadContext { priority: Priority::Guest, ..ReadContext::default() };
        let guest = reader(&rig.cache, image.one(0), urgent);
        gate.add_permits(100);
        guest.0.await.unwrap().unwrap();
        for (task, _) in readers {
            task.await.unwrap().unwrap();
        }
        image.check(&image.all(), rig.read(&image.all()).await.unwrap());
    });
}

#[test]
fn a_sink_that_fails_ends_its_read_alone() {
    on_core(async {
        let (image, source) = (image(), Fake::new([image()]));
        let rig = Rig::in_memory(&source, 64 << 20);
        struct Broken;
        impl ChunkSink for Broken {
            async fn chunk(&mut self, _: u32, _: Frame) -> Result<()> {
                Err(Error::new(Kind::Full, "no room"))
            }
        }
        let other = reader(&rig.cache, image.all(), ReadContext::default());
        let ctx = ReadContext::default();
        let error = rig.cache.chunks(&ctx, &image.all(), &mut Broken).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Full);
        other.0.await.unwrap().unwrap();
        assert_eq!(source.given_in_all(), 20);
    });
}

#[test]
fn places_that_are_none_are_refused() {
    on_core(async {
        let (image, source) = (image(), Fake::new([image()]));
        let rig = Rig::in_memory(&source, 64 << 20);
        let mut place = image.all();
        place.chunks = image::ChunkSet::of(21, |_| true);
        assert_eq!(rig.read(&place).await.unwrap_err().kind(), Kind::Invalid);
        let place = image::Place { section: 1, ..image.all() };
        assert_eq!(rig.read(&place).await.unwrap_err().kind(), Kind::Invalid);
        let ctx = ReadContext::default();
        let error = rig.cache.section_table(&ctx, &image.id, 1).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
    });
}

#[test]
fn zeros_are_neither_fetched_nor_asked_for() {
    use image::{ChunkSet, Digest, Geometry, Manifest, Place, SectionTable};
    let mut image = TestImage::of(0..1, Stuff::Text);
    let domain = image.table.domain();
    let table = SectionTable::new(domain, vec![image.table.digests()[0], Digest::ZERO]);
    // Two chunks in section 0, the second of zeros; section 1 of zeros, and short.
    let geometry = Geometry::new((64 << 20) + 3 * CHUNK as u64, 512, common::CHUNK_LOG2).unwrap();
    let mut digests = table.digests().to_vec();
    digests.resize(geometry.chunks_in(0) as usize, Digest::ZERO);
    image.table = Arc::new(SectionTable::new(domain, digests));
    let manifest = Manifest::new(domain, geometry, vec![image.table.digest(), Digest::ZERO]);
    (image.id, image.manifest) = (manifest.identity(), Arc::new(manifest));
    on_core(async {
        let source = Fake::new([image.clone()]);
        let rig = Rig::in_memory(&source, 64 << 20);
        let ctx = ReadContext::default();
        let zeros = rig.cache.section_table(&ctx, &image.id, 1).await.unwrap();
        assert_eq!((zeros.chunks(), zeros.is_zero()), (3, true));
        assert_eq!(source.papers.load(Ordering::Relaxed), 1, "the manifest alone");
        let chunks = image.table.chunks();
        let place =
            |n| Place { image: image.id, section: 0, chunks: ChunkSet::of(chunks, |c| c < n) };
        assert_eq!(rig.read(&place(1)).await.unwrap(), [(0, image.frames[0].clone())]);
        let error = rig.read(&place(2)).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{error}");
    });
}
