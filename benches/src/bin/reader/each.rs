//! How long single chunks take, asked for one after the other, to verified bytes.

use image::{ChunkSource, Decoder, Digest, Geometry, ReadContext};
use serde_json::{Value, json};

use crate::ask;
use crate::way::now;

/// Asks for one chunk in so many, from the first on; what is zeros is passed over. The tables are had before
/// the time begins.
pub async fn measure(source: &impl ChunkSource, image: Digest, every: u64, count: u64) -> Value {
    let ctx = ReadContext::default();
    let manifest = source.manifest(&ctx, &image).await.unwrap();
    let geometry: &Geometry = manifest.geometry();
    let each_section = u64::from(geometry.chunks_per_section());
    let (mut decoder, mut seconds) = (Decoder::new().unwrap(), Vec::new());
    for chunk in (0..count).map(|n| n * every) {
        let (section, within) = ((chunk / each_section) as u32, (chunk % each_section) as u32);
        let table = source.section_table(&ctx, &image, section).await.unwrap();
        let digest = table.digests()[within as usize];
        if digest.is_zero() {
            continue;
        }
        let mut got = Vec::new();
        let mut plain = vec![0; geometry.chunk_len_at(section, within)];
        let start = now();
        let place = ask::place(image, section, &table, &[within]);
        source.chunks(&ctx, &place, &mut got).await.unwrap();
        decoder.decode(&got[0].1, &digest, &mut plain).unwrap();
        seconds.push((now() - start).as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    json!({ "median": seconds[seconds.len() / 2], "chunks": seconds.len() })
}
