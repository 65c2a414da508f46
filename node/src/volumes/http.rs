//! Volumes in the daemon's API.

use std::future::Future;
use std::time::SystemTime;

use api::volume::{
    AttachVolume, CreateVolume, Erasure, ReleaseVolume, ResizeVolume, Scrubbed, VolumeInfo,
};
use axum::extract::{Path, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use image::{Error, Kind, Result};

use super::service::{Birth, Volumes};
use crate::daemon::Grid;
use crate::daemon::http::{Answer, Failure, Metrics};

/// The routes of [`api::volume`].
pub(crate) fn routes<G: Grid>(volumes: Volumes<G>, metrics: Metrics) -> Router {
    let all = volumes.clone();
    let metrics = async move || -> Result<String, Failure> { Ok(metrics(&all.list().await?)) };
    Router::new()
        .route("/v1/volumes", post(create::<G>).get(list::<G>))
        .route("/v1/volumes/{name}", get(show::<G>).delete(remove::<G>))
        .route("/v1/volumes/{name}/attach", post(attach::<G>))
        .route("/v1/volumes/{name}/detach", post(detach::<G>))
        .route("/v1/volumes/{name}/release", post(release::<G>))
        .route("/v1/erasures", get(erasures::<G>))
        .route("/v1/volumes/{name}/resize", post(resize::<G>))
        .route("/v1/volumes/{name}/scrub", post(scrub::<G>))
        .route("/metrics", get(metrics))
        .with_state(volumes)
}

/// What nobody can guess.
fn drawn<const N: usize>() -> Result<[u8; N]> {
    let mut drawn = [0; N];
    let failed = |e| Error::io("drawing at random", std::io::Error::from(e));
    #[expect(clippy::disallowed_methods, reason = "ids of volumes are told apart by chance alone")]
    rustix::rand::getrandom(&mut drawn, rustix::rand::GetRandomFlags::empty()).map_err(failed)?;
    Ok(drawn)
}

fn birth() -> Result<Birth> {
    #[expect(clippy::disallowed_methods, reason = "when a volume was made is for people")]
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Ok(Birth { now: now.as_secs(), id: drawn()? })
}

/// Does something to its end, also if whoever asked for it goes away in the middle: what is half attached nobody could
/// take back.
async fn whole<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Answer<T> {
    let done = tokio::spawn(work).await;
    let died = |e| Error::caused(Kind::Io, "working on a volume ended badly", e);
    Ok(Json(done.map_err(died)??))
}

async fn create<G: Grid>(
    State(volumes): State<Volumes<G>>,
    Json(asked): Json<CreateVolume>,
) -> Answer<VolumeInfo> {
    let birth = birth()?;
    whole(async move { volumes.create(asked, birth).await }).await
}

async fn list<G: Grid>(State(volumes): State<Volumes<G>>) -> Answer<Vec<VolumeInfo>> {
    Ok(Json(volumes.list().await?))
}

async fn show<G: Grid>(
    State(volumes): State<Volumes<G>>,
    Path(name): Path<String>,
) -> Answer<VolumeInfo> {
    Ok(Json(volumes.show(&name).await?))
}

async fn remove<G: Grid>(
    State(volumes): State<Volumes<G>>,
    Path(name): Path<String>,
) -> Answer<VolumeInfo> {
    whole(async move { volumes.remove(&name).await }).await
}

async fn attach<G: Grid>(
    State(volumes): State<Volumes<G>>,
    Path(name): Path<String>,
    Json(asked): Json<AttachVolume>,
) -> Answer<VolumeInfo> {
    whole(async move { volumes.attach(&name, asked).await }).await
}

async fn detach<G: Grid>(
    State(volumes): State<Volumes<G>>,
    Path(name): Path<String>,
) -> Answer<VolumeInfo> {
    whole(async move { volumes.detach(&name).await }).await
}

async fn release<G: Grid>(
    State(volumes): State<Volumes<G>>,
    Path(name): Path<String>,
    Json(asked): Json<ReleaseVolume>,
) -> Answer<Erasure> {
    let seed = drawn()?;
    whole(async move { volumes.give_back(&name, &asked, seed).await }).await
}

async fn erasures<G: Grid>(State(volumes): State<Volumes<G>>) -> Json<Vec<Erasure>> {
    Json(volumes.erasures())
}

async fn resize<G: Grid>(
    State(volumes): State<Volumes<G>>,
    Path(name): Path<String>,
    Json(asked): Json<ResizeVolume>,
) -> Answer<VolumeInfo> {
    whole(async move { volumes.resize(&name, asked).await }).await
}

async fn scrub<G: Grid>(
    State(volumes): State<Volumes<G>>,
    Path(name): Path<String>,
) -> Answer<Scrubbed> {
    Ok(Json(volumes.scrub(&name).await?))
}
