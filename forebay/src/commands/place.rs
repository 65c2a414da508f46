//! `forebay place`: chooses nodes for what a file asks for, on the fleet that it describes.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;

use api::place::{
    Decision, HeadRoom, Miss, PlaceRequest, Points, Policy, Scored, Simulation, Weights,
};
use image::error::At;
use image::{Error, Kind, Result};
use placement::decide::{View, decide, explain};

use crate::cli::PlaceArgs;
use crate::config::Config;
use crate::output::{Output, table};
use crate::report::{PlaceLine, PlaceReport};

/// Runs the command.
pub fn run(config: &Config, args: &PlaceArgs, output: Output) -> Result<()> {
    let name = args.simulate.display();
    let text = read(&args.simulate)?;
    let simulation: Simulation = serde_json::from_str(&text)
        .map_err(|e| Error::caused(Kind::Invalid, format!("{name}: {e}"), e))?;
    let policy = simulation.policy.map_or_else(|| policy(config), Ok)?;
    let report = simulate(simulation, &policy, args.explain).at(|| &name)?;
    output.result(&report, human)?;
    all_placed(&report)
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

fn judge(
    view: &View,
    request: &PlaceRequest,
    policy: &Policy,
    explained: bool,
) -> Result<PlaceLine> {
    match explained {
        false => {
            Ok(PlaceLine { decision: decide(view, request, policy)?, scored: None, misses: None })
        }
        true => {
            let why = explain(view, request, policy)?;
            Ok(PlaceLine {
                decision: why.decision,
                scored: Some(why.scored),
                misses: Some(why.misses),
            })
        }
    }
}

fn all_placed(report: &PlaceReport) -> Result<()> {
    let unplaced = report.placed.iter().filter(|line| line.decision.chosen.is_none());
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

fn told(line: &PlaceLine) -> String {
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
    head + &table(&scored.chain(misses).collect::<Vec<_>>())
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
