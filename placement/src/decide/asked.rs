//! A request, looked up in the view: what it names has become numbers of nodes.

use std::collections::BTreeMap;

use api::fleet::{NODE_LEVEL, Strengths};
use api::place::{Among, Behaviour, HypervisorNeed, Of, PlaceRequest, Policy};
use image::{Error, Kind, Result};

use super::index::{At, Column};
use super::known::Software;
use super::view::{View, lot};

/// What a licence is to a node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Left {
    /// It holds one that nobody has taken.
    pub free: bool,
    pub cost: f64,
}

/// The best hypervisor of a node that fits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fitting<'a> {
    pub software: &'a Software,
    /// How strong it is where the guest needs it, 0 to 1.
    pub strength: f64,
}

/// What decides on each node. Where a column stands in an `Option`, the request does not ask for it if there is none.
pub(super) struct Asked<'a> {
    pub request: &'a PlaceRequest,
    pub policy: &'a Policy,
    pub lot: u64,
    pub needs: [u64; 4],
    pub not_on: Column<()>,
    pub architecture: Option<Column<()>>,
    pub hypervisor: Option<Column<Fitting<'a>>>,
    pub licences: Vec<(&'a str, Column<Left>)>,
    /// Nodes that are dedicated to its tenant, among others perhaps.
    pub dedicated: Column<()>,
    /// Guests of its tenant.
    pub fellows: Column<u64>,
    pub function: Option<Column<()>>,
    pub labels: Vec<(&'a str, &'a str, Column<()>)>,
    pub together: Vec<(&'a Among, Column<u64>)>,
    pub apart: Vec<(&'a Among, Column<u64>)>,
    pub spread: Option<Column<u64>>,
    /// The share of the image that is at hand.
    pub image: Option<Column<f64>>,
    pub pool: Option<Column<u64>>,
    pub near: Option<Column<f64>>,
}

impl<'a> Asked<'a> {
    /// # Errors
    ///
    /// Invalid: a level is none of the fleet's, or a domain is deeper than these.
    pub fn new(view: &'a View, request: &'a PlaceRequest, policy: &'a Policy) -> Result<Self> {
        let (known, numbers) = (&view.known, view.numbers());
        let tenant = request.tenant.as_deref();
        let among = |among: &'a Among| Ok((among, occupied(view, among)?));
        let licence = |name: &'a String| (name.as_str(), left(view, name));
        // Where there are none of them yet, anything is together with them.
        let together = request.together.iter().map(among).collect::<Result<Vec<_>>>()?;
        let together = together.into_iter().filter(|(among, _)| exist(view, among)).collect();
        Ok(Self {
            request,
            policy,
            lot: lot(&request.id),
            needs: request.needs.all(),
            not_on: Column::new(
                numbers,
                request.not_on.iter().filter_map(|name| Some((view.number(name)?, ()))),
            ),
            architecture: request
                .architecture
                .as_ref()
                .map(|name| Column::new(numbers, known.architectures.of(name))),
            hypervisor: request
                .hypervisor
                .as_ref()
                .map(|need| fitting(view, need, &request.behaviour)),
            licences: request.licences.iter().map(licence).collect(),
            dedicated: Column::new(
                numbers,
                tenant.into_iter().flat_map(|name| known.dedicated.of(name)),
            ),
            fellows: Column::new(
                numbers,
                tenant.into_iter().flat_map(|name| known.tenants.of(name)),
            ),
            function: request
                .function
                .as_ref()
                .map(|name| Column::new(numbers, known.functions.of(name))),
            labels: request
                .labels
                .iter()
                .map(|(key, value)| {
                    let label = (key.clone(), value.clone());
                    (key.as_str(), value.as_str(), Column::new(numbers, known.labels.of(&label)))
                })
                .collect(),
            together,
            apart: request.apart.iter().map(among).collect::<Result<_>>()?,
            spread: request.spread.as_ref().map(|among| occupied(view, among)).transpose()?,
            image: request.image.map(|image| {
                let share = |held: u64| {
                    held.min(request.image_bytes) as f64 / request.image_bytes.max(1) as f64
                };
                Column::new(numbers, known.images.of(&image).map(|(at, held)| (at, share(held))))
            }),
            pool: request.pool.as_ref().map(|name| Column::new(numbers, known.pools.of(name))),
            near: near(view, &request.near)?,
        })
    }

    /// None of these nodes will do.
    pub fn bar(&mut self, nodes: impl IntoIterator<Item = At>) {
        nodes.into_iter().for_each(|at| self.not_on.set(at, ()));
    }
}

fn counts<'v>(view: &'v View, of: &Of) -> Box<dyn Iterator<Item = (At, u64)> + 'v> {
    match of {
        Of::Group(name) => Box::new(view.known.groups.of(name.as_str())),
        Of::Pool(name) => Box::new(view.known.pools.of(name.as_str())),
    }
}

fn exist(view: &View, among: &Among) -> bool {
    counts(view, &among.of).next().is_some()
}

/// How many of them are in each node's failure domain.
fn occupied(view: &View, among: &Among) -> Result<Column<u64>> {
    if among.level == NODE_LEVEL {
        return Ok(Column::new(view.numbers(), counts(view, &among.of)));
    }
    let Some(level) = view.levels().iter().position(|level| *level == among.level) else {
        let levels = view.levels().iter().map(|level| format!("`{level}`, ")).collect::<String>();
        let what = format!("there is no level `{}`: choose {levels}or `{NODE_LEVEL}`", among.level);
        return Err(Error::new(Kind::Invalid, what));
    };
    let mut domains: BTreeMap<&str, u64> = BTreeMap::new();
    for (at, count) in counts(view, &among.of) {
        let domain = domains.entry(view.domain(at, level + 1)).or_default();
        *domain = domain.saturating_add(count);
    }
    let nodes = domains
        .into_iter()
        .flat_map(|(domain, count)| view.known.domains.of(domain).map(move |(at, ())| (at, count)));
    Ok(Column::new(view.numbers(), nodes))
}

/// How far down the deepest of these paths each node stands.
fn near(view: &View, paths: &[String]) -> Result<Option<Column<f64>>> {
    if paths.is_empty() {
        return Ok(None);
    }
    let mut best: Column<f64> = Column::new(view.numbers(), []);
    for path in paths {
        let ends = path.match_indices('/').map(|(end, _)| end).chain([path.len()]);
        let ends: Vec<usize> = ends.collect();
        if ends.len() > view.levels().len() {
            let levels = view.levels().join("/");
            let what = format!("near {path}: it is deeper than the fleet's levels `{levels}`");
            return Err(Error::new(Kind::Invalid, what));
        }
        for (nth, end) in ends.iter().enumerate() {
            let share = (nth + 1) as f64 / ends.len() as f64;
            for (at, ()) in view.known.domains.of(&path[..*end]) {
                best.set(at, best.get(at).unwrap_or(0.0).max(share));
            }
        }
    }
    Ok(Some(best))
}

fn left(view: &View, name: &str) -> Column<Left> {
    let known = &view.known;
    let held = known.licences.of(name).filter(|(_, licence)| licence.held != Some(0));
    let nodes = held.map(|(at, licence)| {
        let taken = known.licensed.get(name, at).unwrap_or(0);
        let free = licence.held.is_none_or(|held| taken < held);
        (at, Left { free, cost: licence.cost })
    });
    Column::new(view.numbers(), nodes)
}

/// The best hypervisor of each node that fits. Of equals the one whose name sorts last, whatever order they are told in.
fn fitting<'a>(
    view: &'a View,
    need: &HypervisorNeed,
    behaviour: &Behaviour,
) -> Column<Fitting<'a>> {
    let mut best: Column<Fitting<'a>> = Column::new(view.numbers(), []);
    let all = view.known.hypervisors.all();
    for (software, nodes) in all.filter(|(software, _)| fits(software, need)) {
        for (at, strengths) in nodes {
            let strength = strength(behaviour, strengths);
            if best.get(*at).is_none_or(|best| strength >= best.strength) {
                best.set(*at, Fitting { software, strength });
            }
        }
    }
    best
}

fn fits(software: &Software, need: &HypervisorNeed) -> bool {
    (need.kinds.is_empty() || need.kinds.contains(&software.kind))
        && need.features.is_subset(&software.features)
        && need.at_least.as_ref().is_none_or(|least| version(&software.version) >= version(least))
}

/// The numbers that a version begins with; zeros at the end say nothing.
fn version(text: &str) -> Vec<u64> {
    let number = |part: &str| {
        let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        part[..digits].parse::<u64>().ok()
    };
    let mut numbers: Vec<u64> = text.split('.').map_while(number).collect();
    while numbers.last() == Some(&0) {
        numbers.pop();
    }
    numbers
}

/// The strengths' mean, each as much as the guest needs it; 0 if it needs none.
fn strength(behaviour: &Behaviour, strengths: &Strengths) -> f64 {
    let needs = [behaviour.cpu, behaviour.disk, behaviour.network];
    let has = [strengths.cpu, strengths.disk, strengths.network];
    let all: f64 = needs.iter().sum();
    match all > 0.0 {
        true => (needs.iter().zip(has).map(|(need, has)| need * has).sum::<f64>() / all).min(1.0),
        false => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        for (has, least, enough) in [
            ("9.1.2", "9.1", true),
            ("9.1", "9.1.0", true),
            ("10.0", "9.9", true),
            ("8.2.0-1ubuntu", "8.2", true),
            ("8.2", "8.2.1", false),
            ("git", "0.1", false),
            ("", "1", false),
        ] {
            assert_eq!(version(has) >= version(least), enough, "{has} {least}");
        }
    }
}
