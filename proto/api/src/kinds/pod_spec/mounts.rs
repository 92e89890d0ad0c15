//! Where a container mounts its volumes, and which of them it has as devices.

use std::collections::{HashMap, HashSet};

use k8s_openapi::api::core::v1::{Container, VolumeDevice, VolumeMount};

use super::volumes::{Volumes, check_descending, has_backsteps};
use crate::field::{ErrorList, Path};

fn check_propagation(
    mount: &VolumeMount,
    container: &Container,
    path: &Path,
    errors: &mut ErrorList,
) {
    const MODES: [&str; 3] = ["Bidirectional", "HostToContainer", "None"];
    let Some(propagation) = mount.mount_propagation.as_deref() else {
        return;
    };
    let context = container.security_context.as_ref();
    let privileged = context.is_some_and(|context| context.privileged == Some(true));
    if !MODES.contains(&propagation) {
        errors.not_supported(path, propagation, &MODES);
    } else if propagation == "Bidirectional" && !privileged {
        let detail = "Bidirectional mount propagation is available only to privileged containers";
        errors.forbidden(path, detail);
    }
}

fn check_recursive(mount: &VolumeMount, path: &Path, errors: &mut ErrorList) {
    const MODES: [&str; 3] = ["Disabled", "Enabled", "IfPossible"];
    match mount.recursive_read_only.as_deref() {
        None | Some("Disabled") => {}
        Some("Enabled" | "IfPossible") => {
            if mount.read_only != Some(true) {
                errors.forbidden(path, "may only be specified when readOnly is true");
            }
            if mount
                .mount_propagation
                .as_deref()
                .is_some_and(|mode| mode != "None")
            {
                let detail = "may only be specified when mountPropagation is None or not specified";
                errors.forbidden(path, detail);
            }
        }
        Some(other) => errors.not_supported(path, other, &MODES),
    }
}

/// Checks where a container mounts what. Of some fields the list is named without the position, as Kubernetes does.
fn check_mounts(
    container: &Container,
    volumes: &Volumes<'_>,
    list_path: &Path,
    errors: &mut ErrorList,
) {
    let devices = container.volume_devices.as_deref().unwrap_or_default();
    let device_of: HashMap<&str, &str> = devices
        .iter()
        .map(|device| (&*device.name, &*device.device_path))
        .collect();
    let device_paths: HashSet<&str> = device_of.values().copied().collect();
    let mut seen = HashSet::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let path = list_path.index(index);
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
        if device_of.contains_key(mount.name.as_str()) {
            let detail = "must not already exist in volumeDevices";
            errors.invalid(&name_path, &mount.name, detail);
        }
        if device_paths.contains(point) {
            let detail = "must not already exist as a path in volumeDevices";
            errors.invalid(&point_path, point, detail);
        }
        let below = mount.sub_path.as_deref().unwrap_or_default();
        if !below.is_empty() {
            check_descending(below, &list_path.child("subPath"), errors);
        }
        let expression = mount.sub_path_expr.as_deref().unwrap_or_default();
        if !expression.is_empty() {
            if !below.is_empty() {
                let detail = "subPathExpr and subPath are mutually exclusive";
                errors.invalid(&path.child("subPathExpr"), expression, detail);
            }
            check_descending(expression, &list_path.child("subPathExpr"), errors);
        }
        let propagation_path = list_path.child("mountPropagation");
        check_propagation(mount, container, &propagation_path, errors);
        check_recursive(mount, &list_path.child("recursiveReadOnly"), errors);
    }
}

/// Checks which volumes a container has as devices.
fn check_devices(
    devices: &[VolumeDevice],
    mounts: &[VolumeMount],
    volumes: &Volumes<'_>,
    list_path: &Path,
    errors: &mut ErrorList,
) {
    let mount_of: HashMap<&str, &str> = mounts
        .iter()
        .map(|mount| (&*mount.name, &*mount.mount_path))
        .collect();
    let points: HashSet<&str> = mount_of.values().copied().collect();
    let (mut names, mut paths) = (HashSet::new(), HashSet::new());
    for (index, device) in devices.iter().enumerate() {
        let path = list_path.index(index);
        let (name_path, file_path) = (path.child("name"), path.child("devicePath"));
        let (name, file) = (device.name.as_str(), device.device_path.as_str());
        if name.is_empty() {
            errors.required(&name_path, "");
        }
        if names.contains(name) {
            errors.invalid(&name_path, name, "must be unique");
        }
        match volumes.get(name) {
            None => errors.not_found(&name_path, name),
            Some(volume)
                if volume.persistent_volume_claim.is_none() && volume.ephemeral.is_none() =>
            {
                let detail = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                errors.invalid(&name_path, name, detail);
            }
            Some(_) => {}
        }
        if file.is_empty() {
            errors.required(&file_path, "");
        }
        if paths.contains(file) {
            errors.invalid(&file_path, file, "must be unique");
        }
        if has_backsteps(file) {
            errors.invalid(&file_path, file, "can not contain backsteps ('..')");
        } else {
            paths.insert(file);
        }
        if mount_of.contains_key(name) {
            errors.invalid(&name_path, name, "must not already exist in volumeMounts");
        }
        if points.contains(file) {
            let detail = "must not already exist as a path in volumeMounts";
            errors.invalid(&file_path, file, detail);
        }
        if !name.is_empty() {
            names.insert(name);
        }
    }
}

/// Checks where a container has which volumes.
pub(super) fn validate(
    container: &Container,
    volumes: &Volumes<'_>,
    path: &Path,
    errors: &mut ErrorList,
) {
    check_mounts(container, volumes, &path.child("volumeMounts"), errors);
    check_devices(
        container.volume_devices.as_deref().unwrap_or_default(),
        container.volume_mounts.as_deref().unwrap_or_default(),
        volumes,
        &path.child("volumeDevices"),
        errors,
    );
}
