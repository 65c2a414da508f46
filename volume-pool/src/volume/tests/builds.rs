//! A ready volume is built from the base of its image, and the power goes, or the disk fails, at any instant of it.

use blockio::fake::Op;

use super::*;
use crate::VolumeState;
use crate::ready::name_of;

const ID: [u8; 16] = [4; 16];

/// The volume that is built, as its node describes it.
fn ready_one() -> NewVolume {
    NewVolume { name: name_of(&ID), id: ID, shares: true, ..new_volume() }
}

/// A disk with the whole base of the image, which a volume of somebody's shares.
async fn disk_with_base() -> MemFs {
    let disk = disk_with(NewVolume { shares: true, ..new_volume() });
    let rig = Rig::on(&disk.fs()).unwrap();
    rig.ripen().await.unwrap();
    rig.base.as_ref().unwrap().close().await.unwrap();
    rig.volume.close().await.unwrap();
    shelf(&disk.fs()).ready().unwrap();
    disk.settle();
    disk
}

/// What a node does to build one.
async fn build(fs: &Fs) -> Result<(), Error> {
    let (shelf, new) = (shelf(fs), ready_one());
    shelf.ready()?.make(&new, b"of a pool")?;
    let base = shelf.take_base(new.image.as_ref().unwrap(), 0)?;
    let rig = Rig::open(shelf.ready()?.take(&new.name)?, Some(base))?;
    rig.volume.take_over(3).await?;
    rig.volume.become_plain().await?;
    rig.volume.close().await?;
    rig.base.as_ref().unwrap().close().await?;
    drop(rig);
    shelf.ready()?.made(&ID)
}

/// Whether there is a ready volume; then it is whole, whoever is given it. If not nothing is left of one.
async fn is_ready(fs: &Fs, when: &str) -> bool {
    let (shelf, ready) = (shelf(fs), shelf(fs).ready().unwrap());
    assert!(shelf.tidy().unwrap().is_empty(), "{when}");
    let names = ready.names().unwrap();
    if names.is_empty() {
        return false;
    }
    assert_eq!(names, [name_of(&ID)], "{when}");
    assert_eq!(ready.identity(&names[0]).unwrap().state, VolumeState::Ready, "{when}");
    shelf.hand_out(&ID, "given", [9; 16]).unwrap();
    assert_eq!(shelf.origin("given").unwrap().unwrap(), b"of a pool", "{when}");
    let files = shelf.take("given").unwrap();
    assert!(files.identity.get().plain && files.image.is_some(), "{when}");
    let rig = Rig::open(files, None).unwrap();
    let of_image: Vec<Tag> = (0..VOLUME / SECTOR).map(tag_of_image).collect();
    assert!(all_tags(&rig).await == of_image, "{when}: not as in the image");
    true
}

#[test]
fn a_power_cut_in_a_build_by_reflink_leaves_a_whole_volume_or_none() {
    on_one_core(async {
        let disk = disk_with_base().await;
        build(&disk.fs()).await.unwrap();
        disk.mark("ready");
        for cut in disk.crash_images(CrashPlan::default()) {
            let when = cut.to_string();
            let ready = is_ready(&cut.fs(), &when).await;
            assert!(ready || !cut.reached("ready"), "{when}: what was ready is not there");
            if !ready {
                build(&cut.fs()).await.unwrap_or_else(|e| panic!("{when}: once more: {e}"));
            }
        }
    });
}

#[test]
fn a_build_by_reflink_takes_six_syncs() {
    on_one_core(async {
        let disk = disk_with_base().await;
        let before = disk.log().len();
        build(&disk.fs()).await.unwrap();
        let log = disk.log();
        let made = log[before..].iter();
        let (files, dirs) = made.fold((0, 0), |(files, dirs), op| match op {
            Op::Sync { .. } => (files + 1, dirs),
            Op::SyncDir { .. } => (files, dirs + 1),
            _ => (files, dirs),
        });
        assert_eq!(files, 4, "of the bytes, the manifest, the origin, and last the identity");
        assert_eq!(dirs, 2, "of the volume's directory, and of the one that it is in");
    });
}

#[test]
fn a_build_of_which_a_sync_failed_is_told_so_and_leaves_no_half() {
    on_one_core(async {
        for (op, syncs) in [(FaultOp::Sync, 4), (FaultOp::SyncDir, 2)] {
            for nth in 1..=syncs {
                let (disk, plan) = (disk_with_base().await, FaultPlan::new());
                plan.fail(op, nth, Fault::Io);
                let failed = build(&plan.wrap_fs(&disk.fs())).await.unwrap_err();
                assert_eq!(failed.kind(), Kind::Io, "{op:?} {nth}: {failed}");
                // By the last one it says that it is ready; nobody is told, and it is whole.
                let last = (op, nth) == (FaultOp::Sync, 4);
                assert_eq!(is_ready(&disk.fs(), &format!("{op:?} {nth}")).await, last);
            }
        }
    });
}

#[test]
fn what_is_not_all_here_does_not_become_ready() {
    on_one_core(async {
        let disk = disk_with_base().await;
        let ready = shelf(&disk.fs()).ready().unwrap();
        ready.make(&ready_one(), b"").unwrap();
        let early = ready.made(&ID).unwrap_err();
        assert_eq!(early.kind(), Kind::Conflict, "{early}");
        assert!(!is_ready(&disk.fs(), "early").await);
    });
}

#[test]
fn what_is_nobodys_is_synced_when_it_was_repaired_and_what_is_somebodys_each_time() {
    on_one_core(async {
        let disk = disk_with_base().await;
        let syncs_of = async |volume: &Volume| {
            let before = disk.log().len();
            volume.flush().await.unwrap();
            disk.log()[before..].iter().filter(|op| matches!(op, Op::Sync { .. })).count()
        };
        let plain = Rig::on(&disk.fs()).unwrap();
        for _ in 0..2 {
            assert_eq!(syncs_of(&plain.volume).await, 1, "a guest may have written past us");
        }
        let base = shelf(&disk.fs()).take_base(new_volume().image.as_ref().unwrap(), 0).unwrap();
        let base = Rig::open(base, None).unwrap();
        assert_eq!(syncs_of(&base.volume).await, 0);
        assert!(base.volume.repair_zeros(&original(), 0, ZERO_CHUNK as u32).await.unwrap());
        assert_eq!(syncs_of(&base.volume).await, 1);
        assert_eq!(syncs_of(&base.volume).await, 0);
    });
}
