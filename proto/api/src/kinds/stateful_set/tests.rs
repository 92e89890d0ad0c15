use serde_json::Value;

use super::*;

fn set(more: Value) -> StatefulSet {
    let container = json!({"name": "c", "image": "i"});
    let labels = json!({"a": "b"});
    let template = json!({"metadata": {"labels": labels}, "spec": {"containers": [container]}});
    let mut spec = json!({"selector": {"matchLabels": labels}, "template": template});
    if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
        spec.extend(more);
    }
    let metadata = json!({"name": "s", "namespace": "n", "generation": 1});
    let object = json!({"metadata": metadata, "spec": spec});
    let mut object = serde_json::from_value(object).unwrap();
    StatefulSetKind::default(&mut object);
    object
}

fn refused(more: Value) -> Vec<String> {
    let mut errors = ErrorList::default();
    StatefulSetKind::validate(&set(more), &mut errors);
    errors.told()
}

fn claim(name: &str, storage: &str) -> Value {
    let spec = json!({
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": storage}}
    });
    json!({"metadata": {"name": name}, "spec": spec})
}

/// A template whose container mounts a volume.
fn mounting(volume: &str) -> Value {
    let mount = json!({"name": volume, "mountPath": "/m"});
    let container = json!({"name": "c", "image": "i", "volumeMounts": [mount]});
    json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [container]}})
}

#[test]
fn what_is_left_out_is_what_keeps_most() {
    let spec = set(json!({"volumeClaimTemplates": [claim("d", "1Gi")]}))
        .spec
        .unwrap();
    assert_eq!(spec.pod_management_policy.as_deref(), Some("OrderedReady"));
    let policy = spec.persistent_volume_claim_retention_policy.unwrap();
    assert_eq!(policy.when_deleted.as_deref(), Some("Retain"));
    let claims = serde_json::to_value(&spec.volume_claim_templates).unwrap();
    assert_eq!(claims[0]["spec"]["volumeMode"], "Filesystem");
    assert_eq!(claims[0]["status"], json!({"phase": "Pending"}));
    assert_eq!(claims[0]["kind"], "PersistentVolumeClaim");
    let rolling = |more: Value| {
        let spec = set(json!({"updateStrategy": more})).spec.unwrap();
        serde_json::to_value(spec.update_strategy).unwrap()
    };
    let all = json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 0}});
    assert_eq!(rolling(json!({})), all);
    assert_eq!(
        rolling(json!({"type": "OnDelete"})),
        json!({"type": "OnDelete"})
    );
    // The type alone asks for no more than it says.
    assert_eq!(
        rolling(json!({"type": "RollingUpdate"})),
        json!({"type": "RollingUpdate"})
    );
}

#[test]
fn a_set_has_known_policies_and_pods_that_mount_what_they_claim() {
    assert_eq!(refused(json!({})), [""; 0]);
    let claimed = json!({"template": mounting("d"), "volumeClaimTemplates": [claim("d", "1Gi")]});
    assert_eq!(refused(claimed), [""; 0]);
    let nowhere = json!({"template": mounting("e"), "volumeClaimTemplates": [claim("d", "1Gi")]});
    assert_eq!(
        refused(nowhere),
        ["spec.template.spec.containers[0].volumeMounts[0].name: Not found: \"e\""]
    );
    let strategy = json!({"type": "OnDelete", "rollingUpdate": {"partition": 1}});
    let wrong = json!({
        "podManagementPolicy": "Foo", "updateStrategy": strategy, "replicas": -1,
        "persistentVolumeClaimRetentionPolicy": {"whenScaled": "Foo"}, "serviceName": "A",
        "ordinals": {"start": -1},
    });
    let refused_for = refused(wrong);
    assert_eq!(
        refused_for[..5],
        [
            "spec.podManagementPolicy: Invalid value: \"Foo\": must be 'OrderedReady' or 'Parallel'",
            "spec.updateStrategy.rollingUpdate: Invalid value: {\"Partition\":1,\"MaxUnavailable\":null}: only allowed for updateStrategy 'RollingUpdate'",
            "spec.persistentVolumeClaimRetentionPolicy.whenScaled: Unsupported value: \"Foo\": supported values: \"Retain\", \"Delete\"",
            "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
            "spec.ordinals.start: Invalid value: -1: must be greater than or equal to 0",
        ]
    );
    assert_eq!(refused_for.len(), 6, "{refused_for:?}");
    assert!(refused_for[5].starts_with("spec.serviceName: Invalid value: \"A\": "));
    assert_eq!(
        refused(json!({"updateStrategy": {"type": "Foo"}})),
        [
            "spec.updateStrategy: Invalid value: {\"Type\":\"Foo\",\"RollingUpdate\":null}: must be 'RollingUpdate' or 'OnDelete'"
        ]
    );
    let none = json!({"volumeClaimTemplates": [{"metadata": {"name": "d"}}]});
    assert_eq!(refused(none).len(), 2, "no access mode, and no amount");
}

#[test]
fn a_set_selects_the_pods_of_its_template() {
    let paths = |selector: Value| {
        let mut set = set(json!({}));
        let spec = set.spec.as_mut().unwrap();
        spec.selector = serde_json::from_value(selector).unwrap();
        let mut errors = ErrorList::default();
        StatefulSetKind::validate(&set, &mut errors);
        errors.told()
    };
    assert_eq!(
        paths(json!({})),
        [
            "spec.selector: Required value",
            "spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`",
        ]
    );
    assert_eq!(
        paths(json!({"matchLabels": {}})),
        ["spec.selector: Invalid value: {}: empty selector is invalid for statefulset"]
    );
    assert_eq!(
        paths(json!({"matchLabels": {"a": "c"}})).len(),
        1,
        "another label"
    );
    let found = paths(json!({"matchLabels": {"a": "b c"}}));
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!(
        found[1],
        "spec.selector: Invalid value: {\"matchLabels\":{\"a\":\"b c\"}}"
    );
}

#[test]
fn little_of_a_set_changes() {
    let old = set(json!({"volumeClaimTemplates": [claim("d", "1Gi")]}));
    let changed = |more: Value| {
        let mut all = json!({"volumeClaimTemplates": [claim("d", "1Gi")]});
        if let (Some(all), Value::Object(more)) = (all.as_object_mut(), more) {
            all.extend(more);
        }
        let mut new = set(all);
        crate::typed::prepare_update::<StatefulSetKind>(&mut new, &old);
        let mut errors = ErrorList::default();
        StatefulSetKind::validate_update(&new, &old, &mut errors);
        (new.metadata.generation, errors.told())
    };
    let allowed = json!({
        "replicas": 3, "revisionHistoryLimit": 2, "minReadySeconds": 1, "ordinals": {"start": 1},
        "template": mounting("d"), "updateStrategy": {"type": "OnDelete"},
    });
    assert_eq!(changed(json!({})), (Some(1), Vec::new()));
    assert_eq!(changed(allowed), (Some(2), Vec::new()));
    let refused = vec![format!("spec: Forbidden: {MAY_CHANGE}")];
    for forbidden in [
        json!({"serviceName": "other"}),
        json!({"podManagementPolicy": "Parallel"}),
        json!({"volumeClaimTemplates": [claim("d", "2Gi")]}),
    ] {
        assert_eq!(changed(forbidden), (Some(2), refused.clone()));
    }
}

#[test]
fn counts_fit_each_other_and_collisions_only_grow() {
    let with = |status: Value| -> StatefulSet {
        serde_json::from_value(json!({"status": status})).unwrap()
    };
    let old = with(json!({"replicas": 1, "collisionCount": 2}));
    let new = with(json!({"replicas": 1, "readyReplicas": 2, "collisionCount": 1}));
    let mut errors = ErrorList::default();
    StatefulSetKind::validate_status_update(&new, &old, &mut errors);
    assert_eq!(
        errors.told(),
        [
            "status.readyReplicas: Invalid value: 2: cannot be greater than status.replicas",
            "status.collisionCount: Invalid value: 1: cannot be decremented",
        ]
    );
}

#[test]
fn what_is_off_by_default_is_dropped_and_what_is_odd_is_told() {
    let strategy =
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 2, "partition": 1}});
    let mut set = set(json!({
        "updateStrategy": strategy, "revisionHistoryLimit": -1,
        "volumeClaimTemplates": [claim("d", "1500m")],
    }));
    crate::typed::prepare_create::<StatefulSetKind>(&mut set);
    let spec = set.spec.clone().unwrap();
    assert_eq!(
        serde_json::to_value(spec.update_strategy).unwrap(),
        json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 1}})
    );
    assert_eq!(
        StatefulSetKind::warnings(&set, None),
        [
            "spec.volumeClaimTemplates[0].resources.requests[storage]: fractional byte value \"1500m\" is invalid, must be an integer",
            "spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended",
        ]
    );
    let row = StatefulSetKind::printer().row(&set, 0);
    assert_eq!(
        row,
        [
            json!("s"),
            json!("0/1"),
            json!("<unknown>"),
            json!("c"),
            json!("i")
        ]
    );
}
