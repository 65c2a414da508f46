//! The one gate: who is to write a volume has its lease, or is refused. See [`crate::leases`].

use std::time::Duration;

use api::lease::HeldLease;
use api::volume::Attachment;
use futures::future::join_all;
use image::error::At;
use image::{Error, Kind, Result};
use volume_pool::ready::name_of;

use super::recorder::Start;
use super::service::{UNPOISONED, Volumes};
use super::serving::ENDS;
use crate::daemon::Grid;
use crate::leases::boottime;
use crate::leases::watchdog::stop_writers;

/// How often a lease is asked for again for a volume that waits for it.
const AGAIN: Duration = Duration::from_secs(2);
/// How long a report's answer is waited for.
const RENEWED_TRIES: u32 = 100;
const RENEWED_PAUSE: Duration = Duration::from_millis(50);

impl<G: Grid> Volumes<G> {
    /// Lets a writer in: returns when this node has the lease to write a volume.
    ///
    /// # Errors
    ///
    /// [`Kind::Conflict`], naming its holder, while another node has it; [`Kind::Retry`] while placement is away.
    pub(super) async fn enter(&self, name: &str) -> Result<()> {
        let id = name_of(&self.0.shelf.identity(name)?.id);
        if self.0.leases.has(&id) {
            return self.0.watchdog.ensure();
        }
        let disk = self.0.shelf.disk(name)?;
        let asked = boottime();
        let before = self.0.leases.epoch(&id);
        let grant = self.0.grid.lease(&id, name, before).await;
        let grant = grant.at(|| format!("the lease to write {name}"))?;
        // Without a grid nobody else knows of the volume.
        let Some(grant) = grant else { return Ok(()) };
        self.0.leases.given(&id, disk, grant, asked)?;
        if before.is_some_and(|before| before != grant.epoch) {
            self.0.leases.release(&id)?;
            let what = format!("{name}: another node has had its lease in between: attach it anew");
            return Err(Error::new(Kind::Conflict, what));
        }
        self.0.watchdog.ensure()?;
        self.until_renewed(&id).await.at(|| name.to_owned())
    }

    /// If the time of this node's leases was over, the next report renews them; before that none is good.
    async fn until_renewed(&self, id: &str) -> Result<()> {
        for _ in 0..RENEWED_TRIES {
            if self.0.leases.has(id) {
                return Ok(());
            }
            tokio::time::sleep(RENEWED_PAUSE).await;
        }
        let what = "its lease waits until placement has answered a report: try again";
        Err(Error::new(Kind::Retry, what))
    }

    /// The lease under which a volume is written here, if it is one that has any.
    pub(crate) fn lease_of(&self, name: &str) -> Option<HeldLease> {
        let volume = name_of(&self.0.shelf.identity(name).ok()?.id);
        let epoch = self.0.leases.epoch(&volume)?;
        Some(HeldLease { volume, epoch })
    }

    /// Lets a writer out, which has stopped.
    pub(super) fn leave(&self, name: &str) -> Result<()> {
        self.0.leases.release(&name_of(&self.0.shelf.identity(name)?.id))
    }

    /// Serves a volume again that was attached, as soon as its lease is to be had.
    pub(super) fn serve_when_let(&self, name: String, how: Attachment) {
        let volumes = self.clone();
        tokio::spawn(async move {
            let mut said = false;
            loop {
                // Who attaches it asks for the same lease: one at a time, or one gives back what the other has.
                let only = volumes.only(&name).await;
                let served = volumes.0.homes.lock().expect(UNPOISONED).contains_key(&name);
                if served || volumes.0.kept.get(&name).is_none_or(|now| now != how) {
                    return;
                }
                let let_in = match how.read_only {
                    true => Ok(()),
                    false => volumes.enter(&name).await,
                };
                let gone_on = match let_in {
                    Ok(()) => volumes.go_on(&name).await,
                    Err(error) => Err(error),
                };
                match gone_on {
                    Ok(true) => return,
                    Ok(false) => {
                        let served =
                            volumes.go_live(&name, how, Start::Unseen, volumes.holder()).await;
                        return served.unwrap_or_else(|error| {
                            tracing::error!(%error, name, "a volume cannot be served again");
                        });
                    }
                    Err(error) => {
                        if !said {
                            tracing::warn!(%error, name, "a volume is not served until it has its lease");
                        }
                        said = true;
                        drop(only);
                        tokio::time::sleep(AGAIN).await;
                    }
                }
            }
        });
    }

    /// Whether a volume is served that guests write to.
    pub(crate) fn writes_with_a_lease(&self) -> bool {
        let homes = self.0.homes.lock().expect(UNPOISONED);
        self.0.kept.all().iter().any(|(name, how)| !how.read_only && homes.contains_key(name))
    }

    /// Stops all that is written with a lease, since the leases are over: guests wait until they are renewed, and captures
    /// go on. All at once: what the first take to end the last would lack.
    pub(crate) async fn fence_all(&self) {
        let within = self.0.leases.grace().min(ENDS);
        let fenced = self.0.kept.all().into_iter().map(async |(name, how)| {
            let served = self.0.homes.lock().expect(UNPOISONED).contains_key(&name);
            if how.read_only || !served {
                return;
            }
            tracing::error!(
                name,
                "its lease is over, and placement does not answer: its guest waits"
            );
            self.fence(&name, &how, within).await;
            self.serve_when_let(name, how);
        });
        join_all(fenced).await;
    }

    /// Stops a volume whose lease is lost for good: it is detached, and a capture of it is over.
    pub(crate) async fn fence_lost(&self, volume: &str) -> Result<()> {
        let found = self.0.kept.all().into_iter().find(|(name, _)| {
            let identity = self.0.shelf.identity(name);
            identity.is_ok_and(|identity| name_of(&identity.id) == *volume)
        });
        if let Some((name, how)) = found {
            tracing::error!(name, "its lease was taken from this node: it is detached");
            self.fence(&name, &how, self.0.leases.grace().min(ENDS)).await;
            self.lose_capture(&name).await;
            self.0.kept.remove(&name)?;
        }
        self.0.leases.release(volume)
    }

    async fn fence(&self, name: &str, how: &Attachment, within: Duration) {
        if let Err(error) = self.stop_writing(name, within).await {
            tracing::error!(%error, name, "a volume did not end as it should");
        }
        // A guest that uses the plain file is out of our hands otherwise.
        if how.moved
            && let Ok(disk) = self.0.shelf.disk(name)
        {
            stop_writers(&disk);
        }
    }
}
