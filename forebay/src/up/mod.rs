//! `forebay up`: store, receiver, cache and placement in one process.
//!
//! ```text
//!  placement (HTTPS) ── ordinary runtime ── store (object_store)
//!                                             ▲
//!  core 0: QUIC endpoint ─ cache ─────────────┤   one thread, one runtime, one UDP port each
//!  core 1: QUIC endpoint ─ cache ─────────────┘
//! ```

mod archive;

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use api::grid::CacheInfo;
use image::{Error, Kind, Result};
use placement::{Authority, Clock, Papers, Placement, Shown};
use tokio::net::TcpListener;

use crate::commands::interrupted;
use crate::commands::placement::state_place;
use crate::config::Config;
use crate::grid::{self, ADMIN, Finder};
use crate::output::line;
use crate::report::Serving;
use crate::serve::cores::{Chunks, Cores};
use crate::serve::keeper::Keeper;
use crate::serve::measures;
use crate::serve::{
    advertised_ip, close_cache, ip, lock, on_a_runtime, open_cache, open_store, tell_systemd,
    trust, weight,
};
use crate::telemetry;
use archive::StoreArchive;

/// Seconds. A node asks for more four times in its term.
const SHORTEST_LEASE: u64 = 4;
/// Seconds. Certificates are renewed when a third of that is left.
const SHORTEST_VALIDITY: u64 = 6;

/// Serves until SIGTERM or Ctrl-C.
pub fn run(config: &Config, json: bool) -> Result<()> {
    let _lock = lock(&config.data)?;
    on_a_runtime(serve(config, json))
}

async fn serve(config: &Config, json: bool) -> Result<()> {
    let metrics = telemetry::metrics()?;
    let clock = Clock::system();
    let data = &config.data;
    let authority = Authority::open(&data.join("ca"), clock.now())?;
    let validity = config.time("placement.certificates").as_secs().max(SHORTEST_VALIDITY);
    let authority = Arc::new(authority.with_validity(validity));
    let advertise = advertised_ip(config)?;
    let placement_ip = placement_ip(config, advertise)?;
    let ips = [ip(config, "serve.ip")?, advertise];
    let name = config.text("up.name");
    let papers = authority.server_papers(&data.join("server"), name, &ips, clock.now())?;
    let admin = authority.admin_papers(&data.join(ADMIN), clock.now())?;
    let shown = Shown::new(papers)?;
    let issue = issuer(&authority, data, (name, ips), &clock);
    let reissued = tokio::spawn(trust::reissue(Arc::clone(&shown), clock.clone(), issue));
    let every = config.time("serve.revocations");
    let (revoked, asking) = trust::revocations(Finder::new(data.clone()), every).await;
    let asking = tokio::spawn(asking);
    let state = state_place(config)?;
    let known = placement::known_store(&state, authority.grid()).await?;
    let store = open_store(config, known).await?;
    let cache = open_cache(config)?;
    let chunks = Chunks {
        store: &store,
        cache: &cache,
        receives: true,
        shown: &shown,
        revoked,
        key: authority.verifying_key(),
        clock: &clock,
    };
    let cores = Cores::start(config, chunks).await?;

    let keeper = Keeper::start(name, config, &store, &cache, cores.memory(), metrics, None)?;
    let listener = listen(config.text("up.listen")).await?;
    let address = listener.local_addr().map_err(|e| Error::io("placement's address", e))?;
    let chunks = cores.announced(advertise);
    let api = if address.ip().is_unspecified() { advertise } else { address.ip() };
    let serving = Serving {
        grid: authority.grid().to_owned(),
        placement: address,
        chunks: chunks.clone(),
        pid: std::process::id(),
    };
    let server_name = format!("{name}.{}", placement::member::DOMAIN);
    let placement = placement::Config {
        authority,
        shown,
        state,
        store: store.id().to_owned(),
        address: Some(SocketAddr::new(placement_ip, address.port()).to_string()),
        placements: placements(config),
        servers: vec![CacheInfo {
            name: name.into(),
            server_name,
            endpoints: chunks,
            receives: true,
            api: Some(SocketAddr::new(api, address.port())),
            weight: weight(config),
            draining: false,
        }],
        care: Some(keeper),
        lease_secs: config.time("placement.lease").as_secs().max(SHORTEST_LEASE),
        policy: crate::commands::place::policy(config)?,
        levels: crate::declared::levels(config)?,
        limits: placement::Limits::default(),
        clock: clock.clone(),
    };
    let archive = Arc::new(StoreArchive::new(store, config.time("gc.grace"), clock));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let mut serving_task = tokio::spawn(Placement::serve(listener, placement, archive, async {
        let _ = stopped.await;
    }));
    let ready = placement::Client::new(&address.to_string(), &admin)?;
    // One listener for both waits: a signal between two of them would be lost.
    let interrupted = interrupted();
    tokio::pin!(interrupted);
    let result = tokio::select! {
        // It ends by itself only if it could not begin.
        ended = &mut serving_task => return flatten(ended),
        ready = ready.health() => ready.map(|_| true),
        () = &mut interrupted => Ok(false),
    };
    if let Ok(true) = result {
        announce(data, &serving, json)?;
        tokio::select! {
            () = &mut interrupted => {}
            () = measures::of_the_fleet(&ready) => {}
        }
    }
    tracing::info!("stopping");
    reissued.abort();
    asking.abort();
    let _ = stop.send(());
    let ended = flatten(serving_task.await);
    cores.stop().await;
    close_cache(&cache, json).await;
    grid::forget_serving(data);
    result.map(drop).and(ended)
}

/// What issues placement's own papers anew when they are to be renewed, and the admin's.
fn issuer(
    authority: &Arc<Authority>,
    data: &Path,
    (name, ips): (&str, [IpAddr; 2]),
    clock: &Clock,
) -> impl Fn() -> Result<Papers> + use<> {
    let (authority, data, clock) = (Arc::clone(authority), data.to_owned(), clock.clone());
    let name = name.to_owned();
    move || {
        let now = clock.now();
        authority.admin_papers(&data.join(ADMIN), now)?;
        authority.server_papers(&data.join("server"), &name, &ips, now)
    }
}

fn flatten(ended: std::result::Result<Result<()>, tokio::task::JoinError>) -> Result<()> {
    ended.unwrap_or_else(|e| Err(Error::caused(Kind::Io, "placement ended badly", e)))
}

/// The addresses of all placements, if there are several.
fn placements(config: &Config) -> Vec<String> {
    let all = config.text("up.placements").split(',').map(str::trim);
    all.filter(|address| !address.is_empty()).map(str::to_owned).collect()
}

/// The IP address at which joining machines find placement: where it listens, or, if that is all of this
/// machine's, the one that nodes are told.
fn placement_ip(config: &Config, advertise: IpAddr) -> Result<IpAddr> {
    let text = config.text("up.listen");
    let bad = |e| Error::caused(Kind::Invalid, format!("up.listen = `{text}`"), e);
    let listen = text.parse::<SocketAddr>().map_err(bad)?.ip();
    if !listen.is_unspecified() {
        return Ok(listen);
    }
    if advertise.is_loopback() && config.text("serve.advertise_ip").is_empty() {
        let what = format!(
            "up.listen = `{text}` is no address that nodes can reach: set serve.advertise_ip to one of \
             this machine's"
        );
        return Err(Error::new(Kind::Invalid, what));
    }
    Ok(advertise)
}

async fn listen(address: &str) -> Result<TcpListener> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|e| Error::io(format!("listening on {address} (up.listen)"), e))
}

/// Tells the user, other commands on this machine, and systemd, that it serves.
fn announce(data: &Path, serving: &Serving, json: bool) -> Result<()> {
    grid::note_serving(data, serving)?;
    line(json, serving, |serving| {
        let chunks: Vec<_> = serving.chunks.iter().map(SocketAddr::to_string).collect();
        format!(
            "forebay serves grid {} at https://{}, chunks at {} (data in {})",
            serving.grid,
            serving.placement,
            chunks.join(", "),
            data.display()
        )
    })?;
    tell_systemd();
    Ok(())
}
