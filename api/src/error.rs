//! One error enum ([`image::Kind`]), mapped to wire codes, HTTP status and exit codes.
//!
//! | kind | wire | HTTP | exit | what the caller can do |
//! |---|---|---|---|---|
//! | retry | 1 | 503 | 75 | the same again, at once or elsewhere |
//! | busy | 2 | 429 | 75 | the same again, after the stated time |
//! | conflict | 3 | 409 | 73 | look again: somebody else holds or moved it |
//! | corrupt | 4 | 422 | 76 | another copy may be good |
//! | gone | 5 | 404 | 66 | it does not exist, or no longer |
//! | denied | 6 | 403 | 77 | ask for the right |
//! | full | 7 | 507 | 74 | make room |
//! | unsupported | 8 | 501 | 69 | use a newer program, or another option |
//! | cancelled | 9 | 499 | 130 | nothing |
//! | invalid | 10 | 400 | 65 | correct the request or input |
//! | io | 11 | 500 | 74 | see the message: the operating system refused |
//!
//! Exit codes follow `sysexits.h`; wrong usage of the command line is 64, success 0.

use std::time::Duration;

use image::{Error, Kind};
use serde::{Deserialize, Serialize};

/// The wire code of a kind; with the milliseconds to wait, 0 unless busy.
pub fn to_wire(kind: Kind) -> (u16, u32) {
    let code = match kind {
        Kind::Retry => 1,
        Kind::Busy(_) => 2,
        Kind::Conflict => 3,
        Kind::Corrupt => 4,
        Kind::Gone => 5,
        Kind::Denied => 6,
        Kind::Full => 7,
        Kind::Unsupported => 8,
        Kind::Cancelled => 9,
        Kind::Invalid => 10,
        Kind::Io => 11,
    };
    let after = match kind {
        Kind::Busy(after) => u32::try_from(after.as_millis()).unwrap_or(u32::MAX),
        _ => 0,
    };
    (code, after)
}

/// The kind of a wire code. A code that a later version added is read as "retry elsewhere".
pub fn from_wire(code: u16, after_ms: u32) -> Kind {
    match code {
        2 => Kind::Busy(Duration::from_millis(u64::from(after_ms))),
        3 => Kind::Conflict,
        4 => Kind::Corrupt,
        5 => Kind::Gone,
        6 => Kind::Denied,
        7 => Kind::Full,
        8 => Kind::Unsupported,
        9 => Kind::Cancelled,
        10 => Kind::Invalid,
        11 => Kind::Io,
        _ => Kind::Retry,
    }
}

/// The HTTP status of a kind.
pub fn http_status(kind: Kind) -> u16 {
    match kind {
        Kind::Retry => 503,
        Kind::Busy(_) => 429,
        Kind::Conflict => 409,
        Kind::Corrupt => 422,
        Kind::Gone => 404,
        Kind::Denied => 403,
        Kind::Full => 507,
        Kind::Unsupported => 501,
        Kind::Cancelled => 499,
        Kind::Invalid => 400,
        Kind::Io => 500,
    }
}

/// The exit code of a kind.
pub fn exit_code(kind: Kind) -> u8 {
    match kind {
        Kind::Retry | Kind::Busy(_) => 75,
        Kind::Conflict => 73,
        Kind::Corrupt => 76,
        Kind::Gone => 66,
        Kind::Denied => 77,
        Kind::Full | Kind::Io => 74,
        Kind::Unsupported => 69,
        Kind::Cancelled => 130,
        Kind::Invalid => 65,
    }
}

/// An error as JSON, where one stands in an answer; in a [`Problem`], too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ErrorBody {
    /// Wire code of the kind.
    pub code: u16,
    /// Name of the kind.
    pub kind: String,
    /// Milliseconds to wait; 0 unless busy.
    #[serde(default)]
    pub after_ms: u32,
    /// What is wrong, places first.
    pub message: String,
}

/// What kind of text a [`Problem`] is.
pub const PROBLEM: &str = "application/problem+json";

/// The body of every HTTP answer that is not a success: problem details by RFC 9457, and beside them, in the same
/// object, the fields of an [`ErrorBody`], which is what programs of ours read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Problem {
    /// `urn:forebay:problem:` and the name of the kind.
    #[serde(rename = "type")]
    pub about: String,
    /// The kind in a few words, the same each time.
    pub title: String,
    /// The status of the answer.
    pub status: u16,
    /// What is wrong this time: the message.
    pub detail: String,
    /// The same for programs of ours.
    #[serde(flatten)]
    pub body: ErrorBody,
}

impl Problem {
    /// An error, under the status of its kind.
    pub fn new(e: &Error) -> Self {
        Self {
            about: format!("urn:forebay:problem:{}", e.kind().name()),
            title: title(e.kind()).into(),
            status: http_status(e.kind()),
            detail: e.message().into(),
            body: e.into(),
        }
    }
}

/// What the caller can do about a kind, in a few words.
fn title(kind: Kind) -> &'static str {
    match kind {
        Kind::Retry => "Not now: ask the same again",
        Kind::Busy(_) => "Busy: ask the same again after a while",
        Kind::Conflict => "Somebody else holds or changed it: look again",
        Kind::Corrupt => "Damaged: another copy may be good",
        Kind::Gone => "There is none, or no longer",
        Kind::Denied => "Not allowed",
        Kind::Full => "No room",
        Kind::Unsupported => "Not known to this version",
        Kind::Cancelled => "Ended on request",
        Kind::Invalid => "Wrong request",
        Kind::Io => "The operating system refused",
    }
}

impl From<&Error> for ErrorBody {
    fn from(e: &Error) -> Self {
        let (code, after_ms) = to_wire(e.kind());
        Self { code, kind: e.kind().name().into(), after_ms, message: e.message().into() }
    }
}

impl From<ErrorBody> for Error {
    fn from(b: ErrorBody) -> Self {
        Error::new(from_wire(b.code, b.after_ms), b.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_survives_the_wire() {
        for code in 1..=11 {
            let kind = from_wire(code, if code == 2 { 40 } else { 0 });
            assert_eq!(to_wire(kind).0, code);
            assert!(http_status(kind) >= 400);
            assert_ne!(exit_code(kind), 0);
            let body = ErrorBody::from(&Error::new(kind, "x"));
            assert_eq!(Error::from(body).kind(), kind);
        }
        assert_eq!(from_wire(999, 0), Kind::Retry);
    }

    #[test]
    fn a_problem_is_read_by_those_who_know_none_and_the_other_way_round() {
        let error = Error::new(Kind::Busy(Duration::from_millis(1500)), "gc runs");
        let text = serde_json::to_string(&Problem::new(&error)).unwrap();
        let expected = r#"{"type":"urn:forebay:problem:busy","title":"Busy: ask the same again after a while","status":429,"detail":"gc runs","code":2,"kind":"busy","after_ms":1500,"message":"gc runs"}"#;
        assert_eq!(text, expected);
        let body: ErrorBody = serde_json::from_str(&text).unwrap();
        assert_eq!(body, ErrorBody::from(&error));
        // What is kept, or came from an earlier version, is the body alone.
        let old = r#"{"code":5,"kind":"gone","message":"x"}"#;
        assert_eq!(serde_json::from_str::<ErrorBody>(old).unwrap().after_ms, 0);
    }
}
