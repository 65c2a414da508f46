//! Positional file I/O that does not block the runtime it runs on.
//!
//! An [`Engine`] belongs to one runtime, normally one single-threaded runtime per core; it is
//! `Send` and cheap to clone, but operations are driven by a task of the runtime it was started on.
//!
//! The rules every kind of engine keeps:
//!
//! - The engine owns the buffer until the operation completes, and gives it back with the result.
//! - An operation whose future was polled once is carried out in full, also if the future is then
//!   dropped. If such an abandoned write fails, the [`BlockFile`] remembers and every later sync
//!   fails.
//! - At most `depth` operations are under way; more wait in the order they came.
//! - Operations under way at once may complete in any order. A sync covers the writes that had
//!   completed when it began.
//! - A file without a descriptor (a fake) is used on the calling thread, at once, so that a
//!   simulation is deterministic.

mod pending;
mod portable;
mod ring;

use std::fmt;
use std::io;
use std::ops::Range;
use std::str::FromStr;

use bytes::Bytes;

use crate::arena::{Arena, Buf};
use crate::file::BlockFile;
use crate::guest::GuestBuf;
use pending::{Payload, Verb};

/// Operations under way at once, unless told otherwise. Measured (`benches/cpu.rs`: buffered writes
/// of 256 KiB with all cores at work, processor time per chunk beside making it): 23 µs at depth 4
/// and 16, 26 µs at 64, when the chunks no longer fit the processor's cache; of this the runtime's
/// own thread pays 3 µs. `pwrite` on that thread takes 19 µs, all of it there, and waits when the
/// disk is slow.
const DEPTH: u32 = 16;

/// Threads that the portable engine keeps busy at once, unless told otherwise. Measured
/// (`benches/cpu.rs`, as above): 28 to 30 µs with one, two or four, of which the runtime's own
/// thread pays 4, so that the number is free to serve disks that answer several readers at once.
const THREADS: u32 = 4;

/// How an engine reaches the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EngineKind {
    /// An `io_uring` of its own, one submission per batch.
    Ring,
    /// A bounded number of threads with plain system calls.
    Portable,
}

/// Which kind of engine to start. As text: `auto`, `io_uring`, `portable`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum EngineChoice {
    /// The ring where the kernel has it and lets us, threads elsewhere.
    #[default]
    Auto,
    /// This kind or an error.
    Just(EngineKind),
}

/// The text is no [`EngineChoice`].
#[derive(Debug, thiserror::Error)]
#[error("unknown engine {0:?}: expected auto, io_uring or portable")]
pub struct UnknownEngine(String);

impl FromStr for EngineChoice {
    type Err = UnknownEngine;

    fn from_str(text: &str) -> Result<EngineChoice, UnknownEngine> {
        match text {
            "auto" => Ok(EngineChoice::Auto),
            "io_uring" => Ok(EngineChoice::Just(EngineKind::Ring)),
            "portable" => Ok(EngineChoice::Just(EngineKind::Portable)),
            other => Err(UnknownEngine(other.to_owned())),
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EngineKind::Ring => "io_uring",
            EngineKind::Portable => "portable",
        })
    }
}

impl fmt::Display for EngineChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EngineChoice::Auto => f.write_str("auto"),
            EngineChoice::Just(kind) => kind.fmt(f),
        }
    }
}

/// What to start.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Which kind.
    pub choice: EngineChoice,
    /// Operations under way at once (ring): 1 to 4096.
    pub depth: u32,
    /// Operations under way at once (portable), each on a thread of the runtime's blocking pool.
    pub threads: u32,
    /// Arenas whose memory the ring pins and registers, so that direct I/O need not look up its
    /// pages each time; buffered I/O gains nothing by it, and does without. All of their memory is then resident for as long as the engine lives. Where
    /// the limit on locked memory does not allow it, they are used unregistered.
    pub register: Vec<Arena>,
}

impl Default for EngineOptions {
    fn default() -> EngineOptions {
        EngineOptions {
            choice: EngineChoice::Auto,
            depth: DEPTH,
            threads: THREADS,
            register: Vec::new(),
        }
    }
}

impl EngineOptions {
    /// The defaults, with this kind of engine.
    pub fn kind(kind: EngineKind) -> EngineOptions {
        EngineOptions { choice: EngineChoice::Just(kind), ..EngineOptions::default() }
    }
}

/// What an engine has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Operations that have completed.
    pub completed: u64,
    /// System calls that handed operations to the kernel. Under load there are fewer of these than
    /// operations: that is what batching is for.
    pub submissions: u64,
    /// Operations under way.
    pub in_flight: u32,
}

/// A handle to a running engine; clones share it. See the [module](self) for the rules.
///
/// When the last handle is gone, what is under way is finished and the engine ends.
#[derive(Clone, Debug)]
pub struct Engine {
    inner: Inner,
}

#[derive(Clone, Debug)]
enum Inner {
    Ring(ring::Ring),
    Portable(portable::Portable),
}

impl Engine {
    /// Starts an engine on the current tokio runtime, which must have I/O enabled.
    ///
    /// # Errors
    ///
    /// `Unsupported` if a ring was insisted on and the kernel has none or forbids it; `Other` if
    /// called outside a runtime; `InvalidInput` for a depth or thread count out of range.
    pub fn start(options: EngineOptions) -> io::Result<Engine> {
        let inner = match options.choice {
            EngineChoice::Just(EngineKind::Portable) => Self::portable(&options)?,
            EngineChoice::Just(EngineKind::Ring) => Inner::Ring(ring::Ring::start(&options)?),
            EngineChoice::Auto => match ring::Ring::start(&options) {
                Ok(ring) => Inner::Ring(ring),
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                    tracing::info!(%error, "no io_uring here: file I/O uses threads");
                    Self::portable(&options)?
                }
                Err(error) => return Err(error),
            },
        };
        Ok(Engine { inner })
    }

    /// Starts the best engine this machine has, with the default options.
    ///
    /// # Errors
    ///
    /// As for [`start`](Engine::start).
    pub fn detect() -> io::Result<Engine> {
        Engine::start(EngineOptions::default())
    }

    fn portable(options: &EngineOptions) -> io::Result<Inner> {
        Ok(Inner::Portable(portable::Portable::start(options.threads)?))
    }

    /// Which kind this is.
    pub fn kind(&self) -> EngineKind {
        match self.inner {
            Inner::Ring(_) => EngineKind::Ring,
            Inner::Portable(_) => EngineKind::Portable,
        }
    }

    /// Reads into `buf` until its length is reached or the file ends. On success `buf`'s length is
    /// set to the number of bytes read, which is less than it was only at the end of the file.
    ///
    /// Past the page cache `offset` and the length must be multiples of the logical sector.
    ///
    /// # Errors
    ///
    /// What the system says. The buffer comes back all the same; what is in it is then unspecified.
    pub async fn read_at(
        &self,
        file: &BlockFile,
        buf: Buf,
        offset: u64,
    ) -> (io::Result<usize>, Buf) {
        let (result, payload) = self.run(file, Verb::Read, Payload::Buf(buf), offset).await;
        let Payload::Buf(mut buf) = payload else {
            unreachable!("the payload comes back as given")
        };
        if let Ok(read) = result {
            buf.set_len(read);
        }
        (result, buf)
    }

    /// Reads into a guest's memory. The number of bytes read may be less than there is room for, also before the
    /// file ends. Not for direct I/O, which needs the alignment of a [`Buf`].
    ///
    /// The guest must not use that memory for anything else before the read has completed, for what it would
    /// find there; also if the future is dropped.
    ///
    /// # Errors
    ///
    /// What the system says; what is in the memory is then unspecified.
    pub async fn read_guest(
        &self,
        file: &BlockFile,
        guest: GuestBuf,
        offset: u64,
    ) -> io::Result<usize> {
        self.run(file, Verb::Read, Payload::Guest(guest), offset).await.0
    }

    /// Writes all of `buf` at `offset`.
    ///
    /// # Errors
    ///
    /// What the system says; the range then holds old bytes, new ones, or some of both. The buffer
    /// comes back all the same.
    pub async fn write_at(&self, file: &BlockFile, buf: Buf, offset: u64) -> (io::Result<()>, Buf) {
        let (result, payload) = self.run(file, Verb::Write, Payload::Buf(buf), offset).await;
        let Payload::Buf(buf) = payload else { unreachable!("the payload comes back as given") };
        (result.map(drop), buf)
    }

    /// Writes all of `bytes` at `offset`, from wherever they lie. Not for direct I/O, which needs
    /// the alignment of a [`Buf`].
    ///
    /// # Errors
    ///
    /// As for [`write_at`](Engine::write_at).
    pub async fn write_bytes_at(
        &self,
        file: &BlockFile,
        bytes: Bytes,
        offset: u64,
    ) -> io::Result<()> {
        let (result, _) = self.run(file, Verb::Write, Payload::Bytes(bytes), offset).await;
        result.map(drop)
    }

    /// Waits until every write that has completed is on the medium, with the size.
    ///
    /// # Errors
    ///
    /// What the system says, now and at every later sync of this file: see [`BlockFile`].
    pub async fn sync_data(&self, file: &BlockFile) -> io::Result<()> {
        file.check_lost()?;
        let (result, _) = self.run(file, Verb::Sync, Payload::None, 0).await;
        // A failed sync was noted when it completed, whether or not we were there to see it.
        result?;
        file.check_lost()
    }

    /// [`BlockFile::zero_range`], without blocking.
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn zero_range(&self, file: &BlockFile, range: Range<u64>) -> io::Result<()> {
        self.run_range(file, Verb::Zero, range).await
    }

    /// [`BlockFile::punch_hole`], without blocking.
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn punch_hole(&self, file: &BlockFile, range: Range<u64>) -> io::Result<()> {
        self.run_range(file, Verb::Punch, range).await
    }

    /// [`BlockFile::copy_range`], without blocking.
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn copy_range(
        &self,
        file: &BlockFile,
        source: &BlockFile,
        range: Range<u64>,
    ) -> io::Result<()> {
        let payload = Payload::Of(source.clone(), range.end.saturating_sub(range.start));
        self.run(file, Verb::Copy, payload, range.start).await.0.map(drop)
    }

    /// [`read_at`](Engine::read_at), but the `ranges`, which lie within what is read, are read from the same
    /// places of `other`.
    ///
    /// # Errors
    ///
    /// As there; `UnexpectedEof` if `other` ends before one of its ranges does.
    ///
    /// # Panics
    ///
    /// For a range that does not lie within.
    pub async fn read_over(
        &self,
        file: &BlockFile,
        buf: Buf,
        offset: u64,
        other: &BlockFile,
        ranges: Vec<Range<u64>>,
    ) -> (io::Result<usize>, Buf) {
        let within = offset..=offset.saturating_add(buf.len() as u64);
        let fits = |r: &Range<u64>| {
            r.start <= r.end && within.contains(&r.start) && within.contains(&r.end)
        };
        assert!(ranges.iter().all(fits), "{ranges:?} of {within:?}");
        let payload = Payload::Over(buf, other.clone(), ranges);
        let (result, payload) = self.run(file, Verb::Read, payload, offset).await;
        let Payload::Over(mut buf, ..) = payload else {
            unreachable!("the payload comes back as given")
        };
        if let Ok(read) = result {
            buf.set_len(read);
        }
        (result, buf)
    }

    async fn run_range(&self, file: &BlockFile, verb: Verb, range: Range<u64>) -> io::Result<()> {
        let len = range.end.saturating_sub(range.start);
        self.run(file, verb, Payload::Range(len), range.start).await.0.map(drop)
    }

    /// Waits until all that is under way has completed, also what nobody waits for any more. What is asked for
    /// meanwhile waits, too.
    pub async fn settle(&self) {
        match &self.inner {
            Inner::Ring(ring) => ring.settle().await,
            Inner::Portable(portable) => portable.settle().await,
        }
    }

    /// What has been done so far. Operations on files without a descriptor are not counted.
    pub fn stats(&self) -> EngineStats {
        match &self.inner {
            Inner::Ring(ring) => ring.stats(),
            Inner::Portable(portable) => portable.stats(),
        }
    }

    async fn run(
        &self,
        file: &BlockFile,
        verb: Verb,
        payload: Payload,
        offset: u64,
    ) -> (io::Result<usize>, Payload) {
        if let Err(error) = check_place(payload.len(), offset) {
            return (Err(file.at(verb.name(), Some(offset), error)), payload);
        }
        if file.descriptor().is_none() {
            // Others get their turn, as they would with a disk.
            tokio::task::yield_now().await;
            return pending::run_blocking(file, verb, payload, offset);
        }
        match &self.inner {
            Inner::Ring(ring) => ring.run(file, verb, payload, offset).await,
            Inner::Portable(portable) => portable.run(file, verb, payload, offset).await,
        }
    }
}

/// Whether this kernel has a ring for us.
pub(crate) fn ring_available() -> io::Result<()> {
    ring::available()
}

/// Offsets are signed in the kernel, and -1 means something else there.
fn check_place(len: u64, offset: u64) -> io::Result<()> {
    match offset.checked_add(len) {
        Some(end) if i64::try_from(end).is_ok() => Ok(()),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choice_reads_as_it_prints() {
        for text in ["auto", "io_uring", "portable"] {
            assert_eq!(text.parse::<EngineChoice>().unwrap().to_string(), text);
        }
        assert!("uring".parse::<EngineChoice>().is_err());
    }

    #[test]
    fn no_offset_reaches_the_kernels_special_values() {
        assert!(check_place(0, u64::MAX).is_err());
        assert!(check_place(1, i64::MAX as u64).is_err());
        assert!(check_place(1, i64::MAX as u64 - 1).is_ok());
    }
}
