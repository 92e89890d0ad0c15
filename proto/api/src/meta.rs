//! What every object's `metadata` must satisfy at creation and on update.

use std::collections::HashSet;

use crate::json::Members;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::{Value, json};

use crate::field::{ErrorList, Path};
use crate::names;

/// A rule for names: what is wrong with one, if anything.
pub type NameRule = fn(&str) -> Option<String>;

/// Bytes of all annotations, keys and values.
const ANNOTATIONS_LIMIT: usize = 256 * 1024;
/// The longest prefix of a generated name; five random characters follow.
const GENERATED_PREFIX_LIMIT: usize = 58;
pub(crate) const IMMUTABLE: &str = "field is immutable";
/// Finalizers without a domain that Kubernetes knows.
const STANDARD_FINALIZERS: &[&str] = &["foregroundDeletion", "orphan", "kubernetes"];

/// The prefix that a generated name keeps, so that the whole is at most 63 characters.
pub fn generated_prefix(generate_name: &str) -> &str {
    let mut end = generate_name.len().min(GENERATED_PREFIX_LIMIT);
    while !generate_name.is_char_boundary(end) {
        end -= 1;
    }
    &generate_name[..end]
}

/// Checks the metadata of a new object whose name has been set or generated.
pub fn validate(meta: &ObjectMeta, namespaced: bool, rule: NameRule, errors: &mut ErrorList) {
    let path = Path::new("metadata");
    if let Some(prefix) = meta
        .generate_name
        .as_deref()
        .filter(|prefix| !prefix.is_empty())
    {
        // The rest of the name follows: a trailing dash is no fault of the prefix.
        let masked = match prefix.strip_suffix('-') {
            Some(start) => format!("{start}a"),
            None => prefix.to_owned(),
        };
        if let Some(message) = rule(&masked) {
            errors.invalid(&path.child("generateName"), prefix, &message);
        }
    }
    match meta.name.as_deref().unwrap_or_default() {
        "" => errors.required(&path.child("name"), "name or generateName is required"),
        name => {
            if let Some(message) = rule(name) {
                errors.invalid(&path.child("name"), name, &message);
            }
        }
    }
    match (namespaced, meta.namespace.as_deref().unwrap_or_default()) {
        (true, "") => errors.required(&path.child("namespace"), ""),
        (true, namespace) => {
            if let Some(message) = names::is_dns1123_label(namespace) {
                errors.invalid(&path.child("namespace"), namespace, &message);
            }
        }
        (false, "") => {}
        (false, _) => errors.forbidden(&path.child("namespace"), "not allowed on this type"),
    }
    if let Some(generation) = meta.generation.filter(|generation| *generation < 0) {
        errors.invalid(&path.child("generation"), generation, names::NOT_NEGATIVE);
    }
    validate_maps(meta, &path, errors);
    validate_owners(
        meta.owner_references.as_deref().unwrap_or_default(),
        &path.child("ownerReferences"),
        errors,
    );
    validate_finalizers(meta, &path.child("finalizers"), errors);
}

/// Checks labels and annotations.
pub fn validate_maps(meta: &ObjectMeta, path: &Path, errors: &mut ErrorList) {
    let labels = path.child("labels");
    for (key, value) in meta.labels.iter().flatten() {
        for message in names::label_key(key) {
            errors.invalid(&labels, key, &message);
        }
        for message in names::label_value(value) {
            errors.invalid(&labels, value, &message);
        }
    }
    let annotations = path.child("annotations");
    let mut size = 0;
    for (key, value) in meta.annotations.iter().flatten() {
        for message in names::label_key(&key.to_lowercase()) {
            errors.invalid(&annotations, key, &message);
        }
        size += key.len() + value.len();
    }
    if size > ANNOTATIONS_LIMIT {
        errors.too_long(&annotations, ANNOTATIONS_LIMIT);
    }
}

/// An owner as Go writes it: every scalar, and the pointers that were set.
fn owner_value(owner: &OwnerReference) -> Value {
    let mut value = json!({
        "apiVersion": owner.api_version,
        "kind": owner.kind,
        "name": owner.name,
        "uid": owner.uid,
    });
    if let Some(controller) = owner.controller {
        *value.member(&["controller"]) = json!(controller);
    }
    if let Some(block) = owner.block_owner_deletion {
        *value.member(&["blockOwnerDeletion"]) = json!(block);
    }
    value
}

/// Go's field order, which serde_json's sorted maps do not keep.
struct OwnerText<'a>(&'a OwnerReference);

impl serde::Serialize for OwnerText<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        let value = owner_value(self.0);
        let mut map = serializer.serialize_map(None)?;
        for field in [
            "apiVersion",
            "kind",
            "name",
            "uid",
            "controller",
            "blockOwnerDeletion",
        ] {
            if let Some(found) = value.get(field) {
                map.serialize_entry(field, found)?;
            }
        }
        map.end()
    }
}

fn validate_owners(owners: &[OwnerReference], path: &Path, errors: &mut ErrorList) {
    let mut controller: Option<&OwnerReference> = None;
    for owner in owners {
        let (group, version) = match owner.api_version.split_once('/') {
            Some((group, version)) => (group, version),
            None => ("", owner.api_version.as_str()),
        };
        if version.is_empty() {
            errors.invalid(
                &path.child("apiVersion"),
                &owner.api_version,
                "version must not be empty",
            );
        }
        if owner.kind.is_empty() {
            errors.invalid(&path.child("kind"), &owner.kind, "must not be empty");
        }
        if owner.name.is_empty() {
            errors.invalid(&path.child("name"), &owner.name, "must not be empty");
        }
        if owner.uid.is_empty() {
            errors.invalid(&path.child("uid"), &owner.uid, "must not be empty");
        }
        if group.is_empty() && owner.kind == "Event" {
            errors.invalid(
                path,
                OwnerText(owner),
                &format!(
                    "{group}/{version}, Kind={} is disallowed from being an owner",
                    owner.kind
                ),
            );
        }
    }
    for owner in owners.iter().filter(|owner| owner.controller == Some(true)) {
        if errors.is_full() {
            return;
        }
        match controller {
            None => controller = Some(owner),
            Some(first) => errors.invalid(
                path,
                owners.iter().map(OwnerText).collect::<Vec<_>>(),
                &format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {}/{} and {}/{}",
                    first.kind, first.name, owner.kind, owner.name
                ),
            ),
        }
    }
}

fn validate_finalizers(meta: &ObjectMeta, path: &Path, errors: &mut ErrorList) {
    let finalizers = meta.finalizers.as_deref().unwrap_or_default();
    for finalizer in finalizers {
        for message in names::qualified_name(finalizer) {
            errors.invalid(path, finalizer, &message);
        }
    }
    for (index, finalizer) in finalizers.iter().enumerate() {
        if !finalizer.contains('/') && !STANDARD_FINALIZERS.contains(&finalizer.as_str()) {
            errors.invalid(
                &path.index(index),
                finalizer,
                "name is neither a standard finalizer name nor is it fully qualified",
            );
        }
    }
    let has = |name: &str| finalizers.iter().any(|finalizer| finalizer == name);
    if has("foregroundDeletion") && has("orphan") {
        errors.invalid(
            path,
            finalizers,
            "finalizers orphan and foregroundDeletion cannot be set at the same time",
        );
    }
}

/// Carries over what no update may change or set, before the update is checked.
pub fn prepare_update(new: &mut ObjectMeta, old: &ObjectMeta) {
    new.deletion_timestamp.clone_from(&old.deletion_timestamp);
    new.deletion_grace_period_seconds = old.deletion_grace_period_seconds;
    new.self_link = None;
    new.resource_version = None;
    new.managed_fields = None;
    if new.creation_timestamp.is_none() {
        new.creation_timestamp.clone_from(&old.creation_timestamp);
    }
    if new.uid.as_deref().unwrap_or_default().is_empty() {
        new.uid.clone_from(&old.uid);
    }
    if new.generate_name.as_deref().unwrap_or_default().is_empty() {
        new.generate_name.clone_from(&old.generate_name);
    }
}

/// The generation after an update: it counts the changes of what the object asks for.
pub(crate) fn follow_generation(new: &mut ObjectMeta, old: &ObjectMeta, changed: bool) {
    new.generation = old
        .generation
        .map(|generation| generation.saturating_add(i64::from(changed)));
}

/// Checks the metadata of an update after [`prepare_update`].
pub fn validate_update(new: &ObjectMeta, old: &ObjectMeta, errors: &mut ErrorList) {
    let path = Path::new("metadata");
    let mut immutable = |field: &str, new: Value, old: Value| {
        if new != old {
            errors.invalid(&path.child(field), new, IMMUTABLE);
        }
    };
    immutable("name", json!(new.name), json!(old.name));
    immutable("namespace", json!(new.namespace), json!(old.namespace));
    immutable("uid", json!(new.uid), json!(old.uid));
    immutable(
        "creationTimestamp",
        json!(new.creation_timestamp),
        json!(old.creation_timestamp),
    );
    validate_maps(new, &path, errors);
    validate_owners(
        new.owner_references.as_deref().unwrap_or_default(),
        &path.child("ownerReferences"),
        errors,
    );
    validate_finalizers(new, &path.child("finalizers"), errors);
    if new.deletion_timestamp.is_some() {
        let before: HashSet<&String> = old.finalizers.iter().flatten().collect();
        let added: Vec<&String> = new
            .finalizers
            .iter()
            .flatten()
            .filter(|finalizer| !before.contains(finalizer))
            .collect();
        if !added.is_empty() {
            let list: Vec<String> = added
                .iter()
                .map(|finalizer| format!("{finalizer:?}"))
                .collect();
            errors.forbidden(
                &path.child("finalizers"),
                &format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                    list.join(", ")
                ),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(meta: &ObjectMeta) -> Vec<String> {
        let mut errors = ErrorList::default();
        validate(meta, true, names::is_dns1123_subdomain, &mut errors);
        errors
            .0
            .iter()
            .map(|error| format!("{}: {}", error.path, error.message))
            .collect()
    }

    fn named() -> ObjectMeta {
        ObjectMeta {
            name: Some("a".to_owned()),
            namespace: Some("default".to_owned()),
            ..ObjectMeta::default()
        }
    }

    #[test]
    fn a_plain_object_is_fine_and_a_nameless_one_is_not() {
        assert_eq!(messages(&named()), Vec::<String>::new());
        let nameless = ObjectMeta {
            name: None,
            ..named()
        };
        assert_eq!(
            messages(&nameless),
            ["metadata.name: Required value: name or generateName is required"]
        );
    }

    #[test]
    fn two_controllers_are_one_too_many() {
        let owner = |name: &str| OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Pod".to_owned(),
            name: name.to_owned(),
            uid: name.to_owned(),
            controller: Some(true),
            block_owner_deletion: None,
        };
        let meta = ObjectMeta {
            owner_references: Some(vec![owner("x"), owner("y")]),
            ..named()
        };
        let messages = messages(&meta);
        assert_eq!(messages.len(), 1);
        assert!(
            messages[0].contains(
                r#"[{"apiVersion":"v1","kind":"Pod","name":"x","uid":"x","controller":true},"#
            ),
            "{}",
            messages[0]
        );
    }

    #[test]
    fn finalizers_need_a_domain() {
        let meta = ObjectMeta {
            finalizers: Some(vec!["orphan".to_owned(), "noslash".to_owned()]),
            ..named()
        };
        assert_eq!(
            messages(&meta),
            [
                "metadata.finalizers[1]: Invalid value: \"noslash\": name is neither a standard finalizer name nor is it fully qualified"
            ]
        );
    }

    #[test]
    fn identity_never_changes() {
        let old = ObjectMeta {
            uid: Some("1".to_owned()),
            ..named()
        };
        let mut new = ObjectMeta {
            uid: Some("2".to_owned()),
            name: Some("b".to_owned()),
            ..named()
        };
        prepare_update(&mut new, &old);
        let mut errors = ErrorList::default();
        validate_update(&new, &old, &mut errors);
        let fields: Vec<String> = errors
            .0
            .iter()
            .map(|error| error.path.to_string())
            .collect();
        assert_eq!(fields, ["metadata.name", "metadata.uid"]);
    }

    #[test]
    fn generated_prefixes_are_cut_at_a_character() {
        assert_eq!(generated_prefix("web-"), "web-");
        assert_eq!(generated_prefix(&"é".repeat(40)).len(), 58);
    }
}
