//! Chunks that somebody waits for, on their way to whoever fetches them.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use image::{Error, Result};
use tokio::sync::Notify;

/// What is wanted.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    now: RefCell<Now>,
    /// Something was asked for.
    asked: Notify,
}

#[derive(Debug, Default)]
struct Now {
    waits: BTreeMap<u64, Rc<Wait>>,
    /// Asked for, and not yet told to whoever fetches.
    queue: VecDeque<u64>,
}

/// All who wait for one chunk.
#[derive(Debug, Default)]
struct Wait {
    end: RefCell<Option<Result<()>>>,
    ended: Notify,
}

impl Wanted {
    /// Waits until a chunk is here, or whoever fetches gives up.
    pub(super) async fn wait(&self, chunk: u64) -> Result<()> {
        let wait = self.ask(chunk);
        loop {
            let ended = wait.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            if let Some(end) = &*wait.end.borrow() {
                return end.clone();
            }
            ended.await;
        }
    }

    fn ask(&self, chunk: u64) -> Rc<Wait> {
        let mut now = self.now.borrow_mut();
        if let Some(wait) = now.waits.get(&chunk) {
            return Rc::clone(wait);
        }
        let wait = Rc::<Wait>::default();
        now.waits.insert(chunk, Rc::clone(&wait));
        now.queue.push_back(chunk);
        self.asked.notify_one();
        wait
    }

    /// A chunk is here, or cannot be had.
    pub(super) fn end(&self, chunk: u64, end: Result<()>) {
        let wait = self.now.borrow_mut().waits.remove(&chunk);
        if let Some(wait) = wait {
            *wait.end.borrow_mut() = Some(end);
            wait.ended.notify_waiters();
        }
    }

    /// The same of every chunk that is waited for.
    pub(super) fn end_all(&self, error: &Error) {
        let chunks: Vec<u64> = self.now.borrow().waits.keys().copied().collect();
        chunks.into_iter().for_each(|chunk| self.end(chunk, Err(error.clone())));
    }

    /// Ends the waits for those chunks of a range that are waited for.
    pub(super) fn arrived(&self, chunks: std::ops::Range<u64>) {
        let waited: Vec<u64> = self.now.borrow().waits.range(chunks).map(|(c, _)| *c).collect();
        waited.into_iter().for_each(|chunk| self.end(chunk, Ok(())));
    }

    /// Chunks that were asked for since the last call, in order; waits until there is one.
    pub(super) async fn next(&self) -> Vec<u64> {
        loop {
            let asked: Vec<u64> = self.now.borrow_mut().queue.drain(..).collect();
            if !asked.is_empty() {
                return asked;
            }
            self.asked.notified().await;
        }
    }

    /// How many chunks are waited for.
    pub(super) fn len(&self) -> usize {
        self.now.borrow().waits.len()
    }
}
