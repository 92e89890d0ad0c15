//! Sees to it that a cluster has the roles and bindings that every cluster has. What is missing is created, and what was
//! taken away of one is added again, unless it says that it is not to be changed; what was added to one stays.

use std::sync::{Arc, OnceLock};

use gantry_api::json::Members;
use gantry_api::kind::finish;
use gantry_api::kinds::metrics;
use gantry_api::kinds::rbac::{GROUP, rules};
use gantry_api::status::StatusError;
use gantry_store::{Demand, Guard, Operation, Transaction};
use k8s_openapi::api::rbac::v1::PolicyRule;
use serde::Serialize;
use serde_json::{Value, json};

use crate::codec;
use crate::context::{ATTEMPTS, Api, Committed, meta};
use crate::registry::{Registry, Resource};
use crate::tables::namespace_key;

use super::policy::{AUTO_UPDATE, policy, policy_of_metrics};

/// Objects that are written together.
const BATCH: usize = 64;

/// An object that every cluster has, as it is stored, but for what is each cluster's own.
struct Expected {
    plural: &'static str,
    object: Value,
}

/// A write that is needed, and what must hold for it.
struct Write {
    guards: Vec<Guard>,
    operation: Operation,
}

/// Creates and completes what is needed.
pub(super) async fn reconcile(api: &Api) -> Result<(), StatusError> {
    for _ in 0..ATTEMPTS {
        let mut writes = plan(api)?;
        if writes.is_empty() {
            return Ok(());
        }
        while !writes.is_empty() {
            let rest = writes.split_off(writes.len().min(BATCH));
            let mut transaction = Transaction::default();
            for write in writes {
                transaction.guards.extend(write.guards);
                transaction.operations.push(write.operation);
            }
            writes = match api.commit(transaction, Demand::Adds).await? {
                Committed::At(_) => rest,
                // Another server does the same, or somebody changes a role: what is left is looked for again.
                Committed::Conflict(_) => Vec::new(),
            };
        }
    }
    Err(StatusError::timeout(
        "the roles of the cluster could not be written: they keep being changed",
        1,
    ))
}

fn resource<'a>(registry: &'a Registry, plural: &str) -> Result<&'a Arc<Resource>, StatusError> {
    let resource = registry.get(GROUP, "v1", plural);
    resource.ok_or_else(|| StatusError::internal(format!("{plural} are not served")))
}

/// What a cluster has besides, where it can be read what nodes and pods use.
fn expected_of_metrics(registry: &Registry) -> Result<&'static [Expected], StatusError> {
    static EXPECTED: OnceLock<Vec<Expected>> = OnceLock::new();
    if !registry.has_group(metrics::GROUP) {
        return Ok(Default::default());
    }
    if let Some(known) = EXPECTED.get() {
        return Ok(known);
    }
    let mut all = Vec::new();
    let roles = &policy_of_metrics().cluster_roles;
    add(registry, "clusterroles", roles, &mut all)?;
    Ok(EXPECTED.get_or_init(|| all))
}

/// Everything, in the form that its kind gives it. The same for every cluster, and made once.
fn expected(registry: &Registry) -> Result<&'static [Expected], StatusError> {
    static EXPECTED: OnceLock<Vec<Expected>> = OnceLock::new();
    if let Some(known) = EXPECTED.get() {
        return Ok(known);
    }
    let mut all = Vec::new();
    let policy = policy();
    add(registry, "clusterroles", &policy.cluster_roles, &mut all)?;
    add(registry, "roles", &policy.roles, &mut all)?;
    add(
        registry,
        "clusterrolebindings",
        &policy.cluster_bindings,
        &mut all,
    )?;
    add(registry, "rolebindings", &policy.bindings, &mut all)?;
    Ok(EXPECTED.get_or_init(|| all))
}

fn add(
    registry: &Registry,
    plural: &'static str,
    objects: &[impl Serialize],
    all: &mut Vec<Expected>,
) -> Result<(), StatusError> {
    let kind = &resource(registry, plural)?.kind;
    for object in objects {
        let object = serde_json::to_value(object)
            .map_err(|error| StatusError::internal(format!("encoding a default: {error}")))?;
        let (object, _) = finish(kind.draft(object)?)?;
        all.push(Expected { plural, object });
    }
    Ok(())
}

/// The writes that are needed.
fn plan(api: &Api) -> Result<Vec<Write>, StatusError> {
    let (mut writes, registry) = (Vec::new(), api.registry.load_full());
    let besides = expected_of_metrics(&registry)?;
    for expected in expected(&registry)?.iter().chain(besides) {
        let resource = resource(&registry, expected.plural)?;
        let (namespace, name) = (
            meta(&expected.object, "namespace"),
            meta(&expected.object, "name"),
        );
        let namespace = (!namespace.is_empty()).then_some(namespace);
        let key = resource.key(namespace, name);
        let (guard, object) = match api.store.get(&key) {
            None => (Guard::Absent(key.clone()), new(api, &expected.object)),
            Some(entry) => {
                let current = codec::decode(resource, &entry.value)?;
                let Some(object) = completed(&current, expected) else {
                    continue;
                };
                (
                    Guard::ModifiedAt(key.clone(), entry.modify_revision),
                    object,
                )
            }
        };
        let mut guards = vec![guard];
        guards.extend(namespace.map(|namespace| Guard::Exists(namespace_key(namespace))));
        writes.push(Write {
            guards,
            operation: Operation::Put {
                key,
                value: codec::encode(resource, &object)?,
                index: codec::index(resource, &object),
            },
        });
    }
    Ok(writes)
}

/// The object as this cluster's own.
fn new(api: &Api, expected: &Value) -> Value {
    let mut object = expected.clone();
    *object.member(&["metadata", "uid"]) = json!(uuid::Uuid::new_v4().to_string());
    *object.member(&["metadata", "creationTimestamp"]) = json!(api.clock.stamp());
    object
}

/// An object with what it lacks; none when it lacks nothing, or is not to be changed.
fn completed(current: &Value, expected: &Expected) -> Option<Value> {
    let auto_update = &current["metadata"]["annotations"][AUTO_UPDATE];
    if auto_update == "false" || !meta(current, "deletionTimestamp").is_empty() {
        return None;
    }
    let (mut object, wanted) = (current.clone(), &expected.object);
    for map in ["labels", "annotations"] {
        for (key, value) in wanted["metadata"][map].as_object().into_iter().flatten() {
            let own = object.member(&["metadata", map, key.as_str()]);
            if own.is_null() {
                *own = value.clone();
            }
        }
    }
    match expected.plural {
        "roles" | "clusterroles" => complete_role(&mut object, wanted),
        _ => complete_binding(&mut object, wanted),
    }
    (object != *current).then_some(object)
}

fn complete_role(role: &mut Value, wanted: &Value) {
    if wanted["aggregationRule"].is_object() {
        // Its rules are gathered by a controller.
        let path = ["aggregationRule", "clusterRoleSelectors"];
        add_missing(
            role.member(&path),
            &wanted["aggregationRule"]["clusterRoleSelectors"],
        );
        return;
    }
    let rules_of = |role: &Value| -> Vec<PolicyRule> {
        // What is stored was written from the type.
        serde_json::from_value(role["rules"].clone()).unwrap_or_default()
    };
    let missing = rules::not_covered(&rules_of(role), &rules_of(wanted));
    if !missing.is_empty() {
        add_missing(role.member(&["rules"]), &json!(missing));
    }
}

/// A binding to another role than it was made for is made anew.
fn complete_binding(binding: &mut Value, wanted: &Value) {
    if binding["roleRef"] != wanted["roleRef"] {
        *binding.member(&["roleRef"]) = wanted["roleRef"].clone();
        *binding.member(&["metadata", "uid"]) = json!(uuid::Uuid::new_v4().to_string());
    }
    if wanted["subjects"].is_array() {
        add_missing(binding.member(&["subjects"]), &wanted["subjects"]);
    }
}

/// Adds the items that a list has not.
fn add_missing(list: &mut Value, wanted: &Value) {
    if !list.is_array() {
        *list = json!([]);
    }
    if let Value::Array(list) = list {
        for item in wanted.as_array().into_iter().flatten() {
            if !list.contains(item) {
                list.push(item.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::authorisation::tests::{Cluster, administrator, user};
    use crate::identity::Identity;

    fn expected(plural: &'static str, object: Value) -> Expected {
        Expected { plural, object }
    }

    fn role(rules: Value, autoupdate: &str) -> Value {
        json!({
            "metadata": {
                "name": "r", "annotations": {AUTO_UPDATE: autoupdate}, "labels": {"a": "own"},
            },
            "rules": rules,
        })
    }

    #[test]
    fn what_was_taken_away_is_added_and_what_was_added_stays() {
        let rule =
            |verbs: &[&str]| json!({"apiGroups": [""], "resources": ["pods"], "verbs": verbs});
        let wanted = expected("clusterroles", {
            let mut wanted = role(json!([rule(&["get", "list"])]), "true");
            *wanted.member(&["metadata", "labels"]) = json!({"a": "default", "b": "default"});
            wanted
        });
        let changed = role(json!([rule(&["get", "delete"])]), "true");
        let completed_role = completed(&changed, &wanted).expect("something is missing");
        assert_eq!(
            completed_role["rules"],
            json!([rule(&["get", "delete"]), rule(&["list"])])
        );
        assert_eq!(
            completed_role["metadata"]["labels"],
            json!({"a": "own", "b": "default"})
        );
        assert_eq!(completed(&completed_role, &wanted), None);
        let kept = role(json!([]), "false");
        assert_eq!(completed(&kept, &wanted), None);
    }

    #[test]
    fn a_binding_gets_its_subjects_and_its_role_back() {
        let group = |name: &str| json!({"kind": "Group", "apiGroup": GROUP, "name": name});
        let binding = |role: &str, subjects: Value| {
            json!({
                "metadata": {"name": "b", "uid": "u"},
                "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": role},
                "subjects": subjects,
            })
        };
        let wanted = expected("clusterrolebindings", binding("r", json!([group("g")])));
        let other = binding("r", json!([group("h")]));
        assert_eq!(
            completed(&other, &wanted).expect("a subject is missing")["subjects"],
            json!([group("h"), group("g")])
        );
        let elsewhere = binding("x", json!([group("g")]));
        let back = completed(&elsewhere, &wanted).expect("it is for another role");
        assert_eq!(back["roleRef"]["name"], "r");
        assert_ne!(back["metadata"]["uid"], "u", "it is another binding");
    }

    #[tokio::test]
    async fn a_start_puts_right_what_was_taken_away_and_leaves_what_is_not_to_be_changed() {
        let cluster = Cluster::new().await;
        let rbac = "/apis/rbac.authorization.k8s.io/v1";
        let change = async |method: Method, path: &str, body: Value| {
            let path = format!("{rbac}/{path}");
            let (status, answer) = cluster.send(method, &path, &body, administrator()).await;
            assert_eq!(status, 200, "{path}: {answer}");
        };
        let public = "clusterrolebindings/system:public-info-viewer";
        change(Method::DELETE, public, json!({})).await;
        let basic = "clusterroles/system:basic-user";
        change(Method::PATCH, basic, json!({"rules": []})).await;
        let kept = json!({"metadata": {"annotations": {AUTO_UPDATE: "false"}}, "rules": []});
        change(Method::PATCH, "clusterroles/system:discovery", kept).await;
        let reviews = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        let allowed = || {
            [
                cluster.may(&Identity::anonymous(), Method::GET, "/version"),
                cluster.may(&user("jane"), Method::POST, reviews),
                cluster.may(&user("jane"), Method::GET, "/apis"),
            ]
        };
        assert_eq!(allowed(), [false, false, false]);
        let again = cluster.server.bootstrap(6443).await;
        again.expect("bootstrapped again");
        assert_eq!(allowed(), [true, true, false]);
    }
}
