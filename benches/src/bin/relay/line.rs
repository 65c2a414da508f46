//! One direction of the line: when each packet comes out at the far end, or that it is lost. Pure: the
//! time comes in, and chance from a seed.

use std::time::Duration;

/// How a line is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// From one end to the other.
    pub delay: Duration,
    /// Bytes a second; none means as fast as they come.
    pub rate: Option<u64>,
    /// Share of the packets that are lost, by chance.
    pub loss: f64,
    /// Share of the packets that are held back by half the delay more, so that later ones overtake
    /// them.
    pub reorder: f64,
}

/// With a rate, packets that would have to wait for longer than this before they are sent are lost, as
/// where a router's buffer is full.
const LONGEST_WAIT: Duration = Duration::from_millis(50);

/// One direction.
#[derive(Debug)]
pub struct Line {
    shape: Shape,
    /// When the last packet that was taken has been sent.
    sent: Duration,
    chance: u64,
}

impl Line {
    /// An empty line. The same seed and packets give the same losses.
    pub fn new(shape: Shape, seed: u64) -> Self {
        Self { shape, sent: Duration::ZERO, chance: seed }
    }

    /// Takes a packet of `len` bytes at `now`; when it comes out, unless it is lost.
    pub fn take(&mut self, now: Duration, len: usize) -> Option<Duration> {
        // Both are always drawn: one option does not change what the other does.
        let (lost, held) = (self.draw() < self.shape.loss, self.draw() < self.shape.reorder);
        if lost {
            return None;
        }
        let mut sent = now;
        if let Some(rate) = self.shape.rate {
            let start = self.sent.max(now);
            if start - now > LONGEST_WAIT {
                return None;
            }
            sent = start + Duration::from_secs_f64(len as f64 / rate as f64);
            self.sent = sent;
        }
        let more = if held { self.shape.delay / 2 } else { Duration::ZERO };
        Some(sent + self.shape.delay + more)
    }

    /// The next number in [0, 1): SplitMix64 (Steele, Lea, Flood 2014).
    fn draw(&mut self) -> f64 {
        self.chance = self.chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.chance;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const PLAIN: Shape =
        Shape { delay: Duration::from_millis(10), rate: None, loss: 0.0, reorder: 0.0 };

    #[test]
    fn a_packet_comes_out_after_the_delay() {
        let mut line = Line::new(PLAIN, 1);
        assert_eq!(line.take(3 * MS, 1500), Some(13 * MS));
        assert_eq!(line.take(3 * MS, 65535), Some(13 * MS));
    }

    #[test]
    fn a_rate_spaces_packets_and_drops_what_would_wait_too_long() {
        let shape = Shape { rate: Some(1_000_000), ..PLAIN };
        let mut line = Line::new(shape, 1);
        // 1000 bytes take a millisecond.
        assert_eq!(line.take(Duration::ZERO, 1000), Some(11 * MS));
        assert_eq!(line.take(Duration::ZERO, 1000), Some(12 * MS));
        assert_eq!(line.take(100 * MS, 1000), Some(111 * MS), "the line was free again");
        let taken = (0..1000).filter(|_| line.take(100 * MS, 1000).is_some()).count();
        assert_eq!(taken, 50, "one is on its way, 50 ms' worth wait");
    }

    #[test]
    fn losses_follow_from_the_seed_and_are_as_many_as_asked_for() {
        let lost = |seed| -> Vec<bool> {
            let mut line = Line::new(Shape { loss: 0.1, ..PLAIN }, seed);
            (0..10_000).map(|_| line.take(MS, 100).is_none()).collect()
        };
        assert_eq!(lost(7), lost(7));
        assert_ne!(lost(7), lost(8));
        let count = lost(7).iter().filter(|l| **l).count();
        assert!((900..1100).contains(&count), "{count}");
    }

    #[test]
    fn held_packets_are_overtaken() {
        let mut line = Line::new(Shape { reorder: 0.5, ..PLAIN }, 1);
        let out: Vec<_> = (0..100).filter_map(|i| line.take(MS * i, 100)).collect();
        assert_eq!(out.len(), 100);
        assert!(!out.is_sorted());
        assert!((0..).zip(&out).all(|(i, at)| [MS * (i + 10), MS * (i + 15)].contains(at)));
    }
}
