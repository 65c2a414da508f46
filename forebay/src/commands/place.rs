//! `forebay place`: chooses nodes, on the fleet as it is by placement, or here on a fleet that a file describes.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;

use api::place::{
    Decision, HeadRoom, LeftOut, Miss, PlaceAnswer, PlaceAsk, PlaceRequest, Placed, Points, Policy,
    Reservation, ReservationList, Scored, Simulation, Weights,
};
use image::error::At;
use image::{Error, Kind, Result};
use placement::decide::{View, decide, explain};

use super::with_grid;
use crate::cli::PlaceArgs;
use crate::config::Config;
use crate::grid::Grid;
use crate::output::{Output, table, time};
use crate::report::PlaceReport;

/// Runs the command.
pub fn run(config: &Config, args: &PlaceArgs, output: Output) -> Result<()> {
    if let Some(file) = &args.simulate {
        return simulated(config, file, args.explain, output);
    }
    if args.reserved {
        let all = with_grid(config, |grid| async move { grid.placement.reservations().await })?;
        return output.result(&all, reserved);
    }
    if let Some(id) = &args.release {
        let released = async |grid: Grid| grid.placement.release_reservation(id).await;
        let was = with_grid(config, released)?;
        return output
            .result(&was, |was| format!("{} is not reserved on {} any more\n", was.id, was.node));
    }
    let ask = PlaceAsk {
        requests: args.requests.iter().map(|text| request(text)).collect::<Result<_>>()?,
        explain: args.explain,
        reserve: args.reserve,
        term_secs: u32::try_from(args.term.as_secs()).unwrap_or(u32::MAX),
    };
    ask.check()?;
    let placed = async |grid: Grid| grid.placement.place(&ask).await;
    let answer = with_grid(config, placed)?;
    output.result(&answer, live)?;
    all_placed(&answer.placed)
}

/// A request, as JSON or in a file.
fn request(text: &str) -> Result<PlaceRequest> {
    let (name, json) = match text.trim_start().starts_with('{') {
        true => ("request".to_owned(), text.to_owned()),
        false => (text.to_owned(), read(Path::new(text))?),
    };
    serde_json::from_str(&json).map_err(|e| Error::caused(Kind::Invalid, format!("{name}: {e}"), e))
}

fn live(answer: &PlaceAnswer) -> String {
    let out = |of: &LeftOut| format!("{} was left out: {}\n", of.node, of.why);
    let placed = answer.placed.iter().map(told);
    placed.chain(answer.left_out.iter().map(out)).collect()
}

fn reserved(list: &ReservationList) -> String {
    let head = ["ID", "NODE", "BY", "UNTIL"].map(str::to_owned).to_vec();
    let rows = list
        .reservations
        .iter()
        .map(|r| vec![r.id.clone(), r.node.clone(), r.owner.clone(), time(r.until)]);
    table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

fn simulated(config: &Config, file: &Path, explained: bool, output: Output) -> Result<()> {
    let name = file.display();
    let text = read(file)?;
    let simulation: Simulation = serde_json::from_str(&text)
        .map_err(|e| Error::caused(Kind::Invalid, format!("{name}: {e}"), e))?;
    let policy = simulation.policy.map_or_else(|| policy(config), Ok)?;
    let report = simulate(simulation, &policy, explained).at(|| &name)?;
    output.result(&report, human)?;
    all_placed(&report.placed)
}

fn read(path: &Path) -> Result<String> {
    let mut text = String::new();
    let read = match path == Path::new("-") {
        true => std::io::stdin().read_to_string(&mut text),
        false => std::fs::File::open(path).and_then(|mut file| file.read_to_string(&mut text)),
    };
    match read {
        Ok(_) => Ok(text),
        Err(e) if e.kind() == std::io::ErrorKind::InvalidData => {
            Err(Error::caused(Kind::Invalid, format!("{}: it is not UTF-8", path.display()), e))
        }
        Err(e) => Err(Error::io(path.display(), e)),
    }
}

/// The policy that is configured.
///
/// # Errors
///
/// Invalid: a key's number cannot be meant.
pub fn policy(config: &Config) -> Result<Policy> {
    let room = |key: &'static str| u16::try_from(config.number(key)).unwrap_or(u16::MAX);
    let policy = Policy {
        head_room: HeadRoom {
            cpu: room("place.head_room_cpu"),
            memory: room("place.head_room_memory"),
            disk: room("place.head_room_disk"),
            network: room("place.head_room_network"),
        },
        pools_disk: room("place.pools_disk"),
        load_most: config.decimal("place.load_most"),
        weights: Weights {
            fit: config.decimal("place.weight_fit"),
            image: config.decimal("place.weight_image"),
            pool: config.decimal("place.weight_pool"),
            near: config.decimal("place.weight_near"),
            behaviour: config.decimal("place.weight_behaviour"),
            licence: config.decimal("place.weight_licence"),
            idle: config.decimal("place.weight_idle"),
            spread: config.decimal("place.weight_spread"),
        },
    };
    policy.check().at(|| "configuration: place")?;
    Ok(policy)
}

/// Places one after the other, each where it finds what those before have left.
fn simulate(simulation: Simulation, policy: &Policy, explained: bool) -> Result<PlaceReport> {
    let mut view = View::of(simulation.fleet)?;
    check(&view, &simulation.requests)?;
    let mut placed = Vec::new();
    for request in &simulation.requests {
        let line =
            judge(&view, request, policy, explained).at(|| format!("request {}", request.id))?;
        if let Some(chosen) = &line.decision.chosen {
            view.reserve(request, &chosen.node)?;
        }
        placed.push(line);
    }
    Ok(PlaceReport { placed })
}

fn check(view: &View, requests: &[PlaceRequest]) -> Result<()> {
    let mut taken: BTreeSet<&str> = view.instances().map(|there| there.id.as_str()).collect();
    for request in requests {
        request.check()?;
        if !taken.insert(&request.id) {
            let what = format!("request {}: something of this name is there already", request.id);
            return Err(Error::new(Kind::Invalid, what));
        }
    }
    Ok(())
}

fn judge(view: &View, request: &PlaceRequest, policy: &Policy, explained: bool) -> Result<Placed> {
    let (decision, scored, misses) = match explained {
        false => (decide(view, request, policy)?, None, None),
        true => {
            let why = explain(view, request, policy)?;
            (why.decision, Some(why.scored), Some(why.misses))
        }
    };
    Ok(Placed { decision, scored, misses, reservation: None })
}

fn all_placed(placed: &[Placed]) -> Result<()> {
    let unplaced = placed.iter().filter(|line| line.decision.chosen.is_none());
    let names: Vec<&str> = unplaced.map(|line| line.decision.request.as_str()).collect();
    let (first, more) = match names.as_slice() {
        [] => return Ok(()),
        [first] => (first, String::new()),
        [first, others @ ..] => (first, format!(", and for {} more", others.len())),
    };
    Err(Error::new(Kind::Full, format!("there is no node for {first}{more}")))
}

fn human(report: &PlaceReport) -> String {
    report.placed.iter().map(told).collect()
}

fn told(line: &Placed) -> String {
    let Decision { request, chosen, fit, nodes, .. } = &line.decision;
    let head = match chosen {
        Some(chosen) => {
            let with =
                chosen.hypervisor.iter().map(|name| format!(" with {name}")).collect::<String>();
            format!(
                "{request}: {}{with} (score {:.3}; {fit} of {nodes} nodes fit)\n",
                chosen.node, chosen.score
            )
        }
        None => format!("{request}: {}\n", unplaced(&line.decision)),
    };
    let scored =
        line.scored.iter().flatten().map(|of| row(&of.node, format!("{:.3}", of.score), sum(of)));
    let misses =
        line.misses.iter().flatten().map(|miss| row(&miss.node, "-".to_owned(), reasons(miss)));
    let until = |of: &Reservation| format!("  reserved until {}\n", time(of.until));
    let until: String = line.reservation.iter().map(until).collect();
    head + &until + &table(&scored.chain(misses).collect::<Vec<_>>())
}

fn row(node: &str, score: String, why: String) -> Vec<String> {
    vec![format!("  {node}"), score, why]
}

/// `fit 0.750 × 1 + idle 1.000 × 0.5`
fn sum(scored: &Scored) -> String {
    let term = |of: &Points| format!("{} {:.3} × {}", of.term.name(), of.value, of.weight);
    scored.points.iter().map(term).collect::<Vec<_>>().join(" + ")
}

fn reasons(miss: &Miss) -> String {
    let reasons: Vec<&str> = miss.reasons.iter().map(|reason| reason.why.as_str()).collect();
    reasons.join("; ")
}

fn unplaced(decision: &Decision) -> String {
    let never = if decision.impossible { ", even if nothing were placed" } else { "" };
    match &decision.nearest {
        Some(miss) => format!("no node{never}; the nearest is {}: {}", miss.node, reasons(miss)),
        None => "no node: there are none".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_configured_by_default_is_the_default_policy() {
        let config = |flags: &[(String, String)]| {
            let dir = tempfile::tempdir().unwrap();
            Config::load(dir.path().to_owned(), None, |_| None, flags).unwrap()
        };
        assert_eq!(policy(&config(&[])).unwrap(), Policy::default());
        let set = |key: &str, value: &str| [(key.to_owned(), value.to_owned())];
        assert_eq!(policy(&config(&set("place.weight_fit", "2.5"))).unwrap().weights.fit, 2.5);
        for (key, wrong) in [("place.head_room_disk", "70000"), ("place.load_most", "1.5")] {
            let error = policy(&config(&set(key, wrong))).unwrap_err();
            assert!(error.message().starts_with("configuration: place: "), "{error}");
        }
    }
}
