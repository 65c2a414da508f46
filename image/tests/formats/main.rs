//! The formats as bytes: golden ones, and broken ones.

mod corruption;
mod golden;
mod sample;
