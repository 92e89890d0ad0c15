//! Writes a pod template as Kubernetes does before it hashes it: every field with its name and type, absent ones too.
//!
//! For instance `Name:(string)web`, `Priority:(*int32)<nil>`, `Ports:([]v1.ContainerPort)[{Name:(string) ...}]`.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::LazyLock;

use gantry_api::quantity::{Format, Quantity};
use serde_json::{Map, Value};

struct Field {
    name: &'static str,
    /// Its JSON key; `.` when its own fields stand in its place.
    key: &'static str,
    type_: &'static str,
}

/// The types by name. A line that does not have the form is a mistake in the file, which the tests would find.
static TYPES: LazyLock<HashMap<&'static str, Vec<Field>>> = LazyLock::new(|| {
    include_str!("types.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(": "))
        .map(|(name, fields)| {
            let fields = fields.split("; ").filter_map(|field| {
                let mut words = field.split(' ');
                Some(Field {
                    name: words.next()?,
                    key: words.next()?,
                    type_: words.next()?,
                })
            });
            (name, fields.collect())
        })
        .collect()
});

/// The template's dump.
pub(super) fn dump(template: &Value) -> String {
    let mut out = String::with_capacity(8 * 1024);
    typed(&mut out, "v1.PodTemplateSpec", Some(template));
    out
}

/// A value after its type.
fn typed(out: &mut String, type_: &str, value: Option<&Value>) {
    out.push('(');
    out.push_str(type_);
    out.push(')');
    bare(out, type_, value);
}

/// A value whose type is known already, as in a list.
fn bare(out: &mut String, type_: &str, value: Option<&Value>) {
    let value = value.filter(|value| !value.is_null());
    if let Some(pointed) = type_.strip_prefix('*') {
        match value {
            None => out.push_str("<nil>"),
            value => bare(out, pointed, value),
        }
    } else if let Some(item) = type_.strip_prefix("[]") {
        list(out, item, value.and_then(Value::as_array));
    } else {
        match type_ {
            "map[string]string" => map(out, "string", value),
            "v1.ResourceList" => map(out, "resource.Quantity", value),
            "bool" => text(out, value, "false"),
            "int32" | "int64" => text(out, value, "0"),
            "intstr.IntOrString" => int_or_string(out, value),
            "resource.Quantity" => quantity(out, value),
            // Templates have no times: what the API server stores in one is always zero.
            "v1.Time" => out.push_str(
                "{Time:(time.Time){wall:(uint64)0 ext:(int64)0 loc:(*time.Location)<nil>}}",
            ),
            _ => named(out, type_, value),
        }
    }
}

fn named(out: &mut String, type_: &str, value: Option<&Value>) {
    let fields = type_.strip_prefix("v1.").and_then(|name| TYPES.get(name));
    let Some(fields) = fields else {
        // Text; or one of the rare types that are not listed, whose JSON tells it apart just as well.
        return text(out, value, "");
    };
    let empty = Map::new();
    let object = value.and_then(Value::as_object).unwrap_or(&empty);
    out.push('{');
    for (at, field) in fields.iter().enumerate() {
        if at > 0 {
            out.push(' ');
        }
        out.push_str(field.name);
        out.push(':');
        let inner = if field.key == "." {
            value
        } else {
            object.get(field.key)
        };
        typed(out, field.type_, inner);
    }
    out.push('}');
}

/// An empty list is the same as none: the wire format of Kubernetes does not tell them apart.
fn list(out: &mut String, item: &str, items: Option<&Vec<Value>>) {
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        return out.push_str("<nil>");
    };
    out.push('[');
    for (at, value) in items.iter().enumerate() {
        if at > 0 {
            out.push(' ');
        }
        bare(out, item, Some(value));
    }
    out.push(']');
}

fn map(out: &mut String, item: &str, value: Option<&Value>) {
    let entries = value
        .and_then(Value::as_object)
        .filter(|entries| !entries.is_empty());
    let Some(entries) = entries else {
        return out.push_str("<nil>");
    };
    let mut keys: Vec<_> = entries.keys().collect();
    keys.sort();
    out.push_str("map[");
    for (at, key) in keys.into_iter().enumerate() {
        if at > 0 {
            out.push(' ');
        }
        out.push_str(key);
        out.push(':');
        bare(out, item, entries.get(key));
    }
    out.push(']');
}

fn text(out: &mut String, value: Option<&Value>, absent: &str) {
    match value {
        None => out.push_str(absent),
        Some(Value::String(text)) => out.push_str(text),
        Some(other) => append(out, other),
    }
}

fn int_or_string(out: &mut String, value: Option<&Value>) {
    match value {
        Some(Value::String(text)) => {
            out.push_str("{Type:(intstr.Type)1 IntVal:(int32)0 StrVal:(string)");
            out.push_str(text);
        }
        other => {
            out.push_str("{Type:(intstr.Type)0 IntVal:(int32)");
            text(out, other, "0");
            out.push_str(" StrVal:(string)");
        }
    }
    out.push('}');
}

/// An amount as a number and a power of ten. Kubernetes' parser keeps the text of decimal amounts, not of binary ones.
fn quantity(out: &mut String, value: Option<&Value>) {
    let text = value.and_then(Value::as_str).unwrap_or_default();
    let parsed: Option<Quantity> = text.parse().ok();
    let (value, scale) = parsed.map_or((0, 0), |parsed| scaled(text, &parsed));
    let (format, kept) = match parsed.map(|parsed| parsed.format()) {
        None => ("", ""),
        Some(Format::DecimalSi) => ("DecimalSI", text),
        Some(Format::BinarySi) => ("BinarySI", ""),
        Some(Format::DecimalExponent) => ("DecimalExponent", text),
    };
    append(
        out,
        format_args!(
            "{{i:(resource.int64Amount){{value:(int64){value} scale:(resource.Scale){scale}}} \
             d:(resource.infDecAmount){{Dec:(*inf.Dec)<nil>}} s:(string){kept} Format:(resource.Format){format}}}"
        ),
    );
}

fn scaled(text: &str, parsed: &Quantity) -> (i128, i32) {
    let suffix =
        text.trim_start_matches(|letter: char| letter.is_ascii_digit() || "+-.".contains(letter));
    let scale = match suffix {
        "n" => -9,
        "u" => -6,
        "m" => -3,
        "k" => 3,
        "M" => 6,
        "G" => 9,
        "T" => 12,
        "P" => 15,
        "E" => 18,
        _ => 0,
    };
    let unit = 10_i128.pow(u32::try_from(9 + scale).unwrap_or(9));
    (parsed.nanos() / unit, scale)
}

fn append(out: &mut String, part: impl std::fmt::Display) {
    // A String never refuses.
    if write!(out, "{part}").is_err() {
        out.push('?');
    }
}
