//! Bodies in Kubernetes' protobuf, which typed clients send for built-in kinds, rewritten as JSON; and answers the other way.
//!
//! A body is the four bytes `k8s\0` and an envelope that names the kind and holds the object. The object's types are
//! those of its JSON form, [`TypeSchema`]; what JSON does not tell are the field numbers: they are in `numbers.txt`, a
//! line per type, `type field=number ... number(field=number,...)`, where brackets are a message whose fields are the
//! type's own in JSON.

mod encode;

pub use encode::from_json;

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

use crate::json::Members;
use base64::Engine;
use bytes::Buf;
use prost::DecodeError;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use serde_json::{Map, Value};

use crate::decode::{self, Excess, MAX_STRUCTS, count_collections};
use crate::schema::{Field, Shape, TypeSchema};
use crate::time::{self, Precision};

const MAGIC: &[u8] = b"k8s\0";
/// How deeply messages may be nested.
const MAX_DEPTH: usize = 64;

/// Why a body cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtobufError {
    /// Something else than Kubernetes' protobuf.
    #[error(
        "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]"
    )]
    Magic,
    /// Its kind has no place here.
    #[error("no kind \"{kind}\" is registered for version \"{api_version}\"")]
    Kind {
        /// As the envelope has it.
        api_version: String,
        /// As the envelope has it.
        kind: String,
    },
    /// Not what it says.
    #[error("{0}")]
    Malformed(String),
}

impl From<DecodeError> for ProtobufError {
    fn from(error: DecodeError) -> Self {
        Self::Malformed(error.to_string())
    }
}

enum Slot {
    /// A field of the type.
    Field(&'static str),
    /// A message whose fields are the type's own.
    Inline(Slots),
}

type Slots = BTreeMap<u32, Slot>;

static NUMBERS: LazyLock<HashMap<&'static str, Slots>> = LazyLock::new(|| {
    let lines = include_str!("protobuf/numbers.txt").lines();
    let types = lines.filter_map(|line| line.split_once(' '));
    types.map(|(name, row)| (name, parse(row, ' '))).collect()
});

/// Where the first bracket closes.
fn closing(text: &str) -> Option<usize> {
    let mut open = 0_usize;
    text.find(|c: char| {
        match c {
            '(' => open += 1,
            ')' => open = open.saturating_sub(1),
            _ => {}
        }
        c == ')' && open == 0
    })
}

fn parse(row: &'static str, separator: char) -> Slots {
    let mut slots = Slots::new();
    let mut rest = row;
    while !rest.is_empty() {
        // Brackets hold commas, never spaces: they end the entry they are in.
        let end = match (rest.find(separator), rest.find('(')) {
            (Some(end), Some(bracket)) if bracket < end => {
                closing(rest).map_or(rest.len(), |close| close + 1)
            }
            (Some(end), _) => end,
            (None, _) => rest.len(),
        };
        let (entry, tail) = rest.split_at(end);
        rest = tail.strip_prefix(separator).unwrap_or(tail);
        let slot = if let Some((number, inner)) = entry.split_once('(') {
            let inner = inner.strip_suffix(')').unwrap_or(inner);
            number
                .parse()
                .map(|number| (number, Slot::Inline(parse(inner, ','))))
        } else {
            let (field, number) = entry.split_once('=').unwrap_or((entry, ""));
            number.parse().map(|number| (number, Slot::Field(field)))
        };
        if let Ok((number, slot)) = slot {
            slots.insert(number, slot);
        }
    }
    slots
}

/// The bytes of a length-delimited field.
fn chunk<'a>(buffer: &mut &'a [u8]) -> Result<&'a [u8], ProtobufError> {
    let length = usize::try_from(decode_varint(buffer)?).unwrap_or(usize::MAX);
    let Some((chunk, rest)) = buffer.split_at_checked(length) else {
        return Err(ProtobufError::Malformed("unexpected EOF".to_owned()));
    };
    *buffer = rest;
    Ok(chunk)
}

fn text(bytes: &[u8]) -> Result<String, ProtobufError> {
    String::from_utf8(bytes.to_vec())
        .map_err(|_| ProtobufError::Malformed("a string is not valid UTF-8".to_owned()))
}

/// What a field holds on the wire.
enum Wire<'a> {
    Number(u64),
    Double(f64),
    Bytes(&'a [u8]),
}

/// The fields of a message, in their order.
fn fields(mut buffer: &[u8]) -> Result<Vec<(u32, Wire<'_>)>, ProtobufError> {
    let mut fields = Vec::new();
    while buffer.has_remaining() {
        let (number, wire_type) = decode_key(&mut buffer)?;
        let wire = match wire_type {
            WireType::Varint => Wire::Number(decode_varint(&mut buffer)?),
            WireType::LengthDelimited => Wire::Bytes(chunk(&mut buffer)?),
            WireType::SixtyFourBit if buffer.remaining() >= 8 => Wire::Double(buffer.get_f64_le()),
            other => {
                skip_field(other, number, &mut buffer, DecodeContext::default())?;
                continue;
            }
        };
        fields.push((number, wire));
    }
    Ok(fields)
}

/// The texts and numbers of a message that JSON writes as a scalar, by field number.
fn scalars(buffer: &[u8]) -> Result<HashMap<u32, Wire<'_>>, ProtobufError> {
    Ok(fields(buffer)?.into_iter().collect())
}

fn number_of(scalars: &HashMap<u32, Wire<'_>>, number: u32) -> i64 {
    match scalars.get(&number) {
        // Negative numbers are the upper half.
        Some(Wire::Number(value)) => *value as i64,
        _ => 0,
    }
}

fn text_of(scalars: &HashMap<u32, Wire<'_>>, number: u32) -> Result<String, ProtobufError> {
    match scalars.get(&number) {
        Some(Wire::Bytes(bytes)) => text(bytes),
        _ => Ok(String::new()),
    }
}

fn time_of(buffer: &[u8], precision: Precision) -> Result<Value, ProtobufError> {
    if buffer.is_empty() {
        return Ok(Value::Null);
    }
    let scalars = scalars(buffer)?;
    let (seconds, nanos) = (number_of(&scalars, 1), number_of(&scalars, 2));
    Ok(Value::from(time::from_unix(seconds, nanos, precision)))
}

fn too_many() -> ProtobufError {
    ProtobufError::Malformed(format!(
        "Too many: an object may have at most {MAX_STRUCTS} structured values"
    ))
}

/// Counts values with a structure before they are made, as in JSON: each is two bytes here, and far more in memory.
fn count(values: usize, left: &mut usize) -> Result<(), ProtobufError> {
    *left = left.checked_sub(values).ok_or_else(too_many)?;
    Ok(())
}

/// A value that is JSON itself.
fn any(json: &[u8], left: &mut usize) -> Result<Value, ProtobufError> {
    let made =
        count_collections(json, decode::MAX_DEPTH, *left).map_err(|excess| match excess {
            Excess::TooMany(_) => too_many(),
            Excess::TooDeep(_) => ProtobufError::Malformed(excess.to_string()),
        })?;
    count(made, left)?;
    Ok(serde_json::from_slice(json).unwrap_or_default())
}

/// `left` is how many values with a structure there may still be.
fn value(
    schema: &'static TypeSchema,
    wire: &Wire<'_>,
    depth: usize,
    left: &mut usize,
) -> Result<Value, ProtobufError> {
    let mismatch = || ProtobufError::Malformed(format!("wrong wireType for {}", schema.go));
    Ok(match (&schema.shape, wire) {
        (Shape::Bool, Wire::Number(number)) => Value::from(*number != 0),
        // Negative numbers are the upper half.
        (Shape::Int32, Wire::Number(number)) => Value::from(*number as i32),
        (Shape::Int64, Wire::Number(number)) => Value::from(*number as i64),
        (Shape::Double, Wire::Double(number)) => Value::from(*number),
        (Shape::String, Wire::Bytes(bytes)) => Value::from(text(bytes)?),
        (Shape::Bytes, Wire::Bytes(bytes)) => {
            Value::from(base64::engine::general_purpose::STANDARD.encode(bytes))
        }
        (Shape::Quantity, Wire::Bytes(bytes)) => Value::from(text_of(&scalars(bytes)?, 1)?),
        (Shape::IntOrString, Wire::Bytes(bytes)) => {
            let scalars = scalars(bytes)?;
            match number_of(&scalars, 1) {
                0 => Value::from(number_of(&scalars, 2) as i32),
                _ => Value::from(text_of(&scalars, 3)?),
            }
        }
        (Shape::Time, Wire::Bytes(bytes)) => time_of(bytes, Precision::Seconds)?,
        (Shape::MicroTime, Wire::Bytes(bytes)) => time_of(bytes, Precision::Micros)?,
        (Shape::Any, Wire::Bytes(bytes)) => {
            let raw = scalars(bytes)?.remove(&1);
            match raw {
                Some(Wire::Bytes(raw)) => any(raw, left)?,
                _ => Value::Null,
            }
        }
        (Shape::Object(_), Wire::Bytes(bytes)) => {
            count(1, left)?;
            let mut object = Map::new();
            if let Some(slots) = NUMBERS.get(crate::schema::short(&schema.name)) {
                message(schema, slots, bytes, &mut object, depth + 1, left)?;
            }
            Value::Object(object)
        }
        // A list where JSON has no field for it, in a map: a message of items.
        (Shape::List(item), Wire::Bytes(bytes)) => {
            let items = fields(bytes)?
                .into_iter()
                .filter(|(number, _)| *number == 1);
            Value::Array(
                items
                    .map(|(_, wire)| value(item, &wire, depth + 1, left))
                    .collect::<Result<_, _>>()?,
            )
        }
        _ => return Err(mismatch()),
    })
}

/// Puts what the wire holds into its field.
fn insert(
    field: &Field,
    wire: &Wire<'_>,
    object: &mut Map<String, Value>,
    depth: usize,
    left: &mut usize,
) -> Result<(), ProtobufError> {
    let entry = object.entry(field.name.clone());
    match &field.schema.shape {
        Shape::List(item) => {
            let list = entry.or_insert_with(|| Value::Array(Vec::new()));
            let Value::Array(list) = list else {
                return Ok(());
            };
            match (&item.shape, wire) {
                (Shape::Int32 | Shape::Int64 | Shape::Bool, Wire::Bytes(packed)) => {
                    let mut packed = *packed;
                    while packed.has_remaining() {
                        let number = Wire::Number(decode_varint(&mut packed)?);
                        list.push(value(item, &number, depth, left)?);
                    }
                }
                _ => list.push(value(item, wire, depth, left)?),
            }
        }
        Shape::Map(item) => {
            let map = entry.or_insert_with(|| Value::Object(Map::new()));
            let (Value::Object(map), Wire::Bytes(bytes)) = (map, wire) else {
                return Ok(());
            };
            let pair = scalars(bytes)?;
            let held = match pair.get(&2) {
                Some(wire) => value(item, wire, depth, left)?,
                None => item.zero(),
            };
            map.insert(text_of(&pair, 1)?, held);
        }
        _ => {
            let held = value(field.schema, wire, depth, left)?;
            // Go writes every scalar that is no pointer, set or not.
            let unset = match &held {
                Value::Null => true,
                Value::String(text) => !field.pointer && text.is_empty(),
                Value::Bool(set) => !field.pointer && !set,
                Value::Number(number) => {
                    let scalar = !matches!(field.schema.shape, Shape::IntOrString);
                    scalar && !field.pointer && number.as_f64() == Some(0.0)
                }
                _ => false,
            };
            if !unset {
                object.insert(field.name.clone(), held);
            }
        }
    }
    Ok(())
}

fn message(
    schema: &'static TypeSchema,
    slots: &Slots,
    buffer: &[u8],
    object: &mut Map<String, Value>,
    depth: usize,
    left: &mut usize,
) -> Result<(), ProtobufError> {
    if depth > MAX_DEPTH {
        return Err(ProtobufError::Malformed("nested too deeply".to_owned()));
    }
    for (number, wire) in fields(buffer)? {
        match (slots.get(&number), &wire) {
            (Some(Slot::Field(name)), wire) => {
                if let Some(field) = schema.field(name) {
                    insert(field, wire, object, depth, left)?;
                }
            }
            (Some(Slot::Inline(slots)), Wire::Bytes(bytes)) => {
                message(schema, slots, bytes, object, depth + 1, left)?;
            }
            // Of a newer version: ignored, as Kubernetes does.
            _ => {}
        }
    }
    Ok(())
}

/// The object of a body, with `apiVersion` and `kind`. `schema_of` finds a type by its kind.
pub fn to_json(
    body: &[u8],
    schema_of: impl Fn(&str) -> Option<&'static TypeSchema>,
) -> Result<Value, ProtobufError> {
    let envelope = body.strip_prefix(MAGIC).ok_or(ProtobufError::Magic)?;
    let envelope = scalars(envelope)?;
    let kind_of = match envelope.get(&1) {
        Some(Wire::Bytes(bytes)) => scalars(bytes)?,
        _ => HashMap::new(),
    };
    let (api_version, kind) = (text_of(&kind_of, 1)?, text_of(&kind_of, 2)?);
    let schema = schema_of(&kind).ok_or_else(|| ProtobufError::Kind {
        api_version: api_version.clone(),
        kind: kind.clone(),
    })?;
    let mut left = MAX_STRUCTS;
    let mut object = match envelope.get(&2) {
        Some(raw @ Wire::Bytes(_)) => value(schema, raw, 0, &mut left)?,
        _ => Value::Object(Map::new()),
    };
    *object.member(&["apiVersion"]) = Value::from(api_version);
    *object.member(&["kind"]) = Value::from(kind);
    Ok(object)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::Deployment;
    use k8s_openapi::api::core::v1::Secret;
    use serde_json::json;

    use super::*;

    fn bytes(number: u32, content: impl AsRef<[u8]>) -> Vec<u8> {
        let mut out = Vec::new();
        prost::encoding::bytes::encode(number, &content.as_ref().to_vec(), &mut out);
        out
    }

    fn int(number: u32, value: u64) -> Vec<u8> {
        let mut out = Vec::new();
        prost::encoding::uint64::encode(number, &value, &mut out);
        out
    }

    fn body(api_version: &str, kind: &str, object: &[u8]) -> Vec<u8> {
        let kind = [bytes(1, api_version), bytes(2, kind)].concat();
        [MAGIC.to_vec(), bytes(1, kind), bytes(2, object)].concat()
    }

    #[test]
    fn every_type_of_the_table_has_its_fields() {
        assert!(NUMBERS.len() > 600);
        let pod = &NUMBERS["core.v1.Pod"];
        assert!(matches!(pod.get(&3), Some(Slot::Field("status"))));
        let Some(Slot::Inline(sources)) = NUMBERS["core.v1.Volume"].get(&2) else {
            panic!("a volume's sources are a message of their own");
        };
        assert!(matches!(sources.get(&19), Some(Slot::Field("configMap"))));
        let named = &NUMBERS["admissionregistration.v1.NamedRuleWithOperations"];
        assert!(matches!(named.get(&1), Some(Slot::Field("resourceNames"))));
        let Some(Slot::Inline(operations)) = named.get(&2) else {
            panic!("a rule is a message of its own");
        };
        assert!(matches!(
            operations.get(&1),
            Some(Slot::Field("operations"))
        ));
        let Some(Slot::Inline(rule)) = operations.get(&2) else {
            panic!("what it is about is a message within it");
        };
        assert!(matches!(rule.get(&4), Some(Slot::Field("scope"))));
    }

    #[test]
    fn secrets_keep_their_bytes_and_times_and_drop_what_was_not_set() {
        let entry = [bytes(1, "k"), bytes(2, [0, 255])].concat();
        let metadata = [
            bytes(1, "s"),
            bytes(3, ""),
            int(7, 0),
            bytes(8, int(1, 1)),
            bytes(9, ""),
        ];
        let object = [bytes(1, metadata.concat()), bytes(2, entry), int(5, 0)].concat();
        let schema = |kind: &str| (kind == "Secret").then(TypeSchema::of::<Secret>);
        let expected = json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": "s", "creationTimestamp": "1970-01-01T00:00:01Z"},
            "data": {"k": "AP8="},
            "immutable": false,
        });
        assert_eq!(
            to_json(&body("v1", "Secret", &object), schema),
            Ok(expected)
        );
        let other = to_json(&body("v1", "Pod", &object), schema);
        assert_eq!(
            other.unwrap_err().to_string(),
            "no kind \"Pod\" is registered for version \"v1\""
        );
    }

    #[test]
    fn inlined_messages_amounts_and_numbers_or_texts_are_json_scalars() {
        let port = bytes(2, [int(1, 1), int(2, 0), bytes(3, "http")].concat());
        let probe = [
            bytes(1, bytes(2, [bytes(1, "/"), port].concat())),
            int(2, 5),
        ]
        .concat();
        let limit = [bytes(1, "cpu"), bytes(2, bytes(1, "100m"))].concat();
        let container = [bytes(1, "c"), bytes(8, bytes(1, limit)), bytes(10, probe)];
        let spec = bytes(2, container.concat());
        let template = bytes(2, spec);
        let spec = [int(1, 0), bytes(3, template)].concat();
        let object = bytes(2, spec);
        let schema = |_: &str| Some(TypeSchema::of::<Deployment>());
        let decoded = to_json(&body("apps/v1", "Deployment", &object), schema).unwrap();
        assert_eq!(
            decoded["spec"],
            json!({"replicas": 0, "template": {"spec": {"containers": [{
                "name": "c",
                "resources": {"limits": {"cpu": "100m"}},
                "livenessProbe": {"httpGet": {"path": "/", "port": "http"}, "initialDelaySeconds": 5},
            }]}}})
        );
    }

    #[test]
    fn no_more_is_made_of_a_message_than_of_json() {
        let schema = |_: &str| Some(TypeSchema::of::<Secret>());
        let read = |managed: Vec<u8>, times: usize| {
            let metadata = bytes(1, managed.repeat(times));
            to_json(&body("v1", "Secret", &metadata), schema).map(drop)
        };
        let managed = |fields: &str| bytes(17, bytes(7, bytes(1, fields)));
        for (entry, made) in [(bytes(17, b""), 1), (managed("[{},{}]"), 4)] {
            // The object itself and its metadata count too.
            let most = (MAX_STRUCTS - 2) / made;
            assert_eq!(read(entry.clone(), most), Ok(()));
            assert_eq!(read(entry, most + 1), Err(too_many()));
        }
        let deep = managed(&"[".repeat(decode::MAX_DEPTH + 1));
        assert!(read(deep, 1).is_err());
    }

    #[test]
    fn any_time_is_read() {
        let schema = |_: &str| Some(TypeSchema::of::<Secret>());
        let created = |time: Vec<u8>| {
            let metadata = bytes(1, bytes(8, time));
            let decoded = to_json(&body("v1", "Secret", &metadata), schema).unwrap();
            decoded["metadata"]["creationTimestamp"].clone()
        };
        // As Go writes negative numbers.
        let seconds = |seconds: i64| int(1, seconds as u64);
        assert_eq!(created(seconds(-62_135_596_799)), "0001-01-01T00:00:01Z");
        assert_eq!(created(seconds(-62_135_596_800)), json!(null));
        assert_eq!(created(seconds(i64::MIN)), "0000-01-01T00:00:00Z");
        assert_eq!(created(seconds(20_000_000_000)), "2603-10-11T11:33:20Z");
    }

    proptest::proptest! {
        #[test]
        fn never_panics(noise: Vec<u8>) {
            let schema = |_: &str| Some(TypeSchema::of::<Deployment>());
            let framed = [MAGIC, &noise].concat();
            // Whether it can be read does not matter here.
            drop(to_json(&framed, schema));
            drop(to_json(&body("apps/v1", "Deployment", &noise), schema));
        }
    }

    #[test]
    fn an_empty_message_is_an_empty_object() {
        let schema = |_: &str| Some(TypeSchema::of::<Secret>());
        let expected = json!({"apiVersion": "v1", "kind": "Secret"});
        assert_eq!(to_json(&body("v1", "Secret", b""), schema), Ok(expected));
        assert_eq!(to_json(b"{}", schema), Err(ProtobufError::Magic));
    }
}
