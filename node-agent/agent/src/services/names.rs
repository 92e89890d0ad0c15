//! What the cluster's DNS answers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use gantry_cri::dns::{DnsRecord, DnsTable};
use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::{ServiceObjects, cluster_ips, is_ready, port_number};

/// The names of a service; `None` for one that is gone.
pub(crate) fn names(objects: &ServiceObjects, domain: &str) -> Option<DnsTable> {
    let service = objects.service.as_ref()?;
    let (spec, namespace, name) = (
        service.spec.as_ref()?,
        service.metadata.namespace.as_ref()?,
        service.metadata.name.as_ref()?,
    );
    let base = format!("{name}.{namespace}.svc.{domain}").to_lowercase();
    let mut table = DnsTable::default();
    if spec.type_.as_deref() == Some("ExternalName") {
        let target = spec.external_name.clone().unwrap_or_default();
        let alias = DnsRecord::Alias(target.trim_end_matches('.').to_lowercase());
        table.records.insert(base, vec![alias]);
        return Some(table);
    }
    if cluster_ips(service).is_empty() {
        headless(&mut table, &base, &objects.slices);
    } else {
        with_address(&mut table, &base, service, spec);
    }
    Some(table)
}

fn with_address(table: &mut DnsTable, base: &str, service: &Service, spec: &ServiceSpec) {
    let ips = cluster_ips(service);
    table
        .reverse
        .extend(ips.iter().map(|&ip| (ip, base.to_owned())));
    table
        .records
        .insert(base.to_owned(), vec![DnsRecord::Addresses(ips)]);
    for port in spec.ports.iter().flatten() {
        if let (Some(owner), Some(number)) = (
            srv_owner(port.name.as_deref(), port.protocol.as_deref(), base),
            port_number(port.port),
        ) {
            let target = (0, 100, number, base.to_owned());
            table
                .records
                .insert(owner, vec![DnsRecord::Services(vec![target])]);
        }
    }
}

fn srv_owner(port: Option<&str>, protocol: Option<&str>, base: &str) -> Option<String> {
    let port = port.filter(|port| !port.is_empty())?;
    Some(format!(
        "_{}._{}.{base}",
        port.to_lowercase(),
        protocol.unwrap_or("TCP").to_lowercase()
    ))
}

/// A headless service: its name is all of its endpoints, each of which has a name of its own.
fn headless(table: &mut DnsTable, base: &str, slices: &[Arc<EndpointSlice>]) {
    let mut all: Vec<IpAddr> = Vec::new();
    let mut targets: BTreeMap<String, BTreeSet<(u16, u16, u16, String)>> = BTreeMap::new();
    let mut hosts: BTreeMap<String, BTreeSet<IpAddr>> = BTreeMap::new();
    for slice in slices {
        for endpoint in slice
            .endpoints
            .iter()
            .flatten()
            .filter(|endpoint| is_ready(endpoint))
        {
            for ip in endpoint
                .addresses
                .iter()
                .filter_map(|address| address.parse::<IpAddr>().ok())
            {
                let label = match endpoint
                    .hostname
                    .as_deref()
                    .filter(|hostname| !hostname.is_empty())
                {
                    Some(hostname) => hostname.to_lowercase(),
                    None => ip.to_string().replace(['.', ':'], "-"),
                };
                let host = format!("{label}.{base}");
                all.push(ip);
                if endpoint.hostname.is_some() {
                    table.reverse.insert(ip, host.clone());
                }
                hosts.entry(host.clone()).or_default().insert(ip);
                for port in slice.ports.iter().flatten() {
                    if let (Some(owner), Some(number)) = (
                        srv_owner(port.name.as_deref(), port.protocol.as_deref(), base),
                        port.port.and_then(port_number),
                    ) {
                        targets
                            .entry(owner)
                            .or_default()
                            .insert((0, 100, number, host.clone()));
                    }
                }
            }
        }
    }
    all.sort_unstable();
    all.dedup();
    if !all.is_empty() {
        table
            .records
            .insert(base.to_owned(), vec![DnsRecord::Addresses(all)]);
    }
    for (host, ips) in hosts {
        table
            .records
            .insert(host, vec![DnsRecord::Addresses(ips.into_iter().collect())]);
    }
    for (owner, targets) in targets {
        table.records.insert(
            owner,
            vec![DnsRecord::Services(targets.into_iter().collect())],
        );
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::{cluster_ip, service};
    use super::*;

    #[test]
    fn an_external_name_is_an_alias_and_a_service_that_is_gone_nothing() {
        let external = service(json!({"type": "ExternalName", "externalName": "example.org."}));
        let table = names(&external, "cluster.local").unwrap();
        assert_eq!(
            table.records["web.shop.svc.cluster.local"],
            [DnsRecord::Alias("example.org".into())]
        );
        assert_eq!(names(&ServiceObjects::default(), "cluster.local"), None);
    }

    #[test]
    fn a_service_has_its_addresses_a_port_record_and_reverse_names() {
        let mut spec = cluster_ip();
        spec["clusterIPs"] = json!(["10.96.0.9", "fd10:96::9"]);
        let table = names(&service(spec), "cluster.local").unwrap();
        let name = "web.shop.svc.cluster.local".to_owned();
        let ips: [IpAddr; 2] = ["10.96.0.9", "fd10:96::9"].map(|ip| ip.parse().unwrap());
        assert_eq!(table.records[&name], [DnsRecord::Addresses(ips.to_vec())]);
        assert_eq!(
            table.records[&format!("_http._tcp.{name}")],
            [DnsRecord::Services(vec![(0, 100, 80, name.clone())])]
        );
        assert_eq!(table.reverse, ips.map(|ip| (ip, name.clone())).into());
    }

    #[test]
    fn pods_of_a_headless_service_have_names() {
        let spec = json!({"clusterIP": "None", "ports": [{"name": "http", "port": 80}]});
        let objects = service(spec).with(json!([
            {"addresses": ["10.0.0.2"], "hostname": "web-0", "conditions": {"ready": true}},
            {"addresses": ["10.0.0.3"], "conditions": {"ready": true}},
            {"addresses": ["10.0.0.4"], "conditions": {"ready": false}}
        ]));
        let table = names(&objects, "cluster.local").unwrap();
        let base = "web.shop.svc.cluster.local";
        assert!(matches!(&table.records[base][..], [DnsRecord::Addresses(all)] if all.len() == 2));
        assert!(table.records.contains_key(&format!("web-0.{base}")));
        assert!(table.records.contains_key(&format!("10-0-0-3.{base}")));
        let srv = &table.records[&format!("_http._tcp.{base}")];
        assert!(
            matches!(&srv[..], [DnsRecord::Services(targets)] if targets.len() == 2 && targets[0].2 == 8080)
        );
        assert_eq!(
            table.reverse[&"10.0.0.2".parse::<IpAddr>().unwrap()],
            format!("web-0.{base}")
        );
    }
}
