//! The one trait every kind implements, and the object-safe form the API server's registry works with.
//!
//! Adding a kind is adding one module under `kinds/` that implements [`Kind`] and one line in [`crate::kinds::all`].
//! A custom resource implements [`ResourceKind`] directly, driven by its schema.

use std::any::Any;

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::field::ErrorList;
use crate::kinds::table::Printer;
use crate::status::StatusError;

pub use gantry_base::resource::{ResourceInfo, StaticInfo};

/// A field of an object that is written by itself.
pub struct Part<T> {
    /// Gives the first object the part of the second.
    pub keep: fn(&mut T, &T),
    /// Empties it.
    pub clear: fn(&mut T),
    /// Whether both objects have the same.
    pub same: fn(&T, &T) -> bool,
}

impl<T> Clone for Part<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Part<T> {}

/// Which of the parts that most kinds have an object has; see [`Kind::PARTS`].
pub struct Parts<T> {
    /// What is asked for.
    pub spec: Option<Part<T>>,
    /// What is the case, as controllers and nodes tell it.
    pub status: Option<Part<T>>,
}

impl<T> Parts<T> {
    /// The object is all of one piece.
    pub const NONE: Self = Self {
        spec: None,
        status: None,
    };
}

/// The [`Parts`] of a type, by the names of its fields: `parts!(Node: spec, status)`, `parts!(IngressClass: spec)`.
#[macro_export]
macro_rules! parts {
    ($object:ty: $spec:ident) => {
        $crate::kind::Parts {
            spec: Some($crate::parts!(@part $object, $spec)),
            status: None,
        }
    };
    ($object:ty: $spec:ident, $status:ident) => {
        $crate::kind::Parts {
            spec: Some($crate::parts!(@part $object, $spec)),
            status: Some($crate::parts!(@part $object, $status)),
        }
    };
    (@part $object:ty, $field:ident) => {
        $crate::kind::Part {
            keep: |new: &mut $object, old: &$object| new.$field.clone_from(&old.$field),
            clear: |object: &mut $object| object.$field = Default::default(),
            same: |new: &$object, old: &$object| new.$field == old.$field,
        }
    };
}

/// What part of an object a write may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteScope {
    /// The object itself; `status` stays as it was.
    Main,
    /// The `status` subresource; everything else stays as it was.
    Status,
    /// What another subresource, of this name, is about; see [`Kind::prepare_part`].
    Part(&'static str),
}

/// Whose rules a kind's own checks of the metadata are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetadataRules {
    /// Those of Kubernetes' core: finalizers without a domain are known ones.
    Core,
    /// Those of any API server: finalizers have any qualified name.
    Generic,
    /// The kind has none: what is wrong for any API server is told when nothing else is wrong.
    Late,
}

/// What the update rules of a kind check of its metadata, beside what those of every kind do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetadataChecks {
    /// Nothing.
    None,
    /// That nothing is changed which must not be, and the parts that may.
    Update,
    /// The metadata as a whole, as of a new object.
    Whole,
    /// One after the other.
    Both,
}

/// One column of a Table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Header.
    pub name: Cow<'static, str>,
    /// `string`, `integer`, `date`, ...
    pub kind: Cow<'static, str>,
    /// `name` for the object's name, else empty.
    pub format: Cow<'static, str>,
    /// Shown by clients as help.
    pub description: String,
    /// 0 is always shown, 1 with `-o wide`.
    pub priority: i32,
}

/// A built-in kind over its typed object. Every function is pure.
pub trait Kind: Send + Sync + 'static {
    /// The typed object.
    type Object: Serialize
        + DeserializeOwned
        + JsonSchema
        + Clone
        + k8s_openapi::Metadata<Ty = ObjectMeta>
        + Send
        + Sync
        + 'static;

    /// Names and scope.
    const INFO: StaticInfo;

    /// What names may look like; a DNS subdomain for most kinds.
    const NAME_RULE: crate::meta::NameRule = crate::names::dns1123_subdomain;

    /// Fills what the user left out, as Kubernetes does on decode.
    fn default(_object: &mut Self::Object) {}

    /// Which of the usual parts its objects have. What follows from them: a status is dropped at creation and left as it was by
    /// an update, everything else is left as it was by a status update, and a changed spec is a new generation.
    const PARTS: Parts<Self::Object> = Parts::NONE;

    /// Whether a new object keeps the status that it brings.
    const CREATED_WITH_STATUS: bool = false;

    /// What is special at creation: what a client may not set, when the status has been dropped. Runs after [`Kind::default`].
    fn prepare_create(_object: &mut Self::Object) {}

    /// Checks a new object. `metadata` has been checked already, by [`crate::meta::validate`].
    fn validate(_object: &Self::Object, _errors: &mut ErrorList) {}

    /// What is special in an update: what it may not touch beside the status, which has been restored.
    fn prepare_update(_new: &mut Self::Object, _old: &Self::Object) {}

    /// Whether an update is a new generation, for kinds that count them.
    fn changed(new: &Self::Object, old: &Self::Object) -> bool {
        let spec = Self::PARTS.spec;
        spec.is_some_and(|spec| !(spec.same)(new, old))
    }

    /// Checks an update; by default that the new object is valid by itself.
    fn validate_update(new: &Self::Object, _old: &Self::Object, errors: &mut ErrorList) {
        Self::validate(new, errors);
    }

    /// What is special in a status update: what it may not touch beside the spec, which has been restored. Of the metadata
    /// nothing but labels and annotations is written.
    fn prepare_status_update(_new: &mut Self::Object, _old: &Self::Object) {}

    /// How often an update's own checks look at the metadata, which shows in how often an error is told.
    const UPDATE_METADATA: MetadataChecks = MetadataChecks::Both;

    /// Whose rules for metadata a new object keeps.
    const METADATA: MetadataRules = MetadataRules::Core;

    /// Paths (JSON pointers) of selectors of which an empty one is told from none: the type here has the same for both. One
    /// that is empty has empty `matchLabels`.
    const SELECTORS: &'static [&'static str] = &[];

    /// Checks a status update.
    fn validate_status_update(_new: &Self::Object, _old: &Self::Object, _errors: &mut ErrorList) {}

    /// Restores what the subresource of that name may not write; by default everything.
    fn prepare_part(_name: &str, new: &mut Self::Object, old: &Self::Object) {
        new.clone_from(old);
    }

    /// Checks what the subresource of that name writes.
    fn validate_part(_name: &str, new: &Self::Object, old: &Self::Object, errors: &mut ErrorList) {
        Self::validate_update(new, old, errors);
    }

    /// Warnings for a valid object, as the `Warning` header carries them.
    fn warnings(_new: &Self::Object, _old: Option<&Self::Object>) -> Vec<String> {
        Vec::new()
    }

    /// Selectable fields beside `metadata.name` and `metadata.namespace`.
    fn selectable_fields(_object: &Self::Object) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// Names of the selectable fields beside `metadata.name` and `metadata.namespace`.
    const FIELD_LABELS: &'static [&'static str] = &[];

    /// What every answer about the resource warns of, when it is on its way out.
    const DEPRECATION: Option<&'static str> = None;

    /// Whether an update need not say which revision of the object it is made from.
    const UNCONDITIONAL_UPDATE: bool = true;

    /// Group and plural resource of the table that holds its objects, where those are another kind's as well: see
    /// [`ResourceKind::table`].
    const TABLE: Option<(&'static str, &'static str)> = None;

    /// See [`ResourceKind::convert_to_hub`].
    fn convert_to_hub(object: Value) -> Result<Value, StatusError> {
        Ok(object)
    }

    /// See [`ResourceKind::convert_from_hub`].
    fn convert_from_hub(object: Value) -> Result<Value, StatusError> {
        Ok(object)
    }

    /// See [`ResourceKind::hub_field_label`].
    fn hub_field_label(label: &str) -> &str {
        label
    }

    /// What tables show of it; `Name` and `Age` when not overridden.
    fn printer() -> Printer<Self::Object> {
        Printer::<Self::Object>::named().age()
    }

    /// See [`ResourceKind::completed`].
    fn completed(_object: &Value) -> Option<(&'static str, &'static str)> {
        None
    }
}

/// An object on its way into the store, in the type of its kind; of a change also what is stored.
///
/// The stages of a write, in their order: [`Draft::default`], mutating admission, [`Draft::default`] again,
/// [`Draft::prepare`], [`Draft::validate`], validating admission, [`Draft::value`].
pub trait Draft: Send + Sync {
    /// The object, to be looked at as its kind's type.
    fn object(&self) -> &dyn Any;

    /// As [`Draft::object`], to be changed.
    fn object_mut(&mut self) -> &mut dyn Any;

    /// What is stored, as its kind's type; `None` of a new object.
    fn old(&self) -> Option<&dyn Any>;

    /// The object's metadata.
    fn metadata(&self) -> &ObjectMeta;

    /// As [`Draft::metadata`], to be changed.
    fn metadata_mut(&mut self) -> &mut ObjectMeta;

    /// The metadata of what is stored.
    fn old_metadata(&self) -> Option<&ObjectMeta>;

    /// Fills what the user and admission left out.
    fn default(&mut self);

    /// Drops what a client may not set, and restores what it may not change.
    fn prepare(&mut self);

    /// Checks the object, and returns the warnings about one that is valid.
    fn validate(&self) -> Result<Vec<String>, StatusError>;

    /// The object as it will be stored and answered, without `metadata.resourceVersion`.
    fn value(&self) -> Result<Value, StatusError>;

    /// As [`ResourceKind::selectable_fields`].
    fn selectable_fields(&self) -> Vec<(String, String)>;
}

impl dyn Draft + '_ {
    /// The object, if it is of the type.
    pub fn typed<T: 'static>(&self) -> Option<&T> {
        self.object().downcast_ref()
    }

    /// As [`Self::typed`], to be changed.
    pub fn typed_mut<T: 'static>(&mut self) -> Option<&mut T> {
        self.object_mut().downcast_mut()
    }

    /// What is stored, if it is of the type.
    pub fn typed_old<T: 'static>(&self) -> Option<&T> {
        self.old()?.downcast_ref()
    }
}

/// The object-safe form of [`Kind`]: what the registry and the verbs know of a kind.
///
/// Objects cross this seam as JSON values in the kind's own version. Implemented for every [`Kind`] by
/// [`crate::typed::Typed`].
pub trait ResourceKind: Send + Sync + 'static {
    /// Names and scope.
    fn info(&self) -> &ResourceInfo;

    /// The type's schema for strict decoding, strategic merge and OpenAPI.
    fn schema(&self) -> &'static crate::schema::TypeSchema;

    /// A new object that has been decoded by [`crate::decode`]; the caller has set `metadata.uid` and `creationTimestamp`.
    fn draft(&self, object: Value) -> Result<Box<dyn Draft>, StatusError>;

    /// A change of a stored object.
    fn draft_update(
        &self,
        new: Value,
        old: &Value,
        scope: WriteScope,
    ) -> Result<Box<dyn Draft>, StatusError>;

    /// All selectable fields of a stored object, `metadata.name` and `metadata.namespace` included.
    fn selectable_fields(&self, object: &Value) -> Vec<(String, String)>;

    /// Whether a field selector may use this field label.
    fn knows_field_label(&self, label: &str) -> bool;

    /// The name of the type's schema in OpenAPI, and that schema with all it refers to, as
    /// [`crate::schema::published`] has them.
    fn openapi(&self) -> (String, serde_json::Map<String, Value>);

    /// What every answer about the resource warns of, when it is on its way out.
    fn deprecation(&self) -> Option<&'static str>;

    /// Whether the kind has selectable fields of its own.
    fn has_field_labels(&self) -> bool;

    /// See [`Kind::UNCONDITIONAL_UPDATE`].
    fn allows_unconditional_update(&self) -> bool {
        true
    }

    /// Group and plural resource that name the table of its objects: its own, or those of another kind whose objects these
    /// are in another version. The first kind of a table that is registered is its *hub*: every other one converts to it and
    /// from it.
    fn table(&self) -> (&str, &str);

    /// Whether new objects of its table are stored in this version, where no kind before it says so.
    fn is_storage_version(&self) -> bool {
        true
    }

    /// An object of this kind as one of its table's hub, `apiVersion` and `kind` included. Nothing is lost: what the hub has
    /// no field for is kept where [`Self::convert_from_hub`] finds it again.
    fn convert_to_hub(&self, object: Value) -> Result<Value, StatusError>;

    /// An object of the table's hub as one of this kind, `apiVersion` and `kind` included.
    fn convert_from_hub(&self, object: Value) -> Result<Value, StatusError>;

    /// What the table's hub calls one of this kind's field labels.
    fn hub_field_label<'a>(&self, label: &'a str) -> &'a str;

    /// The Table's columns.
    fn columns(&self) -> &[Column];

    /// One row, a cell per column. `now` is nanoseconds since the epoch.
    fn row(&self, object: &Value, now: i64) -> Vec<Value>;

    /// What the row of an object that is through says beside its cells: the reason and the message of its condition
    /// `Completed`.
    fn completed(&self, _object: &Value) -> Option<(&'static str, &'static str)> {
        None
    }
}

/// Takes a draft through all stages but admission, as the system's own writers do; the object as it will be stored, and the
/// warnings about it.
pub fn finish(mut draft: Box<dyn Draft>) -> Result<(Value, Vec<String>), StatusError> {
    draft.default();
    draft.prepare();
    let warnings = draft.validate()?;
    Ok((draft.value()?, warnings))
}
