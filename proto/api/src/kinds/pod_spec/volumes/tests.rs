use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::*;

fn told(volumes: Value, pod_name: Option<&str>) -> Vec<String> {
    let volumes: Vec<Volume> = serde_json::from_value(volumes).unwrap();
    let surroundings = Surroundings {
        pod_name,
        is_pod: pod_name.is_some(),
        volumes: Volumes::new(),
        grace_period: 30,
        host_users: true,
        restart_policy: "Always",
        claims: BTreeSet::new(),
    };
    let mut errors = ErrorList::default();
    validate(&volumes, &surroundings, &Path::new("v"), &mut errors);
    errors.told()
}

/// What is wrong with one volume that has a good name.
fn of(source: Value) -> Vec<String> {
    let mut volume = json!({"name": "a"});
    if let (Some(volume), Value::Object(source)) = (volume.as_object_mut(), source) {
        volume.extend(source);
    }
    told(json!([volume]), Some("p"))
}

#[test]
fn a_volume_has_a_name_and_one_source() {
    assert_eq!(
        told(json!([{"name": "a"}, {"name": "", "emptyDir": {}}]), None),
        [
            "v[0]: Required value: must specify a volume type",
            "v[1].name: Required value"
        ]
    );
    let two = json!([
        {"name": "a", "emptyDir": {}},
        {"name": "a", "emptyDir": {}, "hostPath": {"path": "/x"}, "cephfs": {"monitors": ["m"]}}
    ]);
    assert_eq!(
        told(two, None),
        [
            "v[1].hostPath: Forbidden: may not specify more than 1 volume type",
            "v[1].cephFS: Forbidden: may not specify more than 1 volume type",
            "v[1].name: Duplicate value: \"a\"",
        ]
    );
}

#[test]
fn sources_say_what_they_need() {
    for (source, expected) in [
        (
            json!({"emptyDir": {"sizeLimit": "-1"}}),
            "v[0].emptyDir.sizeLimit: Forbidden: SizeLimit field must be a valid resource quantity",
        ),
        (
            json!({"hostPath": {"path": "/a/../b"}}),
            "v[0].hostPath.path: Invalid value: \"/a/../b\": must not contain '..'",
        ),
        (
            json!({"secret": {"secretName": ""}}),
            "v[0].secret.secretName: Required value",
        ),
        (
            json!({"configMap": {"name": "m", "defaultMode": 512}}),
            "v[0].configMap.defaultMode: Invalid value: 512: must be a number between 0 and 0777 (octal), both inclusive",
        ),
        (
            json!({"configMap": {"name": "m", "items": [{"key": "k", "path": "..x"}]}}),
            "v[0].configMap.items[0].path: Invalid value: \"..x\": must not start with '..'",
        ),
        (
            json!({"nfs": {"server": "s", "path": "p"}}),
            "v[0].nfs.path: Invalid value: \"p\": must be an absolute path",
        ),
        (
            json!({"gcePersistentDisk": {"pdName": ""}}),
            "v[0].persistentDisk.pdName: Required value",
        ),
        (
            json!({"iscsi": {"targetPortal": "192.0.2.1", "iqn": "iqn.x", "lun": 0}}),
            "v[0].iscsi.iqn: Invalid value: \"iqn.x\": must be valid format",
        ),
        (
            json!({"persistentVolumeClaim": {"claimName": ""}}),
            "v[0].persistentVolumeClaim.claimName: Required value",
        ),
        (
            json!({"image": {"pullPolicy": "Always"}}),
            "v[0].image.reference: Required value",
        ),
        (
            json!({"downwardAPI": {"items": [{"path": "p"}]}}),
            "v[0].downwardAPI: Required value: one of fieldRef and resourceFieldRef is required",
        ),
    ] {
        assert_eq!(of(source.clone()), [expected], "{source}");
    }
}

#[test]
fn projected_files_do_not_hide_each_other() {
    let map =
        |path: &str| json!({"configMap": {"name": "m", "items": [{"key": "k", "path": path}]}});
    let token = json!({"serviceAccountToken": {"path": "", "expirationSeconds": 1}});
    assert_eq!(
        of(json!({"projected": {"sources": [map("x"), map("x"), token]}})),
        [
            "v[0].projected: Invalid value: \"m\": conflicting duplicate paths",
            "v[0].projected.sources[2].serviceAccountToken.expirationSeconds: Invalid value: 1: may not specify a duration less than 10 minutes",
            "v[0].projected.path: Required value",
        ]
    );
}

#[test]
fn claims_made_for_a_pod_have_its_name() {
    let template = |more: Value| {
        json!({"ephemeral": {"volumeClaimTemplate": {
            "metadata": more,
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
        }}})
    };
    assert_eq!(of(template(json!({}))), Vec::<String>::new());
    assert_eq!(
        of(template(json!({"name": "x"}))),
        ["v[0].ephemeral.volumeClaimTemplate.metadata.name: Forbidden: cannot be set"]
    );
    let mut claimed = vec![json!({"name": "b", "persistentVolumeClaim": {"claimName": "p-a"}})];
    let mut made = json!({"name": "a"});
    if let (Some(made), Value::Object(source)) = (made.as_object_mut(), template(json!({}))) {
        made.extend(source);
    }
    claimed.push(made);
    assert_eq!(
        told(json!(claimed), Some("p")),
        [
            "v[0].persistentVolumeClaim.claimName: Invalid value: \"p-a\": must not reference a PVC that gets created for an ephemeral volume"
        ]
    );
    let empty = of(json!({"ephemeral": {"volumeClaimTemplate": {"spec": {}}}}));
    assert_eq!(
        empty,
        [
            "v[0].ephemeral.volumeClaimTemplate.spec.accessModes: Required value: at least 1 access mode is required",
            "v[0].ephemeral.volumeClaimTemplate.spec.resources[storage]: Required value",
        ]
    );
}
