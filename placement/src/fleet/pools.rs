//! What pools shall be, and how they stand.

use api::pool::{Follow, PoolInfo, PoolList, SetPool, VolumeKind};
use image::error::At;
use image::{Error, Kind, Result};

use super::{Fleet, TRIES, UNPOISONED, demands};
use crate::member::check_name;
use crate::state::keys::{Transaction, Versioned, encode};

/// Most volumes of one pool.
const MOST: u32 = 1_000_000;

pub(crate) fn key(name: &str) -> String {
    format!("pools/{name}")
}

impl Fleet {
    /// All pools.
    pub(crate) async fn pools(&self) -> Result<PoolList> {
        let mut pools = Vec::new();
        for (name, set, _) in self.sets().await? {
            pools.push(self.described(name, set).await);
        }
        Ok(PoolList { pools })
    }

    /// What all pools shall be, but those of which it cannot be read.
    pub(super) async fn sets(&self) -> Result<Vec<(String, SetPool, Versioned)>> {
        Ok(self.state.list_readable("pools/").await?.0)
    }

    /// One pool.
    pub(crate) async fn pool(&self, name: &str) -> Result<PoolInfo> {
        let (set, _) = self.set_of(name).await?;
        Ok(self.described(name.to_owned(), set).await)
    }

    pub(super) async fn set_of(&self, name: &str) -> Result<(SetPool, Versioned)> {
        check_name(name)?;
        let found = self.state.get::<SetPool>(&key(name)).await?;
        found.ok_or_else(|| Error::new(Kind::Gone, format!("pool {name}: there is none")))
    }

    /// Says what a pool shall be; makes it if there is none.
    pub(crate) async fn set_pool(&self, name: &str, set: SetPool) -> Result<PoolInfo> {
        check_name(name)?;
        check(&set).at(|| format!("pool {name}"))?;
        // Found here, it is not found out by a pool that stays empty.
        let kind = self.kind_of(&set).await.at(|| format!("pool {name}"))?;
        check_budget(&set, &kind).at(|| format!("pool {name}"))?;
        let write = Transaction::default().put(&key(name), encode(&set));
        self.hearing.lead()?.commit(write).await?;
        self.wake.notify_one();
        self.pool(name).await
    }

    /// Removes a pool, of which nothing may be left; returns it as it was.
    pub(crate) async fn delete_pool(&self, name: &str) -> Result<PoolInfo> {
        for _ in 0..TRIES {
            let (set, seen) = self.set_of(name).await?;
            let was = self.described(name.to_owned(), set).await;
            let left: u32 = was.nodes.iter().map(|n| n.ready + n.building).sum();
            if left > 0 {
                let what = format!(
                    "pool {name}: {left} volumes of it are left on nodes; drain it first (`forebay pool drain \
                     {name}`), and wait until they are gone"
                );
                return Err(Error::new(Kind::Conflict, what));
            }
            let delete = Transaction::default().unchanged(&key(name), Some(&seen));
            let delete = delete.delete(&demands::key(name));
            match self.hearing.lead()?.commit(delete.delete(&key(name))).await {
                Err(error) if error.kind() == Kind::Conflict => {}
                done => return done.map(|()| was),
            }
        }
        Err(Error::new(Kind::Retry, format!("pool {name}: others are changing it")))
    }

    /// What the volumes of a pool are now.
    pub(super) async fn kind_of(&self, set: &SetPool) -> Result<VolumeKind> {
        let bad = |what: &str| Err(Error::new(Kind::Invalid, what.to_owned()));
        let Some(image) = &set.image else {
            let Some(size) = set.size else {
                return bad("it needs a size, or an image");
            };
            if let Some(layout) = &set.layout {
                layout.on(size, set.sector.unwrap_or(512))?;
            }
            let layout = set.layout.clone();
            return Ok(VolumeKind { size, sector: set.sector, image: None, layout });
        };
        let (digest, least, sector) = self.catalog.disk(image).await?;
        let size = set.size.unwrap_or(least);
        if size < least {
            let what = format!("its volumes cannot be smaller than its image, {least} bytes");
            return Err(Error::new(Kind::Invalid, what));
        }
        let sector = set.sector.filter(|own| *own != sector);
        Ok(VolumeKind { size, sector, image: Some(digest), layout: None })
    }

    async fn described(&self, name: String, set: SetPool) -> PoolInfo {
        let kind = self.kind_of(&set).await;
        let planned = self.planned.lock().expect(UNPOISONED).get(&name).cloned();
        let plan = planned.unwrap_or_default();
        let (kind, why) = match kind {
            Ok(kind) => (Some(kind), plan.why),
            Err(error) => (None, error.to_string()),
        };
        let (ready, building, nodes) = (plan.ready, plan.building, plan.nodes);
        PoolInfo { name, set, kind, ready, building, why, demand: plan.demand, nodes }
    }
}

/// Refuses a budget that does not do for what is to be there in any case.
fn check_budget(set: &SetPool, kind: &VolumeKind) -> Result<()> {
    let Some(budget) = set.disk_budget else { return Ok(()) };
    let least = set.follow.map_or(1, |follow| follow.floor.max(1));
    let needs = kind.size.saturating_mul(least.into());
    if budget < needs {
        let what =
            format!("disk budget: {least} of its volumes take {needs} bytes, and it is {budget}");
        return Err(Error::new(Kind::Invalid, what));
    }
    Ok(())
}

fn check_follow(set: &SetPool, follow: &Follow) -> Result<()> {
    let bad = |what: String| Err(Error::new(Kind::Invalid, what));
    let Follow { floor, ceiling, .. } = *follow;
    if ceiling > MOST {
        return bad(format!("ceiling: at most {MOST}"));
    }
    if floor > ceiling {
        return bad(format!("the floor, {floor}, is above the ceiling, {ceiling}"));
    }
    if let Some(max) = set.max.filter(|max| *max < floor) {
        return bad(format!("the maximum, {max}, is below the floor, {floor}"));
    }
    Ok(())
}

fn check(set: &SetPool) -> Result<()> {
    let bad = |what: String| Err(Error::new(Kind::Invalid, what));
    let SetPool { low, target, size, sector, .. } = *set;
    if set.image.is_some() && set.layout.is_some() {
        return bad(
            "what holds an image is not formatted: leave the layout out, or the image".into()
        );
    }
    if target > MOST {
        return bad(format!("target: at most {MOST}"));
    }
    if low > target {
        return bad(format!("the low threshold, {low}, is above the target, {target}"));
    }
    if let Some(follow) = &set.follow {
        check_follow(set, follow)?;
    } else if set.most() < target {
        return bad(format!("the maximum, {}, is below the target, {target}", set.most()));
    }
    if set.build_rate == Some(0) {
        return bad("build rate: 0 bytes a second build nothing; leave it out for no limit".into());
    }
    if size.is_some_and(|size| size == 0 || size % 4096 != 0) {
        return bad("size: must be a multiple of 4096 bytes".into());
    }
    if sector.is_some_and(|sector| ![512, 4096].contains(&sector)) {
        return bad("sector: 512 or 4096 bytes".into());
    }
    Ok(())
}
