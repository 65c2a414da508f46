//! A volume of a pool that is built from an image which is at hand on its node, beside `cp`: where the file system shares
//! blocks, and where it does not.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use api::pool::VolumeKind;
use blockio::EngineChoice;
use image::{Digest, Result};
use node::daemon::Grid as NodeGrid;
use node::leases::watchdog::Watchdog;
use node::leases::{Leases, boottime};
use node::pull::Connect;
use node::volumes::{Birth, CoreOptions, Holder, Hurry, Share, Signs, VolumeOptions, Volumes};
use store::{Store, StoreOptions};
use tokio::runtime::Handle;

use crate::Setup;
use crate::bars::{Bars, Bound, median};
use crate::grid::Grid;
use crate::process::{now, run, settle, timed};

/// An image, straight from the store.
#[derive(Clone)]
struct FromStore {
    store: Store,
    image: Digest,
    size: u64,
}

impl Connect for FromStore {
    type Source = Store;

    async fn connect(&self, _: usize) -> Result<Store> {
        Ok(self.store.clone())
    }
}

impl NodeGrid for FromStore {
    type Connect = Self;

    async fn find(&self, _: &str) -> Result<(Digest, u64)> {
        Ok((self.image, self.size))
    }

    async fn locate(&self, _: &str) -> Result<(Digest, Self)> {
        Ok((self.image, self.clone()))
    }
}

/// Nothing is erased here.
struct Nobody;

impl Signs for Nobody {
    fn name(&self) -> Result<String> {
        Ok("bench".into())
    }

    fn sign(&self, _: &[u8]) -> Result<Vec<u8>> {
        Ok(vec![])
    }
}

/// A file system in a file, unmounted at the end.
struct Mount(PathBuf);

impl Mount {
    fn with(mkfs: &str, dir: &Path, bytes: u64) -> Self {
        let (file, at) = (dir.join(format!("{mkfs}.img")), dir.join(mkfs));
        File::create(&file).unwrap().set_len(bytes).unwrap();
        run(Command::new(mkfs).arg("-q").arg(&file));
        std::fs::create_dir_all(&at).unwrap();
        run(Command::new("mount").args(["-o", "loop"]).arg(&file).arg(&at));
        Self(at)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        run(Command::new("umount").arg(&self.0));
    }
}

pub fn measure(setup: &Setup, bars: &mut Bars) {
    let dir = setup.dir.join("build");
    std::fs::create_dir_all(&dir).unwrap();
    let grid = Grid::start(setup, &dir.join("up"), None);
    let imported = grid.import(&setup.disk, "v:1");
    let image: Digest = imported["image"].as_str().unwrap().parse().unwrap();
    let store = grid.data.join("store");
    grid.stop();
    let size = std::fs::metadata(&setup.disk).unwrap().len();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    for (mkfs, how) in [("mkfs.xfs", "--reflink=always"), ("mkfs.ext4", "--sparse=always")] {
        let mount = Mount::with(mkfs, &dir, 3 * size + (4 << 30));
        let (ours, theirs, lasting) = runtime.block_on(async {
            let options = StoreOptions::reading();
            let store = Store::open_dir(&store, Handle::current(), options).await.unwrap();
            let node = start(&mount.0, FromStore { store, image, size }).await;
            pairs(setup, &node, &mount.0, image, size, how).await
        });
        told(bars, how, (&ours, &theirs, &lasting));
    }
}

async fn start(dir: &Path, grid: FromStore) -> Volumes<FromStore> {
    let options = VolumeOptions {
        dir: dir.join("volumes"),
        state: dir.join("state"),
        cores: CoreOptions { cores: 2, memory: 64 << 20, engine: EngineChoice::Auto },
        holder: Holder { socket: dir.join("holder"), command: Arc::new([]) },
        rate: None,
        build_rate: None,
        share: Share::Always,
        signer: Arc::new(Nobody),
        leases: Arc::new(Leases::load(dir.join("state"), boottime).unwrap()),
        watchdog: Arc::new(Watchdog::new(Vec::new())),
    };
    Volumes::start(grid, options).await.unwrap()
}

/// Seconds: of builds, of `cp` with its syncs, and of these without.
async fn pairs(
    setup: &Setup,
    node: &Volumes<FromStore>,
    dir: &Path,
    image: Digest,
    size: u64,
    how: &str,
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let kind = VolumeKind { size, sector: None, image: Some(image), layout: None };
    let build = async |n: u8| {
        let birth = Birth { now: 1, id: [n; 16] };
        let start = now();
        node.make_ready(&kind, vec![], birth, Hurry::Waited).await.unwrap();
        (now() - start).as_secs_f64()
    };
    // It brings the image, and goes on needing it.
    build(1).await;
    let base = find(&dir.join("volumes/.images"));
    let (mut ours, mut theirs, mut bare) = (vec![], vec![], vec![]);
    for _ in 0..2 * setup.runs {
        settle();
        ours.push(build(2).await);
        node.remove_ready(&[2; 16]).await.unwrap();
        let to = dir.join("copy");
        settle();
        let copied = timed(Command::new("cp").arg(how).arg(&base).arg(&to));
        let start = now();
        File::open(&to).unwrap().sync_all().unwrap();
        File::open(dir).unwrap().sync_all().unwrap();
        let name = dir.join("name");
        std::fs::write(&name, "ready").unwrap();
        File::open(&name).unwrap().sync_all().unwrap();
        bare.push(copied);
        theirs.push(copied + (now() - start).as_secs_f64());
        std::fs::remove_file(&to).unwrap();
    }
    (ours, theirs, bare)
}

/// The only disk under a directory.
fn find(dir: &Path) -> PathBuf {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let disks = entries.map(|base| base.join("disk.raw"));
    disks.into_iter().find(|disk| disk.exists()).expect("the image is at hand")
}

fn told(bars: &mut Bars, how: &str, (ours, theirs, bare): (&[f64], &[f64], &[f64])) {
    let millis = |all: &[f64]| format!("{:.1} ms", median(all.to_vec()) * 1000.0);
    let ratio = |a: &[f64], b: &[f64]| median(a.iter().zip(b).map(|(a, b)| a / b).collect());
    let what = format!("building a volume from an image at hand, beside cp {how} and three syncs");
    match how {
        "--reflink=always" => {
            bars.add(&what, millis(ours), millis(theirs), ratio(ours, theirs), Bound::AtMost(1.2));
        }
        _ => {
            // As speeds.
            bars.add(&what, millis(ours), millis(theirs), ratio(theirs, ours), Bound::AtLeast(0.9));
            let what = "… beside cp alone, which leaves its copy in memory";
            bars.add(what, millis(ours), millis(bare), ratio(bare, ours), Bound::Told);
        }
    }
}
