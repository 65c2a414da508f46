use image::{Domain, Encoder};

use super::policy::{Counts, FIRST_REST, UNKNOWN};
use super::*;

const CHUNKS: u32 = 8;
const BULK: ReadContext =
    ReadContext { priority: image::Priority::Background, deadline: None, trace: 0, repair: false };

/// How a cache behaves.
#[derive(Clone, Debug, Default)]
struct Manners {
    /// Does not let anybody connect.
    closed: bool,
    /// Does not even say that.
    silent: bool,
    /// Before each chunk.
    pause: Duration,
    /// Chunks that it gives of each request.
    gives: Option<usize>,
    /// What it says after them.
    says: Option<Kind>,
    /// It never says anything after them.
    stops: bool,
    /// Gives a chunk that nobody asked for.
    lies: bool,
}

/// Caches, and what they were asked.
struct Caches {
    manners: RefCell<Vec<Manners>>,
    asked: RefCell<Vec<(usize, Vec<u32>)>>,
    dialled: RefCell<Vec<usize>>,
    /// Who was let go before the end.
    let_go: RefCell<Vec<usize>>,
    later: Cell<Duration>,
    since: tokio::time::Instant,
}

impl Default for Caches {
    fn default() -> Self {
        #[expect(clippy::disallowed_methods, reason = "the paused clock of the test's runtime")]
        let since = tokio::time::Instant::now();
        Self {
            manners: RefCell::new(vec![Manners::default(); NAMES.len()]),
            asked: RefCell::default(),
            dialled: RefCell::default(),
            let_go: RefCell::default(),
            later: Cell::default(),
            since,
        }
    }
}

const NAMES: [&str; 4] = ["cache-a", "cache-b", "cache-c", "cache-d"];

impl Caches {
    fn behaves(&self, number: usize, manners: Manners) {
        self.manners.borrow_mut()[number] = manners;
    }

    fn pass(&self, time: Duration) {
        self.later.set(self.later.get() + time);
    }

    #[expect(clippy::disallowed_methods, reason = "the paused clock of the runtime")]
    fn now(&self) -> Duration {
        self.since.elapsed() + self.later.get()
    }
}

struct Cache {
    number: usize,
    all: Rc<Caches>,
}

impl Dial for Rc<Caches> {
    type Source = Cache;

    async fn dial(&self, cache: &CacheInfo) -> Result<Cache> {
        let number = NAMES.iter().position(|name| *name == cache.name).unwrap();
        self.dialled.borrow_mut().push(number);
        tokio::task::yield_now().await;
        let manners = self.manners.borrow()[number].clone();
        if manners.silent {
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        match manners.closed {
            true => Err(Error::new(Kind::Retry, "nobody answers")),
            false => Ok(Cache { number, all: Rc::clone(self) }),
        }
    }

    fn now(&self) -> Duration {
        Caches::now(self)
    }
}

struct LetGo<'a>(&'a Cache, bool);

impl Drop for LetGo<'_> {
    fn drop(&mut self) {
        if !self.1 {
            self.0.all.let_go.borrow_mut().push(self.0.number);
        }
    }
}

impl ChunkSource for Cache {
    async fn manifest(&self, _: &ReadContext, _: &Digest) -> Result<Arc<Manifest>> {
        Err(Error::new(Kind::Gone, "no manifests here"))
    }

    async fn section_table(
        &self,
        _: &ReadContext,
        _: &Digest,
        section: u32,
    ) -> Result<Arc<SectionTable>> {
        let manners = self.all.manners.borrow()[self.number].clone();
        self.all.asked.borrow_mut().push((self.number, Vec::new()));
        let mut end = LetGo(self, false);
        if manners.stops {
            std::future::pending::<()>().await;
        }
        end.1 = true;
        Ok(Arc::new(SectionTable::zeros(Domain::PUBLIC, section + 1)))
    }

    async fn chunks<S: ChunkSink>(
        &self,
        _: &ReadContext,
        place: &Place,
        sink: &mut S,
    ) -> Result<()> {
        let chunks: Vec<u32> = place.chunks.iter().collect();
        self.all.asked.borrow_mut().push((self.number, chunks.clone()));
        let manners = self.all.manners.borrow()[self.number].clone();
        let mut end = LetGo(self, false);
        if manners.lies {
            sink.chunk(CHUNKS - 1, frame(CHUNKS - 1)).await?;
            sink.chunk(CHUNKS - 1, frame(CHUNKS - 1)).await?;
        }
        for chunk in chunks.iter().take(manners.gives.unwrap_or(chunks.len())) {
            if !manners.pause.is_zero() {
                tokio::time::sleep(manners.pause).await;
            }
            sink.chunk(*chunk, frame(*chunk)).await?;
        }
        if manners.stops {
            // As long as a client waits for a byte.
            tokio::time::sleep(Duration::from_secs(60)).await;
            return Err(Error::new(Kind::Retry, "nothing came"));
        }
        end.1 = true;
        manners.says.map_or(Ok(()), |kind| Err(Error::new(kind, "as it was told")))
    }
}

fn frame(chunk: u32) -> Frame {
    let plain = [chunk as u8 + 1; 4096];
    Encoder::new().unwrap().encode(Domain::PUBLIC, Digest::of_chunk(&plain), &plain)
}

fn place(section: u32) -> Place {
    let chunks = ChunkSet::of(CHUNKS, |_| true);
    Place { image: Digest::of_chunk(b"image"), section, chunks }
}

fn info(name: &str) -> CacheInfo {
    CacheInfo {
        name: name.into(),
        server_name: format!("{name}.grid"),
        endpoints: vec![([127, 0, 0, 1], 7001).into()],
        receives: false,
        api: None,
        weight: 1.0,
        draining: false,
    }
}

fn members() -> Members {
    Members::fixed(NAMES[..3].iter().map(|name| info(name)).collect::<Vec<_>>())
}

fn root() -> Digest {
    Digest::of_chunk(b"root")
}

fn spread_with(caches: &Rc<Caches>, health: &Arc<Health>) -> Spread<Rc<Caches>> {
    Spread::new(Rc::clone(caches), root(), members(), Arc::clone(health))
}

fn spread(caches: &Rc<Caches>) -> Spread<Rc<Caches>> {
    spread_with(caches, &Arc::default())
}

/// Whom a section belongs to, and who comes next.
fn turn_of(section: u32) -> [usize; 3] {
    let all: Vec<_> = NAMES[..3].iter().map(|name| Candidate { name, weight: 1.0 }).collect();
    order(&all, &root(), section).try_into().unwrap()
}

fn turn() -> [usize; 3] {
    turn_of(7)
}

async fn read_section(
    from: &Spread<Rc<Caches>>,
    ctx: &ReadContext,
    section: u32,
) -> (Result<()>, Vec<u32>) {
    let mut got: Vec<(u32, Frame)> = Vec::new();
    let result = from.chunks(ctx, &place(section), &mut got).await;
    (result, got.into_iter().map(|(chunk, _)| chunk).collect())
}

async fn read(from: &Spread<Rc<Caches>>, ctx: &ReadContext) -> (Result<()>, Vec<u32>) {
    read_section(from, ctx, 7).await
}

/// Reads sections of all caches, so that something is known of each.
async fn get_to_know(spread: &Spread<Rc<Caches>>, requests: u32) {
    for section in 100..100 + requests {
        read_section(spread, &BULK, section).await.0.unwrap();
    }
    let caches = &spread.dial;
    caches.asked.take();
    caches.let_go.take();
}

fn every_chunk_once(got: &[u32]) {
    let mut got = got.to_vec();
    got.sort_unstable();
    assert_eq!(got, (0..CHUNKS).collect::<Vec<_>>());
}

fn failing(says: Kind) -> Manners {
    Manners { gives: Some(0), says: Some(says), ..Manners::default() }
}

fn whom(caches: &Caches) -> Vec<usize> {
    caches.asked.take().into_iter().map(|(number, _)| number).collect()
}

#[tokio::test(start_paused = true)]
async fn a_section_has_one_owner_and_only_that_is_connected() {
    let caches = Rc::new(Caches::default());
    let spread = spread(&caches);
    let [owner, ..] = turn();
    for _ in 0..3 {
        let (result, got) = read(&spread, &BULK).await;
        result.unwrap();
        assert_eq!(got, (0..CHUNKS).collect::<Vec<_>>());
    }
    assert_eq!(whom(&caches), [owner; 3]);
    assert_eq!(*caches.dialled.borrow(), [owner]);
    for section in 0..50 {
        read_section(&spread, &BULK, section).await.0.unwrap();
        assert_eq!(whom(&caches), [turn_of(section)[0]]);
    }
}

#[tokio::test(start_paused = true)]
async fn two_at_once_wait_for_one_connection() {
    let caches = Rc::new(Caches::default());
    let (spread, ctx) = (spread(&caches), ReadContext::default());
    let (one, two) = tokio::join!(read(&spread, &ctx), read(&spread, &ctx));
    one.0.and(two.0).unwrap();
    assert_eq!(caches.dialled.borrow().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_one_did_not_give_is_asked_of_the_next_and_each_chunk_comes_once() {
    for says in [Some(Kind::Retry), Some(Kind::Corrupt), Some(Kind::Denied), None] {
        let caches = Rc::new(Caches::default());
        let spread = spread(&caches);
        let [first, second, third] = turn();
        caches.behaves(first, Manners { gives: Some(3), says, ..Manners::default() });
        caches.manners.borrow_mut()[second].closed = true;
        let (result, got) = read(&spread, &BULK).await;
        result.unwrap();
        assert_eq!(got, (0..CHUNKS).collect::<Vec<_>>());
        let asked = caches.asked.take();
        assert_eq!(asked[0].0, first);
        assert_eq!(asked[1], (third, (3..CHUNKS).collect()), "{says:?}");
        assert_eq!(*caches.dialled.borrow(), [first, second, third]);
    }
}

#[tokio::test(start_paused = true)]
async fn who_failed_rests_and_is_tried_again_later() {
    let caches = Rc::new(Caches::default());
    let spread = spread(&caches);
    let [first, second, _] = turn();
    let ctx = ReadContext::default();
    caches.behaves(first, failing(Kind::Retry));
    read(&spread, &ctx).await.0.unwrap();
    assert_eq!(whom(&caches), [first, second]);
    read(&spread, &ctx).await.0.unwrap();
    assert_eq!(whom(&caches), [second], "it rests");
    caches.pass(FIRST_REST);
    read(&spread, &ctx).await.0.unwrap();
    assert_eq!(whom(&caches), [first, second], "it had its chance");
    caches.pass(FIRST_REST);
    read(&spread, &ctx).await.0.unwrap();
    assert_eq!(whom(&caches), [second], "the second rest is longer");
    caches.behaves(first, Manners::default());
    caches.pass(FIRST_REST);
    read(&spread, &ctx).await.0.unwrap();
    assert_eq!(whom(&caches), [first]);
    // An overloaded cache says itself how long.
    let busy = Kind::Busy(Duration::from_secs(20));
    caches.behaves(first, failing(busy));
    read(&spread, &ctx).await.0.unwrap();
    caches.pass(Duration::from_secs(19));
    whom(&caches);
    read(&spread, &ctx).await.0.unwrap();
    assert_eq!(whom(&caches), [second]);
}

#[tokio::test(start_paused = true)]
async fn when_all_fail_those_who_rest_are_asked_too_and_the_error_can_be_waited_for() {
    let caches = Rc::new(Caches::default());
    let spread = spread(&caches);
    let order = turn();
    for (number, says) in order.into_iter().zip([Kind::Denied, Kind::Retry, Kind::Corrupt]) {
        caches.behaves(number, failing(says));
    }
    for _ in 0..2 {
        let (result, got) = read(&spread, &BULK).await;
        let error = result.unwrap_err();
        assert_eq!(error.kind(), Kind::Retry, "{error}");
        for name in &NAMES[..3] {
            assert!(error.to_string().contains(name), "{error}");
        }
        assert!(got.is_empty());
        assert_eq!(whom(&caches), order);
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_busy_says_when_to_come_back_though_others_are_dead() {
    let caches = Rc::new(Caches::default());
    let spread = spread(&caches);
    let busy = |secs| Kind::Busy(Duration::from_secs(secs));
    for (number, says) in turn().into_iter().zip([Kind::Retry, busy(3), busy(2)]) {
        caches.behaves(number, failing(says));
    }
    assert_eq!(read(&spread, &BULK).await.0.unwrap_err().kind(), busy(2));
}

#[tokio::test(start_paused = true)]
async fn an_image_that_is_gone_is_no_caches_fault() {
    let caches = Rc::new(Caches::default());
    let spread = spread(&caches);
    let order = turn();
    order.into_iter().for_each(|number| caches.behaves(number, failing(Kind::Gone)));
    assert_eq!(read(&spread, &BULK).await.0.unwrap_err().kind(), Kind::Gone);
    order.into_iter().for_each(|number| caches.behaves(number, Manners::default()));
    whom(&caches);
    read(&spread, &BULK).await.0.unwrap();
    assert_eq!(whom(&caches), [order[0]], "nobody rests");
}

#[tokio::test(start_paused = true)]
async fn a_repair_goes_on_to_the_next_cache_each_time() {
    let caches = Rc::new(Caches::default());
    let spread = spread(&caches);
    let [first, second, third] = turn();
    let repair = ReadContext { repair: true, ..ReadContext::default() };
    for _ in 0..4 {
        read(&spread, &repair).await.0.unwrap();
    }
    assert_eq!(whom(&caches), [first, second, third, first]);
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_fails_is_no_caches_fault() {
    struct Full;
    impl ChunkSink for Full {
        async fn chunk(&mut self, _: u32, _: Frame) -> Result<()> {
            Err(Error::new(Kind::Full, "no space"))
        }
    }
    let caches = Rc::new(Caches::default());
    let spread = spread(&caches);
    let [first, ..] = turn();
    let ctx = ReadContext::default();
    for _ in 0..2 {
        let error = spread.chunks(&ctx, &place(7), &mut Full).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Full);
        assert_eq!(whom(&caches), [first], "nobody else is asked, and nobody rests");
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_cache_is_not_waited_for_unless_it_is_the_last() {
    let caches = Rc::new(Caches::default());
    let spread = spread(&caches);
    let [first, second, third] = turn();
    caches.manners.borrow_mut()[first].silent = true;
    let ctx = ReadContext::default();
    tokio::time::timeout(UNKNOWN * 2, read(&spread, &ctx)).await.unwrap().0.unwrap();
    assert_eq!(whom(&caches), [second]);
    for number in [second, third] {
        caches.behaves(number, failing(Kind::Retry));
    }
    read(&spread, &ctx).await.0.unwrap();
    assert_eq!(whom(&caches), [second, third, first], "nobody else is left");
}

#[tokio::test(start_paused = true)]
async fn without_caches_it_says_so() {
    let caches = Rc::new(Caches::default());
    let spread = Spread::new(Rc::clone(&caches), root(), Members::fixed([]), Arc::default());
    let error = spread.manifest(&BULK, &Digest::ZERO).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Retry);
}

#[tokio::test(start_paused = true)]
async fn a_late_request_is_asked_twice_and_the_loser_is_let_go() {
    let caches = Rc::new(Caches::default());
    let spread = spread(&caches);
    let [first, second, _] = turn();
    get_to_know(&spread, 40).await;
    caches.behaves(first, Manners { gives: Some(3), stops: true, ..Manners::default() });
    let before = caches.now();
    let (result, got) = read(&spread, &BULK).await;
    result.unwrap();
    assert_eq!(got, (0..CHUNKS).collect::<Vec<_>>());
    let late = caches.now() - before;
    assert!(late < Duration::from_millis(150), "{late:?}: who is late is not heard to the end");
    let asked = caches.asked.take();
    assert_eq!(asked, [(first, (0..CHUNKS).collect()), (second, (3..CHUNKS).collect())]);
    assert_eq!(caches.let_go.take(), [first]);
    assert_eq!(spread.health.counts(), Counts { requests: 41, hedges: 1, ..Counts::default() });
}

#[tokio::test(start_paused = true)]
async fn a_late_table_is_asked_twice_too() {
    let caches = Rc::new(Caches::default());
    let spread = spread(&caches);
    let [first, second, _] = turn();
    get_to_know(&spread, 40).await;
    caches.behaves(first, Manners { stops: true, ..Manners::default() });
    let before = caches.now();
    let table = spread.section_table(&BULK, &Digest::ZERO, 7).await.unwrap();
    assert_eq!(table.chunks(), 8);
    let late = caches.now() - before;
    assert!(late < Duration::from_millis(150), "{late:?}: who is late is not heard to the end");
    assert_eq!(whom(&caches), [first, second]);
    assert_eq!(caches.let_go.take(), [first]);
}

#[tokio::test(start_paused = true)]
async fn without_a_budget_nobody_is_asked_twice_but_a_silent_cache_is_given_up() {
    let caches = Rc::new(Caches::default());
    let spread = spread(&caches);
    let [first, second, _] = turn();
    caches.behaves(first, Manners { gives: Some(3), stops: true, ..Manners::default() });
    let (result, got) = read(&spread, &BULK).await;
    result.unwrap();
    every_chunk_once(&got);
    assert_eq!(whom(&caches), [first, second]);
    let counts = spread.health.counts();
    assert_eq!((counts.hedges, counts.left), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn of_two_copies_the_first_counts() {
    let caches = Rc::new(Caches::default());
    let spread = spread(&caches);
    let [first, second, _] = turn();
    get_to_know(&spread, 40).await;
    // Late, and then as fast as the other.
    let late = |ms| Manners { pause: Duration::from_millis(ms), ..Manners::default() };
    caches.behaves(first, late(130));
    caches.behaves(second, late(100));
    let (result, got) = read(&spread, &BULK).await;
    result.unwrap();
    every_chunk_once(&got);
    assert_eq!(spread.health.counts().hedges, 1);
    assert_eq!(whom(&caches), [first, second]);
}

#[tokio::test(start_paused = true)]
async fn a_guests_read_is_asked_twice_sooner() {
    let caches = Rc::new(Caches::default());
    let spread = spread(&caches);
    let [first, second, _] = turn();
    let guest = ReadContext { priority: image::Priority::Guest, ..ReadContext::default() };
    for section in 100..140 {
        read_section(&spread, &guest, section).await.0.unwrap();
        read_section(&spread, &BULK, section).await.0.unwrap();
    }
    whom(&caches);
    caches.behaves(first, Manners { pause: Duration::from_millis(50), ..Manners::default() });
    read(&spread, &BULK).await.0.unwrap();
    assert_eq!(whom(&caches), [first]);
    read(&spread, &guest).await.0.unwrap();
    assert_eq!(whom(&caches), [first, second]);
}

#[tokio::test(start_paused = true)]
async fn a_cache_that_limps_is_left_out_until_it_has_proved_itself() {
    let caches = Rc::new(Caches::default());
    let spread = spread(&caches);
    let slow = turn()[0];
    let pause = |ms| Manners { pause: Duration::from_millis(ms), ..Manners::default() };
    (0..3).for_each(|number| caches.behaves(number, pause(5)));
    get_to_know(&spread, 30).await;
    caches.behaves(slow, pause(60));
    let mut asked = 0;
    while spread.health.counts().limped == 0 {
        read(&spread, &BULK).await.0.unwrap();
        asked += whom(&caches).iter().filter(|n| **n == slow).count();
    }
    assert!(asked < 32, "{asked} requests to find it out");
    for _ in 0..10 {
        read(&spread, &BULK).await.0.unwrap();
    }
    assert!(!whom(&caches).contains(&slow), "it is out");
    // One request tries; as it is slow still, no other does.
    caches.pass(FIRST_REST);
    let reads = (0..4).map(|_| read(&spread, &BULK));
    futures::future::join_all(reads).await;
    assert_eq!(whom(&caches).iter().filter(|n| **n == slow).count(), 1);
    caches.pass(FIRST_REST);
    read(&spread, &BULK).await.0.unwrap();
    assert!(!whom(&caches).contains(&slow), "the second time out is longer");
    // Three good answers bring it back.
    caches.behaves(slow, pause(5));
    caches.pass(FIRST_REST * 2);
    for _ in 0..3 {
        let reads = (0..2).map(|_| read(&spread, &BULK));
        futures::future::join_all(reads).await;
        let asked = whom(&caches);
        assert_eq!(asked.iter().filter(|n| **n == slow).count(), 1, "one at a time: {asked:?}");
    }
    let reads = (0..4).map(|_| read(&spread, &BULK));
    futures::future::join_all(reads).await;
    assert_eq!(whom(&caches), [slow; 4]);
}

/// On a crowded network all are late at times: that is no reason to end at the one that limps.
#[tokio::test(start_paused = true)]
async fn who_is_late_is_not_left_for_who_limps_and_who_limps_is_left_for_who_was() {
    let caches = Rc::new(Caches::default());
    let spread = spread(&caches);
    let [first, second, third] = turn();
    let pause = |ms| Manners { pause: Duration::from_millis(ms), ..Manners::default() };
    (0..3).for_each(|number| caches.behaves(number, pause(5)));
    get_to_know(&spread, 30).await;
    // Nobody knows yet that the third limps. The others stop in the middle, once.
    caches.behaves(third, pause(20_000));
    let stops = Manners { gives: Some(3), stops: true, ..pause(5) };
    caches.behaves(first, stops.clone());
    caches.behaves(second, stops);
    let before = caches.now();
    let reading = read(&spread, &BULK);
    let better = async {
        tokio::time::sleep(Duration::from_secs(6)).await;
        caches.behaves(first, pause(5));
        caches.behaves(second, pause(5));
        for _ in 0..8 {
            read(&spread, &BULK).await.0.unwrap();
        }
    };
    let ((result, got), ()) = tokio::join!(reading, better);
    result.unwrap();
    every_chunk_once(&got);
    let took = caches.now() - before;
    assert!(took < Duration::from_secs(30), "{took:?}: it came back from the one that limps");
}

#[tokio::test(start_paused = true)]
async fn requests_at_a_cache_that_limps_go_elsewhere() {
    let caches = Rc::new(Caches::default());
    let spread = spread(&caches);
    let slow = turn()[0];
    let pause = |ms| Manners { pause: Duration::from_millis(ms), ..Manners::default() };
    (0..3).for_each(|number| caches.behaves(number, pause(5)));
    get_to_know(&spread, 30).await;
    // The whole would take 40 s.
    caches.behaves(slow, pause(5000));
    let before = caches.now();
    let reads = (0..8).map(|_| read(&spread, &BULK));
    for (result, got) in futures::future::join_all(reads).await {
        result.unwrap();
        every_chunk_once(&got);
    }
    let took = caches.now() - before;
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_dead_cache_costs_a_process_once_and_not_each_core() {
    let (caches, health) = (Rc::new(Caches::default()), Arc::default());
    let [first, ..] = turn();
    caches.behaves(first, Manners { silent: true, ..Manners::default() });
    let cores: Vec<_> = (0..4).map(|_| spread_with(&caches, &health)).collect();
    let before = caches.now();
    let ctx = ReadContext::default();
    read(&cores[0], &ctx).await.0.unwrap();
    assert!(caches.now() - before >= UNKNOWN);
    let before = caches.now();
    for core in &cores[1..] {
        read(core, &ctx).await.0.unwrap();
    }
    assert_eq!(caches.now(), before, "the others know");
    assert_eq!(
        *caches.dialled.borrow().iter().filter(|n| **n == first).collect::<Vec<_>>(),
        [&first]
    );
}

#[tokio::test(start_paused = true)]
async fn a_cache_that_lies_is_not_believed() {
    let caches = Rc::new(Caches::default());
    let spread = spread(&caches);
    let [first, second, _] = turn();
    caches.behaves(first, Manners { lies: true, ..Manners::default() });
    let (result, got) = read(&spread, &BULK).await;
    result.unwrap();
    every_chunk_once(&got);
    assert_eq!(whom(&caches), [first, second]);
    read(&spread, &BULK).await.0.unwrap();
    assert_eq!(whom(&caches), [second], "it rests");
}

#[tokio::test(start_paused = true)]
async fn a_read_learns_who_joined_left_moved_and_drains() {
    let caches = Rc::new(Caches::default());
    let list = |names: &[&str]| names.iter().map(|name| info(name)).collect::<Vec<_>>();
    let (updates, members) = Members::new(list(&NAMES[..3]));
    let spread = Spread::new(Rc::clone(&caches), root(), members, Arc::default());
    let ctx = ReadContext::default();
    let owner = async |section| {
        read_section(&spread, &ctx, section).await.0.unwrap();
        whom(&caches)[0]
    };
    for section in 0..40 {
        assert_eq!(owner(section).await, turn_of(section)[0]);
    }
    updates.set(list(&NAMES));
    let mut joined = 0;
    for section in 0..40 {
        let now = owner(section).await;
        assert!(now == turn_of(section)[0] || now == 3, "only the new one takes sections");
        joined += u32::from(now == 3);
    }
    assert!((3..20).contains(&joined), "{joined} of 40");
    updates.set(Vec::new());
    assert_eq!(owner(7).await, owner(7).await, "a list of nobody is not believed");
    // Who drains is asked only when nobody else answers.
    let mut draining = list(&NAMES[..3]);
    draining[turn()[0]].draining = true;
    updates.set(draining.clone());
    assert_eq!(owner(7).await, turn()[1]);
    for number in &turn()[1..] {
        caches.behaves(*number, failing(Kind::Retry));
    }
    read(&spread, &ctx).await.0.unwrap();
    assert_eq!(whom(&caches), [turn()[1], turn()[2], turn()[0]]);
    for number in 0..3 {
        caches.behaves(number, Manners::default());
    }
    // One that moved is connected anew, at once.
    let mut moved = list(&NAMES[..3]);
    moved[turn()[0]].endpoints = vec![([127, 0, 0, 1], 7002).into()];
    updates.set(moved);
    caches.dialled.take();
    assert_eq!(owner(7).await, turn()[0]);
    assert_eq!(caches.dialled.take(), [turn()[0]]);
    updates.set(list(&[NAMES[turn()[1]], NAMES[turn()[2]]]));
    assert_eq!(spread.caches().len(), 2);
    assert_eq!(owner(7).await, turn()[1]);
    assert!(!spread.ways.borrow().contains_key(NAMES[turn()[0]]), "its connections are closed");
}

#[tokio::test(start_paused = true)]
async fn who_denies_is_connected_anew() {
    let caches = Rc::new(Caches::default());
    let spread = spread(&caches);
    let [first, second, _] = turn();
    caches.behaves(first, failing(Kind::Denied));
    read(&spread, &BULK).await.0.unwrap();
    caches.behaves(first, Manners::default());
    caches.pass(FIRST_REST);
    read(&spread, &BULK).await.0.unwrap();
    assert_eq!(caches.dialled.take(), [first, second, first]);
}

/// xorshift: the same manners for the same seed.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }

    /// One cache always serves: then every read must end well.
    fn manners(&mut self, number: usize) -> Manners {
        let pause = Duration::from_millis([0, 1, 5, 30, 200][self.below(5) as usize]);
        let good = Manners { pause, ..Manners::default() };
        let gives = Some(self.below(9) as usize);
        match self.below(8) {
            _ if number == 0 => good,
            0 => Manners { closed: true, ..good },
            1 => Manners { silent: true, ..good },
            2 => Manners { gives, says: Some(Kind::Retry), ..good },
            3 => Manners { gives, says: Some(Kind::Busy(Duration::from_millis(300))), ..good },
            4 => Manners { gives, stops: true, ..good },
            5 => Manners { lies: true, ..good },
            _ => good,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_caches_do_reads_end_well_and_hedges_stay_within_their_budget() {
    let mut hedges = 0;
    for seed in 1..60u64 {
        let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let (caches, health) = (Rc::new(Caches::default()), Arc::<Health>::default());
        let cores: Vec<_> = (0..2).map(|_| spread_with(&caches, &health)).collect();
        for _ in 0..30 {
            if rng.below(3) == 0 {
                let number = rng.below(3) as usize;
                caches.behaves(number, rng.manners(number));
            }
            let ctx = ReadContext {
                priority: [image::Priority::Guest, image::Priority::Background]
                    [rng.below(2) as usize],
                repair: rng.below(20) == 0,
                ..ReadContext::default()
            };
            let reads = (0..1 + rng.below(6))
                .map(|n| read_section(&cores[n as usize % 2], &ctx, rng.below(50) as u32))
                .collect::<Vec<_>>();
            for (result, got) in futures::future::join_all(reads).await {
                result.unwrap_or_else(|e| panic!("seed {seed}: {e}"));
                every_chunk_once(&got);
            }
            let counts = health.counts();
            assert!(counts.hedges * 20 <= counts.requests, "seed {seed}: {counts:?}");
        }
        hedges += health.counts().hedges;
    }
    assert!(hedges > 50, "{hedges}: a budget that nobody asks for is not tested");
}
