//! Compares an answer with the recorded one, after evening out what varies.

use std::sync::LazyLock;

use http::header;
use regex::{Captures, Regex};
use serde_json::{Value, json};

use super::case::Step;
use super::client::Raw;

/// Managers whose entries in managedFields come at their own time.
const CONTROLLERS: [&str; 2] = ["kube-controller-manager", "kube-scheduler"];

/// An answer in the form in which cases hold it.
pub(crate) struct Answer {
    pub(crate) status: u16,
    media: String,
    warnings: Vec<String>,
    encoding: Option<String>,
    content: Option<Value>,
    events: bool,
}

fn media(content_type: &str) -> String {
    content_type
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_owned()
}

impl Answer {
    /// Reads an answer; `watch` when the recorded one was a stream of events.
    pub(crate) fn from_raw(raw: &Raw, watch: bool) -> Self {
        let text_of = |name| {
            raw.headers
                .get(name)
                .and_then(|value: &http::HeaderValue| value.to_str().ok())
                .map(str::to_owned)
        };
        let content_type = text_of(header::CONTENT_TYPE).unwrap_or_default();
        let mut warnings: Vec<String> = raw
            .headers
            .get_all(header::WARNING)
            .iter()
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
            .collect();
        warnings.sort();
        let text = String::from_utf8_lossy(&raw.body);
        let is_json = content_type.contains("json")
            || (content_type.contains("text/plain") && text.starts_with("{\"paths\""));
        let lines = || -> Option<Value> {
            let lines = text.lines().filter(|line| !line.trim().is_empty());
            lines
                .map(serde_json::from_str::<Value>)
                .collect::<Result<Value, _>>()
                .ok()
        };
        let (content, events) = match is_json {
            _ if text.is_empty() => (watch.then(|| json!([])), watch),
            true if watch => match lines() {
                Some(lines) => (Some(lines), true),
                None => (Some(json!(text)), false),
            },
            true => match serde_json::from_str(&text) {
                Ok(value) => (Some(value), false),
                Err(_) => (lines().or_else(|| Some(json!(text))), false),
            },
            false => (Some(json!(text)), false),
        };
        Self {
            status: raw.status.as_u16(),
            media: media(&content_type),
            warnings,
            encoding: text_of(header::CONTENT_ENCODING),
            content,
            events,
        }
    }

    /// Its body, or its events as a list.
    pub(crate) fn content(&self) -> Option<&Value> {
        self.content.as_ref()
    }
}

/// What differs, a line for each difference.
pub(crate) fn differences(step: &Step, got: &Answer) -> Vec<String> {
    let want = &step.response;
    let mut found = Vec::new();
    let mut check = |what: &str, want: String, got: String| {
        if want != got {
            found.push(format!("{what}: want {want}, got {got}"));
        }
    };
    check("status", want.status.to_string(), got.status.to_string());
    check(
        "content-type",
        media(&want.headers.content_type),
        got.media.clone(),
    );
    check(
        "warnings",
        format!("{:?}", want.headers.warning),
        format!("{:?}", got.warnings),
    );
    check(
        "content-encoding",
        want.headers.content_encoding.clone().unwrap_or_default(),
        got.encoding.clone().unwrap_or_default(),
    );
    if want.body_ignored {
        return found;
    }
    let wanted = match (&want.events, &want.body, &want.body_text) {
        (Some(events), _, _) => Some(Value::Array(events.clone())),
        (None, Some(body), _) => Some(body.clone()),
        (None, None, text) => text.as_ref().map(|text| json!(text)),
    };
    let wanted = wanted.map(|value| normalised(value, want.events.is_some(), step));
    let content = got
        .content
        .clone()
        .map(|value| normalised(value, got.events, step));
    match (wanted, content) {
        (Some(wanted), Some(content)) => diff("", Some(&wanted), Some(&content), &mut found),
        (None, None) => {}
        (wanted, content) => found.push(format!(
            "body: want {}, got {}",
            shown(wanted.as_ref()),
            shown(content.as_ref())
        )),
    }
    found
}

/// Walks both and names the paths where they differ.
fn diff(path: &str, want: Option<&Value>, got: Option<&Value>, found: &mut Vec<String>) {
    match (want, got) {
        (Some(Value::Object(want)), Some(Value::Object(got))) => {
            let mut keys: Vec<&String> = want.keys().chain(got.keys()).collect();
            keys.sort();
            keys.dedup();
            for key in keys {
                diff(&format!("{path}.{key}"), want.get(key), got.get(key), found);
            }
        }
        (Some(Value::Array(want)), Some(Value::Array(got))) => {
            for index in 0..want.len().max(got.len()) {
                diff(
                    &format!("{path}[{index}]"),
                    want.get(index),
                    got.get(index),
                    found,
                );
            }
        }
        (want, got) if want != got => {
            found.push(format!("{path}: want {}, got {}", shown(want), shown(got)));
        }
        _ => {}
    }
}

fn shown(value: Option<&Value>) -> String {
    value.map_or_else(|| "nothing".to_owned(), Value::to_string)
}

fn normalised(mut content: Value, events: bool, step: &Step) -> Value {
    drop_controllers(&mut content);
    if events && let Some(list) = content.as_array_mut() {
        // Plain bookmarks come at the server's own time; the one that ends the initial events counts.
        list.retain(|event| {
            event["type"] != "BOOKMARK" || event["object"]["metadata"].get("annotations").is_some()
        });
    }
    for rule in &step.normalise {
        let (path, how) = rule.split_once('|').unwrap_or((rule, ""));
        if path == "$text" {
            even_out(&mut content, how);
        } else {
            apply(&mut content, &parse(path), how);
        }
    }
    for path in &step.unordered {
        let path = if path == "$" { Vec::new() } else { parse(path) };
        sort_lists(&mut content, &path);
    }
    content
}

fn drop_controllers(node: &mut Value) {
    match node {
        Value::Array(list) => list.iter_mut().for_each(drop_controllers),
        Value::Object(object) => {
            let managed = object
                .get_mut("metadata")
                .and_then(|metadata| metadata.get_mut("managedFields"))
                .and_then(Value::as_array_mut);
            if let Some(managed) = managed {
                managed.retain(|entry| {
                    !entry["manager"]
                        .as_str()
                        .is_some_and(|manager| CONTROLLERS.contains(&manager))
                });
            }
            for key in ["items", "object"] {
                if let Some(inner) = object.get_mut(key) {
                    drop_controllers(inner);
                }
            }
        }
        _ => {}
    }
}

/// A part of a path.
#[derive(Debug, PartialEq)]
enum Part {
    Key(String),
    Index(usize),
    All,
}

fn parse(path: &str) -> Vec<Part> {
    static PARTS: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r#"\["((?:[^"\\]|\\.)*)"\]|\[(\*|\d+)\]|\.?([^.\[\]]+)"#).expect("it is one")
    });
    PARTS
        .captures_iter(path)
        .map(|captures: Captures<'_>| {
            let group = |number| captures.get(number).map(|found| found.as_str());
            match (group(1), group(2), group(3)) {
                (Some(quoted), _, _) => Part::Key(quoted.replace("\\\"", "\"")),
                (_, Some("*"), _) => Part::All,
                (_, Some(index), _) => Part::Index(index.parse().expect("digits")),
                (_, _, key) => Part::Key(key.unwrap_or_default().to_owned()),
            }
        })
        .map(|part| match part {
            Part::Key(key) if key == "*" => Part::All,
            other => other,
        })
        .collect()
}

/// Replaces a value by what every such value is replaced by.
fn even_out(value: &mut Value, how: &str) {
    *value = match (how, value.as_str()) {
        ("mask", Some(text)) => json!(mask(text)),
        _ => json!("<any>"),
    };
}

/// An object quoted in a message is compared as objects are: keys in any order, and without `managedFields`, which count
/// in cases of their own.
fn even_out_quoted(text: &str) -> String {
    const BEFORE: &str = "Invalid value: ";
    let Some(start) = text.find(BEFORE).map(|at| at + BEFORE.len()) else {
        return text.to_owned();
    };
    let mut strings = serde_json::Deserializer::from_str(&text[start..]).into_iter::<String>();
    let quoted = strings.next().and_then(Result::ok);
    let object = quoted.and_then(|quoted| serde_json::from_str::<Value>(&quoted).ok());
    match object {
        Some(mut object) if object.is_object() => {
            if let Some(metadata) = object["metadata"].as_object_mut() {
                metadata.remove("managedFields");
            }
            let end = start + strings.byte_offset();
            format!("{}{object}{}", &text[..start], &text[end..])
        }
        _ => text.to_owned(),
    }
}

/// Uuids, times, random suffixes and numbers become placeholders.
fn mask(text: &str) -> String {
    static RULES: LazyLock<[(Regex, &str); 4]> = LazyLock::new(|| {
        let rule = |pattern| Regex::new(pattern).expect("it is one");
        [
            (
                rule("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"),
                "<uuid>",
            ),
            (
                rule(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?( ?[+-]\d\d:?\d\d| UTC|Z)*"),
                "<time>",
            ),
            (rule(r"-[bcdfghjklmnpqrstvwxz2456789]{5}\b"), "-<random>"),
            (rule(r"\d+"), "<n>"),
        ]
    });
    RULES
        .iter()
        .fold(even_out_quoted(text), |text, (rule, with)| {
            rule.replace_all(&text, *with).into_owned()
        })
}

fn apply(node: &mut Value, path: &[Part], how: &str) {
    let Some((head, rest)) = path.split_first() else {
        return;
    };
    match node {
        Value::Array(list) => {
            let chosen: Vec<&mut Value> = match head {
                Part::All => list.iter_mut().collect(),
                Part::Index(index) => list.get_mut(*index).into_iter().collect(),
                Part::Key(_) => return,
            };
            for item in chosen {
                match rest.is_empty() {
                    true => even_out(item, how),
                    false => apply(item, rest, how),
                }
            }
        }
        Value::Object(object) => {
            let keys: Vec<String> = match head {
                Part::All => object.keys().cloned().collect(),
                Part::Key(key) => vec![key.clone()],
                Part::Index(_) => return,
            };
            for key in keys {
                let Some(inner) = object.get_mut(&key) else {
                    continue;
                };
                let gone = match rest.is_empty() {
                    true if how == "optional" => true,
                    true => {
                        even_out(inner, how);
                        false
                    }
                    false => {
                        apply(inner, rest, how);
                        how == "optional" && *inner == json!({})
                    }
                };
                if gone {
                    object.remove(&key);
                }
            }
        }
        _ => {}
    }
}

fn sort_lists(node: &mut Value, path: &[Part]) {
    match (path.split_first(), node) {
        (None, Value::Array(list)) => list.sort_by_cached_key(Value::to_string),
        (Some((Part::All, rest)), Value::Array(list)) => {
            list.iter_mut().for_each(|item| sort_lists(item, rest));
        }
        (Some((Part::Index(index), rest)), Value::Array(list)) => {
            if let Some(item) = list.get_mut(*index) {
                sort_lists(item, rest);
            }
        }
        (Some((Part::Key(key), rest)), Value::Object(object)) => {
            if let Some(inner) = object.get_mut(key) {
                sort_lists(inner, rest);
            }
        }
        _ => {}
    }
}

/// The value at a path, when there is one.
pub(crate) fn dig<'a>(node: &'a Value, path: &str) -> Option<&'a Value> {
    parse(path).iter().try_fold(node, |node, part| match part {
        Part::Key(key) => node.get(key),
        Part::Index(index) => node.get(index),
        Part::All => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(response: Value, normalise: &[&str], unordered: &[&str]) -> Step {
        serde_json::from_value(json!({
            "request": {"method": "GET", "path": "/"},
            "response": response,
            "normalise": normalise,
            "unordered": unordered,
        }))
        .expect("a step")
    }

    fn answer(body: Value) -> Answer {
        Answer {
            status: 200,
            media: "application/json".to_owned(),
            warnings: Vec::new(),
            encoding: None,
            content: Some(body),
            events: false,
        }
    }

    fn recorded(body: Value) -> Value {
        json!({"status": 200, "headers": {"content-type": "application/json"}, "body": body})
    }

    #[test]
    fn a_golden_answer_that_differs_is_found_with_its_path() {
        let step = step(recorded(json!({"a": [{"b": 1}], "c": 2})), &[], &[]);
        let found = differences(&step, &answer(json!({"a": [{"b": 3}]})));
        assert_eq!(found, [".a[0].b: want 1, got 3", ".c: want 2, got nothing"]);
        assert!(differences(&step, &answer(json!({"c": 2, "a": [{"b": 1}]}))).is_empty());
    }

    #[test]
    fn golden_values_that_vary_must_be_there_unless_optional() {
        let body = json!({"metadata": {"uid": "1", "annotations": {"a.b/c": "x"}}, "items": [{"t": 1}, {"t": 2}]});
        let rules = &[
            "metadata.uid",
            "metadata.annotations[\"a.b/c\"]|optional",
            "items[*].t",
        ];
        let step = step(recorded(body), rules, &[]);
        let same = json!({"metadata": {"uid": "2"}, "items": [{"t": 8}, {"t": 9}]});
        assert_eq!(differences(&step, &answer(same)), Vec::<String>::new());
        let without = json!({"metadata": {}, "items": [{"t": 8}, {}]});
        assert_eq!(differences(&step, &answer(without)).len(), 2);
    }

    #[test]
    fn golden_objects_in_messages_are_compared_as_objects() {
        let told = |object: &str| {
            let quoted = Value::from(object).to_string();
            mask(&format!(
                "patch: Invalid value: {quoted}: unknown field \"x\""
            ))
        };
        assert_eq!(
            told(r#"{"metadata":{"name":"p","managedFields":[{"a":[]}]},"kind":"K"}"#),
            told(r#"{"kind":"K","metadata":{"name":"p"}}"#)
        );
        assert_ne!(told(r#"{"kind":"K"}"#), told(r#"{"kind":"L"}"#));
    }

    #[test]
    fn golden_masks_hide_what_is_random_and_nothing_else() {
        assert_eq!(
            mask("web-7f1-x2xkd at 2026-01-01T00:00:00Z took 12s"),
            "web-<n>f<n>-<random> at <time> took <n>s"
        );
    }

    #[test]
    fn golden_lists_without_order_are_sorted_on_both_sides() {
        let step = step(recorded(json!({"l": ["b", "a"]})), &[], &["l"]);
        assert!(differences(&step, &answer(json!({"l": ["a", "b"]}))).is_empty());
        assert!(!differences(&step, &answer(json!({"l": ["a", "c"]}))).is_empty());
    }
}
