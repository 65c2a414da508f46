//! A client that says anything.

use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::MemDisk;
use super::client::{Ask, shake};
use crate::export::nbd::proto::Framing;
use crate::export::nbd::proto::context::Context;
use crate::export::nbd::{Export, Limits, Memory, Server};

/// Says `bytes`, `cut` at a time, and goes: instead of a handshake if `way` is 0, and else after one, in
/// one of the three framings.
///
/// # Panics
///
/// If the server keeps memory.
pub async fn run(way: u8, cut: usize, bytes: &[u8]) {
    let disk = Rc::new(MemDisk::new(vec![7; 64 << 10]));
    let export = Export { name: "a".into(), description: String::new(), disk };
    let memory = Memory::with_budget(8 << 20).expect("memory");
    let server = Server::new(vec![export], memory.clone(), Limits::default()).expect("a server");
    let (mut here, there) = duplex(4096);
    let client = async {
        let framing = match way % 4 {
            1 => Some(Framing::Simple),
            2 => Some(Framing::Structured),
            3 => Some(Framing::Extended),
            _ => None,
        };
        if let Some(framing) = framing {
            let plain = framing == Framing::Simple;
            let contexts = if plain { Vec::new() } else { Context::ALL.to_vec() };
            shake(&mut here, &Ask { framing, contexts, ..Ask::default() }).await;
        }
        let (mut reader, mut writer) = tokio::io::split(here);
        let say = async {
            for part in bytes.chunks(cut.max(1)) {
                if writer.write_all(part).await.is_err() {
                    return;
                }
                tokio::task::yield_now().await;
            }
            // The server may have gone first.
            let _ = writer.shutdown().await;
        };
        let hear = async {
            let mut scrap = [0; 1024];
            while reader.read(&mut scrap).await.is_ok_and(|len| len > 0) {}
        };
        futures::join!(say, hear);
    };
    // However it ends; it ends.
    let (_, ()) = futures::join!(server.connection(there, std::future::pending()), client);
    assert_eq!(memory.used_bytes(), 0);
}
