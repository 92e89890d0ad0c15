use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::authorisation::tests::{Cluster, administrator, grant, user};

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

fn asks<'a>(user: &'a Identity, verb: &'a str, namespace: &'a str) -> Attributes<'a> {
    Attributes {
        user,
        verb,
        target: Target::Resource {
            group: "",
            version: "v1",
            resource: "pods",
            subresource: "",
            namespace,
            name: "",
        },
    }
}

#[tokio::test]
async fn reasons_say_by_what_and_refusals_what_is_missing() {
    let cluster = Cluster::new().await;
    let rbac = &cluster.server.api().authorisation.rbac;
    let rule = json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]});
    grant(&cluster, "b", rule, "eve").await;
    let eve = user("eve");
    assert_eq!(
        rbac.reason(&asks(&eve, "get", "default")),
        "RBAC: allowed by RoleBinding \"b/default\" of Role \"b\" to User \"eve\""
    );
    assert_eq!(
        rbac.reason(&asks(&administrator(), "get", "")),
        "RBAC: allowed by ClusterRoleBinding \"cluster-admin\" of ClusterRole \"cluster-admin\" to Group \"system:masters\""
    );
    let binding = json!({
        "metadata": {"name": "lost"}, "roleRef": {"kind": "ClusterRole", "name": "nowhere"},
        "subjects": [{"kind": "User", "name": "eve"}],
    });
    let bindings = format!("{RBAC}/namespaces/default/rolebindings");
    cluster.create(&bindings, binding).await;
    assert_eq!(
        rbac.authorize(&asks(&eve, "delete", "default")),
        Decision::NoOpinion(
            "RBAC: clusterrole.rbac.authorization.k8s.io \"nowhere\" not found".to_owned()
        )
    );
    assert_eq!(
        rbac.authorize(&asks(&eve, "delete", "other")),
        Decision::NoOpinion(String::new())
    );
}

#[tokio::test]
async fn an_account_is_of_the_binding_s_namespace_unless_it_says_otherwise() {
    let cluster = Cluster::new().await;
    let rbac = &cluster.server.api().authorisation.rbac;
    let binding = json!({
        "metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": "view"},
        "subjects": [
            {"kind": "ServiceAccount", "name": "own"},
            {"kind": "ServiceAccount", "name": "other", "namespace": "elsewhere"},
            {"kind": "Group", "name": "system:serviceaccounts:all"},
        ],
    });
    let bindings = format!("{RBAC}/namespaces/default/rolebindings");
    cluster.create(&bindings, binding).await;
    for (name, group, allowed) in [
        ("system:serviceaccount:default:own", "g", true),
        ("system:serviceaccount:elsewhere:own", "g", false),
        ("system:serviceaccount:elsewhere:other", "g", true),
        ("system:serviceaccount:default:other", "g", false),
        ("own", "g", false),
        ("x", "system:serviceaccounts:all", true),
    ] {
        let identity = Identity::new(name, &[group]);
        let decision = rbac.authorize(&asks(&identity, "get", "default"));
        assert_eq!(decision == Decision::Allow, allowed, "{name}");
    }
    let account = Identity::new("system:serviceaccount:default:own", &[]);
    assert_eq!(
        rbac.reason(&asks(&account, "get", "default")),
        "RBAC: allowed by RoleBinding \"b/default\" of ClusterRole \"view\" to ServiceAccount \"own/default\""
    );
}

#[tokio::test]
async fn changed_roles_and_subjects_count_at_once() {
    let cluster = Cluster::new().await;
    let rbac = &cluster.server.api().authorisation.rbac;
    let rule = json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]});
    grant(&cluster, "b", rule, "eve").await;
    let (eve, joe) = (user("eve"), user("joe"));
    let patch = async |path: String, body: serde_json::Value| {
        let method = http::Method::PATCH;
        let (status, body) = cluster.send(method, &path, &body, administrator()).await;
        assert_eq!(status, 200, "{body}");
    };
    let role = format!("{RBAC}/namespaces/default/roles/b");
    let rules = json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]);
    patch(role, json!({"rules": rules})).await;
    assert_ne!(
        rbac.authorize(&asks(&eve, "get", "default")),
        Decision::Allow
    );
    assert_eq!(
        rbac.authorize(&asks(&eve, "list", "default")),
        Decision::Allow
    );
    let binding = format!("{RBAC}/namespaces/default/rolebindings/b");
    let subjects = json!([{"kind": "User", "name": "joe"}]);
    patch(binding, json!({"subjects": subjects})).await;
    assert_ne!(
        rbac.authorize(&asks(&eve, "list", "default")),
        Decision::Allow
    );
    assert_eq!(
        rbac.authorize(&asks(&joe, "list", "default")),
        Decision::Allow
    );
    let (rules, wrong) = rbac.rules(&joe, "default");
    assert!(rules.iter().any(|rule| rule.verbs == ["list"]));
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn a_check_looks_at_nobody_elses_bindings() {
    let (mut index, namespace) = (Index::default(), Arc::from("default"));
    let rule = json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]});
    let role = json!({"rules": [rule]}).to_string();
    index.set_role(&Arc::from(""), &Arc::from("r"), Some(role.as_bytes()));
    for number in 0..10_000 {
        let binding = json!({
            "roleRef": {"apiGroup": GROUP, "kind": CLUSTER_ROLE, "name": "r"},
            "subjects": [
                {"apiGroup": GROUP, "kind": "User", "name": format!("user-{number}")},
                {"apiGroup": GROUP, "kind": "Group", "name": format!("group-{}", number % 100)},
            ],
        });
        let (name, binding) = (format!("b-{number}"), binding.to_string());
        index.set_binding(&namespace, &Arc::from(name), Some(binding.as_bytes()));
    }
    let looked_at = |who: &Identity, namespace: &str| {
        let mut roles = 0;
        index.visit(who, namespace, &mut |_, rules| {
            assert_eq!(rules.map(<[PolicyRule]>::len), Some(1));
            roles += 1;
            ControlFlow::Continue(())
        });
        roles
    };
    assert_eq!(looked_at(&user("user-7"), "default"), 1);
    assert_eq!(looked_at(&user("user-7"), "other"), 0);
    assert_eq!(looked_at(&user("nobody"), "default"), 0);
    // However many bindings give a group one role, it is looked at once.
    let member = Identity::new("nobody", &["group-1"]);
    assert_eq!(looked_at(&member, "default"), 1);
}

#[tokio::test]
async fn whoever_binds_themselves_endless_rules_is_not_looked_at_for_ever() {
    let rbac = Rbac::new(Store::ephemeral());
    let names: Vec<String> = (0..1000).map(|number| number.to_string()).collect();
    let rule = json!({
        "apiGroups": [""], "resources": ["pods"], "resourceNames": names, "verbs": ["get"],
    });
    let role = json!({"rules": vec![rule; 50]}).to_string();
    let namespace = Arc::from("default");
    {
        let mut followed = rbac.followed.write();
        let index = &mut followed.index;
        for number in 0..6 {
            let role_name = format!("r-{number}");
            let binding = json!({
                "roleRef": {"apiGroup": GROUP, "kind": "Role", "name": role_name},
                "subjects": [{"apiGroup": GROUP, "kind": "User", "name": "eve"}],
            });
            let (name, binding) = (Arc::from(role_name), binding.to_string());
            index.set_role(&namespace, &name, Some(role.as_bytes()));
            index.set_binding(&namespace, &name, Some(binding.as_bytes()));
        }
    }
    let eve = user("eve");
    let asked = asks(&eve, "list", "default");
    let refused = Decision::NoOpinion(format!("RBAC: {TOO_MANY}"));
    assert_eq!(rbac.authorize(&asked), refused);
    let (rules, wrong) = rbac.rules(&eve, "default");
    let texts: usize = rules.iter().map(rules::size).sum();
    assert!(texts <= MAX_COPIED && texts > MAX_COPIED / 2, "{texts}");
    assert!(!is_whole(&wrong));
    assert!(is_whole(&[]));
}
