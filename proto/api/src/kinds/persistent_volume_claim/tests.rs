use serde_json::{Value, json};

use super::*;

/// A claim with its defaults.
fn claim(more: Value) -> PersistentVolumeClaim {
    let mut spec = json!({
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}},
        "storageClassName": "none"
    });
    if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
        spec.extend(more);
    }
    let claim = json!({"metadata": {"name": "c", "namespace": "n"}, "spec": spec});
    let mut claim = serde_json::from_value(claim).unwrap();
    PersistentVolumeClaimKind::default(&mut claim);
    claim
}

/// The same claim when it is bound to so much.
fn bound(mut claim: PersistentVolumeClaim, capacity: &str) -> PersistentVolumeClaim {
    let status = json!({"phase": "Bound", "capacity": {"storage": capacity}});
    claim.status = serde_json::from_value(status).unwrap();
    claim
}

fn sized(storage: &str) -> PersistentVolumeClaim {
    claim(json!({"resources": {"requests": {"storage": storage}}}))
}

fn refused(more: Value) -> Vec<String> {
    let mut errors = ErrorList::default();
    PersistentVolumeClaimKind::validate(&claim(more), &mut errors);
    errors.told()
}

fn changed(new: &PersistentVolumeClaim, old: &PersistentVolumeClaim) -> Vec<String> {
    let mut errors = ErrorList::default();
    PersistentVolumeClaimKind::validate_update(new, old, &mut errors);
    errors.told()
}

fn annotated(class: &str, field: Option<&str>) -> PersistentVolumeClaim {
    let mut claim = claim(json!({"storageClassName": field}));
    let annotation = (CLASS_ANNOTATION.to_owned(), class.to_owned());
    claim.metadata.annotations = Some([annotation].into());
    claim
}

const IMMUTABLE: &str = "spec: Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n";

#[test]
fn both_fields_for_a_source_say_the_same() {
    let created = |more: Value| {
        let mut claim = claim(more);
        PersistentVolumeClaimKind::prepare_create(&mut claim);
        let spec = serde_json::to_value(claim.spec.unwrap()).unwrap();
        (spec["dataSource"].clone(), spec["dataSourceRef"].clone())
    };
    let source = json!({"kind": "PersistentVolumeClaim", "name": "o"});
    let both = (source.clone(), source.clone());
    assert_eq!(created(json!({"dataSource": source})), both);
    assert_eq!(created(json!({"dataSourceRef": source})), both);
    let other = json!({"apiGroup": "a.example", "kind": "Thing", "name": "o"});
    let none = (Value::Null, Value::Null);
    assert_eq!(created(json!({"dataSource": other})), none);
    let both = (other.clone(), other.clone());
    assert_eq!(created(json!({"dataSourceRef": other})), both);
    let elsewhere = json!({"kind": "PersistentVolumeClaim", "name": "o", "namespace": "other"});
    assert_eq!(created(json!({"dataSourceRef": elsewhere})), none);
}

#[test]
fn a_claim_is_pending_whatever_it_brings() {
    let mut claim = bound(sized("1Gi"), "1Gi");
    PersistentVolumeClaimKind::prepare_create(&mut claim);
    assert_eq!(
        serde_json::to_value(claim.status).unwrap(),
        json!({"phase": "Pending"})
    );
    let mode = claim.spec.unwrap().volume_mode;
    assert_eq!(mode.as_deref(), Some("Filesystem"));
}

#[test]
fn a_claim_says_what_it_asks_for() {
    assert_eq!(refused(json!({})), [""; 0]);
    assert_eq!(
        refused(json!({
            "accessModes": ["ReadWriteOncePod", "ReadWriteOnce"], "resources": {"requests": {"storage": "0"}},
            "volumeMode": "X", "storageClassName": null, "volumeAttributesClassName": "a_b"
        })),
        [
            "spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes",
            "spec.resources[storage]: Invalid value: \"0\": must be greater than zero",
            "spec.volumeMode: Unsupported value: \"X\": supported values: \"Block\", \"Filesystem\"",
            "spec.volumeAttributesClassName: Invalid value: \"a_b\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
        ]
    );
    assert_eq!(
        refused(json!({
            "dataSource": {"kind": "PersistentVolumeClaim", "name": "a"},
            "dataSourceRef": {"kind": "Thing", "name": ""}
        })),
        [
            "spec.dataSourceRef.name: Required value",
            "spec.dataSourceRef: Invalid value: \"Thing\": must be 'PersistentVolumeClaim' when referencing the default apiGroup",
            "spec: Invalid value: {}: must match dataSourceRef",
        ]
    );
}

#[test]
fn a_claim_that_is_not_bound_stays_as_it_is() {
    assert_eq!(changed(&sized("1024Mi"), &sized("1Gi")), [""; 0]);
    let larger = "@@ -6,7 +6,7 @@\n  \"Resources\": {\n   \"Limits\": null,\n   \"Requests\": {\n-   \"storage\": \"1Gi\"\n+   \"storage\": \"2Gi\"\n   }\n  },\n  \"VolumeName\": \"\",\n";
    assert_eq!(
        changed(&sized("2Gi"), &sized("1Gi")),
        [format!("{IMMUTABLE}{larger}")]
    );
    let other = "@@ -1,6 +1,6 @@\n {\n  \"AccessModes\": [\n-  \"ReadWriteOnce\"\n+  \"ReadWriteMany\"\n  ],\n  \"Selector\": null,\n  \"Resources\": {\n";
    assert_eq!(
        changed(
            &claim(json!({"accessModes": ["ReadWriteMany"]})),
            &sized("1Gi")
        ),
        [format!("{IMMUTABLE}{other}")]
    );
    let class = "@@ -10,7 +10,7 @@\n   }\n  },\n  \"VolumeName\": \"\",\n- \"StorageClassName\": \"none\",\n+ \"StorageClassName\": \"other\",\n  \"VolumeMode\": \"Filesystem\",\n  \"DataSource\": null,\n  \"DataSourceRef\": null,\n";
    assert_eq!(
        changed(&claim(json!({"storageClassName": "other"})), &sized("1Gi")),
        [format!("{IMMUTABLE}{class}")]
    );
    let binding = claim(json!({"volumeName": "v"}));
    assert_eq!(changed(&binding, &sized("1Gi")), [""; 0]);
    assert_eq!(
        changed(&sized("1Gi"), &binding).len(),
        1,
        "it is bound once"
    );
}

#[test]
fn a_bound_claim_may_grow_and_shrink_no_further_than_it_has() {
    let old = bound(sized("3Gi"), "1Gi");
    assert_eq!(changed(&bound(sized("4Gi"), "1Gi"), &old), [""; 0]);
    assert_eq!(changed(&bound(sized("2Gi"), "1Gi"), &old), [""; 0]);
    assert_eq!(
        changed(&bound(sized("1Gi"), "1Gi"), &old),
        ["spec.resources.requests.storage: Forbidden: field can not be less than status.capacity"]
    );
    let with = |class: Value| bound(claim(json!({"volumeAttributesClassName": class})), "1Gi");
    assert_eq!(changed(&with(json!("b")), &with(json!("a"))), [""; 0]);
    let emptied = changed(&with(json!("")), &with(json!("a")));
    let expected = "spec.volumeAttributesClassName: Forbidden: update from non-nil value to an empty string is forbidden";
    assert_eq!(emptied, [expected]);
}

#[test]
fn a_class_moves_from_the_annotation_to_the_field_and_nowhere_else() {
    let old = annotated("fast", None);
    assert_eq!(changed(&annotated("fast", Some("fast")), &old), [""; 0]);
    let other = changed(&annotated("slow", None), &old);
    let expected = "metadata.annotations.volume.beta.kubernetes.io/storage-class: Invalid value: \"slow\": field is immutable";
    assert_eq!(other, [expected]);
    let (none, some) = (
        claim(json!({"storageClassName": null})),
        claim(json!({"storageClassName": "a"})),
    );
    assert_eq!(changed(&some, &none), [""; 0]);
    assert_eq!(changed(&none, &some).len(), 1);
    let warnings = PersistentVolumeClaimKind::warnings(&old, None);
    let expected = "metadata.annotations[volume.beta.kubernetes.io/storage-class]: deprecated since v1.8; use \"storageClassName\" attribute instead";
    assert_eq!(warnings, [expected]);
}

#[test]
fn a_status_counts_storage_and_knows_how_far_growing_is() {
    let mut claim = sized("1Gi");
    claim.status = serde_json::from_value(json!({
        "capacity": {"storage": "-1"},
        "allocatedResourceStatuses": {"storage": "Soon"},
        "allocatedResources": {"cpu": "1", "storage": "1Gi"}
    }))
    .unwrap();
    let mut errors = ErrorList::default();
    PersistentVolumeClaimKind::validate_status_update(&claim, &sized("1Gi"), &mut errors);
    assert_eq!(
        errors.told(),
        [
            "status.capacity[storage]: Invalid value: -1: must be a valid resource quantity",
            "status.allocatedResourceStatus: Unsupported value: \"storage\": supported values: \"ControllerResizeInProgress\", \"ControllerResizeInfeasible\", \"NodeResizeInProgress\", \"NodeResizeInfeasible\", \"NodeResizePending\"",
            "status.allocatedResources: Unsupported value: \"cpu\": supported values: \"storage\"",
        ]
    );
}

#[test]
fn a_row_says_what_a_claim_has() {
    let printer = PersistentVolumeClaimKind::printer();
    let expected = [
        "c",
        "Pending",
        "",
        "",
        "",
        "none",
        "<unset>",
        "<unknown>",
        "Filesystem",
    ];
    assert_eq!(printer.row(&sized("1Gi"), 0), expected.map(Value::from));
    let mut claim = bound(claim(json!({"volumeName": "v"})), "2Gi");
    if let Some(status) = &mut claim.status {
        status.access_modes = Some(vec!["ReadWriteOncePod".to_owned()]);
    }
    claim.metadata.deletion_timestamp =
        serde_json::from_value(json!("2026-01-02T03:04:05Z")).unwrap();
    let expected = [
        "c",
        "Terminating",
        "v",
        "2Gi",
        "RWOP",
        "none",
        "<unset>",
        "<unknown>",
        "Filesystem",
    ];
    assert_eq!(printer.row(&claim, 0), expected.map(Value::from));
}
