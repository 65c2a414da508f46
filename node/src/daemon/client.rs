//! Asks the node daemon of this machine.

use std::path::PathBuf;
use std::time::Duration;

use api::ErrorBody;
use api::capture::{Capture, SaveVolume};
use api::goal::ReadyVolume;
use api::node::{PullRequest, Transfer};
use api::pool::LocalClaim;
use api::volume::{
    AttachVolume, CreateVolume, Erasure, ReleaseVolume, ResizeVolume, Scrubbed, VolumeInfo,
};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use image::{Error, Kind, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

/// What we ask is plain text and numbers.
fn json(asked: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(asked).unwrap_or_default()
}

/// Names come from people: whatever is in them stays within its part of the path.
fn volume_path(name: &str, action: &str) -> String {
    format!("/v1/volumes/{}{action}", segment(name))
}

fn segment(name: &str) -> String {
    let encoded = name.bytes().map(|b| match b.is_ascii_alphanumeric() || b"._-".contains(&b) {
        true => char::from(b).to_string(),
        false => format!("%{b:02X}"),
    });
    encoded.collect()
}

/// Longest answer that is read, in bytes.
const MAX_ANSWER: usize = 16 << 20;

/// A client of the daemon behind a socket.
#[derive(Clone, Debug)]
pub struct DaemonClient {
    socket: PathBuf,
}

impl DaemonClient {
    /// A client of the daemon behind `socket`; nothing is connected yet.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Whether a daemon answers there.
    pub async fn is_running(&self) -> bool {
        UnixStream::connect(&self.socket).await.is_ok()
    }

    /// Asks for an image. A path that is not UTF-8 cannot be asked for.
    pub async fn ask(&self, request: &PullRequest) -> Result<Transfer> {
        let body = serde_json::to_vec(request).map_err(|e| {
            let message = format!("{}: {e}; pull with --no-daemon", request.to.display());
            Error::caused(Kind::Invalid, message, e)
        })?;
        self.call(Method::POST, "/v1/transfers", body).await
    }

    /// All transfers.
    pub async fn transfers(&self) -> Result<Vec<Transfer>> {
        self.call(Method::GET, "/v1/transfers", Vec::new()).await
    }

    /// One transfer.
    pub async fn transfer(&self, id: u64) -> Result<Transfer> {
        self.call(Method::GET, &format!("/v1/transfers/{id}"), Vec::new()).await
    }

    /// Ends a transfer.
    pub async fn cancel(&self, id: u64) -> Result<Transfer> {
        self.call(Method::DELETE, &format!("/v1/transfers/{id}"), Vec::new()).await
    }

    /// Makes a volume.
    pub async fn create_volume(&self, asked: &CreateVolume) -> Result<VolumeInfo> {
        self.call(Method::POST, "/v1/volumes", json(asked)).await
    }

    /// All volumes.
    pub async fn volumes(&self) -> Result<Vec<VolumeInfo>> {
        self.call(Method::GET, "/v1/volumes", Vec::new()).await
    }

    /// One volume.
    pub async fn volume(&self, name: &str) -> Result<VolumeInfo> {
        self.call(Method::GET, &volume_path(name, ""), Vec::new()).await
    }

    /// Removes a volume; returns it as it was.
    pub async fn remove_volume(&self, name: &str) -> Result<VolumeInfo> {
        self.call(Method::DELETE, &volume_path(name, ""), Vec::new()).await
    }

    /// Shows a volume to its guest.
    pub async fn attach_volume(&self, name: &str, asked: &AttachVolume) -> Result<VolumeInfo> {
        self.call(Method::POST, &volume_path(name, "/attach"), json(asked)).await
    }

    /// Takes a volume from its guest.
    pub async fn detach_volume(&self, name: &str) -> Result<VolumeInfo> {
        self.call(Method::POST, &volume_path(name, "/detach"), Vec::new()).await
    }

    /// Compares a volume with its image, and repairs it.
    pub async fn scrub_volume(&self, name: &str) -> Result<Scrubbed> {
        self.call(Method::POST, &volume_path(name, "/scrub"), Vec::new()).await
    }

    /// Gives a volume back: it is erased.
    pub async fn release_volume(&self, name: &str, asked: &ReleaseVolume) -> Result<Erasure> {
        self.call(Method::POST, &volume_path(name, "/release"), json(asked)).await
    }

    /// What is being erased, or could not be.
    pub async fn erasures(&self) -> Result<Vec<Erasure>> {
        self.call(Method::GET, "/v1/erasures", Vec::new()).await
    }

    /// Makes a volume larger.
    pub async fn resize_volume(&self, name: &str, asked: &ResizeVolume) -> Result<VolumeInfo> {
        self.call(Method::POST, &volume_path(name, "/resize"), json(asked)).await
    }

    /// What is ready on this node, and nobody's.
    pub async fn ready_volumes(&self) -> Result<Vec<ReadyVolume>> {
        self.call(Method::GET, "/v1/ready", Vec::new()).await
    }

    /// Takes a ready volume of a pool.
    pub async fn claim(&self, pool: &str, asked: &LocalClaim) -> Result<VolumeInfo> {
        let path = format!("/v1/ready/{}/claims", segment(pool));
        self.call(Method::POST, &path, json(asked)).await
    }

    /// Begins to make an image of a volume.
    pub async fn save_volume(&self, asked: &SaveVolume) -> Result<Capture> {
        self.call(Method::POST, "/v1/captures", json(asked)).await
    }

    /// The last captures.
    pub async fn captures(&self) -> Result<Vec<Capture>> {
        self.call(Method::GET, "/v1/captures", Vec::new()).await
    }

    /// One capture, when it has ended or after this time.
    pub async fn capture(&self, id: u64, wait: Duration) -> Result<Capture> {
        let path = format!("/v1/captures/{id}?wait_ms={}", wait.as_millis());
        self.call(Method::GET, &path, Vec::new()).await
    }

    /// Ends a capture.
    pub async fn cancel_capture(&self, id: u64) -> Result<Capture> {
        self.call(Method::DELETE, &format!("/v1/captures/{id}"), Vec::new()).await
    }

    /// All metrics, as Prometheus reads them.
    pub async fn metrics(&self) -> Result<String> {
        let text = self.answer(Method::GET, "/metrics", Vec::new()).await?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<T> {
        let answer = self.answer(method, path, body).await?;
        serde_json::from_slice(&answer).map_err(|e| self.bad(e))
    }

    fn bad(&self, e: serde_json::Error) -> Error {
        let place = self.socket.display();
        Error::caused(Kind::Invalid, format!("the node daemon at {place}: its answer: {e}"), e)
    }

    async fn answer(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Bytes> {
        let place = || format!("the node daemon at {}", self.socket.display());
        let lost = |e: hyper::Error| Error::caused(Kind::Retry, format!("{}: {e}", place()), e);
        let socket = UnixStream::connect(&self.socket).await.map_err(|e| {
            Error::caused(Kind::Retry, format!("{}: {e}; is `forebay node` running?", place()), e)
        })?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(socket)).await.map_err(lost)?;
        let connection = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "node")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .expect("a method, a path and a body make a request");
        let answer = sender.send_request(request).await.map_err(lost)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        let body = body
            .map_err(|e| Error::new(Kind::Retry, format!("{}: its answer: {e}", place())))?
            .to_bytes();
        connection.abort();
        match status.is_success() {
            true => Ok(body),
            false => {
                Err(serde_json::from_slice::<ErrorBody>(&body).map_err(|e| self.bad(e))?.into())
            }
        }
    }
}
