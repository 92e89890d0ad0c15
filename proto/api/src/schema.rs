//! Compact structural schemas: what decoding, patching and OpenAPI need to know of a type, looked up by reference.
//!
//! Built once per type from its JSON schema and [`facts`], and kept for the life of the process: a kind's schema is a
//! `&'static TypeSchema`, and no request builds one.

mod facts;

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value};

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
    /// `null`
    Null,
    /// `""`
    Empty,
}

/// How a field takes part in patches and apply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Merge {
    /// Strategic merge joins the list's items instead of replacing the list.
    pub merge: bool,
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

static FACTS: LazyLock<Facts> = LazyLock::new(Facts::parse);

/// The tables of [`facts`], by short type name and field.
struct Facts {
    merges: HashMap<(&'static str, &'static str), Merge>,
    pointers: HashMap<(&'static str, &'static str), ()>,
    absent: HashMap<(&'static str, &'static str), Absent>,
}

impl Facts {
    fn parse() -> Self {
        fn words(table: &'static str) -> impl Iterator<Item = (&'static str, &'static str)> {
            table.lines().flat_map(|line| {
                let (name, fields) = line.split_once(' ').unwrap_or((line, ""));
                fields.split(' ').map(move |field| (name, field))
            })
        }
        let merges = words(facts::LISTS).filter_map(|(name, row)| {
            let mut columns = row
                .split(':')
                .map(|column| Some(column).filter(|column| *column != "-"));
            let field = columns.next()??;
            let list_type = columns.next()?;
            let map_keys = columns
                .next()?
                .map(|keys| keys.split('+').collect())
                .unwrap_or_default();
            let strategy = columns.next()?.unwrap_or_default();
            let key = columns.next()?;
            let has = |word| strategy.split('+').any(|one| one == word);
            let merge = Merge {
                merge: has("merge"),
                retain_keys: has("retainKeys"),
                key,
                list_type,
                map_keys,
            };
            Some(((name, field), merge))
        });
        let absent = words(facts::STRUCTS)
            .map(|key| (key, Absent::Struct))
            .chain(words(facts::NULLS).map(|key| (key, Absent::Null)))
            .chain(words(facts::ALWAYS).map(|key| (key, Absent::Empty)));
        Self {
            merges: merges.collect(),
            pointers: words(facts::POINTERS).map(|key| (key, ())).collect(),
            absent: absent.collect(),
        }
    }
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
pub(crate) fn definitions<T: JsonSchema>() -> (String, Map<String, Value>) {
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
        named(&name, &definitions, &mut Vec::new())
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
            Shape::Time | Shape::MicroTime | Shape::Any => Value::Null,
        }
    }

    /// Drops what Go leaves out and adds what it always writes, all the way down.
    pub fn complete(&self, value: &mut Value) {
        match (&self.shape, value) {
            (Shape::Object(fields), Value::Object(object)) => {
                for field in fields {
                    complete_field(field, object);
                }
            }
            (Shape::List(item), Value::Array(list)) => {
                list.iter_mut().for_each(|value| item.complete(value))
            }
            (Shape::Map(item), Value::Object(map)) => {
                map.values_mut().for_each(|value| item.complete(value))
            }
            (Shape::Quantity, Value::String(text)) => {
                if let Ok(quantity) = text.parse::<crate::quantity::Quantity>() {
                    *text = quantity.to_string();
                }
            }
            _ => {}
        }
    }
}

fn complete_field(field: &Field, object: &mut Map<String, Value>) {
    match object.get_mut(&field.name) {
        Some(Value::Null) if field.absent != Absent::Null => {
            object.remove(&field.name);
        }
        Some(Value::Array(list)) if field.absent == Absent::Null && list.is_empty() => {
            object.insert(field.name.clone(), Value::Null);
            return;
        }
        Some(value) => {
            field.schema.complete(value);
            if !field.required && field.absent == Absent::Omitted && is_left_out(field, value) {
                object.remove(&field.name);
            }
            return;
        }
        None => {}
    }
    let value = match field.absent {
        Absent::Omitted => return,
        Absent::Null => Value::Null,
        Absent::Empty => Value::String(String::new()),
        Absent::Struct => {
            let mut value = Value::Object(Map::new());
            if let (Shape::Object(fields), Value::Object(object)) =
                (&field.schema.shape, &mut value)
            {
                for inner in fields
                    .iter()
                    .filter(|inner| inner.required && inner.absent == Absent::Omitted)
                {
                    if matches!(
                        inner.schema.shape,
                        Shape::String | Shape::Int32 | Shape::Int64 | Shape::Bool
                    ) {
                        object.insert(inner.name.clone(), inner.schema.zero());
                    }
                }
            }
            field.schema.complete(&mut value);
            value
        }
    };
    object.insert(field.name.clone(), value);
}

/// Whether Go's omitempty drops the value.
fn is_left_out(field: &Field, value: &Value) -> bool {
    match (&field.schema.shape, value) {
        (Shape::List(_), Value::Array(list)) => list.is_empty(),
        (Shape::Map(_), Value::Object(map)) => map.is_empty(),
        (Shape::String | Shape::Bytes, Value::String(text)) => !field.pointer && text.is_empty(),
        (Shape::Bool, Value::Bool(set)) => !field.pointer && !set,
        (Shape::Int32 | Shape::Int64 | Shape::Double, Value::Number(number)) => {
            !field.pointer && number.as_f64() == Some(0.0)
        }
        _ => false,
    }
}

fn leak(name: &str, go: impl Into<String>, shape: Shape) -> &'static TypeSchema {
    Box::leak(Box::new(TypeSchema {
        name: name.to_owned(),
        go: go.into(),
        shape,
    }))
}

/// The schema of a named type. `open` holds the names being built: a type that contains itself is any JSON there.
fn named(
    name: &str,
    definitions: &Map<String, Value>,
    open: &mut Vec<String>,
) -> &'static TypeSchema {
    if let Some(known) = TYPES
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .get(name)
    {
        return known;
    }
    if open.iter().any(|other| other == name) {
        return leak(name, go_name(name), Shape::Any);
    }
    let special = match name.rsplit('.').next() {
        Some("Quantity") => Some(Shape::Quantity),
        Some("Time") => Some(Shape::Time),
        Some("MicroTime") => Some(Shape::MicroTime),
        Some("IntOrString") => Some(Shape::IntOrString),
        Some("FieldsV1") => Some(Shape::Any),
        _ => None,
    };
    let built = match (special, definitions.get(name)) {
        (Some(shape), _) => leak(name, go_name(name), shape),
        (None, Some(schema)) => {
            open.push(name.to_owned());
            let built = of_value(name, schema, definitions, open);
            open.pop();
            built
        }
        (None, None) => leak(name, go_name(name), Shape::Any),
    };
    TYPES
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .entry(name.to_owned())
        .or_insert(built)
}

fn of_value(
    name: &str,
    schema: &Value,
    definitions: &Map<String, Value>,
    open: &mut Vec<String>,
) -> &'static TypeSchema {
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        return named(
            reference.rsplit('/').next().unwrap_or_default(),
            definitions,
            open,
        );
    }
    let format = schema.get("format").and_then(Value::as_str);
    match schema.get("type").and_then(Value::as_str) {
        Some("object") => {
            if let Some(Value::Object(properties)) = schema.get("properties") {
                let required: Vec<&str> = schema
                    .get("required")
                    .and_then(Value::as_array)
                    .map(|list| list.iter().filter_map(Value::as_str).collect())
                    .unwrap_or_default();
                let mut fields: Vec<Field> = properties
                    .iter()
                    .map(|(field, schema)| {
                        let schema = of_value("", schema, definitions, open);
                        // The generated types call metadata required; in Go it is a struct that may be left out.
                        let required = required.contains(&field.as_str()) && field != "metadata";
                        of_field(name, field, schema, required)
                    })
                    .collect();
                fields.sort_by(|one, other| one.name.cmp(&other.name));
                return leak(name, go_name(name), Shape::Object(fields));
            }
            match schema.get("additionalProperties") {
                Some(Value::Object(_)) => {
                    let item = of_value("", &schema["additionalProperties"], definitions, open);
                    leak(name, format!("map[string]{}", item.go), Shape::Map(item))
                }
                _ if name.is_empty() => leak(name, "map[string]interface {}", Shape::Any),
                _ => leak(name, go_name(name), Shape::Object(Vec::new())),
            }
        }
        Some("array") => {
            let item = of_value("", &schema["items"], definitions, open);
            leak(name, format!("[]{}", item.go), Shape::List(item))
        }
        Some("string") if format == Some("byte") => leak(name, "[]uint8", Shape::Bytes),
        Some("string") => leak(name, "string", Shape::String),
        Some("boolean") => leak(name, "bool", Shape::Bool),
        Some("integer") if format == Some("int32") => leak(name, "int32", Shape::Int32),
        Some("integer") => leak(name, "int64", Shape::Int64),
        Some("number") => leak(name, "float64", Shape::Double),
        _ => leak(name, "interface {}", Shape::Any),
    }
}

fn of_field(owner: &str, name: &str, schema: &'static TypeSchema, required: bool) -> Field {
    let owner = short(owner);
    // The tables hold 'static names; looking up by a shorter-lived pair needs no copy.
    let key = (owner, name);
    let facts: &Facts = &FACTS;
    Field {
        name: name.to_owned(),
        schema,
        required,
        pointer: facts.pointers.contains_key(&key),
        absent: facts.absent.get(&key).copied().unwrap_or(Absent::Omitted),
        merge: facts.merges.get(&key).cloned().unwrap_or_default(),
    }
}
