//! Network interfaces: `/sys/class/net` (the kernel's Documentation/ABI/testing/sysfs-class-net), and
//! `/proc/net/vlan/config`.

use api::stats::InterfaceStats;

/// What `/sys/class/net/NAME` says, each a file's text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct About {
    pub name: String,
    pub operstate: Option<String>,
    /// In megabits a second; -1 or an error if it is not known.
    pub speed: Option<String>,
    /// There is a `device`.
    pub physical: bool,
    pub rx_bytes: Option<String>,
    pub tx_bytes: Option<String>,
    pub rx_errors: Option<String>,
    pub tx_errors: Option<String>,
    pub rx_dropped: Option<String>,
    pub tx_dropped: Option<String>,
}

/// A VLAN: its interface, its number, and the interface that it is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Vlan {
    pub name: String,
    pub number: u16,
    pub parent: String,
}

/// Reads `/proc/net/vlan/config`: lines of `eth0.100 | 100 | eth0` below two of headings.
pub(super) fn vlans(text: &str) -> Vec<Vlan> {
    let line = |line: &str| {
        let mut parts = line.split('|').map(str::trim);
        let (name, number, parent) = (parts.next()?, parts.next()?, parts.next()?);
        let number = number.parse().ok()?;
        Some(Vlan { name: name.to_owned(), number, parent: parent.to_owned() })
    };
    text.lines().filter_map(line).collect()
}

fn number(text: &Option<String>) -> Option<u64> {
    text.as_ref()?.trim().parse().ok()
}

/// An interface, and what went over it in `millis` since it was as `before`.
pub(super) fn interface(
    before: Option<&About>,
    now: &About,
    vlans: &[Vlan],
    millis: u64,
) -> InterfaceStats {
    let vlan = vlans.iter().find(|vlan| vlan.name == now.name);
    let rate = |of: fn(&About) -> &Option<String>| {
        let more = number(of(now))?.checked_sub(number(of(before?))?)?;
        u64::try_from(u128::from(more) * 1000 / u128::from(millis.max(1))).ok()
    };
    let sum = |a: &Option<String>, b: &Option<String>| {
        number(a).unwrap_or(0).saturating_add(number(b).unwrap_or(0))
    };
    // Virtual ones say `unknown` while they carry.
    let up = now.operstate.as_ref().is_some_and(|state| matches!(state.trim(), "up" | "unknown"));
    InterfaceStats {
        name: now.name.clone(),
        up,
        physical: now.physical && vlan.is_none(),
        vlan: vlan.map(|vlan| vlan.number),
        parent: vlan.map(|vlan| vlan.parent.clone()),
        speed_bits_per_sec: number(&now.speed)
            .filter(|megabits| *megabits < u64::from(u32::MAX))
            .map(|megabits| megabits * 1_000_000),
        received_bytes_per_sec: rate(|about| &about.rx_bytes),
        sent_bytes_per_sec: rate(|about| &about.tx_bytes),
        errors: sum(&now.rx_errors, &now.tx_errors),
        drops: sum(&now.rx_dropped, &now.tx_dropped),
    }
}
