//! What is known of a fleet for choosing nodes: its nodes, and the instances that are placed on them.
//!
//! Amounts are whole numbers in the units of [`Resources`]. Names that differ are different things: nothing is folded
//! or trimmed. Unknown fields are refused, for one that was overlooked could be a rule.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use image::error::At;
use image::{Digest, Error, Kind, Result};
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

/// Longest name, in bytes.
const MAX_NAME: usize = 256;
/// Most levels of failure domains.
const MAX_LEVELS: usize = 8;
/// The level below all others: every node is a failure domain of its own.
pub const NODE_LEVEL: &str = "node";

/// Amounts of what nodes have and instances take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Resources {
    /// Thousandths of a CPU.
    pub cpu_milli: u64,
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes of disk.
    pub disk: u64,
    /// Bits a second, over all network interfaces.
    pub network: u64,
}

impl Resources {
    /// In the order in which they stand above.
    pub fn all(&self) -> [u64; 4] {
        [self.cpu_milli, self.memory, self.disk, self.network]
    }

    /// From the same order.
    pub fn of([cpu_milli, memory, disk, network]: [u64; 4]) -> Self {
        Self { cpu_milli, memory, disk, network }
    }

    /// Both together; `None` if that is more than numbers reach.
    pub fn checked_add(&self, other: &Self) -> Option<Self> {
        let (mut sum, with) = (self.all(), other.all());
        for (a, b) in sum.iter_mut().zip(with) {
            *a = a.checked_add(b)?;
        }
        Some(Self::of(sum))
    }
}

/// How much of what the bare machine does a guest of a hypervisor reached when it was measured, 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Strengths {
    /// Computing.
    pub cpu: f64,
    /// Reading and writing the disk.
    pub disk: f64,
    /// Sending and receiving.
    pub network: f64,
}

/// A hypervisor of a node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Hypervisor {
    /// Which, e.g. `qemu`.
    pub kind: String,
    /// Its version, e.g. `9.1.2`.
    #[serde(default)]
    pub version: String,
    /// What it can do, e.g. `uefi`, `vhost-user`.
    #[serde(default)]
    pub features: BTreeSet<String>,
    /// What was measured.
    #[serde(default)]
    pub strengths: Strengths,
}

/// A licence that a node holds: each instance that needs it takes one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Licence {
    /// How many instances it is good for; any number if unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held: Option<u64>,
    /// What one more instance costs, in a unit that is the same for all nodes: at 1 a node gets half the points
    /// of one where it costs nothing.
    pub cost: f64,
}

/// A node, as far as it matters for choosing it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct NodeFacts {
    /// Its name in the grid.
    pub name: String,
    /// What it has.
    pub capacity: Resources,
    /// What is taken of that beside the instances that are placed on it.
    #[serde(default)]
    pub reserved: Resources,
    /// CPU architecture, e.g. `x86_64`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// What can run guests.
    #[serde(default)]
    pub hypervisors: Vec<Hypervisor>,
    /// Licences, by their names.
    #[serde(default, deserialize_with = "unique")]
    pub licences: BTreeMap<String, Licence>,
    /// Labels.
    #[serde(default, deserialize_with = "unique")]
    pub labels: BTreeMap<String, String>,
    /// What it is there for, e.g. `web`, `build`: groups of nodes by function.
    #[serde(default)]
    pub functions: BTreeSet<String>,
    /// The only tenants whose instances it takes; those of all, and those of none, if empty.
    #[serde(default)]
    pub tenants: BTreeSet<String>,
    /// The highest risk class that it takes.
    #[serde(default = "any_risk")]
    pub risk_most: u8,
    /// Where it stands, a name for each level of the fleet: `ams/row-2/rack-7`. Nodes that do not say so stand together.
    #[serde(default)]
    pub domain: String,
    /// It takes nothing new.
    #[serde(default)]
    pub cordoned: bool,
    /// It takes nothing new, and what is on it leaves.
    #[serde(default)]
    pub draining: bool,
    /// How long its tasks wait for what they lack, 0 to 1: the highest of its pressure stall averages.
    #[serde(default)]
    pub load: f64,
    /// Images of which it has chunks, and how many bytes.
    #[serde(default, deserialize_with = "unique")]
    #[schema(value_type = BTreeMap<String, u64>)]
    pub images: BTreeMap<Digest, u64>,
    /// Pools of which it has ready volumes, and how many.
    #[serde(default, deserialize_with = "unique")]
    pub pools: BTreeMap<String, u64>,
}

/// The highest class of risk.
pub(crate) fn any_risk() -> u8 {
    u8::MAX
}

/// What is placed on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Instance {
    /// Its name, which no other has.
    pub id: String,
    /// The node's name.
    pub node: String,
    /// What it takes.
    pub takes: Resources,
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
    /// The group to which it belongs, for what shall be together or apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Licences of which it takes one each.
    #[serde(default)]
    pub licences: BTreeSet<String>,
    /// It is no guest, but a ready volume that is being built: what holds for neighbours does not concern it.
    #[serde(default)]
    pub builds: bool,
}

/// A fleet at a time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Fleet {
    /// Levels of failure domains, the widest first, e.g. `site`, `row`, `rack`; below all is `node`.
    #[serde(default)]
    pub levels: Vec<String>,
    /// The nodes.
    pub nodes: Vec<NodeFacts>,
    /// What is placed on them.
    #[serde(default)]
    pub instances: Vec<Instance>,
}

pub(crate) fn invalid(what: impl Into<String>) -> Error {
    Error::new(Kind::Invalid, what)
}

/// Names are shown to people and stand in paths of domains: no control characters, not empty, not endless.
pub(crate) fn check_name(what: &str, name: &str) -> Result<()> {
    let why = match name.len() {
        0 => "is empty".to_owned(),
        n if n > MAX_NAME => format!("is longer than {MAX_NAME} bytes"),
        _ if name.contains(char::is_control) => "has control characters".to_owned(),
        _ => return Ok(()),
    };
    Err(invalid(format!("{what} `{}` {why}", name.escape_debug())))
}

pub(crate) fn check_names<'a>(
    what: &str,
    names: impl IntoIterator<Item = &'a String>,
) -> Result<()> {
    names.into_iter().try_for_each(|name| check_name(what, name))
}

/// A number of 0 to 1.
pub(crate) fn check_share(what: &str, share: f64) -> Result<()> {
    match (0.0..=1.0).contains(&share) {
        true => Ok(()),
        false => Err(invalid(format!("{what} is {share}: it must be 0 to 1"))),
    }
}

/// A finite number that is not below 0.
pub(crate) fn check_amount(what: &str, amount: f64) -> Result<()> {
    match amount.is_finite() && amount >= 0.0 {
        true => Ok(()),
        false => Err(invalid(format!("{what} is {amount}: it must be finite, and not below 0"))),
    }
}

/// Checks the names of levels.
///
/// # Errors
///
/// Invalid: one is no name, is there twice, or is that of the nodes' own level; or there are too many.
pub fn check_levels(levels: &[String]) -> Result<()> {
    if levels.len() > MAX_LEVELS {
        let what = format!("{} levels of failure domains: {MAX_LEVELS} at most", levels.len());
        return Err(invalid(what));
    }
    check_names("level", levels)?;
    for (nth, level) in levels.iter().enumerate() {
        if level == NODE_LEVEL || levels[..nth].contains(level) {
            return Err(invalid(format!("level `{level}` is there already")));
        }
    }
    Ok(())
}

impl NodeFacts {
    /// Checks what a parser cannot.
    ///
    /// # Errors
    ///
    /// Invalid: which of its fields cannot be meant, and why.
    pub fn check(&self) -> Result<()> {
        check_name("a node's name", &self.name)?;
        self.check_fields().at(|| format!("node {}", self.name))
    }

    fn check_fields(&self) -> Result<()> {
        check_names("architecture", &self.architecture)?;
        check_names("function", &self.functions)?;
        check_names("tenant", &self.tenants)?;
        check_names("pool", self.pools.keys())?;
        check_names("label", self.labels.keys())?;
        check_share("load", self.load)?;
        for hypervisor in &self.hypervisors {
            check_name("hypervisor", &hypervisor.kind)?;
            check_names("feature", &hypervisor.features)?;
            let Strengths { cpu, disk, network } = hypervisor.strengths;
            for (what, share) in [("cpu", cpu), ("disk", disk), ("network", network)] {
                check_share(&format!("{}'s strength {what}", hypervisor.kind), share)?;
            }
        }
        for (name, licence) in &self.licences {
            check_name("licence", name)?;
            check_amount(&format!("the cost of licence {name}"), licence.cost)?;
        }
        match self.domain.is_empty() {
            true => Ok(()),
            false => self.domain.split('/').try_for_each(|part| check_name("domain", part)),
        }
    }
}

impl Instance {
    /// Checks what a parser cannot.
    ///
    /// # Errors
    ///
    /// Invalid: which of its names is none.
    pub fn check(&self) -> Result<()> {
        check_name("an instance's id", &self.id)?;
        let names = || {
            check_names("tenant", &self.tenant)?;
            check_names("group", &self.group)?;
            check_names("licence", &self.licences)
        };
        names().at(|| format!("instance {}", self.id))
    }
}

/// A map in which nothing stands twice: JSON allows it, and parsers take the last.
pub(crate) fn unique<'de, D, K, V>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
where
    D: Deserializer<'de>,
    K: Deserialize<'de> + Ord + fmt::Display,
    V: Deserialize<'de>,
{
    struct Unique<K, V>(std::marker::PhantomData<(K, V)>);
    impl<'de, K, V> Visitor<'de> for Unique<K, V>
    where
        K: Deserialize<'de> + Ord + fmt::Display,
        V: Deserialize<'de>,
    {
        type Value = BTreeMap<K, V>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
            let mut map = BTreeMap::new();
            while let Some(key) = access.next_key::<K>()? {
                if map.contains_key(&key) {
                    return Err(A::Error::custom(format!("`{key}` is there twice")));
                }
                map.insert(key, access.next_value()?);
            }
            Ok(map)
        }
    }
    deserializer.deserialize_map(Unique(std::marker::PhantomData))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(text: &str) -> std::result::Result<NodeFacts, String> {
        let node: NodeFacts = serde_json::from_str(text).map_err(|e| e.to_string())?;
        node.check().map_err(|e| e.to_string())?;
        Ok(node)
    }

    #[test]
    fn a_node_needs_a_name_and_a_capacity_alone() {
        let least = node(r#"{"name": "n1", "capacity": {"cpu-milli": 4000}}"#).unwrap();
        assert_eq!((least.capacity.cpu_milli, least.risk_most), (4000, u8::MAX));
        let again = serde_json::to_string(&least).unwrap();
        assert_eq!(node(&again).unwrap(), least);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        for (field, says) in [
            (r#""colour": 1"#, "unknown field `colour`"),
            (r#""reserved": {"ram": 1}"#, "unknown field `ram`"),
            (r#""reserved": {"memory": -1}"#, "invalid value: integer `-1`"),
            (r#""reserved": {"memory": 1e30}"#, "invalid type: floating point"),
            (r#""load": 1.5"#, "node n: load is 1.5: it must be 0 to 1"),
            (r#""risk-most": 300"#, "invalid value: integer `300`"),
            (r#""pools": {"a": 1, "a": 2}"#, "`a` is there twice"),
            (r#""name": "m""#, "duplicate field `name`"),
            (r#""domain": "ams//rack""#, "node n: domain `` is empty"),
            (r#""tenants": ["a\u0007"]"#, "has control characters"),
            (r#""licences": {"w": {"cost": -1}}"#, "the cost of licence w is -1"),
            (
                r#""hypervisors": [{"kind": "qemu", "strengths": {"cpu": 2}}]"#,
                "qemu's strength cpu is 2",
            ),
        ] {
            let error = node(&format!(r#"{{"name": "n", "capacity": {{}}, {field}}}"#));
            let error = error.expect_err(field);
            assert!(error.contains(says), "{field}: {error}");
        }
        assert!(node(r#"{"name": "", "capacity": {}}"#).is_err());
        let levels = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            check_levels(&names)
        };
        assert!(levels(&["site", "rack"]).is_ok());
        for wrong in [&["rack", "rack"][..], &["node"], &[""], &["x"; 9]] {
            assert!(levels(wrong).is_err(), "{wrong:?}");
        }
    }
}
