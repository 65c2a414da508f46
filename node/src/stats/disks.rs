//! Block devices: `/proc/diskstats` (the kernel's Documentation/admin-guide/iostats.rst) and `/sys/block`.

use api::stats::{DiskStats, DiskWork};

use super::{numbers, per_mille};

/// Bytes of a sector in these files, whatever the device's are.
const SECTOR: u64 = 512;
/// What is made of memory, of files, or of other devices' emptiness: no disks.
const NO_DISKS: [&str; 6] = ["loop", "ram", "zram", "fd", "sr", "nbd"];

/// What a device did since the machine started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Done {
    pub name: String,
    reads: u64,
    read_sectors: u64,
    read_millis: u64,
    writes: u64,
    written_sectors: u64,
    write_millis: u64,
    busy_millis: u64,
}

/// What `/sys/block` says of a device, each a file's text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct About {
    /// `size`, in sectors.
    pub size: Option<String>,
    /// `queue/rotational`
    pub rotational: Option<String>,
    /// `device/ioerr_cnt`: hexadecimal, of SCSI devices.
    pub errors: Option<String>,
}

/// Reads `/proc/diskstats`: partitions too.
pub(super) fn done(text: &str) -> Vec<Done> {
    let line = |line: &str| {
        let mut words = line.split_ascii_whitespace().skip(2);
        let name = words.next()?;
        let rest = words.collect::<Vec<_>>().join(" ");
        let n: Vec<u64> = numbers(&rest).collect();
        let &[
            reads,
            _,
            read_sectors,
            read_millis,
            writes,
            _,
            written_sectors,
            write_millis,
            _,
            busy_millis,
            ..,
        ] = n.as_slice()
        else {
            return None;
        };
        let name = name.to_owned();
        Some(Done {
            name,
            reads,
            read_sectors,
            read_millis,
            writes,
            written_sectors,
            write_millis,
            busy_millis,
        })
    };
    text.lines().filter_map(line).collect()
}

/// Whether a device of `/sys/block` is a disk.
pub(super) fn is_disk(name: &str) -> bool {
    let is = |kind: &str| {
        name.strip_prefix(kind).is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit()))
    };
    !NO_DISKS.iter().any(|kind| is(kind))
}

/// A disk, and what it did over `millis` since it had done `before`.
pub(super) fn disk(before: Option<&Done>, now: &Done, about: &About, millis: u64) -> DiskStats {
    let number = |text: &Option<String>| text.as_ref()?.trim().parse::<u64>().ok();
    let errors = about.errors.as_ref().and_then(|text| hexadecimal(text));
    DiskStats {
        name: now.name.clone(),
        size_bytes: number(&about.size).and_then(|sectors| sectors.checked_mul(SECTOR)),
        rotational: number(&about.rotational).map(|so| so == 1),
        work: before.filter(|_| millis > 0).map(|before| work(before, now, millis)),
        errors,
    }
}

fn hexadecimal(text: &str) -> Option<u64> {
    let text = text.trim();
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// A counter that is less than it was began anew: nothing is known of the time between.
fn work(before: &Done, now: &Done, millis: u64) -> DiskWork {
    let per_sec = |was: u64, is: u64| {
        let more = u128::from(is.saturating_sub(was)) * 1000 / u128::from(millis);
        u64::try_from(more).unwrap_or(u64::MAX)
    };
    let count = |was, is| u32::try_from(per_sec(was, is)).unwrap_or(u32::MAX);
    let micros = |many: u64, millis: u64| (many > 0).then(|| millis.saturating_mul(1000) / many);
    DiskWork {
        reads_per_sec: count(before.reads, now.reads),
        writes_per_sec: count(before.writes, now.writes),
        read_bytes_per_sec: per_sec(before.read_sectors, now.read_sectors).saturating_mul(SECTOR),
        written_bytes_per_sec: per_sec(before.written_sectors, now.written_sectors)
            .saturating_mul(SECTOR),
        read_micros: micros(
            now.reads.saturating_sub(before.reads),
            now.read_millis.saturating_sub(before.read_millis),
        ),
        write_micros: micros(
            now.writes.saturating_sub(before.writes),
            now.write_millis.saturating_sub(before.write_millis),
        ),
        busy_per_mille: per_mille(now.busy_millis.saturating_sub(before.busy_millis), millis),
    }
}
