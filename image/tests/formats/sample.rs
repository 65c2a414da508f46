//! One small image with everything in it: the samples of the golden and the corruption tests.

use bytes::Bytes;
use image::locator::{Locator, Spot};
use image::pack::{Footer, PackBuilder, PackId};
use image::signing::SigningKey;
use image::{Codec, Digest, Domain, Frame, Geometry, ImageRecord, Manifest, SectionTable};

/// An image of two sections, the second of zeros, with one compressible and one raw chunk.
pub struct Sample {
    pub frames: Vec<Frame>,
    pub table: SectionTable,
    pub manifest: Manifest,
    pub pack: Bytes,
    pub footer: Footer,
    pub footer_at: usize,
    pub locator: Bytes,
    pub key: SigningKey,
    pub record: String,
}

pub fn sample() -> Sample {
    let geometry = Geometry::new((64 << 20) + 512, 512, 22).unwrap();
    let text: Vec<u8> =
        b"a chunk that zstd can shrink ".iter().copied().cycle().take(900).collect();
    let raw = b"short and raw".to_vec();
    let frame = |codec, plain: &[u8], payload: &[u8]| {
        let digest = Digest::of_chunk(plain);
        Frame::new(codec, Domain::PUBLIC, digest, plain.len() as u32, payload)
    };
    let frames = vec![frame(Codec::Zstd, &text, &SHRUNK), frame(Codec::Raw, &raw, &raw)];
    let mut digests = vec![Digest::ZERO; geometry.chunks_per_section() as usize];
    (digests[0], digests[5]) = (frames[0].header().digest, frames[1].header().digest);
    let table = SectionTable::new(Domain::PUBLIC, digests);
    let manifest = Manifest::new(Domain::PUBLIC, geometry, vec![table.digest(), Digest::ZERO]);
    let mut pack = PackBuilder::new(Domain::PUBLIC);
    frames.iter().for_each(|f| {
        pack.push(f);
    });
    let (parts, footer) = pack.finish();
    let footer_at = parts[..parts.len() - 1].iter().map(Bytes::len).sum();
    let spots = footer.entries.iter().map(|e| Spot {
        pack: PackId([7; 16]),
        offset: e.offset,
        frame_len: e.frame_len,
        stored: e.stored,
    });
    let locator = Locator::build(&manifest.identity(), &[(0, spots.collect())]);
    let key = SigningKey::from_bytes(&KEY).unwrap();
    let mut record = ImageRecord::new(manifest.identity(), 1_700_000_000);
    record.os = Some("debian 12".into());
    record.labels.insert("team".into(), "storage".into());
    let record = record.sign(&key);
    let pack = parts.concat().into();
    Sample { frames, table, manifest, pack, footer, footer_at, locator, key, record }
}

/// A fixed key pair (seed, public key), so that signatures are the same in every run.
const KEY: [u8; 64] = [
    0x9d, 0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec, 0x2c, 0xc4,
    0x44, 0x49, 0xc5, 0x69, 0x7b, 0x32, 0x69, 0x19, 0x70, 0x3b, 0xac, 0x03, 0x1c, 0xae, 0x7f, 0x60,
    0xd7, 0x5a, 0x98, 0x01, 0x82, 0xb1, 0x0a, 0xb7, 0xd5, 0x4b, 0xfe, 0xd3, 0xc9, 0x64, 0x07, 0x3a,
    0x0e, 0xe1, 0x72, 0xf3, 0xda, 0xa6, 0x23, 0x25, 0xaf, 0x02, 0x1a, 0x68, 0xf7, 0x07, 0x51, 0x1a,
];

/// The compressible chunk as zstd 1.5 shrank it; fixed, because another zstd may do it otherwise.
const SHRUNK: [u8; 47] = [
    0x28, 0xb5, 0x2f, 0xfd, 0x60, 0x84, 0x02, 0x2d, 0x01, 0x00, 0xe8, 0x61, 0x20, 0x63, 0x68, 0x75,
    0x6e, 0x6b, 0x20, 0x74, 0x68, 0x61, 0x74, 0x20, 0x7a, 0x73, 0x74, 0x64, 0x20, 0x63, 0x61, 0x6e,
    0x20, 0x73, 0x68, 0x72, 0x69, 0x6e, 0x6b, 0x20, 0x01, 0x00, 0x91, 0x05, 0x95, 0x72, 0x02,
];
