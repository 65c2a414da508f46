//! A map bounded by the bytes of its values, which forgets what was used longest ago.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::Mutex;

/// Keeps values that can be read again. Owner of their memory, up to its limit in bytes.
pub(crate) struct Cache<K, V> {
    limit: usize,
    state: Mutex<State<K, V>>,
}

struct State<K, V> {
    entries: HashMap<K, Entry<V>>,
    /// Keys by when they were last used: the first is the next to go.
    order: BTreeMap<u64, K>,
    bytes: usize,
    uses: u64,
}

struct Entry<V> {
    value: V,
    bytes: usize,
    used: u64,
}

impl<K: Clone + Eq + Hash, V: Clone> Cache<K, V> {
    /// An empty cache of at most `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        let state = State { entries: HashMap::new(), order: BTreeMap::new(), bytes: 0, uses: 0 };
        Self { limit, state: Mutex::new(state) }
    }

    /// The value of a key, if it is here.
    pub(crate) fn get(&self, key: &K) -> Option<V> {
        let state = &mut *self.lock();
        state.uses += 1;
        let entry = state.entries.get_mut(key)?;
        state.order.remove(&entry.used);
        entry.used = state.uses;
        state.order.insert(entry.used, key.clone());
        Some(entry.value.clone())
    }

    /// Keeps a value of `bytes` bytes, unless it alone is over the limit.
    pub(crate) fn insert(&self, key: K, value: V, bytes: usize) {
        let state = &mut *self.lock();
        state.remove(&key);
        if bytes > self.limit {
            return;
        }
        state.uses += 1;
        let used = state.uses;
        state.order.insert(used, key.clone());
        state.entries.insert(key, Entry { value, bytes, used });
        state.bytes += bytes;
        while state.bytes > self.limit {
            let Some((_, oldest)) = state.order.first_key_value() else { break };
            let oldest = oldest.clone();
            state.remove(&oldest);
        }
    }

    /// Forgets the keys for which `f` holds.
    pub(crate) fn forget(&self, f: impl Fn(&K) -> bool) {
        let state = &mut *self.lock();
        let gone: Vec<K> = state.entries.keys().filter(|k| f(k)).cloned().collect();
        gone.iter().for_each(|k| state.remove(k));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State<K, V>> {
        self.state.lock().expect("no code panics while it holds this lock")
    }
}

impl<K: Eq + Hash, V> State<K, V> {
    fn remove(&mut self, key: &K) {
        if let Some(entry) = self.entries.remove(key) {
            self.order.remove(&entry.used);
            self.bytes -= entry.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forgets_what_was_used_longest_ago() {
        let cache = Cache::new(10);
        cache.insert(1, 'a', 4);
        cache.insert(2, 'b', 4);
        assert_eq!(cache.get(&1), Some('a'));
        cache.insert(3, 'c', 4);
        assert_eq!((cache.get(&1), cache.get(&2), cache.get(&3)), (Some('a'), None, Some('c')));
        cache.insert(3, 'd', 6);
        assert_eq!((cache.get(&1), cache.get(&3)), (Some('a'), Some('d')));
        cache.insert(4, 'e', 11);
        assert_eq!(cache.get(&4), None);
        cache.forget(|k| *k == 1);
        assert_eq!((cache.get(&1), cache.get(&3)), (None, Some('d')));
    }
}
