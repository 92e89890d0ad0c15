//! JSON objects as Kubernetes' protobuf.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::BufMut;
use prost::encoding::{WireType, encode_key, encode_varint};
use serde_json::{Map, Value};

use super::{MAGIC, MAX_DEPTH, NUMBERS, Slot, Slots};
use crate::schema::{Shape, TypeSchema, short};
use crate::time;

/// An object in its envelope. None where something of it has no field in its message, or is no value of its type: nothing is
/// left out.
pub fn from_json(object: &Value, schema: &'static TypeSchema) -> Option<Vec<u8>> {
    let mut fields = object.as_object()?.clone();
    let mut kind = Vec::new();
    for (number, name) in [(1, "apiVersion"), (2, "kind")] {
        let text = fields.remove(name)?;
        chunk(number, text.as_str()?.as_bytes(), &mut kind);
    }
    let mut raw = Vec::new();
    let slots = NUMBERS.get(short(&schema.name))?;
    message(schema, slots, &fields, 0, &mut raw)?;
    let mut body = Vec::with_capacity(raw.len() + kind.len() + 32);
    body.put_slice(MAGIC);
    chunk(1, &kind, &mut body);
    chunk(2, &raw, &mut body);
    // Neither encoded nor of another type.
    chunk(3, b"", &mut body);
    chunk(4, b"", &mut body);
    Some(body)
}

fn chunk(number: u32, bytes: &[u8], out: &mut Vec<u8>) {
    encode_key(number, WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.put_slice(bytes);
}

fn varint(number: u32, value: i64, out: &mut Vec<u8>) {
    encode_key(number, WireType::Varint, out);
    // Negative numbers are the upper half.
    encode_varint(value as u64, out);
}

/// Whether a message, or one that is inlined in it, has a field.
fn has(slots: &Slots, name: &str) -> bool {
    slots.values().any(|slot| match slot {
        Slot::Field(field) => *field == name,
        Slot::Inline(inner) => has(inner, name),
    })
}

/// The fields of an object, by their numbers.
fn message(
    schema: &'static TypeSchema,
    slots: &Slots,
    object: &Map<String, Value>,
    depth: usize,
    out: &mut Vec<u8>,
) -> Option<()> {
    let set = object.iter().filter(|(_, value)| !value.is_null());
    let mut set = set.map(|(name, _)| name);
    if depth > MAX_DEPTH || set.any(|name| !has(slots, name)) {
        return None;
    }
    known(schema, slots, object, depth, out)
}

/// As [`message`], of an object that may have fields elsewhere.
fn known(
    schema: &'static TypeSchema,
    slots: &Slots,
    object: &Map<String, Value>,
    depth: usize,
    out: &mut Vec<u8>,
) -> Option<()> {
    for (number, slot) in slots {
        match slot {
            Slot::Field(name) => {
                if let Some(value) = object.get(*name).filter(|value| !value.is_null()) {
                    let field = schema.field(name)?;
                    values(field.schema, *number, value, depth, out)?;
                }
            }
            Slot::Inline(inner) => {
                let mut bytes = Vec::new();
                known(schema, inner, object, depth, &mut bytes)?;
                chunk(*number, &bytes, out);
            }
        }
    }
    Some(())
}

/// A field, which is written once for each item of a list and each pair of a map.
fn values(
    schema: &'static TypeSchema,
    number: u32,
    value: &Value,
    depth: usize,
    out: &mut Vec<u8>,
) -> Option<()> {
    match (&schema.shape, value) {
        (Shape::List(item), Value::Array(list)) => {
            for value in list {
                single(item, number, value, depth, out)?;
            }
        }
        (Shape::Map(item), Value::Object(map)) => {
            for (key, value) in map {
                let mut pair = Vec::new();
                chunk(1, key.as_bytes(), &mut pair);
                single(item, 2, value, depth, &mut pair)?;
                chunk(number, &pair, out);
            }
        }
        _ => single(schema, number, value, depth, out)?,
    }
    Some(())
}

/// A value that is no field's list or map.
fn single(
    schema: &'static TypeSchema,
    number: u32,
    value: &Value,
    depth: usize,
    out: &mut Vec<u8>,
) -> Option<()> {
    let mut inner = Vec::new();
    match (&schema.shape, value) {
        (Shape::Bool, Value::Bool(set)) => {
            varint(number, i64::from(*set), out);
            return Some(());
        }
        (Shape::Int32 | Shape::Int64, Value::Number(value)) => {
            varint(number, value.as_i64()?, out);
            return Some(());
        }
        (Shape::Double, Value::Number(value)) => {
            encode_key(number, WireType::SixtyFourBit, out);
            out.put_f64_le(value.as_f64()?);
            return Some(());
        }
        (Shape::String, Value::String(text)) => inner.put_slice(text.as_bytes()),
        (Shape::Bytes, Value::String(text)) => inner = STANDARD.decode(text).ok()?,
        (Shape::Quantity, Value::String(text)) => chunk(1, text.as_bytes(), &mut inner),
        (Shape::Quantity, Value::Number(amount)) => {
            chunk(1, amount.to_string().as_bytes(), &mut inner);
        }
        (Shape::IntOrString, Value::Number(value)) => {
            varint(1, 0, &mut inner);
            varint(2, value.as_i64()?, &mut inner);
        }
        (Shape::IntOrString, Value::String(text)) => {
            varint(1, 1, &mut inner);
            chunk(3, text.as_bytes(), &mut inner);
        }
        (Shape::Time | Shape::MicroTime, Value::String(text)) => {
            let (seconds, nanos) = time::to_unix(text)?;
            varint(1, seconds, &mut inner);
            varint(2, nanos, &mut inner);
        }
        (Shape::Time | Shape::MicroTime, Value::Null) => {}
        (Shape::Any, value) => chunk(1, value.to_string().as_bytes(), &mut inner),
        (Shape::Object(fields), Value::Object(object)) => match NUMBERS.get(short(&schema.name)) {
            Some(slots) => message(schema, slots, object, depth + 1, &mut inner)?,
            None if fields.is_empty() && object.is_empty() => {}
            None => return None,
        },
        // A list where JSON has no field for it, in a map: a message of items.
        (Shape::List(item), Value::Array(list)) => {
            for value in list {
                single(item, 1, value, depth + 1, &mut inner)?;
            }
        }
        _ => return None,
    }
    chunk(number, &inner, out);
    Some(())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::Deployment;
    use k8s_openapi::api::core::v1::{Node, Pod, Secret};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
    use serde_json::json;

    use super::*;
    use crate::protobuf::to_json;

    fn there_and_back(schema: &'static TypeSchema, object: Value) {
        let bytes = from_json(&object, schema).expect("has a message");
        assert_eq!(to_json(&bytes, |_| Some(schema)), Ok(object));
    }

    #[test]
    fn what_is_written_is_read_again() {
        there_and_back(
            TypeSchema::of::<Secret>(),
            json!({
                "apiVersion": "v1", "kind": "Secret",
                "metadata": {
                    "name": "s", "namespace": "n", "generation": 3, "labels": {"a": "b", "c": ""},
                    "creationTimestamp": "2026-01-01T00:00:01Z", "finalizers": ["x/y", "z"],
                    "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u", "controller": true}],
                    "managedFields": [{"manager": "m", "fieldsV1": {"f:data": {".": {}}}, "time": "1969-12-31T23:59:59Z"}],
                },
                "data": {"k": "AP8="}, "immutable": false, "type": "Opaque",
            }),
        );
        there_and_back(
            TypeSchema::of::<Deployment>(),
            json!({
                "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
                "spec": {
                    "replicas": 0,
                    "selector": {"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "k", "operator": "In", "values": ["v"]}]},
                    "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 1}},
                    "template": {"spec": {
                        "containers": [{
                            "name": "c", "resources": {"limits": {"cpu": "100m"}},
                            "livenessProbe": {"httpGet": {"path": "/", "port": "http"}, "initialDelaySeconds": 5},
                            "ports": [{"containerPort": 80}],
                        }],
                        "volumes": [{"name": "v", "configMap": {"name": "m", "defaultMode": 420}}, {"name": "w", "emptyDir": {}}],
                        "tolerations": [{"key": "t", "tolerationSeconds": -1}],
                    }},
                },
            }),
        );
        there_and_back(
            TypeSchema::of::<Node>(),
            json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"},
                "status": {"capacity": {"cpu": "8", "memory": "16Gi"}, "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]},
            }),
        );
    }

    #[test]
    fn refusals_have_a_message() {
        let schema = TypeSchema::of::<Status>();
        let status = json!({
            "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure", "message": "m",
            "reason": "NotFound", "code": 404,
            "details": {"name": "n", "kind": "pods", "causes": [{"reason": "r", "field": "f"}], "retryAfterSeconds": 1},
        });
        there_and_back(schema, status);
    }

    #[test]
    fn nothing_is_left_out() {
        let schema = TypeSchema::of::<Pod>();
        let pod = |more: Value| {
            let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}});
            pod["spec"] = more;
            from_json(&pod, schema)
        };
        assert!(pod(json!({"hostNetwork": true, "nodeName": null})).is_some());
        assert_eq!(pod(json!({"madeUp": true})), None);
        assert_eq!(pod(json!({"hostNetwork": "yes"})), None);
        assert_eq!(from_json(&json!({"metadata": {}}), schema), None);
        assert_eq!(from_json(&json!([]), schema), None);
    }
}
