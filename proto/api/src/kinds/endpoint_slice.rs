//! EndpointSlice: where a service's pods are.

use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use super::table;
use crate::field::{ErrorList, Path};
use crate::kind::{Column, Kind, ResourceInfo};

/// See [`EndpointSlice`].
pub struct EndpointSliceKind;

impl Kind for EndpointSliceKind {
    type Object = EndpointSlice;

    const INFO: ResourceInfo = ResourceInfo {
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

    fn default(object: &mut EndpointSlice) {
        for port in object.ports.iter_mut().flatten() {
            port.name.get_or_insert_default();
            port.protocol.get_or_insert_with(|| "TCP".to_owned());
        }
    }

    fn prepare_create(_object: &mut EndpointSlice) {}

    fn validate(object: &EndpointSlice, errors: &mut ErrorList) {
        let path = Path::new("addressType");
        match object.address_type.as_str() {
            "" => errors.required(&path, ""),
            "IPv4" | "IPv6" | "FQDN" => {}
            other => errors.not_supported(&path, other, &["FQDN", "IPv4", "IPv6"]),
        }
    }

    fn prepare_update(new: &mut EndpointSlice, old: &EndpointSlice) {
        let same = new.endpoints == old.endpoints
            && new.ports == old.ports
            && new.metadata.labels == old.metadata.labels;
        new.metadata.generation = old
            .metadata
            .generation
            .map(|generation| generation + i64::from(!same));
    }

    fn columns() -> Vec<Column> {
        vec![
            table::name_column(),
            table::column(
                "AddressType",
                "string",
                table::field_doc::<EndpointSlice>("addressType"),
                0,
            ),
            table::column(
                "Ports",
                "string",
                table::field_doc::<EndpointSlice>("ports"),
                0,
            ),
            table::column(
                "Endpoints",
                "string",
                table::field_doc::<EndpointSlice>("endpoints"),
                0,
            ),
            table::age_column(),
        ]
    }

    fn row(object: &EndpointSlice, now: i64) -> Vec<Value> {
        let ports: Vec<String> = object
            .ports
            .iter()
            .flatten()
            .map(|port| port.port.map_or("*".to_owned(), |port| port.to_string()))
            .collect();
        let addresses: Vec<&str> = object
            .endpoints
            .iter()
            .flatten()
            .flat_map(|endpoint| endpoint.addresses.iter().map(String::as_str))
            .collect();
        let some = |list: String| {
            if list.is_empty() {
                "<unset>".to_owned()
            } else {
                list
            }
        };
        let shown = match addresses.len() {
            0..=3 => addresses.join(","),
            more => format!("{} + {} more...", addresses[..3].join(","), more - 3),
        };
        vec![
            table::name_cell(&object.metadata),
            json!(object.address_type),
            json!(some(ports.join(","))),
            json!(some(shown)),
            table::age_cell(&object.metadata, now),
        ]
    }
}
