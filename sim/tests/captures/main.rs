//! Captures of a volume while its guest writes, to a receiver before a store, when something goes wrong.

mod content;
mod cuts;
mod flips;
mod full;
mod machines;
mod mends;
