//! Pulls from a source that is honest: what is fetched, what is not, and what there is after it.

mod common;

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;

use blockio::EngineChoice;
use common::{CHUNK, Disk, Lie, Source, Until, options, run, run_with};
use forebay_node::pull::ordered::pull_stream;
use forebay_node::pull::{PullOptions, Watch, pull};
use image::Kind;
use tokio::task::LocalSet;

fn place() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    (dir, path)
}

#[tokio::test]
async fn a_new_file_is_exact_and_has_holes_where_there_is_nothing() {
    for engine in [EngineChoice::Auto, EngineChoice::Just(blockio::EngineKind::Portable)] {
        for chunks in ["", "a", ".", "a.b..c", &"ab......".repeat(20)] {
            for cut in [0, 512, CHUNK - 512] {
                let disk = Disk::new(chunks);
                if disk.bytes.len() < cut {
                    continue;
                }
                let disk = disk.cut(cut);
                let (_dir, path) = place();
                let source = Source::honest(&disk);
                let done = run_with(&source, &path, options(engine)).await.unwrap();
                disk.is_at(&path);
                assert_eq!(done.size, disk.bytes.len() as u64);
                assert_eq!(done.reused, 0);
                assert_eq!(source.said.chunks() as u64, done.chunks);
                let used = path.metadata().unwrap().blocks() * 512;
                assert!(used <= done.written + CHUNK as u64, "{used} for {}", done.written);
            }
        }
    }
}

#[tokio::test]
async fn sections_are_shared_out_and_all_of_them_come() {
    let (_dir, path) = place();
    // Two sections of 4096 chunks, and a bit.
    let mut chunks = ".".repeat(2 * 4096 + 7);
    for at in [0, 4095, 4096, 8191, 8192, 8198] {
        chunks.replace_range(at..=at, "x");
    }
    let disk = Disk::new(&chunks).cut(512);
    let source = Source::honest(&disk);
    assert_eq!(run(&source, &path).await.unwrap().chunks, 6);
    disk.is_at(&path);
}

#[tokio::test]
async fn over_an_earlier_image_only_what_differs_is_fetched() {
    let (_dir, path) = place();
    let old = Disk::new(&"abcdefgh".repeat(20));
    run(&Source::honest(&old), &path).await.unwrap();
    let mut new = old.clone();
    new.bytes[3 * CHUNK] ^= 1;
    new.bytes[100 * CHUNK..101 * CHUNK].fill(0);
    let source = Source::honest(&new);
    let done = run(&source, &path).await.unwrap();
    new.is_at(&path);
    assert_eq!((source.said.chunks(), done.chunks), (1, 1), "zeros are not fetched");
    assert_eq!(done.reused, 158 * CHUNK as u64);
    assert_eq!(run(&source, &path).await.unwrap().chunks, 0);
    assert_eq!(source.said.requests(), 0);
}

#[tokio::test]
async fn a_pull_that_was_cut_goes_on_and_does_not_trust_what_it_left() {
    let (dir, path) = place();
    let disk = Disk::new(&"abcdefghijklmnopqrst".repeat(10));
    let cut = Source::lying(&disk, Lie::Fails(Kind::Denied), Until::Ever);
    let error = run(&cut, &path).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Denied, "{error}");
    assert!(!path.exists());
    // Most of it arrives; some of that rots.
    let partial = dir.path().join(".disk.raw.forebay-partial");
    let file = std::fs::File::options().write(true).open(&partial).unwrap();
    file.write_all_at(&disk.bytes[..150 * CHUNK], 0).unwrap();
    file.write_all_at(&[!disk.bytes[77 * CHUNK]], 77 * CHUNK as u64).unwrap();
    let source = Source::honest(&disk);
    let done = run(&source, &path).await.unwrap();
    disk.is_at(&path);
    assert!(done.chunks <= 51, "{} chunks were fetched", done.chunks);
    assert!(done.chunks >= 1);
    assert!(!partial.exists());
}

#[tokio::test]
async fn what_other_files_hold_is_hashed_and_not_fetched() {
    let (dir, path) = place();
    let disk = Disk::new("abcdefgh").cut(512);
    let (good, bad) = (dir.path().join("good"), dir.path().join("bad"));
    std::fs::write(&good, &disk.bytes).unwrap();
    let mut bytes = disk.bytes.clone();
    bytes[2 * CHUNK + 5] ^= 1;
    std::fs::write(&bad, bytes).unwrap();
    let source = Source::honest(&disk);
    for (seeds, fetched) in [
        (vec![good.clone()], 0),
        (vec![bad.clone()], 1),
        (vec![bad, good], 0),
        (vec![dir.path().join("nothing")], 8),
    ] {
        let options = PullOptions { seeds, ..options(EngineChoice::Auto) };
        run_with(&source, &path, options).await.unwrap();
        disk.is_at(&path);
        assert_eq!(source.said.chunks(), fetched);
        std::fs::remove_file(&path).unwrap();
    }
}

#[tokio::test]
async fn a_cancelled_pull_says_so_and_is_run_again() {
    let (_dir, path) = place();
    let disk = Disk::new("abcdefgh");
    let watch = Arc::new(Watch::default());
    watch.cancel();
    let source = Source::honest(&disk);
    let options = options(EngineChoice::Auto);
    let cancelled = pull(source.clone(), disk.image(), path.clone(), options, watch).await;
    assert_eq!(cancelled.unwrap_err().kind(), Kind::Cancelled);
    assert!(!path.exists());
    run(&source, &path).await.unwrap();
    disk.is_at(&path);
}

#[tokio::test]
async fn a_stream_is_the_same_bytes_in_order() {
    for chunks in ["", "...", "a", "..ab..c...", &"ab.".repeat(2000)] {
        let disk = Disk::new(chunks);
        let source = Source::honest(&disk);
        let (mut out, watch) = (Vec::new(), Arc::new(Watch::default()));
        let options = options(EngineChoice::Auto);
        let streamed = pull_stream(source, disk.image(), &mut out, &options, &watch);
        LocalSet::new().run_until(streamed).await.unwrap();
        assert!(out == disk.bytes, "{} bytes for {}", out.len(), disk.bytes.len());
    }
}

#[tokio::test]
async fn a_stream_that_nobody_reads_any_more_is_an_error() {
    let disk = Disk::new(&"abcdefgh".repeat(40));
    let (mut out, reader) = tokio::io::duplex(1000);
    drop(reader);
    let (source, watch) = (Source::honest(&disk), Arc::new(Watch::default()));
    let options = options(EngineChoice::Auto);
    let streamed = pull_stream(source, disk.image(), &mut out, &options, &watch);
    let error = LocalSet::new().run_until(streamed).await.unwrap_err();
    assert!(error.to_string().contains("standard output"), "{error}");
}

#[tokio::test]
async fn a_target_without_room_for_what_is_known_to_come_is_refused_before_anything_does() {
    let (dir, path) = place();
    let (old, new) = (Disk::new("abc"), Disk::new("xyz"));
    std::fs::write(&path, &old.bytes).unwrap();
    let file = blockio::BlockFile::open(&path, blockio::OpenMode::read()).unwrap();
    if file.space().unwrap().is_none() {
        return; // A file system that compresses cannot tell.
    }
    let (source, watch) = (Source::honest(&new), Arc::new(Watch::default()));
    watch.expect(1 << 60);
    let options = options(EngineChoice::Auto);
    let e = pull(source.clone(), new.image(), path.clone(), options, watch).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Full, "{e}");
    assert_eq!(source.said.chunks(), 0);
    old.is_at(&path);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}
