use axum::body::Body;
use http::Method;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::attributes::forbidden;
use super::*;
use crate::identity::AUTHENTICATED;
use crate::server::ApiServer;
use crate::testing;

/// An API server of its own, with what every cluster has.
pub(crate) struct Cluster {
    pub(crate) server: ApiServer,
}

/// Somebody with a credential.
pub(crate) fn user(name: &str) -> Identity {
    Identity::new(name, &[AUTHENTICATED])
}

pub(crate) fn administrator() -> Identity {
    Identity::new("kubernetes-admin", &[MASTERS, AUTHENTICATED])
}

/// A node by its certificate.
pub(crate) fn node(name: &str) -> Identity {
    let user = format!("system:node:{name}");
    Identity::new(&user, &["system:nodes", AUTHENTICATED])
}

impl Cluster {
    pub(crate) async fn new() -> Self {
        let server = testing::server().await;
        Self { server }
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        body: &Value,
        who: Identity,
    ) -> (u16, Value) {
        let content_type = match method {
            Method::PATCH => "application/merge-patch+json",
            _ => "application/json",
        };
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::CONTENT_TYPE, content_type)
            .body(Body::from(body.to_string()))
            .expect("a request");
        let Ok(response) = self.server.local_service(who).oneshot(request).await;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.expect("a body");
        let body = serde_json::from_slice(&body.to_bytes()).unwrap_or_default();
        (status, body)
    }

    /// Creates something as the administrator.
    pub(crate) async fn create(&self, path: &str, body: Value) -> Value {
        let (status, body) = self.send(Method::POST, path, &body, administrator()).await;
        assert_eq!(status, 201, "{path}: {body}");
        body
    }

    /// Whether somebody may.
    pub(crate) fn may(&self, who: &Identity, method: Method, uri: &str) -> bool {
        let request = http::Request::builder().method(method).uri(uri).body(());
        let api = self.server.api();
        let info = RequestInfo::of(&request.expect("a request"), api.registry.load_full());
        check_request(&api.authorisation, &info, who).is_ok()
    }
}

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

/// A Role with one rule in `default`, bound to a user.
pub(crate) async fn grant(cluster: &Cluster, name: &str, rule: Value, to: &str) {
    let roles = format!("{RBAC}/namespaces/default/roles");
    let role = json!({"metadata": {"name": name}, "rules": [rule]});
    cluster.create(&roles, role).await;
    let bindings = format!("{RBAC}/namespaces/default/rolebindings");
    let binding = json!({
        "metadata": {"name": name}, "roleRef": {"kind": "Role", "name": name},
        "subjects": [{"kind": "User", "name": to}],
    });
    cluster.create(&bindings, binding).await;
}

#[tokio::test]
async fn everybody_may_look_at_what_is_served_and_nobody_at_more() {
    let cluster = Cluster::new().await;
    let (anonymous, somebody) = (Identity::anonymous(), user("jane"));
    for path in ["/healthz", "/livez", "/readyz", "/version", "/version/"] {
        assert!(cluster.may(&anonymous, Method::GET, path), "{path}");
    }
    for path in ["/api", "/apis/apps/v1", "/openapi/v3"] {
        assert!(!cluster.may(&anonymous, Method::GET, path), "{path}");
        assert!(cluster.may(&somebody, Method::GET, path), "{path}");
    }
    for path in ["/metrics", "/", "/logs", "/api/v1/pods"] {
        assert!(!cluster.may(&somebody, Method::GET, path), "{path}");
        assert!(cluster.may(&administrator(), Method::GET, path), "{path}");
    }
    assert!(!cluster.may(&somebody, Method::POST, "/version"));
}

#[tokio::test]
async fn a_role_is_in_force_at_the_next_request_and_gone_at_the_next() {
    let cluster = Cluster::new().await;
    let jane = user("jane");
    let pods = "/api/v1/namespaces/default/pods";
    assert!(!cluster.may(&jane, Method::GET, pods));
    let rule = json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]});
    grant(&cluster, "r", rule, "jane").await;
    assert!(cluster.may(&jane, Method::GET, pods));
    assert!(!cluster.may(&user("joe"), Method::GET, pods));
    assert!(!cluster.may(&jane, Method::GET, "/api/v1/namespaces/other/pods"));
    assert!(!cluster.may(&jane, Method::GET, "/api/v1/pods"));
    assert!(!cluster.may(&jane, Method::GET, &format!("{pods}?watch=1")));
    let binding = format!("{RBAC}/namespaces/default/rolebindings/r");
    let (status, _) = cluster
        .send(Method::DELETE, &binding, &json!({}), administrator())
        .await;
    assert_eq!(status, 200);
    assert!(!cluster.may(&jane, Method::GET, pods));
}

#[tokio::test]
async fn a_list_of_one_name_needs_no_more_than_that_name() {
    let cluster = Cluster::new().await;
    let rule = json!({
        "apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["a"], "verbs": ["*"],
    });
    grant(&cluster, "r", rule, "jane").await;
    let jane = user("jane");
    let maps = "/api/v1/namespaces/default/configmaps";
    for (uri, allowed) in [
        (format!("{maps}/a"), true),
        (format!("{maps}/b"), false),
        (maps.to_owned(), false),
        (format!("{maps}?fieldSelector=metadata.name%3Da"), true),
        (
            format!("{maps}?watch=1&fieldSelector=metadata.name%3Da"),
            true,
        ),
        (format!("{maps}?fieldSelector=metadata.name%3Db"), false),
        (format!("{maps}?fieldSelector=metadata.name%21%3Da"), false),
    ] {
        assert_eq!(cluster.may(&jane, Method::GET, &uri), allowed, "{uri}");
    }
}

#[tokio::test]
async fn who_may_read_a_command_must_be_allowed_to_begin_it() {
    let cluster = Cluster::new().await;
    let (reader, worker) = (user("reader"), user("worker"));
    let rule = |verbs: &[&str]| json!({"apiGroups": ["*"], "resources": ["*"], "verbs": verbs});
    grant(&cluster, "reads", rule(&["get", "list", "watch"]), "reader").await;
    grant(&cluster, "works", rule(&["get", "create"]), "worker").await;
    let pod = "/api/v1/namespaces/default/pods/p";
    for part in ["exec?command=sh", "attach", "portforward"] {
        let uri = format!("{pod}/{part}");
        assert!(!cluster.may(&reader, Method::GET, &uri), "{uri}");
        assert!(!cluster.may(&reader, Method::POST, &uri), "{uri}");
        assert!(cluster.may(&worker, Method::GET, &uri), "{uri}");
    }
    for part in ["log", "status", "proxy/x"] {
        let uri = format!("{pod}/{part}");
        assert!(cluster.may(&reader, Method::GET, &uri), "{uri}");
    }
    let exec = format!("{pod}/exec?command=sh");
    let (status, answer) = cluster.send(Method::GET, &exec, &json!({}), reader).await;
    assert_eq!(
        (status, answer["message"].as_str()),
        (403, Some("pods \"p\" is forbidden: "))
    );
}

#[tokio::test]
async fn who_may_only_update_creates_nothing_by_it() {
    let cluster = Cluster::new().await;
    let leases = "/apis/coordination.k8s.io/v1/namespaces/default/leases";
    let group = "coordination.k8s.io";
    let rule =
        |verbs: &[&str]| json!({"apiGroups": [group], "resources": ["leases"], "verbs": verbs});
    grant(&cluster, "u", rule(&["update"]), "updater").await;
    let named = json!({
        "apiGroups": [group], "resources": ["leases"], "resourceNames": ["mine"],
        "verbs": ["create", "update"],
    });
    grant(&cluster, "c", named, "creator").await;
    let put = async |name: &str, who: &str, revision: &Value| {
        let metadata = json!({"name": name, "resourceVersion": revision});
        let body = json!({"metadata": metadata, "spec": {"holderIdentity": who}});
        let path = format!("{leases}/{name}");
        cluster.send(Method::PUT, &path, &body, user(who)).await
    };
    let (status, answer) = put("mine", "updater", &Value::Null).await;
    assert_eq!(
        (status, answer["message"].as_str()),
        (
            403,
            Some("leases.coordination.k8s.io \"mine\" is forbidden: ")
        )
    );
    let (status, created) = put("mine", "creator", &Value::Null).await;
    assert_eq!(status, 201, "{created}");
    let revision = &created["metadata"]["resourceVersion"];
    let (status, answer) = put("mine", "updater", revision).await;
    assert_eq!(status, 200, "{answer}");
}

#[tokio::test]
async fn a_namespace_is_in_itself() {
    let cluster = Cluster::new().await;
    let binding = json!({
        "metadata": {"name": "v"}, "roleRef": {"kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "User", "name": "jane"}],
    });
    let bindings = format!("{RBAC}/namespaces/default/rolebindings");
    cluster.create(&bindings, binding).await;
    let jane = user("jane");
    assert!(cluster.may(&jane, Method::GET, "/api/v1/namespaces/default"));
    assert!(!cluster.may(&jane, Method::GET, "/api/v1/namespaces/kube-system"));
    assert!(!cluster.may(&jane, Method::GET, "/api/v1/namespaces"));
    assert!(cluster.may(&jane, Method::GET, "/api/v1/namespaces/default/pods/p/log"));
    assert!(!cluster.may(&jane, Method::GET, "/api/v1/namespaces/default/secrets"));
}

#[test]
fn refusals_are_in_kubernetes_words() {
    let jane = user("jane");
    let attributes = Attributes {
        user: &jane,
        verb: "create",
        target: Target::Resource {
            group: "apps",
            version: "v1",
            resource: "deployments",
            subresource: "scale",
            namespace: "n",
            name: "d",
        },
    };
    assert_eq!(
        forbidden(&attributes, "").message(),
        "deployments.apps \"d\" is forbidden: User \"jane\" cannot create resource \"deployments/scale\" in API group \"apps\" in the namespace \"n\""
    );
    let attributes = Attributes {
        target: Target::Path("/x"),
        ..attributes
    };
    assert_eq!(
        forbidden(&attributes, "because").message(),
        "forbidden: User \"jane\" cannot create path \"/x\": because"
    );
}
