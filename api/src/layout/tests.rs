use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn part(fs: FsType, size: Length) -> Partition {
    let role = if fs == FsType::Swap { Role::Swap } else { Role::Data };
    Partition { role, fs, size, block: None, label: None }
}

fn bytes(mib: u64) -> Length {
    Length::Bytes(mib * MIB)
}

fn layout(table: TableKind, partitions: Vec<Partition>) -> Layout {
    Layout { table, firmware: None, partitions }
}

#[test]
fn as_text() {
    let text = r#"{
        "table": "mbr", "firmware": "bios",
        "partitions": [
            {"role": "boot", "fs": "ext4", "size": 268435456, "block": 1024, "label": "boot"},
            {"role": "swap", "fs": "swap", "size": 1048576},
            {"fs": "xfs", "size": "rest"}
        ]}"#;
    let read: Layout = serde_json::from_str(text).unwrap();
    let boot = Partition {
        role: Role::Boot,
        block: Some(1024),
        label: Some("boot".into()),
        ..part(FsType::Ext4, bytes(256))
    };
    let all = vec![boot, part(FsType::Swap, bytes(1)), part(FsType::Xfs, Length::Rest)];
    let firmware = Some(Firmware::Bios);
    assert_eq!(read, Layout { firmware, ..layout(TableKind::Mbr, all) });
    assert_eq!(
        serde_json::from_str::<Layout>(&serde_json::to_string(&read).unwrap()).unwrap(),
        read
    );
    let least: Layout = serde_json::from_str(r#"{"partitions": [{"fs": "ext4"}]}"#).unwrap();
    assert_eq!(least, layout(TableKind::Gpt, vec![part(FsType::Ext4, Length::Rest)]));
    for (bad, says) in [
        (r#"{"partitions": [{"fs": "zfs"}]}"#, "zfs"),
        (r#"{"partitions": [{"fs": "ext4", "size": "most"}]}"#, "`rest`"),
        (r#"{"partitions": [{"fs": "ext4", "sise": 1}]}"#, "sise"),
    ] {
        let error = serde_json::from_str::<Layout>(bad).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn what_its_firmware_needs_is_added_in_front() {
    let data = || vec![part(FsType::Ext4, Length::Rest)];
    let with = |table, firmware, partitions| {
        let firmware = Some(firmware);
        let layout = Layout { table, firmware, partitions };
        let placed = layout.on(GIB, 512).unwrap();
        placed.iter().map(|p| (p.role, p.start / MIB, p.length / MIB, p.active)).collect::<Vec<_>>()
    };
    use Role::{BiosBoot, Boot, Data, Esp};
    let (gpt, mbr) = (TableKind::Gpt, TableKind::Mbr);
    assert_eq!(with(gpt, Firmware::Uefi, data()), [(Esp, 1, 260, false), (Data, 261, 762, false)]);
    assert_eq!(with(mbr, Firmware::Uefi, data()), [(Esp, 1, 260, false), (Data, 261, 763, false)]);
    assert_eq!(with(gpt, Firmware::Bios, data()), [(BiosBoot, 1, 1, false), (Data, 2, 1021, true)]);
    assert_eq!(with(mbr, Firmware::Bios, data()), [(Data, 1, 1023, true)]);
    // What is asked for is not added again.
    let mut own = data();
    own.push(Partition { role: Esp, ..part(FsType::Fat16, bytes(16)) });
    own.push(Partition { role: Boot, ..part(FsType::Ext4, bytes(64)) });
    let placed = with(gpt, Firmware::Uefi, own.clone());
    assert_eq!(placed, [(Data, 1, 942, false), (Esp, 943, 16, false), (Boot, 959, 64, false)]);
    own.remove(1);
    let placed = with(mbr, Firmware::Bios, own);
    assert_eq!(placed, [(Data, 1, 959, false), (Boot, 960, 64, true)]);
}

#[test]
fn what_cannot_be_says_what_could() {
    use FsType::*;
    let (gpt, mbr, none) = (TableKind::Gpt, TableKind::Mbr, TableKind::None);
    let rest = |fs| part(fs, Length::Rest);
    let block = |fs, size, block| Partition { block: Some(block), ..part(fs, size) };
    let label = |fs, label: &str| Partition { label: Some(label.into()), ..rest(fs) };
    let role = |role, fs| Partition { role, ..rest(fs) };
    let uefi = |table, all| Layout { firmware: Some(Firmware::Uefi), ..layout(table, all) };
    for (layout, disk, says) in [
        (layout(gpt, vec![]), GIB, "at least one partition"),
        (layout(none, vec![rest(Ext4), rest(Ext4)]), GIB, "choose gpt, or mbr for up to 4"),
        (uefi(none, vec![rest(Ext4)]), GIB, "choose the table gpt or mbr"),
        (
            uefi(mbr, vec![part(None, bytes(1)); 4]),
            GIB,
            "5 partitions, with the one that its firmware needs",
        ),
        (layout(mbr, vec![rest(None)]), 3 << 40, "an MBR ends at 2 TiB"),
        (layout(gpt, vec![rest(None)]), MIB, "make it 3 MiB or more"),
        (layout(gpt, vec![rest(None), rest(None)]), GIB, "partition 2: only one can have the rest"),
        (layout(gpt, vec![part(None, Length::Bytes(5_000_000))]), GIB, "as 4194304"),
        (layout(gpt, vec![part(None, bytes(0))]), GIB, "a size of 0"),
        (
            layout(gpt, vec![part(None, bytes(2000)), rest(None)]),
            GIB,
            "need 2001 MiB, and a disk of 1073741824 bytes has room for 1022 MiB: make it 979 MiB larger",
        ),
        (layout(none, vec![part(Ext4, bytes(5))]), GIB, "1073741824 bytes, or `rest`"),
        (
            layout(gpt, vec![rest(Xfs)]),
            256 * MIB,
            "partition 1, data with XFS: 254 MiB are too few: it has at least 300",
        ),
        (layout(gpt, vec![rest(Fat16)]), 8 * GIB, "FAT16: 8190 MiB: it has"),
        (layout(gpt, vec![rest(Fat32)]), 20 * MIB, "FAT32: 18 MiB: it has 3"),
        (layout(gpt, vec![block(Fat32, bytes(100), 4096)]), GIB, "another kind of FAT: take 1024"),
        (
            layout(gpt, vec![block(Ext4, bytes(100), 8192)]),
            GIB,
            "from 1024 to 4096 can be, as 4096",
        ),
        (layout(gpt, vec![block(Xfs, bytes(400), 3000)]), GIB, "as 4096"),
        (layout(gpt, vec![block(Swap, bytes(100), 4096)]), GIB, "it has no blocks"),
        (layout(gpt, vec![label(Xfs, "a-long-name-of-it")]), GIB, "at most 12 bytes"),
        (layout(gpt, vec![label(Ext4, "a b")]), GIB, "letters, digits"),
        (layout(gpt, vec![label(Fat32, "boot.1")]), GIB, "as \"BOOT_1\""),
        (layout(gpt, vec![role(Role::Data, Swap)]), GIB, "give it the role swap"),
        (layout(gpt, vec![role(Role::Swap, Ext4)]), GIB, "holds swap"),
        (layout(gpt, vec![role(Role::Esp, Ext4)]), GIB, "choose fat32 or fat16"),
        (layout(mbr, vec![role(Role::BiosBoot, None)]), GIB, "only a GPT"),
        (layout(gpt, vec![role(Role::BiosBoot, Ext4)]), GIB, "choose none"),
    ] {
        let error = layout.on(disk, 512).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{error}");
        assert!(error.message().contains(says), "{says}: {error}");
    }
    let error = layout(gpt, vec![rest(Ext4)]).on(GIB, 520).unwrap_err();
    assert!(error.message().contains("512 or 4096"), "{error}");
    let error = layout(gpt, vec![block(Ext4, bytes(100), 1024)]).on(GIB, 4096).unwrap_err();
    assert!(error.message().contains("from 4096 to 4096"), "{error}");
}

#[test]
fn clusters_are_chosen_so_that_a_fat_is_of_its_kind() {
    use FsType::{Fat16, Fat32};
    let chosen = |fs, mib, sector| {
        let all = layout(TableKind::Gpt, vec![part(fs, bytes(mib))]);
        all.on((mib + 3) * MIB, sector).unwrap()[0].block.unwrap()
    };
    for (fs, mib, sector, cluster) in [
        (Fat16, 4, 512, 512),
        (Fat16, 16, 512, 512),
        (Fat16, 512, 512, 16384),
        (Fat16, 2000, 512, 32768),
        (Fat32, 34, 512, 512),
        (Fat32, 260, 512, 512),
        (Fat32, 260, 4096, 4096),
        (Fat32, 1000, 512, 4096),
        (Fat32, 20_000, 512, 16384),
        (Fat32, 2_000_000, 512, 32768),
    ] {
        assert_eq!(chosen(fs, mib, sector), cluster, "{} of {mib} MiB, {sector}", fs.name());
    }
}

fn any_fs() -> impl Strategy<Value = FsType> {
    use FsType::*;
    prop::sample::select(vec![Ext3, Ext4, Xfs, Btrfs, Fat16, Fat32, Ntfs, Swap, None])
}

fn any_partition() -> impl Strategy<Value = Partition> {
    let size = prop_oneof![
        4 => (1u64..900).prop_map(bytes),
        2 => Just(Length::Rest),
        1 => any::<u64>().prop_map(Length::Bytes),
    ];
    let block = prop::option::weighted(
        0.2,
        prop_oneof![(8u32..18).prop_map(|log2| 1 << log2), any::<u32>()],
    );
    let role = prop::sample::select(vec![Role::Boot, Role::Data, Role::Esp, Role::BiosBoot]);
    (any_fs(), size, block, prop::option::weighted(0.3, role)).prop_map(
        |(fs, size, block, role)| {
            let plain = part(fs, size);
            Partition { block, role: role.unwrap_or(plain.role), ..plain }
        },
    )
}

proptest! {
    #[test]
    fn what_is_placed_lies_within_apart_and_aligned(
        all in prop::collection::vec(any_partition(), 0..6),
        table in prop::sample::select(vec![TableKind::Gpt, TableKind::Mbr, TableKind::None]),
        firmware in prop::option::of(prop::sample::select(vec![Firmware::Bios, Firmware::Uefi])),
        disk in prop_oneof![any::<u64>(), (0u64..5000).prop_map(|mib| mib * MIB)],
        sector in prop::sample::select(vec![512u32, 4096]),
    ) {
        let layout = Layout { table, firmware, partitions: all };
        let Ok(placed) = layout.on(disk, sector) else { return Ok(()) };
        let mut end = 0;
        for one in &placed {
            prop_assert!(one.start >= end && one.length > 0);
            end = one.start + one.length;
            if table != TableKind::None {
                prop_assert!(one.start >= GRAIN && one.start % GRAIN == 0 && one.length % GRAIN == 0);
            }
            prop_assert!(one.block.is_none_or(|b| b.is_power_of_two() && b >= sector));
        }
        let tail = if table == TableKind::Gpt { 33 * u64::from(sector) } else { 0 };
        prop_assert!(end <= disk - tail);
        prop_assert!(placed.len() >= layout.partitions.len());
        let wanted: Vec<_> = layout.partitions.iter().map(|p| (p.role, p.fs)).collect();
        let got: Vec<_> = placed.iter().map(|p| (p.role, p.fs)).collect();
        prop_assert!(got.ends_with(&wanted));
        let at_most_one = placed.iter().filter(|p| p.active).count() <= 1;
        prop_assert!(at_most_one);
    }
}
