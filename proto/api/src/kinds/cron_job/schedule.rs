//! Schedules: five fields, or one of a few words. What is wrong is told in the words of the library that Kubernetes reads them
//! with, robfig/cron.

use std::time::Duration;

use super::is_time_zone;

/// When something is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// The time zone that the text itself names.
    pub zone: Option<String>,
    /// The times.
    pub times: Times,
}

/// The times of a schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Times {
    /// At every minute that these say.
    Calendar(Box<Calendar>),
    /// Once in so long, in whole seconds, and at least one.
    Every(Duration),
}

/// Minutes of a calendar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Calendar {
    /// From 0.
    pub minutes: Numbers,
    /// From 0.
    pub hours: Numbers,
    /// From 1.
    pub days: Numbers,
    /// From 1.
    pub months: Numbers,
    /// From 0, a Sunday.
    pub weekdays: Numbers,
}

/// Numbers below 64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    bits: u64,
    /// Whether the text says any, and does not list all.
    any: bool,
}

impl Numbers {
    /// Whether the number is one of them.
    pub fn has(&self, number: u32) -> bool {
        self.bits
            .checked_shr(number)
            .is_some_and(|bits| bits & 1 == 1)
    }

    fn and(self, other: Self) -> Self {
        Self {
            bits: self.bits | other.bits,
            any: self.any || other.any,
        }
    }
}

impl Calendar {
    /// Whether a field has no number at all, as of `,`: then no time is one of them.
    pub fn is_never(&self) -> bool {
        let none = |numbers: Numbers| numbers.bits == 0;
        [self.minutes, self.hours, self.months]
            .into_iter()
            .any(none)
            || [self.days, self.weekdays].into_iter().all(none)
    }

    /// Whether a day is one of them. Where both sorts of day are listed, either is enough.
    pub fn has_day(&self, day: u32, weekday: u32) -> bool {
        let (day, weekday) = (self.days.has(day), self.weekdays.has(weekday));
        match self.days.any || self.weekdays.any {
            true => day && weekday,
            false => day || weekday,
        }
    }
}

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

/// Words, and the fields that they stand for.
const WORDS: [(&str, &str); 7] = [
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];

/// Units of a duration, in seconds.
const UNITS: [(&str, f64); 8] = [
    ("ns", 1e-9),
    ("us", 1e-6),
    ("µs", 1e-6),
    ("μs", 1e-6),
    ("ms", 1e-3),
    ("s", 1.0),
    ("m", 60.0),
    ("h", 3600.0),
];

/// Longer than any schedule, and still far from what cannot be told.
const LONGEST: f64 = 1e9;

/// Reads a schedule that is not empty.
pub fn parse(schedule: &str) -> Result<Schedule, String> {
    let (zone, rest) = zone_of(schedule)?;
    let zone = zone.map(str::to_owned);
    let times = match rest.starts_with('@') {
        true => parse_word(rest)?,
        false => parse_fields(rest)?,
    };
    Ok(Schedule { zone, times })
}

fn parse_fields(rest: &str) -> Result<Times, String> {
    let parts: Vec<&str> = rest.split_whitespace().collect();
    if parts.len() != FIELDS.len() {
        let (wanted, found) = (FIELDS.len(), parts.len());
        return Err(format!(
            "expected exactly {wanted} fields, found {found}: [{}]",
            parts.join(" ")
        ));
    }
    let mut fields = [Numbers::default(); FIELDS.len()];
    for ((numbers, part), field) in fields.iter_mut().zip(parts).zip(&FIELDS) {
        for range in part.split(',').filter(|range| !range.is_empty()) {
            *numbers = numbers.and(parse_range(range, field)?);
        }
    }
    let [minutes, hours, days, months, weekdays] = fields;
    Ok(Times::Calendar(Box::new(Calendar {
        minutes,
        hours,
        days,
        months,
        weekdays,
    })))
}

/// The time zone of a schedule, if it has one, and what follows it.
fn zone_of(schedule: &str) -> Result<(Option<&str>, &str), String> {
    let rest = ["TZ=", "CRON_TZ="]
        .into_iter()
        .find_map(|start| schedule.strip_prefix(start));
    let Some(rest) = rest else {
        return Ok((None, schedule));
    };
    let (zone, rest) = rest.split_once(' ').unwrap_or((rest, ""));
    match zone.is_empty() || zone == "Local" || is_time_zone(zone) {
        true => Ok((Some(zone), rest.trim())),
        false => Err(format!(
            "provided bad location {zone}: unknown time zone {zone}"
        )),
    }
}

fn parse_word(word: &str) -> Result<Times, String> {
    if let Some((_, fields)) = WORDS.iter().find(|(known, _)| *known == word) {
        return parse_fields(fields);
    }
    let Some(duration) = word.strip_prefix("@every ") else {
        return Err(format!("unrecognized descriptor: {word}"));
    };
    let seconds = parse_duration(duration)
        .map_err(|error| format!("failed to parse duration {word}: {error}"))?;
    let seconds = seconds.clamp(1.0, LONGEST).trunc();
    Ok(Times::Every(Duration::from_secs_f64(seconds)))
}

/// The seconds of a duration as Go writes it: `1h30m`, `1.5s`.
fn parse_duration(text: &str) -> Result<f64, String> {
    let invalid = || format!("time: invalid duration {text:?}");
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest == "0" {
        return Ok(0.0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut seconds = 0.0;
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
        let Some((_, each)) = UNITS.iter().find(|(known, _)| *known == unit) else {
            return Err(format!("time: unknown unit {unit:?} in duration {text:?}"));
        };
        seconds += number.parse::<f64>().map_err(|_| invalid())? * each;
        rest = after;
    }
    match text.starts_with('-') {
        true => Ok(-seconds),
        false => Ok(seconds),
    }
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

/// The numbers of `number`, `number-number` or `*`, and after a slash the step.
fn parse_range(text: &str, field: &Field) -> Result<Numbers, String> {
    let mut parts = text.split('/');
    let (range, step, more) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
    let mut bounds = range.split('-');
    let (low, high, further) = (
        bounds.next().unwrap_or_default(),
        bounds.next(),
        bounds.next(),
    );
    let any = ["*", "?"].contains(&low);
    let (start, mut end) = if any {
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
    let step = match step.unwrap_or(1) {
        0 => return Err(format!("step of range should be a positive number: {text}")),
        step => usize::try_from(step).unwrap_or(usize::MAX),
    };
    let numbers = (start..=end).step_by(step);
    Ok(Numbers {
        bits: numbers.fold(0, |bits, number| bits | 1 << number),
        any: any && step == 1,
    })
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
            assert!(parse(good).is_ok(), "{good}");
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
            assert_eq!(parse(schedule), Err(told.to_owned()), "{schedule}");
        }
    }

    #[test]
    fn what_is_read_is_what_is_meant() {
        let calendar = |text: &str| match parse(text).map(|schedule| schedule.times) {
            Ok(Times::Calendar(calendar)) => calendar,
            other => panic!("{text}: {other:?}"),
        };
        let listed = |numbers: Numbers| {
            (0..64)
                .filter(|number| numbers.has(*number))
                .collect::<Vec<_>>()
        };
        let times = calendar("*/20 9-17/4,23 1,15 feb mon");
        assert_eq!(listed(times.minutes), [0, 20, 40]);
        assert_eq!(listed(times.hours), [9, 13, 17, 23]);
        assert_eq!(listed(times.days), [1, 15]);
        assert_eq!(listed(times.months), [2]);
        assert_eq!(listed(times.weekdays), [1]);
        assert!(times.has_day(15, 3) && times.has_day(2, 1) && !times.has_day(2, 3));
        let times = calendar("0 0 * * mon");
        assert!(times.has_day(2, 1) && !times.has_day(2, 3));
        // A step is no longer any day.
        assert!(calendar("0 0 */2 * mon").has_day(2, 1));
        assert_eq!(calendar("@weekly"), calendar("0 0 * * sun"));
        for (text, seconds) in [
            ("1h30m", 5400),
            ("1.5s", 1),
            ("0", 1),
            ("-5m", 1),
            ("999999999h", 1_000_000_000),
        ] {
            let times = parse(&format!("@every {text}")).map(|schedule| schedule.times);
            assert_eq!(
                times,
                Ok(Times::Every(Duration::from_secs(seconds))),
                "{text}"
            );
        }
        for (text, is_never) in [
            (", * * * *", true),
            ("* , * * *", true),
            ("* * * , *", true),
            ("* * , * ,", true),
            ("* * , * 1", false),
            ("* * * * *", false),
        ] {
            assert_eq!(calendar(text).is_never(), is_never, "{text}");
        }
        let zoned = parse("CRON_TZ=Europe/Berlin @daily").map(|schedule| schedule.zone);
        assert_eq!(zoned, Ok(Some("Europe/Berlin".to_owned())));
    }
}
