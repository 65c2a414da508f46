//! JSON objects that carry their own checksum: the marker, sessions, ref moves, gc's lists.
//!
//! `{"format": 1, "what": "…", "body": {…}, "check": "<16 hex>"}`; `check` is the start of the
//! BLAKE3 of the same object without `check`, with sorted keys and no spaces. A flipped bit in a
//! name or time would otherwise still be good JSON.

use bytes::Bytes;
use image::FormatError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// The format version that this program reads and writes.
pub(crate) const FORMAT: u64 = 1;

/// The stored form of `body`.
pub(crate) fn seal<T: Serialize>(what: &'static str, body: &T) -> Bytes {
    let mut value = json!({ "format": FORMAT, "what": what, "body": body });
    let check = checksum(&value);
    value["check"] = Value::String(check);
    serde_json::to_vec(&sorted(&value)).expect("a JSON value serialises").into()
}

/// Checks and reads the stored form.
pub(crate) fn open<T: DeserializeOwned>(
    what: &'static str,
    bytes: &[u8],
) -> Result<T, FormatError> {
    let bad = |why: &str| FormatError::Text { what, why: why.to_owned() };
    let mut value: Value =
        serde_json::from_slice(bytes).map_err(|e| bad(&format!("not JSON: {e}")))?;
    let object = value.as_object_mut().ok_or_else(|| bad("not a JSON object"))?;
    if object.get("what").and_then(Value::as_str) != Some(what) {
        return Err(bad("something else is stored here"));
    }
    let format = object.get("format").and_then(Value::as_u64).ok_or_else(|| bad("no version"))?;
    if format != FORMAT {
        let found = u16::try_from(format).unwrap_or(u16::MAX);
        return Err(FormatError::Version { what, found, known: FORMAT as u16 });
    }
    let check = object.remove("check").ok_or_else(|| bad("no checksum"))?;
    if check.as_str() != Some(&checksum(&value)) {
        return Err(FormatError::Mismatch { what, which: "checksum" });
    }
    serde_json::from_value(value["body"].take()).map_err(|e| bad(&format!("its content: {e}")))
}

fn checksum(value: &Value) -> String {
    let canonical = serde_json::to_vec(&sorted(value)).expect("a JSON value serialises");
    blake3::hash(&canonical).to_hex()[..16].to_owned()
}

/// The same value with sorted keys, whichever map `serde_json` was built with.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(key, _)| *key);
            Value::Object(entries.into_iter().map(|(k, v)| (k.clone(), sorted(v))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(sorted).collect()),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_and_every_truncation_is_caught() {
        let body = json!({ "name": "debian:12", "at": 1_700_000_000 });
        let good = seal("thing", &body);
        assert_eq!(open::<Value>("thing", &good).unwrap(), body);
        assert!(open::<Value>("other", &good).is_err());
        for byte in 0..good.len() {
            assert!(open::<Value>("thing", &good[..byte]).is_err(), "cut at {byte}");
            for bit in 0..8 {
                let mut bad = good.to_vec();
                bad[byte] ^= 1 << bit;
                assert!(open::<Value>("thing", &bad).is_err(), "byte {byte} bit {bit}");
            }
        }
    }

    #[test]
    fn a_newer_format_is_named() {
        let text = br#"{"body":{},"check":"","format":2,"what":"thing"}"#;
        let e = open::<Value>("thing", text).unwrap_err();
        assert!(matches!(e, FormatError::Version { found: 2, known: 1, .. }), "{e}");
    }
}
