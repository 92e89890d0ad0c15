//! Builds a [`TypeSchema`] from a type's JSON schema.

use std::sync::PoisonError;

use serde_json::{Map, Value};

use super::facts::{FACTS, Facts};
use super::{Absent, Field, Shape, TYPES, TypeSchema, go_name, short};

fn leak(name: &str, go: impl Into<String>, shape: Shape) -> &'static TypeSchema {
    Box::leak(Box::new(TypeSchema {
        name: name.to_owned(),
        go: go.into(),
        shape,
    }))
}

/// The schema of a named type. `open` holds the names being built: a type that contains itself is any JSON there.
pub(super) fn named(
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
        // Objects without fields of their own, which are whatever they hold.
        Some("FieldsV1" | "RawExtension" | "JSON") => Some(Shape::Any),
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
    let absent = match facts.absent.get(&key).copied() {
        // The typed forms of these have no room for none.
        Some(Absent::Null) if required && is_time(schema) => Absent::Zero,
        known => known.unwrap_or(Absent::Omitted),
    };
    Field {
        name: name.to_owned(),
        schema,
        required: required && !facts.omitted.contains_key(&key),
        pointer: facts.pointers.contains_key(&key),
        absent,
        merge: facts.merges.get(&key).cloned().unwrap_or_default(),
    }
}

fn is_time(schema: &TypeSchema) -> bool {
    matches!(schema.shape, Shape::Time | Shape::MicroTime)
}
