//! From an object store's errors to what the caller can do about them.

use std::error::Error as StdError;
use std::fmt::Display;
use std::io;

use image::{Error, Kind};
use object_store::Error as StoreError;

/// Maps an error of the object store; `what` names the operation and the object.
pub(crate) fn from_store(what: impl Display, e: StoreError) -> Error {
    let kind = kind_of(&e);
    let hint = match kind {
        Kind::Full => ": the store is full; make room there and run it again",
        _ => "",
    };
    Error::caused(kind, format!("{what}: {e}{hint}"), e)
}

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

/// The cause is somewhere down the chain of sources.
fn generic_kind(e: &StoreError) -> Kind {
    let mut source: Option<&(dyn StdError + 'static)> = Some(e);
    while let Some(error) = source {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return io_kind(io);
        }
        source = error.source();
    }
    let text = e.to_string();
    // Remote stores say this only in the text of their answer.
    if ["507 ", "InsufficientStorage", "QuotaExceeded", "StorageFull"]
        .iter()
        .any(|t| text.contains(t))
    {
        return Kind::Full;
    }
    match e {
        // A remote store whose own retries ran out, for a cause it does not name.
        StoreError::Generic { store, .. }
            if *store != "LocalFileSystem" && *store != "InMemory" =>
        {
            Kind::Retry
        }
        _ => Kind::Io,
    }
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
