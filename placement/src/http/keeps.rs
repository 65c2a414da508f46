//! Handlers for images that must be at hand, and for volumes that were given back.

use api::keep::{KeepInfo, KeepList, SetKeep};
use api::page::{Page, Paged};
use api::released::ReleasedList;
use axum::Json;
use axum::extract::State;

use super::App;
use super::body::{Asked, Body, Failure, Name};

type Answer<T> = Result<Json<T>, Failure>;

/// The images that must be at hand, and where they are
#[utoipa::path(
    get, path = "/v1/keeps",
    params(Page),
    responses((status = 200, body = Paged<KeepList>), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn keeps(
    State(app): State<App>,
    Asked(page): Asked<Page>,
) -> Answer<Paged<KeepList>> {
    Ok(Json(Paged::of(app.fleet.keeps().await?, &page)?))
}

/// One of them
#[utoipa::path(
    get, path = "/v1/keeps/{ref}",
    params(("ref" = String, Path, description = "The ref, or the image's digest")),
    responses((status = 200, body = KeepInfo), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn keep(State(app): State<App>, Name(name): Name) -> Answer<KeepInfo> {
    Ok(Json(app.fleet.keep(&name).await?))
}

/// Where an image must be: on so many nodes, in so many caches (admins and operators)
#[utoipa::path(
    put, path = "/v1/keeps/{ref}", request_body = SetKeep,
    params(("ref" = String, Path, description = "The ref, whose moves are followed, or the image's digest")),
    responses((status = 200, body = KeepInfo), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn set_keep(
    State(app): State<App>,
    Name(name): Name,
    Body(set): Body<SetKeep>,
) -> Answer<KeepInfo> {
    Ok(Json(app.fleet.set_keep(&name, set).await?))
}

/// That an image need not be anywhere any more; the answer is how it was (admins and operators)
#[utoipa::path(
    delete, path = "/v1/keeps/{ref}",
    params(("ref" = String, Path, description = "The ref, or the image's digest")),
    responses((status = 200, body = KeepInfo), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn unkeep(State(app): State<App>, Name(name): Name) -> Answer<KeepInfo> {
    Ok(Json(app.fleet.unkeep(&name).await?))
}

/// Volumes that were given back lately, and erased
#[utoipa::path(
    get, path = "/v1/released",
    params(Page),
    responses((status = 200, body = Paged<ReleasedList>), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn released(
    State(app): State<App>,
    Asked(page): Asked<Page>,
) -> Answer<Paged<ReleasedList>> {
    Ok(Json(Paged::of(app.fleet.released().await?, &page)?))
}
