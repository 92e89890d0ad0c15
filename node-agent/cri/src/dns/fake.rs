//! A DNS that answers nobody.

use std::collections::BTreeMap;
use std::net::IpAddr;

use parking_lot::Mutex;

use super::{ClusterDns, DnsTable};
use crate::ServiceName;

/// Remembers the names and clients that it was told of.
#[derive(Debug, Default)]
pub struct FakeDns {
    services: Mutex<BTreeMap<ServiceName, DnsTable>>,
    clients: Mutex<BTreeMap<IpAddr, Vec<String>>>,
}

impl FakeDns {
    /// The names that are answered now.
    pub fn services(&self) -> BTreeMap<ServiceName, DnsTable> {
        self.services.lock().clone()
    }

    /// The search lists of the clients.
    pub fn clients(&self) -> BTreeMap<IpAddr, Vec<String>> {
        self.clients.lock().clone()
    }
}

impl ClusterDns for FakeDns {
    fn change(&self, service: ServiceName, names: Option<DnsTable>) {
        let mut services = self.services.lock();
        match names {
            Some(names) => services.insert(service, names),
            None => services.remove(&service),
        };
    }

    fn replace(&self, all: BTreeMap<ServiceName, DnsTable>) {
        *self.services.lock() = all;
    }

    fn client(&self, address: IpAddr, searches: Option<Vec<String>>) {
        let mut clients = self.clients.lock();
        match searches {
            Some(searches) => clients.insert(address, searches),
            None => clients.remove(&address),
        };
    }
}
