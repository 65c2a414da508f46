//! The one gate: who is to write a volume has its lease, or is refused. See [`crate::leases`].

use std::time::Duration;

use api::lease::HeldLease;
use api::volume::Attachment;
use futures::future::join_all;
use image::error::At;
use image::{Error, Kind, Result};
use tokio::task::JoinHandle;
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

/// That a writer was let in.
#[derive(Debug)]
pub(super) struct LetIn {
    /// The volume whose lease it has, by its id; none where there are no leases.
    lease: Option<String>,
}

impl LetIn {
    /// Without a lease: who only reads, or belongs to no grid.
    pub(super) const FREELY: Self = Self { lease: None };
}

impl<G: Grid> Volumes<G> {
    /// Lets a writer in: returns when this node has the lease to write a volume. What is served then is looked at with
    /// [`is_still_in`](Self::is_still_in): leases go while something begins.
    ///
    /// # Errors
    ///
    /// [`Kind::Conflict`], naming its holder, while another node has it; [`Kind::Retry`] while placement is away.
    pub(super) async fn enter(&self, name: &str) -> Result<LetIn> {
        let id = name_of(&self.0.shelf.identity(name)?.id);
        if self.0.leases.has(&id) {
            self.0.watchdog.ensure()?;
            return Ok(LetIn { lease: Some(id) });
        }
        let disk = self.0.shelf.disk(name)?;
        let asked = boottime();
        let before = self.0.leases.epoch(&id);
        let grant = self.0.grid.lease(&id, name, before).await;
        let grant = grant.at(|| format!("the lease to write {name}"))?;
        // Without a grid nobody else knows of the volume.
        let Some(grant) = grant else { return Ok(LetIn::FREELY) };
        self.0.leases.given(&id, disk, grant, asked)?;
        if before.is_some_and(|before| before != grant.epoch) {
            self.0.leases.release(&id)?;
            let what = format!("{name}: another node has had its lease in between: attach it anew");
            return Err(Error::new(Kind::Conflict, what));
        }
        self.0.watchdog.ensure()?;
        self.until_renewed(&id).await.at(|| name.to_owned())?;
        Ok(LetIn { lease: Some(id) })
    }

    /// That a writer that is served, and kept, still has what it was let in with. Who takes that away ends what is served
    /// after it is gone ([`fence_lost`](Self::fence_lost)): one of both sees the other.
    ///
    /// # Errors
    ///
    /// [`Kind::Conflict`] if it has not.
    pub(super) fn is_still_in(&self, name: &str, writer: &LetIn) -> Result<()> {
        let has = writer.lease.as_ref().is_none_or(|volume| self.0.leases.has(volume));
        if has && self.0.kept.get(name).is_some() {
            return Ok(());
        }
        let what =
            format!("{name}: its lease was lost while it was being attached: attach it anew");
        Err(Error::new(Kind::Conflict, what))
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
    pub(super) fn serve_when_let(&self, name: String, how: Attachment) -> JoinHandle<()> {
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
                match volumes.serve_again(&name, how.clone()).await {
                    Ok(true) => return,
                    Ok(false) => {}
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
        })
    }

    /// Serves a volume that was attached, if it is let; says whether that is over. If not its lease was lost meanwhile, and
    /// it is to be let in again.
    ///
    /// # Errors
    ///
    /// If it is not let in, or stood still, and stands still: it is to be tried again.
    pub(super) async fn serve_again(&self, name: &str, how: Attachment) -> Result<bool> {
        let writer = match how.read_only {
            true => LetIn::FREELY,
            false => self.enter(name).await?,
        };
        if !self.go_on(name).await? {
            let served = self.go_live(name, how, Start::Unseen, self.holder()).await;
            if let Err(error) = served {
                tracing::error!(%error, name, "a volume cannot be served again");
                return Ok(true);
            }
        }
        let Err(error) = self.is_still_in(name, &writer) else { return Ok(true) };
        tracing::warn!(%error, name, "a volume is not served until it has its lease");
        if let Err(error) = self.stop_writing(name, self.time_to_end()).await {
            tracing::error!(%error, name, "a volume did not end as it should");
        }
        Ok(false)
    }

    /// How long requests in work have to end when a lease is over.
    fn time_to_end(&self) -> Duration {
        self.0.leases.grace().min(ENDS)
    }

    /// Whether a volume is served that guests write to.
    pub(crate) fn writes_with_a_lease(&self) -> bool {
        let homes = self.0.homes.lock().expect(UNPOISONED);
        self.0.kept.all().iter().any(|(name, how)| !how.read_only && homes.contains_key(name))
    }

    /// Stops all that is written with a lease, since the leases are over: guests wait until they are renewed, and captures
    /// go on. All at once: what the first take to end the last would lack.
    pub(crate) async fn fence_all(&self) {
        let within = self.time_to_end();
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
        let before = self.kept_of(volume);
        if let Some((name, how)) = &before {
            tracing::error!(name, "its lease was taken from this node: it is detached");
            self.fence(name, how, self.time_to_end()).await;
            self.lose_capture(name).await;
            self.0.kept.remove(name)?;
        }
        self.0.leases.release(volume)?;
        // What was just beginning to be served has begun by now, or finds that it may not.
        let Some((name, how)) = self.kept_of(volume).or(before) else { return Ok(()) };
        if self.0.leases.epoch(volume).is_none() {
            self.fence(&name, &how, self.time_to_end()).await;
            self.lose_capture(&name).await;
            self.0.kept.remove(&name)?;
        }
        Ok(())
    }

    /// How a volume is attached, by its id.
    fn kept_of(&self, volume: &str) -> Option<(String, Attachment)> {
        self.0.kept.all().into_iter().find(|(name, _)| {
            let identity = self.0.shelf.identity(name);
            identity.is_ok_and(|identity| name_of(&identity.id) == *volume)
        })
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

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
