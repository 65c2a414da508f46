//! A volume against a simple model: what may be in each sector, now and after a power cut at any instant.

mod builds;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use blockio::fake::{CrashImage, CrashPlan, Fault, FaultOp, FaultPlan, MemFs};
use blockio::{Arena, BlockFile, Engine, EngineKind, EngineOptions, Fs, OpenMode};
use image::{Digest, Domain, Error, Geometry, Kind, Manifest, SectionTable};
use proptest::prelude::*;

use super::{Captured, Files, Original, PointInTime, Volume};
use crate::layout::BLOCK;
use crate::maps::Bits;
use crate::{NewVolume, Shelf, Since, Unshared, Verified};

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
        shares: false,
        device: None,
        created: 0,
    }
}

fn shelf(fs: &Fs) -> Shelf {
    Shelf::open(fs.clone(), "/volumes".into()).unwrap()
}

fn original() -> Original {
    let image = new_volume().image.unwrap();
    Original { image: image.identity(), geometry: *image.geometry() }
}

/// A volume under test, and how it is got at.
struct Rig {
    volume: Rc<Volume>,
    /// What it leans on, if it does.
    base: Option<Rc<Volume>>,
    arena: Arena,
}

impl Rig {
    fn open(files: Files, base: Option<Files>) -> Result<Self, Error> {
        let engine = Engine::start(EngineOptions::kind(EngineKind::Portable)).unwrap();
        let arena = Arena::new("test", 64 << 10, 1 << 20).unwrap();
        let volume = Rc::new(Volume::open(files, engine.clone())?);
        let base = base.map(|files| Volume::open(files, engine).map(Rc::new)).transpose()?;
        if let Some(base) = &base {
            volume.lean_on(Rc::clone(base))?;
        }
        Ok(Self { volume, base, arena })
    }

    fn on(fs: &Fs) -> Result<Self, Error> {
        let shelf = shelf(fs);
        let files = shelf.take("v")?;
        let leans = files.identity.get().shares && !files.identity.get().plain;
        let image = files.image.as_ref().filter(|_| leans);
        let base = image.map(|image| shelf.take_base(image, 0)).transpose()?;
        Self::open(files, base)
    }

    /// Who is filled.
    fn filled(&self) -> &Volume {
        self.base.as_deref().unwrap_or(&self.volume)
    }

    /// Fills all, and makes it plain.
    async fn ripen(&self) -> Result<(), Error> {
        for chunk in 0..IMAGE.div_ceil(CHUNK) {
            self.fill(chunk).await?;
        }
        if let Some(base) = &self.base {
            base.become_plain().await?;
            self.volume.take_over(3).await?;
        }
        self.volume.become_plain().await
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
            return self.filled().fill_zeros(0, &table()).await;
        }
        let plain = image_chunk(chunk);
        let mut buf = self.arena.acquire().await;
        buf.copy_from(&plain);
        let plain = Verified::check(buf, plain.len(), &Digest::of_chunk(&plain)).unwrap();
        self.filled().fill(0, chunk as u32, plain).await.map(drop)
    }

    /// Brings whatever is asked for, for ever.
    async fn bring(&self) {
        loop {
            for chunk in self.filled().next_wanted().await {
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
    Ripen,
    Reopen,
    /// Fixes a point in time, of all if so.
    Fix(bool),
    /// Reads it, and ends the capture: with an image if so.
    Take(bool),
}

/// Steps that are taken at the same time; each first lets the others go on so often.
type Round = Vec<(Step, usize)>;

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
        1 => any::<bool>().prop_map(Step::Fix),
        1 => prop::bool::weighted(0.8).prop_map(Step::Take),
    ]
}

fn round() -> impl Strategy<Value = Round> {
    prop_oneof![
        4 => step().prop_map(|step| vec![(step, 0)]),
        4 => prop::collection::vec((step(), 0..4usize), 2..6),
        1 => (step(), 0..40usize).prop_map(|(step, wait)| vec![(Step::Ripen, 0), (step, wait)]),
        1 => Just(vec![(Step::Reopen, 0)]),
    ]
}

/// What each sector may hold, and how it came to that.
struct Model {
    /// Of writes at the same time any may have been the last.
    now: Vec<Vec<Tag>>,
    /// By round: what was there before it, if a flush in it has returned.
    flushed: BTreeMap<usize, Vec<Vec<Tag>>>,
    /// By round: what was put where.
    put: BTreeMap<usize, Vec<(Range<u64>, Tag)>>,
}

impl Model {
    fn new() -> Self {
        let now = (0..VOLUME / SECTOR).map(|s| vec![tag_of_image(s)]).collect();
        Self { now, flushed: BTreeMap::new(), put: BTreeMap::new() }
    }

    /// What a step of this round will put where.
    fn put(&mut self, round: usize, step: &Step, tag: Tag) {
        let (range, tag) = match step {
            Step::Write(range) => (range.clone(), tag),
            Step::Zero(range, _) => (range.clone(), ZEROS),
            Step::Discard(range) => {
                let end = if range.end == VOLUME { VOLUME } else { range.end / BLOCK * BLOCK };
                (range.start.next_multiple_of(BLOCK)..end, ZEROS)
            }
            _ => return,
        };
        if !range.is_empty() {
            let sectors = range.start / SECTOR..range.end / SECTOR;
            self.put.entry(round).or_default().push((sectors, tag));
        }
    }

    /// What may be there while a round goes on.
    fn during(&self, round: usize) -> Vec<Vec<Tag>> {
        let mut all = self.now.clone();
        for (sectors, tag) in self.put.get(&round).into_iter().flatten() {
            sectors.clone().for_each(|sector| all[sector as usize].push(*tag));
        }
        all
    }

    /// All of a round has returned.
    fn ended(&mut self, round: usize) {
        let puts = self.put.get(&round).cloned().unwrap_or_default();
        for (sector, now) in self.now.iter_mut().enumerate() {
            let tags = puts.iter().filter(|(sectors, _)| sectors.contains(&(sector as u64)));
            let tags: Vec<Tag> = tags.map(|(_, tag)| *tag).collect();
            if !tags.is_empty() {
                *now = tags;
            }
        }
    }

    /// Whether a disk on which a flush in this round was the last to return, and this round the last to
    /// begin, may hold these.
    fn allows(&self, flushed: Option<usize>, begun: usize, found: &[Tag]) -> Result<(), String> {
        let start = Model::new().now;
        let base = flushed.map_or(&start, |round| &self.flushed[&round]);
        let later: Vec<_> =
            self.put.range(flushed.unwrap_or(0)..begun + 1).flat_map(|(_, p)| p).collect();
        for (sector, (tag, base)) in found.iter().zip(base).enumerate() {
            let put =
                |(sectors, t): &&(Range<u64>, Tag)| sectors.contains(&(sector as u64)) && t == tag;
            if !base.contains(tag) && !later.iter().any(put) {
                return Err(format!("sector {sector} holds {tag}, was {base:?}"));
            }
        }
        Ok(())
    }
}

/// Captures: what the last ones found, and what the next may find.
struct Captures {
    /// What each found, the image that the volume was made of first.
    taken: RefCell<Vec<Vec<Tag>>>,
    /// What a capture of this round may find in each sector.
    allowed: RefCell<Vec<Vec<Tag>>>,
    /// One that has begun, and what it may find.
    begun: RefCell<Option<Begun>>,
}

type Begun = (Rc<PointInTime>, Vec<Vec<Tag>>);

/// The image that capture number `n` makes.
fn image_of_capture(n: usize) -> Digest {
    Digest([n as u8; 32])
}

impl Captures {
    fn new() -> Self {
        let first = (0..VOLUME / SECTOR).map(tag_of_image).collect();
        let taken = RefCell::new(vec![first]);
        Self { taken, allowed: RefCell::default(), begun: RefCell::default() }
    }

    /// What the image that a volume's changes count from holds.
    fn since(&self, volume: &Volume) -> Vec<Tag> {
        let taken = self.taken.borrow();
        let found = (1..taken.len()).find(|n| volume.since() == Since::Image(image_of_capture(*n)));
        taken[found.unwrap_or(0)].clone()
    }

    async fn fix(&self, rig: &Rig, scratch: BlockFile, all: bool) {
        let what = if all { Captured::All } else { Captured::Changed { edge: None } };
        let prepared = rig.volume.prepare_point(what).await;
        let fixed = match prepared {
            Ok(()) => rig.volume.fix_point(what, scratch).await,
            Err(error) => Err(error),
        };
        match fixed {
            Ok(point) => {
                let allowed = self.allowed.borrow().clone();
                self.begun.replace(Some((point, allowed)));
            }
            Err(error) => assert_eq!(error.kind(), Kind::Conflict),
        }
    }

    async fn take(&self, rig: &Rig, disk: &MemFs, ok: bool) {
        let Some((point, allowed)) = self.begun.take() else { return };
        let mut found = self.since(&rig.volume);
        for range in point.ranges() {
            for at in range.clone().step_by(CHUNK as usize) {
                let part = at..(at + CHUNK).min(range.end);
                let tags = tags_then(rig, &point, part.clone()).await;
                let sectors = part.start / SECTOR..part.end / SECTOR;
                sectors.zip(tags).for_each(|(sector, tag)| found[sector as usize] = tag);
            }
        }
        for (sector, (tag, allowed)) in found.iter().zip(&allowed).enumerate() {
            assert!(allowed.contains(tag), "captured sector {sector} holds {tag}, not {allowed:?}");
        }
        if !ok {
            return rig.volume.not_captured();
        }
        let image = image_of_capture(self.taken.borrow().len());
        self.taken.borrow_mut().push(found);
        shelf(&disk.fs()).note_since(&rig.volume.identity(), &image).unwrap();
        rig.volume.captured(&image).await.unwrap();
    }
}

/// What a volume held at a point in time, read while others write.
async fn tags_then(rig: &Rig, point: &PointInTime, part: Range<u64>) -> Vec<Tag> {
    let mut bytes = vec![0; (part.end - part.start) as usize];
    let mut read = |file: &BlockFile, of: Range<u64>| {
        let within = (of.start - part.start) as usize..(of.end - part.start) as usize;
        file.read_exact_at(&mut bytes[within], of.start).unwrap();
    };
    for (file, of) in rig.volume.files_of(&part).await.unwrap() {
        tokio::task::yield_now().await;
        read(&file, of);
    }
    tokio::task::yield_now().await;
    point.aside().read_over(&mut bytes, part.start).unwrap();
    if part.start.is_multiple_of(2 * CHUNK) {
        point.aside().spill();
    }
    if part.start == 0 {
        point.done(&part);
    }
    let tag = |sector: &[u8]| Tag::from_le_bytes(sector[..4].try_into().unwrap());
    bytes.chunks(SECTOR as usize).map(tag).collect()
}

async fn take_step(rig: &Rig, disk: &MemFs, captures: &Captures, step: &Step, tag: Tag) {
    match step.clone() {
        Step::Fix(all) => {
            let scratch = shelf(&disk.fs()).scratch("v").unwrap();
            captures.fix(rig, scratch, all).await;
        }
        Step::Take(ok) => captures.take(rig, disk, ok).await,
        Step::Write(range) => rig.write(range, tag).await.unwrap(),
        Step::Zero(range, give_back) => rig.volume.zero(range, give_back).await.unwrap(),
        Step::Discard(range) => rig.volume.discard(range).await.unwrap(),
        Step::Flush => rig.volume.flush().await.unwrap(),
        Step::Fill(chunk) => rig.fill(chunk).await.unwrap(),
        Step::Ripen => rig.ripen().await.unwrap(),
        Step::Reopen => {
            captures.begun.take();
            rig.volume.close().await.unwrap();
            if let Some(base) = &rig.base {
                base.close().await.unwrap();
            }
        }
    }
}

/// Takes the steps, noting on the disk when each round begins and each flush returns.
async fn run(disk: &MemFs, rounds: &[Round]) -> (Model, Rig, Captures) {
    let mut model = Model::new();
    let captures = Captures::new();
    let mut rig = Rig::on(&disk.fs()).unwrap();
    let mut tag = 0;
    for (number, round) in rounds.iter().enumerate() {
        let before = model.now.clone();
        let steps: Vec<(Step, usize, Tag)> = round
            .iter()
            .map(|(step, wait)| {
                tag += 1;
                (step.clone(), *wait, tag)
            })
            .collect();
        steps.iter().for_each(|(step, _, tag)| model.put(number, step, *tag));
        captures.allowed.replace(model.during(number));
        disk.mark(format!("round {number}"));
        let taken = steps.iter().map(async |(step, wait, tag)| {
            for _ in 0..*wait {
                tokio::task::yield_now().await;
            }
            take_step(&rig, disk, &captures, step, *tag).await;
            if matches!(step, Step::Flush | Step::Reopen) {
                disk.mark(format!("flushed {number}"));
            }
        });
        rig.served(futures::future::join_all(taken)).await;
        if round.iter().any(|(step, _)| matches!(step, Step::Flush | Step::Reopen)) {
            model.flushed.insert(number, before);
        }
        model.ended(number);
        if matches!(round[0].0, Step::Reopen) {
            drop(rig);
            rig = Rig::on(&disk.fs()).unwrap();
        }
    }
    (model, rig, captures)
}

async fn all_tags(rig: &Rig) -> Vec<Tag> {
    let mut all = rig.served(rig.tags(0..64 << 10)).await.unwrap();
    all.extend(rig.served(rig.tags(64 << 10..VOLUME)).await.unwrap());
    all
}

fn last(image: &CrashImage, what: &str) -> Option<usize> {
    image.marks().filter_map(|m| m.strip_prefix(what)?.trim().parse().ok()).last()
}

async fn check(image: &CrashImage, model: &Model, captures: &Captures) {
    shelf(&image.fs()).tidy().unwrap_or_else(|e| panic!("{image}: {e}"));
    let rig = Rig::on(&image.fs()).unwrap_or_else(|e| panic!("{image}: {e}"));
    let found = all_tags(&rig).await;
    let begun = last(image, "round").unwrap_or(0);
    let allowed = model.allows(last(image, "flushed"), begun, &found);
    allowed.unwrap_or_else(|why| panic!("{image}: {why}"));
    // Whatever differs from the image, or from the last capture, is known to have changed.
    let since = captures.since(&rig.volume);
    let maps = rig.volume.maps.borrow();
    for (sector, tag) in found.iter().enumerate() {
        let sector = sector as u64;
        let block = sector * SECTOR / BLOCK;
        let known = *tag == since[sector as usize] || maps.changed.all(block..block + 1);
        assert!(known, "{image}: sector {sector} has changed unnoticed");
    }
}

fn on_one_core<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(work)
}

fn fresh_disk() -> MemFs {
    disk_with(new_volume())
}

/// What a volume may be made like.
#[derive(Clone, Copy, Debug)]
enum Kept {
    Alone,
    Shared,
    OnDevice,
}

fn kept() -> impl Strategy<Value = Kept> {
    prop_oneof![Just(Kept::Alone), Just(Kept::Shared), Just(Kept::OnDevice)]
}

fn disk_of(kept: Kept) -> MemFs {
    let new = new_volume();
    disk_with(match kept {
        Kept::Alone => new,
        Kept::Shared => NewVolume { shares: true, ..new },
        Kept::OnDevice => NewVolume { device: Some("/device".into()), ..new },
    })
}

fn disk_with(new: NewVolume) -> MemFs {
    let disk = MemFs::new();
    if let Some(device) = &new.device {
        // It was used before.
        disk.add_device(device, VOLUME + 9000).unwrap();
        let device = disk.fs().open(device, OpenMode::write()).unwrap();
        device.write_all_at(&vec![0xee; VOLUME as usize + 9000], 0).unwrap();
    }
    shelf(&disk.fs()).create(&new).unwrap();
    disk.settle();
    disk
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_power_cut_loses_nothing_that_was_flushed(rounds in prop::collection::vec(round(), 1..10), kept in kept(), seed in any::<u64>()) {
        on_one_core(async {
            let disk = disk_of(kept);
            let (model, _rig, captures) = run(&disk, &rounds).await;
            let plan = CrashPlan { seed, per_point: 6, torn: true };
            for image in disk.crash_images(plan) {
                check(&image, &model, &captures).await;
            }
        });
    }

    #[test]
    fn reads_see_what_was_written(rounds in prop::collection::vec(round(), 1..40), kept in kept()) {
        on_one_core(async {
            let disk = disk_of(kept);
            let (model, rig, _) = run(&disk, &rounds).await;
            let found = all_tags(&rig).await;
            for (sector, (tag, now)) in found.iter().zip(&model.now).enumerate() {
                prop_assert!(now.contains(tag), "sector {} holds {}, not {:?}", sector, tag, now);
            }
            Ok(())
        })?;
    }
}

/// A rig whose disk fails by a plan.
async fn failing() -> (FaultPlan, Rig) {
    let disk = fresh_disk();
    let plan = FaultPlan::new();
    let rig = Rig::on(&plan.wrap_fs(&disk.fs())).unwrap();
    (plan, rig)
}

#[test]
fn the_first_write_to_a_section_costs_one_sync_and_the_others_none() {
    on_one_core(async {
        let (plan, rig) = failing().await;
        let syncs = || plan.count(FaultOp::Sync);
        let before = syncs();
        rig.write(0..CHUNK, 1).await.unwrap();
        assert_eq!(syncs() - before, 1, "the intent");
        for tag in 2..20 {
            rig.write(0..CHUNK, tag).await.unwrap();
        }
        assert_eq!(syncs() - before, 1);
        // An absent chunk was written: data, then maps.
        rig.volume.flush().await.unwrap();
        assert_eq!(syncs() - before, 3);
        // From now on a flush is a sync of the data, and one without writes is nothing.
        for tag in 20..30 {
            rig.write(0..CHUNK, tag).await.unwrap();
            rig.volume.flush().await.unwrap();
        }
        assert_eq!(syncs() - before, 13);
        rig.volume.flush().await.unwrap();
        assert_eq!(syncs() - before, 13);
    });
}

#[test]
fn a_point_in_time_is_fixed_when_no_write_is_under_way() {
    on_one_core(async {
        let disk = fresh_disk();
        let rig = Rig::on(&disk.fs()).unwrap();
        let scratch = || shelf(&disk.fs()).scratch("v").unwrap();
        // A chunk that is here is not waited for.
        rig.write(0..CHUNK, 3).await.unwrap();
        let mut write = Box::pin(rig.write(0..CHUNK, 1));
        while rig.volume.traffic.is_idle() {
            assert!(futures::poll!(&mut write).is_pending());
            tokio::task::yield_now().await;
        }
        let mut fix = Box::pin(rig.volume.fix_point(Captured::Changed { edge: None }, scratch()));
        assert!(futures::poll!(&mut fix).is_pending(), "a write is under way");
        let mut later = Box::pin(rig.write(0..CHUNK, 2));
        assert!(futures::poll!(&mut later).is_pending(), "a point in time is being fixed");
        write.await.unwrap();
        let point = fix.await.unwrap();
        later.await.unwrap();
        assert_eq!(point.ranges(), std::slice::from_ref(&(0..CHUNK)));
        assert_eq!(tags_then(&rig, &point, 0..CHUNK).await, [1; (CHUNK / SECTOR) as usize]);
        let second = rig.volume.fix_point(Captured::Changed { edge: None }, scratch()).await;
        assert_eq!(second.unwrap_err().kind(), Kind::Conflict);
        assert_eq!(rig.volume.grow(2 * VOLUME).await.unwrap_err().kind(), Kind::Conflict);
        rig.volume.not_captured();
        rig.volume.grow(2 * VOLUME).await.unwrap();
    });
}

#[test]
fn where_an_image_of_another_size_ends_within_a_chunk_that_is_of_the_point_in_time_too() {
    on_one_core(async {
        let disk = fresh_disk();
        let rig = Rig::on(&disk.fs()).unwrap();
        rig.write(0..2 * CHUNK, 1).await.unwrap();
        rig.volume.captured_past_us(&Digest::of_chunk(b"image")).await.unwrap();
        let scratch = shelf(&disk.fs()).scratch("v").unwrap();
        let what = Captured::Changed { edge: Some(CHUNK + SECTOR - 1) };
        let point = rig.volume.fix_point(what, scratch).await.unwrap();
        assert_eq!(point.ranges(), std::slice::from_ref(&(CHUNK..2 * CHUNK)));
        rig.write(CHUNK..2 * CHUNK, 2).await.unwrap();
        let then = tags_then(&rig, &point, CHUNK..2 * CHUNK).await;
        assert_eq!(then, [1; (CHUNK / SECTOR) as usize]);
    });
}

#[test]
fn what_is_not_shared_is_of_the_point_in_time_and_what_is_written_after_it_was_told() {
    on_one_core(async {
        let disk = fresh_disk();
        let rig = Rig::on(&disk.fs()).unwrap();
        rig.write(CHUNK..2 * CHUNK, 1).await.unwrap();
        rig.volume.captured_past_us(&Digest::of_chunk(b"image")).await.unwrap();
        let mut chunks = Bits::new(8);
        chunks.set(1..2);
        // The last one is short.
        chunks.set(7..8);
        let unshared = Unshared { chunks };
        rig.write(3 * CHUNK..3 * CHUNK + BLOCK, 2).await.unwrap();
        rig.volume.also_changed(&unshared);
        rig.write(5 * CHUNK..5 * CHUNK + BLOCK, 3).await.unwrap();
        let wanted = [1..2, 3..4, 5..6, 7..8]
            .map(|c: Range<u64>| c.start * CHUNK..(c.end * CHUNK).min(VOLUME));
        let fix = async || {
            let scratch = shelf(&disk.fs()).scratch("v").unwrap();
            rig.volume.fix_point(Captured::Changed { edge: None }, scratch).await.unwrap()
        };
        let point = fix().await;
        assert_eq!(point.ranges(), wanted);
        rig.write(CHUNK..2 * CHUNK, 4).await.unwrap();
        let then = tags_then(&rig, &point, CHUNK..2 * CHUNK).await;
        assert_eq!(then, [1; (CHUNK / SECTOR) as usize]);
        // It comes to nothing: then it counts on.
        rig.volume.not_captured();
        assert_eq!(fix().await.ranges(), wanted);
    });
}

#[test]
fn a_disk_too_full_for_what_is_put_aside_fails_the_capture_and_not_the_guest() {
    // Little lies in memory before it is written to the file; much is not kept there at all.
    for (chunks, spilled) in [(1, true), (3, false)] {
        on_one_core(async {
            let plan = FaultPlan::new();
            let fs = plan.wrap_fs(&fresh_disk().fs());
            let rig = Rig::on(&fs).unwrap();
            for tag in [1, 2] {
                rig.write(0..4 * CHUNK, tag).await.unwrap();
            }
            let scratch = shelf(&fs).scratch("v").unwrap();
            let what = Captured::Changed { edge: None };
            let point = rig.volume.fix_point(what, scratch).await.unwrap();
            rig.write(0..CHUNK, 3).await.unwrap();
            assert_eq!(tags_then(&rig, &point, 0..CHUNK).await, [2; (CHUNK / SECTOR) as usize]);
            let written = CHUNK..(1 + chunks) * CHUNK;
            if !spilled {
                plan.fail(FaultOp::Write, 1, Fault::Full);
            }
            rig.write(written.clone(), 4).await.unwrap();
            if spilled {
                assert_eq!(point.aside().of(&written).unwrap(), std::slice::from_ref(&written));
                plan.fail(FaultOp::Write, 1, Fault::Full);
                point.aside().spill();
            }
            assert_eq!(rig.tags(CHUNK..CHUNK + SECTOR).await.unwrap(), [4]);
            assert_eq!(point.aside().of(&(0..CHUNK)).unwrap_err().kind(), Kind::Full);
            assert_eq!(point.aside().file().size().unwrap(), 0, "the room is given back");
            rig.volume.not_captured();
            assert!(rig.volume.maps.borrow().changed.all(0..4 * CHUNK / BLOCK));
        });
    }
}

/// Every disk that a power cut could have left, of all that has happened to this one.
async fn check_all(disk: &MemFs, model: &Model, captures: &Captures) {
    for image in disk.crash_images(CrashPlan { per_point: 200, ..CrashPlan::default() }) {
        check(&image, model, captures).await;
    }
}

#[test]
fn what_has_arrived_lasts_before_the_maps_say_that_it_is_here() {
    on_one_core(async {
        let disk = fresh_disk();
        let alone = |step| vec![(step, 0)];
        let steps = [Step::Flush, Step::Fill(0), Step::Flush, Step::Fill(1), Step::Reopen];
        let (model, _rig, captures) = run(&disk, &steps.map(alone)).await;
        check_all(&disk, &model, &captures).await;
    });
}

#[test]
fn a_fill_spares_what_is_written_meanwhile() {
    for wait in 0..8 {
        on_one_core(async {
            let disk = fresh_disk();
            let rig = Rig::on(&disk.fs()).unwrap();
            // Two holes to fill, one after the other.
            rig.write(BLOCK..2 * BLOCK, 1).await.unwrap();
            let write = async {
                for _ in 0..wait {
                    tokio::task::yield_now().await;
                }
                rig.write(2 * BLOCK..3 * BLOCK, 2).await.unwrap();
            };
            let (filled, ()) = tokio::join!(rig.fill(0), write);
            filled.unwrap();
            let found = rig.tags(0..CHUNK).await.unwrap();
            assert_eq!((found[7], found[8], found[16]), (tag_of_image(7), 1, 2), "after {wait}");
        });
    }
}

#[test]
fn flushes_at_the_same_time_share_their_syncs() {
    on_one_core(async {
        let (plan, rig) = failing().await;
        rig.write(0..CHUNK, 1).await.unwrap();
        rig.volume.flush().await.unwrap();
        rig.write(0..CHUNK, 2).await.unwrap();
        let before = plan.count(FaultOp::Sync);
        let all = futures::future::join_all((0..50).map(|_| rig.volume.flush())).await;
        assert!(all.into_iter().all(|r| r.is_ok()));
        assert!(plan.count(FaultOp::Sync) - before <= 2);
    });
}

#[test]
fn a_full_disk_changes_nothing_and_is_got_over() {
    on_one_core(async {
        let (plan, rig) = failing().await;
        plan.limit_bytes(Some(0));
        assert_eq!(rig.write(0..CHUNK, 1).await.unwrap_err().kind(), Kind::Full);
        assert_eq!(rig.fill(0).await.unwrap_err().kind(), Kind::Full);
        assert!(!rig.volume.is_present(0));
        plan.limit_bytes(None);
        rig.write(0..BLOCK, 2).await.unwrap();
        let found = rig.served(rig.tags(0..2 * BLOCK)).await.unwrap();
        assert_eq!((found[0], found[8]), (2, tag_of_image(8)));
    });
}

#[test]
fn a_sync_that_failed_is_told_to_every_flush_that_follows() {
    on_one_core(async {
        let (plan, rig) = failing().await;
        rig.write(0..CHUNK, 1).await.unwrap();
        plan.fail(FaultOp::Sync, 1, Fault::Io);
        assert!(rig.volume.flush().await.is_err());
        // What was lost nobody knows: the kernel would call the next one a success.
        assert!(rig.volume.flush().await.is_err());
    });
}

#[test]
fn who_waits_for_what_cannot_be_had_is_told() {
    on_one_core(async {
        let disk = fresh_disk();
        let rig = Rig::on(&disk.fs()).unwrap();
        let refuse = async {
            loop {
                let asked = rig.volume.next_wanted().await;
                asked
                    .into_iter()
                    .for_each(|c| rig.volume.fail(c, Error::new(Kind::Corrupt, "bad")));
            }
        };
        // Also a write that needs the rest of a block does; one of whole blocks does not.
        let asked = futures::future::join(rig.tags(0..CHUNK), rig.write(SECTOR..2 * SECTOR, 1));
        let (read, write) = tokio::select! {
            ended = asked => ended,
            () = refuse => unreachable!("refuses for ever"),
        };
        assert_eq!(read.unwrap_err().kind(), Kind::Corrupt);
        assert_eq!(write.unwrap_err().kind(), Kind::Corrupt);
        rig.write(0..BLOCK, 2).await.unwrap();
        assert_eq!(rig.tags(0..BLOCK).await.unwrap(), [2; 8]);
    });
}

#[test]
fn a_map_page_that_was_damaged_is_read_from_its_other_copy() {
    const REGION: u64 = 4 << 30;
    for copy in [0, 4 * REGION] {
        on_one_core(async {
            let disk = fresh_disk();
            let rig = Rig::on(&disk.fs()).unwrap();
            rig.write(0..BLOCK, 1).await.unwrap();
            rig.volume.close().await.unwrap();
            drop(rig);
            let maps = disk.fs().open("/volumes/v/maps", OpenMode::write()).unwrap();
            maps.write_all_at(&[0xff], copy + 2 * REGION + 20).unwrap();
            let rig = Rig::on(&disk.fs()).unwrap();
            assert_eq!(rig.tags(0..BLOCK).await.unwrap(), [1; 8]);
            // It is made good with the next flush.
            rig.volume.flush().await.unwrap();
            drop(rig);
            maps.write_all_at(&[0xff], 4 * REGION - copy + 2 * REGION + 20).unwrap();
            drop(maps);
            let rig = Rig::on(&disk.fs()).unwrap();
            assert_eq!(rig.tags(0..BLOCK).await.unwrap(), [1; 8]);
        });
    }
}

#[test]
fn maps_that_nobody_can_read_are_an_error_and_not_a_guess() {
    const REGION: u64 = 4 << 30;
    on_one_core(async {
        let disk = fresh_disk();
        let rig = Rig::on(&disk.fs()).unwrap();
        rig.write(0..BLOCK, 1).await.unwrap();
        rig.volume.close().await.unwrap();
        drop(rig);
        let maps = disk.fs().open("/volumes/v/maps", OpenMode::write()).unwrap();
        for copy in [0, 4 * REGION] {
            maps.write_all_at(&[0xff], copy + 2 * REGION + 20).unwrap();
        }
        drop(maps);
        let error = Rig::on(&disk.fs()).map(drop).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        assert!(error.message().contains("/volumes/v/maps: offset"), "{error}");
    });
}

#[test]
fn a_volume_grows_in_use_and_after_a_crash_is_as_before_or_larger() {
    on_one_core(async {
        let disk = fresh_disk();
        let rig = Rig::on(&disk.fs()).unwrap();
        assert_eq!(rig.volume.grow(VOLUME - 4096).await.unwrap_err().kind(), Kind::Invalid);
        let larger = VOLUME + (80 << 20) + SECTOR;
        rig.volume.grow(larger).await.unwrap();
        disk.mark("grown");
        let end = larger - SECTOR..larger;
        rig.write(end.clone(), 7).await.unwrap();
        rig.volume.flush().await.unwrap();
        disk.mark("written");
        for image in disk.crash_images(CrashPlan::default()) {
            let rig = Rig::on(&image.fs()).unwrap_or_else(|e| panic!("{image}: {e}"));
            let size = rig.volume.size();
            assert!(
                size == larger || (size == VOLUME && !image.reached("grown")),
                "{image}: {size}"
            );
            if size == larger {
                let tags = rig.tags(end.clone()).await.unwrap();
                assert!(tags == [7] || (tags == [0] && !image.reached("written")), "{image}");
                assert_eq!(rig.tags(VOLUME..VOLUME + SECTOR).await.unwrap(), [0]);
            }
        }
    });
}

#[test]
fn pieces_tell_what_is_here() {
    on_one_core(async {
        let disk = fresh_disk();
        let rig = Rig::on(&disk.fs()).unwrap();
        rig.write(CHUNK + BLOCK..CHUNK + 2 * BLOCK, 1).await.unwrap();
        rig.fill(0).await.unwrap();
        use super::Piece::{Absent, Data, Hole};
        let pieces = rig.volume.pieces(SECTOR..VOLUME, 100).unwrap();
        let behind = VOLUME - 5 * CHUNK;
        let wanted = [
            (CHUNK - SECTOR, Data),
            (BLOCK, Absent),
            (BLOCK, Data),
            (CHUNK - 2 * BLOCK + 2 * CHUNK + CHUNK, Absent),
            (behind, Hole),
        ];
        assert_eq!(pieces, wanted);
        assert_eq!(rig.volume.pieces(0..VOLUME, 2).unwrap().len(), 2);
        assert!(rig.volume.pieces(0..VOLUME + 1, 2).is_err());
    });
}

#[test]
fn what_rots_is_found_and_made_good_and_what_the_guest_wrote_is_left() {
    on_one_core(async {
        let disk = fresh_disk();
        let rig = Rig::on(&disk.fs()).unwrap();
        for chunk in 0..IMAGE.div_ceil(CHUNK) {
            rig.fill(chunk).await.unwrap();
        }
        rig.write(CHUNK..CHUNK + SECTOR, 1).await.unwrap();
        let file = disk.fs().open("/volumes/v/disk.raw", OpenMode::write()).unwrap();
        let check = async || {
            let (table, mut found) = (table(), Vec::new());
            for (chunk, digest) in table.digests().iter().enumerate() {
                let buf = rig.arena.acquire().await;
                found.push(
                    rig.volume
                        .check_chunk(&original(), 0, chunk as u32, digest, buf)
                        .await
                        .unwrap(),
                );
            }
            found
        };
        use super::Verdict::{Other, Right, Wrong};
        assert_eq!(check().await, [Right, Other, Right, Right, Right]);
        for chunk in [0, 1, ZERO_CHUNK] {
            file.write_all_at(&[0xee], chunk * CHUNK + 700).unwrap();
        }
        assert_eq!(check().await, [Wrong, Other, Wrong, Right, Right]);
        let repair = async |chunk: u64| {
            let plain = image_chunk(chunk);
            let mut buf = rig.arena.acquire().await;
            buf.copy_from(&plain);
            let plain = Verified::check(buf, plain.len(), &Digest::of_chunk(&plain)).unwrap();
            rig.volume.repair(&original(), 0, chunk as u32, plain).await.unwrap()
        };
        // A guest that writes at the same time is first or last, never undone.
        let (repaired, written) = tokio::join!(repair(0), rig.write(SECTOR..2 * SECTOR, 9));
        written.unwrap();
        let zeros = rig.volume.repair_zeros(&original(), 0, ZERO_CHUNK as u32).await.unwrap();
        assert!(repaired && zeros && !repair(1).await);
        let tags = rig.tags(0..CHUNK).await.unwrap();
        assert_eq!((tags[0], tags[1], tags[2]), (tag_of_image(0), 9, tag_of_image(2)));
        assert_eq!(rig.tags(ZERO_CHUNK * CHUNK..3 * CHUNK).await.unwrap(), [ZEROS; 32]);
    });
}

#[test]
fn volumes_of_one_base_fetch_each_chunk_once_and_stay_apart() {
    on_one_core(async {
        let disk = disk_with(NewVolume { shares: true, ..new_volume() });
        let other = NewVolume { name: "w".into(), id: [4; 16], shares: true, ..new_volume() };
        shelf(&disk.fs()).create(&other).unwrap();
        let one = Rig::on(&disk.fs()).unwrap();
        let base = one.base.clone().unwrap();
        let files = shelf(&disk.fs()).take("w").unwrap();
        let mut two = Rig::open(files, None).unwrap();
        two.volume.lean_on(Rc::clone(&base)).unwrap();
        two.base = Some(Rc::clone(&base));
        let (a, b) = tokio::join!(one.volume.arrive(&(0..SECTOR)), async {
            let both = futures::future::join(
                two.volume.arrive(&(0..CHUNK)),
                two.write(SECTOR..2 * SECTOR, 5),
            );
            let fetched = async {
                let asked = base.next_wanted().await;
                assert_eq!(asked, [0], "however many wait");
                one.fill(0).await.unwrap();
            };
            let ((arrived, written), ()) = futures::future::join(both, fetched).await;
            arrived.and(written)
        });
        a.and(b).unwrap();
        one.write(BLOCK..2 * BLOCK, 6).await.unwrap();
        let of_image: Vec<Tag> = (0..24).map(tag_of_image).collect();
        let (first, second) =
            (one.tags(0..3 * BLOCK).await.unwrap(), two.tags(0..3 * BLOCK).await.unwrap());
        assert_eq!(first, [&of_image[..8], &[6; 8], &of_image[16..]].concat());
        assert_eq!(second, [&of_image[..1], &[5], &of_image[2..]].concat());
        assert_eq!((one.volume.arrived().present, two.volume.arrived().present), (4, 4));
        use super::Piece::{Absent, Data};
        let pieces = two.volume.pieces(0..2 * CHUNK, 9).unwrap();
        assert_eq!(pieces, [(CHUNK, Data), (CHUNK, Absent)]);
        // No guest writes to what others read.
        let buf = one.arena.acquire().await;
        assert_eq!(base.write(0, buf).await.0.unwrap_err().kind(), Kind::Conflict);
        // Nothing is taken over from what may not last.
        assert_eq!(one.volume.take_over(1).await.unwrap_err().kind(), Kind::Conflict);
        one.ripen().await.unwrap();
        assert!(one.volume.identity().plain && !two.volume.identity().plain);
        assert_eq!(one.tags(0..3 * BLOCK).await.unwrap(), first);
        assert_eq!(two.tags(0..3 * BLOCK).await.unwrap(), second);
    });
}

#[test]
fn taking_over_the_rest_of_a_block_spares_what_is_written_meanwhile() {
    let waits = (0..24).flat_map(|wait| (6..9).map(move |arrives| (wait, arrives)));
    for (wait, arrives) in waits {
        on_one_core(async {
            let disk = disk_with(NewVolume { shares: true, ..new_volume() });
            let rig = Rig::on(&disk.fs()).unwrap();
            let after = async |turns: usize| {
                for _ in 0..turns {
                    tokio::task::yield_now().await;
                }
            };
            let part = rig.write(SECTOR..2 * SECTOR, 1);
            let whole = async {
                after(wait).await;
                rig.write(0..BLOCK, 2).await
            };
            let fill = async {
                after(arrives).await;
                rig.fill(0).await
            };
            let (part, whole, filled) = tokio::join!(part, whole, fill);
            part.and(whole).and(filled).unwrap();
            let found = rig.tags(0..BLOCK).await.unwrap();
            assert!([1, 2].contains(&found[1]), "after {wait}: {found:?}");
            assert_eq!((found[0], &found[2..]), (2, &[2; 6][..]), "after {wait}");
        });
    }
}

#[test]
fn a_volume_is_fresh_until_somebody_uses_it() {
    on_one_core(async {
        let disk = fresh_disk();
        let fs = disk.fs();
        for _ in 0..2 {
            let rig = Rig::on(&fs).unwrap();
            assert!(rig.volume.was_fresh(), "to be looked at is not to be used");
            rig.volume.close().await.unwrap();
        }
        for use_it in [true, false] {
            let rig = Rig::on(&fs).unwrap();
            match use_it {
                true => rig.fill(0).await.unwrap(),
                false => assert!(!rig.volume.was_fresh()),
            }
            rig.volume.close().await.unwrap();
        }
        let disk = fresh_disk();
        let fs = disk.fs();
        let rig = Rig::on(&fs).unwrap();
        rig.write(0..BLOCK, 7).await.unwrap();
        rig.volume.close().await.unwrap();
        drop(rig);
        assert!(!Rig::on(&fs).unwrap().volume.was_fresh());
    });
}
