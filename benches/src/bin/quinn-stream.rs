//! A bare quinn stream of one file from memory: the limit that a pull is held against.
//!
//! ```text
//! quinn-stream serve DIR FILE IP    prints the address that it serves on
//! quinn-stream disk DIR FILE IP     the same, but reads the file for each stream, past the page cache, and
//!                                   checks a CRC32C of every piece: what anybody must who serves from a disk
//! quinn-stream get DIR ADDRESS      takes the whole stream, throws it away, prints bytes and seconds
//! quinn-stream each DIR ADDRESS     connects, and prints `connected`; takes a stream for every line that it
//!                                   reads
//! ```
//! It uses the same transport settings and TLS as Forebay's own sessions.

use std::net::SocketAddr;
use std::path::Path;

use blockio::{Arena, BlockFile, Engine, EngineOptions, OpenMode};
use bytes::Bytes;
use forebay_benches::cpu_seconds;
use futures::StreamExt;
use quinn::{Connection, Endpoint, SendStream, WriteError};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use stream::transport::{Papers, Tuning, client_config, server_config};
use tokio::io::{AsyncBufReadExt, BufReader};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    match args[..] {
        ["serve", dir, file, ip] => {
            let bytes = Bytes::from(std::fs::read(file).unwrap());
            runtime.block_on(serve(Path::new(dir), ip, async |send| {
                send.write_chunk(bytes.clone()).await
            }));
        }
        ["disk", dir, file, ip] => runtime.block_on(async {
            let disk = Disk::open(Path::new(file));
            serve(Path::new(dir), ip, async |send| disk.send(send).await).await;
        }),
        ["get", dir, address] => runtime.block_on(get(Path::new(dir), address)),
        ["each", dir, address] => runtime.block_on(each(Path::new(dir), address)),
        _ => panic!("usage: quinn-stream serve|disk DIR FILE IP | get|each DIR ADDRESS"),
    }
}

/// One self-made authority and one certificate for both ends.
#[expect(clippy::disallowed_methods, reason = "keys of a benchmark: any will do")]
fn make_papers(dir: &Path) {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_cert = ca.self_signed(&ca_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let issuer = Issuer::new(ca, ca_key);
    let cert = CertificateParams::new(vec!["bench".into()]).unwrap().signed_by(&key, &issuer);
    for (name, text) in [
        ("ca.pem", ca_cert.pem()),
        ("cert.pem", cert.unwrap().pem()),
        ("key.pem", key.serialize_pem()),
    ] {
        std::fs::write(dir.join(name), text).unwrap();
    }
}

fn papers(dir: &Path) -> [Vec<u8>; 3] {
    ["ca.pem", "cert.pem", "key.pem"].map(|name| std::fs::read(dir.join(name)).unwrap())
}

async fn serve(
    dir: &Path,
    ip: &str,
    answer: impl AsyncFn(&mut SendStream) -> Result<(), WriteError>,
) {
    make_papers(dir);
    let [ca, certificate, key] = papers(dir);
    let tls = server_config(Papers { ca: &ca, certificate: &certificate, key: &key }).unwrap();
    let address = SocketAddr::new(ip.parse().unwrap(), 0);
    let endpoint = Tuning::default().server_endpoint(address, tls).unwrap();
    println!("{}", endpoint.local_addr().unwrap());
    while let Some(incoming) = endpoint.accept().await {
        let Ok(connection) = incoming.await else { continue };
        while let Ok((mut send, _)) = connection.accept_bi().await {
            // Errors mean that the client has gone.
            let _ = answer(&mut send).await;
            let _ = send.finish();
        }
    }
}

/// A file that is read past the page cache.
struct Disk {
    file: BlockFile,
    engine: Engine,
    arena: Arena,
}

impl Disk {
    /// Bytes of a piece: as a cache reads neighbours.
    const PIECE: usize = 66 << 12;
    const AT_ONCE: usize = 16;

    fn open(file: &Path) -> Self {
        let file = BlockFile::open(file, OpenMode::read().direct()).unwrap();
        let arena = Arena::new("disk", Self::PIECE, 2 * Self::AT_ONCE * Self::PIECE).unwrap();
        let register = vec![arena.clone()];
        let engine = Engine::start(EngineOptions { register, ..EngineOptions::default() }).unwrap();
        Self { file, engine, arena }
    }

    async fn send(&self, send: &mut SendStream) -> Result<(), WriteError> {
        let len = self.file.size().unwrap();
        let reads = futures::stream::iter((0..len).step_by(Self::PIECE)).map(async |at| {
            let buf = self.arena.acquire().await;
            let (read, buf) = self.engine.read_at(&self.file, buf, at).await;
            read.unwrap();
            std::hint::black_box(crc32c::crc32c(&buf));
            Bytes::from(buf)
        });
        let mut reads = std::pin::pin!(reads.buffered(Self::AT_ONCE));
        while let Some(piece) = reads.next().await {
            send.write_chunk(piece).await?;
        }
        Ok(())
    }
}

#[expect(clippy::disallowed_methods, reason = "a measurement reads the real clock")]
fn now() -> std::time::Instant {
    std::time::Instant::now()
}

async fn connect(dir: &Path, address: &str) -> (Endpoint, Connection) {
    let [ca, certificate, key] = papers(dir);
    let tls = client_config(Papers { ca: &ca, certificate: &certificate, key: &key }).unwrap();
    let tuning = Tuning::default();
    let endpoint = tuning.client_endpoint("0.0.0.0:0".parse().unwrap()).unwrap();
    let config = tuning.client(tls).unwrap();
    let connecting = endpoint.connect_with(config, address.parse().unwrap(), "bench").unwrap();
    let connection = connecting.await.unwrap();
    (endpoint, connection)
}

/// Takes a stream and prints what it was.
async fn take(connection: &Connection) {
    let (start, cpu) = (now(), cpu_seconds());
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(b"go").await.unwrap();
    let mut total = 0;
    let mut pieces: [Bytes; 32] = Default::default();
    while let Some(n) = recv.read_chunks(&mut pieces).await.unwrap() {
        total += pieces[..n].iter_mut().map(|piece| std::mem::take(piece).len()).sum::<usize>();
    }
    let (seconds, cpu) = ((now() - start).as_secs_f64(), cpu_seconds() - cpu);
    let said = serde_json::json!({ "bytes": total, "seconds": seconds, "cpu_seconds": cpu });
    println!("{said}");
}

async fn get(dir: &Path, address: &str) {
    let (endpoint, connection) = connect(dir, address).await;
    take(&connection).await;
    connection.close(0u32.into(), b"");
    endpoint.wait_idle().await;
}

async fn each(dir: &Path, address: &str) {
    let (_endpoint, connection) = connect(dir, address).await;
    println!("connected");
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(_)) = lines.next_line().await {
        take(&connection).await;
    }
}
