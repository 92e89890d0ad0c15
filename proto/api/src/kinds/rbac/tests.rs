use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};

use super::cluster_role::ClusterRoleKind;
use super::cluster_role_binding::ClusterRoleBindingKind;
use super::role::RoleKind;
use super::role_binding::RoleBindingKind;
use super::*;
use crate::kind::{Kind, ResourceKind, WriteScope, finish};
use crate::status::StatusError;
use crate::typed::Typed;

/// A new object as it is stored.
fn created<K: Kind>(object: Value) -> Result<Value, StatusError> {
    let draft = Typed::<K>::default().draft(object)?;
    finish(draft).map(|(object, _)| object)
}

fn refused<K: Kind>(object: Value) -> Vec<String> {
    let mut object: K::Object = serde_json::from_value(object).unwrap();
    K::default(&mut object);
    let mut errors = ErrorList::default();
    K::validate(&object, &mut errors);
    errors.told()
}

#[test]
fn a_rule_is_about_resources_or_about_paths() {
    let both = json!({"rules": [
        {"verbs": ["get"], "nonResourceURLs": ["/x"], "apiGroups": [""]},
    ]});
    let mixed = "rules[0].nonResourceURLs: Invalid value: [\"/x\"]: rules cannot apply to both regular resources and non-resource URLs";
    assert_eq!(refused::<ClusterRoleKind>(both.clone()), [mixed]);
    let namespaced = "rules[0].nonResourceURLs: Invalid value: [\"/x\"]: namespaced rules cannot apply to non-resource URLs";
    assert_eq!(refused::<RoleKind>(both), [namespaced, mixed]);
    assert_eq!(
        refused::<ClusterRoleKind>(json!({"aggregationRule": {}})),
        [
            "aggregationRule.clusterRoleSelectors: Required value: at least one clusterRoleSelector required if aggregationRule is non-nil"
        ]
    );
    let odd = json!({"matchExpressions": [{"key": "a", "operator": "Odd"}]});
    let aggregated = json!({"aggregationRule": {"clusterRoleSelectors": [{}, odd]}});
    let path = "aggregationRule.clusterRoleSelectors[1]";
    assert_eq!(
        refused::<ClusterRoleKind>(aggregated),
        [
            format!(
                "{path}.matchExpressions[0].operator: Invalid value: \"Odd\": not a valid selector operator"
            ),
            format!("{path}: Invalid value: null: invalid label selector."),
        ]
    );
}

#[test]
fn subjects_have_a_group_by_their_kind() {
    let binding = |subject: Value| json!({"roleRef": {"kind": "ClusterRole", "name": "r"}, "subjects": [subject]});
    let user = json!({"kind": "User", "name": "u", "apiGroup": "x"});
    assert_eq!(
        refused::<RoleBindingKind>(binding(user)),
        [
            "subjects[0].apiGroup: Unsupported value: \"x\": supported values: \"rbac.authorization.k8s.io\""
        ]
    );
    let long = json!({"kind": "ServiceAccount", "name": "A".repeat(254), "namespace": "n"});
    assert_eq!(refused::<RoleBindingKind>(binding(long)).len(), 2);
    let account = json!({"kind": "ServiceAccount", "name": "s", "apiGroup": "x"});
    assert_eq!(
        refused::<ClusterRoleBindingKind>(binding(account)),
        [
            "subjects[0].apiGroup: Unsupported value: \"x\": supported values: \"\"",
            "subjects[0].namespace: Required value",
        ]
    );
}

#[test]
fn names_are_segments_of_paths() {
    let named = |name: &str| created::<ClusterRoleKind>(json!({"metadata": {"name": name}}));
    assert!(named("system:node").is_ok());
    assert!(named("Upper Case").is_ok());
    assert!(named("a/b").is_err());
    assert!(named("..").is_err());
    let role = json!({"kind": "Role", "name": "a%b/c"});
    assert_eq!(
        refused::<RoleBindingKind>(json!({"roleRef": role})),
        [
            "roleRef.name: Invalid value: \"a%b/c\": may not contain '/'",
            "roleRef.name: Invalid value: \"a%b/c\": may not contain '%'",
        ]
    );
}

#[test]
fn a_binding_keeps_its_role() {
    let binding = |role: &str| {
        created::<RoleBindingKind>(json!({
            "metadata": {"name": "b", "namespace": "n", "uid": "u"},
            "roleRef": {"kind": "Role", "name": role},
        }))
        .unwrap()
    };
    let changed = |role: &str| {
        let kind = Typed::<RoleBindingKind>::default();
        let draft = kind.draft_update(binding(role), &binding("a"), WriteScope::Main)?;
        finish(draft)
    };
    assert!(changed("a").is_ok());
    let error = changed("b").unwrap_err();
    assert_eq!(
        error.message(),
        "RoleBinding.rbac.authorization.k8s.io \"b\" is invalid: roleRef: Invalid value: {\"APIGroup\":\"rbac.authorization.k8s.io\",\"Kind\":\"Role\",\"Name\":\"b\"}: cannot change roleRef"
    );
}

#[test]
fn what_was_left_out_is_filled_and_empty_rules_are_null() {
    for rules in [json!([]), json!(null)] {
        let role = json!({"metadata": {"name": "r"}, "rules": rules});
        let role = created::<ClusterRoleKind>(role).unwrap();
        assert_eq!(role["rules"], Value::Null);
    }
    let binding = created::<ClusterRoleBindingKind>(json!({
        "metadata": {"name": "b"},
        "roleRef": {"kind": "ClusterRole", "name": "view"},
        "subjects": [
            {"kind": "Group", "name": "g"},
            {"kind": "ServiceAccount", "name": "s", "namespace": "n"},
        ],
    }));
    let binding = binding.unwrap();
    assert_eq!(binding["roleRef"]["apiGroup"], GROUP);
    assert_eq!(
        binding["subjects"],
        json!([
            {"kind": "Group", "name": "g", "apiGroup": GROUP},
            {"kind": "ServiceAccount", "name": "s", "namespace": "n"},
        ])
    );
}

#[test]
fn tables_show_who_is_bound() {
    let subjects = json!([
        {"kind": "User", "name": "u"}, {"kind": "User", "name": "v"},
        {"kind": "ServiceAccount", "name": "s", "namespace": "n"},
    ]);
    let object = json!({
        "metadata": {"name": "b"}, "subjects": subjects,
        "roleRef": {"kind": "ClusterRole", "name": "view"},
    });
    let cluster: ClusterRoleBinding = serde_json::from_value(object.clone()).unwrap();
    let expected = json!(["b", "ClusterRole/view", "<unknown>", "u, v", "", "n/s"]);
    assert_eq!(
        json!(ClusterRoleBindingKind::printer().row(&cluster, 0)),
        expected
    );
    let binding: RoleBinding = serde_json::from_value(object).unwrap();
    assert_eq!(json!(RoleBindingKind::printer().row(&binding, 0)), expected);
    for header in [
        RoleBindingKind::printer().header().to_vec(),
        ClusterRoleBindingKind::printer().header().to_vec(),
    ] {
        assert!(header[1].description.ends_with("must return an error."));
    }
    let created = json!({"metadata": {"name": "r", "creationTimestamp": "2026-01-02T03:04:05Z"}});
    let expected = json!(["r", "2026-01-02T03:04:05Z"]);
    let role: Role = serde_json::from_value(created.clone()).unwrap();
    assert_eq!(json!(RoleKind::printer().row(&role, 0)), expected);
    let role: ClusterRole = serde_json::from_value(created).unwrap();
    assert_eq!(json!(ClusterRoleKind::printer().row(&role, 0)), expected);
}
