//! Encoding and decoding chunks, against zstd alone on the same chunks.
//!
//! `cargo bench -p forebay-benches --bench codec`; set `FOREBAY_BENCH_DISK` to a disk image for real
//! chunks.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use forebay_benches::{CHUNK, chunks};
use image::{Decoder, Digest, Domain, Encoder, is_zero};
use std::hint::black_box;

fn encode(c: &mut Criterion) {
    let chunks = chunks(64);
    let mut group = c.benchmark_group("encode");
    group.throughput(Throughput::Bytes((chunks.len() * CHUNK) as u64));
    let mut zstd = zstd::bulk::Compressor::new(3).unwrap();
    let mut out = vec![0; 2 * CHUNK];
    group.bench_function("zstd-3-alone", |b| {
        b.iter(|| {
            for chunk in &chunks {
                black_box(zstd.compress_to_buffer(chunk, &mut out[..]).unwrap());
            }
        });
    });
    let mut encoder = Encoder::new().unwrap();
    group.bench_function("zero-scan+blake3+zstd-3+crc32c", |b| {
        b.iter(|| {
            for chunk in &chunks {
                if !is_zero(chunk) {
                    let digest = Digest::of_chunk(chunk);
                    black_box(encoder.encode(Domain::PUBLIC, digest, chunk));
                }
            }
        });
    });
    group.finish();
}

fn decode(c: &mut Criterion) {
    let chunks = chunks(64);
    let mut encoder = Encoder::new().unwrap();
    let frames: Vec<_> = chunks
        .iter()
        .map(|chunk| encoder.encode(Domain::PUBLIC, Digest::of_chunk(chunk), chunk))
        .collect();
    let payloads: Vec<_> =
        chunks.iter().map(|chunk| zstd::bulk::compress(chunk, 3).unwrap()).collect();
    let mut group = c.benchmark_group("decode");
    group.throughput(Throughput::Bytes((chunks.len() * CHUNK) as u64));
    let mut zstd = zstd::bulk::Decompressor::new().unwrap();
    let mut out = vec![0; CHUNK];
    group.bench_function("zstd-alone", |b| {
        b.iter(|| {
            for payload in &payloads {
                black_box(zstd.decompress_to_buffer(payload, &mut out[..]).unwrap());
            }
        });
    });
    let mut decoder = Decoder::new().unwrap();
    group.bench_function("crc32c+zstd+blake3", |b| {
        b.iter(|| {
            for frame in &frames {
                let digest = frame.header().digest;
                let len = frame.header().plain_len as usize;
                decoder.decode(frame, &digest, &mut out[..len]).unwrap();
            }
        });
    });
    group.finish();
}

criterion_group!(benches, encode, decode);
criterion_main!(benches);
