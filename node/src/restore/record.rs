//! What came of rehearsals, kept in a file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use blockio::Fs;
use image::{Digest, Error, Kind, Result};
use serde::{Deserialize, Serialize};

use super::report::Rehearsal;

/// Rehearsals that are kept, at most.
pub const MAX_RECORDED: usize = 2000;
/// Bytes of the file that are read, at most: a rehearsal's parts are bounded, and what is said of each.
const LARGEST: usize = 64 << 20;
/// Parts of a disk that are kept of a rehearsal: of what is damaged first.
const PARTS: usize = 16;
const VERSION: u32 = 1;

/// The rehearsals of a machine, oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    version: u32,
    /// The images that had names when the last run began.
    #[serde(default)]
    pub named: BTreeSet<Digest>,
    /// What came of each.
    pub rehearsals: Vec<Rehearsal>,
}

impl Default for Record {
    fn default() -> Self {
        Self { version: VERSION, named: BTreeSet::new(), rehearsals: Vec::new() }
    }
}

impl Record {
    /// The record at `path`; an empty one if there is none.
    ///
    /// # Errors
    ///
    /// [`Kind::Corrupt`] if it is none, [`Kind::Unsupported`] for a later version; what the system says.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = match Fs::os().read(path, LARGEST) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => return Err(Error::io("the record of rehearsals", e)),
        };
        let place = path.display();
        let record: Self = serde_json::from_slice(&bytes).map_err(|e| {
            let what = format!("{place}: {e}: move it away to begin another record");
            Error::caused(Kind::Corrupt, what, e)
        })?;
        match record.version {
            VERSION => Ok(record),
            found => {
                let what = format!("{place}: version {found}, but this program knows {VERSION}");
                Err(Error::new(Kind::Unsupported, what))
            }
        }
    }

    /// Puts it at `path`, whole or not at all.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn save(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_vec(self).expect("our own types serialise");
        Fs::os().replace(path, &text).map_err(|e| Error::io("the record of rehearsals", e))
    }

    /// Adds what came of one. Where there are too many, the oldest goes of an image that has a newer one, or the
    /// oldest.
    pub fn add(&mut self, mut rehearsal: Rehearsal) {
        if let Some(restored) = &mut rehearsal.restored {
            let good =
                |verdict: &super::Verdict| !matches!(verdict, super::Verdict::Damaged { .. });
            restored.parts.sort_by_key(|part| good(&part.verdict));
            restored.parts.truncate(PARTS);
            restored.parts.sort_by_key(|part| (part.number, part.start));
        }
        self.rehearsals.push(rehearsal);
        while self.rehearsals.len() > MAX_RECORDED {
            let newer = |i: usize| {
                let image = &self.rehearsals[i].image;
                self.rehearsals[i + 1..].iter().any(|later| later.image == *image)
            };
            let oldest = (0..self.rehearsals.len()).find(|i| newer(*i)).unwrap_or(0);
            self.rehearsals.remove(oldest);
        }
    }

    /// When each image was last rehearsed, in seconds since 1970; whatever came of it, for else one that never comes to an
    /// end here would be drawn before all others.
    pub fn last(&self) -> BTreeMap<Digest, u64> {
        let mut last = BTreeMap::new();
        for Rehearsal { image, at, .. } in &self.rehearsals {
            let known = last.entry(*image).or_insert(*at);
            *known = (*known).max(*at);
        }
        last
    }

    /// The last rehearsal under each name, of images that have one still.
    pub fn latest(&self) -> Vec<&Rehearsal> {
        let named = self.rehearsals.iter().filter(|r| self.named.contains(&r.image));
        let all = named.map(|rehearsal| (rehearsal.name.as_str(), rehearsal));
        all.collect::<BTreeMap<_, _>>().into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::restore::{Failure, Part, Restored, Verdict};

    fn image(n: u64) -> Digest {
        Digest::of_chunk(&n.to_le_bytes())
    }

    fn part(number: u32, verdict: Verdict) -> Part {
        let number = Some(number);
        Part { number, start: 0, bytes: 1, holds: "ext".into(), tool: None, verdict, millis: 1 }
    }

    fn rehearsal(at: u64, n: u64) -> Rehearsal {
        let parts = (1..40).map(|n| part(n, Verdict::Clean)).collect();
        let mut restored = Restored {
            name: format!("i:{n}"),
            image: image(n),
            size: 10,
            data: 5,
            received: 3,
            pull_millis: 2,
            parts,
            boot: None,
            not_booted: None,
        };
        restored.parts[30].verdict = Verdict::damaged("bits");
        let (name, image) = (format!("i:{n}"), image(n));
        Rehearsal { at, name, image, restored: Some(restored), error: None }
    }

    #[test]
    fn it_is_bounded_and_forgets_images_last() {
        let mut record = Record::default();
        record.add(rehearsal(0, 99));
        for at in 1..(MAX_RECORDED as u64 + 50) {
            record.add(rehearsal(at, at % 10));
        }
        assert_eq!(record.rehearsals.len(), MAX_RECORDED);
        assert_eq!(record.last()[&image(99)], 0);
        let kept = &record.rehearsals[0].restored.as_ref().unwrap().parts;
        assert_eq!(kept.len(), PARTS);
        assert!(kept.iter().any(|part| part.number == Some(31)), "what is damaged is kept");
        record.named = (1..4).chain([99]).map(image).collect();
        assert_eq!(record.latest().len(), 4);
    }

    #[test]
    fn an_attempt_counts_whatever_came_of_it() {
        let mut record = Record::default();
        record.add(rehearsal(3, 1));
        let error = Some(Failure { kind: "full".into(), message: "no room".into() });
        record.add(Rehearsal { restored: None, error, ..rehearsal(5, 1) });
        assert_eq!(record.last()[&image(1)], 5);
        assert!(!record.rehearsals[1].passed());
    }

    #[test]
    fn it_is_kept_whole_and_what_is_none_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rehearsals.json");
        assert_eq!(Record::load(&path).unwrap(), Record::default());
        let mut record = Record::default();
        record.add(rehearsal(1, 1));
        record.save(&path).unwrap();
        assert_eq!(Record::load(&path).unwrap(), record);
        std::fs::write(&path, r#"{"version":2,"rehearsals":[]}"#).unwrap();
        assert_eq!(Record::load(&path).unwrap_err().kind(), Kind::Unsupported);
        std::fs::write(&path, "{").unwrap();
        assert_eq!(Record::load(&path).unwrap_err().kind(), Kind::Corrupt);
    }
}
