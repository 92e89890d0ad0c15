//! The addresses and ports that services are given from.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The cluster's ranges.
#[derive(Clone, Debug)]
pub struct Ranges {
    /// ClusterIPs are allocated here.
    pub service_cidr: Ipv4Net,
    /// Those of a second family, for dual-stack services.
    pub service_cidr_v6: Option<Ipv6Net>,
    /// Node ports are allocated here: first and last.
    pub node_ports: (u16, u16),
}

impl Default for Ranges {
    fn default() -> Self {
        Self {
            service_cidr: Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 96, 0, 0), 12),
            service_cidr_v6: None,
            node_ports: (30000, 32767),
        }
    }
}

impl Ranges {
    /// The range of an address family, when there is one.
    pub(crate) fn of(&self, family: &str) -> Option<IpNet> {
        match family {
            "IPv4" => Some(self.service_cidr.trunc().into()),
            "IPv6" => self.service_cidr_v6.map(|range| range.trunc().into()),
            _ => None,
        }
    }

    /// The families that services can have, the default one first.
    pub(crate) fn families(&self) -> Vec<&'static str> {
        let both = ["IPv4", "IPv6"].into_iter();
        both.filter(|family| self.of(family).is_some()).collect()
    }

    /// All ranges.
    pub(crate) fn service_cidrs(&self) -> Vec<String> {
        let families = self.families().into_iter();
        let ranges = families.filter_map(|family| self.of(family));
        ranges.map(|range| range.to_string()).collect()
    }
}
