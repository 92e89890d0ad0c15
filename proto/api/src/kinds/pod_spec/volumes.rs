//! Volumes and where containers mount them.

use std::collections::{BTreeMap, HashSet};

use k8s_openapi::api::core::v1::{
    Container, DownwardAPIVolumeFile, KeyToPath, Volume, VolumeProjection,
};
use serde_json::Value;

use super::environment::{FILE_FIELDS, validate_field_selector, validate_resource_selector};
use crate::field::{ErrorList, Path};
use crate::names;

/// Sources in the order in which Kubernetes looks for them: the first is the volume's, any further is one too many.
const SOURCES: [&str; 29] = [
    "emptyDir",
    "hostPath",
    "gitRepo",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "flocker",
    "persistentVolumeClaim",
    "rbd",
    "cinder",
    "cephfs",
    "quobyte",
    "downwardAPI",
    "fc",
    "flexVolume",
    "configMap",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "storageos",
    "projected",
    "scaleIO",
    "csi",
    "ephemeral",
];

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

fn check_no_backsteps(file: &str, path: &Path, errors: &mut ErrorList) {
    if file.split('/').any(|part| part == "..") {
        errors.invalid(path, file, "must not contain '..'");
    }
}

/// Checks a path that must stay below some directory.
pub(super) fn check_descending(file: &str, path: &Path, errors: &mut ErrorList) {
    if file.starts_with('/') {
        errors.invalid(path, file, "must be a relative path");
    }
    check_no_backsteps(file, path, errors);
}

/// As [`check_descending`], and not a name that the volume keeps for itself.
fn check_unreserved(file: &str, path: &Path, errors: &mut ErrorList) {
    check_descending(file, path, errors);
    if file.starts_with("..") && !file.starts_with("../") {
        errors.invalid(path, file, "must not start with '..'");
    }
}

fn check_mode(mode: Option<i32>, path: &Path, errors: &mut ErrorList) {
    if let Some(mode) = mode.filter(|mode| !(0..=0o777).contains(mode)) {
        let detail = "must be a number between 0 and 0777 (octal), both inclusive";
        errors.invalid(path, mode, detail);
    }
}

fn check_items(items: Option<&Vec<KeyToPath>>, path: &Path, errors: &mut ErrorList) {
    for (index, item) in items.into_iter().flatten().enumerate() {
        let path = path.child("items").index(index);
        if item.key.is_empty() {
            errors.required(&path.child("key"), "");
        }
        match item.path.as_str() {
            "" => errors.required(&path.child("path"), ""),
            file => check_unreserved(file, &path.child("path"), errors),
        }
        check_mode(item.mode, &path.child("mode"), errors);
    }
}

fn check_downward(files: Option<&Vec<DownwardAPIVolumeFile>>, path: &Path, errors: &mut ErrorList) {
    // The list is named, not the file, as Kubernetes does.
    for file in files.into_iter().flatten() {
        if file.path.is_empty() {
            errors.required(&path.child("path"), "");
        }
        check_unreserved(&file.path, &path.child("path"), errors);
        match (&file.field_ref, &file.resource_field_ref) {
            (Some(field), resource) => {
                let field_path = path.child("fieldRef");
                validate_field_selector(field, &FILE_FIELDS, &field_path, errors);
                if resource.is_some() {
                    let detail =
                        "fieldRef and resourceFieldRef can not be specified simultaneously";
                    errors.invalid(path, "resource", detail);
                }
            }
            (None, Some(resource)) => {
                let path = path.child("resourceFieldRef");
                validate_resource_selector(resource, true, &path, errors);
            }
            (None, None) => errors.required(
                &path.child("fieldRef"),
                "one of fieldRef and resourceFieldRef is required",
            ),
        }
        check_mode(file.mode, &path.child("mode"), errors);
    }
}

fn check_projection(source: &VolumeProjection, path: &Path, errors: &mut ErrorList) {
    let mut given = 0;
    let mut first = |name: &str, present: bool, errors: &mut ErrorList| {
        given += usize::from(present);
        if present && given > 1 {
            let detail = "may not specify more than 1 volume type per source";
            errors.forbidden(&path.child(name), detail);
        }
        present && given == 1
    };
    if first("secret", source.secret.is_some(), errors)
        && let Some(secret) = &source.secret
    {
        let path = path.child("secret");
        if secret.name.is_empty() {
            errors.required(&path.child("name"), "");
        }
        check_items(secret.items.as_ref(), &path, errors);
    }
    if first("configMap", source.config_map.is_some(), errors)
        && let Some(map) = &source.config_map
    {
        let path = path.child("configMap");
        if map.name.is_empty() {
            errors.required(&path.child("name"), "");
        }
        check_items(map.items.as_ref(), &path, errors);
    }
    if first("downwardAPI", source.downward_api.is_some(), errors)
        && let Some(downward) = &source.downward_api
    {
        let path = path.child("downwardAPI");
        check_downward(downward.items.as_ref(), &path, errors);
    }
    let token = source.service_account_token.as_ref();
    if first("serviceAccountToken", token.is_some(), errors)
        && let Some(token) = token
    {
        let path = path.child("serviceAccountToken");
        match token.expiration_seconds {
            Some(seconds) if seconds < 600 => {
                let detail = "may not specify a duration less than 10 minutes";
                errors.invalid(&path.child("expirationSeconds"), seconds, detail);
            }
            Some(seconds) if seconds > 1 << 32 => {
                let detail = "may not specify a duration larger than 2^32 seconds";
                errors.invalid(&path.child("expirationSeconds"), seconds, detail);
            }
            _ => {}
        }
        match token.path.as_str() {
            "" => errors.required(&path.child("path"), ""),
            file => check_unreserved(file, &path.child("path"), errors),
        }
    }
    first(
        "clusterTrustBundle",
        source.cluster_trust_bundle.is_some(),
        errors,
    );
    first("podCertificate", source.pod_certificate.is_some(), errors);
    if given == 0 {
        errors.required(path, "must specify a source type");
    }
}

/// Checks the source that the volume has; those this cluster knows in depth.
fn check_source(volume: &Volume, source: &str, path: &Path, errors: &mut ErrorList) {
    let path = path.child(source);
    match source {
        "hostPath" => {
            let Some(host) = &volume.host_path else {
                return;
            };
            let type_path = path.child("type");
            let path = path.child("path");
            match host.path.as_str() {
                "" => return errors.required(&path, ""),
                file => check_no_backsteps(file, &path, errors),
            }
            let kind = host.type_.as_deref().unwrap_or_default();
            if !HOST_PATH_TYPES.contains(&kind) {
                errors.not_supported(&type_path, kind, &HOST_PATH_TYPES);
            }
        }
        "secret" => {
            let Some(secret) = &volume.secret else {
                return;
            };
            if secret.secret_name.as_deref().unwrap_or_default().is_empty() {
                errors.required(&path.child("secretName"), "");
            }
            check_mode(secret.default_mode, &path.child("defaultMode"), errors);
            check_items(secret.items.as_ref(), &path, errors);
        }
        "configMap" => {
            let Some(map) = &volume.config_map else {
                return;
            };
            if map.name.is_empty() {
                errors.required(&path.child("name"), "");
            }
            check_mode(map.default_mode, &path.child("defaultMode"), errors);
            check_items(map.items.as_ref(), &path, errors);
        }
        "downwardAPI" => {
            let Some(downward) = &volume.downward_api else {
                return;
            };
            check_mode(downward.default_mode, &path.child("defaultMode"), errors);
            check_downward(downward.items.as_ref(), &path, errors);
        }
        "projected" => {
            let Some(projected) = &volume.projected else {
                return;
            };
            check_mode(projected.default_mode, &path.child("defaultMode"), errors);
            for (index, source) in projected.sources.iter().flatten().enumerate() {
                check_projection(source, &path.child("sources").index(index), errors);
            }
        }
        "persistentVolumeClaim" => {
            let claim = volume.persistent_volume_claim.as_ref();
            if claim.is_some_and(|claim| claim.claim_name.is_empty()) {
                errors.required(&path.child("claimName"), "");
            }
        }
        "nfs" => {
            let Some(nfs) = &volume.nfs else {
                return;
            };
            if nfs.server.is_empty() {
                errors.required(&path.child("server"), "");
            }
            if nfs.path.is_empty() {
                errors.required(&path.child("path"), "");
            } else if !nfs.path.starts_with('/') {
                errors.invalid(&path.child("path"), &nfs.path, "must be an absolute path");
            }
        }
        "csi" => {
            let driver = volume.csi.as_ref();
            if driver.is_some_and(|csi| csi.driver.is_empty()) {
                errors.required(&path.child("driver"), "");
            }
        }
        _ => {}
    }
}

fn check_volume(volume: &Volume, path: &Path, errors: &mut ErrorList) {
    let fields = serde_json::to_value(volume).unwrap_or_default();
    let mut given = SOURCES
        .iter()
        .chain(&["image"])
        .filter(|source| fields.get(**source).is_some_and(Value::is_object));
    match given.next() {
        None => errors.required(path, "must specify a volume type"),
        Some(source) => check_source(volume, source, path, errors),
    }
    for source in given {
        let detail = "may not specify more than 1 volume type";
        errors.forbidden(&path.child(source), detail);
    }
}

/// The volumes that containers may mount.
pub(super) type Volumes<'a> = BTreeMap<&'a str, &'a Volume>;

/// Checks every volume; answers those without fault.
pub(super) fn validate<'a>(
    volumes: &'a [Volume],
    path: &Path,
    errors: &mut ErrorList,
) -> Volumes<'a> {
    let mut good = Volumes::new();
    for (index, volume) in volumes.iter().enumerate() {
        let path = path.index(index);
        let before = errors.0.len();
        check_volume(volume, &path, errors);
        let name_path = path.child("name");
        if volume.name.is_empty() {
            errors.required(&name_path, "");
        } else if let Some(detail) = names::is_dns1123_label(&volume.name) {
            errors.invalid(&name_path, &volume.name, &detail);
        }
        if good.contains_key(volume.name.as_str()) {
            errors.duplicate(&name_path, &volume.name);
        }
        if errors.0.len() == before {
            good.insert(&volume.name, volume);
        }
    }
    good
}

/// Checks where a container mounts what.
pub(super) fn validate_mounts(
    container: &Container,
    volumes: &Volumes<'_>,
    path: &Path,
    errors: &mut ErrorList,
) {
    let devices = container.volume_devices.as_deref().unwrap_or_default();
    let mounts_path = path.child("volumeMounts");
    let device_names: HashSet<&str> = devices.iter().map(|device| &*device.name).collect();
    let device_paths: HashSet<&str> = devices.iter().map(|device| &*device.device_path).collect();
    let mut seen = HashSet::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let path = mounts_path.index(index);
        let name_path = path.child("name");
        let point_path = path.child("mountPath");
        let point = mount.mount_path.as_str();
        if mount.name.is_empty() {
            errors.required(&name_path, "");
        }
        if !volumes.contains_key(mount.name.as_str()) {
            errors.not_found(&name_path, &mount.name);
        }
        if point.is_empty() {
            errors.required(&point_path, "");
        }
        if !seen.insert(point) {
            errors.invalid(&point_path, point, "must be unique");
        }
        if device_names.contains(mount.name.as_str()) {
            let detail = "must not already exist in volumeDevices";
            errors.invalid(&name_path, &mount.name, detail);
        }
        if device_paths.contains(point) {
            let detail = "must not already exist as a path in volumeDevices";
            errors.invalid(&point_path, point, detail);
        }
        let below = mount.sub_path.as_deref().unwrap_or_default();
        if !below.is_empty() {
            // The list is named without the position, as Kubernetes does.
            check_descending(below, &mounts_path.child("subPath"), errors);
        }
        if let Some(expression) = mount
            .sub_path_expr
            .as_deref()
            .filter(|text| !text.is_empty())
        {
            if !below.is_empty() {
                let detail = "subPathExpr and subPath are mutually exclusive";
                errors.invalid(&path.child("subPathExpr"), expression, detail);
            }
            check_descending(expression, &mounts_path.child("subPathExpr"), errors);
        }
        if let Some(propagation) = mount.mount_propagation.as_deref() {
            const MODES: [&str; 3] = ["Bidirectional", "HostToContainer", "None"];
            let path = path.child("mountPropagation");
            let context = container.security_context.as_ref();
            let privileged = context.is_some_and(|context| context.privileged == Some(true));
            if !MODES.contains(&propagation) {
                errors.not_supported(&path, propagation, &MODES);
            } else if propagation == "Bidirectional" && !privileged {
                let detail =
                    "Bidirectional mount propagation is available only to privileged containers";
                errors.forbidden(&path, detail);
            }
        }
    }
}
