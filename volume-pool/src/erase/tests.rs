use std::ops::Range;
use std::path::Path;
use std::slice;

use blockio::fake::{CrashPlan, Fault, FaultOp, FaultPlan, MemFs};
use blockio::{Backing, Fs, SyncWhat};
use image::Geometry;
use proptest::prelude::*;

use super::*;
use crate::NewVolume;

const MIB: u64 = 1 << 20;
/// What is not to be found afterwards.
const MARKER: u8 = 0xa5;
const ZEROS: Method = Method::Zeros { passes: 1 };
const RANDOM: Method = Method::Random { passes: 2 };

fn plan(method: Method, proof: Proof) -> Plan {
    Plan { method, proof, seed: [3; 32] }
}

fn go_on(_: &Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// A volume that was used, with data in these ranges.
fn used(fs: &Fs, dir: &Path, size: u64, data: &[Range<u64>]) -> Shelf {
    let shelf = Shelf::open(fs.clone(), dir.into()).unwrap();
    let new = NewVolume {
        name: "a".into(),
        id: [1; 16],
        geometry: Geometry::new(size, 512, 16).unwrap(),
        image: None,
        shares: false,
        device: None,
        created: 0,
    };
    shelf.create(&new).unwrap();
    let files = shelf.take("a").unwrap();
    for range in data {
        let bytes = vec![MARKER; (range.end - range.start) as usize];
        files.data.write_all_at(&bytes, range.start).unwrap();
    }
    files.data.sync_data().unwrap();
    shelf
}

fn bytes(fs: &Fs, dir: &Path) -> Vec<u8> {
    fs.read(dir.join("a/disk.raw"), 1 << 30).unwrap()
}

/// What is to be there in place of data, after the last pass.
fn expected(plan: &Plan, bytes: &[u8], data: &[Range<u64>]) -> Vec<u8> {
    let mut wanted = vec![0; bytes.len()];
    if let Method::Random { passes } = plan.method {
        for range in data {
            let part = &mut wanted[range.start as usize..range.end as usize];
            pattern::Pattern::of(plan, passes - 1).fill(part, range.start);
        }
    }
    wanted
}

#[test]
fn what_was_written_is_overwritten_and_holes_stay() {
    let data = [0..MIB + 8192, 5 * MIB..5 * MIB + 4096, 7 * MIB - 4096..7 * MIB];
    let written = MIB + 8192 + 4096 + 4096;
    let real = tempfile::tempdir().unwrap();
    let mem = MemFs::new().fs();
    for (fs, dir) in [(&Fs::os(), real.path()), (&mem, Path::new("/"))] {
        let all = [(ZEROS, Proof::All), (RANDOM, Proof::All), (RANDOM, Proof::None)];
        let some = [(RANDOM, Proof::Sample { places: 20 }), (Method::Discard, Proof::All)];
        for (nth, (method, proof)) in all.into_iter().chain(some).enumerate() {
            let (plan, dir) = (plan(method, proof), dir.join(nth.to_string()));
            // It ends within a block.
            let shelf = used(fs, &dir, 7 * MIB + 512, &data);
            let mut erasure = shelf.erase("a", &plan, 100).unwrap();
            assert_eq!(shelf.identity("a").unwrap().state, VolumeState::Erasing);
            let before = erasure.record("n1", 101, None);
            assert!(matches!(before.outcome, Outcome::Failed { .. }), "{before:?}");
            erasure.run(&mut go_on).unwrap();
            let record = erasure.record("n1", 200, None);
            let Tally { overwritten, discarded, read_back, .. } = record.tally;
            assert_eq!((&record.outcome, record.begun, record.ended), (&Outcome::Erased, 100, 200));
            let taken = if method == Method::Discard { (0, written) } else { (written, 0) };
            assert_eq!((overwritten, discarded), taken, "{method}");
            assert_eq!(record.holes(), 7 * MIB + 4096 - written);
            let back = match proof {
                Proof::All if method != Method::Discard => written..=written,
                Proof::Sample { .. } => 4096..=20 * 4096,
                _ => 0..=0,
            };
            assert!(back.contains(&read_back), "{proof}: {read_back}");
            drop(erasure);
            let found = bytes(fs, &dir);
            assert!(found == expected(&plan, &found, &data), "{method}");
            let file = fs.open(dir.join("a/disk.raw"), OpenMode::read()).unwrap();
            let extents: Vec<_> = file.data_extents(0..u64::MAX).map(Result::unwrap).collect();
            let left: &[_] = if method == Method::Discard { &[] } else { &data };
            assert_eq!(extents, left, "{method}");
            shelf.remove("a").unwrap();
        }
    }
}

#[test]
fn what_was_allocated_and_not_written_is_overwritten_too() {
    let dir = tempfile::tempdir().unwrap();
    let shelf = used(&Fs::os(), dir.path(), 4 * MIB, slice::from_ref(&(0..MIB)));
    let disk = dir.path().join("a/disk.raw");
    let file = BlockFile::open(&disk, OpenMode::write()).unwrap();
    // Old bytes may lie under it.
    if file.allocate(2 * MIB..3 * MIB).is_err()
        || file.places(0..1, false).next().is_none_or(|p| p.is_err())
    {
        return;
    }
    let mut erasure = shelf.erase("a", &plan(RANDOM, Proof::All), 1).unwrap();
    erasure.run(&mut go_on).unwrap();
    assert_eq!(erasure.record("n", 2, None).tally.overwritten, 2 * MIB);
    let bytes = std::fs::read(disk).unwrap();
    assert!(bytes[2 * MIB as usize..3 * MIB as usize].iter().any(|b| *b != 0));
}

#[test]
fn a_device_is_overwritten_up_to_what_it_says_of_itself() {
    let disk = MemFs::new();
    let len = 2 * MIB + 8000;
    disk.add_device("/device", len).unwrap();
    let fs = disk.fs();
    let device = fs.open("/device", OpenMode::write()).unwrap();
    device.write_all_at(&vec![MARKER; len as usize], 0).unwrap();
    drop(device);
    let shelf = Shelf::open(fs.clone(), "/volumes".into()).unwrap();
    let new = NewVolume {
        name: "a".into(),
        id: [1; 16],
        geometry: Geometry::new(MIB, 512, 16).unwrap(),
        image: None,
        shares: false,
        device: Some("/device".into()),
        created: 0,
    };
    shelf.create(&new).unwrap();
    for method in [ZEROS, Method::Discard, RANDOM] {
        let plan = plan(method, Proof::All);
        let mut erasure = shelf.erase("a", &plan, 1).unwrap();
        erasure.run(&mut go_on).unwrap();
        let record = erasure.record("n", 2, None);
        assert_eq!((record.medium, record.holes()), (Medium::Device, 0), "{method}");
        assert_eq!(record.tally.read_back, 2 * MIB);
        drop(erasure);
        let mut found = vec![0; 2 * MIB as usize];
        fs.open("/device", OpenMode::read()).unwrap().read_exact_at(&mut found, 0).unwrap();
        let all = slice::from_ref(&(0..2 * MIB));
        assert!(found == expected(&plan, &found, all), "{method}");
        assert_eq!(shelf.identity("a").unwrap().state, VolumeState::Erasing);
    }
    shelf.remove("a").unwrap();
}

#[test]
fn an_erasure_that_was_begun_is_gone_on_with_and_not_just_removed() {
    let fs = MemFs::new().fs();
    let shelf = used(&fs, Path::new("/v"), 8 * MIB, slice::from_ref(&(0..8 * MIB)));
    let plan = plan(RANDOM, Proof::All);
    assert!(shelf.erasing().unwrap().is_empty());
    let mut erasure = shelf.erase("a", &plan, 1).unwrap();
    assert_eq!(shelf.erase("a", &plan, 1).unwrap_err().kind(), Kind::Conflict, "two at once");
    assert_eq!(shelf.take("a").unwrap_err().kind(), Kind::Conflict);
    erasure.step = MIB;
    let mut writes = 0;
    let error = erasure.run(&mut |progress| {
        assert_eq!((progress.passes, progress.size, progress.next), (2, 8 * MIB, MIB));
        writes += 1;
        if writes > 11 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!(error.unwrap_err().kind(), Kind::Cancelled);
    drop(erasure);
    // What is erased is not removed by who tidies up, and is found.
    assert!(shelf.tidy_volumes().unwrap().is_empty());
    assert_eq!(shelf.erasing().unwrap(), [("a".to_owned(), plan)]);
    let mut erasure = shelf.erase("a", &plan, 9).unwrap();
    erasure.step = MIB;
    let mut first = None;
    erasure
        .run(&mut |progress| {
            first.get_or_insert((progress.pass, progress.at));
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(first, Some((2, 3 * MIB)));
    let record = erasure.record("n", 10, None);
    assert_eq!((record.begun, record.tally.overwritten), (1, 8 * MIB));
    // Done is done.
    drop(erasure);
    let mut erasure = shelf.erase("a", &plan, 11).unwrap();
    assert!(erasure.is_done());
    erasure.run(&mut |_| ControlFlow::Break(())).unwrap();
    assert_eq!(erasure.record("n", 10, None), record);
    drop(erasure);
    shelf.remove("a").unwrap();
    assert!(shelf.names().unwrap().is_empty() && shelf.erasing().unwrap().is_empty());
}

#[test]
fn what_is_no_plan_changes_nothing() {
    let fs = MemFs::new().fs();
    let shelf = used(&fs, Path::new("/v"), MIB, slice::from_ref(&(0..MIB)));
    for (method, proof) in [
        (Method::Zeros { passes: 0 }, Proof::All),
        (Method::Random { passes: 101 }, Proof::All),
        (ZEROS, Proof::Sample { places: 0 }),
    ] {
        assert_eq!(shelf.erase("a", &plan(method, proof), 1).unwrap_err().kind(), Kind::Invalid);
    }
    assert_eq!(shelf.erase("b", &plan(ZEROS, Proof::All), 1).unwrap_err().kind(), Kind::Gone);
    assert_eq!(shelf.identity("a").unwrap().state, VolumeState::Allocated);
    assert!(bytes(&fs, Path::new("/v")).iter().all(|b| *b == MARKER));
}

#[test]
fn a_medium_that_fails_is_said_to_and_can_be_tried_again() {
    let fs = MemFs::new().fs();
    used(&fs, Path::new("/v"), 4 * MIB, slice::from_ref(&(0..4 * MIB)));
    let faults = FaultPlan::new();
    let shelf = Shelf::open(faults.wrap_fs(&fs), "/v".into()).unwrap();
    let plan = plan(ZEROS, Proof::All);
    let mut erasure = shelf.erase("a", &plan, 1).unwrap();
    // Of eight writes that are begun the third.
    faults.fail(FaultOp::Write, 3, Fault::Io);
    let error = erasure.run(&mut go_on).unwrap_err();
    assert_eq!(error.kind(), Kind::Io);
    let named = |at| {
        let (range, at) = (at..at + MIB, format!("at byte {at}:"));
        let range = format!("bytes {} to {} are not overwritten", range.start, range.end);
        error.message().contains(&range) && error.message().contains(&at)
    };
    assert!((0..4).any(|piece| named(piece * MIB)), "{error}");
    let record = erasure.record("n", 2, Some(&error));
    assert_eq!(record.outcome, Outcome::Failed { why: error.to_string() });
    assert_eq!(record.tally.overwritten, 0);
    drop(erasure);
    assert_eq!(shelf.identity("a").unwrap().state, VolumeState::Erasing);

    // A sync that fails, one that is full, and one that cannot be read.
    for (op, fault, kind) in
        [(FaultOp::Sync, Fault::Io, Kind::Io), (FaultOp::Write, Fault::Full, Kind::Full)]
    {
        let mut erasure = shelf.erase("a", &plan, 2).unwrap();
        faults.fail(op, 1, fault);
        let error = erasure.run(&mut go_on).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(!erasure.is_done());
    }
    let mut erasure = shelf.erase("a", &plan, 3).unwrap();
    faults.fail(FaultOp::Read, 2, Fault::Io);
    let error = erasure.run(&mut go_on).unwrap_err();
    assert!(error.message().contains("cannot be read back"), "{error}");
    assert!(!erasure.is_done());
    drop(erasure);
    let mut erasure = shelf.erase("a", &plan, 4).unwrap();
    erasure.run(&mut go_on).unwrap();
    let record = erasure.record("n", 5, None);
    assert_eq!((record.tally.overwritten, record.tally.read_back), (4 * MIB, 4 * MIB));
    assert!(bytes(&fs, Path::new("/v")).iter().all(|b| *b == 0));
}

/// A file that says that it has written some bytes, and has not.
#[derive(Debug)]
struct Liar(BlockFile, std::sync::atomic::AtomicBool);

impl Backing for Liar {
    fn kind(&self) -> FileKind {
        FileKind::Regular
    }

    fn size(&self) -> std::io::Result<u64> {
        self.0.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        self.0.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> std::io::Result<usize> {
        if offset != MIB || !self.1.load(std::sync::atomic::Ordering::Relaxed) {
            self.0.write_all_at(buf, offset)?;
        }
        Ok(buf.len())
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.0.set_len(len)
    }

    fn sync(&self, _: SyncWhat) -> std::io::Result<()> {
        self.0.sync_data()
    }

    fn try_lock_exclusive(&self) -> std::io::Result<bool> {
        Ok(true)
    }

    fn same_file(&self, path: &Path) -> std::io::Result<bool> {
        self.0.same_file(path)
    }
}

#[test]
fn a_write_that_did_not_happen_is_found_and_made_up_for() {
    let fs = MemFs::new().fs();
    let shelf = used(&fs, Path::new("/v"), 4 * MIB, slice::from_ref(&(0..4 * MIB)));
    for (proof, finds) in
        [(Proof::Sample { places: 60 }, true), (Proof::All, true), (Proof::None, false)]
    {
        let file = fs.open("/v/a/disk.raw", OpenMode::write()).unwrap();
        file.write_all_at(&vec![MARKER; 4 << 20], 0).unwrap();
        let mut erasure = shelf.erase("a", &plan(RANDOM, proof), 1).unwrap();
        let lies = Liar(file, true.into());
        erasure.data = BlockFile::from_backing("/v/a/disk.raw", Box::new(lies));
        let result = erasure.run(&mut go_on);
        assert_eq!(
            result.as_ref().err().map(Error::kind),
            finds.then_some(Kind::Corrupt),
            "{proof}"
        );
        assert_eq!(erasure.is_done(), !finds);
        let Err(error) = result else { continue };
        assert!(error.message().contains(&format!("at {MIB} ")) || proof != Proof::All, "{error}");
        drop(erasure);
        let mut erasure = shelf.erase("a", &plan(RANDOM, proof), 1).unwrap();
        let mut first = None;
        let mut note = |progress: &Progress| {
            first.get_or_insert((progress.pass, progress.at));
            ControlFlow::Continue(())
        };
        erasure.run(&mut note).unwrap();
        // The last pass is done again.
        assert_eq!(first, Some((2, 0)));
        assert_eq!(erasure.record("n", 2, None).tally.overwritten, 4 * MIB);
    }
}

/// Whether something that was there before may still be read.
fn has_marker(fs: &Fs) -> bool {
    fs.read("/v/a/disk.raw", 1 << 30).is_ok_and(|bytes| {
        bytes.chunks(512).any(|sector| sector.iter().all(|byte| *byte == MARKER))
    })
}

#[test]
fn after_a_power_cut_nothing_is_said_to_be_erased_that_is_not() {
    for method in [ZEROS, RANDOM, Method::Discard] {
        let disk = MemFs::new();
        let plan = plan(method, Proof::All);
        let shelf = used(&disk.fs(), Path::new("/v"), 64 << 10, &[0..16384, 24576..49152]);
        disk.settle();
        let run = |shelf: &Shelf| {
            let mut erasure = shelf.erase("a", &plan, 1).unwrap();
            erasure.step = 8192;
            erasure.run(&mut go_on).unwrap();
            erasure.record("n", 2, None)
        };
        let wanted = run(&shelf);
        disk.mark("erased");
        let mut cuts = 0;
        for image in disk.crash_images(CrashPlan::default()) {
            cuts += 1;
            let shelf = Shelf::open(image.fs(), "/v".into()).unwrap();
            assert!(shelf.tidy_volumes().unwrap().is_empty(), "{image}");
            let state = shelf.identity("a").unwrap_or_else(|e| panic!("{image}: {e}")).state;
            let begun = shelf.erasing().unwrap();
            // Whatever was changed, it is erasing, and is gone on with.
            assert!(state == VolumeState::Allocated || !begun.is_empty(), "{image}: {state:?}");
            let journal = Journal::read(&image.fs(), Path::new("/v/a/erasing"), &[1; 16]).unwrap();
            let done = journal.is_some_and(|state| state.done);
            assert!(!done || !has_marker(&image.fs()), "{image}");
            assert!(done || !image.reached("erased"), "{image}");
            let record = run(&shelf);
            assert!(!has_marker(&image.fs()), "{image}");
            let Tally { overwritten, discarded, moved, shared, .. } = record.tally;
            let of_plan = wanted.tally;
            assert_eq!((overwritten, moved, shared), (of_plan.overwritten, 0, 0), "{image}");
            // Of what was counted before it was given back the step may be counted, and not yet be given back.
            assert_eq!(discarded, of_plan.discarded, "{image}");
        }
        assert!(cuts > 40, "{cuts}");
    }
}

#[derive(Clone, Debug)]
struct Run {
    data: Vec<(u64, u64)>,
    size: u64,
    method: Method,
    proof: Proof,
    /// Where it is interrupted, once and again.
    cuts: Vec<u64>,
    step: u64,
}

fn run() -> impl Strategy<Value = Run> {
    let method = prop_oneof![
        (1u32..4).prop_map(|passes| Method::Zeros { passes }),
        (1u32..4).prop_map(|passes| Method::Random { passes }),
        Just(Method::Discard),
    ];
    let proof = prop_oneof![
        Just(Proof::None),
        (1u32..30).prop_map(|places| Proof::Sample { places }),
        Just(Proof::All),
    ];
    let data = prop::collection::vec((0u64..64, 1u64..8), 0..6);
    (data, 200u64..640, method, proof, prop::collection::vec(0u64..9, 0..4), 1u64..20).prop_map(
        |(data, sectors, method, proof, cuts, step)| {
            let (size, step) = (sectors * 512, step * 4096);
            Run { data, size, method, proof, cuts, step }
        },
    )
}

proptest! {
    #[test]
    fn however_it_is_interrupted_all_is_overwritten_and_counted_once(run in run()) {
        let disk = MemFs::new();
        let fs = disk.fs();
        let ranges: Vec<_> = run.data.iter().map(|(at, len)| {
            (at * 4096).min(run.size)..((at + len) * 4096).min(run.size)
        }).filter(|range| !range.is_empty()).collect();
        let shelf = used(&fs, Path::new("/v"), run.size, &ranges);
        let mut is_data = vec![false; run.size.div_ceil(4096) as usize];
        for range in &ranges {
            is_data[(range.start / 4096) as usize..range.end.div_ceil(4096) as usize].fill(true);
        }
        let data = is_data.iter().filter(|is| **is).count() as u64 * 4096;
        let plan = plan(run.method, run.proof);
        for cut in &run.cuts {
            let mut erasure = shelf.erase("a", &plan, 1).unwrap();
            erasure.step = run.step;
            let mut left = *cut;
            let result = erasure.run(&mut |_| match left {
                0 => ControlFlow::Break(()),
                _ => { left -= 1; ControlFlow::Continue(()) }
            });
            prop_assert_eq!(erasure.is_done(), result.is_ok());
        }
        let mut erasure = shelf.erase("a", &plan, 1).unwrap();
        erasure.step = run.step;
        erasure.run(&mut go_on).unwrap();
        let record = erasure.record("n", 2, None);
        let counted = if run.method == Method::Discard { record.tally.discarded } else { record.tally.overwritten };
        prop_assert_eq!(counted, data);
        prop_assert_eq!(record.holes(), is_data.len() as u64 * 4096 - data);
        let found = bytes(&fs, Path::new("/v"));
        let blocks: Vec<_> = (0u64..).zip(&is_data).filter(|(_, is)| **is)
            .map(|(block, _)| block * 4096..(block + 1) * 4096).collect();
        prop_assert!(found == expected(&plan, &found, &blocks));
    }
}
