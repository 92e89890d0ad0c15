//! Walks a document and its schema together.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::base64_error;
use crate::quantity::Quantity;
use crate::schema::{Shape, TypeSchema};

/// What was found on the way.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Unknown and duplicate fields, in document order.
    pub(super) strict: Vec<String>,
    /// The first thing that cannot be: a wrong type, bad base64, a bad quantity or time.
    pub(super) error: Option<String>,
}

impl Findings {
    fn fail(&mut self, error: String) {
        self.error.get_or_insert(error);
    }
}

/// One position in the document.
pub(super) struct Walker<'a> {
    schema: Option<&'static TypeSchema>,
    findings: &'a mut Findings,
    /// With list positions: `spec.containers[0].name`.
    path: String,
    /// Without them, as Go's errors have it: `spec.containers.name`.
    field: String,
    /// Go's name of the struct that the field belongs to.
    owner: String,
}

/// The part of a schema's name after the last dot: `Container`.
fn short(schema: &TypeSchema) -> &str {
    schema.name.rsplit('.').next().unwrap_or_default()
}

/// What Go calls a JSON value.
pub(super) fn go_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

impl<'a> Walker<'a> {
    pub(super) fn root(schema: &'static TypeSchema, findings: &'a mut Findings) -> Self {
        Self {
            schema: Some(schema),
            findings,
            path: String::new(),
            field: String::new(),
            owner: short(schema).to_owned(),
        }
    }

    fn child(
        &mut self,
        schema: Option<&'static TypeSchema>,
        path: String,
        field: String,
        owner: String,
    ) -> Walker<'_> {
        Walker {
            schema,
            findings: &mut *self.findings,
            path,
            field,
            owner,
        }
    }

    /// Notes a value of the wrong type; the field counts as absent.
    fn mismatch(&mut self, got: &str) -> Value {
        if let Some(schema) = self.schema {
            let place = match self.field.is_empty() {
                true => format!("Go value of type {}", schema.go),
                false => format!(
                    "Go struct field {}.{} of type {}",
                    self.owner, self.field, schema.go
                ),
            };
            self.findings
                .fail(format!("json: cannot unmarshal {got} into {place}"));
        }
        Value::Null
    }

    fn shape(&self) -> Option<&'static Shape> {
        self.schema.map(|schema| &schema.shape)
    }

    fn text(&mut self, text: &str) -> Value {
        match self.shape() {
            None | Some(Shape::Any | Shape::String | Shape::IntOrString) => Value::from(text),
            Some(Shape::Bytes) => {
                if let Some(at) = base64_error(text) {
                    self.findings
                        .fail(format!("illegal base64 data at input byte {at}"));
                }
                Value::from(text)
            }
            Some(Shape::Quantity) => self.quantity(text),
            Some(Shape::Time) => self.time(text, "2006-01-02T15:04:05Z07:00", crate::time::seconds),
            Some(Shape::MicroTime) => self.time(
                text,
                "2006-01-02T15:04:05.000000Z07:00",
                crate::time::micros,
            ),
            Some(_) => self.mismatch("string"),
        }
    }

    fn quantity(&mut self, text: &str) -> Value {
        match text.parse::<Quantity>() {
            Ok(quantity) => Value::from(quantity.to_string()),
            Err(_) => {
                self.findings.fail(
                    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'".to_owned(),
                );
                Value::Null
            }
        }
    }

    fn time(&mut self, text: &str, layout: &str, write: fn(i64) -> String) -> Value {
        match crate::time::parse(text) {
            Some(nanos) => Value::from(write(nanos)),
            None => {
                self.findings.fail(format!(
                    "parsing time {text:?} as {layout:?}: cannot parse {text:?} as \"2006\""
                ));
                Value::Null
            }
        }
    }

    fn number(&mut self, number: Number) -> Value {
        let fits = match self.shape() {
            Some(Shape::Int32 | Shape::IntOrString) => number
                .as_i64()
                .is_some_and(|number| i32::try_from(number).is_ok()),
            Some(Shape::Int64) => number.as_i64().is_some(),
            Some(Shape::Double | Shape::Any) | None => true,
            Some(Shape::Quantity) => return self.quantity(&number.to_string()),
            Some(_) => return self.mismatch("number"),
        };
        match fits {
            true => Value::Number(number),
            // Whole numbers written as 3.0 are whole.
            false => match number
                .as_f64()
                .filter(|float| float.fract() == 0.0 && float.abs() < 2e9)
            {
                Some(float) => Value::from(float as i64),
                None => self.mismatch(&format!("number {number}")),
            },
        }
    }
}

impl<'de> DeserializeSeed<'de> for Walker<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walker<'_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(mut self, value: bool) -> Result<Value, E> {
        Ok(match self.shape() {
            None | Some(Shape::Any | Shape::Bool) => Value::Bool(value),
            Some(_) => self.mismatch("bool"),
        })
    }

    fn visit_i64<E: Error>(mut self, value: i64) -> Result<Value, E> {
        Ok(self.number(value.into()))
    }

    fn visit_u64<E: Error>(mut self, value: u64) -> Result<Value, E> {
        Ok(self.number(value.into()))
    }

    fn visit_f64<E: Error>(mut self, value: f64) -> Result<Value, E> {
        Ok(match Number::from_f64(value) {
            Some(number) => self.number(number),
            None => self.mismatch("number"),
        })
    }

    fn visit_str<E: Error>(mut self, value: &str) -> Result<Value, E> {
        Ok(self.text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<Value, A::Error> {
        let item = match self.shape() {
            None | Some(Shape::Any) => None,
            Some(Shape::List(item)) => Some(*item),
            Some(_) => {
                while items.next_element::<IgnoredAny>()?.is_some() {}
                return Ok(self.mismatch("array"));
            }
        };
        let (field, owner) = (self.field.clone(), self.owner.clone());
        let mut list = Vec::new();
        loop {
            let path = format!("{}[{}]", self.path, list.len());
            let walker = self.child(item, path, field.clone(), owner.clone());
            match items.next_element_seed(walker)? {
                Some(value) => list.push(value),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut fields: A) -> Result<Value, A::Error> {
        let known_shape = matches!(
            self.shape(),
            None | Some(Shape::Any | Shape::Object(_) | Shape::Map(_))
        );
        let mut object = Map::new();
        while let Some(name) = fields.next_key::<String>()? {
            if !known_shape {
                fields.next_value::<IgnoredAny>()?;
                continue;
            }
            let path = match self.path.is_empty() {
                true => name.clone(),
                false => format!("{}.{name}", self.path),
            };
            if object.contains_key(&name) {
                self.findings
                    .strict
                    .push(format!("duplicate field {path:?}"));
            }
            let (schema, field, owner) = match self.schema {
                Some(schema) => match &schema.shape {
                    Shape::Object(_) => match schema.field(&name) {
                        Some(field) => {
                            let place = match self.field.is_empty() {
                                true => name.clone(),
                                false => format!("{}.{name}", self.field),
                            };
                            (Some(field.schema), place, short(schema).to_owned())
                        }
                        None if self.path.is_empty()
                            && (name == "apiVersion" || name == "kind") =>
                        {
                            (None, name.clone(), self.owner.clone())
                        }
                        None => {
                            self.findings.strict.push(format!("unknown field {path:?}"));
                            fields.next_value::<IgnoredAny>()?;
                            continue;
                        }
                    },
                    Shape::Map(item) => (Some(*item), self.field.clone(), self.owner.clone()),
                    _ => (None, self.field.clone(), self.owner.clone()),
                },
                None => (None, self.field.clone(), self.owner.clone()),
            };
            let value = fields.next_value_seed(self.child(schema, path, field, owner))?;
            object.insert(name, value);
        }
        match known_shape {
            true => Ok(Value::Object(object)),
            false => Ok(self.mismatch("object")),
        }
    }
}
