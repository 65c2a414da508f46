//! The routes of a cache's own API: out of HTTP, to [`Care`], and back.

use std::sync::Arc;

use api::care::{CacheStatus, DrainOrder, Evicted, Held, Pinned, ScrubOrder, ScrubStatus, Warming};
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::middleware::from_fn_with_state;
use axum::response::IntoResponse;
use axum::routing::{get, put};
use axum::{Json, Router};
use image::Digest;

use super::access::Access;
use super::body::{Body, Failure, Name};
use super::guard::{self, Door, Knows};
use super::{Limits, Route, handlers};
use crate::care::{Care, Revoked};
use crate::names::parse_digest;

/// Method, path, who.
pub(super) const ROUTES: &[Route] = &[
    ("GET", "/v1/cache", Access::Member),
    ("GET", "/v1/cache/images/{image}", Access::Member),
    ("DELETE", "/v1/cache/images/{image}", Access::Operator),
    ("GET", "/v1/cache/images/{image}/warm", Access::Member),
    ("PUT", "/v1/cache/images/{image}/warm", Access::Operator),
    ("DELETE", "/v1/cache/images/{image}/warm", Access::Operator),
    ("PUT", "/v1/cache/images/{image}/pin", Access::Operator),
    ("DELETE", "/v1/cache/images/{image}/pin", Access::Operator),
    ("PUT", "/v1/cache/scrub", Access::Operator),
    ("PUT", "/v1/cache/drain", Access::Operator),
    ("GET", "/metrics", Access::Member),
];

#[derive(Clone)]
pub(crate) struct App {
    care: Arc<dyn Care>,
    limits: Limits,
}

impl AsRef<Limits> for App {
    fn as_ref(&self) -> &Limits {
        &self.limits
    }
}

/// The routes of a cache beside others.
pub(crate) fn router(care: Arc<dyn Care>, limits: Limits, knows: Knows) -> Router {
    let image = get(held).delete(evict);
    let warming = get(warming).put(warm).delete(stop_warming);
    Router::new()
        .route("/v1/cache", get(status))
        .route("/v1/cache/images/{image}", image)
        .route("/v1/cache/images/{image}/warm", warming)
        .route("/v1/cache/images/{image}/pin", put(pin).delete(unpin))
        .route("/v1/cache/scrub", put(scrub))
        .route("/v1/cache/drain", put(drain))
        .route("/metrics", get(metrics))
        .route_layer(from_fn_with_state(Door { routes: ROUTES, knows }, guard::guard))
        .with_state(App { care, limits })
}

/// The routes of a cache that is a process of its own.
pub(crate) fn alone(care: Arc<dyn Care>, limits: Limits, revoked: Revoked) -> Router {
    router(care, limits, Knows::Revoked(revoked))
        .method_not_allowed_fallback(handlers::no_such_method)
        .fallback(handlers::no_such_route)
}

type Answer<T> = Result<Json<T>, Failure>;

fn digest(name: &str) -> Result<Digest, Failure> {
    Ok(parse_digest(name)?)
}

/// How the cache is
#[utoipa::path(
    get, path = "/v1/cache",
    responses((status = 200, body = CacheStatus), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn status(State(app): State<App>) -> Answer<CacheStatus> {
    Ok(Json(app.care.status().await?))
}

/// How much of an image the cache holds
#[utoipa::path(
    get, path = "/v1/cache/images/{image}",
    params(("image" = String, Path, description = "A digest")),
    responses((status = 200, body = Held), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn held(State(app): State<App>, Name(name): Name) -> Answer<Held> {
    Ok(Json(app.care.held(digest(&name)?).await?))
}

/// Drops an image from the cache (admins)
#[utoipa::path(
    delete, path = "/v1/cache/images/{image}",
    params(("image" = String, Path, description = "A digest")),
    responses((status = 200, body = Evicted), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn evict(State(app): State<App>, Name(name): Name) -> Answer<Evicted> {
    Ok(Json(app.care.evict(digest(&name)?).await?))
}

/// How the fetching of an image goes
#[utoipa::path(
    get, path = "/v1/cache/images/{image}/warm",
    params(("image" = String, Path, description = "A digest")),
    responses((status = 200, body = Warming), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn warming(State(app): State<App>, Name(name): Name) -> Answer<Warming> {
    Ok(Json(app.care.warming(digest(&name)?).await?))
}

/// Fetches what the cache lacks of an image (admins)
#[utoipa::path(
    put, path = "/v1/cache/images/{image}/warm",
    params(("image" = String, Path, description = "A digest")),
    responses((status = 200, body = Warming), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn warm(State(app): State<App>, Name(name): Name) -> Answer<Warming> {
    Ok(Json(app.care.warm(digest(&name)?).await?))
}

/// Stops fetching an image (admins)
#[utoipa::path(
    delete, path = "/v1/cache/images/{image}/warm",
    params(("image" = String, Path, description = "A digest")),
    responses((status = 200, body = Warming), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn stop_warming(State(app): State<App>, Name(name): Name) -> Answer<Warming> {
    Ok(Json(app.care.stop_warming(digest(&name)?).await?))
}

/// Keeps an image from being evicted (admins)
#[utoipa::path(
    put, path = "/v1/cache/images/{image}/pin",
    params(("image" = String, Path, description = "A digest")),
    responses((status = 200, body = Warming), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn pin(State(app): State<App>, Name(name): Name) -> Answer<Warming> {
    Ok(Json(app.care.pin(digest(&name)?).await?))
}

/// Lets an image be evicted again (admins)
#[utoipa::path(
    delete, path = "/v1/cache/images/{image}/pin",
    params(("image" = String, Path, description = "A digest")),
    responses((status = 200, body = Pinned), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn unpin(State(app): State<App>, Name(name): Name) -> Answer<Pinned> {
    Ok(Json(app.care.unpin(digest(&name)?).await?))
}

/// Starts, stops, speeds up or slows down the check of the cache's disk (admins)
#[utoipa::path(
    put, path = "/v1/cache/scrub", request_body = ScrubOrder,
    responses((status = 200, body = ScrubStatus), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn scrub(
    State(app): State<App>,
    Body(order): Body<ScrubOrder>,
) -> Answer<ScrubStatus> {
    Ok(Json(app.care.scrub(order).await?))
}

/// Sends nodes elsewhere before the cache ends, or no longer (admins)
#[utoipa::path(
    put, path = "/v1/cache/drain", request_body = DrainOrder,
    responses((status = 200, body = CacheStatus), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn drain(
    State(app): State<App>,
    Body(order): Body<DrainOrder>,
) -> Answer<CacheStatus> {
    Ok(Json(app.care.drain(order).await?))
}

/// All metrics of the process, as Prometheus reads them
#[utoipa::path(get, path = "/metrics", responses((status = 200, description = "Prometheus text")))]
pub(super) async fn metrics(State(app): State<App>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], app.care.metrics())
}
