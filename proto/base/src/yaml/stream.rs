//! The objects of a file, as kubectl reads files: documents of YAML between lines of `---`, or JSON values one after the
//! other. A document that begins with a brace is JSON unless it is none; some of what JSON writes (characters beyond 16 bits as
//! two escapes) means nothing in YAML.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::{YamlError, characters, read};

const SEPARATOR: &str = "---";

/// All values of a file, without those that are null, as documents are that have nothing in them. A key that is given twice
/// is an error: one of the two was meant, and nobody can tell which.
pub fn objects(bytes: &[u8]) -> Result<Vec<Value>, YamlError> {
    let text = characters(bytes)?;
    let mut values = Vec::new();
    for chunk in chunks(&text)? {
        chunk.read(&mut values)?;
    }
    values.retain(|value| !value.is_null());
    Ok(values)
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
    fn read(&self, values: &mut Vec<Value>) -> Result<(), YamlError> {
        let mut rest = self.text;
        let mut not_json = None;
        if self.text.trim_start().starts_with('{') {
            let mut stream = serde_json::Deserializer::from_str(self.text).into_iter::<Unique>();
            while let Some(next) = stream.next() {
                match next {
                    Ok(Unique(value)) => {
                        values.push(value);
                        rest = &self.text[stream.byte_offset()..];
                    }
                    Err(error) => {
                        not_json = Some(error);
                        break;
                    }
                }
            }
            match &not_json {
                None => return Ok(()),
                Some(error) if error.is_data() => return Err(YamlError(format!("json: {error}"))),
                Some(_) => {}
            }
        }
        let lines = self.text[..self.text.len() - rest.len()]
            .matches('\n')
            .count();
        let read = yaml(rest, self.lines_before + lines);
        values.extend(read.map_err(|error| match not_json {
            Some(json) => YamlError(format!("json: {json}")),
            None => error,
        })?);
        Ok(())
    }
}

fn yaml(text: &str, lines_before: usize) -> Result<Vec<Value>, YamlError> {
    let converting =
        |error: &dyn fmt::Display| YamlError(format!("error converting YAML to JSON: {error}"));
    let documents = read(text, lines_before).map_err(|error| converting(&error))?;
    let values = documents.iter().map(|document| {
        if let Some(error) = document.strict_error() {
            return Err(converting(&error));
        }
        document.to_value().map_err(|error| converting(&error))
    });
    values.collect()
}

/// A JSON value in which no name is given twice.
struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UniqueVisitor).map(Self)
    }
}

struct UniqueVisitor;

impl<'de> Visitor<'de> for UniqueVisitor {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Unique(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some((name, Unique(value))) = entries.next_entry::<String, Unique>()? {
            if members.contains_key(&name) {
                return Err(A::Error::custom(format!("key {name:?} already set in map")));
            }
            members.insert(name, value);
        }
        Ok(Value::Object(members))
    }
}
