//! The error that crosses seams: what the caller can do about it, and where it happened.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Result of anything that crosses a seam.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the caller can do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Transient: the same request may succeed at once or elsewhere.
    Retry,
    /// Overload: ask again, not before this long.
    Busy(Duration),
    /// Somebody else holds or moved it; look again before you repeat.
    Conflict,
    /// Bytes do not match their checksum or digest. Another copy may be good.
    Corrupt,
    /// It does not exist, or no longer.
    Gone,
    /// The caller may not do this.
    Denied,
    /// No space, or a quota is reached.
    Full,
    /// A version, codec, feature or operation that this program does not know.
    Unsupported,
    /// The caller, or a shutdown, ended it.
    Cancelled,
    /// The request or input itself is wrong; repeating it cannot help.
    Invalid,
    /// The operating system refused an operation; the message names it.
    Io,
}

impl Kind {
    /// The kind's name in messages, JSON and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Retry => "retry",
            Kind::Busy(_) => "busy",
            Kind::Conflict => "conflict",
            Kind::Corrupt => "corrupt",
            Kind::Gone => "gone",
            Kind::Denied => "denied",
            Kind::Full => "full",
            Kind::Unsupported => "unsupported",
            Kind::Cancelled => "cancelled",
            Kind::Invalid => "invalid",
            Kind::Io => "io",
        }
    }
}

/// An error with what the caller can do ([`Kind`]) and where it happened (in the message, outermost
/// place first: `pack 8f…: offset 16: chunk payload does not match its CRC32C`).
#[derive(Clone)]
pub struct Error {
    kind: Kind,
    message: String,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of this kind; `message` says what is wrong, and with which thing.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// The same, keeping its cause.
    pub fn caused(
        kind: Kind,
        message: impl Into<String>,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self { kind, message: message.into(), source: Some(Arc::new(source)) }
    }

    /// An operating system error: a full disk is [`Kind::Full`], a missing file [`Kind::Gone`].
    pub fn io(what: impl fmt::Display, error: std::io::Error) -> Self {
        use std::io::ErrorKind as E;
        let kind = match error.kind() {
            E::StorageFull | E::QuotaExceeded | E::FileTooLarge => Kind::Full,
            E::NotFound => Kind::Gone,
            E::PermissionDenied => Kind::Denied,
            E::AlreadyExists | E::ResourceBusy => Kind::Conflict,
            E::Unsupported => Kind::Unsupported,
            E::Interrupted | E::TimedOut | E::ConnectionReset | E::BrokenPipe => Kind::Retry,
            _ => Kind::Io,
        };
        Self::caused(kind, format!("{what}: {error}"), error)
    }

    /// Puts a place in front of the message.
    #[must_use]
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.message = format!("{place}: {}", self.message);
        self
    }

    /// What the caller can do.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The message, places first.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.name(), self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|s| s.as_ref() as &(dyn std::error::Error + 'static))
    }
}

/// Adds a place to the error of a result.
pub trait At<T> {
    /// Puts `place` in front of the error's message.
    fn at<P: fmt::Display>(self, place: impl FnOnce() -> P) -> Result<T>;
}

impl<T, E: Into<Error>> At<T> for std::result::Result<T, E> {
    fn at<P: fmt::Display>(self, place: impl FnOnce() -> P) -> Result<T> {
        self.map_err(|e| e.into().at(place()))
    }
}

/// Why bytes are not what they should be. Everything a decoder of this crate can say.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Fewer bytes than the format needs at this point.
    #[error("{what}: truncated: {need} bytes needed, {have} there")]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Bytes that were needed.
        need: usize,
        /// Bytes that were there.
        have: usize,
    },
    /// More bytes than the format describes.
    #[error("{what}: {extra} bytes after the end")]
    Trailing {
        /// What was being read.
        what: &'static str,
        /// Bytes too many.
        extra: usize,
    },
    /// The magic number of another format, or none.
    #[error("{what}: not in this format (magic {found:02x?})")]
    Magic {
        /// What was expected.
        what: &'static str,
        /// What stood there.
        found: [u8; 4],
    },
    /// A version of the format that this program does not read.
    #[error("{what}: format version {found} is not known here (this program reads {known})")]
    Version {
        /// What was being read.
        what: &'static str,
        /// The version found.
        found: u16,
        /// The newest version known.
        known: u16,
    },
    /// A codec, feature or domain that this program does not implement.
    #[error("{what}: {feature} is not implemented by this version")]
    Unimplemented {
        /// What was being read.
        what: &'static str,
        /// The feature, by name.
        feature: String,
    },
    /// A field outside its limits, or bytes that are not canonical.
    #[error("{what}: {field} is out of bounds ({value})")]
    Field {
        /// What was being read.
        what: &'static str,
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// A checksum or digest that does not match.
    #[error("{what}: {which} does not match")]
    Mismatch {
        /// What was being read.
        what: &'static str,
        /// Which checksum.
        which: &'static str,
    },
    /// A text or signature that does not parse.
    #[error("{what}: {why}")]
    Text {
        /// What was being read.
        what: &'static str,
        /// Why not.
        why: String,
    },
}

impl FormatError {
    /// What a reader of stored or sent bytes can do about it.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Version { .. } | Self::Unimplemented { .. } => Kind::Unsupported,
            _ => Kind::Corrupt,
        }
    }
}

impl From<FormatError> for Error {
    fn from(e: FormatError) -> Self {
        Error::caused(e.kind(), e.to_string(), e)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_refuses_is_denied_only_where_a_right_would_help() {
        use std::io::ErrorKind as E;
        for (error, kind) in [
            (E::PermissionDenied, Kind::Denied),
            (E::ReadOnlyFilesystem, Kind::Io),
            (E::StorageFull, Kind::Full),
            (E::NotFound, Kind::Gone),
        ] {
            assert_eq!(Error::io("x", error.into()).kind(), kind, "{error}");
        }
    }
}
