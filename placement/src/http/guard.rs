//! Before a handler: who asks, and may it use this route? After it: what went wrong is logged, here alone, and what was
//! changed or refused goes into the audit log.

use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::HeaderValue;
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use image::{Error, Kind, Result};

use super::access::{Access, Who};
use super::body::{Failure, Logged, Noted};
use super::peer::Peer;
use super::{AUDITED_LATER, Route, UNAUDITED};
use crate::audit::{Audit, Deed};
use crate::care::Revoked;
use crate::member::Member;
use crate::members::{Members, removed};
use crate::people::People;

/// Who may use which routes.
#[derive(Clone)]
pub(super) struct Door {
    pub routes: &'static [Route],
    pub knows: Knows,
}

/// What is known of who asks.
#[derive(Clone)]
pub(crate) enum Knows {
    /// Placement knows its members and people.
    All(Keeper),
    /// A cache on another machine is told who was removed; tokens it does not know.
    Revoked(Revoked),
}

impl Knows {
    fn keeper(&self) -> Option<&Keeper> {
        match self {
            Self::All(keeper) => Some(keeper),
            Self::Revoked(_) => None,
        }
    }

    /// Refuses whoever was removed.
    async fn check(&self, member: &Member) -> Result<()> {
        match self {
            Self::All(keeper) => keeper.members.check(member).await,
            Self::Revoked(revoked) => {
                match revoked.borrow().refuses(&member.name, &member.holder) {
                    true => Err(removed(member)),
                    false => Ok(()),
                }
            }
        }
    }
}

/// What placement knows of who asks, and remembers of what they did.
#[derive(Clone)]
pub(crate) struct Keeper {
    pub members: Members,
    pub people: People,
    pub audit: Arc<Audit>,
}

pub(super) async fn guard(State(door): State<Door>, mut request: Request, next: Next) -> Response {
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let route = route(door.routes, &request);
    let peer = request.extensions().get::<Peer>().cloned();
    let shown = request.headers().get(AUTHORIZATION).cloned();
    let (peer, allowed) = door.admit(route, peer, shown).await;
    if let Some(peer) = &peer {
        request.extensions_mut().insert(peer.clone());
    }
    let later = |list: &[(&str, &str)]| route.is_some_and(|(m, p, _)| list.contains(&(*m, *p)));
    let changes = route.is_some_and(|(method, ..)| *method != "GET") && !later(UNAUDITED);
    let entry = Entry {
        peer: peer.clone(),
        what: route.map_or_else(String::new, |(method, path, _)| format!("{method} {path}")),
        path: path.clone(),
        changes,
        waits: !later(AUDITED_LATER),
    };
    let keeper = door.knows.keeper().cloned();
    let response = match allowed {
        Ok(()) => {
            let begun = Begun { entry: Some(entry), keeper };
            let response = next.run(request).await;
            begun.ended(response).await
        }
        Err(e) => entry.kept(keeper, Failure(e).into_response()).await,
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

fn route(routes: &'static [Route], request: &Request) -> Option<&'static Route> {
    let path = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let method = match request.method().as_str() {
        "HEAD" => "GET",
        method => method,
    };
    routes.iter().find(|(m, p, _)| *m == method && Some(*p) == path)
}

impl Door {
    /// Who asks, and whether it may. What is not in the list of routes is nobody's.
    async fn admit(
        &self,
        route: Option<&Route>,
        peer: Option<Peer>,
        shown: Option<HeaderValue>,
    ) -> (Option<Peer>, Result<()>) {
        let denied = |what: &str| Err(Error::new(Kind::Denied, what));
        let Some(peer) = peer else { return (None, denied("nobody knows who asks")) };
        let Some((_, _, access)) = route else {
            return (Some(peer), denied("not one of the routes that may be used"));
        };
        if *access == Access::Anybody {
            return (Some(peer), Ok(()));
        }
        match self.recognize(&peer, shown).await {
            Ok(peer) => {
                let allowed = allowed(*access, &peer);
                (Some(peer), allowed)
            }
            Err(error) => (Some(peer), Err(error)),
        }
    }

    /// The member by its certificate; the person, if a token is shown.
    async fn recognize(&self, peer: &Peer, shown: Option<HeaderValue>) -> Result<Peer> {
        let denied = |what: &str| Err(Error::new(Kind::Denied, what));
        let Some(shown) = shown else {
            self.knows.check(peer.member()?).await?;
            return Ok(peer.clone());
        };
        let bearer = shown.to_str().ok().and_then(|text| {
            let (scheme, rest) = text.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(rest.trim())
        });
        match (self.knows.keeper(), bearer) {
            (_, None) => denied("authorization: it must be `Bearer` and a person's token"),
            (None, _) => denied("a cache knows no tokens: use a member's certificate"),
            (Some(keeper), Some(bearer)) => Ok(peer.as_person(keeper.people.check(bearer).await?)),
        }
    }
}

fn allowed(access: Access, peer: &Peer) -> Result<()> {
    let who = peer.who();
    if access.lets().contains(&who) {
        return Ok(());
    }
    let needed = access.words();
    let what = match who {
        Who::AdminToken | Who::Operator | Who::ReadOnly => {
            format!("only {needed} may do this, and the token is {}'s", peer.identity())
        }
        _ => {
            let role = peer.member()?.role.name();
            format!(
                "only {needed} may do this, and the certificate is that of a {role}: use another data directory, such \
                 as that of `forebay up`"
            )
        }
    };
    Err(Error::new(Kind::Denied, what))
}

/// A request that is at work. Whoever hangs up may have changed something all the same: that is written down, too.
struct Begun {
    /// Nothing: it has ended.
    entry: Option<Entry>,
    keeper: Option<Keeper>,
}

impl Begun {
    async fn ended(mut self, response: Response) -> Response {
        match self.entry.take() {
            Some(entry) => entry.kept(self.keeper.take(), response).await,
            None => response,
        }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let (Some(entry), Some(keeper)) = (self.entry.take(), self.keeper.take()) else { return };
        if entry.changes {
            keeper.audit.given_up(entry.deed("unknown", HUNG_UP.to_owned()));
        }
    }
}

/// What is said of a request that nobody waited for.
const HUNG_UP: &str = "whoever asked hung up before there was an answer";

/// What of a request goes into the audit log.
struct Entry {
    peer: Option<Peer>,
    what: String,
    path: String,
    /// Whether it is one that changes something.
    changes: bool,
    /// Whether its answer waits until it is written down.
    waits: bool,
}

impl Entry {
    fn deed(&self, outcome: &str, said: String) -> Deed {
        Deed {
            who: self.peer.as_ref().map_or_else(|| "nobody".into(), Peer::identity),
            what: self.what.clone(),
            object: self.path.clone(),
            outcome: outcome.into(),
            said,
        }
    }

    /// Has it written down; the answer, unless that cannot be said to be so.
    async fn kept(self, keeper: Option<Keeper>, response: Response) -> Response {
        let Some(Keeper { audit, .. }) = keeper else { return response };
        let error = response.extensions().get::<Logged>().map(|l| &l.0);
        let refused = error.is_some_and(|e| e.kind() == Kind::Denied);
        // Whoever is sent to another placement is written down there.
        if (!refused && !self.changes) || response.status().is_redirection() {
            return response;
        }
        let known = self.peer.as_ref().is_some_and(Peer::is_known);
        let noted = response.extensions().get::<Noted>().map(|noted| noted.0.clone());
        let (outcome, waits) = (error.map_or("done", |e| e.kind().name()), self.waits);
        let said = error.map(|e| e.message().to_owned()).or(noted).unwrap_or_default();
        let mut deed = self.deed(outcome, said);
        if let Some(peer) = self.peer.as_ref().filter(|_| !known) {
            deed.object = format!("{} from {}", deed.object, peer.address.ip());
        }
        if refused || (error.is_some() && !known) {
            audit.refused(deed, known);
        } else if !waits || error.is_some() {
            audit.done_soon(deed).await;
        } else if let Err(error) = audit.done(deed).await {
            let error = error.at("it was done, and that it was is not in the audit log yet");
            return Failure(error).into_response();
        }
        response
    }
}
