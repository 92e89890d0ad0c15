use serde_json::{Value, json};

use super::*;

/// A volume with its defaults.
fn volume(more: Value) -> PersistentVolume {
    let mut spec = json!({
        "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"]
    });
    if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
        spec.extend(more);
    }
    let volume = json!({"metadata": {"name": "v"}, "spec": spec});
    let mut volume = serde_json::from_value(volume).unwrap();
    PersistentVolumeKind::default(&mut volume);
    volume
}

fn refused(more: Value) -> Vec<String> {
    let mut errors = ErrorList::default();
    PersistentVolumeKind::validate(&volume(more), &mut errors);
    errors.told()
}

fn changed(new: &PersistentVolume, old: &PersistentVolume) -> Vec<String> {
    let mut errors = ErrorList::default();
    PersistentVolumeKind::validate_update(new, old, &mut errors);
    errors.told()
}

const AFFINITY: &str = r#"{"required": {"nodeSelectorTerms": [{"matchExpressions": [
    {"key": "failure-domain.beta.kubernetes.io/zone", "operator": "In", "values": ["a"]}
]}]}}"#;

fn affinity() -> Value {
    serde_json::from_str(AFFINITY).unwrap()
}

#[test]
fn a_volume_has_defaults_and_waits_for_a_claim() {
    let mut object = volume(json!({"hostPath": {"path": "/x"}}));
    object.metadata.creation_timestamp =
        serde_json::from_value(json!("2026-01-02T03:04:05Z")).unwrap();
    object.status = serde_json::from_value(json!({"phase": "Bound", "reason": "r"})).unwrap();
    PersistentVolumeKind::prepare_create(&mut object);
    let value = serde_json::to_value(&object).unwrap();
    assert_eq!(
        value["spec"],
        json!({
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
            "hostPath": {"path": "/x", "type": ""},
            "persistentVolumeReclaimPolicy": "Retain", "volumeMode": "Filesystem"
        })
    );
    assert_eq!(
        value["status"],
        json!({"phase": "Pending", "lastPhaseTransitionTime": "2026-01-02T03:04:05Z"})
    );
    let disk = volume(json!({"azureDisk": {"diskName": "d", "diskURI": "u"}}));
    let disk = disk.spec.unwrap().azure_disk.unwrap();
    assert_eq!(disk.kind.as_deref(), Some("Shared"));
}

#[test]
fn a_volume_has_one_source_and_some_capacity() {
    let host = json!({"path": "/x"});
    assert_eq!(refused(json!({"hostPath": host})), [""; 0]);
    assert_eq!(
        refused(json!({})),
        ["spec: Required value: must specify a volume type"]
    );
    assert_eq!(
        refused(json!({
            "hostPath": host, "cephfs": {"monitors": ["m"]}, "flexVolume": {"driver": ""},
            "accessModes": [], "capacity": {"cpu": "-1"}, "persistentVolumeReclaimPolicy": "Keep"
        })),
        [
            "spec.accessModes: Required value",
            "spec.capacity: Unsupported value: {\"cpu\":\"-1\"}: supported values: \"storage\"",
            "spec.capacity[cpu]: Invalid value: -1: must be a valid resource quantity",
            "spec.capacity[cpu]: Invalid value: \"-1\": must be greater than zero",
            "spec.persistentVolumeReclaimPolicy: Unsupported value: \"Keep\": supported values: \"Delete\", \"Recycle\", \"Retain\"",
            "spec.cephFS: Forbidden: may not specify more than 1 volume type",
            "spec.flexVolume.driver: Required value",
        ]
    );
    assert_eq!(
        refused(
            json!({"hostPath": {"path": "/./"}, "persistentVolumeReclaimPolicy": "Recycle", "volumeMode": "X"})
        ),
        [
            "spec.persistentVolumeReclaimPolicy: Forbidden: may not be 'recycle' for a hostPath mount of '/'",
            "spec.volumeMode: Unsupported value: \"X\": supported values: \"Block\", \"Filesystem\"",
        ]
    );
    assert_eq!(
        refused(json!({"hostPath": host, "volumeAttributesClassName": ""})),
        [
            "spec.volumeAttributesClassName: Required value: an empty string is disallowed",
            "spec.csi: Required value: has to be specified when using volumeAttributesClassName",
        ]
    );
}

#[test]
fn each_source_has_its_rules() {
    assert_eq!(
        refused(json!({"local": {"path": "../x"}})),
        [
            "spec.local.path: Invalid value: \"../x\": must not contain '..'",
            "spec.nodeAffinity: Required value: Local volume requires node affinity",
        ]
    );
    assert_eq!(
        refused(json!({"local": {"path": "/x"}, "nodeAffinity": affinity()})),
        [""; 0]
    );
    assert_eq!(
        refused(
            json!({"csi": {"driver": "", "volumeHandle": "", "nodePublishSecretRef": {"name": "A"}}})
        ),
        [
            "spec.csi.driver: Required value",
            "spec.csi.driver: Invalid value: \"\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
            "spec.csi.volumeHandle: Required value",
            "spec.csi.nodePublishSecretRef.name: Invalid value: \"A\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
            "spec.csi.nodePublishSecretRef.namespace: Required value",
        ]
    );
    assert_eq!(
        refused(json!({"iscsi": {
            "targetPortal": "", "iqn": "x", "lun": 300, "chapAuthSession": true, "initiatorName": "x"
        }})),
        [
            "spec.iscsi.targetPortal: Required value",
            "spec.iscsi.iqn: Invalid value: \"x\": must be valid format",
            "spec.iscsi.lun: Invalid value: 300: must be between 0 and 255, inclusive",
            "spec.iscsi.secretRef: Required value",
            "spec.iscsi.initiatorname: Invalid value: \"x\": must be valid format starting with iqn, eui, or naa",
        ]
    );
    assert_eq!(
        refused(json!({"glusterfs": {"endpoints": "", "path": "p", "endpointsNamespace": ""}})),
        [
            "spec.glusterfs.endpoints: Required value",
            "spec.glusterfs.endpointsNamespace: Invalid value: \"\": if the endpointnamespace is set, it must be a valid namespace name",
        ]
    );
    assert_eq!(
        refused(json!({"cinder": {"volumeID": "c", "secretRef": {}}})),
        [
            "spec.cinder.secretRef.name: Required value",
            "spec.cinder.secretRef.namespace: Required value",
        ]
    );
    assert_eq!(
        refused(json!({"gcePersistentDisk": {"pdName": ""}})),
        ["spec.persistentDisk.pdName: Required value"]
    );
}

#[test]
fn options_of_mounting_are_refused_where_there_are_none() {
    let mut object = volume(json!({"hostPath": {"path": "/x"}}));
    let key = "volume.beta.kubernetes.io/mount-options".to_owned();
    object.metadata.annotations = Some([(key, "ro".to_owned())].into());
    let mut errors = ErrorList::default();
    PersistentVolumeKind::validate(&object, &mut errors);
    assert_eq!(
        errors.told(),
        [
            "metadata.annotations.volume.beta.kubernetes.io/mount-options: Forbidden: may not specify mount options for this volume type"
        ]
    );
}

#[test]
fn a_volume_stays_where_it_is() {
    let old = volume(json!({"hostPath": {"path": "/x"}}));
    let larger = volume(json!({"hostPath": {"path": "/x"}, "capacity": {"storage": "2Gi"}}));
    assert_eq!(changed(&larger, &old), [""; 0]);
    let moved = volume(json!({"hostPath": {"path": "/y"}}));
    let difference = "@@ -2,7 +2,7 @@\n  \"GCEPersistentDisk\": null,\n  \"AWSElasticBlockStore\": null,\n  \"HostPath\": {\n-  \"Path\": \"/x\",\n+  \"Path\": \"/y\",\n   \"Type\": \"\"\n  },\n  \"Glusterfs\": null,\n";
    assert_eq!(
        changed(&moved, &old),
        [format!(
            "spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after creation\n{difference}"
        )]
    );
    let block = volume(json!({"hostPath": {"path": "/x"}, "volumeMode": "Block"}));
    assert_eq!(
        changed(&block, &old),
        ["volumeMode: Invalid value: \"Block\": field is immutable"]
    );
}

#[test]
fn secrets_for_growing_and_new_names_of_labels_may_come_later() {
    let csi = |more: Value| {
        let mut csi = json!({"driver": "d.example", "volumeHandle": "h"});
        if let (Some(csi), Value::Object(more)) = (csi.as_object_mut(), more) {
            csi.extend(more);
        }
        volume(json!({"csi": csi}))
    };
    let secret = json!({"name": "s", "namespace": "n"});
    let (none, some) = (
        csi(json!({})),
        csi(json!({"controllerExpandSecretRef": secret})),
    );
    assert_eq!(changed(&some, &none), [""; 0]);
    assert_eq!(changed(&none, &some).len(), 1);
    let old = volume(json!({"local": {"path": "/x"}, "nodeAffinity": affinity()}));
    let text = AFFINITY.replace(
        "failure-domain.beta.kubernetes.io/zone",
        "topology.kubernetes.io/zone",
    );
    let renamed: Value = serde_json::from_str(&text).unwrap();
    let renamed = volume(json!({"local": {"path": "/x"}, "nodeAffinity": renamed}));
    assert_eq!(changed(&renamed, &old), [""; 0]);
    let other: Value = serde_json::from_str(&AFFINITY.replace("[\"a\"]", "[\"b\"]")).unwrap();
    let other = volume(json!({"local": {"path": "/x"}, "nodeAffinity": other}));
    assert_eq!(
        changed(&other, &old),
        [
            "nodeAffinity: Invalid value: {\"Required\":{\"NodeSelectorTerms\":[{\"MatchExpressions\":[{\"Key\":\"failure-domain.beta.kubernetes.io/zone\",\"Operator\":\"In\",\"Values\":[\"b\"]}],\"MatchFields\":null}]}}: field is immutable"
        ]
    );
}

#[test]
fn what_is_on_its_way_out_is_warned_of() {
    let object = volume(json!({
        "cephfs": {"monitors": ["m"]}, "persistentVolumeReclaimPolicy": "Recycle", "nodeAffinity": affinity()
    }));
    assert_eq!(
        PersistentVolumeKind::warnings(&object, None),
        [
            "spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning.",
            "spec.nodeAffinity.required.nodeSelectorTerms[0].matchExpressions[0].key: failure-domain.beta.kubernetes.io/zone is deprecated since v1.14; use \"topology.kubernetes.io/zone\" instead",
            "spec.cephfs: deprecated in v1.28, non-functional in v1.31+",
        ]
    );
}

#[test]
fn a_row_says_what_a_volume_is() {
    let mut object = volume(json!({
        "csi": {"driver": "d.example", "volumeHandle": "h"}, "storageClassName": "s",
        "accessModes": ["ReadWriteMany", "ReadWriteOnce", "ReadWriteMany"],
        "claimRef": {"namespace": "n", "name": "c"}
    }));
    let printer = PersistentVolumeKind::printer();
    let row = printer.row(&object, 0);
    let expected = [
        "v",
        "1Gi",
        "RWO,RWX",
        "Retain",
        "Pending",
        "n/c",
        "s",
        "<unset>",
        "",
        "<unknown>",
        "Filesystem",
    ];
    assert_eq!(row, expected.map(Value::from));
    object.metadata.deletion_timestamp =
        serde_json::from_value(json!("2026-01-02T03:04:05Z")).unwrap();
    assert_eq!(printer.row(&object, 0)[4], "Terminating");
}
