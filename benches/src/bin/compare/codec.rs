//! Encode and decode against zstd alone, on the same chunks, one after the other.

use std::hint::black_box;

use image::{Decoder, Digest, Domain, Encoder, is_zero};

use crate::Setup;
use crate::bars::{Bars, Bound, median};
use crate::process::now;

fn gb_per_s(bytes: usize, work: impl FnOnce()) -> f64 {
    let start = now();
    work();
    bytes as f64 / (now() - start).as_secs_f64() / 1e9
}

pub fn measure(setup: &Setup, bars: &mut Bars) {
    let chunks = forebay_benches::chunks_of(&setup.disk, 512);
    let bytes: usize = chunks.iter().map(Vec::len).sum();
    let mut out = vec![0; 1 << 20];
    let mut zstd = zstd::bulk::Compressor::new(3).unwrap();
    let mut unzstd = zstd::bulk::Decompressor::new().unwrap();
    let (mut encoder, mut decoder) = (Encoder::new().unwrap(), Decoder::new().unwrap());
    let payloads: Vec<_> = chunks.iter().map(|c| zstd.compress(c).unwrap()).collect();
    let frames: Vec<_> =
        chunks.iter().map(|c| encoder.encode(Domain::PUBLIC, Digest::of_chunk(c), c)).collect();
    let mut speeds = [const { Vec::new() }; 4];
    for _ in 0..setup.runs {
        speeds[0].push(gb_per_s(bytes, || {
            for c in &chunks {
                if !is_zero(c) {
                    black_box(encoder.encode(Domain::PUBLIC, Digest::of_chunk(c), c));
                }
            }
        }));
        speeds[1].push(gb_per_s(bytes, || {
            for c in &chunks {
                black_box(zstd.compress_to_buffer(c, &mut out[..]).unwrap());
            }
        }));
        speeds[2].push(gb_per_s(bytes, || {
            for (frame, c) in frames.iter().zip(&chunks) {
                decoder.decode(frame, &frame.header().digest, &mut out[..c.len()]).unwrap();
            }
        }));
        speeds[3].push(gb_per_s(bytes, || {
            for p in &payloads {
                black_box(unzstd.decompress_to_buffer(p, &mut out[..]).unwrap());
            }
        }));
    }
    let ratio =
        |a: usize, b: usize| median(speeds[a].iter().zip(&speeds[b]).map(|(x, y)| x / y).collect());
    let speed = |i: usize| format!("{:.2} GB/s", median(speeds[i].clone()));
    let what = "encode a chunk, beside zstd -3 alone, one core";
    bars.add(what, speed(0), speed(1), ratio(0, 1), Bound::AtLeast(0.90));
    let what = "decode and verify a chunk, beside zstd -d alone, one core";
    bars.add(what, speed(2), speed(3), ratio(2, 3), Bound::AtLeast(0.75));
}
