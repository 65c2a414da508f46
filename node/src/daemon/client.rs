//! Asks the node daemon of this machine.

use std::path::PathBuf;

use api::ErrorBody;
use api::node::{PullRequest, Transfer};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use image::{Error, Kind, Result};
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

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

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<T> {
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
        let bad = |e| Error::caused(Kind::Invalid, format!("{}: its answer: {e}", place()), e);
        if status.is_success() {
            serde_json::from_slice(&body).map_err(bad)
        } else {
            Err(serde_json::from_slice::<ErrorBody>(&body).map_err(bad)?.into())
        }
    }
}
