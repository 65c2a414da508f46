//! Volumes whose chunks come late, in disorder, damaged or not at all, under guests that use them meanwhile.
//!
//! `FOREBAY_E2E=1 cargo test -p forebay-node --test rough` has fio and nbdcopy for guests. `FOREBAY_SEED` (1) draws
//! what happens.

mod common;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use common::grid::{OneImage, create, over_nbd, start, until, url};
use common::rough::{Faults, Rough};
use common::{CHUNK, Disk, Source};
use forebay_node::volumes::Share;

const FAULTS: Faults = Faults { fail: 10, damage: 5, late: Duration::from_millis(50) };

fn rough(disk: &Disk, faults: Faults) -> OneImage<Rough> {
    let seed = std::env::var("FOREBAY_SEED").map_or(1, |seed| seed.parse().unwrap());
    println!("FOREBAY_SEED={seed}");
    let source = Source::honest(disk);
    OneImage::by(&Arc::clone(&source.disk), Rough::new(&source, faults, seed))
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_on_the_way_a_volume_is_whole_in_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::new(&"abcdefgh..ijklmnop".repeat(20)).cut(512);
    let volumes = start(dir.path(), rough(&disk, FAULTS), Share::Never).await;
    for name in ["a", "b"] {
        create(&volumes, name).await;
        volumes.attach(name, over_nbd()).await.unwrap();
    }
    for name in ["a", "b"] {
        until(&volumes, name, |info| info.plain).await;
        disk.is_at(&volumes.detach(name).await.unwrap().disk);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_becomes_plain_though_mostly_nobody_answers() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::new("abcdefgh..ijklmnop");
    let faults = Faults { fail: 60, late: Duration::ZERO, ..FAULTS };
    let volumes = start(dir.path(), rough(&disk, faults), Share::Never).await;
    create(&volumes, "a").await;
    volumes.attach("a", over_nbd()).await.unwrap();
    until(&volumes, "a", |info| info.plain).await;
    disk.is_at(&volumes.detach("a").await.unwrap().disk);
}

/// Runs a program that must not fail, nor hang.
fn run(words: Vec<String>, within: PathBuf) {
    let mut command = Command::new("timeout");
    let out = command.arg("240").args(&words).current_dir(within).output().unwrap();
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(out.status.success(), "{words:?}: {}{}", said(&out.stdout), said(&out.stderr));
}

/// Where the guest is at work: pieces that begin and end within chunks, with as much between them.
const PIECE: u64 = 4 << 20;

const DISCARDS: &str = "randtrim";
const WORK: [&str; 3] = ["randrw", DISCARDS, "randtrimwrite"];

fn pieces(disk: &Disk) -> impl Iterator<Item = u64> {
    (0..disk.bytes.len() as u64 / (2 * PIECE)).map(|i| i * 2 * PIECE + 4096 + 512 * i)
}

/// Guests all over these pieces: those that write read again what they wrote, and compare.
fn fio(disk: &Disk, uri: &str) -> Vec<String> {
    let mut words: Vec<String> = ["fio", "--ioengine=nbd", "--iodepth=16", "--output-format=terse"]
        .into_iter()
        .chain(["--bsrange=512-64k", "--bs_unaligned=0", "--fsync=64", "--verify_backlog=64"])
        .map(str::to_owned)
        .collect();
    words.extend([format!("--uri={uri}"), format!("--size={PIECE}")]);
    for (at, work) in pieces(disk).zip(WORK.iter().cycle()) {
        words.extend([format!("--name=at{at}"), format!("--offset={at}")]);
        words.push(format!("--rw={work}"));
        // What is discarded is not looked at by fio.
        let verify = if *work == DISCARDS { "0" } else { "crc32c" };
        words.push(format!("--verify={verify}"));
    }
    words
}

/// What an export shows, by way of nbdcopy.
fn copied(uri: String, within: &Path) -> Vec<u8> {
    let to = within.join("copy");
    run(vec!["nbdcopy".into(), uri, to.display().to_string()], within.to_owned());
    std::fs::read(to).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn guests_see_right_bytes_and_no_error_whatever_happens_on_the_way() {
    if std::env::var_os("FOREBAY_E2E").is_none() {
        println!("left out: needs FOREBAY_E2E=1, fio and nbdcopy");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_owned();
    let disk = Arc::new(Disk::new(&"abcdefgh.ijklmno".repeat(256)));
    assert_eq!(disk.bytes.len(), 4096 * CHUNK);
    let volumes = start(&dir, rough(&disk, FAULTS), Share::Never).await;
    for name in ["a", "b"] {
        create(&volumes, name).await;
        volumes.attach(name, over_nbd()).await.unwrap();
    }
    let (words, within) = (fio(&disk, &url(&dir, "a")), dir.clone());
    let writes = tokio::task::spawn_blocking(move || run(words, within));
    let (uri, within) = (url(&dir, "b"), dir.clone());
    let copies = tokio::task::spawn_blocking(move || copied(uri, &within));
    writes.await.unwrap();
    assert!(copies.await.unwrap() == disk.bytes, "what was copied is the image");
    for name in ["a", "b"] {
        until(&volumes, name, |info| info.plain).await;
    }
    let (uri, within) = (url(&dir, "a"), dir.clone());
    let seen = tokio::task::spawn_blocking(move || copied(uri, &within)).await.unwrap();
    let plain = std::fs::read(volumes.detach("a").await.unwrap().disk).unwrap();
    assert!(seen == plain, "the export shows what is in the file");
    disk.is_at(&volumes.detach("b").await.unwrap().disk);
    is_the_image(&plain, &disk, 0..4096, false);
    for (at, work) in pieces(&disk).zip(WORK.iter().cycle()) {
        if *work == DISCARDS {
            is_the_image(&plain, &disk, at..at + PIECE, true);
        }
        let next = (at + 2 * PIECE).min(disk.bytes.len() as u64);
        is_the_image(&plain, &disk, at + PIECE..next, false);
    }
    assert!(plain != disk.bytes);
}

/// That each sector of a range is the image's, or zeros where it may have been discarded.
#[track_caller]
fn is_the_image(found: &[u8], disk: &Disk, range: Range<u64>, discarded: bool) {
    for at in (range.start as usize..range.end as usize).step_by(512) {
        let sector = &found[at..at + 512];
        let zeros = discarded && sector.iter().all(|b| *b == 0);
        assert!(zeros || *sector == disk.bytes[at..at + 512], "the sector at {at}");
    }
}
