//! Documents in protobuf: the messages of gnostic's `OpenAPIv2.proto` and `OpenAPIv3.proto`, which is what kubectl asks for.
//!
//! The messages follow the JSON, field by field. A line of `gnostic/v2.txt` and `v3.txt` is a message, and an entry
//! `name:number:type` one of its fields, where `[type]` is repeated. What JSON has keys for that are no names of fields is
//! repeated as a pair of the key (1) and the value (2): `x-*` are extensions, `/*` paths, `0*` codes, `*` all others. A
//! message with `?` holds the first that fits: `-` always, `$ref` what has it, `in=body` what has that, else what has the
//! type.

use std::collections::HashMap;
use std::sync::LazyLock;

use serde_json::Value;

/// The messages of one version.
pub(super) struct Messages(HashMap<&'static str, Message>);

pub(super) static V2: LazyLock<Messages> =
    LazyLock::new(|| Messages::parse(include_str!("gnostic/v2.txt")));
pub(super) static V3: LazyLock<Messages> =
    LazyLock::new(|| Messages::parse(include_str!("gnostic/v3.txt")));

enum Message {
    Fields(Vec<Field>),
    /// One of them, told apart by their names.
    Choice(Vec<Field>),
}

struct Field {
    name: &'static str,
    number: u32,
    kind: Kind,
    is_repeated: bool,
}

#[derive(Clone, Copy)]
enum Kind {
    Text,
    Bool,
    Int,
    Double,
    /// Text in YAML, which JSON is.
    Any,
    Message(&'static str),
}

/// Whether what is zero is written: it is where it was chosen or is one of many.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Zeros {
    LeftOut,
    Written,
}

impl Field {
    fn parse(entry: &'static str) -> Option<Self> {
        let (rest, kind) = entry.rsplit_once(':')?;
        let (name, number) = rest.rsplit_once(':')?;
        let one = kind
            .strip_prefix('[')
            .and_then(|kind| kind.strip_suffix(']'));
        let is_repeated = one.is_some();
        let kind = match one.unwrap_or(kind) {
            "string" => Kind::Text,
            "bool" => Kind::Bool,
            "int" => Kind::Int,
            "double" => Kind::Double,
            "any" => Kind::Any,
            message => Kind::Message(message),
        };
        Some(Self {
            name,
            number: number.parse().ok()?,
            kind,
            is_repeated,
        })
    }

    /// Whether the field holds what JSON has under a key that is no name.
    fn takes(&self, key: &str) -> bool {
        match self.name {
            "x-*" => key.starts_with("x-"),
            "/*" => key.starts_with('/'),
            "0*" => key == "default" || key.starts_with(|c: char| c.is_ascii_digit()),
            name => name == "*",
        }
    }

    /// Whether it is the one to choose for a value.
    fn fits(&self, value: &Value) -> bool {
        match self.name {
            "-" => true,
            "bool" => value.is_boolean(),
            "number" => value.is_number(),
            "string" => value.is_string(),
            name => match name.split_once('=') {
                Some((field, wanted)) => value.get(field).is_some_and(|found| found == wanted),
                None => value.get(name).is_some(),
            },
        }
    }
}

impl Messages {
    fn parse(table: &'static str) -> Self {
        let messages = table.lines().filter_map(|line| {
            let (name, fields) = line.split_once(' ')?;
            let parse = |fields: &'static str| fields.split(' ').filter_map(Field::parse).collect();
            let message = match fields.strip_prefix("? ") {
                Some(fields) => Message::Choice(parse(fields)),
                None => Message::Fields(parse(fields)),
            };
            Some((name, message))
        });
        Self(messages.collect())
    }

    /// A document.
    pub(super) fn document(&self, document: &Value) -> Vec<u8> {
        self.message("Document", document)
    }

    fn message(&self, name: &str, value: &Value) -> Vec<u8> {
        let mut out = Vec::new();
        match (self.0.get(name), value) {
            (Some(Message::Choice(fields)), value) => {
                if let Some(field) = fields.iter().find(|field| field.fits(value)) {
                    self.field(field, value, Zeros::Written, &mut out);
                }
            }
            (Some(Message::Fields(fields)), Value::Object(object)) => {
                for (key, value) in object {
                    if let Some(field) = fields.iter().find(|field| field.name == key) {
                        self.field(field, value, Zeros::LeftOut, &mut out);
                    } else if let Some(field) = fields.iter().find(|field| field.takes(key)) {
                        let mut pair = Vec::new();
                        bytes(1, key.as_bytes(), &mut pair);
                        self.value(2, field.kind, value, Zeros::LeftOut, &mut pair);
                        bytes(field.number, &pair, &mut out);
                    }
                }
            }
            _ => {}
        }
        out
    }

    fn field(&self, field: &Field, value: &Value, zeros: Zeros, out: &mut Vec<u8>) {
        match value {
            Value::Array(items) if field.is_repeated => {
                for item in items {
                    self.value(field.number, field.kind, item, Zeros::Written, out);
                }
            }
            value => self.value(field.number, field.kind, value, zeros, out),
        }
    }

    fn value(&self, number: u32, kind: Kind, value: &Value, zeros: Zeros, out: &mut Vec<u8>) {
        let is_written = |is_zero: bool| !is_zero || zeros == Zeros::Written;
        match (kind, value) {
            (Kind::Text, Value::String(text)) if is_written(text.is_empty()) => {
                bytes(number, text.as_bytes(), out);
            }
            (Kind::Bool, Value::Bool(set)) if is_written(!set) => {
                tag(number, 0, out);
                varint(u64::from(*set), out);
            }
            (Kind::Int, Value::Number(found)) => {
                if let Some(found) = found.as_i64().filter(|found| is_written(*found == 0)) {
                    tag(number, 0, out);
                    // Negative numbers are the upper half.
                    varint(found as u64, out);
                }
            }
            (Kind::Double, Value::Number(found)) => {
                if let Some(found) = found.as_f64().filter(|found| is_written(*found == 0.0)) {
                    tag(number, 1, out);
                    out.extend(found.to_le_bytes());
                }
            }
            (Kind::Any, value) => {
                let mut any = Vec::new();
                bytes(2, value.to_string().as_bytes(), &mut any);
                bytes(number, &any, out);
            }
            (Kind::Message(name), value) => bytes(number, &self.message(name, value), out),
            _ => {}
        }
    }
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(0x80 | (value & 0x7f) as u8);
        value >>= 7;
    }
    out.push(value as u8);
}

fn tag(number: u32, wire_type: u64, out: &mut Vec<u8>) {
    varint((u64::from(number) << 3) | wire_type, out);
}

fn bytes(number: u32, content: &[u8], out: &mut Vec<u8>) {
    tag(number, 2, out);
    varint(content.len() as u64, out);
    out.extend_from_slice(content);
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    /// The fields of a message: numbers, and what they hold as bytes; numbers in their own eight.
    pub(in crate::openapi) fn fields(mut message: &[u8]) -> Vec<(u32, Vec<u8>)> {
        fn varint(message: &mut &[u8]) -> u64 {
            let (mut value, mut shift) = (0, 0);
            loop {
                let (first, rest) = message.split_first().expect("a whole number");
                *message = rest;
                value |= u64::from(first & 0x7f) << shift;
                shift += 7;
                if first & 0x80 == 0 {
                    return value;
                }
            }
        }
        let mut fields = Vec::new();
        while !message.is_empty() {
            let tag = varint(&mut message);
            let held = match tag & 7 {
                0 => varint(&mut message).to_le_bytes().to_vec(),
                1 => message.split_off(..8).expect("eight bytes").to_vec(),
                2 => {
                    let length = usize::try_from(varint(&mut message)).expect("a length");
                    message
                        .split_off(..length)
                        .expect("that many bytes")
                        .to_vec()
                }
                other => panic!("wire type {other}"),
            };
            fields.push((u32::try_from(tag >> 3).expect("a number"), held));
        }
        fields
    }

    /// All that stands at a path of field numbers.
    pub(in crate::openapi) fn at(message: &[u8], path: &[u32]) -> Vec<Vec<u8>> {
        let Some((number, rest)) = path.split_first() else {
            return vec![message.to_vec()];
        };
        let found = fields(message)
            .into_iter()
            .filter(|(field, _)| field == number);
        found.flat_map(|(_, held)| at(&held, rest)).collect()
    }

    fn texts(message: &[u8], path: &[u32]) -> Vec<String> {
        let found = at(message, path).into_iter();
        found
            .map(|held| String::from_utf8(held).expect("text"))
            .collect()
    }

    #[test]
    fn a_document_of_v2_has_gnostics_numbers() {
        let parameter =
            json!({"name": "limit", "in": "query", "type": "integer", "uniqueItems": true});
        let path = json!({"name": "name", "in": "path", "type": "string", "required": true});
        let body = json!({"name": "body", "in": "body", "required": true, "schema": {"$ref": "#/definitions/A"}});
        let document = json!({
            "swagger": "2.0",
            "info": {"title": "T", "version": "v1"},
            "paths": {"/a": {
                "parameters": [path],
                "patch": {
                    "operationId": "patchA",
                    "consumes": ["a", "b"],
                    "tags": ["x", ""],
                    "parameters": [parameter, body],
                    "responses": {"200": {"description": "OK", "schema": {"$ref": "#/definitions/A"}}},
                    "x-kubernetes-group-version-kind": {"kind": "A"},
                },
            }},
            "definitions": {"A": {
                "type": "object",
                "required": ["b"],
                "properties": {
                    "b": {"type": "array", "items": {"type": "string"}, "x-kubernetes-patch-strategy": "merge"},
                    "c": {"type": "object", "additionalProperties": {"$ref": "#/definitions/A"}},
                    "x-d": {"type": "object", "additionalProperties": true, "description": ""},
                },
                "x-kubernetes-group-version-kind": [{"group": "", "kind": "A"}],
            }},
            "security": [{"BearerToken": ["a", "b"]}],
            "securityDefinitions": {"BearerToken": {"type": "apiKey", "in": "header", "name": "authorization"}},
        });
        let bytes = V2.document(&document);
        assert_eq!(texts(&bytes, &[1]), ["2.0"]);
        assert_eq!(texts(&bytes, &[2, 1]), ["T"]);
        // Definitions 9, a pair 1, Schema 2.
        let schema = [9, 1, 2];
        assert_eq!(texts(&bytes, &[9, 1, 1]), ["A"]);
        let in_schema = |rest: &[u32]| texts(&bytes, &[&schema[..], rest].concat());
        assert_eq!(in_schema(&[22, 1]), ["object"]);
        assert_eq!(in_schema(&[19]), ["b"]);
        assert_eq!(in_schema(&[31, 1]), ["x-kubernetes-group-version-kind"]);
        assert_eq!(in_schema(&[31, 2, 2]), [r#"[{"group":"","kind":"A"}]"#]);
        // Properties 25, a pair 1, Schema 2.
        assert_eq!(in_schema(&[25, 1, 1]), ["b", "c", "x-d"]);
        assert_eq!(in_schema(&[25, 1, 2, 23, 1, 22, 1]), ["string"]);
        assert_eq!(in_schema(&[25, 1, 2, 31, 2, 2]), ["\"merge\""]);
        assert_eq!(in_schema(&[25, 1, 2, 21, 1, 1]), ["#/definitions/A"]);
        assert_eq!(in_schema(&[25, 1, 2, 4]), Vec::<String>::new());
        let boolean = at(&bytes, &[9, 1, 2, 25, 1, 2, 21, 2]);
        assert_eq!(boolean, [1_u64.to_le_bytes()]);
        // Paths 8, a pair 2, PathItem 2, Operation 8.
        let operation = [8, 2, 2, 8];
        let in_operation = |rest: &[u32]| texts(&bytes, &[&operation[..], rest].concat());
        assert_eq!(texts(&bytes, &[8, 2, 1]), ["/a"]);
        assert_eq!(in_operation(&[5]), ["patchA"]);
        assert_eq!(in_operation(&[7]), ["a", "b"]);
        assert_eq!(in_operation(&[1]), ["x", ""]);
        // ParametersItem 8, Parameter 1; NonBodyParameter 2, of the query 3; BodyParameter 1.
        assert_eq!(in_operation(&[8, 1, 2, 3, 4]), ["limit"]);
        assert_eq!(in_operation(&[8, 1, 1, 2]), ["body"]);
        assert_eq!(in_operation(&[8, 1, 1, 5, 1]), ["#/definitions/A"]);
        // Those of the path: 9, 1; NonBodyParameter 2, of the path 4.
        assert_eq!(texts(&bytes, &[8, 2, 2, 9, 1, 2, 4, 4]), ["name"]);
        // Responses 9, a pair 1, ResponseValue 2, Response 1, SchemaItem 2, Schema 1.
        assert_eq!(in_operation(&[9, 1, 1]), ["200"]);
        assert_eq!(in_operation(&[9, 1, 2, 1, 2, 1, 1]), ["#/definitions/A"]);
        assert_eq!(in_operation(&[13, 2, 2]), [r#"{"kind":"A"}"#]);
        assert_eq!(texts(&bytes, &[12, 1, 1]), ["BearerToken"]);
        assert_eq!(texts(&bytes, &[12, 1, 2, 1]), ["a", "b"]);
        assert_eq!(texts(&bytes, &[13, 1, 2, 2, 2]), ["authorization"]);
    }

    #[test]
    fn a_document_of_v3_has_gnostics_numbers() {
        let document = json!({
            "openapi": "3.0.0",
            "info": {"title": "T", "version": "v1"},
            "paths": {"/a": {"get": {
                "parameters": [{"name": "limit", "in": "query", "schema": {"type": "integer"}}],
                "responses": {"200": {"description": "OK", "content": {
                    "application/json": {"schema": {"$ref": "#/components/schemas/A"}}}}},
            }}},
            "components": {"schemas": {"A": {
                "type": "object",
                "properties": {
                    "b": {"allOf": [{"$ref": "#/components/schemas/A"}], "default": {}},
                    "c": {"type": "string", "default": ""},
                    "d": {"type": "integer", "default": 1},
                },
                "x-kubernetes-list-type": "map",
            }}},
        });
        let bytes = V3.document(&document);
        assert_eq!(texts(&bytes, &[1]), ["3.0.0"]);
        // Components 5, schemas 1, a pair 1, SchemaOrReference 2, Schema 1.
        let schema = [5, 1, 1, 2, 1];
        let in_schema = |rest: &[u32]| at(&bytes, &[&schema[..], rest].concat());
        assert_eq!(in_schema(&[25]), [b"object"]);
        assert_eq!(in_schema(&[36, 2, 2]), [b"\"map\""]);
        // Properties 31, a pair 1, SchemaOrReference 2, Schema 1: all of 26 a Reference 2; default 33.
        let reference = in_schema(&[31, 1, 2, 1, 26, 2, 1]);
        assert_eq!(reference, [b"#/components/schemas/A"]);
        assert_eq!(in_schema(&[31, 1, 2, 1, 33, 3]), [b""]);
        assert_eq!(in_schema(&[31, 1, 2, 1, 33, 1]), [1_f64.to_le_bytes()]);
        // Paths 4, a pair 1, PathItem 2, get 4; parameters 6, Parameter 1; responses 8, a pair 2, Response 2, 1.
        let operation = [4, 1, 2, 4];
        let in_operation = |rest: &[u32]| texts(&bytes, &[&operation[..], rest].concat());
        assert_eq!(in_operation(&[6, 1, 1]), ["limit"]);
        assert_eq!(in_operation(&[8, 2, 1]), ["200"]);
        assert_eq!(in_operation(&[8, 2, 2, 1, 3, 1, 1]), ["application/json"]);
        assert_eq!(
            in_operation(&[8, 2, 2, 1, 3, 1, 2, 1, 2, 1]),
            ["#/components/schemas/A"]
        );
    }

    #[test]
    fn every_message_that_is_named_is_there() {
        for messages in [&*V2, &*V3] {
            for (name, message) in &messages.0 {
                let (Message::Fields(fields) | Message::Choice(fields)) = message;
                assert!(!fields.is_empty(), "{name}");
                for field in fields {
                    if let Kind::Message(other) = field.kind {
                        assert!(messages.0.contains_key(other), "{name}: {other}");
                    }
                }
            }
        }
    }
}
