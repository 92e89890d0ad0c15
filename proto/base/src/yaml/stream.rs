//! The objects of a file, as kubectl reads files: documents of YAML between lines of `---`, or JSON values one after the
//! other. A document that begins with a brace is JSON unless it is none; some of what JSON writes (characters beyond 16 bits as
//! two escapes) means nothing in YAML.

use std::borrow::Cow;
use std::fmt;

use serde_json::Value;

use super::{YamlError, characters, read};

const SEPARATOR: &str = "---";
/// What stands for bytes that are no text.
const REPLACED: char = char::REPLACEMENT_CHARACTER;

/// What a file has in it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Objects {
    /// All values, without those that are null, as documents are that have nothing in them.
    pub values: Vec<Value>,
    /// What Go's strict reader says of keys that a document has twice, each with its line. The last value of each counts.
    pub duplicates: Vec<String>,
}

/// The objects of a file.
pub fn objects(bytes: &[u8]) -> Result<Objects, YamlError> {
    let text = characters(bytes);
    let (text, not_text) = match text {
        Ok(text) => (text, None),
        // Comments may be of any encoding; kubectl reads past them.
        Err(error) => match String::from_utf8_lossy(bytes) {
            Cow::Owned(text) if characters(text.as_bytes()).is_ok() => {
                (Cow::Owned(text), Some(error))
            }
            _ => return Err(error),
        },
    };
    let mut objects = Objects::default();
    for chunk in chunks(&text)? {
        chunk.read(&mut objects)?;
    }
    objects.values.retain(|value| !value.is_null());
    match not_text {
        Some(error) if objects.values.iter().any(has_replaced) => Err(error),
        _ => Ok(objects),
    }
}

fn has_replaced(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains(REPLACED),
        Value::Array(items) => items.iter().any(has_replaced),
        Value::Object(members) => {
            let mut members = members.iter();
            members.any(|(name, value)| name.contains(REPLACED) || has_replaced(value))
        }
        _ => false,
    }
}

/// What stands between two separators.
struct Chunk<'a> {
    text: &'a str,
    lines_before: usize,
}

/// Parts a file at its separators, after which only a comment may stand.
fn chunks(text: &str) -> Result<Vec<Chunk<'_>>, YamlError> {
    let mut chunks = Vec::new();
    let (mut start, mut lines_before, mut at) = (0, 0, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let end = at + line.len();
        if let Some(rest) = line.strip_prefix(SEPARATOR) {
            let rest = rest.trim();
            if !rest.is_empty() && !rest.starts_with('#') {
                return Err(YamlError(format!(
                    "invalid Yaml document separator: {rest}"
                )));
            }
            let text = &text[start..at];
            // Directives belong to the document behind their separator.
            if !are_directives(text) {
                chunks.push(Chunk { text, lines_before });
                (start, lines_before) = (end, number + 1);
            }
        }
        at = end;
    }
    chunks.push(Chunk {
        text: &text[start..],
        lines_before,
    });
    Ok(chunks)
}

fn are_directives(text: &str) -> bool {
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    text.starts_with('%') && lines.all(|line| line.starts_with(['%', '#']))
}

impl Chunk<'_> {
    fn read(&self, objects: &mut Objects) -> Result<(), YamlError> {
        let mut rest = self.text;
        let mut not_json = None;
        if self.text.trim_start().starts_with('{') {
            let mut stream = serde_json::Deserializer::from_str(self.text).into_iter::<Value>();
            while let Some(next) = stream.next() {
                match next {
                    Ok(value) => {
                        objects.values.push(value);
                        rest = &self.text[stream.byte_offset()..];
                    }
                    Err(error) => {
                        not_json = Some(error);
                        break;
                    }
                }
            }
            if not_json.is_none() {
                return Ok(());
            }
        }
        let lines = self.text[..self.text.len() - rest.len()]
            .matches('\n')
            .count();
        let read = yaml(rest, self.lines_before + lines);
        let read = read.map_err(|error| match not_json {
            Some(json) => YamlError(format!("json: {json}")),
            None => error,
        })?;
        objects.values.extend(read.values);
        objects.duplicates.extend(read.duplicates);
        Ok(())
    }
}

fn yaml(text: &str, lines_before: usize) -> Result<Objects, YamlError> {
    let converting =
        |error: &dyn fmt::Display| YamlError(format!("error converting YAML to JSON: {error}"));
    let mut objects = Objects::default();
    for document in read(text, lines_before).map_err(|error| converting(&error))? {
        let value = document.to_value().map_err(|error| converting(&error))?;
        objects.values.push(value);
        objects.duplicates.extend(document.duplicates);
    }
    Ok(objects)
}
