use http::Method;
use serde_json::json;

use crate::authorisation::tests::{Cluster, node};
use crate::authorisation::{Attributes, Authorizer, Decision, Target};

async fn pod(cluster: &Cluster, name: &str, node: &str) {
    let body = json!({"metadata": {"name": name}, "spec": {
        "nodeName": node,
        "containers": [{"name": "c", "image": "i", "envFrom": [{"secretRef": {"name": "env"}}]}],
        "volumes": [
            {"name": "a", "configMap": {"name": "settings"}},
            {"name": "b", "secret": {"secretName": "tls"}},
        ],
    }});
    cluster
        .create("/api/v1/namespaces/default/pods", body)
        .await;
}

#[tokio::test]
async fn a_node_reads_what_its_pods_name_and_nothing_else() {
    let cluster = Cluster::new().await;
    pod(&cluster, "p", "one").await;
    let (one, two) = (node("one"), node("two"));
    let core = "/api/v1/namespaces/default";
    let selected = |plural: &str, name: &str| {
        format!("{core}/{plural}?watch=1&fieldSelector=metadata.name%3D{name}")
    };
    for path in [
        format!("{core}/secrets/tls"),
        format!("{core}/secrets/env"),
        format!("{core}/configmaps/settings"),
        format!("{core}/serviceaccounts/default"),
        format!("{core}/pods/p"),
        selected("secrets", "tls"),
    ] {
        assert!(cluster.may(&one, Method::GET, &path), "{path}");
        assert!(!cluster.may(&two, Method::GET, &path), "{path}");
    }
    for path in [
        format!("{core}/secrets/other"),
        format!("{core}/secrets"),
        "/api/v1/namespaces/kube-system/secrets/tls".to_owned(),
        "/api/v1/secrets".to_owned(),
        "/api/v1/pods".to_owned(),
        "/api/v1/nodes/two".to_owned(),
        "/api/v1/nodes".to_owned(),
    ] {
        assert!(!cluster.may(&one, Method::GET, &path), "{path}");
    }
    let own = "/api/v1/pods?fieldSelector=spec.nodeName%3Done";
    assert!(cluster.may(&one, Method::GET, own));
    assert!(!cluster.may(&two, Method::GET, own));
    assert!(cluster.may(&one, Method::GET, "/api/v1/nodes/one"));
    assert!(cluster.may(&one, Method::GET, "/api/v1/services"));
    // What the pod named is the node's for as long as the pod is there.
    let path = format!("{core}/pods/p");
    let (status, body) = cluster
        .send(
            Method::DELETE,
            &path,
            &json!({"gracePeriodSeconds": 0}),
            crate::authorisation::tests::administrator(),
        )
        .await;
    assert_eq!(status, 200, "{body}");
    assert!(!cluster.may(&one, Method::GET, &format!("{core}/secrets/tls")));
}

#[tokio::test]
async fn refusals_say_what_a_node_may_do_in_kubernetes_words() {
    let cluster = Cluster::new().await;
    pod(&cluster, "p", "one").await;
    let authorisation = &cluster.server.api().authorisation;
    let why = |verb: &str, resource: &str, subresource: &str, name: &str| {
        let one = node("one");
        let attributes = Attributes {
            user: &one,
            verb,
            target: Target::Resource {
                group: "",
                version: "v1",
                resource,
                subresource,
                namespace: if resource == "nodes" { "" } else { "default" },
                name,
            },
        };
        match authorisation.authorize(&attributes) {
            Decision::Allow => None,
            Decision::Deny(why) | Decision::NoOpinion(why) => Some(why),
        }
    };
    for (verb, resource, subresource, name) in [
        ("list", "pods", "", "p"),
        ("watch", "pods", "", "p"),
        ("get", "nodes", "", "one"),
        ("create", "serviceaccounts", "token", "default"),
    ] {
        let refused = why(verb, resource, subresource, name);
        assert_eq!(refused, None, "{verb} {resource}");
    }
    let unrelated = "no relationship found between node 'one' and this object";
    for (verb, resource, subresource, name, expected) in [
        ("watch", "pods", "", "q", unrelated),
        ("get", "pods", "", "q", unrelated),
        (
            "list",
            "pods",
            "",
            "",
            "can only list/watch pods with spec.nodeName field selector",
        ),
        ("deletecollection", "pods", "", "", ""),
        ("create", "pods", "exec", "p", ""),
        (
            "list",
            "nodes",
            "",
            "",
            "node 'one' cannot read all nodes, only its own Node object",
        ),
        (
            "get",
            "nodes",
            "",
            "two",
            "node 'one' cannot read 'two', only its own Node object",
        ),
        ("delete", "nodes", "", "one", ""),
        (
            "list",
            "serviceaccounts",
            "",
            "",
            "can only create tokens for individual service accounts",
        ),
        (
            "create",
            "serviceaccounts",
            "status",
            "default",
            "can only create token subresource of serviceaccount",
        ),
        (
            "get",
            "persistentvolumeclaims",
            "status",
            "c",
            "can only get/update/patch this type",
        ),
        (
            "update",
            "secrets",
            "",
            "tls",
            "can only read resources of this type",
        ),
    ] {
        let refused = why(verb, resource, subresource, name);
        assert_eq!(
            refused.as_deref(),
            Some(expected),
            "{verb} {resource}/{subresource} {name}"
        );
    }
}

#[tokio::test]
async fn a_node_writes_itself_and_its_lease() {
    let cluster = Cluster::new().await;
    let one = node("one");
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    let elsewhere = "/apis/coordination.k8s.io/v1/namespaces/default/leases";
    let csi = "/apis/storage.k8s.io/v1/csinodes";
    for (method, path, allowed) in [
        (Method::POST, leases.to_owned(), true),
        (Method::PUT, format!("{leases}/one"), true),
        (Method::PUT, format!("{leases}/two"), false),
        (Method::PUT, format!("{elsewhere}/one"), false),
        (Method::GET, leases.to_owned(), false),
        (Method::PATCH, format!("{csi}/one"), true),
        (Method::PATCH, format!("{csi}/two"), false),
        (Method::POST, "/api/v1/nodes".to_owned(), true),
        (Method::PATCH, "/api/v1/nodes/one/status".to_owned(), true),
        (Method::DELETE, "/api/v1/nodes/one".to_owned(), false),
        (
            Method::POST,
            "/api/v1/namespaces/default/events".to_owned(),
            true,
        ),
        (
            Method::POST,
            "/api/v1/namespaces/default/configmaps".to_owned(),
            false,
        ),
    ] {
        assert_eq!(
            cluster.may(&one, method.clone(), &path),
            allowed,
            "{method} {path}"
        );
    }
    // A name without the group is nobody in particular.
    let user = crate::authorisation::tests::user("system:node:one");
    assert!(!cluster.may(&user, Method::POST, leases));
}
