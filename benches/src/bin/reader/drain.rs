//! Takes every chunk of an image and drops it. What is left is what a client cannot do without: it
//! receives, and checks the CRC32C of every frame.

use std::sync::{Arc, Barrier};

use forebay_benches::cpu_seconds;
use futures::{StreamExt, TryStreamExt};
use image::{ChunkSink, ChunkSource, Digest, Frame, ReadContext, Result};
use serde_json::{Value, json};

use crate::ask;
use crate::way::{Member, now};

/// Requests that a core of a pull has under way.
const IN_FLIGHT: usize = 8;

/// What came.
#[derive(Clone, Copy, Default)]
struct Taken {
    frames: u64,
    bytes: u64,
}

impl ChunkSink for Taken {
    async fn chunk(&mut self, _chunk: u32, frame: Frame) -> Result<()> {
        self.frames += 1;
        self.bytes += frame.bytes().len() as u64;
        Ok(())
    }
}

impl std::iter::Sum for Taken {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |a, b| Self {
            frames: a.frames + b.frames,
            bytes: a.bytes + b.bytes,
        })
    }
}

/// Drains the image `times` over for each of these members, spread over as many threads as there are cores, all
/// beginning at once. The time begins when all are connected.
pub fn all(image: Digest, times: usize, dirs: &[&str]) -> Value {
    let threads = std::thread::available_parallelism().unwrap().get().min(dirs.len());
    let connected = Arc::new(Barrier::new(threads + 1));
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|thread| {
                let mine: Vec<_> = dirs.iter().copied().skip(thread).step_by(threads).collect();
                let connected = Arc::clone(&connected);
                scope.spawn(move || some(image, times, thread, &mine, &connected))
            })
            .collect();
        connected.wait();
        let (start, cpu) = (now(), cpu_seconds());
        let taken: Taken = running.into_iter().map(|thread| thread.join().unwrap()).sum();
        let seconds = start.elapsed().as_secs_f64();
        let cpu = cpu_seconds() - cpu;
        json!({
            "frames": taken.frames, "bytes": taken.bytes, "seconds": seconds, "cpu_seconds": cpu,
        })
    })
}

/// One thread's members.
fn some(image: Digest, times: usize, thread: usize, dirs: &[&str], connected: &Barrier) -> Taken {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut clients = Vec::new();
        for dir in dirs {
            clients.push(Member::of(dir, image).await.connect(thread).await);
        }
        connected.wait();
        let drained = clients.iter().map(|client| drain(client, image, times));
        futures::future::join_all(drained).await.into_iter().sum()
    })
}

async fn drain(source: &impl ChunkSource, image: Digest, times: usize) -> Taken {
    let ctx = ReadContext::default();
    let manifest = source.manifest(&ctx, &image).await.unwrap();
    let sections = std::iter::repeat_n(ask::sections(&manifest), times).flatten();
    let requests = futures::stream::iter(sections)
        .map(async |section| -> Result<_> {
            let table = source.section_table(&ctx, &image, section).await?;
            Ok(futures::stream::iter(ask::requests(image, section, &table)).map(Ok))
        })
        .buffered(2)
        .try_flatten();
    let taken = requests
        .map_ok(async |place| {
            let mut taken = Taken::default();
            source.chunks(&ctx, &place, &mut taken).await.map(|()| taken)
        })
        .try_buffer_unordered(IN_FLIGHT)
        .try_collect();
    let taken: Vec<Taken> = taken.await.unwrap();
    taken.into_iter().sum()
}
