//! Images that must be at hand: which, where they are, and who is told to hold them.
//!
//! What people have said is `keeps/NAME`, with the image that the name meant last and the one that it meant before, as long
//! as that is still needed. Who holds what is said by the nodes' goals alone.

use std::collections::{BTreeMap, BTreeSet};

use api::fleet::{NODE_LEVEL, NodeFacts, Resources};
use api::goal::{Goal, ItemState};
use api::keep::{KeepInfo, KeepList, KeptIn, MOST_CACHED, SetKeep};
use api::life::Standing;
use api::place::{Among, Of, PlaceRequest};
use image::error::At;
use image::{Digest, Error, Kind, Result};
use serde::{Deserialize, Serialize};

use super::board::Board;
use super::control::Pass;
use super::hold::{Choice, Holder, Holders, Stands, Want, plan};
use super::memory::Memory;
use super::writes::Write;
use super::{Fleet, TRIES, UNPOISONED, pinned};
use crate::decide::{View, place};
use crate::names::{self, Name};
use crate::state::keys::{Transaction, Versioned, encode};

pub(super) const PREFIX: &str = "keeps/";
/// Most nodes, or caches, that one image must be on.
const MOST: u32 = 100_000;

/// An image that must be at hand, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Keep {
    pub set: SetKeep,
    pub image: Digest,
    pub size: u64,
    /// What the name meant before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Digest>,
}

fn key(name: &str) -> String {
    format!("{PREFIX}{name}")
}

/// A ref or a digest, written as it is kept.
fn named(name: &str) -> Result<String> {
    Ok(match names::parse(name)? {
        Name::Image(image) => image.to_string(),
        Name::Ref(name) => name.to_string(),
    })
}

fn check(set: &SetKeep) -> Result<()> {
    let bad = |what: String| Err(Error::new(Kind::Invalid, what));
    match set {
        SetKeep { nodes: 0, caches: 0, .. } => {
            bad("say on how many nodes, or in how many caches".into())
        }
        SetKeep { nodes, caches, .. } if *nodes.max(caches) > MOST => {
            bad(format!("at most {MOST}"))
        }
        SetKeep { function: Some(name), .. } if name.is_empty() || name.len() > 128 => {
            bad("function: 1 to 128 bytes".into())
        }
        _ => Ok(()),
    }
}

impl Fleet {
    /// Says where an image must be. What was said before of the name is replaced.
    ///
    /// # Errors
    ///
    /// [`Kind::Gone`] if there is no such image.
    pub(crate) async fn set_keep(&self, name: &str, set: SetKeep) -> Result<KeepInfo> {
        let name = named(name)?;
        check(&set).at(|| name.clone())?;
        let (image, size) = self.image_of(&name).await?;
        for _ in 0..TRIES {
            let found = self.state.get::<Keep>(&key(&name)).await?;
            let (was, seen) = found.unzip();
            // Where the name has moved meanwhile is for a pass to see to.
            let keep = was.map_or_else(
                || Keep { set: set.clone(), image, size, before: None },
                |was| Keep { set: set.clone(), ..was },
            );
            let write = Transaction::default().unchanged(&key(&name), seen.as_ref());
            match self.hearing.lead()?.commit(write.put(&key(&name), encode(&keep))).await {
                Err(error) if error.kind() == Kind::Conflict => {}
                done => {
                    done?;
                    self.wake.notify_one();
                    return self.keep(&name).await;
                }
            }
        }
        Err(Error::new(Kind::Retry, format!("{name}: others change where it must be")))
    }

    /// The image that a name means now, and the size of its disk. It is there.
    async fn image_of(&self, name: &str) -> Result<(Digest, u64)> {
        let (image, size, _) = self.catalog.disk(name).await?;
        Ok((image, size))
    }

    /// Says that an image need not be anywhere any more; returns it as it was.
    pub(crate) async fn unkeep(&self, name: &str) -> Result<KeepInfo> {
        let name = named(name)?;
        for _ in 0..TRIES {
            let was = self.keep(&name).await?;
            let seen = self.state.get::<Keep>(&key(&name)).await?.map(|(_, seen)| seen);
            let delete = Transaction::default().unchanged(&key(&name), seen.as_ref());
            match self.hearing.lead()?.commit(delete.delete(&key(&name))).await {
                Err(error) if error.kind() == Kind::Conflict => {}
                done => {
                    done?;
                    self.wake.notify_one();
                    return Ok(was);
                }
            }
        }
        Err(Error::new(Kind::Retry, format!("{name}: others change where it must be")))
    }

    /// One of the images that must be at hand.
    pub(crate) async fn keep(&self, name: &str) -> Result<KeepInfo> {
        let name = named(name)?;
        let found = self.state.get::<Keep>(&key(&name)).await?;
        let none = || {
            let what =
                format!("{name}: nobody has said where it must be: `forebay kept` lists all");
            Error::new(Kind::Gone, what)
        };
        let (keep, _) = found.ok_or_else(none)?;
        let servers = self.catalog.caches().await?;
        Ok(self.described_keep(name, keep, &servers))
    }

    /// All images that must be at hand.
    pub(crate) async fn keeps(&self) -> Result<KeepList> {
        let servers = self.catalog.caches().await?;
        let all = self.state.list_versioned::<Keep>(PREFIX).await?.into_iter();
        let keeps = all.map(|(name, keep, _)| self.described_keep(name, keep, &servers));
        Ok(KeepList { keeps: keeps.collect() })
    }

    fn described_keep(&self, name: String, keep: Keep, servers: &[pinned::Cache]) -> KeepInfo {
        let known = self.kept.lock().expect(UNPOISONED).get(&name).cloned();
        let (of, stands) = known.unwrap_or((keep.image, Stands::default()));
        // Of another image nothing is known yet.
        let Stands { whole, on, mut why, .. } =
            if of == keep.image { stands } else { Stands::default() };
        let chosen = pinned::chosen(&keep.image, keep.set.caches, servers);
        let inside = chosen.iter().map(|cache| KeptIn {
            cache: cache.info.name.clone(),
            said: cache.said(&keep.image).cloned(),
        });
        let lacking = keep.set.caches.saturating_sub(chosen.len() as u32);
        if lacking > 0 {
            why += &format!("; {lacking} more caches are needed than serve");
        }
        let caches = chosen.iter().filter(|cache| cache.has(&keep.image)).count() as u32;
        let Keep { set, image, size, before } = keep;
        let inside = inside.collect();
        KeepInfo { name, set, image, size, before, nodes: whole, caches, on, inside, why }
    }

    /// Has images held where they must be, and let go of where they need not. What is to be written of the names.
    pub(super) async fn plan_keeps(
        &self,
        board: &Board,
        pass: &mut Pass<'_>,
        memory: &mut Memory,
    ) -> Result<Vec<Write>> {
        if board.keeps.entries().is_empty() && !memory.holds {
            return Ok(Vec::new());
        }
        let mut keeps: Vec<(&String, Keep, String)> = Vec::new();
        for (name, (keep, _)) in board.keeps.entries() {
            let (keep, trouble) = self.followed(name, keep).await;
            keeps.push((name, keep, trouble));
        }
        memory.unheld.retain(|_, failed| failed.is_of_use(pass.now));
        let holders = pass.holders(memory);
        memory.holds = !holders.is_empty();
        let wants: Vec<Want<'_>> = keeps
            .iter()
            .map(|(name, Keep { set, image, size, before }, _)| Want {
                name,
                set,
                image: *image,
                size: *size,
                before: *before,
            })
            .collect();
        let others = self.not_for(&wants, pass);
        // Of whom nothing is known it is not known either that it is not.
        let is_for = |node: &str, set: &SetKeep| {
            let others = set.function.as_deref().and_then(|function| others.get(function));
            others.is_none_or(|others| !others.contains(node))
        };
        let mut view: Option<View> = None;
        let choose = |want: &Want<'_>, not_on: BTreeSet<String>| -> Result<Choice> {
            let view = match &mut view {
                Some(view) => view,
                none => none.insert(self.view_to_hold(pass, &holders)?),
            };
            self.choose_holder(want, not_on, view, memory, pass.now)
        };
        let plan = plan(&wants, &holders, is_for, choose)?;
        let servers = self.catalog.caches().await?;
        let mut writes = Vec::new();
        let mut kept = BTreeMap::new();
        for ((name, mut keep, trouble), mut stands) in keeps.iter().cloned().zip(plan.stands) {
            let cached = pinned::chosen(&keep.image, keep.set.caches, &servers);
            let cached = cached.iter().filter(|cache| cache.has(&keep.image)).count() as u32;
            if stands.whole >= keep.set.nodes && cached >= keep.set.caches {
                keep.before = None;
            }
            let failed = memory.unheld.iter().filter(|((image, _), _)| *image == keep.image);
            for ((_, node), failed) in failed {
                stands.why += &format!("; {node} could not hold it: {}", failed.why);
            }
            stands.why += &trouble;
            let (was, seen) = &board.keeps.entries()[name];
            if *was != keep {
                writes.push(Write::of_no_node(key(name), rewritten(name, seen, &keep)));
            }
            kept.insert(name.clone(), (keep.image, stands));
        }
        for (node, image, size) in plan.hold {
            pass.goals.add(&node, Goal::Hold { image, size });
        }
        for (node, item) in plan.let_go {
            pass.goals.retain(&node, |other| other.id != item);
        }
        *self.kept.lock().expect(UNPOISONED) = kept;
        Ok(writes)
    }

    /// What a name means now. One that means nothing any more goes on meaning what it did; then why.
    async fn followed(&self, name: &str, keep: &Keep) -> (Keep, String) {
        let mut keep = keep.clone();
        let (image, size) = match self.image_of(name).await {
            Ok(now) => now,
            Err(error) => return (keep, format!("; it stays as it was: {error}")),
        };
        if image != keep.image {
            // Of several moves, the image that was there last is the one before.
            let before = keep.before.unwrap_or(keep.image);
            keep.before = Some(before).filter(|before| *before != image);
            (keep.image, keep.size) = (image, size);
        }
        (keep, String::new())
    }

    /// By the functions that are asked for, the nodes that are not there for them.
    fn not_for(&self, wants: &[Want<'_>], pass: &Pass<'_>) -> BTreeMap<String, BTreeSet<String>> {
        let functions = wants.iter().filter_map(|want| want.set.function.clone());
        let functions: BTreeSet<String> = functions.collect();
        if functions.is_empty() {
            return BTreeMap::new();
        }
        let known = self.stats.now(pass.ticks);
        let of = |function: String| {
            let is_not = |name: &&String| {
                known.view.node(name).is_some_and(|facts| !facts.functions.contains(&function))
            };
            let others = pass.heard.iter().map(|(name, _)| name).filter(is_not).cloned().collect();
            (function, others)
        };
        functions.into_iter().map(of).collect()
    }

    /// The nodes that are heard of, for choosing among them: what they have measured, and the room that is left.
    fn view_to_hold(&self, pass: &Pass<'_>, holders: &Holders) -> Result<View> {
        let known = self.stats.now(pass.ticks);
        let mut view = View::new(known.view.levels().to_vec())?;
        let mut here: BTreeMap<&str, Vec<Digest>> = BTreeMap::new();
        for (image, told) in holders {
            told.iter().for_each(|holder| here.entry(&holder.node).or_default().push(*image));
        }
        for (name, last) in pass.heard.iter() {
            let node = pass.node(name, &BTreeMap::new());
            if node.away || pass.standings.of(name) == Standing::Forgotten {
                continue;
            }
            let mut facts = known.view.node(name).cloned().unwrap_or_else(|| NodeFacts {
                name: name.clone(),
                risk_most: u8::MAX,
                ..NodeFacts::default()
            });
            facts.cordoned = node.cordoned;
            facts.capacity.disk = node.size;
            facts.reserved.disk = node.size.saturating_sub(node.free);
            let whole = last.report.held.iter().filter(|held| held.whole);
            facts.images.extend(whole.map(|held| (held.image, held.size)));
            let held = here.remove(name.as_str()).unwrap_or_default();
            facts.pools.extend(held.into_iter().map(|image| (pool_of(&image), 1)));
            if let Err(error) = view.set_node(facts) {
                tracing::warn!(%error, node = name, "nothing is put on a node that makes no sense");
            }
        }
        Ok(view)
    }

    fn choose_holder(
        &self,
        want: &Want<'_>,
        mut not_on: BTreeSet<String>,
        view: &mut View,
        memory: &Memory,
        now: u64,
    ) -> Result<Choice> {
        let failed = memory
            .unheld
            .iter()
            .filter(|((image, _), failed)| *image == want.image && failed.shuns(now));
        not_on.extend(failed.map(|((_, node), _)| node.clone()));
        let level = view.levels().first().cloned().unwrap_or_else(|| NODE_LEVEL.to_owned());
        let needs = Resources { disk: want.size, ..Resources::default() };
        let request = PlaceRequest {
            image: Some(want.image),
            image_bytes: want.size,
            builds: Some(pool_of(&want.image)),
            spread: Some(Among { of: Of::Pool(pool_of(&want.image)), level }),
            function: want.set.function.clone(),
            not_on,
            // Each of those that are chosen now has a name of its own.
            ..PlaceRequest::new(
                format!("{PREFIX}{}/{}", want.name, view.instances().count()),
                needs,
            )
        };
        let decision = place(view, &request, &self.policy)?;
        let nearest = decision.nearest.map_or("no node is heard of".to_owned(), |miss| {
            let why: Vec<String> = miss.reasons.into_iter().map(|reason| reason.why).collect();
            format!("{} comes nearest: {}", miss.node, why.join(", "))
        });
        Ok(decision.chosen.map(|chosen| chosen.node).ok_or(nearest))
    }

    /// What a cache is to pin.
    pub(crate) async fn pins_of(&self, cache: &str) -> Result<Vec<Digest>> {
        let all = self.state.list_versioned::<Keep>(PREFIX).await?;
        let all: Vec<Keep> = all.into_iter().map(|(_, keep, _)| keep).collect();
        if all.iter().all(|keep| keep.set.caches == 0) {
            return Ok(Vec::new());
        }
        let servers = self.catalog.caches().await?;
        let images = all.iter().flat_map(|keep| {
            let both = [Some(keep.image), keep.before].into_iter().flatten();
            both.map(|image| (image, keep.set.caches))
        });
        let pins = images.filter(|(image, many)| {
            pinned::chosen(image, *many, &servers).iter().any(|other| other.info.name == cache)
        });
        let pins: BTreeSet<Digest> = pins.map(|(image, _)| image).collect();
        Ok(pins.into_iter().take(MOST_CACHED).collect())
    }
}

fn rewritten(name: &str, seen: &Versioned, keep: &Keep) -> Transaction {
    Transaction::default().unchanged(&key(name), Some(seen)).put(&key(name), encode(keep))
}

/// As what those who hold an image count for each other, so that they are spread. No pool of people has such a name.
fn pool_of(image: &Digest) -> String {
    format!("image {image}")
}

impl Pass<'_> {
    /// Who was told to hold what. Who has said that it is done, and then not that it has it, has lost it: it is told anew,
    /// or another is.
    fn holders(&mut self, memory: &mut Memory) -> Holders {
        let mut holders = Holders::new();
        let nodes: Vec<String> = self.goals.iter().map(|(node, _)| node.to_owned()).collect();
        for node in nodes {
            let last = self.heard.get(&node);
            let mut lost = Vec::new();
            for item in self.goals.items(&node) {
                let Goal::Hold { image, .. } = &item.goal else { continue };
                let report = last.map(|last| &last.report);
                let status = report.and_then(|r| r.items.iter().find(|s| s.id == item.id));
                let done = status.is_some_and(|status| status.state == ItemState::Done);
                let has = |r: &api::goal::StatusReport| {
                    r.held.iter().any(|held| held.whole && held.image == *image)
                };
                let whole = done && report.is_some_and(|r| has(r));
                if done && !whole {
                    lost.push((item.id.clone(), *image));
                    continue;
                }
                holders.entry(*image).or_default().push(Holder {
                    node: node.clone(),
                    item: item.id.clone(),
                    whole,
                    away: self.is_away(&node),
                    leaves: self.standings.of(&node) == Standing::Draining,
                    free: report.map_or(0, |r| r.disk.free),
                });
            }
            for (id, image) in lost {
                let failed = memory.unheld.entry((image, node.clone())).or_default();
                failed.again(self.now, "it has lost it".into());
                self.goals.retain(&node, |item| item.id != id);
            }
        }
        holders
    }
}
