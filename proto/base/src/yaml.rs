//! YAML as bodies and manifests are written in it, read in linear time and bounded memory, and written as Kubernetes' clients
//! write it.
//!
//! Documents become trees in which an alias is a reference to what it stands for. What a tree would be with every alias
//! written out is known while it is built, so a document that would grow out of proportion, or nest too deeply, is
//! refused before anything is written out. Everything means what it means to sigs.k8s.io/yaml, which makes JSON of what
//! go-yaml reads: scalars are those of YAML 1.1, keys become text, what comes later in a mapping wins over what came
//! before, be it there or merged into it, and keys are in order of their names.

mod builder;
mod scalar;
mod stream;
mod write;

pub use stream::{Objects, objects};
pub use write::{item_to_string, to_string};

use std::borrow::Cow;
use std::rc::Rc;

use granit_parser::Parser;
use serde::Deserialize;
use serde::de::value::Error as DeserializeError;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use crate::json::MAX_DEPTH;
use builder::Builder;

/// What a node counts beside its text.
const NODE: usize = 32;
const MERGE: &str = "<<";
/// What YAML allows beside printable characters.
const CONTROLS: [char; 3] = ['\t', '\n', '\r'];

/// Why a document cannot be read, in the words of Go's libraries.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct YamlError(String);

impl YamlError {
    /// With the line where Go's library has it: in front, and not for the first one.
    fn at(line: usize, why: &str) -> Self {
        match line {
            0 | 1 => Self(format!("yaml: {why}")),
            line => Self(format!("yaml: line {line}: {why}")),
        }
    }

    fn too_deep(line: usize) -> Self {
        Self::at(line, &format!("exceeded max depth of {MAX_DEPTH}"))
    }
}

/// One document of a stream.
#[derive(Clone, Debug)]
pub struct Document {
    root: Rc<Node>,
    /// What Go's strict reader says of keys that a mapping has twice.
    duplicates: Vec<String>,
}

/// What a document is made of, to be deserialised by reference.
#[derive(Debug)]
pub struct Node {
    content: Content,
    /// Bytes of the subtree with its aliases written out.
    weight: usize,
    /// Collections below each other, with aliases written out; none in a scalar.
    depth: usize,
}

#[derive(Debug)]
enum Content {
    /// Its type is told by how it looks.
    Plain(String),
    Text(String),
    Sequence(Vec<Rc<Node>>),
    Mapping(Vec<(String, Rc<Node>)>),
}

/// The documents of a stream; an empty one is null.
pub fn documents(bytes: &[u8]) -> Result<Vec<Document>, YamlError> {
    read(&characters(bytes)?, 0)
}

/// The documents of a text that has lines before it.
fn read(text: &str, lines_before: usize) -> Result<Vec<Document>, YamlError> {
    let options = granit_parser::options! {
        emit_comments: false,
        flow_nesting_limit: MAX_DEPTH,
        block_nesting_limit: MAX_DEPTH,
    };
    let parser = Parser::new_from_str_with_options(text, options);
    Builder::new(parser, lines_before).stream()
}

/// The only document of a body.
pub fn document(bytes: &[u8]) -> Result<Document, YamlError> {
    let mut all = documents(bytes)?;
    match (all.len(), all.pop()) {
        (0, _) => Ok(Document {
            root: Node::scalar(Content::Plain(String::new())),
            duplicates: Vec::new(),
        }),
        (1, Some(only)) => Ok(only),
        _ => Err(YamlError(
            "yaml: a body is one document: send each object in a request of its own".to_owned(),
        )),
    }
}

/// The text of a stream, which may be UTF-16 if it begins with a byte order mark.
fn characters(bytes: &[u8]) -> Result<Cow<'_, str>, YamlError> {
    let wide = |read: fn([u8; 2]) -> u16, bytes: &[u8]| {
        let units = bytes.chunks_exact(2).map(|pair| read([pair[0], pair[1]]));
        char::decode_utf16(units)
            .collect::<Result<String, _>>()
            .map(Cow::Owned)
            .map_err(|_| YamlError("yaml: invalid UTF-16".to_owned()))
    };
    let text = match bytes {
        [0xff, 0xfe, rest @ ..] => wide(u16::from_le_bytes, rest)?,
        [0xfe, 0xff, rest @ ..] => wide(u16::from_be_bytes, rest)?,
        [0xef, 0xbb, 0xbf, rest @ ..] | rest => std::str::from_utf8(rest)
            .map(Cow::Borrowed)
            .map_err(|_| YamlError("yaml: invalid leading UTF-8 octet".to_owned()))?,
    };
    let refused = |letter: char| letter.is_ascii_control() && !CONTROLS.contains(&letter);
    match text.contains(refused) {
        true => Err(YamlError(
            "yaml: control characters are not allowed".to_owned(),
        )),
        false => Ok(text),
    }
}

impl Node {
    fn scalar(content: Content) -> Rc<Self> {
        let length = match &content {
            Content::Plain(text) | Content::Text(text) => text.len(),
            _ => 0,
        };
        Rc::new(Self {
            content,
            weight: NODE + length,
            depth: 0,
        })
    }

    fn sequence(items: Vec<Rc<Self>>) -> Self {
        Self {
            weight: items
                .iter()
                .fold(NODE, |sum, item| sum.saturating_add(item.weight)),
            depth: 1 + items.iter().map(|item| item.depth).max().unwrap_or(0),
            content: Content::Sequence(items),
        }
    }

    fn mapping(entries: Vec<(String, Rc<Self>)>) -> Self {
        Self {
            weight: entries.iter().fold(NODE, |sum, (name, value)| {
                sum.saturating_add(name.len()).saturating_add(value.weight)
            }),
            depth: 1 + entries
                .iter()
                .map(|(_, value)| value.depth)
                .max()
                .unwrap_or(0),
            content: Content::Mapping(entries),
        }
    }
}

impl Document {
    /// The value that the document is, to be deserialised.
    pub fn root(&self) -> &Node {
        &self.root
    }

    /// What Go's strict reader says of a document in which keys are given twice. The last value of each counts.
    pub fn strict_error(&self) -> Option<String> {
        match self.duplicates.is_empty() {
            true => None,
            false => Some(format!(
                "yaml: unmarshal errors:\n  {}",
                self.duplicates.join("\n  ")
            )),
        }
    }

    /// What Go calls the value that the document is: `null`, `bool`, `number`, `string`, `array`, `object`.
    pub fn json_kind(&self) -> &'static str {
        match &self.root.content {
            Content::Plain(text) => scalar::json_kind(text),
            Content::Text(_) => "string",
            Content::Sequence(_) => "array",
            Content::Mapping(_) => "object",
        }
    }

    /// The same as JSON.
    pub fn to_value(&self) -> Result<Value, YamlError> {
        Value::deserialize(self.root()).map_err(|error| YamlError(error.to_string()))
    }
}

impl<'de> Deserializer<'de> for &Node {
    type Error = DeserializeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DeserializeError> {
        match &self.content {
            Content::Plain(text) => scalar::visit(text, visitor),
            Content::Text(text) => visitor.visit_str(text),
            Content::Sequence(items) => visitor.visit_seq(Items(items.iter())),
            Content::Mapping(entries) => visitor.visit_map(Entries {
                rest: entries.iter(),
                value: None,
            }),
        }
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

struct Items<'a>(std::slice::Iter<'a, Rc<Node>>);

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = DeserializeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, DeserializeError> {
        let next = self.0.next();
        next.map(|node| seed.deserialize(&**node)).transpose()
    }
}

struct Entries<'a> {
    rest: std::slice::Iter<'a, (String, Rc<Node>)>,
    value: Option<&'a Node>,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = DeserializeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, DeserializeError> {
        let Some((name, value)) = self.rest.next() else {
            return Ok(None);
        };
        self.value = Some(value);
        let name = serde::de::value::StrDeserializer::new(name);
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(
        &mut self,
        seed: V,
    ) -> Result<V::Value, DeserializeError> {
        match self.value.take() {
            Some(node) => seed.deserialize(node),
            None => Err(DeserializeError::custom("a value before its key")),
        }
    }
}

#[cfg(test)]
mod tests;
