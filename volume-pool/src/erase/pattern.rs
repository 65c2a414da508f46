//! What a volume is overwritten with, and is to hold afterwards.

use blake3::{Hasher, OutputReader};

use super::{Method, Plan};

/// The stream from which places of a sample are drawn: no pass has it.
const SAMPLE: u64 = u64::MAX;

/// What one pass writes, at each place of a volume.
#[derive(Debug)]
pub(super) enum Pattern {
    Zeros,
    /// The bytes of a stream, each at its place.
    Stream(Box<OutputReader>),
}

impl Pattern {
    /// Of a pass, counted from 0.
    pub(super) fn of(plan: &Plan, pass: u32) -> Self {
        match plan.method {
            Method::Zeros { .. } | Method::Discard => Self::Zeros,
            Method::Random { .. } => Self::Stream(stream(plan, pass.into())),
        }
    }

    /// Makes `buf`, which holds zeros or what this has made of it before, what is to be at `at`.
    pub(super) fn fill(&mut self, buf: &mut [u8], at: u64) {
        if let Self::Stream(stream) = self {
            stream.set_position(at);
            stream.fill(buf);
        }
    }
}

/// BLAKE3 of a number, keyed with the seed, as long as anybody wants it.
fn stream(plan: &Plan, number: u64) -> Box<OutputReader> {
    let mut hasher = Hasher::new_keyed(&plan.seed);
    Box::new(hasher.update(&number.to_le_bytes()).finalize_xof())
}

/// So many numbers below `end`, in rising order; one may be there twice.
pub(super) fn sample(plan: &Plan, places: u32, end: u64) -> Vec<u64> {
    let mut stream = stream(plan, SAMPLE);
    let mut draw = || {
        let mut drawn = [0; 8];
        stream.fill(&mut drawn);
        u64::from_le_bytes(drawn)
    };
    let mut all: Vec<u64> = (0..places).map(|_| draw() % end.max(1)).collect();
    all.sort_unstable();
    all
}

#[cfg(test)]
mod tests {
    use super::super::Proof;
    use super::*;

    fn plan(method: Method) -> Plan {
        Plan { method, proof: Proof::All, seed: [7; 32] }
    }

    #[test]
    fn a_stream_has_each_byte_at_its_place_and_each_pass_its_own() {
        let plan = plan(Method::Random { passes: 2 });
        let mut whole = vec![0; 10_000];
        Pattern::of(&plan, 0).fill(&mut whole, 0);
        for (at, len) in [(0, 512), (512, 4096), (9_000, 1_000), (5, 7)] {
            let mut part = vec![1; len];
            Pattern::of(&plan, 0).fill(&mut part, at as u64);
            assert_eq!(part, whole[at..at + len], "{at}");
        }
        let mut second = vec![0; 10_000];
        Pattern::of(&plan, 1).fill(&mut second, 0);
        let same = whole.iter().zip(&second).filter(|(a, b)| a == b).count();
        assert!(same < 200, "{same}");
        // Also in a later version: it is compared with what this one has written.
        let hex: String = whole[..16].iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "39ca7cc4decdc73ffab11200ece914d3", "journal version bump required");
    }

    #[test]
    fn a_sample_lies_within_and_is_the_same_each_time() {
        let plan = plan(Method::Zeros { passes: 1 });
        let drawn = sample(&plan, 1000, 64);
        assert!(drawn.is_sorted() && drawn.iter().all(|place| *place < 64));
        assert!((0..64).all(|place| drawn.contains(&place)), "{drawn:?}");
        assert_eq!(drawn, sample(&plan, 1000, 64));
    }
}
