//! `forebay cache`: a cache of its own, between the store and the nodes.
//!
//! It joined the grid with a token of the role `server`, reads the same store as `forebay up`, and says
//! to placement again and again that it serves; nodes spread their requests over all who do.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use api::grid::{Health, Lease, Role, Serving};
use image::error::At;
use image::signing::VerifyingKey;
use image::{Digest, Error, Kind, Result};
use placement::{Clock, Papers, Shown};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::commands::interrupted;
use crate::config::Config;
use crate::grid::{self, Finder, MEMBER};
use crate::output::line;
use crate::report::CacheServing;
use crate::serve::cores::{Chunks, Cores};
use crate::serve::keeper::{Drain, DrainOrders, Keeper};
use crate::serve::kept::Kept;
use crate::serve::{
    advertised_ip, close_cache, ip, lock, on_a_runtime, open_cache, open_store_to_read,
    tell_systemd, trust, weight,
};
use crate::telemetry;

/// Pause after placement did not answer.
const PAUSE: Duration = Duration::from_secs(1);

/// After how long placement is told what has changed of what it has this cache keep.
const SOON: Duration = Duration::from_secs(1);

/// Serves until SIGTERM or Ctrl-C.
pub fn run(config: &Config, json: bool) -> Result<()> {
    let _lock = lock(&config.data)?;
    on_a_runtime(serve(config, json))
}

async fn serve(config: &Config, json: bool) -> Result<()> {
    let metrics = telemetry::metrics()?;
    let (finder, shown) = membership(&config.data)?;
    let name = shown.papers().member()?.name;
    let placement = finder.find()?.placement;
    let health = placement.health().await.at(|| "asking placement about the grid")?;
    let key = verifying_key(&health)?;
    let clock = Clock::system();
    let renewed = trust::renew(config.data.clone(), Some(Arc::clone(&shown)), clock.clone());
    tokio::spawn(renewed);
    let every = config.time("serve.revocations");
    let (revoked, asking) = trust::revocations(finder.clone(), every).await;
    tokio::spawn(asking);
    let store = open_store_to_read(config, health.store).await?;
    let cache = open_cache(config)?;
    let chunks = Chunks {
        store: &store,
        cache: &cache,
        receives: false,
        shown: &shown,
        revoked: revoked.clone(),
        key,
        clock: &clock,
    };
    let cores = Cores::start(config, chunks).await?;
    let (drain, orders) = Drain::new();
    let keeper =
        Keeper::start(&name, config, &store, &cache, cores.memory(), metrics, Some(drain))?;
    let listener = listen(config).await?;
    let port = listener.local_addr().map_err(|e| Error::io("the API's address", e))?.port();
    let advertised = advertised_ip(config)?;
    let (stop, stopped) = oneshot::channel::<()>();
    let care = Arc::clone(&keeper);
    let api = async {
        placement::care::serve(listener, shown, care, (&clock, revoked), async move {
            let _ = stopped.await;
        })
        .await
    };
    let at = Serving {
        endpoints: cores.announced(advertised),
        api: Some(SocketAddr::new(advertised, port)),
        weight: weight(config),
        draining: false,
        kept: Vec::new(),
    };
    let kept = Kept::load(Arc::clone(&keeper), &config.data)?;
    let lease = placement.serving(&name, &at).await?;
    let interrupted = interrupted();
    announce(
        &CacheServing { name: name.clone(), chunks: at.endpoints.clone(), api: at.api },
        json,
    )?;
    let until = async {
        tokio::select! {
            () = keep_serving(&finder, &name, at, lease, orders, kept) => {}
            () = keeper.drained() => tracing::info!("drained"),
            () = interrupted => {}
        }
        tracing::info!("stopping");
        drop(stop);
    };
    let ((), served) = tokio::join!(until, api);
    served?;
    // If placement is away the lease ends by itself.
    let left = async { finder.find()?.placement.leave(&name).await };
    if let Err(error) = left.await {
        tracing::warn!(%error, "placement was not told that this cache leaves");
    }
    cores.stop().await;
    close_cache(&cache, json).await;
    Ok(())
}

/// Who this machine is in the grid that it joined.
fn membership(data: &Path) -> Result<(Finder, Arc<Shown>)> {
    grid::joined(data)?;
    let papers = Papers::load(&data.join(MEMBER))?;
    let member = papers.member()?;
    if member.role != Role::Server {
        let what = format!(
            "{}: this machine joined the grid as {member}, and may not serve; make a token with \
             `forebay node token --role server` and join with it in another data directory",
            data.display()
        );
        return Err(Error::new(Kind::Denied, what));
    }
    Ok((Finder::new(data.to_owned()), Shown::new(papers)?))
}

fn verifying_key(health: &Health) -> Result<VerifyingKey> {
    let what = || "placement's answer to /v1/health: verifying_key";
    // 32 bytes in hex digits, as a digest is written.
    let bytes: Digest = health.verifying_key.parse().at(what)?;
    VerifyingKey::from_bytes(&bytes.0).at(what)
}

async fn listen(config: &Config) -> Result<TcpListener> {
    let port = config.number("serve.api_port");
    let port = u16::try_from(port);
    let port =
        port.map_err(|_| Error::new(Kind::Invalid, "serve.api_port: there is no such port"))?;
    let address = SocketAddr::new(ip(config, "serve.ip")?, port);
    let bound = TcpListener::bind(address).await;
    bound.map_err(|e| Error::io(format!("listening on {address} (serve.api_port)"), e))
}

/// Renews the lease, for ever, and at once when it begins to drain or stays after all.
async fn keep_serving(
    finder: &Finder,
    name: &str,
    mut at: Serving,
    mut lease: Lease,
    mut orders: DrainOrders,
    mut kept: Kept,
) {
    let mut pause = Duration::from_secs(lease.lease_secs) / 3;
    loop {
        // In time for the next report: what it takes long for goes on by itself.
        let follow = kept.follow(&lease.keep, now());
        if tokio::time::timeout(pause / 2, follow).await.is_err() {
            tracing::warn!(
                "how much is here of the images that this cache keeps takes long to find out"
            );
        }
        // What is on its way is said soon after it has come.
        let nap = if kept.said() == at.kept { pause } else { pause.min(SOON) };
        // Its keeper outlives this.
        let _ = tokio::time::timeout(nap, orders.ordered.changed()).await;
        at.draining = *orders.ordered.borrow_and_update();
        at.kept = kept.said().to_vec();
        let told = async { finder.find()?.placement.serving(name, &at).await };
        pause = match told.await {
            Ok(renewed) => {
                orders.told.send_replace(at.draining);
                lease = renewed;
                Duration::from_secs(lease.lease_secs) / 3
            }
            Err(error) => {
                tracing::warn!(%error, "placement was not told that this cache serves");
                PAUSE
            }
        };
    }
}

#[expect(clippy::disallowed_methods, reason = "when a failure is long enough ago is real time")]
fn now() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

fn announce(serving: &CacheServing, json: bool) -> Result<()> {
    line(json, serving, |serving| {
        let chunks: Vec<_> = serving.chunks.iter().map(ToString::to_string).collect();
        format!("forebay cache {} serves chunks at {}", serving.name, chunks.join(", "))
    })?;
    tell_systemd();
    Ok(())
}
