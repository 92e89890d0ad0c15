//! What each source of a volume must say.

use k8s_openapi::api::core::v1::{HostPathVolumeSource, KeyToPath, Volume};

use super::super::Surroundings;
use super::super::containers::{PULL_POLICIES, check_choice};
use super::{check_descending, check_no_backsteps, check_unreserved, claim, projected, remote};
use crate::field::{ErrorList, Path};
use crate::names;
use crate::quantity::Quantity;

const HOST_PATH_TYPES: [&str; 8] = [
    "",
    "BlockDevice",
    "CharDevice",
    "Directory",
    "DirectoryOrCreate",
    "File",
    "FileOrCreate",
    "Socket",
];
/// The longest name of a CSI driver, in bytes.
const MAX_DRIVER_NAME: usize = 63;

/// Refuses an empty text.
pub(super) fn require(value: &str, field: &str, path: &Path, errors: &mut ErrorList) {
    if value.is_empty() {
        errors.required(&path.child(field), "");
    }
}

/// A text, empty where there is none.
pub(super) fn text(value: &Option<String>) -> &str {
    value.as_deref().unwrap_or_default()
}

/// Refuses what no file's mode can be.
pub(super) fn check_mode(mode: Option<i32>, field: &str, path: &Path, errors: &mut ErrorList) {
    if let Some(mode) = mode.filter(|mode| !(0..=0o777).contains(mode)) {
        let detail = "must be a number between 0 and 0777 (octal), both inclusive";
        errors.invalid(&path.child(field), mode, detail);
    }
}

/// Checks which file has which key.
pub(super) fn check_item(item: &KeyToPath, path: &Path, errors: &mut ErrorList) {
    require(&item.key, "key", path, errors);
    require(&item.path, "path", path, errors);
    check_unreserved(&item.path, &path.child("path"), errors);
    check_mode(item.mode, "mode", path, errors);
}

fn check_items(items: Option<&Vec<KeyToPath>>, path: &Path, errors: &mut ErrorList) {
    for (index, item) in items.into_iter().flatten().enumerate() {
        check_item(item, &path.child("items").index(index), errors);
    }
}

/// Checks a path of the node's own files.
pub(in crate::kinds) fn check_host_path(
    host: &HostPathVolumeSource,
    path: &Path,
    errors: &mut ErrorList,
) {
    if host.path.is_empty() {
        return errors.required(&path.child("path"), "");
    }
    check_no_backsteps(&host.path, &path.child("path"), errors);
    let kind = text(&host.type_);
    if !HOST_PATH_TYPES.contains(&kind) {
        errors.not_supported(&path.child("type"), kind, &HOST_PATH_TYPES);
    }
}

/// Checks the name of a CSI driver. Upper case is allowed, for drivers that came before the rule.
pub(in crate::kinds) fn check_driver_name(name: &str, path: &Path, errors: &mut ErrorList) {
    if name.is_empty() {
        errors.required(path, "");
    }
    if name.len() > MAX_DRIVER_NAME {
        errors.too_long(path, MAX_DRIVER_NAME);
    }
    errors.invalid_each(path, name, names::dns1123_subdomain(&name.to_lowercase()));
}

fn check_csi(volume: &Volume, path: &Path, errors: &mut ErrorList) {
    let Some(csi) = &volume.csi else {
        return;
    };
    check_driver_name(&csi.driver, &path.child("driver"), errors);
    match csi
        .node_publish_secret_ref
        .as_ref()
        .map(|secret| &secret.name)
    {
        None => {}
        Some(name) if name.is_empty() => {
            errors.required(&path.child("nodePublishSecretRef").child("name"), "");
        }
        Some(name) => {
            errors.invalid_each(&path.child("name"), name, names::dns1123_subdomain(name));
        }
    }
}

fn check_ephemeral(
    volume: &Volume,
    surroundings: &Surroundings<'_>,
    (volume_path, path): (&Path, &Path),
    errors: &mut ErrorList,
) {
    let template = volume
        .ephemeral
        .as_ref()
        .and_then(|source| source.volume_claim_template.as_ref());
    let template_path = path.child("volumeClaimTemplate");
    match template {
        None => errors.required(&template_path, ""),
        Some(template) => claim::validate_template(template, &template_path, errors),
    }
    let pod = surroundings.pod_name.filter(|name| !name.is_empty());
    if let Some(pod) = pod.filter(|_| !volume.name.is_empty()) {
        let name = format!("{pod}-{}", volume.name);
        let details = names::dns1123_subdomain(&name).into_iter();
        let details = details.map(|detail| format!("PVC name {name:?}: {detail}"));
        errors.invalid_each(&volume_path.child("name"), &volume.name, details);
    }
}

fn check_image(volume: &Volume, is_pod: bool, path: &Path, errors: &mut ErrorList) {
    let Some(image) = &volume.image else {
        return;
    };
    if is_pod {
        require(text(&image.reference), "reference", path, errors);
    }
    let policy = image.pull_policy.as_deref();
    check_choice(policy, &PULL_POLICIES, &path.child("pullPolicy"), errors);
}

/// Checks the source `field` of a volume, which is the first that it has.
pub(super) fn validate(
    volume: &Volume,
    field: &str,
    surroundings: &Surroundings<'_>,
    volume_path: &Path,
    errors: &mut ErrorList,
) {
    let path = &volume_path.child(field);
    match field {
        "emptyDir" => {
            let limit = volume
                .empty_dir
                .as_ref()
                .and_then(|empty| empty.size_limit.as_ref());
            let limit: Option<Quantity> = limit.and_then(|limit| limit.0.parse().ok());
            if limit.is_some_and(|limit| limit.sign() < 0) {
                let detail = "SizeLimit field must be a valid resource quantity";
                errors.forbidden(&path.child("sizeLimit"), detail);
            }
        }
        "hostPath" => {
            if let Some(host) = &volume.host_path {
                check_host_path(host, path, errors);
            }
        }
        "gitRepo" => {
            if let Some(git) = &volume.git_repo {
                require(&git.repository, "repository", path, errors);
                check_descending(text(&git.directory), &path.child("directory"), errors);
            }
        }
        "secret" => {
            if let Some(secret) = &volume.secret {
                require(text(&secret.secret_name), "secretName", path, errors);
                check_mode(secret.default_mode, "defaultMode", path, errors);
                check_items(secret.items.as_ref(), path, errors);
            }
        }
        "configMap" => {
            if let Some(map) = &volume.config_map {
                require(&map.name, "name", path, errors);
                check_mode(map.default_mode, "defaultMode", path, errors);
                check_items(map.items.as_ref(), path, errors);
            }
        }
        "downwardAPI" => {
            if let Some(downward) = &volume.downward_api {
                check_mode(downward.default_mode, "defaultMode", path, errors);
                for file in downward.items.iter().flatten() {
                    // The list is named, not the file, as Kubernetes does.
                    projected::check_downward_file(file, path, errors);
                }
            }
        }
        "projected" => {
            if let Some(projection) = &volume.projected {
                check_mode(projection.default_mode, "defaultMode", path, errors);
                projected::validate(projection, path, errors);
            }
        }
        "persistentVolumeClaim" => {
            if let Some(claim) = &volume.persistent_volume_claim {
                require(&claim.claim_name, "claimName", path, errors);
            }
        }
        "csi" => check_csi(volume, path, errors),
        "ephemeral" => check_ephemeral(volume, surroundings, (volume_path, path), errors),
        "image" => check_image(volume, surroundings.is_pod, path, errors),
        _ => remote::validate(volume, field, volume_path, errors),
    }
}
