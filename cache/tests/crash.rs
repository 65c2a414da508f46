//! A power cut at any instant costs hits, never a wrong byte.

mod common;

use std::sync::Arc;

use blockio::fake::{CrashPlan, MemFs};
use common::{Fake, Rig, Stuff, TestImage, disk_budget, disk_options, on_core};
use forebay_cache::{Budget, DiskState, Options};

/// A cache with segments of 4 KiB, so that there are many of them.
fn rig(source: &Arc<Fake>, fs: &MemFs) -> Rig {
    let options = Options { segment: Some(4096), ..disk_options(fs) };
    let budget = Budget { memory: 4 << 20, ..disk_budget(16 << 10) };
    let mut rig = Rig::new(source, budget, options);
    rig.settle();
    rig
}

/// Fills a log beyond its budget: appends, seals, spares, removes.
async fn fill(fs: &MemFs, images: &[TestImage]) {
    let source = Fake::new(images.iter().cloned());
    let mut rig = rig(&source, fs);
    for image in images {
        // The first image stays in use.
        for image in [&images[0], image] {
            image.check(&image.all(), rig.read(&image.all()).await.unwrap());
            rig.settle();
        }
    }
    rig.close();
}

#[test]
fn recovers_from_every_power_cut() {
    let images: Vec<_> =
        (0..6).map(|n| TestImage::of(n * 100..n * 100 + 4, Stuff::Mixed)).collect();
    let disk = MemFs::new();
    on_core(fill(&disk, &images));
    let plan = CrashPlan { per_point: 16, ..CrashPlan::default() };
    let (mut cuts, mut hits, mut bad, mut most) = (0, 0, 0, 0);
    on_core(async {
        for crash in disk.crash_images(plan) {
            let source = Fake::new(images.iter().cloned());
            let mut first = rig(&source, crash.disk());
            assert_eq!(first.status().disk, DiskState::On, "{crash}");
            for image in &images {
                image.check(&image.all(), first.read(&image.all()).await.unwrap());
            }
            let status = first.status();
            assert_eq!(status.disk_hits + u64::from(source.given_in_all()), 24, "{crash}");
            cuts += 1;
            hits += status.disk_hits;
            bad += status.disk_bad_frames;
            most = most.max(status.disk_hits);
            // What is written on top of what the cut left is good as well.
            first.settle();
            first.close();
            let second = rig(&source, crash.disk());
            let image = &images[5];
            image.check(&image.all(), second.read(&image.all()).await.unwrap());
            assert_eq!(second.status().disk_bad_frames, 0, "{crash}");
        }
    });
    // Else nothing was tested: there were cuts, they did harm, and much was found all the same.
    assert!(cuts > 500 && bad > 100, "{cuts} cuts left {bad} bad frames");
    assert!(most >= 8 && hits > cuts, "{hits} hits in {cuts} cuts, at most {most}");
}
