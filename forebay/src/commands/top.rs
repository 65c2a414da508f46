//! `forebay top` and `forebay node status`: how busy nodes are, and what runs on them.

use std::cmp::Reverse;
use std::io::IsTerminal;
use std::time::Duration;

use api::goal::{NodeInfo, NodeList};
use api::stats::{Event, NodeHistory, NodeSummary, StatsList, StatsPoint, What};
use image::Result;
use placement::Client;
use serde::Serialize;

use super::{block_on, with_grid};
use crate::cli::{SortArg, TopArgs};
use crate::config::Config;
use crate::grid::Grid;
use crate::output::{Output, bytes, line, print, table, time};

/// How often the table is drawn anew on a terminal.
const DRAWN: Duration = Duration::from_secs(5);
/// Homes the cursor and clears what is below (ECMA-48).
const CLEAR: &[u8] = b"\x1b[H\x1b[J";

/// What is shown.
#[derive(Serialize)]
#[serde(untagged)]
enum Shown {
    All(StatsList),
    One(Box<NodeHistory>),
}

/// Runs the command.
pub fn run(config: &Config, args: &TopArgs, output: Output) -> Result<()> {
    let drawn = std::io::stdout().is_terminal() && !output.is_json();
    let pause = args.watch.or(drawn.then_some(DRAWN));
    let Some(pause) = pause else {
        let shown = with_grid(config, async |grid: Grid| look(&grid.placement, args).await)?;
        return output.result(&shown, human);
    };
    let grid = Grid::find(&config.data)?;
    let goes_on = async {
        loop {
            let shown = look(&grid.placement, args).await?;
            if drawn {
                print(CLEAR)?;
            }
            line(output.is_json(), &shown, human)?;
            tokio::time::sleep(pause).await;
        }
    };
    match block_on::<(), image::Error>(goes_on) {
        // Whoever has seen enough ends it.
        Err(error) if error.kind() == image::Kind::Cancelled => Ok(()),
        done => done,
    }
}

async fn look(placement: &Client, args: &TopArgs) -> Result<Shown> {
    let every = args.watch.map_or(0, |every| every.as_secs().clamp(1, 3600) as u32);
    if let Some(node) = &args.node {
        return Ok(Shown::One(Box::new(placement.node_stats(node, 0, every).await?)));
    }
    let mut list = placement.stats(every).await?;
    sort(&mut list.nodes, args.sort);
    Ok(Shown::All(list))
}

fn sort(nodes: &mut [NodeSummary], by: SortArg) {
    let taken = |all: u64, free: u64| match all {
        0 => 0,
        all => u128::from(all.saturating_sub(free)) * 1_000_000 / u128::from(all),
    };
    let key = |node: &NodeSummary| -> u128 {
        let p = &node.last;
        match by {
            SortArg::Name => 0,
            SortArg::Cpu => p.cpu_per_mille.unwrap_or(0).into(),
            SortArg::Memory => taken(p.memory_total_bytes, p.memory_available_bytes),
            SortArg::Disk => taken(p.disk_total_bytes, p.disk_free_bytes),
            SortArg::Load => p.load_per_mille.unwrap_or(0).into(),
            SortArg::Io => u128::from(p.reads_per_sec) + u128::from(p.writes_per_sec),
            SortArg::Network => {
                u128::from(p.received_bytes_per_sec) + u128::from(p.sent_bytes_per_sec)
            }
            SortArg::Vms => p.vms.into(),
        }
    };
    nodes.sort_by(|a, b| Reverse(key(a)).cmp(&Reverse(key(b))).then(a.name.cmp(&b.name)));
}

fn human(shown: &Shown) -> String {
    match shown {
        Shown::All(list) => rows(list),
        Shown::One(of) => one(of),
    }
}

const HEAD: [&str; 10] =
    ["NODE", "HEARD", "CPU", "WAITS", "MEMORY", "DISK FREE", "IO/S", "LATENCY", "NETWORK/S", "VMS"];

fn rows(list: &StatsList) -> String {
    let head = [HEAD.map(str::to_owned).to_vec(), vec![String::new()]].concat();
    let row = |node: &NodeSummary| {
        let p = &node.last;
        let cells = [
            node.name.clone(),
            heard(node.heard, node.away),
            cpu(p),
            percent(p.load_per_mille),
            memory(p),
            format!("{} of {}", bytes(p.disk_free_bytes), bytes(p.disk_total_bytes)),
            (u64::from(p.reads_per_sec) + u64::from(p.writes_per_sec)).to_string(),
            p.io_micros.map_or_else(|| "-".to_owned(), micros),
            format!("{} in, {} out", bytes(p.received_bytes_per_sec), bytes(p.sent_bytes_per_sec)),
            p.vms.to_string(),
            trouble(node),
        ];
        cells.to_vec()
    };
    table(&std::iter::once(head).chain(list.nodes.iter().map(row)).collect::<Vec<_>>())
}

fn heard(seconds: u64, away: bool) -> String {
    let away = if away { "away: " } else { "" };
    format!("{away}{seconds} s ago")
}

fn cpu(p: &StatsPoint) -> String {
    format!("{} of {}", percent(p.cpu_per_mille), p.cores)
}

fn memory(p: &StatsPoint) -> String {
    let taken = p.memory_total_bytes.saturating_sub(p.memory_available_bytes);
    format!("{} of {}", bytes(taken), bytes(p.memory_total_bytes))
}

fn percent(per_mille: Option<u32>) -> String {
    per_mille.map_or_else(|| "-".to_owned(), |n| format!("{}.{} %", n / 10, n % 10))
}

fn micros(micros: u32) -> String {
    match micros {
        0..10_000 => format!("{micros} µs"),
        _ => format!("{} ms", micros / 1000),
    }
}

/// What somebody should look at.
fn trouble(node: &NodeSummary) -> String {
    let p = &node.last;
    let many = |n: u32, what: &str| (n > 0).then(|| format!("{n} {what}"));
    let all = [
        node.unfit.clone(),
        many(p.degraded, "devices missing in arrays"),
        many(p.disk_errors, "disk errors"),
    ];
    all.into_iter().flatten().collect::<Vec<_>>().join("; ")
}

fn one(of: &NodeHistory) -> String {
    let (p, stats) = (&of.summary.last, &of.stats);
    let mut lines = vec![
        vec!["node".to_owned(), of.summary.name.clone()],
        vec!["heard".into(), heard(of.summary.heard, of.summary.away)],
        vec!["cpu".into(), cpu(p)],
        vec!["waits".into(), percent(p.load_per_mille)],
        vec!["memory".into(), memory(p)],
        vec!["hypervisors".into(), of.summary.hypervisors.join(", ")],
        vec![
            "volumes".into(),
            format!("{}, {} attached", stats.holdings.volumes, stats.holdings.attached),
        ],
        vec![
            "requests".into(),
            format!(
                "{} failed, {} retried",
                stats.requests.failed_total, stats.requests.retried_total
            ),
        ],
    ];
    lines.extend(stats.spaces.iter().map(|s| {
        let free = format!("{} of {} free", bytes(s.free_bytes), bytes(s.total_bytes));
        vec![format!("space of {}", s.holds), free]
    }));
    lines.extend(stats.disks.iter().map(|d| {
        let w = d.work.unwrap_or_default();
        let latency = |of: Option<u64>| {
            of.map_or_else(|| "-".to_owned(), |n| micros(u32::try_from(n).unwrap_or(u32::MAX)))
        };
        let said = format!(
            "{} reads/s of {}, {} writes/s of {}, busy {}",
            w.reads_per_sec,
            latency(w.read_micros),
            w.writes_per_sec,
            latency(w.write_micros),
            percent(Some(w.busy_per_mille))
        );
        let errors = d.errors.filter(|n| *n > 0).map(|n| format!(", {n} errors"));
        vec![format!("disk {}", d.name), said + &errors.unwrap_or_default()]
    }));
    lines.extend(stats.raids.iter().map(|r| {
        let said = format!("{} {}, {} of {} missing", r.level, r.state, r.degraded, r.devices);
        vec![format!("array {}", r.name), said]
    }));
    lines.extend(stats.interfaces.iter().filter(|i| i.up).map(|i| {
        let (came, went) = (i.received_bytes_per_sec, i.sent_bytes_per_sec);
        let vlan = i.vlan.map(|n| format!(", VLAN {n}")).unwrap_or_default();
        let said =
            format!("{}/s in, {}/s out{vlan}", bytes(came.unwrap_or(0)), bytes(went.unwrap_or(0)));
        vec![format!("interface {}", i.name), said]
    }));
    lines.extend(stats.vms.iter().map(|vm| {
        let cpus = vm.cpus.map_or_else(|| "?".to_owned(), |n| n.to_string());
        let memory = vm.memory_bytes.map_or_else(|| "?".to_owned(), bytes);
        let said = format!("{}, {cpus} CPUs, {memory}, {} volumes", vm.hypervisor, vm.volumes);
        vec![format!("guest {}", vm.name), said]
    }));
    lines.extend(of.events.iter().take(10).map(event));
    table(&lines)
}

fn event(event: &Event) -> Vec<String> {
    let what = match event.what {
        What::VmStarted => "guest started",
        What::VmStopped => "guest stopped",
        What::HypervisorChanged => "hypervisor changed",
        What::HypervisorGone => "hypervisor gone",
        What::Unknown => "not known here",
    };
    vec![time(event.at), format!("{what}: {}", event.name)]
}

/// A node, as placement knows it, and what it has measured last.
#[derive(Serialize)]
struct NodeStatus {
    #[serde(flatten)]
    info: NodeInfo,
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<StatsPoint>,
}

/// All nodes.
#[derive(Serialize)]
struct StatusList {
    nodes: Vec<NodeStatus>,
}

/// Runs `forebay node status`.
pub fn status(config: &Config, output: Output) -> Result<()> {
    let asked = async |grid: Grid| -> Result<(NodeList, StatsList)> {
        Ok((grid.placement.nodes().await?, grid.placement.stats(0).await?))
    };
    let (nodes, stats) = with_grid(config, asked)?;
    let with = |info: NodeInfo| {
        let last = stats.nodes.iter().find(|of| of.name == info.name).map(|of| of.last);
        NodeStatus { info, last }
    };
    let list = StatusList { nodes: nodes.nodes.into_iter().map(with).collect() };
    output.result(&list, status_rows)
}

fn status_rows(list: &StatusList) -> String {
    let head = [
        "NODE", "STANDING", "HEARD", "READY", "TO DO", "FREE", "OF", "CPU", "WAITS", "MEMORY",
        "VMS",
    ];
    let row = |NodeStatus { info: n, last }: &NodeStatus| {
        let heard = n.heard.map_or_else(|| "not yet".to_owned(), |secs| heard(secs, n.away));
        let (free, size) = (bytes(n.disk.free), bytes(n.disk.size));
        let of =
            |text: fn(&StatsPoint) -> String| last.as_ref().map_or_else(|| "-".to_owned(), text);
        vec![
            n.name.clone(),
            n.standing.name().to_owned(),
            heard,
            n.ready.to_string(),
            n.open.to_string(),
            free,
            size,
            of(cpu),
            of(|p| percent(p.load_per_mille)),
            of(memory),
            of(|p| p.vms.to_string()),
        ]
    };
    let head = head.map(str::to_owned).to_vec();
    table(&std::iter::once(head).chain(list.nodes.iter().map(row)).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_sorted_by_what_is_asked_and_by_their_names() {
        let node = |name: &str, cpu, free| NodeSummary {
            name: name.into(),
            last: StatsPoint {
                cpu_per_mille: Some(cpu),
                memory_total_bytes: 100,
                memory_available_bytes: free,
                ..StatsPoint::default()
            },
            ..NodeSummary::default()
        };
        let mut nodes = vec![node("b", 10, 90), node("a", 10, 50), node("c", 900, 70)];
        let mut sorted = |by| {
            sort(&mut nodes, by);
            nodes.iter().map(|n| n.name.clone()).collect::<String>()
        };
        assert_eq!(sorted(SortArg::Name), "abc");
        assert_eq!(sorted(SortArg::Cpu), "cab");
        assert_eq!(sorted(SortArg::Memory), "acb");
        assert_eq!(sorted(SortArg::Disk), "abc");
    }
}
