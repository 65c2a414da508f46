//! A real S3 server inside a test.

use forebay_store::{IndexPlace, Remote, Store, StoreOptions};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use image::Result;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::net::TcpListener;
use tokio::runtime::Handle;

pub const KEY: &str = "forebay";
pub const SECRET: &str = "correct horse";
const BUCKET: &str = "images";

/// An S3 server on a directory, with one bucket.
pub struct S3 {
    pub address: String,
    pub dir: tempfile::TempDir,
}

impl S3 {
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(BUCKET)).unwrap();
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(dir.path()).unwrap());
        builder.set_auth(SimpleAuth::from_single(KEY, SECRET));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(accept(listener, builder.build()));
        Self { address, dir }
    }

    pub fn settings(&self, key: &str, secret: &str) -> Vec<(String, String)> {
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

    pub async fn open(&self, url: &str) -> Result<Store> {
        self.open_as(url, KEY, SECRET).await
    }

    pub async fn open_as(&self, url: &str, key: &str, secret: &str) -> Result<Store> {
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
