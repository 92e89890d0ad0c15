//! EndpointSlice: where a service's pods are.

use std::collections::BTreeSet;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointHints, EndpointPort, EndpointSlice};
use serde_json::json;

use super::addresses;
use super::table::{self, Printer};
use crate::field::{ErrorList, Path};
use crate::kind::{Kind, MetadataChecks, StaticInfo};
use crate::meta::NameRule;
use crate::names;

/// See [`EndpointSlice`].
pub struct EndpointSliceKind;

const MAX_ENDPOINTS: usize = 1000;
const MAX_ADDRESSES: usize = 100;
const MAX_PORTS: usize = 20_000;
const MAX_HINTS: usize = 8;

fn validate_ports(ports: &[EndpointPort], errors: &mut ErrorList) {
    if ports.len() > MAX_PORTS {
        return errors.too_many(&Path::new("ports"), ports.len(), MAX_PORTS);
    }
    let mut taken = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let path = Path::new("ports").index(index);
        let name = port.name.as_deref().unwrap_or_default();
        if !name.is_empty() {
            errors.invalid_each(&path.child("name"), name, names::dns1123_label(name));
        }
        if !taken.insert(name) {
            errors.duplicate(&path.child("name"), name);
        }
        let protocol = port.protocol.as_deref();
        addresses::check_protocol(protocol, &path.child("protocol"), errors);
        if let Some(name) = &port.app_protocol {
            let details = names::qualified_name(name);
            errors.invalid_each(&path.child("appProtocol"), name, details);
        }
    }
}

fn validate_endpoints(endpoints: &[Endpoint], family: &str, errors: &mut ErrorList) {
    let path = Path::new("endpoints");
    if endpoints.len() > MAX_ENDPOINTS {
        errors.too_many(&path, endpoints.len(), MAX_ENDPOINTS);
        return;
    }
    for (index, endpoint) in endpoints.iter().enumerate() {
        let path = path.index(index);
        let list = path.child("addresses");
        match endpoint.addresses.len() {
            0 => errors.required(&list, "must contain at least 1 address"),
            1..=MAX_ADDRESSES => {}
            more => errors.too_many(&list, more, MAX_ADDRESSES),
        }
        for (index, address) in endpoint.addresses.iter().enumerate() {
            validate_address(address, family, &list, index, errors);
        }
        if let Some(node) = &endpoint.node_name {
            let details = names::dns1123_subdomain(node);
            errors.invalid_each(&path.child("nodeName"), node, details);
        }
        if let Some(name) = &endpoint.hostname {
            let details = names::dns1123_label(name);
            errors.invalid_each(&path.child("hostname"), name, details);
        }
        if let Some(hints) = &endpoint.hints {
            validate_hints(hints, &path.child("hints"), errors);
        }
    }
}

/// Checks for whom an endpoint is: few, and each once.
fn validate_hints(hints: &EndpointHints, path: &Path, errors: &mut ErrorList) {
    let zones = hints.for_zones.iter().flatten();
    let nodes = hints.for_nodes.iter().flatten();
    let lists: [(&str, NameRule, Vec<&str>); 2] = [
        (
            "forZones",
            names::label_value,
            zones.map(|zone| zone.name.as_str()).collect(),
        ),
        (
            "forNodes",
            names::dns1123_subdomain,
            nodes.map(|node| node.name.as_str()).collect(),
        ),
    ];
    for (field, rule, list) in lists {
        let path = path.child(field);
        if list.len() > MAX_HINTS {
            errors.too_many(&path, list.len(), MAX_HINTS);
            return;
        }
        let mut taken = BTreeSet::new();
        for (index, name) in list.into_iter().enumerate() {
            let path = path.index(index).child("name");
            if !taken.insert(name) {
                errors.duplicate(&path, name);
            }
            errors.invalid_each(&path, name, rule(name));
        }
    }
}

fn validate_address(
    address: &str,
    family: &str,
    list: &Path,
    index: usize,
    errors: &mut ErrorList,
) {
    let path = list.index(index);
    let before = errors.0.len();
    match family {
        "IPv4" | "IPv6" => {
            addresses::check(address, &path, errors);
            if errors.0.len() > before {
                return;
            }
            let actual = if address.contains(':') {
                "IPv6"
            } else {
                "IPv4"
            };
            if actual != family {
                errors.invalid(list, address, &format!("must be an {family} address"));
            }
            addresses::check_ordinary(address, &path, errors);
        }
        "FQDN" => {
            let name = address.strip_suffix('.').unwrap_or(address);
            let details = names::dns1123_subdomain(name);
            let mut labels = name.split('.');
            if address.is_empty() {
                errors.required(&path, "");
            } else if !details.is_empty() {
                errors.invalid(&path, name, &details.join(","));
            } else if !name.contains('.') {
                let detail = "should be a domain with at least two segments separated by dots";
                errors.invalid(&path, name, detail);
            } else if let Some(label) = labels.find(|label| !names::dns1123_label(label).is_empty())
            {
                let details = names::dns1123_label(label);
                errors.invalid(&path, label, &details.join(","));
            }
        }
        // Said already, of the field that names the family.
        _ => {}
    }
}

/// Takes away what only an older version of the API has set. Who named nodes that way goes on naming them.
fn drop_topology(slice: &mut EndpointSlice, old: Option<&EndpointSlice>) {
    const HOSTNAME: &str = "kubernetes.io/hostname";
    let before = old.and_then(|old| old.endpoints.as_ref());
    let known: BTreeSet<&String> = before
        .into_iter()
        .flatten()
        .filter_map(|endpoint| endpoint.deprecated_topology.as_ref()?.get(HOSTNAME))
        .collect();
    for endpoint in slice.endpoints.iter_mut().flatten() {
        let named = endpoint
            .deprecated_topology
            .take()
            .and_then(|mut topology| topology.remove(HOSTNAME))
            .filter(|name| known.contains(name) && names::dns1123_subdomain(name).is_empty());
        if endpoint.node_name.is_none() {
            endpoint.node_name = named;
        }
    }
}

/// The first few ports of a slice.
fn shown_ports(ports: &[EndpointPort]) -> String {
    let first: Vec<String> = ports
        .iter()
        .take(table::SHOWN)
        .map(|port| match (port.port, &port.name) {
            (Some(number), _) => number.to_string(),
            (None, Some(name)) => name.clone(),
            (None, None) => "*".to_owned(),
        })
        .collect();
    table::few(&first, ports.len(), "<unset>")
}

/// The first few addresses of a slice.
fn shown_addresses(endpoints: &[Endpoint]) -> String {
    let all = endpoints.iter().flat_map(|endpoint| &endpoint.addresses);
    let first: Vec<&String> = all.take(table::SHOWN).collect();
    let total = endpoints.iter().map(|endpoint| endpoint.addresses.len());
    table::few(&first, total.sum(), "<unset>")
}

impl Kind for EndpointSliceKind {
    type Object = EndpointSlice;

    const INFO: StaticInfo = StaticInfo {
        group: "discovery.k8s.io",
        version: "v1",
        kind: "EndpointSlice",
        plural: "endpointslices",
        singular: "endpointslice",
        short_names: &[],
        categories: &[],
        namespaced: true,
        has_status: false,
        has_scale: false,
        has_generation: true,
        create_on_update: false,
    };

    const UPDATE_METADATA: MetadataChecks = MetadataChecks::Whole;

    fn default(object: &mut EndpointSlice) {
        for port in object.ports.iter_mut().flatten() {
            port.name.get_or_insert_default();
            port.protocol.get_or_insert_with(|| "TCP".to_owned());
        }
    }

    fn prepare_create(object: &mut EndpointSlice) {
        drop_topology(object, None);
    }

    fn validate(object: &EndpointSlice, errors: &mut ErrorList) {
        let path = Path::new("addressType");
        match object.address_type.as_str() {
            "" => errors.required(&path, ""),
            "IPv4" | "IPv6" | "FQDN" => {}
            other => errors.not_supported(&path, other, &["FQDN", "IPv4", "IPv6"]),
        }
        validate_ports(object.ports.as_deref().unwrap_or_default(), errors);
        let endpoints = object.endpoints.as_deref().unwrap_or_default();
        validate_endpoints(endpoints, &object.address_type, errors);
    }

    fn validate_update(new: &EndpointSlice, old: &EndpointSlice, errors: &mut ErrorList) {
        Self::validate(new, errors);
        if new.address_type != old.address_type {
            let path = Path::new("addressType");
            errors.invalid(&path, &new.address_type, "field is immutable");
        }
    }

    fn warnings(new: &EndpointSlice, _old: Option<&EndpointSlice>) -> Vec<String> {
        if new.address_type == "FQDN" {
            return vec!["spec.addressType: FQDN endpoints are deprecated".to_owned()];
        }
        let mut warnings = Vec::new();
        for (index, endpoint) in new.endpoints.iter().flatten().enumerate() {
            let path = Path::new("endpoints").index(index).child("addresses");
            for (index, address) in endpoint.addresses.iter().enumerate() {
                warnings.extend(addresses::form_warning(address, &path.index(index)));
            }
        }
        warnings
    }

    fn prepare_update(new: &mut EndpointSlice, old: &EndpointSlice) {
        if new.endpoints != old.endpoints {
            drop_topology(new, Some(old));
        }
    }

    fn changed(new: &EndpointSlice, old: &EndpointSlice) -> bool {
        new.endpoints != old.endpoints
            || new.ports != old.ports
            || new.metadata.labels != old.metadata.labels
    }

    fn printer() -> Printer<EndpointSlice> {
        let text = |name, field| {
            table::column(name, "string", table::field_doc::<EndpointSlice>(field), 0)
        };
        Printer::<EndpointSlice>::named()
            .column(text("AddressType", "addressType"), |object| {
                json!(object.address_type)
            })
            .column(text("Ports", "ports"), |object| {
                json!(shown_ports(object.ports.as_deref().unwrap_or_default()))
            })
            .column(text("Endpoints", "endpoints"), |object| {
                let endpoints = object.endpoints.as_deref().unwrap_or_default();
                json!(shown_addresses(endpoints))
            })
            .age()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn parse(value: Value) -> EndpointSlice {
        let mut object = serde_json::from_value(value).unwrap();
        EndpointSliceKind::default(&mut object);
        object
    }

    #[test]
    fn addresses_are_of_the_family_and_ordinary() {
        let object = parse(json!({
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["::1", "169.254.0.1", "nope"]}, {"addresses": []}],
            "ports": [{"name": "A_B", "protocol": "X"}, {"name": "d"}, {"name": "d"}]
        }));
        let mut errors = ErrorList::default();
        EndpointSliceKind::validate(&object, &mut errors);
        let paths: Vec<String> = errors
            .0
            .iter()
            .map(|error| error.path.to_string())
            .collect();
        let expected = [
            "ports[0].name",
            "ports[0].protocol",
            "ports[2].name",
            "endpoints[0].addresses",
            "endpoints[0].addresses[0]",
            "endpoints[0].addresses[1]",
            "endpoints[0].addresses[2]",
            "endpoints[1].addresses",
        ];
        assert_eq!(paths, expected);
    }

    #[test]
    fn the_family_stays_and_the_generation_follows_the_endpoints() {
        let old = parse(json!({
            "metadata": {"generation": 1}, "addressType": "IPv4", "endpoints": []
        }));
        let update = |value: Value| {
            let mut new = parse(value);
            crate::typed::prepare_update::<EndpointSliceKind>(&mut new, &old);
            let mut errors = ErrorList::default();
            EndpointSliceKind::validate_update(&new, &old, &mut errors);
            (new.metadata.generation, errors.0.len())
        };
        let annotated = json!({
            "metadata": {"annotations": {"a": "b"}}, "addressType": "IPv4", "endpoints": []
        });
        assert_eq!(update(annotated), (Some(1), 0));
        let ready = json!({"addressType": "IPv4", "endpoints": [{"addresses": ["192.0.2.1"]}]});
        assert_eq!(update(ready), (Some(2), 0));
        assert_eq!(update(json!({"addressType": "IPv6", "endpoints": []})).1, 1);
    }

    #[test]
    fn a_row_shows_the_first_few() {
        let shown = |value: Value| {
            let row = EndpointSliceKind::printer().row(&parse(value), 0);
            (row[2].clone(), row[3].clone())
        };
        let addresses: Vec<String> = (2..=5).map(|last| format!("192.0.2.{last}")).collect();
        let many = json!({
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["192.0.2.1"]}, {"addresses": addresses}],
            "ports": [{"port": 1}, {"name": ""}]
        });
        let expected = (
            json!("1,"),
            json!("192.0.2.1,192.0.2.2,192.0.2.3 + 2 more..."),
        );
        assert_eq!(shown(many), expected);
        let none = json!({"addressType": "IPv4", "endpoints": []});
        assert_eq!(shown(none), (json!("<unset>"), json!("<unset>")));
    }
}
