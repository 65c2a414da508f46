//! Choosing a node: what is asked, by which rules and weights, what was chosen, and why.

mod answer;
mod live;
mod policy;

pub use answer::*;
pub use live::*;
pub use policy::*;

use std::collections::{BTreeMap, BTreeSet};

use image::error::At;
use image::{Digest, Result};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::fleet::{
    Fleet, NODE_LEVEL, Resources, any_risk, check_name, check_names, check_share, invalid, unique,
};

/// The hypervisor that a guest needs. Left empty, any.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct HypervisorNeed {
    /// One of these.
    pub kinds: BTreeSet<String>,
    /// Of this version or a later one: numbers with dots.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_least: Option<String>,
    /// With all of these features.
    pub features: BTreeSet<String>,
}

/// How a guest will behave, 0 to 1 each: which strengths of a hypervisor matter to it, and how much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Behaviour {
    /// It computes.
    pub cpu: f64,
    /// It reads and writes its disk.
    pub disk: f64,
    /// It sends and receives.
    pub network: f64,
}

/// What shall be together, apart, or spread.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Of {
    /// Instances of this group.
    Group(String),
    /// Ready volumes of this pool.
    Pool(String),
}

/// What shall be together, apart, or spread, and over which failure domains.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Among {
    /// With whom, or from whom.
    pub of: Of,
    /// The level of the failure domains: one of the fleet's, or `node`.
    #[serde(default = "node_level")]
    pub level: String,
}

fn node_level() -> String {
    NODE_LEVEL.to_owned()
}

/// Asks for a node for an instance, or for a ready volume of a pool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PlaceRequest {
    /// The name of what is placed, which nothing else has. Draws among nodes that are as good as each other.
    pub id: String,
    /// What it takes. Of what it takes nothing of, nothing is looked at.
    #[serde(default)]
    pub needs: Resources,
    /// CPU architecture that its guest needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// The hypervisor that its guest needs; none if it has no guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hypervisor: Option<HypervisorNeed>,
    /// How its guest will behave.
    #[serde(default)]
    pub behaviour: Behaviour,
    /// Licences of which it takes one each.
    #[serde(default)]
    pub licences: BTreeSet<String>,
    /// Whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Only instances of the same tenant may be on its node.
    #[serde(default)]
    pub alone: bool,
    /// How far its guest is not to be trusted: 0 is trusted.
    #[serde(default)]
    pub risk: u8,
    /// The highest risk class that may be beside it.
    #[serde(default = "any_risk")]
    pub beside_risk: u8,
    /// The group to which it belongs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// It must be in a failure domain where there are such, once there are any.
    #[serde(default)]
    pub together: Vec<Among>,
    /// It must be in a failure domain where there are none.
    #[serde(default)]
    pub apart: Vec<Among>,
    /// It should be in a failure domain where there are few.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spread: Option<Among>,
    /// What its node must be there for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function: Option<String>,
    /// Labels that its node must have.
    #[serde(default, deserialize_with = "unique")]
    pub labels: BTreeMap<String, String>,
    /// Nodes on which it must not be, e.g. where it has just failed.
    #[serde(default)]
    pub not_on: BTreeSet<String>,
    /// The image that it starts from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub image: Option<Digest>,
    /// How many bytes that image is; needed with it.
    #[serde(default)]
    pub image_bytes: u64,
    /// The pool from which it takes a ready volume, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// It is no guest, but a ready volume of this pool: what holds for neighbours does not concern it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub builds: Option<String>,
    /// Failure domains near which it should be, e.g. `ams/row-2`: any of them.
    #[serde(default)]
    pub near: Vec<String>,
}

impl PlaceRequest {
    /// A request that asks for these amounts and nothing else.
    pub fn new(id: impl Into<String>, needs: Resources) -> Self {
        Self {
            id: id.into(),
            needs,
            architecture: None,
            hypervisor: None,
            behaviour: Behaviour::default(),
            licences: BTreeSet::new(),
            tenant: None,
            alone: false,
            risk: 0,
            beside_risk: any_risk(),
            group: None,
            together: Vec::new(),
            apart: Vec::new(),
            spread: None,
            function: None,
            labels: BTreeMap::new(),
            not_on: BTreeSet::new(),
            image: None,
            image_bytes: 0,
            pool: None,
            builds: None,
            near: Vec::new(),
        }
    }

    /// Checks what a parser cannot.
    ///
    /// # Errors
    ///
    /// Invalid: which of its fields cannot be meant, and why.
    pub fn check(&self) -> Result<()> {
        check_name("a request's id", &self.id)?;
        self.check_fields().at(|| format!("request {}", self.id))
    }

    fn check_fields(&self) -> Result<()> {
        let texts = [&self.architecture, &self.tenant, &self.group, &self.function];
        let among = self.together.iter().chain(&self.apart).chain(&self.spread);
        check_names("name", texts.into_iter().chain([&self.pool, &self.builds]).flatten())?;
        check_names("name", self.licences.iter().chain(&self.not_on).chain(self.labels.keys()))?;
        for Among { of: Of::Group(name) | Of::Pool(name), level } in among {
            check_names("name", [name, level])?;
        }
        for part in self.near.iter().flat_map(|path| path.split('/')) {
            check_name("domain", part)?;
        }
        let Behaviour { cpu, disk, network } = self.behaviour;
        for (what, share) in [("cpu", cpu), ("disk", disk), ("network", network)] {
            check_share(&format!("behaviour {what}"), share)?;
        }
        if self.image.is_some() && self.image_bytes == 0 {
            return Err(invalid("image without image-bytes: say how many bytes it is"));
        }
        match &self.hypervisor {
            Some(need) => need.check(),
            None if cpu + disk + network > 0.0 => Err(invalid(
                "behaviour is that of a guest: say which hypervisor it needs, if only {}",
            )),
            None => Ok(()),
        }
    }
}

impl HypervisorNeed {
    fn check(&self) -> Result<()> {
        check_names("hypervisor", &self.kinds)?;
        check_names("feature", &self.features)?;
        let number = |part: &str| part.parse::<u64>().is_ok();
        match self.at_least.as_ref().filter(|version| !version.split('.').all(number)) {
            Some(version) => {
                let version = version.escape_debug();
                Err(invalid(format!("version `{version}` must be numbers with dots, e.g. 9.1")))
            }
            None => Ok(()),
        }
    }
}

/// A fleet, and what is to be placed on it, one after the other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Simulation {
    /// The fleet as it is before.
    pub fleet: Fleet,
    /// What is to be placed.
    pub requests: Vec<PlaceRequest>,
    /// What holds for all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(text: &str) -> std::result::Result<PlaceRequest, String> {
        let request: PlaceRequest = serde_json::from_str(text).map_err(|e| e.to_string())?;
        request.check().map_err(|e| e.to_string())?;
        Ok(request)
    }

    #[test]
    fn a_request_needs_an_id_alone() {
        let least = request(r#"{"id": "a"}"#).unwrap();
        assert_eq!(least, PlaceRequest::new("a", Resources::default()));
        assert_eq!(request(&serde_json::to_string(&least).unwrap()).unwrap(), least);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        for (field, says) in [
            (r#""colour": 1"#, "unknown field `colour`"),
            (r#""apart": [{"of": {"grp": "a"}}]"#, "unknown variant `grp`"),
            (r#""apart": [{"of": {"group": ""}}]"#, "request a: name `` is empty"),
            (r#""needs": {"disk": -1}"#, "invalid value: integer `-1`"),
            (r#""labels": {"x": "1", "x": "2"}"#, "`x` is there twice"),
            (r#""behaviour": {"cpu": 1}"#, "say which hypervisor"),
            (r#""behaviour": {"cpu": 7}"#, "request a: behaviour cpu is 7"),
            (r#""hypervisor": {"at-least": "9.x"}"#, "version `9.x` must be numbers"),
            (&format!(r#""image": "{}""#, Digest::of_chunk(b"a")), "say how many bytes it is"),
            (r#""image": "debian:12""#, "debian:12"),
        ] {
            let error = request(&format!(r#"{{"id": "a", {field}}}"#)).expect_err(field);
            assert!(error.contains(says), "{field}: {error}");
        }
        assert!(request(r#"{"id": ""}"#).is_err());
    }
}
