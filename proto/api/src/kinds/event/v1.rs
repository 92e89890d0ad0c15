//! Event as newer reporters write it: the same objects as in the core group, with other names for some fields and with
//! stricter rules.

use k8s_openapi::api::core::v1::{
    Event as CoreEvent, EventSeries as CoreSeries, EventSource, ObjectReference,
};
use k8s_openapi::api::events::v1::Event;
use serde::Serialize;
use serde_json::{Value, json};

use super::{text, validate_any};
use crate::field::{ErrorList, Path};
use crate::kind::{Kind, MetadataChecks, StaticInfo};
use crate::kinds::table::Printer;
use crate::meta::IMMUTABLE;
use crate::schema::TypeSchema;
use crate::status::StatusError;

/// See [`Event`].
pub struct EventKind;

/// What a field is called here, and in the core group.
const NAMES: &[(&str, &str)] = &[
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

/// Field labels here, and in the core group.
const LABELS: &[(&str, &str)] = &[
    ("regarding.apiVersion", "involvedObject.apiVersion"),
    ("regarding.fieldPath", "involvedObject.fieldPath"),
    ("regarding.kind", "involvedObject.kind"),
    ("regarding.name", "involvedObject.name"),
    ("regarding.namespace", "involvedObject.namespace"),
    (
        "regarding.resourceVersion",
        "involvedObject.resourceVersion",
    ),
    ("regarding.uid", "involvedObject.uid"),
    ("reportingController", "reportingComponent"),
];

/// An object with its fields by their other names.
fn renamed<'a>(
    mut object: Value,
    names: impl Iterator<Item = (&'a str, &'a str)>,
    api_version: &str,
) -> Value {
    if let Some(fields) = object.as_object_mut() {
        for (from, to) in names {
            if let Some(value) = fields.remove(from) {
                fields.insert(to.to_owned(), value);
            }
        }
        fields.insert("apiVersion".to_owned(), Value::from(api_version));
        fields.insert("kind".to_owned(), Value::from("Event"));
    }
    object
}

/// The event as the core group has it.
fn core_event(event: &Event) -> CoreEvent {
    let event = event.clone();
    CoreEvent {
        action: event.action,
        count: event.deprecated_count,
        event_time: event.event_time,
        first_timestamp: event.deprecated_first_timestamp,
        involved_object: event.regarding.unwrap_or_default(),
        last_timestamp: event.deprecated_last_timestamp,
        message: event.note,
        metadata: event.metadata,
        reason: event.reason,
        related: event.related,
        reporting_component: event.reporting_controller,
        reporting_instance: event.reporting_instance,
        series: event.series.map(|series| CoreSeries {
            count: Some(series.count),
            last_observed_time: Some(series.last_observed_time),
        }),
        source: event.deprecated_source,
        type_: event.type_,
    }
}

fn validate_series(event: &CoreEvent, errors: &mut ErrorList) {
    let Some(series) = &event.series else {
        return;
    };
    let path = Path::new("series");
    if series.count.unwrap_or(0) < 2 {
        errors.invalid(&path.child("count"), "", "should be at least 2");
    }
    if series.last_observed_time.is_none() {
        errors.required(&path.child("lastObservedTime"), "");
    }
}

/// Who says it, and when, by the names that refusals use: those of the core group.
fn validate_new(event: &CoreEvent, errors: &mut ErrorList) {
    validate_any(event, "reportingController", errors);
    validate_series(event, errors);
    if event.event_time.is_none() {
        errors.required(&Path::new("eventTime"), "");
    }
    let sort = text(event.type_.as_ref());
    if !["Normal", "Warning"].contains(&sort.as_str()) {
        let detail = format!("has invalid value: {sort}");
        errors.invalid(&Path::new("type"), "", &detail);
    }
    let source = event.source.clone().unwrap_or_default();
    let of_source = [source.component, source.host];
    for (field, is_set) in [
        ("firstTimestamp", event.first_timestamp.is_some()),
        ("lastTimestamp", event.last_timestamp.is_some()),
        ("count", event.count.unwrap_or(0) != 0),
        (
            "source",
            of_source.iter().flatten().any(|text| !text.is_empty()),
        ),
    ] {
        if is_set {
            errors.invalid(&Path::new(field), "", "needs to be unset");
        }
    }
}

/// What stays of an event, as the core group calls it and as refusals do, in Kubernetes' order: it looks at the reason twice.
const KEPT: &[(&str, &str)] = &[
    ("involvedObject", "involvedObject"),
    ("reason", "reason"),
    ("message", "message"),
    ("source", "source"),
    ("firstTimestamp", "firstTimestamp"),
    ("lastTimestamp", "lastTimestamp"),
    ("count", "count"),
    ("reason", "reason"),
    ("type", "type"),
    ("eventTime", "eventTime"),
    ("action", "action"),
    ("related", "related"),
    ("reportingComponent", "reportingController"),
    ("reportingInstance", "reportingInstance"),
];

/// A reference as Kubernetes writes the type that has no names for JSON.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ShownReference {
    kind: String,
    namespace: String,
    name: String,
    #[serde(rename = "UID")]
    uid: String,
    #[serde(rename = "APIVersion")]
    api_version: String,
    resource_version: String,
    field_path: String,
}

impl From<&ObjectReference> for ShownReference {
    fn from(reference: &ObjectReference) -> Self {
        Self {
            kind: text(reference.kind.as_ref()),
            namespace: text(reference.namespace.as_ref()),
            name: text(reference.name.as_ref()),
            uid: text(reference.uid.as_ref()),
            api_version: text(reference.api_version.as_ref()),
            resource_version: text(reference.resource_version.as_ref()),
            field_path: text(reference.field_path.as_ref()),
        }
    }
}

/// As [`ShownReference`], of who reports.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ShownSource {
    component: String,
    host: String,
}

impl From<&EventSource> for ShownSource {
    fn from(source: &EventSource) -> Self {
        Self {
            component: text(source.component.as_ref()),
            host: text(source.host.as_ref()),
        }
    }
}

/// A field as Go has it: what is not there is its zero.
fn field(event: &Value, name: &str) -> Value {
    let zero = match name {
        "count" => json!(0),
        "reason" | "message" | "type" | "action" | "reportingComponent" | "reportingInstance" => {
            json!("")
        }
        "source" => json!({}),
        _ => Value::Null,
    };
    match event.get(name) {
        None | Some(Value::Null) => zero,
        Some(value) => value.clone(),
    }
}

/// Only the series and the metadata of an event change.
fn validate_changed(new: &CoreEvent, old: &CoreEvent, errors: &mut ErrorList) {
    validate_any(new, "reportingController", errors);
    if new.series != old.series {
        validate_series(new, errors);
    }
    let json = |event: &CoreEvent| serde_json::to_value(event).unwrap_or_default();
    let (now, before) = (json(new), json(old));
    for (name, told) in KEPT {
        let value = field(&now, name);
        if value == field(&before, name) {
            continue;
        }
        let path = Path::new(told);
        match *name {
            "involvedObject" => {
                let shown = ShownReference::from(&new.involved_object);
                errors.invalid(&path, shown, IMMUTABLE);
            }
            "related" => {
                let shown = new.related.as_ref().map(ShownReference::from);
                errors.invalid(&path, shown, IMMUTABLE);
            }
            "source" => {
                let source = new.source.clone().unwrap_or_default();
                errors.invalid(&path, ShownSource::from(&source), IMMUTABLE);
            }
            _ => errors.invalid(&path, value, IMMUTABLE),
        }
    }
}

impl Kind for EventKind {
    type Object = Event;

    const INFO: StaticInfo = StaticInfo {
        group: "events.k8s.io",
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

    const TABLE: Option<(&'static str, &'static str)> = Some(("", "events"));

    const UPDATE_METADATA: MetadataChecks = MetadataChecks::Update;

    const FIELD_LABELS: &'static [&'static str] = &[
        "reason",
        "regarding.apiVersion",
        "regarding.fieldPath",
        "regarding.kind",
        "regarding.name",
        "regarding.namespace",
        "regarding.resourceVersion",
        "regarding.uid",
        "reportingController",
        "type",
    ];

    fn validate(object: &Event, errors: &mut ErrorList) {
        validate_new(&core_event(object), errors);
    }

    fn validate_update(new: &Event, old: &Event, errors: &mut ErrorList) {
        validate_changed(&core_event(new), &core_event(old), errors);
    }

    fn convert_to_hub(object: Value) -> Result<Value, StatusError> {
        let mut object = renamed(object, NAMES.iter().copied(), "v1");
        TypeSchema::of::<CoreEvent>().complete(&mut object);
        Ok(object)
    }

    fn convert_from_hub(object: Value) -> Result<Value, StatusError> {
        let names = NAMES.iter().map(|(own, core)| (*core, *own));
        let mut object = renamed(object, names, "events.k8s.io/v1");
        TypeSchema::of::<Event>().complete(&mut object);
        Ok(object)
    }

    fn hub_field_label(label: &str) -> &str {
        let known = LABELS.iter().find(|(own, _)| *own == label);
        known.map_or(label, |(_, core)| *core)
    }

    fn printer() -> Printer<Event> {
        super::EventKind::printer().through(core_event)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kind::{ResourceKind, WriteScope, finish};
    use crate::typed::Typed;

    fn event(more: Value) -> Value {
        let mut event = json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event",
            "metadata": {"name": "e", "namespace": "default"},
            "eventTime": "2026-01-01T00:00:00.000000Z", "type": "Normal", "reason": "Started", "action": "Start",
            "reportingController": "example.com/c", "reportingInstance": "c-1",
            "regarding": {"kind": "Pod", "namespace": "default", "name": "p"}, "note": "it started",
        });
        if let (Value::Object(event), Value::Object(more)) = (&mut event, more) {
            event.extend(more);
        }
        event
    }

    fn refused(more: Value) -> String {
        let kind = Typed::<EventKind>::default();
        let refused = kind
            .draft(event(more))
            .and_then(finish)
            .expect_err("it is invalid");
        refused.message().to_owned()
    }

    #[test]
    fn new_events_must_be_complete_and_of_their_time() {
        let kind = Typed::<EventKind>::default();
        kind.draft(event(json!({})))
            .and_then(finish)
            .expect("it is valid");
        for (more, complaint) in [
            (json!({"eventTime": null}), "eventTime: Required value"),
            (
                json!({"type": "Odd"}),
                "type: Invalid value: \"\": has invalid value: Odd",
            ),
            (
                json!({"deprecatedCount": 3}),
                "count: Invalid value: \"\": needs to be unset",
            ),
            (
                json!({"deprecatedFirstTimestamp": "2026-01-01T00:00:00Z"}),
                "firstTimestamp: Invalid value: \"\": needs to be unset",
            ),
            (
                json!({"deprecatedSource": {"host": "h"}}),
                "source: Invalid value: \"\": needs to be unset",
            ),
            (
                json!({"reportingController": ""}),
                "reportingController: Required value",
            ),
            (
                json!({"series": {"count": 1, "lastObservedTime": "2026-01-01T00:00:00.000000Z"}}),
                "series.count: Invalid value: \"\": should be at least 2",
            ),
        ] {
            let message = refused(more);
            assert!(message.contains(complaint), "{message}");
        }
    }

    #[test]
    fn only_the_series_changes() {
        let kind = Typed::<EventKind>::default();
        let old = event(json!({}));
        let series =
            json!({"series": {"count": 2, "lastObservedTime": "2026-01-01T00:00:09.000000Z"}});
        let update = |new| {
            let draft = kind.draft_update(new, &old, WriteScope::Main);
            draft.and_then(finish)
        };
        update(event(series)).expect("it may");
        let other = event(json!({"note": "it started again"}));
        let refused = update(other);
        let message = refused.expect_err("it may not").message().to_owned();
        assert!(
            message.contains("message: Invalid value: \"it started again\": field is immutable"),
            "{message}"
        );
        assert!(message.starts_with("Event \"e\" is invalid: "), "{message}");
        let moved = json!({
            "reason": "Stopped", "regarding": {"kind": "Pod", "namespace": "default", "name": "q"},
        });
        let refused = update(event(moved)).expect_err("it may not");
        let details = refused.details().cloned().unwrap_or_default();
        let causes = details.causes.iter().map(|cause| cause.message.as_str());
        let about = r#"Invalid value: {"Kind":"Pod","Namespace":"default","Name":"q","UID":"","APIVersion":"","ResourceVersion":"","FieldPath":""}: field is immutable"#;
        let reason = r#"Invalid value: "Stopped": field is immutable"#;
        assert_eq!(causes.collect::<Vec<_>>(), [about, reason, reason]);
    }

    #[test]
    fn the_core_group_sees_the_same_event_and_nothing_is_lost() {
        let object = event(json!({"related": {"kind": "Node", "name": "n"}}));
        let core = EventKind::convert_to_hub(object.clone()).expect("converts");
        assert_eq!(core["apiVersion"], "v1");
        assert_eq!(core["involvedObject"]["name"], "p");
        assert_eq!(
            (&core["message"], &core["reportingComponent"]),
            (&json!("it started"), &json!("example.com/c"))
        );
        assert_eq!(
            (&core["source"], &core["firstTimestamp"]),
            (&json!({}), &Value::Null)
        );
        let mut back = EventKind::convert_from_hub(core).expect("converts");
        for always in [
            "deprecatedSource",
            "deprecatedFirstTimestamp",
            "deprecatedLastTimestamp",
        ] {
            let written = back.as_object_mut().and_then(|back| back.remove(always));
            assert!(written.is_some(), "{always}");
        }
        let mut expected = object;
        TypeSchema::of::<Event>().complete(&mut expected);
        for always in [
            "deprecatedSource",
            "deprecatedFirstTimestamp",
            "deprecatedLastTimestamp",
        ] {
            let fields = expected.as_object_mut().expect("an object");
            fields.remove(always);
        }
        assert_eq!(back, expected);
    }

    #[test]
    fn field_labels_are_the_same_by_other_names() {
        assert_eq!(
            EventKind::hub_field_label("regarding.name"),
            "involvedObject.name"
        );
        assert_eq!(EventKind::hub_field_label("reason"), "reason");
        for (own, _) in LABELS {
            assert!(EventKind::FIELD_LABELS.contains(own), "{own}");
        }
    }
}
