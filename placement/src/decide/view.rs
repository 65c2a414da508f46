//! What is known of the fleet, kept so that one request is decided on by one pass over the nodes, and one node's report
//! changes what is that node's alone.
//!
//! A node's facts come from its reports; what is placed on it is counted here. A reservation counts at once: its
//! image and its ready volume too, as if they were there already, until the node's next report says what is.

use std::collections::{BTreeMap, BTreeSet};

use api::fleet::{Fleet, Instance, NodeFacts, Resources, check_levels};
use api::place::PlaceRequest;
use image::{Digest, Error, Kind, Result};

use super::index::At;
use super::known::Known;

/// What every request looks at: kept together, so that a pass over all nodes is one over memory.
#[derive(Clone, Debug, Default)]
pub(super) struct Slot {
    /// There is a node.
    pub taken_up: bool,
    pub cordoned: bool,
    pub draining: bool,
    /// It is for some tenants only.
    pub dedicated: bool,
    pub risk_most: u8,
    /// The highest risk class of its guests, and the highest that all of them bear beside them.
    pub risk: u8,
    pub beside_risk: u8,
    pub guests: u64,
    /// Guests that must be alone with their tenant's.
    pub alone: u64,
    pub load: f64,
    pub capacity: [u64; 4],
    /// Of the capacity, in reports and by what is placed. It can be more than that: nodes shrink.
    pub taken: [u64; 4],
    /// Draws among equals.
    pub lot: u64,
}

/// The fleet, as far as it is known.
#[derive(Clone, Debug, Default)]
pub struct View {
    levels: Vec<String>,
    slots: Vec<Slot>,
    facts: Vec<NodeFacts>,
    /// Domain of each node, with a part for each level.
    places: Vec<String>,
    placed: Vec<BTreeSet<String>>,
    by_name: BTreeMap<String, At>,
    vacant: Vec<At>,
    instances: BTreeMap<String, Instance>,
    pub(super) known: Known,
}

impl View {
    /// A fleet without nodes. `levels` are those of failure domains, the widest first.
    ///
    /// # Errors
    ///
    /// Invalid, if the levels are ([`check_levels`]).
    pub fn new(levels: Vec<String>) -> Result<Self> {
        check_levels(&levels)?;
        Ok(Self { levels, ..Self::default() })
    }

    /// A fleet that somebody has written down.
    ///
    /// # Errors
    ///
    /// Invalid: something in it cannot be meant, is there twice, or is on a node that is not there.
    pub fn of(fleet: Fleet) -> Result<Self> {
        let mut view = Self::new(fleet.levels)?;
        for node in fleet.nodes {
            if view.by_name.contains_key(&node.name) {
                return Err(Error::new(
                    Kind::Invalid,
                    format!("node {} is there twice", node.name),
                ));
            }
            view.set_node(node)?;
        }
        for instance in fleet.instances {
            view.add(instance)?;
        }
        Ok(view)
    }

    /// How many nodes there are.
    pub fn nodes(&self) -> usize {
        self.by_name.len()
    }

    /// What is known of a node.
    pub fn node(&self, name: &str) -> Option<&NodeFacts> {
        self.by_name.get(name).map(|at| &self.facts[*at as usize])
    }

    /// What is taken of a node's capacity, by what it reports and by what is placed on it.
    pub fn taken(&self, name: &str) -> Option<Resources> {
        self.by_name.get(name).map(|at| Resources::of(self.slots[*at as usize].taken))
    }

    /// What is placed, in the order of its names.
    pub fn instances(&self) -> impl Iterator<Item = &Instance> {
        self.instances.values()
    }

    /// A node says what it has, for the first time or again. What is placed on it stays.
    ///
    /// # Errors
    ///
    /// Invalid, and nothing is changed: a field cannot be meant, or the domain has more parts than there are levels.
    pub fn set_node(&mut self, facts: NodeFacts) -> Result<()> {
        facts.check()?;
        let place = self.place(&facts)?;
        let known = self.by_name.get(&facts.name).copied();
        let taken = self.taken_of(known, &facts)?;
        let at = known.unwrap_or_else(|| self.take_slot(&facts.name));
        let n = at as usize;
        let was = std::mem::replace(&mut self.facts[n], facts);
        let was_there = std::mem::replace(&mut self.places[n], place);
        let slot = &mut self.slots[n];
        let facts = &self.facts[n];
        slot.cordoned = facts.cordoned;
        slot.draining = facts.draining;
        slot.dedicated = !facts.tenants.is_empty();
        slot.risk_most = facts.risk_most;
        slot.load = facts.load;
        slot.capacity = facts.capacity.all();
        slot.taken = taken;
        self.known.retell(at, &was, facts);
        if known.is_none() || was_there != self.places[n] {
            let paths = |place: &str| paths(place, self.levels.len());
            let was = if known.is_some() { paths(&was_there) } else { Vec::new() };
            let is = paths(&self.places[n]).into_iter().map(|path| (path, ()));
            self.known.domains.retell(at, was, is);
        }
        Ok(())
    }

    /// A node is gone, and what was placed on it. What was not there is no error.
    pub fn remove_node(&mut self, name: &str) {
        let Some(at) = self.by_name.remove(name) else { return };
        let n = at as usize;
        for id in std::mem::take(&mut self.placed[n]) {
            if let Some(instance) = self.instances.remove(&id) {
                self.known.count(&instance, at, false);
            }
        }
        let was = std::mem::take(&mut self.facts[n]);
        self.known.retell(at, &was, &NodeFacts::default());
        let place = std::mem::take(&mut self.places[n]);
        self.known.domains.retell(at, paths(&place, self.levels.len()), []);
        self.slots[n] = Slot::default();
        self.vacant.push(at);
    }

    /// Something is placed on a node already, be there room or not.
    ///
    /// # Errors
    ///
    /// Invalid: it cannot be meant, or takes more than numbers reach. Gone: there is no such node. Conflict: something
    /// of this name is placed already.
    pub fn add(&mut self, instance: Instance) -> Result<()> {
        instance.check()?;
        let Instance { id, node, takes, .. } = &instance;
        let Some(&at) = self.by_name.get(node) else {
            let what = format!("instance {id} is on node {node}, which is not known");
            return Err(Error::new(Kind::Gone, what));
        };
        if self.instances.contains_key(id) {
            return Err(Error::new(Kind::Conflict, format!("instance {id} is placed already")));
        }
        let slot = &mut self.slots[at as usize];
        slot.taken = sum(slot.taken, takes, node)?;
        self.known.count(&instance, at, true);
        self.placed[at as usize].insert(id.clone());
        self.instances.insert(id.clone(), instance);
        self.meet(at);
        Ok(())
    }

    /// Something is no longer there. What was not is no error.
    pub fn release(&mut self, id: &str) {
        let Some(instance) = self.instances.remove(id) else { return };
        let at = self.by_name[&instance.node];
        self.placed[at as usize].remove(id);
        let taken = &mut self.slots[at as usize].taken;
        for (taken, took) in taken.iter_mut().zip(instance.takes.all()) {
            *taken -= took;
        }
        self.known.count(&instance, at, false);
        self.meet(at);
    }

    /// Takes what a request asks for from a node: the next decision counts it.
    ///
    /// # Errors
    ///
    /// As of [`add`](Self::add); and full, if the node has not as much.
    pub fn reserve(&mut self, request: &PlaceRequest, node: &str) -> Result<()> {
        let Some(&at) = self.by_name.get(node) else {
            return Err(Error::new(Kind::Gone, format!("node {node} is not known")));
        };
        self.must_have(request, at)?;
        self.add(instance(request, node))?;
        let (facts, known) = (&mut self.facts[at as usize], &mut self.known);
        if let Some(image) = request.image {
            let bytes = facts.images.entry(image).or_default();
            *bytes = request.image_bytes.max(*bytes);
            known.images.set(image, at, *bytes);
        }
        for (pool, more) in [(&request.builds, true), (&request.pool, false)] {
            let Some(pool) = pool else { continue };
            known.pools.count(pool.clone(), at, more);
            match known.pools.get(pool, at) {
                Some(ready) => facts.pools.insert(pool.clone(), ready),
                None => facts.pools.remove(pool),
            };
        }
        Ok(())
    }

    fn must_have(&self, request: &PlaceRequest, at: At) -> Result<()> {
        let slot = &self.slots[at as usize];
        let free =
            slot.capacity.iter().zip(slot.taken).map(|(has, taken)| has.saturating_sub(taken));
        let room = request.needs.all().into_iter().zip(free).all(|(needs, free)| needs <= free);
        let left = |name: &String| {
            let licence = self.known.licences.get(name, at);
            let taken = self.known.licensed.get(name, at).unwrap_or(0);
            licence.is_some_and(|licence| licence.held.is_none_or(|held| taken < held))
        };
        match room && request.licences.iter().all(left) {
            true => Ok(()),
            false => {
                let node = &self.facts[at as usize].name;
                let what = format!("node {node} has no room for {} any more", request.id);
                Err(Error::new(Kind::Full, what))
            }
        }
    }

    /// What the guests of a node bear, anew.
    fn meet(&mut self, at: At) {
        let ids = &self.placed[at as usize];
        let guests = ids.iter().map(|id| &self.instances[id]).filter(|instance| !instance.builds);
        let slot = &mut self.slots[at as usize];
        (slot.guests, slot.alone, slot.risk, slot.beside_risk) = (0, 0, 0, u8::MAX);
        for guest in guests {
            slot.guests += 1;
            slot.alone += u64::from(guest.alone);
            slot.risk = slot.risk.max(guest.risk);
            slot.beside_risk = slot.beside_risk.min(guest.beside_risk);
        }
    }

    fn take_slot(&mut self, name: &str) -> At {
        let at = self.vacant.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.facts.push(NodeFacts::default());
            self.places.push(String::new());
            self.placed.push(BTreeSet::new());
            (self.slots.len() - 1) as At
        });
        let slot = &mut self.slots[at as usize];
        *slot = Slot { taken_up: true, beside_risk: u8::MAX, lot: lot(name), ..Slot::default() };
        self.by_name.insert(name.to_owned(), at);
        at
    }

    fn taken_of(&self, at: Option<At>, facts: &NodeFacts) -> Result<[u64; 4]> {
        let placed = at.into_iter().flat_map(|at| &self.placed[at as usize]);
        let takes = placed.map(|id| &self.instances[id].takes);
        takes
            .into_iter()
            .try_fold(facts.reserved.all(), |taken, takes| sum(taken, takes, &facts.name))
    }

    /// The path of a node, with an empty part for each level of which it does not say anything.
    fn place(&self, facts: &NodeFacts) -> Result<String> {
        let slashes = facts.domain.matches('/').count();
        match self.levels.len().checked_sub(slashes + 1) {
            Some(missing) => Ok(facts.domain.clone() + &"/".repeat(missing)),
            None if facts.domain.is_empty() => Ok(String::new()),
            None => {
                let (name, domain, levels) = (&facts.name, &facts.domain, self.levels.join("/"));
                let what = format!(
                    "node {name}: its domain {domain} is deeper than the fleet's levels `{levels}`"
                );
                Err(Error::new(Kind::Invalid, what))
            }
        }
    }

    /// The levels of failure domains, the widest first.
    pub(crate) fn levels(&self) -> &[String] {
        &self.levels
    }

    /// The numbers of all nodes, with what every request looks at.
    pub(super) fn slots(&self) -> impl Iterator<Item = (At, &Slot)> {
        self.slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| slot.taken_up)
            .map(|(n, slot)| (n as At, slot))
    }

    /// How many numbers there are: more than nodes, perhaps.
    pub(super) fn numbers(&self) -> usize {
        self.slots.len()
    }

    /// The number of a node, as long as it is there.
    pub(crate) fn number(&self, name: &str) -> Option<At> {
        self.by_name.get(name).copied()
    }

    pub(super) fn facts(&self, at: At) -> &NodeFacts {
        &self.facts[at as usize]
    }

    /// The path of the domain of a node at a level, the widest of which is 1.
    pub(super) fn domain(&self, at: At, level: usize) -> &str {
        prefix(&self.places[at as usize], level)
    }
}

/// What a request is once it is placed.
pub(crate) fn instance(request: &PlaceRequest, node: &str) -> Instance {
    Instance {
        id: request.id.clone(),
        node: node.to_owned(),
        takes: request.needs,
        tenant: request.tenant.clone(),
        alone: request.alone,
        risk: request.risk,
        beside_risk: request.beside_risk,
        group: request.group.clone(),
        licences: request.licences.clone(),
        builds: request.builds.is_some(),
    }
}

fn sum(taken: [u64; 4], takes: &Resources, node: &str) -> Result<[u64; 4]> {
    let sum = Resources::of(taken).checked_add(takes).ok_or_else(|| {
        let what = format!("node {node}: what is on it takes more than numbers reach");
        Error::new(Kind::Invalid, what)
    })?;
    Ok(sum.all())
}

/// The first parts of a path.
fn prefix(path: &str, parts: usize) -> &str {
    match path.match_indices('/').nth(parts - 1) {
        Some((end, _)) => &path[..end],
        None => path,
    }
}

/// A path's domains of all levels.
fn paths(path: &str, levels: usize) -> Vec<String> {
    (1..=levels).map(|level| prefix(path, level).to_owned()).collect()
}

/// What a name draws: the same everywhere, and evenly spread.
pub(super) fn lot(name: &str) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = Digest::of_stored(name.as_bytes()).0;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
