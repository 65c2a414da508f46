//! Why a node cannot be chosen, for people.

use api::fleet::NodeFacts;
use api::place::{PlaceRequest, Rule};

/// Of a resource too little is left.
pub(super) fn amount(rule: Rule, needs: u64, has: u64, most: u64) -> String {
    let what = match rule {
        Rule::Cpu => "CPUs",
        Rule::Memory => "memory",
        Rule::Disk => "disk",
        _ => "network",
    };
    let (much, than) = if needs > most { (most, "at most") } else { (has, "free") };
    let (wanted, found) = (shown(rule, needs), shown(rule, much));
    match wanted == found {
        // They differ where the shown digits end.
        true => format!("{what}: {needs} needed, {much} {than}"),
        false => format!("{what}: {wanted} needed, {found} {than}"),
    }
}

fn shown(rule: Rule, n: u64) -> String {
    let scaled = |step: f64, units: &[&str]| {
        let mut amount = n as f64;
        let mut unit = 0;
        while amount >= step && unit + 1 < units.len() {
            (amount, unit) = (amount / step, unit + 1);
        }
        let digits = if amount.fract() == 0.0 { 0 } else { 1 };
        format!("{amount:.digits$} {}", units[unit])
    };
    match rule {
        Rule::Cpu => (n as f64 / 1000.0).to_string(),
        Rule::Network => scaled(1000.0, &["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"]),
        _ => scaled(1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB"]),
    }
}

/// A rule that says all by itself, or with what the node is.
pub(super) fn plain(rule: Rule, request: &PlaceRequest, node: &NodeFacts) -> String {
    let text = |text: &Option<String>| text.as_deref().unwrap_or("none").to_owned();
    match rule {
        Rule::Cordoned => "it is cordoned".to_owned(),
        Rule::Draining => "it is draining".to_owned(),
        Rule::NotOn => "the request excludes it".to_owned(),
        Rule::Architecture => {
            let (is, wanted) = (text(&node.architecture), text(&request.architecture));
            format!("architecture {is}, not {wanted}")
        }
        Rule::Function => {
            let functions = list(node.functions.iter().cloned());
            format!("its functions are {functions}, not {}", text(&request.function))
        }
        Rule::Hypervisor => {
            let name = |h: &api::fleet::Hypervisor| format!("{} {}", h.kind, h.version);
            let has = list(node.hypervisors.iter().map(|h| name(h).trim_end().to_owned()));
            format!("no hypervisor that fits the guest: it has {has}")
        }
        Rule::Tenant => {
            let tenants = list(node.tenants.iter().cloned());
            format!("it is for {tenants}, not {}", text(&request.tenant))
        }
        _ => match request.alone {
            true => "guests of others are there".to_owned(),
            false => "a guest there must be alone with its tenant's".to_owned(),
        },
    }
}

fn list(names: impl Iterator<Item = String>) -> String {
    let names: Vec<String> = names.collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_that_differ_are_shown_to() {
        const GIB: u64 = 1 << 30;
        let memory = |needs, has, most| amount(Rule::Memory, needs, has, most);
        assert_eq!(memory(8 * GIB, 3 * GIB / 2, 64 * GIB), "memory: 8 GiB needed, 1.5 GiB free");
        assert_eq!(memory(80 * GIB, 3 * GIB, 64 * GIB), "memory: 80 GiB needed, 64 GiB at most");
        let near = memory(8 * GIB + 2, 8 * GIB + 1, 64 * GIB);
        assert_eq!(near, "memory: 8589934594 needed, 8589934593 free");
        assert_eq!(amount(Rule::Cpu, 2500, 1000, 4000), "CPUs: 2.5 needed, 1 free");
        let network = amount(Rule::Network, 10_000_000_000, 1500, 1 << 40);
        assert_eq!(network, "network: 10 Gbit/s needed, 1.5 kbit/s free");
    }
}
