//! How many connections each machine has: one alone must not take the places of all.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Counts connections by where they come from.
pub(super) struct Places {
    each: usize,
    taken: Mutex<HashMap<IpAddr, usize>>,
}

impl Places {
    /// At most `each` for one machine.
    pub(super) fn new(each: usize) -> Arc<Self> {
        Arc::new(Self { each, taken: Mutex::default() })
    }

    /// A place for a connection from this address, until it is dropped; `None` if too many are taken.
    pub(super) fn take(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let machine = machine(address);
        let mut all = self.taken();
        let taken = all.get(&machine).copied().unwrap_or(0);
        if taken >= self.each {
            return None;
        }
        all.insert(machine, taken + 1);
        Some(Place { places: Arc::clone(self), machine })
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        // Each change of a count is whole.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place that is taken.
pub(super) struct Place {
    places: Arc<Places>,
    machine: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = self.places.taken();
        let left = all.remove(&self.machine).map_or(0, |taken| taken - 1);
        if left > 0 {
            all.insert(self.machine, left);
        }
    }
}

/// By what a machine is known: one that has an IPv6 address has the whole /64 around it.
fn machine(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (!0 << 64)).into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_machine_has_its_places_and_gets_them_back() {
        let places = Places::new(2);
        let take = |address: &str| places.take(address.parse().unwrap());
        let first = (take("10.0.0.1").unwrap(), take("::ffff:10.0.0.1").unwrap());
        assert!(take("10.0.0.1").is_none());
        let _other = take("10.0.0.2").unwrap();
        let _six = (take("2001:db8::1").unwrap(), take("2001:db8::2:0:0:1").unwrap());
        assert!(take("2001:db8::3").is_none() && take("2001:db8:0:1::3").is_some());
        drop(first.0);
        let again = take("10.0.0.1").unwrap();
        drop((first.1, again));
        assert!(!places.taken().contains_key(&"10.0.0.1".parse::<IpAddr>().unwrap()));
    }
}
