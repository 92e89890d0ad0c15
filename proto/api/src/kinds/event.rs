//! Event: something that happened to an object.

use k8s_openapi::api::core::v1::Event;
use serde_json::{Value, json};

use super::table;
use crate::kind::{Column, Kind, ResourceInfo};

/// See [`Event`].
pub struct EventKind;

fn text(text: Option<&String>) -> String {
    text.cloned().unwrap_or_default()
}

impl Kind for EventKind {
    type Object = Event;

    const INFO: ResourceInfo = ResourceInfo {
        group: "",
        version: "v1",
        kind: "Event",
        plural: "events",
        singular: "event",
        short_names: &["ev"],
        categories: &[],
        namespaced: true,
        has_status: false,
        has_scale: false,
        has_generation: false,
        create_on_update: true,
    };

    const FIELD_LABELS: &'static [&'static str] = &[
        "involvedObject.apiVersion",
        "involvedObject.fieldPath",
        "involvedObject.kind",
        "involvedObject.name",
        "involvedObject.namespace",
        "involvedObject.resourceVersion",
        "involvedObject.uid",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ];

    fn prepare_create(_object: &mut Event) {}

    fn prepare_update(_new: &mut Event, _old: &Event) {}

    fn selectable_fields(object: &Event) -> Vec<(&'static str, String)> {
        let about = &object.involved_object;
        let component = object
            .source
            .as_ref()
            .and_then(|source| source.component.as_ref());
        let source = match text(component) {
            component if component.is_empty() => text(object.reporting_component.as_ref()),
            component => component,
        };
        vec![
            (
                "involvedObject.apiVersion",
                text(about.api_version.as_ref()),
            ),
            ("involvedObject.fieldPath", text(about.field_path.as_ref())),
            ("involvedObject.kind", text(about.kind.as_ref())),
            ("involvedObject.name", text(about.name.as_ref())),
            ("involvedObject.namespace", text(about.namespace.as_ref())),
            (
                "involvedObject.resourceVersion",
                text(about.resource_version.as_ref()),
            ),
            ("involvedObject.uid", text(about.uid.as_ref())),
            ("reason", text(object.reason.as_ref())),
            (
                "reportingComponent",
                text(object.reporting_component.as_ref()),
            ),
            ("source", source),
            ("type", text(object.type_.as_ref())),
        ]
    }

    fn columns() -> Vec<Column> {
        let doc = |field: &str| table::field_doc::<Event>(field);
        vec![
            table::column("Last Seen", "string", doc("lastTimestamp"), 0),
            table::column("Type", "string", doc("type"), 0),
            table::column("Reason", "string", doc("reason"), 0),
            table::column("Object", "string", doc("involvedObject"), 0),
            table::column("Subobject", "string", String::new(), 1),
            table::column("Source", "string", doc("source"), 1),
            table::column("Message", "string", doc("message"), 0),
            table::column("First Seen", "string", doc("firstTimestamp"), 1),
            table::column("Count", "string", doc("count"), 1),
            Column {
                name: "Name",
                ..table::name_column()
            },
        ]
    }

    fn row(object: &Event, now: i64) -> Vec<Value> {
        let about = &object.involved_object;
        let event_time = object
            .event_time
            .as_ref()
            .map(|time| k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(time.0));
        let first = object
            .first_timestamp
            .clone()
            .or_else(|| event_time.clone());
        let last = object.last_timestamp.clone().or_else(|| first.clone());
        let component = object
            .source
            .as_ref()
            .and_then(|source| source.component.clone());
        let host = object
            .source
            .as_ref()
            .and_then(|source| source.host.clone());
        let source = component
            .filter(|component| !component.is_empty())
            .unwrap_or_else(|| text(object.reporting_component.as_ref()));
        let source = match host.filter(|host| !host.is_empty()) {
            Some(host) => format!("{source}, {host}"),
            None => source,
        };
        vec![
            json!(table::since(last.as_ref(), now)),
            json!(text(object.type_.as_ref())),
            json!(text(object.reason.as_ref())),
            json!(format!(
                "{}/{}",
                text(about.kind.as_ref()).to_lowercase(),
                text(about.name.as_ref())
            )),
            json!(text(about.field_path.as_ref())),
            json!(source),
            json!(text(object.message.as_ref()).trim()),
            json!(table::since(first.as_ref(), now)),
            json!(object.count.filter(|count| *count > 0).unwrap_or(1)),
            table::name_cell(&object.metadata),
        ]
    }
}
