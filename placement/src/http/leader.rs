//! Of several placements one leads: who asks another for what that one alone knows is sent there.

use api::grid::PlacementInfo;
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::LOCATION;
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use image::{Error, Kind};

use super::App;
use super::body::Failure;
use crate::fleet::Answers;

/// What every placement answers from the state and the store. All else is the leader's: what nodes have said is known
/// there alone, and so is whether garbage is being collected, or a record written.
const ANYWHERE: &[(&str, &str)] = &[
    ("GET", "/v1/health"),
    ("POST", "/v1/join"),
    ("GET", "/v1/openapi.json"),
    ("GET", "/v1/placement"),
    ("GET", "/v1/whoami"),
    ("POST", "/v1/people"),
    ("GET", "/v1/people"),
    ("DELETE", "/v1/people/{name}"),
    ("GET", "/v1/audit"),
    ("GET", "/v1/watch"),
    ("GET", "/v1/caches"),
    ("PUT", "/v1/caches/{name}"),
    ("DELETE", "/v1/caches/{name}"),
    ("POST", "/v1/tokens"),
    ("GET", "/v1/members"),
    ("GET", "/v1/revoked"),
    ("POST", "/v1/renew"),
    ("DELETE", "/v1/members/{name}"),
    ("GET", "/v1/images"),
    ("GET", "/v1/images/{name}"),
    ("GET", "/v1/images/{name}/trace"),
    ("POST", "/v1/images/{name}/trace"),
    ("POST", "/v1/images/{name}/verify"),
    ("POST", "/v1/tickets"),
    ("GET", "/v1/nodes/{name}/goal"),
    ("GET", "/v1/operations"),
    ("GET", "/v1/operations/{name}"),
    ("POST", "/v1/store/verify"),
];

/// Lets a request through, or sends who asks to the leader. Nothing was done then.
pub(super) async fn at_the_leader(
    State(app): State<App>,
    request: Request,
    next: Next,
) -> Response {
    let path = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let method = match request.method().as_str() {
        "HEAD" => "GET",
        method => method,
    };
    if ANYWHERE.iter().any(|(m, p)| *m == method && Some(*p) == path) {
        return next.run(request).await;
    }
    match app.fleet.who_answers().await {
        Ok(Answers::Here) => next.run(request).await,
        Ok(Answers::There(leader)) => there(&leader, &request),
        Err(error) => Failure(error).into_response(),
    }
}

fn there(leader: &PlacementInfo, request: &Request) -> Response {
    let PlacementInfo { name, address } = leader;
    let what = format!("placement {name} at {address} leads: it is the one to ask");
    let mut response = Failure(Error::new(Kind::Retry, what)).into_response();
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    if let Ok(location) = HeaderValue::try_from(format!("https://{address}{path}")) {
        *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::super::ROUTES;
    use super::ANYWHERE;

    #[test]
    fn what_is_answered_anywhere_is_a_route() {
        for (method, path) in ANYWHERE {
            assert!(ROUTES.iter().any(|(m, p, _)| m == method && p == path), "{method} {path}");
        }
    }
}
