//! What memory holds, and for how long.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use common::{Fake, Rig, Stuff, TestImage, on_core};
use image::Frame;

/// Memory that says when it is free again.
struct Watched(Vec<u8>, Arc<AtomicU64>);

impl AsRef<[u8]> for Watched {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.1.fetch_sub(1, Ordering::Relaxed);
    }
}

#[test]
fn a_kept_frame_does_not_hold_the_buffer_it_came_in() {
    on_core(async {
        let image = TestImage::of(0..8, Stuff::Text);
        let source = Fake::new([image.clone()]);
        let alive = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&alive);
        source.tamper(move |_, _, frame| {
            count.fetch_add(1, Ordering::Relaxed);
            // As a store gives it: a slice of a long range.
            let mut range = vec![0; 1 << 20];
            let len = frame.bytes().len();
            range[..len].copy_from_slice(frame.bytes());
            let range = Bytes::from_owner(Watched(range, Arc::clone(&count)));
            Frame::parse(range.slice(..len)).unwrap()
        });
        let rig = Rig::in_memory(&source, 1 << 20);
        let got = rig.read(&image.all()).await.unwrap();
        assert_eq!(alive.load(Ordering::Relaxed), 0);
        assert_eq!(rig.status().memory_frames, 8);
        image.check(&image.all(), got);
    });
}

#[test]
fn a_hit_shares_the_bytes() {
    on_core(async {
        let image = TestImage::of(0..8, Stuff::Text);
        let rig = Rig::in_memory(&Fake::new([image.clone()]), 1 << 20);
        let first = rig.read(&image.one(3)).await.unwrap();
        let second = rig.read(&image.one(3)).await.unwrap();
        assert_eq!(first[0].1.bytes().as_ptr(), second[0].1.bytes().as_ptr());
        let status = rig.status();
        assert_eq!((status.misses, status.memory_hits, status.joined), (1, 1, 0));
    });
}

#[test]
fn a_pull_of_a_huge_image_leaves_the_hot_one_in_memory() {
    on_core(async {
        let hot = TestImage::of(0..20, Stuff::Noise);
        let source = Fake::new([hot.clone()]);
        let rig = Rig::in_memory(&source, 2 << 20);
        for _ in 0..3 {
            rig.read(&hot.all()).await.unwrap();
        }
        for part in 1..20 {
            let huge = TestImage::of(part * 1000..part * 1000 + 100, Stuff::Noise);
            source.add(huge.clone());
            huge.check(&huge.all(), rig.read(&huge.all()).await.unwrap());
        }
        let before = source.given_in_all();
        hot.check(&hot.all(), rig.read(&hot.all()).await.unwrap());
        let again = source.given_in_all() - before;
        assert!(again <= 2, "{again} of 20 hot chunks had to be fetched again");
    });
}
