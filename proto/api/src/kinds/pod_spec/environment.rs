//! Environment variables and where their values come from.

use k8s_openapi::api::core::v1::{
    EnvFromSource, EnvVar, EnvVarSource, FileKeySelector, ObjectFieldSelector,
    ResourceFieldSelector,
};

use super::volumes::check_no_backsteps;
use crate::field::{ErrorList, Path};
use crate::names;
use crate::quantity::Quantity;

/// Every field of a pod that may be asked for, in its own API version.
const KNOWN_FIELDS: [&str; 15] = [
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.host",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.phase",
    "status.podIP",
    "status.podIPs",
];

/// Those that a variable may carry.
pub(super) const VARIABLE_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// Those that a file may carry.
pub(super) const FILE_FIELDS: [&str; 5] = [
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
];

/// Maps, of which one entry may be asked for.
const SUBSCRIPTED: [&str; 2] = ["metadata.annotations", "metadata.labels"];

const CONTAINER_RESOURCES: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

/// Checks a reference to a field of the pod itself.
pub(super) fn validate_field_selector(
    selector: &ObjectFieldSelector,
    allowed: &[&str],
    path: &Path,
    errors: &mut ErrorList,
) {
    let version = selector.api_version.as_deref().unwrap_or_default();
    if version.is_empty() {
        return errors.required(&path.child("apiVersion"), "");
    }
    let field = selector.field_path.as_str();
    let field_path = path.child("fieldPath");
    if field.is_empty() {
        return errors.required(&field_path, "");
    }
    let (base, subscript) = match field
        .strip_suffix("']")
        .and_then(|rest| rest.split_once("['"))
    {
        Some((base, subscript)) if !base.is_empty() => (base, Some(subscript)),
        _ => (field, None),
    };
    let fault = if version != "v1" {
        Some(format!("unsupported pod version: {version}"))
    } else if !KNOWN_FIELDS.contains(&base) {
        Some(format!("field label not supported: {field}"))
    } else if subscript.is_some() && !SUBSCRIPTED.contains(&base) {
        Some(format!("field label does not support subscript: {field}"))
    } else {
        None
    };
    if let Some(fault) = fault {
        let detail = format!("error converting fieldPath: {fault}");
        return errors.invalid(&field_path, field, &detail);
    }
    match (base, subscript) {
        ("metadata.annotations", Some(key)) => {
            errors.invalid_each(path, key, names::qualified_name(&key.to_lowercase()));
        }
        (_, Some(key)) => errors.invalid_each(path, key, names::qualified_name(key)),
        (_, None) => {
            // An old name of the same field.
            let base = if base == "spec.host" {
                "spec.nodeName"
            } else {
                base
            };
            if !allowed.contains(&base) {
                errors.not_supported(&field_path, base, allowed);
            }
        }
    }
}

/// Checks a reference to a container's requests and limits.
pub(super) fn validate_resource_selector(
    selector: &ResourceFieldSelector,
    in_volume: bool,
    path: &Path,
    errors: &mut ErrorList,
) {
    let resource = selector.resource.as_str();
    let huge_pages = ["limits.hugepages-", "requests.hugepages-"];
    let container = selector.container_name.as_deref().unwrap_or_default();
    if in_volume && container.is_empty() {
        errors.required(&path.child("containerName"), "");
    } else if resource.is_empty() {
        errors.required(&path.child("resource"), "");
    } else if !CONTAINER_RESOURCES.contains(&resource)
        && !huge_pages.iter().any(|prefix| resource.starts_with(prefix))
    {
        errors.not_supported(&path.child("resource"), resource, &CONTAINER_RESOURCES);
    }
    let divisor = selector
        .divisor
        .as_ref()
        .and_then(|divisor| divisor.0.parse::<Quantity>().ok());
    let Some(divisor) = divisor.filter(|divisor| divisor.sign() != 0) else {
        return;
    };
    let kind = match resource {
        "limits.cpu" | "requests.cpu" => "cpu",
        "limits.memory" | "requests.memory" => "memory",
        "limits.ephemeral-storage" | "requests.ephemeral-storage" => "local ephemeral storage",
        _ if huge_pages.iter().any(|prefix| resource.starts_with(prefix)) => "hugepages",
        _ => return,
    };
    let divisors = match kind {
        "cpu" => "1m and 1",
        _ => "1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei",
    };
    let text = divisor.to_string();
    let mut known = divisors.split(", ").flat_map(|one| one.split(" and "));
    if !known.any(|one| one == text) {
        let detail =
            format!("only divisor's values {divisors} are supported with the {kind} resource");
        errors.invalid(&path.child("divisor"), resource, &detail);
    }
}

/// Checks a reference to one entry of another object.
fn check_key(name: &str, key: &str, path: &Path, errors: &mut ErrorList) {
    errors.invalid_each(&path.child("name"), name, names::dns1123_subdomain(name));
    let path = path.child("key");
    if key.is_empty() {
        errors.required(&path, "");
    } else {
        errors.invalid_each(&path, key, names::config_map_key(key));
    }
}

/// Checks a reference to one variable of a file.
fn check_file(file: &FileKeySelector, path: &Path, errors: &mut ErrorList) {
    let key_path = path.child("key");
    if file.key.is_empty() {
        errors.required(&key_path, "");
    } else if let Some(detail) = names::is_env_var_name(&file.key) {
        errors.invalid(&key_path, &file.key, &detail);
    }
    let volume_path = path.child("volumeName");
    if file.volume_name.is_empty() {
        errors.required(&volume_path, "");
    } else {
        let details = names::dns1123_label(&file.volume_name);
        errors.invalid_each(&volume_path, &file.volume_name, details);
    }
    let file_path = path.child("path");
    if file.path.is_empty() {
        errors.required(&file_path, "");
    } else {
        check_no_backsteps(&file.path, &file_path, errors);
    }
}

fn validate_source(source: &EnvVarSource, value: &str, path: &Path, errors: &mut ErrorList) {
    let mut sources = 0;
    if let Some(field) = &source.field_ref {
        sources += 1;
        validate_field_selector(field, &VARIABLE_FIELDS, &path.child("fieldRef"), errors);
    }
    if let Some(resource) = &source.resource_field_ref {
        sources += 1;
        validate_resource_selector(resource, false, &path.child("resourceFieldRef"), errors);
    }
    if let Some(map) = &source.config_map_key_ref {
        sources += 1;
        check_key(&map.name, &map.key, &path.child("configMapKeyRef"), errors);
    }
    if let Some(secret) = &source.secret_key_ref {
        sources += 1;
        check_key(
            &secret.name,
            &secret.key,
            &path.child("secretKeyRef"),
            errors,
        );
    }
    if let Some(file) = &source.file_key_ref {
        sources += 1;
        check_file(file, &path.child("fileKeyRef"), errors);
    }
    if sources == 0 {
        errors.invalid(
            path,
            "",
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        );
    } else if !value.is_empty() {
        errors.invalid(path, "", "may not be specified when `value` is not empty");
    } else if sources > 1 {
        let detail = "may not have more than one field specified at a time";
        errors.invalid(path, "", detail);
    }
}

/// Checks variables one by one.
pub(super) fn validate_variables(variables: &[EnvVar], path: &Path, errors: &mut ErrorList) {
    for (index, variable) in variables.iter().enumerate() {
        let path = path.index(index);
        if variable.name.is_empty() {
            errors.required(&path.child("name"), "");
        } else if let Some(detail) = names::is_env_var_name(&variable.name) {
            errors.invalid(&path.child("name"), &variable.name, &detail);
        }
        if let Some(source) = &variable.value_from {
            let value = variable.value.as_deref().unwrap_or_default();
            validate_source(source, value, &path.child("valueFrom"), errors);
        }
    }
}

/// Checks whole maps taken over as variables. Of those without a source, or with two, the list is named and not the position,
/// as Kubernetes does.
pub(super) fn validate_sources(
    sources: &[EnvFromSource],
    list_path: &Path,
    errors: &mut ErrorList,
) {
    for (index, source) in sources.iter().enumerate() {
        let path = list_path.index(index);
        let prefix = source.prefix.as_deref().unwrap_or_default();
        if !prefix.is_empty()
            && let Some(detail) = names::is_env_var_name(prefix)
        {
            errors.invalid(&path.child("prefix"), prefix, &detail);
        }
        let map = source.config_map_ref.as_ref().map(|map| &map.name);
        let secret = source.secret_ref.as_ref().map(|secret| &secret.name);
        for (name, field) in [(map, "configMapRef"), (secret, "secretRef")] {
            let path = list_path.index(index).child(field).child("name");
            match name {
                None => {}
                Some(name) if name.is_empty() => errors.required(&path, ""),
                Some(name) => errors.invalid_each(&path, name, names::dns1123_subdomain(name)),
            }
        }
        let detail = match (map, secret) {
            (None, None) => "must specify one of: `configMapRef` or `secretRef`",
            (Some(_), Some(_)) => "may not have more than one field specified at a time",
            _ => continue,
        };
        errors.invalid(list_path, "", detail);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn told(variable: Value) -> Vec<String> {
        let variable: EnvVar = serde_json::from_value(variable).unwrap();
        let mut errors = ErrorList::default();
        validate_variables(&[variable], &Path::new("env"), &mut errors);
        errors.told()
    }

    fn from(source: Value) -> Vec<String> {
        told(json!({"name": "A", "valueFrom": source}))
    }

    #[test]
    fn fields_are_those_that_may_be_asked_for() {
        let field = |path: &str| from(json!({"fieldRef": {"apiVersion": "v1", "fieldPath": path}}));
        for good in [
            "spec.host",
            "status.podIPs",
            "metadata.labels['a']",
            "metadata.annotations['A/b']",
        ] {
            assert!(field(good).is_empty(), "{good}");
        }
        for (path, expected) in [
            (
                "spec.nodeName['a']",
                "env[0].valueFrom.fieldRef.fieldPath: Invalid value: \"spec.nodeName['a']\": error converting fieldPath: field label does not support subscript: spec.nodeName['a']",
            ),
            (
                "nope",
                "env[0].valueFrom.fieldRef.fieldPath: Invalid value: \"nope\": error converting fieldPath: field label not supported: nope",
            ),
        ] {
            assert_eq!(field(path), [expected]);
        }
        assert!(field("metadata.labels['a b']")[0].starts_with("env[0].valueFrom.fieldRef: "));
    }

    #[test]
    fn divisors_are_units() {
        let divided = |resource: &str, divisor: &str| {
            from(json!({"resourceFieldRef": {"resource": resource, "divisor": divisor}}))
        };
        for (resource, divisor) in [
            ("limits.cpu", "1m"),
            ("limits.cpu", "1000m"),
            ("limits.memory", "1024Ki"),
            ("requests.memory", "0"),
        ] {
            assert!(
                divided(resource, divisor).is_empty(),
                "{resource} {divisor}"
            );
        }
        assert_eq!(
            divided("limits.cpu", "10m"),
            [
                "env[0].valueFrom.resourceFieldRef.divisor: Invalid value: \"limits.cpu\": only divisor's values 1m and 1 are supported with the cpu resource"
            ]
        );
        for (resource, kind) in [
            ("limits.ephemeral-storage", "local ephemeral storage"),
            ("limits.hugepages-2Mi", "hugepages"),
        ] {
            assert!(divided(resource, "2Mi")[0].ends_with(&format!("with the {kind} resource")));
        }
    }

    #[test]
    fn entries_have_the_names_of_their_objects() {
        assert_eq!(
            from(json!({"configMapKeyRef": {"name": "a", "key": "b"}})).len(),
            0
        );
        let bad = from(json!({"secretKeyRef": {"name": "A_b", "key": ""}}));
        assert!(bad[0].starts_with("env[0].valueFrom.secretKeyRef.name: Invalid value: \"A_b\""));
        assert_eq!(bad[1], "env[0].valueFrom.secretKeyRef.key: Required value");
        let file = from(json!({"fileKeyRef": {"key": "", "volumeName": "V", "path": "../x"}}));
        assert_eq!(file.len(), 3, "{file:?}");
    }

    #[test]
    fn maps_are_named() {
        let sources = json!([{}, {"configMapRef": {"name": "A_b"}}, {"secretRef": {"name": ""}}]);
        let sources: Vec<EnvFromSource> = serde_json::from_value(sources).unwrap();
        let mut errors = ErrorList::default();
        validate_sources(&sources, &Path::new("envFrom"), &mut errors);
        let paths: Vec<String> = errors
            .0
            .iter()
            .map(|error| error.path.to_string())
            .collect();
        let expected = [
            "envFrom",
            "envFrom[1].configMapRef.name",
            "envFrom[2].secretRef.name",
        ];
        assert_eq!(paths, expected);
    }
}
