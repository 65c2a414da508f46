//! Serves a raw file.

use std::path::Path;
use std::rc::Rc;

use blockio::{Arena, BlockFile, Engine, EngineOptions, OpenMode};
use node::export::raw::RawDisk;
use node::export::vhost::{Export, Options, listen};

/// Operations under way at once: what a few queues have.
const DEPTH: u32 = 256;
/// Length of a buffer, in bytes, and how many there are.
const BUFFER: usize = 256 << 10;
const BUFFERS: usize = 64;

pub fn main(args: Vec<String>) {
    let flag = |name: &str| args.iter().any(|arg| arg == name);
    let [file, socket] = &args[..2] else { panic!("serve FILE SOCKET") };
    let read_only = flag("--read-only");
    let mode = if read_only { OpenMode::read() } else { OpenMode::write() };
    let mode = if flag("--direct") { mode.direct() } else { mode };
    let sector = args.iter().skip_while(|arg| *arg != "--sector").nth(1);
    let sector = sector.map_or(512, |n| n.parse().expect("a number of bytes"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async move {
        let buffers = Arena::new("guests", BUFFER, BUFFERS * BUFFER).unwrap();
        let register = vec![buffers.clone()];
        let options = EngineOptions { depth: DEPTH, register, ..EngineOptions::default() };
        let engine = Engine::start(options);
        let file = BlockFile::open(file, mode).unwrap();
        let disk = RawDisk::new(file, engine.unwrap(), sector, read_only).unwrap();
        let export = Export::new(Rc::new(disk), buffers, &Options::default()).unwrap();
        let listener = listen(Path::new(socket)).await.unwrap();
        println!("serving at {socket}");
        export.serve(listener).await;
    });
}
