//! What placement is told of the volumes here that are somebody's.

use api::life::NodeVolume;
use volume_pool::Shelf;
use volume_pool::ready::name_of;

use super::service::{UNPOISONED, Volumes};
use crate::daemon::Grid;

impl<G: Grid> Volumes<G> {
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
                self.0.told.lock().expect(UNPOISONED).clone_from(&volumes);
                volumes
            }
            Err(error) => {
                tracing::error!(%error, "the volumes here cannot be listed: placement is told of them as they were");
                self.0.told.lock().expect(UNPOISONED).clone()
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
