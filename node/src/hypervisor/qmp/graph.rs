//! What QEMU's block layer looks like: nodes, who uses them, and jobs.

use image::Result;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::wire::QmpError;

/// Who uses a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parent {
    /// Another node, by its place in [`View::nodes`].
    Node(usize),
    /// A guest's device, an export or the like, by the name that QEMU gives it.
    User(String),
    /// A job, by its id.
    Job(String),
}

/// A node of the graph: one driver, on top of others or of something outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name; one that QEMU made up begins with `#`.
    pub name: String,
    /// `nbd`, `raw`, `throttle`, …
    pub driver: String,
    /// What it shows, as QEMU writes it: a path, a URL, or `json:{…}`.
    pub filename: String,
    /// Size in bytes.
    pub size: u64,
    /// Whether it goes past the page cache.
    pub direct: bool,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Who uses it.
    pub parents: Vec<Parent>,
}

/// A job.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Job {
    /// Its id.
    pub id: String,
    /// Where it is in its life (`JobStatus` of QEMU's reference).
    pub status: String,
    /// Why it failed.
    #[serde(default)]
    pub error: Option<String>,
}

/// All of it, at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// The nodes, in no order.
    pub nodes: Vec<Node>,
    /// The jobs.
    pub jobs: Vec<Job>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct NamedNode {
    node_name: String,
    drv: String,
    file: String,
    ro: bool,
    cache: Cache,
    image: Image,
}

#[derive(Deserialize)]
struct Cache {
    direct: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Image {
    virtual_size: u64,
}

#[derive(Deserialize)]
struct DebugGraph {
    nodes: Vec<DebugNode>,
    edges: Vec<DebugEdge>,
}

#[derive(Deserialize)]
struct DebugNode {
    id: u64,
    name: String,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct DebugEdge {
    parent: u64,
    child: u64,
}

impl View {
    /// Puts together the answers to `query-named-block-nodes` (flat), `x-debug-query-block-graph` and
    /// `query-jobs`.
    ///
    /// The second is the only command that tells the edges in every QEMU since 4.0. It is called unstable,
    /// and has not changed.
    ///
    /// # Errors
    ///
    /// [`Kind::Invalid`](image::Kind::Invalid) if they do not look like that.
    pub fn of(nodes: Value, graph: Value, jobs: Value) -> Result<View> {
        let named: Vec<NamedNode> = parse("query-named-block-nodes", nodes)?;
        let graph: DebugGraph = parse("x-debug-query-block-graph", graph)?;
        let jobs: Vec<Job> = parse("query-jobs", jobs)?;
        let places: std::collections::BTreeMap<&str, usize> =
            named.iter().enumerate().map(|(i, node)| (node.node_name.as_str(), i)).collect();
        let ids: std::collections::BTreeMap<u64, &DebugNode> =
            graph.nodes.iter().map(|node| (node.id, node)).collect();
        let mut parents: Vec<Vec<Parent>> = vec![Vec::new(); named.len()];
        for edge in &graph.edges {
            let (Some(parent), Some(child)) = (ids.get(&edge.parent), ids.get(&edge.child)) else {
                return Err(QmpError::Garbage("an edge to no node".to_owned()).into());
            };
            // The answers are not of one instant: a node that came in between has no place yet.
            let Some(child) = places.get(child.name.as_str()) else { continue };
            let parent = match parent.kind.as_str() {
                "block-driver" => places.get(parent.name.as_str()).map(|at| Parent::Node(*at)),
                "block-job" => Some(Parent::Job(parent.name.clone())),
                _ => Some(Parent::User(parent.name.clone())),
            };
            parents[*child].extend(parent);
        }
        let nodes = named.into_iter().zip(parents).map(|(node, parents)| Node {
            name: node.node_name,
            driver: node.drv,
            filename: node.file,
            size: node.image.virtual_size,
            direct: node.cache.direct,
            read_only: node.ro,
            parents,
        });
        Ok(View { nodes: nodes.collect(), jobs })
    }

    /// A node, by its name.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// A job, by its id.
    pub fn job(&self, id: &str) -> Option<&Job> {
        self.jobs.iter().find(|job| job.id == id)
    }
}

fn parse<T: DeserializeOwned>(command: &str, answer: Value) -> Result<T> {
    serde_json::from_value(answer)
        .map_err(|e| QmpError::Garbage(format!("the answer to {command}: {e}")).into())
}
