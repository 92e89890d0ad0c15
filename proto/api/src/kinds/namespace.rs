//! Namespace: the scope of names, and the finalizer that empties it.

use k8s_openapi::api::core::v1::{Namespace, NamespaceStatus};
use serde_json::json;

use super::table::{self, Printer};
use crate::field::{ErrorList, Path};
use crate::kind::{Kind, MetadataChecks, Parts, StaticInfo};
use crate::parts;
use crate::{meta, names};

const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// See [`Namespace`].
pub struct NamespaceKind;

impl NamespaceKind {
    fn phase(object: &Namespace) -> &str {
        let status = object.status.as_ref();
        status
            .and_then(|status| status.phase.as_deref())
            .unwrap_or_default()
    }
}

impl Kind for NamespaceKind {
    type Object = Namespace;

    const INFO: StaticInfo = StaticInfo {
        group: "",
        version: "v1",
        kind: "Namespace",
        plural: "namespaces",
        singular: "namespace",
        short_names: &["ns"],
        categories: &[],
        namespaced: false,
        has_status: true,
        has_scale: false,
        has_generation: false,
        create_on_update: false,
    };

    const PARTS: Parts<Namespace> = parts!(Namespace: spec, status);

    const UPDATE_METADATA: MetadataChecks = MetadataChecks::Update;

    const FIELD_LABELS: &'static [&'static str] = &["status.phase"];

    const NAME_RULE: crate::meta::NameRule = names::dns1123_label;

    fn default(object: &mut Namespace) {
        if let Some(name) = object.metadata.name.clone().filter(|name| !name.is_empty()) {
            let labels = object.metadata.labels.get_or_insert_default();
            labels.insert(NAME_LABEL.to_owned(), name);
        }
        let phase = &mut object.status.get_or_insert_default().phase;
        if phase.as_deref().unwrap_or_default().is_empty() {
            *phase = Some("Active".to_owned());
        }
    }

    fn prepare_create(object: &mut Namespace) {
        object.status = Some(NamespaceStatus {
            phase: Some("Active".to_owned()),
            ..NamespaceStatus::default()
        });
        let finalizers = object
            .spec
            .get_or_insert_default()
            .finalizers
            .get_or_insert_default();
        if !finalizers.iter().any(|finalizer| finalizer == "kubernetes") {
            finalizers.push("kubernetes".to_owned());
        }
    }

    fn validate(object: &Namespace, errors: &mut ErrorList) {
        let path = Path::new("spec").child("finalizers");
        let spec = object.spec.as_ref();
        for finalizer in spec
            .and_then(|spec| spec.finalizers.as_ref())
            .into_iter()
            .flatten()
        {
            errors.invalid_each(&path, finalizer, names::qualified_name(finalizer));
            meta::validate_finalizer_name(finalizer, &path, errors);
        }
    }

    fn prepare_update(new: &mut Namespace, old: &Namespace) {
        new.spec.clone_from(&old.spec);
    }

    fn validate_status_update(new: &Namespace, _old: &Namespace, errors: &mut ErrorList) {
        let path = Path::new("status").child("Phase");
        let phase = Self::phase(new);
        if new.metadata.deletion_timestamp.is_none() {
            if phase != "Active" {
                errors.invalid(
                    &path,
                    phase,
                    "may only be 'Active' if `deletionTimestamp` is empty",
                );
            }
        } else if phase != "Terminating" {
            let detail = "may only be 'Terminating' if `deletionTimestamp` is not empty";
            errors.invalid(&path, phase, detail);
        }
    }

    fn selectable_fields(object: &Namespace) -> Vec<(&'static str, String)> {
        vec![("status.phase", Self::phase(object).to_owned())]
    }

    fn printer() -> Printer<Namespace> {
        let status = table::column("Status", "string", "The status of the namespace", 0);
        Printer::<Namespace>::named()
            .column(status, |object| json!(Self::phase(object)))
            .age()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_namespace_is_active_labelled_and_finalized() {
        let mut object = Namespace::default();
        object.metadata.name = Some("shop".to_owned());
        NamespaceKind::default(&mut object);
        NamespaceKind::prepare_create(&mut object);
        assert_eq!(NamespaceKind::phase(&object), "Active");
        assert_eq!(object.metadata.labels.unwrap()[NAME_LABEL], "shop");
        assert_eq!(object.spec.unwrap().finalizers.unwrap(), ["kubernetes"]);
    }

    #[test]
    fn finalizers_of_a_namespace_are_known_or_have_a_domain() {
        let object: Namespace = serde_json::from_value(serde_json::json!({
            "spec": {"finalizers": ["kubernetes", "example.com/f", "f", "a b"]}
        }))
        .unwrap();
        let mut errors = ErrorList::default();
        NamespaceKind::validate(&object, &mut errors);
        assert_eq!(errors.0.len(), 3, "{errors:?}");
        assert!(
            errors
                .0
                .iter()
                .all(|error| error.path.to_string() == "spec.finalizers")
        );
    }
}
