//! The daemon's API: HTTP on a Unix socket that only its owner can open.

use std::future::Future;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use api::node::{PullRequest, Transfer};
use api::volume::VolumeInfo;
use api::{PROBLEM, Problem};
use axum::extract::{Path as UrlPath, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use image::{Error, Kind, Result};
use tokio::net::{UnixListener, UnixStream};

use super::run::{Daemon, Grid};
use crate::captures::{Captures, Saves};
use crate::pools::Ready;
use crate::volumes::Volumes;

/// An error as an HTTP answer.
pub(crate) struct Failure(Error);

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        Self(e)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = api::http_status(self.0.kind());
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let text = serde_json::to_vec(&Problem::new(&self.0)).expect("our own types serialise");
        (status, [(CONTENT_TYPE, PROBLEM)], text).into_response()
    }
}

pub(crate) type Answer<T> = std::result::Result<Json<T>, Failure>;

/// Brings the metrics of these volumes up to date, and writes all that there are as Prometheus reads them.
pub type Metrics = Arc<dyn Fn(&[VolumeInfo]) -> String + Send + Sync>;

/// Serves the API until `shutdown` ends.
pub async fn serve<G: Grid, V: Saves>(
    (daemon, volumes, captures, ready): (Daemon<G>, Volumes<V>, Captures<V>, Ready<V>),
    metrics: Metrics,
    listener: UnixListener,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    let app = Router::new()
        .route("/v1/transfers", post(ask::<G>).get(list::<G>))
        .route("/v1/transfers/{id}", get(show::<G>).delete(cancel::<G>))
        .with_state(daemon)
        .merge(crate::volumes::http::routes(volumes, metrics))
        .merge(crate::captures::http::routes(captures))
        .merge(crate::pools::http::routes(ready));
    let served = axum::serve(listener, app).with_graceful_shutdown(shutdown).await;
    served.map_err(|e| Error::io("the node daemon's socket", e))
}

/// Listens on a socket at `path`. One that a dead daemon left there is replaced; one that a living
/// daemon holds is a conflict.
pub async fn bind(path: &Path) -> Result<UnixListener> {
    let place = |e| Error::io(path.display(), e);
    if UnixStream::connect(path).await.is_ok() {
        let message = format!("{}: a node daemon is running already", path.display());
        return Err(Error::new(Kind::Conflict, message));
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            let message = format!("{}: not a socket: it is left alone", path.display());
            return Err(Error::new(Kind::Conflict, message));
        }
        Ok(_) => std::fs::remove_file(path).map_err(place)?,
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(place(e)),
    }
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(place)?;
        // The directory is closed before the socket is there, so nobody else can get at it between
        // its creation and the change of its own mode.
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700)).map_err(place)?;
    }
    let listener = UnixListener::bind(path).map_err(place)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(place)?;
    Ok(listener)
}

async fn ask<G: Grid>(
    State(daemon): State<Daemon<G>>,
    Json(request): Json<PullRequest>,
) -> Answer<Transfer> {
    Ok(Json(daemon.ask(request)?))
}

async fn list<G: Grid>(State(daemon): State<Daemon<G>>) -> Json<Vec<Transfer>> {
    Json(daemon.transfers())
}

async fn show<G: Grid>(
    State(daemon): State<Daemon<G>>,
    UrlPath(id): UrlPath<u64>,
) -> Answer<Transfer> {
    Ok(Json(daemon.transfer(id)?))
}

async fn cancel<G: Grid>(
    State(daemon): State<Daemon<G>>,
    UrlPath(id): UrlPath<u64>,
) -> Answer<Transfer> {
    daemon.cancel(id)?;
    Ok(Json(daemon.ended(id).await?))
}
