//! VolumeAttachment: that a volume is to be attached to a node, and whether it is.

use k8s_openapi::api::core::v1::PersistentVolumeSpec;
use k8s_openapi::api::storage::v1::{
    VolumeAttachment, VolumeAttachmentSource, VolumeAttachmentSpec, VolumeAttachmentStatus,
    VolumeError,
};
use serde::Serialize;
use serde_json::json;

use super::table::{self, Printer, field_doc};
use super::{persistent_volume, pod_spec};
use crate::field::{ErrorList, Path};
use crate::kind::{Column, Kind, MetadataChecks, Parts, StaticInfo};
use crate::{meta, names, parts};

/// See [`VolumeAttachment`].
pub struct VolumeAttachmentKind;

const MAX_METADATA: usize = 256 << 10;
const MAX_MESSAGE: usize = 1024;
const EITHER: &str = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";

fn validate_source(source: &VolumeAttachmentSource, path: &Path, errors: &mut ErrorList) {
    match (&source.inline_volume_spec, &source.persistent_volume_name) {
        (None, None) => errors.required(path, EITHER),
        (Some(_), Some(_)) => errors.forbidden(path, EITHER),
        (None, Some(name)) if name.is_empty() => {
            let detail = "must specify non empty persistentVolumeName";
            errors.required(&path.child("persistentVolumeName"), detail);
        }
        (None, Some(_)) => {}
        (Some(volume), None) => {
            persistent_volume::validate_inline(volume, &path.child("inlineVolumeSpec"), errors);
        }
    }
}

fn validate_trouble(trouble: Option<&VolumeError>, path: &Path, errors: &mut ErrorList) {
    let Some(trouble) = trouble else {
        return;
    };
    let message = trouble.message.as_deref().unwrap_or_default();
    if message.len() > MAX_MESSAGE {
        // Kubernetes names another bound than the one that it keeps.
        errors.too_long(&path.child("message"), MAX_METADATA);
    }
    if let Some(code) = trouble.error_code.filter(|code| *code < 0) {
        let detail = "must be between 0 and 2147483647, inclusive";
        errors.invalid(&path.child("errorCode"), code, detail);
    }
}

fn validate_status(status: &VolumeAttachmentStatus, path: &Path, errors: &mut ErrorList) {
    let metadata = status.attachment_metadata.iter().flatten();
    let bytes: usize = metadata.map(|(key, value)| key.len() + value.len()).sum();
    if bytes > MAX_METADATA {
        errors.too_long(&path.child("attachmentMetadata"), MAX_METADATA);
    }
    let (attach, detach) = (status.attach_error.as_ref(), status.detach_error.as_ref());
    validate_trouble(attach, &path.child("attachError"), errors);
    validate_trouble(detach, &path.child("detachError"), errors);
}

/// A spec as Kubernetes prints it inside of messages: its internal type's own field names.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Printed<'a> {
    attacher: &'a str,
    source: PrintedSource<'a>,
    node_name: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct PrintedSource<'a> {
    persistent_volume_name: Option<&'a str>,
    inline_volume_spec: Option<&'a PersistentVolumeSpec>,
}

impl<'a> From<&'a VolumeAttachmentSpec> for Printed<'a> {
    fn from(spec: &'a VolumeAttachmentSpec) -> Self {
        Self {
            attacher: &spec.attacher,
            source: PrintedSource {
                persistent_volume_name: spec.source.persistent_volume_name.as_deref(),
                inline_volume_spec: spec.source.inline_volume_spec.as_ref(),
            },
            node_name: &spec.node_name,
        }
    }
}

impl Kind for VolumeAttachmentKind {
    type Object = VolumeAttachment;

    const INFO: StaticInfo = StaticInfo {
        group: "storage.k8s.io",
        version: "v1",
        kind: "VolumeAttachment",
        plural: "volumeattachments",
        singular: "volumeattachment",
        short_names: &[],
        categories: &[],
        namespaced: false,
        has_status: true,
        has_scale: false,
        has_generation: false,
        create_on_update: false,
    };

    const PARTS: Parts<VolumeAttachment> = parts!(VolumeAttachment: spec, status);

    const UNCONDITIONAL_UPDATE: bool = false;

    const UPDATE_METADATA: MetadataChecks = MetadataChecks::Whole;

    fn validate(object: &VolumeAttachment, errors: &mut ErrorList) {
        let path = Path::new("spec");
        let spec = &object.spec;
        pod_spec::check_driver_name(&spec.attacher, &path.child("attacher"), errors);
        let source = path.child("source");
        validate_source(&spec.source, &source, errors);
        let node = spec.node_name.as_str();
        let details = names::dns1123_subdomain(node);
        errors.invalid_each(&path.child("nodeName"), node, details);
        if let Some(status) = &object.status {
            validate_status(status, &Path::new("status"), errors);
        }
        if let Some(volume) = spec.source.persistent_volume_name.as_deref() {
            let details = names::dns1123_subdomain(volume);
            errors.invalid_each(&source.child("persistentVolumeName"), volume, details);
        }
    }

    fn validate_update(new: &VolumeAttachment, old: &VolumeAttachment, errors: &mut ErrorList) {
        Self::validate(new, errors);
        if new.spec != old.spec {
            let path = Path::new("spec");
            errors.invalid(&path, Printed::from(&new.spec), meta::IMMUTABLE);
        }
    }

    fn prepare_status_update(new: &mut VolumeAttachment, old: &VolumeAttachment) {
        new.metadata.labels.clone_from(&old.metadata.labels);
        new.metadata
            .annotations
            .clone_from(&old.metadata.annotations);
    }

    fn validate_status_update(
        new: &VolumeAttachment,
        _old: &VolumeAttachment,
        errors: &mut ErrorList,
    ) {
        Self::validate(new, errors);
    }

    fn printer() -> Printer<VolumeAttachment> {
        let of_spec = field_doc::<VolumeAttachmentSpec>;
        let volume = field_doc::<VolumeAttachmentSource>("persistentVolumeName");
        let attached = field_doc::<VolumeAttachmentStatus>("attached");
        let columns = [
            Column {
                format: "name".into(),
                ..table::column("Attacher", "string", of_spec("attacher"), 0)
            },
            table::column("PV", "string", volume, 0),
            table::column("Node", "string", of_spec("nodeName"), 0),
            table::column("Attached", "boolean", attached, 0),
        ];
        let printer = Printer::<VolumeAttachment>::named().columns(columns, |object, _| {
            let spec = &object.spec;
            let status = object.status.as_ref();
            [
                json!(spec.attacher),
                json!(
                    spec.source
                        .persistent_volume_name
                        .as_deref()
                        .unwrap_or_default()
                ),
                json!(spec.node_name),
                json!(status.is_some_and(|status| status.attached)),
            ]
        });
        printer.age()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn attachment(source: Value, status: Value) -> VolumeAttachment {
        let attachment = json!({
            "metadata": {"name": "a"}, "status": status,
            "spec": {"attacher": "a.example", "nodeName": "n", "source": source},
        });
        serde_json::from_value(attachment).expect("an attachment")
    }

    fn refused(source: Value, status: Value) -> Vec<String> {
        let mut errors = ErrorList::default();
        VolumeAttachmentKind::validate(&attachment(source, status), &mut errors);
        errors.told()
    }

    #[test]
    fn one_volume_is_named_or_told_of() {
        let fine = json!({"attached": false});
        let named = json!({"persistentVolumeName": "p"});
        let told = json!({"inlineVolumeSpec": {
            "accessModes": ["ReadWriteOnce"], "csi": {"driver": "a.example", "volumeHandle": "h"}}});
        assert_eq!(refused(named, fine.clone()), [""; 0]);
        assert_eq!(refused(told, fine.clone()), [""; 0]);
        let expected = format!("spec.source: Required value: {EITHER}");
        assert_eq!(refused(json!({}), fine.clone()), [expected]);
        let local = json!({"inlineVolumeSpec": {
            "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "storageClassName": "s",
            "volumeMode": "Block", "csi": {"driver": "a.example", "volumeHandle": "h"}}});
        let path = "spec.source.inlineVolumeSpec";
        assert_eq!(
            refused(local, fine),
            [
                format!(
                    "{path}.capacity: Forbidden: may not be specified in the context of inline volumes"
                ),
                format!(
                    "{path}.storageClassName: Forbidden: may not be specified in the context of inline volumes"
                ),
                format!(
                    "{path}.volumeMode: Forbidden: may not specify volumeMode other than Filesystem in the context of inline volumes"
                ),
            ]
        );
    }

    #[test]
    fn what_is_attached_where_stays() {
        let old = attachment(
            json!({"persistentVolumeName": "p"}),
            json!({"attached": true}),
        );
        let new = attachment(
            json!({"persistentVolumeName": "q"}),
            json!({"attached": true}),
        );
        let mut errors = ErrorList::default();
        VolumeAttachmentKind::validate_update(&new, &old, &mut errors);
        let expected = "spec: Invalid value: {\"Attacher\":\"a.example\",\"Source\":{\"PersistentVolumeName\":\"q\",\"InlineVolumeSpec\":null},\"NodeName\":\"n\"}: field is immutable";
        assert_eq!(errors.told(), [expected]);
        let trouble = json!({"attached": false, "attachError": {"errorCode": -1}});
        assert_eq!(
            refused(json!({"persistentVolumeName": "p"}), trouble),
            [
                "status.attachError.errorCode: Invalid value: -1: must be between 0 and 2147483647, inclusive"
            ]
        );
    }
}
