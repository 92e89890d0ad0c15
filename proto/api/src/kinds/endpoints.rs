//! Endpoints: where a service's pods are, in the form before [`super::endpoint_slice`].

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints};
use serde_json::json;

use super::addresses;
use super::table::{self, Printer};
use crate::field::{ErrorList, Path};
use crate::kind::{Kind, StaticInfo};
use crate::names;

const DEPRECATED: &str =
    "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice";

/// See [`Endpoints`].
pub struct EndpointsKind;

fn validate_address(address: &EndpointAddress, path: &Path, errors: &mut ErrorList) {
    let ip = path.child("ip");
    addresses::check(&address.ip, &ip, errors);
    if let Some(name) = address.hostname.as_ref().filter(|name| !name.is_empty()) {
        let details = names::dns1123_label(name);
        errors.invalid_each(&path.child("hostname"), name, details);
    }
    if let Some(node) = &address.node_name {
        let details = names::dns1123_subdomain(node);
        errors.invalid_each(&path.child("nodeName"), node, details);
    }
    addresses::check_ordinary(&address.ip, &ip, errors);
}

fn validate_port(port: &EndpointPort, needs_name: bool, path: &Path, errors: &mut ErrorList) {
    let name = port.name.as_deref().unwrap_or_default();
    if name.is_empty() {
        if needs_name {
            errors.required(&path.child("name"), "");
        }
    } else {
        errors.invalid_each(&path.child("name"), name, names::dns1123_label(name));
    }
    if let Some(detail) = names::is_port_number(i64::from(port.port)) {
        errors.invalid(&path.child("port"), port.port, &detail);
    }
    addresses::check_protocol(port.protocol.as_deref(), &path.child("protocol"), errors);
    if let Some(name) = &port.app_protocol {
        let details = names::qualified_name(name);
        errors.invalid_each(&path.child("appProtocol"), name, details);
    }
}

fn validate_subset(subset: &EndpointSubset, path: &Path, errors: &mut ErrorList) {
    let lists = [
        ("addresses", subset.addresses.as_deref().unwrap_or_default()),
        (
            "notReadyAddresses",
            subset.not_ready_addresses.as_deref().unwrap_or_default(),
        ),
    ];
    if lists.iter().all(|(_, list)| list.is_empty()) {
        errors.required(path, "must specify `addresses` or `notReadyAddresses`");
    }
    for (field, list) in lists {
        for (index, address) in list.iter().enumerate() {
            validate_address(address, &path.child(field).index(index), errors);
        }
    }
    let ports = subset.ports.as_deref().unwrap_or_default();
    for (index, port) in ports.iter().enumerate() {
        validate_port(
            port,
            ports.len() > 1,
            &path.child("ports").index(index),
            errors,
        );
    }
}

/// An address as it is written before a port.
fn host(ip: &str) -> String {
    match ip.contains(':') {
        true => format!("[{ip}]"),
        false => ip.to_owned(),
    }
}

/// Ready addresses with each port, the first few of them. Each address has each port: they are multiplied to be counted,
/// and only those that are shown are written.
fn shown(subsets: &[EndpointSubset]) -> String {
    let (mut first, mut total) = (Vec::new(), 0_usize);
    for subset in subsets {
        let ready = subset.addresses.as_deref().unwrap_or_default();
        let ports = subset.ports.as_deref().unwrap_or_default();
        total = total.saturating_add(ready.len().saturating_mul(ports.len().max(1)));
        let room = table::SHOWN - first.len();
        match ports {
            [] => first.extend(ready.iter().take(room).map(|address| address.ip.clone())),
            ports => {
                let each = ports
                    .iter()
                    .flat_map(|port| ready.iter().map(move |address| (address, port)));
                let written = |(address, port): (&EndpointAddress, &EndpointPort)| {
                    format!("{}:{}", host(&address.ip), port.port)
                };
                first.extend(each.take(room).map(written));
            }
        }
    }
    table::few(&first, total, "<none>")
}

impl Kind for EndpointsKind {
    type Object = Endpoints;

    const INFO: StaticInfo = StaticInfo {
        group: "",
        version: "v1",
        kind: "Endpoints",
        plural: "endpoints",
        singular: "endpoints",
        short_names: &["ep"],
        categories: &[],
        namespaced: true,
        has_status: false,
        has_scale: false,
        has_generation: false,
        create_on_update: true,
    };

    fn default(object: &mut Endpoints) {
        let subsets = object.subsets.iter_mut().flatten();
        for port in subsets.flat_map(|subset| subset.ports.iter_mut().flatten()) {
            if port.protocol.as_deref().unwrap_or_default().is_empty() {
                port.protocol = Some("TCP".to_owned());
            }
        }
    }

    const DEPRECATION: Option<&'static str> = Some(DEPRECATED);

    fn validate(object: &Endpoints, errors: &mut ErrorList) {
        for (index, subset) in object.subsets.iter().flatten().enumerate() {
            validate_subset(subset, &Path::new("subsets").index(index), errors);
        }
    }

    fn warnings(new: &Endpoints, _old: Option<&Endpoints>) -> Vec<String> {
        let mut warnings = Vec::new();
        for (index, subset) in new.subsets.iter().flatten().enumerate() {
            let path = Path::new("subsets").index(index);
            for (field, list) in [
                ("addresses", &subset.addresses),
                ("notReadyAddresses", &subset.not_ready_addresses),
            ] {
                for (index, address) in list.iter().flatten().enumerate() {
                    let path = path.child(field).index(index).child("ip");
                    warnings.extend(addresses::form_warning(&address.ip, &path));
                }
            }
        }
        warnings
    }

    fn validate_update(new: &Endpoints, old: &Endpoints, errors: &mut ErrorList) {
        // What is there already holds up no change of anything else.
        if new.subsets != old.subsets {
            Self::validate(new, errors);
        }
    }

    fn printer() -> Printer<Endpoints> {
        let subsets = table::field_doc::<Endpoints>("subsets");
        Printer::<Endpoints>::named()
            .column(table::column("Endpoints", "string", subsets, 0), |object| {
                json!(shown(object.subsets.as_deref().unwrap_or_default()))
            })
            .age()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn parse(subsets: Value) -> Endpoints {
        let mut object = serde_json::from_value(json!({"subsets": subsets})).unwrap();
        EndpointsKind::default(&mut object);
        object
    }

    #[test]
    fn subsets_have_ordinary_addresses_and_named_ports() {
        let object = parse(json!([
            {
                "addresses": [{"ip": "127.0.0.1"}, {"ip": "x"}],
                "ports": [{"port": 0}, {"port": 80}]
            },
            {}
        ]));
        let mut errors = ErrorList::default();
        EndpointsKind::validate(&object, &mut errors);
        let paths: Vec<String> = errors
            .0
            .iter()
            .map(|error| error.path.to_string())
            .collect();
        let expected = [
            "subsets[0].addresses[0].ip",
            "subsets[0].addresses[1].ip",
            "subsets[0].addresses[1].ip",
            "subsets[0].ports[0].name",
            "subsets[0].ports[0].port",
            "subsets[0].ports[1].name",
            "subsets[1]",
        ];
        assert_eq!(paths, expected);
    }

    #[test]
    fn a_row_shows_the_first_few_ready_ones() {
        let show = |subsets: Value| shown(parse(subsets).subsets.as_deref().unwrap());
        let ready = json!([{"addresses": [{"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}], "ports": [{"port": 1}, {"port": 2}]}]);
        assert_eq!(
            show(ready),
            "192.0.2.1:1,[2001:db8::1]:1,192.0.2.1:2 + 1 more..."
        );
        assert_eq!(
            show(json!([{"addresses": [{"ip": "192.0.2.1"}]}])),
            "192.0.2.1"
        );
        let mixed = json!([
            {"addresses": [{"ip": "192.0.2.1"}]},
            {"notReadyAddresses": [{"ip": "192.0.2.9"}], "ports": [{"port": 1}]},
            {"addresses": [{"ip": "192.0.2.2"}], "ports": [{"port": 1}, {"port": 2}]}
        ]);
        assert_eq!(show(mixed), "192.0.2.1,192.0.2.2:1,192.0.2.2:2");
        assert_eq!(
            show(json!([{"notReadyAddresses": [{"ip": "192.0.2.1"}]}])),
            "<none>"
        );
    }

    #[test]
    fn a_row_is_made_of_what_it_shows_however_many_there_are() {
        // Written out, these would be more than any memory holds.
        let subset = EndpointSubset {
            addresses: Some(vec![EndpointAddress::default(); 100_000]),
            ports: Some(vec![EndpointPort::default(); 100_000]),
            ..EndpointSubset::default()
        };
        assert_eq!(shown(&[subset]), ":0,:0,:0 + 9999999997 more...");
    }
}
