//! Takes every chunk of an image and drops it. What is left is what a client cannot do without: it
//! receives, and checks the CRC32C of every frame.

use std::io::BufRead;
use std::sync::mpsc;

use forebay_benches::cpu_seconds;
use futures::{StreamExt, TryStreamExt};
use image::{ChunkSink, ChunkSource, Digest, Frame, ReadContext, Result};
use node::patience::Patience;
use serde_json::json;
use tokio::sync::watch;

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

/// Connects as each of these members, spread over as many threads as there are cores, and says so; then,
/// for every line that is read, all of them take the whole image at once, over the connections that they
/// have.
pub fn serve(image: Digest, dirs: &[String]) {
    let threads = std::thread::available_parallelism().unwrap().get().min(dirs.len());
    let (go, rounds) = watch::channel(0u64);
    let (done, taken) = mpsc::channel();
    for thread in 0..threads {
        let mine: Vec<_> = dirs.iter().skip(thread).step_by(threads).cloned().collect();
        let (rounds, done) = (rounds.clone(), done.clone());
        std::thread::spawn(move || serve_some(image, thread, &mine, rounds, &done));
    }
    // Each thread says that it is ready, and then what it took each time.
    let all = || -> Taken { (0..threads).map(|_| taken.recv().unwrap()).sum() };
    all();
    println!("connected");
    for _ in std::io::stdin().lock().lines() {
        let (start, cpu) = (now(), cpu_seconds());
        go.send_modify(|round| *round += 1);
        let Taken { frames, bytes } = all();
        let (seconds, cpu) = ((now() - start).as_secs_f64(), cpu_seconds() - cpu);
        let said = json!({
            "frames": frames, "bytes": bytes, "seconds": seconds, "cpu_seconds": cpu,
        });
        println!("{said}");
    }
}

/// One thread's members.
fn serve_some(
    image: Digest,
    thread: usize,
    dirs: &[String],
    mut rounds: watch::Receiver<u64>,
    done: &mpsc::Sender<Taken>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut clients = Vec::new();
        for dir in dirs {
            clients.push(Member::of(dir, image).await.connect(thread).await);
        }
        done.send(Taken::default()).unwrap();
        while rounds.changed().await.is_ok() {
            let drained = clients.iter().map(|client| drain(client, image));
            let taken = futures::future::join_all(drained).await.into_iter().sum();
            done.send(taken).unwrap();
        }
    });
}

/// Takes the whole image, in requests as a pull makes them.
async fn drain(source: &impl ChunkSource, image: Digest) -> Taken {
    let ctx = ReadContext::default();
    let manifest = source.manifest(&ctx, &image).await.unwrap();
    let requests = futures::stream::iter(ask::sections(&manifest))
        .map(async |section| -> Result<_> {
            let table = source.section_table(&ctx, &image, section).await?;
            Ok(futures::stream::iter(ask::requests(image, section, &table)).map(Ok))
        })
        .buffered(2)
        .try_flatten();
    let taken = requests
        .map_ok(async |place| {
            // Only what came whole counts; who is busy is asked again.
            let ask = async || {
                let mut taken = Taken::default();
                source.chunks(&ctx, &place, &mut taken).await.map(|()| taken)
            };
            Patience::new().ask(ask).await
        })
        .try_buffer_unordered(IN_FLIGHT)
        .try_collect();
    let taken: Vec<Taken> = taken.await.unwrap();
    taken.into_iter().sum()
}
