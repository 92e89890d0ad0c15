//! Parts of objects as Kubernetes prints them inside of refusals: in its internal types, whose fields have the names that they
//! have in Go, and are all there, set or not.

use std::collections::HashMap;
use std::sync::LazyLock;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::quantity::Quantity;

const TYPES: &str = include_str!("internal.txt");

/// Of what is printed no more is written than this: an object of many empty things is a hundred times longer in full.
const MAX_BYTES: usize = 128 << 10;

/// What a pod's spec says in the API, and its security context internally.
const OF_SECURITY_CONTEXT: [&str; 5] = [
    "hostNetwork",
    "hostPID",
    "hostIPC",
    "shareProcessNamespace",
    "hostUsers",
];

/// A field of an internal type; see the table.
struct Field {
    name: &'static str,
    key: &'static str,
    form: &'static str,
}

enum Type {
    /// Fields with Go's names, all of which are printed.
    Internal(Vec<Field>),
    /// JSON keys, of which those that are set are printed.
    Tagged(Vec<&'static str>),
}

static TABLE: LazyLock<HashMap<&'static str, Type>> =
    LazyLock::new(|| TYPES.lines().filter_map(parse).collect());

fn parse(line: &'static str) -> Option<(&'static str, Type)> {
    if line.starts_with('#') {
        return None;
    }
    let Some((name, fields)) = line.split_once(": ") else {
        let (name, keys) = line.split_once(' ')?;
        return Some((name, Type::Tagged(keys.split(' ').collect())));
    };
    let field = |field: &'static str| {
        let (name, rest) = field.split_once(' ')?;
        let (key, form) = rest.split_once(' ')?;
        Some(Field { name, key, form })
    };
    let fields = fields.split("; ").filter_map(field).collect();
    Some((name, Type::Internal(fields)))
}

/// A value of an internal type. Lists and maps that are empty are none, and amounts are as they are read.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Internal {
    value: Value,
    form: &'static str,
}

impl Internal {
    /// A value of the API as the internal type `form`, a name of the table.
    pub(super) fn of(value: &impl Serialize, form: &'static str) -> Self {
        // A type of the API is always JSON.
        let value = serde_json::to_value(value).unwrap_or_default();
        let value = normal(Some(&value), form);
        Self { value, form }
    }

    /// A pod's spec.
    pub(super) fn of_pod(spec: &impl Serialize) -> Self {
        let mut spec = serde_json::to_value(spec).unwrap_or_default();
        move_into_context(&mut spec);
        Self::of(&spec, "PodSpec")
    }

    /// On one line.
    pub(super) fn text(&self) -> String {
        let mut printed = String::new();
        write(Some(&self.value), self.form, &mut printed);
        escape(&printed)
    }

    /// One field a line, each level further in by a space.
    pub(super) fn lines(&self) -> String {
        indent(&self.text())
    }
}

/// What there is of a value: only the fields of its type. What is no pointer is nothing when it is zero.
fn normal(value: Option<&Value>, form: &str) -> Value {
    match value.map(|value| whole(value, form.trim_start_matches('*'))) {
        Some(value) if form.starts_with('*') || form == "IntOrString" || !is_zero(&value) => value,
        _ => Value::Null,
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Bool(is_set) => !is_set,
        Value::Number(number) => number.as_i64() == Some(0),
        other => is_unset(other),
    }
}

fn whole(value: &Value, form: &str) -> Value {
    if let Some(form) = form.strip_prefix("[]") {
        let items = value.as_array().into_iter().flatten();
        let items: Vec<Value> = items.map(|item| normal(Some(item), form)).collect();
        return match items.is_empty() {
            true => Value::Null,
            false => Value::Array(items),
        };
    }
    let map = value.as_object();
    match (form, map) {
        ("map" | "amounts", Some(map)) if map.is_empty() => Value::Null,
        ("amounts", Some(map)) => map
            .iter()
            .map(|(name, amount)| (name.clone(), canonical(amount)))
            .collect(),
        (form, Some(map)) => match TABLE.get(form) {
            Some(Type::Internal(fields)) => {
                let mut kept = Map::new();
                for field in fields {
                    match field.key {
                        "." => {
                            if let Value::Object(inner) = normal(Some(value), field.form) {
                                kept.extend(inner);
                            }
                        }
                        key => {
                            let value = normal(map.get(key), field.form);
                            if !value.is_null() {
                                kept.insert(key.to_owned(), value);
                            }
                        }
                    }
                }
                Value::Object(kept)
            }
            _ => value.clone(),
        },
        _ => value.clone(),
    }
}

fn canonical(amount: &Value) -> Value {
    let read = amount.as_str().and_then(|text| text.parse().ok());
    read.map_or_else(
        || amount.clone(),
        |amount: Quantity| json!(amount.to_string()),
    )
}

/// As Go writes JSON, which may stand in HTML.
fn escape(printed: &str) -> String {
    let mut escaped = String::with_capacity(printed.len());
    for letter in printed.chars() {
        match letter {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                escaped.push_str(&format!("\\u{:04x}", u32::from(letter)));
            }
            other => escaped.push(other),
        }
    }
    escaped
}

/// JSON of one line with one field a line.
fn indent(printed: &str) -> String {
    let (mut indented, mut depth, mut is_text, mut is_escaped) = (String::new(), 0, false, false);
    let mut letters = printed.chars().peekable();
    let begin_line = |indented: &mut String, depth: usize| {
        indented.push('\n');
        indented.extend(std::iter::repeat_n(' ', depth));
    };
    while let Some(letter) = letters.next() {
        if is_text {
            indented.push(letter);
            (is_text, is_escaped) = (is_escaped || letter != '"', !is_escaped && letter == '\\');
            continue;
        }
        match letter {
            '{' | '[' => {
                indented.push(letter);
                if let Some(end) = letters.next_if(|next| ['}', ']'].contains(next)) {
                    indented.push(end);
                } else {
                    depth += 1;
                    begin_line(&mut indented, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                begin_line(&mut indented, depth);
                indented.push(letter);
            }
            ',' => {
                indented.push(letter);
                begin_line(&mut indented, depth);
            }
            ':' => indented.push_str(": "),
            other => {
                is_text = other == '"';
                indented.push(other);
            }
        }
    }
    indented
}

/// A value as Kubernetes prints one of the internal type `form`, a name of the table.
pub(super) fn print(value: &impl Serialize, form: &'static str) -> String {
    Internal::of(value, form).text()
}

/// As [`print`], of a template of pods.
pub(super) fn print_template(template: &impl Serialize) -> String {
    let mut template = serde_json::to_value(template).unwrap_or_default();
    if let Some(spec) = template.get_mut("spec") {
        move_into_context(spec);
    }
    print(&template, "PodTemplateSpec")
}

/// As [`print`], of a pod's spec.
pub(super) fn print_pod(spec: &impl Serialize) -> String {
    Internal::of_pod(spec).text()
}

fn move_into_context(spec: &mut Value) {
    let Some(spec) = spec.as_object_mut() else {
        return;
    };
    let moved: Vec<(&str, Value)> = OF_SECURITY_CONTEXT
        .into_iter()
        .filter_map(|key| Some((key, spec.remove(key)?)))
        .collect();
    let context = spec
        .entry("securityContext")
        .or_insert_with(|| Value::Object(Map::new()));
    if let Some(context) = context.as_object_mut() {
        context.extend(
            moved
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value)),
        );
    }
}

fn write(value: Option<&Value>, form: &str, printed: &mut String) {
    if printed.len() > MAX_BYTES {
        return;
    }
    let value = value.filter(|value| !value.is_null());
    if let Some(form) = form.strip_prefix('*') {
        match value {
            None => printed.push_str("null"),
            value => write(value, form, printed),
        }
    } else if let Some(form) = form.strip_prefix("[]") {
        write_list(value, form, printed);
    } else if TABLE.contains_key(form) {
        printed.push('{');
        let mut is_first = true;
        write_fields(value, form, &mut is_first, printed);
        printed.push('}');
    } else {
        let zero = || match form {
            "map" | "amounts" => Value::Null,
            "bool" => json!(false),
            "int32" | "int64" | "IntOrString" => json!(0),
            "Quantity" => json!("0"),
            _ => json!(""),
        };
        let value = value.cloned().unwrap_or_else(zero);
        printed.push_str(&value.to_string());
    }
}

fn write_list(list: Option<&Value>, form: &str, printed: &mut String) {
    let Some(list) = list.and_then(Value::as_array) else {
        printed.push_str("null");
        return;
    };
    printed.push('[');
    for (index, item) in list.iter().enumerate() {
        if printed.len() > MAX_BYTES {
            break;
        }
        if index > 0 {
            printed.push(',');
        }
        write(Some(item), form, printed);
    }
    printed.push(']');
}

fn write_fields(object: Option<&Value>, form: &str, is_first: &mut bool, printed: &mut String) {
    let field_of = |key: &str| object.and_then(|object| object.get(key));
    match TABLE.get(form) {
        Some(Type::Internal(fields)) => {
            for field in fields {
                match (field.name, field.key) {
                    (_, ".") => write_fields(object, field.form, is_first, printed),
                    (".", key) => write_fields(field_of(key), field.form, is_first, printed),
                    (name, key) => {
                        begin(name, is_first, printed);
                        write(field_of(key), field.form, printed);
                    }
                }
            }
        }
        Some(Type::Tagged(keys)) => {
            for key in keys {
                if let Some(value) = field_of(key).filter(|value| !is_unset(value)) {
                    begin(key, is_first, printed);
                    printed.push_str(&value.to_string());
                }
            }
        }
        None => {}
    }
}

/// Begins one more field of an object.
fn begin(name: &str, is_first: &mut bool, printed: &mut String) {
    if !std::mem::replace(is_first, false) {
        printed.push(',');
    }
    printed.push_str(&json!(name).to_string());
    printed.push(':');
}

/// Whether Go leaves a value out.
fn is_unset(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_of_the_table_is_read() {
        let lines = TYPES.lines().filter(|line| !line.starts_with('#'));
        assert_eq!(lines.count(), TABLE.len());
        for of_type in TABLE.values() {
            if let Type::Internal(fields) = of_type {
                assert!(!fields.is_empty());
            }
        }
    }

    #[test]
    fn a_pod_is_printed_with_all_its_fields_and_those_of_its_context() {
        let spec = json!({
            "containers": [{"name": "c", "image": "y", "resources": {"limits": {"cpu": "1"}}}],
            "restartPolicy": "Never", "hostNetwork": true, "nodeSelector": {"a": "b"},
        });
        let printed = print_pod(&spec);
        for part in [
            "{\"Volumes\":null,\"InitContainers\":null,\"Containers\":[{\"Name\":\"c\",\"Image\":\"y\",\"Command\":null,",
            "\"Resources\":{\"Limits\":{\"cpu\":\"1\"},\"Requests\":null,\"Claims\":null},\"ResizePolicy\":null,",
            "\"NodeSelector\":{\"a\":\"b\"},\"ServiceAccountName\":\"\",\"AutomountServiceAccountToken\":null,",
            "\"SecurityContext\":{\"HostNetwork\":true,\"HostPID\":false,\"HostIPC\":false,\"ShareProcessNamespace\":null,",
            "\"HostnameOverride\":null,\"SchedulingGroup\":null}",
        ] {
            assert!(printed.contains(part), "{part} in {printed}");
        }
        let value: Value = serde_json::from_str(&printed).unwrap();
        assert_eq!(value["RestartPolicy"], "Never");
    }

    #[test]
    fn empty_lists_and_maps_are_none_and_amounts_are_as_they_are_read() {
        const FORM: &str = "PersistentVolumeClaimSpec";
        let claim = json!({
            "accessModes": [], "selector": {}, "volumeName": "a<b&c",
            "resources": {"limits": {}, "requests": {"storage": "1024Mi"}},
        });
        let claim = Internal::of(&claim, FORM);
        let expected = "{\"AccessModes\":null,\"Selector\":{},\"Resources\":{\"Limits\":null,\"Requests\":{\"storage\":\"1Gi\"}},\"VolumeName\":\"a\\u003cb\\u0026c\",";
        let printed = claim.text();
        assert!(printed.starts_with(expected), "{printed}");
        let lines = claim.lines();
        let expected = "{\n \"AccessModes\": null,\n \"Selector\": {},\n \"Resources\": {\n  \"Limits\": null,\n";
        assert!(lines.starts_with(expected), "{lines}");
        assert!(
            lines.ends_with("\n \"VolumeAttributesClassName\": null\n}"),
            "{lines}"
        );
        let other = json!({"selector": {}, "volumeName": "a<b&c", "resources": {"requests": {"storage": "1Gi"}}});
        assert_eq!(Internal::of(&other, FORM), claim);
        let other = json!({"volumeName": "a<b&c", "resources": {"requests": {"storage": "1Gi"}}});
        assert_ne!(
            Internal::of(&other, FORM),
            claim,
            "a selector of all is one"
        );
    }

    #[test]
    fn metadata_and_selectors_are_printed_as_the_api_has_them() {
        let template = json!({
            "metadata": {"annotations": {"x": "y"}, "labels": {"a": "b"}, "creationTimestamp": null},
            "spec": {"containers": [], "affinity": {"podAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": [
                    {"topologyKey": "t", "labelSelector": {"matchLabels": {"a": "b"}}}
                ]
            }}},
        });
        let printed = print_template(&template);
        let start =
            "{\"labels\":{\"a\":\"b\"},\"annotations\":{\"x\":\"y\"},\"Spec\":{\"Volumes\":null,";
        assert!(printed.starts_with(start), "{printed}");
        let term = "[{\"LabelSelector\":{\"matchLabels\":{\"a\":\"b\"}},\"Namespaces\":null,\"TopologyKey\":\"t\",";
        assert!(printed.contains(term), "{printed}");
    }

    #[test]
    fn what_is_printed_is_bounded() {
        let many = vec![json!({}); 100_000];
        let printed = print_pod(&json!({"containers": many}));
        assert!(printed.len() < MAX_BYTES * 2, "{}", printed.len());
    }
}
