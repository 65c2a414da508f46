//! Exports, as the reader of imports finds them: the same image in every format.

mod common;

use std::path::Path;
use std::sync::Arc;

use blockio::{Arena, EngineChoice};
use capture::{DiskSource, ImportOptions, SourceOptions, import};
use common::{Disk, Lie, Source, Until, options};
use forebay_node::pull::foreign::{pull_file, pull_format};
use forebay_node::pull::{PullOptions, Watch};
use image::seam::{ImagePlan, ImageSession};
use image::{
    ChunkSet, Digest, Domain, Frame, Geometry, ImageSink, Kind, Manifest, ReadContext, Result,
    SectionSink, SectionTable, is_zero,
};
use proptest::prelude::*;
use tokio::task::LocalSet;
use volume_pool::Verified;
use volume_pool::foreign::{Codec, Draft, Format, Piece, Writer};

/// What our import reads.
const FORMATS: [(Format, &str); 4] = [
    (Format::Raw, "disk.raw"),
    (Format::Qcow2(None), "disk.qcow2"),
    (Format::Qcow2(Some(Codec::Zlib)), "disk.qcow2"),
    (Format::Vmdk, "disk.vmdk"),
];

/// Wants no bytes: the digests say enough.
struct Digests;

impl ImageSink for Digests {
    type Session = Digests;

    async fn open(&self, _: &ReadContext, _: &ImagePlan) -> Result<Digests> {
        Ok(Digests)
    }
}

impl ImageSession for Digests {
    type Section = Digests;

    async fn offer(&self, _: u32, table: &SectionTable) -> Result<(ChunkSet, Digests)> {
        Ok((ChunkSet::empty(table.chunks()), Digests))
    }

    async fn commit(&self, manifest: &Manifest) -> Result<Digest> {
        Ok(manifest.identity())
    }
}

impl SectionSink for Digests {
    async fn chunk(&mut self, _: u32, _: Frame) -> Result<()> {
        unreachable!("no chunk is wanted")
    }

    async fn seal(self) -> Result<()> {
        Ok(())
    }
}

/// The identity of the image that an import of the file makes.
async fn imported(file: &Path, geometry: &Geometry) -> Digest {
    let source = SourceOptions { sector: Some(geometry.sector()), ..SourceOptions::default() };
    let source = DiskSource::open(file, &source).unwrap();
    assert_eq!(source.size(), Some(geometry.size()));
    let options = ImportOptions { chunk_log2: geometry.chunk_log2(), ..ImportOptions::default() };
    import(source, &Digests, options).await.unwrap().image
}

/// The identity of a disk, by its definition.
fn identity(disk: &[u8], geometry: Geometry) -> Digest {
    let of = |c: &[u8]| if is_zero(c) { Digest::ZERO } else { Digest::of_chunk(c) };
    let section = |section: &[u8]| {
        let chunks = section.chunks(geometry.chunk_len()).map(of).collect();
        let table = SectionTable::new(Domain::PUBLIC, chunks);
        if table.is_zero() { Digest::ZERO } else { table.digest() }
    };
    let sections = disk.chunks(image::geometry::SECTION_LEN as usize).map(section).collect();
    Manifest::new(Domain::PUBLIC, geometry, sections).identity()
}

fn write(file: &Path, format: Format, disk: &[u8], geometry: &Geometry) {
    let mut writer = Writer::new(format, geometry, &identity(disk, *geometry), "disk");
    let (packer, mut bytes) = (writer.packer(), Vec::new());
    let mut put = |pieces: Vec<Piece>| {
        for piece in pieces {
            let (at, end) = (piece.at as usize, piece.at as usize + piece.bytes.len());
            bytes.resize(bytes.len().max(end), 0);
            bytes[at..end].copy_from_slice(&piece.bytes);
        }
    };
    let arena = Arena::new("test", geometry.chunk_len(), geometry.chunk_len()).unwrap();
    let chunks = disk.chunks(geometry.chunk_len()).enumerate();
    for (i, plain) in chunks.filter(|(_, plain)| !is_zero(plain)) {
        let mut buf = arena.try_acquire().expect("pieces are not kept");
        buf.copy_from(plain);
        let plain = Verified::check(buf, plain.len(), &Digest::of_chunk(plain)).unwrap();
        let at = (i * geometry.chunk_len()) as u64;
        put(writer.place(packer.pack(at, plain).unwrap()).unwrap());
    }
    let end = writer.finish().unwrap();
    put(end.pieces);
    bytes.resize(end.len as usize, 0);
    std::fs::write(file, bytes).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn any_small_disk_in_any_format_is_the_same_image(
        blocks in prop::collection::vec(prop_oneof![3 => Just(0u8), 1 => any::<u8>()], 0..200),
        sectors in 0usize..8, big in any::<bool>(), chunk in 14u8..=19,
    ) {
        let bytes = blocks.iter().enumerate().flat_map(|(b, kind)| {
            // Half of them do not compress.
            let spread = if kind % 2 == 1 { 2_654_435_761usize } else { 1 };
            (0..4096usize).map(move |i| match kind {
                0 => 0,
                kind => ((i * spread + b) >> 5) as u8 ^ kind,
            })
        });
        let mut disk: Vec<u8> = bytes.collect();
        let sector = if big { 4096 } else { 512 };
        if !big {
            disk.truncate(disk.len().saturating_sub(sectors * 512));
        }
        let geometry = Geometry::new(disk.len() as u64, sector, chunk).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for (format, name) in FORMATS {
            let file = dir.path().join(name);
            write(&file, format, &disk, &geometry);
            let found = runtime.block_on(imported(&file, &geometry));
            prop_assert_eq!(found, identity(&disk, geometry), "{:?}", format);
        }
    }
}

fn disk() -> Disk {
    Disk::new(&format!("abcdefghijklmnop..qr{}stuvw", ".".repeat(300))).cut(512)
}

async fn export(source: &Source, file: &Path, format: Format, options: PullOptions) -> Result<u64> {
    let draft = Draft::open(file, false)?;
    let watch = Arc::new(Watch::default());
    let image = source.disk.image();
    let written = pull_file(source.clone(), image, format, draft, &options, &watch).await?;
    assert_eq!(watch.progress().written, watch.progress().data);
    assert_eq!(std::fs::metadata(file).unwrap().len(), written.len);
    Ok(written.bytes)
}

#[tokio::test]
async fn what_comes_wrong_never_reaches_the_file() {
    let disk = disk();
    let tests = async {
        for lie in [Lie::Swapped, Lie::Forged, Lie::Altered, Lie::LeftOut, Lie::Twice] {
            let dir = tempfile::tempdir().unwrap();
            for ((format, name), engine) in FORMATS.into_iter().zip(["auto", "portable"].repeat(2))
            {
                let file = dir.path().join(name);
                let until = match lie {
                    Lie::LeftOut | Lie::Twice => Until::Requests(1),
                    _ => Until::Repair,
                };
                let source = Source::lying(&disk, lie.clone(), until);
                let options = options(engine.parse().unwrap());
                let bytes = export(&source, &file, format, options).await.unwrap();
                assert!(bytes < 2 << 20, "{format:?}: {bytes} bytes for 23 chunks");
                assert_eq!(imported(&file, &disk.geometry()).await, disk.image());
                std::fs::remove_file(&file).unwrap();
            }
        }
    };
    LocalSet::new().run_until(tests).await;
}

#[tokio::test(start_paused = true)]
async fn a_source_that_lies_for_ever_and_one_that_is_cancelled_leave_nothing() {
    let tests = async {
        let dir = tempfile::tempdir().unwrap();
        for (format, name) in FORMATS {
            let file = dir.path().join(name);
            let source = Source::lying(&Disk::new("ab"), Lie::Forged, Until::Ever);
            let ended = export(&source, &file, format, options(EngineChoice::Auto)).await;
            assert_eq!(ended.unwrap_err().kind(), Kind::Corrupt);

            let watch = Arc::new(Watch::default());
            let source = Source::gated(&disk(), 3);
            let draft = Draft::open(&file, false).unwrap();
            let seen = Arc::clone(&watch);
            let cancel = async {
                while watch.progress().chunks < 3 {
                    tokio::task::yield_now().await;
                }
                watch.cancel();
                Ok(())
            };
            let options = options(EngineChoice::Auto);
            let image = source.disk.image();
            let exported = pull_file(source, image, format, draft, &options, &seen);
            let ended = futures::future::try_join(exported, cancel).await;
            assert_eq!(ended.unwrap_err().kind(), Kind::Cancelled);
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        }
    };
    LocalSet::new().run_until(tests).await;
}

#[tokio::test]
async fn a_stream_has_the_bytes_of_the_file() {
    let tests = async {
        let dir = tempfile::tempdir().unwrap();
        for format in [Format::Raw, Format::Vmdk] {
            // As a vmdk in a stream is called.
            let file = dir.path().join("disk.vmdk");
            let (source, options) = (Source::honest(&disk()), options(EngineChoice::Auto));
            let image = source.disk.image();
            export(&source, &file, format, options.clone()).await.unwrap();
            let (mut out, watch) = (Vec::new(), Arc::new(Watch::default()));
            let done = pull_format(source, image, format, &mut out, &options, &watch).await;
            assert_eq!(done.unwrap().len, out.len() as u64);
            assert!(out == std::fs::read(&file).unwrap(), "{format:?}");
            std::fs::remove_file(&file).unwrap();
        }
    };
    LocalSet::new().run_until(tests).await;
}
