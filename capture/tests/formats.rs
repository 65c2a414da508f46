//! Foreign formats: what is read, what is refused by name, and what damage does.

#![allow(missing_docs, reason = "test code")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{MemorySink, assert_imports, import_into, noise};
use forebay_capture::{Compression, DiskSource, Format, SourceOptions};
use image::{Error, Kind};
use proptest::prelude::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// What lies in the fixtures; see their README.
fn fixture_disk() -> Vec<u8> {
    let mut disk = vec![0; (1 << 20) + 512];
    let end = disk.len();
    (0..4096).for_each(|i| disk[i] = (i * 7) as u8);
    (200_000..206_000).for_each(|i| disk[i] = (i / 16 % 251) as u8);
    disk[end - 512..].fill(0x5a);
    disk
}

fn open(path: &Path) -> Result<DiskSource, Error> {
    DiskSource::open(path, &SourceOptions::default())
}

/// Opens and imports `bytes` as a file of this name; nothing more than an error may come of it.
fn attempt(name: &str, bytes: &[u8]) -> Result<Vec<u8>, Error> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    let sink = MemorySink::default();
    import_into(open(&path)?, &sink, 16)?;
    Ok(sink.disk())
}

fn refused(name: &str) -> Error {
    open(&fixture(name)).expect_err("it was opened")
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

#[test]
fn every_format_gives_the_same_disk() {
    let disk = fixture_disk();
    let names = ["plain.qcow2", "compressed.qcow2", "version2.qcow2", "sparse.vmdk", "stream.vmdk"];
    for name in names {
        for chunk_log2 in [14, 18] {
            let imported = assert_imports(open(&fixture(name)).unwrap(), &disk, chunk_log2);
            assert!(imported.stats.data <= 3 * (256 << 10), "{name}: {:?}", imported.stats);
        }
    }
}

#[test]
fn references_to_other_files_are_refused_by_name() {
    for (name, other) in [
        ("backing.qcow2", "/etc/secret-disk.raw"),
        ("data-file.qcow2", "outside.raw"),
        ("flat.vmdk", "flat-flat.vmdk"),
    ] {
        let e = refused(name);
        assert_eq!(e.kind(), Kind::Unsupported, "{e}");
        assert!(e.message().contains(other) && e.message().contains(name), "{e}");
        assert!(e.message().contains("qemu-img convert"), "{e}");
    }
}

#[test]
fn references_are_not_followed_even_if_they_lead_somewhere() {
    let dir = tempfile::tempdir().unwrap();
    for (name, other) in [("data-file.qcow2", "outside.raw"), ("flat.vmdk", "flat-flat.vmdk")] {
        std::fs::copy(fixture(name), dir.path().join(name)).unwrap();
        std::fs::write(dir.path().join(other), vec![1; (1 << 20) + 512]).unwrap();
        let e = open(&dir.path().join(name)).unwrap_err();
        assert!(e.message().contains(other), "{e}");
    }
}

#[test]
fn what_a_header_asks_for_and_we_do_not_do_is_refused_by_name() {
    let good = std::fs::read(fixture("plain.qcow2")).unwrap();
    let with = |at: usize, value: &[u8]| {
        let mut bytes = good.clone();
        put(&mut bytes, at, value);
        attempt("a.qcow2", &bytes).unwrap_err()
    };
    for (at, value, says) in [
        (4, &[0, 0, 0, 9][..], "version 9"),
        (32, &[0, 0, 0, 1], "encrypted"),
        (32, &[0, 0, 0, 2], "encrypted"),
        (79, &[1], "not closed cleanly"),
        (79, &[2], "corrupt"),
        (79, &[8], "zstd"),
        (79, &[16], "extended L2"),
        (72, &[0x80], "feature 63"),
    ] {
        let e = with(at, value);
        assert_eq!(e.kind(), Kind::Unsupported, "{e}");
        assert!(e.message().contains(says), "{e}");
    }
    assert!(refused("zstd.qcow2").message().contains("zstd"));
}

#[test]
fn tables_that_cannot_be_there_are_refused_before_they_are_allocated() {
    let good = std::fs::read(fixture("plain.qcow2")).unwrap();
    let with = |changes: &[(usize, &[u8])]| {
        let mut bytes = good.clone();
        changes.iter().for_each(|(at, value)| put(&mut bytes, *at, value));
        attempt("a.qcow2", &bytes).unwrap_err()
    };
    // 4 million L1 entries in a file of 20 KiB; an L1 table at the end of the world; too short a
    // one; clusters of half a byte, and of 4 GiB.
    for (changes, says) in [
        (&[(36, &[0, 0x3f, 0xff, 0xff][..])][..], "past the end"),
        (&[(40, &[0xff; 8])], "past the end"),
        (&[(36, &[0, 0, 0, 1])], "too short"),
        (&[(20, &[0, 0, 0, 0])], "cluster size"),
        (&[(20, &[0, 0, 0, 32])], "cluster size"),
        (&[(24, &[0xff; 8])], "too short"),
    ] {
        let e = with(changes);
        assert_eq!(e.kind(), Kind::Corrupt, "{e}");
        assert!(e.message().contains(says), "{e}");
    }
    let mut vmdk = std::fs::read(fixture("sparse.vmdk")).unwrap();
    put(&mut vmdk, 12, &(1u64 << 36).to_le_bytes());
    let e = attempt("a.vmdk", &vmdk).unwrap_err();
    assert!(e.message().contains("past the end"), "{e}");
}

/// A prefix of a file is an error wherever it ends, unless what is missing is not needed.
#[test]
fn a_truncated_file_is_an_error_never_a_disk_with_zeros() {
    let disk = fixture_disk();
    let names = ["plain.qcow2", "compressed.qcow2", "version2.qcow2", "sparse.vmdk", "stream.vmdk"];
    for name in names {
        let whole = std::fs::read(fixture(name)).unwrap();
        let mut errors = 0;
        let lengths = (0..80).chain((1..whole.len()).step_by(whole.len() / 150 + 1));
        for len in lengths.chain([whole.len() - 1]) {
            match attempt(name, &whole[..len]) {
                Ok(got) => assert!(got == disk, "{name} cut at {len} gave another disk"),
                Err(e) => {
                    errors += 1;
                    assert!(matches!(e.kind(), Kind::Corrupt | Kind::Invalid), "{len}: {e:?}");
                }
            }
        }
        assert!(errors > 150, "{name}: {errors}");
    }
}

#[test]
fn half_a_compressed_cluster_is_not_made_up() {
    // Bytes that deflate cannot shrink fill their cluster's last sector; without it, what is left
    // inflates to something only if somebody invents the rest.
    let whole = std::fs::read(fixture("compressed.qcow2")).unwrap();
    let last = whole.len() - 512;
    let e = attempt("a.qcow2", &whole[..last]).unwrap_err();
    assert_eq!(e.kind(), Kind::Corrupt, "{e}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever is wrong with a file, there is an error or a disk, and neither takes long.
    #[test]
    fn damage_is_an_error_or_a_disk_but_no_panic(
        which in 0usize..5,
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        early in any::<bool>(),
    ) {
        let names =
            ["plain.qcow2", "compressed.qcow2", "version2.qcow2", "sparse.vmdk", "stream.vmdk"];
        let mut bytes = std::fs::read(fixture(names[which])).unwrap();
        // Headers and tables come first: most damage belongs there.
        let span = if early { 1536 } else { bytes.len() };
        flips.iter().for_each(|(at, value)| bytes[at.index(span)] = *value);
        if let Err(e) = attempt(names[which], &bytes) {
            prop_assert!(!e.message().contains("died"), "a panic: {e}");
        }
    }
}

/// The same file as a writer that cannot seek leaves it: the directory is found through a footer.
fn with_footer(mut bytes: Vec<u8>) -> Vec<u8> {
    let mut footer = bytes[..512].to_vec();
    let directory = footer[56..64].to_vec();
    put(&mut bytes, 56, &[0xff; 8]);
    put(&mut footer, 56, &directory);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    let mut marker = [0; 512];
    put(&mut marker, 0, &1u64.to_le_bytes());
    put(&mut marker, 12, &3u32.to_le_bytes());
    [&bytes[..], &marker, &footer, &[0; 512]].concat()
}

#[test]
fn a_footer_is_found_and_a_missing_one_is_named() {
    let bytes = with_footer(std::fs::read(fixture("stream.vmdk")).unwrap());
    assert!(attempt("a.vmdk", &bytes).unwrap() == fixture_disk());
    let e = attempt("a.vmdk", &bytes[..bytes.len() - 512]).unwrap_err();
    assert!(e.message().contains("footer"), "{e}");
}

#[test]
fn a_grain_of_another_place_or_length_is_corrupt() {
    let good = std::fs::read(fixture("stream.vmdk")).unwrap();
    let sector = |bytes: &[u8], at: usize| {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize * 512
    };
    let directory = u64::from_le_bytes(good[56..64].try_into().unwrap()) as usize * 512;
    let grain = sector(&good, sector(&good, directory));
    for (at, value, says) in [
        (grain, &[1][..], "another place"),
        (grain + 8, &[0; 4], "0 bytes"),
        (grain + 8, &[0xff; 4], "4294967295 bytes"),
        (grain + 12, &[0; 8], "deflated grain"),
        (73, b"\r", "line ends"),
    ] {
        let mut bytes = good.clone();
        put(&mut bytes, at, value);
        let e = attempt("a.vmdk", &bytes).unwrap_err();
        assert_eq!(e.kind(), Kind::Corrupt, "{e}");
        assert!(e.message().contains(says), "{e}");
    }
}

#[test]
fn the_format_is_never_guessed_from_the_bytes() {
    let bytes = std::fs::read(fixture("backing.qcow2")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("guest-made.raw");
    let mut padded = bytes.clone();
    padded.resize(bytes.len().next_multiple_of(512), 0);
    std::fs::write(&raw, &padded).unwrap();
    assert_imports(open(&raw).unwrap(), &padded, 18);
    // By extension it would be a qcow2 file; the user knows better.
    let named = dir.path().join("a.qcow2");
    std::fs::write(&named, &padded).unwrap();
    let said = SourceOptions { format: Some(Format::Raw), ..SourceOptions::default() };
    assert_imports(DiskSource::open(&named, &said).unwrap(), &padded, 18);
    // And the other way round: a raw disk is no qcow2 or vmdk file.
    for format in [Format::Qcow2, Format::Vmdk] {
        let plain = dir.path().join("plain.raw");
        std::fs::write(&plain, noise(1, 4096)).unwrap();
        let said = SourceOptions { format: Some(format), ..SourceOptions::default() };
        let e = DiskSource::open(&plain, &said).unwrap_err();
        assert!(e.kind() == Kind::Invalid && e.message().contains("--format raw"), "{e}");
    }
}

#[test]
fn a_format_inside_compression_is_refused_with_a_hint() {
    let said = SourceOptions {
        format: Some(Format::Qcow2),
        compression: Some(Compression::Gzip),
        ..SourceOptions::default()
    };
    let e = DiskSource::open(&fixture("plain.qcow2"), &said).unwrap_err();
    assert!(e.kind() == Kind::Unsupported && e.message().contains("gunzip"), "{e}");
}

#[test]
fn a_file_that_changes_while_it_is_read_is_named() {
    for name in ["compressed.qcow2", "sparse.vmdk"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::copy(fixture(name), &path).unwrap();
        let source = open(&path).unwrap();
        let file = std::fs::File::options().append(true).open(&path).unwrap();
        file.set_len(file.metadata().unwrap().len() + 512).unwrap();
        let e = import_into(source, &MemorySink::default(), 18).unwrap_err();
        assert_eq!(e.kind(), Kind::Conflict, "{e}");
        assert!(e.message().contains("changed") && e.message().contains(name), "{e}");
    }
}

/// Against what QEMU makes here, where there is a QEMU.
#[test]
fn agrees_with_qemu_img() {
    if Command::new("qemu-img").arg("--version").output().is_err() {
        println!("skipped: no qemu-img here");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut disk = vec![0; 70 << 20];
    for (seed, at) in [(1, 0), (2, 5_000_000), (3, 66_000_000)] {
        put(&mut disk, at, &noise(seed, 900_000));
        disk[at + 1_000_000..at + 1_700_000].fill(seed as u8);
    }
    let raw = dir.path().join("disk.raw");
    std::fs::write(&raw, &disk).unwrap();
    for (name, options) in [
        ("a.qcow2", &["-O", "qcow2"][..]),
        ("b.qcow2", &["-c", "-O", "qcow2"]),
        ("c.qcow2", &["-O", "qcow2", "-o", "cluster_size=2M"]),
        ("g.qcow2", &["-c", "-O", "qcow2", "-o", "cluster_size=2M"]),
        ("d.qcow2", &["-O", "qcow2", "-o", "preallocation=metadata"]),
        ("e.vmdk", &["-O", "vmdk"]),
        ("f.vmdk", &["-O", "vmdk", "-o", "subformat=streamOptimized"]),
    ] {
        let path = dir.path().join(name);
        let mut convert = Command::new("qemu-img");
        convert.args(["convert", "-f", "raw"]).args(options).arg(&raw).arg(&path);
        assert!(convert.status().unwrap().success(), "{name}");
        assert_imports(open(&path).unwrap(), &disk, 18);
    }
}
