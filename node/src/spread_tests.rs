use super::*;
use image::{Domain, Encoder};
use std::cell::RefCell;

const CHUNKS: u32 = 8;

/// How a cache behaves.
#[derive(Clone, Debug, Default)]
struct Manners {
    /// Does not let anybody connect.
    closed: bool,
    /// Says nothing at all.
    silent: bool,
    /// Chunks that it gives of each request.
    gives: Option<usize>,
    /// What it says after them.
    says: Option<Kind>,
}

/// Three caches, and what they were asked.
#[derive(Default)]
struct Caches {
    manners: RefCell<[Manners; 3]>,
    asked: RefCell<Vec<(usize, Vec<u32>)>>,
    dialled: RefCell<Vec<usize>>,
    now: Cell<Duration>,
}

struct Cache {
    number: usize,
    all: Rc<Caches>,
}

impl Dial for Rc<Caches> {
    type Source = Cache;

    async fn dial(&self, number: usize) -> Result<Cache> {
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
        self.now.get()
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
        _: u32,
    ) -> Result<Arc<SectionTable>> {
        Err(Error::new(Kind::Gone, "no tables here"))
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
        for chunk in chunks.iter().take(manners.gives.unwrap_or(chunks.len())) {
            sink.chunk(*chunk, frame(*chunk)).await?;
        }
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

fn spread(caches: &Rc<Caches>) -> Spread<Rc<Caches>> {
    let names = ["cache-a", "cache-b", "cache-c"].map(str::to_owned);
    Spread::new(Rc::clone(caches), Digest::of_chunk(b"root"), names)
}

fn turn(of: &Spread<Rc<Caches>>) -> [usize; 3] {
    of.turn(&ReadContext::default(), 7).try_into().unwrap()
}

async fn read(from: &Spread<Rc<Caches>>, ctx: &ReadContext) -> (Result<()>, Vec<u32>) {
    let mut got: Vec<(u32, Frame)> = Vec::new();
    let result = from.chunks(ctx, &place(7), &mut got).await;
    (result, got.into_iter().map(|(chunk, _)| chunk).collect())
}

fn whom(caches: &Caches) -> Vec<usize> {
    caches.asked.take().into_iter().map(|(number, _)| number).collect()
}

#[tokio::test]
async fn a_section_has_one_owner_and_only_that_is_connected() {
    let caches = Rc::new(Caches::default());
    let spread = spread(&caches);
    let [owner, ..] = turn(&spread);
    for _ in 0..3 {
        let (result, got) = read(&spread, &ReadContext::default()).await;
        result.unwrap();
        assert_eq!(got, (0..CHUNKS).collect::<Vec<_>>());
    }
    assert_eq!(whom(&caches), [owner; 3]);
    assert_eq!(*caches.dialled.borrow(), [owner]);
    let owners: std::collections::BTreeSet<_> =
        (0..50).map(|section| spread.turn(&ReadContext::default(), section)[0]).collect();
    assert_eq!(owners.len(), 3, "sections spread over all");
}

#[tokio::test]
async fn two_at_once_wait_for_one_connection() {
    let caches = Rc::new(Caches::default());
    let (spread, ctx) = (spread(&caches), ReadContext::default());
    let (one, two) = tokio::join!(read(&spread, &ctx), read(&spread, &ctx));
    one.0.and(two.0).unwrap();
    assert_eq!(caches.dialled.borrow().len(), 1);
}

#[tokio::test]
async fn what_one_did_not_give_is_asked_of_the_next_and_each_chunk_comes_once() {
    for says in [Some(Kind::Retry), Some(Kind::Corrupt), Some(Kind::Denied), None] {
        let caches = Rc::new(Caches::default());
        let spread = spread(&caches);
        let [first, second, third] = turn(&spread);
        caches.manners.borrow_mut()[first] = Manners { gives: Some(3), says, ..Manners::default() };
        caches.manners.borrow_mut()[second].closed = true;
        let (result, got) = read(&spread, &ReadContext::default()).await;
        result.unwrap();
        assert_eq!(got, (0..CHUNKS).collect::<Vec<_>>());
        let asked = caches.asked.take();
        assert_eq!(asked[0].0, first);
        assert_eq!(asked[1], (third, (3..CHUNKS).collect()), "{says:?}");
        assert_eq!(*caches.dialled.borrow(), [first, second, third]);
    }
}

#[tokio::test]
async fn who_failed_rests_and_is_tried_again_later() {
    let caches = Rc::new(Caches::default());
    let spread = spread(&caches);
    let [first, second, _] = turn(&spread);
    let ctx = ReadContext::default();
    caches.manners.borrow_mut()[first] =
        Manners { gives: Some(0), says: Some(Kind::Retry), ..Manners::default() };
    read(&spread, &ctx).await.0.unwrap();
    assert_eq!(whom(&caches), [first, second]);
    read(&spread, &ctx).await.0.unwrap();
    assert_eq!(whom(&caches), [second], "it rests");
    caches.now.set(FIRST_REST);
    read(&spread, &ctx).await.0.unwrap();
    assert_eq!(whom(&caches), [first, second], "it had its chance");
    caches.now.set(FIRST_REST * 2);
    read(&spread, &ctx).await.0.unwrap();
    assert_eq!(whom(&caches), [second], "the second rest is longer");
    caches.manners.borrow_mut()[first] = Manners::default();
    caches.now.set(FIRST_REST * 3);
    read(&spread, &ctx).await.0.unwrap();
    assert_eq!(whom(&caches), [first]);
    // An overloaded cache says itself how long.
    let busy = Kind::Busy(Duration::from_secs(20));
    caches.manners.borrow_mut()[first] =
        Manners { gives: Some(0), says: Some(busy), ..Manners::default() };
    read(&spread, &ctx).await.0.unwrap();
    caches.now.set(FIRST_REST * 3 + Duration::from_secs(19));
    whom(&caches);
    read(&spread, &ctx).await.0.unwrap();
    assert_eq!(whom(&caches), [second]);
}

#[tokio::test]
async fn when_all_fail_those_who_rest_are_asked_too_and_the_error_can_be_waited_for() {
    let caches = Rc::new(Caches::default());
    let spread = spread(&caches);
    let order = turn(&spread);
    for (number, says) in order.into_iter().zip([Kind::Denied, Kind::Retry, Kind::Gone]) {
        caches.manners.borrow_mut()[number] =
            Manners { gives: Some(0), says: Some(says), ..Manners::default() };
    }
    for _ in 0..2 {
        let (result, got) = read(&spread, &ReadContext::default()).await;
        let error = result.unwrap_err();
        assert_eq!(error.kind(), Kind::Retry, "{error}");
        assert!(error.to_string().contains("cache-"), "{error}");
        assert!(got.is_empty());
        assert_eq!(whom(&caches), order);
    }
}

#[tokio::test]
async fn a_repair_goes_on_to_the_next_cache_each_time() {
    let caches = Rc::new(Caches::default());
    let spread = spread(&caches);
    let [first, second, third] = turn(&spread);
    let repair = ReadContext { repair: true, ..ReadContext::default() };
    for _ in 0..4 {
        read(&spread, &repair).await.0.unwrap();
    }
    assert_eq!(whom(&caches), [first, second, third, first]);
}

#[tokio::test]
async fn a_sink_that_fails_is_no_caches_fault() {
    struct Full;
    impl ChunkSink for Full {
        async fn chunk(&mut self, _: u32, _: Frame) -> Result<()> {
            Err(Error::new(Kind::Full, "no space"))
        }
    }
    let caches = Rc::new(Caches::default());
    let spread = spread(&caches);
    let [first, ..] = turn(&spread);
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
    let [first, second, third] = turn(&spread);
    caches.manners.borrow_mut()[first].silent = true;
    let ctx = ReadContext::default();
    tokio::time::timeout(PATIENCE * 2, read(&spread, &ctx)).await.unwrap().0.unwrap();
    assert_eq!(whom(&caches), [second]);
    for number in [second, third] {
        caches.manners.borrow_mut()[number] =
            Manners { gives: Some(0), says: Some(Kind::Retry), ..Manners::default() };
    }
    read(&spread, &ctx).await.0.unwrap();
    assert_eq!(whom(&caches), [second, third, first], "nobody else is left");
}

#[tokio::test]
async fn without_caches_it_says_so() {
    let caches = Rc::new(Caches::default());
    let spread = Spread::new(Rc::clone(&caches), Digest::ZERO, []);
    let error = spread.manifest(&ReadContext::default(), &Digest::ZERO).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Retry);
}
