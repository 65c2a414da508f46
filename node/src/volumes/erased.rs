//! What placement is told of volumes that were given back and are erased.
//!
//! In `erasures/untold/`, beside the records, there is a file for each of which it is not known that placement remembers it. It
//! holds what the volume was made for. It is there before the record is, and goes when placement has answered.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use api::released::{MOST, Released};
use blockio::Fs;
use image::{Error, Result};
use serde::Deserialize;
use volume_pool::erase::{Method, Record};

use super::service::Volumes;
use crate::daemon::Grid;

const UNTOLD: &str = "untold";
/// Longest file that is read, in bytes.
const LONGEST: usize = 64 << 10;

fn io(error: std::io::Error) -> Error {
    Error::io("what was erased", error)
}

fn path(records: &Path, id: &str) -> PathBuf {
    records.join(UNTOLD).join(id)
}

/// Has it be told once there is a record. `origin` is what the volume was made for.
pub(super) fn note(records: &Path, id: &str, origin: Option<&[u8]>) -> Result<()> {
    Fs::os().create_dir_all(records.join(UNTOLD)).map_err(io)?;
    Fs::os().replace(path(records, id), origin.unwrap_or_default()).map_err(io)
}

/// The ids of those that are to be told, in their order.
fn untold(records: &Path) -> Result<Vec<String>> {
    match Fs::os().list(records.join(UNTOLD)) {
        Ok(names) => {
            let is_id =
                |name: &String| name.len() == 32 && name.bytes().all(|b| b.is_ascii_hexdigit());
            let names = names.into_iter().filter_map(|name| name.into_string().ok());
            Ok(names.filter(is_id).collect())
        }
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(io(e)),
    }
}

/// What is to be said of one; nothing while there is no record, since it is not erased yet.
fn one(records: &Path, id: &str) -> Result<Option<Released>> {
    let text = match Fs::os().read(records.join(format!("{id}.erasure")), LONGEST) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io(e)),
    };
    // Whose signature it is, is for who reads the record to ask.
    let record = Record::open(&String::from_utf8_lossy(&text), |_, _| true)?;
    #[derive(Deserialize)]
    struct Origin {
        pool: String,
    }
    let origin = Fs::os().read(path(records, id), LONGEST).map_err(io)?;
    let (method, passes) = match record.method {
        Method::Zeros { passes } => ("zeros", passes),
        Method::Random { passes } => ("random", passes),
        Method::Discard => ("discard", 1),
    };
    let tally = record.tally;
    let taken = [tally.overwritten, tally.discarded, tally.moved];
    let taken = taken.into_iter().fold(0, u64::saturating_add);
    Ok(Some(Released {
        volume: record.volume,
        called: record.name,
        pool: serde_json::from_slice::<Origin>(&origin).ok().map(|origin| origin.pool),
        size: record.size,
        // In several passes it is overwritten several times.
        freed: taken.min(record.length),
        method: method.into(),
        passes,
        read_back: tally.read_back,
        ended: record.ended,
    }))
}

impl<G: Grid> Volumes<G> {
    /// What placement is to be told. What cannot be read is said here, and told when it can be.
    pub(crate) async fn erased(&self) -> Vec<Released> {
        let records = self.0.records.clone();
        let found = self.blocking(move || {
            let mut all = Vec::new();
            for id in untold(&records)? {
                match one(&records, &id) {
                    Ok(Some(erased)) => all.push(erased),
                    Ok(None) => {}
                    Err(error) => tracing::warn!(%error, id, "that it was erased is not told"),
                }
                if all.len() == MOST {
                    break;
                }
            }
            Ok(all)
        });
        found.await.unwrap_or_else(|error| {
            tracing::error!(%error, "what was erased is not told");
            Vec::new()
        })
    }

    /// Placement remembers these: they are not told any more.
    pub(crate) async fn recorded(&self, ids: Vec<String>) -> Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        let records = self.0.records.clone();
        self.blocking(move || {
            for id in untold(&records)?.into_iter().filter(|id| ids.contains(id)) {
                match Fs::os().remove_file(path(&records, &id)) {
                    Err(e) if e.kind() != ErrorKind::NotFound => return Err(io(e)),
                    _ => {}
                }
            }
            Fs::os().sync_dir(records.join(UNTOLD)).map_err(io)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_once_there_is_a_record_and_what_else_lies_there_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (records, id) = (dir.path(), "ab".repeat(16));
        assert!(untold(records).unwrap().is_empty());
        note(records, &id, Some(br#"{"pool":"web"}"#)).unwrap();
        std::fs::write(path(records, "rubbish"), "").unwrap();
        assert_eq!(untold(records).unwrap(), std::slice::from_ref(&id));
        assert_eq!(one(records, &id).unwrap(), None, "it is not erased yet");
        std::fs::write(records.join(format!("{id}.erasure")), "rubbish").unwrap();
        assert_eq!(one(records, &id).unwrap_err().kind(), image::Kind::Corrupt);
    }
}
