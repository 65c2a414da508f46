//! Bytes that are wrong although every checksum is right, and frames that come damaged.

mod common;

use std::sync::atomic::Ordering;

use blockio::fake::MemFs;
use common::{
    CHUNK, Fake, Rig, Stuff, TestImage, disk_budget, disk_options, on_core, plain, repair,
};
use forebay_cache::Budget;
use image::{ChunkSource, Codec, Decoder, Frame, Kind, ReadContext};

fn image() -> TestImage {
    TestImage::of(0..6, Stuff::Text)
}

/// A frame with the right digest and CRC32C and somebody else's bytes.
fn forged(frame: &Frame) -> Frame {
    let header = frame.header();
    let other = plain(999, Stuff::Noise);
    Frame::new(Codec::Raw, header.domain, header.digest, header.plain_len, &other)
}

/// A frame with a flipped bit in its payload.
fn damaged(frame: &Frame) -> Frame {
    let mut bytes = frame.bytes().to_vec();
    bytes[70] ^= 1;
    Frame::parse(bytes.into()).unwrap()
}

async fn read_repaired(rig: &Rig, image: &TestImage) -> image::Result<Vec<(u32, Frame)>> {
    let mut sink = Vec::new();
    rig.cache.chunks(&repair(), &image.all(), &mut sink).await.map(|()| sink)
}

fn rig_with_both_tiers(source: &std::sync::Arc<Fake>, fs: &MemFs) -> Rig {
    let budget = Budget { memory: 8 << 20, ..disk_budget(4 << 20) };
    let mut rig = Rig::new(source, budget, disk_options(fs));
    rig.settle();
    rig
}

#[test]
fn a_wrong_copy_is_found_and_fetched_anew() {
    on_core(async {
        let (image, source, fs) = (image(), Fake::new([image()]), MemFs::new());
        source.tamper(|chunk, ctx, frame| match chunk == 2 && !ctx.repair {
            true => forged(&frame),
            false => frame,
        });
        let mut rig = rig_with_both_tiers(&source, &fs);
        let got = rig.read(&image.all()).await.unwrap();
        let bad = &got.iter().find(|(chunk, _)| *chunk == 2).unwrap().1;
        let mut out = vec![0; CHUNK];
        let digest = image.table.digests()[2];
        assert!(Decoder::new().unwrap().decode(bad, &digest, &mut out).is_err(), "else no test");
        rig.settle();
        assert_eq!((rig.status().disk_frames, rig.status().memory_frames), (6, 6));

        image.check(&image.all(), read_repaired(&rig, &image).await.unwrap());
        assert_eq!(source.given_in_all(), 7, "only the bad one was fetched anew");
        assert_eq!((source.given(&image, 2), source.repairs.load(Ordering::Relaxed)), (2, 1));
        assert_eq!(rig.status().healed_copies, 2, "in memory and on disk");
        image.check(&image.all(), rig.read(&image.all()).await.unwrap());

        // On disk as well, also after a restart, and although the bad copy's bytes are still there.
        rig.settle();
        rig.close();
        let rig = Rig::on_disk(&source, &fs);
        image.check(&image.all(), rig.read(&image.all()).await.unwrap());
        assert_eq!((source.given_in_all(), rig.status().disk_hits), (7, 6));
    });
}

#[test]
fn a_wrong_copy_on_disk_alone_is_found() {
    on_core(async {
        let (image, source, fs) = (image(), Fake::new([image()]), MemFs::new());
        source.tamper(|chunk, ctx, frame| match chunk == 2 && !ctx.repair {
            true => forged(&frame),
            false => frame,
        });
        let mut rig = Rig::on_disk(&source, &fs);
        rig.read(&image.all()).await.unwrap();
        rig.settle();
        image.check(&image.all(), read_repaired(&rig, &image).await.unwrap());
        assert_eq!((source.given_in_all(), rig.status().healed_copies), (7, 1));
    });
}

#[test]
fn good_copies_are_given_again() {
    on_core(async {
        let (image, source, fs) = (image(), Fake::new([image()]), MemFs::new());
        let rig = rig_with_both_tiers(&source, &fs);
        rig.read(&image.all()).await.unwrap();
        for _ in 0..3 {
            image.check(&image.all(), read_repaired(&rig, &image).await.unwrap());
        }
        assert_eq!((source.given_in_all(), rig.status().healed_copies), (6, 0));
    });
}

#[test]
fn a_source_that_has_no_good_copy_either_is_not_believed() {
    on_core(async {
        let (image, source, fs) = (image(), Fake::new([image()]), MemFs::new());
        source.tamper(|chunk, _, frame| if chunk == 2 { forged(&frame) } else { frame });
        let mut rig = rig_with_both_tiers(&source, &fs);
        let error = read_repaired(&rig, &image).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{error}");
        assert!(error.message().contains("chunk 2: from the source: "), "{error}");
        rig.settle();
        assert_eq!((rig.status().disk_frames, rig.status().memory_frames), (5, 5));
    });
}

#[test]
fn a_frame_that_comes_damaged_is_asked_for_again() {
    on_core(async {
        let (image, source) = (image(), Fake::new([image()]));
        source.tamper(|chunk, ctx, frame| match chunk % 2 == 0 && !ctx.repair {
            true => damaged(&frame),
            false => frame,
        });
        let rig = Rig::in_memory(&source, 8 << 20);
        image.check(&image.all(), rig.read(&image.all()).await.unwrap());
        assert_eq!((source.given_in_all(), source.requests.load(Ordering::Relaxed)), (9, 2));
    });
}

#[test]
fn frames_of_another_chunk_or_length_are_refused() {
    let image = image();
    let other = TestImage::of(50..51, Stuff::Text).frames[0].clone();
    let (header, payload) = (*image.frames[2].header(), image.frames[2].payload().to_vec());
    let longer =
        Frame::new(header.codec, header.domain, header.digest, header.plain_len * 2, &payload);
    let other_domain =
        Frame::new(header.codec, image::Domain(0), header.digest, header.plain_len, &payload);
    assert_eq!(other_domain, image.frames[2]);
    on_core(async {
        for wrong in [other, longer, damaged(&image.frames[2])] {
            let source = Fake::new([image.clone()]);
            source.tamper(move |chunk, _, frame| if chunk == 2 { wrong.clone() } else { frame });
            let rig = Rig::in_memory(&source, 8 << 20);
            let mut got = Vec::new();
            let ctx = ReadContext::default();
            let error = rig.cache.chunks(&ctx, &image.all(), &mut got).await.unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt, "{error}");
            image.check(&image.place(|c| c != 2), got);
            assert_eq!(rig.status().memory_frames, 5);
        }
    });
}

#[test]
fn papers_that_do_not_fit_their_digest_are_refused() {
    struct Liar(image::Manifest, image::SectionTable);
    impl ChunkSource for Liar {
        async fn manifest(
            &self,
            _: &ReadContext,
            _: &image::Digest,
        ) -> image::Result<std::sync::Arc<image::Manifest>> {
            Ok(std::sync::Arc::new(self.0.clone()))
        }
        async fn section_table(
            &self,
            _: &ReadContext,
            _: &image::Digest,
            _: u32,
        ) -> image::Result<std::sync::Arc<image::SectionTable>> {
            Ok(std::sync::Arc::new(self.1.clone()))
        }
        async fn chunks<S: image::ChunkSink>(
            &self,
            _: &ReadContext,
            _: &image::Place,
            _: &mut S,
        ) -> image::Result<()> {
            unreachable!("nothing to ask for without papers")
        }
    }
    let (good, other) = (image(), TestImage::of(7..13, Stuff::Text));
    on_core(async {
        for (manifest, table) in [(&other, &good), (&good, &other)] {
            let liar = Liar((*manifest.manifest).clone(), (*table.table).clone());
            let budget = Budget { memory: 1 << 20, in_flight: 0, disk: None };
            let (shared, _) = forebay_cache::Shared::open(budget, Default::default()).unwrap();
            let cache = forebay_cache::Cache::new(std::rc::Rc::new(liar), shared, common::engine());
            let ctx = ReadContext::default();
            let error = cache.section_table(&ctx, &good.id, 0).await.unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt, "{error}");
            let found = cache.manifest(&ctx, &good.id).await;
            assert_eq!(found.is_ok(), manifest.id == good.id);
        }
    });
}

#[test]
fn a_repair_does_not_wait_for_a_fetch_that_it_would_not_believe() {
    on_core(async {
        let (image, source) = (image(), Fake::new([image()]));
        source.tamper(|_, ctx, frame| if ctx.repair { frame } else { forged(&frame) });
        let gate = source.gate();
        let rig = Rig::in_memory(&source, 8 << 20);
        let all = image.all();
        let (plain, repaired, ()) =
            tokio::join!(rig.read(&all), read_repaired(&rig, &image), async {
                while source.requests.load(Ordering::Relaxed) < 2 {
                    tokio::task::yield_now().await;
                }
                gate.add_permits(100);
            });
        assert_eq!(plain.unwrap().len(), 6);
        image.check(&all, repaired.unwrap());
    });
}
