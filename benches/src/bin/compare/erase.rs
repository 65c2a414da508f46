//! A volume whose bytes are destroyed, beside `fio` that writes a file of the same length past the page cache.

use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;

use blockio::Fs;
use image::Geometry;
use serde_json::Value;
use volume_pool::erase::{Method, Plan, Proof};
use volume_pool::{NewVolume, Shelf};

use crate::Setup;
use crate::bars::{Bars, Bound, median, mib};
use crate::process::{now, run, settle};

/// Bytes that are overwritten.
const SIZE: u64 = 4 << 30;
const ZEROS: Method = Method::Zeros { passes: 1 };
const RANDOM: Method = Method::Random { passes: 1 };

pub fn measure(setup: &Setup, bars: &mut Bars) {
    let dir = setup.dir.join("erase");
    let shelf = volume(&dir);
    let beside = dir.join("beside");
    // Both files have all of their blocks before it counts.
    erase(&shelf, RANDOM, Proof::None);
    fio(&beside, "write", &[]);
    let (mut zeros, mut beside_zeros) = (vec![], vec![]);
    let (mut random, mut beside_random) = (vec![], vec![]);
    let (mut proved, mut reads) = (vec![], vec![]);
    for _ in 0..setup.runs {
        settle();
        // A disk may take zeros faster than other bytes.
        beside_zeros.push(fio(&beside, "write", &["--zero_buffers"]));
        zeros.push(erase(&shelf, ZEROS, Proof::None));
        beside_random.push(fio(&beside, "write", &[]));
        random.push(erase(&shelf, RANDOM, Proof::None));
        reads.push(fio(&beside, "read", &[]));
        proved.push(erase(&shelf, RANDOM, Proof::All));
    }
    std::fs::remove_dir_all(&dir).unwrap();
    let ratio = |ours: &[f64], theirs: &[f64]| {
        median(ours.iter().zip(theirs).map(|(a, b)| a / b).collect())
    };
    let what = "overwriting a volume with zeros, beside fio with zeros (1 MiB, 8 under way, past the page cache)";
    let bar = Bound::AtLeast(0.9);
    bars.add(what, rate(&zeros), rate(&beside_zeros), ratio(&zeros, &beside_zeros), bar);
    let what = "… with random bytes, beside fio with its own";
    bars.add(what, rate(&random), rate(&beside_random), ratio(&random, &beside_random), bar);
    let one_by_one = beside_random.iter().zip(&reads).map(|(w, r)| 1.0 / (1.0 / w + 1.0 / r));
    let both: Vec<f64> = one_by_one.collect();
    let what = "… and all read back, beside fio that writes and then reads";
    bars.add(what, rate(&proved), rate(&both), ratio(&proved, &both), Bound::Told);
}

/// A volume that takes all of its space.
fn volume(dir: &Path) -> Shelf {
    let shelf = Shelf::open(Fs::os(), dir.join("volumes")).unwrap();
    let geometry = Geometry::new(SIZE, 512, 18).unwrap();
    let (name, id, created) = ("a".to_owned(), [1; 16], 0);
    let new = NewVolume { name, id, geometry, image: None, shares: false, device: None, created };
    shelf.create(&new).unwrap();
    shelf.take("a").unwrap().data.allocate(0..SIZE).unwrap();
    shelf
}

/// Bytes a second. A plan that differs from the one before begins anew.
fn erase(shelf: &Shelf, method: Method, proof: Proof) -> f64 {
    let plan = Plan { method, proof, seed: [7; 32] };
    let start = now();
    let mut erasure = shelf.erase("a", &plan, 0).unwrap();
    erasure.run(&mut |_| ControlFlow::Continue(())).unwrap();
    let took = (now() - start).as_secs_f64();
    assert_eq!(erasure.record("here", 0, None).tally.overwritten, SIZE);
    SIZE as f64 / took
}

/// Bytes a second.
fn fio(file: &Path, what: &str, more: &[&str]) -> f64 {
    let mut fio = Command::new("fio");
    fio.args(["--name=w", "--direct=1", "--ioengine=io_uring", "--bs=1M", "--iodepth=8"])
        .args([&format!("--rw={what}"), &format!("--size={SIZE}"), "--output-format=json"])
        .arg(format!("--filename={}", file.display()))
        .args(more)
        .current_dir(file.parent().unwrap());
    let said: Value = serde_json::from_slice(&run(&mut fio).stdout).unwrap();
    said["jobs"][0][what]["bw_bytes"].as_f64().unwrap()
}

fn rate(speeds: &[f64]) -> String {
    format!("{}/s", mib(median(speeds.to_vec())))
}
