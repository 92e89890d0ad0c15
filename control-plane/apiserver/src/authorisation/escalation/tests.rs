use http::Method;

use super::*;
use crate::authorisation::tests::{Cluster, administrator, grant, user};

const ROLES: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles";
const BINDINGS: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings";

fn message(answer: &(u16, Value)) -> String {
    assert_eq!(answer.0, 403, "{}", answer.1);
    answer.1["message"].as_str().unwrap_or_default().to_owned()
}

fn role(name: &str, verbs: &[&str]) -> Value {
    json!({
        "metadata": {"name": name},
        "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": verbs}],
    })
}

fn binding(name: &str, role: Value) -> Value {
    json!({
        "metadata": {"name": name}, "roleRef": role,
        "subjects": [{"kind": "User", "name": "eve"}],
    })
}

#[tokio::test]
async fn nobody_writes_a_role_with_more_than_they_have() {
    let cluster = Cluster::new().await;
    let writes = json!({
        "apiGroups": [GROUP], "resources": ["roles", "rolebindings"], "verbs": ["create", "update"],
    });
    grant(&cluster, "writes", writes, "eve").await;
    let gets = json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]});
    grant(&cluster, "gets", gets, "eve").await;
    let eve = user("eve");
    let (status, _) = cluster
        .send(Method::POST, ROLES, &role("same", &["get"]), eve.clone())
        .await;
    assert_eq!(status, 201);
    let more = role("more", &["get", "delete"]);
    let refused = cluster.send(Method::POST, ROLES, &more, eve.clone()).await;
    assert_eq!(
        message(&refused),
        "roles.rbac.authorization.k8s.io \"more\" is forbidden: user \"eve\" (groups=[\"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"delete\"]}"
    );
    let path = format!("{ROLES}/same");
    let refused = cluster
        .send(Method::PUT, &path, &role("same", &["*"]), eve.clone())
        .await;
    assert!(message(&refused).contains("Verbs:[\"*\"]"));
    // Whoever may escalate may.
    let escalates = json!({"apiGroups": [GROUP], "resources": ["roles"], "verbs": ["escalate"]});
    grant(&cluster, "escalates", escalates, "eve").await;
    let (status, body) = cluster.send(Method::POST, ROLES, &more, eve).await;
    assert_eq!(status, 201, "{body}");
}

#[tokio::test]
async fn nobody_binds_a_role_that_allows_more_than_they_may() {
    let cluster = Cluster::new().await;
    let binds = json!({"apiGroups": [GROUP], "resources": ["rolebindings"], "verbs": ["create"]});
    grant(&cluster, "b", binds, "eve").await;
    let eve = user("eve");
    let admin = binding("x", json!({"kind": "ClusterRole", "name": "cluster-admin"}));
    let refused = cluster
        .send(Method::POST, BINDINGS, &admin, eve.clone())
        .await;
    assert_eq!(
        message(&refused),
        "rolebindings.rbac.authorization.k8s.io \"x\" is forbidden: user \"eve\" (groups=[\"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"*\"], Resources:[\"*\"], Verbs:[\"*\"]}\n{NonResourceURLs:[\"*\"], Verbs:[\"*\"]}"
    );
    let nowhere = binding("y", json!({"kind": "Role", "name": "nowhere"}));
    let (status, body) = cluster
        .send(Method::POST, BINDINGS, &nowhere, eve.clone())
        .await;
    assert_eq!(status, 404);
    assert_eq!(
        body["message"],
        "role.rbac.authorization.k8s.io \"nowhere\" not found"
    );
    let bind = json!({
        "apiGroups": [GROUP], "resources": ["clusterroles"], "resourceNames": ["cluster-admin"],
        "verbs": ["bind"],
    });
    grant(&cluster, "bind", bind, "eve").await;
    let (status, body) = cluster.send(Method::POST, BINDINGS, &admin, eve).await;
    assert_eq!(status, 201, "{body}");
}

#[tokio::test]
async fn what_somebody_must_not_give_is_refused_before_it_is_checked() {
    let cluster = Cluster::new().await;
    let writes = json!({"apiGroups": [GROUP], "resources": ["rolebindings"], "verbs": ["update"]});
    grant(&cluster, "writes", writes, "eve").await;
    // A binding keeps its role, whoever writes it.
    let other = binding(
        "writes",
        json!({"kind": "ClusterRole", "name": "cluster-admin"}),
    );
    let path = format!("{BINDINGS}/writes");
    let refused = cluster.send(Method::PUT, &path, &other, user("eve")).await;
    assert!(message(&refused).contains("is attempting to grant"));
    let (status, body) = cluster
        .send(Method::PUT, &path, &other, administrator())
        .await;
    assert_eq!(status, 422, "{body}");
}

#[tokio::test]
async fn gathering_roles_is_an_administrator_s() {
    let cluster = Cluster::new().await;
    let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    let gathering = json!({
        "metadata": {"name": "sum"},
        "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"a": "b"}}]},
    });
    let writes = json!({
        "metadata": {"name": "writes"},
        "rules": [{"apiGroups": [GROUP], "resources": ["clusterroles"], "verbs": ["create"]}],
    });
    cluster.create(roles, writes).await;
    let bound = binding("w", json!({"kind": "ClusterRole", "name": "writes"}));
    let bindings = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
    cluster.create(bindings, bound).await;
    let refused = cluster
        .send(Method::POST, roles, &gathering, user("eve"))
        .await;
    assert_eq!(
        message(&refused),
        "clusterroles.rbac.authorization.k8s.io \"sum\" is forbidden: must have cluster-admin privileges to use the aggregationRule"
    );
    let (status, body) = cluster
        .send(Method::POST, roles, &gathering, administrator())
        .await;
    assert_eq!(status, 201, "{body}");
}

#[test]
fn what_the_garbage_collector_changes_is_no_change() {
    let object = |owners: Value, rules: Value| json!({"metadata": {"name": "a", "ownerReferences": owners}, "rules": rules});
    let (old, new) = (
        object(json!([{}]), json!([1])),
        object(json!(null), json!([1])),
    );
    assert!(only_for_collection(&new, &old));
    assert!(!only_for_collection(&object(json!(null), json!([2])), &old));
}
