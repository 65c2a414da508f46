//! Ready volumes in the daemon's API.

use api::goal::ReadyVolume;
use api::pool::LocalClaim;
use api::volume::VolumeInfo;
use axum::extract::{Path, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use image::Error;
use image::Kind;

use super::Ready;
use crate::daemon::Grid;
use crate::daemon::http::Answer;

/// The routes that [`api::pool`] lists of a node.
pub(crate) fn routes<G: Grid>(ready: Ready<G>) -> Router {
    Router::new()
        .route("/v1/ready", get(list::<G>))
        .route("/v1/ready/{pool}/claims", post(claim::<G>))
        .with_state(ready)
}

async fn list<G: Grid>(State(ready): State<Ready<G>>) -> Json<Vec<ReadyVolume>> {
    Json(ready.list())
}

async fn claim<G: Grid>(
    State(ready): State<Ready<G>>,
    Path(pool): Path<String>,
    Json(asked): Json<LocalClaim>,
) -> Answer<VolumeInfo> {
    // To its end, also if whoever asked goes away: the same request finds what came of it.
    let done = tokio::spawn(async move { ready.take(&pool, &asked).await }).await;
    let died = |e| Error::caused(Kind::Io, "handing out a volume ended badly", e);
    Ok(Json(done.map_err(died)??))
}
