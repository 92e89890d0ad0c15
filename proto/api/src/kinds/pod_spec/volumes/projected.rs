//! Volumes made of several sources, and files that carry a pod's own fields.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, KeyToPath, ProjectedVolumeSource, ServiceAccountTokenProjection,
    VolumeProjection,
};

use super::super::environment::{FILE_FIELDS, validate_field_selector, validate_resource_selector};
use super::check_unreserved;
use super::sources::{check_item, check_mode};
use crate::field::{ErrorList, Path};

/// Seconds that a token must last, at least and at most.
const TOKEN_SECONDS: (i64, i64) = (600, 1 << 32);

/// Checks a file that carries a field of the pod.
pub(super) fn check_downward_file(
    file: &DownwardAPIVolumeFile,
    path: &Path,
    errors: &mut ErrorList,
) {
    if file.path.is_empty() {
        errors.required(&path.child("path"), "");
    }
    check_unreserved(&file.path, &path.child("path"), errors);
    match (&file.field_ref, &file.resource_field_ref) {
        (Some(field), resource) => {
            validate_field_selector(field, &FILE_FIELDS, &path.child("fieldRef"), errors);
            if resource.is_some() {
                let detail = "fieldRef and resourceFieldRef can not be specified simultaneously";
                errors.invalid(path, "resource", detail);
            }
        }
        (None, Some(resource)) => {
            let path = path.child("resourceFieldRef");
            validate_resource_selector(resource, true, &path, errors);
        }
        (None, None) => errors.required(path, "one of fieldRef and resourceFieldRef is required"),
    }
    check_mode(file.mode, "mode", path, errors);
}

/// The files of a volume so far: each is there once.
#[derive(Default)]
struct Files<'a>(HashSet<&'a str>);

impl<'a> Files<'a> {
    /// Takes a file's path; `told` is what Kubernetes names when it is there already.
    fn take(&mut self, file: &'a str, told: &str, path: &Path, errors: &mut ErrorList) {
        if !file.is_empty() && !self.0.insert(file) {
            errors.invalid(path, told, "conflicting duplicate paths");
        }
    }
}

fn check_named<'a>(
    (name, items): (&str, Option<&'a Vec<KeyToPath>>),
    files: &mut Files<'a>,
    (volume, path): (&Path, &Path),
    errors: &mut ErrorList,
) {
    if name.is_empty() {
        errors.required(&path.child("name"), "");
    }
    for (index, item) in items.into_iter().flatten().enumerate() {
        check_item(item, &path.child("items").index(index), errors);
        files.take(&item.path, name, volume, errors);
    }
}

fn check_token(
    token: &ServiceAccountTokenProjection,
    (volume, path): (&Path, &Path),
    errors: &mut ErrorList,
) {
    let (least, most) = TOKEN_SECONDS;
    let seconds = token.expiration_seconds.unwrap_or(0);
    let seconds_path = path.child("expirationSeconds");
    if seconds < least {
        let detail = "may not specify a duration less than 10 minutes";
        errors.invalid(&seconds_path, seconds, detail);
    }
    if seconds > most {
        let detail = "may not specify a duration larger than 2^32 seconds";
        errors.invalid(&seconds_path, seconds, detail);
    }
    // The volume is named, not the source, as Kubernetes does.
    match token.path.as_str() {
        "" => errors.required(&volume.child("path"), ""),
        file => check_unreserved(file, &volume.child("path"), errors),
    }
}

fn count(source: &VolumeProjection) -> usize {
    [
        source.secret.is_some(),
        source.config_map.is_some(),
        source.downward_api.is_some(),
        source.service_account_token.is_some(),
    ]
    .into_iter()
    .filter(|given| *given)
    .count()
}

/// Checks the sources of a volume.
pub(super) fn validate(volume: &ProjectedVolumeSource, path: &Path, errors: &mut ErrorList) {
    let mut files = Files::default();
    for (index, source) in volume.sources.iter().flatten().enumerate() {
        let source_path = path.child("sources").index(index);
        if let Some(secret) = &source.secret {
            let paths = (path, &source_path.child("secret"));
            check_named(
                (secret.name.as_str(), secret.items.as_ref()),
                &mut files,
                paths,
                errors,
            );
        }
        if let Some(map) = &source.config_map {
            let paths = (path, &source_path.child("configMap"));
            check_named(
                (map.name.as_str(), map.items.as_ref()),
                &mut files,
                paths,
                errors,
            );
        }
        if let Some(downward) = &source.downward_api {
            let source_path = source_path.child("downwardAPI");
            for file in downward.items.iter().flatten() {
                check_downward_file(file, &source_path, errors);
                files.take(&file.path, &file.path, path, errors);
            }
        }
        if let Some(token) = &source.service_account_token {
            let source_path = source_path.child("serviceAccountToken");
            check_token(token, (path, &source_path), errors);
        }
        if count(source) > 1 {
            let detail = "may not specify more than 1 volume type per source";
            errors.forbidden(&source_path, detail);
        }
    }
}
