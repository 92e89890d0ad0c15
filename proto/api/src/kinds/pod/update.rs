//! What may change in a pod once it exists: little.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::{Affinity, Container, Pod, PodSpec};

use super::annotations;
use crate::field::{ErrorList, Path};
use crate::kinds::internal::Internal;
use crate::kinds::{difference, pod_spec};

/// How a refusal of any other change begins.
const MAY_CHANGE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Takes over what may differ between two lists of containers; answers whether they are the same containers otherwise.
fn keep_images(
    new: &mut [Container],
    old: &[Container],
    path: &Path,
    errors: &mut ErrorList,
) -> bool {
    if new.len() != old.len() {
        errors.forbidden(path, "pod updates may not add or remove containers");
        return false;
    }
    for (index, (container, before)) in new.iter_mut().zip(old).enumerate() {
        let image = container.image.as_deref().unwrap_or_default();
        let path = path.index(index).child("image");
        if image.is_empty() {
            errors.required(&path, "");
        }
        if image.trim() != image {
            let detail = "must not have leading or trailing whitespace";
            errors.invalid(&path, image, detail);
        }
        container.image.clone_from(&before.image);
    }
    true
}

/// Checks a deadline; answers whether it is one that a pod can have from now on.
fn check_deadline(new: Option<i64>, old: Option<i64>, path: &Path, errors: &mut ErrorList) -> bool {
    let path = path.child("activeDeadlineSeconds");
    match (new, old) {
        (Some(new), _) if !(0..=i64::from(i32::MAX)).contains(&new) => {
            let detail = format!("must be between 0 and {}, inclusive", i32::MAX);
            errors.invalid(&path, new, &detail);
            false
        }
        (Some(new), Some(old)) if old < new => {
            errors.invalid(&path, new, "must be less than or equal to previous value");
            false
        }
        (None, Some(_)) => {
            let detail = "must not update from a positive integer to nil value";
            errors.invalid(&path, None::<i64>, detail);
            true
        }
        _ => true,
    }
}

fn gates(spec: &PodSpec) -> Vec<&str> {
    let gates = spec.scheduling_gates.iter().flatten();
    gates.map(|gate| gate.name.as_str()).collect()
}

/// Takes over what was asked of nodes.
fn keep_node_affinity(spec: &mut PodSpec, before: &PodSpec) {
    let old = before.affinity.as_ref();
    let nodes = old.and_then(|affinity| affinity.node_affinity.clone());
    if spec.affinity.is_some() || nodes.is_some() {
        spec.affinity.get_or_insert_default().node_affinity = nodes;
    }
    if old.is_none() && spec.affinity == Some(Affinity::default()) {
        spec.affinity = None;
    }
}

/// Checks an update of the pod itself.
pub(super) fn validate(new: &Pod, old: &Pod, errors: &mut ErrorList) {
    annotations::validate(new, errors);
    let path = Path::new("spec");
    let name = new.metadata.name.as_deref();
    pod_spec::validate_for_pod(new.spec.as_ref(), name, &path, errors);
    annotations::validate_update(new, old, errors);
    let (Some(mut spec), Some(before)) = (new.spec.clone(), old.spec.as_ref()) else {
        return;
    };
    let containers_path = path.child("containers");
    if !keep_images(
        &mut spec.containers,
        &before.containers,
        &containers_path,
        errors,
    ) {
        return;
    }
    let init = before.init_containers.as_deref().unwrap_or_default();
    let new_init = spec.init_containers.as_deref_mut().unwrap_or_default();
    if !keep_images(new_init, init, &path.child("initContainers"), errors) {
        return;
    }
    let deadline = (spec.active_deadline_seconds, before.active_deadline_seconds);
    if !check_deadline(deadline.0, deadline.1, &path, errors) {
        return;
    }
    pod_spec::check_tolerations_added(
        spec.tolerations.as_deref().unwrap_or_default(),
        before.tolerations.as_deref().unwrap_or_default(),
        &path.child("tolerations"),
        errors,
    );
    let had: HashSet<&str> = gates(before).into_iter().collect();
    for gate in gates(&spec).into_iter().filter(|gate| !had.contains(gate)) {
        let detail = format!("only deletion is allowed, but found new scheduling gate '{gate}'");
        errors.forbidden(&path.child("schedulingGates"), &detail);
    }
    if !had.is_empty() {
        pod_spec::check_node_selector_additions(&spec, before, &path, errors);
        spec.node_selector.clone_from(&before.node_selector);
        pod_spec::check_node_affinity_additions(&spec, before, &path, errors);
        keep_node_affinity(&mut spec, before);
    }
    let ended_early = spec.termination_grace_period_seconds == Some(1)
        && before
            .termination_grace_period_seconds
            .is_some_and(|seconds| seconds < 0);
    if ended_early {
        spec.termination_grace_period_seconds = before.termination_grace_period_seconds;
    }
    spec.active_deadline_seconds = before.active_deadline_seconds;
    spec.tolerations.clone_from(&before.tolerations);
    spec.scheduling_gates.clone_from(&before.scheduling_gates);
    if spec == *before {
        return;
    }
    let (now, then) = (Internal::of_pod(&spec), Internal::of_pod(before));
    if now != then {
        let difference = difference::unified(&then.lines(), &now.lines());
        errors.forbidden(&path, &format!("{MAY_CHANGE}\n{difference}"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::PodKind;
    use super::*;
    use crate::kind::Kind;

    fn pod(spec: Value) -> Pod {
        let mut pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "d"}, "spec": spec
        }))
        .unwrap();
        PodKind::default(&mut pod);
        pod
    }

    fn told(new: &Pod, old: &Pod) -> Vec<String> {
        let mut errors = ErrorList::default();
        validate(new, old, &mut errors);
        errors.told()
    }

    fn spec(more: Value) -> Value {
        let mut spec = json!({"containers": [{"name": "c", "image": "x:1"}]});
        if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
            spec.extend(more);
        }
        spec
    }

    #[test]
    fn images_and_deadlines_change_and_little_else() {
        let old = pod(spec(json!({"activeDeadlineSeconds": 10})));
        let image =
            json!({"activeDeadlineSeconds": 5, "containers": [{"name": "c", "image": "y:1"}]});
        assert_eq!(told(&pod(image), &old), Vec::<String>::new());
        let place = "spec.activeDeadlineSeconds: Invalid value:";
        assert_eq!(
            told(&pod(spec(json!({"activeDeadlineSeconds": 11}))), &old),
            [format!(
                "{place} 11: must be less than or equal to previous value"
            )]
        );
        let removed = told(&pod(spec(json!({}))), &old);
        assert_eq!(
            removed[0],
            format!("{place} null: must not update from a positive integer to nil value")
        );
        let renamed =
            json!({"activeDeadlineSeconds": 10, "containers": [{"name": "d", "image": "x:1"}]});
        let renamed = told(&pod(renamed), &old);
        assert_eq!(renamed.len(), 1, "{renamed:?}");
        assert!(renamed[0].starts_with("spec: Forbidden: pod updates may not change fields"));
    }

    #[test]
    fn a_change_that_is_refused_is_shown_and_other_words_for_the_same_are_none() {
        let with = |more: Value| {
            let mut container = json!({"name": "c", "image": "x:1"});
            if let (Some(container), Value::Object(more)) = (container.as_object_mut(), more) {
                container.extend(more);
            }
            pod(json!({"containers": [container]}))
        };
        let asking = |cpu: &str| {
            let requests = json!({"cpu": cpu, "memory": "64Mi"});
            with(json!({"resources": {"requests": requests, "limits": {"memory": "64Mi"}}}))
        };
        let found = told(&asking("120m"), &asking("150m"));
        assert_eq!(found.len(), 1, "{found:?}");
        let start = format!("spec: Forbidden: {MAY_CHANGE}\n@@ -");
        assert!(found[0].starts_with(&start), "{found:?}");
        let end = " @@\n      \"memory\": \"64Mi\"\n     },\n     \"Requests\": {\n-     \"cpu\": \"150m\",\n+     \"cpu\": \"120m\",\n      \"memory\": \"64Mi\"\n     },\n     \"Claims\": null\n";
        assert!(found[0].ends_with(end), "{found:?}");
        assert_eq!(told(&asking("1"), &asking("1000m")), Vec::<String>::new());
        let (plain, same) = (with(json!({})), with(json!({"stdin": false, "args": []})));
        assert_eq!(told(&same, &plain), Vec::<String>::new());
        let unlike = with(json!({"stdin": true}));
        assert!(told(&unlike, &plain)[0].ends_with("-   \"Stdin\": false,\n+   \"Stdin\": true,\n    \"StdinOnce\": false,\n    \"TTY\": false\n   }\n"));
    }

    #[test]
    fn a_pod_that_waits_may_ask_for_more_of_its_node() {
        let affinity = |terms: Value| json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}});
        let expression = |key: &str| json!({"key": key, "operator": "Exists"});
        let waiting = |more: Value| {
            let mut spec = spec(more);
            if let Some(spec) = spec.as_object_mut() {
                spec.insert("schedulingGates".to_owned(), json!([{"name": "g"}]));
            }
            pod(spec)
        };
        let one = json!([{"matchExpressions": [expression("a")]}]);
        let more = json!([{"matchExpressions": [expression("a"), expression("b")]}]);
        let plain = waiting(json!({}));
        let old = waiting(json!({"affinity": affinity(one.clone())}));
        let wider = waiting(json!({"affinity": affinity(more)}));
        assert_eq!(told(&old, &plain), Vec::<String>::new());
        assert_eq!(told(&wider, &old), Vec::<String>::new());
        let list = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
        assert_eq!(
            told(&old, &wider),
            [format!(
                "{list}[0]: Invalid value: {{\"MatchExpressions\":[{{\"Key\":\"a\",\"Operator\":\"Exists\",\"Values\":null}}],\"MatchFields\":null}}: only additions are allowed (no mutations or deletions)"
            )]
        );
        let two = json!([{"matchExpressions": [expression("a")]}, {"matchExpressions": [expression("c")]}]);
        let found = told(&waiting(json!({"affinity": affinity(two)})), &old);
        assert_eq!(found.len(), 1);
        assert!(
            found[0].ends_with(
                "no additions/deletions to non-empty NodeSelectorTerms list are allowed"
            )
        );
    }

    #[test]
    fn annotations_of_the_beginning_stay() {
        let annotated = |value: Option<&str>| {
            let mut pod = pod(spec(json!({})));
            let key = "container.apparmor.security.beta.kubernetes.io/c".to_owned();
            pod.metadata.annotations = value.map(|value| [(key, value.to_owned())].into());
            pod
        };
        let (none, some) = (annotated(None), annotated(Some("unconfined")));
        assert!(
            told(&none, &some)[0]
                .ends_with("Forbidden: may not remove or update AppArmor annotations")
        );
        assert!(told(&some, &none)[0].ends_with("Forbidden: may not add AppArmor annotations"));
        assert_eq!(told(&some, &some), Vec::<String>::new());
    }
}
