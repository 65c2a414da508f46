//! The OpenAPI document.

use axum::Json;
use utoipa::openapi::{ContentBuilder, Ref, RefOr};
use utoipa::{Modify, OpenApi};

use super::{care, fleet, handlers, keeps, people, stats};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Forebay",
        description = "Refs, images, records, tickets, members, nodes and pools of a grid. All routes but \
                       /v1/health and /v1/join need a member's certificate, or a person's token. /metrics and those under \
                       /v1/cache are each cache's own, at the address that /v1/caches lists for it."
    ),
    paths(
        handlers::health,
        handlers::join,
        serve,
        handlers::caches,
        handlers::serving,
        handlers::leave,
        handlers::new_token,
        handlers::members,
        handlers::revoked,
        handlers::renew,
        handlers::remove_member,
        handlers::images,
        handlers::image,
        handlers::record,
        handlers::trace,
        handlers::add_trace,
        handlers::verify,
        handlers::move_ref,
        handlers::delete_ref,
        handlers::ticket,
        handlers::verify_store,
        handlers::gc,
        fleet::placements,
        fleet::nodes,
        fleet::node,
        fleet::set_standing,
        fleet::forget,
        fleet::goal,
        fleet::report,
        stats::node_stats,
        stats::stats,
        stats::place,
        stats::reservations,
        stats::release,
        fleet::pools,
        fleet::pool,
        fleet::set_pool,
        fleet::delete_pool,
        fleet::claim,
        keeps::keeps,
        keeps::keep,
        keeps::set_keep,
        keeps::unkeep,
        keeps::released,
        fleet::leases,
        fleet::take_lease,
        fleet::transfer_lease,
        fleet::break_lease,
        fleet::operations,
        fleet::operation,
        fleet::cancel,
        people::whoami,
        people::new_person,
        people::people,
        people::revoke,
        people::audit,
        people::watch,
        care::status,
        care::held,
        care::evict,
        care::warming,
        care::warm,
        care::stop_warming,
        care::pin,
        care::unpin,
        care::scrub,
        care::drain,
        care::metrics,
    ),
    components(schemas(api::Problem, api::audit::AuditEntry)),
    modifiers(&Problems)
)]
pub(super) struct Document;

/// Every error of every route is a problem.
struct Problems;

impl Modify for Problems {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        for item in document.paths.paths.values_mut() {
            let operations =
                [&mut item.get, &mut item.put, &mut item.post, &mut item.delete].into_iter();
            for operation in operations.flatten() {
                if let Some(RefOr::T(errors)) = operation.responses.responses.get_mut("default") {
                    let schema = Some(Ref::from_schema_name("Problem"));
                    errors.content.clear();
                    let content = ContentBuilder::new().schema(schema).build();
                    errors.content.insert(api::PROBLEM.into(), content);
                }
            }
        }
    }
}

/// This document
#[utoipa::path(get, path = "/v1/openapi.json", responses((status = 200, description = "OpenAPI 3.1")))]
pub(super) async fn serve() -> Json<utoipa::openapi::OpenApi> {
    Json(Document::openapi())
}
