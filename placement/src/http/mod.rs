//! The HTTP API: which routes there are, and who may use them.
//!
//! [`ROUTES`] is the one list of placement's routes, [`care::ROUTES`] that of a cache's: the guard asks
//! it before any handler runs, and refuses what is not in it; tests hold both against the routers and
//! the OpenAPI document.

mod access;
mod body;
pub(crate) mod care;
mod document;
mod fleet;
mod guard;
mod handlers;
#[cfg(test)]
mod hostile;
mod keeps;
mod leader;
mod patient;
mod peer;
mod people;
mod places;
mod serve;
mod stats;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::{delete, get, post, put};

use crate::audit::Audit;
use crate::catalog::Catalog;
use crate::fleet::Fleet;
use crate::members::Members;
use crate::people::People;
use crate::tokens::Tokens;
use crate::watches::Watches;
use access::Access;

pub(crate) use guard::{Keeper, Knows};
pub use serve::Limits;
pub(crate) use serve::{Server, serve};

/// Not in the audit log, though they are no GET: signs of life, and what changes nothing.
const UNAUDITED: &[(&str, &str)] = &[
    ("PUT", "/v1/caches/{name}"),
    ("POST", "/v1/nodes/{name}/report"),
    ("POST", "/v1/tickets"),
    ("POST", "/v1/images/{name}/verify"),
    ("POST", "/v1/store/verify"),
];

/// In the audit log soon after the answer, and not before it: what machines wait for. What of it counts is in the state
/// for itself.
const AUDITED_LATER: &[(&str, &str)] = &[
    ("POST", "/v1/images/{name}/trace"),
    ("POST", "/v1/pools/{name}/claims"),
    ("PUT", "/v1/leases/{name}"),
    ("POST", "/v1/place"),
];

/// Method, path, who.
type Route = (&'static str, &'static str, Access);

/// Placement's own routes.
const ROUTES: &[Route] = &[
    ("GET", "/v1/health", Access::Anybody),
    ("POST", "/v1/join", Access::Anybody),
    ("GET", "/v1/openapi.json", Access::Member),
    ("GET", "/v1/placement", Access::Member),
    ("GET", "/v1/whoami", Access::Member),
    ("GET", "/v1/caches", Access::Member),
    // Each only its own name: the handlers see to that.
    ("PUT", "/v1/caches/{name}", Access::Server),
    ("DELETE", "/v1/caches/{name}", Access::Server),
    ("POST", "/v1/tokens", Access::Grantor),
    ("POST", "/v1/people", Access::Grantor),
    ("GET", "/v1/people", Access::Overseer),
    ("DELETE", "/v1/people/{name}", Access::Admin),
    ("GET", "/v1/members", Access::Overseer),
    ("GET", "/v1/revoked", Access::Machine),
    ("POST", "/v1/renew", Access::Machine),
    ("DELETE", "/v1/members/{name}", Access::Admin),
    ("GET", "/v1/images", Access::Member),
    ("GET", "/v1/images/{name}", Access::Member),
    ("POST", "/v1/images/{name}/record", Access::Author),
    ("GET", "/v1/images/{name}/trace", Access::Member),
    ("POST", "/v1/images/{name}/trace", Access::Writer),
    ("POST", "/v1/images/{name}/verify", Access::Checker),
    ("PUT", "/v1/refs/{ref}", Access::Author),
    ("DELETE", "/v1/refs/{ref}", Access::Admin),
    // A ticket to push is for writers: the handler sees to that.
    ("POST", "/v1/tickets", Access::Machine),
    ("GET", "/v1/nodes", Access::Member),
    ("GET", "/v1/nodes/{name}", Access::Member),
    ("DELETE", "/v1/nodes/{name}", Access::Admin),
    ("PUT", "/v1/nodes/{name}/standing", Access::Operator),
    ("GET", "/v1/nodes/{name}/goal", Access::Member),
    // Each only for its own name: the handler sees to that.
    ("POST", "/v1/nodes/{name}/report", Access::Writer),
    ("GET", "/v1/nodes/{name}/stats", Access::Member),
    ("GET", "/v1/stats", Access::Member),
    // To reserve is for those who may claim, and to give back for the owner: the handlers see to that.
    ("POST", "/v1/place", Access::Member),
    ("GET", "/v1/reservations", Access::Member),
    ("DELETE", "/v1/reservations/{name}", Access::Worker),
    ("GET", "/v1/pools", Access::Member),
    ("GET", "/v1/pools/{name}", Access::Member),
    ("PUT", "/v1/pools/{name}", Access::Operator),
    ("DELETE", "/v1/pools/{name}", Access::Operator),
    ("POST", "/v1/pools/{name}/claims", Access::Worker),
    ("GET", "/v1/keeps", Access::Member),
    ("GET", "/v1/keeps/{ref}", Access::Member),
    ("PUT", "/v1/keeps/{ref}", Access::Operator),
    ("DELETE", "/v1/keeps/{ref}", Access::Operator),
    ("GET", "/v1/released", Access::Member),
    ("GET", "/v1/leases", Access::Member),
    // Each only its own: the handlers see to that.
    ("PUT", "/v1/leases/{name}", Access::Writer),
    ("POST", "/v1/leases/{name}/transfer", Access::Writer),
    ("POST", "/v1/leases/{name}/break", Access::Admin),
    ("GET", "/v1/operations", Access::Member),
    ("GET", "/v1/operations/{name}", Access::Member),
    // Nodes only their own: the handler sees to that.
    ("POST", "/v1/operations/{name}/cancel", Access::Worker),
    ("GET", "/v1/audit", Access::Overseer),
    ("GET", "/v1/watch", Access::Member),
    ("POST", "/v1/store/verify", Access::Admin),
    ("POST", "/v1/gc", Access::Admin),
];

/// What handlers work with. Cheap to clone.
#[derive(Clone)]
pub(crate) struct App {
    pub catalog: Arc<Catalog>,
    pub tokens: Arc<Tokens>,
    pub members: Members,
    pub people: People,
    pub audit: Arc<Audit>,
    pub watches: Arc<Watches>,
    pub fleet: Arc<Fleet>,
    pub limits: Limits,
    /// The id of the grid's store.
    pub store: Arc<str>,
}

impl App {
    /// What the guard of placement's routes asks, and tells.
    pub(crate) fn keeper(&self) -> Keeper {
        let Self { members, people, audit, .. } = self;
        Keeper { members: members.clone(), people: people.clone(), audit: Arc::clone(audit) }
    }
}

impl AsRef<Limits> for App {
    fn as_ref(&self) -> &Limits {
        &self.limits
    }
}

/// Placement's routes.
pub(crate) fn router(app: App) -> Router {
    use handlers as h;
    let led = from_fn_with_state(app.clone(), leader::at_the_leader);
    let door = guard::Door { routes: ROUTES, knows: Knows::All(app.keeper()) };
    Router::new()
        .route("/v1/health", get(h::health))
        .route("/v1/join", post(h::join))
        .route("/v1/openapi.json", get(document::serve))
        .route("/v1/placement", get(fleet::placements))
        .route("/v1/whoami", get(people::whoami))
        .route("/v1/people", get(people::people).post(people::new_person))
        .route("/v1/people/{name}", delete(people::revoke))
        .route("/v1/audit", get(people::audit))
        .route("/v1/watch", get(people::watch))
        .route("/v1/caches", get(h::caches))
        .route("/v1/caches/{name}", put(h::serving).delete(h::leave))
        .route("/v1/tokens", post(h::new_token))
        .route("/v1/members", get(h::members))
        .route("/v1/revoked", get(h::revoked))
        .route("/v1/renew", post(h::renew))
        .route("/v1/members/{name}", delete(h::remove_member))
        .route("/v1/images", get(h::images))
        .route("/v1/images/{name}", get(h::image))
        .route("/v1/images/{name}/record", post(h::record))
        .route("/v1/images/{name}/trace", get(h::trace).post(h::add_trace))
        .route("/v1/images/{name}/verify", post(h::verify))
        .route("/v1/refs/{ref}", put(h::move_ref))
        .route("/v1/refs/{ref}", delete(h::delete_ref))
        .route("/v1/tickets", post(h::ticket))
        .route("/v1/nodes", get(fleet::nodes))
        .route("/v1/nodes/{name}", get(fleet::node).delete(fleet::forget))
        .route("/v1/nodes/{name}/standing", put(fleet::set_standing))
        .route("/v1/nodes/{name}/goal", get(fleet::goal))
        .route("/v1/nodes/{name}/report", post(fleet::report))
        .route("/v1/nodes/{name}/stats", get(stats::node_stats))
        .route("/v1/stats", get(stats::stats))
        .route("/v1/place", post(stats::place))
        .route("/v1/reservations", get(stats::reservations))
        .route("/v1/reservations/{name}", delete(stats::release))
        .route("/v1/pools", get(fleet::pools))
        .route("/v1/pools/{name}", get(fleet::pool).put(fleet::set_pool).delete(fleet::delete_pool))
        .route("/v1/pools/{name}/claims", post(fleet::claim))
        .route("/v1/keeps", get(keeps::keeps))
        .route("/v1/keeps/{ref}", get(keeps::keep).put(keeps::set_keep).delete(keeps::unkeep))
        .route("/v1/released", get(keeps::released))
        .route("/v1/leases", get(fleet::leases))
        .route("/v1/leases/{name}", put(fleet::take_lease))
        .route("/v1/leases/{name}/transfer", post(fleet::transfer_lease))
        .route("/v1/leases/{name}/break", post(fleet::break_lease))
        .route("/v1/operations", get(fleet::operations))
        .route("/v1/operations/{name}", get(fleet::operation))
        .route("/v1/operations/{name}/cancel", post(fleet::cancel))
        .route("/v1/store/verify", post(h::verify_store))
        .route("/v1/gc", post(h::gc))
        .route_layer(led)
        .route_layer(from_fn_with_state(door, guard::guard))
        .method_not_allowed_fallback(h::no_such_method)
        .fallback(h::no_such_route)
        .with_state(app)
}
