//! `forebay up`: store, receiver, cache and placement in one process.
//!
//! ```text
//!  placement (HTTPS) ── ordinary runtime ── store (object_store)
//!                                             ▲
//!  core 0: QUIC endpoint ─ cache ─────────────┤   one thread, one runtime, one UDP port each
//!  core 1: QUIC endpoint ─ cache ─────────────┘
//! ```

mod archive;
mod cores;

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use api::grid::CacheInfo;
use blockio::{BlockFile, OpenMode};
use image::{Error, Kind, Result};
use placement::{Authority, Clock, Placement};
use store::{IndexPlace, Store, StoreOptions};
use tokio::net::TcpListener;

use crate::commands::interrupted;
use crate::config::Config;
use crate::grid::{self, ADMIN};
use crate::report::{Serving, Stopped};
use archive::StoreArchive;
use cores::Cores;

/// The server's name in the grid.
const NAME: &str = "up";
/// Free space that the cache leaves on its file system, in bytes.
const RESERVE: u64 = 1 << 30;

/// Serves until SIGTERM or Ctrl-C.
pub fn run(config: &Config, json: bool) -> Result<()> {
    let _lock = lock(&config.data)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| Error::io("starting a runtime", e))?;
    let result = runtime.block_on(serve(config, json));
    // What still runs there is a read that nobody waits for.
    runtime.shutdown_timeout(Duration::from_secs(5));
    result
}

/// One `forebay up` per data directory.
fn lock(data: &Path) -> Result<BlockFile> {
    std::fs::create_dir_all(data).map_err(|e| Error::io(data.display(), e))?;
    let file = BlockFile::open(data.join("lock"), OpenMode::create());
    let file = file.map_err(|e| Error::io("data directory", e))?;
    match file.try_lock_exclusive() {
        Ok(true) => Ok(file),
        Ok(false) => {
            let what = format!("{}: another `forebay up` is using it", data.display());
            Err(Error::new(Kind::Conflict, what))
        }
        Err(e) => Err(Error::io("data directory", e)),
    }
}

async fn serve(config: &Config, json: bool) -> Result<()> {
    let clock = Clock::system();
    let data = &config.data;
    let authority = Arc::new(Authority::open(&data.join("ca"), clock.now())?);
    let stream_ip: IpAddr = ip(config, "up.stream_ip")?;
    let advertise = match config.text("up.advertise_ip") {
        "" => stream_ip,
        _ => ip(config, "up.advertise_ip")?,
    };
    let ips = [stream_ip, advertise];
    let papers = authority.server_papers(&data.join("server"), NAME, &ips, clock.now())?;
    let admin = authority.admin_papers(&data.join(ADMIN), clock.now())?;
    let store = open_store(config).await?;
    let cache = open_cache(config)?;
    let cores = Cores::start(config, &store, &cache, &papers, &authority, &clock).await?;

    let listener = listen(config.text("up.listen")).await?;
    let address = listener.local_addr().map_err(|e| Error::io("placement's address", e))?;
    let chunks = cores.announced(advertise);
    let serving = Serving {
        grid: authority.grid().to_owned(),
        placement: address,
        chunks: chunks.clone(),
        pid: std::process::id(),
    };
    let server_name = format!("{NAME}.{}", placement::member::DOMAIN);
    let placement = placement::Config {
        authority,
        papers,
        state: data.join("placement.redb"),
        address: None,
        servers: vec![CacheInfo {
            name: NAME.into(),
            server_name,
            endpoints: chunks,
            receives: true,
        }],
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
        interrupted.await;
    }
    tracing::info!("stopping");
    let _ = stop.send(());
    let ended = flatten(serving_task.await);
    cores.stop().await;
    let closing = Arc::clone(&cache);
    let _ = tokio::task::spawn_blocking(move || closing.close()).await;
    grid::forget_serving(data);
    if json {
        let status = cache.status();
        let stopped = Stopped {
            bad_frames: status.disk_bad_frames + status.healed_copies,
            store_egress: status.source_bytes,
        };
        println!("{}", serde_json::to_string(&stopped).expect("our own types serialise"));
    }
    result.map(drop).and(ended)
}

fn flatten(ended: std::result::Result<Result<()>, tokio::task::JoinError>) -> Result<()> {
    ended.unwrap_or_else(|e| Err(Error::caused(Kind::Io, "placement ended badly", e)))
}

fn ip(config: &Config, key: &'static str) -> Result<IpAddr> {
    let text = config.text(key);
    text.parse().map_err(|e| Error::caused(Kind::Invalid, format!("{key} = `{text}`"), e))
}

async fn listen(address: &str) -> Result<TcpListener> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|e| Error::io(format!("listening on {address} (up.listen)"), e))
}

/// Tells the user, other commands on this machine, and systemd, that it serves.
fn announce(data: &Path, serving: &Serving, json: bool) -> Result<()> {
    grid::note_serving(data, serving)?;
    if json {
        println!("{}", serde_json::to_string(serving).expect("our own types serialise"));
    } else {
        let chunks: Vec<_> = serving.chunks.iter().map(SocketAddr::to_string).collect();
        println!(
            "forebay serves grid {} at https://{}, chunks at {} (data in {})",
            serving.grid,
            serving.placement,
            chunks.join(", "),
            data.display()
        );
    }
    tell_systemd();
    Ok(())
}

/// Tells systemd that the service is up.
pub fn tell_systemd() {
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::debug!(%error, "systemd was not told");
    }
}

async fn open_store(config: &Config) -> Result<Store> {
    let path = config.path("up.store", "store");
    let mut options = StoreOptions::system(IndexPlace::File(config.data.join("chunks.redb")));
    options.limits.writing = config.size("receiver.buffer") as usize;
    Store::open_dir(path, tokio::runtime::Handle::current(), options).await
}

fn open_cache(config: &Config) -> Result<Arc<cache::Shared>> {
    let disk = config.size("cache.disk");
    let budget = cache::Budget {
        memory: config.size("cache.memory"),
        in_flight: config.size("cache.in_flight"),
        disk: (disk > 0).then(|| cache::DiskBudget {
            dir: config.path("cache.dir", "cache"),
            bytes: disk,
            reserve: RESERVE,
        }),
    };
    cache::Shared::start(budget, cache::Options::default())
}
