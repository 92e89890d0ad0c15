//! StorageClass: how volumes are made that claims of the class ask for.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use k8s_openapi::api::core::v1::TopologySelectorTerm;
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;

use super::pod_spec;
use super::table::{self, Printer, field_doc};
use crate::field::{ErrorList, Path};
use crate::kind::{Kind, StaticInfo};
use crate::{meta, names};

/// See [`StorageClass`].
pub struct StorageClassKind;

/// The API group.
pub const GROUP: &str = "storage.k8s.io";
/// The resource.
pub const PLURAL: &str = "storageclasses";

const DEFAULT: [&str; 2] = [
    "storageclass.kubernetes.io/is-default-class",
    "storageclass.beta.kubernetes.io/is-default-class",
];
const RECLAIM_POLICIES: [&str; 2] = ["Delete", "Retain"];
const BINDING_MODES: [&str; 2] = ["Immediate", "WaitForFirstConsumer"];
const MAX_PARAMETERS: usize = 512;
const MAX_BYTES: usize = 256 << 10;

/// Whether a class says that it is the one of claims that name none.
pub fn is_default(metadata: &ObjectMeta) -> bool {
    let annotations = metadata.annotations.as_ref();
    annotations.is_some_and(|annotations| {
        let mut given = DEFAULT.iter().filter_map(|name| annotations.get(*name));
        given.any(|value| value == "true")
    })
}

/// Checks the name of who makes, or changes, volumes of a class.
pub(super) fn check_provisioner(name: &str, path: &Path, errors: &mut ErrorList) {
    match name {
        "" => errors.required(path, ""),
        name => {
            let lower = name.to_lowercase();
            errors.invalid_each(path, &lower, names::qualified_name(&lower));
        }
    }
}

/// Checks what a class says to whom it names, which is known to that one alone.
pub(super) fn check_parameters(
    parameters: Option<&BTreeMap<String, String>>,
    must_be: bool,
    path: &Path,
    errors: &mut ErrorList,
) {
    let parameters = || parameters.into_iter().flatten();
    let count = parameters().count();
    if count > MAX_PARAMETERS {
        errors.too_long(path, MAX_PARAMETERS);
        return;
    }
    if parameters().any(|(key, _)| key.is_empty()) {
        errors.invalid(path, "", "field can not be empty.");
    }
    let bytes: usize = parameters()
        .map(|(key, value)| key.len() + value.len())
        .sum();
    if bytes > MAX_BYTES {
        errors.too_long(path, MAX_BYTES);
    }
    if must_be && count == 0 {
        errors.required(path, "must contain at least one key/value pair");
    }
}

/// What a term selects by, in whatever order it says so.
type Raw<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;

fn validate_term<'a>(
    term: &'a TopologySelectorTerm,
    path: &Path,
    errors: &mut ErrorList,
) -> Raw<'a> {
    let mut raw = Raw::new();
    let path = path.child("matchLabelExpressions");
    let expressions = term.match_label_expressions.iter().flatten();
    for (index, expression) in expressions.enumerate() {
        let path = path.index(index);
        let (values_path, key_path) = (path.child("values"), path.child("key"));
        if expression.values.is_empty() {
            errors.required(&values_path, "");
        }
        let mut values = BTreeSet::new();
        for (index, value) in expression.values.iter().enumerate() {
            if !values.insert(value.as_str()) {
                errors.duplicate(&values_path.index(index), value);
            }
        }
        let key = expression.key.as_str();
        errors.invalid_each(&key_path, key, names::qualified_name(key));
        if raw.insert(key, values).is_some() {
            errors.duplicate(&key_path, key);
        }
    }
    raw
}

fn validate_topologies(object: &StorageClass, errors: &mut ErrorList) {
    let terms = object.allowed_topologies.as_deref().unwrap_or_default();
    let path = Path::new("allowedTopologies");
    // Kubernetes compares each term with as many empty ones as there are terms, and with those before it.
    let mut seen = HashMap::from([(Raw::new(), terms.len())]);
    for (index, term) in terms.iter().enumerate() {
        let path = path.index(index);
        let raw = validate_term(term, &path, errors);
        let before = seen.entry(raw).or_insert(0);
        for _ in 0..*before {
            if errors.is_full() {
                return;
            }
            errors.duplicate(&path.child("matchLabelExpressions"), "");
        }
        *before += 1;
    }
}

impl Kind for StorageClassKind {
    type Object = StorageClass;

    const INFO: StaticInfo = StaticInfo {
        group: GROUP,
        version: "v1",
        kind: "StorageClass",
        plural: PLURAL,
        singular: "storageclass",
        short_names: &["sc"],
        categories: &[],
        namespaced: false,
        has_status: false,
        has_scale: false,
        has_generation: false,
        create_on_update: false,
    };

    fn default(object: &mut StorageClass) {
        let policy = &mut object.reclaim_policy;
        policy.get_or_insert_with(|| "Delete".to_owned());
        let mode = &mut object.volume_binding_mode;
        mode.get_or_insert_with(|| "Immediate".to_owned());
    }

    fn validate(object: &StorageClass, errors: &mut ErrorList) {
        check_provisioner(&object.provisioner, &Path::new("provisioner"), errors);
        let parameters = object.parameters.as_ref();
        check_parameters(parameters, false, &Path::new("parameters"), errors);
        let policy = object.reclaim_policy.as_deref().unwrap_or_default();
        if !policy.is_empty() && !RECLAIM_POLICIES.contains(&policy) {
            errors.not_supported(&Path::new("reclaimPolicy"), policy, &RECLAIM_POLICIES);
        }
        let path = Path::new("volumeBindingMode");
        match object.volume_binding_mode.as_deref() {
            None => errors.required(&path, ""),
            Some(mode) if BINDING_MODES.contains(&mode) => {}
            Some(mode) => errors.not_supported(&path, mode, &BINDING_MODES),
        }
        validate_topologies(object, errors);
    }

    fn validate_update(new: &StorageClass, old: &StorageClass, errors: &mut ErrorList) {
        Self::validate(new, errors);
        let mut kept = |field: &str, new: serde_json::Value, old: serde_json::Value| {
            if new != old {
                errors.invalid(&Path::new(field), new, meta::IMMUTABLE);
            }
        };
        kept("parameters", json!(new.parameters), json!(old.parameters));
        kept(
            "provisioner",
            json!(new.provisioner),
            json!(old.provisioner),
        );
        kept(
            "reclaimPolicy",
            json!(new.reclaim_policy),
            json!(old.reclaim_policy),
        );
        let (mode, before) = (&new.volume_binding_mode, &old.volume_binding_mode);
        kept("volumeBindingMode", json!(mode), json!(before));
    }

    fn warnings(new: &StorageClass, _old: Option<&StorageClass>) -> Vec<String> {
        let path = Path::new("allowedTopologies");
        let terms = new.allowed_topologies.iter().flatten().enumerate();
        let labels = terms.flat_map(|(index, term)| {
            let path = path.index(index).child("matchLabelExpressions");
            let expressions = term.match_label_expressions.iter().flatten().enumerate();
            expressions.map(move |(index, expression)| {
                (path.index(index).child("key"), expression.key.as_str())
            })
        });
        pod_spec::node_label_warnings(labels)
    }

    fn printer() -> Printer<StorageClass> {
        let column =
            |name, field| table::column(name, "string", field_doc::<StorageClass>(field), 0);
        let columns = [
            table::name_column(),
            column("Provisioner", "provisioner"),
            column("ReclaimPolicy", "reclaimPolicy"),
            column("VolumeBindingMode", "volumeBindingMode"),
            column("AllowVolumeExpansion", "allowVolumeExpansion"),
        ];
        let printer = Printer::<StorageClass>::of(columns, |object, _| {
            let name = object.metadata.name.as_deref().unwrap_or_default();
            let mark = if is_default(&object.metadata) {
                " (default)"
            } else {
                ""
            };
            let or =
                |field: &Option<String>, default: &str| json!(field.as_deref().unwrap_or(default));
            [
                json!(format!("{name}{mark}")),
                json!(object.provisioner),
                or(&object.reclaim_policy, "Delete"),
                or(&object.volume_binding_mode, "Immediate"),
                json!(object.allow_volume_expansion.unwrap_or(false)),
            ]
        });
        printer.age()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn class(more: Value) -> StorageClass {
        let mut class = json!({"metadata": {"name": "c"}, "provisioner": "example.com/p"});
        if let (Some(class), Some(more)) = (class.as_object_mut(), more.as_object()) {
            class.extend(more.clone());
        }
        let mut class = serde_json::from_value(class).expect("a class");
        StorageClassKind::default(&mut class);
        class
    }

    fn refused(more: Value) -> Vec<String> {
        let mut errors = ErrorList::default();
        StorageClassKind::validate(&class(more), &mut errors);
        errors.told()
    }

    #[test]
    fn a_class_says_who_makes_its_volumes_and_how() {
        assert_eq!(refused(json!({})), [""; 0]);
        assert_eq!(
            refused(json!({
                "provisioner": "", "reclaimPolicy": "Recycle", "volumeBindingMode": "Later",
                "parameters": {"": "x"}
            })),
            [
                "provisioner: Required value",
                "parameters: Invalid value: \"\": field can not be empty.",
                "reclaimPolicy: Unsupported value: \"Recycle\": supported values: \"Delete\", \"Retain\"",
                "volumeBindingMode: Unsupported value: \"Later\": supported values: \"Immediate\", \"WaitForFirstConsumer\"",
            ]
        );
    }

    #[test]
    fn terms_are_told_apart_by_what_they_select() {
        let term =
            |values: &[&str]| json!({"matchLabelExpressions": [{"key": "zone", "values": values}]});
        let topologies = |terms: &[Value]| refused(json!({"allowedTopologies": terms}));
        assert_eq!(topologies(&[term(&["a"]), term(&["b"])]), [""; 0]);
        assert_eq!(
            topologies(&[term(&["a", "b"]), term(&["b", "a"])]),
            ["allowedTopologies[1].matchLabelExpressions: Duplicate value: \"\""]
        );
        assert_eq!(
            topologies(&[term(&["a", "a"]), term(&[])]),
            [
                "allowedTopologies[0].matchLabelExpressions[0].values[1]: Duplicate value: \"a\"",
                "allowedTopologies[1].matchLabelExpressions[0].values: Required value",
            ]
        );
    }

    #[test]
    fn most_of_a_class_stays() {
        let old = class(json!({"parameters": {"a": "b"}}));
        let new = class(json!({"provisioner": "other", "allowVolumeExpansion": true}));
        let mut errors = ErrorList::default();
        StorageClassKind::validate_update(&new, &old, &mut errors);
        assert_eq!(
            errors.told(),
            [
                "parameters: Invalid value: null: field is immutable",
                "provisioner: Invalid value: \"other\": field is immutable",
            ]
        );
    }

    #[test]
    fn labels_of_old_are_warned_of_and_the_default_is_marked() {
        let class = class(json!({
            "metadata": {"name": "c", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
            "allowedTopologies": [{"matchLabelExpressions": [
                {"key": "failure-domain.beta.kubernetes.io/zone", "values": ["a"]}]}]
        }));
        assert_eq!(
            StorageClassKind::warnings(&class, None),
            [
                "allowedTopologies[0].matchLabelExpressions[0].key: deprecated since v1.14; use \"topology.kubernetes.io/zone\" instead"
            ]
        );
        let row = StorageClassKind::printer().row(&class, 0);
        assert_eq!(row.first(), Some(&json!("c (default)")));
    }
}
