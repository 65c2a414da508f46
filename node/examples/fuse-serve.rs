//! Shows a raw file as a FUSE mount: what the export is tested and measured with.
//!
//! ```text
//! fuse-serve hold SOCKET
//! fuse-serve serve RAW PATH [--holder SOCKET] [--delay MS]
//! ```
//! `SIGUSR1` graduates the disk, `SIGUSR2` prints what was served, `SIGHUP` leaves the mount to the next server,
//! `SIGTERM` unmounts.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use blockio::{BlockFile, Buf, Engine, OpenMode};
use forebay_node::export::fuse::{Connection, Export, Options, holder, mount, unmount};
use forebay_node::export::{Disk, Stretch};
use image::{Error, Kind, Result};
use tokio::signal::unix::{SignalKind, signal};

/// A raw file as a disk, slow if wanted.
struct Raw {
    file: BlockFile,
    engine: Engine,
    delay: Duration,
    read: Cell<u64>,
    written: Cell<u64>,
    flushed: Cell<u64>,
}

impl Raw {
    async fn wait(&self) {
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
    }
}

fn failed(error: io::Error) -> Error {
    Error::io("raw file", error)
}

fn count(counter: &Cell<u64>) {
    counter.set(counter.get() + 1);
}

impl Disk for Raw {
    fn size(&self) -> u64 {
        self.file.size().unwrap_or(0)
    }

    fn sector(&self) -> u32 {
        512
    }

    fn read_only(&self) -> bool {
        false
    }

    async fn read(&self, at: u64, buf: Buf) -> (Result<()>, Buf) {
        count(&self.read);
        self.wait().await;
        let (result, buf) = self.engine.read_at(&self.file, buf, at).await;
        (result.map(drop).map_err(failed), buf)
    }

    async fn write(&self, at: u64, buf: Buf) -> (Result<()>, Buf) {
        count(&self.written);
        self.wait().await;
        let (result, buf) = self.engine.write_at(&self.file, buf, at).await;
        (result.map_err(failed), buf)
    }

    async fn zero(&self, range: Range<u64>, give_back: bool) -> Result<()> {
        let done = match give_back {
            true => self.engine.punch_hole(&self.file, range).await,
            false => self.engine.zero_range(&self.file, range).await,
        };
        done.map_err(failed)
    }

    async fn discard(&self, range: Range<u64>) -> Result<()> {
        self.zero(range, true).await
    }

    async fn flush(&self) -> Result<()> {
        count(&self.flushed);
        self.engine.sync_data(&self.file).await.map_err(failed)
    }

    fn stretches(&self, range: Range<u64>, most: usize) -> Result<Vec<(u64, Stretch)>> {
        let mut found = Vec::new();
        let mut at = range.start;
        for extent in self.file.data_extents(range.clone()) {
            let extent = extent.map_err(failed)?;
            if extent.start > at {
                found.push((extent.start - at, Stretch::Hole));
            }
            found.push((extent.end - extent.start, Stretch::Data));
            at = extent.end;
            if found.len() >= most {
                found.truncate(most);
                return Ok(found);
            }
        }
        if at < range.end {
            found.push((range.end - at, Stretch::Hole));
        }
        Ok(found)
    }
}

struct Args {
    raw: PathBuf,
    path: PathBuf,
    holder: Option<PathBuf>,
    delay: Duration,
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["hold", socket] => hold(Path::new(socket)).map_err(failed),
        ["serve", raw, path, ref rest @ ..] => {
            let option = |name| {
                rest.iter().position(|word| *word == name).and_then(|at| rest.get(at + 1).copied())
            };
            let delay = option("--delay").map_or(0, |ms| ms.parse().expect("milliseconds"));
            block_on(serve(Args {
                raw: raw.into(),
                path: path.into(),
                holder: option("--holder").map(PathBuf::from),
                delay: Duration::from_millis(delay),
            }))
        }
        _ => {
            panic!("usage: fuse-serve hold SOCKET | serve RAW PATH [--holder SOCKET] [--delay MS]")
        }
    };
    if let Err(error) = done {
        eprintln!("fuse-serve: {error}");
        std::process::exit(1);
    }
}

fn block_on<T>(what: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(what)
}

fn hold(socket: &Path) -> io::Result<()> {
    let listener = std::os::unix::net::UnixListener::bind(socket)?;
    println!("holding");
    holder::hold(&listener, Duration::from_secs(3600))
}

/// Takes away what a server may have left whose connection nobody has kept.
fn mount_anew(path: &Path) -> Result<Connection> {
    match mount(path) {
        Err(error) if error.kind() == Kind::Conflict => {
            unmount(path)?;
            mount(path)
        }
        mounted => mounted,
    }
}

/// The connection that an earlier server of this path left, or that of a new mount.
fn connect(args: &Args) -> Result<Connection> {
    let name = args.path.display().to_string();
    let Some(holder) = &args.holder else { return mount_anew(&args.path) };
    if let Some(device) = holder::give(holder, &name).map_err(failed)? {
        println!("taking up");
        return Ok(Connection::Left(device));
    }
    let connection = mount_anew(&args.path)?;
    holder::keep(holder, &name, connection.as_fd()).map_err(failed)?;
    Ok(connection)
}

async fn serve(args: Args) -> Result<()> {
    let file = BlockFile::open(&args.raw, OpenMode::write()).map_err(failed)?;
    // Also what a process that was killed had under way keeps its lock: nothing of it comes later.
    while !file.try_lock_exclusive().map_err(failed)? {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (read, written, flushed) = Default::default();
    let engine = Engine::detect().map_err(failed)?;
    let disk = Rc::new(Raw { file, engine, delay: args.delay, read, written, flushed });
    let export = Export::start(connect(&args)?, disk.clone(), Options::default())?;
    let handle = export.handle();
    let on = |kind| signal(kind).map_err(failed);
    let mut graduate = on(SignalKind::user_defined1())?;
    let mut tell = on(SignalKind::user_defined2())?;
    let mut leave = on(SignalKind::hangup())?;
    let mut end = on(SignalKind::terminate())?;
    println!("serving");
    let run = export.run();
    tokio::pin!(run);
    loop {
        tokio::select! {
            ended = &mut run => return ended,
            Some(()) = graduate.recv() => {
                let raw = std::fs::File::options().read(true).write(true).open(&args.raw);
                handle.graduate(raw.map_err(failed)?)?;
                println!("graduated");
            }
            Some(()) = tell.recv() => {
                let (read, written, flushed) = (&disk.read, &disk.written, &disk.flushed);
                println!("served {} {} {}", read.get(), written.get(), flushed.get());
            }
            Some(()) = leave.recv() => handle.leave(),
            Some(()) = end.recv() => {
                unmount(&args.path)?;
                if let Some(holder) = &args.holder {
                    holder::forget(holder, &args.path.display().to_string()).map_err(failed)?;
                }
            }
        }
    }
}
