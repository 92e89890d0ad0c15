use serde_json::json;

use super::*;
use crate::authorisation::tests::{Cluster, administrator, grant, node};

const NODES: &str = "/api/v1/nodes";
const PODS: &str = "/api/v1/namespaces/default/pods";

async fn refused(cluster: &Cluster, method: Method, path: &str, body: Value) -> String {
    let (status, answer) = cluster.send(method, path, &body, node("one")).await;
    assert_eq!(status, 403, "{path}: {answer}");
    answer["message"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_node_writes_no_other_node_and_not_all_of_its_own() {
    let cluster = Cluster::new().await;
    for name in ["one", "two"] {
        cluster
            .create(NODES, json!({"metadata": {"name": name}}))
            .await;
    }
    let (one, two) = (format!("{NODES}/one"), format!("{NODES}/two"));
    let status = format!("{two}/status");
    assert_eq!(
        refused(&cluster, Method::PATCH, &status, json!({"status": {}})).await,
        "nodes \"two\" is forbidden: node \"one\" is not allowed to modify node \"two\""
    );
    let other = json!({"metadata": {"name": "nine"}});
    assert_eq!(
        refused(&cluster, Method::POST, NODES, other).await,
        "nodes \"nine\" is forbidden: node \"one\" is not allowed to modify node \"nine\""
    );
    let label = json!({"metadata": {"labels": {"node-restriction.kubernetes.io/x": "y"}}});
    assert_eq!(
        refused(&cluster, Method::PATCH, &one, label).await,
        "nodes \"one\" is forbidden: is not allowed to modify labels: node-restriction.kubernetes.io/x"
    );
    for body in [
        json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}}),
        json!({"spec": {"podCIDR": "10.9.0.0/24", "podCIDRs": ["10.9.0.0/24"]}}),
        json!({"metadata": {"annotations": {"gantry.io/dials-from": "192.0.2.1"}}}),
    ] {
        refused(&cluster, Method::PATCH, &one, body).await;
    }
    let addresses =
        json!({"status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}});
    refused(&cluster, Method::PATCH, &format!("{one}/status"), addresses).await;
    let both = json!({
        "metadata": {"labels": {"node-restriction.kubernetes.io/x": "y"}},
        "spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]},
    });
    assert_eq!(
        refused(&cluster, Method::PATCH, &one, both).await,
        "nodes \"one\" is forbidden: node \"one\" is not allowed to modify taints"
    );
    let harmless = json!({"metadata": {"labels": {"kubernetes.io/arch": "amd64", "mine": "1"}}});
    let (status, body) = cluster
        .send(Method::PATCH, &one, &harmless, node("one"))
        .await;
    assert_eq!(status, 200, "{body}");
}

#[tokio::test]
async fn a_node_says_nothing_of_pods_that_are_not_bound_to_it() {
    let cluster = Cluster::new().await;
    let container = json!([{"name": "c", "image": "i"}]);
    for (name, node) in [("own", "one"), ("other", "two")] {
        let pod = json!({
            "metadata": {"name": name}, "spec": {"nodeName": node, "containers": container},
        });
        cluster.create(PODS, pod).await;
    }
    let status = |pod: &str| format!("{PODS}/{pod}/status");
    let running = json!({"status": {"phase": "Running"}});
    assert_eq!(
        refused(&cluster, Method::PATCH, &status("other"), running.clone()).await,
        "pods \"other\" is forbidden: node \"one\" can only update pod status for pods with spec.nodeName set to itself"
    );
    refused(
        &cluster,
        Method::DELETE,
        &format!("{PODS}/other"),
        json!({}),
    )
    .await;
    let eviction = json!({"metadata": {"name": "other"}});
    let path = format!("{PODS}/other/eviction");
    assert_eq!(
        refused(&cluster, Method::POST, &path, eviction).await,
        "pods \"other\" is forbidden: node one can only evict pods with spec.nodeName set to itself"
    );
    let (code, body) = cluster
        .send(Method::PATCH, &status("own"), &running, node("one"))
        .await;
    assert_eq!(code, 200, "{body}");
    let address = json!({"status": {"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]}});
    refused(&cluster, Method::PATCH, &status("own"), address.clone()).await;
    let (code, body) = cluster
        .send(Method::PATCH, &status("own"), &address, administrator())
        .await;
    assert_eq!(code, 200, "{body}");
}

#[tokio::test]
async fn what_a_role_allows_a_node_is_still_about_its_own() {
    let cluster = Cluster::new().await;
    let everything = json!({"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]});
    grant(&cluster, "all", everything, "system:node:one").await;
    let container = json!([{"name": "c", "image": "i"}]);
    for (name, node) in [("own", "one"), ("other", "two")] {
        let pod = json!({
            "metadata": {"name": name}, "spec": {"nodeName": node, "containers": container},
        });
        cluster.create(PODS, pod).await;
    }
    let lease = "/apis/coordination.k8s.io/v1/namespaces/default/leases";
    let pod = |name: &str, part: &str| format!("{PODS}/{name}{part}");
    for (method, path, why) in [
        (
            Method::PUT,
            pod("own", ""),
            "pods \"own\" is forbidden: unexpected operation \"UPDATE\", node \"one\" can only create and delete mirror pods",
        ),
        (
            Method::POST,
            pod("own", "/binding"),
            "pods \"own\" is forbidden: unexpected pod subresource \"binding\", only 'status' and 'eviction' are allowed",
        ),
        (
            Method::POST,
            pod("other", "/eviction"),
            "pods \"other\" is forbidden: node one can only evict pods with spec.nodeName set to itself",
        ),
        (
            Method::DELETE,
            pod("other", ""),
            "pods \"other\" is forbidden: node \"one\" can only delete pods with spec.nodeName set to itself",
        ),
        (
            Method::DELETE,
            PODS.to_owned(),
            "pods is forbidden: node \"one\" can only delete pods with spec.nodeName set to itself",
        ),
        (
            Method::POST,
            lease.to_owned(),
            "leases.coordination.k8s.io is forbidden: can only access leases in the \"kube-node-lease\" system namespace",
        ),
        (
            Method::DELETE,
            lease.to_owned(),
            "leases.coordination.k8s.io is forbidden: can only access leases in the \"kube-node-lease\" system namespace",
        ),
    ] {
        let told = refused(&cluster, method, &path, json!({})).await;
        assert_eq!(told, why, "{path}");
    }
}

#[test]
fn a_node_chooses_neither_its_owners_nor_how_it_runs() {
    let node = |change: Value| {
        let mut node = json!({"metadata": {"name": "one"}, "spec": {}});
        *node.pointer_mut("/spec").expect("a field") = change;
        node
    };
    let (plain, other) = (node(json!({})), json!({"configMap": {"name": "m"}}));
    let configured = node(json!({"configSource": other}));
    let why = of_node("one", &configured, None);
    assert_eq!(
        why.as_deref(),
        Some("node \"one\" is not allowed to create pods with a non-nil configSource")
    );
    let why = of_node("one", &configured, Some(&plain));
    assert_eq!(
        why.as_deref(),
        Some("node \"one\" is not allowed to update configSource to a new non-nil configSource")
    );
    assert_eq!(of_node("one", &configured, Some(&configured)), None);
    assert_eq!(of_node("one", &plain, Some(&configured)), None);
    // Nothing is as good as none.
    let untainted = node(json!({"taints": []}));
    assert_eq!(of_node("one", &untainted, Some(&plain)), None);
    let owned = json!({"metadata": {"name": "one", "ownerReferences": [{"name": "x"}]}});
    let why = of_node("one", &owned, Some(&plain));
    assert_eq!(
        why.as_deref(),
        Some("node \"one\" is not allowed to modify ownerReferences")
    );
    let labelled = json!({"metadata": {"name": "one", "labels": {"kubernetes.io/x": "y"}}});
    let why = of_node("one", &labelled, None);
    assert_eq!(
        why.as_deref(),
        Some("node \"one\" is not allowed to set the following labels: kubernetes.io/x")
    );
}

#[test]
fn a_node_says_of_a_claim_how_large_it_has_become() {
    let claim = |metadata: Value, status: Value| -> PersistentVolumeClaim {
        let claim = json!({"metadata": metadata, "spec": {}, "status": status});
        serde_json::from_value(claim).expect("a claim")
    };
    let old = claim(json!({"resourceVersion": "1"}), json!({"phase": "Bound"}));
    let grown = json!({
        "phase": "Bound", "capacity": {"storage": "2Gi"},
        "conditions": [{"type": "Resizing", "status": "True"}],
        "allocatedResources": {"storage": "2Gi"},
    });
    assert_eq!(of_claim("one", &claim(json!({}), grown), &old), None);
    for (metadata, status) in [
        (json!({"labels": {"a": "b"}}), json!({"phase": "Bound"})),
        (json!({"finalizers": ["a/b"]}), json!({"phase": "Bound"})),
        (json!({}), json!({"phase": "Lost"})),
    ] {
        let why = of_claim("one", &claim(metadata, status), &old);
        let why = why.expect("refused");
        assert!(why.starts_with("node \"one\" is not allowed to update fields other than"));
    }
    let new = claim(json!({}), Value::Null);
    let bare = claim(json!({}), json!({}));
    assert_eq!(of_claim("one", &new, &bare), None);
}

#[test]
fn a_mirror_pod_refers_to_nothing() {
    let volume = |volume: Value| json!({"volumes": [{"name": "e", "emptyDir": {}}, volume]});
    let source = |source: Value| volume(json!({"projected": {"sources": [source]}}));
    for (spec, expected) in [
        (json!({"containers": [{"name": "c"}]}), None),
        (source(json!({"downwardAPI": {}})), None),
        (json!({"serviceAccountName": "a"}), Some("serviceaccounts")),
        (
            json!({"imagePullSecrets": [{"name": "s"}]}),
            Some("secrets"),
        ),
        (source(json!({"configMap": {}})), Some("configmaps")),
        (
            json!({"resourceClaims": [{"name": "r"}]}),
            Some("resourceclaims"),
        ),
        (
            volume(json!({"csi": {"driver": "d"}})),
            Some("csidrivers (via CSI volumes)"),
        ),
        (
            volume(json!({"persistentVolumeClaim": {"claimName": "c"}})),
            Some("persistentvolumeclaims"),
        ),
        (
            volume(json!({"ephemeral": {}})),
            Some("persistentvolumeclaims (via ephemeral volumes)"),
        ),
        (
            source(json!({"serviceAccountToken": {"path": "t"}})),
            Some("serviceaccounts (via projected volumes)"),
        ),
        (
            source(json!({"podCertificate": {"signerName": "s"}})),
            Some("podcertificates"),
        ),
    ] {
        assert_eq!(refers_to(&spec), expected, "{spec}");
    }
}

#[tokio::test]
async fn a_node_has_tokens_for_what_its_pods_or_a_role_name() {
    let cluster = Cluster::new().await;
    let container = json!([{"name": "c", "image": "i"}]);
    let pod = json!({
        "metadata": {"name": "p"}, "spec": {"nodeName": "one", "containers": container},
    });
    let pod = cluster.create(PODS, pod).await;
    let ask = async |audiences: &[&str], uid: &Value| {
        let bound = json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid});
        let body = json!({"spec": {"audiences": audiences, "boundObjectRef": bound}});
        let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
        let (status, answer) = cluster.send(Method::POST, path, &body, node("one")).await;
        let message = answer["message"].as_str().unwrap_or_default();
        (status, message.to_owned())
    };
    let uid = &pod["metadata"]["uid"];
    assert_eq!(ask(&[], uid).await, (201, String::new()));
    let (status, message) = ask(&[], &json!("another")).await;
    assert_eq!(status, 403, "{message}");
    let bound = json!({"apiVersion": "v1", "kind": "Pod", "name": "none", "uid": "u"});
    let (status, answer) = cluster
        .send(
            Method::POST,
            "/api/v1/namespaces/default/serviceaccounts/default/token",
            &json!({"spec": {"boundObjectRef": bound}}),
            node("one"),
        )
        .await;
    assert_eq!(
        (status, answer["message"].as_str()),
        (404, Some("pod \"none\" not found"))
    );
    let (status, message) = ask(&["a", "b"], uid).await;
    assert_eq!(status, 403);
    assert!(message.ends_with("node may only request 0 or 1 audiences"));
    let refused = (
        403,
        "serviceaccounts \"default\" is forbidden: audience \"registry\" not found in pod spec volume, system:node:one is not authorized to request tokens for this audience".to_owned(),
    );
    assert_eq!(ask(&["registry"], uid).await, refused);
    let rule = json!({
        "apiGroups": [""], "resources": ["registry"],
        "verbs": ["request-serviceaccounts-token-audience"],
    });
    grant(&cluster, "registry", rule, "system:node:one").await;
    assert_eq!(ask(&["registry"], uid).await, (201, String::new()));
}

#[tokio::test]
async fn a_node_makes_mirror_pods_alone() {
    let cluster = Cluster::new().await;
    let made = cluster
        .create(NODES, json!({"metadata": {"name": "one"}}))
        .await;
    let pod = |change: &dyn Fn(&mut Value)| {
        let mut pod = json!({
            "metadata": {
                "name": "a", "annotations": {MIRROR: "x"},
                "ownerReferences": [{
                    "apiVersion": "v1", "kind": "Node", "name": "one", "controller": true,
                    "uid": made["metadata"]["uid"],
                }],
            },
            "spec": {"nodeName": "one", "containers": [{"name": "c", "image": "i"}]},
        });
        change(&mut pod);
        pod
    };
    let bare = pod(&|pod| {
        pod["metadata"]
            .as_object_mut()
            .expect("an object")
            .remove("annotations");
    });
    assert_eq!(
        refused(&cluster, Method::POST, PODS, bare).await,
        "pods \"a\" is forbidden: pod does not have \"kubernetes.io/config.mirror\" annotation, node \"one\" can only create mirror pods"
    );
    let set = |pod: &mut Value, pointer: &str, value: Value| {
        *pod.pointer_mut(pointer).expect("a field") = value;
    };
    let elsewhere = pod(&|pod| set(pod, "/spec/nodeName", json!("two")));
    refused(&cluster, Method::POST, PODS, elsewhere).await;
    let unowned = pod(&|pod| set(pod, "/metadata/ownerReferences", json!([])));
    refused(&cluster, Method::POST, PODS, unowned).await;
    let stranger = pod(&|pod| set(pod, "/metadata/ownerReferences/0/uid", json!("x")));
    refused(&cluster, Method::POST, PODS, stranger).await;
    let reading = |env: Value| {
        pod(&|pod| {
            let container = json!({"name": "c", "image": "i", "envFrom": [env.clone()]});
            set(pod, "/spec/containers/0", container);
        })
    };
    let maps = reading(json!({"configMapRef": {"name": "m"}}));
    assert!(
        refused(&cluster, Method::POST, PODS, maps)
            .await
            .ends_with("can not create pods that reference configmaps")
    );
    let secrets = reading(json!({"secretRef": {"name": "s"}}));
    assert!(
        refused(&cluster, Method::POST, PODS, secrets.clone())
            .await
            .ends_with("a mirror pod may not reference secrets")
    );
    // Whoever makes one: it is a way to have what a node has.
    let (status, answer) = cluster
        .send(Method::POST, PODS, &secrets, administrator())
        .await;
    assert_eq!(status, 403, "{answer}");
    let (status, body) = cluster
        .send(Method::POST, PODS, &pod(&|_| {}), node("one"))
        .await;
    assert_eq!(status, 201, "{body}");
}
