//! What the sources must say that are disks and file systems of others.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    AzureDiskVolumeSource, FCVolumeSource, FlockerVolumeSource, ISCSIVolumeSource,
    LocalObjectReference, NFSVolumeSource, QuobyteVolumeSource, StorageOSVolumeSource, Volume,
};

use super::sources::{require, text};
use crate::field::{ErrorList, Path};
use crate::names;

const NO_FORMAT: &str = "must be valid format";
const HOST_PORTS: &str = "must be a host:port pair or multiple pairs separated by commas";

fn check_nfs(nfs: &NFSVolumeSource, path: &Path, errors: &mut ErrorList) {
    require(&nfs.server, "server", path, errors);
    require(&nfs.path, "path", path, errors);
    if !nfs.path.starts_with('/') {
        errors.invalid(&path.child("path"), &nfs.path, "must be an absolute path");
    }
}

fn check_partition(partition: Option<i32>, path: &Path, errors: &mut ErrorList) {
    if let Some(number) = partition.filter(|number| !(0..=255).contains(number)) {
        let detail = "must be between 1 and 255, inclusive";
        errors.invalid(&path.child("partition"), number, detail);
    }
}

/// Whether a name is one of the three sorts that iSCSI knows: `iqn.2001-04.com.example:storage`, `eui.` and 16 letters or
/// digits, `naa.` and 32.
pub(in crate::kinds) fn is_iscsi_name(name: &str) -> bool {
    let letters = |text: &str, count: usize| {
        text.len() == count + 1
            && text
                .bytes()
                .skip(1)
                .all(|byte| byte.is_ascii_alphanumeric())
    };
    if let Some(rest) = name.strip_prefix("eui") {
        return letters(rest, 16);
    }
    if let Some(rest) = name.strip_prefix("naa") {
        return letters(rest, 32);
    }
    let Some((date, rest)) = name
        .strip_prefix("iqn.")
        .and_then(|rest| rest.split_once('.'))
    else {
        return false;
    };
    let is_date = date.len() == 7
        && date.bytes().enumerate().all(|(at, byte)| {
            if at == 4 {
                byte == b'-'
            } else {
                byte.is_ascii_digit()
            }
        });
    let domain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
    let unique = |letter: char| !letter.is_whitespace() && !",;*&$|".contains(letter);
    is_date
        && rest.split_once(':').is_some_and(|(authority, name)| {
            !authority.is_empty()
                && authority.bytes().all(domain)
                && !name.is_empty()
                && name.chars().all(unique)
        })
}

fn is_iscsi_sort(name: &str) -> bool {
    ["iqn", "eui", "naa"]
        .iter()
        .any(|sort| name.starts_with(sort))
}

const NO_SORT: &str = "must be valid format starting with iqn, eui, or naa";

/// Checks the name by which a node presents itself to what has the disks, where it has one of its own.
pub(in crate::kinds) fn check_initiator(
    name: Option<&String>,
    path: &Path,
    errors: &mut ErrorList,
) {
    let path = path.child("initiatorname");
    match name {
        Some(name) if !is_iscsi_sort(name) => errors.invalid(&path, name, NO_SORT),
        Some(name) if !is_iscsi_name(name) => errors.invalid(&path, name, NO_FORMAT),
        _ => {}
    }
}

fn check_iscsi(iscsi: &ISCSIVolumeSource, path: &Path, errors: &mut ErrorList) {
    require(&iscsi.target_portal, "targetPortal", path, errors);
    if iscsi.iqn.is_empty() {
        errors.required(&path.child("iqn"), "");
    } else if !is_iscsi_sort(&iscsi.iqn) {
        errors.invalid(&path.child("iqn"), &iscsi.iqn, NO_SORT);
    } else if !is_iscsi_name(&iscsi.iqn) {
        errors.invalid(&path.child("iqn"), &iscsi.iqn, NO_FORMAT);
    }
    if !(0..=255).contains(&iscsi.lun) {
        let detail = "must be between 0 and 255, inclusive";
        errors.invalid(&path.child("lun"), iscsi.lun, detail);
    }
    let authenticates =
        iscsi.chap_auth_discovery == Some(true) || iscsi.chap_auth_session == Some(true);
    if authenticates && iscsi.secret_ref.is_none() {
        errors.required(&path.child("secretRef"), "");
    }
    check_initiator(iscsi.initiator_name.as_ref(), path, errors);
}

fn check_flocker(flocker: &FlockerVolumeSource, path: &Path, errors: &mut ErrorList) {
    let (name, uuid) = (text(&flocker.dataset_name), text(&flocker.dataset_uuid));
    match (name.is_empty(), uuid.is_empty()) {
        (true, true) => errors.required(path, "one of datasetName and datasetUUID is required"),
        (false, false) => {
            let detail = "datasetName and datasetUUID can not be specified simultaneously";
            errors.invalid(path, "resource", detail);
        }
        _ => {}
    }
    if name.contains('/') {
        errors.invalid(&path.child("datasetName"), name, "must not contain '/'");
    }
}

/// Whether a text is a host and a port; an address of IPv6 is in brackets.
fn is_host_port(text: &str) -> bool {
    let Some((host, _)) = text.rsplit_once(':') else {
        return false;
    };
    match host.strip_prefix('[') {
        Some(rest) => rest
            .strip_suffix(']')
            .is_some_and(|address| !address.contains(['[', ']'])),
        None => !host.contains(':') && !text.contains(['[', ']']),
    }
}

fn check_quobyte(quobyte: &QuobyteVolumeSource, path: &Path, errors: &mut ErrorList) {
    let registry = path.child("registry");
    if quobyte.registry.is_empty() {
        errors.required(&registry, HOST_PORTS);
    } else if text(&quobyte.tenant).len() >= 65 {
        let detail = "must be a UUID and may not exceed a length of 64 characters";
        errors.required(&path.child("tenant"), detail);
    } else {
        let pairs = quobyte.registry.split(',');
        for _ in pairs.filter(|pair| !is_host_port(pair)) {
            errors.invalid(&registry, &quobyte.registry, HOST_PORTS);
        }
    }
    require(&quobyte.volume, "volume", path, errors);
}

fn check_fc(fc: &FCVolumeSource, path: &Path, errors: &mut ErrorList) {
    let list = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|list| !list.is_empty());
    let (targets, ids) = (list(&fc.target_wwns), list(&fc.wwids));
    let targets_path = path.child("targetWWNs");
    match (targets, ids) {
        (false, false) => errors.required(
            &targets_path,
            "must specify either targetWWNs or wwids, but not both",
        ),
        (true, true) => errors.invalid(
            &targets_path,
            &fc.target_wwns,
            "targetWWNs and wwids can not be specified simultaneously",
        ),
        _ => {}
    }
    match fc.lun {
        _ if !targets => {}
        None => {
            let detail = "lun is required if targetWWNs is specified";
            errors.required(&path.child("lun"), detail);
        }
        Some(0..=255) => {}
        Some(lun) => {
            let detail = "must be between 0 and 255, inclusive";
            errors.invalid(&path.child("lun"), lun, detail);
        }
    }
}

fn check_flex_options(
    options: Option<&BTreeMap<String, String>>,
    path: &Path,
    errors: &mut ErrorList,
) {
    for key in options.into_iter().flatten().map(|(key, _)| key) {
        let namespace = key
            .split_once('/')
            .map_or(key.as_str(), |(before, _)| before);
        let namespace = format!(".{}", namespace.to_lowercase());
        if [".kubernetes.io", ".k8s.io"]
            .iter()
            .any(|end| namespace.ends_with(end))
        {
            let detail = "kubernetes.io and k8s.io namespaces are reserved";
            errors.invalid(&path.child("options").key(key), key, detail);
        }
    }
}

fn check_azure_disk(disk: &AzureDiskVolumeSource, path: &Path, errors: &mut ErrorList) {
    const MODES: [&str; 3] = ["None", "ReadOnly", "ReadWrite"];
    const KINDS: [&str; 3] = ["Dedicated", "Managed", "Shared"];
    const MANAGED: &str = "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}";
    const BLOB: &str =
        "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd";
    require(&disk.disk_name, "diskName", path, errors);
    require(&disk.disk_uri, "diskURI", path, errors);
    for (value, field, supported) in [
        (&disk.caching_mode, "cachingMode", MODES),
        (&disk.kind, "kind", KINDS),
    ] {
        if let Some(value) = value
            && !supported.contains(&value.as_str())
        {
            errors.not_supported(&path.child(field), value, &supported);
        }
    }
    let (begin, form) = match disk.kind.as_deref() {
        None => return,
        Some("Managed") => ("/subscriptions/", MANAGED),
        Some(_) => ("https://", BLOB),
    };
    if !disk.disk_uri.starts_with(begin) {
        errors.not_supported(&path.child("diskURI"), &disk.disk_uri, &[form]);
    }
}

fn check_secret_ref(secret: Option<&LocalObjectReference>, path: &Path, errors: &mut ErrorList) {
    if let Some(secret) = secret {
        require(&secret.name, "name", &path.child("secretRef"), errors);
    }
}

fn check_storage_os(storage: &StorageOSVolumeSource, path: &Path, errors: &mut ErrorList) {
    let (name, namespace) = (text(&storage.volume_name), text(&storage.volume_namespace));
    require(name, "volumeName", path, errors);
    for (value, field) in [(name, "volumeName"), (namespace, "volumeNamespace")] {
        if !value.is_empty() {
            errors.invalid_each(&path.child(field), value, names::dns1123_label(value));
        }
    }
    check_secret_ref(storage.secret_ref.as_ref(), path, errors);
}

/// Checks the source `field` of a volume.
pub(in crate::kinds) fn validate(
    volume: &Volume,
    field: &str,
    volume_path: &Path,
    errors: &mut ErrorList,
) {
    let path = &volume_path.child(match field {
        // Named without its provider, as Kubernetes does.
        "gcePersistentDisk" => "persistentDisk",
        field => field,
    });
    match field {
        "gcePersistentDisk" => {
            if let Some(disk) = &volume.gce_persistent_disk {
                require(&disk.pd_name, "pdName", path, errors);
                check_partition(disk.partition, path, errors);
            }
        }
        "awsElasticBlockStore" => {
            if let Some(disk) = &volume.aws_elastic_block_store {
                require(&disk.volume_id, "volumeID", path, errors);
                check_partition(disk.partition, path, errors);
            }
        }
        "nfs" => {
            if let Some(nfs) = &volume.nfs {
                check_nfs(nfs, path, errors);
            }
        }
        "iscsi" => {
            if let Some(iscsi) = &volume.iscsi {
                check_iscsi(iscsi, path, errors);
            }
        }
        "glusterfs" => {
            if let Some(gluster) = &volume.glusterfs {
                require(&gluster.endpoints, "endpoints", path, errors);
                require(&gluster.path, "path", path, errors);
            }
        }
        "flocker" => {
            if let Some(flocker) = &volume.flocker {
                check_flocker(flocker, path, errors);
            }
        }
        "rbd" => {
            if let Some(rbd) = &volume.rbd {
                if rbd.monitors.is_empty() {
                    errors.required(&path.child("monitors"), "");
                }
                require(&rbd.image, "image", path, errors);
            }
        }
        "cinder" => {
            if let Some(cinder) = &volume.cinder {
                require(&cinder.volume_id, "volumeID", path, errors);
                check_secret_ref(cinder.secret_ref.as_ref(), path, errors);
            }
        }
        "cephfs" => {
            let ceph = volume.cephfs.as_ref();
            if ceph.is_some_and(|ceph| ceph.monitors.is_empty()) {
                errors.required(&path.child("monitors"), "");
            }
        }
        "quobyte" => {
            if let Some(quobyte) = &volume.quobyte {
                check_quobyte(quobyte, path, errors);
            }
        }
        "fc" => {
            if let Some(fc) = &volume.fc {
                check_fc(fc, path, errors);
            }
        }
        "flexVolume" => {
            if let Some(flex) = &volume.flex_volume {
                require(&flex.driver, "driver", path, errors);
                check_flex_options(flex.options.as_ref(), path, errors);
            }
        }
        "azureFile" => {
            if let Some(azure) = &volume.azure_file {
                require(&azure.secret_name, "secretName", path, errors);
                require(&azure.share_name, "shareName", path, errors);
            }
        }
        "vsphereVolume" => {
            if let Some(disk) = &volume.vsphere_volume {
                require(&disk.volume_path, "volumePath", path, errors);
            }
        }
        "photonPersistentDisk" => {
            if let Some(disk) = &volume.photon_persistent_disk {
                require(&disk.pd_id, "pdID", path, errors);
            }
        }
        "portworxVolume" => {
            if let Some(portworx) = &volume.portworx_volume {
                require(&portworx.volume_id, "volumeID", path, errors);
            }
        }
        "azureDisk" => {
            if let Some(disk) = &volume.azure_disk {
                check_azure_disk(disk, path, errors);
            }
        }
        "storageos" => {
            if let Some(storage) = &volume.storageos {
                check_storage_os(storage, path, errors);
            }
        }
        "scaleIO" => {
            if let Some(scale) = &volume.scale_io {
                require(&scale.gateway, "gateway", path, errors);
                require(&scale.system, "system", path, errors);
                require(text(&scale.volume_name), "volumeName", path, errors);
            }
        }
        _ => {}
    }
}
