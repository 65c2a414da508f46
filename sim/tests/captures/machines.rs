//! A node with a volume, and a receiver before a store: both on disks that remember what was done to them.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};

use blockio::fake::MemFs;
use blockio::{Arena, BlockFile, Engine, EngineKind, EngineOptions, Fs};
use capture::{Ancestor, Changes, Disk, DiskSource, ImportOptions, Imported, Stored};
use futures::FutureExt;
use image::{
    ChunkSet, ChunkSource, Decoder, Digest, Error, ImageSink, Kind, Place, ReadContext, Result,
};
use store::testing::{ManualClock, TestStore, counted_ids};
use store::{IndexPlace, Receiver, Store, StoreOptions};
use tokio::runtime::Handle;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use volume_pool::{Aside, Captured, NewVolume, PointInTime, Shelf, Since, Verified, Volume};

use crate::content::{CHUNK, CHUNK_LOG2, Content, SECTOR, SECTORS, SIZE, Tag, bytes_of, chunks};
use crate::content::{geometry, place};

const NAME: &str = "v";
const START: u64 = 1_700_000_000;

pub fn on_one_core<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(work)
}

pub fn store_options(seed: u64) -> StoreOptions {
    let mut options = StoreOptions::system(IndexPlace::Memory);
    options.clock = ManualClock::at(START).clock();
    options.ids = counted_ids(seed);
    options
}

/// A process that opens the store.
pub async fn open_store(objects: &TestStore, options: StoreOptions) -> Store {
    Store::open(objects.objects(), Handle::current(), options).await.unwrap()
}

/// The receiver as a node sees it that sends under its own name.
pub fn receiver(store: &Store) -> Receiver {
    Receiver::new(store).for_owner(Digest([1; 32]))
}

/// The images that can be seen, each of which is whole.
pub async fn images(store: &Store) -> BTreeSet<Digest> {
    let (ctx, mut whole) = (ReadContext::default(), BTreeSet::new());
    for image in store.images().await.unwrap() {
        match store.manifest(&ctx, &image).await {
            Ok(_) => {
                pull(store, &image).await.unwrap();
                whole.insert(image);
            }
            // One that was torn, and that nobody was told of.
            Err(error) => assert_eq!(error.kind(), Kind::Corrupt, "{error}"),
        }
    }
    whole
}

/// Reads all of an image down to its plain bytes.
pub async fn pull(store: &Store, image: &Digest) -> Result<()> {
    let ctx = ReadContext::default();
    let manifest = store.manifest(&ctx, image).await?;
    let mut decoder = Decoder::new()?;
    for (section, _) in manifest.present() {
        let table = store.section_table(&ctx, image, section).await?;
        let chunks = ChunkSet::of(table.chunks(), |c| !table.digests()[c as usize].is_zero());
        let place = Place { image: *image, section, chunks };
        let mut frames = Vec::new();
        store.chunks(&ctx, &place, &mut frames).await?;
        assert_eq!(frames.len(), place.chunks.count() as usize);
        for (chunk, frame) in frames {
            let mut plain = vec![0; manifest.geometry().chunk_len_at(section, chunk)];
            decoder.decode(&frame, &table.digests()[chunk as usize], &mut plain)?;
        }
    }
    Ok(())
}

/// Both machines, as they are before anything happens: the image that the volume is made of is stored, and all of it
/// is in the volume.
pub struct Machines {
    pub disk: MemFs,
    pub objects: TestStore,
}

impl Machines {
    pub async fn new() -> Self {
        let objects = TestStore::new(ManualClock::at(START).clock());
        let store = open_store(&objects, store_options(1)).await;
        let original = Content::original();
        let disk = Arc::new(Still(original.clone()));
        let all = Changes::<Store> { ranges: std::iter::once(0..SIZE).collect(), ancestor: None };
        let stored = save(disk, &all, &receiver(&store), &Stored::default()).await.unwrap();
        assert_eq!(stored.image, original.image());
        let disk = MemFs::new();
        make_volume(&disk.fs(), &original).await.unwrap();
        disk.settle();
        Self { disk, objects }
    }
}

async fn make_volume(fs: &Fs, original: &Content) -> Result<()> {
    Shelf::open(fs.clone(), "/volumes".into())?.create(&NewVolume {
        name: NAME.into(),
        id: [3; 16],
        geometry: geometry(),
        image: Some(Arc::new(original.manifest())),
        shares: false,
        device: None,
        created: 0,
    })?;
    let node = Node::open(fs)?;
    for (section, table) in (0..).zip(original.tables()) {
        node.volume.fill_zeros(section, &table).await?;
        let there = (0..).zip(table.digests()).filter(|(_, digest)| !digest.is_zero());
        for (chunk, digest) in there {
            let plain =
                original.chunk(geometry().chunk_start(section, chunk)).expect("one of ours");
            let mut buf = node.arena.acquire().await;
            buf.copy_from(&plain);
            node.volume.fill(section, chunk, Verified::check(buf, plain.len(), digest)?).await?;
        }
    }
    assert!(node.volume.is_complete());
    node.volume.close().await
}

async fn save<K: ImageSink, S: ChunkSource>(
    disk: Arc<dyn Disk>,
    changes: &Changes<S>,
    sink: &K,
    stored: &Stored,
) -> Result<Imported> {
    let options = ImportOptions {
        chunk_log2: CHUNK_LOG2,
        workers: std::num::NonZeroUsize::MIN,
        memory: 0,
        parent: changes.ancestor.as_ref().map(|ancestor| ancestor.manifest.identity()),
        ..ImportOptions::default()
    };
    let source = DiskSource::disk(NAME, SECTOR as u32, disk)?;
    capture::save(source, changes, sink, stored, options).await
}

/// The process that has the volume.
pub struct Node {
    shelf: Shelf,
    pub volume: Volume,
    arena: Arena,
}

impl Node {
    pub fn open(fs: &Fs) -> Result<Self> {
        let shelf = Shelf::open(fs.clone(), "/volumes".into())?;
        shelf.tidy()?;
        let engine = Engine::start(EngineOptions::kind(EngineKind::Portable)).unwrap();
        let volume = Volume::open(shelf.take(NAME)?, engine)?;
        let arena = Arena::new("test", CHUNK as usize, 1 << 20).unwrap();
        Ok(Self { shelf, volume, arena })
    }

    /// Writes to some sectors of a window.
    pub async fn write(&self, sectors: Range<usize>, tag: Tag) -> Result<()> {
        let mut buf = self.arena.acquire().await;
        buf.copy_from(&bytes_of(&vec![tag; sectors.len()]));
        self.volume.write(place(sectors.start), buf).await.0
    }

    pub async fn content(&self) -> Content {
        let mut tags = Vec::with_capacity(SECTORS);
        for (at, _) in chunks() {
            let mut buf = self.arena.acquire().await;
            buf.set_len(CHUNK as usize);
            let (read, buf) = self.volume.read(at, buf).await;
            read.unwrap();
            for sector in buf.chunks(SECTOR as usize) {
                let tag = Tag::from_le_bytes(sector[..4].try_into().unwrap());
                assert!(sector.chunks(4).all(|part| part == &sector[..4]), "a torn sector");
                tags.push(tag);
            }
        }
        Content(tags)
    }

    /// The image that changes count from.
    pub fn since(&self) -> Digest {
        match self.volume.since() {
            Since::Image(image) => image,
            other => panic!("{other:?}"),
        }
    }

    /// Makes an image of the volume as it is when this is called, of what has changed; `meanwhile` is done after
    /// each thing that the capture asks of the volume.
    pub async fn capture<K: ImageSink + Send + 'static>(
        &self,
        store: &Store,
        sink: K,
        meanwhile: impl AsyncFnMut(),
    ) -> Result<Imported> {
        let saved = self.saved(store, sink, meanwhile).await;
        match &saved {
            Ok(imported) => {
                self.shelf.note_since(&self.volume.identity(), &imported.image)?;
                self.volume.captured(&imported.image).await?;
            }
            Err(_) => self.volume.not_captured(),
        }
        saved
    }

    async fn saved<K: ImageSink + Send + 'static>(
        &self,
        store: &Store,
        sink: K,
        mut meanwhile: impl AsyncFnMut(),
    ) -> Result<Imported> {
        self.volume.prepare_point(Captured::Changed { edge: None }).await?;
        let scratch = self.shelf.scratch(NAME)?;
        let point = self.volume.fix_point(Captured::Changed { edge: None }, scratch).await?;
        let manifest = store.manifest(&ReadContext::default(), &self.since()).await?;
        let ancestor = Some(Ancestor { manifest, source: store.clone() });
        let changes = Changes { ranges: point.ranges(), ancestor };
        let (asks, mut asked) = unbounded_channel();
        let disk = Arc::new(Then { asks, aside: Arc::clone(point.aside()) });
        let (done, mut ended) = oneshot::channel();
        // On a thread of its own, as a node has it: it waits for what it asks.
        let thread = std::thread::spawn(move || {
            let _ = done.send(on_one_core(save(disk, &changes, &sink, &Stored::default())));
        });
        let saved = loop {
            tokio::select! {
                biased;
                Some(ask) = asked.recv() => {
                    ask(&self.volume, &point);
                    meanwhile().await;
                }
                saved = &mut ended => break saved,
            }
        };
        thread.join().expect("it does not panic");
        saved.expect("it has said how it ended")
    }
}

/// A disk that nobody writes to.
struct Still(Content);

impl Disk for Still {
    fn size(&self) -> u64 {
        SIZE
    }

    fn next_data(&self, from: u64) -> Result<Option<Range<u64>>> {
        let after = chunks().map(|(at, _)| at).find(|at| at + CHUNK > from);
        Ok(after.map(|at| at.max(from)..at + CHUNK))
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        for (at, part) in (offset..).step_by(CHUNK as usize).zip(buf.chunks_mut(CHUNK as usize)) {
            part.copy_from_slice(&self.0.chunk(at).unwrap_or_else(|| vec![0; part.len()]));
        }
        Ok(())
    }

    fn check_unchanged(&self) -> Result<()> {
        Ok(())
    }
}

type Ask = Box<dyn FnOnce(&Volume, &PointInTime) + Send>;

/// A volume as it was at a point in time, for the threads of a capture. The volume's own core answers.
struct Then {
    asks: UnboundedSender<Ask>,
    aside: Arc<Aside>,
}

impl Then {
    fn ask<T: Send + 'static>(
        &self,
        what: impl FnOnce(&Volume, &PointInTime) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (reply, answer): (SyncSender<Result<T>>, _) = sync_channel(1);
        let ask: Ask = Box::new(move |volume, point| drop(reply.send(what(volume, point))));
        let ended = || Error::new(Kind::Cancelled, "the capture has ended");
        self.asks.send(ask).map_err(|_| ended())?;
        answer.recv().map_err(|_| ended())?
    }
}

impl Disk for Then {
    fn size(&self) -> u64 {
        SIZE
    }

    fn next_data(&self, from: u64) -> Result<Option<Range<u64>>> {
        Ok(Some(from..SIZE))
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let range = offset..offset + buf.len() as u64;
        let mut read = |file: &BlockFile, part: Range<u64>| {
            let within = (part.start - offset) as usize..(part.end - offset) as usize;
            file.read_exact_at(&mut buf[within], part.start).map_err(|e| Error::io("volume", e))
        };
        let files = self.ask(move |volume, _| {
            volume.files_of(&range).now_or_never().expect("all of the volume is here")
        })?;
        files.into_iter().try_for_each(|(file, part)| read(&file, part))?;
        self.aside.read_over(buf, offset)?;
        self.aside.spill();
        Ok(())
    }

    fn check_unchanged(&self) -> Result<()> {
        self.aside.check()
    }

    fn stored(&self, range: Range<u64>) {
        let done: Ask = Box::new(move |_, point| point.done(&range));
        let _ = self.asks.send(done);
    }
}
