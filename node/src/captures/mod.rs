//! Captures: images made of this node's volumes, and of disks of its running QEMUs, as jobs that others ask for and watch.
//!
//! ```text
//! Captures ─ a thread for each job ─ volumes::Taken ── point in time ──▶ capture::save ──▶ the grid's receiver
//!                                        ▲                                   │
//!                                        └──── changes count from here ◀── image, record, name
//! ```

mod dialled;
pub(crate) mod fleecing;
pub(crate) mod http;
mod job;
pub(crate) mod nbd;
mod origin;
mod running;
mod said;
mod service;
mod told;
mod totals;
mod truth;

use std::future::Future;

use api::catalog::{MoveRef, NewRecord};
use image::{Digest, ImageRecord, ImageSink, Ref, Result};

use crate::daemon::Grid;

pub use job::pace;
pub use service::{CaptureOptions, Captures};
pub use totals::Totals;

/// What captures need of the grid, on their own threads.
pub trait Saves: Grid {
    /// Takes images.
    type Sink: ImageSink;

    /// The image that a name means now.
    fn current(&self, name: &Ref) -> impl Future<Output = Result<Option<Digest>>>;

    /// The right to push an image that was made from `parent`, and who takes it; and which image that is.
    fn push(
        &self,
        parent: Option<&str>,
    ) -> impl Future<Output = Result<(Option<Digest>, Self::Sink)>>;

    /// Takes leave of it.
    fn close(&self, sink: Self::Sink) -> impl Future<Output = ()>;

    /// What was said of an image.
    fn record(&self, image: &Digest) -> impl Future<Output = Result<Option<ImageRecord>>>;

    /// Says something of an image.
    fn describe(&self, image: &Digest, said: &NewRecord) -> impl Future<Output = Result<()>>;

    /// Names an image.
    fn name(&self, name: &Ref, to: &MoveRef) -> impl Future<Output = Result<()>>;
}
