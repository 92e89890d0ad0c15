use gantry_informer::Cache;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::snapshot::tests::node;

/// What there is of claims and volumes.
fn storage(claims: Vec<Value>, volumes: Vec<Value>) -> Storage {
    let stop = CancellationToken::new();
    let known = Arc::new(Cache::<PersistentVolumeClaim>::new(Vec::new()));
    for claim in claims {
        known.observe(serde_json::from_value(claim).expect("a claim"));
    }
    let claims = Informer::new(known, &stop);
    let known = Arc::new(Cache::<PersistentVolume>::new(Vec::new()));
    for volume in volumes {
        known.observe(serde_json::from_value(volume).expect("a volume"));
    }
    Storage::over(claims, Informer::new(known, &stop))
}

/// A pod of uid 1 with these volumes: the names of claims, or of those that are made for it alone after a `+`.
fn pod(volumes: &[&str]) -> PodInfo {
    let volumes = volumes.iter().map(|name| match name.strip_prefix('+') {
        Some(own) => json!({"name": own, "ephemeral": {}}),
        None => json!({"name": name, "persistentVolumeClaim": {"claimName": name}}),
    });
    let volumes: Vec<Value> = volumes.collect();
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "ns", "uid": "1"},
        "spec": {"containers": [], "volumes": volumes}
    }))
    .expect("a pod");
    PodInfo::new(&pod)
}

/// A claim that is bound to the volume, if that has a name.
fn claim(name: &str, volume: &str) -> Value {
    let annotations = match volume.is_empty() {
        true => json!({}),
        false => json!({"pv.kubernetes.io/bind-completed": "yes"}),
    };
    json!({
        "metadata": {"name": name, "namespace": "ns", "uid": name, "resourceVersion": "5", "annotations": annotations},
        "spec": {"accessModes": ["ReadWriteOnce"], "volumeName": volume},
        "status": {"phase": "Pending"}
    })
}

/// The claim with other fields.
fn with(mut claim: Value, pointer: &str, more: Value) -> Value {
    let place = claim.pointer_mut(pointer).and_then(Value::as_object_mut);
    let more = more.as_object().cloned().expect("an object");
    place.expect("an object").extend(more);
    claim
}

/// The claim, made for the pod alone.
fn owned(claim: Value) -> Value {
    let owner =
        json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "1", "controller": true});
    with(claim, "/metadata", json!({"ownerReferences": [owner]}))
}

fn volume(name: &str, labels: Value, spec: Value) -> Value {
    json!({"metadata": {"name": name, "uid": name, "resourceVersion": "5", "labels": labels}, "spec": spec})
}

/// The filter that keeps the pod waiting, and its reason.
fn waits(storage: &Storage, pod: &PodInfo) -> Option<(&'static str, String)> {
    let refusal = storage.of(pod, &Snapshot::default()).err()?;
    assert!(!refusal.resolvable);
    Some((refusal.filter, refusal.reasons.join(", ")))
}

#[test]
fn a_pod_waits_for_its_claims_and_is_told_why() {
    let deleted = json!({"deletionTimestamp": "2026-01-02T03:04:05Z"});
    let storage = storage(
        vec![
            claim("unbound", ""),
            // One that asks for a volume has it only once that is written.
            with(claim("half", "v"), "/metadata", json!({"annotations": {}})),
            claim("bound", "v"),
            with(claim("leaving", "v"), "/metadata", deleted.clone()),
            with(
                with(claim("lost", "v"), "/metadata", deleted),
                "/status",
                json!({"phase": "Lost"}),
            ),
            claim("gone", "w"),
            claim("p-other", "v"),
            owned(claim("p-own", "v")),
            owned(claim("p-gone", "w")),
        ],
        vec![volume("v", json!({}), json!({}))],
    );
    for (volumes, expected) in [
        (vec![], None),
        (vec!["bound", "+own"], None),
        (
            vec!["nope"],
            Some((
                "VolumeRestrictions",
                "persistentvolumeclaim \"nope\" not found",
            )),
        ),
        (
            vec!["bound", "+none"],
            Some((
                "VolumeBinding",
                "waiting for ephemeral volume controller to create the persistentvolumeclaim \"p-none\"",
            )),
        ),
        // All that are named are looked for before any is looked at.
        (
            vec!["+none", "leaving", "nope"],
            Some((
                "VolumeRestrictions",
                "persistentvolumeclaim \"nope\" not found",
            )),
        ),
        (
            vec!["unbound", "leaving"],
            Some((
                "VolumeBinding",
                "persistentvolumeclaim \"leaving\" is being deleted",
            )),
        ),
        (
            vec!["lost"],
            Some((
                "VolumeBinding",
                "persistentvolumeclaim \"lost\" bound to non-existent persistentvolume \"v\"",
            )),
        ),
        (
            vec!["+other"],
            Some((
                "VolumeBinding",
                "PVC ns/p-other was not created for pod ns/p (pod is not owner)",
            )),
        ),
        (
            vec!["gone", "unbound"],
            Some((
                "VolumeBinding",
                "pod has unbound immediate PersistentVolumeClaims",
            )),
        ),
        (
            vec!["half"],
            Some((
                "VolumeBinding",
                "pod has unbound immediate PersistentVolumeClaims",
            )),
        ),
        (
            vec!["bound", "gone"],
            Some(("VolumeZone", "persistentvolume \"w\" not found")),
        ),
        (vec!["+gone"], None),
    ] {
        let expected = expected.map(|(filter, reason)| (filter, reason.to_owned()));
        assert_eq!(waits(&storage, &pod(&volumes)), expected, "{volumes:?}");
    }
}

#[test]
fn a_name_that_no_claim_can_have_is_not_told_whole() {
    let (none, long) = (storage(vec![], vec![]), "x".repeat(9000));
    let (_, reason) = waits(&none, &pod(&[long.as_str()])).expect("there is none");
    assert!(reason.len() < 300, "{reason}");
    let (_, reason) = waits(&none, &pod(&["a\"b\n"])).expect("there is none");
    let expected = "persistentvolumeclaim \"a\\\"b\\n\" not found";
    assert_eq!(reason, expected);
}

/// What the node says to the pod: nothing, or why not and whether evictions may help.
fn verdict(
    storage: &Storage,
    pod: &PodInfo,
    snapshot: &Snapshot,
    name: &str,
) -> Option<(String, bool)> {
    let needed = storage.of(pod, snapshot).expect("no claim is waited for");
    let node = snapshot.node(name).expect("a node");
    let refusal = needed.check(node).err()?;
    Some((refusal.reasons.join(", "), refusal.resolvable))
}

fn nodes(nodes: &[(&str, &[(&str, &str)])]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for (name, labels) in nodes {
        let mut node = node(name, "8", "16Gi");
        let labels = labels.iter();
        let labels = labels.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        node.metadata.labels = Some(labels.collect());
        snapshot.set_node(&node);
    }
    snapshot
}

#[test]
fn a_pod_runs_where_its_volumes_can_be_reached() {
    let on = |host: &str| {
        json!({"nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
            {"key": "host", "operator": "In", "values": [host]}]}]}}})
    };
    let storage = storage(
        vec![
            claim("on-a", "a"),
            claim("anywhere", "any"),
            owned(claim("p-gone", "w")),
            owned(claim("p-b", "b")),
        ],
        vec![
            volume("a", json!({}), on("a")),
            volume("b", json!({}), on("b")),
            volume("any", json!({}), json!({})),
        ],
    );
    let snapshot = nodes(&[("a", &[("host", "a")]), ("b", &[("host", "b")])]);
    let out_of_reach = || {
        Some((
            "node(s) didn't match PersistentVolume's node affinity".to_owned(),
            false,
        ))
    };
    let gone = || {
        let words = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";
        Some((words.to_owned(), false))
    };
    for (volumes, on_a, on_b) in [
        (vec![], None, None),
        (vec!["anywhere"], None, None),
        (vec!["on-a"], None, out_of_reach()),
        (vec!["+b", "anywhere"], out_of_reach(), None),
        (vec!["on-a", "+b"], out_of_reach(), out_of_reach()),
        (vec!["on-a", "+gone"], gone(), out_of_reach()),
        (vec!["+gone", "on-a"], gone(), gone()),
    ] {
        let pod = pod(&volumes);
        assert_eq!(verdict(&storage, &pod, &snapshot, "a"), on_a, "{volumes:?}");
        assert_eq!(verdict(&storage, &pod, &snapshot, "b"), on_b, "{volumes:?}");
    }
}

#[test]
fn a_volume_is_in_the_zones_that_its_labels_name() {
    let (zone, old) = (
        "topology.kubernetes.io/zone",
        "failure-domain.beta.kubernetes.io/zone",
    );
    let storage = storage(
        vec![
            claim("two", "two"),
            claim("old", "old"),
            claim("odd", "odd"),
            owned(claim("p-two", "two")),
        ],
        vec![
            volume("two", json!({zone: "z1__z2"}), json!({})),
            volume("old", json!({old: "z2"}), json!({})),
            volume("odd", json!({zone: "z9__"}), json!({})),
        ],
    );
    let snapshot = nodes(&[
        ("none", &[]),
        ("z1", &[(zone, "z1")]),
        ("z2", &[(zone, "z2")]),
        ("z3", &[(zone, "z3")]),
        ("region", &[("topology.kubernetes.io/region", "r")]),
    ]);
    for (volume, expected) in [
        ("two", vec!["none", "z1", "z2"]),
        ("old", vec!["none", "z2"]),
        ("odd", vec!["none", "z1", "z2", "z3", "region"]),
        ("+two", vec!["none", "z1", "z2", "z3", "region"]),
    ] {
        for name in ["none", "z1", "z2", "z3", "region"] {
            let refused = (!expected.contains(&name))
                .then(|| ("node(s) had no available volume zone".to_owned(), false));
            let found = verdict(&storage, &pod(&[volume]), &snapshot, name);
            assert_eq!(found, refused, "{volume} {name}");
        }
    }
}

#[test]
fn a_claim_for_one_pod_is_used_by_one_at_a_time() {
    let alone = with(
        claim("alone", "v"),
        "/spec",
        json!({"accessModes": ["ReadWriteOncePod"]}),
    );
    let storage = storage(
        vec![alone, claim("shared", "v")],
        vec![volume("v", json!({}), json!({}))],
    );
    let mut snapshot = nodes(&[("n", &[])]);
    assert_eq!(verdict(&storage, &pod(&["alone"]), &snapshot, "n"), None);
    // Wherever the other one runs: also on a node that nobody knows.
    let running = Arc::new(pod(&["alone", "shared"]));
    snapshot.assign(running, "elsewhere");
    let words = "node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use \
                 by another pod";
    let in_use = Some((words.to_owned(), true));
    assert_eq!(verdict(&storage, &pod(&["alone"]), &snapshot, "n"), in_use);
    assert_eq!(verdict(&storage, &pod(&["shared"]), &snapshot, "n"), None);
    snapshot.unassign("1");
    assert_eq!(verdict(&storage, &pod(&["alone"]), &snapshot, "n"), None);
    assert!(!snapshot.is_claim_used(&Key::new("ns", "shared")));
}

#[test]
fn a_volume_leads_to_the_claims_that_name_it() {
    let storage = storage(
        vec![
            claim("a", "v"),
            claim("b", "v"),
            claim("c", "w"),
            claim("d", ""),
        ],
        vec![],
    );
    let claims = storage.claims_of("v");
    assert_eq!(claims, [Key::new("ns", "a"), Key::new("ns", "b")]);
    assert!(storage.claims_of("none").is_empty());
}
