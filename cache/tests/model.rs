//! Whatever is done to a cache, in whatever order: right bytes, within its budgets.

mod common;

use std::sync::Arc;

use blockio::Engine;
use blockio::fake::{Fault, FaultOp, FaultPlan, MemFs};
use common::{CHUNK, Fake, Rig, Stuff, TestImage, bytes_of, disk_options, on_core, segments};
use forebay_cache::{Budget, Cache, DiskBudget, Options, Shared};
use image::{ChunkSet, ChunkSource, Place, Priority, ReadContext};
use proptest::prelude::*;

const MEMORY: u64 = 40 * (CHUNK as u64 + 512);
const DISK: u64 = 2 << 20;

#[derive(Clone, Debug)]
enum Op {
    /// Two reads at once of an image's chunks whose bits are set.
    Read(u8, u64, u64),
    Repair(u8, u64),
    Settle,
    DropChunk(u8, u8),
    DropAll,
    Restart {
        kill: bool,
    },
    Fault(FaultOp, u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0u8..6, any::<u64>(), any::<u64>()).prop_map(|(i, a, b)| Op::Read(i, a, b)),
        1 => (0u8..6, any::<u64>()).prop_map(|(i, a)| Op::Repair(i, a)),
        4 => Just(Op::Settle),
        1 => (0u8..6, 0u8..50).prop_map(|(i, c)| Op::DropChunk(i, c)),
        1 => Just(Op::DropAll),
        1 => any::<bool>().prop_map(|kill| Op::Restart { kill }),
        1 => (1u64..20).prop_map(|nth| Op::Fault(FaultOp::Read, nth)),
        1 => (1u64..20).prop_map(|nth| Op::Fault(FaultOp::Write, nth)),
        1 => (1u64..5).prop_map(|nth| Op::Fault(FaultOp::Name, nth)),
    ]
}

struct World {
    images: Vec<TestImage>,
    fs: MemFs,
    faults: FaultPlan,
    source: Arc<Fake>,
}

impl World {
    fn new(images: &[TestImage]) -> Self {
        let images = images.to_vec();
        let source = Fake::new(images.iter().cloned());
        Self { images, fs: MemFs::new(), faults: FaultPlan::new(), source }
    }

    fn rig(&self) -> Rig {
        let disk = DiskBudget { dir: common::DIR.into(), bytes: DISK, reserve: 0 };
        let budget = Budget { memory: MEMORY, in_flight: 0, disk: Some(disk) };
        let mut options = Options { window: 4 * CHUNK as u64, ..disk_options(&self.fs) };
        options.fs = self.faults.wrap_fs(&options.fs);
        Rig::new(&self.source, budget, options)
    }

    fn place(&self, image: u8, bits: u64) -> Place {
        self.images[usize::from(image)].place(|chunk| bits >> chunk & 1 == 1)
    }

    async fn check(&self, rig: &mut Rig, op: Op) {
        match op {
            Op::Read(image, a, b) => {
                let (a, b) = (self.place(image, a), self.place(image, b));
                let (first, second) = tokio::join!(rig.read(&a), rig.read(&b));
                self.images[usize::from(image)].check(&a, first.unwrap());
                self.images[usize::from(image)].check(&b, second.unwrap());
            }
            Op::Repair(image, bits) => {
                let (place, mut got) = (self.place(image, bits), Vec::new());
                rig.cache.chunks(&common::repair(), &place, &mut got).await.unwrap();
                self.images[usize::from(image)].check(&place, got);
            }
            Op::Settle => rig.settle(),
            Op::DropChunk(image, chunk) => {
                let table = &self.images[usize::from(image)].table;
                rig.shared.drop_chunk(table.domain(), &table.digests()[usize::from(chunk)]);
            }
            Op::DropAll => rig.shared.drop_all(),
            Op::Restart { kill } => {
                let old = std::mem::replace(rig, self.rig());
                if !kill {
                    old.close();
                }
            }
            Op::Fault(op, nth) => _ = self.faults.fail(op, nth, Fault::Io),
        }
    }

    fn check_budgets(&self, rig: &Rig) {
        let status = rig.status();
        assert!(status.memory_bytes + status.paper_bytes <= MEMORY, "{status:?}");
        assert!(status.disk_queued_bytes <= (4 << 20) + 64, "{status:?}");
        assert_eq!((status.in_flight_bytes, status.flights), (0, 0));
        if self.fs.fs().exists(common::DIR).unwrap() {
            let files = segments(&self.fs);
            let bytes: u64 = files.iter().map(|name| bytes_of(&self.fs, name).len() as u64).sum();
            assert!(bytes <= DISK, "{bytes} bytes in {} files", files.len());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn right_bytes_within_the_budgets(ops in proptest::collection::vec(op(), 1..40)) {
        static IMAGES: std::sync::LazyLock<Vec<TestImage>> = std::sync::LazyLock::new(|| {
            // Neighbours share half of their chunks.
            (0..6).map(|n| TestImage::of(n * 25..n * 25 + 50, Stuff::Noise)).collect()
        });
        on_core(async {
            let world = World::new(&IMAGES);
            let mut rig = world.rig();
            for op in ops {
                world.check(&mut rig, op).await;
                world.check_budgets(&rig);
            }
        });
    }
}

/// Cores, files and the log's thread as they are outside of tests.
#[test]
fn cores_that_read_all_at_once_get_right_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let images: Vec<_> = (0..8).map(|n| TestImage::of(n * 20..n * 20 + 40, Stuff::Noise)).collect();
    let source = Fake::new(images.iter().cloned());
    let disk = DiskBudget { dir: dir.path().into(), bytes: DISK, reserve: 0 };
    let budget = Budget { memory: MEMORY, in_flight: 8 << 20, disk: Some(disk) };
    let options = Options { segment: Some(256 << 10), ..Options::default() };
    let shared = Shared::start(budget, options).unwrap();
    std::thread::scope(|scope| {
        for core in 0..4u64 {
            let (images, source, shared) = (&images, Arc::clone(&source), Arc::clone(&shared));
            scope.spawn(move || {
                on_core(async move {
                    let cache = Cache::new(source, shared, Engine::detect().unwrap());
                    for turn in 0..60u64 {
                        let image = &images[((turn * 7 + core) % 8) as usize];
                        let salt = (turn ^ core).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                        let chunks = ChunkSet::of(40, |chunk| salt >> chunk & 1 == 1);
                        let place = Place { chunks, ..image.all() };
                        let ctx = ReadContext {
                            priority: if turn % 3 == 0 { Priority::Guest } else { Priority::Trace },
                            repair: turn % 10 == 9,
                            ..ReadContext::default()
                        };
                        let mut got = Vec::new();
                        cache.chunks(&ctx, &place, &mut got).await.unwrap();
                        image.check(&place, got);
                    }
                });
            });
        }
    });
    let status = shared.status();
    assert!(status.disk_hits > 0 && status.memory_hits > 0, "{status:?}");
    assert_eq!(status.disk_bad_frames, 0);
    shared.close();
}
