//! What a plain scalar is, by the core schema of YAML 1.2.

use serde::de::Visitor;
use serde::de::value::Error;

enum Scalar<'a> {
    Null,
    Bool(bool),
    Positive(u64),
    Negative(i64),
    Float(f64),
    Text(&'a str),
}

/// Gives a visitor what a plain scalar is.
pub(super) fn visit<'de, V: Visitor<'de>>(text: &str, visitor: V) -> Result<V::Value, Error> {
    match resolve(text) {
        Scalar::Null => visitor.visit_unit(),
        Scalar::Bool(value) => visitor.visit_bool(value),
        Scalar::Positive(number) => visitor.visit_u64(number),
        Scalar::Negative(number) => visitor.visit_i64(number),
        Scalar::Float(number) => visitor.visit_f64(number),
        Scalar::Text(text) => visitor.visit_str(text),
    }
}

/// Whether a scalar may have a tag of the core schema.
pub(super) fn is(text: &str, tag: &str) -> bool {
    let found = resolve(text);
    match tag {
        "null" => matches!(found, Scalar::Null),
        "bool" => matches!(found, Scalar::Bool(_)),
        "int" => matches!(found, Scalar::Positive(_) | Scalar::Negative(_)),
        "float" => matches!(
            found,
            Scalar::Positive(_) | Scalar::Negative(_) | Scalar::Float(_)
        ),
        tag => tag == "str",
    }
}

/// What Go calls what a plain scalar is.
pub(super) fn json_kind(text: &str) -> &'static str {
    match resolve(text) {
        Scalar::Null => "null",
        Scalar::Bool(_) => "bool",
        Scalar::Positive(_) | Scalar::Negative(_) | Scalar::Float(_) => "number",
        Scalar::Text(_) => "string",
    }
}

fn resolve(text: &str) -> Scalar<'_> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Scalar::Null,
        "true" | "True" | "TRUE" => Scalar::Bool(true),
        "false" | "False" | "FALSE" => Scalar::Bool(false),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => Scalar::Float(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => Scalar::Float(f64::NEG_INFINITY),
        ".nan" | ".NaN" | ".NAN" => Scalar::Float(f64::NAN),
        text => number(text).unwrap_or(Scalar::Text(text)),
    }
}

fn number(text: &str) -> Option<Scalar<'static>> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let negative = text.starts_with('-');
    if !unsigned.starts_with(|first: char| first.is_ascii_digit() || first == '.') {
        return None;
    }
    let radix = [("0x", 16), ("0o", 8), ("0b", 2)]
        .into_iter()
        .find_map(|(prefix, radix)| Some((unsigned.strip_prefix(prefix)?, radix)));
    if let Some((digits, radix)) = radix {
        return whole(digits, radix, negative);
    }
    let only_digits = unsigned.bytes().all(|byte| byte.is_ascii_digit());
    // `007` is text.
    if only_digits && unsigned.len() > 1 && unsigned.starts_with('0') {
        return None;
    }
    if only_digits && let Some(number) = whole(unsigned, 10, negative) {
        return Some(number);
    }
    let float: f64 = text.parse().ok()?;
    float.is_finite().then_some(Scalar::Float(float))
}

fn whole(digits: &str, radix: u32, negative: bool) -> Option<Scalar<'static>> {
    // The parser of numbers takes a sign of its own.
    if !digits.starts_with(|first: char| first.is_ascii_alphanumeric()) {
        return None;
    }
    match negative {
        false => u64::from_str_radix(digits, radix)
            .ok()
            .map(Scalar::Positive),
        true => i64::from_str_radix(&format!("-{digits}"), radix)
            .ok()
            .map(Scalar::Negative),
    }
}
