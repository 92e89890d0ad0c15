//! Compact structural schemas: what decoding, patching and OpenAPI need to know of a type, looked up by reference.
//!
//! Built once per type from its JSON schema and [`facts`], and kept for the life of the process: a kind's schema is a
//! `&'static TypeSchema`, and no request builds one. [`published`] is the longer form, for clients.

mod build;
mod complete;
mod facts;
pub mod published;

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value};

use crate::time;

/// One type.
#[derive(Debug)]
pub struct TypeSchema {
    /// The schema's name, e.g. `io.k8s.api.core.v1.Container`; empty for lists, maps and scalars.
    pub name: String,
    /// Go's name of the type, as its decode errors spell it: `v1.Container`, `[]v1.Container`, `int32`.
    pub go: String,
    /// What it is made of.
    pub shape: Shape,
}

/// What a type is made of.
#[derive(Debug)]
pub enum Shape {
    /// Known fields, sorted by name.
    Object(Vec<Field>),
    /// Items of one type.
    List(&'static TypeSchema),
    /// String keys to values of one type.
    Map(&'static TypeSchema),
    /// Text.
    String,
    /// true or false.
    Bool,
    /// A whole number of 32 bits.
    Int32,
    /// A whole number of 64 bits.
    Int64,
    /// A floating point number.
    Double,
    /// Bytes in base64.
    Bytes,
    /// An amount, see [`crate::quantity`].
    Quantity,
    /// RFC 3339, whole seconds.
    Time,
    /// RFC 3339, microseconds.
    MicroTime,
    /// A 32-bit number or text.
    IntOrString,
    /// Any JSON.
    Any,
}

/// A field of an object.
#[derive(Debug)]
pub struct Field {
    /// JSON name.
    pub name: String,
    /// Its type.
    pub schema: &'static TypeSchema,
    /// Written even when empty.
    pub required: bool,
    /// A pointer in Go: a zero that was set is written.
    pub pointer: bool,
    /// What is written when it is absent.
    pub absent: Absent,
    /// How it takes part in patches.
    pub merge: Merge,
}

/// What Go writes for a field that was never set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// Nothing.
    Omitted,
    /// An object with its own always-written fields.
    Struct,
    /// `null`, for an empty list or map too.
    Null,
    /// What the type is when nothing was set: `""`, 0, false, the first second of year 1.
    Zero,
}

/// How a field takes part in patches and apply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Merge {
    /// Strategic merge joins the list's items instead of replacing the list.
    pub merge: bool,
    /// Strategic merge replaces the map instead of joining it.
    pub replace: bool,
    /// Clients send `$retainKeys` for it.
    pub retain_keys: bool,
    /// The field that tells items of a merged list apart; none for a list of scalars.
    pub key: Option<&'static str>,
    /// `x-kubernetes-list-type` or `-map-type`: `atomic`, `set` or `map`.
    pub list_type: Option<&'static str>,
    /// `x-kubernetes-list-map-keys`.
    pub map_keys: Vec<&'static str>,
}

/// Schemas by name, shared between all kinds.
static TYPES: LazyLock<Mutex<HashMap<String, &'static TypeSchema>>> = LazyLock::new(Mutex::default);

/// Whether Kubernetes has a kind of objects of that name, served here or not.
pub(crate) fn is_kind(group: &str, version: &str, kind: &str) -> bool {
    facts::is_kind(group, version, kind)
}

/// `core.v1.Pod` for `io.k8s.api.core.v1.Pod`.
pub(crate) fn short(name: &str) -> &str {
    name.strip_prefix("io.k8s.api.")
        .or_else(|| name.strip_prefix("io.k8s.apimachinery.pkg.apis."))
        .unwrap_or(name)
}

/// `v1.Pod` for `io.k8s.api.core.v1.Pod`.
fn go_name(name: &str) -> String {
    let mut parts = name.rsplit('.');
    match (parts.next(), parts.next()) {
        (Some(last), Some(package)) => format!("{package}.{last}"),
        _ => name.to_owned(),
    }
}

/// The JSON schemas of a type and all it refers to, by name.
fn definitions<T: JsonSchema>() -> (String, Map<String, Value>) {
    let mut generator = SchemaGenerator::default();
    generator.subschema_for::<T>();
    (
        T::schema_name().into_owned(),
        generator.take_definitions(true),
    )
}

impl TypeSchema {
    /// The schema of a type; the same reference every time.
    pub fn of<T: JsonSchema>() -> &'static TypeSchema {
        let name = T::schema_name();
        if let Some(known) = TYPES
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&*name)
        {
            return known;
        }
        let (name, definitions) = definitions::<T>();
        build::named(&name, &definitions, &mut Vec::new())
    }

    /// A field by its JSON name.
    pub fn field(&self, name: &str) -> Option<&Field> {
        match &self.shape {
            Shape::Object(fields) => fields
                .binary_search_by(|field| field.name.as_str().cmp(name))
                .ok()
                .map(|at| &fields[at]),
            _ => None,
        }
    }

    /// The schema of what a key or list position holds.
    pub fn child(&self, key: &str) -> Option<&'static TypeSchema> {
        match &self.shape {
            Shape::Object(_) => self.field(key).map(|field| field.schema),
            Shape::List(item) | Shape::Map(item) => Some(item),
            _ => None,
        }
    }

    /// What JSON `null` becomes where Go must have a value (in a list or map).
    pub(crate) fn zero(&self) -> Value {
        match &self.shape {
            Shape::Object(_) | Shape::Map(_) => Value::Object(Map::new()),
            Shape::List(_) => Value::Array(Vec::new()),
            Shape::String | Shape::Bytes => Value::String(String::new()),
            Shape::Bool => Value::Bool(false),
            Shape::Int32 | Shape::Int64 | Shape::Double | Shape::IntOrString => Value::from(0),
            Shape::Quantity => Value::String("0".into()),
            Shape::Time => Value::from(time::ZERO),
            Shape::MicroTime => Value::from(time::ZERO_MICRO),
            Shape::Any => Value::Null,
        }
    }
}
