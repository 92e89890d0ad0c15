//! Which addresses of the node's pod CIDR are in use. Pure: `leases` keeps it on disk.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::NetworkError;

/// The free and the taken addresses of a CIDR. The network's own address, the gateway (its first usable) and the
/// broadcast address are never given out.
#[derive(Debug)]
pub(crate) struct AddressPool {
    cidr: Ipv4Net,
    taken: BTreeSet<u32>,
    /// Where the search begins. It moves on with every address, so that a freed one rests as long as possible: what
    /// still talks to a pod that is gone should not reach another.
    next: u32,
}

impl AddressPool {
    /// A pool in which `taken` are in use; those outside the CIDR do no harm.
    pub(crate) fn new(cidr: Ipv4Net, taken: impl IntoIterator<Item = Ipv4Addr>) -> Self {
        let taken: BTreeSet<u32> = taken.into_iter().map(u32::from).collect();
        let mut pool = Self {
            cidr: cidr.trunc(),
            taken,
            next: 0,
        };
        let highest = pool.taken.range(pool.first()..=pool.last()).next_back();
        pool.next = highest.map_or(pool.first(), |address| address + 1);
        pool
    }

    fn first(&self) -> u32 {
        u32::from(self.cidr.network()) + 2
    }

    fn last(&self) -> u32 {
        u32::from(self.cidr.broadcast()) - 1
    }

    /// Takes a free address.
    pub(crate) fn take(&mut self) -> Result<Ipv4Addr, NetworkError> {
        let (first, last) = (self.first(), self.last());
        let from = if (first..=last).contains(&self.next) {
            self.next
        } else {
            first
        };
        let free = (from..=last)
            .chain(first..from)
            .find(|address| !self.taken.contains(address));
        let address = free.ok_or_else(|| NetworkError::NoFreeAddress(self.cidr.to_string()))?;
        self.taken.insert(address);
        self.next = address + 1;
        Ok(Ipv4Addr::from(address))
    }

    /// Gives an address back.
    pub(crate) fn free(&mut self, address: Ipv4Addr) {
        self.taken.remove(&u32::from(address));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(cidr: &str, taken: &[[u8; 4]]) -> AddressPool {
        AddressPool::new(
            cidr.parse().unwrap(),
            taken.iter().map(|&a| Ipv4Addr::from(a)),
        )
    }

    #[test]
    fn gives_every_usable_address_once_then_says_which_range_is_full() {
        let mut pool = pool("10.0.0.0/29", &[]);
        let given: Vec<_> = (0..5).map(|_| pool.take().unwrap()).collect();
        assert_eq!(
            given,
            (2..7)
                .map(|d| Ipv4Addr::new(10, 0, 0, d))
                .collect::<Vec<_>>()
        );
        let error = pool.take().unwrap_err();
        assert!(error.to_string().contains("10.0.0.0/29"), "{error}");
    }

    #[test]
    fn a_freed_address_rests_until_the_others_are_used() {
        let mut pool = pool("10.0.0.0/29", &[]);
        let first = pool.take().unwrap();
        pool.free(first);
        let later: Vec<_> = (0..4).map(|_| pool.take().unwrap()).collect();
        assert!(!later.contains(&first), "{later:?}");
        assert_eq!(pool.take().unwrap(), first);
    }

    #[test]
    fn what_an_earlier_process_gave_out_stays_taken() {
        let mut pool = pool(
            "10.0.0.0/29",
            &[[10, 0, 0, 2], [10, 0, 0, 5], [192, 168, 0, 1]],
        );
        let given: Vec<_> = (0..3).map(|_| pool.take().unwrap().octets()[3]).collect();
        assert_eq!(given, [6, 3, 4]);
        assert!(pool.take().is_err());
    }

    proptest::proptest! {
        #[test]
        fn never_gives_an_address_that_is_in_use(steps in proptest::collection::vec(0u8..3, 1..200)) {
            let mut pool = pool("10.0.0.0/27", &[]);
            let mut held: Vec<Ipv4Addr> = Vec::new();
            for step in steps {
                match step {
                    0 if !held.is_empty() => pool.free(held.remove(0)),
                    _ => match pool.take() {
                        Ok(address) => {
                            proptest::prop_assert!(!held.contains(&address));
                            held.push(address);
                        }
                        Err(_) => proptest::prop_assert_eq!(held.len(), 29),
                    },
                }
            }
        }
    }
}
