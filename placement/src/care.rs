//! Care of a cache, as its API asks for it: implemented over the cache by who joins the two.

use std::future::Future;
use std::sync::Arc;

use api::care::{CacheStatus, DrainOrder, Evicted, Held, Pinned, ScrubOrder, ScrubStatus, Warming};
use api::grid::Revocations;
use image::{Digest, Error, Result};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::archive::Answer;
use crate::clock::Clock;
use crate::http::{self, Limits};
use crate::shown::Shown;
use crate::tls;

/// A cache, as its API uses it. Any call may be cancelled by dropping its future; what it ordered
/// (a warming, an eviction, a drain) goes on.
pub trait Care: Send + Sync + 'static {
    /// How the cache is.
    fn status(&self) -> Answer<'_, CacheStatus>;

    /// How much of an image it holds; `Gone` if there is no such image, `Busy` if too many ask.
    fn held(&self, image: Digest) -> Answer<'_, Held>;

    /// Begins to fetch what it lacks of an image, unless it has begun already.
    fn warm(&self, image: Digest) -> Answer<'_, Warming>;

    /// How the fetching of an image goes; `Gone` if it was never begun.
    fn warming(&self, image: Digest) -> Answer<'_, Warming>;

    /// Stops fetching an image.
    fn stop_warming(&self, image: Digest) -> Answer<'_, Warming>;

    /// Begins to fetch what it lacks of an image, to keep it from then on, also over restarts. The
    /// warming fails with `Full` if too much is pinned already.
    fn pin(&self, image: Digest) -> Answer<'_, Warming>;

    /// Lets an image be evicted again, and ends a pin that is under way. Of an image that is not pinned
    /// nothing is let go.
    fn unpin(&self, image: Digest) -> Answer<'_, Pinned>;

    /// Drops an image, but for what pinned images share with it; `Conflict` if it is pinned itself.
    fn evict(&self, image: Digest) -> Answer<'_, Evicted>;

    /// Starts, stops, speeds up or slows down the check of the disk.
    fn scrub(&self, order: ScrubOrder) -> Answer<'_, ScrubStatus>;

    /// Sends nodes elsewhere, or no longer.
    fn drain(&self, order: DrainOrder) -> Answer<'_, CacheStatus>;

    /// All metrics of the process, as Prometheus reads them.
    fn metrics(&self) -> String;
}

/// The certificates that are refused, as placement said last.
pub type Revoked = tokio::sync::watch::Receiver<Arc<Revocations>>;

/// Serves a cache's API on `listener`, to members of the grid of what is `shown`, until `shutdown` is done.
/// Returns early only if it cannot begin.
pub async fn serve(
    listener: TcpListener,
    shown: Arc<Shown>,
    care: Arc<dyn Care>,
    (clock, revoked): (&Clock, Revoked),
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    let local = listener.local_addr().map_err(|e| Error::io("the listener's address", e))?;
    let grid = shown.papers().member()?.grid;
    let config = tls::server(shown, tls::Clients::Required, &[b"http/1.1"], clock)?;
    let limits = Limits::default();
    let server = http::Server {
        grid,
        router: http::care::alone(care, limits.clone(), revoked),
        tls: TlsAcceptor::from(Arc::new(config)),
        limits,
    };
    tracing::info!(address = %local, "care of the cache is served");
    http::serve(listener, server, shutdown).await;
    Ok(())
}
