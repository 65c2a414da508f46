//! What the daemon knows of this node.

use api::node::TransferState;
use api::stats::{Holdings, RequestStats};
use api::volume::VolumeInfo;

use super::Known;
use crate::captures::{Captures, Saves};
use crate::daemon::{Daemon, Grid};
use crate::pools::{Agent, Ready};
use crate::stats::Tallies;
use crate::volumes::Volumes;

/// Those who know.
pub struct Knows<G, V> {
    /// Pulls.
    pub daemon: Daemon<G>,
    /// Volumes.
    pub volumes: Volumes<V>,
    /// Ready volumes.
    pub ready: Ready<V>,
    /// Captures.
    pub captures: Captures<V>,
    /// What placement wants.
    pub agent: Agent<V>,
}

/// Asks all of them.
pub async fn known<G: Grid, V: Saves>(of: &Knows<G, V>, tallies: &Tallies) -> Known {
    let volumes = of.volumes.list().await.unwrap_or_else(|error| {
        tracing::warn!(%error, "statistics lack this node's volumes");
        Vec::new()
    });
    let mut holdings = Holdings { promised_bytes: of.agent.promised(), ..Holdings::default() };
    for volume in &volumes {
        count(&mut holdings, volume);
    }
    for ready in of.ready.list() {
        holdings.volume_bytes = holdings.volume_bytes.saturating_add(ready.kind.size);
        if ready.state == "ready" {
            *holdings.pools.entry(ready.pool).or_default() += 1;
            has_image(&mut holdings, ready.kind.image, ready.kind.size);
        }
    }
    for held in of.volumes.held().await.into_iter().filter(|held| held.whole) {
        has_image(&mut holdings, Some(held.image), held.size);
    }
    let attached = volumes.iter().filter_map(|volume| volume.attached.as_ref());
    let places = attached.filter_map(|attached| attached.path.to_str());
    let disks = volumes.iter().filter_map(|volume| volume.disk.to_str());
    let places = places.chain(disks).map(str::to_owned).collect();
    let captures = of.captures.totals();
    let pulls = of.daemon.transfers();
    let failed = pulls.iter().filter(|pull| pull.state == TransferState::Failed).count() as u64;
    let repaired = pulls.iter().map(|pull| pull.progress.repaired);
    let hydrations = volumes.iter().filter_map(|volume| volume.hydration);
    let again =
        repaired.chain(hydrations.map(|of| of.repaired)).fold(captures.waits, u64::saturating_add);
    let (not_done, retried) = tallies.read();
    let requests = RequestStats {
        failed_total: not_done.saturating_add(failed).saturating_add(captures.failed),
        retried_total: retried.saturating_add(again),
    };
    Known { holdings, requests, places }
}

fn count(holdings: &mut Holdings, volume: &VolumeInfo) {
    holdings.volumes = holdings.volumes.saturating_add(1);
    holdings.attached += u32::from(volume.attached.is_some());
    holdings.volume_bytes = holdings.volume_bytes.saturating_add(volume.size);
    // Of what is neither plain nor attached nobody has counted what is here.
    let here = match (&volume.hydration, volume.plain) {
        (_, true) => volume.size,
        (Some(of), false) if of.chunks > 0 => {
            (u128::from(volume.size) * u128::from(of.present) / u128::from(of.chunks)) as u64
        }
        _ => 0,
    };
    has_image(holdings, volume.image, here);
}

fn has_image(holdings: &mut Holdings, image: Option<image::Digest>, bytes: u64) {
    if let Some(image) = image.filter(|_| bytes > 0) {
        let most = holdings.images.entry(image).or_default();
        *most = bytes.max(*most);
    }
}
