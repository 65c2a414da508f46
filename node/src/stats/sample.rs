//! Makes a sample of what was seen now, what was seen before, and what the daemon knows. Pure.

use std::collections::BTreeSet;

use api::stats::{
    Cause, Declared, Event, GuestTotals, Holdings, HypervisorStats, MAX_EVENTS, MAX_LIST, MAX_TEXT,
    NodeStats, RequestStats, SCHEMA, VmStats, What,
};

use super::host::Counts;
use super::{disks, links, processor};

/// What the daemon knows.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Volumes, images and pools.
    pub holdings: Holdings,
    /// What went wrong.
    pub requests: RequestStats,
    /// Sockets and files at which guests find volumes.
    pub places: Vec<String>,
}

/// Everything of one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub counts: Counts,
    pub hypervisors: Vec<HypervisorStats>,
}

/// What comes from outside.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct When {
    pub number: u64,
    /// In seconds since 1970.
    pub at: u64,
    pub cause: Cause,
}

pub(super) fn sample(
    before: Option<&Seen>,
    now: &Seen,
    known: Known,
    declared: Declared,
    when: When,
) -> NodeStats {
    let counts = &now.counts;
    let was = before.map(|before| &before.counts);
    let span_millis = was.map_or(0, |was| counts.millis.saturating_sub(was.millis));
    let vms: Vec<VmStats> = counts.guests.iter().map(|guest| with_volumes(guest, &known)).collect();
    let mut stats = NodeStats {
        schema: SCHEMA,
        number: when.number,
        at: when.at,
        span_millis,
        cause: when.cause,
        cpu: counts
            .processors
            .as_ref()
            .map(|now| processor::cpu(was.and_then(|was| was.processors.as_ref()), now)),
        memory: counts.memory.clone(),
        pressure: counts.pressure,
        spaces: counts.spaces.clone(),
        disks: disks_of(was, counts, span_millis),
        raids: counts.raids.clone(),
        interfaces: interfaces_of(was, counts, span_millis),
        hypervisors: now.hypervisors.clone(),
        guests: totals(&vms),
        events: before.map(|before| events(before, now, when.at)).unwrap_or_default(),
        vms,
        holdings: known.holdings,
        requests: known.requests,
        declared,
        left_out: 0,
    };
    cut(&mut stats);
    stats
}

fn disks_of(was: Option<&Counts>, now: &Counts, millis: u64) -> Vec<api::stats::DiskStats> {
    let before = |name: &str| {
        let of = was?.disks.iter().find(|(done, _)| done.name == name)?;
        Some(&of.0)
    };
    let all = now.disks.iter();
    all.map(|(done, about)| disks::disk(before(&done.name), done, about, millis)).collect()
}

fn interfaces_of(
    was: Option<&Counts>,
    now: &Counts,
    millis: u64,
) -> Vec<api::stats::InterfaceStats> {
    let before = |name: &str| was?.links.iter().find(|about| about.name == name);
    let all = now.links.iter();
    all.map(|about| links::interface(before(&about.name), about, &now.vlans, millis)).collect()
}

fn with_volumes(guest: &super::guests::Guest, known: &Known) -> VmStats {
    let volumes = known.places.iter().filter(|place| guest.names(place)).count();
    VmStats { volumes: volumes as u32, ..guest.vm.clone() }
}

fn totals(vms: &[VmStats]) -> GuestTotals {
    vms.iter().fold(GuestTotals::default(), |sum, vm| GuestTotals {
        vms: sum.vms.saturating_add(1),
        cpus: sum.cpus.saturating_add(vm.cpus.unwrap_or(0)),
        memory_bytes: sum.memory_bytes.saturating_add(vm.memory_bytes.unwrap_or(0)),
    })
}

/// What is there now and was not, and the other way round.
fn events(before: &Seen, now: &Seen, at: u64) -> Vec<Event> {
    let guests = |seen: &Seen| -> BTreeSet<String> {
        seen.counts.guests.iter().map(|guest| guest.vm.name.clone()).collect()
    };
    let (had, has) = (guests(before), guests(now));
    let event = |what, name: &String| Event { at, what, name: name.clone() };
    let stopped = had.difference(&has).map(|name| event(What::VmStopped, name));
    let started = has.difference(&had).map(|name| event(What::VmStarted, name));
    let new = now.hypervisors.iter().filter(|of| !before.hypervisors.contains(of));
    let gone = before
        .hypervisors
        .iter()
        .filter(|was| now.hypervisors.iter().all(|is| is.kind != was.kind));
    stopped
        .chain(started)
        .chain(new.map(|of| event(What::HypervisorChanged, &of.kind)))
        .chain(gone.map(|of| event(What::HypervisorGone, &of.kind)))
        .collect()
}

/// These have happened before; of too many, the oldest are left out, which is said.
pub(super) fn also(stats: &mut NodeStats, before: &[Event]) {
    let room = MAX_EVENTS.saturating_sub(stats.events.len());
    let out = before.len().saturating_sub(room);
    stats.left_out += out as u64;
    stats.events.splice(0..0, before[out..].iter().cloned());
}

/// Leaves out what is too many, and says so: the longest lists a node may send are those that placement takes.
fn cut(stats: &mut NodeStats) {
    let mut out = 0;
    let mut less = |len: usize, most: usize| {
        out += len.saturating_sub(most) as u64;
        most
    };
    let most = less(stats.disks.len(), MAX_LIST);
    stats.disks.truncate(most);
    let most = less(stats.raids.len(), MAX_LIST);
    stats.raids.truncate(most);
    let most = less(stats.interfaces.len(), MAX_LIST);
    stats.interfaces.truncate(most);
    let most = less(stats.vms.len(), MAX_LIST);
    stats.vms.truncate(most);
    let most = less(stats.events.len(), MAX_EVENTS);
    stats.events.truncate(most);
    less(stats.holdings.images.len(), MAX_LIST);
    while stats.holdings.images.len() > MAX_LIST {
        stats.holdings.images.pop_last();
    }
    less(stats.holdings.pools.len(), MAX_LIST);
    while stats.holdings.pools.len() > MAX_LIST {
        stats.holdings.pools.pop_last();
    }
    stats.left_out = out;
    let disks = stats.disks.iter_mut().map(|of| &mut of.name);
    let raids = stats.raids.iter_mut().flat_map(|of| [&mut of.name, &mut of.level, &mut of.state]);
    let links = stats.interfaces.iter_mut();
    let links = links.flat_map(|of| [Some(&mut of.name), of.parent.as_mut()]).flatten();
    let vms = stats.vms.iter_mut().map(|of| &mut of.name);
    let events = stats.events.iter_mut().map(|of| &mut of.name);
    disks.chain(raids).chain(links).chain(vms).chain(events).for_each(plain);
}

/// What people call their guests may be long, and may be anything.
fn plain(text: &mut String) {
    if text.contains(char::is_control) {
        *text = text.replace(char::is_control, "?");
    }
    text.truncate(text.floor_char_boundary(MAX_TEXT));
}
