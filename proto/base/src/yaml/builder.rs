//! Makes documents of a parser's events.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use base64::Engine;
use granit_parser::{ErrorKind, Event, Parser, ScalarStyle, ScanError, StrInput, Tag};

use super::{Content, Document, MERGE, Node, YamlError, scalar};
use crate::json::MAX_DEPTH;

/// What all aliases of a document may add to it, in bytes: as much as a whole body may have.
const MAX_ALIASED: usize = 3 << 20;
/// What is told of keys that a document has twice, in bytes: a key may be as long as the document.
const MAX_TOLD: usize = 64 << 10;
/// The namespace of YAML's own tags.
const TAGS: &str = "tag:yaml.org,2002:";

/// A collection whose end has not been read.
enum Open {
    Sequence(Vec<Rc<Node>>),
    Mapping {
        entries: BTreeMap<String, Entry>,
        key: Key,
    },
}

struct Entry {
    value: Rc<Node>,
    /// Written in the mapping itself, not only merged into it.
    is_written: bool,
}

/// What the next node of a mapping is.
enum Key {
    Wanted,
    Of { name: String, is_text: bool },
    Merge,
}

/// Where a collection begins, and the anchor that it has.
#[derive(Clone, Copy)]
struct Start {
    anchor: usize,
    line: usize,
}

pub(super) struct Builder<'a> {
    parser: Parser<'a, StrInput<'a>>,
    lines_before: usize,
    open: Vec<(Open, Start)>,
    anchors: HashMap<usize, Rc<Node>>,
    aliased: usize,
    duplicates: Vec<String>,
    /// Bytes of `duplicates`.
    told: usize,
    line: usize,
}

impl<'a> Builder<'a> {
    pub(super) fn new(parser: Parser<'a, StrInput<'a>>, lines_before: usize) -> Self {
        Self {
            parser,
            lines_before,
            open: Vec::new(),
            anchors: HashMap::new(),
            aliased: 0,
            duplicates: Vec::new(),
            told: 0,
            line: 0,
        }
    }

    pub(super) fn stream(mut self) -> Result<Vec<Document>, YamlError> {
        let mut documents = Vec::new();
        while let Some(next) = self.parser.next_event() {
            let (event, span) = next.map_err(|error| self.scan_error(&error))?;
            self.line = self.lines_before + span.start.line();
            match event {
                Event::DocumentStart(..) => {
                    self.anchors.clear();
                    self.aliased = 0;
                }
                Event::StreamEnd => break,
                event => {
                    if let Some(root) = self.event(event)? {
                        self.told = 0;
                        documents.push(Document {
                            root,
                            duplicates: std::mem::take(&mut self.duplicates),
                        });
                    }
                }
            }
        }
        Ok(documents)
    }

    fn scan_error(&self, error: &ScanError) -> YamlError {
        let line = self.lines_before + error.marker().line();
        match error.kind() {
            ErrorKind::RecursionLimitExceeded => YamlError::too_deep(line),
            _ => YamlError::at(line, &error.info()),
        }
    }

    fn error(&self, why: &str) -> YamlError {
        YamlError::at(self.line, why)
    }

    /// Takes an event; the root of a document when that is complete.
    fn event(&mut self, event: Event<'a>) -> Result<Option<Rc<Node>>, YamlError> {
        let line = self.line;
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
                let merges = match &tag {
                    None => plain,
                    Some(tag) => tag.suffix_in_namespace(TAGS).as_deref() == Some("merge"),
                };
                if is_key && merges && text == MERGE {
                    self.expect(Key::Merge);
                    return Ok(None);
                }
                let content = self.scalar(text.into_owned(), plain, tag.as_deref())?;
                self.node(Node::scalar(content), Start { anchor, line })
            }
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor).cloned() else {
                    return Err(self.error("anchor value contains itself"));
                };
                self.aliased = self.aliased.saturating_add(node.weight);
                if self.aliased > MAX_ALIASED {
                    return Err(self.error("document contains excessive aliasing"));
                }
                self.node(node, Start { anchor: 0, line })
            }
            Event::SequenceStart(_, anchor, _) => {
                self.enter(Open::Sequence(Vec::new()), Start { anchor, line })
            }
            Event::MappingStart(_, anchor, _) => {
                let mapping = Open::Mapping {
                    entries: BTreeMap::new(),
                    key: Key::Wanted,
                };
                self.enter(mapping, Start { anchor, line })
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some((Open::Sequence(items), start)) => {
                    self.node(Rc::new(Node::sequence(items)), start)
                }
                Some((Open::Mapping { entries, .. }, start)) => {
                    let entries = entries.into_iter();
                    let entries = entries.map(|(name, entry)| (name, entry.value)).collect();
                    self.node(Rc::new(Node::mapping(entries)), start)
                }
                None => Ok(None),
            },
            _ => Ok(None),
        }
    }

    fn enter(&mut self, collection: Open, start: Start) -> Result<Option<Rc<Node>>, YamlError> {
        if self.open.len() >= MAX_DEPTH {
            return Err(YamlError::too_deep(self.line));
        }
        self.open.push((collection, start));
        Ok(None)
    }

    fn expect(&mut self, next: Key) {
        if let Some((Open::Mapping { key, .. }, _)) = self.open.last_mut() {
            *key = next;
        }
    }

    fn scalar(&self, text: String, plain: bool, tag: Option<&Tag>) -> Result<Content, YamlError> {
        let wanted = tag.and_then(|tag| tag.suffix_in_namespace(TAGS));
        match wanted.as_deref() {
            None if plain && tag.is_none() => Ok(Content::Plain(text)),
            Some(wanted @ ("null" | "bool" | "int" | "float" | "timestamp")) => {
                match scalar::is(&text, wanted) {
                    true => Ok(Content::Plain(text)),
                    false => {
                        let found = scalar::tag(&text);
                        let why = format!("cannot decode {found} `{text}` as a !!{wanted}");
                        Err(YamlError(format!("yaml: {why}")))
                    }
                }
            }
            Some("binary") => {
                let encoded = text.replace(['\r', '\n'], "");
                let bytes = base64::engine::general_purpose::STANDARD.decode(encoded);
                match bytes {
                    Ok(bytes) => Ok(Content::Text(String::from_utf8_lossy(&bytes).into_owned())),
                    Err(_) => Err(YamlError(
                        "yaml: !!binary value contains invalid base64 data".to_owned(),
                    )),
                }
            }
            _ => Ok(Content::Text(text)),
        }
    }

    /// Puts a complete node where it belongs.
    fn node(&mut self, node: Rc<Node>, start: Start) -> Result<Option<Rc<Node>>, YamlError> {
        if self.open.len() + node.depth > MAX_DEPTH {
            return Err(YamlError::too_deep(self.line));
        }
        if start.anchor != 0 {
            self.anchors.insert(start.anchor, node.clone());
        }
        let line = self.line;
        match self.open.last_mut() {
            None => {
                node.check_value()?;
                return Ok(Some(node));
            }
            Some((Open::Sequence(items), _)) => {
                node.check_value()?;
                items.push(node);
            }
            Some((Open::Mapping { entries, key }, _)) => {
                *key = match std::mem::replace(key, Key::Wanted) {
                    Key::Wanted => node.as_key(line)?,
                    Key::Merge => {
                        merge(entries, &node, line)?;
                        Key::Wanted
                    }
                    Key::Of { name, is_text } => {
                        node.check_value()?;
                        let entry = Entry {
                            value: node,
                            is_written: true,
                        };
                        let twice = entries.get(&name).is_some_and(|entry| entry.is_written);
                        if twice {
                            let shown = match is_text {
                                true => format!("{name:?}"),
                                false => name.clone(),
                            };
                            let line = start.line;
                            let finding = format!("line {line}: key {shown} already set in map");
                            self.told += finding.len();
                            if self.told <= MAX_TOLD {
                                self.duplicates.push(finding);
                            }
                        }
                        entries.insert(name, entry);
                        Key::Wanted
                    }
                };
            }
        }
        Ok(None)
    }
}

/// Takes into a mapping what a merge key brings. As for go-yaml, it wins over what stands before it; of several mappings,
/// the first one wins.
fn merge(
    entries: &mut BTreeMap<String, Entry>,
    source: &Node,
    line: usize,
) -> Result<(), YamlError> {
    let mut take = |source: &Node| match &source.content {
        Content::Mapping(others) => {
            for (name, value) in others {
                let is_written = entries.get(name).is_some_and(|entry| entry.is_written);
                let entry = Entry {
                    value: value.clone(),
                    is_written,
                };
                entries.insert(name.clone(), entry);
            }
            Ok(())
        }
        _ => Err(YamlError::at(
            line,
            "map merge requires map or sequence of maps as the value",
        )),
    };
    match &source.content {
        Content::Sequence(sources) => sources.iter().rev().try_for_each(|source| take(source)),
        _ => take(source),
    }
}

impl Node {
    /// Refuses what JSON has no value for.
    fn check_value(&self) -> Result<(), YamlError> {
        match &self.content {
            Content::Plain(text) => match scalar::unsupported(text) {
                Some(value) => Err(YamlError(format!("json: unsupported value: {value}"))),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn as_key(&self, line: usize) -> Result<Key, YamlError> {
        match &self.content {
            Content::Text(name) => Ok(Key::Of {
                name: name.clone(),
                is_text: true,
            }),
            Content::Plain(text) => match scalar::key(text) {
                Ok((name, is_text)) => Ok(Key::Of { name, is_text }),
                Err(found) => Err(YamlError(format!("unsupported map key of type: {found}"))),
            },
            _ => Err(YamlError::at(line, "invalid map key: only text can be one")),
        }
    }
}
