//! Volumes of one image that share its chunks: over the wire once, on the disk once, and apart all the same.
//!
//! `FOREBAY_E2E=1 cargo test -p forebay-node --test shares` tries it on file systems of their own; needs root,
//! mkfs.xfs, mkfs.btrfs, mkfs.ext4, and qemu-io for a guest.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use api::volume::{AttachVolume, Terms, VolumeInfo};
use common::grid::{OneImage, create, over_nbd, start, until, url};
use common::{CHUNK, Disk, Source};
use forebay_node::volumes::{Share, Volumes};

type Node = Volumes<OneImage<Source>>;

async fn attach(volumes: &Node, name: &str, fill: bool) {
    attach_on(volumes, name, fill, Terms::default()).await;
}

async fn attach_on(volumes: &Node, name: &str, fill: bool, terms: Terms) {
    let how = AttachVolume { fill, terms, ..over_nbd() };
    volumes.attach(name, how).await.unwrap();
}

fn all_is_here(info: &VolumeInfo) -> bool {
    info.plain || info.hydration.is_some_and(|h| h.present == h.chunks)
}

fn bases(dir: &Path) -> Vec<PathBuf> {
    let all = std::fs::read_dir(dir.join("volumes/.images")).unwrap();
    all.map(|entry| entry.unwrap().path()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_volumes_fetch_each_chunk_once_and_the_base_goes_with_the_last() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let disk = Disk::new(&"abcdefgh..".repeat(20)).cut(512);
    let source = Source::gated(&disk, 40);
    let volumes = start(dir, OneImage::of(&source), Share::Always).await;
    for name in ["a", "b"] {
        assert!(create(&volumes, name).await.shares);
    }
    // Whoever wants all has all brought for all.
    attach(&volumes, "a", false).await;
    attach(&volumes, "b", true).await;
    until(&volumes, "a", |info| info.hydration.unwrap().present > 20).await;
    source.go_on();
    for name in ["a", "b"] {
        until(&volumes, name, all_is_here).await;
    }
    assert_eq!(source.said.chunks(), 160);
    assert!(create(&volumes, "d").await.shares);
    attach_on(&volumes, "d", true, Terms { copy: true, ..Terms::default() }).await;
    until(&volumes, "d", |info| info.plain).await;
    disk.is_at(&volumes.show("d").await.unwrap().disk);
    volumes.detach("d").await.unwrap();
    volumes.remove("d").await.unwrap();
    let [base] = &bases(dir)[..] else { panic!("one base") };
    let found = std::fs::read(base.join("disk.raw")).unwrap();
    assert!(found[..disk.bytes.len()] == disk.bytes && found.len() == 200 * CHUNK);
    // After a restart nothing is fetched again.
    volumes.stop().await;
    drop(volumes);
    let volumes = start(dir, OneImage::of(&source), Share::Never).await;
    until(&volumes, "a", all_is_here).await;
    create(&volumes, "c").await;
    for name in ["a", "b"] {
        volumes.detach(name).await.unwrap();
    }
    volumes.remove("a").await.unwrap();
    assert_eq!(bases(dir).len(), 1);
    volumes.remove("b").await.unwrap();
    assert!(bases(dir).is_empty(), "the last one that shares is gone");
    assert!(!volumes.show("c").await.unwrap().shares);
    assert_eq!(source.said.chunks(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_share_by_themselves_only_where_files_can_share_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::new("abcd");
    let volumes = start(dir.path(), OneImage::of(&Source::honest(&disk)), Share::Auto).await;
    let shelf = volume_pool::Shelf::open(blockio::Fs::os(), dir.path().join("volumes")).unwrap();
    assert_eq!(create(&volumes, "a").await.shares, shelf.can_reflink().unwrap());
}

/// A file system in a file, gone with this.
struct Mounted {
    dir: tempfile::TempDir,
}

impl Mounted {
    fn new(mkfs: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (image, at) = (dir.path().join("image"), dir.path().join("at"));
        std::fs::File::create(&image).unwrap().set_len(1 << 30).unwrap();
        std::fs::create_dir(&at).unwrap();
        let words = mkfs.iter().map(|w| w.to_string()).chain([image.display().to_string()]);
        run(&words.collect::<Vec<_>>());
        run(&["mount", "-o", "loop", image.to_str().unwrap(), at.to_str().unwrap()]);
        Self { dir }
    }

    fn at(&self) -> PathBuf {
        self.dir.path().join("at")
    }

    /// Bytes that are taken.
    fn used(&self) -> u64 {
        run(&["sync", "-f", self.at().to_str().unwrap()]);
        let said = run(&["df", "-B1", "--output=used", self.at().to_str().unwrap()]);
        said.lines().last().unwrap().trim().parse().unwrap()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.at()).status();
    }
}

fn run<S: AsRef<str>>(words: &[S]) -> String {
    let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
    let out = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(out.status.success(), "{words:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// A guest's requests, in qemu-io's words.
async fn guest(dir: &Path, name: &'static str, requests: &[String]) {
    let mut words: Vec<String> = ["qemu-io", "-f", "raw"].map(str::to_owned).to_vec();
    for request in requests {
        words.extend(["-c".to_owned(), request.clone()]);
    }
    words.push(url(dir, name));
    let said = tokio::task::spawn_blocking(move || run(&words)).await.unwrap();
    assert!(!said.contains("failed"), "{said}");
}

/// What the guest then sees, by way of nbdcopy.
async fn seen(dir: &Path, name: &str) -> Vec<u8> {
    let to = tempfile::NamedTempFile::new().unwrap();
    let words = ["nbdcopy".to_owned(), url(dir, name), to.path().display().to_string()];
    tokio::task::spawn_blocking(move || run(&words)).await.unwrap();
    std::fs::read(to.path()).unwrap()
}

async fn on_a_file_system_of_its_own(mkfs: &[&str], reflinks: bool) {
    if std::env::var_os("FOREBAY_E2E").is_none() {
        println!("left out: needs FOREBAY_E2E=1, root, {} and QEMU", mkfs[0]);
        return;
    }
    let mounted = Mounted::new(mkfs);
    let dir = mounted.at();
    // 128 MiB, and a last block in part.
    let disk = Disk::new(&"abcdefgh".repeat(1024)).cut(1024);
    let source = Source::gated(&disk, 100);
    let volumes = start(&dir, OneImage::of(&source), Share::Always).await;
    let before = mounted.used();
    for name in ["a", "b"] {
        create(&volumes, name).await;
        attach(&volumes, name, true).await;
    }
    // Guests write while chunks arrive: within blocks, along them, over chunks.
    let chunk = CHUNK as u64;
    let writes = |of: u64| {
        let places = [(of * 512 + 3 * chunk, 512), (4096 * 9, 4096), (40 * chunk - 4096, 65536)];
        let later = [(7000 * chunk + 1024, 9216), (disk.bytes.len() as u64 - 512, 512)];
        places.into_iter().chain(later).collect::<Vec<(u64, u64)>>()
    };
    let request = |of: u64| {
        let each = writes(of).into_iter().map(|(at, len)| format!("write -P {of} {at} {len}"));
        each.chain(["flush".to_owned()]).collect::<Vec<_>>()
    };
    let (ones, twos) = (request(1), request(2));
    let guests = futures::future::join(guest(&dir, "a", &ones), guest(&dir, "b", &twos));
    source.go_on();
    guests.await;
    let wanted = |of: u64| {
        let mut bytes = disk.bytes.clone();
        for (at, len) in writes(of) {
            bytes[at as usize..(at + len) as usize].fill(of as u8);
        }
        bytes
    };
    for (of, name) in [(1, "a"), (2, "b")] {
        until(&volumes, name, |info| info.plain || (!reflinks && all_is_here(info))).await;
        assert!(seen(&dir, name).await == wanted(of), "{name}");
        assert_eq!(volumes.show(name).await.unwrap().plain, reflinks);
    }
    let (chunks, taken) = (source.said.chunks(), mounted.used() - before);
    let mib = |bytes: u64| bytes as f64 / (1 << 20) as f64;
    println!("{}: {chunks} chunks fetched, {:.1} MiB taken", mkfs[0], mib(taken));
    assert_eq!(chunks, 8192);
    assert!(taken < 160 << 20, "{taken} bytes for two volumes of {}", disk.bytes.len());
    for (of, name) in [(1, "a"), (2, "b")] {
        volumes.detach(name).await.unwrap();
        if reflinks {
            assert!(std::fs::read(volumes.show(name).await.unwrap().disk).unwrap() == wanted(of));
        }
    }
    // One more costs nothing over the wire.
    create(&volumes, "c").await;
    attach(&volumes, "c", true).await;
    until(&volumes, "c", |info| info.plain || (!reflinks && all_is_here(info))).await;
    assert!(seen(&dir, "c").await == disk.bytes);
    assert_eq!(source.said.chunks(), 0);
    assert!(mounted.used() - before < 160 << 20);
    volumes.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_xfs_both_become_plain_and_share_their_blocks() {
    on_a_file_system_of_its_own(&["mkfs.xfs", "-q", "-m", "reflink=1"], true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_btrfs_both_become_plain_and_share_their_blocks() {
    on_a_file_system_of_its_own(&["mkfs.btrfs", "-q"], true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_ext4_they_hold_what_their_guests_wrote() {
    on_a_file_system_of_its_own(&["mkfs.ext4", "-q"], false).await;
}
