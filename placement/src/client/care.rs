//! The other end of a cache's own API: one method per route.

use api::care::{CacheStatus, DrainOrder, Evicted, Held, Pinned, ScrubOrder, ScrubStatus, Warming};
use api::grid::CacheInfo;
use hyper::Method;
use image::{Digest, Error, Kind, Result};
use rustls::ClientConfig;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::wire::{Patience, Repeat, Wire};
use super::{ALPN, json};
use crate::clock::Clock;
use crate::papers::Papers;
use crate::people::PersonCode;
use crate::tls;

/// Asks one cache about itself. Cheap to clone; needs a tokio runtime.
///
/// All orders say what shall be: a call that fails with `Retry` may be made again.
#[derive(Clone, Debug)]
pub struct CareClient {
    wire: Wire,
}

impl CareClient {
    /// A client of a cache of the grid, as placement lists it.
    pub fn new(cache: &CacheInfo, papers: &Papers) -> Result<Self> {
        papers.check()?;
        Ok(Self { wire: wire(cache, tls::client(papers, ALPN, &Clock::system())?)? })
    }

    /// The same for a person. Only the cache in placement's own process knows tokens.
    pub fn with_token(cache: &CacheInfo, code: &PersonCode) -> Result<Self> {
        let config = tls::joiner(code.ca, ALPN, &Clock::system())?;
        Ok(Self { wire: wire(cache, config)?.bearing(&code.bearer)? })
    }

    /// How the cache is.
    pub async fn status(&self) -> Result<CacheStatus> {
        self.get("/v1/cache".into()).await
    }

    /// How much of an image it holds. Takes as long as it takes: it looks through all of the image.
    pub async fn held(&self, image: &Digest) -> Result<Held> {
        self.wire
            .call(Method::GET, &of_image(image), None, (Patience::Endless, Repeat::Never))
            .await
    }

    /// Drops an image. Takes as long as it takes, and goes on if the call is dropped.
    pub async fn evict(&self, image: &Digest) -> Result<Evicted> {
        self.wire
            .call(Method::DELETE, &of_image(image), None, (Patience::Endless, Repeat::Never))
            .await
    }

    /// How the fetching of an image goes.
    pub async fn warming(&self, image: &Digest) -> Result<Warming> {
        self.get(of_image(image) + "/warm").await
    }

    /// Begins to fetch what it lacks of an image.
    pub async fn warm(&self, image: &Digest) -> Result<Warming> {
        self.send(Method::PUT, of_image(image) + "/warm", None::<&()>).await
    }

    /// Stops fetching an image.
    pub async fn stop_warming(&self, image: &Digest) -> Result<Warming> {
        self.send(Method::DELETE, of_image(image) + "/warm", None::<&()>).await
    }

    /// Begins to fetch what it lacks of an image, to keep it from then on.
    pub async fn pin(&self, image: &Digest) -> Result<Warming> {
        self.send(Method::PUT, of_image(image) + "/pin", None::<&()>).await
    }

    /// Lets an image be evicted again.
    pub async fn unpin(&self, image: &Digest) -> Result<Pinned> {
        self.send(Method::DELETE, of_image(image) + "/pin", None::<&()>).await
    }

    /// Starts, stops, speeds up or slows down the check of the disk.
    pub async fn scrub(&self, order: &ScrubOrder) -> Result<ScrubStatus> {
        self.send(Method::PUT, "/v1/cache/scrub".into(), Some(order)).await
    }

    /// Sends nodes elsewhere, or no longer.
    pub async fn drain(&self, order: &DrainOrder) -> Result<CacheStatus> {
        self.send(Method::PUT, "/v1/cache/drain".into(), Some(order)).await
    }

    /// All metrics of the cache's process, as Prometheus reads them.
    pub async fn metrics(&self) -> Result<String> {
        self.wire.text("/metrics").await
    }

    async fn get<T: DeserializeOwned>(&self, path: String) -> Result<T> {
        self.send(Method::GET, path, None::<&()>).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: String,
        body: Option<&impl Serialize>,
    ) -> Result<T> {
        self.wire.call(method, &path, json(body), (Patience::Usual, Repeat::Never)).await
    }
}

fn wire(cache: &CacheInfo, config: ClientConfig) -> Result<Wire> {
    let Some(address) = cache.api else {
        let what = format!("cache {}: it offers no API; is it an older version?", cache.name);
        return Err(Error::new(Kind::Unsupported, what));
    };
    let who = format!("cache {}", cache.name);
    let (program, name) = ("forebay cache", &cache.server_name);
    Wire::new(&who, program, name, &address.to_string(), config)
}

fn of_image(image: &Digest) -> String {
    format!("/v1/cache/images/{image}")
}
