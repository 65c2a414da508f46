//! Boot traces on their way between nodes and placement; the routes are those of the [catalogue](crate::catalog).

use image::{BootTrace, Error, Kind};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A boot trace in numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TraceInfo {
    /// Starts that were recorded, and still count.
    pub recordings: u16,
    /// Chunks that guests touch.
    pub chunks: u64,
    /// Milliseconds from a guest's first I/O to the last of these chunks.
    pub millis: u32,
}

impl From<&BootTrace> for TraceInfo {
    fn from(trace: &BootTrace) -> Self {
        let chunks = trace.touches().len() as u64;
        Self { recordings: trace.recordings(), chunks, millis: trace.millis() }
    }
}

/// A boot trace on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TraceBody {
    /// Its bytes (`docs/formats.md`), in hexadecimal.
    pub trace: String,
}

impl TraceBody {
    /// Longest body in bytes.
    pub const MAX: usize = 2 * image::trace::MAX_TRACE + 1024;

    /// The trace, checked.
    ///
    /// # Errors
    ///
    /// [`Kind::Invalid`] for what is none, [`Kind::Unsupported`] for that of a later version.
    pub fn open(&self) -> Result<BootTrace, Error> {
        let invalid = |why: String| Error::new(Kind::Invalid, format!("boot trace: {why}"));
        let digits = self.trace.as_bytes().chunks(2);
        let byte = |pair: &[u8]| match pair {
            &[high, low] => Some((digit(high)? << 4) | digit(low)?),
            _ => None,
        };
        let bytes: Option<Vec<u8>> = digits.map(byte).collect();
        let bytes = bytes.ok_or_else(|| invalid("not hexadecimal".into()))?;
        BootTrace::parse(&bytes).map_err(|e| match e.kind() {
            Kind::Unsupported => e.into(),
            _ => invalid(e.to_string()),
        })
    }
}

fn digit(c: u8) -> Option<u8> {
    char::from(c).to_digit(16).map(|d| d as u8)
}

impl From<&BootTrace> for TraceBody {
    fn from(trace: &BootTrace) -> Self {
        Self { trace: trace.to_bytes().iter().map(|b| format!("{b:02x}")).collect() }
    }
}

#[cfg(test)]
mod tests {
    use image::Digest;

    use super::*;

    #[test]
    fn a_trace_arrives_as_it_was_sent_or_is_refused() {
        let touch = image::Touch { chunk: 5, at: 3, seen: 1 };
        let trace = BootTrace::new(Digest::of_chunk(b"i"), 1, vec![touch]).unwrap();
        let body = TraceBody::from(&trace);
        assert_eq!(body.open().unwrap(), trace);
        assert!(body.trace.len() < TraceBody::MAX);
        let later = body.trace.replacen("0100", "0200", 1);
        for (text, kind) in [
            ("", Kind::Invalid),
            ("4", Kind::Invalid),
            ("é4", Kind::Invalid),
            ("+1", Kind::Invalid),
            (&body.trace[2..], Kind::Invalid),
            (&later, Kind::Unsupported),
        ] {
            let refused = TraceBody { trace: text.to_owned() }.open().unwrap_err();
            assert_eq!(refused.kind(), kind, "{text}: {refused}");
        }
    }
}
