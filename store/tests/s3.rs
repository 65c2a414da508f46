//! A store in a real S3 server, over HTTP.

mod common;

use common::*;
use forebay_store::{IndexPlace, Receiver, Remote, Store, StoreOptions};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use image::{Kind, Result};
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::net::TcpListener;
use tokio::runtime::Handle;

const KEY: &str = "forebay";
const SECRET: &str = "correct horse";
const BUCKET: &str = "images";

/// An S3 server on a directory, with one bucket.
struct S3 {
    address: String,
    dir: tempfile::TempDir,
}

impl S3 {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(BUCKET)).unwrap();
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(dir.path()).unwrap());
        builder.set_auth(SimpleAuth::from_single(KEY, SECRET));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(accept(listener, builder.build()));
        Self { address, dir }
    }

    fn settings(&self, key: &str, secret: &str) -> Vec<(String, String)> {
        let pairs = [
            ("aws_endpoint", self.address.as_str()),
            ("aws_region", "us-east-1"),
            ("aws_allow_http", "true"),
            ("aws_access_key_id", key),
            ("aws_secret_access_key", secret),
            ("path", "/usr/bin"),
        ];
        pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).into()
    }

    async fn open(&self, url: &str) -> Result<Store> {
        self.open_as(url, KEY, SECRET).await
    }

    async fn open_as(&self, url: &str, key: &str, secret: &str) -> Result<Store> {
        let options = StoreOptions::system(IndexPlace::Memory);
        let remote = Remote::new(self.settings(key, secret));
        Store::open_url(url, &remote, Handle::current(), options).await
    }
}

async fn accept(listener: TcpListener, service: S3Service) {
    while let Ok((socket, _)) = listener.accept().await {
        let service = service.clone();
        tokio::spawn(async move {
            let server = Builder::new(TokioExecutor::new());
            let _ = server.serve_connection(TokioIo::new(socket), service).await;
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_goes_in_and_comes_out_again() {
    let s3 = S3::start().await;
    let store = s3.open("s3://images/grid").await.unwrap();
    let disk = small_disk();
    assert_eq!(disk.push(&Receiver::new(&store), None).await.unwrap(), 5);
    assert_eq!(Disk::pull(&store, &disk.image()).await.unwrap(), disk);
    assert_eq!(store.verify(&disk.image(), true).await.unwrap().bad, [] as [String; 0]);
    // Another process finds the same, under the same prefix alone.
    let other = s3.open("s3://images/grid").await.unwrap();
    assert_eq!(other.id(), store.id());
    assert_eq!(Disk::pull(&other, &disk.image()).await.unwrap(), disk);
    assert_eq!(s3.open("s3://images/other").await.unwrap().images().await.unwrap(), []);
    assert!(s3.dir.path().join("images/grid").is_dir());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_credentials_buckets_and_urls_are_refused_by_name() {
    let s3 = S3::start().await;
    let e = s3.open_as("s3://images/grid", KEY, "wrong").await.unwrap_err();
    assert_eq!(e.kind(), Kind::Denied, "{e}");
    assert!(e.to_string().contains("s3://images/grid"), "{e}");
    let e = s3.open("s3://nowhere/grid").await.unwrap_err();
    assert!(e.to_string().contains("s3://nowhere/grid"), "{e}");
    for url in ["ftp://images/grid", "images", "s3://"] {
        let e = s3.open(url).await.unwrap_err();
        assert_eq!(e.kind(), Kind::Invalid, "{url}: {e}");
        assert!(e.to_string().contains(url), "{e}");
    }
    assert_eq!(std::fs::read_dir(s3.dir.path()).unwrap().count(), 1, "nothing was made");
}
