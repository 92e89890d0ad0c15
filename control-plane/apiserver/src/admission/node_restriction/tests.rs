use serde_json::json;

use super::*;
use crate::authorisation::tests::{Cluster, administrator, node};

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
    refused(
        &cluster,
        Method::POST,
        &format!("{PODS}/other/eviction"),
        eviction,
    )
    .await;
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
    let env = json!([{"secretRef": {"name": "s"}}]);
    let reads = pod(&|pod| {
        let container = json!({"name": "c", "image": "i", "envFrom": env});
        set(pod, "/spec/containers/0", container);
    });
    assert!(
        refused(&cluster, Method::POST, PODS, reads)
            .await
            .ends_with("can not create pods that reference secrets")
    );
    let (status, body) = cluster
        .send(Method::POST, PODS, &pod(&|_| {}), node("one"))
        .await;
    assert_eq!(status, 201, "{body}");
}
