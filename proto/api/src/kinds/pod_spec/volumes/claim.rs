//! Claims: what those must say that are made for a volume of a pod, and all others.

use k8s_openapi::api::core::v1::{PersistentVolumeClaimSpec, PersistentVolumeClaimTemplate};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;

use crate::field::{ErrorList, Path};
use crate::quantity::Quantity;
use crate::{meta, names, selector};

const ACCESS_MODES: [&str; 4] = [
    "ReadOnlyMany",
    "ReadWriteMany",
    "ReadWriteOnce",
    "ReadWriteOncePod",
];
const VOLUME_MODES: [&str; 2] = ["Block", "Filesystem"];

/// Refuses whatever a template's metadata says beside labels and annotations, in the order of the type's fields.
fn check_metadata(metadata: &ObjectMeta, path: &Path, errors: &mut ErrorList) {
    let text = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    let given = [
        ("name", text(&metadata.name)),
        ("generateName", text(&metadata.generate_name)),
        ("namespace", text(&metadata.namespace)),
        ("selfLink", text(&metadata.self_link)),
        ("uID", text(&metadata.uid)),
        ("resourceVersion", text(&metadata.resource_version)),
        (
            "generation",
            metadata.generation.is_some_and(|number| number != 0),
        ),
        ("creationTimestamp", metadata.creation_timestamp.is_some()),
        ("deletionTimestamp", metadata.deletion_timestamp.is_some()),
        (
            "deletionGracePeriodSeconds",
            metadata.deletion_grace_period_seconds.is_some(),
        ),
        ("ownerReferences", metadata.owner_references.is_some()),
        ("finalizers", metadata.finalizers.is_some()),
        ("managedFields", metadata.managed_fields.is_some()),
    ];
    for (field, _) in given.into_iter().filter(|(_, given)| *given) {
        errors.forbidden(&path.child(field), "cannot be set");
    }
}

/// Checks how a volume is mounted, or is to be.
pub(in crate::kinds) fn check_access_modes(modes: &[String], path: &Path, errors: &mut ErrorList) {
    let once = |mode: &&String| *mode == "ReadWriteOncePod";
    for mode in modes
        .iter()
        .filter(|mode| !ACCESS_MODES.contains(&mode.as_str()))
    {
        errors.not_supported(path, mode, &ACCESS_MODES);
    }
    let mut others = modes.iter().filter(|mode| !once(mode));
    if modes.iter().any(|mode| once(&mode))
        && others.any(|mode| ACCESS_MODES.contains(&mode.as_str()))
    {
        let detail = "may not use ReadWriteOncePod with other access modes";
        errors.forbidden(path, detail);
    }
}

/// Checks whether a volume is one with a file system.
pub(in crate::kinds) fn check_volume_mode(
    mode: Option<&String>,
    path: &Path,
    errors: &mut ErrorList,
) {
    if let Some(mode) = mode
        && !VOLUME_MODES.contains(&mode.as_str())
    {
        errors.not_supported(path, mode, &VOLUME_MODES);
    }
}

/// Checks the name of a class, where there is one.
pub(in crate::kinds) fn check_class(class: &str, path: &Path, errors: &mut ErrorList) {
    if !class.is_empty() {
        errors.invalid_each(path, class, names::dns1123_subdomain(class));
    }
}

/// What a claim is filled from.
struct Source<'a> {
    name: &'a str,
    kind: &'a str,
    group: &'a str,
}

fn check_source(source: &Source<'_>, checks_group: bool, path: &Path, errors: &mut ErrorList) {
    for (field, value) in [("name", source.name), ("kind", source.kind)] {
        if value.is_empty() {
            errors.required(&path.child(field), "");
        }
    }
    let group = source.group;
    if group.is_empty() && source.kind != "PersistentVolumeClaim" {
        let detail = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
        errors.invalid(path, source.kind, detail);
    }
    if !group.is_empty() && checks_group {
        errors.invalid_each(
            &path.child("apiGroup"),
            group,
            names::dns1123_subdomain(group),
        );
    }
}

/// Checks what a claim is filled from, under both names that it has.
fn check_sources(
    spec: &PersistentVolumeClaimSpec,
    checks_groups: bool,
    path: &Path,
    errors: &mut ErrorList,
) {
    if let Some(source) = &spec.data_source {
        let source = Source {
            name: &source.name,
            kind: &source.kind,
            group: source.api_group.as_deref().unwrap_or_default(),
        };
        check_source(&source, checks_groups, &path.child("dataSource"), errors);
    }
    let Some(reference) = &spec.data_source_ref else {
        return;
    };
    let source = Source {
        name: &reference.name,
        kind: &reference.kind,
        group: reference.api_group.as_deref().unwrap_or_default(),
    };
    let reference_path = path.child("dataSourceRef");
    check_source(&source, checks_groups, &reference_path, errors);
    let namespace = reference.namespace.as_deref().unwrap_or_default();
    if !namespace.is_empty() {
        let path = reference_path.child("namespace");
        errors.invalid_each(&path, namespace, names::dns1123_label(namespace));
    }
    let Some(source) = &spec.data_source else {
        return;
    };
    let same = (&source.api_group, &source.kind, &source.name)
        == (&reference.api_group, &reference.kind, &reference.name);
    // Kubernetes means to name the field there, and writes an empty object.
    if !namespace.is_empty() {
        let detail = "may not be specified when dataSourceRef.namespace is specified";
        errors.invalid(path, json!({}), detail);
    } else if !same {
        errors.invalid(path, json!({}), "must match dataSourceRef");
    }
}

/// Checks what a claim asks for. The groups of what it is filled from are taken as they are where they came before the rule.
pub(in crate::kinds) fn check_spec(
    spec: &PersistentVolumeClaimSpec,
    checks_groups: bool,
    path: &Path,
    errors: &mut ErrorList,
) {
    let modes = spec.access_modes.as_deref().unwrap_or_default();
    let modes_path = path.child("accessModes");
    if modes.is_empty() {
        errors.required(&modes_path, "at least 1 access mode is required");
    }
    if let Some(selector) = &spec.selector {
        selector::validate(selector, &path.child("selector"), errors);
    }
    check_access_modes(modes, &modes_path, errors);
    let requests = spec
        .resources
        .as_ref()
        .and_then(|resources| resources.requests.as_ref());
    let storage = requests.and_then(|requests| requests.get("storage"));
    let storage_path = path.child("resources").key("storage");
    match storage.map(|storage| storage.0.parse::<Quantity>()) {
        None => errors.required(&storage_path, ""),
        Some(Ok(amount)) if amount.sign() <= 0 => {
            errors.invalid(
                &storage_path,
                amount.to_string(),
                "must be greater than zero",
            );
        }
        Some(_) => {}
    }
    let class = spec.storage_class_name.as_deref().unwrap_or_default();
    check_class(class, &path.child("storageClassName"), errors);
    check_volume_mode(spec.volume_mode.as_ref(), &path.child("volumeMode"), errors);
    check_sources(spec, checks_groups, path, errors);
    let class = spec
        .volume_attributes_class_name
        .as_deref()
        .unwrap_or_default();
    check_class(class, &path.child("volumeAttributesClassName"), errors);
}

/// Checks a template of claims.
pub(super) fn validate_template(
    template: &PersistentVolumeClaimTemplate,
    path: &Path,
    errors: &mut ErrorList,
) {
    let metadata_path = path.child("metadata");
    if let Some(metadata) = &template.metadata {
        meta::validate_annotations(metadata, &metadata_path, errors);
        meta::validate_labels(metadata, &metadata_path, errors);
        check_metadata(metadata, &metadata_path, errors);
    }
    check_spec(&template.spec, true, &path.child("spec"), errors);
}
