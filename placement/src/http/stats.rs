//! Handlers for statistics, and for choosing nodes by them.

use api::place::{PlaceAnswer, PlaceAsk, Reservation, ReservationList};
use api::stats::{Every, NodeHistory, Since, StatsList};
use axum::extract::State;
use axum::{Extension, Json};
use image::{Error, Kind};

use super::App;
use super::access::Access;
use super::body::{Asked, Failure, LongBody, Name};
use super::peer::Peer;

type Answer<T> = Result<Json<T>, Failure>;

/// Longest list of requests, in bytes.
const MAX_ASK: usize = 1 << 20;

/// What all nodes have measured last
#[utoipa::path(
    get, path = "/v1/stats", params(Every),
    responses((status = 200, body = StatsList), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn stats(
    State(app): State<App>,
    Asked(Every { every }): Asked<Every>,
) -> Answer<StatsList> {
    Ok(Json(app.fleet.stats(every)))
}

/// What a node has measured
#[utoipa::path(
    get, path = "/v1/nodes/{name}/stats",
    params(("name" = String, Path, description = "The node's name"), Since),
    responses((status = 200, body = NodeHistory), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn node_stats(
    State(app): State<App>,
    Name(name): Name,
    Asked(since): Asked<Since>,
) -> Answer<NodeHistory> {
    Ok(Json(app.fleet.node_stats(&name, since)?))
}

/// Chooses nodes, and says why; reserves them if that is asked for (to reserve: admins and nodes)
#[utoipa::path(
    post, path = "/v1/place", request_body = PlaceAsk,
    responses((status = 200, body = PlaceAnswer), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn place(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    LongBody(ask): LongBody<PlaceAsk, MAX_ASK>,
) -> Answer<PlaceAnswer> {
    if ask.reserve && !Access::Worker.lets().contains(&peer.who()) {
        let needed = Access::Worker.words();
        let what = format!("only {needed} may reserve: ask without `reserve`");
        return Err(Error::new(Kind::Denied, what).into());
    }
    Ok(Json(app.fleet.place(&peer.name()?, &ask).await?))
}

/// What is reserved
#[utoipa::path(
    get, path = "/v1/reservations",
    responses((status = 200, body = ReservationList), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn reservations(State(app): State<App>) -> Answer<ReservationList> {
    Ok(Json(app.fleet.reservations().await?))
}

/// Gives a reservation back; the answer is the reservation as it was (its owner; admins)
#[utoipa::path(
    delete, path = "/v1/reservations/{name}",
    params(("name" = String, Path, description = "The id of the request that was placed")),
    responses((status = 200, body = Reservation), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn release(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    Name(id): Name,
) -> Answer<Reservation> {
    let by = if peer.is_admin() { None } else { Some(peer.name()?) };
    Ok(Json(app.fleet.release_reservation(&id, by.as_deref()).await?))
}
