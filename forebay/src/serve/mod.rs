//! What the programs that serve chunks have in common.

mod captures;
pub mod cores;
pub mod errands;
pub mod keeper;
pub mod kept;
pub mod measures;
mod publish;
pub mod rehearsals;
pub mod timed;
pub mod trust;
pub mod volumes;
mod warmings;

use std::future::Future;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use blockio::{BlockFile, EngineChoice, Fs, OpenMode};
use image::{Error, Kind, Result};
use store::{IndexPlace, Remote, Store, StoreOptions};

use crate::config::Config;
use crate::output::line;
use crate::report::Stopped;

/// Runs a server on an ordinary runtime.
pub fn on_a_runtime(server: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| Error::io("starting a runtime", e))?;
    let result = runtime.block_on(server);
    // What still runs there is a read that nobody waits for.
    runtime.shutdown_timeout(Duration::from_secs(5));
    result
}

/// One process per data directory that serves, or joins.
pub fn lock(data: &Path) -> Result<BlockFile> {
    alone(data, "another `forebay up`, `forebay cache` or `forebay node join`")
}

/// One process per directory, as long as the file is kept.
///
/// # Errors
///
/// [`Kind::Conflict`] with what `other` says, if there is another.
pub fn alone(dir: &Path, other: &str) -> Result<BlockFile> {
    let failed = |e| Error::io("data directory", e);
    Fs::os().create_dir_all(dir).map_err(failed)?;
    let lock = dir.join("lock");
    let file = BlockFile::open(&lock, OpenMode::create()).map_err(failed)?;
    if file.try_lock_exclusive().map_err(failed)? {
        return Ok(file);
    }
    let who = blockio::lock_holder(&lock);
    let who = who.map_or_else(String::new, |pid| format!(" (process {pid})"));
    let what = format!("{}: {other}{who} is using it", dir.display());
    Err(Error::new(Kind::Conflict, what))
}

/// An IP address of the configuration.
pub fn ip(config: &Config, key: &'static str) -> Result<IpAddr> {
    let text = config.text(key);
    text.parse().map_err(|e| Error::caused(Kind::Invalid, format!("{key} = `{text}`"), e))
}

/// How files are read and written.
pub fn engine(config: &Config) -> Result<EngineChoice> {
    let engine = config.text("io.engine").parse();
    engine.map_err(|e| Error::caused(Kind::Invalid, "io.engine", e))
}

/// This cache's share of the sections, beside the weights of others: 1 is the usual.
pub fn weight(config: &Config) -> f64 {
    f64::from(config.number("cache.weight")) / 100.0
}

/// Tells systemd that the service is up.
pub fn tell_systemd() {
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::debug!(%error, "systemd was not told");
    }
}

/// Opens the permanent store, to write to it as well. Of a grid that has one its id is known: no other
/// will do, and none is made.
pub async fn open_store(config: &Config, known: Option<String>) -> Result<Store> {
    open_store_with(config, IndexPlace::File(config.data.join("chunks.redb")), known).await
}

/// Opens the permanent store for reading only.
pub async fn open_store_to_read(config: &Config, known: Option<String>) -> Result<Store> {
    open_store_with(config, IndexPlace::Nowhere, known).await
}

async fn open_store_with(
    config: &Config,
    index: IndexPlace,
    known: Option<String>,
) -> Result<Store> {
    let place = config.text("store.at");
    let mut options = StoreOptions::system(index);
    options.expect = known;
    options.limits.writing = config.size("receiver.buffer") as usize;
    let handle = tokio::runtime::Handle::current();
    if place.contains("://") {
        // Region, endpoint and credentials, by the names that other tools use for them.
        let remote = Remote::new(std::env::vars());
        return Store::open_url(place, &remote, handle, options).await;
    }
    Store::open_dir(config.path("store.at", "store"), handle, options).await
}

/// Starts the tiers that the cores share.
pub fn open_cache(config: &Config) -> Result<Arc<cache::Shared>> {
    let disk = config.size("cache.disk");
    let budget = cache::Budget {
        memory: config.size("cache.memory"),
        in_flight: config.size("cache.in_flight"),
        disk: (disk > 0).then(|| cache::DiskBudget {
            dir: config.path("cache.dir", "cache"),
            bytes: disk,
            reserve: config.size("cache.reserve"),
        }),
    };
    let options = cache::Options { scrub: config.size("cache.scrub"), ..cache::Options::default() };
    cache::Shared::start(budget, options)
}

/// The IP address that nodes are told. One that stands for all of a machine's, as `0.0.0.0` does, leads
/// nobody there.
pub fn advertised_ip(config: &Config) -> Result<IpAddr> {
    let key = match config.text("serve.advertise_ip") {
        "" => "serve.ip",
        _ => "serve.advertise_ip",
    };
    let advertised = ip(config, key)?;
    if advertised.is_unspecified() {
        let what = format!(
            "{key} = `{advertised}` is no address that nodes can reach: set serve.advertise_ip to one \
             of this machine's"
        );
        return Err(Error::new(Kind::Invalid, what));
    }
    Ok(advertised)
}

/// Writes out what is on its way to the cache's disk; says how it went if programs want to know.
pub async fn close_cache(cache: &Arc<cache::Shared>, json: bool) {
    let closing = Arc::clone(cache);
    let _ = tokio::task::spawn_blocking(move || closing.close()).await;
    if json {
        let status = cache.status();
        let stopped = Stopped {
            bad_frames: status.disk_bad_frames + status.healed_copies,
            store_egress: status.source_bytes,
        };
        if let Err(error) = line(true, &stopped, |_| String::new()) {
            tracing::warn!(%error, "nobody is told how the cache went");
        }
    }
}
