//! Where placement's state is.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::{Error, Kind, Result};

use super::cluster::{Cluster, ClusterPlace};
use super::disk::Disk;
use super::keys::Keys;
use crate::clock::Uptime;
use crate::files;

/// Where placement's state is.
#[derive(Clone, Debug)]
pub enum StatePlace {
    /// In a redb file, of one placement.
    File(PathBuf),
    /// In etcd, of several.
    Cluster {
        /// Where in etcd.
        place: ClusterPlace,
        /// What leases are counted by.
        uptime: Uptime,
    },
}

impl From<PathBuf> for StatePlace {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
    }
}

impl fmt::Display for StatePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Cluster { place, .. } => write!(f, "{place}"),
        }
    }
}

impl StatePlace {
    /// Whether several placements can be there at a time.
    pub(super) fn is_shared(&self) -> bool {
        matches!(self, Self::Cluster { .. })
    }

    /// Whether there is a file, if it is to be in one.
    pub(crate) fn exists(&self) -> Result<bool> {
        match self {
            Self::File(path) => files::exists(path),
            Self::Cluster { .. } => Ok(true),
        }
    }

    /// The keys that are there; makes the file, if there is none. `grid` may be nothing if the place names a
    /// prefix.
    pub(crate) async fn keys(&self, grid: Option<&str>) -> Result<Arc<dyn Keys>> {
        match self {
            Self::File(path) => Ok(Arc::new(blocking(path, Disk::open).await?)),
            Self::Cluster { place, uptime } => {
                Ok(Arc::new(Cluster::new(place, grid, uptime.clone())?))
            }
        }
    }

    /// Compares the file's checksums; says what was repaired.
    pub(super) async fn verify(&self) -> Result<Option<String>> {
        match self {
            Self::File(path) => blocking(path, Disk::verify).await,
            Self::Cluster { .. } => Ok(None),
        }
    }
}

/// Runs on a thread that may block.
async fn blocking<T: Send + 'static>(path: &Path, work: fn(&Path) -> Result<T>) -> Result<T> {
    let owned = path.to_owned();
    let done = tokio::task::spawn_blocking(move || work(&owned)).await;
    done.map_err(|e| Error::new(Kind::Io, format!("{}: {e}", path.display())))?
}
