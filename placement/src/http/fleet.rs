//! Handlers for nodes, pools and operations.

use api::goal::{GoalState, NodeList, StatusReport, Told};
use api::grid::{PlacementStatus, Role};
use api::lease::{BreakLease, LeaseGrant, LeaseInfo, LeaseList, TakeLease, TransferLease};
use api::life::{Forget, Forgotten, NodeLife, SetStanding};
use api::operation::{Operation, OperationList, Wait};
use api::page::{Page, Paged};
use api::pool::{NewClaim, PoolInfo, PoolList, SetPool};
use api::released::Released;
use axum::extract::State;
use axum::{Extension, Json};
use image::{Error, Kind};

use super::App;
use super::access::Who;
use super::body::{Asked, Body, Failure, LongBody, Name};
use super::peer::Peer;
use crate::audit::Deed;

type Answer<T> = Result<Json<T>, Failure>;

/// Longest report of a node, in bytes: some ten thousand volumes.
const MAX_REPORT: usize = 4 << 20;

/// Which placement this is, and which leads
#[utoipa::path(
    get, path = "/v1/placement",
    responses((status = 200, body = PlacementStatus), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn placements(State(app): State<App>) -> Answer<PlacementStatus> {
    Ok(Json(app.fleet.placements().await?))
}

/// The nodes that have reported
#[utoipa::path(
    get, path = "/v1/nodes",
    params(Page),
    responses((status = 200, body = Paged<NodeList>), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn nodes(
    State(app): State<App>,
    Asked(page): Asked<Page>,
) -> Answer<Paged<NodeList>> {
    Ok(Json(Paged::of(app.fleet.nodes().await?, &page)?))
}

/// What a node is to do
#[utoipa::path(
    get, path = "/v1/nodes/{name}/goal",
    params(("name" = String, Path, description = "The node's name")),
    responses((status = 200, body = GoalState), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn goal(State(app): State<App>, Name(name): Name) -> Answer<GoalState> {
    Ok(Json(app.fleet.goal(&name).await?))
}

/// What a node has; the answer is what it is to do (the node itself; admins)
#[utoipa::path(
    post, path = "/v1/nodes/{name}/report", request_body = StatusReport,
    params(("name" = String, Path, description = "The node's name"), Wait),
    responses((status = 200, body = Told), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn report(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    Name(name): Name,
    Asked(wait): Asked<Wait>,
    LongBody(report): LongBody<StatusReport, MAX_REPORT>,
) -> Answer<Told> {
    is_itself(&peer, &name)?;
    for erased in app.fleet.note_released(&name, &report).await? {
        app.audit.done_soon(released(&name, &erased)).await;
    }
    Ok(Json(app.fleet.report(&name, report, wait.into()).await?))
}

/// A volume that was given back, for the audit log.
fn released(node: &str, erased: &Released) -> Deed {
    let Released { volume, called, pool, freed, method, passes, .. } = erased;
    let of = pool.as_ref().map_or_else(String::new, |pool| format!(" of pool {pool}"));
    Deed {
        who: format!("node {node}"),
        what: "erased".into(),
        object: volume.clone(),
        outcome: "done".into(),
        said: format!("{called}{of}: {method}, {passes} passes, {freed} bytes freed"),
    }
}

/// That a node speaks for itself; admins may speak for any.
fn is_itself(peer: &Peer, name: &str) -> Result<(), Error> {
    let member = peer.member()?;
    if member.role == Role::Admin || member.name == name {
        return Ok(());
    }
    Err(Error::new(Kind::Denied, format!("only the node {name} itself may say this")))
}

/// A node, and what is left of it
#[utoipa::path(
    get, path = "/v1/nodes/{name}",
    params(("name" = String, Path, description = "The node's name")),
    responses((status = 200, body = NodeLife), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn node(State(app): State<App>, Name(name): Name) -> Answer<NodeLife> {
    Ok(Json(app.fleet.life(&name).await?))
}

/// What may be put on a node from now on (admins)
#[utoipa::path(
    put, path = "/v1/nodes/{name}/standing", request_body = SetStanding,
    params(("name" = String, Path, description = "The node's name")),
    responses((status = 200, body = NodeLife), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn set_standing(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    Name(name): Name,
    Body(SetStanding { standing }): Body<SetStanding>,
) -> Answer<NodeLife> {
    Ok(Json(app.fleet.set_standing(&name, standing, &peer.name()?).await?))
}

/// Forgets a node, and refuses its certificate; the answer is the node as it was (admins)
#[utoipa::path(
    delete, path = "/v1/nodes/{name}",
    params(("name" = String, Path, description = "The node's name"), Forget),
    responses((status = 200, body = Forgotten), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn forget(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    Name(name): Name,
    Asked(Forget { force }): Asked<Forget>,
) -> Answer<Forgotten> {
    let mut forgotten = app.fleet.forget(&name, &peer.name()?, force).await?;
    forgotten.revoked = app.members.revoke_node(&name).await?;
    Ok(Json(forgotten))
}

/// All leases that nodes have
#[utoipa::path(
    get, path = "/v1/leases",
    params(Page),
    responses((status = 200, body = Paged<LeaseList>), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn leases(
    State(app): State<App>,
    Asked(page): Asked<Page>,
) -> Answer<Paged<LeaseList>> {
    Ok(Json(Paged::of(app.fleet.leases().await?, &page)?))
}

/// The right to write a volume, for one node at a time (the node itself; admins)
#[utoipa::path(
    put, path = "/v1/leases/{name}", request_body = TakeLease,
    params(("name" = String, Path, description = "The volume's id")),
    responses((status = 200, body = LeaseGrant), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn take_lease(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    Name(volume): Name,
    Body(asked): Body<TakeLease>,
) -> Answer<LeaseGrant> {
    is_itself(&peer, &asked.holder)?;
    Ok(Json(app.fleet.take_lease(&volume, &asked).await?))
}

/// Hands a lease to another node (who has it; admins)
#[utoipa::path(
    post, path = "/v1/leases/{name}/transfer", request_body = TransferLease,
    params(("name" = String, Path, description = "The volume's id")),
    responses((status = 200, body = LeaseGrant), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn transfer_lease(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    Name(volume): Name,
    Body(asked): Body<TransferLease>,
) -> Answer<LeaseGrant> {
    let member = peer.member()?;
    let by = (member.role != Role::Admin).then_some(member.name.as_str());
    Ok(Json(app.fleet.transfer_lease(&volume, by, &asked).await?))
}

/// Takes a lease from its holder (admins)
#[utoipa::path(
    post, path = "/v1/leases/{name}/break", request_body = BreakLease,
    params(("name" = String, Path, description = "The volume's id")),
    responses((status = 200, body = LeaseInfo), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn break_lease(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    Name(volume): Name,
    Body(asked): Body<BreakLease>,
) -> Answer<LeaseInfo> {
    let by = peer.name()?;
    Ok(Json(app.fleet.break_lease(&volume, &by, &asked).await?))
}

/// All pools
#[utoipa::path(
    get, path = "/v1/pools",
    params(Page),
    responses((status = 200, body = Paged<PoolList>), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn pools(
    State(app): State<App>,
    Asked(page): Asked<Page>,
) -> Answer<Paged<PoolList>> {
    Ok(Json(Paged::of(app.fleet.pools().await?, &page)?))
}

/// One pool
#[utoipa::path(
    get, path = "/v1/pools/{name}",
    params(("name" = String, Path, description = "The pool's name")),
    responses((status = 200, body = PoolInfo), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn pool(State(app): State<App>, Name(name): Name) -> Answer<PoolInfo> {
    Ok(Json(app.fleet.pool(&name).await?))
}

/// What a pool shall be; it is made if there is none (admins)
#[utoipa::path(
    put, path = "/v1/pools/{name}", request_body = SetPool,
    params(("name" = String, Path, description = "The pool's name")),
    responses((status = 200, body = PoolInfo), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn set_pool(
    State(app): State<App>,
    Name(name): Name,
    Body(set): Body<SetPool>,
) -> Answer<PoolInfo> {
    Ok(Json(app.fleet.set_pool(&name, set).await?))
}

/// Removes a pool of which nothing is left; the answer is the pool as it was (admins)
#[utoipa::path(
    delete, path = "/v1/pools/{name}",
    params(("name" = String, Path, description = "The pool's name")),
    responses((status = 200, body = PoolInfo), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn delete_pool(State(app): State<App>, Name(name): Name) -> Answer<PoolInfo> {
    Ok(Json(app.fleet.delete_pool(&name).await?))
}

/// A volume of a pool for who asks, by an operation; the same request again is the same operation (admins and nodes)
#[utoipa::path(
    post, path = "/v1/pools/{name}/claims", request_body = NewClaim,
    params(("name" = String, Path, description = "The pool's name"), Wait),
    responses((status = 200, body = Operation), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn claim(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    Name(name): Name,
    Asked(wait): Asked<Wait>,
    Body(asked): Body<NewClaim>,
) -> Answer<Operation> {
    let owner = peer.name()?;
    Ok(Json(app.fleet.claim(&owner, &name, asked, wait.into()).await?))
}

/// What was asked for lately
#[utoipa::path(
    get, path = "/v1/operations",
    params(Page),
    responses((status = 200, body = Paged<OperationList>), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn operations(
    State(app): State<App>,
    Asked(page): Asked<Page>,
) -> Answer<Paged<OperationList>> {
    Ok(Json(Paged::of(app.fleet.operations().await?, &page)?))
}

/// An operation, when it has ended or after a time
#[utoipa::path(
    get, path = "/v1/operations/{name}",
    params(("name" = String, Path, description = "The operation's id"), Wait),
    responses((status = 200, body = Operation), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn operation(
    State(app): State<App>,
    Name(id): Name,
    Asked(wait): Asked<Wait>,
) -> Answer<Operation> {
    Ok(Json(app.fleet.operation(&id, wait.into()).await?))
}

/// Ends an operation, if no node has done it meanwhile; the answer says which (who asked for it; admins and operators)
#[utoipa::path(
    post, path = "/v1/operations/{name}/cancel",
    params(("name" = String, Path, description = "The operation's id"), Wait),
    responses((status = 200, body = Operation), (status = "default", body = api::ErrorBody))
)]
pub(super) async fn cancel(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    Name(id): Name,
    Asked(wait): Asked<Wait>,
) -> Answer<Operation> {
    let own = matches!(peer.who(), Who::Node | Who::Server);
    let by = if own { Some(peer.name()?) } else { None };
    Ok(Json(app.fleet.cancel(&id, by.as_deref(), wait.into()).await?))
}
