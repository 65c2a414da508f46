//! How fast a cache was in the last seconds: what all requests together waited, and what they were given.
//!
//! Requests that are still under way count like those that ended, so that a cache is known to be slow
//! long before it has answered anything, and one request that has bad luck says little.

use std::collections::VecDeque;
use std::time::Duration;

/// Waiting is summed up in pieces of so long …
const PIECE: Duration = Duration::from_millis(500);
/// … of which the last ones count: 4 s.
const PIECES: u64 = 8;
/// So much of it has passed before anything is said: at the beginning a network finds out what it carries.
const SPAN: u64 = 4;
/// Chunks that were given before the pace is a measure for others …
const MEASURE: u32 = 4;
/// … and for how long it is one, if nothing is asked there any more: at the end of a pull often one is left.
const KNOWN: Duration = Duration::from_secs(60);

/// The time that a chunk takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Waited for by its request, from the chunk before.
    pub each: Duration,
    /// The same, shared out over the requests that were under way at the same time: if a link is what holds
    /// them up. One who is slow is slow in both.
    pub shared: Duration,
}

#[derive(Clone, Copy, Debug, Default)]
struct Piece {
    number: u64,
    waited: Duration,
    shared: Duration,
    chunks: u32,
}

/// The last seconds of one cache.
#[derive(Clone, Debug, Default)]
pub struct Recent {
    pieces: VecDeque<Piece>,
    began: Option<u64>,
    known: Option<(Pace, Duration)>,
}

impl Recent {
    /// A request waited for so long, beside how many (itself included), and was given so many chunks.
    pub fn add(&mut self, now: Duration, waited: Duration, beside: u32, chunks: u32) {
        let number = (now.as_nanos() / PIECE.as_nanos()) as u64;
        self.pieces.retain(|piece| piece.number + PIECES > number);
        if self.pieces.is_empty() {
            self.began = Some(number);
        }
        if self.pieces.back().is_none_or(|last| last.number != number) {
            self.pieces.push_back(Piece { number, ..Piece::default() });
        }
        let last = self.pieces.back_mut().expect("it was just made, if it was not there");
        last.waited += waited;
        last.shared += waited / beside.max(1);
        last.chunks += chunks;
        let (pace, chunks) = self.sum();
        if chunks >= MEASURE {
            self.known = Some((pace, now));
        }
    }

    /// The pace of the last seconds, if enough of them have passed; of nothing at all as if a chunk came now.
    pub fn now(&self) -> Option<Pace> {
        let last = self.pieces.back()?.number;
        (last >= self.began? + SPAN).then(|| self.sum().0)
    }

    /// The last pace that is a measure for others.
    pub fn known(&self, now: Duration) -> Option<Pace> {
        self.known.filter(|(_, at)| now <= *at + KNOWN).map(|(pace, _)| pace)
    }

    fn sum(&self) -> (Pace, u32) {
        let sum = |f: fn(&Piece) -> Duration| self.pieces.iter().map(f).sum::<Duration>();
        let chunks: u32 = self.pieces.iter().map(|piece| piece.chunks).sum();
        let each = chunks.max(1);
        let pace = Pace { each: sum(|p| p.waited) / each, shared: sum(|p| p.shared) / each };
        (pace, chunks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn what_is_under_way_counts_and_what_is_long_ago_does_not() {
        let mut recent = Recent::default();
        for at in 0..20 {
            assert_eq!(recent.now(), None, "too early to say");
            recent.add(ms(100 * at), ms(100), 2, 1);
        }
        recent.add(ms(2000), ms(100), 2, 1);
        let fast = Pace { each: ms(100), shared: ms(50) };
        assert_eq!((recent.now(), recent.known(ms(2000))), (Some(fast), Some(fast)));
        // Nothing comes any more.
        (21..60).for_each(|at| recent.add(ms(100 * at), ms(100), 2, 0));
        let slow = recent.now().unwrap();
        assert!(slow.each > ms(3500) && slow.shared > ms(1750), "{slow:?}");
        let known = recent.known(ms(60_000)).unwrap().each;
        assert!(known < ms(1000), "nothing is no measure for others: {known:?}");
    }

    #[test]
    fn after_a_pause_it_is_too_early_again() {
        let mut recent = Recent::default();
        (0..50).for_each(|at| recent.add(ms(100 * at), ms(100), 1, 1));
        assert!(recent.now().is_some());
        recent.add(ms(60_000), ms(100), 1, 0);
        assert_eq!((recent.now(), recent.known(ms(60_000)).is_some()), (None, true));
        assert_eq!(recent.known(ms(66_000)), None, "that was long ago");
    }
}
