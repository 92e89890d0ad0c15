//! Annotations that have become fields.

use k8s_openapi::api::core::v1::{AppArmorProfile, Pod};

/// Before the name of a container.
const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";

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
    for (key, value) in pod.metadata.annotations.iter().flatten() {
        let Some(name) = key.strip_prefix(APP_ARMOR) else {
            continue;
        };
        let init = spec.init_containers.iter_mut().flatten();
        let mut containers = spec.containers.iter_mut().chain(init);
        let Some(container) = containers.find(|container| container.name == name) else {
            continue;
        };
        let context = container.security_context.get_or_insert_default();
        if context.app_armor_profile.is_none() {
            context.app_armor_profile = profile(value);
        }
    }
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
