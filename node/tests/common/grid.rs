//! A grid of one image, and volumes of a node in it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use api::volume::{AttachVolume, CreateVolume, ExportKind, Terms, VolumeInfo};
use blockio::EngineChoice;
use forebay_node::daemon::Grid;
use forebay_node::leases::watchdog::Watchdog;
use forebay_node::leases::{Leases, boottime};
use forebay_node::pull::Connect;
use forebay_node::volumes::{Birth, CoreOptions, Holder, Share, Signs, VolumeOptions, Volumes};
use image::{Digest, Kind, Result};

use super::{Disk, Source};

/// A grid of one image, whatever it is called.
#[derive(Clone)]
pub struct OneImage<C> {
    disk: Arc<Disk>,
    connect: C,
}

impl OneImage<Source> {
    pub fn of(source: &Source) -> Self {
        Self::by(&source.disk, source.clone())
    }
}

impl<C> OneImage<C> {
    /// With this way to its chunks.
    pub fn by(disk: &Arc<Disk>, connect: C) -> Self {
        Self { disk: Arc::clone(disk), connect }
    }
}

impl<C: Connect + Clone + Sync> Grid for OneImage<C> {
    type Connect = C;

    async fn find(&self, _: &str) -> Result<(Digest, u64)> {
        Ok((self.disk.image(), self.disk.bytes.len() as u64))
    }

    async fn locate(&self, _: &str) -> Result<(Digest, C)> {
        Ok((self.disk.image(), self.connect.clone()))
    }
}

/// Signs for nobody.
struct Nobody;

impl Signs for Nobody {
    fn name(&self) -> Result<String> {
        Ok("n".into())
    }

    fn sign(&self, _: &[u8]) -> Result<Vec<u8>> {
        Ok(vec![1])
    }
}

/// The volumes of a node whose directory this is.
pub async fn start<C: Connect + Clone + Sync>(
    dir: &Path,
    grid: OneImage<C>,
    share: Share,
) -> Volumes<OneImage<C>> {
    let options = VolumeOptions {
        dir: dir.join("volumes"),
        state: dir.join("state"),
        cores: CoreOptions { cores: 2, memory: 64 << 20, engine: EngineChoice::Auto },
        holder: Holder { socket: dir.join("holder"), command: Arc::new([]) },
        rate: None,
        build_rate: None,
        share,
        signer: Arc::new(Nobody),
        leases: Arc::new(Leases::load(dir.join("state"), boottime).unwrap()),
        watchdog: Arc::new(Watchdog::new(Vec::new())),
    };
    Volumes::start(grid, options).await.unwrap()
}

/// Makes a volume of the image, however often nobody answers.
pub async fn create<G: Grid>(volumes: &Volumes<G>, name: &str) -> VolumeInfo {
    let image = Some("a:1".into());
    let asked = CreateVolume {
        name: name.into(),
        image,
        size: None,
        sector: None,
        device: None,
        extend: false,
    };
    let birth = Birth { now: 1, id: [name.as_bytes()[0]; 16] };
    loop {
        match volumes.create(asked.clone(), birth).await {
            Err(error) if error.kind() == Kind::Retry => {}
            made => return made.unwrap(),
        }
    }
}

/// Over NBD, filled, without traces.
pub fn over_nbd() -> AttachVolume {
    let (path, qmp, read_only, trace, record) = (None, None, false, false, false);
    let (kind, fill, terms) = (ExportKind::Nbd, true, Terms::default());
    AttachVolume { kind, path, qmp, read_only, fill, terms, trace, record }
}

/// Where NBD clients find a volume.
pub fn url(dir: &Path, name: &str) -> String {
    let socket = dir.join(format!("state/volumes/{name}.nbd"));
    format!("nbd+unix:///{name}?socket={}", socket.display())
}

/// However long it takes, this is not what a test waits for.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Looks again and again until a volume is so.
pub async fn until<G: Grid>(volumes: &Volumes<G>, name: &str, so: impl Fn(&VolumeInfo) -> bool) {
    let look = async {
        while !so(&volumes.show(name).await.unwrap()) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let late = |_| panic!("{name} does not get there");
    tokio::time::timeout(PATIENCE, look).await.unwrap_or_else(late);
}
