//! The servers that an agent knows of: those it was given, and those it was told of since.

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;

/// Shared by whoever connects to servers. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Servers {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    given: Vec<SocketAddr>,
    told: Vec<SocketAddr>,
    /// The one that the link was opened to last: it leads, or did.
    preferred: Option<SocketAddr>,
}

impl Servers {
    pub(crate) fn new(given: Vec<SocketAddr>) -> Self {
        Self {
            inner: Arc::new(Mutex::new(Inner {
                given,
                told: Vec::new(),
                preferred: None,
            })),
        }
    }

    /// Takes over the cluster's own list, `ip:port` each.
    pub(crate) fn learn(&self, addresses: &[String]) {
        let told = addresses.iter().filter_map(|address| address.parse().ok());
        self.inner.lock().told = told.collect();
    }

    pub(crate) fn prefer(&self, server: SocketAddr) {
        self.inner.lock().preferred = Some(server);
    }

    /// Every server once: the given ones, which may be out of date, first.
    pub(crate) fn known(&self) -> Vec<SocketAddr> {
        let inner = self.inner.lock();
        let mut known = inner.given.clone();
        known.extend(&inner.told);
        unique(known)
    }

    /// Every server once, in the order in which a client does well to try them.
    pub(crate) fn by_preference(&self) -> Vec<SocketAddr> {
        let inner = self.inner.lock();
        let mut servers: Vec<SocketAddr> = inner.preferred.into_iter().collect();
        servers.extend(&inner.told);
        servers.extend(&inner.given);
        unique(servers)
    }
}

fn unique(mut servers: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let mut seen = std::collections::BTreeSet::new();
    servers.retain(|server| seen.insert(*server));
    servers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_linked_server_comes_first_and_none_comes_twice() {
        let address = |number: u8| SocketAddr::from(([10, 0, 0, number], 6443));
        let servers = Servers::new(vec![address(1)]);
        assert_eq!(servers.by_preference(), [address(1)]);
        let told: Vec<String> = (1..=3).map(|number| address(number).to_string()).collect();
        servers.learn(&told);
        servers.prefer(address(3));
        assert_eq!(
            servers.by_preference(),
            [address(3), address(1), address(2)]
        );
        assert_eq!(servers.known(), [address(1), address(2), address(3)]);
        servers.learn(&told[1..2]);
        assert_eq!(servers.known(), [address(1), address(2)]);
    }
}
