//! What goes over a monitor's socket: one JSON object a line, both ways.

use std::fmt;
use std::time::Duration;

use image::{Error, Kind};
use serde::Deserialize;
use serde_json::{Value, json};

/// Longest line that is read, in bytes. A QEMU with hundreds of disks answers with half a megabyte.
pub const MAX_LINE: usize = 4 << 20;

/// Why a monitor did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The socket failed.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// QEMU ended the connection, or itself.
    #[error("QEMU closed the connection")]
    Closed,
    /// No answer in time. A monitor serves one client at a time: perhaps another is connected.
    #[error("no answer to {what} within {} ms; is another client connected?", patience.as_millis())]
    Late {
        /// What was waited for.
        what: String,
        /// For how long.
        patience: Duration,
    },
    /// A line above the longest that is read.
    #[error("a line of more than {MAX_LINE} bytes")]
    LongLine,
    /// What arrived is not this protocol.
    #[error("not what a QEMU monitor says: {0}")]
    Garbage(String),
    /// An earlier command was left half sent: connect again.
    #[error("the connection was left in the middle of a command")]
    Broken,
    /// QEMU said no.
    #[error("{command}: {desc}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's class of error; nearly always `GenericError`.
        class: String,
        /// Its words.
        desc: String,
    },
}

impl QmpError {
    fn kind(&self) -> Kind {
        match self {
            Self::Io(_) | Self::Closed | Self::Late { .. } | Self::Broken => Kind::Retry,
            Self::LongLine | Self::Garbage(_) => Kind::Invalid,
            Self::Refused { class, .. } => match class.as_str() {
                "CommandNotFound" => Kind::Unsupported,
                "DeviceNotFound" => Kind::Gone,
                _ => Kind::Conflict,
            },
        }
    }
}

impl From<QmpError> for Error {
    fn from(error: QmpError) -> Error {
        Error::caused(error.kind(), error.to_string(), error)
    }
}

/// A version of QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Version {
    /// 7 in 7.2.22.
    pub major: u32,
    /// 2 in 7.2.22.
    pub minor: u32,
    /// 22 in 7.2.22.
    pub micro: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// The first thing that a monitor says.
#[derive(Debug, Deserialize)]
pub struct Greeting {
    #[serde(rename = "QMP")]
    qmp: GreetingBody,
}

#[derive(Debug, Deserialize)]
struct GreetingBody {
    version: FullVersion,
}

#[derive(Debug, Deserialize)]
struct FullVersion {
    qemu: Version,
    #[serde(default)]
    package: String,
}

impl Greeting {
    /// Reads the first line.
    pub fn parse(line: &[u8]) -> Result<Greeting, QmpError> {
        serde_json::from_slice(line).map_err(|e| garbage("the greeting", &e))
    }

    /// QEMU's version, and what its packager calls it.
    pub fn version(self) -> (Version, String) {
        (self.qmp.version.qemu, self.qmp.version.package)
    }
}

/// The answer to a command, or `None` for a line that is something else: an event, or the late answer
/// to a command that nobody waits for any more.
pub fn answer(line: &[u8], command: &str, id: u64) -> Result<Option<Value>, QmpError> {
    let mut line: Value = serde_json::from_slice(line).map_err(|e| garbage("a line", &e))?;
    if line.get("event").is_some() {
        return Ok(None);
    }
    let error = line.get_mut("error").map(Value::take);
    match line.get("id").and_then(Value::as_u64) {
        Some(found) if found == id => {}
        // An error without an id is about a line that QEMU could not parse.
        None if error.is_some() => {}
        Some(found) if found < id => return Ok(None),
        _ => return Err(QmpError::Garbage("an answer that nobody asked for".to_owned())),
    }
    if let Some(error) = error {
        let text = |field: &str| error.get(field).and_then(Value::as_str).unwrap_or("").to_owned();
        let (class, desc) = (text("class"), text("desc"));
        return Err(QmpError::Refused { command: command.to_owned(), class, desc });
    }
    match line.get_mut("return") {
        Some(value) => Ok(Some(value.take())),
        None => Err(QmpError::Garbage("an answer without a result".to_owned())),
    }
}

/// A command, as it is sent.
pub fn command(name: &str, arguments: &Value, id: u64) -> Vec<u8> {
    let mut command = json!({ "execute": name, "id": id });
    if !arguments.is_null() {
        command["arguments"] = arguments.clone();
    }
    let mut line = command.to_string().into_bytes();
    line.push(b'\n');
    line
}

fn garbage(what: &str, error: &serde_json::Error) -> QmpError {
    QmpError::Garbage(format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_tells_the_version() {
        let line = br#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}, "capabilities": ["oob"]}}"#;
        let (version, package) = Greeting::parse(line).unwrap().version();
        assert_eq!((version.to_string().as_str(), package.as_str()), ("7.2.22", "Debian"));
        assert!(version < Version { major: 10, minor: 0, micro: 0 });
        for bad in [&b"SSH-2.0-OpenSSH"[..], b"", b"{}", b"{\"QMP\": 7}"] {
            assert!(matches!(Greeting::parse(bad), Err(QmpError::Garbage(_))));
        }
    }

    #[test]
    fn answers_are_told_from_events_and_from_those_that_come_too_late() {
        let read = |line: &str| answer(line.as_bytes(), "stop", 5);
        assert_eq!(read(r#"{"return": {"a": 1}, "id": 5}"#).unwrap(), Some(json!({"a": 1})));
        assert_eq!(read(r#"{"event": "STOP", "data": {}}"#).unwrap(), None);
        assert_eq!(read(r#"{"return": {}, "id": 4}"#).unwrap(), None);
        assert_eq!(read(r#"{"error": {"class": "GenericError"}, "id": 4}"#).unwrap(), None);
        for bad in [r#"{"return": {}, "id": 6}"#, r#"{"return": {}}"#, r#"{"id": 5}"#, "[]", "x"] {
            assert!(matches!(read(bad), Err(QmpError::Garbage(_))), "{bad}");
        }
    }

    #[test]
    fn a_refusal_has_qemus_words_and_says_what_can_be_done() {
        for (class, kind) in [
            ("GenericError", Kind::Conflict),
            ("CommandNotFound", Kind::Unsupported),
            ("DeviceNotFound", Kind::Gone),
        ] {
            let line = json!({ "id": 1, "error": { "class": class, "desc": "no" } }).to_string();
            let error: Error = answer(line.as_bytes(), "stop", 1).unwrap_err().into();
            assert_eq!((error.kind(), error.message()), (kind, "stop: no"));
        }
        let unparsed = br#"{"error": {"class": "GenericError", "desc": "JSON parse error"}}"#;
        assert!(matches!(answer(unparsed, "stop", 1), Err(QmpError::Refused { .. })));
    }

    #[test]
    fn a_command_is_one_line() {
        let line = command("stop", &Value::Null, 3);
        assert_eq!(line, b"{\"execute\":\"stop\",\"id\":3}\n");
        let line = command("job-cancel", &json!({ "id": "a\nb" }), 4);
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
    }
}
