//! What every object's `metadata` must satisfy at creation and on update.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::json::Members;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::{Value, json};

use crate::field::{ErrorList, Path};
use crate::names;

/// A rule for names: what is wrong with one, everything and in order.
pub type NameRule = fn(&str) -> Vec<String>;

/// Bytes of all annotations, keys and values.
const ANNOTATIONS_LIMIT: usize = 256 * 1024;
/// The longest prefix of a generated name; five random characters follow.
const GENERATED_PREFIX_LIMIT: usize = 58;
/// What is said of a change of what must stay as it is.
pub const IMMUTABLE: &str = "field is immutable";
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

/// A prefix as it is checked: the rest of the name follows, so that a trailing dash is no fault of it. As in Kubernetes, the
/// dash takes the character before it along.
fn masked(prefix: &str) -> String {
    match prefix.strip_suffix('-') {
        Some(start) if start.ends_with(|last: char| last.is_ascii()) => {
            format!("{}a", &start[..start.len() - 1])
        }
        Some(start) if !start.is_empty() => format!("{start}a"),
        _ => prefix.to_owned(),
    }
}

/// Checks the metadata of a new object whose name has been set or generated. Finalizers may have any qualified name; most
/// kinds ask for more, see [`validate_finalizer_names`].
pub fn validate(meta: &ObjectMeta, namespaced: bool, rule: NameRule, errors: &mut ErrorList) {
    let path = Path::new("metadata");
    let prefix = meta.generate_name.as_deref().unwrap_or_default();
    if !prefix.is_empty() {
        let path = path.child("generateName");
        errors.invalid_each(&path, prefix, rule(&masked(prefix)));
    }
    match meta.name.as_deref().unwrap_or_default() {
        "" => errors.required(&path.child("name"), "name or generateName is required"),
        name => errors.invalid_each(&path.child("name"), name, rule(name)),
    }
    match (namespaced, meta.namespace.as_deref().unwrap_or_default()) {
        (true, "") => errors.required(&path.child("namespace"), ""),
        (true, namespace) => {
            let details = names::dns1123_label(namespace);
            errors.invalid_each(&path.child("namespace"), namespace, details);
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
    validate_finalizers(meta, errors);
}

/// Checks labels and annotations.
pub fn validate_maps(meta: &ObjectMeta, path: &Path, errors: &mut ErrorList) {
    validate_labels(meta, path, errors);
    validate_annotations(meta, path, errors);
}

/// Checks labels.
pub fn validate_labels(meta: &ObjectMeta, path: &Path, errors: &mut ErrorList) {
    validate_label_map(meta.labels.as_ref(), &path.child("labels"), errors);
}

/// Checks a map of labels, wherever it is.
pub fn validate_label_map(
    labels: Option<&BTreeMap<String, String>>,
    path: &Path,
    errors: &mut ErrorList,
) {
    for (key, value) in labels.into_iter().flatten() {
        errors.invalid_each(path, key, names::qualified_name(key));
        errors.invalid_each(path, value, names::label_value(value));
    }
}

/// Checks annotations.
pub fn validate_annotations(meta: &ObjectMeta, path: &Path, errors: &mut ErrorList) {
    let annotations = path.child("annotations");
    let mut size = 0;
    for (key, value) in meta.annotations.iter().flatten() {
        let details = names::qualified_name(&key.to_lowercase());
        errors.invalid_each(&annotations, key, details);
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

/// Group and version of an `apiVersion`; both empty where it has more parts than two.
fn group_version(api_version: &str) -> (&str, &str) {
    match api_version.split_once('/') {
        None => ("", api_version),
        Some((_, rest)) if rest.contains('/') => ("", ""),
        Some(parts) => parts,
    }
}

fn validate_owner(owner: &OwnerReference, path: &Path, errors: &mut ErrorList) {
    let (group, version) = group_version(&owner.api_version);
    if version.is_empty() {
        let detail = "version must not be empty";
        errors.invalid(&path.child("apiVersion"), &owner.api_version, detail);
    }
    for (field, value) in [
        ("kind", &owner.kind),
        ("name", &owner.name),
        ("uid", &owner.uid),
    ] {
        if value.is_empty() {
            errors.invalid(&path.child(field), value, "must not be empty");
        }
    }
    if (group, version, owner.kind.as_str()) == ("", "v1", "Event") {
        let detail = "/v1, Kind=Event is disallowed from being an owner";
        errors.invalid(path, OwnerText(owner), detail);
    }
}

fn validate_owners(owners: &[OwnerReference], path: &Path, errors: &mut ErrorList) {
    let mut controller: Option<&OwnerReference> = None;
    for owner in owners {
        if errors.is_full() {
            return;
        }
        validate_owner(owner, path, errors);
        if owner.controller != Some(true) {
            continue;
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

/// Checks that finalizers have qualified names and do not contradict each other.
pub fn validate_finalizers(meta: &ObjectMeta, errors: &mut ErrorList) {
    let path = Path::new("metadata").child("finalizers");
    let finalizers = meta.finalizers.as_deref().unwrap_or_default();
    for finalizer in finalizers {
        errors.invalid_each(&path, finalizer, names::qualified_name(finalizer));
    }
    let has = |name: &str| finalizers.iter().any(|finalizer| finalizer == name);
    if has("foregroundDeletion") && has("orphan") {
        let detail = "finalizer orphan and foregroundDeletion cannot be both set";
        errors.invalid(&path, finalizers, detail);
    }
}

/// Checks that finalizers without a domain are those that Kubernetes knows.
pub fn validate_finalizer_names(meta: &ObjectMeta, errors: &mut ErrorList) {
    let path = Path::new("metadata").child("finalizers");
    for (index, finalizer) in meta.finalizers.iter().flatten().enumerate() {
        validate_finalizer_name(finalizer, &path.index(index), errors);
    }
}

/// As [`validate_finalizer_names`], of one, wherever it is.
pub fn validate_finalizer_name(finalizer: &str, path: &Path, errors: &mut ErrorList) {
    if !finalizer.contains('/') && !STANDARD_FINALIZERS.contains(&finalizer) {
        let detail = "name is neither a standard finalizer name nor is it fully qualified";
        errors.invalid(path, finalizer, detail);
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

/// The generation after an update: it counts the changes of what the object asks for, from none where it has none yet.
pub fn follow_generation(new: &mut ObjectMeta, old: &ObjectMeta, changed: bool) {
    let before = old.generation.unwrap_or(0);
    let now = before.saturating_add(i64::from(changed));
    new.generation = old.generation.or(changed.then_some(0)).map(|_| now);
}

/// Checks the metadata of an update after [`prepare_update`]. Of finalizers only that none is added to what is on its way out.
pub fn validate_update(new: &ObjectMeta, old: &ObjectMeta, errors: &mut ErrorList) {
    let path = Path::new("metadata");
    if old.deletion_timestamp.is_some() {
        let before: HashSet<&String> = old.finalizers.iter().flatten().collect();
        let now = new.finalizers.iter().flatten();
        let added: BTreeSet<&String> = now.filter(|name| !before.contains(name)).collect();
        if !added.is_empty() {
            let list: Vec<String> = added.iter().map(|name| format!("{name:?}")).collect();
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                list.join(", ")
            );
            errors.forbidden(&path.child("finalizers"), &detail);
        }
    }
    let text = |text: &Option<String>| json!(text.as_deref().unwrap_or_default());
    for (field, new, old) in [
        ("name", text(&new.name), text(&old.name)),
        ("namespace", text(&new.namespace), text(&old.namespace)),
        ("uid", text(&new.uid), text(&old.uid)),
        (
            "creationTimestamp",
            json!(new.creation_timestamp),
            json!(old.creation_timestamp),
        ),
    ] {
        if new != old {
            errors.invalid(&path.child(field), new, IMMUTABLE);
        }
    }
    validate_maps(new, &path, errors);
    validate_owners(
        new.owner_references.as_deref().unwrap_or_default(),
        &path.child("ownerReferences"),
        errors,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(meta: &ObjectMeta) -> Vec<String> {
        let mut errors = ErrorList::default();
        validate(meta, true, names::dns1123_subdomain, &mut errors);
        validate_finalizer_names(meta, &mut errors);
        errors.told()
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
    fn finalizers_contradict_each_other_before_their_names_are_looked_at() {
        let meta = ObjectMeta {
            finalizers: Some(
                ["foregroundDeletion", "x", "orphan"]
                    .map(str::to_owned)
                    .to_vec(),
            ),
            ..named()
        };
        let told = messages(&meta);
        assert!(told[0].ends_with(
            "[\"foregroundDeletion\",\"x\",\"orphan\"]: finalizer orphan and foregroundDeletion cannot be both set"
        ));
        assert!(told[1].starts_with("metadata.finalizers[1]: "));
    }

    #[test]
    fn owners_are_of_one_version_and_no_events() {
        let told = |api_version: &str| {
            let owner = OwnerReference {
                api_version: api_version.to_owned(),
                kind: "Event".to_owned(),
                name: "e".to_owned(),
                uid: "u".to_owned(),
                controller: None,
                block_owner_deletion: None,
            };
            messages(&ObjectMeta {
                owner_references: Some(vec![owner]),
                ..named()
            })
        };
        assert_eq!(told("events.k8s.io/v1"), Vec::<String>::new());
        assert_eq!(told("v2"), Vec::<String>::new());
        assert!(told("v1")[0].ends_with(": /v1, Kind=Event is disallowed from being an owner"));
        assert!(told("a/b/c")[0].ends_with("version must not be empty"));
    }

    #[test]
    fn a_trailing_dash_of_a_prefix_is_no_fault() {
        for (prefix, shown) in [
            ("web-", "wea"),
            ("A-", "a"),
            ("-", "-"),
            ("ä-", "äa"),
            ("w", "w"),
        ] {
            assert_eq!(masked(prefix), shown);
        }
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
