//! Which volumes are attached, and how: what a restart of the daemon must find again.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Mutex;

use api::volume::Attachment;
use blockio::Fs;
use image::{Error, Kind, Result};

/// Longest file that is read, in bytes.
const MOST: usize = 16 << 20;

/// The attachments, by the volume's name; on disk before they count.
pub(super) struct Kept {
    path: PathBuf,
    all: Mutex<BTreeMap<String, Attachment>>,
}

impl Kept {
    pub(super) fn load(path: PathBuf) -> Result<Self> {
        let all = match Fs::os().read(&path, MOST) {
            Ok(text) => serde_json::from_slice(&text).map_err(|e| {
                let what = format!("{}: {e}; move the file away to start anew", path.display());
                Error::caused(Kind::Corrupt, what, e)
            })?,
            Err(e) if e.kind() == ErrorKind::NotFound => BTreeMap::new(),
            Err(e) => return Err(Error::io("the attachments of volumes", e)),
        };
        Ok(Self { path, all: Mutex::new(all) })
    }

    pub(super) fn get(&self, name: &str) -> Option<Attachment> {
        self.all.lock().expect(UNPOISONED).get(name).cloned()
    }

    pub(super) fn all(&self) -> BTreeMap<String, Attachment> {
        self.all.lock().expect(UNPOISONED).clone()
    }

    pub(super) fn insert(&self, name: &str, how: Attachment) -> Result<()> {
        self.change(|all| drop(all.insert(name.to_owned(), how)))
    }

    /// Notes what has just been attached. If its guest has been moved meanwhile, that stays.
    pub(super) fn insert_new(&self, name: &str, how: Attachment) -> Result<()> {
        self.change(|all| {
            all.entry(name.to_owned()).or_insert(how);
        })
    }

    pub(super) fn remove(&self, name: &str) -> Result<()> {
        self.change(|all| drop(all.remove(name)))
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<String, Attachment>)) -> Result<()> {
        let mut all = self.all.lock().expect(UNPOISONED);
        let mut changed = all.clone();
        change(&mut changed);
        let text = serde_json::to_vec(&changed).expect("our own types serialise");
        let kept = Fs::os().replace(&self.path, &text);
        kept.map_err(|e| Error::io("the attachments of volumes", e))?;
        *all = changed;
        Ok(())
    }
}

const UNPOISONED: &str = "no panics while locked";
