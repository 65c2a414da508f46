//! A plain volume that is detached: anybody who can open its file may write to it. How it is left is noted, and what lies
//! there as it was left is as the volume's map says.
//!
//! That is safe as long as who writes to the file begins to after it was detached, which its locks and its export see to, and in
//! the same boot: see [`blockio::Stamp`].

use std::time::{Duration, SystemTime};

use image::{Error, Result};
use volume_pool::{Shelf, Volume};

/// Five ticks of the slowest clock.
const SETTLED: Duration = Duration::from_millis(50);
/// How often a stamp is looked at until it is old enough.
const LOOKS: u32 = 4;

/// Notes how a plain volume is left, after its maps were closed; or that others may write to it without our knowing.
///
/// # Errors
///
/// Of the disk.
pub(super) async fn let_go(shelf: &Shelf, volume: &Volume) -> Result<()> {
    let identity = volume.identity();
    if !identity.plain || identity.untracked {
        return Ok(());
    }
    match note(shelf, volume).await {
        Ok(true) => Ok(()),
        noted => {
            if let Err(error) = noted {
                tracing::warn!(%error, volume = identity.name, "how it is left is not noted");
            }
            volume.lose_track()
        }
    }
}

async fn note(shelf: &Shelf, volume: &Volume) -> Result<bool> {
    let failed = |e| Error::io("the volume's file", e);
    let data = volume.data();
    // A page that somebody has mapped, and written to, sets the time anew from here on.
    data.sync_data().map_err(failed)?;
    for _ in 0..LOOKS {
        #[expect(
            clippy::disallowed_methods,
            reason = "compared with what the system tells of a file"
        )]
        let now = SystemTime::now();
        let Some(stamp) = data.stamp().map_err(failed)? else { return Ok(false) };
        if stamp.is_older(SETTLED, now) {
            shelf.note_left(&volume.identity(), &boot()?, &stamp)?;
            return Ok(true);
        }
        tokio::time::sleep(SETTLED).await;
    }
    Ok(false)
}

/// Whether a volume's file lies there as it was left; nothing if that was not noted.
///
/// # Errors
///
/// Of the disk.
pub(super) fn is_as_left(shelf: &Shelf, volume: &Volume) -> Result<Option<bool>> {
    let stamp = volume.data().stamp().map_err(|e| Error::io("the volume's file", e))?;
    shelf.is_as_left(&volume.identity(), &boot()?, stamp.as_ref())
}

/// Before a volume is served again: notes that it was written to past us, if that may be.
///
/// # Errors
///
/// Of the disk.
pub(super) fn take_back(shelf: &Shelf, volume: &Volume) -> Result<()> {
    if is_as_left(shelf, volume)? == Some(false) {
        volume.lose_track()?;
    }
    shelf.forget_left(&volume.identity().name)
}

/// What differs after each start of this machine.
fn boot() -> Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    let id = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    Ok(id.trim().to_owned())
}
