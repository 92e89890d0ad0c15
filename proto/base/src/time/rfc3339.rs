//! Reads RFC 3339 as Go's `time.Parse` does, its leniency and its errors included, and writes it.

use super::{Precision, SECOND};

const DAY: i64 = 86_400;
/// The first second of year 1: Go's zero time.
const ZERO: i64 = -62_135_596_800;
/// What typed objects can hold: year 0, and the last hours before year 10000 excepted (a time of any offset must fit).
const FIRST: i64 = -62_167_219_200;
const LAST: i64 = 253_402_207_200;

/// A time in UTC, of those that typed objects can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Instant {
    /// Since the epoch.
    seconds: i64,
    /// Beyond them, less than a second.
    nanos: u32,
}

impl Instant {
    /// The nearest time that can be held.
    pub(super) fn new(seconds: i64, nanos: i64) -> Self {
        let seconds = seconds.saturating_add(nanos.div_euclid(SECOND));
        match seconds {
            ..FIRST => Self {
                seconds: FIRST,
                nanos: 0,
            },
            LAST.. => Self {
                seconds: LAST,
                nanos: 0,
            },
            _ => Self {
                seconds,
                // Less than 10^9.
                nanos: nanos.rem_euclid(SECOND) as u32,
            },
        }
    }

    /// Seconds since the epoch, and nanoseconds beyond them.
    pub(super) fn to_unix(self) -> (i64, i64) {
        (self.seconds, i64::from(self.nanos))
    }

    pub(super) fn from_nanos(nanos: i64) -> Self {
        Self::new(0, nanos)
    }

    /// Saturating.
    pub(super) fn to_nanos(self) -> i64 {
        let nanos = i128::from(self.seconds) * i128::from(SECOND) + i128::from(self.nanos);
        i64::try_from(nanos).unwrap_or(if nanos < 0 { i64::MIN } else { i64::MAX })
    }

    /// Without what a precision does not keep.
    pub(super) fn rounded(self, precision: Precision) -> Self {
        let nanos = match precision {
            Precision::Seconds => 0,
            Precision::Micros => self.nanos / 1000 * 1000,
        };
        Self { nanos, ..self }
    }

    pub(super) fn is_zero(self) -> bool {
        (self.seconds, self.nanos) == (ZERO, 0)
    }

    pub(super) fn write(self, precision: Precision) -> String {
        let (days, second) = (self.seconds.div_euclid(DAY), self.seconds.rem_euclid(DAY));
        let (year, month, day) = date(days);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        let fraction = match precision {
            Precision::Seconds => String::new(),
            Precision::Micros => format!(".{:06}", self.nanos / 1000),
        };
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z")
    }
}

/// Year, month and day of a number of days since the epoch. Years begin in March here, so that the odd day is the last, and
/// an era is 400 years, after which everything repeats.
fn date(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (next, month) = match month {
        0..10 => (0, month + 3),
        _ => (1, month - 9),
    };
    (era * 400 + year + next, month, day)
}

/// The number of days from the epoch to a date.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = match month {
        1 | 2 => (year - 1, month + 9),
        _ => (year, month - 3),
    };
    let (era, year) = (year.div_euclid(400), year.rem_euclid(400));
    let day = (153 * month + 2) / 5 + day - 1;
    era * 146_097 + year * 365 + year / 4 - year / 100 + day - 719_468
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        _ => 31,
    }
}

/// What is left to read.
struct Reader<'a> {
    text: &'a str,
    rest: &'a [u8],
    layout: &'static str,
}

impl Reader<'_> {
    /// The refusal of what stands where the layout wants something else.
    fn cannot<T>(&self, at: &[u8], wanted: &str) -> Result<T, String> {
        Err(format!(
            "parsing time {} as {}: cannot parse {} as {}",
            quote(self.text.as_bytes()),
            quote(self.layout.as_bytes()),
            quote(at),
            quote(wanted.as_bytes()),
        ))
    }

    fn wrong<T>(&self, why: &str) -> Result<T, String> {
        let text = quote(self.text.as_bytes());
        Err(format!("parsing time {text}: {why}"))
    }

    fn literal(&mut self, wanted: &str) -> Result<(), String> {
        match self.rest.strip_prefix(wanted.as_bytes()) {
            Some(rest) => self.rest = rest,
            None => return self.cannot(self.rest, wanted),
        }
        Ok(())
    }

    /// A number of so many digits.
    fn number(&mut self, digits: usize, wanted: &str) -> Result<i64, String> {
        match self.rest.split_at_checked(digits) {
            Some((number, rest)) if number.iter().all(u8::is_ascii_digit) => {
                self.rest = rest;
                Ok(value(number))
            }
            _ => self.cannot(self.rest, wanted),
        }
    }

    /// A number of two digits that is within a range.
    fn within(
        &mut self,
        range: std::ops::RangeInclusive<i64>,
        wanted: &str,
        what: &str,
    ) -> Result<i64, String> {
        let number = self.number(2, wanted)?;
        match range.contains(&number) {
            true => Ok(number),
            false => self.wrong(&format!("{what} out of range")),
        }
    }

    /// The hour, which may have one digit.
    fn hour(&mut self) -> Result<i64, String> {
        match self.rest {
            [first, rest @ ..]
                if first.is_ascii_digit() && !rest.first().is_some_and(u8::is_ascii_digit) =>
            {
                self.rest = rest;
                Ok(value(&[*first]))
            }
            _ => self.within(0..=23, "15", "hour"),
        }
    }

    /// A fraction of a second in nanoseconds; as long as it likes where the layout has none.
    fn fraction(&mut self, precision: Precision) -> Result<u32, String> {
        let wanted = match precision {
            Precision::Seconds => {
                let digits = match self.rest {
                    [b'.' | b',', digits @ ..] => digits,
                    _ => return Ok(0),
                };
                match digits
                    .iter()
                    .take_while(|byte| byte.is_ascii_digit())
                    .count()
                {
                    // What follows the seconds is told as no offset.
                    0 => return Ok(0),
                    count => count,
                }
            }
            Precision::Micros => 6,
        };
        let digits = match self.rest {
            [b'.' | b',', digits @ ..] => digits.get(..wanted),
            _ => None,
        };
        match digits {
            Some(digits) if digits.iter().all(u8::is_ascii_digit) => {
                self.rest = self.rest.get(wanted + 1..).unwrap_or_default();
                let kept = digits.get(..9).unwrap_or(digits);
                let scale = 10_i64.pow(9_u32.saturating_sub(kept.len() as u32));
                // Less than 10^9.
                Ok((value(kept) * scale) as u32)
            }
            _ => self.cannot(self.rest, ".000000"),
        }
    }

    /// Seconds east of Greenwich.
    fn offset(&mut self) -> Result<i64, String> {
        let hold = self.rest;
        if let Some(rest) = hold.strip_prefix(b"Z") {
            self.rest = rest;
            return Ok(0);
        }
        let [sign, h, hh, b':', m, mm, rest @ ..] = hold else {
            return self.cannot(hold, "Z07:00");
        };
        let (hour, minute) = ([*h, *hh], [*m, *mm]);
        let is_number = [hour, minute].concat().iter().all(u8::is_ascii_digit);
        if !is_number || !matches!(sign, b'+' | b'-') {
            return self.cannot(hold, "Z07:00");
        }
        let (hour, minute) = (value(&hour), value(&minute));
        // As lenient as Go: some write offsets of 24 hours or 60 minutes.
        if hour > 24 {
            return self.wrong("time zone offset hour out of range");
        }
        if minute > 60 {
            return self.wrong("time zone offset minute out of range");
        }
        self.rest = rest;
        let offset = (hour * 60 + minute) * 60;
        Ok(if *sign == b'-' { -offset } else { offset })
    }
}

/// The value of digits, no more than nine of them.
fn value(digits: &[u8]) -> i64 {
    digits
        .iter()
        .fold(0, |value, digit| value * 10 + i64::from(digit - b'0'))
}

/// As Go's package `time` quotes: what is not printable ASCII in hexadecimal.
fn quote(text: &[u8]) -> String {
    let mut quoted = String::from('"');
    for byte in text {
        match byte {
            b'"' | b'\\' => quoted.extend(['\\', char::from(*byte)]),
            b' '..=0x7f => quoted.push(char::from(*byte)),
            _ => quoted.push_str(&format!("\\x{byte:02x}")),
        }
    }
    quoted.push('"');
    quoted
}

/// Parses a time; the error is Go's.
pub(super) fn parse(text: &str, precision: Precision) -> Result<Instant, String> {
    let mut reader = Reader {
        text,
        rest: text.as_bytes(),
        layout: match precision {
            Precision::Seconds => "2006-01-02T15:04:05Z07:00",
            Precision::Micros => "2006-01-02T15:04:05.000000Z07:00",
        },
    };
    let year = reader.number(4, "2006")?;
    reader.literal("-")?;
    let month = reader.within(1..=12, "01", "month")?;
    reader.literal("-")?;
    let day = reader.number(2, "02")?;
    reader.literal("T")?;
    let hour = reader.hour()?;
    reader.literal(":")?;
    let minute = reader.within(0..=59, "04", "minute")?;
    reader.literal(":")?;
    let second = reader.within(0..=59, "05", "second")?;
    let nanos = reader.fraction(precision)?;
    let offset = reader.offset()?;
    if !reader.rest.is_empty() {
        return reader.wrong(&format!("extra text: {}", quote(reader.rest)));
    }
    if !(1..=days_in(year, month)).contains(&day) {
        return reader.wrong("day out of range");
    }
    let seconds = days(year, month, day) * DAY + (hour * 60 + minute) * 60 + second - offset;
    Ok(Instant::new(seconds, i64::from(nanos)))
}
