//! The pure part: from endpoints to the slices that mirror them.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointSubset, Endpoints};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::claim::controller_reference;
use crate::endpoint_slice::plan::{LAST_CHANGE, MANAGED_BY, Plan, ports_key};
use crate::selection::SERVICE_NAME;

pub(super) const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
/// Addresses of one subset that are mirrored.
pub(super) const PER_SUBSET: usize = 1000;
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Endpoints that were used as a lock, before there were leases.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Of the controller that keeps endpoints of services with a selector.
const ENDPOINTS_MANAGER: &str = "endpoints.kubernetes.io/managed-by";

/// Whether the endpoints are somebody's own, to be told again as slices.
pub(super) fn is_mirrored(endpoints: &Endpoints) -> bool {
    let labels = endpoints.metadata.labels.as_ref();
    let label = |name: &str| labels.and_then(|labels| labels.get(name));
    let annotations = endpoints.metadata.annotations.as_ref();
    let is_lock = annotations.is_some_and(|annotations| annotations.contains_key(LEADER));
    label(SKIP).map(String::as_str) != Some("true")
        && label(ENDPOINTS_MANAGER).is_none()
        && !is_lock
}

/// A slice's family and ports, by which it is found again.
type Group = (&'static str, String);

/// Compares the slices there are with those there should be; the number is that of addresses that do not fit.
pub(super) fn plan(endpoints: &Endpoints, existing: &[Arc<EndpointSlice>]) -> (Plan, usize) {
    let mut wanted: BTreeMap<Group, (Vec<EndpointPort>, Vec<Endpoint>)> = BTreeMap::new();
    let mut skipped = 0;
    for subset in endpoints.subsets.iter().flatten() {
        let ports = ports(subset);
        let lists = [
            (&subset.addresses, true),
            (&subset.not_ready_addresses, false),
        ];
        let all = lists
            .into_iter()
            .flat_map(|(list, ready)| list.iter().flatten().map(move |one| (one, ready)));
        for (number, (address, ready)) in all.enumerate() {
            if number >= PER_SUBSET {
                skipped += 1;
                continue;
            }
            let family = match address.ip.contains(':') {
                true => "IPv6",
                false => "IPv4",
            };
            let group = (family, ports_key(&ports));
            let (_, list) = wanted
                .entry(group)
                .or_insert_with(|| (ports.clone(), Vec::new()));
            list.push(endpoint(address, ready));
        }
    }
    let mut plan = Plan::default();
    let mut known: BTreeMap<Group, Vec<&Arc<EndpointSlice>>> = BTreeMap::new();
    for slice in existing {
        let family = match slice.address_type.as_str() {
            "IPv6" => "IPv6",
            _ => "IPv4",
        };
        let key = ports_key(slice.ports.as_deref().unwrap_or_default());
        known.entry((family, key)).or_default().push(slice);
    }
    for (group, (ports, list)) in wanted {
        let mut slices = known.remove(&group).unwrap_or_default().into_iter();
        // Several subsets may share their ports.
        for part in list.chunks(PER_SUBSET) {
            let before = slices.next();
            let slice = slice(endpoints, group.0, &ports, part, before);
            match before {
                Some(before) if **before == slice => {}
                Some(_) => plan.update.push(slice),
                None => plan.create.push(slice),
            }
        }
        plan.delete.extend(slices.map(|slice| (**slice).clone()));
    }
    let left = known.into_values().flatten();
    plan.delete.extend(left.map(|slice| (**slice).clone()));
    (plan, skipped)
}

fn ports(subset: &EndpointSubset) -> Vec<EndpointPort> {
    let ports = subset.ports.iter().flatten();
    ports
        .map(|port| EndpointPort {
            name: Some(port.name.clone().unwrap_or_default()),
            port: Some(port.port),
            protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
            app_protocol: port.app_protocol.clone(),
        })
        .collect()
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            ..EndpointConditions::default()
        }),
        hostname: address.hostname.clone().filter(|name| !name.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

fn slice(
    of: &Endpoints,
    family: &str,
    ports: &[EndpointPort],
    endpoints: &[Endpoint],
    before: Option<&Arc<EndpointSlice>>,
) -> EndpointSlice {
    let name = of.metadata.name.clone().unwrap_or_default();
    let mut slice = before.map_or_else(
        || EndpointSlice {
            address_type: family.to_owned(),
            metadata: ObjectMeta {
                generate_name: Some(format!("{name}-")),
                namespace: of.metadata.namespace.clone(),
                ..ObjectMeta::default()
            },
            ..EndpointSlice::default()
        },
        |before| (**before).clone(),
    );
    let mut labels = of.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.to_owned(), name);
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    slice.metadata.labels = Some(labels);
    let mut annotations = of.metadata.annotations.clone().unwrap_or_default();
    annotations.retain(|key, _| key != LAST_CHANGE && key != LAST_APPLIED);
    slice.metadata.annotations = Some(annotations).filter(|annotations| !annotations.is_empty());
    // Endpoints that were made anew under the same name take over.
    slice.metadata.owner_references = Some(vec![controller_reference(of)]);
    slice.ports = Some(ports.to_vec()).filter(|ports| !ports.is_empty());
    slice.endpoints = Some(endpoints.to_vec());
    slice
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn endpoints(subsets: Value) -> Endpoints {
        serde_json::from_value(json!({
            "metadata": {
                "name": "e", "namespace": "ns", "uid": "u",
                "labels": {"l": "v"},
                "annotations": {"a": "b", LAST_CHANGE: "t", LAST_APPLIED: "{}"}
            },
            "subsets": subsets
        }))
        .expect("endpoints")
    }

    fn numbered(plan: &Plan) -> Vec<Arc<EndpointSlice>> {
        let slices = plan.create.iter().chain(&plan.update).cloned();
        slices
            .enumerate()
            .map(|(number, mut slice)| {
                slice.metadata.name.get_or_insert(format!("e-{number}"));
                Arc::new(slice)
            })
            .collect()
    }

    fn sizes(plan: &Plan) -> (usize, usize, usize) {
        (plan.create.len(), plan.update.len(), plan.delete.len())
    }

    #[test]
    fn each_family_and_set_of_ports_is_a_slice() {
        let object = endpoints(json!([
            {
                "addresses": [{"ip": "192.0.2.1", "hostname": "h", "nodeName": "n"}, {"ip": "2001:db8::1"}],
                "notReadyAddresses": [{"ip": "192.0.2.2"}],
                "ports": [{"name": "p", "port": 80, "protocol": "TCP"}]
            },
            {"addresses": [{"ip": "192.0.2.3"}], "ports": [{"port": 81, "protocol": "UDP"}]}
        ]));
        let (plan, skipped) = plan(&object, &[]);
        assert_eq!((sizes(&plan), skipped), ((3, 0, 0), 0));
        let first = plan
            .create
            .iter()
            .find(|slice| slice.endpoints.iter().flatten().count() == 2)
            .expect("two of a family");
        let json: Value = serde_json::to_value(first).expect("JSON");
        assert_eq!(
            json["endpoints"],
            json!([
                {"addresses": ["192.0.2.1"], "conditions": {"ready": true}, "hostname": "h", "nodeName": "n"},
                {"addresses": ["192.0.2.2"], "conditions": {"ready": false}},
            ])
        );
        assert_eq!(
            json["ports"],
            json!([{"name": "p", "port": 80, "protocol": "TCP"}])
        );
        assert_eq!(
            json["metadata"]["labels"],
            json!({"l": "v", SERVICE_NAME: "e", MANAGED_BY: MANAGER})
        );
        assert_eq!(json["metadata"]["annotations"], json!({"a": "b"}));
        assert_eq!(json["metadata"]["ownerReferences"][0]["kind"], "Endpoints");
        let existing = numbered(&plan);
        assert_eq!(super::plan(&object, &existing).0, Plan::default());
        let fewer = endpoints(json!([
            {"addresses": [{"ip": "192.0.2.9"}], "ports": [{"port": 81, "protocol": "UDP"}]}
        ]));
        assert_eq!(sizes(&super::plan(&fewer, &existing).0), (0, 1, 2));
        assert_eq!(
            sizes(&super::plan(&endpoints(json!([])), &existing).0),
            (0, 0, 3)
        );
    }

    #[test]
    fn a_subset_is_mirrored_up_to_a_thousand_addresses() {
        let address =
            |number: usize| json!({"ip": format!("10.{}.{}.1", number / 250, number % 250)});
        let subset = json!({
            "addresses": (0..990).map(address).collect::<Vec<_>>(),
            "notReadyAddresses": (990..1020).map(address).collect::<Vec<_>>()
        });
        let (plan, skipped) = plan(
            &endpoints(json!([subset, {"addresses": [{"ip": "10.9.9.9"}]}])),
            &[],
        );
        assert_eq!(skipped, 20);
        let counts: Vec<_> = plan
            .create
            .iter()
            .map(|slice| slice.endpoints.iter().flatten().count())
            .collect();
        assert_eq!(counts, [1000, 1]);
    }

    #[test]
    fn some_endpoints_are_left_alone() {
        let with = |metadata: Value| -> Endpoints {
            serde_json::from_value(json!({"metadata": metadata})).expect("endpoints")
        };
        assert!(is_mirrored(&with(json!({}))));
        assert!(is_mirrored(&with(json!({"labels": {SKIP: "false"}}))));
        assert!(!is_mirrored(&with(json!({"labels": {SKIP: "true"}}))));
        assert!(!is_mirrored(&with(
            json!({"labels": {ENDPOINTS_MANAGER: "endpoint-controller"}})
        )));
        assert!(!is_mirrored(&with(json!({"annotations": {LEADER: "{}"}}))));
    }
}
