//! Before a handler: may this peer use this route? After it: what went wrong is logged, here alone.

use std::sync::Arc;

use api::grid::Role;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use image::{Error, Kind, Result};

use super::body::{Failure, Logged};
use super::peer::Peer;
use super::{Access, Route};
use crate::care::Revoked;
use crate::member::Member;
use crate::members::{Members, removed};

/// Who may use which routes.
#[derive(Clone)]
pub(super) struct Door {
    pub routes: &'static [Route],
    /// Who was removed.
    pub removed: Removed,
}

/// How is known who was removed.
#[derive(Clone)]
pub(crate) enum Removed {
    /// By the state.
    Known(Members),
    /// By what placement has said last.
    Told(Revoked),
}

impl Door {
    async fn refuse_removed(&self, member: Option<Arc<Member>>) -> Result<()> {
        let Some(member) = member else { return Ok(()) };
        match &self.removed {
            Removed::Known(members) => members.check(&member).await,
            Removed::Told(revoked) => {
                match revoked.borrow().refuses(&member.name, &member.holder) {
                    true => Err(removed(&member)),
                    false => Ok(()),
                }
            }
        }
    }
}

pub(super) async fn guard(State(door): State<Door>, request: Request, next: Next) -> Response {
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let peer = request.extensions().get::<Peer>().cloned();
    let allowed = match &peer {
        Some(peer) => allowed(door.routes, &request, peer),
        None => Err(Error::new(Kind::Denied, "nobody knows who asks")),
    };
    let allowed = match allowed {
        Ok(member) => door.refuse_removed(member).await,
        Err(e) => Err(e),
    };
    let response = match allowed {
        Ok(()) => next.run(request).await,
        Err(e) => Failure(e).into_response(),
    };
    let peer = peer.map(|p| p.to_string()).unwrap_or_default();
    match response.extensions().get::<Logged>().map(|l| &l.0) {
        None => tracing::debug!(peer, %method, path, "served"),
        Some(e) => match e.kind() {
            Kind::Denied => tracing::warn!(peer, %method, path, reason = %e, "denied"),
            Kind::Io | Kind::Corrupt | Kind::Full => {
                tracing::error!(peer, %method, path, error = %e, "failed");
            }
            _ => tracing::debug!(peer, %method, path, error = %e, "refused"),
        },
    }
    response
}

/// What is not in the list of routes is nobody's. The member that asks, where it takes one.
fn allowed(routes: &[Route], request: &Request, peer: &Peer) -> Result<Option<Arc<Member>>> {
    let path = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let method = match request.method().as_str() {
        "HEAD" => "GET",
        method => method,
    };
    let route = routes.iter().find(|(m, p, _)| *m == method && Some(*p) == path);
    let Some((_, _, access)) = route else {
        return Err(Error::new(Kind::Denied, "not one of the routes that may be used"));
    };
    let member = match access {
        Access::Anybody => return Ok(None),
        _ => peer.member()?,
    };
    let role = member.role;
    let good = match access {
        Access::Anybody | Access::Member => true,
        Access::Writer => is_writer(role),
        Access::Server => matches!(role, Role::Server | Role::Admin),
        Access::Admin => role == Role::Admin,
    };
    if good {
        return Ok(Some(Arc::clone(member)));
    }
    let needed = match access {
        Access::Admin => "an admin",
        Access::Server => "a server or an admin",
        _ => "an admin or a node",
    };
    let what = format!(
        "only {needed} may do this, and the certificate is that of a {}: use another data directory, such as that \
         of `forebay up`",
        role.name()
    );
    Err(Error::new(Kind::Denied, what))
}

/// Whether a role may change what others see.
pub(super) fn is_writer(role: Role) -> bool {
    matches!(role, Role::Admin | Role::Node)
}
