//! Volumes on block devices: `FOREBAY_E2E=1 cargo test -p forebay-node --test device`; needs root, losetup, and
//! qemu-io and nbdcopy for a guest.

mod common;

use std::process::Command;

use api::volume::CreateVolume;
use common::grid::{OneImage, over_nbd, start, until, url};
use common::{CHUNK, Disk, Source};
use forebay_node::volumes::{Birth, Share, identify};
use image::Kind;

fn run(words: &[&str]) -> String {
    let out = Command::new(words[0]).args(&words[1..]).output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{words:?}: {said}{}", String::from_utf8_lossy(&out.stderr));
    assert!(!said.contains("failed"), "{words:?}: {said}");
    said
}

/// A loop device, gone with this.
struct Loop(String);

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_on_a_used_device_shows_nothing_of_what_was_there() {
    if std::env::var_os("FOREBAY_E2E").is_none() {
        println!("left out: needs FOREBAY_E2E=1, root, losetup and QEMU");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let file = dir.join("device");
    // A section of zeros, one with some, an end within a block; and what follows is zeros.
    let disk = Disk::new(&(".".repeat(4096) + &"ab..".repeat(100) + &".".repeat(50))).cut(512);
    let size = (disk.bytes.len() as u64).next_multiple_of(4096) + (8 << 20);
    std::fs::write(&file, vec![0xee; size as usize + 5 * 4096]).unwrap();
    let device = Loop(run(&["losetup", "--find", "--show", file.to_str().unwrap()]).trim().into());
    let source = Source::gated(&disk, 20);
    let volumes = start(dir, OneImage::of(&source), Share::Always).await;
    let asked = |name: &str| CreateVolume {
        name: name.into(),
        image: Some("a:1".into()),
        size: Some(size),
        sector: None,
        device: Some(device.0.clone().into()),
        extend: false,
    };
    let birth = Birth { now: 1, id: [5; 16] };
    let made = volumes.create(asked("a"), birth).await.unwrap();
    assert_eq!((made.disk.to_str(), made.shares), (Some(&*device.0), false));
    let again = volumes.create(asked("b"), Birth { id: [6; 16], ..birth }).await.unwrap_err();
    assert_eq!(again.kind(), Kind::Conflict, "{again}");
    let how = over_nbd();
    volumes.attach("a", how.clone()).await.unwrap();
    let url = url(dir, "a");
    let (guest, copy) = (url.clone(), dir.join("copy"));
    let writes = [(4096 * CHUNK as u64 + 512, 1024), (100, 412), (size - 512, 512)]
        .map(|(at, len)| (at / 512 * 512, u64::next_multiple_of(len, 512)));
    let requests = writes.map(|(at, len)| format!("write -P 7 {at} {len}"));
    let to = copy.clone();
    let working = tokio::task::spawn_blocking(move || {
        let [a, b, c] = &requests;
        let discard = "discard 20M 64k";
        run(&[
            "qemu-io", "-f", "raw", "-d", "unmap", "-c", a, "-c", b, "-c", c, "-c", discard, "-c",
            "flush", &guest,
        ]);
        run(&["nbdcopy", &url, to.to_str().unwrap()]);
    });
    source.go_on();
    working.await.unwrap();
    let mut wanted = disk.bytes.clone();
    wanted.resize(size as usize, 0);
    for (at, len) in writes {
        wanted[at as usize..(at + len) as usize].fill(7);
    }
    assert!(std::fs::read(&copy).unwrap() == wanted);
    until(&volumes, "a", |info| info.plain).await;
    // Found by somebody who knows nothing of this node: on the device, and in a copy of it.
    let found = identify(device.0.as_ref()).unwrap();
    assert_eq!((found.name.as_str(), found.plain, found.size), ("a", true, size));
    volumes.stop().await;
    drop(volumes);
    run(&["sync"]);
    assert_eq!(identify(&file).unwrap().id, found.id);
    assert!(std::fs::read(&file).unwrap()[..size as usize] == wanted, "a plain disk");
    // After a restart it is served again; removed, the device is nobody's.
    let volumes = start(dir, OneImage::of(&source), Share::Always).await;
    assert!(volumes.attach("a", how).await.unwrap().plain);
    volumes.detach("a").await.unwrap();
    volumes.remove("a").await.unwrap();
    assert_eq!(identify(device.0.as_ref()).unwrap_err().kind(), Kind::Corrupt);
    volumes.create(asked("b"), birth).await.unwrap();
}
