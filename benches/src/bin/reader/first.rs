//! How long it takes to the verified bytes of a single chunk that nobody has read before.

use std::time::Duration;

use image::{ChunkSource, Decoder, Digest, Manifest, ReadContext};
use serde_json::{Value, json};

use crate::ask;
use crate::way::now;

/// Sections of which a chunk is read.
const SECTIONS: usize = 24;

/// Times a chunk of an image of which nothing is known, from the request for the manifest on; and then
/// chunks of other sections, whose tables were had before the time begins.
pub async fn measure(source: &impl ChunkSource, image: Digest) -> Value {
    let ctx = ReadContext::default();
    let start = now();
    let manifest = source.manifest(&ctx, &image).await.unwrap();
    let sections = ask::sections(&manifest);
    chunk(source, &manifest, image, sections[0]).await;
    let unknown = now() - start;
    let mut known = Vec::new();
    let step = sections.len().div_ceil(SECTIONS).max(1);
    for section in sections[1..].iter().step_by(step) {
        known.push(chunk(source, &manifest, image, *section).await.as_secs_f64());
    }
    json!({ "unknown_image": unknown.as_secs_f64(), "known_image": known })
}

/// Reads the first chunk of a section; from the request for it to its verified bytes.
async fn chunk(
    source: &impl ChunkSource,
    manifest: &Manifest,
    image: Digest,
    section: u32,
) -> Duration {
    let ctx = ReadContext::default();
    let table = source.section_table(&ctx, &image, section).await.unwrap();
    let number = ask::chunks(&table)[0];
    let (mut decoder, mut got) = (Decoder::new().unwrap(), Vec::new());
    let mut plain = vec![0; manifest.geometry().chunk_len_at(section, number)];
    let start = now();
    let place = ask::place(image, section, &table, &[number]);
    source.chunks(&ctx, &place, &mut got).await.unwrap();
    decoder.decode(&got[0].1, &table.digests()[number as usize], &mut plain).unwrap();
    now() - start
}
