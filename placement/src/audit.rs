//! The audit log: see [`api::audit`]. Its entries are `audit/SEQ`, its head `audit_head`.
//!
//! Whoever writes one entry writes all that wait, in one transaction: however many ask at the same time, each waits for
//! one commit or two. The head is compared, so that several placements over one state write one chain.
//!
//! ```text
//! done (waits)  ──┐
//! done (does not)─┼─▶ waiting ── one turn at a time ──▶ audit/SEQ …, audit_head
//! refused ─▶ counted, every 10 s ──┘
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::audit::{AuditAsked, AuditEntry, AuditHead, AuditPage, MOST};
use image::{Digest, Error, Kind, Result};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;

use crate::clock::Clock;
use crate::state::State;
use crate::state::keys::{Transaction, encode};

/// Where the head is kept.
pub(crate) const HEAD: &str = "audit_head";
/// Entries that are kept; some more until they are let go of.
const KEPT: u64 = 50_000;
/// Entries of one transaction.
const BATCH: usize = 100;
/// Entries that wait before those who need not wait do.
const WAITING: usize = 4096;
/// Longest text of an entry's field, in bytes.
const LONGEST: usize = 512;
/// Of whom, and of what, refusals are counted apart from others; then they are counted together.
const REFUSALS: usize = 128;
/// How often refusals are written.
const PERIOD: Duration = Duration::from_secs(10);
/// How long what need not be waited for gathers: ten commits a second at most, however many claims there are.
const GATHER: Duration = Duration::from_millis(100);
/// Tries to write while others do, too.
const TRIES: u32 = 64;
const UNPOISONED: &str = "no panics while locked";

/// What happened, before it has its place in the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Deed {
    pub who: String,
    pub what: String,
    pub object: String,
    pub outcome: String,
    pub said: String,
}

struct Waiting {
    at: u64,
    deed: Deed,
    times: u64,
    told: Option<oneshot::Sender<Result<()>>>,
}

/// See the [module](self).
pub(crate) struct Audit {
    state: State,
    clock: Clock,
    kept: u64,
    waiting: Mutex<VecDeque<Waiting>>,
    /// By who and what.
    refused: Mutex<BTreeMap<(String, String), Waiting>>,
    /// Who writes.
    turn: tokio::sync::Mutex<()>,
    wake: Notify,
}

fn key(seq: u64) -> String {
    format!("audit/{seq:020}")
}

impl Audit {
    pub(crate) fn new(state: State, clock: Clock) -> Arc<Self> {
        Self::keeping(state, clock, KEPT)
    }

    pub(crate) fn keeping(state: State, clock: Clock, kept: u64) -> Arc<Self> {
        Arc::new(Self {
            state,
            clock,
            kept,
            waiting: Mutex::default(),
            refused: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            wake: Notify::new(),
        })
    }

    /// Writes an entry; it lasts when this returns. One that cannot be written now is written when it can be.
    pub(crate) async fn done(self: &Arc<Self>, deed: Deed) -> Result<()> {
        let (told, tell) = oneshot::channel();
        self.push(deed, Some(told));
        drop(self.begin_flush());
        tell.await.unwrap_or_else(|_| Err(Error::new(Kind::Cancelled, "placement ends")))
    }

    /// Writes an entry soon. A crash may lose those of the last tenth of a second.
    pub(crate) async fn done_soon(self: &Arc<Self>, deed: Deed) {
        if self.push(deed, None) < WAITING {
            self.wake.notify_one();
        } else {
            let _ = self.begin_flush().await;
        }
    }

    /// Writes an entry soon, of a request that nobody waits for any more.
    pub(crate) fn given_up(&self, deed: Deed) {
        self.push(deed, None);
        self.wake.notify_one();
    }

    /// By a task of its own: whoever asked may hang up in the middle, and what is being written is not theirs alone.
    fn begin_flush(self: &Arc<Self>) -> JoinHandle<()> {
        let audit = Arc::clone(self);
        tokio::spawn(async move { audit.flush().await })
    }

    fn push(&self, deed: Deed, told: Option<oneshot::Sender<Result<()>>>) -> usize {
        let mut waiting = self.waiting.lock().expect(UNPOISONED);
        waiting.push_back(Waiting { at: self.clock.now(), deed, times: 1, told });
        waiting.len()
    }

    /// Counts a refusal. Those that follow each other are one entry: whoever is refused again and again shall not
    /// push out of the log what others did. A crash may lose those of the last 10 seconds.
    pub(crate) fn refused(&self, deed: Deed, known: bool) {
        let mut refused = self.refused.lock().expect(UNPOISONED);
        // Of those whom nobody knows it is all the same what they tried.
        let what = if known { deed.what.clone() } else { String::new() };
        let mut place = (deed.who.clone(), what);
        if refused.len() >= REFUSALS && !refused.contains_key(&place) {
            place = ("others".into(), String::new());
        }
        let at = self.clock.now();
        let first = Waiting { at, deed, times: 0, told: None };
        refused.entry(place).or_insert(first).times += 1;
    }

    /// Writes what need not be waited for, until it is told that nothing more comes.
    pub(crate) async fn run(self: Arc<Self>, mut ends: tokio::sync::watch::Receiver<bool>) {
        // Whatever else is written meanwhile.
        let mut period = tokio::time::interval(PERIOD);
        loop {
            let (more, gathers) = tokio::select! {
                _ = ends.wait_for(|ends| *ends) => (false, false),
                () = self.wake.notified() => (true, true),
                _ = period.tick() => {
                    self.write_refusals();
                    (true, false)
                }
            };
            if gathers {
                tokio::time::sleep(GATHER).await;
            }
            if !more {
                self.write_refusals();
            }
            self.flush().await;
            if let Err(error) = self.let_go().await {
                tracing::warn!(%error, "the audit log is longer than it should be");
            }
            if !more {
                return;
            }
        }
    }

    fn write_refusals(&self) {
        let refused = std::mem::take(&mut *self.refused.lock().expect(UNPOISONED));
        self.waiting.lock().expect(UNPOISONED).extend(refused.into_values());
    }

    /// Writes all that waits.
    async fn flush(&self) {
        let _turn = self.turn.lock().await;
        loop {
            let batch: Vec<Waiting> = {
                let mut waiting = self.waiting.lock().expect(UNPOISONED);
                let many = waiting.len().min(BATCH);
                waiting.drain(..many).collect()
            };
            if batch.is_empty() {
                return;
            }
            let written = self.write(&batch).await;
            let failed = written.is_err();
            let mut kept = Vec::new();
            for mut one in batch {
                if let Some(told) = one.told.take() {
                    // Whoever does not listen any more has hung up.
                    let _ = told.send(written.clone());
                }
                kept.push(one);
            }
            if let Err(error) = written {
                tracing::error!(%error, "what was done is not in the audit log yet");
            }
            if failed {
                let mut waiting = self.waiting.lock().expect(UNPOISONED);
                kept.into_iter().rev().for_each(|one| waiting.push_front(one));
                let over = waiting.len().saturating_sub(2 * WAITING);
                waiting.drain(..over);
                return;
            }
        }
    }

    async fn write(&self, batch: &[Waiting]) -> Result<()> {
        let mut open: Option<(String, Vec<u8>)> = None;
        for _ in 0..TRIES {
            // One that ended without a word may have been done.
            if let Some((key, text)) = &open
                && self.state.bytes(key).await?.is_some_and(|there| there == *text)
            {
                return Ok(());
            }
            let found = self.state.get::<AuditHead>(HEAD).await?;
            let (mut head, seen) =
                found.map_or((AuditHead::default(), None), |(h, s)| (h, Some(s)));
            let mut write = Transaction::default().unchanged(HEAD, seen.as_ref());
            let mut first = None;
            for one in batch {
                let text = encode(&one.entry(head.last + 1, head.hash));
                (head.last, head.hash) = (head.last + 1, Digest::of_stored(&text));
                first.get_or_insert((key(head.last), text.clone()));
                write = write.put(&key(head.last), text);
            }
            match self.state.commit(write.put(HEAD, encode(&head))).await {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == Kind::Conflict => {}
                Err(error) if error.kind() == Kind::Retry => open = first,
                Err(error) => return Err(error),
            }
        }
        Err(Error::new(Kind::Retry, "audit log: others write it all the time"))
    }

    /// Lets go of the oldest entries that are too many; the head keeps the hash of the last of them.
    async fn let_go(&self) -> Result<()> {
        loop {
            let Some((head, seen)) = self.state.get::<AuditHead>(HEAD).await? else {
                return Ok(());
            };
            let most = BATCH as u64;
            let many = (head.last + 1).saturating_sub(head.first).saturating_sub(self.kept);
            // Some at a time, so that not each entry costs two commits.
            if many < most.min(self.kept) {
                return Ok(());
            }
            let gone = head.first..head.first + many.min(most);
            let last = self.state.bytes(&key(gone.end - 1)).await?;
            let missing = || Error::new(Kind::Corrupt, format!("audit log: no entry {}", gone.end));
            let before = Digest::of_stored(&last.ok_or_else(missing)?);
            let rest = AuditHead { first: gone.end, before, ..head };
            let write =
                Transaction::default().unchanged(HEAD, Some(&seen)).put(HEAD, encode(&rest));
            let write = gone.fold(write, |write, seq| write.delete(&key(seq)));
            match self.state.commit(write).await {
                Err(error) if error.kind() != Kind::Conflict => return Err(error),
                _ => {}
            }
        }
    }

    /// Some of the log, the oldest first.
    pub(crate) async fn page(&self, asked: AuditAsked) -> Result<AuditPage> {
        let limit = u64::from(asked.limit.unwrap_or(MOST));
        if !(1..=u64::from(MOST)).contains(&limit) {
            return Err(Error::new(Kind::Invalid, format!("limit: must be 1 to {MOST}")));
        }
        let head = self.state.get::<AuditHead>(HEAD).await?.map(|(head, _)| head);
        let head = head.unwrap_or_default();
        let from = asked.after.saturating_add(1).max(head.first);
        let to = from.saturating_add(limit - 1).min(head.last);
        let mut entries = Vec::new();
        // A hundred entries have all but the last two digits in common.
        for hundred in from / 100..=to / 100 {
            if from > to {
                break;
            }
            let some = self.state.listing(&format!("audit/{hundred:018}")).await?;
            for (name, value) in some.entries {
                if name >= key(from) && name <= key(to) {
                    let bad = |_| Error::new(Kind::Corrupt, format!("`{name}`: not a text"));
                    entries.push(String::from_utf8(value.value).map_err(bad)?);
                }
            }
        }
        let next = (from <= to && to < head.last).then_some(to);
        Ok(AuditPage { entries, head, next })
    }
}

impl Waiting {
    fn entry(&self, seq: u64, previous: Digest) -> AuditEntry {
        let Deed { who, what, object, outcome, said } = &self.deed;
        AuditEntry {
            seq,
            at: self.at,
            who: short(who),
            what: short(what),
            object: short(object),
            outcome: short(outcome),
            said: short(said),
            times: self.times,
            previous,
        }
    }
}

/// As much of a text as is kept.
fn short(text: &str) -> String {
    let mut end = text.len().min(LONGEST);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use api::audit::Chain;

    use super::*;

    fn deed(object: &str) -> Deed {
        let [who, what, outcome] = ["admin boss", "PUT /x", "done"].map(str::to_owned);
        Deed { who, what, object: object.into(), outcome, said: String::new() }
    }

    fn clock() -> Clock {
        Clock::new(|| 1_700_000_000)
    }

    async fn all(audit: &Audit) -> Vec<AuditEntry> {
        let mut after = 0;
        let mut chain: Option<Chain> = None;
        let mut entries = Vec::new();
        loop {
            let page = audit.page(AuditAsked { after, limit: Some(30) }).await.unwrap();
            let chain = chain.get_or_insert_with(|| Chain::begin(&page.head));
            entries.extend(page.entries.iter().map(|text| chain.take(text).unwrap()));
            match page.next {
                Some(next) => after = next,
                None => {
                    chain.end(&page.head).unwrap();
                    return entries;
                }
            }
        }
    }

    #[tokio::test]
    async fn several_write_one_chain_and_nothing_is_lost_or_twice() {
        let state = State::in_memory("g").await;
        let audits = [(); 3].map(|()| Audit::new(state.clone(), clock()));
        let writers = (0..240).map(|n: usize| {
            let audit = Arc::clone(&audits[n % 3]);
            async move { audit.done(deed(&n.to_string())).await }
        });
        for done in futures::future::join_all(writers).await {
            done.unwrap();
        }
        let mut objects: Vec<usize> =
            all(&audits[0]).await.iter().map(|e| e.object.parse().unwrap()).collect();
        objects.sort_unstable();
        assert_eq!(objects, (0..240).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn who_hangs_up_in_the_middle_takes_nothing_along() {
        let audit = Audit::new(State::in_memory("g").await, clock());
        for n in 0..60 {
            let mut writes = Box::pin(audit.done(deed(&n.to_string())));
            for _ in 0..=n % 12 {
                if futures::poll!(&mut writes).is_ready() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        audit.flush().await;
        let written = all(&audit).await;
        let objects: BTreeSet<&str> = written.iter().map(|entry| &*entry.object).collect();
        assert_eq!((written.len(), objects.len()), (60, 60));
    }

    #[tokio::test]
    async fn the_oldest_are_let_go_of_and_the_chain_holds() {
        let state = State::in_memory("g").await;
        let audit = Audit::keeping(state, clock(), 40);
        for n in 0..250 {
            audit.done_soon(deed(&n.to_string())).await;
        }
        audit.flush().await;
        audit.let_go().await.unwrap();
        let entries = all(&audit).await;
        assert!((40..80).contains(&entries.len()), "{}", entries.len());
        assert_eq!(entries.last().unwrap().seq, 250);
        assert_eq!(entries.last().unwrap().object, "249");
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_are_written_in_time_whatever_else_is() {
        let audit = Audit::new(State::in_memory("g").await, clock());
        let ends = tokio::sync::watch::Sender::new(false);
        let running = tokio::spawn(Arc::clone(&audit).run(ends.subscribe()));
        tokio::time::sleep(PERIOD / 2).await;
        audit.refused(Deed { who: "nobody".into(), ..deed("/") }, false);
        for n in 0..40 {
            audit.done_soon(deed(&n.to_string())).await;
            tokio::time::sleep(PERIOD / 20).await;
        }
        assert!(all(&audit).await.iter().any(|e| e.who == "nobody"));
        ends.send_replace(true);
        running.await.unwrap();
        assert_eq!(all(&audit).await.len(), 41);
    }

    #[tokio::test]
    async fn refusals_are_counted_and_those_of_strangers_together() {
        let audit = Audit::new(State::in_memory("g").await, clock());
        for n in 0..1000 {
            let stranger = Deed { who: "nobody".into(), what: n.to_string(), ..deed("/") };
            audit.refused(stranger, false);
            let member = Deed { who: format!("node n{}", n / 2), ..deed("/") };
            audit.refused(member, true);
        }
        audit.write_refusals();
        audit.flush().await;
        let entries = all(&audit).await;
        assert!(entries.len() <= REFUSALS + 1, "{}", entries.len());
        assert_eq!(entries.iter().map(|e| e.times).sum::<u64>(), 2000);
        assert!(entries.iter().any(|e| e.who == "nobody" && e.times == 1000));
    }
}
