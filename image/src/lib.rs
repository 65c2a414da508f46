//! The vocabulary and the bytes of Forebay.
//!
//! Everything that is stored or sent is defined here, once: what names an image ([`Digest`],
//! [`Ref`]), how a disk is cut ([`Geometry`]), the bytes of one chunk ([`frame`]), what vouches for
//! them ([`section`], [`manifest`]), where they lie ([`pack`], [`locator`]), what people say of an
//! image ([`record`]), what its guests touch first ([`trace`]), and the seams along which chunks move
//! ([`ChunkSource`], [`ChunkSink`], [`ImageSink`]).
//!
//! There is no I/O, clock, randomness, runtime or `unsafe` in this crate. Parsers never allocate
//! from a length they have not checked and never panic; each has golden bytes in `tests/golden/`
//! and a fuzz target.
//!
//! Reading order: [`geometry`] → [`frame`] → [`codec`] → [`section`] → [`manifest`] → [`pack`] →
//! [`locator`] → [`seam`].

pub mod chunk_set;
pub mod codec;
pub mod digest;
pub mod error;
pub mod frame;
pub mod geometry;
pub mod locator;
pub mod manifest;
pub mod names;
pub mod pack;
pub mod reader;
pub mod record;
pub mod seam;
pub mod section;
pub mod signing;
pub mod trace;

pub use chunk_set::ChunkSet;
pub use codec::{Decoder, Encoder, is_zero};
pub use digest::{Digest, Domain};
pub use error::{Error, FormatError, Kind, Result};
pub use frame::{Codec, Frame, FrameHeader};
pub use geometry::Geometry;
pub use locator::{Locator, Spot};
pub use manifest::Manifest;
pub use names::Ref;
pub use pack::{Footer, PackId};
pub use record::ImageRecord;
pub use seam::{ChunkSink, ChunkSource, ImageSink, Place, Priority, ReadContext, SectionSink};
pub use section::SectionTable;
pub use trace::{BootTrace, Touch};
