//! `forebay cache`: a cache of its own, between the store and the nodes.
//!
//! It joined the grid with a token of the role `server`, reads the same store as `forebay up`, and says
//! to placement again and again that it serves; nodes spread their requests over all who do.

use std::path::Path;
use std::time::Duration;

use api::grid::Role;
use image::error::At;
use image::signing::VerifyingKey;
use image::{Digest, Error, Kind, Result};
use placement::{Client, Clock, Papers};

use crate::commands::interrupted;
use crate::config::Config;
use crate::grid::{self, MEMBER};
use crate::report::CacheServing;
use crate::serve::cores::{Chunks, Cores};
use crate::serve::{
    advertised_ip, close_cache, lock, on_a_runtime, open_cache, open_store, tell_systemd,
};

/// Pause after placement did not answer.
const PAUSE: Duration = Duration::from_secs(1);

/// Serves until SIGTERM or Ctrl-C.
pub fn run(config: &Config, json: bool) -> Result<()> {
    let _lock = lock(&config.data)?;
    on_a_runtime(serve(config, json))
}

async fn serve(config: &Config, json: bool) -> Result<()> {
    let (placement, papers) = membership(&config.data)?;
    let name = papers.member()?.name;
    let key = verifying_key(&placement).await?;
    let clock = Clock::system();
    let store = open_store(config).await?;
    let cache = open_cache(config)?;
    let chunks = Chunks {
        store: &store,
        cache: &cache,
        receives: false,
        papers: &papers,
        key,
        clock: &clock,
    };
    let cores = Cores::start(config, chunks).await?;
    let at = api::grid::Serving { endpoints: cores.announced(advertised_ip(config)?) };
    let lease = placement.serving(&name, &at).await?;
    announce(&CacheServing { name: name.clone(), chunks: at.endpoints.clone() }, json);
    tokio::select! {
        () = keep_serving(&placement, &name, &at, lease.lease_secs) => {}
        () = interrupted() => {}
    }
    tracing::info!("stopping");
    // If placement is away the lease ends by itself.
    if let Err(error) = placement.leave(&name).await {
        tracing::warn!(%error, "placement was not told that this cache leaves");
    }
    cores.stop().await;
    close_cache(&cache, json).await;
    Ok(())
}

/// Who this machine is in the grid that it joined.
fn membership(data: &Path) -> Result<(Client, Papers)> {
    let joined = grid::joined(data)?;
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
    Ok((Client::new(&joined.placement, &papers)?, papers))
}

async fn verifying_key(placement: &Client) -> Result<VerifyingKey> {
    let health = placement.health().await.at(|| "asking placement for the key of its tickets")?;
    let what = || "placement's answer to /v1/health: verifying_key";
    // 32 bytes in hex digits, as a digest is written.
    let bytes: Digest = health.verifying_key.parse().at(what)?;
    VerifyingKey::from_bytes(&bytes.0).at(what)
}

/// Renews the lease, for ever.
async fn keep_serving(placement: &Client, name: &str, at: &api::grid::Serving, lease_secs: u64) {
    let mut pause = Duration::from_secs(lease_secs) / 3;
    loop {
        tokio::time::sleep(pause).await;
        pause = match placement.serving(name, at).await {
            Ok(lease) => Duration::from_secs(lease.lease_secs) / 3,
            Err(error) => {
                tracing::warn!(%error, "placement was not told that this cache serves");
                PAUSE
            }
        };
    }
}

fn announce(serving: &CacheServing, json: bool) {
    if json {
        println!("{}", serde_json::to_string(serving).expect("our own types serialise"));
    } else {
        let chunks: Vec<_> = serving.chunks.iter().map(ToString::to_string).collect();
        println!("forebay cache {} serves chunks at {}", serving.name, chunks.join(", "));
    }
    tell_systemd();
}
