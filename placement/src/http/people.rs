//! Handlers for people: their tokens, what they have done, and what they watch.

use api::audit::{AuditAsked, AuditPage};
use api::page::{Page, Paged};
use api::people::{NewPerson, PersonInfo, PersonList, PersonToken, Whoami};
use api::watch::{WatchAsked, WatchEvent};
use axum::body::Body as Bytes;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures::StreamExt;

use super::App;
use super::body::{Asked, Body, Failure, Name, Noted};
use super::peer::Peer;

type Answer<T> = Result<Json<T>, Failure>;

/// Who asks
#[utoipa::path(
    get, path = "/v1/whoami",
    responses((status = 200, body = Whoami), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn whoami(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
) -> Answer<Whoami> {
    let grid = app.people.authority.grid().into();
    Ok(Json(Whoami { name: peer.name()?, role: peer.role()?.into(), grid }))
}

/// A token for a person (admins, by certificate)
#[utoipa::path(
    post, path = "/v1/people", request_body = NewPerson,
    responses((status = 200, body = PersonToken), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn new_person(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    Body(asked): Body<NewPerson>,
) -> Result<(Extension<Noted>, Json<PersonToken>), Failure> {
    let made = app.people.make(&asked, &peer.name()?).await?;
    let noted = format!("{} for {}", asked.role.name(), asked.name);
    Ok((Extension(Noted(noted)), Json(made)))
}

/// The people who have tokens
#[utoipa::path(
    get, path = "/v1/people", params(Page),
    responses((status = 200, body = Paged<PersonList>), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn people(
    State(app): State<App>,
    Asked(page): Asked<Page>,
) -> Answer<Paged<PersonList>> {
    Ok(Json(Paged::of(app.people.list().await?, &page)?))
}

/// Refuses a person's token from now on; the answer is the person as it was (admins)
#[utoipa::path(
    delete, path = "/v1/people/{name}",
    params(("name" = String, Path, description = "The person's name")),
    responses((status = 200, body = PersonInfo), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn revoke(State(app): State<App>, Name(name): Name) -> Answer<PersonInfo> {
    Ok(Json(app.people.revoke(&name).await?))
}

/// Who changed what, and who was refused
#[utoipa::path(
    get, path = "/v1/audit", params(AuditAsked),
    responses((status = 200, body = AuditPage), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn audit(
    State(app): State<App>,
    Asked(asked): Asked<AuditAsked>,
) -> Answer<AuditPage> {
    Ok(Json(app.audit.page(asked).await?))
}

/// What becomes of operations, pools, nodes and leases, as it happens: a line of JSON each
#[utoipa::path(
    get, path = "/v1/watch", params(WatchAsked),
    responses(
        (status = 200, body = WatchEvent, content_type = "application/x-ndjson"),
        (status = "default", body = api::ErrorBody)
    )
)]
pub(super) async fn watch(
    State(app): State<App>,
    Asked(asked): Asked<WatchAsked>,
) -> Result<Response, Failure> {
    let lines = app.watches.begin(&asked).await?.stream();
    let body = Bytes::from_stream(lines.map(Ok::<_, std::convert::Infallible>));
    let head = [(CONTENT_TYPE, "application/x-ndjson"), (CACHE_CONTROL, "no-store")];
    Ok((head, body).into_response())
}
