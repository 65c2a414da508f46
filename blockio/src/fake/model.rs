//! What a disk holds, and how each logged operation changes it.
//!
//! Files and directories are nodes with numbers, and names are entries of directory nodes, as on a
//! real disk: an operation on a file stays an operation on that file whatever becomes of its name.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use bytes::Bytes;

use super::crash::Fate;
use super::pages::Pages;
use crate::backing::Zeroing;

/// The number of a file or directory; the same for ever, under whatever name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub(super) u64);

/// The directory everything is in.
pub(super) const ROOT: NodeId = NodeId(0);

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// A regular file.
    File,
    /// A block device.
    Device,
    /// A directory.
    Dir,
}

/// One thing done to a [`MemFs`](super::MemFs). `path` is the name it was done by, for people.
#[derive(Clone, Debug)]
pub enum Op {
    /// A name was given to a new node.
    Create {
        /// The name.
        path: PathBuf,
        /// The directory it is in.
        dir: NodeId,
        /// The last part of the name.
        name: OsString,
        /// What it names.
        node: NodeId,
        /// What that is.
        kind: NodeKind,
    },
    /// A name was moved, over another one if that was there.
    Rename {
        /// The new name.
        path: PathBuf,
        /// Old directory and last part.
        from: (NodeId, OsString),
        /// New directory and last part.
        to: (NodeId, OsString),
        /// What it names.
        node: NodeId,
        /// What that is.
        kind: NodeKind,
    },
    /// A name was removed.
    Remove {
        /// The name.
        path: PathBuf,
        /// The directory it was in.
        dir: NodeId,
        /// The last part of the name.
        name: OsString,
    },
    /// Bytes were written.
    Write {
        /// The file.
        node: NodeId,
        /// Where.
        offset: u64,
        /// What.
        data: Bytes,
    },
    /// A range was made zero.
    Zero {
        /// The file.
        node: NodeId,
        /// Where.
        range: Range<u64>,
        /// As a hole or not.
        how: Zeroing,
    },
    /// The size was set.
    SetLen {
        /// The file.
        node: NodeId,
        /// The new size.
        len: u64,
    },
    /// What was done to a file before lasts.
    Sync {
        /// The file.
        node: NodeId,
    },
    /// The names in a directory last.
    SyncDir {
        /// The directory.
        node: NodeId,
    },
    /// The test said something.
    Mark(String),
}

impl Op {
    /// Whether a power cut after it may undo it.
    pub fn can_be_lost(&self) -> bool {
        !matches!(self, Op::Sync { .. } | Op::SyncDir { .. } | Op::Mark(_))
    }

    /// Whether `self`, a sync, makes the earlier `other` last.
    pub(super) fn settles(&self, other: &Op) -> bool {
        match (self, other) {
            (
                Op::Sync { node: synced },
                Op::Write { node, .. } | Op::Zero { node, .. } | Op::SetLen { node, .. },
            ) => synced == node,
            (Op::SyncDir { node }, Op::Create { dir, .. } | Op::Remove { dir, .. }) => node == dir,
            (Op::SyncDir { node }, Op::Rename { from, to, .. }) => *node == from.0 || *node == to.0,
            _ => false,
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::Create { path, node, .. } => write!(f, "create {} (#{})", path.display(), node.0),
            Op::Rename { path, node, .. } => write!(f, "rename #{} to {}", node.0, path.display()),
            Op::Remove { path, .. } => write!(f, "remove {}", path.display()),
            Op::Write { node, offset, data } => {
                write!(f, "write #{} at {offset}, {} bytes", node.0, data.len())
            }
            Op::Zero { node, range, .. } => write!(f, "zero #{} {range:?}", node.0),
            Op::SetLen { node, len } => write!(f, "truncate #{} to {len}", node.0),
            Op::Sync { node } => write!(f, "sync #{}", node.0),
            Op::SyncDir { node } => write!(f, "sync directory #{}", node.0),
            Op::Mark(label) => write!(f, "mark {label:?}"),
        }
    }
}

/// A node's content.
#[derive(Clone, Debug)]
pub(super) enum Node {
    File { pages: Pages, device: bool },
    Dir(BTreeMap<OsString, NodeId>),
}

impl Node {
    fn new(kind: NodeKind) -> Node {
        match kind {
            NodeKind::Dir => Node::Dir(BTreeMap::new()),
            NodeKind::File => Node::File { pages: Pages::default(), device: false },
            NodeKind::Device => Node::File { pages: Pages::default(), device: true },
        }
    }

    fn kind(&self) -> NodeKind {
        match self {
            Node::Dir(_) => NodeKind::Dir,
            Node::File { device: false, .. } => NodeKind::File,
            Node::File { device: true, .. } => NodeKind::Device,
        }
    }
}

/// A whole disk. Clones share the bytes.
#[derive(Clone, Debug)]
pub(super) struct Model {
    nodes: BTreeMap<NodeId, Node>,
}

impl Model {
    pub(super) fn new() -> Model {
        Model { nodes: BTreeMap::from([(ROOT, Node::Dir(BTreeMap::new()))]) }
    }

    /// What `id` is, which has been found under some name.
    pub(super) fn kind(&self, id: NodeId) -> NodeKind {
        self.nodes.get(&id).expect("a name leads to a node").kind()
    }

    pub(super) fn pages(&self, id: NodeId) -> Option<&Pages> {
        match self.nodes.get(&id) {
            Some(Node::File { pages, .. }) => Some(pages),
            _ => None,
        }
    }

    pub(super) fn dir(&self, id: NodeId) -> Option<&BTreeMap<OsString, NodeId>> {
        match self.nodes.get(&id) {
            Some(Node::Dir(names)) => Some(names),
            _ => None,
        }
    }

    /// A number that no node has.
    pub(super) fn unused(&self) -> u64 {
        self.nodes.last_key_value().map_or(0, |(id, _)| id.0) + 1
    }

    /// Does `op`, or what `fate` leaves of it. Operations are applied to nodes that a lost
    /// operation should have made as well: without a name they are out of everybody's sight.
    pub(super) fn apply(&mut self, op: &Op, fate: Fate) {
        if fate == Fate::Lost {
            return;
        }
        match op {
            Op::Create { dir, name, node, kind, .. } => {
                self.nodes.entry(*node).or_insert_with(|| Node::new(*kind));
                self.names(*dir).insert(name.clone(), *node);
            }
            Op::Rename { from, to, node, kind, .. } => {
                self.nodes.entry(*node).or_insert_with(|| Node::new(*kind));
                self.names(from.0).remove(&from.1);
                self.names(to.0).insert(to.1.clone(), *node);
            }
            Op::Remove { dir, name, .. } => {
                self.names(*dir).remove(name);
            }
            Op::Write { node, offset, data } => {
                let pages = self.bytes(*node);
                for part in fate.parts(*offset, data.len()) {
                    pages.write(offset + part.start as u64, &data[part]);
                }
            }
            Op::Zero { node, range, .. } => self.bytes(*node).zero(range.clone()),
            Op::SetLen { node, len } => self.bytes(*node).set_len(*len),
            Op::Sync { .. } | Op::SyncDir { .. } | Op::Mark(_) => {}
        }
    }

    fn names(&mut self, id: NodeId) -> &mut BTreeMap<OsString, NodeId> {
        match self.nodes.entry(id).or_insert_with(|| Node::new(NodeKind::Dir)) {
            Node::Dir(names) => names,
            Node::File { .. } => unreachable!("a number is never given to two nodes"),
        }
    }

    fn bytes(&mut self, id: NodeId) -> &mut Pages {
        match self.nodes.entry(id).or_insert_with(|| Node::new(NodeKind::File)) {
            Node::File { pages, .. } => pages,
            Node::Dir(_) => unreachable!("a number is never given to two nodes"),
        }
    }
}
