//! Metadata contexts: what `BLOCK_STATUS` tells of a range.
//!
//! `base:allocation` is the specification's. `forebay:present` is ours: bit 0 ([`ABSENT`]) is set where
//! the bytes have not arrived yet, so that a read would wait for them. To `base:allocation` such a range
//! is plain data: it is neither known to be zero nor free to be skipped by who copies the disk.

use super::Framing;
use crate::export::Stretch;

/// `base:allocation`: takes no space here.
pub const HOLE: u32 = 1 << 0;
/// `base:allocation`: reads as zeros.
pub const ZERO: u32 = 1 << 1;
/// `forebay:present`: not here yet.
pub const ABSENT: u32 = 1 << 0;

/// One of the contexts we serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Context {
    /// `base:allocation`.
    Allocation,
    /// `forebay:present`.
    Present,
}

impl Context {
    /// All there are.
    pub const ALL: [Context; 2] = [Context::Allocation, Context::Present];

    /// Its number on the wire.
    pub fn id(self) -> u32 {
        match self {
            Context::Allocation => 1,
            Context::Present => 2,
        }
    }

    /// Its name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Context::Allocation => "base:allocation",
            Context::Present => "forebay:present",
        }
    }

    /// Whether a query that lists contexts means this one: its name, or its namespace alone.
    pub fn listed_by(self, query: &[u8]) -> bool {
        let name = self.name().as_bytes();
        query == name || query.ends_with(b":") && name.starts_with(query)
    }

    fn flags(self, stretch: Stretch) -> u32 {
        match (self, stretch) {
            (Context::Allocation, Stretch::Hole) => HOLE | ZERO,
            (Context::Present, Stretch::Absent) => ABSENT,
            (Context::Allocation, Stretch::Data | Stretch::Absent)
            | (Context::Present, Stretch::Data | Stretch::Hole) => 0,
        }
    }
}

/// The contexts a client has selected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Selected {
    allocation: bool,
    present: bool,
}

impl Selected {
    /// Adds one.
    pub fn select(&mut self, context: Context) {
        match context {
            Context::Allocation => self.allocation = true,
            Context::Present => self.present = true,
        }
    }

    /// Whether it is among them.
    pub fn has(self, context: Context) -> bool {
        match context {
            Context::Allocation => self.allocation,
            Context::Present => self.present,
        }
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        !self.allocation && !self.present
    }

    /// Those selected, in the order of their numbers.
    pub fn each(self) -> impl Iterator<Item = Context> {
        Context::ALL.into_iter().filter(move |context| self.has(*context))
    }
}

/// The payload of a status chunk: what `context` has to say of `stretches`, neighbours of the same
/// state as one descriptor; with `one`, only the first. There must be at least one stretch.
pub fn status(
    context: Context,
    framing: Framing,
    stretches: &[(u64, Stretch)],
    one: bool,
) -> Vec<u8> {
    let mut merged: Vec<(u64, u32)> = Vec::with_capacity(if one { 1 } else { stretches.len() });
    for (len, stretch) in stretches {
        let flags = context.flags(*stretch);
        match merged.last_mut() {
            Some((last, same)) if *same == flags => *last += len,
            Some(_) if one => break,
            _ => merged.push((*len, flags)),
        }
    }
    let mut out = Vec::with_capacity(8 + merged.len() * 16);
    out.extend(context.id().to_be_bytes());
    if framing == Framing::Extended {
        out.extend((merged.len() as u32).to_be_bytes());
    }
    for (len, flags) in merged {
        if framing == Framing::Extended {
            out.extend(len.to_be_bytes());
            out.extend(u64::from(flags).to_be_bytes());
        } else {
            // A compact request is shorter than 4 GiB, and no answer is longer than its request.
            out.extend((len as u32).to_be_bytes());
            out.extend(flags.to_be_bytes());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEEN: [(u64, Stretch); 4] = [
        (4096, Stretch::Data),
        (8192, Stretch::Absent),
        (512, Stretch::Hole),
        (1024, Stretch::Data),
    ];

    fn words(bytes: &[u8]) -> Vec<u32> {
        bytes.chunks(4).map(|b| u32::from_be_bytes(b.try_into().unwrap())).collect()
    }

    #[test]
    fn each_context_sees_its_own_and_neighbours_that_look_alike_are_one() {
        let base = status(Context::Allocation, Framing::Structured, &SEEN, false);
        assert_eq!(words(&base), [1, 12288, 0, 512, 3, 1024, 0]);
        let present = status(Context::Present, Framing::Structured, &SEEN, false);
        assert_eq!(words(&present), [2, 4096, 0, 8192, 1, 1536, 0]);
    }

    #[test]
    fn one_is_one_and_extended_ones_are_longer() {
        let one = status(Context::Allocation, Framing::Extended, &SEEN, true);
        assert_eq!(words(&one), [1, 1, 0, 12288, 0, 0]);
        let huge = [(1 << 40, Stretch::Hole)];
        let huge = status(Context::Allocation, Framing::Extended, &huge, false);
        assert_eq!(words(&huge), [1, 1, 1 << 8, 0, 0, 3]);
    }

    #[test]
    fn a_namespace_lists_what_is_in_it() {
        assert!(Context::Allocation.listed_by(b"base:"));
        assert!(Context::Allocation.listed_by(b"base:allocation"));
        for query in [&b""[..], b":", b"base", b"base:all", b"forebay:", b"qemu:"] {
            assert!(!Context::Allocation.listed_by(query), "{query:?}");
        }
        assert!(Context::Present.listed_by(b"forebay:"));
    }
}
