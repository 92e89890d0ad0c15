//! What a plain scalar is to Kubernetes' clients: go-yaml's resolution of YAML 1.1.
//!
//! Booleans have YAML 1.1's many spellings, a leading zero means octal, underscores in numbers do not count, and a number
//! in base 60 is text. Times are told apart because they are quoted where they are text; read, they are text as well.

use serde::de::Visitor;
use serde::de::value::Error;

#[derive(Debug, PartialEq)]
enum Scalar {
    Null,
    Bool(bool),
    Positive(u64),
    Negative(i64),
    Float(f64),
    Time,
    Text,
}

/// Gives a visitor what a plain scalar is.
pub(super) fn visit<'de, V: Visitor<'de>>(text: &str, visitor: V) -> Result<V::Value, Error> {
    match resolve(text) {
        Scalar::Null => visitor.visit_unit(),
        Scalar::Bool(value) => visitor.visit_bool(value),
        Scalar::Positive(number) => visitor.visit_u64(number),
        Scalar::Negative(number) => visitor.visit_i64(number),
        Scalar::Float(number) => match whole_of(number) {
            Some(whole) => visitor.visit_i64(whole),
            None => visitor.visit_f64(number),
        },
        Scalar::Time | Scalar::Text => visitor.visit_str(text),
    }
}

/// The whole number that a float is: JSON writes `1e3` as 1000, which then is no float any more.
pub(super) fn whole_of(number: f64) -> Option<i64> {
    // Every float below this bound fits; those beyond it have no digits that an i64 could keep.
    const BOUND: f64 = 9_223_372_036_854_775_808.0;
    (number.fract() == 0.0 && (-BOUND..BOUND).contains(&number)).then_some(number as i64)
}

/// Whether a scalar may have a tag of YAML's own.
pub(super) fn is(text: &str, tag: &str) -> bool {
    let found = resolve(text);
    match tag {
        "null" => found == Scalar::Null,
        "bool" => matches!(found, Scalar::Bool(_)),
        "int" => matches!(found, Scalar::Positive(_) | Scalar::Negative(_)),
        "float" => matches!(
            found,
            Scalar::Positive(_) | Scalar::Negative(_) | Scalar::Float(_)
        ),
        "timestamp" => found == Scalar::Time,
        tag => tag == "str",
    }
}

/// The tag that a plain scalar has by itself, as go-yaml prints it.
pub(super) fn tag(text: &str) -> &'static str {
    match resolve(text) {
        Scalar::Null => "!!null",
        Scalar::Bool(_) => "!!bool",
        Scalar::Positive(_) | Scalar::Negative(_) => "!!int",
        Scalar::Float(_) => "!!float",
        Scalar::Time => "!!timestamp",
        Scalar::Text => "!!str",
    }
}

/// Whether text is text when nothing quotes it.
pub(super) fn is_text(text: &str) -> bool {
    resolve(text) == Scalar::Text && !is_base_60(text)
}

/// What Go calls what a plain scalar is.
pub(super) fn json_kind(text: &str) -> &'static str {
    match resolve(text) {
        Scalar::Null => "null",
        Scalar::Bool(_) => "bool",
        Scalar::Positive(_) | Scalar::Negative(_) | Scalar::Float(_) => "number",
        Scalar::Time | Scalar::Text => "string",
    }
}

/// What Go's encoder of JSON calls a value that JSON has not.
pub(super) fn unsupported(text: &str) -> Option<&'static str> {
    // The longest of them is `-.inf`.
    if text.len() > 5 {
        return None;
    }
    match resolve(text) {
        Scalar::Float(number) if number.is_nan() => Some("NaN"),
        Scalar::Float(number) if number == f64::INFINITY => Some("+Inf"),
        Scalar::Float(number) if number == f64::NEG_INFINITY => Some("-Inf"),
        _ => None,
    }
}

/// The name that a plain key has in JSON, and whether the key is text; an error is what Go says of the others.
pub(super) fn key(text: &str) -> Result<(String, bool), &'static str> {
    let name = match resolve(text) {
        Scalar::Null => return Err("%!s(<nil>), key: <nil>"),
        Scalar::Bool(value) => value.to_string(),
        Scalar::Positive(number) if i64::try_from(number).is_err() => return Err("uint64"),
        Scalar::Positive(number) => number.to_string(),
        Scalar::Negative(number) => number.to_string(),
        Scalar::Float(number) if number.is_nan() => ".nan".to_owned(),
        // As a name a float has 32 bits.
        Scalar::Float(number) if number as f32 == f32::INFINITY => ".inf".to_owned(),
        Scalar::Float(number) if number as f32 == f32::NEG_INFINITY => "-.inf".to_owned(),
        Scalar::Float(number) => shortest(&format!("{:e}", number as f32)),
        Scalar::Time | Scalar::Text => return Ok((text.to_owned(), true)),
    };
    Ok((name, false))
}

/// A number in Rust's shortest scientific form (`1.5e7`) as Go's `%g` has it: `1.5e+07`, and without an exponent from
/// 0.0001 to below a million.
pub(super) fn shortest(scientific: &str) -> String {
    let Some((mantissa, exponent)) = scientific.split_once('e') else {
        return scientific.to_owned();
    };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let (sign, mantissa) = match mantissa.strip_prefix('-') {
        Some(mantissa) => ("-", mantissa),
        None => ("", mantissa),
    };
    if !(-4..6).contains(&exponent) {
        let direction = if exponent < 0 { '-' } else { '+' };
        return format!("{sign}{mantissa}e{direction}{:02}", exponent.abs());
    }
    let digits = mantissa.replace('.', "");
    let Ok(before) = usize::try_from(exponent + 1) else {
        let zeros = "0".repeat(usize::try_from(-1 - exponent).unwrap_or(0));
        return format!("{sign}0.{zeros}{digits}");
    };
    match digits.split_at_checked(before) {
        None => format!("{sign}{digits:0<before$}"),
        Some((whole, "")) => format!("{sign}{whole}"),
        Some((whole, fraction)) => {
            let whole = if whole.is_empty() { "0" } else { whole };
            format!("{sign}{whole}.{fraction}")
        }
    }
}

fn resolve(text: &str) -> Scalar {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Scalar::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            Scalar::Bool(true)
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            Scalar::Bool(false)
        }
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => Scalar::Float(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => Scalar::Float(f64::NEG_INFINITY),
        ".nan" | ".NaN" | ".NAN" => Scalar::Float(f64::NAN),
        text if text.starts_with('.') => float(text).unwrap_or(Scalar::Text),
        text if text.starts_with(|first: char| first.is_ascii_digit() || "+-".contains(first)) => {
            number(text)
        }
        _ => Scalar::Text,
    }
}

/// What begins with a digit or a sign: a time, a whole number, or a float.
fn number(text: &str) -> Scalar {
    if is_time(text) {
        return Scalar::Time;
    }
    let plain = text.replace('_', "");
    whole(&plain)
        .or_else(|| float(&plain))
        .unwrap_or(Scalar::Text)
}

/// A whole number with the prefix of its base, where a zero in front is the prefix of octal.
fn whole(text: &str) -> Option<Scalar> {
    let (negative, signed, unsigned) = match text.as_bytes().first() {
        Some(b'-') => (true, true, &text[1..]),
        Some(b'+') => (false, true, &text[1..]),
        _ => (false, false, text),
    };
    let prefixed = |lower: &str, upper: &str| {
        let rest = unsigned.strip_prefix(lower);
        rest.or_else(|| unsigned.strip_prefix(upper))
    };
    let (digits, radix) = if let Some(digits) = prefixed("0x", "0X") {
        (digits, 16)
    } else if let Some(digits) = prefixed("0o", "0O") {
        (digits, 8)
    } else if let Some(digits) = prefixed("0b", "0B") {
        (digits, 2)
    } else if unsigned.len() > 1 && unsigned.starts_with('0') {
        (unsigned, 8)
    } else {
        (unsigned, 10)
    };
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(radix)) {
        return None;
    }
    let magnitude = u64::from_str_radix(digits, radix).ok()?;
    match (negative, i64::try_from(magnitude)) {
        (true, Ok(number)) => Some(Scalar::Negative(-number)),
        (true, Err(_)) if magnitude == 1 << 63 => Some(Scalar::Negative(i64::MIN)),
        (true, Err(_)) => None,
        // Go reads signed numbers as signed ones alone.
        (false, Err(_)) if signed => None,
        (false, _) => Some(Scalar::Positive(magnitude)),
    }
}

/// `[-+]? ( . digits | digits ( . digits? )? ) ( [eE] [-+]? digits )?`, where a float can hold it.
fn float(text: &str) -> Option<Scalar> {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (unsigned, None),
    };
    let are_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let is_exponent = |text: &str| {
        let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
        !digits.is_empty() && are_digits(digits)
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let written = are_digits(whole)
        && are_digits(fraction)
        && !(whole.is_empty() && fraction.is_empty())
        && exponent.is_none_or(is_exponent);
    let number: f64 = written.then(|| text.parse().ok())??;
    number.is_finite().then_some(Scalar::Float(number))
}

/// Whether text is a number of YAML 1.1 in base 60, `1:20`: text here, but not to every reader.
fn is_base_60(text: &str) -> bool {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let Some((first, rest)) = unsigned.split_once(':') else {
        return false;
    };
    let is_digits = |text: &str| {
        text.bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'_')
    };
    let starts = first.starts_with(|first: char| first.is_ascii_digit()) && is_digits(first);
    let (rest, fraction) = rest.split_once('.').unwrap_or((rest, ""));
    let is_part = |part: &str| match part.as_bytes() {
        [last] => last.is_ascii_digit(),
        [ten, last] => (b'0'..=b'5').contains(ten) && last.is_ascii_digit(),
        _ => false,
    };
    starts && is_digits(fraction) && rest.split(':').all(is_part)
}

/// Whether text is a time as go-yaml knows them: a date, or a date and a time of day; `2001-1-1`,
/// `2001-12-14t21:59:43.10-05:00`, `2001-12-14 21:59:43`.
fn is_time(text: &str) -> bool {
    let Some((year, rest)) = text.split_once('-') else {
        return false;
    };
    if year.len() != 4 || !year.bytes().all(|byte| byte.is_ascii_digit()) {
        return false;
    }
    let year: i16 = year.parse().unwrap_or_default();
    time_after(year, rest).is_some()
}

/// What follows the year and its dash.
fn time_after(year: i16, rest: &str) -> Option<()> {
    let (month, rest) = one_or_two(rest, 1..=12)?;
    let (day, rest) = one_or_two(rest.strip_prefix('-')?, 1..=31)?;
    jiff::civil::Date::new(year, month, day).ok()?;
    if rest.is_empty() {
        return Some(());
    }
    let zoned = rest.starts_with(['T', 't']);
    let (_, rest) = one_or_two(rest.strip_prefix(['T', 't', ' '])?, 0..=23)?;
    let (_, rest) = one_or_two(rest.strip_prefix(':')?, 0..=59)?;
    let (_, mut rest) = one_or_two(rest.strip_prefix(':')?, 0..=59)?;
    if let Some(fraction) = rest.strip_prefix(['.', ',']) {
        let after = fraction.trim_start_matches(|digit: char| digit.is_ascii_digit());
        if after.len() < fraction.len() {
            rest = after;
        }
    }
    if !zoned {
        return rest.is_empty().then_some(());
    }
    if rest == "Z" {
        return Some(());
    }
    let (hours, minutes) = rest.strip_prefix(['+', '-'])?.split_once(':')?;
    let below = |text: &str, most: u8| {
        text.len() == 2
            && text.bytes().all(|byte| byte.is_ascii_digit())
            && text.parse::<u8>().is_ok_and(|number| number <= most)
    };
    (below(hours, 24) && below(minutes, 60)).then_some(())
}

/// A number of one or two digits at the start of a text, and what follows it.
fn one_or_two(text: &str, range: std::ops::RangeInclusive<i8>) -> Option<(i8, &str)> {
    let digits = text.bytes().take(2).take_while(u8::is_ascii_digit).count();
    let (digits, rest) = text.split_at_checked(digits)?;
    let number: i8 = digits.parse().ok()?;
    range.contains(&number).then_some((number, rest))
}
