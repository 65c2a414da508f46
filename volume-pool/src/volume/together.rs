//! Work that is done once for all who ask for it at the same time.

use std::cell::RefCell;

use image::Result;
use tokio::sync::Notify;

/// Rounds of some work. Whoever asks is served by a round that begins after it asked; those who ask while
/// one is under way share the next.
#[derive(Debug, Default)]
pub(super) struct Together {
    now: RefCell<Now>,
    ended: Notify,
}

#[derive(Debug, Default)]
struct Now {
    /// Rounds that have begun, and ended.
    begun: u64,
    ended: u64,
    /// What became of the last rounds, while somebody may want to know.
    results: Vec<(u64, Result<()>)>,
}

/// A round that ends also when whoever runs it goes away.
struct Round<'a> {
    together: &'a Together,
    number: u64,
}

impl Together {
    /// Takes part in a round, or runs it.
    pub(super) async fn run(&self, mut work: impl AsyncFnMut() -> Result<()>) -> Result<()> {
        let mine = self.now.borrow().begun + 1;
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            if let Some(result) = self.result(mine) {
                return result;
            }
            if let Some(round) = self.begin() {
                let result = work().await;
                round.end(result);
                continue;
            }
            ended.await;
        }
    }

    /// What the first round since `mine` came to. One that was left in the middle counts for nobody.
    fn result(&self, mine: u64) -> Option<Result<()>> {
        let now = self.now.borrow();
        now.results.iter().find(|(number, _)| *number >= mine).map(|(_, result)| result.clone())
    }

    fn begin(&self) -> Option<Round<'_>> {
        let mut now = self.now.borrow_mut();
        if now.begun > now.ended {
            return None;
        }
        now.begun += 1;
        // Those who wait have asked before this round; the two before it are all they may need.
        let oldest = now.begun.saturating_sub(2);
        now.results.retain(|(number, _)| *number >= oldest);
        Some(Round { together: self, number: now.begun })
    }
}

impl Round<'_> {
    fn end(self, result: Result<()>) {
        self.together.now.borrow_mut().results.push((self.number, result));
    }
}

impl Drop for Round<'_> {
    fn drop(&mut self) {
        self.together.now.borrow_mut().ended = self.number;
        self.together.ended.notify_waiters();
    }
}
