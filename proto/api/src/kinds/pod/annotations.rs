//! Annotations that have become fields.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{AppArmorProfile, Pod};

use crate::field::{ErrorList, Path};
use crate::kinds::pod_spec::{self, APP_ARMOR, MIRROR};

/// The profile that an annotation's value names; `None` for one that Kubernetes does not know.
fn profile(value: &str) -> Option<AppArmorProfile> {
    let (kind, file) = match value {
        "runtime/default" => ("RuntimeDefault", None),
        "unconfined" => ("Unconfined", None),
        _ => ("Localhost", Some(value.strip_prefix("localhost/")?)),
    };
    Some(AppArmorProfile {
        type_: kind.to_owned(),
        localhost_profile: file.map(str::to_owned),
    })
}

/// Gives containers the AppArmor profile that an annotation names, where the field names none.
pub(super) fn adopt_app_armor(pod: &mut Pod) {
    let Some(spec) = &mut pod.spec else {
        return;
    };
    let annotations = pod.metadata.annotations.iter().flatten();
    let mut named: HashMap<&str, &str> = annotations
        .filter_map(|(key, value)| Some((key.strip_prefix(APP_ARMOR)?, value.as_str())))
        .collect();
    let init = spec.init_containers.iter_mut().flatten();
    for container in spec.containers.iter_mut().chain(init) {
        // An annotation is about the first container of its name.
        let Some(value) = named.remove(container.name.as_str()) else {
            continue;
        };
        let context = container.security_context.get_or_insert_default();
        if context.app_armor_profile.is_none() {
            context.app_armor_profile = profile(value);
        }
    }
}

/// Checks the annotations of a pod.
pub(super) fn validate(pod: &Pod, errors: &mut ErrorList) {
    let path = Path::new("metadata").child("annotations");
    let annotations = pod.metadata.annotations.as_ref();
    pod_spec::validate_annotations(annotations, pod.spec.as_ref(), &path, errors);
}

/// Checks that annotations which a pod began with stay, and that it gets no more of them.
pub(super) fn validate_update(new: &Pod, old: &Pod, errors: &mut ErrorList) {
    let path = Path::new("metadata").child("annotations");
    let empty = BTreeMap::new();
    let now = new.metadata.annotations.as_ref().unwrap_or(&empty);
    let before = old.metadata.annotations.as_ref().unwrap_or(&empty);
    let kind_of = |key: &str| match key {
        MIRROR => Some("mirror pod annotation"),
        key => key.starts_with(APP_ARMOR).then_some("AppArmor annotations"),
    };
    for (key, value) in before {
        if let Some(kind) = kind_of(key)
            && now.get(key) != Some(value)
        {
            let detail = format!("may not remove or update {kind}");
            errors.forbidden(&path.key(key), &detail);
        }
    }
    for key in now.keys().filter(|key| !before.contains_key(*key)) {
        if let Some(kind) = kind_of(key) {
            errors.forbidden(&path.key(key), &format!("may not add {kind}"));
        }
    }
    validate(new, errors);
}

/// Warnings about annotations that have become fields.
pub(super) fn warnings(pod: &Pod) -> Vec<String> {
    let keys = pod
        .metadata
        .annotations
        .iter()
        .flatten()
        .map(|(key, _)| key);
    keys.filter(|key| key.starts_with(APP_ARMOR))
        .map(|key| {
            format!(
                "metadata.annotations[{key}]: deprecated since v1.30; use the \"appArmorProfile\" field instead"
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn profiles(pod: Value) -> Vec<Option<String>> {
        let mut pod = serde_json::from_value(pod).unwrap();
        adopt_app_armor(&mut pod);
        let spec = pod.spec.unwrap_or_default();
        let all = spec.containers.into_iter();
        let all = all.chain(spec.init_containers.into_iter().flatten());
        all.map(|container| Some(container.security_context?.app_armor_profile?.type_))
            .collect()
    }

    #[test]
    fn an_annotation_fills_the_first_container_of_its_name() {
        let (a, b) = (format!("{APP_ARMOR}a"), format!("{APP_ARMOR}b"));
        let set = json!({"appArmorProfile": {"type": "RuntimeDefault"}});
        let found = profiles(json!({
            "metadata": {"annotations": {a: "unconfined", b: "localhost/x", "other": "unconfined"}},
            "spec": {
                "containers": [{"name": "a"}, {"name": "a"}, {"name": "other"}],
                "initContainers": [{"name": "b"}]
            }
        }));
        let expected = [Some("Unconfined"), None, None, Some("Localhost")];
        assert_eq!(found, expected.map(|kind| kind.map(str::to_owned)));
        let named = format!("{APP_ARMOR}a");
        let kept = profiles(json!({
            "metadata": {"annotations": {named: "unconfined"}},
            "spec": {"containers": [{"name": "a", "securityContext": set}]}
        }));
        assert_eq!(kept, [Some("RuntimeDefault".to_owned())]);
    }

    #[test]
    fn many_annotations_find_many_containers() {
        // One by one this were a thousand million comparisons of long names.
        let long = "x".repeat(1000);
        let annotations: serde_json::Map<String, Value> = (0..30_000)
            .map(|at| (format!("{APP_ARMOR}{long}{at}"), json!("unconfined")))
            .collect();
        let containers: Vec<Value> = (0..30_000)
            .map(|at| json!({"name": format!("{long}{at}")}))
            .collect();
        let found = profiles(json!({
            "metadata": {"annotations": annotations}, "spec": {"containers": containers}
        }));
        assert!(found.iter().all(Option::is_some));
    }
}
