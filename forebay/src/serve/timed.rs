//! How long a source takes and how it fails: recorded as metrics, and logged under the request's trace
//! id, at the seam itself, so that the rooms on both sides need not know.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use image::{
    ChunkSink, ChunkSource, Digest, Error, Kind, Manifest, Place, Priority, ReadContext, Result,
    SectionTable,
};

/// A source that is timed.
#[derive(Clone)]
pub struct Timed<S> {
    source: S,
    seconds: &'static str,
    errors: &'static str,
}

impl<S> Timed<S> {
    /// What a cache asks of the store behind it.
    pub fn store(source: S) -> Self {
        Self::new(source, "forebay_store_seconds", "forebay_store_errors_total")
    }

    /// What nodes ask of a cache.
    pub fn requests(source: S) -> Self {
        Self::new(source, "forebay_request_seconds", "forebay_request_errors_total")
    }

    fn new(source: S, seconds: &'static str, errors: &'static str) -> Self {
        // A rate sees the first error only if there was a 0 before it.
        for op in ["manifest", "table", "chunks"] {
            for kind in [Kind::Retry, Kind::Corrupt, Kind::Io] {
                metrics::counter!(errors, "op" => op, "kind" => kind.name()).increment(0);
            }
        }
        Self { source, seconds, errors }
    }

    async fn time<T>(
        &self,
        op: &'static str,
        ctx: &ReadContext,
        place: impl fmt::Display,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let started = now();
        let result = work.await;
        let took = now() - started;
        let class = class(ctx.priority);
        metrics::histogram!(self.seconds, "op" => op, "class" => class).record(took);
        let trace = format_args!("{:032x}", ctx.trace);
        match &result {
            Ok(_) => tracing::debug!(target: "forebay::trace", %trace, op, class, %place, ?took),
            Err(error) => {
                let kind = error.kind().name();
                metrics::counter!(self.errors, "op" => op, "kind" => kind).increment(1);
                log_failure(error, &format!("{trace} {op} {class} {place} after {took:?}"));
            }
        }
        result
    }
}

/// What is nobody's fault here is no warning.
fn log_failure(error: &Error, request: &str) {
    match error.kind() {
        Kind::Cancelled | Kind::Busy(_) | Kind::Denied | Kind::Gone | Kind::Invalid => {
            tracing::debug!(target: "forebay::trace", request, %error, "failed");
        }
        _ => tracing::warn!(target: "forebay::trace", request, %error, "failed"),
    }
}

/// A priority class, as metrics call it.
pub fn class(priority: Priority) -> &'static str {
    match priority {
        Priority::Guest => "guest",
        Priority::Trace => "trace",
        Priority::Background => "background",
    }
}

#[expect(clippy::disallowed_methods, reason = "metrics tell real time")]
fn now() -> Instant {
    Instant::now()
}

impl<S: ChunkSource> ChunkSource for Timed<S> {
    async fn manifest(&self, ctx: &ReadContext, image: &Digest) -> Result<Arc<Manifest>> {
        let place = image.short();
        self.time("manifest", ctx, place, self.source.manifest(ctx, image)).await
    }

    async fn section_table(
        &self,
        ctx: &ReadContext,
        image: &Digest,
        section: u32,
    ) -> Result<Arc<SectionTable>> {
        let place = format!("{}/{section}", image.short());
        self.time("table", ctx, place, self.source.section_table(ctx, image, section)).await
    }

    async fn chunks<K: ChunkSink>(
        &self,
        ctx: &ReadContext,
        place: &Place,
        sink: &mut K,
    ) -> Result<()> {
        let what = format!("{}/{}", place.image.short(), place.section);
        self.time("chunks", ctx, what, self.source.chunks(ctx, place, sink)).await
    }
}
