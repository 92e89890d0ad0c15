//! Environment variables and where their values come from.

use k8s_openapi::api::core::v1::{
    EnvFromSource, EnvVar, EnvVarSource, ObjectFieldSelector, ResourceFieldSelector,
};

use crate::field::{ErrorList, Path};
use crate::names;

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
        Some((base, subscript)) => (base, Some(subscript)),
        None => (field, None),
    };
    if version != "v1" {
        let detail = format!("error converting fieldPath: unsupported pod version: {version}");
        return errors.invalid(&field_path, field, &detail);
    }
    if !KNOWN_FIELDS.contains(&base) {
        let detail = format!("error converting fieldPath: field label not supported: {field}");
        return errors.invalid(&field_path, field, &detail);
    }
    match (base, subscript) {
        ("metadata.annotations", Some(key)) => {
            for detail in names::qualified_name(&key.to_lowercase()) {
                errors.invalid(path, key, &detail);
            }
        }
        ("metadata.labels", Some(key)) => {
            for detail in names::qualified_name(key) {
                errors.invalid(path, key, &detail);
            }
        }
        (_, Some(_)) => errors.invalid(path, base, "does not support subscript"),
        ("spec.host", None) if allowed.contains(&"spec.nodeName") => {}
        (_, None) if allowed.contains(&base) => {}
        (_, None) => errors.not_supported(&field_path, base, allowed),
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
        .map_or("0", |divisor| divisor.0.as_str());
    let (kind, divisors): (&str, &[&str]) = match resource.rsplit('.').next().unwrap_or_default() {
        "cpu" => ("cpu", &["1m", "1"]),
        name @ ("memory" | "ephemeral-storage") => (
            name,
            &[
                "1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei",
            ],
        ),
        _ => return,
    };
    if divisor != "0" && !divisor.is_empty() && !divisors.contains(&divisor) {
        let detail = match kind {
            "cpu" => {
                "only divisor's values 1m and 1 are supported with the cpu resource".to_owned()
            }
            kind => format!(
                "only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the {kind} resource"
            ),
        };
        errors.invalid(&path.child("divisor"), resource, &detail);
    }
}

fn check_key(key: &str, path: &Path, errors: &mut ErrorList) {
    if key.is_empty() {
        errors.required(path, "");
    } else if let Some(detail) = names::is_config_map_key(key) {
        errors.invalid(path, key, &detail);
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
        check_key(
            &map.key,
            &path.child("configMapKeyRef").child("key"),
            errors,
        );
    }
    if let Some(secret) = &source.secret_key_ref {
        sources += 1;
        check_key(
            &secret.key,
            &path.child("secretKeyRef").child("key"),
            errors,
        );
    }
    if source.file_key_ref.is_some() {
        sources += 1;
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

/// Checks whole maps taken over as variables.
pub(super) fn validate_sources(sources: &[EnvFromSource], path: &Path, errors: &mut ErrorList) {
    for (index, source) in sources.iter().enumerate() {
        let path = path.index(index);
        let prefix = source.prefix.as_deref().unwrap_or_default();
        if !prefix.is_empty()
            && let Some(detail) = names::is_env_var_name(prefix)
        {
            errors.invalid(&path.child("prefix"), prefix, &detail);
        }
        let map = source.config_map_ref.as_ref().map(|map| &map.name);
        let secret = source.secret_ref.as_ref().map(|secret| &secret.name);
        for (name, field) in [(map, "configMapRef"), (secret, "secretRef")] {
            if name.is_some_and(String::is_empty) {
                errors.required(&path.child(field).child("name"), "");
            }
        }
        let detail = match (map, secret) {
            (None, None) => "must specify one of: `configMapRef` or `secretRef`",
            (Some(_), Some(_)) => "may not have more than one field specified at a time",
            _ => continue,
        };
        errors.invalid(&path, "", detail);
    }
}
