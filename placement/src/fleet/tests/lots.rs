//! What a pass has decided is more than one transaction takes, and the answer to one of them is lost: it was done, or it
//! was not, and who decides next may see it late.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::task::Poll;

use futures::{StreamExt, stream};

use super::*;
use crate::archive::Answer;
use crate::state::keys::{Keys, Listing, Versioned, Watch};
use crate::state::{Reign, StatePlace};

/// What becomes of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Answered,
    /// It is done, and nobody hears of it.
    Done,
    /// It is not done, and nobody hears of that.
    Undone,
}

/// Keys that lose answers, and of which changes may be seen late.
struct Lossy {
    keys: Arc<dyn Keys>,
    /// Of the next transactions.
    fates: Mutex<VecDeque<Fate>>,
    late: Arc<AtomicBool>,
}

impl Keys for Lossy {
    fn get(&self, key: String) -> Answer<'_, Option<Versioned>> {
        self.keys.get(key)
    }

    fn list(&self, prefix: String) -> Answer<'_, Listing> {
        self.keys.list(prefix)
    }

    fn commit(&self, transaction: Transaction) -> Answer<'_, ()> {
        Box::pin(async move {
            let fate = self.fates.lock().unwrap().pop_front().unwrap_or(Fate::Answered);
            if fate != Fate::Undone {
                self.keys.commit(transaction).await?;
            }
            match fate {
                Fate::Answered => Ok(()),
                Fate::Done | Fate::Undone => Err(Error::new(Kind::Retry, "no answer came")),
            }
        })
    }

    fn watch(&self, prefix: String, after: u64) -> Watch {
        let (late, mut changes) = (Arc::clone(&self.late), self.keys.watch(prefix, after));
        Box::pin(stream::poll_fn(move |cx| match late.load(Ordering::SeqCst) {
            // Whoever waits asks again.
            true => Poll::Pending,
            false => changes.poll_next_unpin(cx),
        }))
    }

    fn campaign(&self, key: String, id: Vec<u8>, ttl: Duration) -> Answer<'_, Reign> {
        self.keys.campaign(key, id, ttl)
    }
}

/// More nodes than one transaction has room for.
const MANY: usize = 140;
/// Of which so many are to have a volume.
const TARGET: u32 = 130;

struct Lots {
    grid: Grid,
    keys: Arc<Lossy>,
    rounds: u64,
}

impl Lots {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let keys = StatePlace::File(dir.path().join("state")).keys(None).await.unwrap();
        let (fates, late) = (Mutex::default(), Arc::default());
        let keys = Arc::new(Lossy { keys, fates, late });
        let state = State::over(Arc::<Lossy>::clone(&keys), "grid").await.unwrap();
        let names: Vec<String> = (0..MANY).map(|n| format!("n{n:03}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut grid = Grid::over(state, &names, Policy::default()).await;
        grid.round(&[]).await;
        let wanted =
            SetPool { per_node: Some(1), builds: Some(MANY as u32), ..set(TARGET, TARGET) };
        grid.fleet.set_pool("p", wanted).await.unwrap();
        Self { grid, keys, rounds: 0 }
    }

    /// All report, and have another order by their room than before.
    async fn all_report(&mut self) {
        self.rounds += 1;
        for (at, (name, node)) in self.grid.nodes.iter_mut().enumerate() {
            let moved = (at as u64 * 37 + self.rounds * 53) % MANY as u64;
            node.free = (300 + moved) * SIZE;
            let told = self.grid.fleet.report(name, node.report(), Duration::ZERO).await.unwrap();
            node.take(told.goal);
        }
        self.grid.later(1);
    }

    /// A pass of which the answer to one transaction is lost.
    async fn loses(&mut self, which: usize, fate: Fate, late: bool) {
        {
            let mut fates = self.keys.fates.lock().unwrap();
            fates.extend(std::iter::repeat_n(Fate::Answered, which));
            fates.push_back(fate);
        }
        let Grid { fleet, lead, memory, .. } = &mut self.grid;
        let passed = fleet.pass(lead, memory, Look::All).await;
        self.keys.late.store(late, Ordering::SeqCst);
        let reached = self.keys.fates.lock().unwrap().is_empty();
        assert_eq!(passed.is_err(), reached, "{which} {fate:?}: {passed:?}");
        self.keys.fates.lock().unwrap().clear();
    }

    async fn passes(&mut self) {
        let Grid { fleet, lead, memory, .. } = &mut self.grid;
        fleet.pass(lead, memory, Look::All).await.unwrap();
        self.keys.late.store(false, Ordering::SeqCst);
    }
}

async fn no_answer(which: usize, fate: Fate, late: bool) {
    let mut lots = Lots::new().await;
    // They are told to build, some at a time; what is told is told once.
    for _ in 0..6 {
        lots.all_report().await;
        lots.loses(which, fate, late).await;
        lots.all_report().await;
        lots.passes().await;
    }
    let told: usize = lots.grid.nodes.values().map(|node| node.goal.items.len()).sum();
    assert_eq!(told, TARGET as usize, "{which} {fate:?} {late}");
    // All have built, and all of it is taken out of their goals at once: some lots.
    lots.grid.work();
    for _ in 0..4 {
        lots.all_report().await;
        lots.loses(which, fate, late).await;
        lots.all_report().await;
        lots.passes().await;
    }
    lots.all_report().await;
    assert_eq!(lots.grid.ready(), TARGET as usize, "{which} {fate:?} {late}");
    for (name, node) in &lots.grid.nodes {
        let changes = 2 * node.ready.len() as u64;
        assert_eq!((node.goal.version, node.goal.items.len()), (changes, 0), "{name}");
    }
    assert_eq!(lots.grid.pool().await.ready, TARGET);
}

#[tokio::test(start_paused = true)]
async fn a_transaction_that_is_not_answered_is_written_once_whether_or_not_it_was_done() {
    for which in 0..3 {
        for fate in [Fate::Done, Fate::Undone] {
            for late in [false, true] {
                no_answer(which, fate, late).await;
            }
        }
    }
}
