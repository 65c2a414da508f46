//! What a node measures of itself.
//!
//! ```text
//!  /proc, /sys ── host.rs reads ─▶ texts ── processor, disks, links … (pure) ─▶ Counts ─┐
//!  what the daemon knows: volumes, pools, what failed ──────────────────────────────────┼─▶ sample.rs ─▶ NodeStats
//!  which hypervisors there are: programs.rs ────────────────────────────────────────────┘   (pure)
//! ```
//! One sampler ([`Sampler`]) looks at intervals, when something has happened, and more often while somebody watches. Whoever
//! wants the last sample takes it, and waits for nothing: reports, by which leases go on, must not hang on a file of `/proc`.

mod disks;
mod guests;
mod host;
mod known;
mod links;
mod processor;
mod programs;
mod raids;
mod sample;
mod sampler;
#[cfg(test)]
mod tests;

pub use host::Roots;
pub use known::{Knows, known};
pub use sample::Known;
pub use sampler::{Sampler, SamplerOptions, Tallies};

/// Numbers of a line, as far as they go.
fn numbers(line: &str) -> impl Iterator<Item = u64> + '_ {
    line.split_ascii_whitespace().map_while(|word| word.parse().ok())
}

/// Thousandths that a part is of a whole.
fn per_mille(part: u64, whole: u64) -> u32 {
    match whole {
        0 => 0,
        whole => (u128::from(part.min(whole)) * 1000 / u128::from(whole)) as u32,
    }
}
