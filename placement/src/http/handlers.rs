//! One handler per route: out of HTTP, into the catalogue or the tokens, and back.

use api::Problem;
use api::catalog::{
    DeleteRef, GcReport, GcRequest, ImageInfo, ImageList, ListImages, MoveRef, NewRecord, RefInfo,
    StoreReport, TicketAnswer, TicketRequest, VerifyReport, VerifyRequest, VerifyStoreRequest,
};
use api::grid::{
    CacheInfo, CacheList, Health, JoinAnswer, JoinRequest, JoinToken, KnownRevocations, Lease,
    MemberInfo, MemberList, NewToken, RenewRequest, Revocations, Role, Serving,
};
use api::page::{Page, Paged};
use api::trace::{TraceBody, TraceInfo};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use axum::{Extension, Json};
use image::{Error, Kind};

use super::App;
use super::body::{Asked, Body, Failure, LongBody, Name, Noted, problem};
use super::peer::Peer;

type Answer<T> = Result<Json<T>, Failure>;

/// That placement serves, and for which grid
#[utoipa::path(get, path = "/v1/health", responses((status = 200, body = Health)))]
pub(super) async fn health(State(app): State<App>) -> Json<Health> {
    let authority = &app.tokens.authority;
    let key = authority.verifying_key().to_bytes();
    Json(Health {
        grid: authority.grid().into(),
        version: env!("CARGO_PKG_VERSION").into(),
        verifying_key: key.iter().map(|b| format!("{b:02x}")).collect(),
        store: Some(app.store.as_ref().into()),
    })
}

/// A new member's papers, for a token
#[utoipa::path(
    post, path = "/v1/join", request_body = JoinRequest,
    responses((status = 200, body = JoinAnswer), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn join(
    State(app): State<App>,
    Body(request): Body<JoinRequest>,
) -> Result<(Extension<Noted>, Json<JoinAnswer>), Failure> {
    let answer = app.tokens.join(&request).await?;
    Ok((Extension(Noted(request.name)), Json(answer)))
}

/// The servers of chunks
#[utoipa::path(
    get, path = "/v1/caches", params(Page),
    responses((status = 200, body = Paged<CacheList>), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn caches(
    State(app): State<App>,
    Asked(page): Asked<Page>,
) -> Answer<Paged<CacheList>> {
    Ok(Json(Paged::of(CacheList { caches: app.catalog.servers().await? }, &page)?))
}

/// That a cache serves (the cache itself, again and again)
#[utoipa::path(
    put, path = "/v1/caches/{name}", request_body = Serving,
    params(("name" = String, Path, description = "The cache's name in the grid")),
    responses((status = 200, body = Lease), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn serving(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    Name(name): Name,
    Body(at): Body<Serving>,
) -> Answer<Lease> {
    let member = peer.member()?;
    if member.role != Role::Server || member.name != name {
        return Err(not_itself(&name).into());
    }
    let lease = app.catalog.serving(member, at).await?;
    Ok(Json(Lease { keep: app.fleet.pins_of(&name).await?, ..lease }))
}

/// That a cache serves no longer (the cache itself; admins)
#[utoipa::path(
    delete, path = "/v1/caches/{name}",
    params(("name" = String, Path, description = "The cache's name in the grid")),
    responses((status = 200, body = CacheInfo), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn leave(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    Name(name): Name,
) -> Answer<CacheInfo> {
    if !peer.is_admin() && peer.name()? != name {
        return Err(not_itself(&name).into());
    }
    Ok(Json(app.catalog.leave(&name).await?))
}

fn not_itself(name: &str) -> Error {
    Error::new(Kind::Denied, format!("only the server {name} itself may say this"))
}

/// A one-time token to join (admins)
#[utoipa::path(
    post, path = "/v1/tokens", request_body = NewToken,
    responses((status = 200, body = JoinToken), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn new_token(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    Body(asked): Body<NewToken>,
) -> Result<(Extension<Noted>, Json<JoinToken>), Failure> {
    let made = app.tokens.make(&asked, peer.member()?).await?;
    let name = asked.name.as_deref().unwrap_or("any name");
    let noted = format!("{} for {name}", asked.role.name());
    Ok((Extension(Noted(noted)), Json(made)))
}

/// Who may use the grid (admins)
#[utoipa::path(
    get, path = "/v1/members", params(Page),
    responses((status = 200, body = Paged<MemberList>), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn members(
    State(app): State<App>,
    Asked(page): Asked<Page>,
) -> Answer<Paged<MemberList>> {
    Ok(Json(Paged::of(app.members.list().await?, &page)?))
}

/// The certificates that are refused; nothing of them if they are those that are known already
#[utoipa::path(
    get, path = "/v1/revoked", params(KnownRevocations),
    responses((status = 200, body = Revocations), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn revoked(
    State(app): State<App>,
    Asked(asked): Asked<KnownRevocations>,
) -> Answer<Revocations> {
    Ok(Json(app.members.revocations(asked.known.as_deref()).await?))
}

/// A new certificate for a member, for a key of its own (the member itself)
#[utoipa::path(
    post, path = "/v1/renew", request_body = RenewRequest,
    responses((status = 200, body = JoinAnswer), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn renew(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    Body(request): Body<RenewRequest>,
) -> Answer<JoinAnswer> {
    Ok(Json(app.tokens.renew(peer.member()?, &request).await?))
}

/// Frees a name and refuses whoever held it; the answer is the member as it was (admins)
#[utoipa::path(
    delete, path = "/v1/members/{name}",
    params(("name" = String, Path, description = "The member's name in the grid")),
    responses((status = 200, body = MemberInfo), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn remove_member(State(app): State<App>, Name(name): Name) -> Answer<MemberInfo> {
    Ok(Json(app.members.remove(&name).await?))
}

/// One line per ref
#[utoipa::path(
    get, path = "/v1/images", params(ListImages),
    responses((status = 200, body = Paged<ImageList>), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn images(
    State(app): State<App>,
    Asked(asked): Asked<ListImages>,
) -> Answer<Paged<ImageList>> {
    let page = Page { limit: asked.limit, after: asked.after };
    page.asked()?;
    let ancestors = asked.ancestors && page.after.is_none();
    Ok(Json(Paged::of(app.catalog.list(ancestors).await?, &page)?))
}

/// What is known of an image
#[utoipa::path(
    get, path = "/v1/images/{name}",
    params(("name" = String, Path, description = "A ref or a digest")),
    responses((status = 200, body = ImageInfo), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn image(State(app): State<App>, Name(name): Name) -> Answer<ImageInfo> {
    Ok(Json(app.catalog.info(&name).await?))
}

/// Says something of an image; what is left out stays as it was said before (admins and nodes)
#[utoipa::path(
    post, path = "/v1/images/{name}/record", request_body = NewRecord,
    params(("name" = String, Path, description = "A digest")),
    responses((status = 200, body = ImageInfo), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn record(
    State(app): State<App>,
    Name(name): Name,
    Body(said): Body<NewRecord>,
) -> Answer<ImageInfo> {
    Ok(Json(app.catalog.record(&name, said).await?))
}

/// What an image's guests touch when they start; gone while nobody has recorded it
#[utoipa::path(
    get, path = "/v1/images/{name}/trace",
    params(("name" = String, Path, description = "A ref or a digest")),
    responses((status = 200, body = TraceBody), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn trace(State(app): State<App>, Name(name): Name) -> Answer<TraceBody> {
    Ok(Json(TraceBody::from(&app.catalog.trace(&name).await?)))
}

/// One more recording of how an image's guests start (admins and nodes)
#[utoipa::path(
    post, path = "/v1/images/{name}/trace", request_body = TraceBody,
    params(("name" = String, Path, description = "A digest")),
    responses((status = 200, body = TraceInfo), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn add_trace(
    State(app): State<App>,
    Name(name): Name,
    LongBody(body): LongBody<TraceBody, { TraceBody::MAX }>,
) -> Answer<TraceInfo> {
    Ok(Json(app.catalog.add_trace(&name, body.open()?).await?))
}

/// Verifies a stored image
#[utoipa::path(
    post, path = "/v1/images/{name}/verify", request_body = VerifyRequest,
    params(("name" = String, Path, description = "A ref or a digest")),
    responses((status = 200, body = VerifyReport), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn verify(
    State(app): State<App>,
    Name(name): Name,
    Body(asked): Body<VerifyRequest>,
) -> Answer<VerifyReport> {
    Ok(Json(app.catalog.verify(&name, asked.deep).await?))
}

/// Moves or makes a ref (admins and nodes)
#[utoipa::path(
    put, path = "/v1/refs/{ref}", request_body = MoveRef,
    params(("ref" = String, Path, description = "A ref")),
    responses((status = 200, body = RefInfo), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn move_ref(
    State(app): State<App>,
    Name(name): Name,
    Body(to): Body<MoveRef>,
) -> Result<(Extension<Noted>, Json<RefInfo>), Failure> {
    let noted = Noted(to.image.to_string());
    let moving = app.catalog.move_ref(&name, &to);
    Ok((Extension(noted), Json(app.fleet.lead()?.during(moving).await?)))
}

/// Deletes a ref; the answer is the ref as it was (admins)
#[utoipa::path(
    delete, path = "/v1/refs/{ref}",
    params(("ref" = String, Path, description = "A ref"), DeleteRef),
    responses((status = 200, body = RefInfo), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn delete_ref(
    State(app): State<App>,
    Name(name): Name,
    Asked(asked): Asked<DeleteRef>,
) -> Answer<RefInfo> {
    Ok(Json(app.catalog.delete_ref(&name, asked).await?))
}

/// The right to an image's chunks, or to push (admins and nodes)
#[utoipa::path(
    post, path = "/v1/tickets", request_body = TicketRequest,
    responses((status = 200, body = TicketAnswer), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn ticket(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    Body(asked): Body<TicketRequest>,
) -> Answer<TicketAnswer> {
    let member = peer.member()?;
    if matches!(asked, TicketRequest::Push { .. }) && member.role == Role::Server {
        let role = member.role.name();
        let what = format!("only an admin or a node may push; the certificate is that of a {role}");
        return Err(Error::new(Kind::Denied, what).into());
    }
    Ok(Json(app.catalog.ticket(member, asked).await?))
}

/// Verifies the store, or a random sample of it (admins)
#[utoipa::path(
    post, path = "/v1/store/verify", request_body = VerifyStoreRequest,
    responses((status = 200, body = StoreReport), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn verify_store(
    State(app): State<App>,
    Body(asked): Body<VerifyStoreRequest>,
) -> Answer<StoreReport> {
    Ok(Json(app.catalog.verify_store(asked).await?))
}

/// Collects garbage (admins)
#[utoipa::path(
    post, path = "/v1/gc", request_body = GcRequest,
    responses((status = 200, body = GcReport), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn gc(State(app): State<App>, Body(asked): Body<GcRequest>) -> Answer<GcReport> {
    let (lead, held) = (app.fleet.lead()?, app.fleet.held_images().await?);
    Ok(Json(app.catalog.gc(lead, asked, held).await?))
}

pub(super) async fn no_such_route() -> Failure {
    Error::new(Kind::Gone, "no such route; see /v1/openapi.json").into()
}

/// Unlike what a later version might do, this is no lack of the server's: 405, and not the status of its kind.
pub(super) async fn no_such_method() -> Response {
    let what = "this route has no such method; see /v1/openapi.json";
    let status = StatusCode::METHOD_NOT_ALLOWED;
    let told = Problem::new(&Error::new(Kind::Unsupported, what));
    problem(&Problem { status: status.as_u16(), ..told }, status)
}
