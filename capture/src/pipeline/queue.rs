//! A bounded queue between threads that can be called off.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Items for a number of threads. Whoever waits at it wakes up when it is closed.
pub(super) struct Queue<T> {
    limit: usize,
    state: Mutex<State<T>>,
    changed: Condvar,
}

struct State<T> {
    items: VecDeque<T>,
    closed: bool,
}

/// The queue was closed: the import is over.
#[derive(Debug)]
pub(super) struct Closed;

impl<T> Queue<T> {
    /// A queue of at most `limit` items.
    pub(super) fn new(limit: usize) -> Self {
        let state = State { items: VecDeque::new(), closed: false };
        Self { limit, state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Adds an item; waits while the queue is full.
    pub(super) fn push(&self, item: T) -> Result<(), Closed> {
        let full = |s: &mut State<T>| !s.closed && s.items.len() >= self.limit;
        let waiting = self.changed.wait_while(self.lock(), full);
        let mut state = waiting.unwrap_or_else(PoisonError::into_inner);
        if state.closed {
            return Err(Closed);
        }
        state.items.push_back(item);
        // All: a thread that waits for room must not swallow the wake-up of one that waits for work.
        self.changed.notify_all();
        Ok(())
    }

    /// Takes the oldest item; waits for one. `None` when the queue was closed.
    pub(super) fn pop(&self) -> Option<T> {
        let idle = |s: &mut State<T>| !s.closed && s.items.is_empty();
        let waiting = self.changed.wait_while(self.lock(), idle);
        let mut state = waiting.unwrap_or_else(PoisonError::into_inner);
        let item = state.items.pop_front();
        self.changed.notify_all();
        item
    }

    /// Drops what is in the queue and lets everybody go.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let dropped = std::mem::take(&mut state.items);
        drop(state);
        self.changed.notify_all();
        drop(dropped);
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // A push or pop that panicked changed nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn keeps_its_limit_and_its_order() {
        let queue = Arc::new(Queue::new(3));
        let producer = {
            let queue = Arc::clone(&queue);
            std::thread::spawn(move || (0..1000).for_each(|i| queue.push(i).unwrap()))
        };
        for want in 0..1000 {
            assert!(queue.lock().items.len() <= 3);
            assert_eq!(queue.pop(), Some(want));
        }
        producer.join().unwrap();
    }

    #[test]
    fn closing_frees_who_waits_and_what_lies_in_it() {
        let full = Arc::new(Queue::new(1));
        let empty: Arc<Queue<u8>> = Arc::new(Queue::new(1));
        let item = Arc::new(());
        full.push(Arc::clone(&item)).unwrap();
        let pusher = {
            let (full, item) = (Arc::clone(&full), Arc::clone(&item));
            std::thread::spawn(move || full.push(item).is_err())
        };
        let popper = {
            let empty = Arc::clone(&empty);
            std::thread::spawn(move || empty.pop().is_none())
        };
        full.close();
        empty.close();
        assert!(pusher.join().unwrap() && popper.join().unwrap());
        assert_eq!(Arc::strong_count(&item), 1);
        assert!(empty.push(1).is_err());
    }
}
