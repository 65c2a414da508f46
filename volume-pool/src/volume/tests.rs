//! A volume against a simple model: what may be in each sector, now and after a power cut at any instant.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use blockio::fake::{CrashImage, CrashPlan, FaultOp, FaultPlan, MemFs};
use blockio::{Arena, Engine, EngineKind, EngineOptions, Fs};
use image::{Digest, Domain, Error, Geometry, Kind, Manifest, SectionTable};
use proptest::prelude::*;

use super::{Files, Volume};
use crate::layout::BLOCK;
use crate::{NewVolume, Shelf, Verified};

const SECTOR: u64 = 512;
const CHUNK_LOG2: u8 = 14;
const CHUNK: u64 = 1 << CHUNK_LOG2;
/// Ends within a block of its last chunk.
const IMAGE: u64 = 4 * CHUNK + BLOCK + 3 * SECTOR;
const VOLUME: u64 = 7 * CHUNK + 2 * BLOCK;
/// The image has only zeros here.
const ZERO_CHUNK: u64 = 2;

/// What a sector holds: the number of the write that put it there; below [`OF_IMAGE`] it is a guest's.
type Tag = u32;
const OF_IMAGE: Tag = 1 << 24;
const ZEROS: Tag = 0;

fn tag_of_image(sector: u64) -> Tag {
    let at = sector * SECTOR;
    match at < IMAGE && at / CHUNK != ZERO_CHUNK {
        true => OF_IMAGE + sector as Tag,
        false => ZEROS,
    }
}

fn sector_of(tag: Tag) -> Vec<u8> {
    tag.to_le_bytes().repeat(SECTOR as usize / 4)
}

fn image_chunk(chunk: u64) -> Vec<u8> {
    let sectors = chunk * CHUNK / SECTOR..((chunk + 1) * CHUNK).min(IMAGE) / SECTOR;
    sectors.flat_map(|s| sector_of(tag_of_image(s))).collect()
}

fn table() -> SectionTable {
    let digests = (0..IMAGE.div_ceil(CHUNK)).map(|chunk| match chunk {
        ZERO_CHUNK => Digest::ZERO,
        _ => Digest::of_chunk(&image_chunk(chunk)),
    });
    SectionTable::new(Domain(0), digests.collect())
}

fn new_volume() -> NewVolume {
    let geometry = Geometry::new(IMAGE, 512, CHUNK_LOG2).unwrap();
    NewVolume {
        name: "v".into(),
        id: [3; 16],
        geometry: Geometry::new(VOLUME, 512, CHUNK_LOG2).unwrap(),
        image: Some(Arc::new(Manifest::new(Domain(0), geometry, vec![table().digest()]))),
        created: 0,
    }
}

fn shelf(fs: &Fs) -> Shelf {
    Shelf::open(fs.clone(), "/volumes".into()).unwrap()
}

/// A volume under test, and how it is got at.
struct Rig {
    volume: Rc<Volume>,
    arena: Arena,
}

impl Rig {
    fn open(files: Files) -> Result<Self, Error> {
        let engine = Engine::start(EngineOptions::kind(EngineKind::Portable)).unwrap();
        let arena = Arena::new("test", 64 << 10, 1 << 20).unwrap();
        Ok(Self { volume: Rc::new(Volume::open(files, engine)?), arena })
    }

    fn on(fs: &Fs) -> Result<Self, Error> {
        Self::open(shelf(fs).take("v")?)
    }

    async fn write(&self, range: Range<u64>, tag: Tag) -> Result<(), Error> {
        let mut buf = self.arena.acquire().await;
        buf.copy_from(&sector_of(tag).repeat(((range.end - range.start) / SECTOR) as usize));
        self.volume.write(range.start, buf).await.0
    }

    async fn tags(&self, range: Range<u64>) -> Result<Vec<Tag>, Error> {
        let mut buf = self.arena.acquire().await;
        buf.set_len((range.end - range.start) as usize);
        let (read, buf) = self.volume.read(range.start, buf).await;
        read?;
        Ok(buf
            .chunks(SECTOR as usize)
            .map(|sector| {
                let tag = Tag::from_le_bytes(sector[..4].try_into().unwrap());
                assert_eq!(sector, sector_of(tag), "a torn sector");
                tag
            })
            .collect())
    }

    async fn fill(&self, chunk: u64) -> Result<(), Error> {
        if chunk == ZERO_CHUNK {
            return self.volume.fill_zeros(0, &table()).await.map(drop);
        }
        let plain = image_chunk(chunk);
        let mut buf = self.arena.acquire().await;
        buf.copy_from(&plain);
        let plain = Verified::check(buf, plain.len(), &Digest::of_chunk(&plain)).unwrap();
        self.volume.fill(0, chunk as u32, plain).await.map(drop)
    }

    /// Brings whatever is asked for, for ever.
    async fn bring(&self) {
        loop {
            for chunk in self.volume.next_wanted().await {
                self.fill(chunk).await.unwrap();
            }
        }
    }

    /// Does `work` while chunks are brought.
    async fn served<T>(&self, work: impl Future<Output = T>) -> T {
        tokio::select! {
            done = work => done,
            () = self.bring() => unreachable!("brings for ever"),
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write(Range<u64>),
    Zero(Range<u64>, bool),
    Discard(Range<u64>),
    Flush,
    Fill(u64),
    Reopen,
}

fn sectors() -> impl Strategy<Value = Range<u64>> {
    // Short ones, ones along blocks and chunks, and long ones.
    let unit = prop_oneof![4 => Just(SECTOR), 3 => Just(BLOCK), 2 => Just(CHUNK)];
    (unit, 0..VOLUME / SECTOR, 1..6u64).prop_map(|(unit, at, len)| {
        let start = at * SECTOR / unit * unit;
        start..(start + len * unit).min(VOLUME).min(start + (64 << 10))
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => sectors().prop_map(Step::Write),
        1 => (sectors(), any::<bool>()).prop_map(|(r, b)| Step::Zero(r, b)),
        1 => sectors().prop_map(Step::Discard),
        3 => Just(Step::Flush),
        3 => (0..IMAGE.div_ceil(CHUNK)).prop_map(Step::Fill),
        1 => Just(Step::Reopen),
    ]
}

/// What each sector holds, and how it came to that.
struct Model {
    now: Vec<Tag>,
    /// By step: what was there when the flush in it began.
    flushed: BTreeMap<usize, Vec<Tag>>,
    /// By step: what it may have put where.
    put: BTreeMap<usize, (Range<u64>, Tag)>,
}

impl Model {
    fn new() -> Self {
        let now = (0..VOLUME / SECTOR).map(tag_of_image).collect();
        Self { now, flushed: BTreeMap::new(), put: BTreeMap::new() }
    }

    fn put(&mut self, step: usize, range: Range<u64>, tag: Tag) {
        let sectors = range.start / SECTOR..range.end / SECTOR;
        self.now[sectors.start as usize..sectors.end as usize].fill(tag);
        self.put.insert(step, (sectors, tag));
    }

    /// Whether a disk on which this flush was the last to return, and this step the last to begin, may hold
    /// these.
    fn allows(
        &self,
        flushed: Option<usize>,
        begun: Option<usize>,
        found: &[Tag],
    ) -> Result<(), String> {
        let start = Model::new().now;
        let base = flushed.map_or(&start, |step| &self.flushed[&step]);
        let since = flushed.map_or(0, |step| step + 1)..begun.map_or(0, |step| step + 1);
        let later =
            if since.is_empty() { BTreeMap::new() } else { self.put.range(since).collect() };
        for (sector, (tag, base)) in found.iter().zip(base).enumerate() {
            let put =
                later.values().any(|(sectors, t)| sectors.contains(&(sector as u64)) && t == tag);
            if tag != base && !put {
                return Err(format!("sector {sector} holds {tag}, was {base}"));
            }
        }
        Ok(())
    }
}

/// Does the steps, noting on the disk when each begins and each flush returns.
async fn run(disk: &MemFs, steps: &[Step]) -> Model {
    let mut model = Model::new();
    let mut rig = Rig::on(&disk.fs()).unwrap();
    for (number, step) in steps.iter().enumerate() {
        disk.mark(format!("step {number}"));
        let tag = number as Tag + 1;
        match step.clone() {
            Step::Write(range) => {
                model.put(number, range.clone(), tag);
                rig.served(rig.write(range, tag)).await.unwrap();
            }
            Step::Zero(range, give_back) => {
                model.put(number, range.clone(), ZEROS);
                rig.served(rig.volume.zero(range, give_back)).await.unwrap();
            }
            Step::Discard(range) => {
                let blocks = range.start.next_multiple_of(BLOCK)..range.end / BLOCK * BLOCK;
                if !blocks.is_empty() {
                    model.put(number, blocks, ZEROS);
                }
                rig.volume.discard(range).await.unwrap();
            }
            Step::Flush => {
                model.flushed.insert(number, model.now.clone());
                rig.volume.flush().await.unwrap();
                disk.mark(format!("flushed {number}"));
            }
            Step::Fill(chunk) => rig.fill(chunk).await.unwrap(),
            Step::Reopen => {
                model.flushed.insert(number, model.now.clone());
                rig.volume.close().await.unwrap();
                disk.mark(format!("flushed {number}"));
                drop(rig);
                rig = Rig::on(&disk.fs()).unwrap();
            }
        }
        // Now and then everything is looked at.
        if number % 7 == 6 {
            let found = rig.served(rig.tags(0..VOLUME / 2)).await.unwrap();
            assert_eq!(found, model.now[..found.len()], "after step {number}");
        }
    }
    model
}

async fn all_tags(rig: &Rig) -> Vec<Tag> {
    let mut all = rig.served(rig.tags(0..64 << 10)).await.unwrap();
    all.extend(rig.served(rig.tags(64 << 10..VOLUME)).await.unwrap());
    all
}

fn last(image: &CrashImage, what: &str) -> Option<usize> {
    image.marks().filter_map(|m| m.strip_prefix(what)?.trim().parse().ok()).last()
}

async fn check(image: &CrashImage, model: &Model) {
    let rig = Rig::on(&image.fs()).unwrap_or_else(|e| panic!("{image}: {e}"));
    let found = all_tags(&rig).await;
    let allowed = model.allows(last(image, "flushed"), last(image, "step"), &found);
    allowed.unwrap_or_else(|why| panic!("{image}: {why}"));
    // Whatever differs from the image is known to have changed.
    let maps = rig.volume.maps.borrow();
    for (sector, tag) in found.iter().enumerate() {
        let sector = sector as u64;
        let block = sector * SECTOR / BLOCK;
        let known = *tag == tag_of_image(sector) || maps.changed.all(block..block + 1);
        assert!(known, "{image}: sector {sector} has changed unnoticed");
    }
}

fn on_one_core<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(work)
}

fn fresh_disk() -> MemFs {
    let disk = MemFs::new();
    shelf(&disk.fs()).create(&new_volume()).unwrap();
    disk.settle();
    disk
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_power_cut_loses_nothing_that_was_flushed(steps in prop::collection::vec(step(), 1..14), seed in any::<u64>()) {
        on_one_core(async {
            let disk = fresh_disk();
            let model = run(&disk, &steps).await;
            let plan = CrashPlan { seed, per_point: 6, torn: true };
            for image in disk.crash_images(plan) {
                check(&image, &model).await;
            }
        });
    }

    #[test]
    fn reads_see_what_was_written(steps in prop::collection::vec(step(), 1..60)) {
        on_one_core(async {
            let disk = fresh_disk();
            let model = run(&disk, &steps).await;
            let rig = Rig::on(&disk.fs());
            // Closed or not: the page cache outlives the process.
            if let Ok(rig) = rig {
                // What was not flushed may be overwritten by what arrives anew, as after a power cut.
                let found = all_tags(&rig).await;
                let last = model.flushed.keys().last().copied();
                model.allows(last, Some(steps.len()), &found).unwrap();
            }
        });
    }
}
