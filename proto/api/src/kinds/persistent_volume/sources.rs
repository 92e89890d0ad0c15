//! Where a volume's storage is: what each source must say. Pods have most of these as well, and their rules are the same but for
//! secrets, which are in another namespace here.

use k8s_openapi::api::core::v1::{
    AzureFileVolumeSource, CSIPersistentVolumeSource, CephFSVolumeSource, CinderVolumeSource,
    FlexVolumeSource, GlusterfsVolumeSource, ISCSIPersistentVolumeSource, PersistentVolumeSpec,
    RBDVolumeSource, ScaleIOVolumeSource, SecretReference, StorageOSVolumeSource, Volume,
};

use crate::field::{ErrorList, Path};
use crate::kinds::pod_spec;
use crate::meta::NameRule;
use crate::names;

/// Sources in the order in which Kubernetes looks for them, each with its name in what is told of one too many.
const SOURCES: [(&str, &str); 22] = [
    ("hostPath", "hostPath"),
    ("gcePersistentDisk", "gcePersistentDisk"),
    ("awsElasticBlockStore", "awsElasticBlockStore"),
    ("glusterfs", "glusterfs"),
    ("flocker", "flocker"),
    ("nfs", "nfs"),
    ("rbd", "rbd"),
    ("quobyte", "quobyte"),
    ("cephfs", "cephFS"),
    ("iscsi", "iscsi"),
    ("cinder", "cinder"),
    ("fc", "fc"),
    (FLEX, FLEX),
    ("azureFile", "azureFile"),
    ("vsphereVolume", "vsphereVolume"),
    ("photonPersistentDisk", "photonPersistentDisk"),
    ("portworxVolume", "portworxVolume"),
    ("azureDisk", "azureDisk"),
    ("scaleIO", "scaleIO"),
    ("local", "local"),
    ("storageos", "storageos"),
    ("csi", "csi"),
];

/// Kubernetes takes it beside another source.
const FLEX: &str = "flexVolume";

fn is_given(spec: &PersistentVolumeSpec, source: &str) -> bool {
    match source {
        "hostPath" => spec.host_path.is_some(),
        "gcePersistentDisk" => spec.gce_persistent_disk.is_some(),
        "awsElasticBlockStore" => spec.aws_elastic_block_store.is_some(),
        "glusterfs" => spec.glusterfs.is_some(),
        "flocker" => spec.flocker.is_some(),
        "nfs" => spec.nfs.is_some(),
        "rbd" => spec.rbd.is_some(),
        "quobyte" => spec.quobyte.is_some(),
        "cephfs" => spec.cephfs.is_some(),
        "iscsi" => spec.iscsi.is_some(),
        "cinder" => spec.cinder.is_some(),
        "fc" => spec.fc.is_some(),
        FLEX => spec.flex_volume.is_some(),
        "azureFile" => spec.azure_file.is_some(),
        "vsphereVolume" => spec.vsphere_volume.is_some(),
        "photonPersistentDisk" => spec.photon_persistent_disk.is_some(),
        "portworxVolume" => spec.portworx_volume.is_some(),
        "azureDisk" => spec.azure_disk.is_some(),
        "scaleIO" => spec.scale_io.is_some(),
        "local" => spec.local.is_some(),
        "storageos" => spec.storageos.is_some(),
        "csi" => spec.csi.is_some(),
        _ => false,
    }
}

/// The sources as a pod's volume would have them, as far as the rules are the same.
fn as_of_pods(spec: &PersistentVolumeSpec) -> Volume {
    Volume {
        gce_persistent_disk: spec.gce_persistent_disk.clone(),
        aws_elastic_block_store: spec.aws_elastic_block_store.clone(),
        flocker: spec.flocker.clone(),
        nfs: spec.nfs.clone(),
        quobyte: spec.quobyte.clone(),
        fc: spec.fc.clone(),
        vsphere_volume: spec.vsphere_volume.clone(),
        photon_persistent_disk: spec.photon_persistent_disk.clone(),
        portworx_volume: spec.portworx_volume.clone(),
        azure_disk: spec.azure_disk.clone(),
        glusterfs: spec
            .glusterfs
            .as_ref()
            .map(|gluster| GlusterfsVolumeSource {
                endpoints: gluster.endpoints.clone(),
                path: gluster.path.clone(),
                ..GlusterfsVolumeSource::default()
            }),
        rbd: spec.rbd.as_ref().map(|rbd| RBDVolumeSource {
            monitors: rbd.monitors.clone(),
            image: rbd.image.clone(),
            ..RBDVolumeSource::default()
        }),
        cephfs: spec.cephfs.as_ref().map(|ceph| CephFSVolumeSource {
            monitors: ceph.monitors.clone(),
            ..CephFSVolumeSource::default()
        }),
        cinder: spec.cinder.as_ref().map(|cinder| CinderVolumeSource {
            volume_id: cinder.volume_id.clone(),
            ..CinderVolumeSource::default()
        }),
        flex_volume: spec.flex_volume.as_ref().map(|flex| FlexVolumeSource {
            driver: flex.driver.clone(),
            options: flex.options.clone(),
            ..FlexVolumeSource::default()
        }),
        azure_file: spec.azure_file.as_ref().map(|file| AzureFileVolumeSource {
            secret_name: file.secret_name.clone(),
            share_name: file.share_name.clone(),
            ..AzureFileVolumeSource::default()
        }),
        scale_io: spec.scale_io.as_ref().map(|scale| ScaleIOVolumeSource {
            gateway: scale.gateway.clone(),
            system: scale.system.clone(),
            volume_name: scale.volume_name.clone(),
            ..ScaleIOVolumeSource::default()
        }),
        storageos: spec
            .storageos
            .as_ref()
            .map(|storage| StorageOSVolumeSource {
                volume_name: storage.volume_name.clone(),
                volume_namespace: storage.volume_namespace.clone(),
                ..StorageOSVolumeSource::default()
            }),
        ..Volume::default()
    }
}

fn require(value: Option<&String>, field: &str, path: &Path, errors: &mut ErrorList) {
    if value.is_none_or(String::is_empty) {
        errors.required(&path.child(field), "");
    }
}

/// Checks that a secret is named, with its namespace.
fn check_secret(
    name: Option<&String>,
    namespace: Option<&String>,
    path: &Path,
    errors: &mut ErrorList,
) {
    let path = path.child("secretRef");
    require(name, "name", &path, errors);
    require(namespace, "namespace", &path, errors);
}

/// As [`check_secret`], and that both are names.
fn check_secret_names(secret: Option<&SecretReference>, path: &Path, errors: &mut ErrorList) {
    let Some(secret) = secret else {
        return;
    };
    for (value, field, rule) in [
        (
            secret.name.as_deref(),
            "name",
            names::dns1123_subdomain as NameRule,
        ),
        (
            secret.namespace.as_deref(),
            "namespace",
            names::dns1123_label as NameRule,
        ),
    ] {
        let path = path.child(field);
        match value.unwrap_or_default() {
            "" => errors.required(&path, ""),
            value => errors.invalid_each(&path, value, rule(value)),
        }
    }
}

fn check_csi(csi: &CSIPersistentVolumeSource, path: &Path, errors: &mut ErrorList) {
    pod_spec::check_driver_name(&csi.driver, &path.child("driver"), errors);
    require(Some(&csi.volume_handle), "volumeHandle", path, errors);
    for (secret, field) in [
        (
            &csi.controller_publish_secret_ref,
            "controllerPublishSecretRef",
        ),
        (
            &csi.controller_expand_secret_ref,
            "controllerExpandSecretRef",
        ),
        (&csi.node_publish_secret_ref, "nodePublishSecretRef"),
        (&csi.node_expand_secret_ref, "nodeExpandSecretRef"),
    ] {
        check_secret_names(secret.as_ref(), &path.child(field), errors);
    }
}

fn check_iscsi(
    iscsi: &ISCSIPersistentVolumeSource,
    volume: &str,
    path: &Path,
    errors: &mut ErrorList,
) {
    require(Some(&iscsi.target_portal), "targetPortal", path, errors);
    if iscsi.initiator_name.is_some()
        && volume.len() + 1 + iscsi.target_portal.len() > pod_spec::MAX_ISCSI_NAME
    {
        let detail = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.";
        errors.invalid(&path.child("targetportal"), &iscsi.target_portal, detail);
    }
    require(Some(&iscsi.iqn), "iqn", path, errors);
    if !iscsi.iqn.is_empty() && !pod_spec::is_iscsi_name(&iscsi.iqn) {
        errors.invalid(&path.child("iqn"), &iscsi.iqn, "must be valid format");
    }
    if !(0..=255).contains(&iscsi.lun) {
        let detail = "must be between 0 and 255, inclusive";
        errors.invalid(&path.child("lun"), iscsi.lun, detail);
    }
    let authenticates =
        iscsi.chap_auth_discovery == Some(true) || iscsi.chap_auth_session == Some(true);
    match &iscsi.secret_ref {
        None if authenticates => errors.required(&path.child("secretRef"), ""),
        None => {}
        Some(secret) => require(
            secret.name.as_ref(),
            "name",
            &path.child("secretRef"),
            errors,
        ),
    }
    pod_spec::check_initiator(iscsi.initiator_name.as_ref(), path, errors);
}

/// What is said here and not in a pod's volume.
fn check_more(spec: &PersistentVolumeSpec, source: &str, path: &Path, errors: &mut ErrorList) {
    match source {
        "glusterfs" => {
            let gluster = spec.glusterfs.as_ref();
            let namespace = gluster.and_then(|gluster| gluster.endpoints_namespace.as_ref());
            let path = path.child("endpointsNamespace");
            match namespace.map(String::as_str) {
                None => {}
                Some("") => {
                    let detail =
                        "if the endpointnamespace is set, it must be a valid namespace name";
                    errors.invalid(&path, "", detail);
                }
                Some(name) => errors.invalid_each(&path, name, names::dns1123_label(name)),
            }
        }
        "cinder" => {
            let cinder = spec.cinder.as_ref();
            if let Some(secret) = cinder.and_then(|cinder| cinder.secret_ref.as_ref()) {
                check_secret(
                    secret.name.as_ref(),
                    secret.namespace.as_ref(),
                    path,
                    errors,
                );
            }
        }
        "azureFile" => {
            let file = spec.azure_file.as_ref();
            let namespace = file.and_then(|file| file.secret_namespace.as_ref());
            if namespace.is_some() {
                require(namespace, "secretNamespace", path, errors);
            }
        }
        "storageos" => {
            let storage = spec.storageos.as_ref();
            if let Some(secret) = storage.and_then(|storage| storage.secret_ref.as_ref()) {
                check_secret(
                    secret.name.as_ref(),
                    secret.namespace.as_ref(),
                    path,
                    errors,
                );
            }
        }
        _ => {}
    }
}

/// Checks the sources of a volume, of which it has one. `is_placed` is whether it says on which nodes it is.
pub(super) fn validate(
    spec: &PersistentVolumeSpec,
    volume: &str,
    is_placed: bool,
    path: &Path,
    errors: &mut ErrorList,
) {
    let mut any = false;
    let of_pods = as_of_pods(spec);
    for (source, told) in SOURCES {
        if !is_given(spec, source) {
            continue;
        }
        if any && source != FLEX {
            let detail = "may not specify more than 1 volume type";
            errors.forbidden(&path.child(told), detail);
            continue;
        }
        any = true;
        let source_path = path.child(source);
        match source {
            "hostPath" => {
                if let Some(host) = &spec.host_path {
                    pod_spec::check_host_path(host, &source_path, errors);
                }
            }
            "iscsi" => {
                if let Some(iscsi) = &spec.iscsi {
                    check_iscsi(iscsi, volume, &source_path, errors);
                }
            }
            "local" => {
                if let Some(local) = &spec.local {
                    require(Some(&local.path), "path", &source_path, errors);
                    let file = &source_path.child("path");
                    pod_spec::check_no_backsteps(&local.path, file, errors);
                }
                if !is_placed {
                    let detail = "Local volume requires node affinity";
                    errors.required(&path.child("nodeAffinity"), detail);
                }
            }
            "csi" => {
                if let Some(csi) = &spec.csi {
                    check_csi(csi, &source_path, errors);
                }
            }
            _ => {
                pod_spec::check_remote(&of_pods, source, path, errors);
                check_more(spec, source, &source_path, errors);
            }
        }
    }
    if !any {
        errors.required(path, "must specify a volume type");
    }
}
