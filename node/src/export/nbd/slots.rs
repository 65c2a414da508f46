//! Futures of one kind, side by side, in places that are used again: starting one allocates nothing, and
//! only those that were woken are polled.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures::task::AtomicWaker;

/// A bounded number of futures.
pub(super) struct Slots<F> {
    places: Vec<Place<F>>,
    free: Vec<usize>,
    /// Woken when this was last looked at, and not polled yet; a bit for each place.
    taken: Vec<u64>,
    woken: Arc<Woken>,
    most: usize,
}

struct Place<F> {
    future: Pin<Box<Option<F>>>,
    waker: Waker,
    /// Whether it is dropped when nobody waits for it any more.
    idle: bool,
}

/// Who was woken; shared with the wakers, which may be anywhere.
struct Woken {
    bits: Vec<AtomicU64>,
    task: AtomicWaker,
}

/// Wakes one place.
struct Nudge {
    place: usize,
    woken: Arc<Woken>,
}

impl Wake for Nudge {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let (word, bit) = (self.place / 64, 1 << (self.place % 64));
        self.woken.bits[word].fetch_or(bit, Ordering::AcqRel);
        self.woken.task.wake();
    }
}

impl<F: Future> Slots<F> {
    /// Places for `most` futures; their memory is taken when they are first used.
    pub fn new(most: usize) -> Slots<F> {
        let words = most.div_ceil(64);
        let bits = (0..words).map(|_| AtomicU64::new(0)).collect();
        let woken = Arc::new(Woken { bits, task: AtomicWaker::new() });
        Slots { places: Vec::new(), free: Vec::new(), taken: vec![0; words], woken, most }
    }

    /// How many are under way.
    pub fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Whether another one may be started.
    pub fn has_room(&self) -> bool {
        self.len() < self.most
    }

    /// Starts a future, and polls it once: `Ready` with what it came to if that was enough.
    ///
    /// There must be [room](Self::has_room). One that is `idle` need not be carried through.
    pub fn start(&mut self, future: F, idle: bool) -> Poll<F::Output> {
        assert!(self.has_room(), "who starts a future has asked whether there is room");
        let place = self.free.pop().unwrap_or_else(|| {
            let nudge = Nudge { place: self.places.len(), woken: Arc::clone(&self.woken) };
            let waker = Waker::from(Arc::new(nudge));
            self.places.push(Place { future: Box::pin(None), waker, idle });
            self.places.len() - 1
        });
        self.places[place].future.set(Some(future));
        self.places[place].idle = idle;
        self.poll(place)
    }

    /// Registers the task that is to be woken when any of them can go on, and takes note of those that
    /// can now.
    pub fn look(&mut self, cx: &Context<'_>) {
        self.woken.task.register(cx.waker());
        for (taken, bits) in self.taken.iter_mut().zip(&self.woken.bits) {
            *taken |= bits.swap(0, Ordering::AcqRel);
        }
    }

    /// Polls those that could go on at the last [`look`](Self::look), up to one that ends.
    pub fn next(&mut self) -> Option<F::Output> {
        for word in 0..self.taken.len() {
            while self.taken[word] != 0 {
                let bit = self.taken[word].trailing_zeros() as usize;
                self.taken[word] &= self.taken[word] - 1;
                // A waker may outlive what it was given to.
                let place = word * 64 + bit;
                if self.places[place].future.is_some()
                    && let Poll::Ready(output) = self.poll(place)
                {
                    return Some(output);
                }
            }
        }
        None
    }

    /// Drops those that need not be carried through.
    pub fn drop_idle(&mut self) {
        for (i, place) in self.places.iter_mut().enumerate() {
            if place.idle && place.future.is_some() {
                place.future.set(None);
                self.free.push(i);
            }
        }
    }

    fn poll(&mut self, place: usize) -> Poll<F::Output> {
        let Place { future, waker, .. } = &mut self.places[place];
        let pinned = future.as_mut().as_pin_mut().expect("only places in use are polled");
        let polled = pinned.poll(&mut Context::from_waker(waker));
        if polled.is_ready() {
            future.set(None);
            self.free.push(place);
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use futures::channel::oneshot;

    use super::*;

    fn look<F: Future>(slots: &mut Slots<F>) {
        slots.look(&Context::from_waker(Waker::noop()));
    }

    #[test]
    fn what_is_ready_ends_at_once_and_what_is_not_when_it_was_woken() {
        let mut slots = Slots::new(100);
        let mut ends = Vec::new();
        for _ in 0..100 {
            let (sender, receiver) = oneshot::channel::<usize>();
            assert!(slots.start(receiver, false).is_pending());
            ends.push(sender);
        }
        assert!(!slots.has_room());
        let mut last = ends.split_off(34);
        while let Some(sender) = last.pop() {
            let i = 34 + last.len();
            sender.send(i).unwrap();
            look(&mut slots);
            assert_eq!(slots.next(), Some(Ok(i)));
            assert_eq!(slots.next(), None);
        }
        drop(ends);
        look(&mut slots);
        assert_eq!(std::iter::from_fn(|| slots.next()).filter(Result::is_err).count(), 34);
        assert_eq!(slots.len(), 0);
        let (sender, receiver) = oneshot::channel();
        sender.send(7).unwrap();
        assert_eq!(slots.start(receiver, false), Poll::Ready(Ok(7)));
        assert_eq!(slots.len(), 0);
    }

    #[test]
    fn what_nobody_waits_for_is_dropped_and_the_rest_carried_through() {
        let mut slots = Slots::new(2);
        let (idle, receiver) = oneshot::channel::<u8>();
        assert!(slots.start(receiver, true).is_pending());
        let (sender, receiver) = oneshot::channel();
        assert!(slots.start(receiver, false).is_pending());
        slots.drop_idle();
        slots.drop_idle();
        assert!(idle.is_canceled());
        assert_eq!(slots.len(), 1);
        sender.send(1).unwrap();
        look(&mut slots);
        assert_eq!(slots.next(), Some(Ok(1)));
        assert_eq!(slots.len(), 0);
    }

    #[test]
    fn a_future_that_wakes_itself_does_not_hold_up_the_others() {
        let mut slots = Slots::new(2);
        let restless = |times: u32| {
            let mut left = times;
            std::future::poll_fn(move |cx| {
                left -= 1;
                cx.waker().wake_by_ref();
                if left == 0 { Poll::Ready(()) } else { Poll::Pending }
            })
        };
        assert!(slots.start(restless(3), false).is_pending());
        for ended in [None, Some(())] {
            look(&mut slots);
            assert_eq!(slots.next(), ended);
        }
    }
}
