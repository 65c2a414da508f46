//! What holds for all requests.

use image::Result;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::fleet::{check_amount, check_share, invalid};

/// How much each term counts. A term is 0 to 1; times its weight it is the node's points; the sum is its score.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Weights {
    /// How full, and how evenly, the node gets of what is asked for: so large room stays for large requests.
    pub fit: f64,
    /// The share of the image that is at hand; what is not counts for a quarter of that where there is room for others of
    /// the image.
    pub image: f64,
    /// Whether there is a ready volume of the pool.
    pub pool: f64,
    /// How far down the path of a domain near which it should be the node stands.
    pub near: f64,
    /// How strong the node's hypervisor is where the guest will need it.
    pub behaviour: f64,
    /// How little the licences cost.
    pub licence: f64,
    /// How little the node's tasks wait.
    pub idle: f64,
    /// How few of those from whom it should be spread are in the node's failure domain.
    pub spread: f64,
}

impl Default for Weights {
    /// An image or a volume at hand outweighs everything that is a matter of degree; being spread outweighs a better
    /// fit.
    fn default() -> Self {
        Self {
            fit: 1.0,
            image: 2.0,
            pool: 2.0,
            near: 0.5,
            behaviour: 1.0,
            licence: 1.0,
            idle: 0.5,
            spread: 1.5,
        }
    }
}

/// Thousandths of a node's capacity that stay free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct HeadRoom {
    /// Of its CPUs.
    pub cpu: u16,
    /// Of its memory.
    pub memory: u16,
    /// Of its disk.
    pub disk: u16,
    /// Of its network.
    pub network: u16,
}

impl Default for HeadRoom {
    /// 5 % of the disk, for what nobody has reserved grows there; nothing of what else there is.
    fn default() -> Self {
        Self { cpu: 0, memory: 0, disk: 50, network: 0 }
    }
}

impl HeadRoom {
    /// Nothing stays free.
    pub const NONE: Self = Self { cpu: 0, memory: 0, disk: 0, network: 0 };

    /// In the order of [`Resources::all`](crate::fleet::Resources::all).
    pub fn all(&self) -> [u16; 4] {
        [self.cpu, self.memory, self.disk, self.network]
    }
}

/// What holds for all requests.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Policy {
    /// What stays free on each node.
    pub head_room: HeadRoom,
    /// The load above which a node takes nothing new, 0 to 1.
    pub load_most: f64,
    /// Thousandths of each node's disk that volumes of pools may have, ready or being built.
    pub pools_disk: u16,
    /// How much each term counts.
    pub weights: Weights,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            head_room: HeadRoom::default(),
            load_most: 0.9,
            pools_disk: 1000,
            weights: Weights::default(),
        }
    }
}

impl Policy {
    /// Checks what a parser cannot.
    ///
    /// # Errors
    ///
    /// Invalid: which number cannot be meant, and why.
    pub fn check(&self) -> Result<()> {
        let Weights { fit, image, pool, near, behaviour, licence, idle, spread } = self.weights;
        let names = ["fit", "image", "pool", "near", "behaviour", "licence", "idle", "spread"];
        let weights = [fit, image, pool, near, behaviour, licence, idle, spread];
        for (name, weight) in names.into_iter().zip(weights) {
            check_amount(&format!("weight {name}"), weight)?;
        }
        if !weights.iter().sum::<f64>().is_finite() {
            return Err(invalid("the weights together are more than numbers reach"));
        }
        if let Some(most) = self.head_room.all().into_iter().find(|most| *most > 1000) {
            return Err(invalid(format!("head-room is {most} thousandths: 1000 are all")));
        }
        if self.pools_disk > 1000 {
            let what = format!("pools-disk is {} thousandths: 1000 are all", self.pools_disk);
            return Err(invalid(what));
        }
        check_share("load-most", self.load_most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_finite_and_not_below_0() {
        Policy::default().check().unwrap();
        let weights =
            |fit| Policy { weights: Weights { fit, ..Weights::default() }, ..Policy::default() };
        for wrong in [-0.1, f64::NAN, f64::INFINITY] {
            let error = weights(wrong).check().unwrap_err();
            assert!(error.message().starts_with("weight fit is"), "{error}");
        }
        let mut all = weights(f64::MAX);
        all.weights.image = f64::MAX;
        assert!(all.check().is_err());
        let head_room = HeadRoom { cpu: 1001, ..HeadRoom::NONE };
        assert!(Policy { head_room, ..Policy::default() }.check().is_err());
        assert!(Policy { pools_disk: 1001, ..Policy::default() }.check().is_err());
        assert!(Policy { load_most: 1.1, ..Policy::default() }.check().is_err());
    }
}
