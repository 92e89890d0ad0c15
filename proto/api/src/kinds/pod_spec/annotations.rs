//! Annotations about containers that came before the fields of today.

use std::collections::{BTreeMap, HashSet};

use k8s_openapi::api::core::v1::{AppArmorProfile, PodSpec, SeccompProfile};

use super::every::all_containers;
use super::volumes::check_descending;
use crate::field::{ErrorList, Path};

type Annotations = BTreeMap<String, String>;

/// Before the name of a container.
pub(in crate::kinds) const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";
/// See [`APP_ARMOR`].
pub(super) const SECCOMP: &str = "container.seccomp.security.alpha.kubernetes.io/";
pub(super) const POD_SECCOMP: &str = "seccomp.security.alpha.kubernetes.io/pod";
/// On pods that stand for those of a node's own.
pub(in crate::kinds) const MIRROR: &str = "kubernetes.io/config.mirror";
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
const LOCAL: &str = "localhost/";

/// Whether a text is a number as Kubernetes writes it: no plus sign, and no zeros before it.
fn is_number(text: &str) -> bool {
    let plain = match text.as_bytes() {
        [b'0'] => true,
        [first, ..] => *first == b'-' || (b'1'..=b'9').contains(first),
        [] => false,
    };
    plain && text.parse::<i32>().is_ok()
}

fn check_seccomp(profile: &str, path: &Path, errors: &mut ErrorList) {
    match profile {
        "runtime/default" | "docker/default" | "unconfined" => {}
        profile => match profile.strip_prefix(LOCAL) {
            Some(file) => check_descending(file, path, errors),
            None => errors.invalid(path, profile, "must be a valid seccomp profile"),
        },
    }
}

fn check_app_armor(annotations: &Annotations, spec: &PodSpec, path: &Path, errors: &mut ErrorList) {
    let containers = all_containers(spec, path);
    let names: HashSet<&str> = containers
        .iter()
        .map(|(container, _)| container.name)
        .collect();
    for (key, profile) in annotations {
        let Some(name) = key.strip_prefix(APP_ARMOR) else {
            continue;
        };
        let path = path.key(key);
        if !names.contains(name) {
            errors.invalid(&path, name, "container not found");
        }
        let known = ["", "runtime/default", "unconfined"].contains(&profile.as_str());
        if !known && !profile.starts_with(LOCAL) {
            let detail = format!("invalid AppArmor profile name: {profile:?}");
            errors.invalid(&path, profile, &detail);
        }
    }
}

/// Checks the annotations that Kubernetes itself reads. `None` of a spec is checked as an empty one.
pub(in crate::kinds) fn validate_annotations(
    annotations: Option<&Annotations>,
    spec: Option<&PodSpec>,
    path: &Path,
    errors: &mut ErrorList,
) {
    let empty = PodSpec::default();
    let spec = spec.unwrap_or(&empty);
    let Some(annotations) = annotations else {
        return;
    };
    if let Some(mirror) = annotations.get(MIRROR)
        && spec.node_name.as_deref().unwrap_or_default().is_empty()
    {
        let detail = "must set spec.nodeName if mirror pod annotation is set";
        errors.invalid(&path.key(MIRROR), mirror, detail);
    }
    if let Some(cost) = annotations
        .get(DELETION_COST)
        .filter(|cost| !is_number(cost))
    {
        errors.invalid(&path.key(DELETION_COST), cost, "must be a 32bit integer");
    }
    if let Some(profile) = annotations.get(POD_SECCOMP) {
        check_seccomp(profile, &path.child(POD_SECCOMP), errors);
    }
    for (key, profile) in annotations
        .iter()
        .filter(|(key, _)| key.starts_with(SECCOMP))
    {
        check_seccomp(profile, &path.child(key), errors);
    }
    check_app_armor(annotations, spec, path, errors);
}

/// What a profile's annotation must be beside its field.
struct Expected<'a> {
    /// Of a profile that is not a file of the node's.
    values: &'a [&'a str],
    /// The file, of one that is.
    file: Option<&'a str>,
}

/// Checks that an annotation says what the field beside it does; `what` is the sort of the profile.
fn check_match(
    annotation: &str,
    expected: &Expected<'_>,
    what: &str,
    path: &Path,
    errors: &mut ErrorList,
) {
    let same = match expected.values {
        [] => annotation.starts_with(LOCAL),
        values => values.contains(&annotation),
    };
    if !same {
        let detail = format!("{what} type in annotation and field must match");
        errors.forbidden(&path.child("type"), &detail);
    } else if expected.values.is_empty() && annotation.strip_prefix(LOCAL) != expected.file {
        let detail = format!("{what} profile in annotation and field must match");
        errors.forbidden(&path.child("localhostProfile"), &detail);
    }
}

fn seccomp_of(profile: &SeccompProfile) -> Option<Expected<'_>> {
    let values: &[&str] = match profile.type_.as_str() {
        "Unconfined" => &["unconfined"],
        "RuntimeDefault" => &["runtime/default", "docker/default"],
        "Localhost" => &[],
        _ => return None,
    };
    let file = profile.localhost_profile.as_deref();
    Some(Expected { values, file })
}

fn app_armor_of(profile: &AppArmorProfile) -> Option<Expected<'_>> {
    let values: &[&str] = match profile.type_.as_str() {
        "Unconfined" => &["unconfined"],
        "RuntimeDefault" => &["runtime/default"],
        "Localhost" => &[],
        _ => return None,
    };
    let file = profile.localhost_profile.as_deref();
    Some(Expected { values, file })
}

/// Checks that annotations of a new pod, or of a template, do not contradict the fields. `path` is the spec's.
pub(in crate::kinds) fn validate_matches(
    annotations: Option<&Annotations>,
    spec: &PodSpec,
    path: &Path,
    errors: &mut ErrorList,
) {
    let Some(annotations) = annotations.filter(|annotations| !annotations.is_empty()) else {
        return;
    };
    let context = spec.security_context.as_ref();
    let profile = context.and_then(|context| context.seccomp_profile.as_ref());
    if let (Some(expected), Some(annotation)) =
        (profile.and_then(seccomp_of), annotations.get(POD_SECCOMP))
    {
        let path = path.child("securityContext").child("seccompProfile");
        check_match(annotation, &expected, "seccomp", &path, errors);
    }
    let containers = all_containers(spec, path);
    for (container, path) in &containers {
        let own = container.security_context;
        let profile = own.and_then(|context| context.seccomp_profile.as_ref());
        let annotation = annotations.get(&format!("{SECCOMP}{}", container.name));
        if let (Some(expected), Some(annotation)) = (profile.and_then(seccomp_of), annotation) {
            let path = path.child("securityContext").child("seccompProfile");
            check_match(annotation, &expected, "seccomp", &path, errors);
        }
    }
    if spec
        .os
        .as_ref()
        .is_some_and(|system| system.name == "windows")
    {
        return;
    }
    let of_pod = context.and_then(|context| context.app_armor_profile.as_ref());
    for (container, path) in &containers {
        let own = container.security_context;
        let profile = own.and_then(|context| context.app_armor_profile.as_ref());
        let profile = profile.or(of_pod);
        let annotation = annotations.get(&format!("{APP_ARMOR}{}", container.name));
        if let (Some(expected), Some(annotation)) = (profile.and_then(app_armor_of), annotation) {
            let path = path.child("securityContext").child("appArmorProfile");
            check_match(annotation, &expected, "apparmor", &path, errors);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn told(annotations: Value, spec: Value) -> Vec<String> {
        let annotations: Annotations = serde_json::from_value(annotations).unwrap();
        let spec: PodSpec = serde_json::from_value(spec).unwrap();
        let mut errors = ErrorList::default();
        let path = Path::new("a");
        validate_annotations(Some(&annotations), Some(&spec), &path, &mut errors);
        validate_matches(Some(&annotations), &spec, &Path::new("spec"), &mut errors);
        errors.told()
    }

    #[test]
    fn annotations_that_are_read_have_sense() {
        let container = json!({"containers": [{"name": "c"}]});
        let profile = |name: &str| format!("{APP_ARMOR}{name}");
        for (key, value, expected) in [
            (
                MIRROR.to_owned(),
                "x",
                "Invalid value: \"x\": must set spec.nodeName if mirror pod annotation is set",
            ),
            (
                DELETION_COST.to_owned(),
                "+1",
                "Invalid value: \"+1\": must be a 32bit integer",
            ),
            (
                profile("d"),
                "unconfined",
                "Invalid value: \"d\": container not found",
            ),
            (
                profile("c"),
                "foo",
                "Invalid value: \"foo\": invalid AppArmor profile name: \"foo\"",
            ),
        ] {
            let found = told(json!({key.clone(): value}), container.clone());
            assert_eq!(found, [format!("a[{key}]: {expected}")]);
        }
        let seccomp = told(json!({POD_SECCOMP: "localhost/../x"}), container.clone());
        let expected = format!("a.{POD_SECCOMP}: Invalid value: \"../x\": must not contain '..'");
        assert_eq!(seccomp, [expected]);
        for good in ["0", "-5", "2147483647"] {
            assert!(told(json!({DELETION_COST: good}), container.clone()).is_empty());
        }
        for bad in ["", "01", "x", "2147483648", "-"] {
            assert_eq!(
                told(json!({DELETION_COST: bad}), container.clone()).len(),
                1
            );
        }
    }

    #[test]
    fn annotations_and_fields_say_the_same() {
        let key = format!("{APP_ARMOR}c");
        let spec = |profile: Value| {
            let context = json!({"appArmorProfile": profile});
            json!({"containers": [{"name": "c", "securityContext": context}]})
        };
        let local = json!({"type": "Localhost", "localhostProfile": "p"});
        let same = told(json!({key.clone(): "localhost/p"}), spec(local.clone()));
        assert!(same.is_empty(), "{same:?}");
        let place = "spec.containers[0].securityContext.appArmorProfile";
        assert_eq!(
            told(json!({key.clone(): "localhost/q"}), spec(local)),
            [format!(
                "{place}.localhostProfile: Forbidden: apparmor profile in annotation and field must match"
            )]
        );
        assert_eq!(
            told(
                json!({key: "unconfined"}),
                spec(json!({"type": "RuntimeDefault"}))
            ),
            [format!(
                "{place}.type: Forbidden: apparmor type in annotation and field must match"
            )]
        );
    }
}
