//! What the zone was told of its services. Changes are made one after the other on the next zone, which then takes the
//! place of the last in one step; those who read go on with the one they have and never wait.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use gantry_cri::ServiceName;
use gantry_cri::dns::DnsTable;
use parking_lot::Mutex;

use crate::error::DnsError;
use crate::zone::Zone;

/// The zone that is answered from, and what it was made from.
#[derive(Debug)]
pub(crate) struct Published {
    zone: ArcSwap<Zone>,
    /// Held by who changes, until the zone is in place.
    services: Mutex<HashMap<ServiceName, DnsTable>>,
}

impl Published {
    pub(crate) fn new(domain: &str) -> Result<Self, DnsError> {
        Ok(Self {
            zone: ArcSwap::from_pointee(Zone::new(domain)?),
            services: Mutex::default(),
        })
    }

    pub(crate) fn zone(&self) -> Guard<Arc<Zone>> {
        self.zone.load()
    }

    pub(crate) fn change(&self, service: ServiceName, names: Option<DnsTable>) {
        let mut services = self.services.lock();
        let old = services.get(&service);
        if old == names.as_ref() {
            return;
        }
        let (none, mut zone) = (DnsTable::default(), Zone::clone(&self.zone.load()));
        zone.change(
            &service,
            old.unwrap_or(&none),
            names.as_ref().unwrap_or(&none),
        );
        match names {
            Some(names) => services.insert(service, names),
            None => services.remove(&service),
        };
        self.zone.store(Arc::new(zone));
    }

    pub(crate) fn replace(&self, all: BTreeMap<ServiceName, DnsTable>) {
        let mut services = self.services.lock();
        let (none, mut zone) = (DnsTable::default(), Zone::clone(&self.zone.load()));
        for (service, old) in services.iter().filter(|(name, _)| !all.contains_key(*name)) {
            zone.change(service, old, &none);
        }
        for (service, new) in &all {
            let old = services.get(service).unwrap_or(&none);
            if old != new {
                zone.change(service, old, new);
            }
        }
        *services = all.into_iter().collect();
        self.zone.store(Arc::new(zone));
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::time::{Duration, Instant};

    use gantry_cri::dns::DnsRecord;
    use hickory_proto::op::{Query, ResponseCode};
    use hickory_proto::rr::{Name, RecordType};

    use super::*;
    use crate::zone::Found;

    fn service(index: u32) -> ServiceName {
        ServiceName {
            namespace: format!("n{}", index % 20),
            name: format!("s{index}"),
        }
    }

    /// A headless service of ten pods, in the given generation of addresses.
    fn table(index: u32, generation: u8) -> DnsTable {
        let ServiceName { namespace, name } = service(index);
        let base = format!("{name}.{namespace}.svc.cluster.local");
        let [_, high, low, _] = (index << 8).to_be_bytes();
        let address = |pod: u8| IpAddr::from([10 + generation, high, low, pod]);
        let mut table = DnsTable::default();
        let all = (0..10).map(address).collect();
        table
            .records
            .insert(base.clone(), vec![DnsRecord::Addresses(all)]);
        for pod in 0..10 {
            let name = format!("p{pod}.{base}");
            let own = vec![DnsRecord::Addresses(vec![address(pod)])];
            table.records.insert(name.clone(), own);
            table.reverse.insert(address(pod), name);
        }
        table
    }

    fn addresses(zone: &Zone, name: &str) -> Vec<IpAddr> {
        let query = Query::query(Name::from_ascii(name).unwrap(), RecordType::A);
        let Found::Answer(found) = zone.find(&query, 0) else {
            panic!("{name} is not of this zone")
        };
        let addresses = found.answers.iter();
        addresses
            .filter_map(|record| record.data.ip_addr())
            .collect()
    }

    #[test]
    fn a_change_among_a_thousand_services_costs_what_one_service_costs() {
        let published = Published::new("cluster.local").unwrap();
        let all = (0..1000).map(|i| (service(i), table(i, 0))).collect();
        published.replace(all);
        let alone = Published::new("cluster.local").unwrap();
        alone.change(service(500), Some(table(500, 0)));
        let cost = |published: &Published| {
            let mut best = Duration::MAX;
            for round in 1..40 {
                let start = Instant::now();
                published.change(service(500), Some(table(500, round % 2)));
                best = best.min(start.elapsed());
            }
            best
        };
        let (among, by_itself) = (cost(&published), cost(&alone));
        // Paths are longer by the logarithm; copying or rebuilding would be a thousand times as much.
        assert!(
            among < by_itself * 20,
            "{among:?} among 1,000 services, {by_itself:?} alone"
        );
    }

    #[test]
    fn readers_see_all_of_a_change_or_nothing() {
        let published = Arc::new(Published::new("cluster.local").unwrap());
        published.replace((0..50).map(|i| (service(i), table(i, 0))).collect());
        let writer = std::thread::spawn({
            let published = Arc::clone(&published);
            move || {
                for round in 1..=30 {
                    published.change(service(7), Some(table(7, round % 2)));
                    published.replace((0..50).map(|i| (service(i), table(i, round % 2))).collect());
                }
            }
        });
        while !writer.is_finished() {
            let zone = published.zone();
            let all = addresses(&zone, "s7.n7.svc.cluster.local.");
            assert_eq!(all.len(), 10);
            for (pod, address) in all.iter().enumerate() {
                let name = format!("p{pod}.s7.n7.svc.cluster.local.");
                assert_eq!(addresses(&zone, &name), [*address]);
            }
        }
        writer.join().unwrap();
    }

    #[test]
    fn what_is_replaced_or_removed_is_gone() {
        let published = Published::new("cluster.local").unwrap();
        published.change(service(1), Some(table(1, 0)));
        published.change(service(2), Some(table(2, 0)));
        published.replace(BTreeMap::from([(service(2), table(2, 1))]));
        let zone = published.zone();
        assert!(addresses(&zone, "s1.n1.svc.cluster.local.").is_empty());
        assert_eq!(
            addresses(&zone, "p3.s2.n2.svc.cluster.local."),
            [IpAddr::from([11, 0, 2, 3])]
        );
        published.change(service(2), None);
        let query = Query::query(
            Name::from_ascii("n2.svc.cluster.local.").unwrap(),
            RecordType::A,
        );
        let Found::Answer(found) = published.zone().find(&query, 0) else {
            panic!("not of this zone")
        };
        assert_eq!(
            found.code,
            ResponseCode::NXDomain,
            "no service is left below"
        );
    }
}
