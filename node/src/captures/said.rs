//! What is said of an image that a capture has made.

use api::catalog::NewRecord;
use image::record::{ImageKind, Unread};
use image::{Digest, Error, Kind, Result};

use super::Saves;

/// What an image was made from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Made {
    pub(super) of: Option<Digest>,
    /// Somebody says so; else it is what the volume says.
    pub(super) is_said: bool,
}

/// Refuses a kind that a disk is not. A fresh one was never shown to a guest that could write to it.
pub(super) fn check(said: &NewRecord, is_fresh: bool) -> Result<()> {
    if said.kind != Some(ImageKind::AsDeployed) || is_fresh {
        return Ok(());
    }
    let what = "it is not as it was deployed: it was attached to be written to, or made by a version that did not note \
                that; save it as a snapshot";
    Err(Error::new(Kind::Conflict, what))
}

/// What is to be said: what was asked for; of an image of which nothing was said before also what it was made from, and
/// what its machine needs. One that was described, perhaps under another name, is what it was, unless somebody says
/// otherwise.
pub(super) async fn of<G: Saves>(
    grid: &G,
    asked: &NewRecord,
    image: &Digest,
    made: Made,
    unread: Option<Unread>,
) -> Result<NewRecord> {
    let said = NewRecord { unread, ..asked.clone() };
    let parent = made.of.filter(|parent| parent != image);
    if grid.record(image).await?.is_some() {
        return Ok(NewRecord { parent: parent.filter(|_| made.is_said), ..said });
    }
    let said = NewRecord { parent, kind: said.kind.or(Some(ImageKind::Snapshot)), ..said };
    match parent {
        Some(parent) => heir(grid, said, &parent).await,
        None => Ok(said),
    }
}

/// What a machine needs that starts from an image: as was said, else as the image needs it that it was made from.
async fn heir<G: Saves>(grid: &G, said: NewRecord, parent: &Digest) -> Result<NewRecord> {
    let of_parent = match grid.record(parent).await {
        Err(error) if error.kind() == Kind::Gone => None,
        found => found?,
    };
    let Some(of_parent) = of_parent else { return Ok(said) };
    Ok(NewRecord {
        os: said.os.or(of_parent.os),
        architecture: said.architecture.or(of_parent.architecture),
        firmware: said.firmware.or(of_parent.firmware),
        cpus: said.cpus.or(of_parent.cpus),
        memory_mib: said.memory_mib.or(of_parent.memory_mib),
        nics: said.nics.or(of_parent.nics),
        hypervisor: said.hypervisor.or(of_parent.hypervisor),
        ..said
    })
}
