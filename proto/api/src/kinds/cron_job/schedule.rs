//! The syntax of schedules: five fields, or one of a few words. What is wrong is told in the words of the library that
//! Kubernetes reads them with, robfig/cron.

use super::is_time_zone;

/// A field of a schedule: its numbers, and the names that some of them have.
struct Field {
    min: u64,
    max: u64,
    /// In the order of the numbers, from `min`.
    names: &'static [&'static str],
}

const FIELDS: [Field; 5] = [
    Field {
        min: 0,
        max: 59,
        names: &[],
    },
    Field {
        min: 0,
        max: 23,
        names: &[],
    },
    Field {
        min: 1,
        max: 31,
        names: &[],
    },
    Field {
        min: 1,
        max: 12,
        names: &[
            "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
        ],
    },
    Field {
        min: 0,
        max: 6,
        names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"],
    },
];

const WORDS: [&str; 7] = [
    "@yearly",
    "@annually",
    "@monthly",
    "@weekly",
    "@daily",
    "@midnight",
    "@hourly",
];

/// Units of a duration.
const UNITS: [&str; 8] = ["ns", "us", "µs", "μs", "ms", "s", "m", "h"];

/// Checks a schedule that is not empty.
pub(super) fn check(schedule: &str) -> Result<(), String> {
    let rest = without_zone(schedule)?;
    if rest.starts_with('@') {
        return check_word(rest);
    }
    let parts: Vec<&str> = rest.split_whitespace().collect();
    if parts.len() != FIELDS.len() {
        let (wanted, found) = (FIELDS.len(), parts.len());
        return Err(format!(
            "expected exactly {wanted} fields, found {found}: [{}]",
            parts.join(" ")
        ));
    }
    for (part, field) in parts.into_iter().zip(&FIELDS) {
        for range in part.split(',').filter(|range| !range.is_empty()) {
            check_range(range, field)?;
        }
    }
    Ok(())
}

/// What follows the time zone of a schedule, if it has one.
fn without_zone(schedule: &str) -> Result<&str, String> {
    let rest = ["TZ=", "CRON_TZ="]
        .into_iter()
        .find_map(|start| schedule.strip_prefix(start));
    let Some(rest) = rest else {
        return Ok(schedule);
    };
    let (zone, rest) = rest.split_once(' ').unwrap_or((rest, ""));
    match zone.is_empty() || zone == "Local" || is_time_zone(zone) {
        true => Ok(rest.trim()),
        false => Err(format!(
            "provided bad location {zone}: unknown time zone {zone}"
        )),
    }
}

fn check_word(word: &str) -> Result<(), String> {
    if WORDS.contains(&word) {
        return Ok(());
    }
    let Some(duration) = word.strip_prefix("@every ") else {
        return Err(format!("unrecognized descriptor: {word}"));
    };
    check_duration(duration).map_err(|error| format!("failed to parse duration {word}: {error}"))
}

/// Checks a duration as Go writes it: `1h30m`, `1.5s`.
fn check_duration(text: &str) -> Result<(), String> {
    let invalid = || format!("time: invalid duration {text:?}");
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest == "0" {
        return Ok(());
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    while !rest.is_empty() {
        let amount = |letter: char| letter.is_ascii_digit() || letter == '.';
        let end = rest
            .find(|letter: char| !amount(letter))
            .unwrap_or(rest.len());
        let (number, after) = rest.split_at(end);
        let digits = number.bytes().filter(u8::is_ascii_digit).count();
        if digits == 0 || number.len() - digits > 1 {
            return Err(invalid());
        }
        let end = after.find(amount).unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        if unit.is_empty() {
            return Err(format!("time: missing unit in duration {text:?}"));
        }
        if !UNITS.contains(&unit) {
            return Err(format!("time: unknown unit {unit:?} in duration {text:?}"));
        }
        rest = after;
    }
    Ok(())
}

fn number(text: &str, field: &Field) -> Result<u64, String> {
    let lower = text.to_ascii_lowercase();
    let named = (field.min..).zip(field.names);
    for (number, name) in named {
        if *name == lower {
            return Ok(number);
        }
    }
    plain_number(text)
}

fn plain_number(text: &str) -> Result<u64, String> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let all_digits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let number: i64 = text.parse().map_err(|_| {
        let why = match all_digits {
            true => "value out of range",
            false => "invalid syntax",
        };
        format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: {why}")
    })?;
    u64::try_from(number).map_err(|_| format!("negative number ({number}) not allowed: {text}"))
}

/// Checks `number`, `number-number` or `*`, and after a slash the step.
fn check_range(text: &str, field: &Field) -> Result<(), String> {
    let mut parts = text.split('/');
    let (range, step, more) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
    let mut bounds = range.split('-');
    let (low, high, further) = (
        bounds.next().unwrap_or_default(),
        bounds.next(),
        bounds.next(),
    );
    let (start, mut end) = if ["*", "?"].contains(&low) {
        (field.min, field.max)
    } else {
        let start = number(low, field)?;
        if further.is_some() {
            return Err(format!("too many hyphens: {text}"));
        }
        let end = high.map_or(Ok(start), |high| number(high, field))?;
        (start, end)
    };
    if more.is_some() {
        return Err(format!("too many slashes: {text}"));
    }
    let step = step.map(plain_number).transpose()?;
    if step.is_some() && high.is_none() {
        end = field.max;
    }
    let (min, max) = (field.min, field.max);
    if start < min {
        return Err(format!(
            "beginning of range ({start}) below minimum ({min}): {text}"
        ));
    }
    if end > max {
        return Err(format!(
            "end of range ({end}) above maximum ({max}): {text}"
        ));
    }
    if start > end {
        return Err(format!(
            "beginning of range ({start}) beyond end of range ({end}): {text}"
        ));
    }
    match step {
        Some(0) => Err(format!("step of range should be a positive number: {text}")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_are_five_fields_or_a_word() {
        for good in [
            "* * * * *",
            "*/5 0-12/2 1,15 jan-MAR mon",
            "0 0 ? * 0",
            "@daily",
            "@every 1h30m",
            "@every 1.5s",
            "TZ=Europe/Berlin 0 0 * * *",
            "CRON_TZ=UTC @hourly",
            "5/15 * * * *",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_in_the_words_of_the_library() {
        for (schedule, told) in [
            ("error", "expected exactly 5 fields, found 1: [error]"),
            (
                "* * * * * *",
                "expected exactly 5 fields, found 6: [* * * * * *]",
            ),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            (
                "5-3 * * * *",
                "beginning of range (5) beyond end of range (3): 5-3",
            ),
            (
                "*/0 * * * *",
                "step of range should be a positive number: */0",
            ),
            ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
            ("*/1/2 * * * *", "too many slashes: */1/2"),
            (
                "a * * * *",
                "failed to parse int from a: strconv.Atoi: parsing \"a\": invalid syntax",
            ),
            (
                "-1 * * * *",
                "failed to parse int from : strconv.Atoi: parsing \"\": invalid syntax",
            ),
            ("@never", "unrecognized descriptor: @never"),
            (
                "@every x",
                "failed to parse duration @every x: time: invalid duration \"x\"",
            ),
            (
                "@every 5",
                "failed to parse duration @every 5: time: missing unit in duration \"5\"",
            ),
            (
                "@every 5d",
                "failed to parse duration @every 5d: time: unknown unit \"d\" in duration \"5d\"",
            ),
            (
                "TZ=Mars/Base * * * * *",
                "provided bad location Mars/Base: unknown time zone Mars/Base",
            ),
        ] {
            assert_eq!(check(schedule), Err(told.to_owned()), "{schedule}");
        }
    }
}
