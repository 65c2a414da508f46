//! What the file of a plain volume shares with its image's base is as in the image, whoever has written to it.

use blockio::BlockFile;
use image::Digest;
use volume_pool::{Identity, Unshared, unshared};

use super::service::Volumes;
use crate::daemon::Grid;

impl<G: Grid> Volumes<G> {
    /// The chunks of a plain volume, whose bytes are `data`, that are not known to be as in its image. Nothing if that
    /// cannot be told: then all is to be read, and nobody is worse off.
    pub(super) async fn unshared(&self, identity: &Identity, data: BlockFile) -> Option<Unshared> {
        let (shelf, identity) = (self.0.shelf.clone(), identity.clone());
        let name = identity.name.clone();
        let compare = move || match shelf.whole_base(&identity)? {
            Some(base) => unshared(&identity, &data, &base),
            None => Ok(None),
        };
        let compared = self.blocking(compare).await;
        compared.unwrap_or_else(|error| {
            tracing::warn!(%error, name, "what it shares with its image cannot be told");
            None
        })
    }
}

/// The image of whose base the file of a volume may share blocks.
pub(super) fn image_of(identity: &Identity) -> Option<Digest> {
    identity.base.filter(|_| identity.plain && identity.shares).map(|base| base.image)
}
