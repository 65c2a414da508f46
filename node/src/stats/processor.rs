//! CPUs, memory and pressure: `/proc/stat`, `/proc/meminfo`, `/proc/pressure/*` (proc(5); the kernel's
//! Documentation/accounting/psi.rst).

use api::stats::{CpuStats, MemoryStats, Stall};

use super::{numbers, per_mille};

/// Time of a CPU, in ticks since the machine started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ticks {
    all: u64,
    idle: u64,
    stolen: u64,
}

impl Ticks {
    /// user, nice, system, idle, iowait, irq, softirq, steal; what guests got is in user and nice.
    fn of(line: &str) -> Option<Self> {
        let ticks: Vec<u64> = numbers(line).take(8).collect();
        let at = |n: usize| ticks.get(n).copied().unwrap_or(0);
        let all = ticks.iter().fold(0_u64, |sum, n| sum.saturating_add(*n));
        (ticks.len() >= 4).then(|| Self { all, idle: at(3).saturating_add(at(4)), stolen: at(7) })
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            all: self.all.saturating_sub(before.all),
            // The kernel takes idle time back at times.
            idle: self.idle.saturating_sub(before.idle),
            stolen: self.stolen.saturating_sub(before.stolen),
        }
    }

    fn busy(&self) -> u32 {
        per_mille(self.all.saturating_sub(self.idle), self.all)
    }
}

/// All CPUs together, and each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Processors {
    all: Ticks,
    /// By number.
    each: Vec<(u32, Ticks)>,
}

/// Reads `/proc/stat`.
pub(super) fn processors(text: &str) -> Option<Processors> {
    let mut found = Processors::default();
    for line in text.lines() {
        let Some((name, rest)) = line.split_once(' ') else { continue };
        match name.strip_prefix("cpu") {
            Some("") => found.all = Ticks::of(rest)?,
            Some(number) => {
                let Ok(number) = number.parse() else { continue };
                found.each.push((number, Ticks::of(rest)?));
            }
            None => break,
        }
    }
    (!found.each.is_empty()).then_some(found)
}

/// What CPUs did between two looks; of the first look alone, how many there are.
pub(super) fn cpu(before: Option<&Processors>, now: &Processors) -> CpuStats {
    let cores = now.each.len() as u32;
    let Some(before) = before.filter(|before| before.all.all < now.all.all) else {
        return CpuStats { cores, ..CpuStats::default() };
    };
    let all = now.all.since(&before.all);
    let each = now.each.iter().map(|(number, ticks)| {
        let was = before.each.iter().find(|(was, _)| was == number);
        was.map_or(0, |(_, was)| ticks.since(was).busy())
    });
    CpuStats {
        cores,
        busy_per_mille: Some(all.busy()),
        stolen_per_mille: Some(per_mille(all.stolen, all.all)),
        cores_busy_per_mille: each.collect(),
    }
}

/// Reads `/proc/meminfo`. Kernels before 3.14 do not say what is available.
pub(super) fn memory(text: &str) -> Option<MemoryStats> {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        numbers(line).next()?.checked_mul(1024)
    };
    Some(MemoryStats {
        total_bytes: field("MemTotal")?,
        available_bytes: field("MemAvailable").or_else(|| field("MemFree"))?,
        swap_total_bytes: field("SwapTotal"),
        swap_free_bytes: field("SwapFree"),
    })
}

/// Reads a file of `/proc/pressure`.
pub(super) fn stall(text: &str) -> Option<Stall> {
    let share = |who: &str, over: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(who))?;
        let word = line.split_ascii_whitespace().find_map(|word| word.strip_prefix(over))?;
        let percent: f64 = word.strip_prefix('=')?.parse().ok()?;
        (0.0..=100.0).contains(&percent).then_some((percent * 10.0) as u32)
    };
    Some(Stall {
        some10_per_mille: share("some", "avg10")?,
        some60_per_mille: share("some", "avg60")?,
        full10_per_mille: share("full", "avg10"),
        full60_per_mille: share("full", "avg60"),
    })
}
