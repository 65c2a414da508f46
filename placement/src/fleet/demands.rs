//! The demand for pools, as it is counted, and kept in the state: what each pool is to have by it, and by the budgets.
//!
//! Who leads counts the claims that it commits, and hears from nodes how long builds take. It writes both down every few
//! seconds, where they have changed: another that leads goes on with it, and has lost no more than that.

use std::collections::BTreeMap;
use std::ops::Bound;

use api::place::Policy;
use api::pool::{Follow, PoolBound, PoolDemand, SetPool, VolumeKind};

use super::board::Board;
use super::demand::{Asked, Demand, Share, share_out};
use super::pools;
use crate::state::keys::{Transaction, encode};

/// Keys of it.
pub(crate) const PREFIX: &str = "demand/";
/// Seconds between two times that it is written down.
const KEEPS: u64 = 5;
/// Pools of which it is written down at once: a transaction has its limits, and there is a next time.
const AT_ONCE: usize = 32;

pub(crate) fn key(pool: &str) -> String {
    format!("{PREFIX}{pool}")
}

/// A pool that is to be planned for: its set is what it is to be now.
pub(super) type Planned = (String, SetPool, VolumeKind);

/// What the fleet has for pools.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Room {
    /// Bytes that volumes of pools may have.
    pub bytes: u64,
    /// Nodes that may build.
    pub nodes: u32,
}

impl Room {
    /// One more node, of a disk of this size. Whether it is heard of just now changes nothing: what comes and goes in a
    /// minute makes no pool smaller.
    pub(super) fn add(&mut self, disk: u64, open: bool, policy: &Policy) {
        self.bytes = self.bytes.saturating_add(most_of(disk, policy));
        self.nodes += u32::from(open);
    }
}

/// Bytes of a node's disk that volumes of pools may have.
pub(super) fn most_of(disk: u64, policy: &Policy) -> u64 {
    (u128::from(disk) * u128::from(policy.pools_disk) / 1000) as u64
}

/// See the [module](self).
#[derive(Default)]
pub(super) struct Demands {
    /// By pool.
    all: BTreeMap<String, Demand>,
    /// Seconds that builds of a pool took, of which nothing was made yet.
    builds: Vec<(String, f64)>,
    /// It is not written down again before.
    keep_at: u64,
    /// The pool that was the last to be written down: those after it are next.
    kept_last: String,
}

impl Demands {
    /// Counts what was claimed since, and what was taken at nodes.
    pub(super) fn count(&mut self, board: &mut Board, taken: BTreeMap<String, u64>, now: u64) {
        let claimed = std::mem::take(&mut board.claimed);
        let taken = taken.into_iter().map(|(pool, n)| (pool, u32::try_from(n).unwrap_or(u32::MAX)));
        for (pool, claims) in claimed.into_iter().chain(taken) {
            self.of(board, &pool).claimed(claims, now);
        }
    }

    /// A volume of a pool was built.
    pub(super) fn built(&mut self, pool: &str, took_millis: Option<u64>) {
        self.builds.extend(took_millis.map(|millis| (pool.to_owned(), millis as f64 / 1000.0)));
    }

    fn of(&mut self, board: &Board, pool: &str) -> &mut Demand {
        self.all.entry(pool.to_owned()).or_insert_with(|| {
            let kept = board.demands.entries().get(pool);
            kept.map(|(demand, _)| demand.clone()).unwrap_or_default()
        })
    }

    /// Makes of what pools shall be what they are to be now, those first whose volumes are worth the most; says of each why.
    pub(super) fn apply(
        &mut self,
        board: &Board,
        pools: Vec<Planned>,
        room: Room,
        now: u64,
    ) -> Vec<(Planned, PoolDemand)> {
        for (pool, secs) in std::mem::take(&mut self.builds) {
            self.of(board, &pool).built(secs);
        }
        self.all.retain(|pool, _| board.pools.entries().contains_key(pool));
        let wish = |pool: Planned| Wish::new(self.of(board, &pool.0), pool, room, now);
        settle(pools.into_iter().map(wish).collect(), room)
    }

    /// What writes down what has changed, and its keys; nothing while it is not time.
    pub(super) fn keep(&mut self, board: &Board, now: u64) -> Option<(Transaction, Vec<String>)> {
        // Not for ever, if the clock was set back.
        if (self.keep_at.saturating_sub(KEEPS)..self.keep_at).contains(&now) {
            return None;
        }
        let after = (Bound::Excluded(&self.kept_last), Bound::Unbounded);
        let upto = (Bound::Unbounded, Bound::Included(&self.kept_last));
        let in_turn = self.all.range::<String, _>(after).chain(self.all.range::<String, _>(upto));
        let changed = in_turn.filter_map(|(pool, demand)| {
            let (_, set) = board.pools.entries().get(pool)?;
            let kept = board.demands.entries().get(pool);
            let same = kept.map_or(*demand == Demand::default(), |(kept, _)| kept == demand);
            (!same).then_some((pool, demand, set, kept.map(|(_, seen)| seen)))
        });
        let (mut write, mut keys, mut last) = (Transaction::default(), Vec::new(), None);
        for (pool, demand, set, seen) in changed.take(AT_ONCE) {
            let key = key(pool);
            // Of a pool that was deleted nothing is left behind.
            write = write.unchanged(&pools::key(pool), Some(set)).unchanged(&key, seen);
            write = write.put(&key, encode(demand));
            keys.push(key);
            last = Some(pool.clone());
        }
        self.kept_last = last?;
        self.keep_at = now + KEEPS;
        Some((write, keys))
    }
}

/// What is said of demand, for people.
pub(super) fn why(demand: &PoolDemand, follows: bool) -> String {
    let mut why = String::new();
    if follows {
        let built =
            demand.build_secs.map_or("no build yet".to_owned(), |s| format!("{s:.1} s a build"));
        let (rate, wanted) = (demand.claims_per_hour, demand.wanted);
        why += &format!("; {rate:.1} claims an hour and {built} ask for {wanted}");
    }
    match demand.bound {
        Some(PoolBound::Bandwidth) => why += "; more begin when there is bandwidth",
        Some(bound) => why += &format!("; bound to {} by {}", demand.target, bound.name()),
        None => {}
    }
    why
}

/// What pools get of what they wish.
fn settle(mut wishes: Vec<Wish>, room: Room) -> Vec<(Planned, PoolDemand)> {
    // What does not follow has what it was set to have.
    let fixed = wishes.iter().filter(|wish| !wish.follows());
    let fixed = fixed.map(|wish| u64::from(wish.target).saturating_mul(wish.share.size));
    let left = room.bytes.saturating_sub(fixed.fold(0, u64::saturating_add));
    let mut following: Vec<&mut Wish> = wishes.iter_mut().filter(|wish| wish.follows()).collect();
    let shares: Vec<Share> = following.iter().map(|wish| wish.share).collect();
    for (wish, given) in following.iter_mut().zip(share_out(&shares, left)) {
        if given < wish.target {
            wish.fit(given);
        }
    }
    // It comes first, too.
    wishes.sort_by(|a, b| {
        let worth = |wish: &Wish| if wish.follows() { wish.share.worth() } else { f64::INFINITY };
        worth(b).total_cmp(&worth(a))
    });
    wishes.into_iter().map(Wish::done).collect()
}

/// What a pool is to be.
struct Wish {
    pool: Planned,
    /// Unset: it does not follow demand.
    follow: Option<Follow>,
    asked: Asked,
    share: Share,
    target: u32,
    bound: Option<PoolBound>,
    /// More than this are too many, by the budgets.
    most: u32,
    claims_per_hour: f64,
    build_secs: Option<f64>,
}

impl Wish {
    fn new(demand: &mut Demand, pool: Planned, room: Room, now: u64) -> Self {
        let (_, set, kind) = &pool;
        let follow = set.follow;
        let asked = demand.look(&follow.unwrap_or(Follow::between(0, u32::MAX)), now);
        let (rate, build_secs) = (demand.rate(now), demand.build_secs());
        let share = Share {
            size: kind.size,
            floor: 0,
            wanted: 0,
            saved_secs: asked.forecast * build_secs.unwrap_or(0.0),
        };
        let target = follow.map_or(set.target, |_| asked.wanted);
        let (bound, most, claims_per_hour) = (None, u32::MAX, rate * 3600.0);
        let mut wish =
            Self { follow, asked, share, target, bound, most, claims_per_hour, build_secs, pool };
        wish.keep_within(room);
        wish
    }

    /// Within all that is its own.
    fn keep_within(&mut self, room: Room) {
        let (_, set, kind) = &self.pool;
        let (max, per_node, budget, size) = (set.max, set.per_node, set.disk_budget, kind.size);
        if let Some(Follow { floor, ceiling, .. }) = self.follow {
            if self.target < floor {
                (self.target, self.bound) = (floor, Some(PoolBound::Floor));
            }
            self.reach(ceiling.min(max.unwrap_or(u32::MAX)), PoolBound::Ceiling);
            if let Some(most) = per_node {
                self.reach(most.saturating_mul(room.nodes), PoolBound::PerNode);
            }
        }
        if let Some(budget) = budget {
            let fits = u32::try_from(budget / size.max(1)).unwrap_or(u32::MAX);
            self.fit(fits);
        }
        self.share.wanted = self.target;
        self.share.floor = self.follow.map_or(0, |follow| follow.floor);
    }

    /// Wants no more than so many.
    fn reach(&mut self, most: u32, bound: PoolBound) {
        if self.target > most {
            (self.target, self.bound) = (most, Some(bound));
        }
    }

    /// Has no more than so many: what is there beyond that goes.
    fn fit(&mut self, most: u32) {
        self.most = self.most.min(most);
        self.reach(most, PoolBound::Disk);
    }

    fn follows(&self) -> bool {
        self.follow.is_some()
    }

    fn done(mut self) -> (Planned, PoolDemand) {
        let set = &mut self.pool.1;
        let most = set.max.unwrap_or_else(|| match self.follow {
            Some(_) => self.target.saturating_mul(2),
            None => set.most(),
        });
        set.max = Some(most.min(self.most));
        set.target = self.target;
        set.low = match self.follow {
            Some(_) => self.target,
            None => set.low.min(self.target),
        };
        let demand = PoolDemand {
            claims_per_hour: self.claims_per_hour,
            build_secs: self.build_secs,
            forecast: self.asked.forecast,
            saved_secs: self.share.saved_secs,
            wanted: self.asked.wanted,
            target: self.target,
            bound: self.bound,
            holds_until: self.asked.until.filter(|_| self.follow.is_some()),
        };
        (self.pool, demand)
    }
}

#[cfg(test)]
#[path = "demands_tests.rs"]
mod tests;
