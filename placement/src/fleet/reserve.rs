//! Choosing nodes of the fleet as it is, and reserving them in the transaction that chooses.
//!
//! All reservations of a node are in one key, which a choice read and its transaction compares: of two that chose the
//! same node at a time one is dropped, and chooses anew. So what a node has is never promised twice, whoever chooses.
//! Rules over several nodes (`apart`, `together`) hold as well, since a placement makes one choice that is reserved at a
//! time.
//!
//! A reservation counts until its term is over, or it is released. Whoever starts the guest releases it then: from there
//! on the guest itself counts.

use std::collections::BTreeMap;

use api::fleet::NodeFacts;
use api::place::{
    Decision, LeftOut, PlaceAnswer, PlaceAsk, PlaceRequest, Placed, Reservation, ReservationList,
};
use image::{Error, Kind, Result};
use serde::{Deserialize, Serialize};

use super::{Fleet, NodeEntry, TRIES};
use crate::decide::{View, decide, explain, instance};
use crate::state::keys::{Transaction, Versioned, encode};

const PREFIX: &str = "reserved/";
/// Most reservations of one node.
const MOST: usize = 512;

fn key(node: &str) -> String {
    format!("{PREFIX}{node}")
}

/// The reservations of a node, as they are kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Book {
    holds: Vec<Hold>,
}

/// A reservation, as it is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Hold {
    request: PlaceRequest,
    owner: String,
    /// In seconds since 1970.
    until: u64,
    decision: Decision,
}

impl Hold {
    fn told(&self, node: &str) -> Reservation {
        Reservation {
            id: self.request.id.clone(),
            node: node.to_owned(),
            owner: self.owner.clone(),
            until: self.until,
            takes: self.request.needs,
        }
    }
}

/// What a choice is made of beside what nodes say: as of one moment.
struct Seen {
    now: u64,
    /// Without what is over, by node.
    books: BTreeMap<String, (Book, Versioned)>,
    cordoned: BTreeMap<String, bool>,
}

impl Seen {
    fn holds(&self) -> impl Iterator<Item = (&String, &Hold)> {
        self.books.iter().flat_map(|(node, (book, _))| book.holds.iter().map(move |h| (node, h)))
    }

    fn find(&self, id: &str) -> Option<(&String, &Hold)> {
        self.holds().find(|(_, hold)| hold.request.id == id)
    }
}

impl Fleet {
    /// Chooses nodes, and reserves them if that is asked for.
    ///
    /// # Errors
    ///
    /// Invalid: a request cannot be meant. Conflict: something else is reserved under its id. What was reserved before
    /// it stays so: the same ask again finds it.
    pub(crate) async fn place(&self, owner: &str, ask: &PlaceAsk) -> Result<PlaceAnswer> {
        ask.check()?;
        if !ask.reserve {
            return self.choose(&self.seen().await?, &ask.requests, ask.explain);
        }
        let mut answer = PlaceAnswer::default();
        for request in &ask.requests {
            let one = self.reserve(owner, request, ask).await?;
            answer.placed.extend(one.placed);
            answer.left_out = one.left_out;
        }
        Ok(answer)
    }

    async fn reserve(
        &self,
        owner: &str,
        request: &PlaceRequest,
        ask: &PlaceAsk,
    ) -> Result<PlaceAnswer> {
        let _turn = self.choosing.lock().await;
        for _ in 0..TRIES {
            let seen = self.seen().await?;
            let until = seen.now + u64::from(ask.term_secs);
            let mut answer = match seen.find(&request.id) {
                Some((_, hold)) if hold.owner == owner && hold.request == *request => {
                    PlaceAnswer { placed: vec![bare(hold.decision.clone())], left_out: Vec::new() }
                }
                Some((node, hold)) => {
                    let (id, owner) = (&request.id, &hold.owner);
                    let what =
                        format!("{id}: {owner} has something else reserved as that on {node}");
                    return Err(Error::new(Kind::Conflict, what));
                }
                None => self.choose(&seen, std::slice::from_ref(request), ask.explain)?,
            };
            let placed = &mut answer.placed[0];
            if placed.decision.chosen.is_none() {
                return Ok(answer);
            }
            let decision = placed.decision.clone();
            let hold = Hold { request: request.clone(), owner: owner.to_owned(), until, decision };
            match self.write_down(&seen, hold).await {
                Err(error) if error.kind() == Kind::Conflict => {}
                done => {
                    placed.reservation = Some(done?);
                    return Ok(answer);
                }
            }
        }
        Err(Error::new(Kind::Retry, format!("{}: others reserve on the same nodes", request.id)))
    }

    /// What is reserved and who is cordoned, as it is now.
    async fn seen(&self) -> Result<Seen> {
        let now = self.clock.now();
        let mut books = BTreeMap::new();
        let (reserved, unreadable) = self.state.list_readable::<Book>(PREFIX).await?;
        for (node, mut book, seen) in reserved {
            book.holds.retain(|hold| now < hold.until);
            books.insert(node, (book, seen));
        }
        let (nodes, _) = self.state.list_readable::<NodeEntry>("nodes/").await?;
        let standings = self.standings().await?;
        let is_shut = |name: &str| !standings.of(name).is_open();
        let cordoned = nodes.into_iter().map(|(name, _, _)| (is_shut(&name), name));
        let cordoned = cordoned.map(|(is_shut, name)| (name, is_shut));
        // What is reserved on a node must be known before there is more.
        let shut = unreadable.into_iter().map(|name| (name, true));
        Ok(Seen { now, books, cordoned: cordoned.chain(shut).collect() })
    }

    /// Chooses, each with what those before have left.
    fn choose(
        &self,
        seen: &Seen,
        requests: &[PlaceRequest],
        explained: bool,
    ) -> Result<PlaceAnswer> {
        let ticks = self.clock.ticks();
        let mut known = self.stats.now(ticks);
        let why = |why: &str| why.to_owned();
        let left_out = known.nodes.iter().filter_map(|(node, past)| {
            let why = match (&past.unfit, past.is_away(ticks)) {
                (_, true) => why("it is not heard of"),
                (Some(unfit), false) => unfit.clone(),
                (None, false) => return None,
            };
            Some(LeftOut { node: node.clone(), why })
        });
        let left_out = left_out.collect();
        let mut trial = Trial::new(&mut known.view);
        trial.cordon(&seen.cordoned)?;
        for (node, hold) in seen.holds() {
            trial.hold(&hold.request, node);
        }
        let placed = requests.iter().map(|request| trial.place(request, &self.policy, explained));
        Ok(PlaceAnswer { placed: placed.collect::<Result<_>>()?, left_out })
    }

    /// Makes a reservation last, unless somebody else has changed what is reserved on its node since it was chosen.
    ///
    /// # Errors
    ///
    /// Conflict: somebody has. Full: there are too many on the node.
    async fn write_down(&self, seen: &Seen, hold: Hold) -> Result<Reservation> {
        let Some(chosen) = &hold.decision.chosen else {
            return Err(Error::new(Kind::Gone, "no node was chosen"));
        };
        let (node, told) = (chosen.node.clone(), hold.told(&chosen.node));
        let before = seen.books.get(&node);
        let mut book = before.map(|(book, _)| book.clone()).unwrap_or_default();
        book.holds.retain(|other| other.request.id != hold.request.id);
        if book.holds.len() == MOST {
            let what = format!("node {node}: {MOST} reservations are the most that it takes");
            return Err(Error::new(Kind::Full, what));
        }
        book.holds.push(hold);
        let write = Transaction::default().unchanged(&key(&node), before.map(|(_, seen)| seen));
        self.hearing.lead()?.commit(write.put(&key(&node), encode(&book))).await?;
        Ok(told)
    }

    /// All reservations whose term is not over.
    pub(crate) async fn reservations(&self) -> Result<ReservationList> {
        let seen = self.seen().await?;
        Ok(ReservationList { reservations: seen.holds().map(|(node, h)| h.told(node)).collect() })
    }

    /// Gives a reservation back; returns it as it was. `by` is its owner, or nobody in particular.
    ///
    /// # Errors
    ///
    /// Gone: there is none, or its term is over. Denied: it is somebody else's.
    pub(crate) async fn release_reservation(
        &self,
        id: &str,
        by: Option<&str>,
    ) -> Result<Reservation> {
        for _ in 0..TRIES {
            let seen = self.seen().await?;
            let Some((node, hold)) = seen.find(id) else {
                let what = format!("reservation {id}: there is none, or its term is over");
                return Err(Error::new(Kind::Gone, what));
            };
            if by.is_some_and(|by| by != hold.owner) {
                let what = format!("reservation {id}: it is {}'s", hold.owner);
                return Err(Error::new(Kind::Denied, what));
            }
            let told = hold.told(node);
            let (book, version) = &seen.books[node];
            let left = book.holds.iter().filter(|other| other.request.id != id).cloned();
            let left = Book { holds: left.collect() };
            let key = key(node);
            let write = Transaction::default().unchanged(&key, Some(version));
            let write = match left.holds.is_empty() {
                true => write.delete(&key),
                false => write.put(&key, encode(&left)),
            };
            match self.hearing.lead()?.commit(write).await {
                Err(error) if error.kind() == Kind::Conflict => {}
                done => return done.map(|()| told),
            }
        }
        Err(Error::new(Kind::Retry, format!("reservation {id}: others change it")))
    }
}

fn bare(decision: Decision) -> Placed {
    Placed { decision, scored: None, misses: None, reservation: None }
}

/// The fleet as it would be. When it ends, the view is as it was before.
struct Trial<'a> {
    view: &'a mut View,
    added: Vec<String>,
    /// Nodes that were changed, as they were.
    before: BTreeMap<String, NodeFacts>,
}

impl<'a> Trial<'a> {
    fn new(view: &'a mut View) -> Self {
        Self { view, added: Vec::new(), before: BTreeMap::new() }
    }

    fn remember(&mut self, node: &str) {
        if let Some(facts) = self.view.node(node).filter(|_| !self.before.contains_key(node)) {
            self.before.insert(node.to_owned(), facts.clone());
        }
    }

    fn cordon(&mut self, cordoned: &BTreeMap<String, bool>) -> Result<()> {
        for (node, is) in cordoned {
            let facts = self.view.node(node).filter(|facts| facts.cordoned != *is);
            if let Some(facts) = facts.cloned() {
                self.view.set_node(NodeFacts { cordoned: *is, ..facts })?;
            }
        }
        Ok(())
    }

    /// Counts what is reserved, be there room or not.
    fn hold(&mut self, request: &PlaceRequest, node: &str) {
        if self.view.node(node).is_none() {
            return;
        }
        self.remember(node);
        let held = match self.view.reserve(request, node) {
            Err(error) if error.kind() == Kind::Full => self.view.add(instance(request, node)),
            done => done,
        };
        match held {
            Ok(()) => self.added.push(request.id.clone()),
            // With it the node has more taken than numbers reach, so that it has no room for anything anyway.
            Err(error) => tracing::warn!(%error, node, "a node says what cannot be"),
        }
    }

    fn place(
        &mut self,
        request: &PlaceRequest,
        policy: &api::place::Policy,
        explained: bool,
    ) -> Result<Placed> {
        let placed = match explained {
            false => bare(decide(self.view, request, policy)?),
            true => {
                let why = explain(self.view, request, policy)?;
                let (scored, misses) = (Some(why.scored), Some(why.misses));
                Placed { scored, misses, ..bare(why.decision) }
            }
        };
        if let Some(chosen) = &placed.decision.chosen {
            self.remember(&chosen.node);
            self.view.reserve(request, &chosen.node)?;
            self.added.push(request.id.clone());
        }
        Ok(placed)
    }
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        for id in &self.added {
            self.view.release(id);
        }
        for (node, facts) in std::mem::take(&mut self.before) {
            if let Err(error) = self.view.set_node(facts) {
                tracing::error!(%error, node, "a node that made sense makes none");
            }
        }
    }
}

#[cfg(test)]
#[path = "reserve_tests.rs"]
mod tests;
