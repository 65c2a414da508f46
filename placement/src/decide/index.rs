//! Facts about nodes turned around: from what a request names to the nodes that have it.
//!
//! So what a request names is looked up once, not once for each node, and a name of which no node has anything
//! takes no memory.

use std::borrow::Borrow;
use std::collections::BTreeMap;

/// The number of a node in a view. It is used again when the node is gone.
pub(crate) type At = u32;

/// For each key the nodes that have it, each with a value.
#[derive(Clone, Debug)]
pub(super) struct Index<K, V>(BTreeMap<K, BTreeMap<At, V>>);

impl<K, V> Default for Index<K, V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord, V: Copy> Index<K, V> {
    pub fn set(&mut self, key: K, at: At, value: V) {
        self.0.entry(key).or_default().insert(at, value);
    }

    pub fn unset<Q: Ord + ?Sized>(&mut self, key: &Q, at: At)
    where
        K: Borrow<Q>,
    {
        if let Some(nodes) = self.0.get_mut(key) {
            nodes.remove(&at);
            if nodes.is_empty() {
                self.0.remove(key);
            }
        }
    }

    pub fn get<Q: Ord + ?Sized>(&self, key: &Q, at: At) -> Option<V>
    where
        K: Borrow<Q>,
    {
        self.0.get(key)?.get(&at).copied()
    }

    /// The nodes that have it.
    pub fn of<'a, Q: Ord + ?Sized>(
        &'a self,
        key: &Q,
    ) -> impl Iterator<Item = (At, V)> + use<'a, Q, K, V>
    where
        K: Borrow<Q>,
    {
        self.0.get(key).into_iter().flatten().map(|(at, value)| (*at, *value))
    }

    /// All keys, each with the nodes that have it.
    pub fn all(&self) -> impl Iterator<Item = (&K, &BTreeMap<At, V>)> {
        self.0.iter()
    }

    /// A node has these now, and no longer those.
    pub fn retell(
        &mut self,
        at: At,
        was: impl IntoIterator<Item = K>,
        is: impl IntoIterator<Item = (K, V)>,
    ) {
        was.into_iter().for_each(|key| self.unset(&key, at));
        is.into_iter().for_each(|(key, value)| self.set(key, at, value));
    }
}

impl<K: Ord> Index<K, u64> {
    /// One more, or with `false` one less; 0 is not kept.
    pub fn count(&mut self, key: K, at: At, more: bool) {
        let now = self.get(&key, at).unwrap_or(0);
        match if more { now.saturating_add(1) } else { now.saturating_sub(1) } {
            0 => self.unset(&key, at),
            now => self.set(key, at, now),
        }
    }
}

/// A value for each node that has one, by the nodes' numbers.
#[derive(Clone, Debug)]
pub(super) struct Column<V>(Vec<Option<V>>);

impl<V: Copy> Column<V> {
    /// Of a view with room for so many nodes. What is told last of a node counts.
    pub fn new(nodes: usize, values: impl IntoIterator<Item = (At, V)>) -> Self {
        let mut column = vec![None; nodes];
        values.into_iter().for_each(|(at, value)| column[at as usize] = Some(value));
        Self(column)
    }

    pub fn get(&self, at: At) -> Option<V> {
        self.0[at as usize]
    }

    pub fn set(&mut self, at: At, value: V) {
        self.0[at as usize] = Some(value);
    }

    pub fn has(&self, at: At) -> bool {
        self.get(at).is_some()
    }
}
