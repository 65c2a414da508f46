//! Bodies: JSON in, within limits; JSON or an error out.

use api::{PROBLEM, Problem};
use axum::body::HttpBody;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use image::{Error, Kind};
use serde::de::DeserializeOwned;

use super::Limits;

/// An error as an answer.
#[derive(Debug)]
pub(super) struct Failure(pub Error);

/// The error of an answer, for the guard to log.
#[derive(Clone)]
pub(super) struct Logged(pub Error);

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        Failure(e)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = api::http_status(self.0.kind());
        let status = StatusCode::from_u16(status).expect("statuses of kinds have three digits");
        let mut response = problem(&Problem::new(&self.0), status);
        if let Kind::Busy(after) = self.0.kind() {
            let seconds = HeaderValue::from(after.as_secs().max(1));
            response.headers_mut().insert(RETRY_AFTER, seconds);
        }
        response.extensions_mut().insert(Logged(self.0));
        response
    }
}

/// What the audit log shall say of what was done, beside its path.
#[derive(Clone)]
pub(super) struct Noted(pub String);

/// A problem as an answer.
pub(super) fn problem(problem: &Problem, status: StatusCode) -> Response {
    let text = serde_json::to_vec(problem).expect("our own types serialise");
    (status, [(CONTENT_TYPE, PROBLEM)], text).into_response()
}

/// A JSON body.
pub(super) struct Body<T>(pub T);

/// A JSON body that may be longer than others: up to `MAX` bytes.
pub(super) struct LongBody<T, const MAX: usize>(pub T);

impl<T, S, const MAX: usize> FromRequest<S> for LongBody<T, MAX>
where
    T: DeserializeOwned,
    S: AsRef<Limits> + Send + Sync,
{
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let limits = state.as_ref();
        read(request, limits, limits.body.max(MAX)).await.map(LongBody)
    }
}

impl<T: DeserializeOwned, S: AsRef<Limits> + Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let limits = state.as_ref();
        read(request, limits, limits.body).await.map(Body)
    }
}

async fn read<T: DeserializeOwned>(
    request: Request,
    limits: &Limits,
    limit: usize,
) -> Result<T, Failure> {
    let invalid = |what: String| Failure(Error::new(Kind::Invalid, format!("body: {what}")));
    // A browser sends other sites' requests with its user's certificate, but never with this
    // type unless we allow it, and we do not.
    let json = request.headers().get(CONTENT_TYPE).is_some_and(|t| {
        let t = t.as_bytes().split(|b| *b == b';').next().unwrap_or_default();
        t.trim_ascii().eq_ignore_ascii_case(b"application/json")
    });
    if !json {
        return Err(invalid("its content type must be application/json".into()));
    }
    // What says that it is too long is not even begun.
    if request.body().size_hint().lower() > limit as u64 {
        return Err(invalid(format!("at most {limit} bytes are taken")));
    }
    let reading = axum::body::to_bytes(request.into_body(), limit);
    let bytes = tokio::time::timeout(limits.read, reading)
        .await
        .map_err(|_| invalid("it did not arrive in time".into()))?
        .map_err(|e| invalid(format!("{e}: at most {limit} bytes are taken")))?;
    // What is read would take the list of an object's fields for the object.
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(invalid("it must be a JSON object".into()));
    }
    serde_json::from_slice(&bytes).map_err(|e| invalid(e.to_string()))
}

/// The one parameter of a path, decoded: nothing is known of what it holds.
pub(super) struct Name(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        let invalid = |e| Failure(Error::new(Kind::Invalid, format!("path: {e}")));
        path.map(|Path(name)| Name(name)).map_err(|e| invalid(e.body_text()))
    }
}

/// What stands behind the `?` of a request.
pub(super) struct Asked<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let query = Query::<T>::from_request_parts(parts, state).await;
        let invalid = |e| Failure(Error::new(Kind::Invalid, format!("query: {e}")));
        query.map(|Query(asked)| Asked(asked)).map_err(|e| invalid(e.body_text()))
    }
}
