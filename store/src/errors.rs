//! From an object store's errors to what the caller can do about them.

use std::error::Error as StdError;
use std::fmt::Display;
use std::io;

use image::{Error, Kind};
use object_store::Error as StoreError;
use object_store::client::{HttpError, HttpErrorKind};

/// Maps an error of the object store; `what` names the operation and the object.
pub(crate) fn from_store(what: impl Display, e: StoreError) -> Error {
    let text = e.to_string();
    let known = KNOWN.iter().find(|known| known.signs.iter().any(|sign| text.contains(sign)));
    let kind = known.map_or_else(|| kind_of(&e), |known| known.kind);
    let next = match (known, kind) {
        (Some(known), _) => known.next,
        (None, Kind::Full) => "the store is full; make room there and run it again",
        (None, Kind::Denied) => {
            "the store refuses these credentials this; they need the right to list, read, create \
             and delete below the store's prefix"
        }
        (None, Kind::Retry) if is_unreachable(&e) => {
            "the store cannot be reached; check its endpoint (for S3 AWS_ENDPOINT_URL) and the \
             network"
        }
        _ => return Error::caused(kind, format!("{what}: {text}"), e),
    };
    Error::caused(kind, format!("{what}: {text}: {next}"), e)
}

/// What servers say only in the text of their answers, by the codes of the S3 protocol and of those
/// who speak like it.
struct Known {
    signs: &'static [&'static str],
    kind: Kind,
    next: &'static str,
}

const KNOWN: &[Known] = &[
    Known {
        signs: &["NoSuchBucket", "ContainerNotFound"],
        kind: Kind::Invalid,
        next: "there is no such bucket; make it, or name another one (store.at)",
    },
    Known {
        signs: &["RequestTimeTooSkewed", "RequestInTheFuture", "Request has expired"],
        kind: Kind::Denied,
        next: "this machine's clock and the store's differ by minutes; set the clock (NTP)",
    },
    Known {
        signs: &["InvalidAccessKeyId", "NotSignedUp"],
        kind: Kind::Denied,
        next: "the store does not know this access key; check AWS_ACCESS_KEY_ID, or the profile of \
               the credentials file",
    },
    Known {
        signs: &["SignatureDoesNotMatch"],
        kind: Kind::Denied,
        next: "the secret key is not the access key's; check AWS_SECRET_ACCESS_KEY, or the profile \
               of the credentials file",
    },
    Known {
        signs: &["ExpiredToken", "TokenRefreshRequired", "InvalidToken"],
        kind: Kind::Denied,
        next: "the credentials are temporary and their time is over; get new ones",
    },
    Known {
        signs: &["latest/api/token", "security-credentials"],
        kind: Kind::Denied,
        next: "no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a \
               credentials file with AWS_SHARED_CREDENTIALS_FILE",
    },
    Known {
        signs: &["AuthorizationHeaderMalformed", "PermanentRedirect", "redirect without LOCATION"],
        kind: Kind::Invalid,
        next: "the bucket is in another region; set AWS_REGION",
    },
    Known {
        signs: &["507 Insufficient", "InsufficientStorage", "QuotaExceeded", "StorageFull"],
        kind: Kind::Full,
        next: "the store is full; make room there and run it again",
    },
];

fn kind_of(e: &StoreError) -> Kind {
    match e {
        StoreError::NotFound { .. } => Kind::Gone,
        StoreError::AlreadyExists { .. } | StoreError::Precondition { .. } => Kind::Conflict,
        StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. } => Kind::Denied,
        StoreError::NotSupported { .. } | StoreError::NotImplemented { .. } => Kind::Unsupported,
        StoreError::JoinError { .. } => Kind::Cancelled,
        StoreError::InvalidPath { .. } | StoreError::UnknownConfigurationKey { .. } => {
            Kind::Invalid
        }
        _ => generic_kind(e),
    }
}

/// The chain of causes of an error, itself first.
fn causes<'a>(e: &'a StoreError) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(e as &'a (dyn StdError + 'static)), |e| (**e).source())
}

/// The cause is somewhere down the chain of sources.
fn generic_kind(e: &StoreError) -> Kind {
    if let Some(io) = causes(e).find_map(|cause| cause.downcast_ref::<io::Error>()) {
        return io_kind(io);
    }
    let text = e.to_string();
    let status = |s: &str| text.contains(&format!("status code: {s}"));
    match e {
        StoreError::Generic { .. } if status("4") && !status("408") && !status("429") => {
            Kind::Invalid
        }
        // A remote store whose own retries ran out, for a cause it does not name.
        StoreError::Generic { store, .. }
            if *store != "LocalFileSystem" && *store != "InMemory" =>
        {
            Kind::Retry
        }
        _ => Kind::Io,
    }
}

fn is_unreachable(e: &StoreError) -> bool {
    let http = causes(e).find_map(|cause| cause.downcast_ref::<HttpError>());
    http.is_some_and(|e| matches!(e.kind(), HttpErrorKind::Connect | HttpErrorKind::Timeout))
}

fn io_kind(e: &io::Error) -> Kind {
    use io::ErrorKind as E;
    match e.kind() {
        E::ConnectionRefused
        | E::ConnectionAborted
        | E::NotConnected
        | E::HostUnreachable
        | E::NetworkUnreachable
        | E::NetworkDown
        | E::UnexpectedEof => Kind::Retry,
        // The place exists in the object store's eyes; something below it does not.
        E::NotFound => Kind::Gone,
        kind => Error::io("", io::Error::from(kind)).kind(),
    }
}

/// Maps an error of the chunk index.
pub(crate) fn from_index(what: impl Display, e: impl Into<redb::Error>) -> Error {
    let e = e.into();
    let kind = match &e {
        redb::Error::Io(io) => io_kind(io),
        redb::Error::DatabaseAlreadyOpen => Kind::Conflict,
        _ => Kind::Io,
    };
    Error::caused(kind, format!("chunk index: {what}: {e}"), e)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(store: &'static str, kind: io::ErrorKind) -> StoreError {
        StoreError::Generic { store, source: Box::new(io::Error::from(kind)) }
    }

    #[test]
    fn kinds_say_what_the_caller_can_do() {
        let e = |e| from_store("put x", e).kind();
        assert_eq!(e(generic("LocalFileSystem", io::ErrorKind::StorageFull)), Kind::Full);
        assert_eq!(e(generic("LocalFileSystem", io::ErrorKind::QuotaExceeded)), Kind::Full);
        assert_eq!(e(generic("S3", io::ErrorKind::TimedOut)), Kind::Retry);
        assert_eq!(e(generic("S3", io::ErrorKind::ConnectionRefused)), Kind::Retry);
        assert_eq!(e(generic("LocalFileSystem", io::ErrorKind::InvalidData)), Kind::Io);
        let text = |t: &str| StoreError::Generic { store: "S3", source: t.to_owned().into() };
        assert_eq!(e(text("Server returned 507 Insufficient Storage")), Kind::Full);
        assert_eq!(e(text("something else")), Kind::Retry);
        let gone = StoreError::NotFound { path: "x".into(), source: "y".into() };
        assert_eq!(e(gone), Kind::Gone);
    }
}
