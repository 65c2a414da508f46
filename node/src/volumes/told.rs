//! What placement is told of the volumes here that are somebody's.

use std::sync::Mutex;

use api::life::NodeVolume;
use tokio::sync::Notify;
use volume_pool::Shelf;
use volume_pool::ready::name_of;

use super::service::{UNPOISONED, Volumes};
use crate::daemon::Grid;

/// What was told last, and that there is something new to tell.
#[derive(Default)]
pub(super) struct Told {
    last: Mutex<Vec<NodeVolume>>,
    changed: Notify,
}

impl Told {
    /// There is one more, or one less: placement is to hear of that at once.
    pub(super) fn changed(&self) {
        self.changed.notify_one();
    }
}

impl<G: Grid> Volumes<G> {
    /// Waits until there is something new to tell.
    pub(crate) async fn changed(&self) {
        self.0.told.changed.notified().await;
    }

    /// The volumes that are somebody's, in the order of their names. While they cannot be listed, as they were listed
    /// last: what they read from is not to go meanwhile.
    pub(crate) async fn told(&self) -> Vec<NodeVolume> {
        let (shelf, kept) = (self.0.shelf.clone(), self.0.kept.all());
        let listed = self.blocking(move || {
            Ok(shelf.names()?.iter().filter_map(|name| one(&shelf, name)).collect::<Vec<_>>())
        });
        match listed.await {
            Ok(mut volumes) => {
                for volume in &mut volumes {
                    volume.attached = kept.contains_key(&volume.called);
                }
                self.0.told.last.lock().expect(UNPOISONED).clone_from(&volumes);
                volumes
            }
            Err(error) => {
                tracing::error!(%error, "the volumes here cannot be listed: placement is told of them as they were");
                self.0.told.last.lock().expect(UNPOISONED).clone()
            }
        }
    }
}

/// One of them; what cannot be read is said when it is used.
fn one(shelf: &Shelf, name: &str) -> Option<NodeVolume> {
    let identity = shelf.identity(name).ok()?;
    Some(NodeVolume {
        id: name_of(&identity.id),
        called: identity.name,
        size: identity.size,
        image: identity.base.filter(|_| !identity.plain).map(|base| base.image),
        attached: false,
    })
}
