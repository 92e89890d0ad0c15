//! YAML as bodies and manifests are written in it, read in linear time and bounded memory.
//!
//! Documents become trees in which an alias is a reference to what it stands for. What a tree would be with every alias
//! written out is known while it is built, so a document that would grow out of proportion, or nest too deeply, is
//! refused before anything is written out. Scalars mean what the core schema of YAML 1.2 says; merge keys are merged.

mod scalar;

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use granit_parser::{ErrorKind, Event, Parser, ScalarStyle, ScanError, StrInput, Tag};
use serde::Deserialize;
use serde::de::value::Error as DeserializeError;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use crate::decode::MAX_DEPTH;

/// What all aliases of a document may add to it, in bytes: as much as a whole body may have.
const MAX_ALIASED: usize = 3 << 20;
/// What a node counts beside its text.
const NODE: usize = 32;
const MERGE: &str = "<<";
/// What YAML allows beside printable characters.
const CONTROLS: [char; 3] = ['\t', '\n', '\r'];

/// Why a document cannot be read, in the words of Go's library.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("yaml: {0}")]
pub struct YamlError(String);

impl YamlError {
    /// With the line where Go's library has it: in front, and not for the first one.
    fn at(line: usize, why: &str) -> Self {
        match line {
            0 | 1 => Self(why.to_owned()),
            line => Self(format!("line {line}: {why}")),
        }
    }

    fn too_deep(line: usize) -> Self {
        Self::at(line, &format!("exceeded max depth of {MAX_DEPTH}"))
    }
}

impl From<ScanError> for YamlError {
    fn from(error: ScanError) -> Self {
        let line = error.marker().line();
        match error.kind() {
            ErrorKind::RecursionLimitExceeded => Self::too_deep(line),
            _ => Self::at(line, &error.info()),
        }
    }
}

/// One document of a stream.
#[derive(Clone, Debug)]
pub struct Document(Rc<Node>);

/// What a document is made of.
#[derive(Debug)]
pub(crate) struct Node {
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
    let text = characters(bytes)?;
    let options = granit_parser::options! {
        emit_comments: false,
        flow_nesting_limit: MAX_DEPTH,
        block_nesting_limit: MAX_DEPTH,
    };
    Builder::new(Parser::new_from_str_with_options(&text, options)).stream()
}

/// The only document of a body.
pub fn document(bytes: &[u8]) -> Result<Document, YamlError> {
    let mut all = documents(bytes)?;
    match (all.len(), all.pop()) {
        (0, _) => Ok(Document(Node::scalar(Content::Plain(String::new())))),
        (1, Some(only)) => Ok(only),
        _ => Err(YamlError(
            "a body is one document: send each object in a request of its own".to_owned(),
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
            .map_err(|_| YamlError("invalid UTF-16".to_owned()))
    };
    let text = match bytes {
        [0xff, 0xfe, rest @ ..] => wide(u16::from_le_bytes, rest)?,
        [0xfe, 0xff, rest @ ..] => wide(u16::from_be_bytes, rest)?,
        [0xef, 0xbb, 0xbf, rest @ ..] | rest => std::str::from_utf8(rest)
            .map(Cow::Borrowed)
            .map_err(|_| YamlError("invalid leading UTF-8 octet".to_owned()))?,
    };
    let refused = |letter: char| letter.is_ascii_control() && !CONTROLS.contains(&letter);
    match text.contains(refused) {
        true => Err(YamlError("control characters are not allowed".to_owned())),
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

/// A collection whose end has not been read.
enum Open {
    Sequence(Vec<Rc<Node>>),
    Mapping {
        entries: Vec<(String, Rc<Node>)>,
        /// What a merge key brings, in order.
        merged: Vec<Rc<Node>>,
        key: Key,
    },
}

/// What the next node of a mapping is.
enum Key {
    Wanted,
    Of(String),
    Merge,
}

struct Builder<'a> {
    parser: Parser<'a, StrInput<'a>>,
    open: Vec<(Open, usize)>,
    anchors: HashMap<usize, Rc<Node>>,
    aliased: usize,
    line: usize,
}

impl<'a> Builder<'a> {
    fn new(parser: Parser<'a, StrInput<'a>>) -> Self {
        Self {
            parser,
            open: Vec::new(),
            anchors: HashMap::new(),
            aliased: 0,
            line: 0,
        }
    }

    fn stream(mut self) -> Result<Vec<Document>, YamlError> {
        let mut documents = Vec::new();
        while let Some(next) = self.parser.next_event() {
            let (event, span) = next?;
            self.line = span.start.line();
            match event {
                Event::DocumentStart(..) => {
                    self.anchors.clear();
                    self.aliased = 0;
                }
                Event::StreamEnd => break,
                event => documents.extend(self.event(event)?.map(Document)),
            }
        }
        Ok(documents)
    }

    fn error(&self, why: &str) -> YamlError {
        YamlError::at(self.line, why)
    }

    /// Takes an event; the root of a document when that is complete.
    fn event(&mut self, event: Event<'a>) -> Result<Option<Rc<Node>>, YamlError> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain;
                let is_key = matches!(
                    self.open.last(),
                    Some((
                        Open::Mapping {
                            key: Key::Wanted,
                            ..
                        },
                        _
                    ))
                );
                if is_key && plain && tag.is_none() && text == MERGE {
                    self.expect(Key::Merge);
                    return Ok(None);
                }
                let content = self.scalar(text.into_owned(), plain, tag.as_deref())?;
                self.node(Node::scalar(content), anchor)
            }
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor).cloned() else {
                    return Err(self.error("anchor value contains itself"));
                };
                self.aliased = self.aliased.saturating_add(node.weight);
                if self.aliased > MAX_ALIASED {
                    return Err(self.error("document contains excessive aliasing"));
                }
                self.node(node, 0)
            }
            Event::SequenceStart(_, anchor, _) => self.enter(Open::Sequence(Vec::new()), anchor),
            Event::MappingStart(_, anchor, _) => {
                let mapping = Open::Mapping {
                    entries: Vec::new(),
                    merged: Vec::new(),
                    key: Key::Wanted,
                };
                self.enter(mapping, anchor)
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some((Open::Sequence(items), anchor)) => {
                    self.node(Rc::new(Node::sequence(items)), anchor)
                }
                Some((
                    Open::Mapping {
                        entries, merged, ..
                    },
                    anchor,
                )) => {
                    let entries = self.merge(entries, merged)?;
                    self.node(Rc::new(Node::mapping(entries)), anchor)
                }
                None => Ok(None),
            },
            _ => Ok(None),
        }
    }

    fn enter(&mut self, collection: Open, anchor: usize) -> Result<Option<Rc<Node>>, YamlError> {
        if self.open.len() >= MAX_DEPTH {
            return Err(YamlError::too_deep(self.line));
        }
        self.open.push((collection, anchor));
        Ok(None)
    }

    fn expect(&mut self, next: Key) {
        if let Some((Open::Mapping { key, .. }, _)) = self.open.last_mut() {
            *key = next;
        }
    }

    fn scalar(&self, text: String, plain: bool, tag: Option<&Tag>) -> Result<Content, YamlError> {
        let Some(wanted) = tag.and_then(Tag::core_suffix) else {
            return Ok(match plain && tag.is_none() {
                true => Content::Plain(text),
                false => Content::Text(text),
            });
        };
        match scalar::is(&text, wanted) {
            true if wanted == "str" => Ok(Content::Text(text)),
            true => Ok(Content::Plain(text)),
            false => Err(self.error(&format!("cannot decode !!str {text:?} as a !!{wanted}"))),
        }
    }

    /// Puts a complete node where it belongs.
    fn node(&mut self, node: Rc<Node>, anchor: usize) -> Result<Option<Rc<Node>>, YamlError> {
        if self.open.len() + node.depth > MAX_DEPTH {
            return Err(YamlError::too_deep(self.line));
        }
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        match self.open.last_mut() {
            None => return Ok(Some(node)),
            Some((Open::Sequence(items), _)) => items.push(node),
            Some((
                Open::Mapping {
                    entries,
                    merged,
                    key,
                },
                _,
            )) => {
                *key = match (std::mem::replace(key, Key::Wanted), &node.content) {
                    (Key::Of(name), _) => {
                        entries.push((name, node));
                        Key::Wanted
                    }
                    (Key::Merge, _) => {
                        merged.push(node);
                        Key::Wanted
                    }
                    (Key::Wanted, Content::Plain(text) | Content::Text(text)) => {
                        Key::Of(text.clone())
                    }
                    (Key::Wanted, _) => {
                        return Err(self.error("invalid map key: only text can be one"));
                    }
                };
            }
        }
        Ok(None)
    }

    /// The entries of a mapping with those that merge keys bring and that it has not itself.
    fn merge(
        &self,
        mut entries: Vec<(String, Rc<Node>)>,
        merged: Vec<Rc<Node>>,
    ) -> Result<Vec<(String, Rc<Node>)>, YamlError> {
        if merged.is_empty() {
            return Ok(entries);
        }
        let mut known: HashSet<String> = entries.iter().map(|(name, _)| name.clone()).collect();
        let mut take = |source: &Node| match &source.content {
            Content::Mapping(others) => {
                for (name, value) in others {
                    if known.insert(name.clone()) {
                        entries.push((name.clone(), value.clone()));
                    }
                }
                Ok(())
            }
            _ => Err(self.error("map merge requires map or sequence of maps as the value")),
        };
        for source in &merged {
            match &source.content {
                Content::Sequence(sources) => sources.iter().try_for_each(|source| take(source))?,
                _ => take(source)?,
            }
        }
        Ok(entries)
    }
}

impl Document {
    /// To be deserialised.
    pub(crate) fn root(&self) -> &Node {
        &self.0
    }

    /// What Go calls the value that the document is.
    pub(crate) fn json_kind(&self) -> &'static str {
        match &self.0.content {
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
