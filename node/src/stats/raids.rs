//! Arrays of the kernel's md driver: `/proc/mdstat`, and `/sys/block/*/md` (the kernel's Documentation/admin-guide/md.rst).

use api::stats::RaidStats;

use super::numbers;

/// What `/sys/block/NAME/md` says of an array, each a file's text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct About {
    pub array_state: Option<String>,
    pub degraded: Option<String>,
    pub mismatch_cnt: Option<String>,
    /// `dev-*/errors`
    pub errors: Vec<String>,
}

/// Reads `/proc/mdstat`.
pub(super) fn arrays(text: &str) -> Vec<RaidStats> {
    let mut found: Vec<RaidStats> = Vec::new();
    for line in text.lines() {
        if let Some((name, rest)) = line.split_once(" : ") {
            if !line.starts_with(' ') && name.trim_end() != "Personalities" {
                found.push(array(name.trim_end(), rest));
            }
        } else if let Some(array) = found.last_mut().filter(|_| line.starts_with(' ')) {
            detail(array, line);
        }
    }
    found
}

/// `active (auto-read-only) raid1 sdb1[1] sda1[0](F)`
fn array(name: &str, rest: &str) -> RaidStats {
    let mut words = rest.split_ascii_whitespace().filter(|word| !word.starts_with('('));
    let state = words.next().unwrap_or_default().to_owned();
    let level = words.find(|word| !word.contains('[')).unwrap_or_default().to_owned();
    RaidStats { name: name.to_owned(), level, state, ..RaidStats::default() }
}

/// `1046528 blocks super 1.2 [2/1] [U_]`, or `[=>…]  recovery =  6.5% (68288/1046528) finish=0.2min`
fn detail(array: &mut RaidStats, line: &str) {
    for word in line.split_ascii_whitespace() {
        let inside = word.strip_prefix('[').and_then(|word| word.strip_suffix(']'));
        let Some((all, there)) = inside.and_then(|word| word.split_once('/')) else { continue };
        if let (Ok(all), Ok(there)) = (all.parse::<u32>(), there.parse::<u32>()) {
            (array.devices, array.degraded) = (all, all.saturating_sub(there));
        }
    }
    let share = line.split_once('%').and_then(|(before, _)| before.rsplit_once('='));
    let percent = share.and_then(|(_, percent)| percent.trim().parse::<f64>().ok());
    if let Some(percent) = percent.filter(|percent| (0.0..=100.0).contains(percent)) {
        array.sync_per_mille = Some((percent * 10.0) as u32);
    }
}

/// Adds what `/sys` says, which is more exact where there is something.
pub(super) fn with(mut array: RaidStats, about: &About) -> RaidStats {
    let number = |text: &Option<String>| text.as_ref().and_then(|text| numbers(text).next());
    if let Some(state) = &about.array_state {
        state.trim().clone_into(&mut array.state);
    }
    if let Some(missing) = number(&about.degraded) {
        array.degraded = u32::try_from(missing).unwrap_or(u32::MAX);
    }
    array.mismatches = number(&about.mismatch_cnt);
    let errors = about.errors.iter().filter_map(|text| numbers(text).next());
    array.errors = (!about.errors.is_empty()).then(|| errors.fold(0, u64::saturating_add));
    array
}
