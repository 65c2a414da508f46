//! A volume whose lease goes just while it begins to be served. Its core is a thread of its own, so instants are tried
//! one after the other in real time.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use api::lease::LeaseGrant;
use api::volume::{AttachVolume, CreateVolume, ExportKind, Terms};
use blockio::EngineChoice;
use image::{ChunkSink, ChunkSource, Digest, Manifest, Place, ReadContext, SectionTable};

use super::*;
use crate::leases::Leases;
use crate::leases::watchdog::Watchdog;
use crate::pull::Connect;
use crate::volumes::{Birth, CoreOptions, Holder, Share, Signs, VolumeOptions};

/// Of each race so many instants are tried, so far apart.
const INSTANTS: u32 = 48;
const APART: Duration = Duration::from_micros(120);

/// A placement that gives whatever lease is asked for, and has no image.
#[derive(Clone, Default)]
struct Giving(Arc<AtomicU64>);

impl Grid for Giving {
    type Connect = Self;

    async fn find(&self, _: &str) -> Result<(Digest, u64)> {
        Err(none())
    }

    async fn locate(&self, _: &str) -> Result<(Digest, Self)> {
        Err(none())
    }

    async fn lease(&self, _: &str, _: &str, before: Option<u64>) -> Result<Option<LeaseGrant>> {
        let epoch = before.unwrap_or_else(|| self.0.fetch_add(1, Ordering::SeqCst) + 1);
        Ok(Some(LeaseGrant { epoch, lease_secs: 900 }))
    }
}

impl Connect for Giving {
    type Source = Self;

    async fn connect(&self, _: usize) -> Result<Self> {
        Err(none())
    }
}

impl ChunkSource for Giving {
    async fn manifest(&self, _: &ReadContext, _: &Digest) -> Result<Arc<Manifest>> {
        Err(none())
    }

    async fn section_table(
        &self,
        _: &ReadContext,
        _: &Digest,
        _: u32,
    ) -> Result<Arc<SectionTable>> {
        Err(none())
    }

    async fn chunks<S: ChunkSink>(&self, _: &ReadContext, _: &Place, _: &mut S) -> Result<()> {
        Err(none())
    }
}

impl Signs for Giving {
    fn name(&self) -> Result<String> {
        Err(none())
    }

    fn sign(&self, _: &[u8]) -> Result<Vec<u8>> {
        Err(none())
    }
}

fn none() -> Error {
    Error::new(Kind::Gone, "there is none")
}

/// A node with one blank volume, `v`, and its id.
async fn node(dir: &Path) -> (Volumes<Giving>, String) {
    let options = VolumeOptions {
        dir: dir.join("volumes"),
        state: dir.join("state"),
        cores: CoreOptions { cores: 1, memory: 64 << 20, engine: EngineChoice::Auto },
        holder: Holder { socket: dir.join("holder"), command: Arc::new([]) },
        rate: None,
        build_rate: None,
        share: Share::Never,
        signer: Arc::new(Giving::default()),
        leases: Arc::new(Leases::load(dir.join("state"), boottime).unwrap()),
        watchdog: Arc::new(Watchdog::new(Vec::new())),
    };
    let volumes = Volumes::start(Giving::default(), options).await.unwrap();
    let asked = CreateVolume {
        name: "v".into(),
        image: None,
        size: Some(1 << 20),
        sector: None,
        device: None,
        extend: false,
    };
    let made = volumes.create(asked, Birth { now: 1, id: [7; 16] }).await.unwrap();
    (volumes, made.id)
}

fn over_nbd() -> AttachVolume {
    let (path, qmp, read_only, trace, record) = (None, None, false, false, false);
    let (kind, fill, terms) = (ExportKind::Nbd, true, Terms::default());
    AttachVolume { kind, path, qmp, read_only, fill, terms, trace, record }
}

impl Volumes<Giving> {
    /// Whether somebody serves it.
    fn is_served(&self) -> bool {
        self.0.homes.lock().expect(UNPOISONED).contains_key("v")
    }

    /// After all has ended: it is served if and only if it is attached, and with a lease.
    fn is_let(&self, id: &str, at: Duration) -> bool {
        let (served, has) = (self.is_served(), self.0.leases.has(id));
        assert_eq!(served, has, "served {served}, and has a lease {has}: lost after {at:?}");
        assert_eq!(served, self.0.kept.get("v").is_some(), "lost after {at:?}");
        served
    }
}

/// The placement says, at an instant, that the lease is another's.
async fn loses(volumes: &Volumes<Giving>, id: &str, at: Duration) {
    tokio::time::sleep(at).await;
    volumes.fence_lost(id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_attached_while_its_lease_is_lost_is_not_served_without_one() {
    let dir = tempfile::tempdir().unwrap();
    let (volumes, id) = node(dir.path()).await;
    for instant in 0..INSTANTS {
        let at = APART * instant;
        let (attached, ()) =
            tokio::join!(volumes.attach("v", over_nbd()), loses(&volumes, &id, at));
        if let Err(error) = attached {
            assert_eq!(error.kind(), Kind::Conflict, "{error}");
        }
        if volumes.is_let(&id, at) {
            volumes.detach("v").await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_served_again_while_its_lease_is_lost_is_not_served_without_one() {
    let dir = tempfile::tempdir().unwrap();
    let (volumes, id) = node(dir.path()).await;
    for instant in 0..INSTANTS {
        let at = APART * instant;
        volumes.attach("v", over_nbd()).await.unwrap();
        let how = volumes.0.kept.get("v").unwrap();
        // As when the time of all leases was over.
        volumes.fence("v", &how, ENDS).await;
        let serving = volumes.serve_when_let("v".into(), how);
        let (served, ()) = tokio::join!(serving, loses(&volumes, &id, at));
        served.unwrap();
        assert!(!volumes.is_let(&id, at), "it was taken away");
    }
}
