//! Walks a document and its schema together.

use std::collections::HashSet;
use std::fmt;
use std::sync::LazyLock;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::base64_error;
use crate::quantity::Quantity;
use crate::schema::{Shape, TypeSchema};
use crate::time::{self, Precision};

/// Unknown and duplicate fields beyond these are not told: Kubernetes stops at as many.
const MAX_STRICT: usize = 100;
/// Neither are those beyond this many bytes: every path may be as long as a body.
const MAX_STRICT_BYTES: usize = 64 << 10;

/// The most structs that one object may be made of, with the objects and lists that no schema knows. Written in two bytes
/// each, they take a kilobyte in memory.
pub const MAX_STRUCTS: usize = 20_000;

/// What `apiVersion` and `kind` are, which the schemas of kinds leave out.
static TEXT: LazyLock<TypeSchema> = LazyLock::new(|| TypeSchema {
    name: String::new(),
    go: "string".to_owned(),
    shape: Shape::String,
});

/// What was found on the way.
#[derive(Debug, Default)]
pub(super) struct Findings {
    structs: usize,
    /// Unknown and duplicate fields, in document order.
    pub(super) strict: Vec<String>,
    told: HashSet<String>,
    bytes: usize,
    /// The first thing that cannot be: a wrong type, bad base64, a bad quantity or time.
    pub(super) error: Option<String>,
}

impl Findings {
    fn fail(&mut self, error: impl FnOnce() -> String) {
        self.error.get_or_insert_with(error);
    }

    /// Notes an unknown or duplicate field, once.
    fn note(&mut self, what: &str, place: &Place<'_>) {
        if self.strict.len() >= MAX_STRICT || self.bytes >= MAX_STRICT_BYTES {
            return;
        }
        let finding = format!("{what} field {:?}", place.path());
        self.bytes += finding.len();
        if self.told.insert(finding.clone()) {
            self.strict.push(finding);
        }
    }
}

/// Where in the document: a step and what it leads from. Written out only for what is told, since a path may be as long
/// as the document and every value has one.
enum Place<'a> {
    Root,
    /// A field of the struct that `owner` is Go's name of.
    Field {
        of: &'a Place<'a>,
        name: &'a str,
        owner: &'static str,
    },
    /// What a map has under a key.
    Key {
        of: &'a Place<'a>,
        name: &'a str,
    },
    Item {
        of: &'a Place<'a>,
        index: usize,
    },
}

impl Place<'_> {
    /// With list positions: `spec.containers[0].name`.
    fn path(&self) -> String {
        let mut path = match self {
            Self::Root => return String::new(),
            Self::Field { of, .. } | Self::Key { of, .. } | Self::Item { of, .. } => of.path(),
        };
        match self {
            Self::Root => {}
            Self::Field { name, .. } | Self::Key { name, .. } => {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(name);
            }
            Self::Item { index, .. } => path.push_str(&format!("[{index}]")),
        }
        path
    }

    /// Without positions and keys of maps, as Go's errors have it: `spec.containers.name`, and the name of the struct that
    /// the last field belongs to.
    fn field(&self) -> Option<(String, &'static str)> {
        match self {
            Self::Root => None,
            Self::Key { of, .. } | Self::Item { of, .. } => of.field(),
            Self::Field { of, name, owner } => Some(match of.field() {
                Some((field, _)) => (format!("{field}.{name}"), owner),
                None => ((*name).to_owned(), owner),
            }),
        }
    }
}

/// One position in the document.
pub(super) struct Walker<'a> {
    schema: Option<&'static TypeSchema>,
    findings: &'a mut Findings,
    place: &'a Place<'a>,
}

/// The part of a schema's name after the last dot: `Container`.
fn short(schema: &TypeSchema) -> &str {
    schema.name.rsplit('.').next().unwrap_or_default()
}

impl<'a> Walker<'a> {
    pub(super) fn root(schema: &'static TypeSchema, findings: &'a mut Findings) -> Self {
        Self {
            schema: Some(schema),
            findings,
            place: &Place::Root,
        }
    }

    /// Of a document that may be anything.
    pub(super) fn untyped(findings: &'a mut Findings) -> Self {
        Self {
            schema: None,
            findings,
            place: &Place::Root,
        }
    }

    /// Notes a value of the wrong type; the field counts as absent.
    fn mismatch(&mut self, got: &str) -> Value {
        let (schema, place) = (self.schema, self.place);
        if let Some(schema) = schema {
            self.findings.fail(|| {
                let place = match place.field() {
                    // These read themselves, and do not know where they are.
                    _ if matches!(schema.shape, Shape::Time | Shape::MicroTime) => {
                        "Go value of type string".to_owned()
                    }
                    _ if matches!(schema.shape, Shape::IntOrString) => {
                        "Go value of type int32".to_owned()
                    }
                    None => format!("Go value of type {}", schema.go),
                    Some((field, owner)) => {
                        format!("Go struct field {owner}.{field} of type {}", schema.go)
                    }
                };
                format!("json: cannot unmarshal {got} into {place}")
            });
        }
        Value::Null
    }

    fn shape(&self) -> Option<&'static Shape> {
        self.schema.map(|schema| &schema.shape)
    }

    /// Counts a struct, or an object or list that no schema knows; those of other shapes are parts of a struct.
    fn count<E: Error>(&mut self) -> Result<(), E> {
        if matches!(self.shape(), None | Some(Shape::Any | Shape::Object(_))) {
            self.findings.structs += 1;
        }
        if self.findings.structs > MAX_STRUCTS {
            let place = self.place.path();
            return Err(E::custom(format!(
                "{place}: Too many: an object may have at most {MAX_STRUCTS} structured values"
            )));
        }
        Ok(())
    }

    fn text(&mut self, text: &str) -> Value {
        match self.shape() {
            None | Some(Shape::Any | Shape::String | Shape::IntOrString) => Value::from(text),
            Some(Shape::Bytes) => {
                if let Some(at) = base64_error(text) {
                    self.findings
                        .fail(|| format!("illegal base64 data at input byte {at}"));
                }
                Value::from(text)
            }
            Some(Shape::Quantity) => self.quantity(text),
            Some(Shape::Time) => self.time(text, Precision::Seconds),
            Some(Shape::MicroTime) => self.time(text, Precision::Micros),
            Some(_) => self.mismatch("string"),
        }
    }

    /// An amount; Go trims the text, and reads true and false as texts too.
    fn quantity(&mut self, text: &str) -> Value {
        match text.trim().parse::<Quantity>() {
            Ok(quantity) => Value::from(quantity.to_string()),
            Err(error) => {
                self.findings.fail(|| error.to_string());
                Value::Null
            }
        }
    }

    /// A time in its normal form; null for Go's zero time.
    fn time(&mut self, text: &str, precision: Precision) -> Value {
        match time::normal(text, precision) {
            Ok(normal) => Value::from(normal),
            Err(error) => {
                self.findings.fail(|| error);
                Value::Null
            }
        }
    }

    /// What null is: nothing for a field, since Go then leaves what is there, but an item and the value of a map are there.
    fn null<E: Error>(mut self) -> Result<Value, E> {
        match (self.place, self.schema) {
            (Place::Item { .. } | Place::Key { .. }, Some(schema)) => {
                self.count::<E>()?;
                Ok(schema.zero())
            }
            _ => Ok(Value::Null),
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
        self.null()
    }

    fn visit_none<E: Error>(self) -> Result<Value, E> {
        self.null()
    }

    fn visit_bool<E: Error>(mut self, value: bool) -> Result<Value, E> {
        Ok(match self.shape() {
            None | Some(Shape::Any | Shape::Bool) => Value::Bool(value),
            Some(Shape::Quantity) => self.quantity(if value { "true" } else { "false" }),
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
        self.count::<A::Error>()?;
        let mut list = Vec::new();
        loop {
            let place = Place::Item {
                of: self.place,
                index: list.len(),
            };
            let walker = Walker {
                schema: item,
                findings: &mut *self.findings,
                place: &place,
            };
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
        self.count::<A::Error>()?;
        let mut object = Map::new();
        while let Some(name) = fields.next_key::<String>()? {
            if !known_shape {
                fields.next_value::<IgnoredAny>()?;
                continue;
            }
            let of = self.place;
            let key = Place::Key { of, name: &name };
            if object.contains_key(&name) {
                self.findings.note("duplicate", &key);
            }
            let shape = self.schema.map(|schema| (schema, &schema.shape));
            let (schema, place) = match shape {
                Some((schema, Shape::Object(_))) => match schema.field(&name) {
                    Some(field) => {
                        let (name, owner) = (&*name, short(schema));
                        (Some(field.schema), Place::Field { of, name, owner })
                    }
                    None if matches!(of, Place::Root)
                        && (name == "apiVersion" || name == "kind") =>
                    {
                        let (name, owner) = (&*name, short(schema));
                        (Some(&*TEXT), Place::Field { of, name, owner })
                    }
                    None => {
                        self.findings.note("unknown", &key);
                        fields.next_value::<IgnoredAny>()?;
                        continue;
                    }
                },
                Some((_, Shape::Map(item))) => (Some(*item), key),
                _ => (None, key),
            };
            let value = fields.next_value_seed(Walker {
                schema,
                findings: &mut *self.findings,
                place: &place,
            })?;
            object.insert(name, value);
        }
        match known_shape {
            true => Ok(Value::Object(object)),
            false => Ok(self.mismatch("object")),
        }
    }
}
