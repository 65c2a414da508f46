//! Running guests, by the command lines of their hypervisors' processes.
//!
//! QEMU's `-m` is in MiB unless it has a suffix, and `-smp`'s `cpus` is what is not given by name (qemu(1)). What a
//! guest is given later over a monitor is not seen. Firecracker is told its guest's shape over its socket alone.

use api::stats::VmStats;

/// A process that runs a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Guest {
    pub vm: VmStats,
    /// All of its words, to find volumes in.
    words: Vec<String>,
}

impl Guest {
    /// Whether it was told of this path.
    pub(super) fn names(&self, path: &str) -> bool {
        let ends = |rest: &str| {
            rest.is_empty() || rest.starts_with(|c: char| ",\"'&?".contains(c) || c == '}')
        };
        self.words
            .iter()
            .any(|word| word.match_indices(path).any(|(at, _)| ends(&word[at + path.len()..])))
    }
}

/// Reads `/proc/PID/cmdline`: words that each end with a NUL.
pub(super) fn guest(pid: u32, cmdline: &[u8]) -> Option<Guest> {
    let words: Vec<String> =
        cmdline.split(|b| *b == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    let program = words.first()?.rsplit('/').next()?;
    let hypervisor = match program {
        "cloud-hypervisor" | "firecracker" => program,
        "qemu-kvm" => "qemu",
        _ => program.strip_prefix("qemu-system-").map(|_| "qemu")?,
    };
    // Asked for what it can do, it runs nothing.
    if words.iter().any(|word| matches!(word.as_str(), "--version" | "-version" | "--help")) {
        return None;
    }
    let mut vm = VmStats { hypervisor: hypervisor.to_owned(), ..VmStats::default() };
    match hypervisor {
        "qemu" => qemu(&words, &mut vm),
        "cloud-hypervisor" => cloud_hypervisor(&words, &mut vm),
        _ => vm.name = value(&words, "id").unwrap_or_default().to_owned(),
    }
    if vm.name.is_empty() {
        vm.name = pid.to_string();
    }
    Some(Guest { vm, words })
}

/// What follows an option, with one dash or two, or stands behind its `=`.
fn value<'a>(words: &'a [String], option: &str) -> Option<&'a str> {
    let at = words.iter().position(|word| {
        let bare = word.trim_start_matches('-');
        word.starts_with('-') && (bare == option || bare.split('=').next() == Some(option))
    })?;
    let bare = words[at].trim_start_matches('-');
    match bare.split_once('=') {
        Some((_, value)) => Some(value),
        None => words.get(at + 1).map(String::as_str),
    }
}

/// A value of `key=value,…`; of a first part without a key, that of `first`.
fn part<'a>(text: &'a str, key: &str, first: &str) -> Option<&'a str> {
    text.split(',').enumerate().find_map(|(nth, part)| match part.split_once('=') {
        Some((name, value)) => (name == key).then_some(value),
        None => (nth == 0 && key == first).then_some(part),
    })
}

fn qemu(words: &[String], vm: &mut VmStats) {
    let name = value(words, "name").and_then(|text| part(text, "guest", "guest"));
    vm.name = name.unwrap_or_default().to_owned();
    vm.cpus = match value(words, "smp") {
        None => Some(1),
        Some(text) => part(text, "cpus", "cpus").and_then(|n| n.parse().ok()).or_else(|| {
            let times = |key| part(text, key, "").map_or(Some(1), |n| n.parse::<u32>().ok());
            let each = [times("sockets")?, times("cores")?, times("threads")?];
            each.into_iter().try_fold(1_u32, u32::checked_mul)
        }),
    };
    vm.memory_bytes = match value(words, "m") {
        None => Some(128 << 20),
        Some(text) => part(text, "size", "size").and_then(|size| bytes(size, 1 << 20)),
    };
}

fn cloud_hypervisor(words: &[String], vm: &mut VmStats) {
    let path = value(words, "api-socket").map(|text| part(text, "path", "path").unwrap_or(text));
    let stem = path.and_then(|path| path.rsplit('/').next()).unwrap_or_default();
    stem.trim_end_matches(".sock").clone_into(&mut vm.name);
    vm.cpus = value(words, "cpus").map_or(Some(1), |text| part(text, "boot", "")?.parse().ok());
    vm.memory_bytes = value(words, "memory")
        .map_or(Some(512 << 20), |text| part(text, "size", "").and_then(|size| bytes(size, 1)));
}

/// A size with a suffix of 1024s; without one, in this unit.
fn bytes(text: &str, unit: u64) -> Option<u64> {
    let (digits, unit) = match text.char_indices().last()? {
        (at, 'b' | 'B') => (&text[..at], 1),
        (at, 'k' | 'K') => (&text[..at], 1 << 10),
        (at, 'm' | 'M') => (&text[..at], 1 << 20),
        (at, 'g' | 'G') => (&text[..at], 1 << 30),
        (at, 't' | 'T') => (&text[..at], 1 << 40),
        _ => (text, unit),
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}
