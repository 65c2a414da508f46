//! Captures in the daemon's API.

use api::capture::{Capture, SaveVolume, Watch};
use axum::extract::{Path, Query, State};
use axum::routing::{get, post};
use axum::{Json, Router};

use super::{Captures, Saves};
use crate::daemon::http::Answer;

/// The routes of [`api::capture`].
pub(crate) fn routes<G: Saves>(captures: Captures<G>) -> Router {
    Router::new()
        .route("/v1/captures", post(save::<G>).get(list::<G>))
        .route("/v1/captures/{id}", get(show::<G>).delete(cancel::<G>))
        .with_state(captures)
}

async fn save<G: Saves>(
    State(captures): State<Captures<G>>,
    Json(asked): Json<SaveVolume>,
) -> Answer<Capture> {
    Ok(Json(captures.save(asked).await?))
}

async fn list<G: Saves>(State(captures): State<Captures<G>>) -> Json<Vec<Capture>> {
    Json(captures.list())
}

async fn show<G: Saves>(
    State(captures): State<Captures<G>>,
    Path(id): Path<u64>,
    Query(watch): Query<Watch>,
) -> Answer<Capture> {
    Ok(Json(captures.show(id, watch).await?))
}

async fn cancel<G: Saves>(
    State(captures): State<Captures<G>>,
    Path(id): Path<u64>,
) -> Answer<Capture> {
    Ok(Json(captures.cancel(id).await?))
}
