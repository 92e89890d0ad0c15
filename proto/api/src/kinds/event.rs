//! Event: something that happened to an object.

pub mod v1;

use k8s_openapi::api::core::v1::{Event, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use serde_json::json;

use super::table::{self, Printer};
use crate::field::{ErrorList, Path};
use crate::kind::{Column, Kind, MetadataChecks, MetadataRules, StaticInfo};
use crate::meta::NameRule;
use crate::names;

const MAX_NAME_BYTES: usize = 128;
const MAX_MESSAGE_BYTES: usize = 1024;

/// See [`Event`].
pub struct EventKind;

fn text(text: Option<&String>) -> String {
    text.cloned().unwrap_or_default()
}

fn seconds(time: &MicroTime) -> Time {
    Time(time.0)
}

/// What all events must be, whichever version they come in; `reporter` is what that calls the reporting controller.
fn validate_any(object: &Event, reporter: &str, errors: &mut ErrorList) {
    let about = text(object.involved_object.namespace.as_ref());
    let namespace = text(object.metadata.namespace.as_ref());
    // What lives in no namespace has its events in the default one, or, of newer reporters, in the system's.
    let fits = match (object.event_time.is_some(), about.is_empty()) {
        (false, true) => namespace == "default",
        (false, false) => about == namespace,
        (true, true) => ["default", "kube-system"].contains(&namespace.as_str()),
        (true, false) => true,
    };
    if !fits {
        let path = Path::new("involvedObject").child("namespace");
        errors.invalid(&path, about, "does not match event.namespace");
    }
    if object.event_time.is_some() {
        validate_report(object, reporter, errors);
    }
    let details = names::dns1123_subdomain(&namespace);
    errors.invalid_each(&Path::new("namespace"), &namespace, details);
}

/// What events with an `eventTime` must say besides; older reporters send neither.
fn validate_report(object: &Event, reporter: &str, errors: &mut ErrorList) {
    let controller = text(object.reporting_component.as_ref());
    let path = Path::new(reporter);
    if controller.is_empty() {
        errors.required(&path, "");
    }
    errors.invalid_each(&path, &controller, names::qualified_name(&controller));
    let instance = text(object.reporting_instance.as_ref());
    let path = Path::new("reportingInstance");
    if instance.is_empty() {
        errors.required(&path, "");
    }
    if instance.len() > MAX_NAME_BYTES {
        let detail = format!("can have at most {MAX_NAME_BYTES} characters");
        errors.invalid(&path, "", &detail);
    }
    for (field, value) in [("action", &object.action), ("reason", &object.reason)] {
        let (path, value) = (Path::new(field), text(value.as_ref()));
        if value.is_empty() {
            errors.required(&path, "");
        }
        if value.len() > MAX_NAME_BYTES {
            let detail = format!("can have at most {MAX_NAME_BYTES} characters");
            errors.invalid(&path, "", &detail);
        }
    }
    if text(object.message.as_ref()).len() > MAX_MESSAGE_BYTES {
        let detail = format!("can have at most {MAX_MESSAGE_BYTES} characters");
        errors.invalid(&Path::new("message"), "", &detail);
    }
}

impl Kind for EventKind {
    type Object = Event;

    const INFO: StaticInfo = StaticInfo {
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

    const NAME_RULE: NameRule = names::path_segment;

    const METADATA: MetadataRules = MetadataRules::Late;

    const UPDATE_METADATA: MetadataChecks = MetadataChecks::None;

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

    fn validate(object: &Event, errors: &mut ErrorList) {
        validate_any(object, "reportingComponent", errors);
    }

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

    fn printer() -> Printer<Event> {
        let column = |name, field, priority| {
            table::column(name, "string", table::field_doc::<Event>(field), priority)
        };
        let path = table::field_doc::<ObjectReference>("fieldPath");
        let columns = [
            column("Last Seen", "lastTimestamp", 0),
            column("Type", "type", 0),
            column("Reason", "reason", 0),
            column("Object", "involvedObject", 0),
            table::column("Subobject", "string", path, 1),
            column("Source", "source", 1),
            column("Message", "message", 0),
            column("First Seen", "firstTimestamp", 1),
            column("Count", "count", 1),
            Column {
                priority: 1,
                ..table::name_column()
            },
        ];
        Printer::<Event>::of(columns, |object, now| {
            let about = &object.involved_object;
            let event_time = object.event_time.as_ref().map(seconds);
            let first = object.first_timestamp.clone().or(event_time);
            let series = object.series.as_ref();
            let last = match series {
                Some(series) => series.last_observed_time.as_ref().map(seconds),
                None => object.last_timestamp.clone().or_else(|| first.clone()),
            };
            let count = match series {
                Some(series) => series.count.unwrap_or_default(),
                None => object.count.filter(|count| *count != 0).unwrap_or(1),
            };
            let mut target = text(about.kind.as_ref()).to_lowercase();
            if let Some(name) = about.name.as_ref().filter(|name| !name.is_empty()) {
                target = format!("{target}/{name}");
            }
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
            let host = host.filter(|host| !host.is_empty());
            let instance = object.reporting_instance.clone();
            let instance = instance.filter(|instance| !instance.is_empty());
            let source = match host.or(instance) {
                Some(host) => format!("{source}, {host}"),
                None => source,
            };
            [
                json!(table::since(last.as_ref(), now)),
                json!(text(object.type_.as_ref())),
                json!(text(object.reason.as_ref())),
                json!(target),
                json!(text(about.field_path.as_ref())),
                json!(source),
                json!(text(object.message.as_ref()).trim()),
                json!(table::since(first.as_ref(), now)),
                json!(count),
                table::name_cell(&object.metadata),
            ]
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn refused(namespace: &str, about: Value, more: Value) -> Vec<String> {
        let mut event = json!({
            "metadata": {"name": "e", "namespace": namespace}, "involvedObject": about
        });
        for (key, value) in more.as_object().unwrap() {
            event[key] = value.clone();
        }
        let mut errors = ErrorList::default();
        EventKind::validate(&serde_json::from_value(event).unwrap(), &mut errors);
        errors.told()
    }

    #[test]
    fn an_event_lives_where_its_object_does() {
        let none = Vec::<String>::new();
        assert_eq!(refused("a", json!({"namespace": "a"}), json!({})), none);
        assert_eq!(refused("default", json!({"kind": "Node"}), json!({})), none);
        let expected =
            "involvedObject.namespace: Invalid value: \"other\": does not match event.namespace";
        assert_eq!(
            refused("a", json!({"namespace": "other"}), json!({})),
            [expected]
        );
        let expected =
            "involvedObject.namespace: Invalid value: \"\": does not match event.namespace";
        assert_eq!(refused("a", json!({"kind": "Node"}), json!({})), [expected]);
        let bad = refused("A_b", json!({"namespace": "A_b"}), json!({}));
        assert!(bad[0].starts_with("namespace: Invalid value: \"A_b\": a lowercase RFC 1123"));
    }

    #[test]
    fn an_event_with_a_precise_time_names_its_reporter() {
        let time = json!({"eventTime": "2026-01-01T00:00:00.000000Z"});
        let found = refused("a", json!({"namespace": "a"}), time.clone());
        for field in [
            "reportingComponent",
            "reportingInstance",
            "action",
            "reason",
        ] {
            assert!(
                found.contains(&format!("{field}: Required value")),
                "{found:?}"
            );
        }
        // Of newer reporters is not asked that namespaces agree.
        let elsewhere = refused("a", json!({"namespace": "b"}), time.clone());
        assert!(
            !elsewhere
                .iter()
                .any(|error| error.starts_with("involvedObject"))
        );
        let nowhere = refused("kube-system", json!({"kind": "Node"}), time.clone());
        assert!(
            !nowhere
                .iter()
                .any(|error| error.starts_with("involvedObject"))
        );
        let mut complete = time;
        for field in [
            "reportingComponent",
            "reportingInstance",
            "action",
            "reason",
        ] {
            complete[field] = json!("x");
        }
        assert_eq!(
            refused("a", json!({"namespace": "a"}), complete),
            Vec::<String>::new()
        );
    }

    #[test]
    fn a_series_tells_its_own_count() {
        let event = serde_json::from_value(json!({
            "involvedObject": {"kind": "Pod"},
            "reportingComponent": "c", "reportingInstance": "c-1",
            "series": {"count": 7, "lastObservedTime": "2026-01-01T00:00:00.000000Z"}
        }))
        .unwrap();
        let row = EventKind::printer().row(&event, 1_767_225_610_000_000_000);
        assert_eq!(
            (&row[0], &row[3], &row[8]),
            (&json!("10s"), &json!("pod"), &json!(7))
        );
        assert_eq!(row[5], json!("c, c-1"));
    }
}
