//! A partition table, as `sfdisk` is told of it.

use api::layout::{FsType, Placed, Role, TableKind};

/// The partitions are the guest's: this kernel is not told. What is left of an earlier attempt goes.
pub(super) const OPTIONS: [&str; 7] = [
    "--quiet",
    "--no-reread",
    "--no-tell-kernel",
    "--wipe",
    "always",
    "--wipe-partitions",
    "never",
];

/// The script for a table: nothing if there is to be none.
pub(super) fn script(table: TableKind, placed: &[Placed], sector: u32) -> Option<String> {
    let (label, line): (&str, fn(&Placed) -> String) = match table {
        TableKind::Gpt => ("gpt", gpt),
        TableKind::Mbr => ("dos", mbr),
        TableKind::None => return None,
    };
    let sector = u64::from(sector);
    let mut script = format!("label: {label}\nunit: sectors\n");
    for one in placed {
        let (start, size) = (one.start / sector, one.length / sector);
        script += &format!("start={start}, size={size}, {}\n", line(one));
    }
    Some(script)
}

fn gpt(placed: &Placed) -> String {
    let kind = match (placed.role, placed.fs) {
        (Role::Esp, _) => "C12A7328-F81F-11D2-BA4B-00A0C93EC93B",
        (Role::BiosBoot, _) => "21686148-6449-6E6F-744E-656564454649",
        (Role::Swap, _) => "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F",
        // Basic data, as Windows has it.
        (_, FsType::Fat16 | FsType::Fat32 | FsType::Ntfs) => "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7",
        // Data of Linux.
        _ => "0FC63DAF-8483-4772-8E79-3D69D8477DE4",
    };
    let name = placed.label.as_ref().map_or(String::new(), |label| format!(", name=\"{label}\""));
    let active = if placed.active { ", attrs=LegacyBIOSBootable" } else { "" };
    format!("type={kind}{name}{active}")
}

fn mbr(placed: &Placed) -> String {
    let kind = match (placed.role, placed.fs) {
        (Role::Esp, _) => "ef",
        (Role::Swap, _) => "82",
        (_, FsType::Fat16) => "e",
        (_, FsType::Fat32) => "c",
        (_, FsType::Ntfs) => "7",
        _ => "83",
    };
    let active = if placed.active { ", bootable" } else { "" };
    format!("type={kind}{active}")
}

#[cfg(test)]
mod tests {
    use api::layout::Layout;

    use super::*;

    fn of(text: &str, sector: u32) -> Option<String> {
        let layout: Layout = serde_json::from_str(text).unwrap();
        script(layout.table, &layout.on(1 << 30, sector).unwrap(), sector)
    }

    #[test]
    fn as_sfdisk_takes_it() {
        let gpt = of(
            r#"{"firmware": "bios", "partitions": [
                {"fs": "ext4", "size": 104857600, "label": "web-1"}, {"role": "swap", "fs": "swap"}]}"#,
            4096,
        );
        let wanted = "label: gpt\nunit: sectors\n\
            start=256, size=256, type=21686148-6449-6E6F-744E-656564454649\n\
            start=512, size=25600, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4, name=\"web-1\", attrs=LegacyBIOSBootable\n\
            start=26112, size=235776, type=0657FD6D-A4AB-43C4-84E5-0933C84B4F4F\n";
        assert_eq!(gpt.unwrap(), wanted);
        let mbr = of(
            r#"{"table": "mbr", "firmware": "bios", "partitions": [
                {"fs": "fat32", "size": 104857600, "label": "A"}, {"role": "boot", "fs": "ntfs"}]}"#,
            512,
        );
        let wanted = "label: dos\nunit: sectors\nstart=2048, size=204800, type=c\n\
            start=206848, size=1890304, type=7, bootable\n";
        assert_eq!(mbr.unwrap(), wanted);
        assert_eq!(of(r#"{"table": "none", "partitions": [{"fs": "ext4"}]}"#, 512), None);
    }
}
