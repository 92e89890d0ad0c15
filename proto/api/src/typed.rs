//! [`Typed`]: any [`Kind`] behind the object-safe [`ResourceKind`].

use std::any::Any;
use std::marker::PhantomData;
use std::sync::OnceLock;

use k8s_openapi::Metadata as _;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::field::{ErrorList, Path};
use crate::kind::{
    Column, Draft, Kind, MetadataChecks, MetadataRules, ResourceInfo, ResourceKind, WriteScope,
};
use crate::kinds::table::Printer;
use crate::meta::{self, NameRule};
use crate::names;
use crate::schema::TypeSchema;
use crate::status::StatusError;

/// A kind's typed logic over JSON values.
pub struct Typed<K: Kind> {
    kind: PhantomData<fn() -> K>,
    info: ResourceInfo,
    /// The documentation of columns comes out of whole schemas, which are not made again for every table.
    printer: OnceLock<Printer<K::Object>>,
}

impl<K: Kind> Default for Typed<K> {
    fn default() -> Self {
        Self {
            kind: PhantomData,
            info: K::INFO.into(),
            printer: OnceLock::new(),
        }
    }
}

impl<K: Kind> Typed<K> {
    /// Boxed for [`crate::kinds::all`].
    pub fn boxed() -> Box<dyn ResourceKind> {
        // What is served as a status is a part of the object.
        const { assert!(K::INFO.has_status == K::PARTS.status.is_some()) };
        Box::new(Self::default())
    }

    fn printer(&self) -> &Printer<K::Object> {
        self.printer.get_or_init(K::printer)
    }

    fn parse(mut object: Value) -> Result<K::Object, StatusError> {
        for path in K::SELECTORS {
            if let Some(Value::Object(selector)) = object.pointer_mut(path)
                && selector.is_empty()
            {
                selector.insert("matchLabels".to_owned(), Value::Object(Map::new()));
            }
        }
        serde_json::from_value(object).map_err(|error| {
            StatusError::bad_request(format!(
                "{} in version \"{}\" cannot be handled as a {}: {error}",
                K::INFO.kind,
                K::INFO.version,
                K::INFO.kind
            ))
        })
    }

    /// The object as Go would write it.
    fn write(object: &K::Object) -> Result<Value, StatusError> {
        let mut value = serde_json::to_value(object).map_err(|error| {
            StatusError::internal(format!("encoding a {}: {error}", K::INFO.kind))
        })?;
        TypeSchema::of::<K::Object>().complete(&mut value);
        Ok(value)
    }

    /// The stored form of an object, decoded: the store holds only what was written here.
    fn stored(object: &Value) -> Result<K::Object, StatusError> {
        K::Object::deserialize(object).map_err(|error| {
            StatusError::internal(format!("decoding a stored {}: {error}", K::INFO.kind))
        })
    }

    fn fields(object: &K::Object) -> Vec<(String, String)> {
        let meta = object.metadata();
        let mut fields = vec![(
            "metadata.name".to_owned(),
            meta.name.clone().unwrap_or_default(),
        )];
        if K::INFO.namespaced {
            fields.push((
                "metadata.namespace".to_owned(),
                meta.namespace.clone().unwrap_or_default(),
            ));
        }
        let own = K::selectable_fields(object).into_iter();
        fields.extend(own.map(|(name, value)| (name.to_owned(), value)));
        fields
    }
}

/// Drops of a new object what a client may not set.
pub(crate) fn prepare_create<K: Kind>(object: &mut K::Object) {
    if let Some(status) = K::PARTS.status.filter(|_| !K::CREATED_WITH_STATUS) {
        (status.clear)(object);
    }
    K::prepare_create(object);
}

/// Restores what an update may not touch, and counts the generation.
pub(crate) fn prepare_update<K: Kind>(new: &mut K::Object, old: &K::Object) {
    if let Some(status) = K::PARTS.status {
        (status.keep)(new, old);
    }
    K::prepare_update(new, old);
    count_generation::<K>(new, old);
}

fn count_generation<K: Kind>(new: &mut K::Object, old: &K::Object) {
    let changed = K::INFO.has_generation && K::changed(new, old);
    meta::follow_generation(new.metadata_mut(), old.metadata(), changed);
}

/// Restores everything but what a subresource writes.
fn prepare_part<K: Kind>(name: &str, new: &mut K::Object, old: &K::Object) {
    K::prepare_part(name, new, old);
    new.metadata_mut().resource_version = None;
    count_generation::<K>(new, old);
}

/// Restores everything but the status. It is written with labels and annotations, and nothing else of the metadata.
fn prepare_status_update<K: Kind>(new: &mut K::Object, old: &K::Object) {
    if let Some(spec) = K::PARTS.spec {
        (spec.keep)(new, old);
    }
    K::prepare_status_update(new, old);
    let meta = new.metadata_mut();
    let (labels, annotations) = (meta.labels.take(), meta.annotations.take());
    *meta = ObjectMeta {
        resource_version: None,
        labels,
        annotations,
        ..old.metadata().clone()
    };
}

/// An object of a kind that is being written, and of a change what is stored.
struct TypedDraft<K: Kind> {
    new: K::Object,
    old: Option<(K::Object, WriteScope)>,
}

impl<K: Kind> TypedDraft<K> {
    /// Everything that is wrong with it.
    fn errors(&self) -> ErrorList {
        let (new, mut errors) = (&self.new, ErrorList::default());
        match &self.old {
            None if K::METADATA == MetadataRules::Late => {
                K::validate(new, &mut errors);
                if errors.is_empty() {
                    self.whole_metadata(K::NAME_RULE, &mut errors);
                }
            }
            None => {
                self.own_metadata(&mut errors);
                K::validate(new, &mut errors);
            }
            Some((old, scope @ (WriteScope::Main | WriteScope::Part(_)))) => {
                meta::validate_update(new.metadata(), old.metadata(), &mut errors);
                meta::validate_finalizers(new.metadata(), &mut errors);
                self.finalizer_names(&mut errors);
                Self::own_rules(new, old, *scope, &mut errors);
            }
            Some((old, WriteScope::Status)) => {
                let (now, before) = (new.metadata(), old.metadata());
                if (&now.labels, &now.annotations) != (&before.labels, &before.annotations) {
                    meta::validate_maps(now, &Path::new("metadata"), &mut errors);
                }
                K::validate_status_update(new, old, &mut errors);
            }
        }
        errors
    }

    /// What the kind checks of a change, beside the metadata.
    fn own_rules(new: &K::Object, old: &K::Object, scope: WriteScope, errors: &mut ErrorList) {
        match scope {
            WriteScope::Main => K::validate_update(new, old, errors),
            WriteScope::Status => K::validate_status_update(new, old, errors),
            WriteScope::Part(name) => K::validate_part(name, new, old, errors),
        }
    }

    /// What any API server checks of an object's metadata.
    fn whole_metadata(&self, rule: NameRule, errors: &mut ErrorList) {
        meta::validate(self.new.metadata(), K::INFO.namespaced, rule, errors);
    }

    /// What the kind itself does.
    fn own_metadata(&self, errors: &mut ErrorList) {
        self.whole_metadata(K::NAME_RULE, errors);
        self.finalizer_names(errors);
    }

    fn finalizer_names(&self, errors: &mut ErrorList) {
        if K::METADATA == MetadataRules::Core {
            meta::validate_finalizer_names(self.new.metadata(), errors);
        }
    }

    /// The errors of an update, each as often as Kubernetes tells it: the checks of every kind come first, and a kind's own
    /// look at the metadata again.
    fn repeated(&self, errors: ErrorList) -> ErrorList {
        let (new, Some((old, scope))) = (&self.new, &self.old) else {
            return errors;
        };
        let (now, before) = (new.metadata(), old.metadata());
        let mut told = ErrorList::default();
        self.whole_metadata(names::path_segment, &mut told);
        meta::validate_update(now, before, &mut told);
        let own = match scope {
            WriteScope::Main | WriteScope::Part(_) => K::UPDATE_METADATA,
            WriteScope::Status => MetadataChecks::Update,
        };
        if matches!(own, MetadataChecks::Update | MetadataChecks::Both) {
            meta::validate_update(now, before, &mut told);
            self.finalizer_names(&mut told);
        }
        if matches!(own, MetadataChecks::Whole | MetadataChecks::Both) {
            self.own_metadata(&mut told);
        }
        Self::own_rules(new, old, *scope, &mut told);
        told
    }
}

impl<K: Kind> Draft for TypedDraft<K> {
    fn object(&self) -> &dyn Any {
        &self.new
    }

    fn object_mut(&mut self) -> &mut dyn Any {
        &mut self.new
    }

    fn old(&self) -> Option<&dyn Any> {
        self.old.as_ref().map(|(old, _)| old as &dyn Any)
    }

    fn metadata(&self) -> &ObjectMeta {
        self.new.metadata()
    }

    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        self.new.metadata_mut()
    }

    fn old_metadata(&self) -> Option<&ObjectMeta> {
        self.old.as_ref().map(|(old, _)| old.metadata())
    }

    fn default(&mut self) {
        K::default(&mut self.new);
    }

    fn prepare(&mut self) {
        match &self.old {
            None => prepare_create::<K>(&mut self.new),
            Some((old, WriteScope::Main)) => prepare_update::<K>(&mut self.new, old),
            Some((old, WriteScope::Status)) => prepare_status_update::<K>(&mut self.new, old),
            Some((old, WriteScope::Part(name))) => prepare_part::<K>(name, &mut self.new, old),
        }
    }

    fn validate(&self) -> Result<Vec<String>, StatusError> {
        let errors = self.errors();
        if !errors.is_empty() {
            let name = self.metadata().name.as_deref().unwrap_or_default();
            // Objects that are kept with those of another group are of that.
            let group = K::TABLE.map_or(K::INFO.group, |(group, _)| group);
            let kind = K::INFO.kind;
            let errors = self.repeated(errors);
            return Err(StatusError::invalid_kind(group, kind, name, errors));
        }
        let old = self.old.as_ref().map(|(old, _)| old);
        Ok(K::warnings(&self.new, old))
    }

    fn value(&self) -> Result<Value, StatusError> {
        Typed::<K>::write(&self.new)
    }

    fn selectable_fields(&self) -> Vec<(String, String)> {
        Typed::<K>::fields(&self.new)
    }
}

impl<K: Kind> ResourceKind for Typed<K> {
    fn info(&self) -> &ResourceInfo {
        &self.info
    }

    fn schema(&self) -> &'static TypeSchema {
        TypeSchema::of::<K::Object>()
    }

    fn draft(&self, object: Value) -> Result<Box<dyn Draft>, StatusError> {
        let mut new = Self::parse(object)?;
        let meta = new.metadata_mut();
        meta.resource_version = None;
        meta.deletion_timestamp = None;
        meta.deletion_grace_period_seconds = None;
        meta.self_link = None;
        meta.managed_fields = None;
        Ok(Box::new(TypedDraft::<K> { new, old: None }))
    }

    fn draft_update(
        &self,
        new: Value,
        old: &Value,
        scope: WriteScope,
    ) -> Result<Box<dyn Draft>, StatusError> {
        let mut new = Self::parse(new)?;
        let old = Self::stored(old)?;
        meta::prepare_update(new.metadata_mut(), old.metadata());
        let old = Some((old, scope));
        Ok(Box::new(TypedDraft::<K> { new, old }))
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(String, String)> {
        let fields = Self::stored(object).map(|object| Self::fields(&object));
        fields.unwrap_or_default()
    }

    fn knows_field_label(&self, label: &str) -> bool {
        label == "metadata.name"
            || (label == "metadata.namespace" && K::INFO.namespaced)
            || K::FIELD_LABELS.contains(&label)
    }

    fn openapi(&self) -> (String, serde_json::Map<String, Value>) {
        crate::schema::published::definitions::<K::Object>()
    }

    fn deprecation(&self) -> Option<&'static str> {
        K::DEPRECATION
    }

    fn allows_unconditional_update(&self) -> bool {
        K::UNCONDITIONAL_UPDATE
    }

    fn has_field_labels(&self) -> bool {
        !K::FIELD_LABELS.is_empty()
    }

    fn table(&self) -> (&str, &str) {
        K::TABLE.unwrap_or((K::INFO.group, K::INFO.plural))
    }

    fn convert_to_hub(&self, object: Value) -> Result<Value, StatusError> {
        K::convert_to_hub(object)
    }

    fn convert_from_hub(&self, object: Value) -> Result<Value, StatusError> {
        K::convert_from_hub(object)
    }

    fn hub_field_label<'a>(&self, label: &'a str) -> &'a str {
        K::hub_field_label(label)
    }

    fn columns(&self) -> &[Column] {
        self.printer().header()
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        match Self::stored(object) {
            Ok(object) => self.printer().row(&object, now),
            Err(_) => Vec::new(),
        }
    }

    fn completed(&self, object: &Value) -> Option<(&'static str, &'static str)> {
        K::completed(object)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::node::NodeKind;

    fn status_write(old: Value, new: Value) -> Result<Value, StatusError> {
        let draft = Typed::<NodeKind>::default().draft_update(new, &old, WriteScope::Status)?;
        crate::kind::finish(draft).map(|(object, _)| object)
    }

    fn node(metadata: Value) -> Value {
        let mut node = json!({"metadata": {"name": "n"}});
        if let (Some(own), Value::Object(more)) = (node["metadata"].as_object_mut(), metadata) {
            own.extend(more);
        }
        node
    }

    #[test]
    fn a_status_brings_no_labels_that_the_object_may_not_have() {
        let plain = || node(json!({}));
        for bad in [
            json!({"labels": {"a b": "c"}}),
            json!({"labels": {"a": "b c"}}),
            json!({"annotations": {"a b": "c"}}),
            json!({"annotations": {"a": "x".repeat(300_000)}}),
        ] {
            let error = status_write(plain(), node(bad.clone())).expect_err("refused");
            assert_eq!(error.code(), 422, "{error:?}");
            // What is there already holds up no status.
            assert!(status_write(node(bad.clone()), node(bad)).is_ok());
        }
        let good = node(json!({"labels": {"a": "b"}, "annotations": {"c": "d e"}}));
        let written = status_write(plain(), good).expect("written");
        assert_eq!(written["metadata"]["labels"], json!({"a": "b"}));
    }

    /// What is stored of a deployment: of a generation, how many replicas it asks for, and how many there are.
    fn deployment(generation: i64, replicas: i64, seen: i64) -> Value {
        let container = json!({"name": "c", "image": "i"});
        let labels = json!({"a": "b"});
        let template = json!({"metadata": {"labels": labels}, "spec": {"containers": [container]}});
        json!({
            "metadata": {"name": "d", "namespace": "n", "generation": generation},
            "spec": {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template},
            "status": {"replicas": seen},
        })
    }

    #[test]
    fn what_a_write_may_change_follows_from_the_parts_of_the_object() {
        let kind = Typed::<crate::kinds::deployment::DeploymentKind>::default();
        let numbers = |draft: Result<Box<dyn Draft>, StatusError>| {
            let (object, _) = crate::kind::finish(draft.expect("a draft")).expect("valid");
            let paths = ["/metadata/generation", "/spec/replicas", "/status/replicas"];
            paths.map(|path| object.pointer(path).and_then(Value::as_i64))
        };
        let created = numbers(kind.draft(deployment(1, 1, 9)));
        assert_eq!(created, [Some(1), Some(1), None]);
        let stored = deployment(4, 1, 1);
        let write = |replicas, seen, scope| {
            numbers(kind.draft_update(deployment(7, replicas, seen), &stored, scope))
        };
        // What is stored here has no defaults, which are a change.
        assert_eq!(write(2, 2, WriteScope::Main), [Some(5), Some(2), Some(1)]);
        assert_eq!(write(2, 2, WriteScope::Status), [Some(4), Some(1), Some(2)]);
    }

    #[test]
    fn a_node_that_joins_says_what_it_is() {
        let node = json!({"metadata": {"name": "n"}, "status": {"phase": "Running"}});
        let draft = Typed::<NodeKind>::default().draft(node).expect("a draft");
        let (node, _) = crate::kind::finish(draft).expect("valid");
        assert_eq!(node["status"]["phase"], "Running");
    }

    #[test]
    fn columns_are_made_once() {
        let kind = Typed::<NodeKind>::default();
        assert!(std::ptr::eq(kind.columns(), kind.columns()));
        assert_eq!(kind.columns(), NodeKind::printer().header());
    }
}
