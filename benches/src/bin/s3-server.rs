//! A real S3 server (s3s-fs) on a directory, which counts the bytes that it sends.
//!
//! ```text
//! s3-server DIR IP
//! ```
//! It makes the bucket `images`, takes the credentials [`KEY`] and [`SECRET`], prints the address that
//! it serves on, and for every line that it reads one of JSON: the bytes that it has sent, everything
//! above TCP included, and the processor time that it took. It ends with its input.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use forebay_benches::cpu_seconds;
use forebay_benches::s3::{BUCKET, KEY, SECRET};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

#[tokio::main]
async fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [dir, ip] = &args[..] else { panic!("usage: s3-server DIR IP") };
    std::fs::create_dir_all(Path::new(dir).join(BUCKET)).unwrap();
    let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(dir).unwrap());
    builder.set_auth(SimpleAuth::from_single(KEY, SECRET));
    let ip: IpAddr = ip.parse().expect("an IP address");
    let listener = TcpListener::bind(SocketAddr::new(ip, 0)).await.unwrap();
    println!("{}", listener.local_addr().unwrap());
    let sent = Arc::new(AtomicU64::new(0));
    tokio::spawn(accept(listener, builder.build(), Arc::clone(&sent)));
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(_)) = lines.next_line().await {
        let sent = sent.load(Ordering::Relaxed);
        println!("{}", serde_json::json!({ "sent": sent, "cpu_seconds": cpu_seconds() }));
    }
    // What is left to do, nobody waits for.
    std::process::exit(0);
}

async fn accept(listener: TcpListener, service: S3Service, sent: Arc<AtomicU64>) {
    while let Ok((socket, _)) = listener.accept().await {
        // A short answer must not wait for the acknowledgement of the one before.
        let _ = socket.set_nodelay(true);
        let (service, socket) = (service.clone(), Counted { socket, sent: Arc::clone(&sent) });
        tokio::spawn(async move {
            let server = Builder::new(TokioExecutor::new());
            // An error means that the client has gone.
            let _ = server.serve_connection(TokioIo::new(socket), service).await;
        });
    }
}

/// A connection that counts what is written to it.
struct Counted {
    socket: TcpStream,
    sent: Arc<AtomicU64>,
}

impl Counted {
    fn count(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(n)) = written {
            self.sent.fetch_add(n as u64, Ordering::Relaxed);
        }
        written
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(cx, buf);
        self.count(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, bufs);
        self.count(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
