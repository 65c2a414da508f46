//! A file as an NBD export, to be measured beside other servers.
//!
//! ```text
//! nbd-serve FILE SOCKET      until it is interrupted
//! fio --name=r --ioengine=nbd --uri=nbd+unix:///?socket=SOCKET --rw=randread --bs=4k --iodepth=32
//! ```
//! All of it runs on one thread; the file is read and written through the page cache, by the ring.

use std::path::Path;
use std::rc::Rc;

use blockio::{BlockFile, Engine, EngineOptions, OpenMode};
use node::export::nbd::{Export, Limits, Memory, Server, Socket};
use node::export::raw::RawDisk;

/// Operations the ring has at a time.
const DEPTH: u32 = 256;
/// Bytes of buffers, for sixteen connections.
const MEMORY: usize = 96 << 20;

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
    let options = EngineOptions { depth: DEPTH, ..EngineOptions::default() };
    let engine = Engine::start(options).expect("an engine");
    let disk = Rc::new(RawDisk::new(file, engine, 512, false).expect("a disk"));
    let export = Export { name: "disk".into(), description: String::new(), disk };
    let memory = Memory::with_budget(MEMORY).expect("memory");
    let server = Server::new(vec![export], memory, Limits::default()).expect("a server");
    let socket = Socket::bind(socket).await.expect("the socket");
    server.serve(socket, async { drop(tokio::signal::ctrl_c().await) }).await;
}
