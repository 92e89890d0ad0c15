use http::header::{HeaderName, HeaderValue};
use serde_json::json;

use super::*;
use crate::authorisation::tests::{Cluster, administrator, grant, user};

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        let name: HeaderName = name.parse().expect("a name");
        headers.append(name, HeaderValue::from_str(value).expect("a value"));
    }
    headers
}

const LIST_NODES: Target<'static> = Target::Resource {
    group: "",
    version: "v1",
    resource: "nodes",
    subresource: "",
    namespace: "",
    name: "",
};

fn act(
    cluster: &Cluster,
    who: &Identity,
    pairs: &[(&str, &str)],
) -> Result<Option<Identity>, StatusError> {
    let attributes = Attributes {
        user: who,
        verb: "list",
        target: LIST_NODES,
    };
    let authorisation = cluster.server.api().authorisation.as_ref();
    impersonated(authorisation, &headers(pairs), &attributes)
}

#[tokio::test]
async fn an_administrator_acts_as_anybody() {
    let cluster = Cluster::new().await;
    let who = administrator();
    assert_eq!(act(&cluster, &who, &[]), Ok(None));
    let acting = |pairs: &[(&str, &str)]| {
        let identity = act(&cluster, &who, pairs);
        identity.expect("allowed").expect("somebody else")
    };
    let jane = acting(&[
        (USER, "jane"),
        (UID, "u-1"),
        (GROUP, "devs"),
        (GROUP, MASTERS),
        ("impersonate-extra-acme.com%2fscopes", "view"),
    ]);
    assert_eq!((&*jane.user, &*jane.uid), ("jane", "u-1"));
    assert_eq!(jane.groups, ["devs", MASTERS, AUTHENTICATED]);
    assert_eq!(jane.extra["acme.com/scopes"], ["view"]);
    let account = acting(&[(USER, "system:serviceaccount:ns1:sa1")]);
    assert_eq!(
        account.groups,
        [
            "system:serviceaccounts",
            "system:serviceaccounts:ns1",
            AUTHENTICATED
        ]
    );
    assert_eq!(acting(&[(USER, ANONYMOUS)]).groups, [UNAUTHENTICATED]);
    let node = acting(&[(USER, "system:node:one")]);
    assert_eq!(node.groups, ["system:nodes", AUTHENTICATED]);
}

#[tokio::test]
async fn nobody_else_acts_as_somebody_and_refusals_tell_of_the_first_way() {
    let cluster = Cluster::new().await;
    let who = user("eve");
    let refused = |pairs: &[(&str, &str)]| {
        let error = act(&cluster, &who, pairs).expect_err("refused");
        error.message().to_owned()
    };
    assert_eq!(
        refused(&[(USER, "admin")]),
        "nodes is forbidden: User \"eve\" cannot impersonate-on:user-info:list resource \"nodes\" in API group \"\" at the cluster scope"
    );
    assert!(refused(&[(USER, "system:node:a")]).contains("impersonate-on:arbitrary-node:list"));
    let account = refused(&[(USER, "system:serviceaccount:a:b"), (GROUP, "x")]);
    assert_eq!(
        account,
        "serviceaccounts \"b\" is forbidden: User \"eve\" cannot impersonate resource \"serviceaccounts\" in API group \"\" in the namespace \"a\""
    );
    let error = act(&cluster, &who, &[(GROUP, "devs")]).expect_err("nobody is named");
    assert_eq!(error.code(), 400);
    assert_eq!(
        error.message(),
        "requested &user.DefaultInfo{Name:\"\", UID:\"\", Groups:[]string{\"devs\"}, Extra:map[string][]string(nil)} without impersonating a user name"
    );
}

#[tokio::test]
async fn the_old_way_and_the_constrained_one_are_each_enough() {
    let cluster = Cluster::new().await;
    let accounts = json!({
        "apiGroups": [""], "resources": ["serviceaccounts"], "verbs": ["impersonate"],
    });
    grant(&cluster, "old", accounts, "old").await;
    let account = (USER, "system:serviceaccount:default:sa");
    assert!(act(&cluster, &user("old"), &[account]).is_ok());
    assert!(act(&cluster, &user("old"), &[account, (UID, "u")]).is_err());
    let other = (USER, "system:serviceaccount:other:sa");
    assert!(act(&cluster, &user("old"), &[other]).is_err());

    let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    let rules = json!([
        {"apiGroups": [AUTHENTICATION], "resources": ["users"], "resourceNames": ["jane"],
         "verbs": ["impersonate:user-info"]},
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["impersonate-on:user-info:list"]},
    ]);
    cluster
        .create(roles, json!({"metadata": {"name": "new"}, "rules": rules}))
        .await;
    let bindings = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
    let binding = json!({
        "metadata": {"name": "new"}, "roleRef": {"kind": "ClusterRole", "name": "new"},
        "subjects": [{"kind": "User", "name": "new"}],
    });
    cluster.create(bindings, binding).await;
    let who = user("new");
    assert!(act(&cluster, &who, &[(USER, "jane")]).is_ok());
    assert!(act(&cluster, &who, &[(USER, "joe")]).is_err());
    assert!(act(&cluster, &who, &[(USER, "jane"), (GROUP, "devs")]).is_err());
}

#[test]
fn keys_are_unescaped_or_left_alone() {
    for (key, plain) in [
        ("scopes", "scopes"),
        ("acme.com%2fproject", "acme.com/project"),
        ("a%zz", "a%zz"),
        ("a%2", "a%2"),
        ("%25%", "%25%"),
    ] {
        assert_eq!(unescape(key), plain);
    }
}
