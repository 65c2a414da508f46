//! A file as an NBD export, to be measured beside other servers.
//!
//! ```text
//! nbd-serve FILE SOCKET      until it is interrupted
//! fio --name=r --ioengine=nbd --uri=nbd+unix:///?socket=SOCKET --rw=randread --bs=4k --iodepth=32
//! ```
//! All of it runs on one thread; the file is read and written through the page cache, by the ring.

use std::ops::Range;
use std::path::Path;
use std::rc::Rc;

use blockio::{BlockFile, Buf, Engine, EngineOptions, OpenMode};
use image::{Error, Result};
use node::export::nbd::{Export, Limits, Memory, Server, Socket};
use node::export::{Disk, Stretch};

/// Operations the ring has at a time.
const DEPTH: u32 = 256;
/// Bytes of buffers, for sixteen connections.
const MEMORY: usize = 96 << 20;

struct FileDisk {
    engine: Engine,
    file: BlockFile,
    size: u64,
}

fn lift<T>(result: std::io::Result<T>) -> Result<T> {
    result.map_err(|error| Error::io("the file", error))
}

impl Disk for FileDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn sector(&self) -> u32 {
        512
    }

    fn read_only(&self) -> bool {
        false
    }

    async fn read(&self, at: u64, buf: Buf) -> (Result<()>, Buf) {
        let wanted = buf.len();
        let (result, mut buf) = self.engine.read_at(&self.file, buf, at).await;
        if let Ok(len) = result {
            buf.set_len(wanted);
            buf[len..].fill(0);
        }
        (lift(result.map(drop)), buf)
    }

    async fn write(&self, at: u64, buf: Buf) -> (Result<()>, Buf) {
        let (result, buf) = self.engine.write_at(&self.file, buf, at).await;
        (lift(result), buf)
    }

    async fn zero(&self, range: Range<u64>, give_back: bool) -> Result<()> {
        if give_back && self.engine.punch_hole(&self.file, range.clone()).await.is_ok() {
            return Ok(());
        }
        lift(self.engine.zero_range(&self.file, range).await)
    }

    async fn discard(&self, range: Range<u64>) -> Result<()> {
        lift(self.engine.punch_hole(&self.file, range).await)
    }

    async fn flush(&self) -> Result<()> {
        lift(self.engine.sync_data(&self.file).await)
    }

    fn stretches(&self, range: Range<u64>, most: usize) -> Result<Vec<(u64, Stretch)>> {
        let mut found = Vec::new();
        let mut at = range.start;
        for data in self.file.data_extents(range.clone()) {
            let data = lift(data)?;
            if data.start > at {
                found.push((data.start - at, Stretch::Hole));
            }
            found.push((data.end - data.start, Stretch::Data));
            at = data.end;
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

fn main() {
    let mut args = std::env::args().skip(1);
    let (Some(file), Some(socket)) = (args.next(), args.next()) else {
        panic!("usage: nbd-serve FILE SOCKET");
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, serve(Path::new(&file), Path::new(&socket)));
}

async fn serve(file: &Path, socket: &Path) {
    let file = BlockFile::open(file, OpenMode::write()).expect("the file");
    let size = file.size().expect("its size");
    let options = EngineOptions { depth: DEPTH, ..EngineOptions::default() };
    let engine = Engine::start(options).expect("an engine");
    let disk = Rc::new(FileDisk { engine, file, size });
    let export = Export { name: "disk".into(), description: String::new(), disk };
    let memory = Memory::with_budget(MEMORY).expect("memory");
    let server = Server::new(vec![export], memory, Limits::default()).expect("a server");
    let socket = Socket::bind(socket).await.expect("the socket");
    server.serve(socket, async { drop(tokio::signal::ctrl_c().await) }).await;
}
