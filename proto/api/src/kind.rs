//! The one trait every kind implements, and the object-safe form the API server's registry works with.
//!
//! Adding a kind is adding one module under `kinds/` that implements [`Kind`] and one line in [`crate::kinds::all`].
//! A custom resource implements [`ResourceKind`] directly, driven by its schema.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::field::ErrorList;
use crate::status::StatusError;

/// Names and scope of a resource, as discovery reports them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResourceInfo {
    /// API group; empty for core.
    pub group: &'static str,
    /// Version, e.g. `v1`.
    pub version: &'static str,
    /// Kind, e.g. `Deployment`.
    pub kind: &'static str,
    /// Plural resource name, e.g. `deployments`.
    pub plural: &'static str,
    /// Singular name, e.g. `deployment`.
    pub singular: &'static str,
    /// e.g. `deploy`.
    pub short_names: &'static [&'static str],
    /// e.g. `all`.
    pub categories: &'static [&'static str],
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Whether it has a `status` subresource.
    pub has_status: bool,
    /// Whether it has a `scale` subresource.
    pub has_scale: bool,
    /// Whether `metadata.generation` is kept (spec changes increment it).
    pub has_generation: bool,
    /// Whether PUT on a missing name creates it (`AllowCreateOnUpdate`).
    pub create_on_update: bool,
}

/// What part of an object a write may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteScope {
    /// The object itself; `status` stays as it was.
    Main,
    /// The `status` subresource; everything else stays as it was.
    Status,
}

/// One column of a Table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Header.
    pub name: &'static str,
    /// `string`, `integer`, `date`, ...
    pub kind: &'static str,
    /// `name` for the object's name, else empty.
    pub format: &'static str,
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
        + 'static;

    /// Names and scope.
    const INFO: ResourceInfo;

    /// What names may look like; a DNS subdomain for most kinds.
    const NAME_RULE: crate::meta::NameRule = crate::names::is_dns1123_subdomain;

    /// Fills what the user left out, as Kubernetes does on decode.
    fn default(_object: &mut Self::Object) {}

    /// Drops what a client may not set at creation (status, usually). Runs after [`Kind::default`].
    fn prepare_create(object: &mut Self::Object);

    /// Checks a new object. `metadata` has been checked already, by [`crate::meta::validate`].
    fn validate(_object: &Self::Object, _errors: &mut ErrorList) {}

    /// Restores what an update may not touch and increments the generation when the spec changed.
    fn prepare_update(new: &mut Self::Object, old: &Self::Object);

    /// Checks an update; by default that the new object is valid by itself.
    fn validate_update(new: &Self::Object, _old: &Self::Object, errors: &mut ErrorList) {
        Self::validate(new, errors);
    }

    /// Restores everything but the status.
    fn prepare_status_update(_new: &mut Self::Object, _old: &Self::Object) {}

    /// Checks a status update.
    fn validate_status_update(_new: &Self::Object, _old: &Self::Object, _errors: &mut ErrorList) {}

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

    /// The Table's columns; `Name` and `Age` when not overridden.
    fn columns() -> Vec<Column>;

    /// One row, a cell per column. `now` is nanoseconds since the epoch.
    fn row(object: &Self::Object, now: i64) -> Vec<Value>;
}

/// A prepared and validated object, ready to be stored.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The object as it will be stored and answered, without `metadata.resourceVersion`.
    pub object: Value,
    /// Warnings for the client.
    pub warnings: Vec<String>,
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

    /// Defaults, prepares and validates a new object that has been decoded by [`crate::decode`].
    /// `metadata.name`, `namespace`, `uid` and `creationTimestamp` have been set by the caller.
    fn create(&self, object: Value) -> Result<Prepared, StatusError>;

    /// Defaults, prepares and validates a changed object against the stored one.
    fn update(&self, new: Value, old: &Value, scope: WriteScope) -> Result<Prepared, StatusError>;

    /// All selectable fields of an object, `metadata.name` and `metadata.namespace` included.
    fn selectable_fields(&self, object: &Value) -> Vec<(String, String)>;

    /// Whether a field selector may use this field label.
    fn knows_field_label(&self, label: &str) -> bool;

    /// The name of the type's schema in OpenAPI, and that schema with all it refers to.
    fn openapi(&self) -> (String, serde_json::Map<String, Value>);

    /// What every answer about the resource warns of, when it is on its way out.
    fn deprecation(&self) -> Option<&'static str>;

    /// Whether the kind has selectable fields of its own.
    fn has_field_labels(&self) -> bool;

    /// The Table's columns.
    fn columns(&self) -> &[Column];

    /// One row, a cell per column. `now` is nanoseconds since the epoch.
    fn row(&self, object: &Value, now: i64) -> Vec<Value>;
}
