//! Refs: moving them, and keeping state and the store's log in step.
//!
//! A move is decided when it is in the log, which is create-only by number; the state follows.
//!
//! ```text
//! read state (last = n) → check what the mover expects → append n+1 to the log → put it in the state
//! ```
//!
//! - Stopped before the append: nothing happened.
//! - Stopped between the append and the state: the log is ahead. Before anything else is moved, the log
//!   is read and put into the state ([`Refs::catch_up`]); number n+1 is not used twice, because the
//!   log is create-only, and who asked got no answer, so either outcome is one he must expect.
//! - The append failed, but perhaps only its answer was lost: the same.
//! - The state was lost: the same, from number 1 on. That is how names are rebuilt.
//! - The log lost its tail (a store restored from a backup): the state goes on from its own number.
//! - Two placements at once: both append n+1; one gets a conflict, catches up, and looks again.

use std::sync::Arc;

use api::catalog::{Expect, RefInfo};
use api::lease::HeldLease;
use image::{Digest, Error, Kind, Ref, Result};
use tokio::sync::Mutex;

use crate::archive::{Archive, RefMove};
use crate::clock::Clock;
use crate::fleet::Lease;
use crate::state::State;

/// Times that a move is tried while other placements move too.
const ATTEMPTS: usize = 5;
/// Moves that are put into the state in one transaction.
const BATCH: usize = 100;

/// Whether the state has every move of the log.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Equal,
    /// A move was begun and not seen to its end.
    Unsure,
}

/// The refs of a grid.
pub(crate) struct Refs {
    state: State,
    archive: Arc<dyn Archive>,
    clock: Clock,
    /// Held for the length of a move: one at a time. Left at `Unsure` when a move is dropped half
    /// way (its caller hung up), so the next one catches up first.
    step: Mutex<Step>,
}

impl Refs {
    /// The refs in `state`, brought up to the log in `archive`.
    pub(crate) async fn open(
        state: State,
        archive: Arc<dyn Archive>,
        clock: Clock,
    ) -> Result<Self> {
        let refs = Self { state, archive, clock, step: Mutex::new(Step::Unsure) };
        refs.settle(&mut *refs.step.lock().await).await?;
        Ok(refs)
    }

    /// Moves or makes a ref. An error other than `Conflict` and `Denied` leaves open whether it moved.
    ///
    /// # Errors
    ///
    /// [`Kind::Denied`] if another node has had the lease that is the `fence` since.
    pub(crate) async fn set(
        &self,
        name: &Ref,
        image: Digest,
        expect: Expect,
        fence: Option<&HeldLease>,
    ) -> Result<RefInfo> {
        let check = |now: Option<&RefInfo>| expected(name, now, expect);
        let entry = self.record(name, Some(image), fence, check).await?.0;
        Ok(RefInfo { name: name.clone(), image, moved: entry.at })
    }

    /// Deletes a ref, and returns it as it was. An error other than `Conflict` and `Gone` leaves open whether it is
    /// gone.
    pub(crate) async fn delete(&self, name: &Ref, expect: Option<Digest>) -> Result<RefInfo> {
        let there = |now: Option<&RefInfo>| {
            let now = now.ok_or_else(|| no_such_ref(name))?;
            expect.map_or(Ok(()), |image| expected(name, Some(now), Expect::At(image)))
        };
        let was = self.record(name, None, None, there).await?.1;
        was.ok_or_else(|| no_such_ref(name))
    }

    /// All refs, with every move that is decided.
    pub(crate) async fn all(&self) -> Result<Vec<RefInfo>> {
        let mut step = self.step.lock().await;
        self.settle(&mut step).await?;
        self.state.refs().await
    }

    /// Records a move in log and state, if `check` likes what the ref is now. Returns the move, and
    /// the ref as it was.
    async fn record(
        &self,
        name: &Ref,
        image: Option<Digest>,
        fence: Option<&HeldLease>,
        check: impl Fn(Option<&RefInfo>) -> Result<()>,
    ) -> Result<(RefMove, Option<RefInfo>)> {
        let mut step = self.step.lock().await;
        for _ in 0..ATTEMPTS {
            self.settle(&mut step).await?;
            // The number before the ref: if another placement moves it in between, our number is
            // already taken in the log. The other way round we could decide on an old ref.
            let seq = self.state.seq().await? + 1;
            let was = self.state.get_ref(name).await?;
            check(was.as_ref())?;
            self.passes(name, fence).await?;
            let entry = RefMove { seq, name: name.clone(), image, at: self.clock.now() };
            *step = Step::Unsure;
            match self.archive.append_ref_move(entry.clone()).await {
                Ok(()) => {}
                Err(e) if e.kind() == Kind::Conflict => continue,
                Err(e) => return Err(e.at(format!("moving ref {name}"))),
            }
            // Decided. Somebody else who saw it in the log may put it into the state before us.
            match self.state.apply(std::slice::from_ref(&entry)).await {
                Ok(()) => *step = Step::Equal,
                Err(e) if e.kind() == Kind::Conflict => self.settle(&mut step).await?,
                Err(e) => return Err(e.at(format!("moving ref {name}"))),
            }
            tracing::info!(r#ref = %name, image = ?image.map(|i| i.short()), seq, "ref moved");
            return Ok((entry, was));
        }
        let what = format!("moving ref {name}: others move refs all the time; try again");
        Err(Error::new(Kind::Retry, what))
    }

    /// Refuses what was captured under a lease that another node has had since.
    async fn passes(&self, name: &Ref, fence: Option<&HeldLease>) -> Result<()> {
        let Some(fence) = fence else { return Ok(()) };
        let Some(lease) = Lease::find(&self.state, &fence.volume).await? else { return Ok(()) };
        match lease.passes(fence.epoch) {
            true => Ok(()),
            false => {
                let what = format!(
                    "moving ref {name}: it was captured from volume {} under its lease of epoch {}, and {} since: the \
                     ref is left as it is",
                    fence.volume,
                    fence.epoch,
                    lease.holders()
                );
                Err(Error::new(Kind::Denied, what))
            }
        }
    }

    async fn settle(&self, step: &mut Step) -> Result<()> {
        if *step == Step::Unsure {
            self.catch_up().await?;
            *step = Step::Equal;
        }
        Ok(())
    }

    /// Puts the moves of the log that the state does not have into the state.
    async fn catch_up(&self) -> Result<()> {
        let mut log = self.archive.ref_log().await.map_err(|e| e.at("reading the log of refs"))?;
        log.sort_by_key(|m| m.seq);
        let last = self.state.seq().await?;
        let new = &log[log.partition_point(|m| m.seq <= last)..];
        if log.last().map_or(0, |m| m.seq) < last {
            tracing::warn!(
                state = last,
                "the store's log of refs ends before placement's state: was the store restored \
                 from a backup?"
            );
        }
        for batch in new.chunks(BATCH) {
            match self.state.apply(batch).await {
                // Somebody else is catching up too; what he has put in is skipped.
                Err(e) if e.kind() == Kind::Conflict => self.state.apply(batch).await?,
                done => done?,
            }
        }
        if !new.is_empty() {
            tracing::info!(moves = new.len(), from = last + 1, "took refs from the store's log");
        }
        Ok(())
    }
}

fn expected(name: &Ref, now: Option<&RefInfo>, expect: Expect) -> Result<()> {
    let at = now.map(|r| r.image);
    let right = match expect {
        Expect::Anything => true,
        Expect::Absent => at.is_none(),
        Expect::At(image) => at == Some(image),
    };
    if right {
        return Ok(());
    }
    let points = at.map_or("does not exist".into(), |image| format!("points at {image}"));
    let what = format!("ref {name} {points}: it is not what you expect; look again");
    Err(Error::new(Kind::Conflict, what))
}

pub(crate) fn no_such_ref(name: &Ref) -> Error {
    Error::new(Kind::Gone, format!("ref {name}: there is no such ref"))
}
